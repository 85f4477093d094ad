"""What more than one file of these tests uses."""

from collections.abc import AsyncIterator

import pytest

from hotplate.serve.lists.reader import TieredReader
from tests.support.lane import Pair
from tests.support.memory_store import MemoryStore
from tests.support.remote import publish


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Return servers with and without the fast lane over a store in memory."""
    store = MemoryStore()
    await publish(store, "first")
    async with Pair(TieredReader({"store": store})) as pair:
        yield pair
