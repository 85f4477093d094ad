"""Connections: a state machine per connection, their registry, and its limits.

aiohttp's parser reads headers and bodies, and finds framing errors. The fast lane or aiohttp's request and response
classes answer, one request after the other. Meanwhile up to BEHIND_BYTES may arrive.

Unreadable requests, HTTP/1.0, Expect, Upgrade, CONNECT, chunked bodies and refused bodies close the connection.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from enum import Enum
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, cast

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion10, RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from hotplate.serve.api.parameters import MAX_BODY_BYTES, unreadable
from hotplate.serve.connections.lane import END, AnswerWriter, Lane
from hotplate.serve.connections.listeners import room_for_connections
from hotplate.serve.metrics import Metrics
from hotplate.serve.problems import CLOSE, Problem, internal_error, overloaded
from hotplate.serve.settings import Limits

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 8190
BEHIND_BYTES = 65_536
# Pipelined requests that the lane answers before other connections.
LANES_AT_ONCE = 16
# The registry bounds bodies, so aiohttp's reader never pauses the connection.
NEVER_PAUSED = 1 << 30
# A slow reader must take WRITE_STEP_BYTES in `Limits.write_s`, or in CROWDED_WRITE_S if answers fill half of their
# room.
WRITE_STEP_BYTES = 65_536
CROWDED_WRITE_S = 1.0
# Each tick of the sweep checks one of SLICES slices of the connections: each connection once a second.
SLICES = 10
TICK_S = 0.1
# Connections beyond the limits that get an answer at a time.
REFUSED_AT_ONCE = 32
# Time to read the last answer: closing with unread bytes would reset the connection.
LINGER_S = 1.0
# Undocumented names of aiohttp. A test checks for each, and pyproject.toml bounds the version.
UNDOCUMENTED = {
    BaseProtocol: ("transport", "pause_writing", "resume_writing", "connection_lost"),
    HttpRequestParser: ("feed_data",),
    RawRequestMessage: ("version", "should_close", "upgrade", "chunked", "_replace"),
    StreamReader: ("is_eof", "set_exception", "exception"),
    StreamWriter: ("drain", "output_size"),
    web.BaseRequest: ("message", "payload", "protocol", "payload_writer", "task", "loop"),
}


class State(Enum):
    """State of a connection."""

    OPENING = "accepted; a TLS handshake may be in progress"
    IDLE = "no byte of the next request has arrived"
    HEADER = "a header has begun"
    STORE = "the fast lane waits for a store"
    BODY = "a request is being answered, and its body is incomplete"
    ANSWER = "a complete request is being answered"
    CLOSING = "the last answer is written; input is discarded until the client has read it"
    CLOSED = "the transport is gone"


# Every state may also change to CLOSED.
TRANSITIONS = {
    State.OPENING: {State.IDLE},
    State.IDLE: {State.HEADER, State.STORE},
    State.HEADER: {State.IDLE, State.STORE, State.BODY, State.ANSWER, State.CLOSING},
    State.STORE: {State.IDLE},
    State.BODY: {State.ANSWER, State.CLOSING},
    State.ANSWER: {State.IDLE, State.CLOSING},
    State.CLOSING: set[State](),
    State.CLOSED: set[State](),
}
WAITS_FOR_REQUEST = (State.OPENING, State.IDLE, State.HEADER)


class ConnectionRegistry:
    """All connections of a server, counted against its limits."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.bytes_in_flight = 0
        """Of unanswered requests, and of answers that clients have not read."""
        self._metrics = metrics
        self._room = min(limits.connections, room_for_connections())
        self._open: dict[Connection, None] = {}
        self._closing: dict[Connection, float] = {}  # until when
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator["Connection"]:
        return iter(list(self._open))

    @property
    def is_full(self) -> bool:
        """Whether bytes in flight exceed their limit."""
        return self.bytes_in_flight > self.limits.bytes_in_flight

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered, or an answer being sent."""
        return any(one.idle_since == inf for one in self._open)

    def start(self) -> None:
        """Start the sweep."""
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Stop the sweep."""
        if self._timer is not None:
            self._timer.cancel()

    def refusal(self) -> str:
        """Count and return a reason to refuse a new connection, or ""."""
        if len(self) < self._room or (self.limits.idle_gives_way and self._has_made_room()):
            return ""
        self._metrics.count_shed("connections")
        return "connections"

    def _has_made_room(self) -> bool:
        oldest = min(self._open, key=lambda one: one.idle_since, default=None)
        if oldest is None or oldest.idle_since == inf:
            return False
        self.remove(oldest)
        oldest.cut()
        return True

    def add(self, connection: "Connection") -> bool:
        """Add a connection; False if too many refused ones are open."""
        if not connection.refusal:
            self._open[connection] = None
        elif sum(bool(one.refusal) for one in self._closing) >= REFUSED_AT_ONCE:
            return False
        else:
            self.linger(connection)
        return True

    def linger(self, connection: "Connection") -> None:
        """Close a connection after LINGER_S."""
        self._closing.setdefault(connection, monotonic() + LINGER_S)

    def remove(self, connection: "Connection") -> None:
        """Remove a connection."""
        self._open.pop(connection, None)
        self._closing.pop(connection, None)

    def _tick(self) -> None:
        self.start()
        self._ticks += 1
        now = monotonic()
        for connection in list(self._open)[self._ticks % SLICES :: SLICES]:
            if connection.is_open:
                connection.check(now)
        for connection in [one for one, until in self._closing.items() if now > until]:
            if connection.refusal or connection.is_taken:
                del self._closing[connection]
                connection.cut()


class Front(Protocol):
    """The parts of a server that its connections use."""

    registry: ConnectionRegistry
    writer: AnswerWriter
    metrics: Metrics
    lane: Lane | None

    def answer(self, request: web.BaseRequest, since: float) -> Awaitable[web.StreamResponse]:
        """Answer a request that began at a time of `time.monotonic`."""


class Connection(BaseProtocol):
    """An asyncio protocol that makes aiohttp's objects only when needed."""

    __slots__ = (
        "_buffer", "_closes", "_fed", "_held", "_is_ended", "_is_last", "_lane", "_left", "_method",
        "_payload", "_queued", "_registry", "_requests", "_server", "_stalled", "_task", "accepting", "refusal",
        "since", "ssl_context", "state",
    )  # fmt: skip
    peername = sockname = None  # read by aiohttp's requests

    def __init__(self, server: Front, refusal: str = "") -> None:
        super().__init__(asyncio.get_running_loop())
        self.refusal = refusal
        """Why the connection is refused after its first byte, or ""."""
        self.state = State.OPENING
        self.ssl_context: SSLContext | None = None
        self.accepting: asyncio.Task[object] | None = None
        self.since = monotonic()
        """When the current request began, or the previous one was answered."""
        self._server = server
        self._registry = server.registry
        self._lane = None if refusal else server.lane
        self._buffer = bytearray()
        self._fed = 0  # header bytes that the parser has seen
        self._requests: HttpRequestParser | None = None
        self._payload = EMPTY_PAYLOAD
        self._left = 0.0  # body bytes to come; inf if chunked
        self._method = ""
        self._closes = False  # close after the current request
        self._is_last = False  # the client requested that
        self._is_ended = False  # the client half-closed
        self._task: asyncio.Task[None] | None = None
        self._held = self._queued = 0
        self._stalled = 0.0

    def _go(self, state: State) -> None:
        if state is not State.CLOSED and state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a connection cannot go from {self.state.name} to {state.name}")
        self.state = state

    @property
    def is_open(self) -> bool:
        """Whether the TLS handshake is done and the transport open."""
        return self.state not in (State.OPENING, State.CLOSED)

    @property
    def is_taken(self) -> bool:
        """Whether the write buffer is empty."""
        return self.transport is None or not self.transport.get_write_buffer_size()

    @property
    def idle_since(self) -> float:
        """Since when it waits for a whole request; inf during an answer."""
        return self.since if self.state in WAITS_FOR_REQUEST and not self._queued else inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self.ssl_context = transport.get_extra_info("sslcontext")
        self._go(State.IDLE)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio."""
        self._registry.bytes_in_flight -= self._queued
        self.hold(-self._held)
        self._queued = 0
        self._registry.remove(self)
        self._go(State.CLOSED)
        super().connection_lost(exc)
        if not self._payload.is_eof():
            self._payload.set_exception(ConnectionResetError("the client has gone"))

    def eof_received(self) -> bool:
        """Answer a GET of a client that half-closed; a POST is given up."""
        self._is_ended = True
        is_answering = self.state in (State.STORE, State.ANSWER) and self._method != hdrs.METH_POST
        return is_answering and self._live.can_write_eof()  # TLS cannot half-close

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.state is State.IDLE:
            self.since = now = monotonic()
            if self._lane is not None and not self._queued:
                answer = self._lane.answer(data, now, self._deliver)
                if answer and self.transport is not None:
                    self.transport.write(answer)
                    return
                if answer is not None:
                    self._method = hdrs.METH_GET
                    self._go(State.STORE)
                    return
        elif self.state is State.BODY:
            if self._payload.exception() is None:
                self._count(len(data))
            self._feed_body(data)
            return
        elif self.state is State.CLOSING or not data:  # aiohttp resumes reading with no data
            return
        self._buffer += data
        self._count(len(data))
        if self.state in (State.IDLE, State.HEADER):
            self._read_headers()
        if len(self._buffer) > BEHIND_BYTES and self.is_open:
            self._live.pause_reading()

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
        at_once = 0
        while self._buffer and self.state in (State.IDLE, State.HEADER):
            if self.state is State.IDLE:
                self._go(State.HEADER)
                if self.refusal:
                    problem = overloaded("there are more connections than can be served")
                    self._refuse(problem, data=bytes(self._buffer))
                    return
            end = self._buffer.find(END, max(0, self._fed - len(END) + 1))
            size = len(self._buffer) if end < 0 else end + len(END)
            if size > self._registry.limits.header_bytes:
                problem = Problem(431, "large-header", "the header of the request is too large")
                self._refuse(problem, "large_header", bytes(self._buffer))
                return
            is_one_of_many = end >= 0 and not self._fed and size < len(self._buffer)
            if is_one_of_many and at_once < LANES_AT_ONCE and self._is_lanes(size):
                at_once += 1
                continue
            if not self._feed_header(size, is_whole=end >= 0):
                return

    def _is_lanes(self, size: int) -> bool:
        if self._lane is None or self._queued:
            return False
        answer = self._lane.answer(bytes(self._buffer[:size]), self.since, self._deliver)
        if answer is None:
            return False
        del self._buffer[:size]
        if answer:
            self._live.write(answer)
            self._go(State.IDLE)
            self._begin_turn()
        else:
            self._method = hdrs.METH_GET
            self._go(State.STORE)
        return True

    def _feed_header(self, size: int, *, is_whole: bool) -> bool:
        """Feed a header to the parser; return whether to look for another."""
        if self._requests is None:
            self._requests = HttpRequestParser(
                cast("Any", self),
                asyncio.get_running_loop(),
                NEVER_PAUSED,
                max_line_size=MAX_LINE_BYTES,
                max_field_size=MAX_LINE_BYTES,
                payload_exception=web.RequestPayloadError,
                auto_decompress=False,  # small bodies may be large uncompressed
            )
        header = bytes(self._buffer[:size])
        try:
            messages, _, _ = self._requests.feed_data(header[self._fed :])
        except HttpProcessingError as error:
            self._refuse(unreadable(400, error.message), data=header)
            return False
        self._fed = size
        if not is_whole:
            if messages:
                self._refuse(unreadable(400, "a header that ends with no empty line"), data=header)
            return False
        del self._buffer[:size]
        self._fed = 0
        if not messages:  # empty lines before a request
            return True
        self._begin(*messages[0], header)
        return False

    def _begin(self, message: RawRequestMessage, payload: StreamReader, header: bytes) -> None:
        version = message.version
        if version not in (HttpVersion11, HttpVersion10):
            status, name = (505, "version-not-supported") if version.major else (400, "bad-request")
            spoken = f"HTTP/1.1 and HTTP/1.0 are spoken here, not HTTP/{version.major}.{version.minor}"
            self._refuse(Problem(status, name, spoken), data=header)
            return
        is_odd = message.upgrade or message.chunked or hdrs.EXPECT in message.headers or version < HttpVersion11
        self._is_last = message.should_close and not is_odd
        self._closes = message.should_close or is_odd or message.method == hdrs.METH_CONNECT
        self._method, self._payload = message.method, payload
        self._left = inf if message.chunked else int(message.headers.get(hdrs.CONTENT_LENGTH, 0))
        self._go(State.ANSWER if payload.is_eof() else State.BODY)
        self._task = asyncio.get_running_loop().create_task(self._respond(message))
        if self.state is State.BODY and self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            self._feed_body(data)

    def _feed_body(self, data: bytes) -> None:
        if self._payload.exception() is not None or self._requests is None:
            return  # a refused body is discarded
        size = min(len(data), self._left)
        body, rest = data[: int(size)], data[int(size) :]
        self._left -= size
        try:
            self._requests.feed_data(body)
        except HttpProcessingError as error:
            if not self._payload.is_eof():  # otherwise it concerns bytes behind a chunked body
                self._fail_body(unreadable(400, error.message))
                return
        if self._payload.is_eof():
            self._go(State.ANSWER)
            self._buffer += rest

    def _fail_body(self, problem: Problem) -> None:
        if self._payload.exception() is None:
            self._payload.set_exception(problem)

    async def _respond(self, message: RawRequestMessage) -> None:
        loop = asyncio.get_running_loop()
        writer = StreamWriter(cast("Any", self), loop)
        request = web.BaseRequest(
            message, self._payload, cast("Any", self), writer, cast("Any", asyncio.current_task()), loop
        )
        try:
            await writer.drain()  # earlier answers first
            response = await self._server.answer(request, self.since)
            if self._closes or (response.keep_alive is not False and not await self._has_read_rest()):
                response.force_close()
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            self.cut()
            return
        except Exception:
            request_id = self._server.writer.request_ids.new()
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

    async def _has_read_rest(self) -> bool:
        try:
            while not self._payload.is_eof():
                if self._left > MAX_BODY_BYTES:
                    return False
                await self._payload.readany()
        except (Problem, web.RequestPayloadError, ConnectionError):
            return False
        return True

    def _deliver(self, answer: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(answer)
        self._go_on()

    def _go_on(self) -> None:
        self._go(State.IDLE)
        self._payload = EMPTY_PAYLOAD
        self._begin_turn()
        if self._buffer:
            self._read_headers()
            if len(self._buffer) <= BEHIND_BYTES and self.is_open and not self._live.is_reading():
                self._live.resume_reading()
        if self._is_ended and self.state in (State.IDLE, State.HEADER):
            self._live.close()

    def _begin_turn(self) -> None:
        self.since = monotonic()
        self.hold(len(self._buffer) - self._held)

    def _refuse(self, problem: Problem, reason: str = "", data: bytes = b"") -> None:
        self._live.write(self._server.writer.refuse(problem, reason, monotonic() - self.since, data))
        self._linger()

    def _linger(self) -> None:
        is_over = self._is_last and self.state is State.ANSWER
        self._go(State.CLOSING)
        self.since = monotonic()
        self._buffer.clear()
        self.hold(-self._held)
        if is_over or not self._live.can_write_eof() or self._live.is_closing():
            self._live.close()
        else:
            self._live.write_eof()
            self._registry.linger(self)

    def hold(self, count: int) -> None:
        """Add *count*, perhaps negative, to the bytes held for this connection, down to zero."""
        if self.is_open:
            count = max(count, -self._held)
            self._held += count
            self._registry.bytes_in_flight += count

    def _count(self, size: int) -> None:
        """Count received bytes; beyond the limit, refuse the body or cut the connection."""
        self.hold(size)
        if self._registry.is_full:
            if self.state is State.BODY:
                self._fail_body(self._server.writer.no_room())
            elif self.state not in (State.IDLE, State.HEADER) or self._queued:
                self._cut_slow_reader()

    def check(self, now: float) -> None:
        """Close if the state has lasted too long at *now* (`time.monotonic`)."""
        age_s, limits = now - self.since, self._registry.limits
        if self._queued:
            self._check_reader(now)
        elif self.state is State.CLOSING and age_s > limits.write_s:
            self._cut_slow_reader()
        elif self.state is State.HEADER and age_s > limits.header_s:
            self._refuse(Problem(408, "slow-header", "the header of the request did not come in time"), "slow_header")
        elif self.state is State.BODY and age_s > limits.body_s and self._payload.exception() is None:
            self._server.metrics.count_shed("slow_body")
            self._fail_body(Problem(408, "slow-body", "the body of the request did not come in time", CLOSE))
        elif self.state is State.IDLE and age_s > limits.idle_s:
            self._live.close()

    def _check_reader(self, now: float) -> None:
        limits, registry = self._registry.limits, self._registry
        is_crowded = registry.bytes_in_flight > limits.bytes_in_flight // 2
        queued = self._live.get_write_buffer_size()
        if queued <= self._queued - WRITE_STEP_BYTES:
            registry.bytes_in_flight += queued - self._queued
            self._queued, self._stalled = queued, now
        elif now - self._stalled > min(limits.write_s, CROWDED_WRITE_S if is_crowded else inf):
            self._cut_slow_reader()

    def _cut_slow_reader(self) -> None:
        self._server.metrics.count_shed("slow_reader")
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
