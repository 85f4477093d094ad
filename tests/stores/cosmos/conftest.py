"""What more than one file of these tests uses."""

from collections.abc import AsyncIterator, Iterator

import pytest

from hotplate.stores.store import ChargeCounter
from tests.support.azure import AzureAccount, azure_account
from tests.support.cosmos_account import Account
from tests.support.cosmos_raw import ScriptedServer, scripted


@pytest.fixture
def account(cosmos_https: Account) -> Account:
    """The account over TLS, which has the features of the plain one."""
    return cosmos_https


@pytest.fixture
def observer() -> ChargeCounter:
    return ChargeCounter()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureAccount]:
    with azure_account(tmp_path_factory.mktemp("entra") / "entra.pem") as running:
        yield running


@pytest.fixture
async def raw() -> AsyncIterator[ScriptedServer]:
    """A server that responds as the test says."""
    async with scripted() as server:
        yield server
