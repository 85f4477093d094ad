"""The front of a worker: every connection's own protocol, which holds it to the limits before aiohttp sees its bytes.

A connection costs no timer and, until its first byte, nothing of aiohttp: one sweep for all of them looks a slice of
them over at a time. What is beyond a limit is answered with a problem and closed, or closed where nothing can be said.
"""

import asyncio
import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from time import monotonic
from typing import cast

from aiohttp import HttpVersion11, web
from aiohttp.http import HttpVersion10

from serve.acceptor import Acceptor, room_for_connections
from serve.admission import Admission
from serve.app import Dispatcher
from serve.messages import (
    CLOSE,
    TIMEOUT,
    crowded,
    deadline_of,
    raw_answer,
    read_body,
    too_large,
    unreadable,
    wrong_version,
)
from serve.parameters import MAX_BODY_BYTES
from serve.problems import Problem, internal_error, overloaded
from serve.settings import Limits
from serve.tls import HANDSHAKE_S

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 8190
# What is not counted where it comes at once.
SMALL = 4096
# Each tick of the sweep looks over one of so many slices of the connections, each of them once a second.
SLICES, TICK_S = 10, 0.1
# How many connections beyond the limits are heard all the same, each for so long: they may be a probe's.
REFUSED_AT_ONCE, REFUSED_S = 64, 1.0
# What a slow reader must take in `Limits.write_s`, and how long it has for it where answers fill half of their room.
WRITE_STEP, HURRIED_WRITE_S = 65_536, 1.0
# How long the body of a request that was answered already is still read, so that its sender sees the answer.
LINGER_S = 2.0
# What operators request is never shed.
PROBE = re.compile(rb"(?:GET|HEAD) /(?:livez|readyz|health/live|health/ready)?[? ]")
# Reads that may be shed without parsing: a whole header, in which nothing says that there is more to the request.
READS = {b"recommendations": "/v1/recommendations/{user}", b"similar": "/v1/similar/{item}", b"popular": "/v1/popular"}
READ = re.compile(rb"GET /v1/(recommendations|similar|popular)[/? ][^\r\n ]* ?HTTP/1\.1\r\n")
MORE = re.compile(rb"content-length|transfer-encoding|upgrade|expect|connection:[ \t]*close", re.IGNORECASE)
END = b"\r\n\r\n"

Work = Callable[[], Awaitable[web.Response]]


class Server(web.Server):
    """aiohttp's low-level server, without its router and middlewares, behind connections that are held to limits."""

    def __init__(self, dispatcher: Dispatcher, limits: Limits | None = None) -> None:
        super().__init__(self._answer)
        self.dispatcher = dispatcher
        dispatcher.gate = self._admit
        self.limits = limits or Limits()
        self.metrics = dispatcher.metrics
        self.admission = Admission(self.metrics.count_shed)
        self.bytes_in_flight = 0
        """What came of requests that are not answered yet, apart from small ones, and what clients have not taken."""
        self._room = min(self.limits.connections, room_for_connections())
        self._room_for_refused = min(REFUSED_AT_ONCE, 1 + self._room // 8)
        self._trusted = [ip_network(network) for network in self.limits.trusted_proxies]
        self._slices = [set[Connection]() for _ in range(SLICES)]
        self._refused = dict[Connection, float]()
        self._addresses = Counter[str]()
        self._accepting = set[asyncio.Task[object]]()
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    def listen(self, listening: socket.socket, backlog: int, tls: ssl.SSLContext | None = None) -> Acceptor:
        """Serve what connects to a bound socket, until the listener is closed."""
        listening.listen(backlog)
        self.admission.start()
        self._tick()
        return Acceptor(listening, partial(self._take, tls))

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return len(self._refused) + sum(map(len, self._slices))

    def pre_shutdown(self) -> None:
        """Close what is idle, and have the others close after the request in flight."""
        super().pre_shutdown()
        for slice_ in self._slices:
            for connection in list(slice_):
                if connection.handler is None:
                    connection.transport.close()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- aiohttp's name for it
        """End all connections, those with a request in flight after *timeout* seconds."""
        await super().shutdown(timeout)
        self.admission.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, tls: ssl.SSLContext | None, accepted: socket.socket, address: str, *, is_last: bool) -> None:
        """Serve an accepted connection, or hear only whether it is a probe's where there are too many."""
        refusal = ""
        if is_last:
            refusal = "descriptors"
        elif self.open_connections + len(self._accepting) >= self._room:
            refusal = "connections"
        elif self._addresses[address] >= self.limits.per_address and not self._is_proxy(address):
            refusal = "address"
        full = is_last or len(self._refused) + len(self._accepting) >= self._room_for_refused
        if refusal and full and not self._is_probe(accepted, refusal):
            return
        connection = Connection(self, address, refusal)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=tls, ssl_handshake_timeout=HANDSHAKE_S if tls else None
            )
        )
        self._accepting.add(task)
        task.add_done_callback(self._accepted)

    def _is_probe(self, accepted: socket.socket, refusal: str) -> bool:
        """Return whether a connection for which there is no room is a probe's; any other is refused here and now."""
        accepted.setblocking(False)
        try:
            if PROBE.match(accepted.recv(MAX_LINE_BYTES, socket.MSG_PEEK)):
                return True
            accepted.recv(1 << 20)  # what is closed with bytes unread is reset, and its answer may be lost
        except OSError:
            pass  # nothing has come yet
        with accepted, suppress(OSError):
            self.metrics.count_shed(refusal)
            accepted.send(raw_answer(crowded(), self.dispatcher.new_request_id(), "Connection: close\r\n"))
        return False

    def _accepted(self, task: "asyncio.Task[object]") -> None:
        self._accepting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a connection could not be served", exc_info=error)  # as when its handshake failed

    def _is_proxy(self, address: str) -> bool:
        return any(ip_address(address.partition("%")[0]) in network for network in self._trusted)

    def opened(self, connection: "Connection") -> None:
        """Note a connection."""
        self._addresses[connection.address] += 1
        if connection.refusal:
            self._refused[connection] = monotonic()
        else:
            min(self._slices, key=len).add(connection)

    def closed(self, connection: "Connection") -> None:
        """Forget a connection."""
        self._addresses[connection.address] -= 1
        if not self._addresses[connection.address]:
            del self._addresses[connection.address]
        self._refused.pop(connection, None)
        for slice_ in self._slices:
            slice_.discard(connection)

    def linger(self, connection: "Connection") -> None:
        """Close a connection a little later, so that its client can read why."""
        for slice_ in self._slices:
            slice_.discard(connection)
        self._refused.setdefault(connection, monotonic())

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._ticks += 1
        now = monotonic()
        for connection in list(self._slices[self._ticks % SLICES]):
            connection.check(now)
        for connection, since in list(self._refused.items()):
            if now - since > REFUSED_S:
                connection.transport.close()

    def _answer(self, request: web.BaseRequest) -> Awaitable[web.Response]:
        path, _, query = request.raw_path.partition("?")
        if path[:1] != "/":
            path = request.rel_url.raw_path  # the absolute form, which proxies use
        protocol: Handler = request._protocol  # type: ignore[assignment]  # noqa: SLF001 -- as below
        if request._method == "GET":  # noqa: SLF001 -- as below
            admission, waited_s = self.admission, monotonic() - protocol.received
            admission.reads += 1
            if waited_s < admission.least_wait_s:  # noqa: PLR1730 -- `min` takes twice as long
                admission.least_wait_s = waited_s
        # Its own fields, as this is the hot path; and `version`, once read, keeps its value.
        is_usual = request._version is HttpVersion11 and not protocol._paused  # noqa: SLF001 -- as above
        if is_usual and TIMEOUT not in request._headers:  # noqa: SLF001 -- as above
            return self.dispatcher.answer(request, path, query)
        return self._answer_unusual(request, path, query)

    async def _answer_unusual(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        """Answer what may be too late, or of another version, or comes before its client has read the last answer."""
        protocol = cast("Handler", request.protocol)
        try:
            if request._version not in (HttpVersion11, HttpVersion10):  # noqa: SLF001 -- as in `_answer`
                return self.dispatcher.refuse(request, wrong_version(request))
            await protocol._drain_helper()  # noqa: SLF001 -- aiohttp has no other way to wait for it
            if request.method != "POST":  # a POST's is looked at when its turn comes
                self.admission.check_deadline(deadline_of(request, cast("Handler", request.protocol).received))
        except ConnectionError:
            return self.dispatcher.gone()
        except Problem as problem:
            return self.dispatcher.refuse(request, problem)
        return await self.dispatcher.answer(request, path, query)

    async def _admit(self, request: web.BaseRequest, work: Work) -> web.Response:
        """Read a body inside all limits, wait for the turn of its work, and do it."""
        deadline = deadline_of(request, cast("Handler", request.protocol).received)
        if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise Problem(415, "encoded-body", "a body is sent as it is, without Content-Encoding", CLOSE)
        if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
            raise too_large()
        if self.bytes_in_flight > self.limits.bytes_in_flight:
            raise self.no_room()
        await read_body(request)
        return await self.admission.batch(work, deadline=deadline, is_gone=lambda: request.transport is None)

    def no_room(self) -> Problem:
        """Count a body for which there is no memory; how to refuse it."""
        self.metrics.count_shed("bytes")
        problem = overloaded("bodies and answers that are not read take all the memory that there is for them")
        problem.headers |= CLOSE  # what is left of the body is not read
        return problem


class Handler(web.RequestHandler):
    """aiohttp's protocol behind a `Connection`; what its parser refuses is answered as a problem, too."""

    __slots__ = ("received",)

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp tests it for truth, and types it as always there
            keepalive_timeout=0,  # the sweep's
            max_line_size=MAX_LINE_BYTES,
            lingering_time=LINGER_S,
            auto_decompress=False,  # what is small on the wire may be large in memory
        )
        self.received = 0.0
        """When the header of the newest request came, by `time.monotonic`."""

    def _process_keepalive(self) -> None:
        """Leave idle connections to the sweep."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what cannot be read, or failed outside of any handler."""
        server = cast("Server", self._manager)
        request._version = HttpVersion11  # noqa: SLF001 -- aiohttp's stand-in for what cannot be read says 1.0
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun; it cannot become an error any more") from exc
        if status >= 500:
            request_id = server.dispatcher.request_id(request)
            log.error("request %s failed", request_id, exc_info=exc)
            return server.dispatcher.refuse(request, internal_error(request_id))
        return server.dispatcher.refuse(request, unreadable(status, message))

    @property
    def between_requests(self) -> bool:
        """Whether the next byte begins a request."""
        return self._waiter is not None and not self._messages

    def feed_body(self, data: bytes) -> None:
        """Feed what is not the beginning of a request; a body that is no body is refused while it is awaited."""
        self.data_received(data)
        if self._messages and (error := getattr(self._messages[-1][0], "message", None)) is not None:
            self.end_body(unreadable(400, error))  # it would come after the answer to the request that has this body

    @property
    def awaits_body(self) -> bool:
        """Whether a request is being answered whose body is not whole."""
        return self._current_request is not None and not self._current_request.content.is_eof()

    def end_body(self, problem: Problem) -> None:
        """Have whoever awaits the body of the current request get *problem* instead."""
        if self._current_request is not None:
            content = self._current_request.content
            content.set_exception(problem)
            content.feed_eof()


class Connection(asyncio.Protocol):
    """One connection: counts and times what comes, and feeds it to aiohttp, from the first byte on."""

    __slots__ = (
        "_admission", "_header_bytes",
        "_held", "_queued", "_server", "_since", "_stalled",
        "address", "handler", "refusal", "transport",
    )  # fmt: skip

    def __init__(self, server: Server, address: str, refusal: str) -> None:
        self.address = address
        self.refusal = refusal
        """Why it is beyond a limit, so that only a probe is answered; "" for the others."""
        self.handler: Handler | None = None
        self.transport: asyncio.Transport
        self._server = server
        self._admission = server.admission
        self._since = monotonic()
        self._header_bytes = 0
        self._held = 0
        self._queued = 0
        self._stalled = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._server.bytes_in_flight -= self._queued + self._held
        self._queued = self._held = 0
        self._server.closed(self)
        if self.handler is not None:
            self.handler.connection_lost(exc)

    def eof_received(self) -> None:
        """Close: a client that sends no more is taken to have gone."""

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        handler = self.handler
        if handler is None:
            handler = self._begin(data)
            if handler is None:
                return
        elif handler._waiter is None or handler._messages:  # noqa: SLF001 -- `between_requests`, on the hot path
            self._hold(len(data))
            handler.feed_body(data)
            return
        handler.received = now = monotonic()
        if not self._header_bytes:
            self._since = now
            if self._held:
                self._hold(-self._held)
            if self._admission.shed_share and self._shed(data):
                return
        if len(data) > SMALL and self._is_too_large(data):
            return
        handler.data_received(data)
        if handler._messages:  # noqa: SLF001 -- the header is whole
            self._header_bytes = 0
        else:
            self._header_bytes += len(data)
            self._is_too_large(b"")

    def _is_too_large(self, data: bytes) -> bool:
        """Refuse a header that is too large with what comes now; count what comes with a header."""
        self._hold(len(data))
        limit = self._server.limits.header_bytes
        if self._header_bytes <= limit and (len(data) <= limit or END in data[: limit + len(END)]):
            return False
        self._refuse(Problem(431, "large-header", "the header of the request is too large"), "large_header")
        return True

    def _hold(self, count: int) -> None:
        """Count bytes that are kept until their request is answered; refuse or cut where there is no room for them."""
        self._held += count
        self._server.bytes_in_flight += count
        if count > 0 and self._server.bytes_in_flight > self._server.limits.bytes_in_flight:
            if self.handler is not None and self.handler.awaits_body:
                self.handler.end_body(self._server.no_room())
            elif self._queued:  # what comes behind an answer that is not read
                self._server.metrics.count_shed("slow_reader")
                self.transport.abort()

    def _begin(self, data: bytes) -> Handler | None:
        """Bring in aiohttp for the first bytes, unless this connection is refused."""
        if self.transport.is_closing():
            return None
        if self.refusal and not (PROBE.match(data) and data.endswith(END)):
            if not self._header_bytes:  # refused already
                self._header_bytes = 1
                self._refuse(crowded(), self.refusal)
            return None
        self.handler = handler = Handler(self._server, self._server._loop)  # noqa: SLF001 -- aiohttp's
        handler.connection_made(self.transport)
        if self.refusal:
            handler.data_received(data)
            handler._close = True  # noqa: SLF001 -- one answer, and no more
            return None
        return handler

    def _shed(self, data: bytes) -> bool:
        """Refuse a single read without parsing, where the worker is late; False for what must be looked at."""
        read = READ.match(data)
        if read is None or self._queued or data.find(END) != len(data) - len(END) or MORE.search(data):
            return False
        if not self._admission.sheds_read():
            return False
        problem = overloaded("more is requested than can be answered in time")
        self.transport.write(raw_answer(problem, self._server.dispatcher.new_request_id(), ""))
        self._server.metrics.observe_request(READS[read[1]], "GET", 503, 0.0)
        return True

    def _refuse(self, problem: Problem, reason: str) -> None:
        """Say why this connection is closed, and close it once its client has had the time to read that."""
        self._server.metrics.count_shed(reason)
        self._server.metrics.observe_request("other", "other", problem.status, 0.0)
        self.transport.write(raw_answer(problem, self._server.dispatcher.new_request_id(), "Connection: close\r\n"))
        if self.handler is not None:
            self.handler.close()  # what comes from now on is not looked at
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._server.linger(self)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Note that the client does not take its answers as fast as they come; aiohttp waits before the next."""
        self._queued = self.transport.get_write_buffer_size()
        self._stalled = monotonic()
        self._server.bytes_in_flight += self._queued
        if self.handler is not None:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        """Note that the client has taken its answers."""
        self._server.bytes_in_flight -= self._queued
        self._queued = 0
        if self.handler is not None:
            self.handler.resume_writing()

    def check(self, now: float) -> None:
        """Close the connection where it has taken too long for what it is at."""
        server, handler, age_s = self._server, self.handler, now - self._since
        limits = server.limits
        if self._queued:
            self._check_reader(now)
        elif handler is None:
            if age_s > limits.idle_s:
                self.transport.close()
        elif handler.awaits_body:
            if age_s > limits.body_s:
                server.metrics.count_shed("slow_body")
                handler.end_body(Problem(408, "slow-body", "the body of the request did not come in time", CLOSE))
        elif handler.between_requests:
            if self._header_bytes and age_s > limits.header_s:
                late = Problem(408, "slow-header", "the header of the request did not come in time")
                self._refuse(late, "slow_header")
            elif age_s > limits.idle_s:
                self.transport.close()
            elif self._held:
                self._hold(-self._held)

    def _check_reader(self, now: float) -> None:
        """Cut a client that takes nothing of its answers; soon, where such answers fill half of their room."""
        limits = self._server.limits
        queued = self.transport.get_write_buffer_size()
        crowded = self._server.bytes_in_flight > limits.bytes_in_flight // 2
        if queued <= self._queued - WRITE_STEP:
            self._server.bytes_in_flight += queued - self._queued
            self._queued, self._stalled = queued, now
        elif now - self._stalled > (min(HURRIED_WRITE_S, limits.write_s) if crowded else limits.write_s):
            self._server.metrics.count_shed("slow_reader")
            self.transport.abort()
