"""The report of a comparison of stores: the table, which differences are real, and the raw figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

from bench.errors import BenchMisused
from bench.loadgen.capacity import PERCENTS
from bench.loadgen.keys import Uniform, Zipf
from bench.progress import ProgressDisplay
from bench.report.comparison import FEWEST, compare, geometric
from bench.report.report import ERRORS, WHILE_WRITTEN, Report, Series, series
from bench.report.text import format_us, parse_rate, parse_seconds
from bench.stores.rounds import BATCHES, TRIAL_LISTS, Contest, Extent, Outcome, Standing, Turn, Written
from bench.stores.setup import Field, contestants, own_stores
from stores.manifest import Manifest
from stores.urls import redacted

DECIDES = "p99"
ENCODINGS = ("json", "zstd")

METHOD = """
The store alone: one caller on one core, each call waiting for the one before.

Through the service: hotplate serve with one worker over one store, on one core; every user as likely as any other
unless --zipf says otherwise.

Room a list takes and publishing are of a trial release of the same stored bytes: written and made durable as any other,
then dropped instead of committed. Encoding and compressing lists come before, and are not counted; nor is the
pause in which it is dropped. The publisher has the lowest priority, on the service's core. Redis is as durable as it is
set up to be.

The CPU of a million reads is that of the service and of the store's server at this rate; an idle or a busier one spends
another amount a read. A price beside it is that CPU at the price of a CPU-hour that was given, and no bill: a machine
is paid for whether it is busy or not, and memory is not in it.

A * marks a percentile with fewer than 10 samples beyond it in all rounds together.
"""
LOOPBACK = (
    "The stores were started on this machine: no network, no TLS, no replica, and a Redis that keeps nothing on disk. "
    "A network adds its round trip to every read of a remote store, and nothing to one of files; give the URLs of real "
    "stores to see that."
)
ELSEWHERE = (
    "The stores were where their URLs say, and others may have used them meanwhile: what a server spent is all that it "
    "spent. Services and load generator were on this machine."
)
EMULATED = "An emulator's own speed says nothing about the service that it stands for, so none of its times are shown."


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was told, as it was told."""

    urls: Sequence[str] = ()
    rate: str = "2k"
    duration: str = "5s"
    repeat: int = 10
    warmup: str = "2s"
    users: int = 100_000
    zipf: float | None = None
    encoding: str = "zstd"
    publish: bool = False
    cpu_hour: float | None = None

    @property
    def configuration(self) -> dict[str, Any]:
        """Give what was told as plain values, without passwords."""
        told = asdict(self) | {"stores": [redacted(url) for url in self.urls]}
        return {name: value for name, value in told.items() if name != "urls" and value is not None}


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison's report."""

    report: Report

    @property
    def valid(self) -> bool:
        """Whether it came to its end with valid rounds and without a wrong answer."""
        report = self.report
        return not (report.interrupted or report.invalid_reasons or report.extra["checked"]["wrong"]) and bool(
            report.series
        )


def compare_stores(asked: Asked, watch: ProgressDisplay) -> Compared:
    """Make the comparison. Raises BenchMisused for what makes no sense, BenchFailed and StoreError where it fails."""
    extent = _extent(asked)
    with ExitStack() as stack:
        urls = list(asked.urls) or stack.enter_context(own_stores())
        watch.start("bringing the release into the stores", 1.0)
        field = stack.enter_context(contestants(urls, asked.users, asked.encoding, made=not asked.urls))
        outcome = Contest(field, extent, watch).make(publishing=asked.publish or field.made)
        return Compared(report(asked, field, outcome))


def _extent(asked: Asked) -> Extent:
    if len(asked.urls) == 1:
        raise BenchMisused("a comparison takes two stores or more, or no URL at all for those that it starts itself")
    if len(set(asked.urls)) < len(asked.urls):
        raise BenchMisused("the same store is given twice")
    if asked.encoding not in ENCODINGS:
        raise BenchMisused(f"an encoding is {' or '.join(ENCODINGS)}, not {asked.encoding!r}")
    if asked.repeat < 1 or asked.users < 1 or (asked.cpu_hour is not None and asked.cpu_hour <= 0):
        raise BenchMisused("--repeat and --users must be 1 or more, --cpu-hour above zero")
    extent = Extent(
        rounds=asked.repeat,
        rate=parse_rate(asked.rate),
        duration_s=parse_seconds(asked.duration),
        warmup_s=parse_seconds(asked.warmup),
        trial_lists=min(TRIAL_LISTS, asked.users),
        draw=Uniform() if asked.zipf is None else Zipf(asked.zipf),
    )
    if extent.rate <= 0 or extent.duration_s <= 0:
        raise BenchMisused("--rate and --duration must be above zero")
    return extent


def report(asked: Asked, field: Field, outcome: Outcome) -> Report:
    """Sum a comparison up."""
    kept, left_out = _kept(outcome, min(FEWEST, asked.repeat))
    found = [_found(standing, kept) for standing in outcome.standings]
    shown = [one for one in found if one.standing.contestant.emulated is None]
    told = [one.steady for one in shown] + [one.disturbed for one in shown if one.disturbed]
    checked = [asdict(standing.checked) for standing in outcome.standings]
    names = [standing.contestant.name for standing in outcome.standings]
    table = lines(found, field.manifest, asked.cpu_hour) if kept else []
    return Report(
        kind="stores",
        configuration=asked.configuration
        | {
            "stores": [standing.contestant.shown for standing in outcome.standings],
            "release": field.manifest.release,
            "encoding": field.manifest.encoding,
            "lists": "made up for this comparison" if field.made else "of the live release",
            "users": f"{len(field.users):,} asked for, of {field.manifest.counts.get('user', 0):,}",
        },
        series=tuple(each for each in told if each.rounds),
        interrupted=outcome.interrupted,
        extra={
            "comparison": {
                "stores": names,
                "lines": [asdict(line) for line in table],
                "verdicts": verdicts([one.steady for one in shown]),
                "left_out": left_out,
                "method": _method(field, emulated=len(shown) < len(found)),
            },
            "checked": {
                "compared": sum(each["compared"] for each in checked),
                "wrong": sum(each["wrong"] for each in checked),
                "fallback": sum(each["fallback"] for each in checked),
                "examples": [example for each in checked for example in each["examples"]],
            },
            "stores": [_raw(standing) for standing in outcome.standings],
        },
    )


def _method(field: Field, *, emulated: bool) -> list[str]:
    told = [" ".join(each.split()) for each in METHOD.strip().split("\n\n")]
    return [LOOPBACK if field.made else ELSEWHERE, *([EMULATED] if emulated else []), *told]


def verdicts(steady: Sequence[Series]) -> list[str]:
    """Say of each store but the first whether its p99 through the service really differs from the first one's."""
    said = list[str]()
    for other in steady[1:]:
        first = steady[0]
        pairs = zip(first.rounds, other.rounds, strict=True)
        if sum(not (one.facts["invalid_reasons"] or two.facts["invalid_reasons"]) for one, two in pairs) < FEWEST:
            said.append(f"{FEWEST} valid rounds or more are needed to say whether {first.name} and {other.name} differ")
            continue
        verdict = compare(first, other, DECIDES)
        by = verdict.deciding.interval
        how = f"{abs(by.mean):.0%} {'longer' if by.mean > 0 else 'shorter'} through {other.name} than {first.name}"
        real = "a real difference" if by.real else "no real difference: the interval holds 0"
        said.append(f"{DECIDES} is {how} (95 % interval {by.low:+.0%} to {by.high:+.0%}): {real}")
    return said


def _kept(outcome: Outcome, enough: int) -> tuple[list[int], list[str]]:
    """Choose the rounds that count: those valid for all stores, or all rounds where fewer than *enough* are."""
    invalid_reasons = {
        place: f"round {place + 1} is left out: {standing.contestant.name}, {doubt}"
        for standing in outcome.standings
        for place, turn in enumerate(standing.turns)
        for doubt in turn.served.result.invalid_reasons
    }
    made = range(len(outcome.standings[0].turns))
    if len(made) - len(invalid_reasons) < enough:
        return list(made), []
    return [place for place in made if place not in invalid_reasons], [
        invalid_reasons[place] for place in sorted(invalid_reasons)
    ]


def _found(standing: Standing, kept: Sequence[int]) -> Found:
    turns = tuple(standing.turns[place] for place in kept)
    name = standing.contestant.name
    disturbed = [turn.written.served.result for turn in turns if turn.written]
    valid = [result for result in disturbed if result.valid]
    return Found(
        standing,
        turns,
        series(name, [turn.served.result for turn in turns]),
        series(name + WHILE_WRITTEN, valid) if valid else None,
    )


def _raw(standing: Standing) -> dict[str, Any]:
    """Give all that was measured of a store but its runs' histograms, which the series hold."""
    return {
        "name": standing.contestant.name,
        "url": standing.contestant.shown,
        "emulated": standing.contestant.emulated,
        "memory_bytes": asdict(standing.memory),
        "checked": asdict(standing.checked),
        "rounds": [_raw_turn(turn) for turn in standing.turns],
    }


def _raw_turn(turn: Turn) -> Mapping[str, Any]:
    return {
        "alone": {str(size): asdict(found) for size, found in turn.lookups.items()},
        "service_cpu_us": turn.served.service_cpu_us,
        "server_cpu_us": turn.served.server_cpu_us,
        "invalid_reasons": turn.served.result.invalid_reasons,
        "trial": turn.written and asdict(turn.written.trial),
        "lists_per_s_meanwhile": turn.written and turn.written.lists_per_s,
        "doubts_meanwhile": turn.written and turn.written.served.result.invalid_reasons,
    }


NONE, UNKNOWN = "none", "not known"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of all stores, in the order of the stores."""

    group: str
    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """All of one store that the table tells: its rounds that count, as a series and as turns."""

    standing: Standing
    turns: tuple[Turn, ...]
    steady: Series
    disturbed: Series | None

    def mean(self, value: Callable[[Turn], float | None]) -> float | None:
        """Give the mean of a value over the rounds; None where it is not known."""
        values = [found for turn in self.turns if (found := value(turn)) is not None]
        return fmean(values) if values else None


def lines(found: Sequence[Found], manifest: Manifest, cpu_hour: float | None) -> list[Line]:
    """Make the whole table; *cpu_hour* is what an hour of CPU costs, in any currency."""
    return [
        *_alone(found),
        *_service(found),
        *_spent(found, cpu_hour),
        *_memory(found, manifest),
        *_writing(found),
    ]


def _line(group: str, name: str, found: Sequence[Found], cell: Callable[[Found], str], *, timed: bool = False) -> Line:
    """Make a line; where it is about time, an emulator's cell says that there is none to be told."""

    def shown(one: Found) -> str:
        emulated = one.standing.contestant.emulated
        return emulated if timed and emulated else cell(one)

    return Line(group, name, tuple(shown(one) for one in found))


def _alone(found: Sequence[Found]) -> Iterable[Line]:
    for size in BATCHES:
        group = f"Alone, {size} key{'s' * (size > 1)} a call"

        def call(one: Found, size: int = size) -> str:
            return spread([turn.lookups[size].call_us for turn in one.turns])

        def rate(one: Found, size: int = size) -> str:
            return count(one.mean(lambda turn: turn.lookups[size].keys_per_s))

        def spent(one: Found, size: int = size) -> str:
            ours = one.mean(lambda turn: turn.lookups[size].cpu_us)
            return both(ours, one.mean(lambda turn: turn.lookups[size].server_cpu_us))

        yield _line(group, "a call, median", found, call, timed=True)
        yield _line(group, "keys/s, one caller", found, rate, timed=True)
        yield _line(group, "CPU a key, + server's", found, spent, timed=True)


def _service(found: Sequence[Found]) -> Iterable[Line]:
    summaries = {id(one): one.steady.summary() for one in found if one.steady.rounds}
    group = "Through the service"
    for name in PERCENTS:
        yield _line(group, name, found, partial(_latency, summaries, name), timed=True)
    yield _line(group, "good answers/s", found, lambda one: count(_mean(one.steady.values("rate"))), timed=True)
    yield _line(
        group, "errors and drops", found, lambda one: f"{_mean(one.steady.values(ERRORS)) or 0:.3%}", timed=True
    )
    yield _line(group, "popular list instead", found, _popular, timed=True)


def _spent(found: Sequence[Found], cpu_hour: float | None) -> Iterable[Line]:
    group = "CPU a request"

    def generator(one: Found) -> str:
        return us(one.mean(lambda turn: turn.served.result.cpu_us_per_request))

    yield _line(group, "load generator", found, generator)
    yield _line(group, "service", found, lambda one: us(one.mean(lambda turn: turn.served.service_cpu_us)))
    yield _line(
        group, "the store's server", found, lambda one: us(one.mean(lambda turn: turn.served.server_cpu_us)), timed=True
    )
    yield _line(group, "a million reads, + server's", found, lambda one: _million(one, cpu_hour), timed=True)


def _million(one: Found, cpu_hour: float | None) -> str:
    service, server = (
        one.mean(lambda turn: turn.served.service_cpu_us),
        one.mean(lambda turn: turn.served.server_cpu_us),
    )
    if service is None or server is None:
        return UNKNOWN
    cpu_s = service + server  # microseconds a read are seconds a million reads
    return f"{cpu_s:,.0f} CPU-s" + ("" if cpu_hour is None else f", price {cpu_s / 3600 * cpu_hour:.2g}")


def _memory(found: Sequence[Found], manifest: Manifest) -> Iterable[Line]:
    group = "Memory, and room in the store"
    rows = sum(manifest.counts.values())
    yield _line(group, "load generator", found, lambda one: size(one.standing.memory.generator))
    yield _line(group, "service, files aside", found, lambda one: size(one.standing.memory.service))
    yield _line(group, "the store's server", found, lambda one: size(one.standing.memory.server), timed=True)
    payload = manifest.bytes / max(1, rows)
    yield _line(group, "keys and values a list", found, lambda _: f"{payload:,.0f} B")
    yield _line(group, "room a list takes", found, _room)


def _writing(found: Sequence[Found]) -> Iterable[Line]:
    if not any(turn.written for one in found for turn in one.turns):
        return
    group = "Publishing"

    def rate(one: Found) -> str:
        return count(_of_trials(one, lambda written: written.trial.lists / written.trial.wall_s))

    def spent(one: Found) -> str:
        ours = _of_trials(one, lambda written: written.trial.cpu_s * 1e6 / written.trial.lists)
        return both(ours, _of_trials(one, _server_us))

    def during(one: Found) -> str:
        if one.disturbed is None:
            return "no valid round"
        found = one.disturbed.summary()["p99"]
        return between(found["mean"], found["low"], found["high"])

    def meanwhile(one: Found) -> str:
        return count(_of_trials(one, lambda written: written.lists_per_s))

    yield _line(group, "lists/s", found, rate, timed=True)
    yield _line(group, "CPU a list, + server's", found, spent, timed=True)
    yield _line(group, "p99 of reads meanwhile", found, during, timed=True)
    yield _line(group, "lists/s written meanwhile", found, meanwhile, timed=True)


def _server_us(written: Written) -> float | None:
    spent_s = _each(written.trial.server_cpu_s, written.trial.lists)
    return None if spent_s is None else spent_s * 1e6


def _room(one: Found) -> str:
    bytes_each = _of_trials(one, lambda written: _each(written.trial.stored_bytes, written.trial.lists))
    if bytes_each is None:
        return UNKNOWN
    return f"{bytes_each:,.0f} B" + (", as charged" if one.standing.contestant.emulated else "")


def _each(whole: float | None, parts: int) -> float | None:
    return None if whole is None else whole / parts


def _of_trials(one: Found, value: Callable[[Written], float | None]) -> float | None:
    return one.mean(lambda turn: None if turn.written is None else value(turn.written))


def _popular(one: Found) -> str:
    share = one.mean(lambda turn: turn.served.result.seen["source"].get("popular", 0) / max(1, turn.served.result.ok))
    return UNKNOWN if share is None else f"{share:.2%}"


def _latency(summaries: Mapping[int, Mapping[str, Any]], name: str, one: Found) -> str:
    """Tell a percentile with its interval, and where that rests on few samples."""
    if id(one) not in summaries:
        return NONE
    found = summaries[id(one)][name]
    return between(found["mean"], found["low"], found["high"]) + ("" if found["backed"] else " *")


def spread(values: Sequence[float]) -> str:
    """Tell times in microseconds: their geometric mean, and its interval."""
    found = geometric(values)
    return between(found.mean, found.low, found.high) if found else us(_mean(values))


def between(mean_us: float, low_us: float | None, high_us: float | None) -> str:
    """Tell a time and its interval, all in the unit that suits the time."""
    if low_us is None or high_us is None:
        return us(mean_us)
    per, unit = (1, "µs") if mean_us < 1000 else (1000, "ms")
    mean, low, high = (_three(value / per) for value in (mean_us, low_us, high_us))
    return f"{mean} {unit} ({low} … {high})"


def _three(value: float) -> str:
    """Write a number with three digits, or all of its whole ones."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def us(value: float | None) -> str:
    """Tell a time that may be short."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return NONE
    return f"{_three(value)} µs" if value < 1000 else format_us(value)


def both(ours_us: float | None, server_us: float | None) -> str:
    """Tell the CPU of both sides."""
    if not server_us or ours_us is None:
        return us(ours_us)
    return f"{_three(ours_us)} + {_three(server_us)} µs"


def count(value: float | None) -> str:
    """Tell a rate, to three digits."""
    if value is None:
        return UNKNOWN
    return f"{float(f'{value:.3g}'):,.0f}"


def size(value: int | None) -> str:
    """Tell bytes of memory."""
    if value is None:
        return UNKNOWN
    return f"{value / 1e6:,.0f} MB" if value else NONE


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
