"""The figures of one store in a comparison: latencies, CPU, and what a billion reads cost."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from hotplate.base.report import Row
from hotplate.bench.assumed_latency import as_assumed
from hotplate.bench.figure_names import CPU, P50, P99, P99_9, POPULAR_LISTS
from hotplate.bench.lists import popular_complaint
from hotplate.bench.objective import PERCENTS
from hotplate.bench.options import store_url
from hotplate.bench.outcome import SEE_BELOW
from hotplate.bench.planner.formulas import round_up
from hotplate.bench.planner.inputs import Inputs, InputSource, from_release, merge
from hotplate.bench.planner.plan import CapacityPlan, calculate
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.statistics import Figure, error_share, mean, percentile, popular_share
from hotplate.bench.stores.rounds import Candidate, StoreRuns, by_redis_py, through_sdk
from hotplate.stores.connect import REDIS
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP
from hotplate.stores.manifest import Manifest
from hotplate.stores.urls import scheme_of

PERCENTILES = {name: PERCENTS[name] for name in (P50, P99, P99_9)}
RATE = "requests/s and core"
COST = "cost of a billion reads"
UTILISATION = Inputs(users=1, peak_rps=1).ru_utilisation
BILLION = 1e9
AT_RATE_MARK = "~"


class Cost(NamedTuple):
    """The cost of a billion reads, None if unknown, and a note on its main part, or why it is unknown."""

    amount: float | None
    note: str = ""


class Needs(NamedTuple):
    """RU/s for a rate of reads, and their monthly cost."""

    used_ru: float
    needed_ru: int
    month: float


def needs(charge_ru: float, rate: float, prices: Prices) -> Needs:
    """Calculate the RU/s for *rate* reads a second of *charge_ru*."""
    needed = max(MANUAL_MIN, round_up(rate * charge_ru / UTILISATION, MANUAL_STEP))
    return Needs(rate * charge_ru, needed, prices.ru_month(needed))


def plan_of(manifest: Manifest, name: str, rate: float, prices: Prices) -> CapacityPlan:
    """Plan a release at *rate* requests/s around the clock."""
    return calculate(
        merge([from_release(manifest, name), InputSource("--rate", {"peak_rps": rate})]), prices, load_charges()
    )


def cost_of(candidate: Candidate, rate: float, cpu_us: float, prices: Prices) -> Cost:
    """Return the cost of a billion reads at *rate* requests/s: the service's CPU, and the monthly price of the store.

    *cpu_us* is the service's CPU a read, in µs. The price of Cosmos DB is that of the RU/s for *rate*, of Redis that of
    the cheapest size that holds the lists; the amount is None if all sizes are too small. Files cost nothing but CPU.
    """
    month = 0.0
    note = "CPU only"
    if candidate.charge_ru is not None:
        throughput = needs(candidate.charge_ru, rate, prices)
        month = throughput.month
        note = f"{throughput.needed_ru:,} RU/s"
    elif scheme_of(store_url(candidate.url)) in REDIS:
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
        return scheme_of(store_url(self.store.candidate.url))

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
    def is_cpu_at_full_load(self) -> bool:
        """Whether its CPU a request, if known, is not that at the rate of the rounds, which is higher."""
        return self.cpu.value is None or not self.cpu.note

    @property
    def amount(self) -> float:
        """The cost of a billion reads; 0 if unknown."""
        return self.cost.amount or 0.0

    def latency_rows(self) -> Iterator[Row]:
        """Yield the rows of percentiles, marked if they are assumed."""
        for name, figure in self.latencies.items():
            row = figure.row(self.name, name, "us")
            if not self.has_own_latency and figure.value is not None:
                row = as_assumed(row)
            yield row

    def rows(self, cpu_mark: str) -> Iterator[Row]:
        """Yield a store's figures: latencies, CPU, cost, shares of popular lists and errors, and request units.

        Popular lists are the fallback, answered instead of a user's own list. Only Cosmos DB has request units. CPU
        that was not measured at full load gets *cpu_mark*.
        """
        cpu_us = self.cpu.value
        reads_per_s_and_core = 1e6 / cpu_us if cpu_us else None
        results = self.store.results
        charge_ru = self.store.candidate.charge_ru

        yield from self.latency_rows()
        yield Row(self.name, RATE, "/s", reads_per_s_and_core, note=self.cpu.note, main=False)
        yield replace(self.cpu.row(self.name, CPU, "us"), mark="" if self.is_cpu_at_full_load else cpu_mark)
        yield Row(self.name, COST, self.currency, self.cost.amount, note=self.cost.note)
        yield popular_share(results).row(self.name, POPULAR_LISTS, "share", main=False)
        yield error_share(results).row(self.name, "errors", "share", main=False)
        if charge_ru is not None:
            yield Row(self.name, "RU a read", "RU", charge_ru, main=False)


def summarise(store: StoreRuns, rate: float, prices: Prices) -> Summary:
    """Return the figures of one store; all unknown if it was not measured, or failed its checks.

    The cost is that of *rate* reads a second.
    """
    if not store.sound:
        unknown = Figure(None, note=SEE_BELOW if store.runs else "not measured")
        return Summary(store, dict.fromkeys(PERCENTILES, unknown), unknown, Cost(None), prices.currency)

    latencies = {name: percentile(store.results, percent) for name, percent in PERCENTILES.items()}
    cpu = _cpu_of(store)
    cost = cost_of(store.candidate, rate, cpu.value or 0.0, prices)
    return Summary(store, latencies, cpu, cost, prices.currency)


def _cpu_of(store: StoreRuns) -> Figure:
    """Return the service's CPU per request in µs, a mean over rounds.

    It is measured at full load if each round has such a run (`full`), and not too many answers were popular lists,
    which cost less; otherwise at the rate of the rounds, which the note says.
    """
    full = [run.full for run in store.runs if run.full is not None]
    if len(full) == len(store.runs) and not popular_complaint([run.result for run in full]):
        return mean([run.cpu_us for run in full])
    return replace(mean([run.cpu_us for run in store.runs]), note=f"at {store.results[0].requested_rate:g}/s")
