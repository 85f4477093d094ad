"""A connection: a state machine, with time limits for its states.

`RequestReader` reads headers and bodies by aiohttp's parser. The fast lane or aiohttp's request and response classes
answer one request after the other. `OpenConnections` has what connections share.

Offers to upgrade are ignored (RFC 9110, 7.8). Unreadable requests, HTTP/1.0, CONNECT, transfer codings other than
`chunked`, expectations other than `100-continue`, and bodies that were not read close the connection.
"""

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable
from contextvars import Context
from enum import Enum
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, cast

from aiohttp import hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from hotplate.serve.access.tls import HANDSHAKE_S, Certificate
from hotplate.serve.api.parameters import unreadable
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.connections.line_limit import TooManyLines
from hotplate.serve.connections.request_reader import HEADER_END, RequestReader
from hotplate.serve.problems import CLOSE, Problem, internal_error
from hotplate.serve.settings import Limits

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp.web_protocol import RequestHandler

    from hotplate.serve.connections.lane import Lane

log = logging.getLogger(__name__)

MAX_BUFFERED_BYTES = 65_536
# Pipelined requests answered before other connections.
MAX_PIPELINED = 16
# How long requests that a client sent behind a refused batch wait, at most: most of them would be refused, too.
REFUSED_PAUSE_S = 0.1
# A slow reader must take WRITE_STEP_BYTES in `Limits.write_s`, or in CROWDED_WRITE_S if answers fill half of their
# room.
WRITE_STEP_BYTES = 65_536
CROWDED_WRITE_S = 1.0
# A record of TLS.
TLS_WRITE_BYTES = 16_384
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


# Attributes of an Enum take ten times as long to read as names, and requests read several.
OPENING, IDLE, HEADER, STORE, BODY, ANSWER, REFUSED, CLOSING, CLOSED = State
# Every state may also change to CLOSED.
TRANSITIONS = {
    OPENING: {IDLE},
    IDLE: {HEADER, STORE},
    HEADER: {IDLE, STORE, BODY, ANSWER, REFUSED, CLOSING},
    STORE: {IDLE},
    BODY: {ANSWER, CLOSING},
    ANSWER: {IDLE, CLOSING},
    REFUSED: {IDLE},
    CLOSING: set[State](),
    CLOSED: set[State](),
}
WAITS_FOR_REQUEST = (OPENING, IDLE, HEADER)


class _TlsWriter(StreamWriter):
    """Writes bodies in pieces: over TLS, uvloop takes a whole write, and does not count what is not sent of it."""

    async def write_eof(self, chunk: bytes = b"") -> None:
        """Write the last part of a body."""
        for start in range(0, len(chunk), TLS_WRITE_BYTES):
            await self.write(chunk[start : start + TLS_WRITE_BYTES])
            await self.drain()
        await super().write_eof()


class OpenConnections:
    """The open connections of a server, and what they share."""

    def __init__(
        self,
        limits: Limits,
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
        self.metrics = writer.metrics
        self.writer = writer
        self.lane = lane
        self.answer = answer
        self.shed = shed
        self.bytes_in_flight = 0
        """Of unanswered requests and unread answers."""
        self.open: dict[Connection, None] = {}
        """All connections, the oldest first."""

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


class HeldBytes:
    """Bytes in memory for one connection, which count as in flight for all connections together."""

    __slots__ = ("_registry", "in_flight", "unread")

    def __init__(self, registry: OpenConnections) -> None:
        self._registry = registry
        self.in_flight = 0
        """Of unanswered requests, and of the answers of batches while they are made."""

        self.unread = 0
        """Of answers that the client has not read."""

    def set_in_flight(self, count: int) -> None:
        """Set `in_flight`."""
        self._registry.bytes_in_flight += count - self.in_flight
        self.in_flight = count

    def set_unread(self, count: int) -> None:
        """Set `unread`."""
        self._registry.bytes_in_flight += count - self.unread
        self.unread = count


class Connection(BaseProtocol):
    """An asyncio protocol that makes aiohttp's objects when needed.

    Its state (`State`) changes by calls from four sides:

    the transport       `connection_made`; `data_received`, which reads headers and bodies, answers by the lane, or
                        starts the task of a request; `pause_writing` and `resume_writing` while the client reads an
                        answer slowly; `eof_received`, `connection_lost`
    the lane            `_deliver`, once a store has returned the list that a request of the lane waits for
    the task            `_respond`, which answers one request by aiohttp's classes; meanwhile `HttpServer.admit` counts
                        the answer of a batch by `add_in_flight`
    the registry        `start` a new connection, `check` the limits of its state, and `cut` it to make room; at a stop,
                        `HttpServer` calls `close_if_idle`, then `give_up`

    An answer ends in `_continue_after_answer`, which begins with the next request in the buffer, or in
    `_start_closing`.
    """

    __slots__ = (
        "_answer_task", "_buffer", "_handshake", "_held", "_is_half_closed", "_lane", "_reader", "_registry",
        "_stalled_since", "since", "ssl_context", "state",
    )  # fmt: skip
    peername = sockname = None  # read by aiohttp's requests

    def __init__(self, registry: "OpenConnections") -> None:
        super().__init__(asyncio.get_running_loop())
        self.state = OPENING
        self.ssl_context: SSLContext | None = None
        self._handshake: asyncio.Task[object] | None = None
        self.since = monotonic()
        """When the current request or closing began, or the previous request was answered."""
        self._registry = registry
        self._lane = registry.lane
        self._buffer = bytearray()
        self._reader = RequestReader()
        self._is_half_closed = False  # the client half-closed
        self._answer_task: asyncio.Task[None] | None = None
        self._held = HeldBytes(registry)
        self._stalled_since = 0.0  # since when the client has not read WRITE_STEP_BYTES more

    def start(self, accepted: socket.socket, certificate: Certificate | None) -> None:
        """Start to serve an accepted socket, over TLS with a *certificate*.

        The handshake of TLS runs in a task, so that a newer connection can cancel it if there are too many.
        """
        loop = asyncio.get_running_loop()
        tls = None
        handshake_timeout_s = None
        if certificate is not None:
            tls = certificate.context
            handshake_timeout_s = HANDSHAKE_S
        self._handshake = loop.create_task(
            loop.connect_accepted_socket(lambda: self, accepted, ssl=tls, ssl_handshake_timeout=handshake_timeout_s)
        )
        self._handshake.add_done_callback(partial(self._end_handshake, accepted))

    def _end_handshake(self, accepted: socket.socket, handshake: "asyncio.Task[object]") -> None:
        self._handshake = None  # its result has this connection: a cycle
        if handshake.cancelled():
            accepted.close()  # it gave way to a newer connection
            return
        error = handshake.exception()
        if error is not None:
            log.debug("a connection could not be served", exc_info=error)
            self._registry.open.pop(self, None)

    def _change_state(self, state: State) -> None:
        if state is not CLOSED and state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a connection cannot go from {self.state.name} to {state.name}")
        self.state = state

    @property
    def is_open(self) -> bool:
        """Whether the TLS handshake is done and the transport open."""
        return self.state not in (OPENING, CLOSED)

    @property
    def idle_since(self) -> float:
        """Since when it waits for a whole request; inf while it answers, refuses or closes."""
        return self.since if self.state in WAITS_FOR_REQUEST and not self._held.unread else inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self.ssl_context = transport.get_extra_info("sslcontext")
        if self.ssl_context is not None:
            self._open_transport.set_write_buffer_limits(high=TLS_WRITE_BYTES)
        self._change_state(IDLE)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio."""
        self._held.set_in_flight(0)
        self._held.set_unread(0)
        self._registry.open.pop(self, None)
        self._change_state(CLOSED)
        super().connection_lost(exc)
        self._reader.close()

    def eof_received(self) -> bool:
        """Answer a GET of a client that half-closed, and what follows a refusal; another POST is given up."""
        self._is_half_closed = True
        is_refused = self.state is REFUSED and not self._reader.must_discard
        is_answering = self.state in (STORE, ANSWER) and self._reader.payload is EMPTY_PAYLOAD
        return (is_answering or is_refused) and self._open_transport.can_write_eof()  # TLS cannot half-close

    def data_received(self, data: bytes) -> None:
        """Handle bytes that arrived: of a new request, of the body of the current one, or of later requests.

        A whole plain GET, the most frequent request, is answered by the fast lane, a compiled handler. In the state
        CLOSING, bytes are discarded.
        """
        if self.state is IDLE:
            self.since = monotonic()
            if self._answer_in_lane(data):
                return

        if self.state is BODY:
            if not self._reader.has_failed:
                self.add_in_flight(len(data))
                if self._registry.is_full:
                    self._reader.fail(self._registry.writer.no_room())
            self._feed_body(data)
        elif self.state is REFUSED and self._reader.must_discard:
            self._discard_body(data)
        elif self.state is not CLOSING and data:  # aiohttp resumes reading with no data
            self._receive_header(data)

    def _receive_header(self, data: bytes) -> None:
        """Buffer bytes until a header is complete and the request before it is answered; limit the buffer.

        If too many bytes are in flight, a client that sends more while it is being answered is cut.
        """
        self._buffer += data
        self.add_in_flight(len(data))
        if self._registry.is_full and (self.state not in (IDLE, HEADER) or self._held.unread):
            self._cut_slow_reader()
        if self.state in (IDLE, HEADER):
            self._read_headers()
        if len(self._buffer) > MAX_BUFFERED_BYTES and self.is_open:
            self._open_transport.pause_reading()

    def _answer_in_lane(self, request: bytes) -> bool:
        """Answer a request by the fast lane, now or later; False if that leaves it to aiohttp."""
        if self._lane is None or self._held.unread or self.transport is None:
            return False
        answer = self._lane.answer(request, self.since, self._deliver)
        if answer is None:
            return False
        is_pending = not answer  # the lane reads a store, and calls `_deliver` later
        if is_pending:
            self._change_state(STORE)
        else:
            self.transport.write(answer)
        return True

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        self._held.set_unread(self._open_transport.get_write_buffer_size())
        self._stalled_since = monotonic()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._held.set_unread(0)
        super().resume_writing()

    def pause_reading(self) -> None:
        """Receive no more of a body for now: see `StreamReader`. Its parser goes on with what was received."""
        self._open_transport.pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 -- as aiohttp calls it
        """Receive more of a body; pipelined requests may still not be read ahead."""
        transport = self.transport
        if transport is not None and not transport.is_reading() and len(self._buffer) <= MAX_BUFFERED_BYTES:
            transport.resume_reading()

    @property
    def _open_transport(self) -> asyncio.Transport:
        if self.transport is None:
            raise ConnectionResetError("the client has gone")
        return self.transport

    def _read_headers(self) -> None:
        """Start the requests in the buffer that have complete headers, one after the other.

        Stops at a request that is not answered at once; called again after its answer. A client may send several
        requests at once (pipelining). The fast lane, a compiled handler of plain GETs, answers up to MAX_PIPELINED of
        them here, and aiohttp the others.
        """
        lane_answers = 0
        while self._buffer and self.state in (IDLE, HEADER):
            if self.state is IDLE:
                self._change_state(HEADER)

            header = self._take_header()
            if header is None:
                return

            if lane_answers < MAX_PIPELINED and self._answer_in_lane(header):
                lane_answers += 1
                is_answered = self.state is not STORE  # in which the lane waits for a store
                if is_answered:
                    self._wait_for_request()
            else:
                self._read_header(header)

    def _take_header(self) -> bytes | None:
        """Remove the first header from the buffer and return it, with the empty line at its end.

        Returns None if it is incomplete; also if it is not HTTP or too large: then it is refused and the connection
        closes. The buffer is not empty.
        """
        self._skip_empty_lines()
        if not self._buffer:
            return None
        if not self._buffer[:1].isalpha():  # as a TLS handshake begins
            self._refuse(unreadable(400, None))
            return None

        end = self._buffer.find(HEADER_END)
        is_complete = end >= 0
        size = end + len(HEADER_END) if is_complete else len(self._buffer)
        if size > self._registry.limits.header_bytes:
            self._refuse(Problem(431, "large-header", "the header of the request is too large"), "large_header")
            return None
        if not is_complete:
            return None

        header = bytes(self._buffer[:size])
        del self._buffer[:size]
        return header

    def _skip_empty_lines(self) -> None:
        """Remove the empty lines before a request from the buffer, all at once: each costs the parser a call."""
        if self._buffer[0] in b"\r\n":
            size = len(self._buffer)
            self._buffer = self._buffer.lstrip(b"\r\n")
            self.add_in_flight(len(self._buffer) - size)

    def _read_header(self, header: bytes) -> None:
        """Start the request with this header; answer a malformed one with a problem."""
        try:
            message = self._reader.read_header(header, self)
        except Problem as problem:
            self._refuse(problem)
        else:
            self._start_request(message)

    def _start_request(self, message: RawRequestMessage) -> None:
        """Start the task that answers a request, and give it the part of the body that has arrived.

        *message* is the parsed header. Batches, POSTs for many lists, are refused while too many of them wait.
        """
        # A refused request's body is discarded without the parser, so that the connection can take the next request.
        refusal = self._refusal_when_overloaded(message)
        if refusal is not None:
            self._open_transport.write(refusal)
            self._reader.refuse()
            self._change_state(REFUSED)
            self._discard_body(self._take_buffer())
            return

        payload = self._reader.payload
        self._change_state(ANSWER if payload.is_eof() else BODY)
        self._answer_task = asyncio.get_running_loop().create_task(self._respond(message, payload))
        if self.state is BODY and self._buffer:
            self._feed_body(self._take_buffer())

    def _take_buffer(self) -> bytes:
        """Return what has arrived, and empty the buffer."""
        data = bytes(self._buffer)
        self._buffer = bytearray()
        return data

    def _refusal_when_overloaded(self, message: RawRequestMessage) -> bytes | None:
        """Return the refusal of a request whose body can be discarded without a parser."""
        can_discard = self._reader.must_discard and hdrs.EXPECT not in message.headers
        if self._reader.must_close or self._held.unread or not can_discard:
            return None
        return self._registry.shed(message, self.since)

    def _discard_body(self, data: bytes) -> None:
        """Discard a part of a refused request's body; at its end, read the next request after a random pause."""
        self._buffer += self._reader.discard(data)
        if not self._reader.must_discard:
            # At random, so that clients do not come back together.
            pause_s = random.uniform(0, REFUSED_PAUSE_S) if self._buffer else 0.0  # noqa: S311 -- not cryptographic
            asyncio.get_running_loop().call_later(pause_s, self._continue_after_answer)

    def _feed_body(self, data: bytes) -> None:
        """Give a part of a body to the request that is being answered; what follows the body stays in the buffer.

        A body in too many chunks is refused.
        """
        try:
            self._buffer += self._reader.feed(data)
        except TooManyLines:
            self._reader.fail(self._registry.writer.too_many_chunks())
        if self._reader.is_complete:
            self._change_state(ANSWER)

    async def _respond(self, message: RawRequestMessage, payload: StreamReader) -> None:
        """Answer a request with aiohttp's classes, then wait for the next one, or close the connection.

        *message* is the parsed header, *payload* the stream of the body. The connection closes if the client wants
        that, or bytes of the request's body were not read. An unexpected exception is answered with 500, unless a part
        of the answer is written.
        """
        writer_type = StreamWriter if self.ssl_context is None else _TlsWriter
        writer = writer_type(self, asyncio.get_running_loop())
        request = self._request_of(message, payload, writer)

        try:
            await writer.drain()  # until the client has read earlier answers
            response = await self._registry.answer(request, self.since)

            is_body_unread = request.can_read_body
            if self._reader.must_close or is_body_unread:
                response.force_close()
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            self.cut()
        except asyncio.CancelledError:
            self.cut()
            raise
        except Exception:
            request_id = self._registry.writer.request_ids.new()
            log.exception("request %s failed", request_id)
            self._end_failed_request(request_id, has_begun=writer.output_size > 0)
        else:
            self._end_answered_request(keep_open=bool(response.keep_alive))
        finally:
            body_error = payload.exception()
            if body_error is not None:
                body_error.__traceback__ = None  # its frames have the body, and the payload has the error

    def _request_of(self, message: RawRequestMessage, payload: StreamReader, writer: StreamWriter) -> web.BaseRequest:
        """Return aiohttp's request for a header; it runs in the current task."""
        # Of aiohttp's own protocol, requests read `transport`, `peername`, `sockname` and `ssl_context`.
        protocol = cast("RequestHandler", self)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())

    def _end_failed_request(self, request_id: str, *, has_begun: bool) -> None:
        """Answer with 500 and close the connection; cut it if a part of the answer is written."""
        if has_begun or not self.is_open:
            self.cut()
        else:
            self._refuse(internal_error(request_id))

    def _end_answered_request(self, *, keep_open: bool) -> None:
        """Wait for the next request, or close the connection."""
        self._answer_task = None
        if keep_open:
            self._continue_after_answer()
        elif self.is_open:
            self._start_closing()

    def _deliver(self, answer: bytes) -> None:
        """Write an answer for which the lane has waited, and go on."""
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(answer)
        self._continue_after_answer()

    def _continue_after_answer(self) -> None:
        """After an answer: wait for the next request, or begin with those that have arrived."""
        if not self.is_open:
            return
        self._reader.end_request()
        self._wait_for_request()
        if self._buffer:
            self._read_buffered()
            self.resume_reading()
        if self._is_half_closed and self.state in (IDLE, HEADER):
            self._open_transport.close()

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

    def _wait_for_request(self) -> None:
        """Wait for the next request; its first bytes may be in the buffer."""
        self._change_state(IDLE)
        self.since = monotonic()
        if self._buffer or self._held.in_flight:
            self._held.set_in_flight(len(self._buffer))

    def _refuse(self, problem: Problem, reason: str = "") -> None:
        """Answer with a problem, and close the connection; *reason* is one of SHED, or empty."""
        self._open_transport.write(self._registry.writer.refuse(problem, reason, monotonic() - self.since))
        self._start_closing()

    def _start_closing(self) -> None:
        """Close the connection when the client has read the last answer."""
        self._change_state(CLOSING)
        self.since = monotonic()
        self._buffer.clear()
        self._held.set_in_flight(0)
        if self._open_transport.can_write_eof() and not self._open_transport.is_closing():
            self._open_transport.write_eof()
            self._open_transport.resume_reading()  # pipelined requests may have paused it
        else:
            self._open_transport.close()

    def add_in_flight(self, count: int) -> None:
        """Add *count*, perhaps negative, to the bytes held for this connection, down to zero."""
        if self.is_open:
            self._held.set_in_flight(max(0, self._held.in_flight + count))

    def check(self, now: float) -> None:
        """Close the connection if its state has lasted longer than the limit for this state.

        Called about once a second, with the time by `time.monotonic`. A slow header or body is answered with 408
        first. In the state REFUSED, the answer is written and the body is discarded: then the connection is cut.
        """
        age_s = now - self.since
        limits = self._registry.limits

        if self._held.unread:  # the client reads an answer slowly, in any state
            self._check_reader(now)
        elif self.state is CLOSING:
            self._check_closing(age_s)
        elif self.state is HEADER and age_s > limits.header_s:
            self._refuse(Problem(408, "slow-header", "the header of the request did not come in time"), "slow_header")
        elif self.state is BODY and age_s > limits.body_s and not self._reader.has_failed:
            self._registry.metrics.count_shed("slow_body")
            self._reader.fail(Problem(408, "slow-body", "the body of the request did not come in time", CLOSE))
        elif self.state is REFUSED and age_s > limits.body_s:
            self._registry.metrics.count_shed("slow_body")
            self.cut()
        elif self.state is IDLE and age_s > limits.idle_s:
            self._close_idle()

    def _close_idle(self) -> None:
        if self._open_transport.is_closing():  # the check before closed it, but unsent bytes or TLS kept it open
            self.cut()
        else:
            self._open_transport.close()

    def _check_closing(self, age_s: float) -> None:
        """Cut a connection whose last answer was written *age_s* ago, if the client had time to read it."""
        write_s = self._registry.limits.write_s
        linger_s = LINGER_S if self.ssl_context is None else write_s  # a TLS transport may hide unsent bytes
        if not self._open_transport.get_write_buffer_size() and age_s > linger_s:
            self.cut()
        elif age_s > write_s:
            self._cut_slow_reader()

    def _check_reader(self, now: float) -> None:
        """Cut the connection of a client that reads its answer too slowly; *now* is by `time.monotonic`.

        A client must read WRITE_STEP_BYTES in `Limits.write_s` seconds, or in fewer while bytes in flight, which are
        held in memory for all connections, fill half of their room.
        """
        registry = self._registry
        step_s = registry.limits.write_s
        if registry.bytes_in_flight > registry.limits.bytes_in_flight // 2:
            step_s = min(step_s, CROWDED_WRITE_S)

        unread_now = self._open_transport.get_write_buffer_size()
        if unread_now <= self._held.unread - WRITE_STEP_BYTES:
            self._held.set_unread(unread_now)
            self._stalled_since = now
        elif now - self._stalled_since > step_s:
            self._cut_slow_reader()

    def _cut_slow_reader(self) -> None:
        self._registry.metrics.count_shed("slow_reader")
        self.cut()

    def cut(self) -> None:
        """Close at once, even during the handshake."""
        if self.transport is not None:
            self.transport.abort()
        elif self.state is OPENING and self._handshake is not None:
            self._handshake.cancel()

    def close_if_idle(self) -> None:
        """Close if no request has begun."""
        if self.state is IDLE:
            self._open_transport.close()

    def give_up(self) -> None:
        """Close at once, and cancel the request."""
        self.cut()
        if self._answer_task is not None:
            self._answer_task.cancel()
