"""The admin process: metrics, states of workers, changes of releases, and the console.

It opens stores itself, so scrapes and activations cost workers nothing.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hotplate.serve.access.auth import Guard, is_loopback
from hotplate.serve.access.keys import ADMIN
from hotplate.serve.api.router import Gate, Route, Router, by_template
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.connections.server import HttpServer
from hotplate.serve.consumed.sharing import ConsumedSharing
from hotplate.serve.errors import InvalidClient, KeysUnreadable, NotReady, ServiceMisused
from hotplate.serve.log_once import LogOnce
from hotplate.serve.metrics import OTHER, Metrics
from hotplate.serve.problems import UNKNOWN_LIST, Problem, ProblemRow
from hotplate.serve.processes.console import Console
from hotplate.serve.processes.context import ProcessContext
from hotplate.serve.processes.operator_view import ReadyView, json_of
from hotplate.serve.processes.release_admin import ReleaseAdmin
from hotplate.serve.processes.states import Reporter
from hotplate.serve.processes.worker import BACKLOG, ShutdownSignals
from hotplate.serve.releases.withdrawal import ReleaseJudge
from hotplate.serve.tasks import background
from hotplate.serve.telemetry.exposition import Exposition
from hotplate.serve.tiers.tier import tiers_of
from hotplate.serve.watched import catch_up, follow
from hotplate.stores.errors import (
    AccessDenied,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreMisused,
    WrittenByNewer,
)

log = logging.getLogger(__name__)

# Timeout of requests at a stop.
STOP_S = 2.0
# Minimum between two logs of refused requests.
REFUSALS_S = 1.0
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
# A further one replaces the longest idle one, which cannot lock out operators.
CONNECTIONS = 64
# Unknown paths need a key, too: without one, callers cannot find out which paths exist.
NO_ROUTE = Route(OTHER, {}, scope=ADMIN)
# Answers to errors of handlers, of a store or of a file of keys.
PROBLEMS = (
    ProblemRow((ReleaseNotFound,), 404, "no-such-release"),
    UNKNOWN_LIST,
    ProblemRow((NotReady,), 503, "not-ready", 1),
    ProblemRow((InvalidClient,), 400, "bad-parameter"),
    ProblemRow((KeysUnreadable,), 503, "keys-unreadable"),
    # Later attempts fail, too, until somebody changes something.
    ProblemRow(
        (ReleaseConflict, ReleaseCorrupt, WrittenByNewer, AccessDenied, StoreMisused, ServiceMisused), 409, "conflict"
    ),
    ProblemRow((StoreError,), 503, "store-failed", 5),
)


async def run_admin(context: ProcessContext, url: str, listener: socket.socket, lifeline: int) -> None:
    """Run the admin process: metrics, the console, changes of releases, and work that is done once for all workers.

    *context* has what the processes of a service share, and *url* is the address of its workers. *listener* is the
    bound socket of the admin address; except on loopback, its clients need a key with the scope admin, and TLS if the
    service uses it. *lifeline* is a pipe that becomes readable when the parent process dies. Returns after that, or
    after SIGTERM.
    """
    host = listener.getsockname()[0]
    is_local = is_loopback(host)
    guard = None if is_local else context.guard
    certificate = None if is_local else context.certificate

    stop = ShutdownSignals(lifeline)  # SIGINT is for the workers: this process ends last
    # Log lines of all processes, which the console shows, come through a socket.
    asyncio.get_running_loop().add_reader(context.log.reading, context.log.read)
    await catch_up(context.watched)  # files of keys, certificates and deny-lists that changed before this fork

    console = Console(context, url)
    routes = console.routes() | ReleaseAdmin(context.settings).routes() | WorkerStates(context).routes()
    admin = AdminDispatcher(routes, guard, host)
    limits = replace(context.settings.limits, connections=CONNECTIONS, idle_gives_way=True)
    not_counted = Metrics(1, ())  # only requests to workers count
    server = HttpServer(admin, AnswerWriter(not_counted, admin.request_ids, varies=False), limits)

    write_state = partial(context.states.write, context.settings.workers)  # in the row after those of the workers

    # Background tasks, which end with the block.
    async with (
        background(follow(context.watched, leads=True)),
        background(_judge_of(context).run()),
        aclosing(console),
        background(_share_consumed_items(context)),
        background(Reporter(()).run(write_state)),
        _metric_export(context),
    ):
        acceptor = server.listen(listener, BACKLOG, certificate)
        await stop.requested.wait()
        acceptor.close()
        await server.close(STOP_S)


def _judge_of(context: ProcessContext) -> ReleaseJudge:
    settings = context.settings
    return ReleaseJudge(
        tiers_of(settings.stores),
        context.comparisons,
        context.states,
        context.metrics,
        probation_s=settings.probation_s,
        admin_store=settings.admin_store,
    )


@asynccontextmanager
async def _metric_export(context: ProcessContext) -> AsyncIterator[None]:
    """Export metrics by OpenTelemetry during the block, if the settings name a destination."""
    telemetry = context.settings.telemetry
    if telemetry is None or not telemetry.metrics:
        yield
        return
    from hotplate.serve.telemetry.export import MetricReport  # noqa: PLC0415 -- an extra

    report = MetricReport(telemetry, context.metrics, context.settings.scheme)
    report.start()
    try:
        yield
    finally:
        await asyncio.to_thread(report.close)  # exports the last interval


async def _share_consumed_items(context: ProcessContext) -> None:
    """Exchange the items that users have consumed with other services, if the settings say so."""
    settings = context.settings
    if context.sharing is None or context.consumed is None or settings.events is None:
        return
    sharing = ConsumedSharing(
        context.sharing,
        folder=settings.events,
        consumed=context.consumed,
        metrics=context.metrics,
    )
    await sharing.run()


class WorkerStates:
    """Liveness, readiness and metrics, for monitoring."""

    def __init__(self, context: ProcessContext) -> None:
        self._states = context.states
        self._comparisons = context.comparisons
        self._exposition = Exposition(context.metrics, context.states.all, context.comparisons.all)

    def routes(self) -> dict[str, Route]:
        """Return the routes by path."""
        return by_template(
            Route("/livez", {"GET": self.live}, scope=ADMIN),
            Route("/readyz", {"GET": self.ready}, scope=ADMIN),
            Route("/metrics", {"GET": self.metrics_text}, scope=ADMIN),
        )

    async def live(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /livez`: the admin process answers."""
        return json_of({"status": "alive"})

    async def ready(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /readyz`: the state of each worker."""
        view = ReadyView.of(self._states.all(), self._comparisons.all())
        return json_of(view, view.status.probe_code)

    async def metrics_text(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /metrics`: Prometheus text for all workers."""
        return web.Response(body=self._exposition.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


class AdminDispatcher(Router):
    """Answers requests of operators, and logs those that are refused."""

    def __init__(self, routes: dict[str, Route], guard: Guard | None, host: str) -> None:
        """*host* is listened on, and *guard* checks keys, None on loopback."""
        super().__init__(routes, guard, problems=PROBLEMS, no_route=NO_ROUTE)
        self._host = host
        self._refusals = LogOnce(again_s=REFUSALS_S)

    async def answer(
        self,
        request: web.BaseRequest,
        path: str,
        query: str,
        *,
        gate: Gate,  # noqa: ARG002 -- no limits for operators
        refusal: Problem | None = None,
    ) -> web.Response:
        """Answer a request of an operator; refuse those that a page of another site made a browser send."""
        match = self.find(path, request.method)
        response = await self.respond(
            request,
            match,
            query,
            request_id=self.request_ids.of(request.headers),
            refusal=refusal or _refuse_other_pages(request, self._host),
        )
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def on_problem(self, request: web.BaseRequest, route: Route, problem: Problem) -> None:
        """Log a request without permission, unless there were too many of late: these are counted in the next line."""
        if problem.status not in (401, 403):
            return
        count = self._refusals.met()
        if not count:
            return
        log.warning(
            "%s %s from %s was refused: %s (%d refused since the last such line)",
            request.method,
            route.template,
            _client_address(request),
            problem.detail,
            count,
        )


def _refuse_other_pages(request: web.BaseRequest, host: str) -> Problem | None:
    """Return the refusal of a request that a page of another site made a browser send, also by DNS rebinding.

    *host* is the address that is listened on. None for other requests.
    """
    if is_loopback(host) and _host_named(request) not in LOCAL_NAMES | {host}:
        return Problem(421, "wrong-host", "the Host header names neither the address of this listener nor localhost")
    origin = request.headers.get("Origin")
    if request.method not in ("GET", "HEAD") and origin not in (None, f"{request.scheme}://{request.host}"):
        return Problem(403, "wrong-origin", "the Origin header names another site; this is for its own pages only")
    return None


def _client_address(request: web.BaseRequest) -> str:
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    return peer[0] if peer else "?"


def _host_named(request: web.BaseRequest) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:
        return None
