"""Connections: a state machine per connection, their registry, and its limits.

aiohttp's parser reads headers and bodies. The fast lane or aiohttp's request and response classes answer one request
after the other.

Offers to upgrade are ignored (RFC 9110, 7.8). Unreadable requests, HTTP/1.0, CONNECT, transfer codings other than
`chunked`, expectations other than `100-continue`, and bodies that were not read close the connection.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextvars import Context
from enum import Enum
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, cast

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion10, RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from hotplate.serve.api.parameters import unreadable
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.connections.listeners import room_for_connections
from hotplate.serve.metrics import Metrics
from hotplate.serve.problems import CLOSE, Problem, internal_error
from hotplate.serve.settings import Limits
from hotplate.stores.folders import return_free_memory

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp.web_protocol import RequestHandler

    from hotplate.serve.connections.lane import Lane

log = logging.getLogger(__name__)

END = b"\r\n\r\n"
MAX_LINE_BYTES = 8190
BEHIND_BYTES = 65_536
# Pipelined requests answered before other connections.
LANES_AT_ONCE = 16
# How long requests that a client sent behind a refused batch wait, at most: most of them would be refused, too.
REFUSED_PAUSE_S = 0.1
# The registry bounds bodies.
NEVER_PAUSED = 1 << 30
# A slow reader must take WRITE_STEP_BYTES in `Limits.write_s`, or in CROWDED_WRITE_S if answers fill half of their
# room.
WRITE_STEP_BYTES = 65_536
CROWDED_WRITE_S = 1.0
CONTINUE = "100-continue"
CHUNKED = "chunked"
# A record of TLS.
TLS_WRITE_BYTES = 16_384
# Each tick of the sweep checks one of SLICES slices, so each connection about once a second: its slice changes when an
# older one closes.
SLICES = 10
TICK_S = 0.1
# Memory of more freed bodies and answers is returned to the system.
RETURNED_BYTES = 32 << 20
# Time to read the last answer: closing with unread bytes would reset the connection.
LINGER_S = 1.0


class State(Enum):
    """State of a connection."""

    __hash__ = object.__hash__  # Enum's is slower, and each request looks up transitions

    OPENING = "accepted; a TLS handshake may be in progress"
    IDLE = "no byte of the next request has arrived"
    HEADER = "a header has begun"
    STORE = "the fast lane waits for a store"
    BODY = "a request is being answered, and its body is incomplete"
    ANSWER = "a complete request is being answered"
    REFUSED = "a request is refused, and its body is discarded"
    CLOSING = "the last answer is written; input is discarded until the client has read it"
    CLOSED = "the transport is gone"


# Enum attributes are slow, and these are read for each request.
IDLE = State.IDLE
STORE = State.STORE
CLOSED = State.CLOSED
# Every state may also change to CLOSED.
TRANSITIONS = {
    State.OPENING: {State.IDLE},
    State.IDLE: {State.HEADER, State.STORE},
    State.HEADER: {State.IDLE, State.STORE, State.BODY, State.ANSWER, State.REFUSED, State.CLOSING},
    State.STORE: {State.IDLE},
    State.BODY: {State.ANSWER, State.CLOSING},
    State.ANSWER: {State.IDLE, State.CLOSING},
    State.REFUSED: {State.IDLE},
    State.CLOSING: set[State](),
    State.CLOSED: set[State](),
}
WAITS_FOR_REQUEST = (State.OPENING, State.IDLE, State.HEADER)


class ConnectionRegistry:
    """The connections of a server, and their shared state."""

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        writer: AnswerWriter,
        lane: "Lane | None",
        *,
        answer: Callable[[web.BaseRequest, float], Awaitable[web.StreamResponse]],
        shed: Callable[[RawRequestMessage, float], bytes | None],
    ) -> None:
        """*answer* is called with a request, and when it began by `time.monotonic`.

        *shed* is called with the header of a request with a body, and when it began; it may return a refusal.
        """
        self.limits = limits
        self.metrics = metrics
        self.writer = writer
        self.lane = lane
        self.answer = answer
        self.shed = shed
        self.bytes_in_flight = 0
        """Of unanswered requests and unread answers."""
        self._room = min(limits.connections, room_for_connections())
        self.open: dict[Connection, None] = {}
        """All connections, the oldest first."""
        self._peak_bytes = 0
        """Of `bytes_in_flight`, since memory was returned."""
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self.open)

    @property
    def is_full(self) -> bool:
        """Whether bytes in flight exceed their limit."""
        return self.bytes_in_flight > self.limits.bytes_in_flight

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered or refused, or a last answer has not been read yet."""
        return any(connection.idle_since == inf for connection in self.open)

    def start(self) -> None:
        """Start the sweep."""
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Stop the sweep."""
        if self._timer is not None:
            self._timer.cancel()

    def may_open(self) -> bool:
        """Return whether a connection may open, closing the longest idle one if allowed. A refusal is counted."""
        if len(self) < self._room or (self.limits.idle_gives_way and self._close_longest_idle()):
            return True
        self.metrics.count_shed("connections")
        return False

    def _close_longest_idle(self) -> bool:
        """Close the connection that is idle for longest; False if none is idle."""
        longest_idle = min(self.open, key=lambda connection: connection.idle_since, default=None)
        if longest_idle is None or longest_idle.idle_since == inf:
            return False
        del self.open[longest_idle]
        longest_idle.cut()
        return True

    def _tick(self) -> None:
        self.start()
        self._ticks += 1
        now = monotonic()
        for connection in list(self.open)[self._ticks % SLICES :: SLICES]:
            if connection.is_open:
                connection.check(now)
        self._return_memory()

    def _return_memory(self) -> None:
        self._peak_bytes = max(self._peak_bytes, self.bytes_in_flight)
        if self._ticks % SLICES == 0 and self._peak_bytes - self.bytes_in_flight > RETURNED_BYTES:
            self._peak_bytes = self.bytes_in_flight
            return_free_memory()


def _may_keep_connection(message: RawRequestMessage) -> bool:
    """Return whether another request may follow: the client allows it, and every server finds the same end."""
    headers = message.headers
    if message.should_close or message.version < HttpVersion11 or message.method == hdrs.METH_CONNECT:
        return False
    if any(expected.lower() != CONTINUE for expected in headers.getall(hdrs.EXPECT, ())):
        return False
    return not message.chunked or headers.getall(hdrs.TRANSFER_ENCODING) == [CHUNKED]


class _TlsWriter(StreamWriter):
    """Writes bodies in pieces: over TLS, uvloop takes a whole write, and does not count what is not sent of it."""

    async def write_eof(self, chunk: bytes = b"") -> None:
        """Write the last part of a body."""
        for start in range(0, len(chunk), TLS_WRITE_BYTES):
            await self.write(chunk[start : start + TLS_WRITE_BYTES])
            await self.drain()
        await super().write_eof()


class Connection(BaseProtocol):
    """An asyncio protocol that makes aiohttp's objects when needed."""

    __slots__ = (
        "_body_tail", "_buffer", "_closes", "_held", "_is_ended", "_lane", "_left", "_payload", "_queued", "_registry",
        "_requests", "_stalled", "_task", "accepting", "since", "ssl_context", "state",
    )  # fmt: skip
    peername = sockname = None  # read by aiohttp's requests

    def __init__(self, registry: ConnectionRegistry) -> None:
        super().__init__(asyncio.get_running_loop())
        self.state = State.OPENING
        self.ssl_context: SSLContext | None = None
        self.accepting: asyncio.Task[object] | None = None
        self.since = monotonic()
        """When the current request or closing began, or the previous request was answered."""
        self._registry = registry
        self._lane = registry.lane
        self._buffer = bytearray()
        self._requests: HttpRequestParser | None = None
        self._payload = EMPTY_PAYLOAD
        self._left = 0.0  # body bytes to come; inf if chunked
        self._body_tail = b""  # the last bytes of a chunked body
        self._closes = False  # after the current request
        self._is_ended = False  # the client half-closed
        self._task: asyncio.Task[None] | None = None
        self._held = 0  # bytes of requests and answers that count as in flight
        self._queued = 0  # bytes of an answer that the client has not read
        self._stalled = 0.0  # since when the client has not read WRITE_STEP_BYTES more

    def _go(self, state: State) -> None:
        if state is not CLOSED and state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a connection cannot go from {self.state.name} to {state.name}")
        self.state = state

    @property
    def is_open(self) -> bool:
        """Whether the TLS handshake is done and the transport open."""
        return self.state not in (State.OPENING, State.CLOSED)

    @property
    def idle_since(self) -> float:
        """Since when it waits for a whole request; inf while it answers, refuses or closes."""
        return self.since if self.state in WAITS_FOR_REQUEST and not self._queued else inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self.ssl_context = transport.get_extra_info("sslcontext")
        if self.ssl_context is not None:
            self._live.set_write_buffer_limits(high=TLS_WRITE_BYTES)
        self._go(State.IDLE)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio."""
        self._registry.bytes_in_flight -= self._queued
        self.hold(-self._held)
        self._queued = 0
        self._registry.open.pop(self, None)
        self._go(State.CLOSED)
        super().connection_lost(exc)
        if not self._payload.is_eof():
            self._payload.set_exception(ConnectionResetError("the client has gone"))

    def eof_received(self) -> bool:
        """Answer a GET of a client that half-closed, and what follows a refusal; another POST is given up."""
        self._is_ended = True
        is_refused = self.state is State.REFUSED and not self._left
        is_answering = self.state in (State.STORE, State.ANSWER) and self._payload is EMPTY_PAYLOAD
        return (is_answering or is_refused) and self._live.can_write_eof()  # TLS cannot half-close

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.state is IDLE:
            self.since = monotonic()
            if self._answer_in_lane(data):
                return
        if self.state is State.BODY:
            if self._payload.exception() is None:
                self._hold_within_limit(len(data))
            self._feed_body(data)
            return
        if self.state is State.REFUSED and self._left:
            self._discard_body(data)
            return
        if self.state is State.CLOSING or not data:  # aiohttp resumes reading with no data
            return
        self._buffer += data
        self._hold_within_limit(len(data))
        if self.state in (State.IDLE, State.HEADER):
            self._read_headers()
        if len(self._buffer) > BEHIND_BYTES and self.is_open:
            self._live.pause_reading()

    def _answer_in_lane(self, request: bytes) -> bool:
        """Answer a request by the fast lane, now or later; False if that leaves it to aiohttp."""
        if self._lane is None or self._queued or self.transport is None:
            return False
        answer = self._lane.answer(request, self.since, self._deliver)
        if answer is None:
            return False
        if answer:
            self.transport.write(answer)
        else:
            self._go(STORE)
        return True

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        self._queued = self._live.get_write_buffer_size()
        self._stalled = monotonic()
        self._registry.bytes_in_flight += self._queued

    def resume_writing(self) -> None:
        """See asyncio."""
        self._registry.bytes_in_flight -= self._queued
        self._queued = 0
        super().resume_writing()

    @property
    def _live(self) -> asyncio.Transport:
        if self.transport is None:
            raise ConnectionResetError("the client has gone")
        return self.transport

    def _read_headers(self) -> None:
        """Begin with requests whose headers are complete in the buffer, until one must be waited for.

        The lane answers pipelined requests here; the last one in the buffer was not the lane's, or arrived in parts.
        """
        at_once = 0
        while self._buffer and self.state in (State.IDLE, State.HEADER):
            if self.state is State.IDLE:
                self._go(State.HEADER)
            end = self._buffer.find(END)
            size = len(self._buffer) if end < 0 else end + len(END)
            if not self._buffer[:1].isalpha() and self._buffer[0] not in b"\r\n":
                self._refuse(unreadable(400, None))  # such as TLS
            elif size > self._registry.limits.header_bytes:
                self._refuse(Problem(431, "large-header", "the header of the request is too large"), "large_header")
            elif end < 0:
                return
            else:
                header = bytes(self._buffer[:size])
                del self._buffer[:size]
                is_followed = bool(self._buffer)
                if is_followed and at_once < LANES_AT_ONCE and self._answer_in_lane(header):
                    at_once += 1
                    if self.state is not STORE:
                        self._await_request()
                else:
                    self._feed_header(header)

    def _feed_header(self, header: bytes) -> None:
        """Parse a complete header by aiohttp, and begin its request."""
        if self._requests is None:
            self._requests = HttpRequestParser(
                self,
                asyncio.get_running_loop(),
                NEVER_PAUSED,
                max_line_size=MAX_LINE_BYTES,
                max_field_size=MAX_LINE_BYTES,
                payload_exception=web.RequestPayloadError,
                auto_decompress=False,  # small bodies may be large uncompressed
            )
        try:
            messages, _, _ = self._requests.feed_data(header)
        except HttpProcessingError as error:
            self._refuse(unreadable(400, error.message))
            return
        if messages:  # none for empty lines before a request
            self._begin(*messages[0])

    def _begin(self, message: RawRequestMessage, payload: StreamReader) -> None:
        """Refuse a request by its header, or start the task that answers it, and feed the body that has arrived."""
        version = message.version
        if version not in (HttpVersion11, HttpVersion10):
            status, name = (505, "version-not-supported") if version.major else (400, "bad-request")
            spoken = f"HTTP/1.1 and HTTP/1.0 are spoken here, not HTTP/{version.major}.{version.minor}"
            self._refuse(Problem(status, name, spoken))
            return
        self._payload = payload
        self._closes = not _may_keep_connection(message)
        self._left = inf if message.chunked else int(message.headers.get(hdrs.CONTENT_LENGTH, 0))
        self._body_tail = b""
        if message.upgrade and payload.is_eof():
            self._requests = None  # it waits for another protocol
        refusal = self._shed(message)
        if refusal is not None:
            self._live.write(refusal)
            self._payload = EMPTY_PAYLOAD
            self._requests = None  # it waits for the body
            self._go(State.REFUSED)
            self._discard_body(self._take_buffer())
            return
        self._go(State.ANSWER if payload.is_eof() else State.BODY)
        self._task = asyncio.get_running_loop().create_task(self._respond(message))
        if self.state is State.BODY and self._buffer:
            self._feed_body(self._take_buffer())

    def _take_buffer(self) -> bytes:
        """Return what has arrived, and empty the buffer."""
        data = bytes(self._buffer)
        self._buffer = bytearray()
        return data

    def _shed(self, message: RawRequestMessage) -> bytes | None:
        """Return the refusal of a request whose body can be discarded without a parser."""
        is_counted = 0 < self._left < inf and hdrs.EXPECT not in message.headers
        if self._closes or self._queued or not is_counted:
            return None
        return self._registry.shed(message, self.since)

    def _discard_body(self, data: bytes) -> None:
        """Discard the body of a refused request; keep what follows it, and read that after a pause."""
        size = int(min(len(data), self._left))
        self._left -= size
        self._buffer += data[size:]
        if not self._left:
            # At random, so that clients do not come back together.
            pause_s = random.uniform(0, REFUSED_PAUSE_S) if self._buffer else 0.0  # noqa: S311 -- not cryptographic
            asyncio.get_running_loop().call_later(pause_s, self._end_refusal)

    def _end_refusal(self) -> None:
        if self.is_open:
            self._go_on()

    def _feed_body(self, data: bytes) -> None:
        """Give the request a part of its body; keep the bytes behind the body in the buffer."""
        if self._payload.exception() is not None or self._requests is None:
            return  # a refused body is discarded
        try:
            if self._left == inf:
                rest = self._feed_chunked(self._requests, data)
            else:
                rest = self._feed_counted(self._requests, data)
        except HttpProcessingError as error:
            self._fail_body(unreadable(400, error.message))
            return
        if self._payload.is_eof():
            # The parser may keep trailers, or wait for another protocol.
            self._requests = None
            self._go(State.ANSWER)
            self._buffer += rest

    def _feed_counted(self, requests: HttpRequestParser, data: bytes) -> bytes:
        """Feed a body of known length; return the bytes behind it."""
        size = int(min(len(data), self._left))
        self._left -= size
        requests.feed_data(data[:size])
        return data[size:]

    def _feed_chunked(self, requests: HttpRequestParser, data: bytes) -> bytes:
        """Feed a chunked body; return the bytes behind it.

        The parser does not tell where a body ends. As each ends with an empty line, the parser gets the bytes up to
        the next empty line at a time. If a body ends elsewhere, the connection closes.
        """
        joined = self._body_tail + data
        fed = len(self._body_tail)
        self._body_tail = joined[1 - len(END) :]
        at = joined.find(END)
        while at >= 0:
            end = at + len(END)
            requests.feed_data(joined[fed:end])
            fed = end
            if self._payload.is_eof():
                return joined[end:]
            at = joined.find(END, at + 1)
        requests.feed_data(joined[fed:])
        self._closes |= self._payload.is_eof()
        return b""

    def _fail_body(self, problem: Problem) -> None:
        if self._payload.exception() is None:
            self._payload.set_exception(problem)

    async def _respond(self, message: RawRequestMessage) -> None:
        """Answer a request by aiohttp's classes, and write the answer; then go on, or close.

        A defect is answered with 500, or cuts the connection if the answer has begun.
        """
        loop = asyncio.get_running_loop()
        writer_type = StreamWriter if self.ssl_context is None else _TlsWriter
        writer = writer_type(self, loop)
        # Of aiohttp's own protocol, requests read `transport`, `peername`, `sockname` and `ssl_context`.
        handler = cast("RequestHandler", self)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        request = web.BaseRequest(message, self._payload, handler, writer, task, loop)
        try:
            await writer.drain()  # earlier answers first
            response = await self._registry.answer(request, self.since)
            if self._closes or request.can_read_body:
                response.force_close()
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            self.cut()
            return
        except Exception:
            request_id = self._registry.writer.request_ids.new()
            log.exception("request %s failed", request_id)
            if writer.output_size or not self.is_open:
                self.cut()  # the answer has begun
            else:
                self._refuse(internal_error(request_id))
            return
        if not self.is_open:
            return
        self._task = None
        if response.keep_alive:
            self._go_on()
        else:
            self._linger()

    def _deliver(self, answer: bytes) -> None:
        """Write an answer for which the lane has waited, and go on."""
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(answer)
        self._go_on()

    def _go_on(self) -> None:
        """After an answer: wait for the next request, or begin with those that have arrived."""
        self._payload = EMPTY_PAYLOAD
        self._await_request()
        if self._buffer:
            self._read_buffered()
            if len(self._buffer) <= BEHIND_BYTES and self.is_open and not self._live.is_reading():
                self._live.resume_reading()
        if self._is_ended and self.state in (State.IDLE, State.HEADER):
            self._live.close()

    def _read_buffered(self) -> None:
        """Read the requests that arrived before the last answer.

        They get a new context: that of the caller may be of another request, with its deadline and spans. A defect
        closes the connection, as in `data_received`, and is not one of the request that was answered.
        """
        try:
            Context().run(self._read_headers)
        except Exception:
            log.exception("the next request of a connection could not be read")
            self.cut()

    def _await_request(self) -> None:
        """Wait for the next request; its first bytes may be in the buffer."""
        self._go(IDLE)
        self.since = monotonic()
        if self._buffer or self._held:
            self.hold(len(self._buffer) - self._held)

    def _refuse(self, problem: Problem, reason: str = "") -> None:
        self._live.write(self._registry.writer.refuse(problem, reason, monotonic() - self.since))
        self._linger()

    def _linger(self) -> None:
        self._go(State.CLOSING)
        self.since = monotonic()
        self._buffer.clear()
        self.hold(-self._held)
        if self._live.can_write_eof() and not self._live.is_closing():
            self._live.write_eof()
        else:
            self._live.close()

    def hold(self, count: int) -> None:
        """Add *count*, perhaps negative, to the bytes held for this connection, down to zero."""
        if self.is_open:
            count = max(count, -self._held)
            self._held += count
            self._registry.bytes_in_flight += count

    def _hold_within_limit(self, size: int) -> None:
        """Hold *size* more bytes; if all in flight exceed their limit, refuse the body or cut the connection."""
        self.hold(size)
        if self._registry.is_full:
            if self.state is State.BODY:
                self._fail_body(self._registry.writer.no_room())
            elif self.state not in (State.IDLE, State.HEADER) or self._queued:
                self._cut_slow_reader()

    def check(self, now: float) -> None:
        """Close if the state has lasted too long at *now* (`time.monotonic`)."""
        age_s = now - self.since
        limits = self._registry.limits
        if self._queued:
            self._check_reader(now)
        elif self.state is State.CLOSING:
            linger_s = LINGER_S if self.ssl_context is None else limits.write_s  # its transport may have unsent bytes
            if not self._live.get_write_buffer_size() and age_s > linger_s:
                self.cut()
            elif age_s > limits.write_s:
                self._cut_slow_reader()
        elif self.state is State.HEADER and age_s > limits.header_s:
            self._refuse(Problem(408, "slow-header", "the header of the request did not come in time"), "slow_header")
        elif self.state is State.BODY and age_s > limits.body_s and self._payload.exception() is None:
            self._registry.metrics.count_shed("slow_body")
            self._fail_body(Problem(408, "slow-body", "the body of the request did not come in time", CLOSE))
        elif self.state is State.REFUSED and age_s > limits.body_s:
            self._registry.metrics.count_shed("slow_body")
            self.cut()
        elif self.state is State.IDLE and age_s > limits.idle_s:
            if self._live.is_closing():  # since the last check, because of unread bytes or TLS
                self.cut()
            else:
                self._live.close()

    def _check_reader(self, now: float) -> None:
        """Cut a client that reads its answer too slowly: see WRITE_STEP_BYTES."""
        registry = self._registry
        step_s = registry.limits.write_s
        if registry.bytes_in_flight > registry.limits.bytes_in_flight // 2:
            step_s = min(step_s, CROWDED_WRITE_S)
        queued = self._live.get_write_buffer_size()
        if queued <= self._queued - WRITE_STEP_BYTES:
            registry.bytes_in_flight += queued - self._queued
            self._queued = queued
            self._stalled = now
        elif now - self._stalled > step_s:
            self._cut_slow_reader()

    def _cut_slow_reader(self) -> None:
        self._registry.metrics.count_shed("slow_reader")
        self.cut()

    def cut(self) -> None:
        """Close at once, even during the handshake."""
        if self.transport is not None:
            self.transport.abort()
        elif self.state is State.OPENING and self.accepting is not None:
            self.accepting.cancel()

    def close_if_idle(self) -> None:
        """Close if no request has begun."""
        if self.state is State.IDLE:
            self._live.close()

    def give_up(self) -> None:
        """Close at once, and cancel the request."""
        self.cut()
        if self._task is not None:
            self._task.cancel()
