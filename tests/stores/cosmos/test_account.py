"""Azure-cosmos: control plane, and translated errors."""

import secrets
from collections.abc import AsyncIterator

import pytest

from hotplate.bench.process import free_port
from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.store import open_url
from hotplate.stores.cosmos.url import parse
from hotplate.stores.lifecycle import activate
from hotplate.stores.store import ChargeCounter, Row
from hotplate.stores.verification import verify
from tests.support.cosmos_account import Account
from tests.support.cosmos_raw import CUT, ScriptedServer, answer, refusal, scripted
from tests.support.stores import allow_erasure, publish, ref_of

CONTAINER = answer(200, b'{"id":"c","_rid":"r","_self":"dbs/x/colls/y/"}')
ROWS = [Row("popular:", b'{"id":"p"}'), Row("user:1", b'{"id":"a"}')]
pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # the SDK's, of an emulator on loopback


@pytest.fixture
async def scripted_account(raw: ScriptedServer, observer: ChargeCounter) -> AsyncIterator[CosmosAccount]:
    """An account that responds as the test says."""
    account = CosmosAccount(parse(f"cosmos+http://127.0.0.1:{raw.port}/d", {}), observer)
    yield account
    await account.close()


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (answer(201, b"<html>"), "malformed"),
        (b"HTTP/1.1 200" + CUT, "reset"),
        (CUT, "reset"),
        (answer(502, b"<html>"), "unavailable"),
        (answer(503, b""), "unavailable"),
        (refusal(403, 5300), "forbidden"),
        (refusal(401, 0), "unauthorized"),
        (answer(404, b"<html>of a proxy"), "malformed"),
    ],
)
async def test_malformed_control_responses_are_errors(
    raw: ScriptedServer, scripted_account: CosmosAccount, observer: ChargeCounter, response: bytes, kind: str
) -> None:
    raw.responses = [response]
    with pytest.raises(CosmosUnavailable) as error:
        await scripted_account.create_database()
    assert (error.value.kind, observer.failures) == (kind, [kind])


async def test_containers_are_created_in_the_write_region() -> None:
    async with scripted(answer(201, b'{"id":"d"}')) as there, scripted() as here:
        location = [{"name": "There", "databaseAccountEndpoint": f"http://127.0.0.1:{there.port}/"}]
        here.properties = there.properties = {"writableLocations": location}
        account = CosmosAccount(parse(f"cosmos+http://127.0.0.1:{here.port}/d", {}))
        await account.create_database()
        assert b"POST /dbs HTTP/1.1" in b"".join(there.heard)
        assert b"POST" not in b"".join(here.heard)
        await account.close()


async def test_a_serverless_account_has_no_offers(
    raw: ScriptedServer, scripted_account: CosmosAccount, observer: ChargeCounter
) -> None:
    message = "Reading or replacing offers is not supported for serverless accounts."
    raw.responses = [CONTAINER, refusal(400, 0, message)]
    assert await scripted_account.offer("c") is None
    assert observer.failures == []


async def test_refused_connection_is_a_failed_connect(observer: ChargeCounter) -> None:
    account = CosmosAccount(parse(f"cosmos+http://127.0.0.1:{free_port()}/d", {}), observer)
    with pytest.raises(CosmosUnavailable, match=r"cannot be reached: .*Connect call failed"):
        await account.create_database()
    assert observer.failures == ["connect"]
    await account.close()


async def test_counted_charges_are_those_of_the_service(cosmos_http: Account, observer: ChargeCounter) -> None:
    store = open_url(cosmos_http.url(f"d{secrets.token_hex(4)}", ru="4000"), observer)
    spent_ru = cosmos_http.spent_ru()
    try:
        first, second = [await publish(store) for _ in range(2)]
        cosmos_http.inject_faults({"kind": "throttle", "share": 0.3, "retry_after_ms": 1})
        await activate(store, first)
        await verify(store, await ref_of(store, second))
        await store.scale_down(await ref_of(store, second))
        await store.incarnations()
        await store.erase(await ref_of(store, second), allow_erasure)
    finally:
        cosmos_http.inject_faults()
        await store.close()
    assert observer.ru == pytest.approx(cosmos_http.spent_ru() - spent_ru)
