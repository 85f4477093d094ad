"""The table of a comparison: a line for each figure, a cell for each store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

from bench.loadgen.capacity import PERCENTS, Point, parse_objective
from bench.options import StoresOptions
from bench.report.intervals import geometric
from bench.report.report import ERRORS, RATE, Series
from bench.report.text import (
    NONE,
    UNKNOWN,
    Line,
    format_both_us,
    format_bytes,
    format_count,
    format_interval,
    format_short_us,
    format_us,
    parse_rate,
)
from bench.stores.reference import NOT_PUBLISHED, Needs, format_month, needs, published_cells
from bench.stores.results import LookupResult, PublishRun, RoundResult, ServiceRun, StoreResult
from bench.stores.rounds import BATCHES
from stores.cosmos.charges import KB
from stores.cosmos.charges import load as load_charges
from stores.cosmos.url import Throughput
from stores.manifest import Manifest
from stores.prices import load as load_prices


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
        """What to show in place of its latencies, where it is an emulator."""
        return self.store.candidate.emulated

    @property
    def best(self) -> tuple[Point, ServiceRun] | None:
        """The highest rate inside the objective, and its run."""
        return self.store.capacity.best if self.store.capacity else None

    def mean(self, value: Callable[[RoundResult], float | None]) -> float | None:
        """Return the mean of a value over the rounds; None where it is not known."""
        values = [found for each in self.rounds if (found := value(each)) is not None]
        return fmean(values) if values else None

    def mean_of_publishing(self, value: Callable[[PublishRun], float | None]) -> float | None:
        """Return the mean of a value over the rounds in which lists were written."""
        return self.mean(lambda each: None if each.publishing is None else value(each.publishing))

    def mean_of_lookups(self, size: int, value: Callable[[LookupResult], float | None]) -> float | None:
        """Return the mean of a value over the reads of one size of batch."""
        return self.mean(lambda each: value(each.lookups[size]))


@dataclass(frozen=True, slots=True)
class Group:
    """Lines under one heading, while they are added."""

    name: str
    columns: Sequence[Column]
    lines: list[Line] = field(default_factory=list)

    def add(self, name: str, cell: Callable[[Column], str], *, timed: bool = False) -> None:
        """Add a line; where it is about time, an emulator's cell shows its label instead."""
        cells = tuple(each.emulated if timed and each.emulated else cell(each) for each in self.columns)
        self.lines.append(Line(self.name, name, cells))


def table_lines(columns: Sequence[Column], manifest: Manifest, options: StoresOptions) -> list[Line]:
    """Make the whole table; with the reference, the first cell of each line is the published figure."""
    item_bytes = max(KB, manifest.bytes / max(1, manifest.rows))
    published = any(each.publishing for column in columns for each in column.rounds)
    groups = [
        *([_direct(columns, size) for size in BATCHES] if options.direct else []),
        *([_closed(columns, options)] if options.closed_users else []),
        _service(columns),
        _cpu(columns, options.cpu_hour),
        _memory(columns, manifest, published=published),
        *([_publishing(columns)] if published else []),
        *([_capacity(columns, options)] if options.find_max else []),
    ]
    if options.reference or any(each.throughput for each in columns):
        groups.append(_request_units(columns, options, item_bytes))
    lines = [line for group in groups for line in group.lines]
    if not options.reference:
        return lines
    known = published_cells(load_charges(), load_prices(), item_bytes)
    return [
        replace(line, cells=(known.get((line.group.partition(":")[0], line.name), NOT_PUBLISHED), *line.cells))
        for line in lines
    ]


def _direct(columns: Sequence[Column], size: int) -> Group:
    group = Group(f"Without a service, {size} key{'s' * (size > 1)} a call", columns)

    def call(column: Column) -> str:
        mean = geometric([each.lookups[size].call_us for each in column.rounds])
        if mean is None:
            return format_short_us(column.mean_of_lookups(size, lambda each: each.call_us))
        return format_interval(mean.mean, mean.low, mean.high)

    def cpu(column: Column) -> str:
        server_us = column.mean_of_lookups(size, lambda each: each.server_cpu_us)
        return format_both_us(column.mean_of_lookups(size, lambda each: each.cpu_us), server_us)

    group.add("a call, median", call, timed=True)
    rate = "keys/s, one caller"
    group.add(rate, lambda one: format_count(one.mean_of_lookups(size, lambda each: each.keys_per_s)), timed=True)
    group.add("CPU a key, + server's", cpu, timed=True)
    return group


def _closed(columns: Sequence[Column], options: StoresOptions) -> Group:
    group = Group(f"Closed loop: {options.closed_users} users, {options.think} of pause", columns)

    def share(column: Column) -> str:
        used = column.mean(lambda each: each.closed.service_share if each.closed else None)
        return UNKNOWN if used is None else f"{used:.0%}"

    def rate(series: Series) -> str:
        return f"{fmean(series.values(RATE)):,.1f}"

    _add_percentiles(group, lambda one: one.closed)
    group.add("good answers/s", partial(_of_series, lambda one: one.closed, rate))  # by the users' pauses, not a store
    group.add("errors and drops", partial(_of_series, lambda one: one.closed, _errors))
    group.add("service: share of a core", share)
    return group


def _service(columns: Sequence[Column]) -> Group:
    group = Group("Through the service", columns)

    def rate(series: Series) -> str:
        return format_count(fmean(series.values(RATE)))

    def popular(column: Column) -> str:
        share = column.mean(
            lambda each: each.reads.result.seen["source"].get("popular", 0) / max(1, each.reads.result.ok)
        )
        return UNKNOWN if share is None else f"{share:.2%}"

    _add_percentiles(group, lambda one: one.reads)
    group.add("good answers/s", partial(_of_series, lambda one: one.reads, rate), timed=True)
    group.add("errors and drops", partial(_of_series, lambda one: one.reads, _errors), timed=True)
    group.add("popular list instead", popular, timed=True)
    return group


def _add_percentiles(group: Group, choose: Callable[[Column], Series | None]) -> None:
    summaries = {id(one): found.summary() for one in group.columns if (found := choose(one)) and found.rounds}

    def percentile(name: str, column: Column) -> str:
        if id(column) not in summaries:
            return NONE
        found = summaries[id(column)][name]
        return format_interval(found["mean"], found["low"], found["high"]) + ("" if found["enough_samples"] else " *")

    for name in PERCENTS:
        group.add(name, partial(percentile, name), timed=True)


def _of_series(choose: Callable[[Column], Series | None], cell: Callable[[Series], str], column: Column) -> str:
    series = choose(column)
    return cell(series) if series and series.rounds else NONE


def _errors(series: Series) -> str:
    return f"{fmean(series.values(ERRORS)):.3%}"


def _cpu(columns: Sequence[Column], cpu_hour: float | None) -> Group:
    group = Group("CPU a request", columns)

    def service_us(column: Column) -> float | None:
        return column.mean(lambda each: each.reads.service_cpu_us)

    def server_us(column: Column) -> float | None:
        return column.mean(lambda each: each.reads.server_cpu_us)

    def million(column: Column) -> str:
        ours, theirs = service_us(column), server_us(column)
        if ours is None or theirs is None:
            return UNKNOWN
        cpu_s = ours + theirs  # microseconds a read are seconds a million reads
        return f"{cpu_s:,.0f} CPU-s" + ("" if cpu_hour is None else f", price {cpu_s / 3600 * cpu_hour:.2g}")

    generator = "load generator"
    group.add(generator, lambda one: format_short_us(one.mean(lambda each: each.reads.result.cpu_us_per_request)))
    group.add("service", lambda one: format_short_us(service_us(one)))
    group.add("the store's server", lambda one: format_short_us(server_us(one)), timed=True)
    group.add("a million reads, + server's", million, timed=True)
    return group


def _memory(columns: Sequence[Column], manifest: Manifest, *, published: bool) -> Group:
    group = Group("Memory, and room in the store", columns)
    payload = f"{manifest.bytes / max(1, manifest.rows):,.0f} B"

    def room(column: Column) -> str:
        stored = column.mean_of_publishing(lambda each: _each(each.trial.stored_bytes, each.trial.lists))
        return UNKNOWN if stored is None else f"{stored:,.0f} B" + (", as charged" if column.emulated else "")

    group.add("load generator", lambda one: format_bytes(one.store.memory.generator))
    group.add("service, files aside", lambda one: format_bytes(one.store.memory.service))
    group.add("the store's server", lambda one: format_bytes(one.store.memory.server), timed=True)
    group.add("keys and values a list", lambda _: payload)
    if published:
        group.add("room a list takes", room)
    return group


def _publishing(columns: Sequence[Column]) -> Group:
    group = Group("Publishing", columns)

    def rate(column: Column) -> str:
        return format_count(column.mean_of_publishing(lambda each: each.trial.lists / each.trial.wall_s))

    def cpu(column: Column) -> str:
        ours_us = column.mean_of_publishing(lambda each: each.trial.cpu_s * 1e6 / each.trial.lists)
        server_s = column.mean_of_publishing(lambda each: _each(each.trial.server_cpu_s, each.trial.lists))
        return format_both_us(ours_us, None if server_s is None else server_s * 1e6)

    def meanwhile(column: Column) -> str:
        if column.while_written is None:
            return "no valid round"
        p99 = column.while_written.summary()["p99"]
        return format_interval(p99["mean"], p99["low"], p99["high"])

    group.add("lists/s", rate, timed=True)
    group.add("CPU a list, + server's", cpu, timed=True)
    group.add("p99 of reads meanwhile", meanwhile, timed=True)
    written = "lists/s written meanwhile"
    group.add(written, lambda one: format_count(one.mean_of_publishing(lambda each: each.lists_per_s)), timed=True)
    return group


def _each(whole: float | None, parts: int) -> float | None:
    return None if whole is None else whole / parts


def _capacity(columns: Sequence[Column], options: StoresOptions) -> Group:
    objective, rate = parse_objective(options.slo), parse_rate(options.rate)
    group = Group(f"Highest rate inside the objective: {objective}, one worker on one core", columns)

    def of_best(cell: Callable[[Column, Point, ServiceRun], str]) -> Callable[[Column], str]:
        return lambda column: cell(column, *column.best) if column.best else NONE

    def p99(_: Column, point: Point, run: ServiceRun) -> str:
        return format_us(point.p99_us) + ("" if run.result.valid else " **")

    emulated = ", emulated"
    group.add("best rate", of_best(lambda one, point, _: f"{point.at:,.0f}/s{emulated if one.emulated else ''}"))
    group.add(f"times {rate:g} requests/s", of_best(lambda _one, point, _run: f"{point.at / rate:.0f}"))
    group.add("p99 there", of_best(p99), timed=True)
    group.add("what was the limit", lambda one: one.store.capacity.limit if one.store.capacity else "not reached")
    group.add("service: CPU a request there", of_best(lambda _one, _point, run: f"{run.service_cpu_us:.0f} µs"))
    return group


def _request_units(columns: Sequence[Column], options: StoresOptions, item_bytes: float) -> Group:
    group, rate = Group("Request units", columns), parse_rate(options.rate)

    def provisioned(column: Column) -> str:
        found = column.throughput
        return NONE if found is None else f"{found.ru:,} RU/s{' autoscale' * found.autoscale}"

    def read(column: Column) -> str:
        charge_ru = column.mean(lambda each: _charge_ru(each.closed or each.reads))
        return NONE if charge_ru is None else f"{charge_ru:.2f} RU"

    def used_ru_s(column: Column) -> float | None:
        return column.mean(lambda each: (each.closed or each.reads).ru_s)

    def share(column: Column) -> str:
        ru_s = used_ru_s(column)
        return NONE if ru_s is None or column.throughput is None else f"{ru_s / column.throughput.ru:.1%}"

    def of_needs(cell: Callable[[Needs], str]) -> Callable[[Column], str]:
        def of_column(column: Column) -> str:
            if column.throughput is None:
                return NONE
            return cell(needs(load_charges(), load_prices(), item_bytes, rate, column.throughput.ru))

        return of_column

    group.add("provisioned", provisioned)
    group.add("a read", read)
    group.add(f"used in the {'closed' if options.closed_users else 'open'} loop", lambda one: _ru_s(used_ru_s(one)))
    group.add("of what was provisioned", share)
    if options.find_max:
        group.add("used at the best rate", lambda one: _ru_s(one.best[1].ru_s if one.best else None))
    group.add(f"what {rate:g} requests/s need", of_needs(lambda found: f"{found.needed_ru:,} RU/s"))
    group.add("a month of it, at the list price", of_needs(format_month))
    return group


def _charge_ru(run: ServiceRun) -> float | None:
    return None if run.request_units is None else run.request_units.ru / max(1, run.result.ok)


def _ru_s(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f} RU/s"
