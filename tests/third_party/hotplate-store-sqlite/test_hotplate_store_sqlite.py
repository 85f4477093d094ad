"""The store keeps the contract of hotplate."""

from pathlib import Path

import pytest
from hotplate_store_sqlite import SqliteStore

from hotplate.testing import OpenStore, StoreContract


class TestSqliteStore(StoreContract):
    is_local = True

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: SqliteStore(tmp_path / "lists.db")
