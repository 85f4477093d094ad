"""Stores side by side: each round reads every store alone, then through its service, then while lists are written.

The stores take turns within a round (A B, A B, …), so that whatever the machine does meanwhile hits all of them alike.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bench.contestants import Contestant, Field
from bench.expected import Checked, check
from bench.http import Watch
from bench.launch import on_core, own_memory_bytes
from bench.loadgen.crew import Crew
from bench.loadgen.keys import Draw, Keys, Uniform
from bench.loadgen.recorder import Sample
from bench.loadgen.requests import Gets
from bench.loadgen.result import Result
from bench.loadgen.traffic import Load
from bench.lookups import Lookups, look_up
from bench.trial import Trial, Trials, trials
from stores.connect import connect
from stores.keys import USER

PATH = "/v1/recommendations/{key}"
BATCHES = (1, 8, 64)
BATCHES_DRAWN = 2_000
TRIAL_LISTS = 50_000
COMPARED = 100  # answers a run that are compared with the store
WHILE_WRITTEN = 0.4  # of a round's length

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is measured: `rate` in requests/s, for `duration_s` a round; a trial release has `trial_lists`.

    For an invalid round another one is made, at most `spare` of them.
    """

    rounds: int = 10
    spare: int = 7
    rate: float = 2_000.0
    duration_s: float = 5.0
    warmup_s: float = 2.0
    alone_s: float = 0.4
    trial_lists: int = TRIAL_LISTS
    connections: int = 64
    draw: Draw = field(default_factory=Uniform)


@dataclass(frozen=True, slots=True)
class Served:
    """One run through a service: its result, and per request the CPU of the service and of the store's server."""

    started_at: float
    result: Result
    service_cpu_us: float
    server_cpu_us: float | None


@dataclass(frozen=True, slots=True)
class Written:
    """Lists written beside the reads of one round: one release by itself, then the reads while others are written."""

    trial: Trial
    served: Served
    lists_per_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """What one store did in one round; `lookups` by the size of batch."""

    lookups: Mapping[int, Lookups]
    served: Served
    written: Written | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use after the last round: of the load generator, a store's service, and its server where it has one."""

    generator: int
    service: int
    server: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """All that was found of one store."""

    contestant: Contestant
    turns: tuple[Turn, ...]
    memory: Memory
    checked: Checked


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that was found; the n-th turns of all stores were of the same round."""

    standings: tuple[Standing, ...]
    interrupted: bool


class Contest:
    """A comparison while it is made."""

    def __init__(self, field: Field, extent: Extent, watch: Watch) -> None:
        self._field = field
        self._extent = extent
        self._watch = watch
        self._turns: dict[str, list[Turn]] = {each.name: [] for each in field.contestants}
        self._samples: dict[str, list[Sample]] = {each.name: [] for each in field.contestants}
        self._interrupted = False

    def make(self, *, publishing: bool) -> Outcome:
        """Make all rounds, or the whole ones until Ctrl-C."""
        with ExitStack() as stack:
            with on_core(1):
                crew = stack.enter_context(Crew())
            writers = dict[str, Trials]()
            try:
                if publishing:
                    writers = {each.name: self._writer(stack, each) for each in self._field.contestants}
                if self._extent.warmup_s:
                    self._each("warm-up", lambda one: self._serve(crew, one, self._extent.warmup_s, number=0))
                self._rounds(crew, writers)
            except KeyboardInterrupt:  # between two runs; within one the crew hears it, and ends the run
                self._interrupted = True
            generator = sum(own_memory_bytes(pid) for pid in crew.pids)
            return Outcome(tuple(self._standing(one, generator) for one in self._field.contestants), self._interrupted)

    def _writer(self, stack: ExitStack, one: Contestant) -> Trials:
        return stack.enter_context(trials(one.settings, self._field.manifest.release, self._extent.trial_lists))

    def _rounds(self, crew: Crew, writers: Mapping[str, Trials]) -> None:
        wanted = self._extent.rounds
        valid = made = 0
        while valid < wanted and made < wanted + self._extent.spare and not self._interrupted:
            made += 1
            valid += self._round(f"round {made}, {valid} of {wanted} valid", made, crew, writers)

    def _round(self, name: str, number: int, crew: Crew, writers: Mapping[str, Trials]) -> bool:
        """Make a round, and keep it unless it was interrupted; tell whether it was valid for all stores."""
        extent = self._extent
        alone = self._each(f"{name}, the store alone", lambda one: self._alone(one, number))
        served = self._each(
            f"{name}, through the service", lambda one: self._serve(crew, one, extent.duration_s, number)
        )
        written = dict[str, Written]()
        if writers:
            written = self._each(
                f"{name}, while lists are written", lambda one: self._write(writers[one.name], crew, one, number)
            )
        if self._interrupted:
            return False
        for one in self._field.contestants:
            self._turns[one.name].append(Turn(alone[one.name], served[one.name], written.get(one.name)))
        return all(each.result.valid for each in served.values())

    def _each(self, stage: str, measure: Callable[[Contestant], T]) -> dict[str, T]:
        found = dict[str, T]()
        for one in self._field.contestants:
            self._watch.stage(f"{stage}: {one.name}", self._extent.duration_s)
            found[one.name] = measure(one)
        return found

    def _alone(self, one: Contestant, number: int) -> dict[int, Lookups]:
        keys = iter(self._keys(number))
        found = dict[int, Lookups]()
        for size in BATCHES:
            batches = [[USER + user for user in itertools.islice(keys, size)] for _ in range(BATCHES_DRAWN)]
            with on_core(0):
                release = self._field.release
                found[size] = look_up(one.url, one.behind, release, batches, self._extent.alone_s)
        return found

    def _keys(self, number: int) -> Keys:
        """Give the users of a round: the same for all stores, and others in the next one."""
        return Keys(self._field.users, self._extent.draw, seed=number)

    def _serve(self, crew: Crew, one: Contestant, duration_s: float, number: int) -> Served:
        extent = self._extent
        load = Load(
            url=one.service.url,
            requests=Gets(PATH, self._keys(number)),
            rate=extent.rate,
            duration_s=duration_s,
            connections=extent.connections,
            observe=("source",),
            sample_every=max(1, int(extent.rate * duration_s / COMPARED)) | 1,
        )
        started_at, service_s, server_s = time.time(), one.service.cpu_s(), one.behind.cpu_s()
        result = crew.run(load, self._watch.tell)
        server_after_s, service_after_s = one.behind.cpu_s(), one.service.cpu_s()
        self._samples[one.name] += result.samples
        self._interrupted = self._interrupted or result.interrupted
        us_each = 1e6 / max(1, result.ok)
        return Served(
            started_at,
            replace(result, samples=()),
            (service_after_s - service_s) * us_each,
            None if server_s is None or server_after_s is None else (server_after_s - server_s) * us_each,
        )

    def _write(self, writer: Trials, crew: Crew, one: Contestant, number: int) -> Written:
        alone = writer.once()
        writer.begin()
        served = self._serve(crew, one, self._extent.duration_s * WHILE_WRITTEN, number)
        return Written(alone, served, writer.end())

    def _standing(self, one: Contestant, generator: int) -> Standing:
        memory = Memory(generator, one.service.memory_bytes(), one.behind.memory_bytes())
        checked = asyncio.run(_checked(one.url, self._samples[one.name]))
        return Standing(one, tuple(self._turns[one.name]), memory, checked)


async def _checked(url: str, samples: Sequence[Sample]) -> Checked:
    store = connect(url)
    try:
        return await check(samples, store)
    finally:
        await store.close()
