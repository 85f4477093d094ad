"""The admin listener: what operators read of all workers, and do to releases; a process beside the workers.

It reads the workers' counters and states from shared memory, and opens stores of its own for what is requested of them,
so that neither a scrape nor an activation costs a worker anything. Its connections are held to limits as theirs are.
"""

import asyncio
import logging
import re
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import orjson
from aiohttp import web
from msgspec import Struct
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serve.access.auth import Guard, is_loopback
from serve.access.keys import ADMIN
from serve.api.app import RequestIds, Route, by_template, handler_of
from serve.api.parameters import QueryParser
from serve.api.problems import Problem, internal_error
from serve.connections.protocol import Server
from serve.metrics import Metrics
from serve.processes.exposition import Exposition
from serve.processes.states import ANSWERING, DEGRADED, NOT_READY, READY, SILENT_S, WorkerState
from serve.processes.worker import BACKLOG, WATCHED, Inheritance
from serve.tiers import tier_names
from serve.watched import following
from stores.catalogue import Catalogue, ReleaseId
from stores.connect import connect
from stores.errors import ReleaseConflict, ReleaseNotFound, StoreError, StoreMisused
from stores.lifecycle import activate, rollback
from stores.store import Store

if TYPE_CHECKING:
    from serve.telemetry.sdk.metric_report import MetricReport

log = logging.getLogger(__name__)

# How long a tier's catalogue is waited for.
CATALOGUE_S = 5.0
# How long a request in progress is waited for when the service stops.
STOP_S = 2.0
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
# How many connections are open at once: of operators, their tools, and what scrapes. All else is as for the workers.
CONNECTIONS = 64
ACTIVATE = re.compile("/v1/releases/([^/]+)/activate")


class RollbackQuery(Struct, frozen=True):
    """The query of `POST /v1/releases/rollback`."""

    if_live: str = ""
    """The release to leave: where it is not live, nothing is done, so that the request may be repeated."""


ROLLBACK = QueryParser(RollbackQuery, "POST /v1/releases/rollback")


async def administer(inherited: Inheritance, listener: socket.socket, lifeline: int) -> None:
    """Answer operators until SIGTERM, or until the parent, which holds *lifeline* open, is gone.

    Beyond loopback it takes keys of the scope admin, and speaks TLS where the service has a certificate.
    """
    host = listener.getsockname()[0]
    is_local = is_loopback(host)
    guard = None if is_local else inherited.guard
    certificate = None if is_local else inherited.certificate
    watched = [*(guard.watched if guard else []), *([certificate.watched] if certificate else [])]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(lifeline, stop.set)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's, for all processes: it outlives the workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    limits = replace(inherited.settings.limits, connections=CONNECTIONS, per_address=CONNECTIONS)
    server = Server(_Admin(inherited, host, guard), limits)
    report = _metric_report(inherited)
    async with following(watched):
        listening = server.listen(listener, BACKLOG, certificate.context if certificate else None)
        await stop.wait()
        listening.close()
        server.pre_shutdown()
        await server.shutdown(STOP_S)
        if report is not None:
            await asyncio.to_thread(report.close)


def _metric_report(inherited: Inheritance) -> "MetricReport | None":
    """Begin to send the metrics of all workers; None where the settings say so."""
    settings = inherited.settings
    if settings.telemetry is None or not settings.telemetry.metrics:
        return None
    from serve.telemetry.sdk.metric_report import MetricReport  # noqa: PLC0415 -- an extra

    report = MetricReport(settings.telemetry, inherited.metrics, settings.scheme)
    report.start()
    return report


class _Admin:
    """Answers what operators request; lives as long as the admin process."""

    def __init__(self, inherited: Inheritance, host: str, guard: Guard | None) -> None:
        """Take the address that is listened on, and, beyond loopback, who says which caller is an operator."""
        self.metrics = Metrics(1, ())  # of its own, and shown to nobody: in a worker's slot nobody else counts
        self.request_ids = RequestIds()
        self._host, self._guard = host, guard
        self._settings = inherited.settings
        self._states = inherited.states
        self._exposition = Exposition(inherited.metrics, inherited.states.all)
        self._acting = asyncio.Lock()
        self._activate = Route("/v1/releases/{id}/activate", {"POST": self.activate})
        self._routes = by_template(
            Route("/livez", {"GET": self.live}),
            Route("/readyz", {"GET": self.ready}),
            Route("/metrics", {"GET": self.metrics_text}),
            Route("/v1/releases", {"GET": self.releases}),
            Route("/v1/releases/rollback", {"POST": self.rollback}),
        )

    async def answer(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        """Answer a request for a raw path and query; every error as a problem."""
        request_id = self.request_ids.of(request)
        activated = ACTIVATE.fullmatch(path)
        route = self._activate if activated else self._routes.get(path)
        try:
            self._refuse_other_pages(request)
            if self._guard is not None:
                await self._guard.admit(request.headers, ADMIN)
            response = await handler_of(route, request.method)(request, activated[1] if activated else "", query)
        except Problem as problem:
            response = problem.response()
        except StoreError as error:
            response = _store_problem(error).response()
        except Exception:
            log.exception("request %s of an operator failed", request_id)
            response = internal_error(request_id).response()
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = request_id
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _refuse_other_pages(self, request: web.BaseRequest) -> None:
        """Refuse what a page of another site has a browser send, whether or not by a DNS name of its own for us."""
        if is_loopback(self._host) and _host_named(request) not in LOCAL_NAMES | {self._host}:
            raise Problem(421, "wrong-host", "the Host header names neither the address of this listener nor localhost")
        origin = request.headers.get("Origin")
        if request.method not in ("GET", "HEAD") and origin not in (None, f"{request.scheme}://{request.host}"):
            raise Problem(403, "wrong-origin", "the Origin header names another site; this is for its own pages only")

    async def live(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /livez`: the admin process answers."""
        return _json({"status": "alive"})

    async def ready(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /readyz`: what each worker serves, and what is wrong with it."""
        states = self._states.all()
        statuses = {_status(state) for state in states}
        if not statuses & set(ANSWERING):
            status = statuses.pop() if len(statuses) == 1 else NOT_READY
        else:
            status = READY if statuses == {READY} else DEGRADED
        workers = [_worker(number, state) for number, state in enumerate(states)]
        return _json({"status": status, "workers": workers}, 200 if status in ANSWERING else 503)

    async def metrics_text(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /metrics`: Prometheus text, of all workers."""
        return web.Response(body=self._exposition.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def releases(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /v1/releases`: the catalogue of each tier's store, read now."""
        urls = self._settings.stores
        found = await asyncio.gather(*map(_read_catalogue, urls))
        tiers = [{"tier": name, **fields} for name, fields in zip(tier_names(urls), found, strict=True)]
        return _json({"tiers": tiers})

    async def activate(self, _: web.BaseRequest, raw_id: str, __: str) -> web.Response:
        """`POST /v1/releases/{id}/activate`: make a committed release live."""
        release = ReleaseId(unquote(raw_id))

        async def act(store: Store) -> ReleaseId:
            await activate(store, release)
            return release

        return await self._change(act, "activated")

    async def rollback(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`POST /v1/releases/rollback?if_live=`: make the release before the live one live again."""
        if_live = ROLLBACK.parse(raw_query).if_live
        return await self._change(partial(rollback, if_live=ReleaseId(if_live) if if_live else None), "rolled back to")

    async def _change(self, act: Callable[[Store], Coroutine[Any, Any, ReleaseId]], what: str) -> web.Response:
        """Change the catalogue of the admin store, one change at a time."""
        if self._settings.admin_store is None:
            raise Problem(
                403,
                "no-admin-store",
                "this service has no right to change releases; start it with --admin-store URL, or use "
                "`hotplate releases`",
            )
        if self._acting.locked():
            raise Problem(409, "busy", "another change of the releases is in progress; try again when it is done")
        async with self._acting:
            store = connect(self._settings.admin_store)
            try:
                release = await act(store)
            finally:
                await store.close()
        log.warning("an operator %s release %s over HTTP", what, release)
        return _json({"live": release})


def _status(state: WorkerState | None) -> str:
    if state is None or state.silent_s > SILENT_S:
        return "silent"
    return state.status


def _worker(number: int, state: WorkerState | None) -> dict[str, object]:
    if state is None:
        return {"worker": number, "status": _status(None), "tiers": []}
    tiers = [
        {"tier": tier.tier, "release": tier.release, "detail": tier.detail}
        | ({"warnings": tier.warnings} if tier.warnings else {})
        for tier in state.tiers
    ]
    return {
        "worker": number,
        "status": _status(state),
        "pid": state.pid,
        "release": next((tier.release for tier in state.tiers if tier.release), None),
        "reported_s_ago": round(state.silent_s, 3),
        "tiers": tiers,
    } | ({"warnings": state.warnings} if state.warnings else {})


async def _read_catalogue(url: str) -> dict[str, object]:
    """Read a store's catalogue; where that fails, the error takes its place."""
    try:
        store = connect(url)
        try:
            async with asyncio.timeout(CATALOGUE_S):
                return _catalogue(await store.catalogue())
        finally:
            await store.close()
    except TimeoutError:
        return {"error": f"the catalogue could not be read in {CATALOGUE_S:.0f} s"}
    except StoreError as error:
        return {"error": str(error)}


def _catalogue(found: Catalogue) -> dict[str, object]:
    releases = [
        {
            "release": entry.id,
            "state": entry.state,
            "created_at": entry.created_at,
            "superseded_at": entry.superseded_at,
        }
        for entry in found.releases
    ]
    return {"live": found.live, "generation": found.generation, "releases": releases}


def _host_named(request: web.BaseRequest) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:  # it is no host at all
        return None


def _store_problem(error: StoreError) -> Problem:
    match error:
        case ReleaseNotFound():
            return Problem(404, "no-such-release", str(error))
        case ReleaseConflict() | StoreMisused():
            return Problem(409, "conflict", str(error))
    return Problem(503, "store-failed", str(error), {"Retry-After": "5"})


def _json(fields: dict[str, object], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(fields), headers={"Content-Type": "application/json"})
