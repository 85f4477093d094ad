"""The stores that tests of the reader, of the follower and of services read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore
from tests.support.service import Service, a_list, published, running


@pytest.fixture
def memory(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def remote(memory: MemoryStore) -> RemoteStore:
    """The same store, as if it were over a network."""
    return RemoteStore(memory)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of files with a release that has a list for user 42."""
    published(tmp_path / "store", {"user:42": a_list("a", "b")})
    return tmp_path / "store"


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """A service of a module whose `folder` is of the module, too."""
    with running(folder) as running_service:
        yield running_service
