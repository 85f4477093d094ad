"""One connection: a state machine that has each request answered by the fast lane or by the dispatcher.

The bytes of a request are cut here: a header ends at its first empty line, and a body has the length that its header
says. aiohttp's parser reads headers and bodies, so framing errors are its to find; its request and response classes do
the rest. Requests are answered one after the other. Bytes that come meanwhile wait, up to BEHIND_BYTES.

Every request that is not plain closes its connection: one that cannot be read, HTTP/1.0, Expect, Upgrade, CONNECT, a
chunked body, and one whose body is refused or too large.
"""

import asyncio
import logging
from collections.abc import Awaitable
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
from hotplate.serve.connections.limits import ConnectionRegistry
from hotplate.serve.metrics import Metrics
from hotplate.serve.problems import CLOSE, Problem, internal_error, overloaded

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 8190
# How much is read behind a request that is being answered.
BEHIND_BYTES = 65_536
# How many requests of one connection the lane answers before others get their turn: aiohttp takes the next in a task.
LANES_AT_ONCE = 16
# A body is bounded by what the registry counts, so aiohttp's reader never pauses the connection.
NEVER_PAUSED = 1 << 30
# What a slow reader must take in `Limits.write_s`, and how long it has for it if answers fill half of their room.
WRITE_STEP_BYTES = 65_536
CROWDED_WRITE_S = 1.0
# What is used of aiohttp without being in its reference; a test looks for each, and pyproject.toml bounds its version.
UNDOCUMENTED = {
    BaseProtocol: ("transport", "pause_writing", "resume_writing", "connection_lost"),
    HttpRequestParser: ("feed_data",),
    RawRequestMessage: ("version", "should_close", "upgrade", "chunked", "_replace"),
    StreamReader: ("is_eof", "set_exception", "exception"),
    StreamWriter: ("drain", "output_size"),
    web.BaseRequest: ("message", "payload", "protocol", "payload_writer", "task", "loop"),
}


class State(Enum):
    """What a connection is at."""

    OPENING = "it is accepted; with TLS, the handshake is not done"
    IDLE = "no byte of the next request has come"
    HEADER = "a header has begun"
    STORE = "the fast lane reads a store for a request"
    BODY = "a request is being answered whose body is not whole"
    ANSWER = "a whole request is being answered"
    CLOSING = "the last answer is written, and what comes is thrown away until the client has read it"
    CLOSED = "the transport is gone"


# Where each state can lead, besides CLOSED: to that every state leads when the client goes or is cut.
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


class Front(Protocol):
    """What a server shares with its connections."""

    registry: ConnectionRegistry
    writer: AnswerWriter
    metrics: Metrics
    lane: Lane | None

    def answer(self, request: web.BaseRequest, since: float) -> Awaitable[web.StreamResponse]:
        """Answer a request that began at a time of `time.monotonic`."""


class Connection(BaseProtocol):
    """A protocol of asyncio that costs no timer and, until aiohttp is needed, nothing of aiohttp."""

    __slots__ = (
        "_buffer", "_closes", "_fed", "_held", "_is_ended", "_is_last", "_lane", "_left", "_method",
        "_payload", "_queued", "_registry", "_requests", "_server", "_stalled", "_task", "accepting", "refusal",
        "since", "ssl_context", "state",
    )  # fmt: skip
    peername = sockname = None  # aiohttp's requests ask for them, and nothing here uses them

    def __init__(self, server: Front, refusal: str = "") -> None:
        super().__init__(asyncio.get_running_loop())
        self.refusal = refusal
        """Why it is beyond a limit, so it is answered once and closed; "" for the others."""
        self.state = State.OPENING
        self.ssl_context: SSLContext | None = None
        self.accepting: asyncio.Task[object] | None = None
        """What opens it: with TLS until the handshake is done."""
        self.since = monotonic()
        """When the newest request began, or could begin because the one before it was answered."""
        self._server = server
        self._registry = server.registry
        self._lane = None if refusal else server.lane
        self._buffer = bytearray()
        self._fed = 0  # how much of the header in the buffer the parser has seen
        self._requests: HttpRequestParser | None = None  # reads headers and bodies
        self._payload = EMPTY_PAYLOAD
        self._left = 0.0  # how many bytes of the body are to come; inf if its chunks say
        self._method = ""
        self._closes = False  # whether the request that is being answered closes the connection
        self._is_last = False  # whether the client asked to close after it
        self._is_ended = False  # whether the client sends no more
        self._task: asyncio.Task[None] | None = None
        self._held = self._queued = 0
        self._stalled = 0.0

    def _go(self, state: State) -> None:
        if state is not State.CLOSED and state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a connection cannot go from {self.state.name} to {state.name}")
        self.state = state

    @property
    def is_open(self) -> bool:
        """Whether it can be written to: with TLS once the handshake is done."""
        return self.state not in (State.OPENING, State.CLOSED)

    @property
    def is_taken(self) -> bool:
        """Whether all that was written has left this process."""
        return self.transport is None or not self.transport.get_write_buffer_size()

    @property
    def idle_since(self) -> float:
        """Since when it has waited for a whole request; inf while there is one to answer."""
        return self.since if self.state in WAITS_FOR_REQUEST and not self._queued else inf

    # What asyncio calls

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
        """Answer what a client that sends no more has requested, and close; a POST's client is taken to have gone."""
        self._is_ended = True
        is_answering = self.state in (State.STORE, State.ANSWER) and self._method != hdrs.METH_POST
        return is_answering and self._live.can_write_eof()  # TLS ends in both directions at once

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.state is State.IDLE:
            self.since = now = monotonic()
            if self._lane is not None and not self._queued:
                answer = self._lane.answer(data, now, self._deliver)
                if answer:
                    self._live.write(answer)
                    return
                if answer is not None:
                    self._method = hdrs.METH_GET
                    self._go(State.STORE)
                    return
        elif self.state is State.BODY:
            self._feed_body(data)
            return
        elif self.state is State.CLOSING:
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

    # Reading

    @property
    def _live(self) -> asyncio.Transport:
        if self.transport is None:
            raise ConnectionResetError("the client has gone")
        return self.transport

    def _read_headers(self) -> None:
        """Read headers in the buffer until a request is to be answered, or more is to come."""
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
        """Have the lane answer the first of several requests; the lane has seen one that came alone already."""
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
        """Feed the parser a header, or a part of it; return whether to look for another in the buffer."""
        if self._requests is None:
            self._requests = HttpRequestParser(
                cast("Any", self),
                asyncio.get_running_loop(),
                NEVER_PAUSED,
                max_line_size=MAX_LINE_BYTES,
                max_field_size=MAX_LINE_BYTES,
                payload_exception=web.RequestPayloadError,
                auto_decompress=False,  # what is small on the wire may be large in memory
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
        if not messages:  # only empty lines, which may stand before a request
            return True
        self._begin(*messages[0], header)
        return False

    def _begin(self, message: RawRequestMessage, payload: StreamReader, header: bytes) -> None:
        """Begin to answer a request whose header is whole."""
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
        if self._payload.exception() is not None:
            return  # it is refused, and what still comes of it is thrown away
        size = min(len(data), self._left)
        body, rest = data[: int(size)], data[int(size) :]
        self._left -= size
        self._count(len(body))
        if self._payload.exception() is not None or self._requests is None:
            return
        try:
            self._requests.feed_data(body)
        except HttpProcessingError as error:
            if not self._payload.is_eof():  # else it is of what comes behind a chunked body, and is not read
                self._fail_body(unreadable(400, error.message))
                return
        if self._payload.is_eof():
            self._go(State.ANSWER)
            self._buffer += rest

    def _fail_body(self, problem: Problem) -> None:
        """Have what awaits the body be refused."""
        if self._payload.exception() is None:
            self._payload.set_exception(problem)

    # Answering

    async def _respond(self, message: RawRequestMessage) -> None:
        loop = asyncio.get_running_loop()
        writer = StreamWriter(cast("Any", self), loop)
        request = web.BaseRequest(
            message, self._payload, cast("Any", self), writer, cast("Any", asyncio.current_task()), loop
        )
        try:
            await writer.drain()  # the client takes the answers before this one first
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
                self.cut()  # the answer has begun, and cannot become an error any more
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
        """Throw away what no handler has read of a body; return whether it came."""
        try:
            while not self._payload.is_eof():
                if self._left > MAX_BODY_BYTES:
                    return False
                await self._payload.readany()
        except (Problem, web.RequestPayloadError, ConnectionError):
            return False
        return True

    def _deliver(self, answer: bytes) -> None:
        """Send the answer of the fast lane to a request that waited for a store."""
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(answer)
        self._go_on()

    def _go_on(self) -> None:
        """Read the next request; close if the client sends no more."""
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
        """Say why this connection is closed, and close it once its client has had the time to read that."""
        self._live.write(self._server.writer.refuse(problem, reason, monotonic() - self.since, data))
        self._linger()

    def _linger(self) -> None:
        """Close: at once if the client asked for that, else once it has had the time to read the answer.

        A client that sends more would be reset, and could lose the answer.
        """
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

    # Limits

    def hold(self, count: int) -> None:
        """Count bytes that are kept until their request is answered, or with a minus fewer, as many as were counted."""
        if self.is_open:
            count = max(count, -self._held)
            self._held += count
            self._registry.bytes_in_flight += count

    def _count(self, size: int) -> None:
        """Count bytes that came; refuse or cut those for which there is no room."""
        self.hold(size)
        if self._registry.is_full:
            if self.state is State.BODY:
                self._fail_body(self._server.writer.no_room())
            elif self.state not in (State.IDLE, State.HEADER) or self._queued:
                self._cut_slow_reader()

    def check(self, now: float) -> None:
        """Close the connection if, by `time.monotonic`, it has taken too long for what it is at."""
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
        """Cut a client that takes nothing of its answers; soon, if such answers fill half of their room."""
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
        """Close the connection at once, also in its handshake."""
        if self.transport is not None:
            self.transport.abort()
        elif self.state is State.OPENING and self.accepting is not None:
            self.accepting.cancel()

    def close_if_idle(self) -> None:
        """Close if no request has begun."""
        if self.state is State.IDLE:
            self._live.close()

    def give_up(self) -> None:
        """Close at once, and end what is being done for the client."""
        self.cut()
        if self._task is not None:
            self._task.cancel()
