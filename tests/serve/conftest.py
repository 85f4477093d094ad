"""The stores that tests of the reader, of the follower and of services read."""

import asyncio
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, SendingRemote
from tests.support.service import a_list, publish_lists


@pytest.fixture
def memory(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture(params=[RemoteStore, SendingRemote])
def remote_type(request: pytest.FixtureRequest) -> type[RemoteStore]:
    """Stores over a network that are read by tasks, and those that send."""
    store_type: type[RemoteStore] = request.param
    return store_type


@pytest.fixture
def remote(memory: MemoryStore, remote_type: type[RemoteStore]) -> RemoteStore:
    """The same store, as if it were over a network."""
    return remote_type(memory)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of files with a release that has a list for user 42."""
    asyncio.run(publish_lists(tmp_path / "store", {"user:42": a_list("a", "b")}))
    return tmp_path / "store"
