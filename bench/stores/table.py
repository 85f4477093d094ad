"""The table of a comparison: a line for each figure, a cell for each store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

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
from bench.stores.results import PublishRun, RoundResult, ServiceRun, StoreResult
from bench.stores.rounds import BATCHES
from stores.cosmos.charges import KB
from stores.cosmos.charges import load as load_charges
from stores.cosmos.url import Throughput
from stores.manifest import Manifest
from stores.prices import load as load_prices

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


Cell = Callable[[Column], str]
Cells = Mapping[str, Cell]
Value = Callable[[Column], float | None]


def timed(cell: Cell) -> Cell:
    """Show an emulator's label in place of what is about time."""
    return lambda column: column.emulated or cell(column)


def shown(write: Callable[[float | None], str], value: Value) -> Cell:
    """Show a value as *write* writes it."""
    return lambda column: write(value(column))


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
    groups: dict[str, Cells] = {}
    if options.direct:
        groups |= {f"Without a service, {size} key{'s' * (size > 1)} a call": _direct(size) for size in BATCHES}
    if options.closed_users:
        groups[f"Closed loop: {options.closed_users} users, {options.think} of pause"] = _closed()
    groups["Through the service"] = _service()
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
    known = published_cells(load_charges(), load_prices(), item_bytes)

    def line(group: str, name: str, cell: Cell) -> Line:
        first = [known.get((group.partition(":")[0], name), NOT_PUBLISHED)] if options.reference else []
        return Line(group, name, (*first, *map(cell, columns)))

    return [line(group, name, cell) for group, cells in groups.items() for name, cell in cells.items()]


def _direct(size: int) -> Cells:
    def call(column: Column) -> str:
        calls_us = [each.lookups[size].call_us for each in column.rounds]
        if mean := geometric(calls_us):
            return format_interval(mean.mean, mean.low, mean.high)
        return format_short_us(fmean(calls_us))

    def cpu(column: Column) -> str:
        server_us = column.mean(lambda each: each.lookups[size].server_cpu_us)
        return format_both_us(column.mean(lambda each: each.lookups[size].cpu_us), server_us)

    keys_per_s = shown(format_count, lambda one: one.mean(lambda each: each.lookups[size].keys_per_s))
    return {
        "a call, median": timed(call),
        "keys/s, one caller": timed(keys_per_s),
        "CPU a key, + server's": timed(cpu),
    }


def _closed() -> Cells:
    def share(column: Column) -> float | None:
        return column.mean(lambda each: each.closed.service_share if each.closed else None)

    return _percentiles(lambda one: one.closed) | {
        # by the users' pauses, not by a store, and so no emulator's own time
        "good answers/s": present(lambda one: one.closed, lambda series: f"{fmean(series.values(RATE)):,.1f}"),
        "errors and drops": present(lambda one: one.closed, _errors),
        "service: share of a core": present(share, lambda used: f"{used:.0%}", UNKNOWN),
    }


def _service() -> Cells:
    def popular(column: Column) -> float | None:
        return column.mean(lambda one: one.reads.result.seen["source"].get("popular", 0) / max(1, one.reads.result.ok))

    return _percentiles(lambda one: one.reads) | {
        "good answers/s": timed(shown(format_count, lambda one: fmean(one.reads.values(RATE)))),
        "errors and drops": timed(lambda one: _errors(one.reads)),
        "popular list instead": timed(present(popular, lambda share: f"{share:.2%}", UNKNOWN)),
    }


def _percentiles(choose: Callable[[Column], Series | None]) -> dict[str, Cell]:
    def percentile(name: str) -> Cell:
        return timed(present(choose, lambda series: _interval(series, name)))

    return {name: percentile(name) for name in PERCENTS}


def _interval(series: Series, name: str) -> str:
    found = series.summary[name]
    return format_interval(found["mean"], found["low"], found["high"]) + ("" if found["enough_samples"] else " *")


def _errors(series: Series) -> str:
    return f"{fmean(series.values(ERRORS)):.3%}"


def _cpu(cpu_hour: float | None) -> Cells:
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

    return {
        "load generator": shown(
            format_short_us, lambda one: one.mean(lambda each: each.reads.result.cpu_us_per_request)
        ),
        "service": shown(format_short_us, service_us),
        "the store's server": timed(shown(format_short_us, server_us)),
        "a million reads, + server's": timed(million),
    }


def _memory(manifest: Manifest, *, published: bool) -> Cells:
    def room(column: Column) -> str:
        stored = column.mean_of_publishing(lambda each: each.trial.per_list(each.trial.stored_bytes))
        return UNKNOWN if stored is None else f"{stored:,.0f} B" + (", as charged" if column.emulated else "")

    cells: dict[str, Cell] = {
        "load generator": lambda one: format_bytes(one.store.memory.generator),
        "service, files aside": lambda one: format_bytes(one.store.memory.service),
        "the store's server": timed(lambda one: format_bytes(one.store.memory.server)),
        "keys and values a list": lambda _: f"{manifest.bytes / max(1, manifest.rows):,.0f} B",
    }
    return cells | ({"room a list takes": room} if published else {})


def _publishing() -> Cells:
    def rate(column: Column) -> float | None:
        return column.mean_of_publishing(lambda each: each.trial.lists / each.trial.wall_s)

    def cpu(column: Column) -> str:
        ours_s = column.mean_of_publishing(lambda each: each.trial.per_list(each.trial.cpu_s))
        server_s = column.mean_of_publishing(lambda each: each.trial.per_list(each.trial.server_cpu_s))
        return format_both_us(*(None if used_s is None else used_s * 1e6 for used_s in (ours_s, server_s)))

    def meanwhile(series: Series) -> str:
        p99 = series.summary["p99"]
        return format_interval(p99["mean"], p99["low"], p99["high"])

    return {
        "lists/s": timed(shown(format_count, rate)),
        "CPU a list, + server's": timed(cpu),
        "p99 of reads meanwhile": timed(present(lambda one: one.while_written, meanwhile, "no valid round")),
        "lists/s written meanwhile": timed(
            shown(format_count, lambda one: one.mean_of_publishing(lambda each: each.lists_per_s))
        ),
    }


def _capacity(rate: float) -> Cells:
    def of_best(cell: Callable[[Point, ServiceRun], str]) -> Cell:
        return present(lambda one: one.best, lambda best: cell(*best))

    def best(column: Column) -> str:
        return f"{column.best[0].at:,.0f}/s{', emulated' if column.emulated else ''}" if column.best else NONE

    return {
        "best rate": best,
        f"times {rate:g} requests/s": of_best(lambda point, _: f"{point.at / rate:.0f}"),
        "p99 there": timed(of_best(lambda point, run: format_us(point.p99_us) + ("" if run.result.valid else " **"))),
        "what was the limit": lambda one: one.store.capacity.limit if one.store.capacity else "not reached",
        "service: CPU a request there": of_best(lambda _, run: f"{run.service_cpu_us:.0f} µs"),
    }


def _request_units(options: StoresOptions, item_bytes: float) -> Cells:
    rate = parse_rate(options.rate)

    def read(column: Column) -> float | None:
        return column.mean(lambda each: (each.closed or each.reads).read_ru)

    def used_ru_s(column: Column) -> float | None:
        return column.mean(lambda each: (each.closed or each.reads).ru_s)

    def share(column: Column) -> float | None:
        ru_s = used_ru_s(column)
        return None if ru_s is None or column.throughput is None else ru_s / column.throughput.ru

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
        "a read": present(read, lambda charge_ru: f"{charge_ru:.2f} RU"),
        f"used in the {'closed' if options.closed_users else 'open'} loop": present(used_ru_s, ru_s),
        "of what was provisioned": present(share, lambda used: f"{used:.1%}"),
    }
    if options.find_max:
        cells["used at the best rate"] = present(lambda one: one.best[1].ru_s if one.best else None, ru_s)
    return cells | {
        f"what {rate:g} requests/s need": of_needs(lambda found: f"{found.needed_ru:,} RU/s"),
        "a month of it, at the list price": of_needs(format_month),
    }
