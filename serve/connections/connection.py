"""A connection: a state machine, with time limits for its states.

The fast lane answers plain requests. Every other one is handed to aiohttp's own server, by itself: first its header;
then, when aiohttp calls `respond` with the request, its body. So aiohttp alone decides what a header means, and the
connection where each request ends. After the answer the next request may be the lane's.

Offers to upgrade are ignored (RFC 9110, 7.8). Unreadable requests, HTTP/1.0, CONNECT, transfer codings other than
`chunked`, expectations other than `100-continue`, and bodies that were not read, if they are large or awaited by
`Expect`, close the connection.
"""

import asyncio
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from contextvars import Context
from enum import Enum
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, cast

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, hdrs, web

from hotplate.serve.access.tls import HANDSHAKE_S, Certificate
from hotplate.serve.api.parameters import unreadable
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.connections.framing import (
    HEADER_END,
    MAX_BODY_BYTES,
    NO_BODY,
    Body,
    HeaderTooLarge,
    MalformedBody,
    MalformedHeader,
    TooManyChunks,
    take_header,
)
from hotplate.serve.problems import CLOSE, Problem, internal_error
from hotplate.serve.settings import Limits

if TYPE_CHECKING:
    from hotplate.serve.connections.lane import Lane

log = logging.getLogger(__name__)

# How a client that assumes HTTP/2 begins; aiohttp's parser would take it without an error.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
CONTINUE = "100-continue"
CHUNKED = "chunked"
# aiohttp's; it would log each header that it refuses, which is a problem here.
SILENT = logging.getLogger(f"{__name__}.aiohttp")
SILENT.disabled = True
# How long an idle connection keeps aiohttp's handler, some 8 KB; it then closes its transport, not the client's.
DETACH_S = 10.0
MAX_BUFFERED_BYTES = 65_536
# Pipelined requests answered before other connections.
MAX_PIPELINED = 16
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
    ANSWER = "a request is being answered; its body is complete, or aiohttp has not read its header yet"
    CLOSING = "the last answer is written; input is discarded until the client has read it"
    CLOSED = "the transport is gone"


# Attributes of an Enum take ten times as long to read as names, and requests read several.
OPENING, IDLE, HEADER, STORE, BODY, ANSWER, CLOSING, CLOSED = State
# Every state may also change to CLOSED.
TRANSITIONS = {
    OPENING: {IDLE},
    IDLE: {IDLE, HEADER, STORE, ANSWER, CLOSING},
    HEADER: {HEADER, IDLE, STORE, ANSWER, CLOSING},
    STORE: {IDLE},
    ANSWER: {IDLE, BODY, CLOSING},
    BODY: {ANSWER, CLOSING},
    CLOSING: set[State](),
    CLOSED: set[State](),
}
WAITS_FOR_REQUEST = (OPENING, IDLE, HEADER)


class OpenConnections(ABC):
    """The open connections of a server, and what they share."""

    def __init__(self, limits: Limits, writer: AnswerWriter, lane: "Lane | None") -> None:
        """*lane* answers plain requests without aiohttp, and *writer* writes refusals; needs a running loop."""
        self.limits = limits
        self.writer = writer
        self.lane = lane
        self.aiohttp_server = _create_aiohttp_server()
        self.bytes_in_flight = 0
        """Of unanswered requests and unread answers."""
        self.open: dict[Connection, None] = {}
        """All connections, the oldest first."""

    @property
    def is_full(self) -> bool:
        """Whether bytes in flight exceed their limit."""
        return self.bytes_in_flight > self.limits.bytes_in_flight

    @abstractmethod
    def shed(self, header: bytes, body_bytes: int) -> bytes | None:
        """Return the refusal of a batch in overload, if it has arrived with its body; None for other requests."""

    @abstractmethod
    def answer(self, request: web.BaseRequest, since: float) -> Awaitable[web.Response]:
        """Answer a request that began at *since*, by `time.monotonic`."""


class Connection(asyncio.Protocol, asyncio.Transport):
    """An asyncio protocol for a client, and the transport of another one, aiohttp's, which is made when it is needed.

    Its state (`State`) changes by calls from four sides:

    the transport       `connection_made`; `data_received`, which reads headers, answers by the lane, and feeds
                        aiohttp; `pause_writing` and `resume_writing` while the client reads an answer slowly;
                        `eof_received`, `connection_lost`
    the lane            `_deliver`, once a store has returned the list that a request of the lane waits for
    aiohttp             `respond`, which answers one request, in a task; meanwhile `HttpServer.admit` counts the
                        answer of a batch by `add_in_flight`; the methods of a transport: `write`, without a request, to
                        refuse a header, and `close`, which ends aiohttp's handler
    the server          `start` a new connection, `check` the limits of its state, and `cut` it to make room; at a stop,
                        `close_if_idle`, then `give_up`

    An answer ends in `_continue_after_answer`, which begins with the next request in the buffer, or in
    `_start_closing`.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_handler",
        "_handshake",
        "_in_flight",
        "_is_half_closed",
        "_is_tls",
        "_lane",
        "_request",
        "_server",
        "_stalled_since",
        "_unread",
        "since",
        "state",
        "transport",
    )  # fmt: skip

    def __init__(self, server: OpenConnections) -> None:
        super().__init__()
        self.state = OPENING
        self.transport: asyncio.Transport | None = None
        self._is_tls = False
        self._handshake: asyncio.Task[None] | None = None
        self.since = monotonic()
        """When the current request or closing began, or the previous request was answered."""
        self._server = server
        self._lane = server.lane
        self._buffer = bytearray()
        self._is_half_closed = False  # the client half-closed
        self._in_flight = 0  # bytes of unanswered requests, and of the answers of batches while they are made
        self._unread = 0  # bytes of answers that the client has not read
        self._stalled_since = 0.0  # since when the client has not read WRITE_STEP_BYTES more
        self._handler: asyncio.Protocol | None = None  # aiohttp's
        self._request: web.BaseRequest | None = None  # that `respond` answers
        self._body = NO_BODY

    def start(self, accepted: socket.socket, certificate: Certificate | None) -> None:
        """Start to serve an accepted socket, over TLS with a *certificate*.

        The handshake of TLS runs in a task, so that a newer connection can cancel it if there are too many.
        """
        self._handshake = asyncio.get_running_loop().create_task(self._open(accepted, certificate))

    async def _open(self, accepted: socket.socket, certificate: Certificate | None) -> None:
        tls = None if certificate is None else certificate.context
        timeout_s = None if certificate is None else HANDSHAKE_S
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: self, accepted, ssl=tls, ssl_handshake_timeout=timeout_s)
        except asyncio.CancelledError:
            accepted.close()  # it gave way to a newer connection
        except Exception:
            log.debug("a connection could not be served", exc_info=True)
            self._server.open.pop(self, None)
        finally:
            self._handshake = None  # a cycle

    def _change_state(self, state: State) -> None:
        if state is not CLOSED and state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a connection cannot go from {self.state.name} to {state.name}")
        self.state = state

    @property
    def idle_since(self) -> float:
        """Since when it waits for a whole request; inf while it answers, refuses or closes."""
        return self.since if self.state in WAITS_FOR_REQUEST and not self._unread else inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = cast("asyncio.Transport", transport)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        if self._is_tls:
            self.transport.set_write_buffer_limits(high=TLS_WRITE_BYTES)
        self._change_state(IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._hold(0, 0)
        self._server.open.pop(self, None)
        is_unanswered = self.state is ANSWER and self._request is None
        self._change_state(CLOSED)
        self.transport = None
        if not is_unanswered:  # aiohttp would fail with a request that it has not begun; `respond` ends it
            self.close(exc)

    def eof_received(self) -> bool:
        """Answer a GET of a client that half-closed, and what follows a refusal; another POST is given up."""
        self._is_half_closed = True
        has_body = self._request is not None and self._request.body_exists
        is_answering = self.state in (STORE, ANSWER) and not has_body
        return is_answering and self._open_transport.can_write_eof()  # TLS cannot half-close

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
            if not self._has_failed:
                self.add_in_flight(len(data))
                if self._server.is_full:
                    self._fail(self._server.writer.no_room())
            self._buffer += data
            if len(self._buffer) == len(data):  # otherwise the body is being fed in pieces
                self._feed_buffered()
        elif self.state is not CLOSING:
            self._receive_header(data)

    def _receive_header(self, data: bytes) -> None:
        """Buffer bytes until a header is complete and the request before it is answered; limit the buffer.

        If too many bytes are in flight, a client that sends more than the rest of a short request while it is being
        answered is cut.
        """
        self._buffer += data
        self._hold(self._in_flight + len(data), self._unread)
        if self.state in (IDLE, HEADER):
            if self._server.is_full and self._unread:
                self._cut_slow_reader()
            self._read_headers()
        elif self._server.is_full and len(self._buffer) > self._server.limits.header_bytes:  # more than a short body
            self._cut_slow_reader()
        if len(self._buffer) > MAX_BUFFERED_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def _answer_in_lane(self, request: bytes) -> bool:
        """Answer a request by the fast lane, now or later; False if that leaves it to aiohttp."""
        if self._lane is None or self._unread or self.transport is None:
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
        self._hold(self._in_flight, self._open_transport.get_write_buffer_size())
        self._stalled_since = monotonic()
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._hold(self._in_flight, 0)
        if self._handler is not None:
            self._handler.resume_writing()

    def get_extra_info(self, name: str, default: object = None) -> object:
        """See asyncio."""
        return default if self.transport is None else self.transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """See asyncio."""
        return self.transport is None or self.transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write a part of aiohttp's answer. Without a request, it is the refusal of a header: a problem replaces it."""
        if self._request is not None and self.transport is not None:
            self.transport.write(data)
        elif self.state is ANSWER:
            _, _, reason = bytes(data).partition(HEADER_END)
            self._refuse(unreadable(400, reason.decode(errors="replace")))

    def pause_reading(self) -> None:
        """Receive no more of a body until its handler has read more of it."""
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive more; pipelined requests may still not be read ahead."""
        transport = self.transport
        if transport is not None and not transport.is_reading() and len(self._buffer) <= MAX_BUFFERED_BYTES:
            transport.resume_reading()

    def close(self, error: Exception | None = None) -> None:
        """End aiohttp's handler; a request that it still answers finds its client gone."""
        handler = self._handler
        self._handler = None
        if handler is not None:
            handler.connection_lost(error)

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
            header = self._take_header()
            if header is None:
                return

            if lane_answers < MAX_PIPELINED and self._answer_in_lane(header):
                lane_answers += 1
                is_answered = self.state is not STORE  # in which the lane waits for a store
                if is_answered:
                    self._wait_for_request()
            else:
                self._hand_over(header)

    def _take_header(self) -> bytes | None:
        """Remove the first header from the buffer and return it, with the empty line at its end.

        Returns None if it is incomplete; also if it is not HTTP or too large: then it is refused and the connection
        closes.
        """
        header: bytes | None = None
        try:
            header = take_header(self._buffer, self._server.limits.header_bytes)
        except MalformedHeader:
            self._refuse(unreadable(400, None))
        except HeaderTooLarge:
            self._refuse(Problem(431, "large-header", "the header of the request is too large"), "large_header")
        else:
            self._hold(len(self._buffer) + len(header or b""), self._unread)
            if header is None:
                self._change_state(HEADER)
        return header

    def _hand_over(self, header: bytes) -> None:
        """Let aiohttp read a header; it calls `respond` in one of the next iterations of the loop.

        In overload, a batch that has arrived is refused without aiohttp.
        """
        self._change_state(ANSWER)
        if header == HTTP2_PREFACE:
            self._refuse(_unknown_version(HttpVersion(2, 0)))
            return
        if header.startswith(b"POST") and not self._unread:
            refusal = self._server.shed(header, len(self._buffer))
            if refusal is not None:
                self._buffer.clear()
                self._open_transport.write(refusal)
                self._wait_for_request()
                return
        if self._handler is None:
            self._handler = self._new_handler()
        self._handler.data_received(header)

    def _new_handler(self) -> asyncio.Protocol:
        """Return a handler of aiohttp's server, connected to this connection."""
        handler = self._server.aiohttp_server()
        handler.connection_made(self)
        if self._unread:
            handler.pause_writing()
        return handler

    def _begin_body(self, request: web.BaseRequest) -> None:
        """Check the header of a request, and feed the part of its body that has arrived. Raises Problem."""
        if request.version not in (HttpVersion11, HttpVersion10):
            raise _unknown_version(request.version)
        headers = request.headers
        if not expectations_of(request) <= {CONTINUE}:
            raise Problem(417, "unknown-expectation", f"the header Expect may only be {CONTINUE}")
        self._body = NO_BODY
        if request.content.is_eof():
            return
        self._body = Body(None if headers.get(hdrs.TRANSFER_ENCODING) else request.content_length or 0)
        self._change_state(BODY)
        self._feed_buffered()

    def _feed_buffered(self) -> None:
        """Give what has arrived of a body to aiohttp: a piece of a chunked one, and then others after other work."""
        if self.state is not BODY:
            return
        self._feed_body()
        if not self._buffer:
            self.resume_reading()
        if self.state is BODY and self._buffer:
            self.pause_reading()
            asyncio.get_running_loop().call_soon(self._feed_buffered)
        elif self.state is BODY and self._is_half_closed:
            self.cut()  # the rest of the body will not come

    def _feed_body(self) -> None:
        """Give the next piece of a body in the buffer to aiohttp.

        A body in too many chunks is refused, and so is one with an end that aiohttp does not find.
        """
        request = self._request
        if request is None or self._handler is None or self._has_failed:
            self._body.drop_from(self._buffer)
            return
        try:
            piece = self._body.take_from(self._buffer)
        except TooManyChunks:
            self._fail(self._server.writer.too_many_chunks())
            return
        except MalformedBody as error:
            self._fail(unreadable(400, str(error)))
            return

        self._handler.data_received(piece)
        if not self._body.is_complete:
            return
        if not request.content.is_eof():
            self._fail(unreadable(400, "its body is malformed"))
        else:
            self._change_state(ANSWER)

    @property
    def _has_failed(self) -> bool:
        """Whether the request was given a problem instead of its body, which is discarded."""
        return self._request is not None and self._request.content.exception() is not None

    def _fail(self, problem: Problem) -> None:
        """Let the request be answered with a problem, and discard the rest of its body."""
        if self._request is not None and not self._has_failed:
            self._request.content.set_exception(problem)

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request of aiohttp's handler, then wait for the next one, or close the connection.

        An unexpected exception is answered with 500, unless a part of the answer is written.
        """
        if self.state is not ANSWER:
            self.close()
            return web.Response()
        self._request = request
        try:
            self._begin_body(request)
            if self._unread:
                await request.writer.drain()  # until the client has read earlier answers
            response = await self._server.answer(request, self.since)
            if self._must_close(request):
                response.force_close()
            await response.prepare(request)
            await (self._write_in_pieces(request, response) if self._is_tls else response.write_eof())
            if self.state is BODY and response.keep_alive:
                await request.release()  # as it arrives
        except ConnectionError:
            self.cut()
        except asyncio.CancelledError:
            self.cut()
            raise
        except Exception as error:  # noqa: BLE001 -- logged if it is a defect
            self._end_failed_request(error, is_answered=request.writer.output_size > 0)
        else:
            self._end_answered_request(keep_open=bool(response.keep_alive))
            return response
        finally:
            self._request = None
            body_error = request.content.exception()
            if body_error is not None:
                body_error.__traceback__ = None  # its frames have the body, and the payload has the error
        return web.Response()  # is not sent

    def _must_close(self, request: web.BaseRequest) -> bool:
        """Return whether no other request may follow: a server may find another end, or the rest is not worth it."""
        if not request.keep_alive or request.version < HttpVersion11 or request.method == hdrs.METH_CONNECT:
            return True
        headers = request.headers
        if hdrs.TRANSFER_ENCODING in headers and headers.getall(hdrs.TRANSFER_ENCODING) != [CHUNKED]:
            return True
        if self.state is not BODY:
            return False
        is_large = (request.content_length or 0) > MAX_BODY_BYTES
        return is_large or self._has_failed or hdrs.EXPECT in headers

    async def _write_in_pieces(self, request: web.BaseRequest, response: web.Response) -> None:
        """Write a body over TLS: uvloop takes a whole write, and does not count it as unsent."""
        body = response.body
        if isinstance(body, bytes) and request.method != hdrs.METH_HEAD:
            response.body = None
            for start in range(0, len(body), TLS_WRITE_BYTES):
                await response.write(body[start : start + TLS_WRITE_BYTES])
                await request.writer.drain()
        await response.write_eof()

    def _end_failed_request(self, error: Exception, *, is_answered: bool) -> None:
        """Answer with a problem and close the connection; cut it if an answer is written, or a part of it.

        An error that is not a Problem is a defect.
        """
        problem = error
        if not isinstance(problem, Problem):
            request_id = self._server.writer.request_ids.new()
            log.error("request %s failed", request_id, exc_info=error)
            problem = internal_error(request_id)
        if is_answered or self.transport is None:
            self.cut()
        else:
            self._refuse(problem)

    def _end_answered_request(self, *, keep_open: bool) -> None:
        """Wait for the next request, or close the connection."""
        if self._body.is_chunked:
            self.close()  # its parser keeps trailers
        if keep_open:
            self._continue_after_answer()
        elif self.transport is not None:
            self._start_closing()

    def _deliver(self, answer: bytes) -> None:
        """Write an answer for which the lane has waited, and go on."""
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(answer)
        self._continue_after_answer()

    def _continue_after_answer(self) -> None:
        """After an answer: wait for the next request, or begin with those that have arrived.

        These get a new context: that of the caller may be of another request, with its deadline and spans. A defect
        closes the connection, as in `data_received`, and is not one of the request that was answered.
        """
        if self.transport is None:
            return
        try:
            self._wait_for_request()
            if self._buffer:
                Context().run(self._read_headers)
                self.resume_reading()
            if self._is_half_closed and self.state in (IDLE, HEADER):
                self._open_transport.close()
        except Exception:
            log.exception("the next request of a connection could not be read")
            self.cut()

    def _wait_for_request(self) -> None:
        """Wait for the next request; its first bytes may be in the buffer."""
        self._change_state(IDLE)
        self.since = monotonic()
        if self._buffer or self._in_flight:
            self._hold(len(self._buffer), self._unread)

    def _refuse(self, problem: Problem, reason: str = "") -> None:
        """Answer with a problem, and close the connection; *reason* is one of SHED, or empty."""
        self._open_transport.write(self._server.writer.refuse(problem, reason, monotonic() - self.since))
        self._start_closing()

    def _start_closing(self) -> None:
        """Close the connection when the client has read the last answer."""
        self._change_state(CLOSING)
        self.since = monotonic()
        self._buffer.clear()
        self._hold(0, self._unread)
        if self._open_transport.can_write_eof() and not self._open_transport.is_closing():
            self._open_transport.write_eof()
            self._open_transport.resume_reading()  # pipelined requests may have paused it
        else:
            self._open_transport.close()
        self.close()

    def _hold(self, in_flight: int, unread: int) -> None:
        """Set the bytes held in memory for this connection, which count for all together, too."""
        self._server.bytes_in_flight += in_flight + unread - self._in_flight - self._unread
        self._in_flight = in_flight
        self._unread = unread

    def add_in_flight(self, count: int) -> None:
        """Add *count*, perhaps negative, to the bytes of the current request, down to zero."""
        if self.transport is not None:
            self._hold(max(0, self._in_flight + count), self._unread)

    def check(self, now: float) -> None:
        """Close the connection if its state has lasted longer than the limit for this state.

        Called about once a second, with the time by `time.monotonic`. A slow header is answered with 408, and so is a
        slow body unless its request is answered.
        """
        age_s = now - self.since
        limits = self._server.limits

        if self._unread:  # the client reads an answer slowly, in any state
            self._check_reader(now)
        elif self.state is CLOSING:
            self._check_closing(age_s)
        elif self.state in (HEADER, ANSWER) and self._request is None and age_s > limits.header_s:
            self._refuse(Problem(408, "slow-header", "the header of the request did not come in time"), "slow_header")
        elif self.state is BODY and age_s > limits.body_s and not self._has_failed:
            self._server.writer.metrics.count_shed("slow_body")
            self._fail(Problem(408, "slow-body", "the body of the request did not come in time", CLOSE))
        elif self.state is IDLE and age_s > limits.idle_s:
            self.close_if_idle()

    def _check_closing(self, age_s: float) -> None:
        """Cut a connection whose last answer was written *age_s* ago, if the client had time to read it."""
        write_s = self._server.limits.write_s
        linger_s = LINGER_S if not self._is_tls else write_s  # a TLS transport may hide unsent bytes
        if not self._open_transport.get_write_buffer_size() and age_s > linger_s:
            self.cut()
        elif age_s > write_s:
            self._cut_slow_reader()

    def _check_reader(self, now: float) -> None:
        """Cut the connection of a client that reads its answer too slowly; *now* is by `time.monotonic`.

        A client must read WRITE_STEP_BYTES in `Limits.write_s` seconds, or in fewer while bytes in flight, which are
        held in memory for all connections, fill half of their room.
        """
        server = self._server
        step_s = server.limits.write_s
        if server.bytes_in_flight > server.limits.bytes_in_flight // 2:
            step_s = min(step_s, CROWDED_WRITE_S)

        unread_now = self._open_transport.get_write_buffer_size()
        if unread_now <= self._unread - WRITE_STEP_BYTES:
            self._hold(self._in_flight, unread_now)
            self._stalled_since = now
        elif now - self._stalled_since > step_s:
            self._cut_slow_reader()

    def _cut_slow_reader(self) -> None:
        self._server.writer.metrics.count_shed("slow_reader")
        self.cut()

    def cut(self) -> None:
        """Close at once, even during the handshake."""
        if self.transport is not None:
            self.transport.abort()
        elif self.state is OPENING and self._handshake is not None:
            self._handshake.cancel()

    def close_if_idle(self) -> None:
        """Close if no request has begun."""
        if self.state is not IDLE:
            return
        if self._open_transport.is_closing():  # it was closed before, but unsent bytes or TLS kept it open
            self.cut()
        else:
            self._open_transport.close()

    def give_up(self) -> None:
        """Close at once, and cancel the request."""
        self.cut()
        if self._request is not None:
            self._request.task.cancel()


def _create_aiohttp_server() -> web.Server:
    """Create a server of aiohttp, each handler of which belongs to a `Connection`; needs a running loop."""
    return web.Server(
        _respond,
        access_log=None,
        auto_decompress=False,  # small bodies may be large uncompressed
        keepalive_timeout=DETACH_S,
        lingering_time=0,
        logger=SILENT,
        read_bufsize=MAX_BODY_BYTES,  # of unread bodies, twice as much is received
        tcp_keepalive=False,
    )


def _respond(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
    connection = request.transport
    return connection.respond(request) if isinstance(connection, Connection) else _unsent()


async def _unsent() -> web.Response:
    return web.Response()  # the client is gone


def expectations_of(request: web.BaseRequest) -> set[str]:
    """Return the values of the headers Expect, each of which is a list."""
    headers = request.headers.getall(hdrs.EXPECT, ())
    return {value.strip().lower() for header in headers for value in header.split(",")} - {""}


def _unknown_version(version: HttpVersion) -> Problem:
    status, name = (505, "version-not-supported") if version.major else (400, "bad-request")
    detail = f"HTTP/1.1 and HTTP/1.0 are spoken here, not HTTP/{version.major}.{version.minor}"
    return Problem(status, name, detail)
