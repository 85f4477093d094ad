"""Canaries of a service with several workers: one verdict for all, which outlives each process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import CANARY, LIVE, ROLE_LOOKUPS, Metrics
from hotplate.serve.processes.states import Reporter, SharedStates
from hotplate.serve.releases.comparison import SharedComparisons
from hotplate.serve.releases.follower import CANARY_S
from hotplate.serve.releases.withdrawal import ReleaseJudge
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId
from tests.support.memory_store import MemoryStore
from tests.support.remote import publish
from tests.support.virtual import virtual

TIER = "tier-0"
NAMES = [str(number) for number in range(40)]


class SharedCanary:
    """The processes of a service that reads a store with a live release and a canary."""

    def __init__(self, store: MemoryStore, live: ReleaseId, canary: ReleaseId) -> None:
        self.store = store
        self.live = live
        self.canary = canary
        self.metrics = Metrics(3, [TIER])
        self.states = SharedStates(2, tiers=1)
        self.comparisons = SharedComparisons(tiers=1)
        self.judge = self.admin()

    def admin(self) -> ReleaseJudge:
        return ReleaseJudge({TIER: self.store}, self.comparisons, self.states, self.metrics)

    @asynccontextmanager
    async def worker(self, number: int) -> AsyncIterator[TieredReader]:
        metrics = self.metrics.in_slot(number)
        async with TieredReader({TIER: self.store}, metrics=metrics, comparisons=self.comparisons) as reader:
            await reader.wait_until_ready(5)
            self.report(number, reader)
            yield reader

    def report(self, number: int, reader: TieredReader) -> None:
        self.states.write(number, Reporter(reader.tiers).state())

    def count(self, *, lost: int) -> None:
        """Count lookups of both releases, of which the canary has *lost* some."""
        metrics = self.metrics.in_slot(1)
        metrics.count_in(ROLE_LOOKUPS, TIER, LIVE, "hit", number=1000)
        metrics.count_in(ROLE_LOOKUPS, TIER, CANARY, "hit", number=1000 - lost)
        metrics.count_in(ROLE_LOOKUPS, TIER, CANARY, "miss", number=lost)


async def with_canary(memory: MemoryStore) -> SharedCanary:
    live = await publish(memory, "live", users=range(40))
    canary = await publish(memory, "canary", live=False, users=range(40))
    await life.start_canary(memory, canary, 50)
    return SharedCanary(memory, live, canary)


async def shown(reader: TieredReader) -> set[ReleaseId]:
    return {answer.release.id for answer in await reader.personal_many(NAMES)}


@virtual
async def test_worse_canary_is_stopped_in_all_workers_and_those_that_start_later(memory: MemoryStore) -> None:
    service = await with_canary(memory)
    both = {service.live, service.canary}
    async with service.worker(0) as first, service.worker(1) as second:
        await service.judge.judge_canaries()
        service.count(lost=0)
        await service.judge.judge_canaries()
        await asyncio.sleep(2 * CANARY_S)
        assert await shown(first) == await shown(second) == both
        service.count(lost=200)
        await service.judge.judge_canaries()
        await asyncio.sleep(2 * CANARY_S)
        assert await shown(first) == await shown(second) == {service.live}

    async with service.worker(0) as later:
        assert await shown(later) == {service.live}
        (finding,) = later.tiers[0].findings
        assert "lookups got the popular list" in finding.sentence


@virtual
async def test_verdict_outlives_the_admin_process_and_ends_with_the_canary(memory: MemoryStore) -> None:
    service = await with_canary(memory)
    async with service.worker(0) as reader:
        await service.judge.judge_canaries()
        service.count(lost=500)
        await service.judge.judge_canaries()
        successor = service.admin()
        service.states.clear(0)  # the worker is replaced
        await successor.judge_canaries()
        service.report(0, reader)
        await successor.judge_canaries()
        await asyncio.sleep(2 * CANARY_S)
        assert await shown(reader) == {service.live}

        await life.abort(memory)
        await reader.tiers[0].follower.refresh()
        service.report(0, reader)
        await successor.judge_canaries()
        assert service.comparisons.of(TIER).canary is None
        await life.start_canary(memory, service.canary, 50)
        await reader.tiers[0].follower.refresh()
        service.report(0, reader)
        await successor.judge_canaries()
        await asyncio.sleep(2 * CANARY_S)
        assert await shown(reader) == {service.live, service.canary}


@virtual
async def test_worse_canary_that_many_gates_refuse_is_reported_and_stopped(memory: MemoryStore) -> None:
    service = await with_canary(memory)
    gates = tuple(f"a gate of the list {number}" for number in range(2000))
    memory.current = replace(
        memory.current, releases=tuple(replace(entry, refused_by=gates) for entry in memory.current.releases)
    )
    async with service.worker(0) as reader:
        await service.judge.judge_canaries()
        service.count(lost=500)
        await service.judge.judge_canaries()
        await asyncio.sleep(2 * CANARY_S)
        assert await shown(reader) == {service.live}
