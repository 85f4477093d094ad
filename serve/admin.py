"""The admin listener: what operators read of all workers, and do to releases; a process beside the workers.

It reads the workers' counters and states from shared memory, and opens stores of its own for what is requested of them,
so that neither a scrape nor an activation costs a worker anything.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serve.auth import is_loopback
from serve.exposition import Exposition
from serve.keys import ADMIN
from serve.problems import Problem, internal_error
from serve.states import ANSWERING, DEGRADED, NOT_READY, READY, SILENT_S, WorkerState
from serve.tiers import tier_names
from serve.watched import following
from serve.worker import WATCHED, Inheritance
from stores.catalogue import Catalogue, ReleaseId
from stores.connect import connect
from stores.errors import ReleaseConflict, ReleaseNotFound, StoreError, StoreMisused
from stores.lifecycle import activate, rollback
from stores.store import Store

log = logging.getLogger(__name__)

# Decides whether a request may be answered: raises a Problem of 401 or 403 where not.
Authorize = Callable[[web.BaseRequest], Awaitable[None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# How long a tier's catalogue is waited for.
CATALOGUE_S = 5.0
# How long a request in progress is waited for when the service stops.
STOP_S = 2.0
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
MAX_BODY_BYTES = 1 << 16


async def administer(inherited: Inheritance, listener: socket.socket, lifeline: int) -> None:
    """Answer operators until SIGTERM, or until the parent, which holds *lifeline* open, is gone.

    Beyond loopback it takes keys of the scope admin, and speaks TLS where the service has a certificate.
    """
    host, guard = listener.getsockname()[0], inherited.guard
    is_local = is_loopback(host)

    async def authorize(request: web.BaseRequest) -> None:
        await guard.admit(request.headers, ADMIN)

    certificate = None if is_local else inherited.certificate
    watched = [] if is_local else [*guard.watched, *([certificate.watched] if certificate else [])]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(lifeline, stop.set)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's, for all processes: it outlives the workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    runner = web.AppRunner(
        _application(inherited, host, None if is_local else authorize),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=STOP_S,
    )
    await runner.setup()
    try:
        async with following(watched):
            await web.SockSite(runner, listener, ssl_context=certificate.context if certificate else None).start()
            await stop.wait()
    finally:
        await runner.cleanup()


def _application(inherited: Inheritance, host: str, authorize: Authorize | None) -> web.Application:
    """Build the application of a listener that is bound to the address *host*."""
    admin = _Admin(inherited)
    app = web.Application(
        middlewares=[_problems, _only_own_pages(host), *([_authorized(authorize)] if authorize else [])],
        client_max_size=MAX_BODY_BYTES,
    )
    app.router.add_get("/livez", admin.live)
    app.router.add_get("/readyz", admin.ready)
    app.router.add_get("/metrics", admin.metrics)
    app.router.add_get("/v1/releases", admin.releases)
    app.router.add_post("/v1/releases/rollback", admin.rollback)
    app.router.add_post("/v1/releases/{release}/activate", admin.activate)
    return app


class _Admin:
    """The handlers of the admin listener."""

    def __init__(self, inherited: Inheritance) -> None:
        self._settings = inherited.settings
        self._states = inherited.states
        self._exposition = Exposition(inherited.metrics, inherited.states.all)
        self._acting = asyncio.Lock()

    async def live(self, _: web.Request) -> web.Response:
        """`GET /livez`: the admin process answers."""
        return _json({"status": "alive"})

    async def ready(self, _: web.Request) -> web.Response:
        """`GET /readyz`: what each worker serves, and what is wrong with it."""
        states = self._states.all()
        statuses = {_status(state) for state in states}
        if not statuses & set(ANSWERING):
            status = statuses.pop() if len(statuses) == 1 else NOT_READY
        else:
            status = READY if statuses == {READY} else DEGRADED
        workers = [_worker(number, state) for number, state in enumerate(states)]
        return _json({"status": status, "workers": workers}, 200 if status in ANSWERING else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """`GET /metrics`: Prometheus text, of all workers."""
        return web.Response(body=self._exposition.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def releases(self, _: web.Request) -> web.Response:
        """`GET /v1/releases`: the catalogue of each tier's store, read now."""
        urls = self._settings.stores
        found = await asyncio.gather(*map(_read_catalogue, urls))
        tiers = [{"tier": name, **fields} for name, fields in zip(tier_names(urls), found, strict=True)]
        return _json({"tiers": tiers})

    async def activate(self, request: web.Request) -> web.Response:
        """`POST /v1/releases/{id}/activate`: make a committed release live."""
        release = ReleaseId(request.match_info["release"])

        async def act(store: Store) -> ReleaseId:
            await activate(store, release)
            return release

        return await self._change(act, "activated")

    async def rollback(self, _: web.Request) -> web.Response:
        """`POST /v1/releases/rollback`: make the release before the live one live again."""
        return await self._change(rollback, "rolled back to")

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


def _only_own_pages(host: str) -> Any:  # noqa: ANN401 -- aiohttp marks middlewares with a type of its own
    """Refuse what a page of another site has a browser send, whether it names us by a DNS name of its own or not."""
    names = LOCAL_NAMES | {host}

    @web.middleware
    async def refuse_others(request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_loopback(host) and _host_named(request) not in names:
            raise Problem(421, "wrong-host", "the Host header names neither the address of this listener nor localhost")
        origin = request.headers.get("Origin")
        if request.method not in ("GET", "HEAD") and origin not in (None, f"{request.scheme}://{request.host}"):
            raise Problem(403, "wrong-origin", "the Origin header names another site; this is for its own pages only")
        return await handler(request)

    return refuse_others


def _host_named(request: web.Request) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:  # it is no host at all
        return None


def _authorized(authorize: Authorize) -> Any:  # noqa: ANN401 -- as above
    @web.middleware
    async def refuse_strangers(request: web.Request, handler: Handler) -> web.StreamResponse:
        await authorize(request)
        return await handler(request)

    return refuse_strangers


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as a problem."""
    try:
        response = await handler(request)
    except Problem as problem:
        response = problem.response()
    except web.HTTPException as refused:
        response = _routing_problem(refused).response()
    except StoreError as error:
        response = _store_problem(error).response()
    except Exception:
        log.exception("a request of an operator failed")
        response = internal_error("of the admin listener").response()
    response.headers["Server"] = "hotplate"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _routing_problem(refused: web.HTTPException) -> Problem:
    """Word what aiohttp's router, or its limit of a body, refused."""
    match refused:
        case web.HTTPNotFound():
            return Problem(404, "no-such-route", "the admin listener has no route of this path")
        case web.HTTPMethodNotAllowed():
            allowed = refused.headers["Allow"]
            return Problem(405, "no-such-method", f"this route takes {allowed}", {"Allow": allowed})
    return Problem(refused.status, "bad-request", refused.reason.lower())


def _store_problem(error: StoreError) -> Problem:
    match error:
        case ReleaseNotFound():
            return Problem(404, "no-such-release", str(error))
        case ReleaseConflict() | StoreMisused():
            return Problem(409, "conflict", str(error))
    return Problem(503, "store-failed", str(error), {"Retry-After": "5"})


def _json(fields: dict[str, object], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(fields), headers={"Content-Type": "application/json"})
