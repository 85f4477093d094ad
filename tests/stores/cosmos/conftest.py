"""What more than one file of these tests uses."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from tests.support.cosmos_account import Account, Counted
from tests.support.cosmos_raw import ScriptedServer, scripted
from tests.support.cosmos_server import Emulator, emulator


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
    with emulator("--tls", "--certificate", str(certificate), "--entra-issuer") as running:
        yield replace(running, certificate=certificate)


@pytest.fixture
async def raw() -> AsyncIterator[ScriptedServer]:
    """A server that responds as the test says."""
    async with scripted() as made:
        yield made
