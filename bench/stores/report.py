"""The comparison of stores by latency, CPU and cost."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.errors import BenchMisused
from hotplate.bench.lists import popular_complaint
from hotplate.bench.loadgen.load import Uniform, Zipf
from hotplate.bench.options import StoresOptions, describe_latency, parse_rate, parse_seconds, require_positive
from hotplate.bench.outcome import NOTHING_MEASURED, SEE_BELOW, Outcome, interrupted_report
from hotplate.bench.planner.formulas import round_up
from hotplate.bench.planner.inputs import Inputs, InputSource, from_release, merge
from hotplate.bench.planner.plan import CapacityPlan, break_even_rps, calculate, usable_gb
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.statistics import (
    MIN_ROUNDS,
    TOO_FEW_ANSWERS,
    Figure,
    error_share,
    mean,
    percentile,
    popular_share,
)
from hotplate.bench.stores.recording import record
from hotplate.bench.stores.rounds import (
    FULL_CONNECTIONS,
    FULL_S,
    PATIENCE_S,
    SDK_RATE,
    Candidate,
    Measured,
    Rounds,
    RoundSettings,
    Setup,
    StoreRuns,
    by_redis_py,
    own_stores,
    prepared_stores,
    through_sdk,
)
from hotplate.bench.stores.verdicts import Contender, Ranking, describe_stalls, rank
from hotplate.report import Column, Curve, Plot, Report, Row, rounded
from hotplate.stores.connect import COSMOS, REDIS
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP
from hotplate.stores.manifest import Manifest
from hotplate.stores.urls import redacted, scheme_of

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
DECISIVE = "p99"
RATE = "requests/s and core"
CPU = "CPU a request"
COST = "cost of a billion reads"
UTILISATION = Inputs(users=1, peak_rps=1).ru_utilisation
BILLION = 1e9
# Of all rounds, if neither --budget nor --repeat is given.
BUDGET_S = 130.0
ASSUMED = "assumed"
ASSUMED_MARK = "*"
LATENCY_COLUMNS = tuple(Column(name, f"{name}\nms", "ms") for name in PERCENTILES)
COLUMNS = (
    *LATENCY_COLUMNS,
    Column(CPU, "CPU a\nread, µs", "µs"),
    Column(COST, "USD per\nbillion reads"),
    Column(COST, "paid for", noted=True),
)
METHOD = (
    "Open loop: latency counts from a request's due time. Percentiles are of all rounds together. CPU is that of the "
    f"service, one process without cache, at full load ({FULL_CONNECTIONS} connections in a closed loop); requests/s "
    "and core is 1,000,000 µs divided by it. Intervals of 95 % are by the jackknife over rounds."
)
COST_NOTE = (
    "Cost of a billion reads, at {rate:g} requests/s around the clock: CPU of the service; for Cosmos DB also manual "
    "RU/s in one region at 70 % use; for Redis also two nodes of the cheapest Azure Managed Redis for the rate and "
    "three releases, which could serve far more. List prices, without memory, storage and idle pods. The rate from "
    "which on Redis costs less is the planner's, for daily publishing: hotplate plan."
)
PATIENT = (
    f"The services wait {PATIENCE_S:g} s for a read, not 50 ms, so that slow reads count as slow. At an assumed "
    f"latency, {FULL_CONNECTIONS} connections may not fill a core: that CPU a request is an upper bound."
)
ELSE_DECIDES = "regions, failover and replica lag decide, too: docs/stores.md"


def compare_stores(options: StoresOptions, display: ProgressDisplay) -> Report:
    """Compare stores. Raises BenchMisused for invalid options, BenchFailed and StoreError."""
    settings = parse_settings(options)
    extent = f"{_budget_of(options):.0f} s of measuring" if options.repeat is None else f"{options.repeat} rounds"
    display.say(f"comparing {len(options.urls) or 'files, Redis and Cosmos DB'} stores: {extent}")
    try:
        if options.urls:
            return _measure(options.urls, (), options, settings, display)
        display.start("starting a folder, a Redis and an emulator of Cosmos DB")
        with own_stores(options.latency) as (urls, notes):
            return _measure(urls, notes, options, settings, display)
    except KeyboardInterrupt:
        return interrupted_report("stores")


def _measure(
    urls: Sequence[str],
    notes: Sequence[str],
    options: StoresOptions,
    settings: RoundSettings,
    display: ProgressDisplay,
) -> Report:
    """Compare the stores at *urls*, record latencies if that is wanted, and report with *notes*."""
    with prepared_stores(urls, options.users, display) as setup:
        measured = Rounds(setup, settings, display).run()
        if options.record is not None and not measured.interrupted:
            notes = (*notes, _record(setup, options.record, display))
        return report(options, setup, measured, notes)


def _record(setup: Setup, path: Path, display: ProgressDisplay) -> str:
    """Record the latencies of the only Cosmos DB to *path*; return a note."""
    (cosmos,) = (candidate for candidate in setup.candidates if candidate.metered)
    display.start(f"recording latencies of {cosmos.name}")
    trace = asyncio.run(record(cosmos.url, setup.users))
    trace.save(path)
    return f"The latencies of {trace.count:,} reads are in {path}; replay them by --latency {path}."


def parse_settings(options: StoresOptions) -> RoundSettings:
    """Return the settings of the rounds of a comparison: rate in requests/s, times in seconds, and their number.

    Raises BenchMisused for invalid options.
    """
    if len(set(options.urls)) < len(options.urls):
        raise BenchMisused("the same store is given twice")
    if options.record is not None and sum(scheme_of(url) in COSMOS for url in options.urls) != 1:
        raise BenchMisused("--record needs exactly one cosmos:// URL, whose latencies it keeps")
    parse_latency(options.latency)
    rate = parse_rate(options.rate)
    duration_s = parse_seconds(options.duration)
    require_positive({"--rate": rate, "--duration": duration_s, "--cpu-hour": options.cpu_hour})
    require_positive({"--repeat": options.repeat, "--users": options.users})
    return RoundSettings(
        rate=rate,
        duration_s=duration_s,
        warmup_s=parse_seconds(options.warmup),
        draw=Uniform() if options.zipf is None else Zipf(options.zipf),
        rounds=math.inf if options.repeat is None else options.repeat,
        budget_s=_budget_of(options),
        full_s=FULL_S,
    )


def _budget_of(options: StoresOptions) -> float:
    """Return the seconds for all rounds; unlimited if only their number is given."""
    if options.budget is not None:
        return parse_seconds(options.budget)
    return BUDGET_S if options.repeat is None else math.inf


class Cost(NamedTuple):
    """The cost of a billion reads, None if unknown, and a note on its main part, or why it is unknown."""

    amount: float | None
    note: str = ""


class Needs(NamedTuple):
    """RU/s for a rate of reads, and their monthly cost."""

    used_ru: float
    needed_ru: int
    month: float


def needs(read_ru: float, rate: float, prices: Prices) -> Needs:
    """Calculate the RU/s for *rate* reads a second of *read_ru*."""
    needed = max(MANUAL_MIN, round_up(rate * read_ru / UTILISATION, MANUAL_STEP))
    return Needs(rate * read_ru, needed, prices.ru_month(needed))


def plan_of(manifest: Manifest, name: str, rate: float, prices: Prices) -> CapacityPlan:
    """Plan a release at *rate* requests/s around the clock."""
    return calculate(
        merge([from_release(manifest, name), InputSource("--rate", {"peak_rps": rate})]), prices, load_charges()
    )


def cost_of(candidate: Candidate, rate: float, read_ru: float | None, cpu_us: float, prices: Prices) -> Cost:
    """Return the cost of a billion reads at *rate* requests/s: the service's CPU, and the monthly price of the store.

    read_ru  charge of a read of Cosmos DB; None for other stores
    cpu_us   the service's CPU a read, in µs

    Files cost nothing but CPU; the amount is None if no size of Redis holds the lists.
    """
    month = 0.0
    note = "CPU only"
    if candidate.metered and read_ru is not None:
        throughput = needs(read_ru, rate, prices)
        month = throughput.month
        note = f"{throughput.needed_ru:,} RU/s"
    elif scheme_of(candidate.url) in REDIS:
        planned = plan_of(candidate.manifest, candidate.name, rate, prices).figures
        if not planned["redis_cost"].unit:
            return Cost(None, "no size is enough")
        month = planned["redis_cost"].number
        note = f"{planned['redis_nodes'].number:g} x {planned['redis_size']}"

    cpu_hours = cpu_us * BILLION / 1e6 / 3600
    reads_a_month = rate * HOURS_A_MONTH * 3600
    return Cost(cpu_hours * prices.cpu_hour.amount + month / reads_a_month * BILLION, note)


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one store in a comparison; unknown if it has complaints.

    latencies  percentiles by name, such as `p50`, in µs
    cpu        the service's CPU a read, in µs
    cost       of a billion reads
    """

    store: StoreRuns
    latencies: dict[str, Figure]
    cpu: Figure
    cost: Cost
    currency: str

    @property
    def name(self) -> str:
        """Its name."""
        return self.store.candidate.name

    @property
    def scheme(self) -> str:
        """The scheme of its URL."""
        return scheme_of(self.store.candidate.url)

    @property
    def is_through_sdk(self) -> bool:
        """Whether azure-cosmos reads it."""
        return through_sdk(self.store.candidate.url)

    @property
    def by_another_client(self) -> bool:
        """Whether a vendor's client reads it, for comparison with ours."""
        return self.is_through_sdk or by_redis_py(self.store.candidate.url)

    @property
    def has_own_latency(self) -> bool:
        """Whether its latency is a real store's."""
        return not self.store.candidate.emulated

    @property
    def amount(self) -> float:
        """The cost of a billion reads; 0 if unknown."""
        return self.cost.amount or 0.0

    def latency_rows(self) -> Iterator[Row]:
        """Yield the rows of percentiles, marked if they are assumed."""
        for name, figure in self.latencies.items():
            row = figure.row(self.name, name, "us")
            if not self.has_own_latency and figure.value is not None:
                row = replace(row, low=None, high=None, note=ASSUMED, mark=ASSUMED_MARK)
            yield row

    def rows(self) -> Iterator[Row]:
        """Yield a store's figures: latencies, CPU, cost, shares of popular lists and errors, and request units.

        Popular lists are the fallback, answered instead of a user's own list. Only Cosmos DB has request units.
        """
        cpu_us = self.cpu.value
        reads_per_s_and_core = 1e6 / cpu_us if cpu_us else None
        results = self.store.results
        charge_ru = read_ru(self.store)
        yield from self.latency_rows()
        yield Row(self.name, RATE, "/s", reads_per_s_and_core, note=self.cpu.note, main=False)
        yield self.cpu.row(self.name, CPU, "us")
        yield Row(self.name, COST, self.currency, self.cost.amount, note=self.cost.note)
        yield popular_share(results).row(self.name, "popular lists", "share", main=False)
        yield error_share(results).row(self.name, "errors", "share", main=False)
        if charge_ru is not None:
            yield Row(self.name, "RU a read", "RU", charge_ru, main=False)


def read_ru(store: StoreRuns) -> float | None:
    """Return RU a read, including polls of the catalogue; None without Cosmos DB."""
    counts = [run.charged for run in store.runs if run.charged is not None]
    reads = sum(count.charged for count in counts)
    return sum(count.ru for count in counts) / reads if reads else None


def summarise(store: StoreRuns, rate: float, prices: Prices) -> Summary:
    """Return the figures of one store; all unknown if it was not measured, or did not serve what it should.

    The cost is that of *rate* reads a second.
    """
    if not store.sound:
        unknown = Figure(None, note=SEE_BELOW if store.runs else "not measured")
        return Summary(store, dict.fromkeys(PERCENTILES, unknown), unknown, Cost(None), prices.currency)
    latencies = {name: percentile(store.results, percent) for name, percent in PERCENTILES.items()}
    cpu = _cpu_of(store)
    cost = cost_of(store.candidate, rate, read_ru(store), cpu.value or 0.0, prices)
    return Summary(store, latencies, cpu, cost, prices.currency)


def _cpu_of(store: StoreRuns) -> Figure:
    """Return the CPU a request, in µs: at full load if allowed and sound, else at the timed rate."""
    full = [run.full for run in store.runs if run.full is not None]
    if len(full) == len(store.runs) and not popular_complaint([run.result for run in full]):
        return mean([run.cpu_us for run in full])
    return replace(mean([run.cpu_us for run in store.runs]), note=f"at {store.results[0].requested_rate:g}/s")


def report(options: StoresOptions, setup: Setup, measured: Measured, notes: Sequence[str] = ()) -> Report:
    """Report a comparison of stores: a line of figures for each, and what differs between them.

    Verdicts are given only if all stores were measured and served what they should. *notes* come before those on too
    few answers.
    """
    rate = parse_rate(options.rate)
    prices = _prices(options)
    stores = [summarise(store, rate, prices) for store in measured.stores]
    answer = ""
    verdicts: Mapping[str, str] = {}
    if not measured.rounds:
        answer = NOTHING_MEASURED
    elif all(store.sound for store in measured.stores):
        comparison = Comparison(stores, rate, prices)
        answer = comparison.answer
        verdicts = comparison.verdicts
    return Outcome(
        kind="stores",
        answer=answer,
        doubt=_doubt(stores),
        rows=list(chain.from_iterable(store.rows() for store in stores)),
        columns=COLUMNS,
        verdicts=verdicts,
        marks={ASSUMED_MARK: f"assumed: {_assumption(options)}; this machine adds the rest"},
        origins=_origins(options, stores, measured, prices),
        plots=plots(stores),
        notes=(*notes, *_too_few_answers(stores)),
        method=(*setup.notes, METHOD, PATIENT, COST_NOTE.format(rate=rate)),
        broken=list(chain.from_iterable(store.complaints for store in measured.stores)),
        failures=_failures(options, measured),
        interrupted=measured.interrupted,
        configuration=_configuration(options, measured),
    ).report()


def _prices(options: StoresOptions) -> Prices:
    """Return our prices, with that of a vCPU of `--cpu-hour` if it was given."""
    prices = load_prices()
    if options.cpu_hour is None:
        return prices
    return replace(prices, cpu_hour=replace(prices.cpu_hour, amount=options.cpu_hour))


def _configuration(options: StoresOptions, measured: Measured) -> dict[str, object]:
    candidates = [store.candidate for store in measured.stores]
    return options.to_json() | {
        "stores": [redacted(candidate.url) for candidate in candidates],
        "releases": [candidate.manifest.release for candidate in candidates],
    }


def _failures(options: StoresOptions, measured: Measured) -> list[str]:
    """Return what could not be measured; few rounds are one if nobody asked for few."""
    failures = [failure for store in measured.stores for failure in store.failures]
    rounds = measured.rounds
    if measured.interrupted:
        return failures
    if not rounds:
        return [*failures, "no round was made"]
    made = rounds + measured.disturbed
    if options.repeat is not None and made < options.repeat:
        failures.append(f"{made} of {options.repeat} rounds fit into --budget {options.budget}")
    if rounds < MIN_ROUNDS and options.repeat is None:
        failures.append(
            f"{rounds} rounds were made in {measured.took_s:.0f} s, and a verdict needs {MIN_ROUNDS}: this machine is "
            "too busy, or --budget too short"
        )
    return failures


def _doubt(stores: Sequence[Summary]) -> str:
    """Return why there is no verdict, if there is none."""
    complained = " and ".join(store.name for store in stores if store.store.complaints)
    return f"{complained} did not serve the users' own lists" if complained else SEE_BELOW


def _assumption(options: StoresOptions) -> str:
    if options.urls:
        return "Cosmos DB is emulated, not Azure's"
    return describe_latency(options.latency)


def _origins(
    options: StoresOptions, stores: Sequence[Summary], measured: Measured, prices: Prices
) -> Mapping[str, str]:
    """Return where the figures come from, in a sentence each for those that are measured, exact and priced.

    The last sentence names what else decides between stores.
    """
    rounds = f"{measured.rounds} rounds of {options.duration} at {options.rate}/s"
    if any(store.is_through_sdk for store in stores):
        rounds += f" (by SDK {SDK_RATE:g}/s)"
    if measured.disturbed:
        rounds += f", {measured.disturbed} disturbed ones left out"
    if not options.urls:
        rounds += "; one machine: no network, TLS or replica"
    origins = {"measured": rounds}

    charges_ru = {read_ru(store.store) for store in stores}
    texts = sorted({f"{charge_ru:.2f}" for charge_ru in charges_ru if charge_ru is not None}, key=float)
    if texts:
        origins["exact"] = f"request units: {' and '.join(texts)} a read"

    dates = f"RU/s {prices.ru_hour.date}"
    if prices.redis:
        dates += f", Redis {prices.redis[0].node_hour.date}"
    origins["priced"] = f"{dates}; {prices.currency}, list prices"
    origins["besides"] = ELSE_DECIDES
    return origins


def _too_few_answers(stores: Sequence[Summary]) -> Iterator[str]:
    """Yield a note on percentiles with too few answers; azure-cosmos is read slowly, so it never has a p99.9."""
    usual = [store for store in stores if not store.is_through_sdk]
    names = {name for store in usual for name, figure in store.latencies.items() if figure.note == TOO_FEW_ANSWERS}
    few = [name for name in PERCENTILES if name in names]
    if few:
        yield f"{' and '.join(few)}: too few answers; a longer --budget or more rounds (--repeat) give more."


class SpeedVerdict(NamedTuple):
    """The name of the store that is proven fastest, empty if none is, and the figures in words."""

    fastest: str
    figures: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdicts on sound stores, at *rate* reads a second."""

    stores: Sequence[Summary]
    rate: float
    prices: Prices

    @property
    def verdicts(self) -> dict[str, str]:
        """Sentences that rank the stores by p50, p99, CPU, cost and stalls, seconds with an answer after 100 ms.

        One is left out if fewer than two stores have the figure or, of stalls, if there were none. Emulated stores'
        latencies are assumed, and not compared.
        """
        lines = dict[str, str]()
        for name in ("p50", DECISIVE):
            if ranking := _rank_latency(name, self._timed):
                lines[name] = ranking.describe("fastest")
        if ranking := rank([Contender(store.name, store.cpu) for store in self.stores]):
            lines["CPU"] = ranking.describe("least")
        if len(self._by_cost) > 1:
            lines["cost"] = self._costs()
        if stalled := describe_stalls([(store.name, store.store.results) for store in self._timed]):
            lines["stalls"] = stalled
        return lines

    @property
    def answer(self) -> str:
        """The fastest and the cheapest store, and the rate from which on Redis costs less than Cosmos DB."""
        fastest, speed = self._compare_speed()
        cheapest = self._by_cost[0].name if len(self._by_cost) > 1 else ""
        if fastest and fastest == cheapest:
            parts = [f"Fastest and cheapest: {fastest}{self._where(fastest)} ({speed})"]
        else:
            parts = [f"Fastest: {fastest}{self._where(fastest)} ({speed})" if fastest else speed]
            parts += [f"Cheapest: {cheapest}{self._where(cheapest)}"] if cheapest else []
        if shared := self._shared():
            parts.append(f"If servers share a store: {shared}")
        return f"{'. '.join(part[:1].upper() + part[1:] for part in parts)}."

    @property
    def _timed(self) -> list[Summary]:
        """The stores with a latency of their own, and not an emulator's."""
        return [store for store in self.stores if store.has_own_latency]

    @property
    def _by_cost(self) -> list[Summary]:
        """The stores whose cost is known, in ascending order."""
        return sorted((store for store in self.stores if store.cost.amount is not None), key=lambda store: store.amount)

    def _costs(self) -> str:
        """Return the line on cost: the cheapest store, the others' multiples, and what the Redis holds."""
        least, *dearer = self._by_cost
        times = ", ".join(f"{store.name} {rounded(store.amount / (least.amount or 1.0))} times" for store in dearer)
        planned = self._redis_plan()
        redis = f"; Redis for up to {rounded(usable_gb(planned))} GB in all" if planned else ""
        return f"{least.name} least; {times}{redis}"

    def _where(self, name: str) -> str:
        """Return where a store must be, if it is files and there are others."""
        is_local = any(store.name == name and store.scheme == "file" for store in self.stores)
        return " on each server" if is_local and len(self.stores) > 1 else ""

    def _compare_speed(self) -> SpeedVerdict:
        """Compare the latencies of stores that our own clients read, without emulated ones, which are assumed.

        A store is the fastest if it is proven faster than each of the others, at p99 or else at p50.
        """
        timed = [store for store in self._timed if not store.by_another_client]
        if not timed:
            return SpeedVerdict("", "Latencies are assumed")
        if len(timed) == 1:
            return SpeedVerdict("", f"{timed[0].name}: {_latencies(timed[0])}")

        for name in (DECISIVE, "p50"):
            ranking = _rank_latency(name, timed)
            if ranking and not ranking.alike:
                fastest, *slower = sorted(timed, key=lambda store: store.latencies[name].value or 0.0)
                figures = ", ".join(f"{store.name} {_ms(store.latencies[name])}" for store in slower)
                limit = "" if name == DECISIVE else f"; at {DECISIVE} no difference is proven"
                return SpeedVerdict(fastest.name, f"{name} {_ms(fastest.latencies[name])} ms, {figures}{limit}")

        for name in (DECISIVE, "p50"):
            if all(store.latencies[name].value is not None for store in timed):
                figures = ", ".join(f"{store.name} {_ms(store.latencies[name])} ms" for store in timed)
                return SpeedVerdict("", f"No difference in speed is proven ({name}: {figures})")
        return SpeedVerdict("", "No difference in speed is proven: too few answers")

    def _redis_plan(self) -> CapacityPlan | None:
        """Return the plan of the Redis, if there is one that is large enough, beside a Cosmos DB."""
        redis = next((store for store in self.stores if store.scheme in REDIS), None)
        has_cosmos = any(store.store.candidate.metered for store in self.stores)
        if redis is None or redis.cost.amount is None or not has_cosmos:
            return None
        return plan_of(redis.store.candidate.manifest, redis.name, self.rate, self.prices)

    def _shared(self) -> str:
        """Return the cheaper of Redis and Cosmos DB, for servers that share a store; empty if both are not there."""
        planned = self._redis_plan()
        if planned is None:
            return ""
        from_rps = break_even_rps(planned)
        if from_rps is None:
            return "Cosmos DB, cheaper than Redis at any rate"
        if not from_rps:
            return "Redis, cheaper than Cosmos DB at any rate"
        return f"Redis, cheaper than Cosmos DB from {rounded(from_rps)} reads/s on"


def _rank_latency(name: str, stores: Sequence[Summary]) -> Ranking | None:
    return rank([Contender(store.name, store.latencies[name]) for store in stores])


def _ms(figure: Figure) -> str:
    return rounded((figure.value or 0.0) / 1000)


def _latencies(store: Summary) -> str:
    known = {name: figure for name, figure in store.latencies.items() if figure.value is not None}
    return ", ".join(f"{name} {_ms(figure)} ms" for name, figure in known.items())


def plots(stores: Sequence[Summary]) -> list[Plot]:
    """Plot each store's p99 by round, if the table has one; no plot if none has."""
    curves = list[Curve]()
    for store in stores:
        figure = store.latencies[DECISIVE]
        if figure.value is not None and figure.values:
            rounds = tuple(float(number) for number in range(1, len(figure.values) + 1))
            curves.append(Curve(store.name, rounds, tuple(figure.values)))
    if not curves:
        return []
    plot = Plot(
        title=f"{DECISIVE} of each round",
        x="round",
        y=DECISIVE,
        curves=tuple(curves),
        y_unit="us",
        log_y=True,
        points=True,
        caption="Of an emulated store, the latency is an assumption.",
    )
    return [plot]
