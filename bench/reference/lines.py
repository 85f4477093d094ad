"""The table of the reference test: what was published beside what each store did, a line a figure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.loadgen.histogram import Histogram
from bench.reference.published import MACHINES, MEDIAN_MS, RATE, RU, THINK_S, USERS, Needs
from bench.reference.runs import Run, Shown
from bench.report.text import format_us
from bench.stores.report import Line
from stores.cosmos.throughput import Throughput

NOTE = "* marks a percentile of few samples, ** one that the generator's own lag, above 1 ms at p99, is part of."
UNTOLD, NONE = "not published", "none"
COLUMN = "published, 2018"
PERCENTS = {"median": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that the table tells: the stores in order, and what the published rate takes of Cosmos DB."""

    shown: tuple[Shown, ...]
    needs: Needs
    provisioned: tuple[Throughput | None, ...]
    """Of each store, what its release's container may spend; None where nothing is provisioned."""


def lines(sheet: Sheet) -> list[Line]:
    """Make the whole table; the first cell of each line is the published figure."""
    return [*_closed(sheet.shown), *_steady(sheet.shown), *_knee(sheet.shown), *_request_units(sheet)]


def _line(
    group: str, name: str, published: str, shown: Sequence[Shown], cell: Callable[[Shown], str], *, timed: bool = False
) -> Line:
    """Make a line; where it is about time, an emulator's cell says that there is none to be told."""

    def told(one: Shown) -> str:
        emulated = one.contestant.emulated
        return emulated if timed and emulated else cell(one)

    return Line(group, name, (published, *(told(one) for one in shown)))


def _closed(shown: Sequence[Shown]) -> Iterable[Line]:
    group = f"The reference's test: {USERS} users in a closed loop, {THINK_S:g} s of pause"
    yield _line(
        group, "requests/s", f"{RATE:g}", shown, lambda one: _of(one.closed, lambda run: f"{run.result.ok_rate:.1f}")
    )
    for name, percent in PERCENTS.items():
        published = f"≈ {MEDIAN_MS:g} ms" if name == "median" else UNTOLD
        yield _line(group, name, published, shown, partial(_latency, percent, "closed"), timed=True)
    yield _line(group, "without a good answer", UNTOLD, shown, lambda one: _of(one.closed, _failed))
    yield _line(group, "service: share of a core", MACHINES, shown, lambda one: _of(one.closed, _busy))


def _steady(shown: Sequence[Shown]) -> Iterable[Line]:
    group = f"The same rate in an open loop, {RATE:g} requests/s as independent users send them"
    for name, percent in PERCENTS.items():
        yield _line(group, name, UNTOLD, shown, partial(_latency, percent, "steady"), timed=True)
    yield _line(group, "without a good answer", UNTOLD, shown, lambda one: _of(one.steady, _failed))


def _knee(shown: Sequence[Shown]) -> Iterable[Line]:
    group = "On in an open loop, up to the knee: one service, one worker, one core"
    yield _line(group, "best rate inside the objective", UNTOLD, shown, _best)
    yield _line(group, f"times {RATE:g} requests/s", "1", shown, _times)
    yield _line(group, "p99 there", UNTOLD, shown, _p99_at_best, timed=True)
    yield _line(group, "what was the limit", UNTOLD, shown, lambda one: one.limit)
    yield _line(group, "service: CPU a request there", UNTOLD, shown, _cpu_at_best)


def _request_units(sheet: Sheet) -> Iterable[Line]:
    group, shown, needs = "Request units", sheet.shown, sheet.needs
    yield Line(group, "provisioned", (f"{RU:,} RU/s", *(_provisioned(each) for each in sheet.provisioned)))
    yield _line(group, "a read", UNTOLD, shown, _read_ru)
    used = f"{needs.used_ru:,.0f} RU/s, inferred"
    yield _line(group, f"used by {USERS} users", used, shown, lambda one: _used(one.closed))
    share = f"{needs.used_ru / RU:.1%}, inferred"
    shares = (_used_share(one.closed, each) for one, each in zip(shown, sheet.provisioned, strict=True))
    yield Line(group, "of what was provisioned", (share, *shares))
    yield _line(
        group, "used at the best rate", UNTOLD, shown, lambda one: _used(None if one.best is None else one.best.run)
    )
    told = f"{needs.needed_ru:,} RU/s"
    nothing = (NONE if one.closed is None or one.closed.metered is None else told for one in shown)
    yield Line(group, f"what {RATE:g} requests/s need", (f"{told}, inferred", *nothing))
    month = f"{needs.needed_month_usd:,.0f} instead of {needs.provisioned_month_usd:,.0f} USD"
    yield Line(group, "a month of it, worked out at the list price", (month, *("" for _ in shown)))


def _of(run: Run | None, told: Callable[[Run], str]) -> str:
    return "not reached" if run is None else told(run)


def _latency(percent: float, which: str, one: Shown) -> str:
    def told(run: Run) -> str:
        histogram = Histogram.of(run.result.latencies_s)
        return format_us(histogram.percentiles_us((percent,))[0]) + ("" if histogram.backed(percent) else " *")

    return _of(one.closed if which == "closed" else one.steady, told)


def _failed(run: Run) -> str:
    popular = f", {run.popular:.2%} popular instead" if run.popular else ""
    return f"{run.result.error_share:.2%}{popular}"


def _busy(run: Run) -> str:
    return f"{run.service_share:.0%}"


def _best(one: Shown) -> str:
    emulated = ", emulated" if one.contestant.emulated else ""
    return NONE if one.best is None else f"{one.best.rate:,.0f}/s{emulated}"


def _times(one: Shown) -> str:
    return NONE if one.best is None else f"{one.best.rate / RATE:.0f}"


def _p99_at_best(one: Shown) -> str:
    if one.best is None:
        return NONE
    late = "" if one.best.run.result.valid else " **"
    return format_us(Histogram.of(one.best.run.result.latencies_s).percentiles_us((99,))[0]) + late


def _cpu_at_best(one: Shown) -> str:
    return NONE if one.best is None else f"{one.best.run.service_cpu_us:.0f} µs"


def _read_ru(one: Shown) -> str:
    run = one.closed
    if run is None or run.metered is None:
        return NONE
    return f"{run.metered.ru / max(1, run.result.ok):.2f} RU"


def _used(run: Run | None) -> str:
    return NONE if run is None or run.ru_s is None else f"{run.ru_s:,.0f} RU/s"


def _used_share(run: Run | None, provisioned: Throughput | None) -> str:
    return NONE if run is None or run.ru_s is None or provisioned is None else f"{run.ru_s / provisioned.ru:.1%}"


def _provisioned(throughput: Throughput | None) -> str:
    return NONE if throughput is None else f"{throughput.ru:,} RU/s{' autoscale' * throughput.autoscale}"
