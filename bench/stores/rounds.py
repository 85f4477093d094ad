"""The rounds of a comparison: each store directly, through its service, and while lists are written; then its capacity.

Rounds are short and many. The stores take turns within a round, in the other order in every second one (A B, B A, …),
so what the machine does affects all alike, and so does what changes meanwhile.
"""

import asyncio
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import uvloop

from hotplate.bench.answers import check_answers
from hotplate.bench.errors import BenchFailed
from hotplate.bench.loadgen.capacity import Objective, Point
from hotplate.bench.loadgen.keys import KeyDraw, RequestKeys
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.recorder import ResponseSample
from hotplate.bench.loadgen.stalls import measure_stolen
from hotplate.bench.loadgen.workers import WorkerPool
from hotplate.bench.options import StoresOptions
from hotplate.bench.process import GENERATOR_CORE, SERVICE_CORE, on_core, read_metrics
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.search import search
from hotplate.bench.stores import results
from hotplate.bench.stores.publication import TrialPublisher, trial_publisher
from hotplate.bench.stores.server import StoreServer, difference, opened
from hotplate.bench.stores.setup import CandidateStore, Setup, store_settings
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.errors import StoreError, StoreThrottled
from hotplate.stores.keys import USER
from hotplate.stores.store import Store
from hotplate.stores.urls import scheme_of

PATH = "/v1/recommendations/{key}"
BATCHES = (1, 8, 64)
BATCHES_DRAWN = 2_000
TRIAL_LISTS = 20_000
LOOK_UP_S = 0.05

# Lookups have a deadline: without one a store that refuses is waited for, as publishers do.
LOOKUP_TIMEOUT_S = 1.0

# A store that refuses all reads for so long ends the measurement: its throughput is per second.
REFUSING_S = 3.0

# For each invalid round another one is made, at most so many: what disturbs three of them disturbs the next, too.
MOST_EXTRA_ROUNDS = 2

# The cores in use: that of the services and that of the load generator.
CORES = 2

WARMUP_CALLS = 50

# What a budget keeps for after the rounds, and more for each of them: starting Python before, and then reading memory,
# comparing answers, drawing the report and ending servers.
AFTER_S = 10.0
AFTER_ROUND_S = 0.1

# Responses of a run that are compared with the store.
COMPARED = 100

# How long reads go on while lists are written, as a share of a round.
PUBLISHING_SHARE = 0.4

# Pauses of a closed loop are drawn from half to one and a half of their mean.
THINK_SPREAD = 0.5

# The search for the highest rate: where it begins, in requests/s, and how long one attempt takes.
START_RATE = 1_000.0
ATTEMPT_S = 3.0

# What a service's metrics call the request units that its reads were charged with, and the reads that were refused.
CHARGED = "hotplate_store_request_units_total"
READS = "hotplate_store_charged_responses_total"
THROTTLED = "hotplate_store_throttled_total"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSettings:
    """The options of a comparison, and those of them that are texts as what they mean."""

    options: StoresOptions
    rate: float
    duration_s: float
    """Of the reads of one store in one round."""

    ends_s: float = math.inf
    """When the budget is used up, by `time.monotonic`: no round is begun that would not end before."""

    think_s: float
    warmup_s: float
    draw: KeyDraw
    objective: Objective | None


class StoreComparison:
    """A comparison while it is made."""

    def __init__(self, setup: Setup, settings: ComparisonSettings, display: ProgressDisplay) -> None:
        self._setup = setup
        self._settings = settings
        self._display = display
        self._rounds = {each.name: list[results.RoundResult]() for each in setup.candidates}
        self._samples = {each.name: list[ResponseSample]() for each in setup.candidates}
        self._capacities = dict[str, results.Capacity]()
        self._interrupted = False
        self._round_s = 0.0
        """How long a round takes, with what lies between two."""

    def run(self, *, publishing: bool) -> results.ComparisonResult:
        """Make all rounds, or the whole ones until Ctrl-C."""
        with ExitStack() as stack:
            pool = stack.enter_context(WorkerPool(core=GENERATOR_CORE))
            publishers = dict[str, TrialPublisher]()
            try:
                if publishing:
                    publishers = {each.name: self._publisher(stack, each) for each in self._setup.candidates}
                if warmup_s := self._settings.warmup_s:
                    self._each(
                        0, "warm-up", warmup_s, lambda one: self._read(pool, one, self._open_load(one, 0, warmup_s))
                    )
                self._run_rounds(pool, publishers)
                if objective := self._settings.objective:
                    for one in self._setup.candidates:
                        if not self._interrupted:
                            self._find_capacity(pool, one, objective)
            except KeyboardInterrupt:  # between two runs; within one the pool notices it, and ends the run
                self._interrupted = True
            self._display.start("comparing answers with the stores", 1.0)
            found = tuple(self._result(one) for one in self._setup.candidates)
            return results.ComparisonResult(found, self._interrupted, pool.placement, self._round_s)

    def _publisher(self, stack: ExitStack, one: CandidateStore) -> TrialPublisher:
        release = self._setup.manifest.release
        self._display.start(f"measuring how fast lists are written into {one.name}", 1.0)
        return stack.enter_context(
            trial_publisher(store_settings(one.url), release, min(TRIAL_LISTS, self._settings.options.users))
        )

    def _run_rounds(self, pool: WorkerPool, publishers: Mapping[str, TrialPublisher]) -> None:
        rounds = self._settings.options.repeat or math.inf
        valid, made, first_s = 0, 0, time.monotonic()
        while valid < rounds and made < rounds + MOST_EXTRA_ROUNDS and not self._interrupted:
            left_s = self._settings.ends_s - AFTER_S - AFTER_ROUND_S * made - time.monotonic()
            if made and left_s < self._round_s:
                return
            made += 1
            valid += self._run_round(f"round {made}, {max(0, left_s):.0f} s left", made, pool, publishers)
            self._round_s = (time.monotonic() - first_s) / made

    def _run_round(self, name: str, number: int, pool: WorkerPool, publishers: Mapping[str, TrialPublisher]) -> bool:
        """Make a round, and keep it unless it was interrupted; return whether it was valid for all stores."""
        lookups, closed = dict[str, dict[int, results.LookupResult]](), dict[str, results.ServiceRun]()
        publishing, duration_s = dict[str, results.PublishRun](), self._settings.duration_s
        if self._settings.options.direct:
            stage = f"{name}, reads without a service"
            batches, release = self._batches(number), self._setup.manifest.release
            lookups = self._each(
                number, stage, 1.0, lambda one: look_up(one.url, one.server, release, batches, LOOK_UP_S)
            )
        if users := self._settings.options.closed_users:
            stage = f"{name}, {users} users"
            closed = self._each(
                number, stage, duration_s, lambda one: self._read(pool, one, self._closed_load(one, number))
            )
        reads = self._each(
            number,
            f"{name}, through the service",
            duration_s,
            lambda one: self._read(pool, one, self._open_load(one, number, duration_s)),
        )
        if publishers:
            publishing = self._each(
                number,
                f"{name}, while lists are written",
                duration_s * PUBLISHING_SHARE,
                lambda one: self._publish(publishers[one.name], pool, one, number),
            )
        if self._interrupted:
            return False
        made = [
            results.RoundResult(lookups.get(each, {}), closed.get(each), reads[each], publishing.get(each))
            for each in self._rounds
        ]
        for each, result in zip(self._rounds, made, strict=True):
            self._rounds[each].append(result)
        return not any(result.invalid_reasons for result in made)

    def _each(self, number: int, stage: str, duration_s: float, measure: Callable[[CandidateStore], T]) -> dict[str, T]:
        """Measure each store, in the other order in every second round."""
        measured = dict[str, T]()
        for one in self._setup.candidates[:: -1 if number % 2 else 1]:
            self._display.start(f"{stage}: {one.name}", duration_s)
            measured[one.name] = measure(one)
        return measured

    def _batches(self, number: int) -> dict[int, list[list[str]]]:
        keys = (USER + user for user in self._keys(number))
        return {size: [list(itertools.islice(keys, size)) for _ in range(BATCHES_DRAWN)] for size in BATCHES}

    def _keys(self, seed: int) -> RequestKeys:
        """Return the users of a round: the same for all stores, and others in the next one."""
        return RequestKeys(self._setup.users, self._settings.draw, seed=seed)

    def _open_load(self, one: CandidateStore, number: int, duration_s: float) -> Load:
        settings = self._settings
        return replace(
            self._load(one, number),
            rate=settings.rate,
            seed=number if settings.options.poisson else None,
            duration_s=duration_s,
            sample_every=max(1, int(settings.rate * duration_s / COMPARED)) | 1,
        )

    def _closed_load(self, one: CandidateStore, number: int) -> Load:
        settings, users = self._settings, self._settings.options.closed_users or 1
        load = self._load(one, number)
        return replace(load, think_s=settings.think_s, think_spread=THINK_SPREAD, connections=users)

    def _load(self, one: CandidateStore, seed: int) -> Load:
        requests, duration_s = Gets(PATH, self._keys(seed)), self._settings.duration_s
        return Load(url=one.service.url, requests=requests, duration_s=duration_s, observe=("source",))

    def _read(self, pool: WorkerPool, one: CandidateStore, load: Load) -> results.ServiceRun:
        charged, service_s, server_s = _charged(one), one.service.cpu_s(), one.server.cpu_s()
        stolen = measure_stolen(CORES)
        result = pool.run(load, self._display.update)
        result = replace(result, stolen=stolen())
        server_after_s, service_after_s = one.server.cpu_s(), one.service.cpu_s()
        charged_after = _charged(one)
        self._samples[one.name] += result.samples
        self._interrupted = self._interrupted or result.interrupted
        units = None
        if charged is not None and charged_after is not None:
            units = results.RequestUnits(
                *(after - before for after, before in zip(charged_after, charged, strict=True))
            )
        return results.ServiceRun(
            replace(result, samples=()),
            service_after_s - service_s,
            difference(server_after_s, server_s),
            units,
            one_core=self._setup.started_here and len(os.sched_getaffinity(0)) == CORES,
        )

    def _publish(
        self, publisher: TrialPublisher, pool: WorkerPool, one: CandidateStore, number: int
    ) -> results.PublishRun:
        alone = publisher.write_one()
        publisher.start()
        reads = self._read(pool, one, self._open_load(one, number, self._settings.duration_s * PUBLISHING_SHARE))
        return results.PublishRun(alone, reads, publisher.stop())

    def _find_capacity(self, pool: WorkerPool, one: CandidateStore, objective: Objective) -> None:
        attempts = list[tuple[Point, results.ServiceRun]]()

        def attempt(rate: float) -> Point:
            duration_s = min(ATTEMPT_S, self._settings.duration_s)
            self._display.start(f"{one.name}, {rate:,.0f} requests/s", duration_s)
            run = self._read(pool, one, replace(self._load(one, round(rate)), rate=rate, duration_s=duration_s))
            attempts.append((results.capacity_point(rate, run, objective), run))
            return attempts[-1][0]

        for _ in search(attempt, START_RATE):
            self._capacities[one.name] = results.Capacity(tuple(attempts))

    def _result(self, one: CandidateStore) -> results.StoreResult:
        memory = results.StoreMemory(one.service.memory_bytes(), one.server.memory_bytes())
        checked = asyncio.run(check_answers(one.url, self._samples[one.name]))
        return results.StoreResult(one, tuple(self._rounds[one.name]), memory, checked, self._capacities.get(one.name))


def _charged(one: CandidateStore) -> results.RequestUnits | None:
    """Read what a store charged so far; the others' services are not kept busy with that beside each run."""
    return request_units(one.service.admin_url) if scheme_of(one.url).startswith("cosmos") else None


def request_units(admin_url: str) -> results.RequestUnits | None:
    """Read from a service's metrics what its reads were charged so far; None if its store charges nothing."""
    found = [read_metrics(f"{admin_url}/metrics", name) for name in (CHARGED, READS, THROTTLED)]
    return results.RequestUnits(*map(sum, found)) if found[0] else None


def look_up(
    url: str, server: StoreServer, release: ReleaseId, batches: Mapping[int, Sequence[Sequence[str]]], for_s: float
) -> dict[int, results.LookupResult]:
    """Read batches of keys of each size, one call after the other, for a while each, on the services' core.

    Raises BenchFailed if a list is missing.
    """

    async def all_sizes() -> dict[int, results.LookupResult]:
        async with opened(url) as store:
            ref = (await store.catalogue()).find(release).ref
            return {size: await _look_up(store, server, ref, some, for_s) for size, some in batches.items()}

    with on_core(SERVICE_CORE):
        return uvloop.run(all_sizes())


async def _look_up(
    store: Store, server: StoreServer, release: ReleaseRef, batches: Sequence[Sequence[str]], for_s: float
) -> results.LookupResult:
    remaining = itertools.cycle(batches)
    warm_s = time.perf_counter() + for_s
    for batch in itertools.islice(remaining, WARMUP_CALLS):
        await _read_batch(store, release, batch)
        if time.perf_counter() > warm_s:
            break
    server_s, cpu_s, started_s = server.cpu_s(), time.process_time(), time.perf_counter()
    ends_s = list[float]()
    keys = 0
    while not ends_s or ends_s[-1] < started_s + (for_s if keys else REFUSING_S):
        keys += await _read_batch(store, release, next(remaining))
        ends_s.append(time.perf_counter())
    if not keys:
        raise BenchFailed("the store refused every read, as its throughput was used up; give it more for a comparison")
    cpu_s, took_s = time.process_time() - cpu_s, ends_s[-1] - started_s
    server_used_s = difference(await asyncio.to_thread(server.cpu_s), server_s)
    return results.LookupResult(
        call_us=float(np.median(np.diff([started_s, *ends_s]))) * 1e6,
        keys_per_s=keys / took_s,
        cpu_us=cpu_s * 1e6 / keys,
        server_cpu_us=None if server_used_s is None else server_used_s * 1e6 / keys,
    )


async def _read_batch(store: Store, release: ReleaseRef, batch: Sequence[str]) -> int:
    """Read a batch; return how many lists came, as a store may refuse what its throughput does not cover."""
    try:
        slots = await store.get_many(release, batch, timeout_s=LOOKUP_TIMEOUT_S)
    except StoreThrottled:
        return 0
    for slot in slots:
        if slot is None:
            raise BenchFailed(f"a list is missing among {', '.join(batch[:8])}")
        if isinstance(slot, StoreError) and not isinstance(slot, StoreThrottled):
            raise slot
    return sum(isinstance(slot, bytes) for slot in slots)
