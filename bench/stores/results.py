"""What a comparison of stores measures: the results of a round, of a search for the highest rate, and of a store."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hotplate.bench.answers import CheckResult
from hotplate.bench.loadgen.capacity import Objective, Point, disturbances, first_outside, point
from hotplate.bench.loadgen.result import Result
from hotplate.bench.stores.publication import TrialResult
from hotplate.bench.stores.setup import CandidateStore

# From this share of popular lists on, users do not get the lists that they have: outside the objective.
POPULAR_BOUND = 0.01

# From this share of a core on, the core is called the limit; what is left of it, others use.
FULL_CORE = 0.8

# What a budget takes besides its rounds: setting up, and the report.
BESIDES_MIN = 1

# An attempt that was outside for no reason that can be seen is repeated: the machine may have had other work.
NO_FULL_CORE = "no core was full"
STOPPED = "it was stopped"
THE_GENERATOR = "the load generator"


@dataclass(frozen=True, slots=True)
class LookupResult:
    """Reads of a store without a service: microseconds of a call (median), and per key the CPU of both sides."""

    call_us: float
    keys_per_s: float
    cpu_us: float
    server_cpu_us: float | None


class RequestUnits(NamedTuple):
    """What the reads of a run were charged, how many were, and how many were refused with 429."""

    ru: float
    reads: float
    throttled: float


@dataclass(frozen=True, slots=True)
class ServiceRun:
    """One run through a service: its result, and the CPU of the service and of the store's server."""

    result: Result = field(repr=False)
    service_cpu_s: float
    server_cpu_s: float | None
    request_units: RequestUnits | None = None
    """None of a store that charges nothing."""

    one_core: bool = False
    """Whether the store's server had the service's core, too."""

    @property
    def service_cpu_us(self) -> float:
        """CPU of the service for each good response."""
        return self.service_cpu_s * 1e6 / max(1, self.result.ok)

    @property
    def server_cpu_us(self) -> float | None:
        """CPU of the store's server for each good response."""
        return None if self.server_cpu_s is None else self.server_cpu_s * 1e6 / max(1, self.result.ok)

    @property
    def read_ru(self) -> float | None:
        """Request units for each read; there are fewer reads than good responses if one read answered several."""
        units = self.request_units
        return None if units is None or not units.reads else units.ru / units.reads

    @property
    def service_share(self) -> float:
        """The share of a core that the service used."""
        return self.service_cpu_s / max(self.result.duration_s, 1e-9)

    @property
    def server_share(self) -> float | None:
        """The share of a core that the store's server used."""
        return None if self.server_cpu_s is None else self.server_cpu_s / max(self.result.duration_s, 1e-9)

    @property
    def ru_s(self) -> float | None:
        """Request units a second."""
        return None if self.request_units is None else self.request_units.ru / max(self.result.duration_s, 1e-9)


class PublishRun(NamedTuple):
    """Lists written beside the reads of one round: one release by itself, then the reads while others are written."""

    trial: TrialResult
    reads: ServiceRun
    lists_per_s: float


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one store did in one round; `lookups` by the size of the batch."""

    lookups: Mapping[int, LookupResult]
    closed: ServiceRun | None
    reads: ServiceRun
    publishing: PublishRun | None

    @property
    def invalid_reasons(self) -> list[str]:
        """Why the round measured its generator; empty for a valid one."""
        return [*self.reads.result.invalid_reasons, *(self.closed.result.invalid_reasons if self.closed else [])]


@dataclass(frozen=True, slots=True)
class Capacity:
    """The search for the highest rate of one store: its attempts in order, each with the run behind it."""

    attempts: tuple[tuple[Point, ServiceRun], ...]

    @property
    def best(self) -> tuple[Point, ServiceRun] | None:
        """The highest rate inside the objective, and its run."""
        return max((each for each in self.attempts if each[0].inside), key=lambda each: each[0].at, default=None)

    @property
    def first_outside(self) -> tuple[Point, ServiceRun] | None:
        """The lowest rate above it that was outside; None if the search was stopped before."""
        ended = first_outside([made for made, _ in self.attempts])
        return next((each for each in self.attempts if each[0] is ended), None)

    @property
    def limit(self) -> str:
        """What ended the search, in a few words."""
        if self.first_outside is None:
            return STOPPED
        ended, run = self.first_outside
        if any(reason.startswith(NO_FULL_CORE) for reason in ended.invalid_reasons):
            return NO_FULL_CORE
        return THE_GENERATOR if ended.unclear else limit_of(run)

    def ending(self, *, emulated: bool) -> str:
        """Describe how the search ended; of an emulator without the reason, which may be its latency."""
        if self.first_outside is None:
            return STOPPED
        ended, run = self.first_outside
        reasons = " and ".join(ended.invalid_reasons if ended.unclear else ended.broken)
        server = "" if run.server_share is None else f", the store's server {run.server_share:.0%}"
        units = run.request_units
        refused = f", {units.throttled:,.0f} reads refused with 429" if units else ""
        used = f"the service used {run.service_share:.0%} of its core{server}{refused}"
        return f"outside at {ended.at:,.0f} requests/s{'' if emulated else f' by {reasons}'}; {used}"


@dataclass(frozen=True, slots=True)
class StoreMemory:
    """Bytes in use after the last round: of a store's service, and its server if it has one."""

    service: int
    server: int | None


@dataclass(frozen=True, slots=True)
class StoreResult:
    """All that was measured of one store."""

    candidate: CandidateStore
    rounds: tuple[RoundResult, ...]
    memory: StoreMemory
    checked: CheckResult
    capacity: Capacity | None = None


class ComparisonResult(NamedTuple):
    """All that was measured; the n-th rounds of all stores were made side by side."""

    stores: tuple[StoreResult, ...]
    interrupted: bool
    placement: str = ""
    """The core and the priority that the generator had, in a sentence."""

    round_s: float = 0.0
    """How long a round took, with what lay between two."""

    @property
    def invalid_rounds(self) -> dict[int, str]:
        """Why rounds are invalid, in order, by number from 0 on: a round has to be valid for all stores."""
        reasons = {
            number: f"{store.candidate.name}, {reason}"
            for store in self.stores
            for number, each in enumerate(store.rounds)
            for reason in each.invalid_reasons
        }
        return dict(sorted(reasons.items()))

    def more_time(self, rounds: int) -> str:
        """Say in which time so many rounds are made, and by which budget."""
        minutes = math.ceil(rounds * self.round_s / 60) + BESIDES_MIN
        return f"{rounds} rounds take about {minutes} minutes: --budget {minutes}m"


def capacity_point(rate: float, run: ServiceRun, objective: Objective) -> Point:
    """Sum up an attempt, and hold it against the objective; whose fault it was is decided by whose core was full."""
    invalid_reasons = [*disturbances(run.result), *objective.invalid_reasons(run.result)]
    broken = objective.broken(run.result)
    made = point(rate, run.result)
    if made.popular > POPULAR_BOUND:
        broken.append(f"{made.popular:.1%} got the popular list instead of their own, bound {POPULAR_BOUND:.0%}")
    if broken and limit_of(run) == NO_FULL_CORE:
        invalid_reasons.append(f"{NO_FULL_CORE}, and yet {' and '.join(broken)}")
        broken = []
    return made if made.stopped else replace(made, invalid_reasons=tuple(invalid_reasons), broken=tuple(broken))


def limit_of(run: ServiceRun) -> str:
    """Name what a run reached the limit of."""
    if run.request_units is not None and run.request_units.throttled:
        return "the container's RU/s"
    if run.service_share + (run.server_share or 0.0) * run.one_core >= FULL_CORE:
        return "the service's core"
    if run.server_share is not None and run.server_share >= FULL_CORE:
        return "the store's server"
    return NO_FULL_CORE
