"""Every store of ours keeps the contract; another one joins by a parameter of the fixture `open_store`."""

import pytest

from hotplate.testing import OpenStore, StoreContract


class TestEveryStore(StoreContract):
    @pytest.fixture
    def open_store(self, open_store: OpenStore) -> OpenStore:
        """Take the stores of `tests/conftest.py` instead of a third party's."""
        return open_store
