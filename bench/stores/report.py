"""The comparison of stores, from its options to its report: the table, which differences are real, and the raw figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

from bench import answers
from bench.errors import BenchMisused
from bench.loadgen.capacity import PERCENTS, parse_objective
from bench.loadgen.keys import Uniform, Zipf
from bench.options import StoresOptions
from bench.progress import ProgressDisplay
from bench.report.comparison import MIN_PAIRS, compare
from bench.report.intervals import geometric
from bench.report.report import ERRORS, WHILE_WRITTEN, Report, Series, series
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
    paragraphs,
    parse_rate,
    parse_seconds,
)
from bench.stores import reference
from bench.stores.reference import Needs, needs
from bench.stores.rounds import (
    BATCHES,
    TRIAL_LISTS,
    ComparisonResult,
    PublishRun,
    RoundResult,
    ServiceRun,
    Settings,
    StoreComparison,
    StoreResult,
)
from bench.stores.setup import Setup, own_stores, prepared_stores
from stores.cosmos.charges import KB
from stores.cosmos.charges import load as load_charges
from stores.cosmos.throughput import Throughput
from stores.cosmos.url import parse
from stores.manifest import Manifest
from stores.prices import load as load_prices

DECIDING_METRIC = "p99"
ENCODINGS = ("json", "zstd")
CLOSED_LOOP = ", closed loop"
NOT_REACHED = "not reached"
MOST_EXTRA_ROUNDS = 7

METHOD = """
The store without a service: one caller on one core, each call waiting for the one before.

Through the service: hotplate serve with one worker over one store, on one core; every user as likely as any other
unless --zipf says otherwise.

Room a list takes and publishing are of a trial release of the same stored bytes: written and made durable like any other,
then dropped instead of committed. Encoding and compressing lists come before, and are not counted; nor is the
pause in which it is dropped. The publisher has the lowest priority, on the service's core. Redis is as durable as it is
set up to be.

The CPU of a million reads is that of the service and of the store's server at this rate; an idle or a busier one uses
another amount a read. A price beside it is that CPU at the price of a CPU-hour that was given, and no bill: a machine
is paid for whether it is busy or not, and memory is not in it.

A * marks a percentile with fewer than 10 samples beyond it in all rounds together.
"""
CAPACITY_METHOD = """
On the way to the highest rate, the rate is doubled until the objective breaks, then the gap is halved until it is 5 %
wide. Popular lists instead of users' own ones break it, too, from 1 % of the responses on. What the limit was follows
from whose core was full, or from refused reads. ** marks a p99 that the generator's own lag, above 1 ms at p99, is part
of.

RU are all that Cosmos DB's responses reported to the service: of lookups, and of its reads of the catalogue.
"""
LOOPBACK = (
    "The stores were started on this machine: no network, no TLS, no replica, and a Redis that keeps nothing on disk. "
    "A network adds its round trip to every read of a remote store, and nothing to one of files; give the URLs of real "
    "stores to see that."
)
ELSEWHERE = (
    "The stores were where their URLs say, and others may have used them meanwhile: what a server used is all that it "
    "used. Services and load generator were on this machine."
)
EMULATED = "An emulator's own speed says nothing about the service that it stands for, so none of its times are shown."


@dataclass(frozen=True, slots=True)
class Column:
    """All of one store that the table shows: its rounds that count, as series and one by one."""

    store: StoreResult
    rounds: tuple[RoundResult, ...]
    reads: Series
    closed: Series | None
    while_written: Series | None

    def mean(self, value: Callable[[RoundResult], float | None]) -> float | None:
        """Return the mean of a value over the rounds; None where it is not known."""
        values = [found for each in self.rounds if (found := value(each)) is not None]
        return fmean(values) if values else None

    @property
    def emulated(self) -> str | None:
        """What to show in place of its latencies, where it is an emulator."""
        return self.store.candidate.emulated

    @property
    def throughput(self) -> Throughput | None:
        """What its container may use; None of a store that is not metered."""
        return provisioned(self.store.candidate.url)

    @property
    def ru_runs(self) -> tuple[ServiceRun, ...]:
        """The runs whose request units are shown: those of the closed loop, or else of the open one."""
        return tuple(each.closed or each.reads for each in self.rounds)


def compare_stores(options: StoresOptions, display: ProgressDisplay) -> Report:
    """Make the comparison. Raises BenchMisused for what makes no sense, BenchFailed and StoreError where it fails."""
    settings = parse_settings(options)
    with ExitStack() as stack:
        urls = list(options.urls) or stack.enter_context(own_stores(options.emulator_ru))
        display.start("bringing the release into the stores", 1.0)
        setup = stack.enter_context(
            prepared_stores(urls, options.users, options.encoding, started_here=not options.urls)
        )
        publishing = setup.started_here if options.publish is None else options.publish
        result = StoreComparison(setup, settings, display).run(publishing=publishing)
        return report(options, setup, result)


def parse_settings(options: StoresOptions) -> Settings:
    """Read the options. Raises BenchMisused for what makes no sense."""
    if len(options.urls) == 1 and not options.find_max:
        raise BenchMisused("a comparison takes two stores or more, or no URL at all for those that it starts itself")
    if len(set(options.urls)) < len(options.urls):
        raise BenchMisused("the same store is given twice")
    if options.encoding not in ENCODINGS:
        raise BenchMisused(f"an encoding is {' or '.join(ENCODINGS)}, not {options.encoding!r}")
    if options.repeat < 1 or options.users < 1 or (options.closed_users or 1) < 1 or (options.emulator_ru or 1) < 1:
        raise BenchMisused("--repeat, --users, --closed-users and --emulator-ru must be 1 or more")
    if options.cpu_hour is not None and options.cpu_hour <= 0:
        raise BenchMisused("--cpu-hour must be above zero")
    settings = Settings(
        rounds=options.repeat,
        extra_rounds=min(MOST_EXTRA_ROUNDS, 2 * options.repeat),
        rate=parse_rate(options.rate),
        poisson=options.poisson,
        duration_s=parse_seconds(options.duration),
        closed_users=options.closed_users,
        think_s=parse_seconds(options.think),
        warmup_s=parse_seconds(options.warmup),
        direct=options.direct,
        trial_lists=min(TRIAL_LISTS, options.users),
        draw=Uniform() if options.zipf is None else Zipf(options.zipf),
        objective=parse_objective(options.slo) if options.find_max else None,
    )
    if settings.rate <= 0 or settings.duration_s <= 0:
        raise BenchMisused("--rate and --duration must be above zero")
    return settings


def provisioned(url: str) -> Throughput | None:
    """Return what the container of a store's live release may use; None of a store that is not metered."""
    return parse(url).throughput if urlsplit(url).scheme.startswith("cosmos") else None


def report(options: StoresOptions, setup: Setup, result: ComparisonResult) -> Report:
    """Sum a comparison up."""
    kept, left_out = _valid_rounds(result, min(MIN_PAIRS, options.repeat))
    columns = [_column(each, kept) for each in result.stores]
    shown = [each for each in columns if each.emulated is None]
    checked = answers.total(each.checked for each in result.stores)
    failures = [f"{checked.wrong} of {checked.compared} compared answers were wrong"] if checked.wrong else []
    failures += [] if kept else ["no round was made"]
    names = [each.candidate.name for each in result.stores]
    failures += [
        f"{each.candidate.name}: no rate was inside the objective {parse_objective(options.slo)}"
        for each in result.stores
        if options.find_max and (each.capacity is None or each.capacity.best is None)
    ]
    return Report(
        kind="reference" if options.reference else "stores",
        configuration=options.to_json()
        | {
            "stores": [each.candidate.shown_url for each in result.stores],
            "release": setup.manifest.release,
            "encoding": setup.manifest.encoding,
            "lists": "made up for this comparison" if setup.started_here else "of the live release",
            "users": f"{len(setup.users):,} requested, of {setup.manifest.counts.get('user', 0):,}",
        },
        series=tuple(
            each for one in shown for each in (one.closed, one.reads, one.while_written) if each and each.rounds
        ),
        interrupted=result.interrupted,
        failures=tuple(failures),
        extra={
            "comparison": {
                "stores": [*([reference.COLUMN] if options.reference else []), *names],
                "lines": [asdict(line) for line in lines(columns, setup.manifest, options)] if kept else [],
                "verdicts": verdicts([each.reads for each in shown]),
                "left_out": left_out,
                "method": _method(options, setup, emulated=len(shown) < len(columns)),
                "capacity": [_raw_capacity(each) for each in result.stores if each.capacity],
            },
            "checked": asdict(checked),
            "stores": [_raw_store(each) for each in result.stores],
        },
    )


def _method(options: StoresOptions, setup: Setup, *, emulated: bool) -> list[str]:
    return [
        LOOPBACK if setup.started_here else ELSEWHERE,
        *([EMULATED] if emulated else []),
        *(paragraphs(reference.METHOD) if options.reference else []),
        *paragraphs(METHOD),
        *(paragraphs(CAPACITY_METHOD) if options.find_max else []),
    ]


def verdicts(reads: Sequence[Series]) -> list[str]:
    """Say of each store but the first whether its p99 through the service really differs from the first one's."""
    sentences = list[str]()
    for other in reads[1:]:
        first = reads[0]
        pairs = zip(first.rounds, other.rounds, strict=True)
        if sum(one.valid and two.valid for one, two in pairs) < MIN_PAIRS:
            sentences.append(
                f"{MIN_PAIRS} valid rounds or more are needed to say whether {first.name} and {other.name} differ"
            )
            continue
        change = compare(first, other, DECIDING_METRIC).deciding.interval
        amount = f"{abs(change.mean):.0%} {'longer' if change.mean > 0 else 'shorter'}"
        real = "a real difference" if change.real else "no real difference: the interval holds 0"
        sentences.append(
            f"{DECIDING_METRIC} is {amount} through {other.name} than {first.name} "
            f"(95 % interval {change.low:+.0%} to {change.high:+.0%}): {real}"
        )
    return sentences


def _valid_rounds(result: ComparisonResult, enough: int) -> tuple[list[int], list[str]]:
    """Choose the rounds that count: those valid for all stores, or all rounds where fewer than *enough* are."""
    reasons = {
        number: f"round {number + 1} is left out: {store.candidate.name}, {reason}"
        for store in result.stores
        for number, each in enumerate(store.rounds)
        for reason in each.invalid_reasons
    }
    made = range(len(result.stores[0].rounds))
    if len(made) - len(reasons) < enough:
        return list(made), []
    return [number for number in made if number not in reasons], [reasons[number] for number in sorted(reasons)]


def _column(store: StoreResult, kept: Sequence[int]) -> Column:
    rounds = tuple(store.rounds[number] for number in kept)
    name = store.candidate.name
    closed = [each.closed.result for each in rounds if each.closed]
    written = [each.publishing.reads.result for each in rounds if each.publishing]
    valid = [result for result in written if result.valid]
    return Column(
        store,
        rounds,
        series(name, [each.reads.result for each in rounds]),
        series(name + CLOSED_LOOP, closed) if closed else None,
        series(name + WHILE_WRITTEN, valid) if valid else None,
    )


def _raw_store(store: StoreResult) -> dict[str, Any]:
    """Give all that was measured of a store but its runs' histograms, which the series hold."""
    return {
        "name": store.candidate.name,
        "url": store.candidate.shown_url,
        "emulated": store.candidate.emulated,
        "memory_bytes": asdict(store.memory),
        "checked": asdict(store.checked),
        "rounds": [_raw_round(each) for each in store.rounds],
    }


def _raw_round(one: RoundResult) -> Mapping[str, Any]:
    return {
        "direct": {str(size): asdict(each) for size, each in one.lookups.items()},
        "service_cpu_us": one.reads.service_cpu_us,
        "server_cpu_us": one.reads.server_cpu_us,
        "ru_s": one.reads.ru_s,
        "invalid_reasons": one.invalid_reasons,
        "trial": one.publishing and asdict(one.publishing.trial),
        "lists_per_s_meanwhile": one.publishing and one.publishing.lists_per_s,
        "invalid_reasons_meanwhile": one.publishing and one.publishing.reads.result.invalid_reasons,
    }


def _raw_capacity(store: StoreResult) -> Mapping[str, Any]:
    capacity, emulated = store.capacity, store.candidate.emulated
    if capacity is None:
        return {}
    return {
        "name": store.candidate.name,
        "emulated": emulated,
        "highest": capacity.best and capacity.best[0].at,
        "limit": capacity.limit,
        "ending": f"{store.candidate.name}: {capacity.ending(emulated=emulated is not None)}",
        "points": [
            point.to_json()
            | {"service_share": run.service_share, "server_share": run.server_share, "ru_s": run.ru_s}
            | {"throttled": run.request_units and run.request_units.throttled}
            for point, run in zip(capacity.points, capacity.runs, strict=True)
        ],
    }


def lines(columns: Sequence[Column], manifest: Manifest, options: StoresOptions) -> list[Line]:
    """Make the whole table; with the reference, the first cell of each line is the published figure."""
    item_bytes = max(KB, manifest.bytes / max(1, manifest.rows))
    made = [
        *_direct(columns),
        *_closed(columns, options),
        *_service(columns),
        *_cpu(columns, options.cpu_hour),
        *_memory(columns, manifest),
        *_publishing(columns),
        *_capacity(columns, options),
        *_request_units(columns, options, item_bytes),
    ]
    if not options.reference:
        return made
    published = reference.published_cells(load_charges(), load_prices(), item_bytes)
    return [
        replace(
            line,
            cells=(published.get((line.group.partition(":")[0], line.name), reference.NOT_PUBLISHED), *line.cells),
        )
        for line in made
    ]


def _line(
    group: str, name: str, columns: Sequence[Column], cell: Callable[[Column], str], *, timed: bool = False
) -> Line:
    """Make a line; where it is about time, an emulator's cell shows its label instead."""
    return Line(group, name, tuple(each.emulated if timed and each.emulated else cell(each) for each in columns))


def _direct(columns: Sequence[Column]) -> Iterable[Line]:
    for size in BATCHES:
        if not any(size in each.lookups for column in columns for each in column.rounds):
            continue
        group = f"Without a service, {size} key{'s' * (size > 1)} a call"

        def call(column: Column, size: int = size) -> str:
            values = [each.lookups[size].call_us for each in column.rounds]
            mean = geometric(values)
            return format_interval(mean.mean, mean.low, mean.high) if mean else format_short_us(_mean(values))

        def rate(column: Column, size: int = size) -> str:
            return format_count(column.mean(lambda each: each.lookups[size].keys_per_s))

        def cpu(column: Column, size: int = size) -> str:
            ours = column.mean(lambda each: each.lookups[size].cpu_us)
            return format_both_us(ours, column.mean(lambda each: each.lookups[size].server_cpu_us))

        yield _line(group, "a call, median", columns, call, timed=True)
        yield _line(group, "keys/s, one caller", columns, rate, timed=True)
        yield _line(group, "CPU a key, + server's", columns, cpu, timed=True)


def _closed(columns: Sequence[Column], options: StoresOptions) -> Iterable[Line]:
    if not any(each.closed for each in columns):
        return
    group = f"Closed loop: {options.closed_users} users, {options.think} of pause"

    def share(column: Column) -> str:
        used = column.mean(lambda each: each.closed.service_share if each.closed else None)
        return UNKNOWN if used is None else f"{used:.0%}"

    yield from _latencies(group, columns, lambda each: each.closed, "{:,.1f}")
    yield _line(group, "service: share of a core", columns, share)


def _service(columns: Sequence[Column]) -> Iterable[Line]:
    group = "Through the service"
    yield from _latencies(group, columns, lambda each: each.reads, None)

    def popular(column: Column) -> str:
        share = column.mean(lambda each: _popular_share(each.reads))
        return UNKNOWN if share is None else f"{share:.2%}"

    yield _line(group, "popular list instead", columns, popular, timed=True)


def _popular_share(run: ServiceRun) -> float:
    return run.result.seen["source"].get("popular", 0) / max(1, run.result.ok)


def _latencies(
    group: str, columns: Sequence[Column], choose: Callable[[Column], Series | None], rate_format: str | None
) -> Iterable[Line]:
    """Give the percentiles, the rate and the errors of one series of each store.

    With a *rate_format* the rate is one that the generator's pauses decide, so that an emulator's is shown, too.
    """
    chosen = {id(each): choose(each) for each in columns}
    summaries = {key: each.summary() for key, each in chosen.items() if each and each.rounds}

    def percentile(name: str, column: Column) -> str:
        if id(column) not in summaries:
            return NONE
        found = summaries[id(column)][name]
        return format_interval(found["mean"], found["low"], found["high"]) + ("" if found["enough_samples"] else " *")

    def values(column: Column, metric: str) -> float:
        one = chosen[id(column)]
        return (_mean(one.values(metric)) if one else None) or 0.0

    def rate(column: Column) -> str:
        return rate_format.format(values(column, "rate")) if rate_format else format_count(values(column, "rate"))

    for name in PERCENTS:
        yield _line(group, name, columns, partial(percentile, name), timed=True)
    yield _line(group, "good answers/s", columns, rate, timed=rate_format is None)
    yield _line(group, "errors and drops", columns, lambda one: f"{values(one, ERRORS):.3%}", timed=rate_format is None)


def _cpu(columns: Sequence[Column], cpu_hour: float | None) -> Iterable[Line]:
    group = "CPU a request"

    def generator(column: Column) -> str:
        return format_short_us(column.mean(lambda each: each.reads.result.cpu_us_per_request))

    def service(column: Column) -> str:
        return format_short_us(column.mean(lambda each: each.reads.service_cpu_us))

    def server(column: Column) -> str:
        return format_short_us(column.mean(lambda each: each.reads.server_cpu_us))

    def million(column: Column) -> str:
        ours, theirs = (
            column.mean(lambda each: each.reads.service_cpu_us),
            column.mean(lambda each: each.reads.server_cpu_us),
        )
        if ours is None or theirs is None:
            return UNKNOWN
        cpu_s = ours + theirs  # microseconds a read are seconds a million reads
        return f"{cpu_s:,.0f} CPU-s" + ("" if cpu_hour is None else f", price {cpu_s / 3600 * cpu_hour:.2g}")

    yield _line(group, "load generator", columns, generator)
    yield _line(group, "service", columns, service)
    yield _line(group, "the store's server", columns, server, timed=True)
    yield _line(group, "a million reads, + server's", columns, million, timed=True)


def _memory(columns: Sequence[Column], manifest: Manifest) -> Iterable[Line]:
    group = "Memory, and room in the store"
    yield _line(group, "load generator", columns, lambda one: format_bytes(one.store.memory.generator))
    yield _line(group, "service, files aside", columns, lambda one: format_bytes(one.store.memory.service))
    yield _line(group, "the store's server", columns, lambda one: format_bytes(one.store.memory.server), timed=True)
    payload = f"{manifest.bytes / max(1, manifest.rows):,.0f} B"
    yield _line(group, "keys and values a list", columns, lambda _: payload)

    def room(column: Column) -> str:
        stored = _of_publishing(column, lambda each: _each(each.trial.stored_bytes, each.trial.lists))
        return UNKNOWN if stored is None else f"{stored:,.0f} B" + (", as charged" if column.emulated else "")

    if any(each.publishing for column in columns for each in column.rounds):
        yield _line(group, "room a list takes", columns, room)


def _publishing(columns: Sequence[Column]) -> Iterable[Line]:
    if not any(each.publishing for column in columns for each in column.rounds):
        return
    group = "Publishing"

    def rate(column: Column) -> str:
        return format_count(_of_publishing(column, lambda each: each.trial.lists / each.trial.wall_s))

    def cpu(column: Column) -> str:
        ours = _of_publishing(column, lambda each: each.trial.cpu_s * 1e6 / each.trial.lists)
        server_s = _of_publishing(column, lambda each: _each(each.trial.server_cpu_s, each.trial.lists))
        return format_both_us(ours, None if server_s is None else server_s * 1e6)

    def meanwhile(column: Column) -> str:
        if column.while_written is None:
            return "no valid round"
        p99 = column.while_written.summary()["p99"]
        return format_interval(p99["mean"], p99["low"], p99["high"])

    def rate_meanwhile(column: Column) -> str:
        return format_count(_of_publishing(column, lambda each: each.lists_per_s))

    yield _line(group, "lists/s", columns, rate, timed=True)
    yield _line(group, "CPU a list, + server's", columns, cpu, timed=True)
    yield _line(group, "p99 of reads meanwhile", columns, meanwhile, timed=True)
    yield _line(group, "lists/s written meanwhile", columns, rate_meanwhile, timed=True)


def _of_publishing(column: Column, value: Callable[[PublishRun], float | None]) -> float | None:
    return column.mean(lambda each: None if each.publishing is None else value(each.publishing))


def _each(whole: float | None, parts: int) -> float | None:
    return None if whole is None else whole / parts


def _capacity(columns: Sequence[Column], options: StoresOptions) -> Iterable[Line]:
    if not options.find_max:
        return
    group = f"Highest rate inside the objective: {parse_objective(options.slo)}, one worker on one core"
    rate = parse_rate(options.rate)
    best = {id(each): each.store.capacity.best if each.store.capacity else None for each in columns}

    def highest(column: Column) -> str:
        found = best[id(column)]
        return f"{found[0].at:,.0f}/s{', emulated' if column.emulated else ''}" if found else NONE

    def times(column: Column) -> str:
        found = best[id(column)]
        return f"{found[0].at / rate:.0f}" if found else NONE

    def p99(column: Column) -> str:
        found = best[id(column)]
        return format_us(found[0].p99_us) + ("" if found[1].result.valid else " **") if found else NONE

    def limit(column: Column) -> str:
        return column.store.capacity.limit if column.store.capacity else NOT_REACHED

    def cpu(column: Column) -> str:
        found = best[id(column)]
        return f"{found[1].service_cpu_us:.0f} µs" if found else NONE

    yield _line(group, "best rate", columns, highest)
    yield _line(group, f"times {rate:g} requests/s", columns, times)
    yield _line(group, "p99 there", columns, p99, timed=True)
    yield _line(group, "what was the limit", columns, limit)
    yield _line(group, "service: CPU a request there", columns, cpu)


def _request_units(columns: Sequence[Column], options: StoresOptions, item_bytes: float) -> Iterable[Line]:
    if not (options.reference or any(each.throughput for each in columns)):
        return
    group, rate = "Request units", parse_rate(options.rate)

    def capacity(column: Column) -> str:
        return NONE if column.throughput is None else _throughput(column.throughput)

    def read(column: Column) -> str:
        units = [each.request_units.ru / max(1, each.result.ok) for each in column.ru_runs if each.request_units]
        return f"{fmean(units):.2f} RU" if units else NONE

    def used(column: Column) -> str:
        return _ru_s(_used_ru_s(column))

    def share(column: Column) -> str:
        ru_s = _used_ru_s(column)
        return NONE if ru_s is None or column.throughput is None else f"{ru_s / column.throughput.ru:.1%}"

    def used_at_best(column: Column) -> str:
        best = column.store.capacity.best if column.store.capacity else None
        return _ru_s(best[1].ru_s if best else None)

    def of_needs(column: Column, cell: Callable[[Needs], str]) -> str:
        if column.throughput is None:
            return NONE
        return cell(needs(load_charges(), load_prices(), item_bytes, rate, column.throughput.ru))

    def month(found: Needs) -> str:
        return f"{found.needed_month_usd:,.0f} instead of {found.provisioned_month_usd:,.0f} USD"

    loop = "closed loop" if options.closed_users else "open loop"
    yield _line(group, "provisioned", columns, capacity)
    yield _line(group, "a read", columns, read)
    yield _line(group, f"used in the {loop}", columns, used)
    yield _line(group, "of what was provisioned", columns, share)
    if options.find_max:
        yield _line(group, "used at the best rate", columns, used_at_best)
    name = f"what {rate:g} requests/s need"
    yield _line(group, name, columns, lambda one: of_needs(one, lambda found: f"{found.needed_ru:,} RU/s"))
    yield _line(group, "a month of it, at the list price", columns, lambda one: of_needs(one, month))


def _used_ru_s(column: Column) -> float | None:
    return _mean([each.ru_s for each in column.ru_runs if each.ru_s is not None])


def _ru_s(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f} RU/s"


def _throughput(throughput: Throughput) -> str:
    return f"{throughput.ru:,} RU/s{' autoscale' * throughput.autoscale}"


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
