"""What the client makes of answers that are cut short, make no sense, or say no: an error of a kind, never data."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hotplate.stores.cosmos.errors import (
    TRANSIENT,
    ContainerMissing,
    CosmosThrottled,
    Refusal,
    error_for,
)
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import parse
from hotplate.stores.errors import AccessDenied, NotSent, StoreFull
from hotplate.stores.store import ChargeCounter
from tests.support.cosmos_account import PATIENCE_S, kind_of
from tests.support.cosmos_raw import CUT, DATE, ScriptedServer, answer, refusal

ITEM = b'{"id":"a","v":1}'


@pytest.fixture
async def client(
    raw: ScriptedServer, observer: ChargeCounter, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SignedClient]:
    """One that reads the account once, however long a test takes."""
    monkeypatch.setattr("hotplate.stores.cosmos.regions.MIN_REFRESH_INTERVAL_S", PATIENCE_S)
    scripted_client = SignedClient(parse(f"cosmos+http://127.0.0.1:{raw.port}/d", {}), observer)
    yield scripted_client
    await scripted_client.close()


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (answer(200, ITEM + b"   ")[:-3] + CUT, "reset"),
        (answer(200, ITEM).replace(b"length: 16", b"length: 9"), "malformed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\n" + ITEM + b"\r\n" + CUT, "reset"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + ITEM + CUT, "reset"),
        (b"\x16\x03\x01 not HTTP at all\r\n\r\n", "malformed"),
        (answer(200, b'{"id":"a"'), "malformed"),
        (answer(200, b'[{"id":"a"}]'), "malformed"),
        (answer(200, b'{"id":"b","v":1}'), "malformed"),
        (answer(200, b'{"v":1}'), "malformed"),
        (answer(200, b""), "malformed"),
        (answer(200, ITEM).replace(b"charge: 1.00", b"charge: x"), "malformed"),
        (answer(200, ITEM).replace(b"charge: 1.00", b"charge: nan"), "malformed"),
        (answer(404, b'{"error":"not the service"}'), "malformed"),
        (answer(204, b""), "refused"),
        (answer(302, b"", b"location: /login\r\n"), "refused"),
        (answer(502, b"<html>bad gateway</html>"), "unavailable"),
        (refusal(449, 0), "unavailable"),
        (refusal(408, 0), "unavailable"),
        (refusal(410, 1002), "unavailable"),
        (refusal(503, 0), "unavailable"),
        (refusal(404, 1002), "unavailable"),
        (refusal(404, 1013), "unavailable"),
        (refusal(403, 3), "unavailable"),
        (refusal(403, 1008), "unavailable"),
        (refusal(403, 5301), "forbidden"),
        (refusal(400, 0), "refused"),
        (refusal(401, 0), "unauthorized"),
    ],
)
async def test_malformed_items_are_typed_errors_and_counted(
    raw: ScriptedServer, client: SignedClient, observer: ChargeCounter, response: bytes, kind: str
) -> None:
    raw.responses = [response]
    assert await kind_of(client.read("c", "a", PATIENCE_S)) == kind
    assert observer.failures == [kind] * (2 if kind in TRANSIENT else 1)
    raw.responses = [answer(200, ITEM)]
    await asyncio.sleep(0.06)  # connections that end without a response are not opened again at once
    assert await client.read("c", "a", PATIENCE_S) == {"id": "a", "v": 1}


@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 200 OK\r\n" + DATE + b"content-length: 99\r\n\r\n{", b""],
    ids=["in its body", "in its head"],
)
async def test_truncated_response_is_a_timeout(
    raw: ScriptedServer, client: SignedClient, observer: ChargeCounter, response: bytes
) -> None:
    raw.responses = [response, answer(200, ITEM)]
    await client.account()
    assert await kind_of(client.read("c", "a", 0.05)) == "timeout"
    assert observer.failures == ["timeout"]
    assert await client.read("c", "a", PATIENCE_S) == {"id": "a", "v": 1}


async def test_response_cut_at_any_byte_is_an_error(
    raw: ScriptedServer, client: SignedClient, observer: ChargeCounter
) -> None:
    whole = answer(200, ITEM)
    for length in range(len(whole)):
        raw.responses = [whole, whole[:length] + CUT, whole]
        for _ in range(2):
            assert await client.read("c", "a", PATIENCE_S) == {"id": "a", "v": 1}
    assert observer.failures == ["reset"] * len(whole)


@pytest.mark.parametrize(
    "properties",
    [
        {"readableLocations": []},
        {"writableLocations": None},
        {"readableLocations": [{"name": "Here"}]},
        {"readableLocations": [{"name": "Here", "databaseAccountEndpoint": "ftp://127.0.0.1/"}]},
        {"readableLocations": [{"name": "Here", "databaseAccountEndpoint": "http://[::1/"}]},
    ],
)
async def test_malformed_account_is_an_error(
    raw: ScriptedServer, client: SignedClient, properties: dict[str, object]
) -> None:
    raw.properties = properties
    assert await kind_of(client.read("c", "a", PATIENCE_S)) == "malformed"


@pytest.mark.parametrize("policy", [None, "Session", [1]])
async def test_account_with_unknown_consistency_is_read(
    raw: ScriptedServer, client: SignedClient, policy: object
) -> None:
    raw.properties = {"userConsistencyPolicy": policy}
    raw.responses = [answer(200, ITEM)]
    assert await client.read("c", "a", PATIENCE_S) == {"id": "a", "v": 1}


async def test_session_is_requested_only_under_session_consistency(raw: ScriptedServer, client: SignedClient) -> None:
    raw.responses = [answer(201, ITEM, b"x-ms-session-token: 0:-1#7\r\n"), answer(200, b'{"id":"a","_etag":"x"}')]
    await client.create("c", {"id": "a"})
    await client.read_fresh("c", "a")
    assert b"x-ms-session-token: 0:-1#7\r\n" in raw.heard[-1]
    assert b"x-ms-consistency-level: Session\r\n" in raw.heard[-1]
    raw.properties = {"userConsistencyPolicy": {"defaultConsistencyLevel": "Eventual"}}
    await client.account()
    await client.read_fresh("c", "a")
    assert b"session" not in raw.heard[-1].lower()


def test_a_refusal_is_one_line_without_secrets() -> None:
    secret = "A" * 86 + "=="
    message = (
        f"first type%3Dmaster%26ver%3D1.0%26sig%3D{secret} and {secret} line {'x' * 20}" + " word" * 200 + "\nsecond"
    )
    text = str(error_for(Refusal(400, 0, message), "cosmos://a/d"))
    assert text.startswith("cosmos://a/d refused (400/0): first … and … line xxxxxxxxxxxxxxxxxxxx word")
    assert "AAAA" not in text
    assert "second" not in text
    assert len(text) < 400


def test_each_status_maps_to_its_error() -> None:
    throttled = error_for(Refusal(429, 3200, "", 0.25), "x")
    assert isinstance(throttled, CosmosThrottled)
    assert throttled.retry_after_s == 0.25
    assert isinstance(error_for(Refusal(404, 1003, ""), "x"), ContainerMissing)
    assert isinstance(error_for(Refusal(403, 1014, ""), "x"), StoreFull)
    refusals = [(403, 0), (403, 3), (403, 1008), (408, 0), (410, 3), (449, 5352), (503, 0)]
    errors = {refusal: error_for(Refusal(*refusal, ""), "x") for refusal in refusals}
    unprocessed = [refusal for refusal, error in errors.items() if isinstance(error, NotSent)]
    assert unprocessed == [(403, 3), (403, 1008), (449, 5352)]
    lasting = {status: error_for(Refusal(status, 0, ""), "x") for status in (400, 401, 403, 404, 413, 429, 503)}
    assert [status for status, error in lasting.items() if getattr(error, "permanent", False)] == [400, 401, 403, 413]
    assert [status for status, error in lasting.items() if isinstance(error, AccessDenied)] == [401, 403]
