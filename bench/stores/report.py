"""The comparison of stores, from its options to its report: which is faster and cheaper, and the raw figures."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from statistics import fmean
from typing import Any

from hotplate.bench import answers
from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.capacity import parse_objective
from hotplate.bench.loadgen.keys import Uniform, Zipf
from hotplate.bench.measured import CHEAPER, FASTER, MIN_PAIRS, NO_DIFFERENCE, MeasuredChange
from hotplate.bench.options import StoresOptions, require_positive
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.quantities import parse_rate, parse_seconds
from hotplate.bench.report.report import ERRORS, WHILE_WRITTEN, Report, counted, series
from hotplate.bench.report.text import NOTHING, Footnotes, Summary, paragraphs
from hotplate.bench.stores import reference
from hotplate.bench.stores.results import Capacity, ComparisonResult, StoreResult
from hotplate.bench.stores.rounds import PUBLISHING_SHARE, ComparisonSettings, StoreComparison
from hotplate.bench.stores.setup import FILL_SHARE, Setup, own_stores, prepared_stores
from hotplate.bench.stores.table import Column, both_us, by_rounds, judged_columns, stored_item, table_lines, top_row
from hotplate.stores.cosmos.url import Throughput, parse
from hotplate.stores.urls import scheme_of

# What a budget is reckoned with: setting up and the report, and for each store and round reads without a service and a
# trial release.
BESIDES_S = 15.0
DIRECT_S = 0.3
TRIAL_S = 1.5

# To keep a budget reads of one store in a round are made shorter until so many rounds fit, but not than this.
ROUNDS = 20
SHORTEST_S = 0.5
ENCODINGS = ("json", "zstd")
CLOSED_LOOP = ", closed loop"

METHOD = """
The store without a service: one caller on one core, each call waiting for the one before. Through the service: hotplate
serve with one worker over one store, on one core; every user as likely as any other unless --zipf says otherwise.

Room a list takes and publishing are of a trial release of the same stored bytes, made durable and then dropped, by a
publisher of the lowest priority on the service's core. Encoding, compressing, making a container and dropping it are
not counted. Redis is as durable as it is set up to be.
"""
CAPACITY_METHOD = """
The rate is doubled until the objective breaks, then the gap is halved until it is 5 % wide. 1 % of popular lists
instead of users' own ones break it, too. What the limit was follows from whose core was full, or from refused reads. RU
are all that Cosmos DB's responses reported to the service: of lookups, and of its reads of the catalogue.
"""
COST = (
    "Cost of a billion reads at this rate: CPU at {price}; of Cosmos DB also the RU/s that the rate needs, provisioned "
    "manually, at the list price. It is no bill: memory and idle machines are not in it."
)
CHANCE = "A verdict is right 95 times in 100: of twenty, one may be wrong."
LOOPBACK = (
    "The stores were started on this machine: no network, no TLS, no replica, and a Redis that keeps nothing on disk. "
    "Give the URLs of real stores to see what a network adds."
)
ELSEWHERE = (
    "The stores were where their URLs say, and others may have used them meanwhile: what a server used is all that it "
    "used. Services and load generator were on this machine."
)
EMULATED = "An emulator's own speed says nothing about the service that it stands for, so none of its times are shown."


def compare_stores(options: StoresOptions, display: ProgressDisplay) -> Report:
    """Make the comparison. Raises BenchMisused for what makes no sense, BenchFailed and StoreError if it fails."""
    settings = parse_settings(options)
    count = "as many rounds as fit" if options.repeat is None else f"{options.repeat} rounds"
    rounds = f"{count}, of {settings.duration_s:.1f} s for each store"
    display.say(f"{rounds}: about {options.budget} in all{', then the highest rates' * options.find_max}")
    try:
        with ExitStack() as stack:
            urls = list(options.urls) or stack.enter_context(own_stores(options.emulator_ru))
            setup = stack.enter_context(prepared_stores(urls, options, display))
            publishing = not options.urls if options.publish is None else options.publish
            result = StoreComparison(setup, settings, display).run(publishing=publishing)
            return report(options, setup, result)
    except KeyboardInterrupt:
        nothing = ("nothing was measured yet",)
        return Report(kind="stores", configuration=options.to_json(), series=(), interrupted=True, failures=nothing)


def parse_settings(options: StoresOptions) -> ComparisonSettings:
    """Read the options. Raises BenchMisused for what makes no sense."""
    if len(options.urls) == 1 and not options.find_max:
        raise BenchMisused("a comparison takes two stores or more, or no URL at all for those that it starts itself")
    if len(set(options.urls)) < len(options.urls):
        raise BenchMisused("the same store is given twice")
    if options.encoding not in ENCODINGS:
        raise BenchMisused(f"an encoding is {' or '.join(ENCODINGS)}, not {options.encoding!r}")
    rate, duration_s = parse_rate(options.rate), parse_seconds(options.duration)
    require_positive({"--rate": rate, "--duration": duration_s, "--cpu-hour": options.cpu_hour})
    require_positive({"--repeat": options.repeat, "--users": options.users, "--emulator-ru": options.emulator_ru})
    require_positive({"--closed-users": options.closed_users})
    budget_s = parse_seconds(options.budget)
    return ComparisonSettings(
        options=options,
        rate=rate,
        duration_s=min(duration_s, max(SHORTEST_S, _fitting_s(options, budget_s))),
        ends_s=time.monotonic() + budget_s,
        think_s=parse_seconds(options.think),
        warmup_s=parse_seconds(options.warmup),
        draw=Uniform() if options.zipf is None else Zipf(options.zipf),
        objective=parse_objective(options.slo) if options.find_max else None,
    )


def _fitting_s(options: StoresOptions, budget_s: float) -> float:
    """Return how long the reads of one store may take in a round, so all rounds fit into a budget."""
    stores = len(options.urls) or 2 + (options.emulator_ru is not None)
    publishing = not options.urls if options.publish is None else options.publish
    besides_s = DIRECT_S * options.direct + TRIAL_S * publishing
    times = 1 + (options.closed_users is not None) + PUBLISHING_SHARE * publishing
    rounds_s = budget_s * (1 - FILL_SHARE * (not options.urls)) - BESIDES_S
    return (rounds_s / (stores * (options.repeat or ROUNDS)) - besides_s) / times


def provisioned(url: str) -> Throughput | None:
    """Return what the container of a store's live release may use; None of a store that is not metered."""
    return parse(url).throughput if scheme_of(url).startswith("cosmos") else None


def report(options: StoresOptions, setup: Setup, result: ComparisonResult) -> Report:
    """Sum a comparison up."""
    kept, left_out = _valid_rounds(result, _needed(options))
    columns = [_column(each, kept) for each in result.stores]
    shown = [each for each in columns if each.emulated is None]
    checked = answers.total(each.checked for each in result.stores)
    objective, footnotes = parse_objective(options.slo), Footnotes()
    unjudged, fewer = _unjudged(result, kept), _fewer(options, result, left_out)
    failed = len(result.stores[0].rounds) < _needed(options)  # before a verdict was possible; later it is a note
    broken = [f"{checked.wrong} of {checked.compared} compared answers were wrong"] if checked.wrong else []
    broken += [
        f"{each.name}: {sentence}"
        for each in columns
        if each.rounds
        for sentence in objective.errors_beyond(fmean(each.reads.values(ERRORS)))
    ]
    broken += [
        f"{each.name}: no rate was inside the objective {objective}"
        for each in columns
        if options.find_max and each.best is None
    ]
    lines = table_lines(columns, setup.manifest, options, footnotes, judged=not unjudged) if kept else []
    published = [reference.COLUMN] if options.reference else []
    return Report(
        kind="reference" if options.reference else "stores",
        configuration=options.to_json()
        | {
            "stores": [each.candidate.shown_url for each in result.stores],
            "release": setup.manifest.release,
            "encoding": setup.manifest.encoding,
            "lists": setup.lists,
            "users": f"{len(setup.users):,} requested, of {setup.manifest.counts.get('user', 0):,}",
        },
        series=tuple(
            each for one in shown for each in (one.closed, one.reads, one.while_written) if each and each.rounds
        ),
        interrupted=result.interrupted,
        failures=tuple(fewer) if failed else (),
        broken=tuple(broken),
        summary=(
            _summary(options, setup, result, columns, unjudged=unjudged, fewer=[] if failed else fewer)
            if kept
            else NOTHING
        ),
        extra={
            "comparison": {
                "stores": [*published, *(each.name for each in columns)],
                "heads": [*published, *(each.head for each in columns)],
                "lines": lines,
                "left_out": left_out,
                "notes": [*footnotes.lines, CHANCE, *([result.placement] if result.placement else [])],
                "method": _method(options, setup, emulated=len(shown) < len(columns)),
                "capacity": [_raw_capacity(each, found) for each in columns if (found := each.store.capacity)],
            },
            "checked": asdict(checked),
            "stores": [_raw_store(each) for each in result.stores],
        },
    )


def _needed(options: StoresOptions) -> int:
    """Return how many rounds are needed: those of a verdict, or fewer if fewer were requested."""
    return min(MIN_PAIRS, options.repeat or MIN_PAIRS)


def _unjudged(result: ComparisonResult, kept: Sequence[int]) -> str:
    """Say why there are no verdicts, of an invalid run or of too few rounds; empty if there are some."""
    if reasons := [reason for number, reason in result.invalid_rounds.items() if number in kept]:
        made = len(result.stores[0].rounds)
        return f"the run is invalid, with {made - len(result.invalid_rounds)} valid rounds of {made}: {reasons[0]}"
    if len(kept) < MIN_PAIRS:
        return f"{MIN_PAIRS} rounds or more show what is chance, and {len(kept)} count" + "s" * (len(kept) == 1)
    return ""


def _summary(
    options: StoresOptions,
    setup: Setup,
    result: ComparisonResult,
    columns: Sequence[Column],
    *,
    unjudged: str,
    fewer: Sequence[str],
) -> Summary:
    """Answer first: which store is faster and takes less CPU, then three figures of each."""
    footnotes, objective = Footnotes(), parse_objective(options.slo)
    percentile, item_bytes = objective.percentile, stored_item(setup.manifest)
    rows = tuple(top_row(column, percentile, options, item_bytes, footnotes) for column in columns)
    listed = load_prices().cpu_hour
    price = f"{listed.amount:g} USD an hour ({listed.basis}, {listed.date}; --cpu-hour replaces it)"
    given = f"{options.cpu_hour} USD an hour"
    notes = [f"{each[0].upper()}{each[1:]}." for each in fewer]
    notes += [*footnotes.lines, COST.format(price=price if options.cpu_hour is None else given)]
    notes += [
        f"{each.name}: the highest rate inside {objective} is {each.best[0].at:,.0f} requests/s "
        f"(limit: {found.limit}); it was {found.ending(emulated=each.emulated is not None)}."
        for each in columns
        if each.best and (found := each.store.capacity)
    ]
    needed = max((found.rounds for _, _, found in _differences(columns, percentile)), default=0)
    notes += [f"{result.more_time(needed)}."] if needed and not unjudged else []
    headings = percentile, "CPU a request", "cost of a billion reads"
    return Summary(_answer(columns, percentile, unjudged), headings, rows, tuple(notes), percentile)


def _differences(columns: Sequence[Column], percentile: str) -> list[tuple[str, str, MeasuredChange]]:
    """Compare the latency and the CPU of each store with those of the first, each as name, subject and finding."""
    first, *others = judged_columns(columns)
    found = list[tuple[str, str, MeasuredChange]]()
    for other in others:
        latency = first.reads.latency(percentile).compared_with(other.reads.latency(percentile))
        found.append((other.name, f"at {percentile}", latency))
        found.append((other.name, "in CPU", by_rounds(both_us)(first, other)))
    return found


def _answer(columns: Sequence[Column], percentile: str, unjudged: str) -> str:
    """Say in one sentence which store is faster and which takes less CPU, or why that is not known."""
    found = _differences(columns, percentile)
    if not found:
        return "There is one store whose speed could be measured, so there is nothing to compare."
    if unjudged:
        return f"It is not known which store is faster, because {unjudged}."
    first = judged_columns(columns)[0].name
    sentence = "; ".join(_part(finding, first, other, what) for other, what, finding in found)
    return f"{sentence[0].upper() if sentence.startswith('at ') else sentence[0]}{sentence[1:]}."


def _part(found: MeasuredChange, first: str, other: str, what: str) -> str:
    phrasing = CHEAPER if what == "in CPU" else FASTER
    if found.because:
        return f"{what} it is not known whether {first} or {other} is {phrasing.better}, because {found.because}"
    if not found.real:
        return f"{what} there is {NO_DIFFERENCE} ({found.range})"
    return found.sentence(first, other, phrasing._replace(better=f"{phrasing.better} {what}"))


def _fewer(options: StoresOptions, result: ComparisonResult, left_out: Sequence[str]) -> list[str]:
    """Say that the budget ended it before all rounds were made, and what would do; and how many count, if not all."""
    made, wanted, fewer = len(result.stores[0].rounds), options.repeat or MIN_PAIRS, list[str]()
    if not made:
        return ["no round was made"]
    if made < wanted and not result.interrupted:
        more = math.ceil(parse_seconds(options.budget) / 60 * (wanted + 1) / made)
        too_short = f"the budget of {options.budget}: --budget {more}m would do"
        fewer.append(f"only {made} of {wanted} rounds were made in {too_short}")
    if left_out and (valid := made - len(left_out)) < (options.repeat or made):
        than = f", fewer than --repeat {options.repeat}" if options.repeat else ""
        fewer.append(f"{valid} of {made} rounds count{than}, because {'; '.join(counted(left_out))}")
    return fewer


def _method(options: StoresOptions, setup: Setup, *, emulated: bool) -> list[str]:
    return [
        LOOPBACK if setup.started_here else ELSEWHERE,
        *([EMULATED] if emulated else []),
        *(paragraphs(reference.METHOD) if options.reference else []),
        *paragraphs(METHOD),
        *(paragraphs(CAPACITY_METHOD) if options.find_max else []),
    ]


def _valid_rounds(result: ComparisonResult, enough: int) -> tuple[list[int], list[str]]:
    """Choose the rounds that count: those valid for all stores, or all rounds where fewer than *enough* are.

    Also say of each of the others why it is left out.
    """
    made, invalid = range(len(result.stores[0].rounds)), result.invalid_rounds
    if len(made) - len(invalid) < enough:
        return list(made), []
    left_out = [f"round {number + 1} is left out: {reason}" for number, reason in invalid.items()]
    return [number for number in made if number not in invalid], left_out


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
        provisioned(store.candidate.url),
    )


def _raw_store(store: StoreResult) -> Mapping[str, Any]:
    """Return all that was measured of a store but its runs' histograms, which the series hold."""
    return {
        "name": store.candidate.name,
        "url": store.candidate.shown_url,
        "emulated": store.candidate.emulated,
        "memory_bytes": asdict(store.memory),
        "checked": asdict(store.checked),
        "rounds": [
            {
                "direct": {str(size): asdict(found) for size, found in each.lookups.items()},
                "service_cpu_us": each.reads.service_cpu_us,
                "server_cpu_us": each.reads.server_cpu_us,
                "ru_s": each.reads.ru_s,
                "invalid_reasons": each.invalid_reasons,
                "trial": each.publishing and asdict(each.publishing.trial),
            }
            for each in store.rounds
        ],
    }


def _raw_capacity(column: Column, found: Capacity) -> Mapping[str, Any]:
    points = [point.to_json() | {"service_share": run.service_share, "ru_s": run.ru_s} for point, run in found.attempts]
    named = {"name": column.name, "emulated": column.emulated}
    return named | {"highest": found.best and found.best[0].at, "limit": found.limit, "points": points}
