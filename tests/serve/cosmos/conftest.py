"""The emulated account that these tests disturb."""

from collections.abc import Iterator

import pytest

from tests.support.cosmos_account import Account, emulated_account


@pytest.fixture(scope="module")
def cosmos() -> Iterator[Account]:
    """An account for all tests of a file; each takes a database of its own."""
    with emulated_account(None) as one:
        yield one
