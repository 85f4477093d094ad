"""The comparison of stores by latency, CPU and cost."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.errors import BenchMisused
from hotplate.bench.lists import popular_complaint, popular_counts
from hotplate.bench.loadgen.load import Uniform, Zipf
from hotplate.bench.options import StoresOptions, describe_latency, parse_rate, parse_seconds, require_positive
from hotplate.bench.planner.formulas import round_up
from hotplate.bench.planner.inputs import Inputs, InputSource, from_release, merge
from hotplate.bench.planner.plan import CapacityPlan, break_even_rps, calculate, usable_gb
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.process import describe
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.statistics import MIN_ROUNDS, TOO_FEW_ANSWERS, Figure, mean, percentile, share
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
RATE, CPU, COST = "requests/s and core", "CPU a request", "cost of a billion reads"
UTILISATION = Inputs(users=1, peak_rps=1).ru_utilisation
BILLION = 1e9
ASSUMED, ASSUMED_MARK = "assumed", "*"
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
NO_VERDICT = "There is no verdict: {}."


def compare_stores(options: StoresOptions, display: ProgressDisplay) -> Report:
    """Compare stores. Raises BenchMisused for invalid options, BenchFailed and StoreError."""
    settings = parse_settings(options)
    display.say(f"comparing {len(options.urls) or 'files, Redis and Cosmos DB'} stores: {options.budget} of measuring")
    try:
        if options.urls:
            return _measure(options.urls, (), options, settings, display)
        display.start("starting a folder, a Redis and an emulator of Cosmos DB")
        with own_stores(options.latency) as (urls, notes):
            return _measure(urls, notes, options, settings, display)
    except KeyboardInterrupt:
        return Report(kind="stores", sentence="Nothing was measured.", interrupted=True, machine=describe())


def _measure(
    urls: Sequence[str],
    notes: Sequence[str],
    options: StoresOptions,
    settings: RoundSettings,
    display: ProgressDisplay,
) -> Report:
    with prepared_stores(urls, options.users, display) as setup:
        measured = Rounds(setup, settings, display).run()
        if options.record is not None and not measured.interrupted:
            notes = (*notes, _record(setup, options.record, display))
        return report(options, setup, measured, notes)


def _record(setup: Setup, path: Path, display: ProgressDisplay) -> str:
    (cosmos,) = (each for each in setup.candidates if each.metered)
    display.start(f"recording latencies of {cosmos.name}")
    trace = asyncio.run(record(cosmos.url, setup.users))
    trace.save(path)
    return f"The latencies of {trace.count:,} reads are in {path}; replay them by --latency {path}."


def parse_settings(options: StoresOptions) -> RoundSettings:
    """Parse the options. Raises BenchMisused."""
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
        rounds=float("inf") if options.repeat is None else options.repeat,
        budget_s=parse_seconds(options.budget),
        full_s=FULL_S,
    )


class Cost(NamedTuple):
    """The cost of a billion reads, and its main part; None if unknown."""

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
    return Needs(rate * read_ru, needed, prices.ru_hours(needed * HOURS_A_MONTH))


def plan_of(manifest: Manifest, name: str, rate: float, prices: Prices) -> CapacityPlan:
    """Plan a release at *rate* requests/s around the clock."""
    return calculate(
        merge([from_release(manifest, name), InputSource("--rate", {"peak_rps": rate})]), prices, load_charges()
    )


def cost_of(one: Candidate, rate: float, read_ru: float | None, cpu_us: float, prices: Prices) -> Cost:
    """Return the cost of a billion reads at *rate* requests/s."""
    month, note = 0.0, "CPU only"
    if one.metered and read_ru is not None:
        found = needs(read_ru, rate, prices)
        month = found.month
        note = f"{found.needed_ru:,} RU/s"
    elif scheme_of(one.url) in REDIS:
        planned = plan_of(one.manifest, one.name, rate, prices).figures
        if not planned["redis_cost"].unit:
            return Cost(None, "no size is enough")
        nodes = planned["redis_nodes"].number
        month = planned["redis_cost"].number
        note = f"{nodes:g} x {planned['redis_size']}"
    cpu = cpu_us * BILLION / 1e6 / 3600 * prices.cpu_hour.amount
    return Cost(cpu + month / (rate * HOURS_A_MONTH * 3600) * BILLION, note)


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one store; unknown if it has complaints."""

    store: StoreRuns
    latencies: dict[str, Figure]
    cpu: Figure
    cost: float | None
    cost_note: str
    currency: str

    @property
    def name(self) -> str:
        """Its name."""
        return self.store.candidate.name

    @property
    def by_another_client(self) -> bool:
        """Whether a vendor's client reads it, for comparison with ours."""
        url = self.store.candidate.url
        return through_sdk(url) or by_redis_py(url)

    @property
    def has_own_latency(self) -> bool:
        """Whether its latency is a real store's."""
        return not self.store.candidate.emulated

    def latency_rows(self) -> Iterator[Row]:
        """Yield the rows of percentiles, marked if they are assumed."""
        for name, figure in self.latencies.items():
            row = figure.row(self.name, name, "us")
            is_assumed = not self.has_own_latency and figure.value is not None
            yield replace(row, low=None, high=None, note=ASSUMED, mark=ASSUMED_MARK) if is_assumed else row

    def rows(self) -> Iterator[Row]:
        """Yield report rows."""
        cpu_us = self.cpu.value
        yield from self.latency_rows()
        yield Row(self.name, RATE, "/s", 1e6 / cpu_us if cpu_us else None, note=self.cpu.note, main=False)
        yield self.cpu.row(self.name, CPU, "us")
        yield Row(self.name, COST, self.currency, self.cost, note=self.cost_note)
        results = self.store.results
        counts = [popular_counts(each) for each in results]
        popular = share([one for one, _ in counts], [of for _, of in counts])
        errors = share([each.due - each.ok for each in results], [each.due for each in results])
        yield popular.row(self.name, "popular lists", "share", main=False)
        yield errors.row(self.name, "errors", "share", main=False)
        if (charge_ru := read_ru(self.store)) is not None:
            yield Row(self.name, "RU a read", "RU", charge_ru, main=False)


def read_ru(store: StoreRuns) -> float | None:
    """Return RU a read, including polls of the catalogue; None without Cosmos DB."""
    charged = [run.charged for run in store.runs if run.charged is not None]
    reads = sum(each.charged for each in charged)
    return sum(each.ru for each in charged) / reads if reads else None


def summarise(store: StoreRuns, rate: float, prices: Prices) -> Summary:
    """Summarise the runs of one store."""
    if not store.sound:
        unknown = Figure(None, note="not measured" if not store.runs else "see below")
        return Summary(store, dict.fromkeys(PERCENTILES, unknown), unknown, None, "", prices.currency)
    latencies = {name: percentile(store.results, percent) for name, percent in PERCENTILES.items()}
    cpu = _cpu_of(store)
    cost = cost_of(store.candidate, rate, read_ru(store), cpu.value or 0.0, prices)
    return Summary(store, latencies, cpu, cost.amount, cost.note, prices.currency)


def _cpu_of(store: StoreRuns) -> Figure:
    # At full load if allowed and sound, else at the timed rate.
    full = [run.full for run in store.runs if run.full is not None]
    if len(full) == len(store.runs) and not popular_complaint([run.result for run in full]):
        return mean([run.cpu_us for run in full])
    return replace(mean([run.cpu_us for run in store.runs]), note=f"at {store.results[0].requested_rate:g}/s")


def report(options: StoresOptions, setup: Setup, measured: Measured, notes: Sequence[str] = ()) -> Report:
    """Report a comparison."""
    prices = load_prices()
    rate = parse_rate(options.rate)
    if options.cpu_hour is not None:
        prices = replace(prices, cpu_hour=replace(prices.cpu_hour, amount=options.cpu_hour))
    stores = [summarise(store, rate, prices) for store in measured.stores]
    rounds = len(measured.stores[0].runs)
    failures = _failures(options, measured, rounds)
    is_sound = rounds > 0 and all(each.sound for each in measured.stores)
    comparison = Comparison(stores, rate, prices)
    return Report(
        kind="stores",
        sentence=comparison.answer if is_sound else _no_answer(stores, rounds),
        rows=tuple(row for each in stores for row in each.rows()),
        columns=COLUMNS,
        marks={ASSUMED_MARK: f"assumed: {_assumption(options)}; this machine adds the rest"},
        verdicts=comparison.verdicts if is_sound else {},
        origins=_origins(options, stores, measured, prices),
        plots=tuple(plots(stores)),
        notes=(*notes, *_too_few_answers(stores)),
        method=(*setup.notes, METHOD, PATIENT, COST_NOTE.format(rate=rate)),
        broken=tuple(complaint for store in measured.stores for complaint in store.complaints),
        failures=tuple(failures),
        interrupted=measured.interrupted,
        configuration=options.to_json()
        | {
            "stores": [redacted(each.candidate.url) for each in measured.stores],
            "releases": [each.candidate.manifest.release for each in measured.stores],
        },
        machine=describe(),
    )


def _failures(options: StoresOptions, measured: Measured, rounds: int) -> list[str]:
    failures = [failure for store in measured.stores for failure in store.failures]
    if measured.interrupted:
        return failures
    if not rounds:
        return [*failures, "no round was made"]
    if rounds < MIN_ROUNDS and options.repeat is None:
        failures.append(
            f"{rounds} rounds were made in {measured.took_s:.0f} s, and a verdict needs {MIN_ROUNDS}: this machine is "
            "too busy, or --budget too short"
        )
    return failures


def _no_answer(stores: Sequence[Summary], rounds: int) -> str:
    if not rounds:
        return "Nothing was measured."
    complained = " and ".join(each.name for each in stores if each.store.complaints)
    return NO_VERDICT.format(f"{complained} did not serve the users' own lists" if complained else "see below")


def _assumption(options: StoresOptions) -> str:
    if options.urls:
        return "Cosmos DB is emulated, not Azure's"
    return describe_latency(options.latency)


def _origins(
    options: StoresOptions, stores: Sequence[Summary], measured: Measured, prices: Prices
) -> Mapping[str, str]:
    rounds = len(measured.stores[0].runs)
    made = f"{rounds} rounds of {options.duration} at {options.rate}/s"
    slower = f" (by SDK {SDK_RATE:g}/s)" * any(through_sdk(each.store.candidate.url) for each in stores)
    left_out = f", {measured.disturbed} disturbed ones left out" if measured.disturbed else ""
    where = "" if options.urls else "; one machine: no network, TLS or replica"
    origins = {"measured": f"{made}{slower}{left_out}{where}"}
    charges = {round(charge, 2) for each in stores if (charge := read_ru(each.store)) is not None}
    if charges:
        origins["exact"] = f"request units: {' and '.join(f'{charge:.2f}' for charge in sorted(charges))} a read"
    redis = next((f", Redis {size.hour.date}" for size in prices.redis), "")
    origins["priced"] = f"RU/s {prices.ru_hour.date}{redis}; {prices.currency}, list prices"
    origins["besides"] = ELSE_DECIDES
    return origins


def _too_few_answers(stores: Sequence[Summary]) -> Iterator[str]:
    # azure-cosmos is read slowly, so it never has a p99.9.
    usual = [store for store in stores if not through_sdk(store.store.candidate.url)]
    names = {name for store in usual for name, figure in store.latencies.items() if figure.note == TOO_FEW_ANSWERS}
    few = [name for name in PERCENTILES if name in names]
    if few:
        yield f"{' and '.join(few)}: too few answers; a longer --budget gives more."


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdicts on sound stores, at *rate* reads a second."""

    stores: Sequence[Summary]
    rate: float
    prices: Prices

    @property
    def verdicts(self) -> dict[str, str]:
        """Lines on p50, p99, CPU, cost and stalls."""
        lines = dict[str, str]()
        for name in ("p50", DECISIVE):
            if ranking := self._by_latency(name):
                lines[name] = ranking.describe("fastest")
        if ranking := rank([Contender(each.name, each.cpu) for each in self.stores]):
            lines["CPU"] = ranking.describe("least")
        if len(self._by_cost) > 1:
            lines["cost"] = self._costs()
        timed = [(each.name, each.store.results) for each in self.stores if each.has_own_latency]
        if stalled := describe_stalls(timed):
            lines["stalls"] = stalled
        return lines

    @property
    def answer(self) -> str:
        """The fastest and the cheapest store, and the rate from which on Redis costs less than Cosmos DB."""
        fastest, speed = self._speed()
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
    def _by_cost(self) -> list[Summary]:
        return sorted((each for each in self.stores if each.cost is not None), key=lambda each: each.cost or 0.0)

    def _costs(self) -> str:
        least, *others = self._by_cost
        times = ", ".join(f"{each.name} {rounded((each.cost or 0.0) / (least.cost or 1.0))} times" for each in others)
        planned = self._redis_plan()
        redis = f"; Redis for up to {rounded(usable_gb(planned))} GB in all" if planned else ""
        return f"{least.name} least; {times}{redis}"

    def _by_latency(self, name: str, stores: Sequence[Summary] | None = None) -> Ranking | None:
        timed = [each for each in stores or self.stores if each.has_own_latency]
        return rank([Contender(each.name, each.latencies[name]) for each in timed])

    def _where(self, name: str) -> str:
        is_local = any(each.name == name and scheme_of(each.store.candidate.url) == "file" for each in self.stores)
        return " on each server" if is_local and len(self.stores) > 1 else ""

    def _speed(self) -> tuple[str, str]:
        """Return the store that is proven fastest by our own clients, if any, and its figures."""
        timed = [each for each in self.stores if each.has_own_latency and not each.by_another_client]
        if not timed:
            return "", "Latencies are assumed"
        if len(timed) == 1:
            return "", f"{timed[0].name}: {_latencies(timed[0])}"
        for name in (DECISIVE, "p50"):
            ranking = self._by_latency(name, timed)
            if ranking and not ranking.alike:
                least, *others = sorted(timed, key=lambda each: each.latencies[name].value or 0.0)
                slower = ", ".join(f"{each.name} {_ms(each.latencies[name])}" for each in others)
                alike = "" if name == DECISIVE else f"; at {DECISIVE} no difference is proven"
                return least.name, f"{name} {_ms(least.latencies[name])} ms, {slower}{alike}"
        figures = ", ".join(f"{each.name} {_ms(each.latencies[DECISIVE])} ms" for each in timed)
        return "", f"No difference in speed is proven ({DECISIVE}: {figures})"

    def _redis_plan(self) -> CapacityPlan | None:
        """Return the plan of the Redis, if there is one that is large enough, beside a Cosmos DB."""
        redis = next((each for each in self.stores if scheme_of(each.store.candidate.url) in REDIS), None)
        if redis is None or redis.cost is None or not any(each.store.candidate.metered for each in self.stores):
            return None
        return plan_of(redis.store.candidate.manifest, redis.name, self.rate, self.prices)

    def _shared(self) -> str:
        planned = self._redis_plan()
        if planned is None:
            return ""
        from_rps = break_even_rps(planned)
        if from_rps is None:
            return "Cosmos DB, cheaper than Redis at any rate"
        if not from_rps:
            return "Redis, cheaper than Cosmos DB at any rate"
        return f"Redis, cheaper than Cosmos DB from {rounded(from_rps)} reads/s on"


def _ms(figure: Figure) -> str:
    return rounded((figure.value or 0.0) / 1000)


def _latencies(store: Summary) -> str:
    known = {name: figure for name, figure in store.latencies.items() if figure.value is not None}
    return ", ".join(f"{name} {_ms(figure)} ms" for name, figure in known.items())


def plots(stores: Sequence[Summary]) -> list[Plot]:
    """Plot each store's p99 by round, if the table has one."""
    curves = tuple(
        Curve(each.name, tuple(float(n) for n in range(1, len(figure.values) + 1)), tuple(figure.values))
        for each in stores
        if (figure := each.latencies[DECISIVE]).value is not None and figure.values
    )
    caption = "Of an emulated store, the latency is an assumption."
    plot = Plot(
        f"{DECISIVE} of each round", "round", DECISIVE, curves, y_unit="us", log_y=True, points=True, caption=caption
    )
    return [plot] if curves else []
