"""The comparison of stores by latency, CPU and cost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.errors import BenchMisused
from hotplate.bench.lists import popular_complaint, popular_counts
from hotplate.bench.loadgen.load import Uniform, Zipf
from hotplate.bench.options import StoresOptions, parse_rate, parse_seconds, require_positive
from hotplate.bench.planner.figures import round_up
from hotplate.bench.planner.inputs import Inputs, InputSource, from_release, merge
from hotplate.bench.planner.plan import calculate
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.process import describe
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.statistics import TOO_FEW_ANSWERS, Figure, mean, percentile, ratio, share
from hotplate.bench.stores.rounds import (
    EMULATED_BUDGET_S,
    FULL_CONNECTIONS,
    FULL_S,
    SDK_RATE,
    Candidate,
    Measured,
    Rounds,
    RoundSettings,
    Setup,
    StoreRuns,
    own_stores,
    prepared_stores,
    through_sdk,
)
from hotplate.report import Curve, Plot, Report, Row, format_value
from hotplate.stores.connect import REDIS
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP
from hotplate.stores.urls import redacted, scheme_of

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
DECISIVE = "p99"
RATE, CPU, COST = "requests/s and core", "CPU a request", "cost of a billion reads"
UTILISATION = Inputs(users=1, peak_rps=1).ru_utilisation
BILLION = 1e9
ASSUMED = "assumed"
EMULATED = (
    "EMULATED: Cosmos DB ran on this machine, and {latency} is an assumption; its request units and cost are exact"
)
LOOPBACK = "The stores ran on this machine: no network, no TLS, no replica."
METHOD = (
    "Open loop: latency counts from a request's due time. Percentiles pool all rounds. CPU is that of the service, one "
    f"process without cache, at full load ({FULL_CONNECTIONS} connections in a closed loop); requests/s and core is "
    "1,000,000 µs divided by it."
)
COST_NOTE = (
    "Cost of a billion reads, at {rate:g} requests/s around the clock: CPU of the service; for Cosmos DB also manual "
    "RU/s in one region at 70 % use; for Redis also two nodes of the cheapest Azure Managed Redis for the rate and "
    "three releases, which could serve far more. List prices, without memory, storage and idle pods."
)
PATIENT = (
    f"Services of emulated stores wait {EMULATED_BUDGET_S:g} s for a read, not 50 ms: they share this machine. At the "
    f"assumed latency, {FULL_CONNECTIONS} connections may not fill a core: their CPU a request is an upper bound."
)


def compare_stores(options: StoresOptions, display: ProgressDisplay) -> Report:
    """Compare stores. Raises BenchMisused for invalid options, BenchFailed and StoreError."""
    settings = parse_settings(options)
    display.say(f"comparing {len(options.urls) or 'files, Redis and Cosmos DB'} stores: at most {options.budget}")
    try:
        if options.urls:
            return _measure(options.urls, (), options, settings, display)
        display.start("starting a folder, a Redis and an emulator of Cosmos DB")
        with own_stores(options.latency) as (urls, notes):
            return _measure(urls, (*notes, LOOPBACK), options, settings, display)
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
        return report(options, setup, Rounds(setup, settings, display).run(), notes)


def parse_settings(options: StoresOptions) -> RoundSettings:
    """Parse the options. Raises BenchMisused."""
    if len(set(options.urls)) < len(options.urls):
        raise BenchMisused("the same store is given twice")
    parse_latency(options.latency)
    rate, duration_s = parse_rate(options.rate), parse_seconds(options.duration)
    require_positive({"--rate": rate, "--duration": duration_s, "--cpu-hour": options.cpu_hour})
    require_positive({"--repeat": options.repeat, "--users": options.users})
    return RoundSettings(
        rate=rate,
        duration_s=duration_s,
        warmup_s=parse_seconds(options.warmup),
        draw=Uniform() if options.zipf is None else Zipf(options.zipf),
        rounds=float("inf") if options.repeat is None else options.repeat,
        ends_s=time.monotonic() + parse_seconds(options.budget),
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


def cost_of(one: Candidate, rate: float, read_ru: float | None, cpu_us: float, prices: Prices) -> Cost:
    """Return the cost of a billion reads at *rate* requests/s."""
    month, note = 0.0, "CPU"
    if one.metered and read_ru is not None:
        found = needs(read_ru, rate, prices)
        month, note = found.month, f"{found.needed_ru:,} RU/s"
    elif scheme_of(one.url) in REDIS:
        sourced = merge([from_release(one.manifest, one.name), InputSource("--rate", {"peak_rps": rate})])
        planned = calculate(sourced, prices, load_charges()).figures
        if not planned["redis_cost"].unit:
            return Cost(None, "no size is enough")
        month, note = planned["redis_cost"].number, f"{planned['redis_nodes']} {planned['redis_size']}"
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
    def has_own_latency(self) -> bool:
        """Whether its latency is a real store's."""
        return not self.store.candidate.emulated

    def rows(self) -> list[Row]:
        """Return report rows."""
        cpu_us, note = self.cpu.value, self.cpu.note
        rows = [figure.row(self.name, name, "us") for name, figure in self.latencies.items()]
        rows.append(Row(self.name, RATE, "/s", 1e6 / cpu_us if cpu_us else None, note=note))
        rows.append(self.cpu.row(self.name, CPU, "us"))
        rows.append(Row(self.name, COST, self.currency, self.cost, note=self.cost_note))
        results = self.store.results
        counts = [popular_counts(each) for each in results]
        popular = share([one for one, _ in counts], [of for _, of in counts])
        errors = share([each.due - each.ok for each in results], [each.due for each in results])
        rows.append(popular.row(self.name, "popular lists", "share", main=False))
        rows.append(errors.row(self.name, "errors", "share", main=False))
        if (charge_ru := read_ru(self.store)) is not None:
            rows.append(Row(self.name, "RU a read", "RU", charge_ru, main=False))
        return rows


def read_ru(store: StoreRuns) -> float | None:
    """Return RU a read, including polls of the catalogue; None without Cosmos DB."""
    charged = [run.charged for run in store.runs if run.charged is not None]
    reads = sum(each.charged for each in charged)
    return sum(each.ru for each in charged) / reads if reads else None


def summarise(store: StoreRuns, rate: float, prices: Prices) -> Summary:
    """Summarise the runs of one store."""
    if not store.sound:
        unknown = Figure(None, note="not measured" if not store.runs else "see below")
        return Summary(store, dict.fromkeys(PERCENTILES, unknown), unknown, None, unknown.note, prices.currency)
    latencies = {name: percentile(store.results, percent) for name, percent in PERCENTILES.items()}
    if store.candidate.emulated:
        latencies = {
            name: Figure(found.value, found.values, note=ASSUMED if found.value is not None else found.note)
            for name, found in latencies.items()
        }
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
    prices, rate = load_prices(), parse_rate(options.rate)
    if options.cpu_hour is not None:
        prices = replace(prices, cpu_hour=replace(prices.cpu_hour, amount=options.cpu_hour))
    stores = [summarise(store, rate, prices) for store in measured.stores]
    broken = [complaint for store in measured.stores for complaint in store.complaints]
    failures = [failure for store in measured.stores for failure in store.failures]
    rounds = len(measured.stores[0].runs)
    complained = " and ".join(each.name for each in stores if each.store.complaints)
    why = f"{complained} did not serve the users' own lists" if broken else "see below"
    sentence = "Nothing was measured." if not rounds else f"There is no verdict: {why}."
    if all(each.sound for each in measured.stores):
        sentence = answer(stores)
    emulated = any(each.candidate.emulated for each in measured.stores)
    return Report(
        kind="stores",
        sentence=sentence,
        rows=tuple(row for each in stores for row in each.rows()),
        head=EMULATED.format(latency=f"the latency {options.latency}" if not options.urls else "its latency")
        * emulated,
        plots=tuple(plots(stores)),
        notes=(*notes, *setup.notes, *_notes(options, stores, rounds), COST_NOTE.format(rate=rate), METHOD),
        broken=tuple(broken),
        failures=tuple(failures) if rounds or measured.interrupted else ("no round was made",),
        interrupted=measured.interrupted,
        configuration=options.to_json()
        | {
            "stores": [redacted(each.candidate.url) for each in measured.stores],
            "releases": [each.candidate.manifest.release for each in measured.stores],
        },
        machine=describe(),
    )


def _notes(options: StoresOptions, stores: Sequence[Summary], rounds: int) -> list[str]:
    made = f"{rounds} rounds of {options.duration} for each store, at {options.rate} requests/s"
    slower = f"; through the SDK at {SDK_RATE:g}" * any(through_sdk(each.store.candidate.url) for each in stores)
    found = [f"{made}{slower}.", *([PATIENT] if any(not each.has_own_latency for each in stores) else [])]
    for each in stores:
        few = [name for name, figure in each.latencies.items() if figure.note == TOO_FEW_ANSWERS]
        if few:
            got = sum(result.ok for result in each.store.results)
            found.append(
                f"{each.name}: {got:,} answers are not enough for {' and '.join(few)}; a longer --budget helps."
            )
    return found


Value = Callable[[Summary], Figure]


def compared(first: Summary, other: Summary, value: Value) -> Figure:
    """Return *other* / *first* over paired rounds."""
    return ratio(value(first).values, value(other).values)


def is_real(found: Figure, first: Figure, other: Figure) -> bool:
    """Return whether interval and pooled values show the same difference."""
    if found.low is None or found.high is None or first.value is None or other.value is None:
        return False
    return (found.low > 1 and other.value > first.value) or (found.high < 1 and other.value < first.value)


def _latency(each: Summary) -> Figure:
    return each.latencies[DECISIVE]


def answer(stores: Sequence[Summary]) -> str:
    """Name the fastest store, the least CPU, and costs."""
    timed = [each for each in stores if each.has_own_latency]
    parts = [_least(timed, _latency, f"at {DECISIVE}", "fastest", "slower")] if timed else []
    if len(timed) < len(stores):
        parts += [] if timed else ["the latencies are assumed"]
    parts.append(_least(stores, lambda each: each.cpu, "in CPU a request", "cheapest", "more"))
    costs = [f"{format_value(each.cost)} {each.currency} from {each.name}" for each in stores if each.cost is not None]
    parts += [f"a billion reads cost {', '.join(costs)}"] if costs else []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _least(stores: Sequence[Summary], value: Value, where: str, best: str, more: str) -> str:
    known = sorted((each for each in stores if value(each).value is not None), key=lambda each: value(each).value or 0)
    if not known:
        return f"{where} there were too few answers"
    first, others = known[0], known[1:]
    shown = f"{where} {first.name} ({format_value(value(first).value or 0, 'us')})"
    alike = [each for each in others if not is_real(compared(first, each, value), value(first), value(each))]
    parts = [_times(first, each, value, more) for each in others if each not in alike]
    if alike:
        within = " and ".join(f"{each.name} ({_within(compared(first, each, value))})" for each in alike)
        return ", ".join([f"{shown} cannot be told apart from {within}", *parts])
    return ", ".join([f"{shown} is {best}" if others else shown, *parts])


def _times(first: Summary, other: Summary, value: Value, more: str) -> str:
    ours, theirs = value(first).value or 1.0, value(other).value or 1.0
    times = theirs / ours
    return f"{other.name} {times:.1f} times" if times >= 2 else f"{other.name} {times - 1:.0%} {more}"


def _within(found: Figure) -> str:
    if found.low is None or found.high is None:
        return "in so few rounds"
    factor = max(found.high, 1 / found.low)
    return f"within ±{max(1 - found.low, found.high - 1):.0%}" if factor < 2 else f"within a factor of {factor:,.0f}"


def plots(stores: Sequence[Summary]) -> list[Plot]:
    """Plot each store's p99 by round."""
    curves = tuple(
        Curve(each.name, tuple(float(n) for n in range(1, len(values) + 1)), tuple(values))
        for each in stores
        if (values := _latency(each).values)
    )
    caption = "Of an emulated store, the latency is an assumption."
    plot = Plot(f"{DECISIVE} of each round", "round", DECISIVE, curves, y_unit="us", points=True, caption=caption)
    return [plot] if curves else []
