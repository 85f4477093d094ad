"""The control plane by azure-cosmos: one attempt a call, in the region that takes writes, and no line in a log."""

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from stores.cosmos.control import AccountContainers
from stores.cosmos.errors import CosmosUnavailable
from stores.cosmos.rest import RestClient
from stores.cosmos.url import Throughput, parse
from stores.errors import StoreUnavailable
from tests.support.cosmos_drivers import Account, Counted, account, with_container
from tests.support.cosmos_raw import CUT, Raw, answer, refusal, saying

Made = tuple[AccountContainers, Counted]


@pytest.fixture(scope="module", params=["http", "https"])
def far(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    certificate = tmp_path_factory.mktemp("tls") / "ca.pem" if request.param == "https" else None
    with account(certificate) as running:
        yield running


@pytest.fixture
async def made(far: Account) -> AsyncIterator[Made]:
    """A database with a container `c`, and who counts."""
    far.misbehave()
    observer, address = Counted(), far.address(f"d{secrets.token_hex(4)}")
    client = RestClient(address, observer)
    yield await with_container(client, address), observer
    await client.close()
    far.misbehave()


@pytest.mark.parametrize("operation", ["create container", "replace offer", "delete container"])
@pytest.mark.parametrize("kind", ["throttle", "unavailable", "timeout", "retry-with", "gone", "reset"])
async def test_a_failure_is_one_attempt_and_no_line_in_a_log(
    far: Account, made: Made, caplog: pytest.LogCaptureFixture, kind: str, operation: str
) -> None:
    containers, observer = made
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create container": lambda: containers.create_container("other", Throughput(400)),
        "replace offer": lambda: containers.scale("c", Throughput(500)),
        "delete container": lambda: containers.delete_container("c"),
    }
    far.misbehave({"kind": kind, "operation": operation})
    before = far.asked(operation)
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable):
        await calls[operation]()
    assert far.asked(operation) == before + 1
    assert observer.kinds == ["throttled" if kind == "throttle" else "reset" if kind == "reset" else "unavailable"]
    loud = [record for record in caplog.records if record.name != "asyncio" and record.levelno >= logging.INFO]
    assert loud == []
    assert far.emulator.key not in caplog.text


async def test_a_certificate_that_nobody_vouches_for_is_refused_on_loopback_too(far: Account) -> None:
    if far.certificate is None:
        return
    address = far.address("d")
    client = RestClient(address)
    containers = AccountContainers(replace(address, ca=None), client)
    assert (await client.account()).regions
    with pytest.raises(CosmosUnavailable) as error:
        await containers.create_database()
    assert error.value.kind == "connect"
    await client.close()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (answer(201, b"<html>"), "malformed"),
        (answer(201, b'{"id":"d"}').replace(b"charge: 1.00", b"charge: nan"), "malformed"),
        (answer(201, b'{"id":"d"}')[:-5] + CUT, "malformed"),
        (b"HTTP/1.1 200" + CUT, "reset"),
        (b"SSH-2.0-nonsense\r\n\r\n", "malformed"),
        (CUT, "reset"),
        (answer(502, b"<html>"), "unavailable"),
        (answer(503, b""), "unavailable"),
        (refusal(403, 5300), "forbidden"),
        (refusal(401, 0), "unauthorized"),
    ],
)
async def test_what_no_service_answers_is_an_error(said: bytes, kind: str) -> None:
    async with saying(said) as raw:
        address, observer = parse(f"cosmos+http://127.0.0.1:{raw.port}/d", {}), Counted()
        client = RestClient(address, observer)
        with pytest.raises(CosmosUnavailable) as error:
            await AccountContainers(address, client).create_database()
        assert (error.value.kind, observer.kinds) == (kind, [kind])
        await client.close()


async def test_containers_are_made_in_the_region_that_takes_writes() -> None:
    async with saying(answer(201, b'{"id":"d"}')) as there, saying() as here:
        location = [{"name": "There", "databaseAccountEndpoint": f"http://127.0.0.1:{there.port}/"}]
        here.told = {"writableLocations": location}
        there.told = {"writableLocations": location}
        address = parse(f"cosmos+http://127.0.0.1:{here.port}/d", {})
        client = RestClient(address)
        assert await AccountContainers(address, client).create_database()
        assert requests_of(there) == ["GET /", "POST /dbs"]
        assert requests_of(here) == ["GET /"]
        await client.close()


def requests_of(raw: Raw) -> list[str]:
    return [" ".join(head.decode().split(" ", 2)[:2]) for head in raw.heard]
