"""The stores that tests of the reader and of the follower read."""

import pytest

from hotplate.stores.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.remote import RemoteStore


@pytest.fixture
def memory(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def remote(memory: MemoryStore) -> RemoteStore:
    """The same store, as if it were over a network."""
    return RemoteStore(memory)
