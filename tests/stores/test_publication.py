"""The lease of a draft: its writer goes on only while nobody else can have taken it."""

import asyncio

import pytest

from hotplate.stores.catalogue import LEASE_S, DraftRef, ReleaseId
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.publication import begin, lease
from tests.support.memory_store import MemoryStore
from tests.support.virtual import VirtualLoop, virtual


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(lambda: asyncio.get_running_loop().time())


async def lease_left_s(store: MemoryStore, draft: DraftRef) -> float:
    catalogue = await store.catalogue()
    return catalogue.find_draft(draft.id).lease_left_s(catalogue.now)


@virtual
async def test_writer_goes_on_while_its_lease_is_renewed(store: MemoryStore) -> None:
    draft = await begin(store, ReleaseId("draft"))
    async with lease(store, draft) as check:
        for _ in range(20):
            await asyncio.sleep(LEASE_S / 2)
            check()
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
        check()
        for _ in range(3):
            await asyncio.sleep(1)
            assert await lease_left_s(store, draft) <= 0
            with pytest.raises(StoreUnavailable, match="the lease of release draft was not renewed in time"):
                check()
    assert ended == [began_at + LEASE_S]


@virtual
async def test_writer_that_was_suspended_goes_on_once_its_lease_is_renewed(store: MemoryStore) -> None:
    draft = await begin(store, ReleaseId("draft"))
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    async with lease(store, draft) as check:
        await asyncio.sleep(1)
        loop.advance(2 * LEASE_S)
        with pytest.raises(StoreUnavailable, match="not renewed in time"):
            check()
        await asyncio.sleep(1)
        check()
        assert await lease_left_s(store, draft) > 0
