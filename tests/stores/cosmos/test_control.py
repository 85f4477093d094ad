"""The control plane by azure-cosmos: in the region that takes writes; what makes no sense is an error of a kind."""

from dataclasses import replace

import pytest

from hotplate.stores.cosmos.control import AccountContainers
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.rest import RestClient
from hotplate.stores.cosmos.url import parse
from tests.support.cosmos_account import Account, Counted, kind_of
from tests.support.cosmos_raw import CUT, ScriptedServer, answer, refusal, scripted


async def test_an_untrusted_certificate_is_refused_on_loopback_too(account: Account) -> None:
    address = account.address("d")
    client = RestClient(address)
    containers = AccountContainers(replace(address, ca=None), client)
    assert (await client.account()).regions
    assert await kind_of(containers.create_database()) == "connect"
    await client.close()


@pytest.mark.parametrize(
    ("response", "kind"),
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
async def test_what_no_service_answers_is_an_error(response: bytes, kind: str) -> None:
    async with scripted(response) as raw:
        address, observer = parse(f"cosmos+http://127.0.0.1:{raw.port}/d", {}), Counted()
        client = RestClient(address, observer)
        with pytest.raises(CosmosUnavailable) as error:
            await AccountContainers(address, client).create_database()
        assert (error.value.kind, observer.kinds) == (kind, [kind])
        await client.close()


async def test_containers_are_made_in_the_region_that_takes_writes() -> None:
    async with scripted(answer(201, b'{"id":"d"}')) as there, scripted() as here:
        location = [{"name": "There", "databaseAccountEndpoint": f"http://127.0.0.1:{there.port}/"}]
        here.properties = {"writableLocations": location}
        there.properties = {"writableLocations": location}
        address = parse(f"cosmos+http://127.0.0.1:{here.port}/d", {})
        client = RestClient(address)
        assert await AccountContainers(address, client).create_database()
        assert requests_of(there) == ["GET /", "POST /dbs"]
        assert requests_of(here) == ["GET /"]
        await client.close()


def requests_of(raw: ScriptedServer) -> list[str]:
    return [" ".join(head.decode().split(" ", 2)[:2]) for head in raw.heard]
