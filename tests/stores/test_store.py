"""The base classes that stores inherit: the polling of catalogues."""

import asyncio
from dataclasses import replace

import pytest

from hotplate.stores.catalogue import Catalogue
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.store import Reader
from tests.support.memory_store import MemoryStore
from tests.support.virtual import virtual


class PolledStore(MemoryStore):
    """A store that sets nothing for its polling; each read takes *delay_s*."""

    poll_s = Reader.poll_s
    delay_s = 0.0
    is_down = False

    async def catalogue(self) -> Catalogue:
        await asyncio.sleep(self.delay_s)
        if self.is_down:
            raise StoreUnavailable("down")
        return await super().catalogue()


@virtual
async def test_store_that_sets_nothing_is_polled_once_a_second() -> None:
    store = PolledStore()
    changes = aiter(store.changes())
    first = await anext(changes)
    began_at = asyncio.get_running_loop().time()
    store.current = replace(first, generation=1)
    assert (await anext(changes)).generation == 1
    assert asyncio.get_running_loop().time() - began_at == pytest.approx(1.0)


@virtual
async def test_failed_poll_ends_the_iteration_and_the_next_one_begins_again() -> None:
    store = PolledStore()
    changes = aiter(store.changes())
    assert (await anext(changes)).generation == 0
    polled_at = store.polled_at
    store.is_down = True
    with pytest.raises(StoreUnavailable):
        await anext(changes)
    with pytest.raises(StopAsyncIteration):
        await anext(changes)
    assert store.polled_at == polled_at

    store.is_down = False
    store.delay_s = 60.0
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(aiter(store.changes())), 1.0)
    store.delay_s = 0.0
    assert (await anext(aiter(store.changes()))).generation == 0
