"""Comparisons of stores in words: which differ, by how much, and what else decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hotplate.base.report import format_count, rounded
from hotplate.bench.figure_names import P50, P99
from hotplate.bench.planner.plan import CapacityPlan, break_even, usable_gb
from hotplate.bench.planner.prices import Prices
from hotplate.bench.statistics import Figure, compared
from hotplate.bench.stores.summary import Summary, plan_of
from hotplate.stores.connect import REDIS

# The percentile that is decisive for speed, unless no difference is proven.
DECISIVE = P99
STALL_S = 0.1
# Wider intervals say nothing.
WIDEST = 100.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A store's figure, and its ratio to the least one."""

    name: str
    figure: Figure
    ratio: Figure

    @property
    def is_proven(self) -> bool:
        """Whether the interval excludes equality."""
        low = self.ratio.low
        return low is not None and low > 1

    @property
    def factor(self) -> str:
        """Format the ratio with its interval, as `1.4 times (1.3 to 1.6)`."""
        ratio = self.ratio.value or 0.0
        low = self.ratio.low
        high = self.ratio.high
        times = f"{rounded(ratio)} times"
        if low is None or high is None:
            return f"{times} ({self.ratio.note})"
        if high > WIDEST * low:
            return f"{times} (the rounds differ too much for an interval)"
        return f"{times} ({rounded(low)} to {rounded(high)})"


@dataclass(frozen=True, slots=True)
class Ranking:
    """The store with the least figure, this figure, and the others' differences, ascending."""

    least: str
    figure: Figure
    differences: tuple[Difference, ...]

    @property
    def proven(self) -> tuple[Difference, ...]:
        """Stores with a proven larger figure."""
        return tuple(difference for difference in self.differences if difference.is_proven)

    @property
    def alike(self) -> tuple[Difference, ...]:
        """Stores for which no difference is proven."""
        return tuple(difference for difference in self.differences if not difference.is_proven)

    def describe(self, least: str) -> str:
        """Return a line such as `files fastest; Redis 1.4 times (1.3 to 1.6)`."""
        proven = [f"{difference.name} {difference.factor}" for difference in self.proven]
        if not self.alike:
            return f"{self.least} {least}; {', '.join(proven)}"
        *names, last = [self.least, *(difference.name for difference in self.alike)]
        names_of_alike = f"{', '.join(names)} and {last}"
        alike = ", ".join(f"{difference.name} {difference.factor}" for difference in self.alike)
        return "; ".join([f"{names_of_alike}: no difference proven, {alike}", *proven])


def rank(figures: Mapping[str, Figure]) -> Ranking | None:
    """Return the store with the least of *figures*, such as the p99 of each store by name, and how the others differ.

    Differences are ratios to the least figure. The result is None if fewer than two figures are known.
    """
    known = {name: figure for name, figure in figures.items() if figure.value is not None}
    if len(known) < 2:
        return None

    least, *larger = sorted(known, key=lambda name: known[name].value or 0.0)
    differences = (Difference(name, known[name], compared(known[least], known[name])) for name in larger)
    return Ranking(least, known[least], tuple(differences))


def _describe_stalls(stores: Sequence[Summary]) -> str:
    """Return a line such as `Redis 2 of 42 seconds above 100 ms`; empty without stalls.

    A second stalled if it had an answer after more than STALL_S.
    """
    parts = list[str]()
    for store in stores:
        results = store.store.results
        seconds = [second.latencies_s for result in results for second in result.seconds if second.latencies_s.size]
        stalled = sum(bool(latencies_s.max() > STALL_S) for latencies_s in seconds)
        if stalled:
            parts.append(f"{store.name} {stalled} of {len(seconds)} seconds above {1000 * STALL_S:g} ms")
    return ", ".join(parts)


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
        latencies are assumed, and not compared, nor is CPU at the rate of the rounds with that at full load.
        """
        lines = dict[str, str]()
        for name in (P50, DECISIVE):
            if ranking := _rank_latency(name, self._timed):
                lines[name] = ranking.describe("fastest")
        if ranking := rank({store.name: store.cpu for store in self._alike_loaded}):
            lines["CPU"] = ranking.describe("least")
        if len(self._by_cost) > 1:
            lines["cost"] = self._cost_verdict()
        if stalled := _describe_stalls(self._timed):
            lines["stalls"] = stalled
        return lines

    @property
    def answer(self) -> str:
        """The fastest and the cheapest store, and the rates at which Redis costs less than Cosmos DB."""
        speed = self._compare_speed()
        cheapest = self._by_cost[0].name if len(self._by_cost) > 1 else ""
        sentences = list[str]()
        if speed.fastest and speed.fastest == cheapest:
            sentences.append(f"Fastest and cheapest: {self._with_place(cheapest)} ({speed.figures})")
        else:
            speed_sentence = speed.figures
            if speed.fastest:
                speed_sentence = f"Fastest: {self._with_place(speed.fastest)} ({speed.figures})"
            sentences.append(speed_sentence)
            if cheapest:
                sentences.append(f"Cheapest: {self._with_place(cheapest)}")

        if shared := self._cheaper_shared_store():
            sentences.append(f"If servers share a store: {shared}")
        return f"{'. '.join(sentence[:1].upper() + sentence[1:] for sentence in sentences)}."

    @property
    def _timed(self) -> list[Summary]:
        """Stores with a measured latency: all but emulated ones."""
        return [store for store in self.stores if store.has_own_latency]

    @property
    def _alike_loaded(self) -> list[Summary]:
        """The stores with the CPU of a request at full load; without any, all stores."""
        return [store for store in self.stores if store.is_cpu_at_full_load] or list(self.stores)

    @property
    def _by_cost(self) -> list[Summary]:
        """Stores with a known cost, ascending."""
        return sorted((store for store in self.stores if store.cost.amount is not None), key=lambda store: store.amount)

    def _cost_verdict(self) -> str:
        """Return the sentence on cost: the cheapest store, the others' multiples, and what the Redis holds."""
        least, *dearer = self._by_cost
        times = ", ".join(f"{store.name} {rounded(store.amount / (least.amount or 1.0))} times" for store in dearer)
        planned = self._redis_plan()
        redis = f"; Redis for up to {rounded(usable_gb(planned))} GB in all" if planned else ""
        return f"at {self.rate:g}/s {least.name} least; {times}{redis}"

    def _with_place(self, name: str) -> str:
        """Return the *name* of a store; of files beside other stores, it says that each server needs them."""
        is_local = any(store.name == name and store.scheme == "file" for store in self.stores)
        return f"{name} on each server" if is_local and len(self.stores) > 1 else name

    def _compare_speed(self) -> SpeedVerdict:
        """Compare the latencies of stores that our own clients read, without emulated ones, which are assumed.

        A store is the fastest if it is proven faster than each of the others, at p99 or else at p50. A percentile
        that is unknown for one of them decides nothing.
        """
        timed = [store for store in self._timed if not store.by_another_client]
        if not timed:
            return SpeedVerdict("", "Latencies are assumed")
        if len(timed) == 1:
            return SpeedVerdict("", f"{timed[0].name}: {_latencies(timed[0])}")

        known = [name for name in (DECISIVE, P50) if all(store.latencies[name].value is not None for store in timed)]
        for name in known:
            ranking = _rank_latency(name, timed)
            if ranking and not ranking.alike:
                slower = ", ".join(f"{store.name} {_ms(store.figure)}" for store in ranking.differences)
                limit = "" if name == DECISIVE else f"; at {DECISIVE} no difference is proven"
                return SpeedVerdict(ranking.least, f"{name} {_ms(ranking.figure)} ms, {slower}{limit}")

        if not known:
            return SpeedVerdict("", "No difference in speed is proven: too few answers")
        figures = ", ".join(f"{store.name} {_ms(store.latencies[known[0]])} ms" for store in timed)
        return SpeedVerdict("", f"No difference in speed is proven ({known[0]}: {figures})")

    def _redis_plan(self) -> CapacityPlan | None:
        """Return the plan of the Redis if a Cosmos DB was measured, too, and a size of Redis is enough; else None."""
        redis = next((store for store in self.stores if store.scheme in REDIS), None)
        has_cosmos = any(store.store.candidate.metered for store in self.stores)
        if redis is None or redis.cost.amount is None or not has_cosmos:
            return None
        return plan_of(redis.store.candidate.manifest, redis.name, self.rate, self.prices)

    def _cheaper_shared_store(self) -> str:
        """Return which of Redis and Cosmos DB costs less, and at which rates; empty unless both were measured.

        The rates depend on the size of Redis, and so on the users of the release.
        """
        planned = self._redis_plan()
        if planned is None:
            return ""
        users = f"for {format_count(planned.inputs.users, 'user')}"
        ranges = break_even(planned)
        if not ranges:
            return f"Cosmos DB, {users} cheaper than Redis at any rate"
        rates = " and ".join(cheaper.describe("reads/s") for cheaper in ranges)
        return f"Redis, {users} cheaper than Cosmos DB {rates}"


def _rank_latency(name: str, stores: Sequence[Summary]) -> Ranking | None:
    return rank({store.name: store.latencies[name] for store in stores})


def _ms(figure: Figure) -> str:
    return rounded((figure.value or 0.0) / 1000)


def _latencies(store: Summary) -> str:
    known = {name: figure for name, figure in store.latencies.items() if figure.value is not None}
    return ", ".join(f"{name} {_ms(figure)} ms" for name, figure in known.items())
