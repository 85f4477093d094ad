"""Every store of ours keeps the contract; another one joins by a parameter of the fixture `open_store`."""

import time
from collections.abc import Callable

import pytest

from hotplate.testing import OpenStore, Stall, StoreContract


class TestEveryStore(StoreContract):
    @pytest.fixture
    def clock(self) -> Callable[[], float]:
        """Return the clock of this machine for stores that take one."""
        return time.time

    @pytest.fixture
    def open_store(self, open_store: OpenStore) -> OpenStore:
        """Take the stores of `tests/conftest.py` instead of a third party's."""
        return open_store

    @pytest.fixture
    def stall(self, request: pytest.FixtureRequest) -> Stall:
        """Suspend the server of the store."""
        backend: str = request.node.callspec.params["open_store"]
        if backend in {"memory", "file"}:
            pytest.skip("neither memory nor local files stall")
        server = "redis_server" if backend.startswith("redis") else backend.replace("+", "_")
        stopped: Stall = request.getfixturevalue(server).stopped
        return stopped
