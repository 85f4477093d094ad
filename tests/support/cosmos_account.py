"""An emulated account in a separate process, which injects faults on request and counts requests."""

import os
import secrets
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import Address, Throughput, parse
from tests.support.cosmos_server import Emulator, emulator

NAME = "user.YQ"
ITEM = {"id": NAME, "v": 1}
# Time limit of a request that succeeds, or fails for another reason.
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Account:
    """A running emulator, and how to get in."""

    emulator: Emulator
    certificate: Path | None = None

    def url(self, database: str, **options: str) -> str:
        if self.certificate is not None:
            options = {"ca": str(self.certificate)} | options
        parts = urlsplit(self.emulator.endpoint)
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"cosmos+{parts.scheme}://{parts.netloc}/{database}?{query}"

    def address(self, database: str, **options: str) -> Address:
        return parse(self.url(database, **options), {})

    def inject_faults(self, *faults: dict[str, object]) -> None:
        self._page("PUT", "faults", orjson.dumps(faults))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Suspend the emulator until the block ends: it keeps its connections and answers nothing."""
        os.kill(self.emulator.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.emulator.pid, signal.SIGCONT)

    def metric(self, name: str) -> dict[tuple[str, ...], float]:
        """Return a family of its metrics by the values of its labels."""
        families = text_string_to_metric_families(self._page("GET", "metrics").decode())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return {tuple(sample.labels.values()): sample.value for sample in samples}

    def requests(self, operation: str) -> int:
        """Return how many requests for an operation there were, whatever the response."""
        requests = self.metric("hotplate_cosmos_emulator_requests_total")
        return round(sum(number for (requested, _), number in requests.items() if requested == operation))

    def spent_ru(self) -> float:
        return sum(self.metric("hotplate_cosmos_emulator_request_units_total").values())

    def _page(self, method: str, page: str, body: bytes | None = None) -> bytes:
        trusted = None if self.certificate is None else ssl.create_default_context(cafile=str(self.certificate))
        request = Request(f"{self.emulator.endpoint}__emulation/{page}", body, method=method)
        with urlopen(request, context=trusted, timeout=60) as answer:
            content: bytes = answer.read()
        return content


@contextmanager
def emulated_account(certificate: Path | None, *options: str) -> Iterator[Account]:
    """Start an emulator; with TLS where the path of its certificate is given."""
    tls = () if certificate is None else ("--tls", "--certificate", str(certificate))
    with emulator(*tls, *options) as server:
        yield Account(server, certificate)


async def filled(account: Account) -> Address:
    """Return a database with a container `c` that holds one item."""
    address = account.address(f"d{secrets.token_hex(4)}")
    client = SignedClient(address)
    async with container_in(address):
        await client.create("c", ITEM)
    await client.close()
    return address


async def kind_of(work: Awaitable[object]) -> str:
    """Return the kind of the error with which *work* must end."""
    with pytest.raises(CosmosUnavailable) as error:
        await work
    return error.value.kind


@asynccontextmanager
async def container_in(address: Address, ru: int = 4000) -> AsyncIterator[CosmosAccount]:
    """Make a database with a container `c`, and yield what made them."""
    containers = CosmosAccount(address)
    try:
        await containers.create_database()
        await containers.create_container("c", Throughput(ru))
        yield containers
    finally:
        await containers.close()
