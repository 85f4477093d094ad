"""What more than one file of these tests uses."""

from collections.abc import AsyncIterator, Iterator

import pytest

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from tests.support.azure_arm import azure_account
from tests.support.cosmos_account import Account, Counted
from tests.support.cosmos_raw import ScriptedServer, scripted
from tests.support.cosmos_server import Emulator


@pytest.fixture
def account(cosmos_https: Account) -> Account:
    """The account over TLS: what is there over plain connections is there, too."""
    return cosmos_https


@pytest.fixture
def observer() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """An emulator that takes tokens of its own issuer."""
    certificate = tmp_path_factory.mktemp("entra") / "entra.pem"
    with azure_account(EmulatorSettings(port=0, tls=True, certificate=certificate)) as running:
        yield running


@pytest.fixture
async def raw() -> AsyncIterator[ScriptedServer]:
    """A server that responds as the test says."""
    async with scripted() as made:
        yield made
