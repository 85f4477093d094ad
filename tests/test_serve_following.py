"""Following and looking up, against stores that misbehave: what is served stays served, and nothing is ever empty."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import orjson
import pytest

from serve.following import Follower
from serve.lookup import Lookup
from serve.metrics import LOOKUPS, STORE, Metrics
from serve.problems import Problem
from stores import release as life
from stores.catalogue import Catalogue, ReleaseId
from stores.errors import CatalogueUnreadable, StoreError, StoreUnavailable
from stores.keys import MANIFEST
from stores.memory import MemoryStore
from stores.store import Plan, Row, Slot
from tests.conftest import FakeClock


class RemoteStore:
    """The memory store as if it were over a network: no local `get`, and faults on demand."""

    batch = 2

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.delay_s = 0.0
        self.failure: StoreError | None = None
        self.broken_keys = set[str]()

    async def get_many(self, release: ReleaseId, keys: Sequence[str]) -> list[Slot]:
        await asyncio.sleep(self.delay_s)
        if self.failure:
            raise self.failure
        slots = await self.inner.get_many(release, keys)
        broken = StoreUnavailable("this one could not be read")
        return [broken if key in self.broken_keys else slot for key, slot in zip(keys, slots, strict=True)]

    async def catalogue(self) -> Catalogue:
        if self.failure:
            raise self.failure
        return await self.inner.catalogue()

    async def changes(self) -> AsyncIterator[Catalogue]:
        if self.failure:
            raise self.failure
        async for found in self.inner.changes():
            yield found

    async def close(self) -> None:
        await self.inner.close()


async def publish(store: MemoryStore, name: str, *, live: bool = True, segments: int = 0) -> ReleaseId:
    async def batches() -> AsyncIterator[Sequence[Row]]:
        yield [Row("popular:", name.encode())] + [Row(f"popular:s{n}", b"%d" % n) for n in range(segments)]
        yield [Row(f"user:{n}", f"{name} for {n}".encode()) for n in range(5)]

    return (await life.publish(store, batches(), plan=Plan(6, 100), about={}, live=live)).release


@pytest.fixture
def memory(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def remote(memory: MemoryStore) -> RemoteStore:
    return RemoteStore(memory)


@pytest.fixture
async def follower(remote: RemoteStore) -> AsyncIterator[Follower]:
    followed = Follower(remote)
    task = asyncio.create_task(followed.run())
    await followed.looked.wait()
    yield followed
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(follower: Follower, release: ReleaseId) -> None:
    async with asyncio.timeout(10):
        while follower.view is None or follower.view.release != release:
            await asyncio.sleep(0.005)


def counted(metrics: Metrics, source: str, outcome: str) -> float:
    return metrics.total(LOOKUPS[source, outcome])[0]


async def test_the_first_release_is_followed_as_soon_as_there_is_one(memory: MemoryStore, follower: Follower) -> None:
    assert (follower.view, "nothing is live" in str(follower.trouble)) == (None, True)
    await until(follower, await publish(memory, "first", segments=5))
    assert follower.trouble is None
    assert follower.view is not None
    assert follower.view.popular == {"": b"first", **{f"s{n}": b"%d" % n for n in range(5)}}


async def test_flips_and_rollbacks_are_followed_and_a_ready_release_is_not(
    memory: MemoryStore, follower: Follower
) -> None:
    first = await publish(memory, "first")
    await until(follower, first)
    second = await publish(memory, "second", live=False)
    await asyncio.sleep(0.05)
    assert follower.view is not None
    assert follower.view.release == first
    await life.activate(memory, second)
    await until(follower, second)
    await life.rollback(memory)
    await until(follower, first)


@pytest.mark.parametrize("change", [{"format": 9}, {"encoding": "other"}])
async def test_a_release_of_an_unknown_format_is_not_followed(
    memory: MemoryStore, follower: Follower, change: dict[str, object]
) -> None:
    first = await publish(memory, "first")
    await until(follower, first)
    second = await publish(memory, "second", live=False)
    rows = memory._shelves[second].rows
    rows[MANIFEST] = orjson.dumps(orjson.loads(rows[MANIFEST]) | change)
    await life.activate(memory, second)
    async with asyncio.timeout(10):
        while follower.trouble is None:
            await asyncio.sleep(0.005)
    assert "upgrade" in str(follower.trouble)
    assert follower.view is not None
    assert follower.view.release == first
    third = await publish(memory, "third")
    await until(follower, third)
    assert follower.trouble is None


async def test_a_store_that_fails_un_serves_nothing_and_is_followed_again_when_it_is_back(
    memory: MemoryStore, remote: RemoteStore, follower: Follower
) -> None:
    first = await publish(memory, "first")
    await until(follower, first)
    remote.failure = CatalogueUnreadable("the catalogue at nowhere cannot be read")
    second = await publish(memory, "second")
    async with asyncio.timeout(10):
        while follower.trouble is None:
            await asyncio.sleep(0.005)
    assert follower.view is not None
    assert follower.view.release == first
    remote.failure = None
    await until(follower, second)
    assert follower.trouble is None


async def test_a_stale_catalogue_is_ignored(memory: MemoryStore, follower: Follower) -> None:
    await until(follower, await publish(memory, "first"))
    older = await memory.catalogue()
    second = await publish(memory, "second")
    await until(follower, second)
    await follower._consider(older)
    await follower._consider(Catalogue())
    assert follower.view is not None
    assert follower.view.release == second


async def test_a_store_made_anew_is_followed_although_its_generation_is_lower(
    memory: MemoryStore, remote: RemoteStore, follower: Follower, clock: FakeClock
) -> None:
    for name in ("first", "second"):
        await until(follower, await publish(memory, name))
    remote.inner = MemoryStore(clock)
    release = await publish(remote.inner, "anew")
    await follower.refresh()
    await until(follower, release)


async def test_before_any_release_a_lookup_is_a_503_that_says_why(remote: RemoteStore, follower: Follower) -> None:
    lookup = Lookup(remote, follower, Metrics(1), deadline_s=1)
    with pytest.raises(Problem, match="nothing is live") as caught:
        await lookup.personal("1", "")
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})


async def test_a_slow_or_failing_store_is_answered_by_popular_inside_the_deadline(
    memory: MemoryStore, remote: RemoteStore, follower: Follower
) -> None:
    await until(follower, await publish(memory, "first"))
    metrics = Metrics(1)
    lookup = Lookup(remote, follower, metrics, deadline_s=0.02)
    assert (await lookup.personal("1", "")).value == b"first for 1"
    remote.delay_s = 30
    assert (await lookup.personal("1", ""))[1:] == ("popular", b"first")
    remote.delay_s, remote.failure = 0, StoreUnavailable("gone")
    assert (await lookup.personal("1", ""))[1:] == ("popular", b"first")
    remote.failure, remote.broken_keys = None, {"user:2"}
    found = await lookup.personal_many(["1", "2", "3", "nobody"])
    assert [one.source for one in found] == ["personal", "popular", "personal", "popular"]
    assert counted(metrics, "popular", "error") == 3
    assert counted(metrics, "popular", "miss") == 1
    assert counted(metrics, "personal", "hit") == 3
    assert metrics.total(STORE["get_many", "error"], 18)[-1] > 0.01


@pytest.mark.parametrize("local", [True, False])
async def test_a_release_that_is_gone_is_looked_for_anew_once(
    memory: MemoryStore, remote: RemoteStore, *, local: bool
) -> None:
    reader = memory if local else remote
    follower = Follower(reader)
    first = await publish(memory, "first")
    await follower.refresh()
    lookup = Lookup(reader, follower, Metrics(1), deadline_s=1)
    second = await publish(memory, "second")
    await memory.erase(first)
    found = await lookup.personal("1", "")
    assert (found.view.release, found.value) == (second, b"second for 1")
    many = await lookup.personal_many(["1", "2", "3"])
    assert {one.view.release for one in many} == {second}
    await memory.erase(second)
    assert (await lookup.personal("1", ""))[1:] == ("popular", b"second")


async def test_callers_that_find_a_release_gone_share_one_look(memory: MemoryStore, remote: RemoteStore) -> None:
    follower = Follower(remote)
    await publish(memory, "first")
    reads = 0
    inner = remote.catalogue

    async def counting() -> Catalogue:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0.01)
        return await inner()

    remote.catalogue = counting  # type: ignore[method-assign]  # to count the calls
    await asyncio.gather(*(follower.refresh() for _ in range(20)))
    assert reads == 1
    assert follower.view is not None


async def test_a_view_is_a_value(memory: MemoryStore, follower: Follower) -> None:
    await until(follower, await publish(memory, "first"))
    view = follower.view
    assert view is not None
    await until(follower, await publish(memory, "second"))
    assert replace(view) == view
    assert view.popular[""] == b"first"
