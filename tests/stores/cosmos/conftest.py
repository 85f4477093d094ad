"""What more than one file of these tests uses."""

from collections.abc import Iterator

import pytest

from tests.support.cosmos_account import Account, Counted, emulated_account


@pytest.fixture(scope="module", params=["http", "https"])
def account(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    certificate = tmp_path_factory.mktemp("tls") / "ca.pem" if request.param == "https" else None
    with emulated_account(certificate) as running:
        yield running


@pytest.fixture
def observer() -> Counted:
    return Counted()
