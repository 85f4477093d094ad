"""The rounds of a comparison: the stores take turns, in the other order in every second round (A B, B A, …).

So what the machine does meanwhile affects all stores alike.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hotplate.bench.lists import CheckResult, check_answers, popular_complaint
from hotplate.bench.loadgen.load import Gets, KeyDraw, Load, RequestKeys
from hotplate.bench.loadgen.result import ResponseSample, Result
from hotplate.bench.loadgen.workers import WorkerPool
from hotplate.bench.process import GENERATOR_CORE, store_counts
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.stores.setup import Candidate, Setup, through_sdk

PATH = "/v1/recommendations/{key}"

# Responses of a round that are compared with the store.
COMPARED = 20

# What a budget keeps for the time after the rounds: answers are compared, the report is drawn, and servers are ended.
AFTER_S = 15.0

# azure-cosmos takes a millisecond of CPU a read or more. Faster, a core that others use, too, would not keep up.
SDK_RATE = 100.0

MAX_ERRORS = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """How rounds are made; `rounds` and `ends_s` (by `time.monotonic`) end them, whichever comes first."""

    rate: float
    duration_s: float
    warmup_s: float
    draw: KeyDraw
    rounds: float = math.inf
    ends_s: float = math.inf
    poisson: bool = False
    connections: int = 64

    def rate_of(self, one: Candidate) -> float:
        """Return the requests/s to a store: fewer through the SDK."""
        return min(self.rate, SDK_RATE) if through_sdk(one.url) else self.rate

    def duration_of(self, one: Candidate) -> float:
        """Return how long a store is read in a round: longer at a lower rate, but not for as many answers."""
        return self.duration_s * min(2.0, self.rate / self.rate_of(one))


class RequestUnits(NamedTuple):
    """The request units of a run, and its responses that were charged."""

    ru: float
    reads: float


@dataclass(frozen=True, slots=True)
class ServiceRun:
    """One run through a service: its result, the CPU of the service, and request units of a store that is metered."""

    result: Result
    cpu_s: float
    units: RequestUnits | None = None

    @property
    def cpu_us(self) -> float:
        """CPU of the service for each good response."""
        return self.cpu_s * 1e6 / max(1, self.result.ok)


@dataclass(frozen=True, slots=True)
class StoreRuns:
    """All that was measured of one store, round by round."""

    candidate: Candidate
    runs: tuple[ServiceRun, ...]
    checked: CheckResult

    @property
    def results(self) -> list[Result]:
        """Return the result of each round."""
        return [run.result for run in self.runs]

    @property
    def complaints(self) -> list[str]:
        """Say why this is no measurement of the store: popular lists, errors, wrong lists."""
        found = [complaint] if (complaint := popular_complaint(self.results)) else []
        due, ok = (sum(getattr(each, name) for each in self.results) for name in ("due", "ok"))
        if due - ok > MAX_ERRORS * due:
            found.append(f"{due - ok:,} of {due:,} requests got no good answer")
        if self.checked.wrong:
            found.append(f"{self.checked.wrong} of {self.checked.compared} compared answers were wrong")
        return [f"{self.candidate.name}: {each}" for each in found]


class Measured(NamedTuple):
    """All stores; the n-th runs of all were made side by side."""

    stores: tuple[StoreRuns, ...]
    interrupted: bool


class Rounds:
    """The rounds of a comparison while they are made."""

    def __init__(self, setup: Setup, settings: RoundSettings, display: ProgressDisplay) -> None:
        self._setup = setup
        self._settings = settings
        self._display = display
        self._runs = {one.name: list[ServiceRun]() for one in setup.candidates}
        self._samples = {one.name: list[ResponseSample]() for one in setup.candidates}
        self._interrupted = False

    def run(self) -> Measured:
        """Make all rounds, or the whole ones until Ctrl-C."""
        with WorkerPool(core=GENERATOR_CORE) as pool:
            try:
                self._warm_up(pool)
                self._run_all(pool)
            except KeyboardInterrupt:  # between two runs; within one the pool ends that
                self._interrupted = True
        self._display.start("comparing answers with the stores", 1.0)
        stores = tuple(
            StoreRuns(one, tuple(self._runs[one.name]), asyncio.run(check_answers(one.url, self._samples[one.name])))
            for one in self._setup.candidates
        )
        return Measured(stores, self._interrupted)

    def _warm_up(self, pool: WorkerPool) -> None:
        if self._settings.warmup_s:
            for one in self._setup.candidates:
                self._display.start(f"warming up {one.name}", self._settings.warmup_s)
                self._read(pool, one, replace(self._load(one, 0), duration_s=self._settings.warmup_s))

    def _run_all(self, pool: WorkerPool) -> None:
        began_s, made = time.monotonic(), 0
        while made < self._settings.rounds and not self._interrupted:
            left_s = self._settings.ends_s - AFTER_S - time.monotonic()
            if made and left_s < (time.monotonic() - began_s) / made:
                return
            made += 1
            self._run_round(pool, made, left_s)

    def _run_round(self, pool: WorkerPool, number: int, left_s: float) -> None:
        """Make a round, and keep it unless it was interrupted."""
        runs = dict[str, ServiceRun]()
        left = "" if math.isinf(left_s) else f", {max(0.0, left_s):.0f} s left"
        names = ", ".join(one.name for one in self._setup.candidates)
        self._display.start(f"round {number}{left}: {names}", self._settings.duration_s)
        for one in self._setup.candidates[:: -1 if number % 2 else 1]:
            runs[one.name] = self._read(pool, one, self._load(one, number))
            if self._interrupted:
                return
        for name, run in runs.items():
            self._samples[name] += run.result.samples
            self._runs[name].append(replace(run, result=replace(run.result, samples=())))

    def _load(self, one: Candidate, number: int) -> Load:
        settings = self._settings
        rate, duration_s = settings.rate_of(one), settings.duration_of(one)
        return Load(
            url=one.service.url,
            requests=Gets(PATH, RequestKeys(self._setup.users, settings.draw, seed=number)),
            rate=rate,
            seed=number if settings.poisson else None,
            duration_s=duration_s,
            connections=settings.connections,
            observe=("source",),
            sample_every=max(1, int(rate * duration_s / COMPARED)) | 1,
        )

    def _read(self, pool: WorkerPool, one: Candidate, load: Load) -> ServiceRun:
        units, cpu_s = _units(one), one.service.cpu_s()
        result = pool.run(load, self._display.update)
        used_s, used = one.service.cpu_s() - cpu_s, _units(one)
        self._interrupted = self._interrupted or result.interrupted
        spent = None
        if units is not None and used is not None:
            spent = RequestUnits(used.ru - units.ru, used.reads - units.reads)
        return ServiceRun(result, used_s, spent)


def _units(one: Candidate) -> RequestUnits | None:
    """Read from a service's metrics what its reads were charged so far; None of a store that is not metered."""
    if not one.metered:
        return None
    found = store_counts(one.service)
    return RequestUnits(found.ru, found.charged) if found.charged else None


def each_run(store: StoreRuns, value: Callable[[ServiceRun], float]) -> Sequence[float]:
    """Return a value of each round."""
    return [value(run) for run in store.runs]
