"""Stores compared: their latencies, CPU and costs in rows, which of them differ, by how much, and what else decides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hotplate.base.report import Row, format_count, rounded
from hotplate.bench.assumed_latency import as_assumed
from hotplate.bench.figure_names import CPU, P50, P99, P99_9, POPULAR_LISTS
from hotplate.bench.lists import popular_complaint
from hotplate.bench.objective import PERCENTS
from hotplate.bench.planner.formulas import round_up
from hotplate.bench.planner.inputs import Inputs, InputSource, from_release, merge
from hotplate.bench.planner.plan import CapacityPlan, break_even, calculate, usable_gb
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.statistics import Figure, compared, error_share, mean, percentile, popular_share
from hotplate.bench.stores.rounds import Candidate, StoreRuns
from hotplate.stores.connect import REDIS
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP

PERCENTILES = (P50, P99, P99_9)
RATE = "requests/s and core"
COST = "cost of a billion reads"
# The percentile that is decisive for speed, unless no difference is proven.
DECISIVE = P99
STALL_S = 0.1
# Wider intervals say nothing.
WIDEST = 100.0
UTILISATION = Inputs(users=1, peak_rps=1).ru_utilisation
BILLION = 1e9
AT_RATE_MARK = "~"


class Needs(NamedTuple):
    """RU/s for a rate of reads, and their monthly cost."""

    used_ru: float
    needed_ru: int
    month: float


def needs(charge_ru: float, rate: float, prices: Prices) -> Needs:
    """Calculate the RU/s for *rate* reads a second of *charge_ru*."""
    needed = max(MANUAL_MIN, round_up(rate * charge_ru / UTILISATION, MANUAL_STEP))
    return Needs(rate * charge_ru, needed, prices.ru_month(needed))


def _plan_of(redis: Candidate, rate: float, prices: Prices) -> CapacityPlan:
    """Plan the release of a Redis at *rate* requests/s around the clock."""
    release = from_release(redis.manifest, redis.name)
    return calculate(merge([release, InputSource("--rate", {"peak_rps": rate})]), prices, load_charges())


def _cost_row(candidate: Candidate, rate: float, cpu_us: float, prices: Prices) -> Row:
    """Return the cost of a billion reads at *rate* requests/s: the service's CPU, and the monthly price of the store.

    *cpu_us* is the service's CPU a read, in µs. The price of Cosmos DB is that of the RU/s for *rate*, of Redis that of
    the cheapest size that holds the lists; the value is None if all sizes are too small. Files cost nothing but CPU.
    The note is on the main part of the cost, or says why it is unknown.
    """
    month = 0.0
    note = "CPU only"
    if candidate.charge_ru is not None:
        throughput = needs(candidate.charge_ru, rate, prices)
        month = throughput.month
        note = f"{throughput.needed_ru:,} RU/s"
    elif candidate.scheme in REDIS:
        planned = _plan_of(candidate, rate, prices).figures
        if not planned["redis_cost"].unit:
            return Row(candidate.name, COST, prices.currency, note="no size is enough")
        month = planned["redis_cost"].number
        note = f"{planned['redis_nodes'].number:g} x {planned['redis_size']}"

    cpu_hours = cpu_us * BILLION / 1e6 / 3600
    reads_a_month = rate * HOURS_A_MONTH * 3600
    amount = cpu_hours * prices.cpu_hour.amount + month / reads_a_month * BILLION
    return Row(candidate.name, COST, prices.currency, amount, note=note)


def _unknown(store: StoreRuns) -> Figure:
    return Figure(None, note="see below" if store.runs else "not measured")


def latency_rows(store: StoreRuns) -> Iterator[Row]:
    """Yield the rows of percentiles, marked if they are assumed; unknown if the store failed its checks."""
    for name in PERCENTILES:
        figure = percentile(store.results, PERCENTS[name]) if store.sound else _unknown(store)
        row = figure.row(store.candidate.name, name, "us")
        yield as_assumed(row) if store.candidate.emulated and figure.value is not None else row


def cpu_row(store: StoreRuns) -> Row:
    """Return the service's CPU per request in µs, a mean over rounds; unknown if the store failed its checks.

    It is measured at full load if each round has such a run (`full`), and not too many answers were popular lists,
    which cost less; otherwise at the rate of the rounds, which the note says.
    """
    full = [run.full for run in store.runs if run.full is not None]
    cpu = mean([run.cpu_us for run in full])
    if not store.sound:
        cpu = _unknown(store)
    elif len(full) != len(store.runs) or popular_complaint([run.result for run in full]):
        note = f"at {store.results[0].requested_rate:g}/s"
        cpu = replace(mean([run.cpu_us for run in store.runs]), note=note)
    return cpu.row(store.candidate.name, CPU, "us")


def is_at_full_load(cpu: Row) -> bool:
    """Return whether a CPU a request, if known, is not that at the rate of the rounds, which is higher."""
    return cpu.value is None or not cpu.note


def store_rows(store: StoreRuns, rate: float, prices: Prices) -> Iterator[Row]:
    """Yield a store's figures: latencies, CPU, cost, shares of popular lists and errors, and request units.

    The cost is that of *rate* reads a second. Popular lists are the fallback, answered instead of a user's own list.
    Only Cosmos DB has request units.
    """
    name = store.candidate.name
    cpu = cpu_row(store)
    yield from latency_rows(store)
    yield Row(name, RATE, "/s", 1e6 / cpu.value if cpu.value else None, note=cpu.note, main=False)
    yield cpu
    yield (
        _cost_row(store.candidate, rate, cpu.value or 0.0, prices) if store.sound else Row(name, COST, prices.currency)
    )
    yield popular_share(store.results).row(name, POPULAR_LISTS, "share", main=False)
    yield error_share(store.results).row(name, "errors", "share", main=False)
    if store.candidate.charge_ru is not None:
        yield Row(name, "RU a read", "RU", store.candidate.charge_ru, main=False)


@dataclass(frozen=True, slots=True)
class Difference:
    """The ratio of a subject's figure to the least one."""

    name: str
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
    """The subject with the least figure, and the others' differences, ascending."""

    least: str
    differences: tuple[Difference, ...]

    @property
    def proven(self) -> tuple[Difference, ...]:
        """Subjects with a proven larger figure."""
        return tuple(difference for difference in self.differences if difference.is_proven)

    @property
    def alike(self) -> tuple[Difference, ...]:
        """Subjects for which no difference is proven."""
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


def rank(figures: Mapping[str, Row]) -> Ranking | None:
    """Return the subject with the least of *figures*, such as the p99 of each store by name, and how the others differ.

    Differences are ratios to the least figure. The result is None if fewer than two figures are known.
    """
    known = {name: figure for name, figure in figures.items() if figure.value is not None}
    if len(known) < 2:
        return None

    least, *larger = sorted(known, key=lambda name: known[name].value or 0.0)
    differences = tuple(Difference(name, compared(known[least], known[name])) for name in larger)
    return Ranking(least, differences)


def _describe_stalls(stores: Sequence[StoreRuns]) -> str:
    """Return a line such as `Redis 2 of 42 seconds above 100 ms`; empty without stalls.

    A second stalled if it had an answer after more than STALL_S.
    """
    parts = list[str]()
    for store in stores:
        seconds = [
            second.latencies_s for result in store.results for second in result.seconds if second.latencies_s.size
        ]
        stalled = sum(bool(latencies_s.max() > STALL_S) for latencies_s in seconds)
        if stalled:
            parts.append(f"{store.candidate.name} {stalled} of {len(seconds)} seconds above {1000 * STALL_S:g} ms")
    return ", ".join(parts)


class SpeedVerdict(NamedTuple):
    """The name of the store that is proven fastest, empty if none is, and the figures in words."""

    fastest: str
    figures: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdicts on sound stores, at *rate* reads a second; *rows* have their figures, by subject and figure."""

    stores: Sequence[StoreRuns]
    rows: Mapping[tuple[str, str], Row]
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
            if ranking := rank(self._figures(name, self._timed)):
                lines[name] = ranking.describe("fastest")
        cpus = self._figures(CPU, self.stores)
        alike = {name: cpu for name, cpu in cpus.items() if is_at_full_load(cpu)}
        if ranking := rank(alike or cpus):
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
        cheapest = self._by_cost[0].subject if len(self._by_cost) > 1 else ""
        sentences = [speed.figures]
        if speed.fastest and speed.fastest == cheapest:
            sentences = [f"Fastest and cheapest: {self._with_place(cheapest)} ({speed.figures})"]
        else:
            if speed.fastest:
                sentences = [f"Fastest: {self._with_place(speed.fastest)} ({speed.figures})"]
            if cheapest:
                sentences.append(f"Cheapest: {self._with_place(cheapest)}")

        if shared := self._cheaper_shared_store():
            sentences.append(f"If servers share a store: {shared}")
        return f"{'. '.join(sentence[:1].upper() + sentence[1:] for sentence in sentences)}."

    @property
    def _timed(self) -> list[StoreRuns]:
        """Stores with a measured latency: all but emulated ones."""
        return [store for store in self.stores if not store.candidate.emulated]

    @property
    def _by_cost(self) -> list[Row]:
        """The known costs, ascending."""
        known = [cost for cost in self._figures(COST, self.stores).values() if cost.value is not None]
        return sorted(known, key=lambda cost: cost.value or 0.0)

    def _figures(self, name: str, stores: Sequence[StoreRuns]) -> dict[str, Row]:
        return {store.candidate.name: self.rows[store.candidate.name, name] for store in stores}

    def _cost_verdict(self) -> str:
        """Return the sentence on cost: the cheapest store, the others' multiples, and what the Redis holds."""
        least, *dearer = self._by_cost
        times = ", ".join(
            f"{cost.subject} {rounded((cost.value or 0.0) / (least.value or 1.0))} times" for cost in dearer
        )
        planned = self._redis_plan()
        redis = f"; Redis for up to {rounded(usable_gb(planned))} GB in all" if planned else ""
        return f"at {self.rate:g}/s {least.subject} least; {times}{redis}"

    def _with_place(self, name: str) -> str:
        """Return the *name* of a store; of files beside other stores, it says that each server needs them."""
        is_local = any(store.candidate.name == name and store.candidate.scheme == "file" for store in self.stores)
        return f"{name} on each server" if is_local and len(self.stores) > 1 else name

    def _compare_speed(self) -> SpeedVerdict:
        """Compare the latencies of stores that our own clients read, without emulated ones, which are assumed.

        A store is the fastest if it is proven faster than each of the others, at p99 or else at p50. A percentile
        that is unknown for one of them decides nothing.
        """
        timed = [store for store in self._timed if not store.candidate.by_another_client]
        if not timed:
            return SpeedVerdict("", "Latencies are assumed")
        if len(timed) == 1:
            return SpeedVerdict("", self._describe_latencies(timed[0].candidate.name))

        known = dict[str, dict[str, Row]]()
        for name in (DECISIVE, P50):
            rows = self._figures(name, timed)
            if all(row.value is not None for row in rows.values()):
                known[name] = rows
        for name, rows in known.items():
            ranking = rank(rows)
            if ranking and not ranking.alike:
                return _proven_speed(name, rows, ranking)
        for name, rows in known.items():
            shown = ", ".join(f"{subject} {_ms(row)} ms" for subject, row in rows.items())
            return SpeedVerdict("", f"No difference in speed is proven ({name}: {shown})")
        return SpeedVerdict("", "No difference in speed is proven: too few answers")

    def _describe_latencies(self, store: str) -> str:
        rows = [self.rows[store, name] for name in PERCENTILES]
        known = ", ".join(f"{row.figure} {_ms(row)} ms" for row in rows if row.value is not None)
        return f"{store}: {known}"

    def _redis_plan(self) -> CapacityPlan | None:
        """Return the plan of the Redis if a Cosmos DB was measured, too, and a size of Redis is enough; else None."""
        candidates = [store.candidate for store in self.stores]
        redis = next((candidate for candidate in candidates if candidate.scheme in REDIS), None)
        has_cosmos = any(candidate.metered for candidate in candidates)
        if redis is None or self.rows[redis.name, COST].value is None or not has_cosmos:
            return None
        return _plan_of(redis, self.rate, self.prices)

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


def _proven_speed(name: str, rows: Mapping[str, Row], ranking: Ranking) -> SpeedVerdict:
    """Return that the least of *rows*, of the percentile *name*, is proven to be the fastest."""
    slower = ", ".join(f"{store.name} {_ms(rows[store.name])}" for store in ranking.differences)
    limit = "" if name == DECISIVE else f"; at {DECISIVE} no difference is proven"
    return SpeedVerdict(ranking.least, f"{name} {_ms(rows[ranking.least])} ms, {slower}{limit}")


def _ms(row: Row) -> str:
    return rounded((row.value or 0.0) / 1000)
