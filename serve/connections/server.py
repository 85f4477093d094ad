"""The front of a worker: accepts connections, holds them to the limits, and has their requests answered."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

from aiohttp import HttpVersion11, web
from multidict import istr

from hotplate.serve.access.tls import HANDSHAKE_S, Certificate
from hotplate.serve.api.app import CLIENT_GONE, Gate, RequestIds
from hotplate.serve.api.cors import Cors
from hotplate.serve.api.handlers import StreamedResponse
from hotplate.serve.api.parameters import check_body, read_body, unreadable
from hotplate.serve.connections.adapter import AiohttpHandler, is_usual, until_written, wrong_version
from hotplate.serve.connections.admission import Admission
from hotplate.serve.connections.connection import Connection
from hotplate.serve.connections.limits import ConnectionRegistry
from hotplate.serve.connections.listeners import Acceptor
from hotplate.serve.connections.refusals import AnswerWriter
from hotplate.serve.metrics import OTHER, Metrics
from hotplate.serve.problems import CLOSE, Problem, internal_error
from hotplate.serve.reader import read_within
from hotplate.serve.settings import Limits

if TYPE_CHECKING:
    from hotplate.serve.connections.lane import Lane

log = logging.getLogger(__name__)

# The part of the time that a caller waits in which lists are read; in the rest they become an answer, and reach it.
READ_SHARE = 0.9
# How long a caller may say that it waits.
MOST_TIMEOUT_S = 60.0
TIMEOUT = istr("X-Request-Timeout-Ms")

Work = Callable[[], Awaitable[web.Response]]


class Responder(Protocol):
    """Answers the requests of a server's connections, as `hotplate.serve.api.app.Dispatcher` does."""

    metrics: Metrics
    request_ids: RequestIds

    @property
    def cors(self) -> Cors | None:
        """Which pages of other origins may read the answers; None if no page may."""

    async def answer(
        self,
        request: web.BaseRequest,
        path: str,
        query: str,
        refusal: Problem | None = None,
        gate: Gate | None = None,
    ) -> web.Response:
        """Answer a request for a raw path and query, or refuse it."""
        ...


class HttpServer(web.Server):
    """aiohttp's low-level server, without its router and middlewares, behind connections that are held to limits."""

    def __init__(self, dispatcher: Responder, limits: Limits | None = None, lane: "Lane | None" = None) -> None:
        """Take what answers requests, and what answers the plainest of them without aiohttp, if anything does."""
        super().__init__(self._answer)
        self.dispatcher = dispatcher
        self.metrics = dispatcher.metrics
        self.registry = ConnectionRegistry(limits or Limits(), self.metrics)
        self.admission = Admission(self.metrics.count_shed)
        self.writer = AnswerWriter(self.metrics, dispatcher.request_ids, dispatcher.cors)
        self.lane = lane

    def listen(
        self,
        listening: socket.socket,
        backlog: int,
        certificate: Certificate | None = None,
        has_most: Callable[[int, bool], bool] = lambda _count, _waited: False,
    ) -> Acceptor:
        """Serve what connects to a bound socket, with the newest *certificate*, until the listener is closed.

        *has_most* tells whether another process that accepts on the socket has fewer than this number of connections,
        and is told whether it was waited for.
        """
        listening.listen(backlog)
        self.admission.start()
        self.registry.start()
        return Acceptor(
            listening, partial(self._take, certificate), lambda waited: has_most(len(self.registry), waited)
        )

    def pre_shutdown(self) -> None:
        """Close what is idle, and have the others close after the request in flight."""
        super().pre_shutdown()
        for connection in list(self.registry):
            connection.close_if_idle()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- aiohttp's name for it
        """End all connections, those with a request in flight after *timeout* seconds."""
        await super().shutdown(timeout)
        self.admission.stop()
        self.registry.stop()

    def _take(self, certificate: Certificate | None, accepted: socket.socket) -> None:
        connection = Connection(self, self.registry.refusal())
        if not self.registry.add(connection):
            accepted.close()
            return
        loop, tls = asyncio.get_running_loop(), certificate.context if certificate else None
        task = loop.create_task(
            loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=tls, ssl_handshake_timeout=HANDSHAKE_S if tls else None
            )
        )
        connection.accepting = task
        task.add_done_callback(partial(self._accepted, connection, accepted))

    def _accepted(self, connection: Connection, accepted: socket.socket, task: "asyncio.Task[object]") -> None:
        if task.cancelled():
            accepted.close()  # it gave way, perhaps before it had begun
        elif (error := task.exception()) is not None:
            log.debug("a connection could not be served", exc_info=error)  # as when its handshake failed
            self.registry.remove(connection)

    def handler_for(self, connection: asyncio.Protocol, linger: Callable[[], None]) -> AiohttpHandler:
        """Bring in aiohttp for a connection, which *linger* closes a little later."""
        return AiohttpHandler(self, connection, linger, self._answer_error)

    def count_connection(self, request: web.BaseRequest, client: str) -> None:
        """Count the connection of a request as its client's; raises Problem if that has too many."""
        if not connection_of(request).count_connection(client):
            self.metrics.count_shed("client")
            detail = "this client has as many connections open as it may; send requests on those"
            raise Problem(429, "too-many-connections", detail, CLOSE | {"Retry-After": "1"})

    def _answer(self, request: web.BaseRequest) -> Awaitable[web.Response]:
        path, _, query = request.raw_path.partition("?")
        if path[:1] != "/":
            path = request.rel_url.raw_path  # the absolute form, which proxies use
        connection_of(request).begin_turn()
        if is_usual(request) and TIMEOUT not in request.headers:
            return self.dispatcher.answer(request, path, query, gate=self)
        return self._answer_unusual(request, path, query)

    async def _answer_unusual(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        """Answer what may be too late, or of another version, or comes before its client has read the last answer."""
        deadline, refusal = inf, None
        try:
            if (wrong := wrong_version(request)) is not None:
                return self.refuse(request, wrong)
            await until_written(request)
            if request.method != "POST":  # a POST's is looked at when its turn comes
                deadline = deadline_of(request, connection_of(request).since)
                self.admission.check_deadline(deadline)
        except ConnectionError:
            self.metrics.observe_request(OTHER, OTHER, CLIENT_GONE, 0.0)
            return web.Response(status=CLIENT_GONE)  # the client has gone
        except Problem as problem:
            refusal = problem.closing()
        with read_within(READ_SHARE * (deadline - monotonic())):
            return await self.dispatcher.answer(request, path, query, refusal, self)

    def _answer_error(
        self, request: web.BaseRequest, status: int, error: BaseException | None, message: str | None
    ) -> web.Response:
        """Answer what aiohttp cannot read, or what failed outside of any handler."""
        if status < 500:
            return self.refuse(request, unreadable(status, message))
        request_id = self.dispatcher.request_ids.of(request)
        log.error("request %s failed", request_id, exc_info=error)
        return self.refuse(request, internal_error(request_id))

    def refuse(self, request: web.BaseRequest, problem: Problem) -> web.Response:
        """Answer a request that is refused before it has a route, and close its connection."""
        response = problem.closing().response()
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = self.dispatcher.request_ids.of(request)
        if self.dispatcher.cors is not None:
            self.dispatcher.cors.admit(request, response)
        self.metrics.observe_request(OTHER, OTHER, response.status, 0.0)
        return response

    async def admit(self, request: web.BaseRequest, work: Work) -> web.Response:
        """Read a body inside all limits, wait for the turn of its work, and do it."""
        connection = connection_of(request)
        try:
            deadline = await self._read(request, connection)
        except Problem as problem:
            if connection.handler is not None and connection.handler.awaits_body:
                connection.handler.discard_body()
            raise problem.closing() from None

        async def timed() -> web.Response:
            with read_within(READ_SHARE * (deadline - monotonic())):
                return await work()

        response = await self.admission.batch(timed, deadline=deadline, is_gone=lambda: request.transport is None)
        if isinstance(response, StreamedResponse):
            response.turn = self.admission.resumed
            response.hold = connection.hold
        return response

    async def _read(self, request: web.BaseRequest, connection: Connection) -> float:
        """Read a body inside all limits, and return until when its caller waits."""
        deadline = deadline_of(request, connection.since)
        check_body(request)
        if self.registry.is_full:
            raise self.writer.no_room()
        expects = request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11
        if expects and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await read_body(request)
        return deadline


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection that a request came on."""
    return cast("Connection", cast("AiohttpHandler", request.protocol).owner)


def deadline_of(request: web.BaseRequest, received: float) -> float:
    """Return when the caller stops to wait, by `time.monotonic`; inf if it does not say."""
    given = request.headers.get(TIMEOUT)
    if given is None:
        return inf
    if not (given.isascii() and given.isdecimal() and len(given) <= 9):
        raise Problem(400, "bad-parameter", f"{TIMEOUT} must be a whole number of milliseconds, not {given[:40]!r}")
    return received + min(int(given) / 1000, MOST_TIMEOUT_S)
