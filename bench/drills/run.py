"""Drills from end to end: an instance under steady load, the fault, what is seen of it, and the verdict."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from bench.answers import check_answers
from bench.drills.drills import Drill, Metric
from bench.drills.instance import USERS, Instance, key_of, started
from bench.drills.verdict import (
    AFTER,
    BEFORE,
    FAULT,
    OWN_SHARE,
    PHASES,
    Movement,
    Objective,
    Observation,
    Verdict,
    judge,
    phase_of,
)
from bench.errors import BenchFailed, BenchMisused
from bench.loadgen.keys import InTurn, Keys
from bench.loadgen.load import KEY, Gets, Load
from bench.loadgen.recorder import Sample
from bench.loadgen.result import Result
from bench.loadgen.workers import WorkerPool
from bench.process import read_samples
from stores.keys import USER

PATH = f"/v1/recommendations/{KEY}"
CONNECTIONS = 16

# When a request is given up, and counts as not answered.
ANSWER_TIMEOUT_S = 10.0

# The load is made in windows, so it can go on for as long as a fault does; the first is for warming up.
WINDOW_S, WINDOWS = 0.5, 2
WARM_UP = "warm-up"

# How often metrics and readiness are looked at, and how long one look may take.
LOOK_S, LOOK_TIMEOUT_S = 0.2, 10.0

# So many answers in a row, of different users, show that the first tier answers again.
IN_A_ROW = 10

# What a p99 may take beyond the budget of all reads of a request.
MARGIN_S = 0.2

# Says which drill is where.
OnStage = Callable[[str], None]
OnVerdict = Callable[[Verdict], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillOptions:
    """How drills are made; the same for all of them. Times are in seconds."""

    tiers: tuple[str, ...] = ()
    """The kinds of stores, the one that is disturbed first; empty for those of each drill."""

    rate: float = 300.0
    budget_s: float = 0.05
    duration_s: float = 3.0
    p99_s: float | None = None
    recover_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what is not a quantity."""
        for name in ("rate", "budget_s", "duration_s", "p99_s", "recover_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BenchMisused(f"{name.removesuffix('_s')} must be above zero, and is {value:g}")

    def objective(self, drill: Drill, tiers: Sequence[str]) -> Objective:
        """Return what is promised: users keep their own lists where another tier has them."""
        own_share = OWN_SHARE if len(tiers) > 1 else drill.own_alone
        return Objective(own_share, self.p99_s or self.budget_s + MARGIN_S, self.recover_s)


async def run_drills(
    drills: Sequence[Drill], options: DrillOptions, on_stage: OnStage, on_verdict: OnVerdict
) -> list[Verdict]:
    """Make drills one after the other; those in a row that have the same tiers share an instance while that is well.

    Raises BenchFailed if an instance does not come up.
    """
    verdicts = list[Verdict]()
    with WorkerPool() as pool:
        for tiers, in_a_row in groupby(drills, key=lambda drill: drill.tiers(options.tiers)):
            waiting = deque(in_a_row)
            while waiting:
                on_stage(f"starting {', '.join(tiers)} and a service")
                async with started(tiers, options.budget_s) as instance:
                    if await _settled(instance, options.recover_s) is None:
                        raise BenchFailed(f"the test instance did not come up within {options.recover_s:g} s")
                    is_well = True
                    while waiting and is_well:
                        verdict = await run_drill(waiting.popleft(), options, instance, pool, on_stage)
                        is_well = verdict.observed.recovered_s is not None
                        verdicts.append(verdict)
                        on_verdict(verdict)
    return verdicts


async def run_drill(
    drill: Drill, options: DrillOptions, instance: Instance, pool: WorkerPool, on_stage: OnStage
) -> Verdict:
    """Make one drill on an instance that is well."""
    tiers = tuple(tier.name for tier in instance.tiers)
    async with _loaded(instance, options.rate, pool) as load:
        observed = await _observe(drill, options, instance, load, on_stage)
    return Verdict(drill.name, drill.what, tiers, judge(observed, options.objective(drill, tiers)), observed)


async def _observe(
    drill: Drill, options: DrillOptions, instance: Instance, load: "SteadyLoad", on_stage: OnStage
) -> Observation:
    on_stage(f"{drill.name}: load without a fault")
    await load.windows(BEFORE, WINDOWS)
    watch = Watch(instance, drill.metrics)
    await watch.begin()
    on_stage(f"{drill.name}: {drill.what}")
    load.phase = FAULT
    async with drill.fault(instance):
        await watch.look_on(options.duration_s, options.recover_s)
    on_stage(f"{drill.name}: until all is as before")
    recovered_s = await _settled(instance, options.recover_s)
    await load.windows(AFTER, WINDOWS)
    await load.end()
    return Observation(
        phases={phase: phase_of(load.results[phase]) for phase in PHASES},
        compared=await check_answers(
            instance.published,
            [sample for results in load.results.values() for each in results for sample in each.samples],
        ),
        probes=watch.probes,
        unready=watch.unready,
        movements=watch.movements(),
        recovered_s=recovered_s,
    )


class SteadyLoad:
    """An open loop that goes on, window after window, until it is ended; lives for one drill."""

    def __init__(self, load: Load, pool: WorkerPool) -> None:
        self.phase = WARM_UP
        """To which windows belong that begin now; all that touch a fault are the fault's."""
        self.results = defaultdict[str, list[Result]](list)
        self._load = load
        self._pool = pool
        self._over = False
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._over:
            began = self.phase
            result = await asyncio.to_thread(self._pool.run, self._load)
            self.results[FAULT if self.phase == FAULT else began].append(result)

    async def windows(self, phase: str, count: int) -> None:
        """Wait for so many whole windows of a phase that begins now."""
        self.phase = phase
        while len(self.results[phase]) < count:
            if self._running.done():
                self._running.result()  # raises what ended it
            await asyncio.sleep(WINDOW_S / 10)

    def samples(self) -> list[Sample]:
        """Return all requests and responses so far."""
        return [sample for results in self.results.values() for each in results for sample in each.samples]

    async def end(self) -> None:
        """Let the window that has begun be the last."""
        self._over = True
        await self._running


@asynccontextmanager
async def _loaded(instance: Instance, rate: float, pool: WorkerPool) -> AsyncIterator[SteadyLoad]:
    users = tuple(key_of(number).removeprefix(USER) for number in range(USERS))
    load = SteadyLoad(
        Load(
            url=instance.service.url,
            requests=Gets(PATH, Keys(users, InTurn())),
            rate=rate,
            duration_s=WINDOW_S,
            connections=CONNECTIONS,
            timeout_s=ANSWER_TIMEOUT_S,
            observe=("source", "tier"),
            sample_every=1,
        ),
        pool,
    )
    try:
        yield load
    finally:
        await load.end()


class Watch:
    """What operators see of a service while a fault lasts: its metrics, and whether it stays ready."""

    def __init__(self, instance: Instance, metrics: Sequence[Metric]) -> None:
        self._instance = instance
        self._metrics = [(metric, metric.labels_in(instance)) for metric in metrics if metric.in_instance(instance)]
        self._before = list[float]()
        self._highest = list[float]()
        self._after_s = list[float | None]()
        self._began_s = 0.0
        self.probes = self.unready = 0

    async def begin(self) -> None:
        """Take the values of now as those before the fault."""
        self._before = await self._read()
        self._highest = list(self._before)
        self._after_s = [None] * len(self._metrics)
        self._began_s = time.monotonic()

    async def look_on(self, duration_s: float, most_s: float) -> None:
        """Look for so long, and on until every metric has risen, for *most_s* at most."""
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < duration_s or (None in self._after_s and passed_s < most_s):
            status, _ = await asyncio.to_thread(_get, f"{self._instance.service.url}/readyz")
            self.probes += 1
            self.unready += status != 200
            with suppress(OSError):  # a service that is gone has no metrics, and is not ready
                self._note(await self._read())
            await asyncio.sleep(LOOK_S)

    def _note(self, values: Sequence[float]) -> None:
        for place, ((metric, _), value) in enumerate(zip(self._metrics, values, strict=True)):
            self._highest[place] = max(self._highest[place], value)
            if self._after_s[place] is None and value > self._before[place] + metric.by:
                self._after_s[place] = time.monotonic() - self._began_s

    async def _read(self) -> list[float]:
        samples = await asyncio.to_thread(read_samples, f"{self._instance.service.admin_url}/metrics")
        return [
            sum(each.value for each in samples if each.name == metric.name and labels.items() <= each.labels.items())
            for metric, labels in self._metrics
        ]

    def movements(self) -> tuple[Movement, ...]:
        """Return what became of each metric."""
        seen = zip(self._metrics, self._before, self._highest, self._after_s, strict=True)
        return tuple(
            Movement(metric.says, _written(metric.name, labels), before, highest, after_s)
            for (metric, labels), before, highest, after_s in seen
        )


def _written(name: str, labels: dict[str, str]) -> str:
    written = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{written}}}" if labels else name


async def _settled(instance: Instance, within_s: float) -> float | None:
    """Wait until the first tier answers everybody out of the newer release, and the service says that it is well.

    Return how long that took, in seconds, or None if it took longer than *within_s*.
    """
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < within_s:
        if await asyncio.to_thread(_is_well, instance):
            return passed_s
        await asyncio.sleep(LOOK_S)
    return None


def _is_well(instance: Instance) -> bool:
    expected = ("personal", instance.first.name, instance.newer)
    for number in range(IN_A_ROW):
        path = PATH.replace(KEY, key_of(number).removeprefix(USER))
        _, answer = _get(instance.service.url + path)
        if tuple(answer.get(name) for name in ("source", "tier", "release")) != expected:
            return False
    return bool(_get(f"{instance.service.admin_url}/readyz")[1].get("status") == "ready")


def _get(url: str) -> tuple[int, dict[str, Any]]:
    """Request a page of JSON of the instance; a status of 0 if it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=LOOK_TIMEOUT_S) as response:  # noqa: S310 -- on loopback
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}
    except OSError:
        return 0, {}
