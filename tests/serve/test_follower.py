"""Following the live release of a store that misbehaves: what is served stays served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
import pytest

from serve.follower import Follower, ServedRelease
from stores import lifecycle as life
from stores.catalogue import Catalogue, ReleaseId
from stores.errors import CatalogueUnreadable, StoreUnavailable
from stores.keys import MANIFEST
from stores.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.remote import RemoteStore, publish
from tests.support.virtual import virtual


@asynccontextmanager
async def following(remote: RemoteStore) -> AsyncIterator[Follower]:
    """Follow a store until the block ends."""
    follower = Follower(remote)
    task = asyncio.create_task(follower.run())
    await follower.attempted.wait()
    yield follower
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until_error(follower: Follower) -> str:
    async with asyncio.timeout(10):
        while follower.last_error is None:
            await asyncio.sleep(0.005)
    return follower.last_error


def served(follower: Follower) -> ServedRelease:
    assert follower.served is not None
    return follower.served


async def until(follower: Follower, release: ReleaseId) -> None:
    async with asyncio.timeout(10):
        while follower.served is None or follower.served.id != release:
            await asyncio.sleep(0.005)


async def followed(memory: MemoryStore, follower: Follower) -> ReleaseId:
    """Publish a first release, and return it when it is served."""
    release = await publish(memory, "first")
    await until(follower, release)
    return release


@virtual
async def test_the_first_release_is_followed_as_soon_as_there_is_one(memory: MemoryStore, remote: RemoteStore) -> None:
    async with following(remote) as follower:
        assert (follower.served, "nothing is live" in str(follower.last_error)) == (None, True)
        await until(follower, await publish(memory, "first", segments=5))
        assert follower.last_error is None
        assert served(follower).popular == {"": b"first", **{f"s{n}": b"%d" % n for n in range(5)}}


@virtual
async def test_flips_and_rollbacks_are_followed_and_a_ready_release_is_not(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        second = await publish(memory, "second", live=False)
        await asyncio.sleep(0.05)
        assert served(follower).id == first
        await life.activate(memory, second)
        await until(follower, second)
        await life.rollback(memory)
        await until(follower, first)


@pytest.mark.parametrize("change", [{"format": 9}, {"encoding": "other"}])
@virtual
async def test_a_release_of_an_unknown_format_is_not_followed(
    memory: MemoryStore, remote: RemoteStore, change: dict[str, object]
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        second = await publish(memory, "second", live=False)
        rows = memory._releases[second].rows
        rows[MANIFEST] = orjson.dumps(orjson.loads(rows[MANIFEST]) | change)
        await life.activate(memory, second)
        assert "upgrade" in await until_error(follower)
        assert served(follower).id == first
        third = await publish(memory, "third")
        await until(follower, third)
        assert follower.last_error is None


@pytest.mark.parametrize("lost", ["user:4", "popular:s1", MANIFEST])
@virtual
async def test_a_release_that_has_lost_a_row_of_its_sample_is_not_followed(
    memory: MemoryStore, remote: RemoteStore, lost: str
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        second = await publish(memory, "second", live=False, segments=2)
        del memory._releases[second].rows[lost]
        await life.activate(memory, second)
        assert "publish it again" in await until_error(follower)
        assert served(follower).id == first


@virtual
async def test_what_a_store_warns_of_is_reported_and_does_not_keep_a_release_from_being_followed(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    remote.advice = ["allkeys-lru may drop lists in silence"]
    follower = Follower(remote)
    await publish(memory, "first")
    await follower.refresh()
    assert (follower.warnings, follower.last_error) == (remote.advice, None)
    remote.advice = None
    second = await publish(memory, "second")
    await follower.refresh()
    assert served(follower).id == second
    assert "cannot be read" in follower.warnings[0]


@virtual
async def test_a_store_that_fails_un_serves_nothing_and_is_followed_again_when_it_is_back(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        remote.failure = CatalogueUnreadable("the catalogue at nowhere cannot be read")
        second = await publish(memory, "second")
        await until_error(follower)
        assert served(follower).id == first
        remote.failure = None
        await until(follower, second)
        assert follower.last_error is None


@virtual
async def test_an_error_whose_text_changes_with_each_attempt_does_not_fill_the_log(
    remote: RemoteStore, caplog: pytest.LogCaptureFixture
) -> None:
    remote.failure = StoreUnavailable("refused at 00:00:00")
    async with following(remote) as follower:
        for second in range(1, 50):
            await asyncio.sleep(1)
            remote.failure = StoreUnavailable(f"refused at 00:00:{second:02}")
        assert follower.last_error not in {None, "refused at 00:00:00"}
        assert [record.getMessage() for record in caplog.records] == ["refused at 00:00:00"]
        await asyncio.sleep(60)
        remote.failure = CatalogueUnreadable("something else")
        await asyncio.sleep(10)
    assert caplog.records[-1].getMessage() == "something else"
    assert len(caplog.records) <= 3


@virtual
async def test_a_stale_catalogue_is_ignored(memory: MemoryStore, remote: RemoteStore) -> None:
    async with following(remote) as follower:
        await until(follower, await publish(memory, "first"))
        older = await memory.catalogue()
        second = await publish(memory, "second")
        await until(follower, second)
        await follower._switch_if_newer(older)
        await follower._switch_if_newer(Catalogue())
        assert served(follower).id == second


@virtual
async def test_a_store_made_anew_is_followed_although_its_generation_is_lower(
    memory: MemoryStore, remote: RemoteStore, clock: FakeClock
) -> None:
    async with following(remote) as follower:
        for name in ("first", "second"):
            await until(follower, await publish(memory, name))
        remote.inner = MemoryStore(clock)
        release = await publish(remote.inner, "anew")
        await follower.refresh()
        await until(follower, release)


@virtual
async def test_callers_that_find_a_release_gone_share_one_read_of_the_catalogue(
    memory: MemoryStore, remote: RemoteStore
) -> None:
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
    assert follower.served is not None


@virtual
async def test_what_is_served_is_a_value(memory: MemoryStore, remote: RemoteStore) -> None:
    async with following(remote) as follower:
        await until(follower, await publish(memory, "first"))
        served = follower.served
        assert served is not None
        await until(follower, await publish(memory, "second"))
        assert replace(served) == served
        assert served.popular[""] == b"first"
