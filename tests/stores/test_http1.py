"""The small HTTP client against servers that misbehave: every request gets an answer or a reason, in time."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hotplate.stores.http1 import ClientConnection, ConnectionPool, RequestFailed
from tests.support.streams import listening

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Charge: 1\r\n\r\nok"


@contextlib.asynccontextmanager
async def serving(*answers: bytes, hang_up: bool = False) -> AsyncIterator[tuple[ConnectionPool, list[bytes]]]:
    """Give the n-th request over all connections the n-th of *answers*, and further ones the last."""
    heard = list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            heard.append(head)
            writer.write(answers[min(len(heard), len(answers)) - 1])
            if hang_up:
                break

    async with listening(serve) as port:
        pool = ConnectionPool("127.0.0.1", port, size=2)
        try:
            yield pool, heard
        finally:
            await pool.close()


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_chunks_are_put_together_and_headers_belong_to_one_answer() -> None:
    chunked = b"HTTP/1.1 404 No\r\nX-First: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    async with serving(chunked, ANSWER) as (pool, _):
        first, second = await pool.request(REQUEST, 5), await pool.request(REQUEST, 5)
    assert (first.status, first.body) == (404, b"abc")
    assert second.header(b"x-first") is None
    assert first.header(b"x-first") == b"1"


@pytest.mark.parametrize(
    ("said", "kind"),
    [(b"nonsense\r\n\r\n", "malformed"), (b"HTTP/1.1 100 Continue\r\n\r\n", "malformed"), (b"", "timeout")],
)
async def test_no_answer_has_a_kind_and_the_next_request_a_new_connection(said: bytes, kind: str) -> None:
    async with serving(said, ANSWER) as (pool, _):
        with pytest.raises(RequestFailed, match=kind) as failed:
            await pool.request(REQUEST, 0.1)
        assert failed.value.kind == kind
        assert (await pool.request(REQUEST, 5)).body == b"ok"


async def test_disconnect_raises_reset_and_unreachable_server_raises_connect_error() -> None:
    async with serving(ANSWER[:-1], hang_up=True) as (pool, _):
        with pytest.raises(RequestFailed, match="reset"):
            await pool.request(REQUEST, 5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = ConnectionPool("127.0.0.1", probe.getsockname()[1])
        with pytest.raises(RequestFailed, match="connect"):
            await nowhere.request(REQUEST, 5)


async def test_a_caller_that_gives_up_leaves_no_answer_for_the_next() -> None:
    async with serving(b"", ANSWER) as (pool, _):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.request(REQUEST, 5), 0.05)
        assert (await pool.request(REQUEST, 5)).body == b"ok"


async def test_closing_fails_what_is_in_flight() -> None:
    async with serving(b"") as (pool, heard):
        request = asyncio.create_task(pool.request(REQUEST, 5))
        while not heard:
            await asyncio.sleep(0.001)
        await pool.close()
        with pytest.raises(RequestFailed, match="reset"):
            await request


async def test_a_late_response_is_dropped_with_its_connection() -> None:
    async with serving(ANSWER[:-1], ANSWER) as (pool, heard):
        with pytest.raises(RequestFailed, match="timeout"):
            await pool.request(REQUEST, 0.1)
        assert (await pool.request(REQUEST, 5)).body == b"ok"
        assert len(heard) == 2


async def test_connections_idle_for_long_are_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.stores.http1.IDLE_S", 0.02)
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(ANSWER)

    async with listening(serve) as port:
        pool = ConnectionPool("127.0.0.1", port)
        await asyncio.gather(*(pool.request(REQUEST, 5) for _ in range(2)))
        await asyncio.sleep(0.05)
        assert (await pool.request(REQUEST, 5)).body == b"ok"
        await pool.close()
    assert opened == 3


async def test_server_known_to_be_down_is_not_contacted_and_calls_fail_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pool = ConnectionPool("127.0.0.1", port)
    attempts = 0

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal attempts
            attempts += 1
            assert isinstance(transport, asyncio.Transport)
            transport.abort()

    server = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", port)
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.5
    kinds = set[str]()
    while loop.time() < until:
        for failed in await asyncio.gather(*(pool.request(REQUEST, 5) for _ in range(16)), return_exceptions=True):
            assert isinstance(failed, RequestFailed)
            kinds.add(failed.kind)
        await asyncio.sleep(0)
    assert kinds <= {"connect", "reset"}
    assert attempts <= 16 + 8
    server.close()
    await server.wait_closed()
    await pool.close()


class Wire(asyncio.Transport):
    """A connection to nobody: what is written goes nowhere."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody reads it."""

    def close(self) -> None:
        """Nothing is open."""

    def abort(self) -> None:
        """Nothing is open."""


class Recorded:
    """A listener that sends the next request as soon as it may, and notes what becomes of each."""

    def __init__(self) -> None:
        self.connection = ClientConnection[int](self)
        self.sent = 0
        self.answers = dict[int, tuple[int, bytes, bytes]]()
        self.failures = dict[int, str]()
        self.unsolicited: bool | None = None
        self.connection.connection_made(Wire())

    def on_ready(self, connection: ClientConnection[int]) -> None:
        self.sent += 1
        connection.send(b"", self.sent)

    def on_response(self, connection: ClientConnection[int], tag: int) -> None:
        assert tag not in self.answers
        self.answers[tag] = connection.status, connection.head, connection.body

    def on_failure(self, tag: int, kind: str) -> None:
        self.failures[tag] = kind

    def on_closed(self, connection: ClientConnection[int], *, unsolicited: bool) -> None:
        del connection
        self.unsolicited = unsolicited


def chunked(pieces: list[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


BODIES = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"\n\n", b"\r\n\r\n", b"0\r\n\r\n"])
PARTS = st.lists(BODIES.filter(bool), max_size=4)
SURPLUS = st.sampled_from([b"H", b"0\r\n\r\n", ANSWER, ANSWER[:-1], ANSWER * 2]) | st.binary(
    min_size=1, max_size=40
).filter(lambda surplus: surplus.strip(b"\r\n"))


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, bytes, bytes, bytes]:
    """Return a status, and the head, the body and the bytes of an answer."""
    match draw(st.sampled_from(["length", "chunks", "nothing"])):
        case "length":
            body = draw(BODIES)
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            return 200, head, body, head + body
        case "chunks":
            pieces = draw(PARTS)
            head = b"HTTP/1.1 409 No\r\nTRANSFER-encoding:  chunked\r\n\r\n"
            return 409, head, b"".join(pieces), head + chunked(pieces, draw(st.sampled_from([b"", b"x: y\r\n"])))
    head = b"HTTP/1.1 204 Nothing\r\n\r\n"
    return 204, head, b"", head


CUTS = st.lists(st.integers(0, 400), max_size=6)


def segments(raw: bytes, cuts: list[int], *, never: int = 0) -> list[bytes]:
    """Return bytes as a network may deliver them, cut anywhere but at *never*."""
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)} - ({never} if never else set()))
    return [raw[start:end] for start, end in pairwise(places)]


@given(st.lists(answers(), min_size=1, max_size=3), CUTS)
def test_fragmented_responses_are_reassembled_and_connection_is_reused(
    given_answers: list[tuple[int, bytes, bytes, bytes]], cuts: list[int]
) -> None:
    recorded = Recorded()
    for _, _, _, raw in given_answers:
        for segment in segments(raw, cuts):
            recorded.connection.data_received(segment)
    assert list(recorded.answers.values()) == [(status, head, body) for status, head, body, _ in given_answers]
    assert recorded.unsolicited is None


@given(answers(), SURPLUS, CUTS)
@example((200, ANSWER[:-2], b"ok", ANSWER), ANSWER[:20], [])
def test_unsolicited_response_closes_the_connection_and_is_discarded(
    given_answer: tuple[int, bytes, bytes, bytes], surplus: bytes, cuts: list[int]
) -> None:
    """Whatever comes with the end of an answer, down to one byte; the answer itself stands."""
    recorded = Recorded()
    status, head, body, raw = given_answer
    for segment in segments(raw + surplus, cuts, never=len(raw)):
        recorded.connection.data_received(segment)
    assert recorded.answers == {1: (status, head, body)}
    assert recorded.failures == {}
    assert recorded.sent == 1, "no request was sent where bytes of another answer lay"
    assert recorded.unsolicited is True


@given(st.sampled_from([b"\r\n", b"\n"]), answers(), CUTS)
def test_an_empty_line_before_an_answer_is_what_was_left_of_another(
    left: bytes, given_answer: tuple[int, bytes, bytes, bytes], cuts: list[int]
) -> None:
    recorded = Recorded()
    for segment in segments(left + given_answer[-1], cuts):
        recorded.connection.data_received(segment)
    assert recorded.failures == {1: "malformed"}
    assert not recorded.answers


async def test_bytes_that_nobody_requested_close_their_connection() -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(ANSWER)
            await asyncio.sleep(0.01)
            writer.write(b"\n")

    async with listening(serve) as port:
        pool = ConnectionPool("127.0.0.1", port)
        for _ in range(2):
            assert (await pool.request(REQUEST, 5)).body == b"ok"
            await asyncio.sleep(0.05)
        await pool.close()
    assert opened == 2
