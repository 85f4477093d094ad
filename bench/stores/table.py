"""The figures of a comparison: three of each store for the top of the report, and a table of all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from hotplate.bench.loadgen.capacity import PERCENTS, Point
from hotplate.bench.measured import AHEAD, CHEAPER, FASTER, Measured, MeasuredChange, Phrasing, geometric, middle
from hotplate.bench.options import StoresOptions
from hotplate.bench.planner.figures import two_digits
from hotplate.bench.planner.prices import HOURS_A_MONTH
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.quantities import parse_rate
from hotplate.bench.report import text
from hotplate.bench.report.report import ERRORS, RATE, Series
from hotplate.bench.stores.reference import NOT_PUBLISHED, Needs, format_month, needs, published_cells
from hotplate.bench.stores.results import PublishRun, RoundResult, ServiceRun, StoreResult
from hotplate.bench.stores.rounds import BATCHES
from hotplate.stores.cosmos.charges import KB
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import Throughput
from hotplate.stores.manifest import Manifest

T = TypeVar("T")

NOT_HERE = "the store's server is elsewhere, and what it uses cannot be read from here"
NOT_VALID = "no round of it is valid"


@dataclass(frozen=True, slots=True)
class Column:
    """All of one store that the table shows: its rounds that count, as series and one by one."""

    store: StoreResult
    rounds: tuple[RoundResult, ...]
    reads: Series
    closed: Series | None
    while_written: Series | None
    throughput: Throughput | None
    """What its container may use; None of a store that is not metered."""

    @property
    def emulated(self) -> str | None:
        """What stands at the head of the column if it is an emulator, whose times are not shown."""
        return self.store.candidate.emulated

    @property
    def name(self) -> str:
        """The store's name."""
        return self.reads.name

    @property
    def head(self) -> text.Cell:
        """What stands at the head of the column."""
        return (self.name, self.emulated) if self.emulated else self.name

    @property
    def best(self) -> tuple[Point, ServiceRun] | None:
        """The highest rate inside the objective, and its run."""
        return self.store.capacity.best if self.store.capacity else None

    def mean(self, value: Callable[[RoundResult], float | None]) -> float | None:
        """Return the mean of a value over the middle three fifths of the rounds; None if it is not known."""
        values = self.values(value)
        return middle(values) if values else None

    def values(self, value: Callable[[RoundResult], float | None]) -> list[float]:
        """Return a value of each round that has it."""
        return [found for each in self.rounds if (found := value(each)) is not None]

    def measured(self, value: Callable[[RoundResult], float | None], *, shares: bool = False) -> Measured:
        """Return a value of each round as it is compared with another store's."""
        values, stolen = self.values(value), self.reads.measured(RATE).stolen
        return Measured(values, values, stolen=stolen, shares=shares)


OfRound = Callable[[RoundResult], float | None]

# What a column has of a figure; None for what is not known.
OfColumn = Callable[[Column], str | None]

# What two columns say of one figure.
Compare = Callable[[Column, Column], MeasuredChange]


@dataclass(frozen=True, slots=True)
class TableLine:
    """A line of the table: its cells, what two stores are compared by, if they are, and why a cell is unknown.

    What is `timed` is not shown of an emulator, because it is not that of the store for which it stands.
    """

    cell: OfColumn
    compare: Compare | None = None
    phrasing: Phrasing = CHEAPER
    timed: bool = False
    unknown: str = NOT_HERE


Figures = dict[str, TableLine]


def mean(
    write: Callable[[float], str], value: OfRound, phrasing: Phrasing | None = None, *, timed: bool = True
) -> TableLine:
    """Show the mean of a value over the rounds; with *words* stores are compared by it."""
    cell = shown(lambda column: column.mean(value), write)
    return TableLine(cell, None if phrasing is None else by_rounds(value), phrasing or CHEAPER, timed)


def both_sides(ours_us: OfRound, server_us: OfRound) -> TableLine:
    """Show the CPU of a client and of the store's server, and compare stores by the sum."""
    return TableLine(
        lambda column: text.format_both_us(column.mean(ours_us), column.mean(server_us)),
        by_rounds(lambda each: added(ours_us(each), server_us(each))),
        timed=True,
    )


def shown(value: Callable[[Column], T | None], write: Callable[[T], str], absent: str | None = None) -> OfColumn:
    """Write what a column has of something; *absent* stands for what it has none of."""

    def cell(column: Column) -> str | None:
        found = value(column)
        return absent if found is None else write(found)

    return cell


def table_lines(
    columns: Sequence[Column], manifest: Manifest, options: StoresOptions, footnotes: text.Footnotes, *, judged: bool
) -> list[dict[str, Any]]:
    """Make the lines of the whole table; with the reference, the first cell of each line is the published figure."""
    item_bytes = stored_item(manifest)
    known = published_cells(load_charges(), load_prices(), item_bytes)

    def cell(figure: TableLine, column: Column) -> str:
        if figure.timed and column.emulated:
            return text.UNKNOWN
        return figure.cell(column) or footnotes.dash(figure.unknown)

    def line(group: str, name: str, figure: TableLine) -> dict[str, Any]:
        first = [known.get((group.partition(":")[0], name), NOT_PUBLISHED)] if options.reference else []
        cells = (*first, *(cell(figure, column) for column in columns))
        verdict = "; ".join(verdicts_on(columns, figure)) if judged else ""
        return {"group": group, "name": name, "cells": cells, "verdict": verdict}

    groups = _groups(columns, options, item_bytes)
    return [line(group, name, figure) for group, figures in groups.items() for name, figure in figures.items()]


def _groups(columns: Sequence[Column], options: StoresOptions, item_bytes: float) -> Mapping[str, Figures]:
    """Choose the figures that were measured; *item_bytes* are those of a list as Cosmos DB charges for them."""
    published = any(each.publishing for column in columns for each in column.rounds)
    groups = dict[str, Figures]()
    if options.direct:
        groups |= {f"Without a service, {size} key{'s' * (size > 1)} a call": _direct(size) for size in BATCHES}
    if options.closed_users:
        groups[f"Closed loop: {options.closed_users} users, {options.think} of pause"] = _closed()
    groups |= {
        "Through the service": _service(),
        "CPU a request": {
            "service": mean(text.format_short_us, lambda each: each.reads.service_cpu_us, CHEAPER, timed=False),
            "the store's server": mean(text.format_short_us, lambda each: each.reads.server_cpu_us),
            "both": mean(text.format_short_us, both_us, CHEAPER),
        },
        "Memory, and room in the store": _memory(published=published),
    }
    if published:
        groups["Publishing"] = _publishing()
    if options.reference or any(each.throughput for each in columns):
        groups["Request units"] = _request_units(options, item_bytes)
    return groups


def judged_columns(columns: Sequence[Column]) -> Sequence[Column]:
    """Leave emulators out, because their times are not a store's; if nothing else is there, the first remains."""
    return [each for each in columns if each.emulated is None] or columns[:1]


def verdicts_on(columns: Sequence[Column], figure: TableLine) -> list[str]:
    """Compare each store but the first with the first one."""
    if figure.compare is None:
        return []
    first, *others = judged_columns(columns)
    found = [(one.name, figure.compare(first, one).sentence(first.name, one.name, figure.phrasing)) for one in others]
    return [f"{name}: {sentence}" if len(others) > 1 else sentence for name, sentence in found]


def by_rounds(value: OfRound, *, shares: bool = False) -> Compare:
    """Compare a value of each round, in pairs; *shares* of all requests may be zero."""
    return lambda first, second: first.measured(value, shares=shares).compared_with(
        second.measured(value, shares=shares)
    )


def by_series(choose: Callable[[Column], Series | None], metric: str) -> Compare:
    """Compare a metric of a series, a percentile by both of its bounds."""

    def measure(column: Column) -> Measured:
        if (found := choose(column)) is None:
            return Measured((), (), "no round of one is valid")
        return found.latency(metric) if metric in PERCENTS else found.measured(metric)

    return lambda first, second: measure(first).compared_with(measure(second))


def stored_item(manifest: Manifest) -> float:
    """Return the bytes of a list as Cosmos DB charges for them: a KB at least."""
    return max(KB, manifest.bytes / max(1, manifest.rows))


def both_us(one: RoundResult) -> float | None:
    """Return the CPU of a read, of the service and of the store's server, in µs; None if one is not known."""
    return added(one.reads.service_cpu_us, one.reads.server_cpu_us)


def added(ours: float | None, theirs: float | None) -> float | None:
    """Add two figures, if both are known."""
    return None if ours is None or theirs is None else ours + theirs


def top_row(
    column: Column, percentile: str, options: StoresOptions, item_bytes: float, footnotes: text.Footnotes
) -> tuple[text.Cell, ...]:
    """Return the three figures of a store: a latency, the CPU of a request, and what a billion reads cost.

    Of a store that is metered the CPU is the service's alone, and the cost is of that and of its RU/s.
    """
    latency: text.Cell = text.UNKNOWN if column.emulated else column.reads.cell(percentile, footnotes)
    service_us = column.mean(lambda each: each.reads.service_cpu_us) or 0.0
    server_us = column.mean(lambda each: each.reads.server_cpu_us)
    prices, rate, throughput = load_prices(), parse_rate(options.rate), column.throughput
    hour_usd = prices.cpu_hour.amount if options.cpu_hour is None else options.cpu_hour
    alone = text.format_short_us(service_us), "of the service alone"
    if throughput is not None:
        needed = needs(load_charges(), prices, item_bytes, rate, throughput.ru)
        of_units = needed.needed_month_usd / (rate * HOURS_A_MONTH * 3600) * 1e9
        cost = f"{two_digits(service_us * 1e3 / 3600 * hour_usd + of_units)} USD"
        read_ru = column.mean(lambda each: (each.closed or each.reads).read_ru) or needed.read_ru
        return column.head, latency, alone, (cost, f"{read_ru:.2f} RU a read")
    if server_us is None:
        return column.head, latency, alone, footnotes.dash(f"{column.name}: {NOT_HERE}")
    cost = f"{two_digits((service_us + server_us) * 1e3 / 3600 * hour_usd)} USD"
    below = f"{text.format_both_us(service_us, server_us)} of its server" if server_us else ""
    return column.head, latency, (text.format_short_us(service_us + server_us), below), cost


def _direct(size: int) -> Figures:
    def call(column: Column) -> str:
        calls_us = column.values(lambda each: each.lookups[size].call_us)
        return text.format_interval(*(geometric(calls_us) or (fmean(calls_us), None, None)))

    return {
        "a call, median": TableLine(call, by_rounds(lambda each: each.lookups[size].call_us), FASTER, timed=True),
        "keys/s, one caller": mean(text.format_count, lambda each: each.lookups[size].keys_per_s, AHEAD),
        "CPU a key, + server's": both_sides(
            lambda each: each.lookups[size].cpu_us, lambda each: each.lookups[size].server_cpu_us
        ),
    }


def _closed() -> Figures:
    def share(one: RoundResult) -> float | None:
        return one.closed.service_share if one.closed else None

    # what users with pauses send is by their pauses, and not an emulator's own time
    own = _answers(lambda one: one.closed, timed=False)
    return own | {"service: share of a core": mean("{:.0%}".format, share, timed=False)}


def _service() -> Figures:
    def share(one: RoundResult) -> float:
        return one.reads.result.seen["source"].get("popular", 0) / max(1, one.reads.result.ok)

    popular = TableLine(shown(lambda one: one.mean(share), "{:.2%}".format), by_rounds(share, shares=True), timed=True)
    return _answers(lambda one: one.reads) | {"popular list instead": popular}


def _answers(choose: Callable[[Column], Series | None], *, timed: bool = True) -> Figures:
    """Show the latencies, rate and errors of a series; if its loop is open, rate and errors are *timed*."""

    def figure(metric: str, write: Callable[[Series], str], phrasing: Phrasing, *, timed: bool = True) -> TableLine:
        return TableLine(shown(choose, write), by_series(choose, metric), phrasing, timed, NOT_VALID)

    def percentile(name: str) -> TableLine:
        return figure(name, lambda one: text.joined(text.latency_cell(one.summary[name])), FASTER)

    def rate(one: Series) -> str:
        return "at least " * bool(one.at_least) + text.format_count(fmean(one.values(RATE)))

    def errors(one: Series) -> str:
        return f"{fmean(one.values(ERRORS)):.3%}"

    return {name: percentile(name) for name in PERCENTS} | {
        "good answers/s": figure(RATE, rate, AHEAD, timed=timed),
        "errors and drops": figure(ERRORS, errors, CHEAPER, timed=timed),
    }


def _memory(*, published: bool) -> Figures:
    def room(one: RoundResult) -> float | None:
        return None if one.publishing is None else one.publishing.trial.per_list(one.publishing.trial.stored_bytes)

    figures = {
        "service, files aside": TableLine(lambda one: text.format_bytes(one.store.memory.service)),
        "the store's server": TableLine(shown(lambda one: one.store.memory.server, text.format_bytes), timed=True),
    }
    by_list = {"room a list takes": mean("{:,.0f} B".format, room, CHEAPER, timed=False)}
    return figures | by_list if published else figures


def _publishing() -> Figures:
    def of(value: Callable[[PublishRun], float | None]) -> OfRound:
        return lambda each: None if each.publishing is None else value(each.publishing)

    def server_us(run: PublishRun) -> float | None:
        used_s = run.trial.per_list(run.trial.server_cpu_s)
        return None if used_s is None else used_s * 1e6

    return {
        "lists/s": mean(text.format_count, of(lambda each: each.trial.lists / each.trial.wall_s), AHEAD),
        "CPU a list, + server's": both_sides(of(lambda each: each.trial.cpu_s / each.trial.lists * 1e6), of(server_us)),
        "p99 of reads meanwhile": _answers(lambda one: one.while_written)["p99"],
        "lists/s written meanwhile": mean(text.format_count, of(lambda each: each.lists_per_s), AHEAD),
    }


def _request_units(options: StoresOptions, item_bytes: float) -> Figures:
    rate = parse_rate(options.rate)

    def run(one: RoundResult) -> ServiceRun:
        return one.closed or one.reads

    def share(column: Column) -> float | None:
        used_ru_s = column.mean(lambda each: run(each).ru_s)
        return None if used_ru_s is None or column.throughput is None else used_ru_s / column.throughput.ru

    def of_needs(column: Column) -> Needs | None:
        if column.throughput is None:
            return None
        return needs(load_charges(), load_prices(), item_bytes, rate, column.throughput.ru)

    def ru_s(value: float) -> str:
        return f"{value:,.0f} RU/s"

    def provisioned(found: Throughput) -> str:
        return ru_s(found.ru) + " autoscale" * found.autoscale

    used = f"used in the {'closed' if options.closed_users else 'open'} loop"
    cells = {
        "provisioned": shown(lambda one: one.throughput, provisioned, text.NONE),
        "a read": shown(lambda one: one.mean(lambda each: run(each).read_ru), "{:.2f} RU".format, text.NONE),
        used: shown(lambda one: one.mean(lambda each: run(each).ru_s), ru_s, text.NONE),
        "of what was provisioned": shown(share, "{:.1%}".format, text.NONE),
        f"what {rate:g} requests/s need": shown(of_needs, lambda found: ru_s(found.needed_ru), text.NONE),
        "a month of it, at the list price": shown(of_needs, format_month, text.NONE),
    }
    return {name: TableLine(cell) for name, cell in cells.items()}
