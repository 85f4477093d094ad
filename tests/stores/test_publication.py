"""The lease of a draft: its writer goes on only while nobody else can have taken it."""

import asyncio
import gc

import pytest

from hotplate.stores.catalogue import LEASE_S, DraftRef, ReleaseId
from hotplate.stores.errors import ReleaseConflict, StoreUnavailable
from hotplate.stores.publication import begin, lease, take_over
from tests.support.memory_store import MemoryStore
from tests.support.stores import publish
from tests.support.virtual import VirtualLoop, virtual


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(lambda: asyncio.get_running_loop().time())


async def lease_left_s(store: MemoryStore, draft: DraftRef) -> float:
    catalogue = await store.catalogue()
    return catalogue.find_draft(draft.id).lease_left_s(catalogue.now)


def virtual_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


@virtual
async def test_writer_goes_on_while_its_lease_is_renewed(store: MemoryStore) -> None:
    draft = await begin(store, ReleaseId("draft"))
    async with lease(store, draft) as check:
        for _ in range(20):
            await asyncio.sleep(LEASE_S / 2)
            await check()
            assert await lease_left_s(store, draft) > 0


@virtual
async def test_writer_stops_when_a_renewal_hangs_beyond_its_lease(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = await begin(store, ReleaseId("draft"))
    ended = list[float]()

    async def hang(*_: object) -> None:
        try:
            await asyncio.sleep(100 * LEASE_S)
        finally:
            ended.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(store, "swap", hang)
    began_at = asyncio.get_running_loop().time()
    async with lease(store, draft) as check:
        await asyncio.sleep(LEASE_S - 1)
        await check()
        for _ in range(3):
            await asyncio.sleep(1)
            assert await lease_left_s(store, draft) <= 0
            with pytest.raises(StoreUnavailable, match="the lease of release draft was not renewed in time"):
                await check()
    assert ended == [began_at + LEASE_S]


@virtual
async def test_writer_that_was_suspended_goes_on_once_its_lease_is_renewed(store: MemoryStore) -> None:
    draft = await begin(store, ReleaseId("draft"))
    loop = virtual_loop()
    async with lease(store, draft) as check:
        for _ in range(2):
            await asyncio.sleep(1)
            loop.advance(2 * LEASE_S)
            assert await lease_left_s(store, draft) <= 0
            await check()
            assert await lease_left_s(store, draft) > 0


@virtual
@pytest.mark.parametrize("is_reported", [False, True], ids=["no reply", "an error"])
async def test_writer_suspended_during_a_renewal_goes_on_once_it_is_renewed(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, *, is_reported: bool
) -> None:
    draft = await begin(store, ReleaseId("draft"))
    loop = virtual_loop()
    swap = store.swap

    async def suspended(*_: object) -> None:
        monkeypatch.setattr(store, "swap", swap)
        loop.advance(2 * LEASE_S)
        if is_reported:
            raise StoreUnavailable("the connection was closed")
        await asyncio.sleep(LEASE_S)

    monkeypatch.setattr(store, "swap", suspended)
    async with lease(store, draft) as check:
        await asyncio.sleep(LEASE_S / 3)
        await check()
        assert await lease_left_s(store, draft) > 0


@virtual
@pytest.mark.parametrize("is_reported", [False, True], ids=["no reply", "errors"])
async def test_writer_that_was_suspended_stops_unless_it_is_renewed_in_time(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, *, is_reported: bool
) -> None:
    draft = await begin(store, ReleaseId("draft"))
    loop = virtual_loop()

    async def fail(*_: object) -> None:
        if not is_reported:
            await asyncio.sleep(100 * LEASE_S)
        raise StoreUnavailable("the store is gone")

    monkeypatch.setattr(store, "swap", fail)
    async with lease(store, draft) as check:
        await asyncio.sleep(1)
        loop.advance(2 * LEASE_S)
        woke_at = loop.time()
        with pytest.raises(StoreUnavailable, match="the store is gone" if is_reported else "not renewed in time"):
            await check()
        assert loop.time() <= woke_at + LEASE_S / 3


@virtual
async def test_writer_that_was_suspended_stops_if_its_draft_was_taken(store: MemoryStore) -> None:
    draft = await begin(store, ReleaseId("draft"))
    async with lease(store, draft) as check:
        await asyncio.sleep(1)
        virtual_loop().advance(2 * LEASE_S)
        await take_over(store, draft.id)
        with pytest.raises(ReleaseConflict, match="was taken over by another writer"):
            await check()


async def test_publish_keeps_what_the_application_has_frozen(store: MemoryStore) -> None:
    assert gc.get_freeze_count() > 0, "tests/conftest.py freezes what exists before the tests"
    await publish(store)
    assert gc.get_freeze_count() > 0
