"""The small HTTP client against servers that misbehave: every request gets an answer or a reason, in time."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hotplate.base.http1 import ClientConnection, ConnectionPool, RequestFailed
from tests.support.streams import listening
from tests.support.waiting import until_true

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Charge: 1\r\n\r\nok"
# A time limit that passes only if a test lets it pass.
AMPLE_S = 60.0


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


def let_pass(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the clock of the running loop forward."""
    loop = asyncio.get_running_loop()
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + seconds)


async def until_heard(heard: list[Any]) -> None:
    await until_true(lambda: heard)


@pytest.mark.parametrize(
    ("said", "kind"),
    [(b"nonsense\r\n\r\n", "malformed"), (b"HTTP/1.1 100 Continue\r\n\r\n", "malformed"), (b"", "timeout")],
)
async def test_missing_answer_has_a_kind_and_next_request_reconnects(
    monkeypatch: pytest.MonkeyPatch, said: bytes, kind: str
) -> None:
    async with serving(said, ANSWER) as (pool, heard):
        failing = asyncio.create_task(pool.request(REQUEST, AMPLE_S))
        await until_heard(heard)
        if kind == "timeout":
            let_pass(AMPLE_S, monkeypatch)
        with pytest.raises(RequestFailed, match=kind) as failed:
            await failing
        assert failed.value.kind == kind
        assert (await pool.request(REQUEST, AMPLE_S)).body == b"ok"


async def test_disconnect_raises_reset_and_unreachable_server_raises_connect_error() -> None:
    async with serving(ANSWER[:-1], hang_up=True) as (pool, _):
        with pytest.raises(RequestFailed, match="reset"):
            await pool.request(REQUEST, AMPLE_S)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = ConnectionPool("127.0.0.1", probe.getsockname()[1])
        with pytest.raises(RequestFailed, match="connect"):
            await nowhere.request(REQUEST, AMPLE_S)


async def test_connect_to_a_server_that_does_not_answer_a_handshake_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.base.http1.CONNECT_S", 0.05)

    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(say_nothing) as port:
        pool = ConnectionPool("127.0.0.1", port, tls=ssl.create_default_context())
        try:
            with pytest.raises(RequestFailed, match="connect"):
                await pool.request(REQUEST, AMPLE_S)
        finally:
            await pool.close()


@pytest.mark.parametrize(("late", "used"), [(ANSWER.replace(b"ok", b"no"), 1), (ANSWER[:-1], 2)])
async def test_cancelled_request_keeps_its_connection_until_answer_or_deadline(
    monkeypatch: pytest.MonkeyPatch, late: bytes, used: int
) -> None:
    heard = list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            heard.append(writer)
            writer.write(ANSWER if len(heard) > 1 else b"")

    async with listening(serve) as port:
        pool = ConnectionPool("127.0.0.1", port, size=1)
        cancelled = asyncio.create_task(pool.request(REQUEST, AMPLE_S))
        await until_heard(heard)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        heard[0].write(late)
        waiting = asyncio.create_task(pool.request(REQUEST, 2 * AMPLE_S))
        if used > 1:
            await asyncio.sleep(0)  # the request is waiting
            let_pass(AMPLE_S, monkeypatch)
        assert (await waiting).body == b"ok"
        await pool.close()
    assert len(set(heard)) == used


@pytest.mark.parametrize(
    ("idle_s", "surplus"), [(0.02, b""), (60.0, b"\n")], ids=["idle for long", "unrequested bytes"]
)
async def test_connection_that_may_be_closing_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, idle_s: float, surplus: bytes
) -> None:
    monkeypatch.setattr("hotplate.base.http1.IDLE_S", idle_s)
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(ANSWER)
            await asyncio.sleep(0.01)
            writer.write(surplus)

    async with listening(serve) as port:
        pool = ConnectionPool("127.0.0.1", port)
        for _ in range(2):
            assert (await pool.request(REQUEST, AMPLE_S)).body == b"ok"
            for _ in range(5):  # the surplus arrives before the next request even on a late loop
                await asyncio.sleep(0.01)
        await pool.close()
    assert opened == 2


async def test_idle_connections_are_dropped_after_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hotplate.base.http1.STALE_S", 0.0)
    opened = forgotten = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        number = opened
        while await reader.readuntil(b"\r\n\r\n"):
            if number <= forgotten:  # as by a load balancer that has lost its table
                writer.transport.abort()
                break
            await asyncio.sleep(0.05)
            writer.write(ANSWER)

    async with listening(serve) as port:
        pool = ConnectionPool("127.0.0.1", port)
        await asyncio.gather(*(pool.request(REQUEST, AMPLE_S) for _ in range(4)))
        forgotten = opened
        assert forgotten > 1
        with pytest.raises(RequestFailed, match="reset"):
            await pool.request(REQUEST, AMPLE_S)
        assert (await pool.request(REQUEST, AMPLE_S)).body == b"ok"
        await pool.close()


class Wire(asyncio.Transport):
    """A connection without a peer: written bytes are dropped."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Discard the bytes."""

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
).filter(lambda surplus: surplus[:1] not in b"\r\n")  # behind chunks, an empty line is not told from trailers


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
