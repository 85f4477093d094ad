"""The table of a comparison: a line for each figure, a cell for each store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from bench.loadgen.capacity import PERCENTS, PRECISION, Point, parse_objective
from bench.loadgen.histogram import Histogram
from bench.options import StoresOptions
from bench.report.comparison import (
    AHEAD,
    CANNOT_TELL,
    CHEAPER,
    FASTER,
    MIN_PAIRS,
    Finding,
    Words,
    disturbance_of,
    judge,
    judge_latency,
    judge_shares,
    rate_unknown,
)
from bench.report.intervals import Difference, Interval, geometric
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
        values = self.values(value)
        return fmean(values) if values else None

    def values(self, value: Callable[[RoundResult], float | None]) -> list[float]:
        """Return a value of each round that has it."""
        return [found for each in self.rounds if (found := value(each)) is not None]

    def mean_of_publishing(self, value: Callable[[PublishRun], float | None]) -> float | None:
        """Return the mean of a value over the rounds in which lists were written."""
        return self.mean(lambda each: None if each.publishing is None else value(each.publishing))


Cell = Callable[[Column], str]
Value = Callable[[Column], float | None]
OfRound = Callable[[RoundResult], float | None]

# The verdict on two columns.
Compare = Callable[[Column, Column], str]


@dataclass(frozen=True, slots=True)
class Judged:
    """A figure by which stores are compared: its cell, and the verdict on two of them."""

    cell: Cell
    compare: Compare


Cells = Mapping[str, Cell | Judged]


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

    def line(group: str, name: str, figure: Cell | Judged) -> Line:
        first = [known.get((group.partition(":")[0], name), NOT_PUBLISHED)] if options.reference else []
        cell = figure.cell if isinstance(figure, Judged) else figure
        verdict = ""
        if isinstance(figure, Judged) and (enough or figure.compare is by_capacity):
            verdict = "; ".join(verdicts_on(columns, figure.compare))
        return Line(group, name, (*first, *map(cell, columns)), verdict)

    return [line(group, name, figure) for group, figures in groups.items() for name, figure in figures.items()]


def verdicts_on(columns: Sequence[Column], compare: Compare) -> list[str]:
    """Compare each store but the first with the first one; emulators are left out, whose times are not a store's."""
    compared = [each for each in columns if each.emulated is None]
    several = len(compared) > 2
    return [
        f"{each.reads.name}: {compare(compared[0], each)}" if several else compare(compared[0], each)
        for each in compared[1:]
    ]


def by_rounds(value: OfRound, words: Words = CHEAPER) -> Compare:
    """Compare a value of each round."""

    def compare(first: Column, second: Column) -> str:
        found = judge((first.values(value), second.values(value)), None, disturbance_of(first.reads, second.reads))
        return found.sentence(first.reads.name, second.reads.name, words)

    return compare


def by_latency(choose: Callable[[Column], Series | None], metric: str) -> Compare:
    """Compare a percentile by both of its bounds."""

    def compare(first: Column, second: Column) -> str:
        one, two = choose(first), choose(second)
        found = judge_latency(one, two, metric) if one and two else Finding(None, "no round of one is valid")
        return found.sentence(first.reads.name, second.reads.name, FASTER)

    return compare


def by_shares(values: Callable[[Column], Sequence[float]]) -> Compare:
    """Compare a share of the requests of each round."""
    return lambda first, second: judge_shares((first.reads.name, second.reads.name), values(first), values(second))


def by_capacity(first: Column, second: Column) -> str:
    """Compare the highest rates, each of which lies between the best one and the next that was tried."""
    between = list[tuple[float, float]]()
    for column in (first, second):
        found = column.store.capacity
        if found is None or found.best is None or found.first_outside is None:
            return f"{CANNOT_TELL} {column.reads.name} has no rate inside the objective, or the search was stopped"
        above = found.first_outside[0].at
        if found.limit in (THE_GENERATOR, NO_FULL_CORE):
            return f"{CANNOT_TELL} {found.limit} ended the search of {column.reads.name} at {above:,.0f}/s"
        between.append((found.best[0].at, above))
    (low, high), (other_low, other_high) = between
    change = Interval(other_low / low - 1, other_low / high - 1, other_high / low - 1)
    difference = Difference(change, change)
    known = difference.real or difference.negligible
    because = "" if known else f"a search is to {PRECISION:.0%}, and they differ by hardly more"
    return Finding(difference, because).sentence(first.reads.name, second.reads.name, AHEAD)


def once(first: Column, second: Column) -> str:
    """Say why what was measured once has no verdict."""
    del first, second
    return f"{CANNOT_TELL} it was measured once"


def _direct(size: int) -> Cells:
    def call(column: Column) -> str:
        calls_us = [each.lookups[size].call_us for each in column.rounds]
        if mean := geometric(calls_us):
            return format_interval(mean.mean, mean.low, mean.high)
        return format_short_us(fmean(calls_us))

    def cpu(column: Column) -> str:
        server_us = column.mean(lambda each: each.lookups[size].server_cpu_us)
        return format_both_us(column.mean(lambda each: each.lookups[size].cpu_us), server_us)

    def both_us(found: LookupResult) -> float:
        return found.cpu_us + (found.server_cpu_us or 0.0)

    keys_per_s = shown(format_count, lambda one: one.mean(lambda each: each.lookups[size].keys_per_s))
    return {
        "a call, median": Judged(timed(call), by_rounds(lambda each: each.lookups[size].call_us, FASTER)),
        "keys/s, one caller": Judged(timed(keys_per_s), by_rounds(lambda each: each.lookups[size].keys_per_s, AHEAD)),
        "CPU a key, + server's": Judged(timed(cpu), by_rounds(lambda each: both_us(each.lookups[size]))),
    }


def _closed() -> Cells:
    def share(column: Column) -> float | None:
        return column.mean(lambda each: each.closed.service_share if each.closed else None)

    def rate(series: Series) -> str:
        return f"{'at least ' if rate_unknown(series) else ''}{fmean(series.values(RATE)):,.1f}"

    def compare_rates(first: Column, second: Column) -> str:
        waited = rate_unknown(*(each.closed for each in (first, second) if each.closed))
        compared = by_rounds(lambda each: each.closed.result.ok_rate if each.closed else None, AHEAD)
        return f"{CANNOT_TELL} {waited}" if waited else compared(first, second)

    return _percentiles(lambda one: one.closed) | {
        # by the users' pauses, not by a store, and so no emulator's own time
        "good answers/s": Judged(present(lambda one: one.closed, rate), compare_rates),
        "errors and drops": Judged(
            present(lambda one: one.closed, _errors),
            by_shares(lambda one: one.closed.values(ERRORS) if one.closed else []),
        ),
        "service: share of a core": present(share, lambda used: f"{used:.0%}", UNKNOWN),
    }


def _service() -> Cells:
    def share(one: RoundResult) -> float:
        return one.reads.result.seen["source"].get("popular", 0) / max(1, one.reads.result.ok)

    return _percentiles(lambda one: one.reads) | {
        "good answers/s": Judged(
            timed(shown(format_count, lambda one: fmean(one.reads.values(RATE)))),
            by_rounds(lambda each: each.reads.result.ok_rate, AHEAD),
        ),
        "errors and drops": Judged(
            timed(lambda one: _errors(one.reads)), by_shares(lambda one: one.reads.values(ERRORS))
        ),
        "popular list instead": Judged(
            timed(present(lambda one: one.mean(share), lambda found: f"{found:.2%}", UNKNOWN)),
            by_shares(lambda one: one.values(share)),
        ),
    }


def _percentiles(choose: Callable[[Column], Series | None]) -> dict[str, Cell | Judged]:
    def percentile(name: str) -> Judged:
        return Judged(timed(present(choose, lambda series: _interval(series, name))), by_latency(choose, name))

    return {name: percentile(name) for name in PERCENTS}


def _interval(series: Series, name: str) -> str:
    found = series.summary[name]
    return format_latency(found) + ("" if found["enough_samples"] else " *")


def _errors(series: Series) -> str:
    return f"{fmean(series.values(ERRORS)):.3%}"


def _cpu(cpu_hour: float | None) -> Cells:
    def service_us(column: Column) -> float | None:
        return column.mean(lambda each: each.reads.service_cpu_us)

    def server_us(column: Column) -> float | None:
        return column.mean(lambda each: each.reads.server_cpu_us)

    def both_us(one: RoundResult) -> float | None:
        server = one.reads.server_cpu_us
        return None if server is None else one.reads.service_cpu_us + server

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
        "service": Judged(shown(format_short_us, service_us), by_rounds(lambda each: each.reads.service_cpu_us)),
        "the store's server": timed(shown(format_short_us, server_us)),
        "a million reads, + server's": Judged(timed(million), by_rounds(both_us)),
    }


def _memory(manifest: Manifest, *, published: bool) -> Cells:
    def room(column: Column) -> str:
        stored = column.mean_of_publishing(lambda each: each.trial.per_list(each.trial.stored_bytes))
        return UNKNOWN if stored is None else f"{stored:,.0f} B" + (", as charged" if column.emulated else "")

    def room_of(one: RoundResult) -> float | None:
        return None if one.publishing is None else one.publishing.trial.per_list(one.publishing.trial.stored_bytes)

    cells: dict[str, Cell | Judged] = {
        "load generator": lambda one: format_bytes(one.store.memory.generator),
        "service, files aside": Judged(lambda one: format_bytes(one.store.memory.service), once),
        "the store's server": Judged(timed(lambda one: format_bytes(one.store.memory.server)), once),
        "keys and values a list": lambda _: f"{manifest.bytes / max(1, manifest.rows):,.0f} B",
    }
    return cells | ({"room a list takes": Judged(room, by_rounds(room_of))} if published else {})


def _publishing() -> Cells:
    def rate(column: Column) -> float | None:
        return column.mean_of_publishing(lambda each: each.trial.lists / each.trial.wall_s)

    def cpu(column: Column) -> str:
        ours_s = column.mean_of_publishing(lambda each: each.trial.per_list(each.trial.cpu_s))
        server_s = column.mean_of_publishing(lambda each: each.trial.per_list(each.trial.server_cpu_s))
        return format_both_us(*(None if used_s is None else used_s * 1e6 for used_s in (ours_s, server_s)))

    def of_round(value: Callable[[PublishRun], float | None]) -> OfRound:
        return lambda each: None if each.publishing is None else value(each.publishing)

    def both_s(each: PublishRun) -> float | None:
        ours_s, server_s = each.trial.per_list(each.trial.cpu_s), each.trial.per_list(each.trial.server_cpu_s)
        return None if ours_s is None or server_s is None else ours_s + server_s

    written = shown(format_count, lambda one: one.mean_of_publishing(lambda each: each.lists_per_s))
    return {
        "lists/s": Judged(
            timed(shown(format_count, rate)),
            by_rounds(of_round(lambda each: each.trial.lists / each.trial.wall_s), AHEAD),
        ),
        "CPU a list, + server's": Judged(timed(cpu), by_rounds(of_round(both_s))),
        "p99 of reads meanwhile": Judged(
            timed(present(lambda one: one.while_written, lambda series: _interval(series, "p99"), "no valid round")),
            by_latency(lambda one: one.while_written, "p99"),
        ),
        "lists/s written meanwhile": Judged(timed(written), by_rounds(of_round(lambda each: each.lists_per_s), AHEAD)),
    }


def _disturbances() -> Cells:
    """Show what the latencies' bounds are apart by: the mean over the rounds, and the worst."""

    def cell(value: OfRound, write: Callable[[float], str]) -> Cell:
        def both(column: Column) -> str:
            values = column.values(value)
            return f"{write(fmean(values))}, at worst {write(max(values))}" if values else UNKNOWN

        return both

    def lag_us(one: RoundResult) -> float | None:
        return one.reads.result.lag.p99 if one.reads.result.lag else None

    def waited(one: RoundResult) -> float:
        return max((each.waited_s / each.wall_s for each in one.reads.result.usage if each.wall_s), default=0.0)

    def switches(one: RoundResult) -> float:
        return sum(each.switches for each in one.reads.result.usage)

    return {
        "CPU stolen by the host": cell(lambda each: each.reads.result.stolen, lambda share: f"{share:.2%}"),
        "generator: waited for its core": cell(waited, lambda share: f"{share:.1%}"),
        "generator: its core taken away": cell(switches, lambda count: f"{count:,.0f} times"),
        "generator: late, at p99": cell(lag_us, format_us),
    }


def _capacity(rate: float) -> Cells:
    def of_best(cell: Callable[[Point, ServiceRun], str]) -> Cell:
        return present(lambda one: one.best, lambda best: cell(*best))

    def sent_p99_us(run: ServiceRun) -> float:
        return Histogram.of(run.result.sent_latencies_s).percentiles_us([PERCENTS["p99"]])[0]

    def best(column: Column) -> str:
        return f"{column.best[0].at:,.0f}/s{', emulated' if column.emulated else ''}" if column.best else NONE

    return {
        "best rate": Judged(best, by_capacity),
        f"times {rate:g} requests/s": of_best(lambda point, _: f"{point.at / rate:.0f}"),
        "p99 there": timed(of_best(lambda point, run: format_bounds(sent_p99_us(run), point.p99_us))),
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
