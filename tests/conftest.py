"""Fixtures that more than one file uses; `open_store` is the one place that knows all backends."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from stores.embedded import EmbeddedStore
from stores.memory import MemoryStore
from stores.store import Store

OpenStore = Callable[[], Store]


class FakeClock:
    """A store's clock that tests hold."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "file"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[OpenStore]:
    """Open handles on one and the same store, as several processes would; all are closed at the end."""
    handles = list[Store]()
    memory = MemoryStore(clock)

    def another() -> Store:
        handle = memory if request.param == "memory" else EmbeddedStore(tmp_path / "store", clock)
        handles.append(handle)
        return handle

    yield another
    for handle in handles:
        await handle.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()
