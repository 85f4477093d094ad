"""Requests that are not plain: which keep their connection, which close it, and which are refused."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest

from hotplate.serve.connections.connection import State
from hotplate.serve.connections.framing import CHUNKED_PIECE_BYTES
from hotplate.serve.embedded import Lists
from hotplate.serve.lists.reader import TieredReader
from tests.support.lane import Pair, connected, sent_to
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, publish
from tests.support.requests import AMBIGUOUS, METHOD_LINES
from tests.support.soak import in_soak

GET = b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n"
USERS = json.dumps({"users": ["1"] * 1000, "n": 10}).encode()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    store = MemoryStore()
    await publish(store, "first")
    async with Pair(TieredReader({"store": RemoteStore(store)})) as pair:
        yield pair


def post(version: bytes, *headers: bytes) -> bytes:
    lines = (b"POST /v1/recommendations HTTP/" + version, b"Host: a", b"Content-Length: %d" % len(USERS), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + USERS


def chunked(*headers: bytes, body: bytes = b'{"users":\r\n\r\n["1"]}', trailers: bytes = b"") -> bytes:
    lines = (b"POST /v1/recommendations HTTP/1.1", b"Host: a", b"Transfer-Encoding: chunked", *headers)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 9]), body[at : at + 9]) for at in range(0, len(body), 9))
    return b"\r\n".join(lines) + b"\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"


JAVA = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAA")
WEBSOCKET = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ==")


def get(*headers: bytes) -> bytes:
    return GET.replace(b"Host: a", b"\r\n".join((b"Host: a", *headers)))


@pytest.mark.parametrize(
    "sent",
    [
        get(*JAVA),
        get(*WEBSOCKET),
        get(b"Expect: 100-continue"),
        get(b"Expect:"),
        post(b"1.1", *JAVA),
        post(b"1.1", *WEBSOCKET),
        post(b"1.1", b"Expect: 100-continue"),
        post(b"1.1", b"Expect: 100-continue", b"Expect: , 100-Continue"),
        chunked(),
        chunked().replace(b"\r\n9\r\n", b"\r\n0000000000009\r\n").replace(b"\r\n0\r\n", b"\r\n0000000000\r\n"),
        chunked(*JAVA),
        chunked(*WEBSOCKET),
        chunked(b"Expect: 100-continue"),
        chunked(trailers=b"X-Checksum: 1\r\n"),
        chunked(body=b'{"users":["1"]}' + b"\r\n" * 60),
    ],
    ids=lambda sent: sent[:4].decode().strip() + sent.partition(b"Host: a\r\n")[2][:40].decode(),
)
async def test_unusual_requests_with_a_certain_end_keep_the_connection(pair: Pair, sent: bytes) -> None:
    for server in (pair.lane, pair.plain):
        connection, transport = connected(server)
        for _ in range(2):
            transport.feed(sent)
        transport.feed(GET)
        await transport.answers(3)
        assert b"Connection: close" not in transport.written
        assert not transport.closed
        assert connection.state is State.IDLE


async def test_chunked_body_end_is_found_for_any_cut(pair: Pair) -> None:
    sent = chunked() + GET
    for at in range(1, len(sent)):
        transport = sent_to(pair.plain, sent[:at])
        await asyncio.sleep(0)
        transport.feed(sent[at:])
        await transport.answers(2)
        assert not transport.closed
        transport.close()


async def test_requests_behind_a_chunked_body_are_read_in_their_order(pair: Pair) -> None:
    """More of them arrive with the body than aiohttp is given at once."""
    users = [b"%d" % number for number in range(2 * CHUNKED_PIECE_BYTES // len(GET))]
    sent = chunked() + b"".join(GET.replace(b"/1 ", b"/%b " % user) for user in users)
    transport = sent_to(pair.plain, sent)
    written = await transport.answers(1 + len(users))
    statuses = re.findall(rb"HTTP/1.1 (\d+)", written)
    assert statuses == [b"200"] * (1 + len(users))
    assert re.findall(rb'"user":"(\d+)"', written)[-len(users) :] == users


async def test_trailers_are_not_headers_of_the_next_request(pair: Pair) -> None:
    transport = sent_to(pair.plain, chunked(trailers=b"X-Request-Id: from-a-trailer\r\n") + GET + get(b"X-Other: y"))
    await transport.answers(3)
    assert b"from-a-trailer" not in transport.written


@pytest.mark.parametrize(
    "sent",
    [
        post(b"1.0", b"Connection: keep-alive"),
        post(b"1.1", b"Connection: upgrade, close", b"Upgrade: h2c"),
        chunked(b"Connection: close"),
        chunked().replace(b": chunked", b": gzip, chunked"),
        post(b"1.1").replace(b"Content-Length", b"Transfer-Encoding:\r\nContent-Length"),
    ],
    ids=["1.0", "upgrade", "chunked", "coded", "no coding"],
)
async def test_other_unusual_requests_close_the_connection(pair: Pair, sent: bytes) -> None:
    for server in (pair.lane, pair.plain):
        transport = sent_to(server, sent)
        written = await transport.until_closed()
        assert b" 200 OK" in written
        assert b"Connection: close" in written or b"HTTP/1.0" in written
        assert b"keep-alive" not in written


@pytest.mark.parametrize(
    "header",
    [
        get(b"Expect: a-miracle"),
        post(b"1.1", b"Expect: a-miracle").removesuffix(USERS),
        post(b"1.1", b"Expect: 100-continue, a-miracle").removesuffix(USERS),
        post(b"1.1", b"Expect: 100-continue", b"Expect: a-miracle").removesuffix(USERS),
    ],
    ids=["list", "batch", "joined", "repeated"],
)
async def test_unknown_expectation_is_refused_without_waiting_for_a_body(pair: Pair, header: bytes) -> None:
    for server in (pair.lane, pair.plain):
        transport = sent_to(server, header)
        written = await transport.until_closed()
        assert written.startswith(b"HTTP/1.1 417 ")
        assert b"Connection: close" in written


async def test_refused_request_with_expect_closes_the_connection(pair: Pair) -> None:
    _, transport = connected(pair.plain)
    head, _, _ = post(b"1.1", b"Expect: 100-continue", b"Content-Encoding: gzip").partition(USERS)
    transport.feed(head)
    written = await transport.until_closed()
    assert b" 415 " in written
    assert b"Connection: close" in written
    assert b"100 Continue" not in written


@pytest.mark.parametrize("step", [pytest.param(23, id="quick"), in_soak(1)])
@pytest.mark.parametrize("line", METHOD_LINES, ids=["list", "batch", "upgrade"])
@pytest.mark.timeout(3600)
async def test_requests_with_ambiguous_length_are_refused_and_closed(pair: Pair, line: bytes, step: int) -> None:
    for headers, body in AMBIGUOUS:
        sent = line + headers + b"\r\n\r\n" + body
        for server in (pair.lane, pair.plain):
            for at in range(0, len(sent), step):
                transport = sent_to(server, sent[:at])
                await asyncio.sleep(0)
                transport.feed(sent[at:])
                transport.feed(b"\r\n\r\n" + GET)
                written = await transport.until_closed()
                assert b'"user":"2"' not in written, (sent, at)
                assert b'"user":"1"' not in written, (sent, at)
                assert re.search(rb"HTTP/1.1 400 |Connection: close", written), (sent, at)


async def test_expect_of_http_1_0_is_ignored(pair: Pair) -> None:
    transport = sent_to(pair.plain, post(b"1.0", b"Expect: 100-continue"))
    assert b"100 Continue" not in await transport.until_closed()


async def test_empty_expectation_is_not_answered(pair: Pair) -> None:
    transport = sent_to(pair.plain, post(b"1.1", b"Expect: ", b"Connection: close"))
    assert b"100 Continue" not in await transport.until_closed()


async def test_request_before_a_malformed_one_is_answered(pair: Pair) -> None:
    for server in (pair.lane, pair.plain):
        transport = sent_to(server, GET + b"GET / HTTP/1.1\r\nHost : a\r\n\r\n")
        written = await transport.until_closed()
        assert re.findall(rb"HTTP/1.1 (\d+)", written) == [b"200", b"400"]


async def test_half_closed_client_gets_its_answer(pair: Pair) -> None:
    for server in (pair.lane, pair.plain):
        connection, transport = connected(server)
        transport.feed(GET)
        assert connection.eof_received(), "the connection would be closed at once"
        assert b" 200 OK" in await transport.until_closed()


async def test_client_that_half_closes_before_the_end_of_a_body_is_given_up(pair: Pair) -> None:
    for turns in range(5):
        connection, transport = connected(pair.plain)
        transport.feed(post(b"1.1")[:-1])
        for _ in range(turns):
            await asyncio.sleep(0)
        if connection.eof_received():  # otherwise its transport closes it
            await transport.until_closed()


async def test_refusal_of_a_late_list_counts_for_its_route(pair: Pair) -> None:
    transport = sent_to(pair.plain, GET.replace(b"Host: a", b"Host: a\r\nX-Request-Timeout-Ms: 0\r\nConnection: close"))
    assert b" 503 " in await transport.until_closed()
    text = Lists(lambda: pair.reader).prometheus_text().decode()
    counted = re.findall(r"(?m)^hotplate_http_request_duration_seconds_count\{(.*503.*)\} 1.0$", text)
    assert ['route="/v1/recommendations/{user}"' in labels for labels in counted] == [True]
