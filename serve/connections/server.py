"""HTTP server of a worker."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy, istr

from hotplate.serve.access.tls import Certificate
from hotplate.serve.api.app import Dispatcher
from hotplate.serve.api.parameters import check_body, read_body
from hotplate.serve.api.router import Router
from hotplate.serve.connections.admission import Admission
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.connections.connection import Connection, OpenConnections, expectations_of
from hotplate.serve.connections.fast_lane import lane_of
from hotplate.serve.connections.listeners import Acceptor, room_for_connections
from hotplate.serve.problems import ClientGone, Problem, bad_parameter
from hotplate.serve.settings import Limits
from hotplate.serve.tiers.lookups import caller_deadline, read_within
from hotplate.stores.folders import return_free_memory

if TYPE_CHECKING:
    from hotplate.serve.connections.lane import Lane

# Share of a caller's time-out for reading lists.
READ_SHARE = 0.9
MOST_TIMEOUT_S = 60.0
TIMEOUT = istr("X-Request-Timeout-Ms")
# Estimated size of an answer: bytes for each byte of the request's body, and maximum.
ANSWER_RATIO = 256
MOST_ANSWER_BYTES = 4 << 20
# How long a stop lets idle clients send one more request.
IDLE_GRACE_S = 0.5
POLL_S = 0.01
# A sweep checks one of SLICES slices, so each connection about once a second: its slice changes when an
# older one closes.
SLICES = 10
SWEEP_S = 0.1
# Memory of more freed bodies and answers is returned to the system.
RETURNED_BYTES = 32 << 20

# The path and the headers of a POST that aiohttp would read alike, and keep its connection open; it has no body of an
# unknown size, and its answer no headers of CORS.
_match_batch = re.compile(
    r"(?ai)POST (/[!->@-~]*)[!-~]* HTTP/1\.1\r\n"
    r"((?:(?!Transfer-Encoding:|Expect:|Origin:|Upgrade:|Connection:(?! *keep-alive\r))[\w-]+:[ -~]*\r\n)*)\r\n"
).fullmatch
_find_fields = re.compile(r"(.+?): *(.*?) *\r\n").findall

T = TypeVar("T")


class HttpServer(OpenConnections):
    """An HTTP/1.1 server: it accepts connections within the limits of all together, and a sweep checks each."""

    _peak_bytes = 0
    """Of `bytes_in_flight`, since memory was returned."""
    _sweeps = 0
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self, router: Router, writer: AnswerWriter, limits: Limits | None = None, lane: "Lane | None" = None
    ) -> None:
        """*lane* answers plain requests without aiohttp, *router* all others, and *writer* writes refusals.

        Needs a running loop.
        """
        self._router = router
        super().__init__(limits or Limits(), writer, lane)
        self.admission = Admission(writer.metrics.count_shed)

    @property
    def _is_answering(self) -> bool:
        """Whether a request is being answered or refused, or a last answer has not been read yet."""
        return any(connection.idle_since == inf for connection in self.open)

    @cached_property
    def _room(self) -> int:
        """How many connections may be open."""
        return min(self.limits.connections, room_for_connections())

    def listen(
        self,
        listening: socket.socket,
        backlog: int,
        certificate: Certificate | None = None,
        has_most: Callable[[bool], bool] = lambda _: False,
    ) -> Acceptor:
        """Accept connections on a bound socket, over TLS with a *certificate*.

        *has_most* is called before each is accepted, and returns whether to leave it to another process on the socket:
        see `Acceptor`.
        """
        listening.listen(backlog)
        self._start_sweep()
        return Acceptor(listening, partial(self.accept, certificate), has_most)

    def accept(self, certificate: Certificate | None, accepted: socket.socket) -> None:
        """Open a connection on an accepted socket, over TLS with a *certificate*; close it if there are too many.

        If the limits allow it, the longest idle connection closes instead.
        """
        if len(self.open) < self._room or (self.limits.idle_gives_way and self._close_longest_idle()):
            connection = Connection(self)
            self.open[connection] = None
            connection.start(accepted, certificate)
        else:
            self.writer.metrics.count_shed("connections")
            accepted.close()

    def _close_longest_idle(self) -> bool:
        """Close the connection that is idle for longest; False if none is idle."""
        longest_idle = min(self.open, key=lambda connection: connection.idle_since, default=None)
        if longest_idle is None or longest_idle.idle_since == inf:
            return False
        del self.open[longest_idle]
        longest_idle.cut()
        return True

    def _start_sweep(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._start_sweep()
        self._sweeps += 1
        now = monotonic()
        for connection in list(self.open)[self._sweeps % SLICES :: SLICES]:
            if connection.transport is not None:
                connection.check(now)
        self._return_memory()

    def _return_memory(self) -> None:
        self._peak_bytes = max(self._peak_bytes, self.bytes_in_flight)
        if self._sweeps % SLICES == 0 and self._peak_bytes - self.bytes_in_flight > RETURNED_BYTES:
            self._peak_bytes = self.bytes_in_flight
            return_free_memory()

    async def drain(self, timeout_s: float) -> None:
        """Wait until clients have closed (at most IDLE_GRACE_S) and requests are answered."""
        began = monotonic()
        await _passed(lambda: not self.open, began + min(IDLE_GRACE_S, timeout_s))
        await _passed(lambda: not self._is_answering, began + timeout_s)

    async def close(self, timeout_s: float = 0.0) -> None:
        """Close idle connections now, and the others within *timeout_s*."""
        for connection in list(self.open):
            connection.close_if_idle()
        await _passed(lambda: not self._is_answering, monotonic() + timeout_s)
        for connection in list(self.open):
            connection.give_up()
        self.admission.stop()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.sleep(0)  # for the transports to end

    def shed(self, header: bytes, body_bytes: int) -> bytes | None:
        """Return the refusal of a batch in overload; None if aiohttp has to read the header, which takes longer.

        The answer of a route that is not for batches needs aiohttp, and so does a body that has not arrived as a whole.
        """
        batch = self.admission.is_full and _match_batch(header.decode("latin-1"))
        if not batch:
            return None
        headers = CIMultiDictProxy(CIMultiDict(_find_fields(batch[2])))
        if headers.getall(hdrs.CONTENT_LENGTH, ()) != [str(body_bytes)]:
            return None
        refused = self._router.refuse_unread(batch[1], headers, self.admission.refuse)
        return refused and self.writer.write_problem(*refused, 0.0)

    def answer(self, request: web.BaseRequest, since: float) -> Awaitable[web.Response]:
        """Answer a request that began at *since*, by `time.monotonic`, within its time-out if it has one."""
        path, _, query = request.raw_path.partition("?")
        if path[:1] != "/":
            path = request.rel_url.raw_path  # absolute form
        if TIMEOUT not in request.headers:
            return self._router.answer(request, path, query, gate=self)
        return self._answer_in_time(request, path, query, since)

    async def _answer_in_time(self, request: web.BaseRequest, path: str, query: str, since: float) -> web.Response:
        """Answer a request with the header X-Request-Timeout-Ms, or refuse it if that is invalid or has passed.

        *since*, by `time.monotonic`, is when the request began. Reads of stores get READ_SHARE of the time left.
        """
        left_s = inf
        refusal = None  # for the dispatcher, which counts and logs it as an answer of the route
        try:
            left_s = timeout_s_of(request) - (monotonic() - since)
            if left_s < 0:
                raise self.admission.refuse_late()
        except Problem as problem:
            refusal = problem.closing()

        with read_within(READ_SHARE * left_s):
            return await self._router.answer(request, path, query, gate=self, refusal=refusal)

    async def admit(self, request: web.BaseRequest, work: Callable[[bytes], Awaitable[T]]) -> T:
        """Call *work*, the handler of a POST, with the body, when this worker may start a further batch.

        Returns the answer of *work*. Raises Problem if the body is invalid, the caller's time-out has passed, or the
        worker is overloaded or its bytes in flight above their limit, and ClientGone if the client disconnects during
        the wait.
        """
        if self.admission.is_full:
            raise self.admission.refuse()
        connection = request.transport
        if not isinstance(connection, Connection):
            raise ClientGone
        try:
            if expectations_of(request) and request.version >= HttpVersion11:
                check_body(request)
                connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await read_body(request)
        except Problem as problem:
            raise problem.closing() from None  # the rest of the body may be unread

        async def work_in_memory() -> T:
            if self.is_full:
                raise self.writer.no_room()
            # The answer, which is held in memory until it is sent, counts before its size is known.
            estimated_bytes = min(len(body) * ANSWER_RATIO, MOST_ANSWER_BYTES)
            connection.add_in_flight(estimated_bytes)
            response = await work(body)

            actual_bytes = 0  # of a deferred response, which has no body yet
            if isinstance(response, web.Response):
                actual_bytes = response.content_length or 0
            connection.add_in_flight(actual_bytes - estimated_bytes)
            return response

        return await self.admission.run(
            work_in_memory, deadline=caller_deadline(), is_gone=lambda: request.transport is None
        )


def server_of(dispatcher: Dispatcher, limits: Limits | None = None, *, fast_lane: bool) -> HttpServer:
    """Create the server of a worker; with *fast_lane*, plain requests are answered by the lane if it is compiled."""
    writer = AnswerWriter(dispatcher.metrics, dispatcher.request_ids, varies=dispatcher.cors is not None)
    lane = lane_of(dispatcher, writer) if fast_lane else None
    return HttpServer(dispatcher, writer, limits, lane)


async def _passed(is_over: Callable[[], bool], until: float) -> None:
    while not is_over() and monotonic() < until:  # noqa: ASYNC110 -- no event tells of the last connection
        await asyncio.sleep(POLL_S)


def timeout_s_of(request: web.BaseRequest) -> float:
    """Return the time-out that a request gives; raises Problem if it is invalid."""
    timeout_ms = request.headers.get(TIMEOUT, "")
    if not (timeout_ms.isascii() and timeout_ms.isdecimal() and len(timeout_ms) <= 9):
        raise bad_parameter(f"{TIMEOUT} must be a whole number of milliseconds, not {timeout_ms[:40]!r}")
    return min(int(timeout_ms) / 1000, MOST_TIMEOUT_S)
