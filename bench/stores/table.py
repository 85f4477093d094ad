"""The table of a comparison: a line for each figure, a cell for each store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

from bench.loadgen.capacity import PERCENTS, PRECISION, Point, parse_objective
from bench.loadgen.histogram import Histogram
from bench.measured import (
    AHEAD,
    CHEAPER,
    FASTER,
    MIN_PAIRS,
    Finding,
    Interval,
    Measured,
    Words,
    geometric,
    middle,
)
from bench.options import StoresOptions
from bench.planner.prices import load as load_prices
from bench.report.report import ERRORS, RATE, Series
from bench.report.text import (
    NONE,
    UNKNOWN,
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
from bench.stores.reference import NOT_PUBLISHED, Needs, format_month, needs, published_cells
from bench.stores.results import (
    NO_FULL_CORE,
    THE_GENERATOR,
    LookupResult,
    PublishRun,
    RoundResult,
    ServiceRun,
    StoreResult,
)
from bench.stores.rounds import BATCHES
from stores.cosmos.charges import KB
from stores.cosmos.charges import load as load_charges
from stores.cosmos.url import Throughput
from stores.manifest import Manifest

T = TypeVar("T")


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
        """What to show in place of its latencies, if it is an emulator."""
        return self.store.candidate.emulated

    @property
    def name(self) -> str:
        """The store's name."""
        return self.reads.name

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


Cell = Callable[[Column], str]
OfRound = Callable[[RoundResult], float | None]

# What two columns say of one figure.
Compare = Callable[[Column, Column], Finding]


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table: its cell, and what two stores are compared by, and in which words, if they are."""

    cell: Cell
    compare: Compare | None = None
    words: Words = CHEAPER


Figures = Mapping[str, Figure]


def timed(cell: Cell) -> Cell:
    """Show an emulator's label in place of what is about time."""
    return lambda column: column.emulated or cell(column)


def mean(write: Callable[[float], str], value: OfRound, words: Words | None = None) -> Figure:
    """Show the mean of a value over the rounds; with *words* stores are compared by it."""
    cell = present(lambda column: column.mean(value), write, UNKNOWN)
    return Figure(cell) if words is None else Figure(timed(cell), by_rounds(value), words)


def present(value: Callable[[Column], T | None], write: Callable[[T], str], absent: str = NONE) -> Cell:
    """Show what a column has of something, or that it has none."""

    def cell(column: Column) -> str:
        found = value(column)
        return absent if found is None else write(found)

    return cell


def table_lines(columns: Sequence[Column], manifest: Manifest, options: StoresOptions) -> list[Line]:
    """Make the whole table; with the reference, the first cell of each line is the published figure."""
    item_bytes = max(KB, manifest.bytes / max(1, manifest.rows))
    published = any(each.publishing for column in columns for each in column.rounds)
    groups: dict[str, Figures] = {}
    if options.direct:
        groups |= {f"Without a service, {size} key{'s' * (size > 1)} a call": _direct(size) for size in BATCHES}
    if options.closed_users:
        groups[f"Closed loop: {options.closed_users} users, {options.think} of pause"] = _closed()
    groups["Through the service"] = _service()
    groups["What disturbed a round"] = _disturbances()
    groups["CPU a request"] = _cpu(options.cpu_hour)
    groups["Memory, and room in the store"] = _memory(manifest, published=published)
    if published:
        groups["Publishing"] = _publishing()
    if options.find_max:
        objective = parse_objective(options.slo)
        name = f"Highest rate inside the objective: {objective}, one worker on one core"
        groups[name] = _capacity(parse_rate(options.rate))
    if options.reference or any(each.throughput for each in columns):
        groups["Request units"] = _request_units(options, item_bytes)
    enough = all(len(each.rounds) >= MIN_PAIRS for each in columns)  # or a sentence says so once
    known = published_cells(load_charges(), load_prices(), item_bytes)

    def line(group: str, name: str, figure: Figure) -> Line:
        first = [known.get((group.partition(":")[0], name), NOT_PUBLISHED)] if options.reference else []
        judged = enough or figure.compare is by_capacity
        verdict = "; ".join(verdicts_on(columns, figure)) if judged else ""
        return Line(group, name, (*first, *map(figure.cell, columns)), verdict)

    return [line(group, name, figure) for group, figures in groups.items() for name, figure in figures.items()]


def verdicts_on(columns: Sequence[Column], figure: Figure) -> list[str]:
    """Compare each store but the first with the first one; emulators are left out, whose times are not a store's."""
    if figure.compare is None:
        return []
    first, *others = [each for each in columns if each.emulated is None] or columns[:1]
    found = [(one.name, figure.compare(first, one).sentence(first.name, one.name, figure.words)) for one in others]
    return [f"{name}: {sentence}" if len(others) > 1 else sentence for name, sentence in found]


def by(measure: Callable[[Column], Measured]) -> Compare:
    """Compare a figure in pairs of rounds."""
    return lambda first, second: measure(first).beside(measure(second))


def by_rounds(value: OfRound, *, shares: bool = False) -> Compare:
    """Compare a value of each round; *shares* of all requests may be zero."""
    return by(lambda column: column.measured(value, shares=shares))


def by_series(choose: Callable[[Column], Series | None], metric: str) -> Compare:
    """Compare a metric of a series, a percentile by both of its bounds."""

    def measure(column: Column) -> Measured:
        if (found := choose(column)) is None:
            return Measured((), (), "no round of one is valid")
        return found.latency(metric) if metric in PERCENTS else found.measured(metric)

    return by(measure)


def by_capacity(first: Column, second: Column) -> Finding:
    """Compare the highest rates, each of which lies between the best one and the next that was tried."""
    between = list[tuple[float, float]]()
    for column in (first, second):
        found = column.store.capacity
        if found is None or found.best is None or found.first_outside is None:
            return Finding(because=f"{column.name} has no rate inside the objective, or the search was stopped")
        above = found.first_outside[0].at
        if found.limit in (THE_GENERATOR, NO_FULL_CORE):
            return Finding(because=f"{found.limit} ended the search of {column.name} at {above:,.0f}/s")
        between.append((found.best[0].at, above))
    (low, high), (other_low, other_high) = between
    change = Finding((Interval(other_low / low - 1, other_low / high - 1, other_high / low - 1),))
    unknown = f"a search is to {PRECISION:.0%}, and they differ by hardly more"
    return change if change.real or change.negligible else change._replace(because=unknown)


def once(first: Column, second: Column) -> Finding:
    """Say why what was measured once has no verdict."""
    del first, second
    return Finding(because="it was measured once")


def added(ours: float | None, theirs: float | None) -> float | None:
    """Add two figures, if both are known."""
    return None if ours is None or theirs is None else ours + theirs


def _direct(size: int) -> Figures:
    def found(one: RoundResult) -> LookupResult:
        return one.lookups[size]

    def call(column: Column) -> str:
        calls_us = column.values(lambda each: found(each).call_us)
        if middle := geometric(calls_us):
            return format_interval(*middle)
        return format_short_us(fmean(calls_us))

    def cpu(column: Column) -> str:
        server_us = column.mean(lambda each: found(each).server_cpu_us)
        return format_both_us(column.mean(lambda each: found(each).cpu_us), server_us)

    return {
        "a call, median": Figure(timed(call), by_rounds(lambda each: found(each).call_us), FASTER),
        "keys/s, one caller": mean(format_count, lambda each: found(each).keys_per_s, AHEAD),
        "CPU a key, + server's": Figure(
            timed(cpu), by_rounds(lambda each: found(each).cpu_us + (found(each).server_cpu_us or 0.0))
        ),
    }


def _closed() -> Figures:
    def rate(series: Series) -> str:
        return f"{'at least ' if series.at_least else ''}{fmean(series.values(RATE)):,.1f}"

    def share(column: Column) -> float | None:
        return column.mean(lambda each: each.closed.service_share if each.closed else None)

    return _percentiles(lambda one: one.closed) | {
        # by the users' pauses, not by a store, and so no emulator's own time
        "good answers/s": Figure(present(lambda one: one.closed, rate), by_series(lambda one: one.closed, RATE), AHEAD),
        "errors and drops": Figure(present(lambda one: one.closed, _errors), by_series(lambda one: one.closed, ERRORS)),
        "service: share of a core": Figure(present(share, lambda used: f"{used:.0%}", UNKNOWN)),
    }


def _service() -> Figures:
    def share(one: RoundResult) -> float:
        return one.reads.result.seen["source"].get("popular", 0) / max(1, one.reads.result.ok)

    return _percentiles(lambda one: one.reads) | {
        "good answers/s": mean(format_count, lambda each: each.reads.result.ok_rate, AHEAD),
        "errors and drops": Figure(timed(lambda one: _errors(one.reads)), by_series(lambda one: one.reads, ERRORS)),
        "popular list instead": Figure(
            timed(present(lambda one: one.mean(share), lambda found: f"{found:.2%}", UNKNOWN)),
            by_rounds(share, shares=True),
        ),
    }


def _percentiles(choose: Callable[[Column], Series | None]) -> dict[str, Figure]:
    def percentile(name: str) -> Figure:
        return Figure(timed(present(choose, lambda series: _interval(series, name))), by_series(choose, name), FASTER)

    return {name: percentile(name) for name in PERCENTS}


def _interval(series: Series, name: str) -> str:
    found = series.summary[name]
    return format_latency(found) + ("" if found["enough_samples"] else " *")


def _errors(series: Series) -> str:
    return f"{fmean(series.values(ERRORS)):.3%}"


def _cpu(cpu_hour: float | None) -> Figures:
    def both_us(one: RoundResult) -> float | None:
        return added(one.reads.service_cpu_us, one.reads.server_cpu_us)

    def million(cpu_s: float) -> str:  # microseconds a read are seconds a million reads
        return f"{cpu_s:,.0f} CPU-s" + ("" if cpu_hour is None else f", price {cpu_s / 3600 * cpu_hour:.2g}")

    service = mean(format_short_us, lambda each: each.reads.service_cpu_us)
    server = mean(format_short_us, lambda each: each.reads.server_cpu_us)
    return {
        "load generator": mean(format_short_us, lambda each: each.reads.result.cpu_us_per_request),
        "service": replace(service, compare=by_rounds(lambda each: each.reads.service_cpu_us)),
        "the store's server": replace(server, cell=timed(server.cell)),
        "a million reads, + server's": mean(million, both_us, CHEAPER),
    }


def _memory(manifest: Manifest, *, published: bool) -> Figures:
    def room(column: Column) -> str:
        stored = column.mean(room_of)
        return UNKNOWN if stored is None else f"{stored:,.0f} B" + (", as charged" if column.emulated else "")

    def room_of(one: RoundResult) -> float | None:
        return None if one.publishing is None else one.publishing.trial.per_list(one.publishing.trial.stored_bytes)

    figures = {
        "load generator": Figure(lambda one: format_bytes(one.store.memory.generator)),
        "service, files aside": Figure(lambda one: format_bytes(one.store.memory.service), once),
        "the store's server": Figure(timed(lambda one: format_bytes(one.store.memory.server)), once),
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

    written = present(lambda one: one.while_written, lambda series: _interval(series, "p99"), "no valid round")
    return {
        "lists/s": mean(format_count, of(lambda each: each.trial.lists / each.trial.wall_s), AHEAD),
        "CPU a list, + server's": Figure(timed(cpu), by_rounds(of(lambda each: added(cpu_us(each), server_us(each))))),
        "p99 of reads meanwhile": Figure(timed(written), by_series(lambda one: one.while_written, "p99"), FASTER),
        "lists/s written meanwhile": mean(format_count, of(lambda each: each.lists_per_s), AHEAD),
    }


def _disturbances() -> Figures:
    """Show what the latencies' bounds are apart by: the mean over the rounds, and the worst."""

    def figure(value: OfRound, write: Callable[[float], str]) -> Figure:
        def both(column: Column) -> str:
            values = column.values(value)
            return f"{write(fmean(values))}, at worst {write(max(values))}" if values else UNKNOWN

        return Figure(both)

    def lag_us(one: RoundResult) -> float | None:
        return one.reads.result.lag.p99 if one.reads.result.lag else None

    def switches(one: RoundResult) -> float:
        return sum(each.switches for each in one.reads.result.usage)

    return {
        "CPU stolen by the host": figure(lambda each: each.reads.result.stolen, lambda share: f"{share:.2%}"),
        "generator: waited for its core": figure(lambda each: each.reads.result.waited, lambda share: f"{share:.1%}"),
        "generator: its core taken away": figure(switches, lambda count: f"{count:,.0f} times"),
        "generator: late, at p99": figure(lag_us, format_us),
    }


def _capacity(rate: float) -> Figures:
    def of_best(cell: Callable[[Point, ServiceRun], str]) -> Figure:
        return Figure(present(lambda one: one.best, lambda best: cell(*best)))

    def sent_p99_us(run: ServiceRun) -> float:
        return Histogram.of(run.result.sent_latencies_s).percentiles_us([PERCENTS["p99"]])[0]

    def best(column: Column) -> str:
        return f"{column.best[0].at:,.0f}/s{', emulated' if column.emulated else ''}" if column.best else NONE

    there = of_best(lambda point, run: format_bounds(sent_p99_us(run), point.p99_us))
    return {
        "best rate": Figure(best, by_capacity, AHEAD),
        f"times {rate:g} requests/s": of_best(lambda point, _: f"{point.at / rate:.0f}"),
        "p99 there": replace(there, cell=timed(there.cell)),
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

    def of_needs(cell: Callable[[Needs], str]) -> Cell:
        def of_throughput(found: Throughput) -> str:
            return cell(needs(load_charges(), load_prices(), item_bytes, rate, found.ru))

        return present(lambda one: one.throughput, of_throughput)

    def ru_s(value: float) -> str:
        return f"{value:,.0f} RU/s"

    cells: dict[str, Cell] = {
        "provisioned": present(
            lambda one: one.throughput, lambda found: f"{found.ru:,} RU/s{' autoscale' * found.autoscale}"
        ),
        "a read": present(lambda one: one.mean(lambda each: run(each).read_ru), lambda found: f"{found:.2f} RU"),
        f"used in the {'closed' if options.closed_users else 'open'} loop": present(
            lambda one: one.mean(lambda each: run(each).ru_s), ru_s
        ),
        "of what was provisioned": present(share, lambda used: f"{used:.1%}"),
    }
    if options.find_max:
        cells["used at the best rate"] = present(lambda one: one.best[1].ru_s if one.best else None, ru_s)
    cells |= {
        f"what {rate:g} requests/s need": of_needs(lambda found: f"{found.needed_ru:,} RU/s"),
        "a month of it, at the list price": of_needs(format_month),
    }
    return {name: Figure(cell) for name, cell in cells.items()}
