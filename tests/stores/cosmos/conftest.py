"""What more than one file of these tests uses."""

import pytest

from tests.support.cosmos_account import Counted


@pytest.fixture
def observer() -> Counted:
    return Counted()
