"""Stores compared: their latencies, CPU and costs in rows, which of them differ, by how much, and what else decides."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hotplate.base.report import Row, format_count, rounded
from hotplate.bench.figure_names import P50, P99
from hotplate.bench.measure.assumed_latency import as_assumed
from hotplate.bench.measure.experiment import Figure, latencies, shares
from hotplate.bench.measure.lists import popular_complaint
from hotplate.bench.measure.statistics import PERCENTILES, Ranking, latency, mean, rank
from hotplate.bench.planner.formulas import round_up
from hotplate.bench.planner.inputs import CPU, Inputs, InputSource, from_release, merge
from hotplate.bench.planner.plan import CapacityPlan, break_even, calculate
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.stores.rounds import Candidate, StoreRuns
from hotplate.stores.connect import REDIS
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP

COST = "cost of a billion reads"
CHARGE = "RU a read"
# The percentile that is decisive for speed, unless no difference is proven.
DECISIVE = P99
UTILISATION = Inputs(users=1, peak_rps=1).ru_utilisation
BILLION = 1e9
MONTH_S = HOURS_A_MONTH * 3600
AT_RATE_MARK = "~"


def needed_ru(charge_ru: float, rate: float) -> int:
    """Return the RU/s to provision for *rate* reads a second of *charge_ru*."""
    return max(MANUAL_MIN, round_up(rate * charge_ru / UTILISATION, MANUAL_STEP))


def _plan_of(redis: Candidate, rate: float, prices: Prices) -> CapacityPlan:
    """Plan the release of a Redis at *rate* requests/s around the clock."""
    release = from_release(redis.manifest, redis.name)
    return calculate(merge([release, InputSource("--rate", {"peak_rps": rate})]), prices, load_charges())


class StorePrice(NamedTuple):
    """The monthly price of a store, None if it is unknown, and what is paid for."""

    month: float | None
    paid_for: str


def _price_of(candidate: Candidate, rate: float, prices: Prices) -> StorePrice:
    """Price a store for *rate* reads a second around the clock.

    Cosmos DB costs the RU/s for that, Redis the cheapest size that holds the lists. Files cost nothing but CPU.
    """
    if candidate.charge_ru is not None:
        ru = needed_ru(candidate.charge_ru, rate)
        return StorePrice(prices.ru_month(ru), f"{ru:,} RU/s")
    if candidate.scheme not in REDIS:
        return StorePrice(0.0, "CPU only")
    planned = _plan_of(candidate, rate, prices).figures
    if not planned["redis_cost"].unit:
        return StorePrice(None, "no size is enough")
    return StorePrice(planned["redis_cost"].number, f"{planned['redis_nodes'].number:g} x {planned['redis_size']}")


def _cost(store: StoreRuns, rate: float, prices: Prices) -> Row:
    """Return the cost of a billion reads at *rate* reads a second: CPU of the service, and the price of the store."""
    price = _price_of(store.candidate, rate, prices)
    cpu = _cpu(store)
    if price.month is None or cpu.value is None:
        return Row(note=price.paid_for)
    usd_a_us = BILLION / 1e6 / 3600 * prices["cpu_hour"].amount
    store_usd = price.month / (rate * MONTH_S) * BILLION
    return replace(mean([cpu_us * usd_a_us + store_usd for cpu_us in cpu.values]), note=price.paid_for)


def _cpu(store: StoreRuns) -> Row:
    """Return the service's CPU per request in µs, a mean over rounds; unknown if the store failed its checks.

    It is measured at full load if each round has such a run (`full`), and not too many answers were popular lists,
    which cost less; otherwise at the rate of the rounds, which a note and a mark say.
    """
    if not store.sound:
        return store.unknown
    busy = [run.full for run in store.runs if run.full is not None]
    if len(busy) == len(store.runs) and not popular_complaint([run.result for run in busy]):
        return mean([run.cpu_us for run in busy])
    note = f"at {store.results[0].requested_rate:g}/s"
    return replace(mean([run.cpu_us for run in store.runs]), note=note, mark=AT_RATE_MARK)


def percentile_of(name: str, store: StoreRuns) -> Row:
    """Return a percentile, marked if it is assumed; unknown if the store failed its checks."""
    row: Row = latency(store.results, name) if store.sound else store.unknown
    return as_assumed(row, emulated=store.candidate.emulated)


def figures(rate: float, prices: Prices) -> Sequence[Figure[StoreRuns]]:
    """Return the figures of stores; the cost is that of *rate* reads a second.

    Popular lists are the fallback, answered instead of a user's own list. Only Cosmos DB has request units.
    """
    unlisted: Iterable[Figure[StoreRuns]] = shares(lambda store: store.results)
    return (
        *latencies(percentile_of),
        Figure(CPU, "us", _cpu, "CPU a\nread, µs", "µs"),
        Figure(COST, prices.currency, lambda store: _cost(store, rate, prices), f"USD/bn\nat {rate:g}/s"),
        *(replace(figure, heading="") for figure in unlisted),
        Figure(CHARGE, "RU", lambda store: store.candidate.charge_ru, main=False),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdicts on sound stores, at *rate* reads a second; *rows* have their figures, by subject and figure."""

    stores: Sequence[StoreRuns]
    rows: Mapping[tuple[str, str], Row]
    rate: float
    prices: Prices

    @property
    def verdicts(self) -> dict[str, str]:
        """Sentences that rank the stores by p50, p99, CPU and cost.

        One is left out if fewer than two stores have the figure. Emulated stores' latencies are assumed, and not
        compared, nor is CPU at the rate of the rounds with that at full load.
        """
        at_full_load = [store for store in self.stores if not self.rows[store.candidate.name, CPU].mark]
        rankings = {
            P50: (self._rank(P50, self._timed), "fastest"),
            DECISIVE: (self._rank(DECISIVE, self._timed), "fastest"),
            "CPU": (self._rank(CPU, at_full_load or self.stores), "least"),
            "cost": (self._rank(COST, self.stores), f"least at {self.rate:g}/s"),
        }
        return {label: ranking.describe(least) for label, (ranking, least) in rankings.items() if ranking}

    @property
    def answer(self) -> str:
        """The fastest and the cheapest store, and the rates at which Redis costs less than Cosmos DB."""
        fastest, speed = self._compare_speed()
        costs = self._rank(COST, self.stores)
        cheapest = costs.least if costs and not costs.alike else ""
        sentences = [speed]
        if fastest:
            both = "Fastest and cheapest" if fastest == cheapest else "Fastest"
            sentences = [f"{both}: {self._with_place(fastest)} ({speed})"]
        if cheapest and fastest != cheapest:
            sentences.append(f"Cheapest: {self._with_place(cheapest)}")
        if costs and costs.alike:
            names = [costs.least, *costs.alike]
            sentences.append(f"No difference in cost is proven between {', '.join(names[:-1])} and {names[-1]}")
        if shared := self._cheaper_shared_store():
            sentences.append(f"If servers share a store: {shared}")
        return f"{'. '.join(sentence[:1].upper() + sentence[1:] for sentence in sentences)}."

    @property
    def _timed(self) -> list[StoreRuns]:
        """Stores with a measured latency: all but emulated ones."""
        return [store for store in self.stores if not store.candidate.emulated]

    def _rank(self, figure: str, stores: Sequence[StoreRuns]) -> Ranking | None:
        """Rank stores by a figure, those for which it is known; None if fewer than two are."""
        return rank([self.rows[store.candidate.name, figure] for store in stores])

    def _with_place(self, name: str) -> str:
        """Return the *name* of a store; of files beside other stores, it says that each server needs them."""
        is_local = any(store.candidate.name == name and store.candidate.scheme == "file" for store in self.stores)
        return f"{name} on each server" if is_local and len(self.stores) > 1 else name

    @property
    def decisive(self) -> dict[str, Row]:
        """The figures that decide, by formats of their intervals: ratios of the nearest stores, in speed and in cost.

        Of a single store with a measured latency, it is the percentile.
        """
        timed = [store.candidate.name for store in self._read_by_us]
        figures = dict[str, Row]()
        if len(timed) == 1:
            figures[f"{DECISIVE} of {timed[0]} {{}}"] = self.rows[timed[0], DECISIVE]
        percentile, speeds = self._speeds
        costs = self._rank(COST, self.stores)
        for figure, ranking, base in ((percentile, speeds, ""), ("cost", costs, " for CPU and store")):
            if ranking:
                nearest = ranking.ratios[0]
                figures[f"{nearest.subject} {{}} times the {figure} of {ranking.least}{base}"] = nearest
        return figures

    @property
    def _read_by_us(self) -> list[StoreRuns]:
        """Stores with a measured latency that our own clients read."""
        return [store for store in self._timed if not store.candidate.client]

    @property
    def _speeds(self) -> tuple[str, Ranking | None]:
        """The ranking of the stores that our own clients read by p99 or, if it proves none the fastest, by p50.

        A percentile that is unknown for one of them decides nothing.
        """
        timed = self._read_by_us
        rankings = dict[str, Ranking]()
        for figure in (DECISIVE, P50):
            ranking = self._rank(figure, timed)
            if ranking and len(ranking.ratios) == len(timed) - 1:
                rankings[figure] = ranking
        proven = [figure for figure, ranking in rankings.items() if not ranking.alike]
        decisive = next(iter(proven or rankings), "")
        return decisive, rankings.get(decisive)

    def _compare_speed(self) -> tuple[str, str]:
        """Return the store that is proven fastest, or nothing, and the latencies of stores that our own clients read.

        Emulated ones are assumed.
        """
        names = [store.candidate.name for store in self._read_by_us]
        if not names:
            return "", "Latencies are assumed"
        if len(names) == 1:
            return "", self._describe_latencies(names[0])

        figure, ranking = self._speeds
        if ranking is None:
            return "", "No difference in speed is proven: too few answers"
        if ranking.alike:
            shown = ", ".join(f"{name} {self._ms(name, figure)} ms" for name in names)
            return "", f"No difference in speed is proven ({figure}: {shown})"
        slower = ", ".join(f"{ratio.subject} {self._ms(ratio.subject, figure)}" for ratio in ranking.ratios)
        limit = "" if figure == DECISIVE else f"; at {DECISIVE} no difference is proven"
        return ranking.least, f"{figure} {self._ms(ranking.least, figure)} ms, {slower}{limit}"

    def _describe_latencies(self, name: str) -> str:
        figures = [figure for figure in PERCENTILES if self.rows[name, figure].value]
        return f"{name}: {', '.join(f'{figure} {self._ms(name, figure)} ms' for figure in figures)}"

    def _ms(self, name: str, figure: str) -> str:
        return rounded((self.rows[name, figure].value or 0.0) / 1000)

    def _cheaper_shared_store(self) -> str:
        """Return which of Redis and Cosmos DB costs less, and at which rates; empty unless both were measured.

        The rates depend on the size of Redis, and so on the users of the release. It is empty if no size is enough.
        """
        candidates = [store.candidate for store in self.stores]
        redis = next((candidate for candidate in candidates if candidate.scheme in REDIS), None)
        has_cosmos = any(candidate.metered for candidate in candidates)
        if redis is None or self.rows[redis.name, COST].value is None or not has_cosmos:
            return ""
        planned = _plan_of(redis, self.rate, self.prices)
        users = f"for {format_count(planned.inputs.users, 'user')}"
        ranges = break_even(planned)
        if not ranges:
            return f"Cosmos DB, {users} cheaper than Redis at any rate"
        rates = " and ".join(cheaper.describe("reads/s") for cheaper in ranges)
        return f"Redis, {users} cheaper than Cosmos DB {rates}"
