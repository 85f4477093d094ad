"""The figures of a comparison: three of each store for the top of the report, and a table of all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

from hotplate.bench.loadgen.capacity import PERCENTS, Point, parse_objective
from hotplate.bench.loadgen.histogram import Histogram
from hotplate.bench.measured import AHEAD, CHEAPER, FASTER, Finding, Measured, Words, geometric, middle
from hotplate.bench.options import StoresOptions
from hotplate.bench.planner.figures import two_digits
from hotplate.bench.planner.prices import HOURS_A_MONTH
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.report.report import ERRORS, RATE, Series
from hotplate.bench.report.text import (
    NONE,
    UNKNOWN,
    Cell,
    Footnotes,
    Line,
    format_both_us,
    format_bounds,
    format_bytes,
    format_count,
    format_interval,
    format_latency,
    format_short_us,
    format_us,
    parse_rate,
)
from hotplate.bench.stores.reference import NOT_PUBLISHED, Needs, format_month, needs, published_cells
from hotplate.bench.stores.results import PublishRun, RoundResult, ServiceRun, StoreResult
from hotplate.bench.stores.rounds import BATCHES
from hotplate.stores.cosmos.charges import KB
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import Throughput
from hotplate.stores.manifest import Manifest

T = TypeVar("T")

NOT_HERE = "the store's server is elsewhere, and what it uses cannot be read from here"
NO_RATE = "no rate was inside the objective"
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
    def head(self) -> Cell:
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
Compare = Callable[[Column, Column], Finding]


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table: its cells, what two stores are compared by, if they are, and why a cell is unknown.

    What is `timed` is not shown of an emulator, because it is not that of the store for which it stands.
    """

    cell: OfColumn
    compare: Compare | None = None
    words: Words = CHEAPER
    timed: bool = False
    unknown: str = NOT_HERE


Figures = Mapping[str, Figure]


def mean(write: Callable[[float], str], value: OfRound, words: Words | None = None) -> Figure:
    """Show the mean of a value over the rounds; with *words* stores are compared by it."""
    cell = shown(lambda column: column.mean(value), write)
    return Figure(cell) if words is None else Figure(cell, by_rounds(value), words, timed=True)


def shown(value: Callable[[Column], T | None], write: Callable[[T], str], absent: str | None = None) -> OfColumn:
    """Write what a column has of something; *absent* stands for what it has none of."""

    def cell(column: Column) -> str | None:
        found = value(column)
        return absent if found is None else write(found)

    return cell


def table_lines(
    columns: Sequence[Column], manifest: Manifest, options: StoresOptions, footnotes: Footnotes, *, judged: bool
) -> list[Line]:
    """Make the whole table; with the reference, the first cell of each line is the published figure."""
    item_bytes = stored_item(manifest)
    published = any(each.publishing for column in columns for each in column.rounds)
    groups: dict[str, Figures] = {}
    if options.direct:
        groups |= {f"Without a service, {size} key{'s' * (size > 1)} a call": _direct(size) for size in BATCHES}
    if options.closed_users:
        groups[f"Closed loop: {options.closed_users} users, {options.think} of pause"] = _closed()
    groups["Through the service"] = _service()
    groups["What disturbed a round"] = _disturbances()
    groups["CPU a request"] = _cpu()
    groups["Memory, and room in the store"] = _memory(manifest, published=published)
    if published:
        groups["Publishing"] = _publishing()
    if options.find_max:
        objective = parse_objective(options.slo)
        name = f"Highest rate inside the objective: {objective}, one worker on one core"
        groups[name] = _capacity(parse_rate(options.rate))
    if options.reference or any(each.throughput for each in columns):
        groups["Request units"] = _request_units(options, item_bytes)
    known = published_cells(load_charges(), load_prices(), item_bytes)

    def cell(figure: Figure, column: Column) -> str:
        if figure.timed and column.emulated:
            return UNKNOWN
        return figure.cell(column) or footnotes.dash(figure.unknown)

    def line(group: str, name: str, figure: Figure) -> Line:
        first = [known.get((group.partition(":")[0], name), NOT_PUBLISHED)] if options.reference else []
        cells = (*first, *(cell(figure, column) for column in columns))
        return Line(group, name, cells, "; ".join(verdicts_on(columns, figure)) if judged else "")

    return [line(group, name, figure) for group, figures in groups.items() for name, figure in figures.items()]


def verdicts_on(columns: Sequence[Column], figure: Figure) -> list[str]:
    """Compare each store but the first with the first one; emulators are left out, whose times are not a store's."""
    if figure.compare is None:
        return []
    first, *others = [each for each in columns if each.emulated is None] or columns[:1]
    found = [(one.name, figure.compare(first, one).sentence(first.name, one.name, figure.words)) for one in others]
    return [f"{name}: {sentence}" if len(others) > 1 else sentence for name, sentence in found]


def by_rounds(value: OfRound, *, shares: bool = False) -> Compare:
    """Compare a value of each round, in pairs; *shares* of all requests may be zero."""
    return lambda first, second: first.measured(value, shares=shares).beside(second.measured(value, shares=shares))


def by_series(choose: Callable[[Column], Series | None], metric: str) -> Compare:
    """Compare a metric of a series, a percentile by both of its bounds."""

    def measure(column: Column) -> Measured:
        if (found := choose(column)) is None:
            return Measured((), (), "no round of one is valid")
        return found.latency(metric) if metric in PERCENTS else found.measured(metric)

    return lambda first, second: measure(first).beside(measure(second))


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
    column: Column, percentile: str, options: StoresOptions, item_bytes: float, footnotes: Footnotes
) -> tuple[Cell, ...]:
    """Return the three figures of a store: a latency, the CPU of a request, and what a billion reads cost.

    Of a store that is metered the CPU is the service's alone, and the cost is of that and of its RU/s.
    """
    latency: Cell = UNKNOWN if column.emulated else column.reads.cell(percentile, footnotes)
    service_us = column.mean(lambda each: each.reads.service_cpu_us) or 0.0
    server_us = column.mean(lambda each: each.reads.server_cpu_us)
    prices, rate, throughput = load_prices(), parse_rate(options.rate), column.throughput
    hour_usd = prices.cpu_hour.usd if options.cpu_hour is None else options.cpu_hour
    alone = format_short_us(service_us), "of the service alone"
    if throughput is not None:
        needed = needs(load_charges(), prices, item_bytes, rate, throughput.ru)
        of_units = needed.needed_month_usd / (rate * HOURS_A_MONTH * 3600) * 1e9
        cost = f"{two_digits(service_us * 1e3 / 3600 * hour_usd + of_units)} USD"
        read_ru = column.mean(lambda each: (each.closed or each.reads).read_ru) or needed.read_ru
        return column.head, latency, alone, (cost, f"{read_ru:.2f} RU a read")
    if server_us is None:
        return column.head, latency, alone, footnotes.dash(f"{column.name}: {NOT_HERE}")
    cost = f"{two_digits((service_us + server_us) * 1e3 / 3600 * hour_usd)} USD"
    below = f"{format_both_us(service_us, server_us)} of its server" if server_us else ""
    return column.head, latency, (format_short_us(service_us + server_us), below), cost


def _direct(size: int) -> Figures:
    def call(column: Column) -> str:
        calls_us = column.values(lambda each: each.lookups[size].call_us)
        return format_interval(*(geometric(calls_us) or (fmean(calls_us), None, None)))

    def cpu(column: Column) -> str:
        server_us = column.mean(lambda each: each.lookups[size].server_cpu_us)
        return format_both_us(column.mean(lambda each: each.lookups[size].cpu_us), server_us)

    def both(one: RoundResult) -> float:
        return one.lookups[size].cpu_us + (one.lookups[size].server_cpu_us or 0.0)

    return {
        "a call, median": Figure(call, by_rounds(lambda each: each.lookups[size].call_us), FASTER, timed=True),
        "keys/s, one caller": mean(format_count, lambda each: each.lookups[size].keys_per_s, AHEAD),
        "CPU a key, + server's": Figure(cpu, by_rounds(both), timed=True),
    }


def _closed() -> Figures:
    def rate(series: Series) -> str:
        return f"{'at least ' if series.at_least else ''}{fmean(series.values(RATE)):,.1f}"

    def share(one: RoundResult) -> float | None:
        return one.closed.service_share if one.closed else None

    def figure(write: Callable[[Series], str], metric: str, words: Words) -> Figure:
        # not timed: what users with pauses send is by their pauses, and no emulator's own time
        return Figure(shown(lambda one: one.closed, write), by_series(lambda one: one.closed, metric), words)

    return _percentiles(lambda one: one.closed) | {
        "good answers/s": figure(rate, RATE, AHEAD),
        "errors and drops": figure(_errors, ERRORS, CHEAPER),
        "service: share of a core": mean("{:.0%}".format, share),
    }


def _service() -> Figures:
    def share(one: RoundResult) -> float:
        return one.reads.result.seen["source"].get("popular", 0) / max(1, one.reads.result.ok)

    def failed(column: Column) -> str:
        return _errors(column.reads)

    popular = shown(lambda one: one.mean(share), "{:.2%}".format)
    return _percentiles(lambda one: one.reads) | {
        "good answers/s": mean(format_count, lambda each: each.reads.result.ok_rate, AHEAD),
        "errors and drops": Figure(failed, by_series(lambda one: one.reads, ERRORS), timed=True),
        "popular list instead": Figure(popular, by_rounds(share, shares=True), timed=True),
    }


def _percentiles(choose: Callable[[Column], Series | None]) -> dict[str, Figure]:
    def percentile(name: str) -> Figure:
        cell = shown(choose, lambda series: _latency(series, name))
        return Figure(cell, by_series(choose, name), FASTER, timed=True, unknown=NOT_VALID)

    return {name: percentile(name) for name in PERCENTS}


def _latency(series: Series, name: str) -> str:
    found = series.summary[name]
    return format_latency(found) + ("" if found["enough_samples"] else " *")


def _errors(series: Series) -> str:
    return f"{fmean(series.values(ERRORS)):.3%}"


def _cpu() -> Figures:
    service = mean(format_short_us, lambda each: each.reads.service_cpu_us)
    server = mean(format_short_us, lambda each: each.reads.server_cpu_us)
    return {
        "load generator": mean(format_short_us, lambda each: each.reads.result.cpu_us_per_request),
        "service": replace(service, compare=by_rounds(lambda each: each.reads.service_cpu_us)),
        "the store's server": replace(server, timed=True),
        "both": mean(format_short_us, both_us, CHEAPER),
    }


def _memory(manifest: Manifest, *, published: bool) -> Figures:
    def room(column: Column) -> str | None:
        stored = column.mean(room_of)
        return None if stored is None else f"{stored:,.0f} B" + (", as charged" if column.emulated else "")

    def room_of(one: RoundResult) -> float | None:
        return None if one.publishing is None else one.publishing.trial.per_list(one.publishing.trial.stored_bytes)

    server = shown(lambda one: one.store.memory.server, format_bytes)
    figures = {
        "load generator": Figure(lambda one: format_bytes(one.store.memory.generator)),
        "service, files aside": Figure(lambda one: format_bytes(one.store.memory.service)),
        "the store's server": Figure(server, timed=True),
        "keys and values a list": Figure(lambda _: f"{manifest.bytes / max(1, manifest.rows):,.0f} B"),
    }
    return figures | ({"room a list takes": Figure(room, by_rounds(room_of))} if published else {})


def _publishing() -> Figures:
    def of(value: Callable[[PublishRun], float | None]) -> OfRound:
        return lambda each: None if each.publishing is None else value(each.publishing)

    def cpu_us(run: PublishRun) -> float:
        return run.trial.cpu_s / run.trial.lists * 1e6

    def server_us(run: PublishRun) -> float | None:
        used_s = run.trial.per_list(run.trial.server_cpu_s)
        return None if used_s is None else used_s * 1e6

    def cpu(column: Column) -> str:
        return format_both_us(column.mean(of(cpu_us)), column.mean(of(server_us)))

    together = by_rounds(of(lambda each: added(cpu_us(each), server_us(each))))
    return {
        "lists/s": mean(format_count, of(lambda each: each.trial.lists / each.trial.wall_s), AHEAD),
        "CPU a list, + server's": Figure(cpu, together, timed=True),
        "p99 of reads meanwhile": _percentiles(lambda one: one.while_written)["p99"],
        "lists/s written meanwhile": mean(format_count, of(lambda each: each.lists_per_s), AHEAD),
    }


def _disturbances() -> Figures:
    """Show what the latencies' bounds are apart by: the mean over the rounds, and the worst."""

    def figure(value: OfRound, write: Callable[[float], str]) -> Figure:
        def both(column: Column) -> str | None:
            values = column.values(value)
            return f"{write(fmean(values))}, at worst {write(max(values))}" if values else None

        return Figure(both, unknown="nothing was sent by a schedule")

    def lag_us(one: RoundResult) -> float | None:
        return one.reads.result.lag.p99 if one.reads.result.lag else None

    def switches(one: RoundResult) -> float:
        return sum(each.switches for each in one.reads.result.usage)

    return {
        "CPU stolen by the host": figure(lambda each: each.reads.result.stolen, "{:.2%}".format),
        "generator: waited for its core": figure(lambda each: each.reads.result.waited, "{:.1%}".format),
        "generator: its core taken away": figure(switches, "{:,.0f} times".format),
        "generator: late, at p99": figure(lag_us, format_us),
    }


def _capacity(rate: float) -> Figures:
    def of_best(write: Callable[[Point, ServiceRun], str], *, timed: bool = False) -> Figure:
        return Figure(shown(lambda one: one.best, lambda best: write(*best)), timed=timed, unknown=NO_RATE)

    def sent_p99_us(run: ServiceRun) -> float:
        return Histogram.of(run.result.sent_latencies_s).percentiles_us([PERCENTS["p99"]])[0]

    best = shown(lambda one: one.best, lambda best: f"{best[0].at:,.0f}/s")
    return {
        "best rate": Figure(best, unknown=NO_RATE),
        f"times {rate:g} requests/s": of_best(lambda point, _: f"{point.at / rate:.0f}"),
        "p99 there": of_best(lambda point, run: format_bounds(sent_p99_us(run), point.p99_us), timed=True),
        "what was the limit": Figure(lambda one: one.store.capacity.limit if one.store.capacity else "not reached"),
        "service: CPU a request there": of_best(lambda _, run: f"{run.service_cpu_us:.0f} µs"),
    }


def _request_units(options: StoresOptions, item_bytes: float) -> Figures:
    rate = parse_rate(options.rate)

    def run(one: RoundResult) -> ServiceRun:
        return one.closed or one.reads

    def share(column: Column) -> float | None:
        used_ru_s = column.mean(lambda each: run(each).ru_s)
        return None if used_ru_s is None or column.throughput is None else used_ru_s / column.throughput.ru

    def of_needs(cell: Callable[[Needs], str]) -> OfColumn:
        def of_throughput(found: Throughput) -> str:
            return cell(needs(load_charges(), load_prices(), item_bytes, rate, found.ru))

        return shown(lambda one: one.throughput, of_throughput, NONE)

    def ru_s(value: float) -> str:
        return f"{value:,.0f} RU/s"

    def provisioned(found: Throughput) -> str:
        return ru_s(found.ru) + " autoscale" * found.autoscale

    used = f"used in the {'closed' if options.closed_users else 'open'} loop"
    cells: dict[str, OfColumn] = {
        "provisioned": shown(lambda one: one.throughput, provisioned, NONE),
        "a read": shown(lambda one: one.mean(lambda each: run(each).read_ru), "{:.2f} RU".format, NONE),
        used: shown(lambda one: one.mean(lambda each: run(each).ru_s), ru_s, NONE),
        "of what was provisioned": shown(share, "{:.1%}".format, NONE),
    }
    if options.find_max:
        cells["used at the best rate"] = shown(lambda one: one.best[1].ru_s if one.best else None, ru_s, NONE)
    cells |= {
        f"what {rate:g} requests/s need": of_needs(lambda found: ru_s(found.needed_ru)),
        "a month of it, at the list price": of_needs(format_month),
    }
    return {name: Figure(cell) for name, cell in cells.items()}
