"""What more than one file of these tests uses."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotplate.stores.file.store import LmdbStore
from tests.support.clock import FakeClock


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock) -> AsyncIterator[LmdbStore]:
    opened = LmdbStore(tmp_path / "store", clock)
    yield opened
    await opened.close()
