"""Requests that are not plain: each gets its answer, and then its connection closes."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest

from hotplate.serve.embedded import Lists
from hotplate.serve.reader import TieredReader
from tests.support.lane import MemoryTransport, Pair, connected
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, publish

GET = b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n"
USERS = json.dumps({"users": ["1"] * 1000, "n": 10}).encode()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    store = MemoryStore()
    await publish(store, "first")
    async with Pair(TieredReader({"store": RemoteStore(store)})) as pair:
        yield pair


async def answered(transport: MemoryTransport) -> bytes:
    """Return what was written once the connection is closed."""
    async with asyncio.timeout(30):
        while not transport.closed:
            await asyncio.sleep(0.001)
    return bytes(transport.written)


def post(version: bytes, *headers: bytes) -> bytes:
    lines = (b"POST /v1/recommendations HTTP/" + version, b"Host: a", b"Content-Length: %d" % len(USERS), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + USERS


@pytest.mark.parametrize(
    "sent",
    [
        post(b"1.0", b"Connection: keep-alive"),
        post(b"1.1", b"Expect: 100-continue"),
        post(b"1.1", b"Connection: upgrade", b"Upgrade: h2c"),
    ],
    ids=["1.0", "expect", "upgrade"],
)
async def test_the_connection_of_an_odd_request_closes_after_its_answer(pair: Pair, sent: bytes) -> None:
    for server in (pair.lane, pair.plain):
        _, transport = connected(server)
        transport.feed(sent)
        written = await answered(transport)
        assert b" 200 OK" in written
        assert b"Connection: close" in written or b"HTTP/1.0" in written
        assert b"keep-alive" not in written


async def test_expect_of_http_1_0_is_ignored(pair: Pair) -> None:
    _, transport = connected(pair.plain)
    transport.feed(post(b"1.0", b"Expect: 100-continue"))
    assert b"100 Continue" not in await answered(transport)


async def test_a_request_before_a_malformed_one_gets_its_answer(pair: Pair) -> None:
    for server in (pair.lane, pair.plain):
        _, transport = connected(server)
        transport.feed(GET + b"GET / HTTP/1.1\r\nHost : a\r\n\r\n")
        written = await answered(transport)
        assert re.findall(rb"HTTP/1.1 (\d+)", written) == [b"200", b"400"]


async def test_a_client_that_sends_no_more_gets_the_answer_it_waits_for(pair: Pair) -> None:
    for server in (pair.lane, pair.plain):
        connection, transport = connected(server)
        transport.feed(GET)
        assert connection.eof_received(), "the connection would be closed at once"
        assert b" 200 OK" in await answered(transport)


async def test_a_list_refused_as_too_late_counts_by_its_route(pair: Pair) -> None:
    _, transport = connected(pair.plain)
    transport.feed(GET.replace(b"Host: a", b"Host: a\r\nX-Request-Timeout-Ms: 0\r\nConnection: close"))
    assert b" 503 " in await answered(transport)
    text = Lists(pair.reader).prometheus_text().decode()
    counted = re.findall(r"(?m)^hotplate_http_request_duration_seconds_count\{(.*503.*)\} 1.0$", text)
    assert ['route="/v1/recommendations/{user}"' in labels for labels in counted] == [True]
