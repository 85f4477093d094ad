"""Connections in memory: headers, pipelined requests, the use of aiohttp, and the acceptor."""

import asyncio
import gc
import re
import socket
from contextlib import ExitStack
from math import inf
from time import monotonic
from unittest.mock import Mock

import orjson
import pytest
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from hotplate.serve.connections.connection import TRANSITIONS, WRITE_STEP_BYTES, Connection, State
from hotplate.serve.connections.listeners import Acceptor
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.settings import Limits
from hotplate.stores.store import Row
from tests.support.lane import MemoryTransport, Pair, connected, needs_lane, sent_to
from tests.support.memory_store import MemoryStore
from tests.support.paths import ROOT
from tests.support.remote import RemoteStore, publish
from tests.support.service import a_list
from tests.support.stores import publish as publish_rows
from tests.support.virtual import virtual
from tests.support.waiting import until_true

GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
LIST = b"GET /v1/popular HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b'{"users": ["1"]}' + b" " * 30_000
POST = b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until_answered(transport: MemoryTransport, count: int) -> None:
    """Wait until this many requests are answered, all of them with 200."""
    await transport.answers(count)
    assert transport.written.count(b"HTTP/1.1 200 ") == count


@pytest.mark.parametrize(("cut", "pause"), [(20_000, 0), (1_000, 2)], ids=["large pieces", "a small piece first"])
async def test_pipelined_request_body_does_not_trigger_the_header_timeout(pair: Pair, cut: int, pause: int) -> None:
    for between in range(12):
        connection, transport = connected(pair.plain)
        transport.feed(GET)
        transport.feed(POST)
        await turns(between)
        transport.feed(BODY[:cut])
        await turns(pause)
        transport.feed(BODY[cut:])
        await until_answered(transport, 2)
        await turns(10)
        connection.check(monotonic() + 20)  # more than a header may take, and less than an idle connection may
        assert b"HTTP/1.1 408 " not in transport.written
        assert not transport.is_closing()
        transport.close()


async def test_a_body_that_arrives_with_its_header_is_counted_once(pair: Pair) -> None:
    transport = sent_to(pair.plain, POST + BODY)
    assert pair.plain.bytes_in_flight == len(POST + BODY)
    await until_answered(transport, 1)
    assert pair.plain.bytes_in_flight == 0


async def test_body_timeout_starts_when_its_request_is_handled(pair: Pair) -> None:
    connection, transport = connected(pair.plain)
    transport.feed(GET)
    connection.since -= 100  # as if its answer had taken long
    transport.feed(POST)
    await turns(20)
    connection.check(monotonic())
    await turns(10)
    assert b"HTTP/1.1 408 " not in transport.written
    transport.feed(BODY)
    await until_answered(transport, 2)


async def test_pipelined_requests_are_read_ahead_up_to_a_bound(pair: Pair) -> None:
    transport = sent_to(pair.plain, GET * 3000)
    assert not transport.is_reading()
    transport.feed(GET * 10)
    await until_answered(transport, 3010)
    assert transport.is_reading()


async def test_a_closing_connection_discards_input_though_reading_was_paused(pair: Pair) -> None:
    transport = sent_to(pair.plain, GET.replace(b"Host: a", b"Host: a\r\nConnection: close") + GET * 3000)
    assert not transport.is_reading()
    await until_answered(transport, 1)
    await turns(10)
    assert transport.closed
    assert transport.is_reading()


async def test_empty_lines_before_a_request_hold_no_memory(pair: Pair) -> None:
    _, transport = connected(pair.plain)
    for _ in range(1000):
        transport.feed(b"\r\n" * 20)
    assert pair.plain.bytes_in_flight == 0
    transport.feed(GET)
    await until_answered(transport, 1)


async def test_a_cancelled_handler_closes_its_connection(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair.reader, "popular", Mock(side_effect=asyncio.CancelledError))
    transport = sent_to(pair.plain, LIST)
    await turns(20)
    assert transport.closed
    assert not any(connection.idle_since == inf for connection in pair.plain.open)


@needs_lane
@pytest.mark.parametrize(
    ("pieces", "count"), [([LIST[:20], LIST[20:]], 1), ([LIST * 3], 3), ([LIST + LIST[:9], LIST[9:]], 2)]
)
async def test_lane_answers_plain_requests_in_any_pieces(pair: Pair, pieces: list[bytes], count: int) -> None:
    _, transport = connected(pair.lane)
    for piece in pieces:
        transport.feed(piece)
    assert transport.written.count(b"HTTP/1.1 200 ") == count  # at once, without a task


@needs_lane
async def test_pipelined_requests_yield_to_other_connections(pair: Pair) -> None:
    transport = sent_to(pair.lane, LIST * 500)
    assert 1 < transport.written.count(b"HTTP/1.1 200 ") < 100
    await until_answered(transport, 500)


@needs_lane
@virtual
async def test_pipelined_request_has_no_deadline_of_another_request(memory: MemoryStore) -> None:
    await publish(memory, "first")
    remote = RemoteStore(memory)
    remote.coalesce = 64
    async with Pair(TieredReader({"store": remote}, budget_s=60.0)) as pair:
        remote.delay_s = 10.0
        remote.reads.clear()
        _, limited = connected(pair.lane)
        _, transport = connected(pair.lane)
        limited.feed(b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 12000\r\n\r\n")
        await turns(2)  # its read begins soon, and others in this turn of the loop join it
        by_lane = b"GET /v1/recommendations/2 HTTP/1.1\r\nHost: a\r\n\r\n"
        by_aiohttp = b"GET /v1/recommendations/3 HTTP/1.1\r\nHost: a\r\nX-Other: b\r\n\r\n"
        transport.feed(by_lane)
        transport.feed(by_aiohttp)
        await asyncio.sleep(30)
        assert [sorted(keys) for keys in remote.reads] == [["user:1", "user:2"], ["user:3"]]
        assert limited.written.count(b'"source":"personal"') == 1
        assert transport.written.count(b'"source":"personal"') == 2


@needs_lane
@virtual
async def test_defect_in_a_pipelined_request_is_answered_and_logged_as_its_own(
    memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(memory, "first")
    remote = RemoteStore(memory)
    async with Pair(TieredReader({"store": remote})) as pair:
        monkeypatch.setattr(pair.reader, "popular", Mock(side_effect=RuntimeError("a defect")))
        transport = sent_to(pair.lane, b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\nX-Request-Id: first\r\n\r\n")
        transport.feed(b"GET /v1/popular HTTP/1.1\r\nHost: a\r\nX-Request-Id: second\r\n\r\n" + GET)
        await asyncio.sleep(1)
        assert re.findall(rb"HTTP/1.1 (\d+) ", transport.written) == [b"200", b"500", b"200"]
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert errors == ["request second failed"]


@needs_lane
@virtual
async def test_defect_in_a_pipelined_request_closes_after_the_answer(
    memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(memory, "first")
    remote = RemoteStore(memory)
    async with Pair(TieredReader({"store": remote})) as pair:
        monkeypatch.setattr("aiohttp.web.Server.__call__", Mock(side_effect=RuntimeError("a defect")))
        transport = sent_to(pair.lane, b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n")
        transport.feed(POST)
        await asyncio.sleep(1)
        assert re.findall(rb"HTTP/1.1 (\d+) ", transport.written) == [b"200"]
        assert transport.closed
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert errors == ["the next request of a connection could not be read"]


@needs_lane
@virtual
async def test_delivery_without_a_release_is_not_ready(memory: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    await publish(memory, "first")
    remote = RemoteStore(memory)
    async with Pair(TieredReader({"store": remote})) as pair:
        remote.delay_s = 1.0
        remote.broken_keys = {"user:1"}
        transport = sent_to(pair.lane, b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n")
        pair.reader.tiers[0].follower.live = None
        await asyncio.sleep(2)
        assert transport.written.startswith(b"HTTP/1.1 503 ")
        assert b"urn:hotplate:problem:not-ready" in transport.written
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_batch_is_in_flight_until_a_slow_client_has_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    users = [str(n) for n in range(500)]
    lists = a_list(*(f"{n} {'x' * 100}" for n in range(20)))
    await publish_rows(store, [Row("popular:", lists), *sorted(Row(f"user:{user}", lists) for user in users)])
    body = orjson.dumps({"users": users, "n": 20})
    request = b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    least = 20 * 100 * len(users)
    write = MemoryTransport.write

    def fill(transport: MemoryTransport, data: bytes) -> None:
        write(transport, data)
        if len(data) > least:
            transport.connection.pause_writing()

    monkeypatch.setattr(MemoryTransport, "write", fill)
    async with Pair(TieredReader({"store": store}), limits=Limits(bytes_in_flight=least)) as pair:
        server = pair.plain

        async def begin() -> tuple[Connection, MemoryTransport]:
            connection, transport = connected(pair.plain)
            transport.feed(request)
            while not transport.written:
                await asyncio.sleep(0)
            return connection, transport

        connection, _ = await begin()
        assert least < server.bytes_in_flight
        _, other = await begin()
        assert other.written.startswith(b"HTTP/1.1 503 ")
        connection.resume_writing()
        while connection.state is not State.IDLE:
            await asyncio.sleep(0)
        assert server.bytes_in_flight < least / 100, "they still count though they were taken"

        _, gone = await begin()
        assert server.bytes_in_flight > least
        gone.close()
        await turns(100)
        assert server.bytes_in_flight < least / 100, "they still count though their reader is gone"


async def test_idle_connections_are_closed_silently_after_their_time(pair: Pair) -> None:
    unused = connected(pair.plain)
    used = connected(pair.plain)
    used[1].feed(GET)
    await until_answered(used[1], 1)
    for connection, transport in (unused, used):
        before = bytes(transport.written)
        idle_s = pair.plain.limits.idle_s
        connection.check(connection.since + idle_s - 1)
        assert not transport.is_closing()
        connection.check(connection.since + idle_s + 1)
        assert transport.is_closing()
        assert transport.written == before


async def test_slow_reader_is_cut_unless_it_reads_a_step_in_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    unread = 5 * WRITE_STEP_BYTES
    monkeypatch.setattr(MemoryTransport, "get_write_buffer_size", lambda _: unread)
    connection, transport = connected(pair.plain)
    connection.pause_writing()
    now = monotonic()
    write_s = pair.plain.limits.write_s
    for _ in range(4):
        connection.check(now + write_s - 1)
        now += write_s - 1
        unread -= WRITE_STEP_BYTES
        connection.check(now)
        assert not transport.is_closing()
    connection.check(now + write_s + 1)
    assert transport.is_closing()


def test_service_uses_only_documented_modules_of_aiohttp() -> None:
    for path in (ROOT / "serve").rglob("*.py*"):
        if path.suffix in (".py", ".pyx"):
            assert not re.search(r"(?m)^\s*(?:from|import) aiohttp\.", path.read_text()), path


async def test_handler_of_an_idle_connection_is_freed_and_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.serve.connections.connection.DETACH_S", 0.01)
    store = MemoryStore()
    await publish(store, "first")
    async with Pair(TieredReader({"store": store})) as pair:
        _, transport = connected(pair.plain)
        gc.collect()
        before = count_objects(RequestHandler)
        for count in (1, 2):
            transport.feed(GET)
            await until_answered(transport, count)
            async with asyncio.timeout(60):
                while count_objects(RequestHandler) > before:
                    await asyncio.sleep(0.01)
        assert not transport.is_closing()


@pytest.mark.parametrize("path", [b"/nothing", b"/livez"], ids=["404", "405"])
async def test_refused_post_keeps_its_connection_and_its_body_is_discarded(pair: Pair, path: bytes) -> None:
    for server in (pair.lane, pair.plain):
        transport = sent_to(server, POST.replace(b"/v1/recommendations", path) + BODY[:100])
        await turns(20)
        assert re.match(rb"HTTP/1.1 40[45] ", transport.written)
        transport.feed(BODY[100:] + LIST)
        await transport.answers(2)
        assert transport.written.count(b"HTTP/1.1 ") == 2
        assert server.bytes_in_flight == 0
        assert not transport.closed


async def test_client_that_is_gone_before_its_request_begins_leaves_no_error(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    for request in (GET, POST, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"):
        for count in range(6):
            transport = sent_to(pair.plain, request)
            await turns(count)
            transport.close()
            del transport
            await turns(20)
    gc.collect()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert set().union(*TRANSITIONS.values()) == set(State) - {State.OPENING, State.CLOSED}


def count_objects(kind: type) -> int:
    return sum(type(held) is kind for held in gc.get_objects())


async def test_connections_and_bodies_are_freed_without_the_garbage_collector(pair: Pair) -> None:
    chunked = b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    gc.collect()
    held = count_objects(Connection), count_objects(StreamReader)
    gc.disable()
    try:
        for request in (LIST, POST + BODY, POST + BODY[:-1], chunked + b"5\r\nab", chunked + b"zz\r\n"):
            for server in (pair.lane, pair.plain):
                transport = connected(server)[1]
                transport.feed(request)
                await turns(20)
                transport.close()  # as a client that is gone
                await turns(20)
                del transport
        assert (count_objects(Connection), count_objects(StreamReader)) == held
    finally:
        gc.enable()


async def test_accepted_connections_are_freed_without_the_garbage_collector(pair: Pair) -> None:
    gc.collect()
    held = count_objects(Connection)
    gc.disable()
    try:
        for server in (pair.lane, pair.plain):
            client, accepted = socket.socketpair()
            accepted.setblocking(False)
            server.accept(None, accepted)
            reader, writer = await asyncio.open_connection(sock=client)
            writer.write(LIST + POST + BODY[:-1])
            async with asyncio.timeout(30):
                await reader.readuntil(b" 200 OK")
            writer.close()
        await until_true(lambda: count_objects(Connection) == held)
    finally:
        gc.enable()


async def test_backlog_connections_are_accepted_on_close() -> None:
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        taken = list[socket.socket]()
        acceptor = Acceptor(listening, lambda accepted: taken.append(stack.enter_context(accepted)))
        address = listening.getsockname()
        waiting = [stack.enter_context(socket.create_connection(address)) for _ in range(20)]
        acceptor.close()
        acceptor.close()
        assert len(taken) == len(waiting)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
