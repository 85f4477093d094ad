"""The rounds of a comparison: each store directly, through its service, and while lists are written; then its capacity.

The stores take turns within a round (A B, A B, …), so that whatever the machine does meanwhile affects all alike.
"""

import asyncio
import itertools
import re
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import uvloop

from bench.answers import CheckResult, check_answers
from bench.errors import BenchFailed
from bench.loadgen.capacity import PERCENTS, Objective, Point, disturbances, highest, point, search
from bench.loadgen.keys import Draw, Keys, Uniform
from bench.loadgen.load import Gets, Load
from bench.loadgen.recorder import Sample
from bench.loadgen.result import LAG_BOUND_US, Result
from bench.loadgen.schedule import constant
from bench.loadgen.workers import WorkerPool
from bench.process import on_core, own_memory_bytes
from bench.progress import ProgressDisplay
from bench.stores.publication import TrialPublisher, TrialResult, trial_publisher
from bench.stores.setup import Candidate, Setup, StoreServer, opened, store_settings
from stores.catalogue import ReleaseId, ReleaseRef
from stores.errors import StoreError, StoreThrottled
from stores.keys import USER
from stores.store import Store

PATH = "/v1/recommendations/{key}"
BATCHES = (1, 8, 64)
BATCHES_DRAWN = 2_000
TRIAL_LISTS = 50_000
WARMUP_CALLS = 50

# Responses of a run that are compared with the store.
COMPARED = 100

# How long reads go on while lists are written, as a share of a round.
PUBLISHING_SHARE = 0.4

# Pauses of a closed loop are drawn from half to one and a half of their mean.
THINK_SPREAD = 0.5

# The search for the highest rate: where it begins, in requests/s, and how long one attempt takes.
START_RATE = 1_000.0
ATTEMPT_S = 3.0

# From this share of popular lists on, users do not get the lists that they have: outside the objective.
POPULAR_BOUND = 0.01

# How late the generator may be at p99, as a share of the objective's lowest latency bound.
LATE_SHARE = 0.1

# From this share of a core on, the core is called the limit; what is left of it, others use.
FULL_CORE = 0.8

# An attempt that was outside for no reason that can be seen is repeated: the machine may have had other work.
NO_FULL_CORE = "no core was full"
STOPPED = "it was stopped"

# What a service's metrics call the request units that its reads were charged with, and the reads that were refused.
CHARGED, THROTTLED = "hotplate_store_request_units_total", "hotplate_store_throttled_total"

LATENCY_NAMES = re.compile("|".join(map(re.escape, PERCENTS)))

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured, read from the options: `rate` in requests/s, for `duration_s` a round.

    For an invalid round another one is made, at most `extra_rounds` of them. A trial release has `trial_lists`.
    """

    rounds: int = 10
    extra_rounds: int = 7
    rate: float = 2_000.0
    poisson: bool = False
    duration_s: float = 5.0
    closed_users: int | None = None
    think_s: float = 1.0
    warmup_s: float = 2.0
    direct: bool = True
    direct_s: float = 0.4
    trial_lists: int = TRIAL_LISTS
    connections: int = 64
    draw: Draw = field(default_factory=Uniform)
    objective: Objective | None = None


@dataclass(frozen=True, slots=True)
class LookupResult:
    """Reads of a store without a service: microseconds of a call (median), and per key the CPU of both sides."""

    call_us: float
    keys_per_s: float
    cpu_us: float
    server_cpu_us: float | None


@dataclass(frozen=True, slots=True)
class RequestUnits:
    """What the reads of a run were charged, and how many of them were refused with 429."""

    ru: float
    throttled: float


@dataclass(frozen=True, slots=True)
class ServiceRun:
    """One run through a service: its result, and the CPU of the service and of the store's server."""

    result: Result = field(repr=False)
    service_cpu_s: float
    server_cpu_s: float | None
    request_units: RequestUnits | None = None
    """None of a store that charges nothing."""

    @property
    def service_cpu_us(self) -> float:
        """CPU of the service for each good response."""
        return self.service_cpu_s * 1e6 / max(1, self.result.ok)

    @property
    def server_cpu_us(self) -> float | None:
        """CPU of the store's server for each good response."""
        return None if self.server_cpu_s is None else self.server_cpu_s * 1e6 / max(1, self.result.ok)

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


@dataclass(frozen=True, slots=True)
class PublishRun:
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
    """The search for the highest rate of one store: its points in order, and the run behind each."""

    points: tuple[Point, ...]
    runs: tuple[ServiceRun, ...]

    @property
    def best(self) -> tuple[Point, ServiceRun] | None:
        """The highest rate inside the objective, and its run."""
        best = highest(self.points)
        return None if best is None else (best, self._run_of(best))

    @property
    def first_outside(self) -> tuple[Point, ServiceRun] | None:
        """The lowest rate above it that was outside; None where the search was stopped before."""
        best = highest(self.points)
        above = [each for each in self.points if not each.inside and each.at > (best.at if best else 0.0)]
        lowest = min(above, key=lambda each: each.at, default=None)
        return None if lowest is None or lowest.stopped else (lowest, self._run_of(lowest))

    @property
    def limit(self) -> str:
        """What ended the search, in a few words."""
        if self.first_outside is None:
            return STOPPED
        ended, run = self.first_outside
        if any(reason.startswith(NO_FULL_CORE) for reason in ended.invalid_reasons):
            return NO_FULL_CORE
        return "the load generator" if ended.unclear else limit_of(run)

    def ending(self, *, emulated: bool) -> str:
        """Describe how the search ended; of an emulator without its latencies."""
        if self.first_outside is None:
            return STOPPED
        ended, run = self.first_outside
        reasons = ended.invalid_reasons if ended.unclear else ended.broken
        if emulated:
            reasons = tuple("its latency" if _names_a_latency(each) else each for each in reasons)
        server = "" if run.server_share is None else f", the store's server {run.server_share:.0%}"
        units = run.request_units
        refused = f", {units.throttled:,.0f} reads refused with 429" if units else ""
        used = f"the service used {run.service_share:.0%} of its core{server}{refused}"
        return f"outside at {ended.at:,.0f} requests/s by {' and '.join(reasons)}; {used}"

    def _run_of(self, point: Point) -> ServiceRun:
        return next(run for each, run in zip(self.points, self.runs, strict=True) if each is point)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use after the last round: of the load generator, a store's service, and its server where it has one."""

    generator: int
    service: int
    server: int | None


@dataclass(frozen=True, slots=True)
class StoreResult:
    """All that was measured of one store."""

    candidate: Candidate
    rounds: tuple[RoundResult, ...]
    memory: Memory
    checked: CheckResult
    capacity: Capacity | None = None


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """All that was measured; the n-th rounds of all stores were made side by side."""

    stores: tuple[StoreResult, ...]
    interrupted: bool


class StoreComparison:
    """A comparison while it is made."""

    def __init__(self, setup: Setup, settings: Settings, display: ProgressDisplay) -> None:
        self._setup = setup
        self._settings = settings
        self._display = display
        self._rounds = {each.name: list[RoundResult]() for each in setup.candidates}
        self._samples = {each.name: list[Sample]() for each in setup.candidates}
        self._capacities = dict[str, Capacity]()
        self._interrupted = False

    def run(self, *, publishing: bool) -> ComparisonResult:
        """Make all rounds, or the whole ones until Ctrl-C."""
        with ExitStack() as stack:
            with on_core(1):
                pool = stack.enter_context(WorkerPool())
            publishers = dict[str, TrialPublisher]()
            try:
                if publishing:
                    publishers = {each.name: self._publisher(stack, each) for each in self._setup.candidates}
                if self._settings.warmup_s:
                    warmup_s = self._settings.warmup_s
                    self._each(
                        "warm-up", warmup_s, lambda one: self._read(pool, one, self._open_load(one, 0, warmup_s))
                    )
                self._run_rounds(pool, publishers)
                if self._settings.objective:
                    self._find_capacities(pool, self._settings.objective)
            except KeyboardInterrupt:  # between two runs; within one the pool notices it, and ends the run
                self._interrupted = True
            generator = sum(own_memory_bytes(pid) for pid in pool.pids)
            results = tuple(self._result(one, generator) for one in self._setup.candidates)
            return ComparisonResult(results, self._interrupted)

    def _publisher(self, stack: ExitStack, one: Candidate) -> TrialPublisher:
        release = self._setup.manifest.release
        return stack.enter_context(trial_publisher(store_settings(one.url), release, self._settings.trial_lists))

    def _run_rounds(self, pool: WorkerPool, publishers: Mapping[str, TrialPublisher]) -> None:
        wanted = self._settings.rounds
        valid = made = 0
        while valid < wanted and made < wanted + self._settings.extra_rounds and not self._interrupted:
            made += 1
            valid += self._run_round(f"round {made}, {valid} of {wanted} valid", made, pool, publishers)

    def _run_round(self, name: str, number: int, pool: WorkerPool, publishers: Mapping[str, TrialPublisher]) -> bool:
        """Make a round, and keep it unless it was interrupted; return whether it was valid for all stores."""
        lookups, closed = dict[str, dict[int, LookupResult]](), dict[str, ServiceRun]()
        publishing = dict[str, PublishRun]()
        duration_s = self._settings.duration_s
        if self._settings.direct:
            lookups = self._each(f"{name}, reads without a service", 1.0, lambda one: self._look_up(one, number))
        if self._settings.closed_users:
            stage = f"{name}, {self._settings.closed_users} users"
            closed = self._each(stage, duration_s, lambda one: self._read(pool, one, self._closed_load(one, number)))
        reads = self._each(
            f"{name}, through the service",
            duration_s,
            lambda one: self._read(pool, one, self._open_load(one, number, duration_s)),
        )
        if publishers:
            publishing = self._each(
                f"{name}, while lists are written",
                duration_s * PUBLISHING_SHARE,
                lambda one: self._publish(publishers[one.name], pool, one, number),
            )
        if self._interrupted:
            return False
        made = [
            RoundResult(lookups.get(each, {}), closed.get(each), reads[each], publishing.get(each)) for each in reads
        ]
        for each, result in zip(reads, made, strict=True):
            self._rounds[each].append(result)
        return not any(result.invalid_reasons for result in made)

    def _each(self, stage: str, duration_s: float, measure: Callable[[Candidate], T]) -> dict[str, T]:
        results = dict[str, T]()
        for one in self._setup.candidates:
            self._display.start(f"{stage}: {one.name}", duration_s)
            results[one.name] = measure(one)
        return results

    def _look_up(self, one: Candidate, number: int) -> dict[int, LookupResult]:
        keys = iter(self._keys(number))
        results = dict[int, LookupResult]()
        for size in BATCHES:
            batches = [[USER + user for user in itertools.islice(keys, size)] for _ in range(BATCHES_DRAWN)]
            with on_core(0):
                release = self._setup.manifest.release
                results[size] = look_up(one.url, one.server, release, batches, self._settings.direct_s)
        return results

    def _keys(self, seed: int) -> Keys:
        """Return the users of a round: the same for all stores, and others in the next one."""
        return Keys(self._setup.users, self._settings.draw, seed=seed)

    def _open_load(self, one: Candidate, number: int, duration_s: float) -> Load:
        settings = self._settings
        return Load(
            url=one.service.url,
            requests=Gets(PATH, self._keys(number)),
            arrivals=constant(settings.rate, duration_s, number if settings.poisson else None),
            duration_s=duration_s,
            connections=settings.connections,
            observe=("source",),
            sample_every=max(1, int(settings.rate * duration_s / COMPARED)) | 1,
        )

    def _closed_load(self, one: Candidate, number: int) -> Load:
        return Load(
            url=one.service.url,
            requests=Gets(PATH, self._keys(number)),
            duration_s=self._settings.duration_s,
            think_s=self._settings.think_s,
            think_spread=THINK_SPREAD,
            connections=self._settings.closed_users or 1,
            observe=("source",),
        )

    def _read(self, pool: WorkerPool, one: Candidate, load: Load) -> ServiceRun:
        charged, service_s, server_s = request_units(one.service.url), one.service.cpu_s(), one.server.cpu_s()
        result = pool.run(load, self._display.update)
        server_after_s, service_after_s = one.server.cpu_s(), one.service.cpu_s()
        charged_after = request_units(one.service.url)
        self._samples[one.name] += result.samples
        self._interrupted = self._interrupted or result.interrupted
        units = None
        if charged is not None and charged_after is not None:
            units = RequestUnits(charged_after.ru - charged.ru, charged_after.throttled - charged.throttled)
        return ServiceRun(
            replace(result, samples=()),
            service_after_s - service_s,
            None if server_s is None or server_after_s is None else server_after_s - server_s,
            units,
        )

    def _publish(self, publisher: TrialPublisher, pool: WorkerPool, one: Candidate, number: int) -> PublishRun:
        alone = publisher.write_one()
        publisher.start()
        reads = self._read(pool, one, self._open_load(one, number, self._settings.duration_s * PUBLISHING_SHARE))
        return PublishRun(alone, reads, publisher.stop())

    def _find_capacities(self, pool: WorkerPool, objective: Objective) -> None:
        for one in self._setup.candidates:
            if self._interrupted:
                return
            points, runs = list[Point](), list[ServiceRun]()

            def attempt(rate: float, one: Candidate = one, runs: list[ServiceRun] = runs) -> Point:
                duration_s = min(ATTEMPT_S, self._settings.duration_s)
                self._display.start(f"{one.name}, {rate:,.0f} requests/s", duration_s)
                keys = Gets(PATH, self._keys(round(rate)))
                load = Load(url=one.service.url, requests=keys, rate=rate, duration_s=duration_s, observe=("source",))
                runs.append(self._read(pool, one, load))
                return capacity_point(rate, runs[-1], objective)

            for each in search(attempt, START_RATE):
                points.append(each)
                self._capacities[one.name] = Capacity(tuple(points), tuple(runs))

    def _result(self, one: Candidate, generator: int) -> StoreResult:
        memory = Memory(generator, one.service.memory_bytes(), one.server.memory_bytes())
        checked = asyncio.run(check_answers(one.url, self._samples[one.name]))
        return StoreResult(one, tuple(self._rounds[one.name]), memory, checked, self._capacities.get(one.name))


def capacity_point(rate: float, run: ServiceRun, objective: Objective) -> Point:
    """Sum up an attempt, and hold it against the objective; whose fault it was is decided by whose core was full."""
    late_us = max(LAG_BOUND_US, min(objective.latency_us.values(), default=0.0) * LATE_SHARE)
    invalid_reasons = list(disturbances(run.result, late_us))
    broken = objective.broken(run.result)
    if invalid_reasons and not replace(objective, latency_us={}).broken(run.result):
        broken = []  # a late generator spoils latencies, and nothing else
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
    if run.service_share >= FULL_CORE:
        return "the service's core"
    if run.server_share is not None and run.server_share >= FULL_CORE:
        return "the store's server"
    return NO_FULL_CORE


def _names_a_latency(sentence: str) -> bool:
    """Return whether a sentence is about latencies of responses; the generator's own lag is none."""
    return LATENCY_NAMES.search(sentence) is not None and not sentence.startswith("the generator")


def request_units(url: str) -> RequestUnits | None:
    """Read from a service's metrics what its reads were charged so far; None where its store charges nothing."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:  # noqa: S310 -- a service that was started here
        lines = response.read().decode().splitlines()
    if not any(line.startswith(CHARGED) for line in lines):
        return None
    return RequestUnits(_sum(lines, CHARGED), _sum(lines, THROTTLED))


def _sum(lines: Sequence[str], name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def look_up(
    url: str, server: StoreServer, release: ReleaseId, batches: Sequence[Sequence[str]], for_s: float
) -> LookupResult:
    """Read *batches* of keys, one call after the other, for a while. Raises BenchFailed where a list is missing."""
    return uvloop.run(_look_up(url, server, release, batches, for_s))


async def _look_up(
    url: str, server: StoreServer, release: ReleaseId, batches: Sequence[Sequence[str]], for_s: float
) -> LookupResult:
    remaining = itertools.cycle(batches)
    async with opened(url) as store:
        ref = (await store.catalogue()).find(release).ref
        for batch in itertools.islice(remaining, WARMUP_CALLS):
            await _read_batch(store, ref, batch)
        server_s, cpu_s, started_s = server.cpu_s(), time.process_time(), time.perf_counter()
        ends_s = list[float]()
        keys = 0
        while not ends_s or ends_s[-1] < started_s + for_s:
            keys += await _read_batch(store, ref, next(remaining))
            ends_s.append(time.perf_counter())
        if not keys:
            raise BenchFailed(
                "the store refused every read, as its throughput was used up; give it more for a comparison"
            )
        cpu_s, took_s = time.process_time() - cpu_s, ends_s[-1] - started_s
        server_after_s = await asyncio.to_thread(server.cpu_s)
    return LookupResult(
        call_us=float(np.median(np.diff([started_s, *ends_s]))) * 1e6,
        keys_per_s=keys / took_s,
        cpu_us=cpu_s * 1e6 / keys,
        server_cpu_us=None if server_s is None or server_after_s is None else (server_after_s - server_s) * 1e6 / keys,
    )


async def _read_batch(store: Store, release: ReleaseRef, batch: Sequence[str]) -> int:
    """Read a batch; return how many lists came, as a store may refuse what its throughput does not cover."""
    try:
        slots = await store.get_many(release, batch)
    except StoreThrottled:
        return 0
    for slot in slots:
        if slot is None:
            raise BenchFailed(f"a list is missing among {', '.join(batch[:8])}")
        if isinstance(slot, StoreError) and not isinstance(slot, StoreThrottled):
            raise slot
    return sum(isinstance(slot, bytes) for slot in slots)
