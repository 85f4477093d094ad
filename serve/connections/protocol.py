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
from functools import partial
from ipaddress import ip_address, ip_network
from math import inf
from time import monotonic
from typing import Any, Protocol, cast

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import HttpVersion10, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from serve.access.tls import HANDSHAKE_S
from serve.api.app import CLIENT_GONE, RequestIds
from serve.api.handlers import StreamedResponse, encoded_body, is_encoded, too_large
from serve.api.parameters import MAX_BODY_BYTES
from serve.api.problems import Problem, internal_error, overloaded
from serve.connections.acceptor import Acceptor, room_for_connections
from serve.connections.admission import Admission
from serve.connections.lane import LATER, Lane
from serve.connections.messages import (
    CLOSE,
    READ_SHARE,
    TIMEOUT,
    closing,
    crowded,
    deadline_of,
    raw_answer,
    read_body,
    unreadable,
    wrong_version,
)
from serve.metrics import OTHER, Metrics
from serve.reader import read_within
from serve.settings import Limits

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 8190
# What is not counted where it comes at once.
SMALL = 4096
# Each tick of the sweep looks over one of so many slices of the connections, each of them once a second.
SLICES, TICK_S = 10, 0.1
# How many connections beyond the limits are heard all the same, as they may be a probe's; each for so long, or for less
# where it has one of the last descriptors.
HEARD_AT_ONCE, HEARD_S, HEARD_BRIEFLY_S = 16, 1.0, 0.1
# For how long what still comes of a refused request is read, so that its client sees why: else it would be reset.
LINGER_S = 1.0
# What a slow reader must take in `Limits.write_s`, and how long it has for it where answers fill half of their room.
WRITE_STEP, HURRIED_WRITE_S = 65_536, 1.0
# What operators request is never shed.
PROBE = re.compile(rb"(?:GET|HEAD) /(?:livez|readyz|health/live|health/ready)?[? ]")
# Reads that may be shed without parsing: a whole header, in which nothing says that there is more to the request.
READS = {b"recommendations": "/v1/recommendations/{user}", b"similar": "/v1/similar/{item}", b"popular": "/v1/popular"}
READ = re.compile(rb"GET /v1/(recommendations|similar|popular)[/? ][^\r\n ]* ?HTTP/1\.1\r\n")
MORE = (b"content-length", b"transfer-encoding", b"upgrade", b"expect", b"close")
END = b"\r\n\r\n"
# Stands for the id of a request.
ID = "{id}"

Work = Callable[[], Awaitable[web.Response]]


class Responder(Protocol):
    """Answers the requests of a server's connections, as `serve.api.app.Dispatcher` does."""

    metrics: Metrics
    request_ids: RequestIds

    async def answer(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        """Answer a request for a raw path and query, whatever becomes of it."""
        ...


class Server(web.Server):
    """aiohttp's low-level server, without its router and middlewares, behind connections that are held to limits."""

    def __init__(self, dispatcher: Responder, limits: Limits | None = None) -> None:
        super().__init__(self._answer)
        self.dispatcher = dispatcher
        self.limits = limits or Limits()
        self.metrics = dispatcher.metrics
        self.lane: Lane | None = None
        """What answers the plainest requests without aiohttp; None where none does."""
        self.awaiting = 0
        """How many requests the lane answers once a store was read."""
        self.admission = Admission(self.metrics.count_shed, lambda: self.requests_count, lambda: len(self._open))
        self.bytes_in_flight = 0
        """What came of requests that are not answered yet, apart from small ones, and what clients have not taken."""
        self._room = min(self.limits.connections, room_for_connections())
        self._room_for_heard = min(HEARD_AT_ONCE, 4 + self._room // 8)
        self._trusted = [ip_network(network) for network in self.limits.trusted_proxies]
        # Every connection from its accept on; those among them that are swept; and until when the refused are heard.
        self._open = set[Connection]()
        self._slices = [set[Connection]() for _ in range(SLICES)]
        self._refused = dict[Connection, float]()
        self._addresses = Counter[str]()
        self._refusal = (-1, b"", b"")
        self._clients = Counter[str]()
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
        return len(self._open)

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

    def _take(self, tls: ssl.SSLContext | None, accepted: socket.socket, address: str, *, is_last: bool) -> bool:
        """Serve an accepted connection, or hear only whether it is a probe's where there are too many.

        False where the loop has to turn before there is room to hear another.
        """
        refusal = ""
        if is_last:
            refusal = "descriptors"
        elif len(self._open) >= self._room:
            refusal = "connections"
        elif self._addresses[address] >= self.limits.per_address and not self._is_proxy(address):
            refusal = "address"
        is_full = is_last or len(self._refused) >= self._room_for_heard
        if refusal and is_full and not self._hears(accepted, refusal, is_plain=tls is None):
            accepted.close()
            return True
        connection = Connection(self, address, refusal)
        self._open.add(connection)
        self._addresses[address] += 1
        if refusal:
            self._refused[connection] = monotonic() + (HEARD_BRIEFLY_S if is_last else HEARD_S)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=tls, ssl_handshake_timeout=HANDSHAKE_S if tls else None
            )
        )
        self._accepting.add(task)
        task.add_done_callback(partial(self._accepted, connection))
        return is_last or not refusal

    def _hears(self, accepted: socket.socket, refusal: str, *, is_plain: bool) -> bool:
        """Return whether a connection for which there is no room is heard: a probe's, or who has said nothing yet.

        Whoever has said what is no probe is refused here and now; who is heard takes the place of the first in line.
        """
        accepted.setblocking(False)
        try:
            if is_plain and not PROBE.match(accepted.recv(MAX_LINE_BYTES, socket.MSG_PEEK)):
                self.metrics.count_shed(refusal)
                accepted.recv(1 << 20)  # what is closed with bytes unread is reset, and its answer may be lost
                accepted.send(raw_answer(crowded(), self.dispatcher.request_ids.new(), "Connection: close\r\n"))
                return False
        except BlockingIOError:
            pass  # nothing has come yet
        except OSError:
            return False
        if len(self._refused) >= self._room_for_heard:
            first = next(iter(self._refused))
            if not first.is_open:
                return False  # the line is of handshakes
            del self._refused[first]
            first.turn_away()
        return True

    def _accepted(self, connection: "Connection", task: "asyncio.Task[object]") -> None:
        self._accepting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a connection could not be served", exc_info=error)  # as when its handshake failed
            self.closed(connection)

    def _is_proxy(self, address: str) -> bool:
        return any(ip_address(address.partition("%")[0]) in network for network in self._trusted)

    def claim(self, request: web.BaseRequest, client: str) -> None:
        """Count a connection as the client's whose request it brought last; raises Problem where that has too many."""
        handler: Any = request._protocol  # noqa: SLF001 -- as in `_answer`
        if handler.client == client or handler.transport is None:  # the latter of a connection that is lost already
            return
        if self._clients[client] >= self.limits.per_client:
            self.metrics.count_shed("client")
            detail = "this client has as many connections open as it may; send requests on those"
            raise Problem(429, "too-many-connections", detail, CLOSE | {"Retry-After": "1"})
        self._disclaim(handler)
        handler.client = client
        self._clients[client] += 1

    def _disclaim(self, handler: "Handler") -> None:
        """Count a connection as nobody's."""
        if handler.client:
            _uncount(self._clients, handler.client)
            handler.client = ""

    def opened(self, connection: "Connection") -> None:
        """Have a connection swept from now on."""
        if not connection.refusal:
            min(self._slices, key=len).add(connection)

    def closed(self, connection: "Connection") -> None:
        """Forget a connection."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        _uncount(self._addresses, connection.address)
        if connection.handler is not None:
            self._disclaim(connection.handler)
        self._refused.pop(connection, None)
        for slice_ in self._slices:
            slice_.discard(connection)

    def linger(self, connection: "Connection") -> None:
        """Close a connection a little later, so that its client can read why."""
        for slice_ in self._slices:
            slice_.discard(connection)
        self._refused.setdefault(connection, monotonic() + LINGER_S)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._ticks += 1
        now = monotonic()
        for connection in list(self._slices[self._ticks % SLICES]):
            connection.check(now)
        for connection, until in list(self._refused.items()):
            if now > until and connection.is_open:
                connection.turn_away()

    def _answer(self, request: web.BaseRequest) -> Awaitable[web.Response]:
        path, _, query = request.raw_path.partition("?")
        if path[:1] != "/":
            path = request.rel_url.raw_path  # the absolute form, which proxies use
        protocol: Handler = request._protocol  # type: ignore[assignment]  # noqa: SLF001 -- as below
        protocol.bodyless = request._payload is EMPTY_PAYLOAD  # noqa: SLF001 -- as below
        # Its own fields, as this is the hot path; and `version`, once read, keeps its value.
        is_usual = request._version is HttpVersion11 and not protocol._paused  # noqa: SLF001 -- as above
        if is_usual and TIMEOUT not in request._headers:  # noqa: SLF001 -- as above
            return self.dispatcher.answer(request, path, query)
        return self._answer_unusual(request, path, query)

    async def _answer_unusual(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        """Answer what may be too late, or of another version, or comes before its client has read the last answer."""
        protocol, deadline = cast("Handler", request.protocol), inf
        try:
            if request._version not in (HttpVersion11, HttpVersion10):  # noqa: SLF001 -- as in `_answer`
                return self.refuse(request, wrong_version(request))
            await protocol._drain_helper()  # noqa: SLF001 -- aiohttp has no other way to wait for it
            if request.method != "POST":  # a POST's is looked at when its turn comes
                deadline = deadline_of(request, protocol.received)
                self.admission.check_deadline(deadline)
        except ConnectionError:
            self.metrics.observe_request(OTHER, OTHER, CLIENT_GONE, 0.0)
            return web.Response(status=CLIENT_GONE)  # it reaches nobody
        except Problem as problem:
            return self.refuse(request, problem)
        with read_within(READ_SHARE * (deadline - monotonic())):
            return await self.dispatcher.answer(request, path, query)

    def refuse(self, request: web.BaseRequest, problem: Problem) -> web.Response:
        """Answer a request that is refused before it has a route, and close its connection."""
        response = problem.response()
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = self.dispatcher.request_ids.of(request)
        response.force_close()
        self.metrics.observe_request(OTHER, OTHER, response.status, 0.0)
        return response

    async def admit(self, request: web.BaseRequest, work: Work) -> web.Response:
        """Read a body inside all limits, wait for the turn of its work, and do it."""
        protocol = cast("Handler", request.protocol)
        try:
            deadline = await self._read(request, protocol)
        except Problem as problem:
            if protocol.awaits_body:
                protocol.discard_body()
                closing(problem)
            raise

        async def timed() -> web.Response:
            with read_within(READ_SHARE * (deadline - monotonic())):
                return await work()

        response = await self.admission.batch(timed, deadline=deadline, is_gone=lambda: request.transport is None)
        if isinstance(response, StreamedResponse):
            response.turn = self.admission.resumed
        return response

    async def _read(self, request: web.BaseRequest, protocol: "Handler") -> float:
        """Read a body inside all limits, and return until when its caller waits."""
        deadline = deadline_of(request, protocol.received)
        if is_encoded(request):
            raise closing(encoded_body())
        if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
            raise closing(too_large())
        if self.bytes_in_flight > self.limits.bytes_in_flight:
            raise self.no_room()
        await read_body(request)
        return deadline

    def read_refusal(self) -> bytes:
        """Write the answer to a single read that is refused; anew once a tick, as what is refused must cost little."""
        if self._refusal[0] != self.admission.ticks:
            problem = overloaded("more is requested than can be answered in time")
            before, after = raw_answer(problem, ID, "").split(ID.encode())
            self._refusal = self.admission.ticks, before, after
        _, before, after = self._refusal
        return before + self.dispatcher.request_ids.new().encode() + after

    def no_room(self) -> Problem:
        """Count a body for which there is no memory; how to refuse it."""
        self.metrics.count_shed("bytes")
        return closing(overloaded("bodies and answers that are not read take all the memory that there is for them"))


def _uncount(counts: Counter[str], name: str) -> None:
    """Take one away, and forget who has none."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def _route_of_read(data: bytes) -> str | None:
    """Return the route of a single read that is whole; None for all else, and where there may be more to it."""
    read = READ.match(data)
    if read is None or data.find(END) != len(data) - len(END):
        return None
    header = data.lower()
    return None if any(word in header for word in MORE) else READS[read[1]]


class Handler(web.RequestHandler):
    """aiohttp's protocol behind a `Connection`; what its parser refuses is answered as a problem, too."""

    __slots__ = ("_linger", "bodyless", "client", "received")

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, linger: Callable[[], None]) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp tests it for truth, and types it as always there
            keepalive_timeout=0,  # the sweep's
            max_line_size=MAX_LINE_BYTES,
            lingering_time=LINGER_S,
            auto_decompress=False,  # what is small on the wire may be large in memory
        )
        self.client = ""
        """Whose key or token the newest request had; "" as long as there was none."""
        self._linger = linger
        self.received = 0.0
        """When the header of the newest request came, by `time.monotonic`."""
        self.bodyless = False
        """Whether the newest request is being answered, or was, and has no body."""

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
            request_id = server.dispatcher.request_ids.of(request)
            log.error("request %s failed", request_id, exc_info=exc)
            return server.refuse(request, internal_error(request_id))
        return server.refuse(request, unreadable(status, message))

    @property
    def has_answered(self) -> bool:
        """Whether the next byte begins a request although aiohttp does not wait for it yet, as in a long turn."""
        return self.bodyless and not self._request_in_progress

    @property
    def between_requests(self) -> bool:
        """Whether the next byte begins a request."""
        return self._waiter is not None and not self._messages

    def left_after(self, data: bytes) -> int:
        """Return how many bytes of the request whose header ended in *data* are still to come; -1 if that is not sure.

        What the parser holds of a next request is not to be seen from outside: so nothing may have come of one.
        """
        (message, payload), *more = self._messages
        end = data.find(END) + len(END)
        if more or end < len(END) or not isinstance(message, RawRequestMessage) or message.upgrade:
            return -1
        length = 0 if payload is EMPTY_PAYLOAD else int(message.headers.get(hdrs.CONTENT_LENGTH, "-1"))
        return max(-1, length - (len(data) - end))

    def feed_body(self, data: bytes) -> None:
        """Feed what is not the beginning of a request; a body that is no body is refused while it is awaited."""
        self.data_received(data)
        if self._messages and (error := getattr(self._messages[-1][0], "message", None)) is not None:
            self.end_body(unreadable(400, error))  # it would come after the answer to the request that has this body

    @property
    def awaits_body(self) -> bool:
        """Whether a request is being answered whose body is not whole."""
        return self._current_request is not None and not self._current_request.content.is_eof()

    @property
    def keeps(self) -> bool:
        """Whether what comes now is kept until a request is answered, not read to be thrown away."""
        return not self._force_close and (self._current_request is not None or bool(self._messages))

    def end_body(self, problem: Problem) -> None:
        """Have whoever awaits the body of the current request get *problem* instead, unless it is whole."""
        if self._current_request is not None and self.awaits_body:
            self._current_request.content.set_exception(problem)
            self.discard_body()

    def discard_body(self) -> None:
        """Take what is left of the current request's body for nothing; once it is answered, the connection lingers."""
        if self._current_request is not None:
            self._force_close = True  # `data_received` looks at nothing more, and the end of the task closes nothing
            self._current_request.content.feed_eof()
            if self._task_handler is not None:
                self._task_handler.add_done_callback(lambda _: self._linger())


class Connection(asyncio.Protocol):
    """One connection: counts and times what comes, and feeds it to aiohttp, from the first byte on."""

    __slots__ = (
        "_admission", "_awaits", "_behind", "_header_bytes",
        "_held", "_lane", "_left", "_queued", "_server", "_since", "_stalled",
        "address", "handler", "is_open", "refusal", "transport",
    )  # fmt: skip

    def __init__(self, server: Server, address: str, refusal: str) -> None:
        self.address = address
        self.refusal = refusal
        """Why it is beyond a limit, so that only a probe is answered; "" for the others."""
        self.handler: Handler | None = None
        self.is_open = False
        """Whether its `transport` is there: with TLS once the handshake is done."""
        self.transport: asyncio.Transport
        self._server = server
        self._admission = server.admission
        self._lane = server.lane
        self._since = monotonic()
        self._awaits = False
        self._behind = b""
        self._header_bytes = 0
        self._left = 0
        """How many bytes of what aiohttp reads are still to come; 0 between requests, and -1 from where that is not
        sure on: only where the next byte surely begins a request is it looked at here."""
        self._held = 0
        self._queued = 0
        self._stalled = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self.is_open = True
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
        if self._awaits:  # the next request begins when this one is answered
            self._behind += data
            self.transport.pause_reading()
            self._hold(len(data))
        elif handler is not None and (handler._messages or (handler._waiter is None and not handler.has_answered)):  # noqa: SLF001 -- `between_requests`, on the hot path
            if handler.keeps:
                self._hold(len(data))
            self._left = max(-1, self._left - len(data))
            handler.feed_body(data)
        else:
            now = monotonic()
            if self._header_bytes or self.refusal or not self._is_over(data, now):
                self._feed_header(data, now)

    def _feed_header(self, data: bytes, now: float) -> None:
        """Feed aiohttp what begins a request, or goes on with its header."""
        handler = self.handler or self._begin(data)
        if handler is None:
            return
        handler.received = now
        handler.bodyless = False
        if len(data) > SMALL and self._is_too_large(data):
            return
        handler.data_received(data)
        if handler._messages:  # noqa: SLF001 -- the header is whole
            self._header_bytes = 0
            self._left = handler.left_after(data)
        else:
            self._header_bytes += len(data)
            self._is_too_large(b"")

    def _is_over(self, data: bytes, now: float) -> bool:
        """Begin with a request; whether it is also at its end, as it was shed, or is the fast lane's to answer."""
        self._since = now
        if self._held:
            self._hold(-self._held)
        if self._left or self._queued:
            return False
        if self._admission.reads_left < inf and self._shed(data, now):
            return True
        lane, handler = self._lane, self.handler
        if lane is None:
            return False
        client = ""
        if handler is not None:
            if handler._waiter is None or handler._close or handler._force_close:  # noqa: SLF001 -- whether aiohttp awaits a request
                return False
            client = handler.client
        answer = lane.answer(data, now, client, self._deliver)
        if answer is None:
            return False
        self._server.requests_count += 1
        if answer is LATER:
            self._awaits = True
            self._server.awaiting += 1
        else:
            self.transport.write(answer)
        return True

    def _deliver(self, answer: bytes) -> None:
        """Send the answer of the fast lane to a request, and look at what came meanwhile."""
        self._awaits = False
        self._server.awaiting -= 1
        if self.transport.is_closing():
            return
        self.transport.write(answer)
        if self._behind:
            behind, self._behind = self._behind, b""
            self.transport.resume_reading()
            self.data_received(behind)

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
            elif self._queued or self._awaits:  # what comes behind an answer that is not read, or not there
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
        self.handler = handler = Handler(self._server, self._server._loop, self._linger)  # noqa: SLF001 -- aiohttp's
        handler.connection_made(self.transport)
        if self.refusal:
            handler.data_received(data)
            handler._close = True  # noqa: SLF001 -- one answer, and no more
            return None
        return handler

    def _shed(self, data: bytes, now: float) -> bool:
        """Refuse a single read without parsing, where there is no room for more; False for what is to be answered."""
        route = (self._lane and self._lane.route_of(data)) or _route_of_read(data)
        if route is None or self._admission.admits_read(now):
            return False
        self.transport.write(self._server.read_refusal())
        self._server.metrics.observe_request(route, "GET", 503, 0.0)
        return True

    def _refuse(self, problem: Problem, reason: str) -> None:
        """Say why this connection is closed, and close it once its client has had the time to read that."""
        self._server.metrics.count_shed(reason)
        self._server.metrics.observe_request(OTHER, OTHER, problem.status, 0.0)
        self.transport.write(raw_answer(problem, self._server.dispatcher.request_ids.new(), "Connection: close\r\n"))
        if self.handler is not None:
            self.handler.close()  # what comes from now on is not looked at
        self._linger()

    def turn_away(self) -> None:
        """Close a refused connection, whose client has said nothing or has had the time to read the answer."""
        if self.handler is None and not self._header_bytes:
            self._server.metrics.count_shed(self.refusal)
        self.transport.abort()

    def _linger(self) -> None:
        """Say that nothing more comes, and close once the client has had the time to read what came."""
        if self.transport.can_write_eof() and not self.transport.is_closing():
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
