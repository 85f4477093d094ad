"""The table of a comparison: a line a figure, a cell a store, the same on the terminal, in the file and on the page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from bench.contest import BATCHES, Standing, Turn, Written
from bench.loadgen.objective import PERCENTS
from bench.report import units
from bench.report.intervals import geometric
from bench.report.report import ERRORS, Series
from stores.manifest import Manifest

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
    return f"{_three(value)} µs" if value < 1000 else units.told(value)


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
