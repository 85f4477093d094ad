"""`hotplate bench stores`: what was asked, and from the rounds to the report and to which differences are real."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from bench.comparison_lines import Found, lines
from bench.contest import TRIAL_LISTS, Contest, Extent, Outcome, Standing, Turn
from bench.contestants import Field, contestants, own_stores
from bench.errors import BenchMisused
from bench.http import Watch
from bench.loadgen.keys import Uniform, Zipf
from bench.report import units
from bench.report.compare import FEWEST, compare
from bench.report.report import WHILE_WRITTEN, Report, Series, series
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
    def believable(self) -> bool:
        """Whether it came to its end with valid rounds and without a wrong answer."""
        report = self.report
        return not (report.interrupted or report.doubts or report.extra["checked"]["wrong"]) and bool(report.series)


def compare_stores(asked: Asked, watch: Watch) -> Compared:
    """Make the comparison. Raises BenchMisused for what makes no sense, BenchFailed and StoreError where it fails."""
    extent = _extent(asked)
    with ExitStack() as stack:
        urls = list(asked.urls) or stack.enter_context(own_stores())
        watch.stage("bringing the release into the stores", 1.0)
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
        rate=units.per_second(asked.rate),
        duration_s=units.seconds(asked.duration),
        warmup_s=units.seconds(asked.warmup),
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
        if sum(not (one.facts["doubts"] or two.facts["doubts"]) for one, two in pairs) < FEWEST:
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
    doubts = {
        place: f"round {place + 1} is left out: {standing.contestant.name}, {doubt}"
        for standing in outcome.standings
        for place, turn in enumerate(standing.turns)
        for doubt in turn.served.result.doubts
    }
    made = range(len(outcome.standings[0].turns))
    if len(made) - len(doubts) < enough:
        return list(made), []
    return [place for place in made if place not in doubts], [doubts[place] for place in sorted(doubts)]


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
        "doubts": turn.served.result.doubts,
        "trial": turn.written and asdict(turn.written.trial),
        "lists_per_s_meanwhile": turn.written and turn.written.lists_per_s,
        "doubts_meanwhile": turn.written and turn.written.served.result.doubts,
    }
