"""The admin process: metrics, states of workers, changes of releases, and the console.

It opens stores itself, so scrapes and activations cost workers nothing.
"""

import asyncio
import logging
import platform
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from aiohttp import web
from msgspec import Meta, Struct
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hotplate.serve.access.auth import Bucket, Guard, is_loopback
from hotplate.serve.access.keys import ADMIN, create, load, revoke
from hotplate.serve.api.app import CALLER, Gate, RequestIds, Route, by_template, handler_of, no_such_route
from hotplate.serve.api.openapi import page_response
from hotplate.serve.api.parameters import Id, ListName, QueryParser
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.connections.fast_lane import lane_state
from hotplate.serve.connections.server import HttpServer
from hotplate.serve.consumed.sender import stream_url
from hotplate.serve.consumed.sharing import ConsumedSharing
from hotplate.serve.encoded_lists import NotReady, UnknownList
from hotplate.serve.errors import KeysUnreadable, ServiceMisused
from hotplate.serve.list_requests import ListRequest, answer_list
from hotplate.serve.metrics import OTHER, Metrics
from hotplate.serve.problems import Problem, bad_parameter, internal_error, not_ready, unknown_list
from hotplate.serve.processes.context import ProcessContext
from hotplate.serve.processes.operator_view import (
    CatalogueView,
    ReadyView,
    ServiceView,
    StoresView,
    UserView,
)
from hotplate.serve.processes.worker import BACKLOG, WATCHED
from hotplate.serve.reader import TieredReader
from hotplate.serve.releases.probation import Probation
from hotplate.serve.shaping import Selection, Shaper
from hotplate.serve.shared_table import private_floats
from hotplate.serve.states import ANSWERING, Reporter
from hotplate.serve.tasks import background
from hotplate.serve.telemetry.exposition import Exposition
from hotplate.serve.tiers import tier_names
from hotplate.serve.watched import catch_up, follow
from hotplate.stores.catalogue import Catalogue, ReleaseId
from hotplate.stores.connect import opened
from hotplate.stores.encoding import USER, decode
from hotplate.stores.errors import (
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreMisused,
    WrittenByNewer,
)
from hotplate.stores.lifecycle import abort, activate, promote, rollback, start_canary
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

T = TypeVar("T")

log = logging.getLogger(__name__)

# Timeouts of catalogue reads, of changes of releases, of opening the stores, and of requests at a stop.
CATALOGUE_S = 5.0
CHANGE_S = 60.0
OPEN_S = 5.0
STOP_S = 2.0
# Refused requests logged per second, at most.
LOGGED_REFUSALS = 1.0
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
# A further one replaces the longest idle one, which cannot lock out operators.
CONNECTIONS = 64
PAGE = "index.html"
MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = files("hotplate.serve.processes") / "page"


class _Rollback(Struct, frozen=True):
    if_live: ReleaseId = ReleaseId("")  # makes the request idempotent


class _Abort(Struct, frozen=True):
    if_canary: ReleaseId = ReleaseId("")


class _Activate(Struct, frozen=True):
    force: Literal["false", "true"] = "false"  # whether to ignore that gates refused the release


class _Promote(_Activate, frozen=True):
    if_canary: ReleaseId = ReleaseId("")


class _StartCanary(_Activate, frozen=True):
    percent: Annotated[str, Meta(pattern=r"^\d{1,2}(\.\d{1,9})?$")] = "0"


class _StateQuery(Struct, frozen=True):
    after: Annotated[str, Meta(pattern=r"^\d{1,10}(\.\d{1,9})?$")] = "0"


class _UserQuery(Struct, frozen=True):
    id: Id = ""
    list: ListName = ""


class _KeyQuery(Struct, frozen=True):
    name: str = ""
    scope: Literal["read", "events"] = "read"


STATE = QueryParser(_StateQuery, "GET /console/state")
USER_QUERY = QueryParser(_UserQuery, "GET /console/user")
KEY = QueryParser(_KeyQuery, "POST /console/keys")


async def _activate(store: Store, release: ReleaseId, query: _Activate) -> ReleaseId:
    await activate(store, release, though_refused=query.force == "true")
    return release


async def _start_canary(store: Store, release: ReleaseId, query: _StartCanary) -> ReleaseId:
    await start_canary(store, release, float(query.percent), though_refused=query.force == "true")
    return release


async def _promote(store: Store, _: ReleaseId, query: _Promote) -> ReleaseId:
    return await promote(store, if_canary=query.if_canary or None, though_refused=query.force == "true")


async def _abort(store: Store, _: ReleaseId, query: _Abort) -> ReleaseId:
    return await abort(store, if_canary=query.if_canary or None)


async def _rollback(store: Store, _: ReleaseId, query: _Rollback) -> ReleaseId:
    return await rollback(store, if_live=query.if_live or None)


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of releases: the type of its parameters, what it does, and how the log says so."""

    query: type[Struct]
    act: Callable[[Store, ReleaseId, Any], Awaitable[ReleaseId]]
    """Takes the release of the path, which may be empty; returns the release that was changed."""
    done: str


CHANGES = {
    "/v1/releases/{id}/activate": _Change(_Activate, _activate, "activated"),
    "/v1/releases/{id}/canary": _Change(_StartCanary, _start_canary, "started or changed the canary"),
    "/v1/releases/canary/promote": _Change(_Promote, _promote, "promoted the canary"),
    "/v1/releases/canary/abort": _Change(_Abort, _abort, "aborted the canary"),
    "/v1/releases/rollback": _Change(_Rollback, _rollback, "rolled back to"),
}
OF_RELEASE = re.compile("/v1/releases/(?!canary/)([^/]+)/(activate|canary)")


async def run_admin(context: ProcessContext, listener: socket.socket, lifeline: int) -> None:
    """Run the admin process: metrics, the console, changes of releases, and work that is done once for all workers.

    *listener* is the bound socket of the admin address; except on loopback, its clients need a key with the scope
    admin, and TLS if the service uses it. *lifeline* is a pipe that becomes readable when the parent process dies.
    Returns after that, or after SIGTERM.
    """
    host = listener.getsockname()[0]
    is_local = is_loopback(host)
    guard = None if is_local else context.guard
    certificate = None if is_local else context.certificate

    stop_requested = _watch_for_stop(lifeline)
    # Log lines of all processes, which the console shows, come through a socket.
    asyncio.get_running_loop().add_reader(context.log.reading, context.log.read)
    await catch_up(context.watched)  # files of keys, certificates and deny-lists that changed before this fork

    user_lists = UserLists(context)
    admin = Admin(context, host, guard, user_lists)
    limits = replace(context.settings.limits, connections=CONNECTIONS, idle_gives_way=True)
    not_counted = Metrics(1, ())  # only requests to workers count
    server = HttpServer(admin.answer, AnswerWriter(not_counted, admin.request_ids, varies=False), limits)

    async with (
        background(follow(context.watched, leads=True)),
        background(_judge_new_releases(context)),
        aclosing(user_lists),
        background(_share_consumed_items(context)),
        background(_report_heartbeats(context)),
        _metric_export(context),
    ):
        acceptor = server.listen(listener, BACKLOG, certificate)
        await stop_requested.wait()
        acceptor.close()
        await server.close(STOP_S)


def _watch_for_stop(lifeline: int) -> asyncio.Event:
    """Return an event that is set by SIGTERM, or when *lifeline* becomes readable; other signals are ignored."""
    stop_requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(lifeline, stop_requested.set)
    loop.add_signal_handler(signal.SIGTERM, stop_requested.set)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all, but this process ends last
        loop.add_signal_handler(number, lambda: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    return stop_requested


@asynccontextmanager
async def _metric_export(context: ProcessContext) -> AsyncIterator[None]:
    """Export metrics by OpenTelemetry during the block, if the settings name a destination."""
    telemetry = context.settings.telemetry
    if telemetry is None or not telemetry.metrics:
        yield
        return
    from hotplate.serve.telemetry.export import MetricReport  # noqa: PLC0415 -- an extra

    report = MetricReport(telemetry, context.memory.metrics, context.settings.scheme)
    report.start()
    yield
    await asyncio.to_thread(report.close)  # exports the last interval


async def _share_consumed_items(context: ProcessContext) -> None:
    """Exchange the items that users have consumed with other services, if the settings say so."""
    settings = context.settings
    memory = context.memory
    url = stream_url(settings)
    if url is None or settings.events is None or memory.consumed is None or memory.sharing is None:
        return
    sharing = ConsumedSharing(
        url,
        stores=settings.stores,
        folder=settings.events,
        consumed=memory.consumed,
        state=memory.sharing,
        metrics=memory.metrics,
    )
    await sharing.run()


async def _report_heartbeats(context: ProcessContext) -> None:
    """Report that this process is alive, in the row of shared memory after those of the workers."""
    write_state = partial(context.memory.states.write, context.settings.workers)
    await Reporter(()).run(write_state)


async def _judge_new_releases(context: ProcessContext) -> None:
    """Withdraw new releases that are worse than the ones before them (see `Probation`), if the settings say so."""
    settings = context.settings
    if not settings.probation_s:
        return
    probation = Probation(
        dict(zip(tier_names(settings.stores), settings.stores, strict=True)),
        context.memory.releases,
        context.memory.states,
        probation_s=settings.probation_s,
        admin_store=settings.admin_store,
    )
    await probation.run()


class UserLists:
    """Users' lists for the console, read by this process; these reads are not counted as traffic.

    The stores are opened by the first read.
    """

    def __init__(self, context: ProcessContext) -> None:
        self._context = context
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._reader: TieredReader | None = None

    async def aclose(self) -> None:
        """Close the stores."""
        await self._opened.aclose()

    async def read(self, user: str, list_name: str) -> UserView:
        """Return a user's list as the service would answer it, its origin, and the time taken.

        *list_name* is empty for the default list. Raises a Problem: 404 for an unknown name, 503 without a release.
        """
        reader = await self._ready_reader()
        shaper = Shaper(self._context.deny_list, self._context.memory.consumed)
        wanted = ListRequest(USER, user, selection=Selection(), name=list_name)
        started = time.perf_counter()
        try:
            answer = await answer_list(reader, shaper, wanted)
        except UnknownList as error:
            raise unknown_list(str(error)) from None
        took_ms = round((time.perf_counter() - started) * 1000, 3)
        encoded = answer.encoded
        return UserView(
            source=encoded.source,
            status=encoded.status,
            release=encoded.served.id,
            tier=encoded.tier,
            took_ms=took_ms,
            items=decode(answer.items),
            list=encoded.name,
        )

    async def _ready_reader(self) -> TieredReader:
        """Return the reader of the stores, whose canaries are stopped while a worker says that it has stopped them.

        Raises a Problem (503) if no store has a release.
        """
        async with self._opening:
            if self._reader is None:
                settings = self._context.settings
                reader = TieredReader.from_urls(
                    settings.stores, budget_s=settings.budget_s, deny_list=self._context.deny_list
                )
                self._reader = await self._opened.enter_async_context(reader)
            try:
                await self._reader.wait_until_ready(OPEN_S)
            except NotReady as error:
                raise not_ready(str(error)) from None

        worker_states = [state for state in self._context.memory.states.all() if state is not None]
        stopped = {(own.tier, own.stopped_canary) for state in worker_states for own in state.tiers}
        for tier in self._reader.tiers:
            follower = tier.follower
            if (tier.name, follower.named_canary) in stopped:
                follower.stop_canary("a worker has stopped it")
            else:
                follower.reload_canary()
        return self._reader


class Admin:
    """The routes of the admin listener."""

    def __init__(self, context: ProcessContext, host: str, guard: Guard | None, user_lists: UserLists) -> None:
        """*host* is listened on, and *guard* checks keys, None on loopback."""
        memory = context.memory
        self.request_ids = RequestIds()
        self._context = context
        self._memory = memory
        self._settings = context.settings
        self._host = host
        self._guard = guard
        self._user_lists = user_lists
        self._exposition = Exposition(memory.metrics, memory.states.all, memory.releases.probations)
        self._refusals = Bucket(private_floats(1), 0, LOGGED_REFUSALS)
        self._refused = 0
        self._files = {file.name: file for file in FILES.iterdir()}
        page_routes = self._page_routes()
        # Without a key: a browser sends none when it opens a page.
        self._open_paths = frozenset(page_routes)
        self._routes = page_routes | self._data_routes() | self._change_routes()

    def _page_routes(self) -> dict[str, Route]:
        paths = ("/", "/console", *(f"/console/{name}" for name in self._files))
        return by_template(*(Route(path, {"GET": self.file}) for path in paths))

    def _data_routes(self) -> dict[str, Route]:
        return by_template(
            Route("/livez", {"GET": self.live}),
            Route("/readyz", {"GET": self.ready}),
            Route("/metrics", {"GET": self.metrics_text}),
            Route("/v1/releases", {"GET": self.releases}),
            Route("/console/state", {"GET": self.state}),
            Route("/console/keys", {"GET": self.keys, "POST": self.create_key}),
            Route("/console/keys/revoke", {"POST": self.revoke_key}),
            Route("/console/user", {"GET": self.user}),
        )

    def _change_routes(self) -> dict[str, Route]:
        routes = list[Route]()
        for path, change in CHANGES.items():
            query = QueryParser(change.query, f"POST {path}")
            routes.append(Route(path, {"POST": partial(self.change, change, query)}))
        return by_template(*routes)

    async def answer(
        self,
        request: web.BaseRequest,
        path: str,
        query: str,
        refusal: Problem | None = None,
        gate: Gate | None = None,  # noqa: ARG002 -- no limits for operators
    ) -> web.Response:
        """Answer a request of an operator, after checking its origin and its key; errors become answers.

        *refusal* is the answer to a request that could not be parsed.
        """
        request_id = self.request_ids.of(request.headers)
        route, raw_release = self._find_route(path)
        try:
            if refusal is None:
                response = await self._respond(request, path, route, raw_release, query)
            else:
                response = refusal.response()
        except Problem as problem:
            if problem.status in (401, 403):
                self._log_refusal(request, OTHER if route is None else route.template, problem)
            response = problem.response()
        except (StoreError, ServiceMisused) as error:
            response = _store_problem(error).response()
        except Exception:
            log.exception("request %s of an operator failed", request_id)
            response = internal_error(request_id).response()
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = request_id
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _find_route(self, path: str) -> tuple[Route | None, str]:
        """Return the route of a raw path, and the encoded id of the release in it, or an empty text."""
        match = OF_RELEASE.fullmatch(path)
        if match is None:
            return self._routes.get(path), ""
        raw_release, action = match.groups()
        return self._routes.get(f"/v1/releases/{{id}}/{action}"), raw_release

    async def _respond(
        self, request: web.BaseRequest, path: str, route: Route | None, raw_release: str, query: str
    ) -> web.Response:
        """Check the origin and the key of a request, and call the handler of its route; raises a Problem."""
        self._refuse_other_pages(request)
        if self._guard is not None and path not in self._open_paths:
            request[CALLER] = await self._guard.admit(request.headers, ADMIN)
        if route is None:
            raise no_such_route()
        return await handler_of(route, request.method)(request, raw_release, query)

    def _log_refusal(self, request: web.BaseRequest, template: str, problem: Problem) -> None:
        """Log a refused request, unless there were too many of late: these are counted in the next line."""
        self._refused += 1
        wait_s = self._refusals.take()
        if wait_s > 0:
            return
        count = self._refused
        self._refused = 0
        log.warning(
            "%s %s from %s was refused: %s (%d refused since the last such line)",
            request.method,
            template,
            _client_address(request),
            problem.detail,
            count,
        )

    def _refuse_other_pages(self, request: web.BaseRequest) -> None:
        """Refuse requests that pages of other sites make browsers send, also by DNS rebinding."""
        if is_loopback(self._host) and _host_named(request) not in LOCAL_NAMES | {self._host}:
            raise Problem(421, "wrong-host", "the Host header names neither the address of this listener nor localhost")
        origin = request.headers.get("Origin")
        if request.method not in ("GET", "HEAD") and origin not in (None, f"{request.scheme}://{request.host}"):
            raise Problem(403, "wrong-origin", "the Origin header names another site; this is for its own pages only")

    async def live(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /livez`: the admin process answers."""
        return json_of({"status": "alive"})

    async def ready(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /readyz`: the state of each worker."""
        view = ReadyView.of(self._memory.states.all())
        return json_of(view, 200 if view.status in ANSWERING else 503)

    async def metrics_text(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /metrics`: Prometheus text for all workers."""
        return web.Response(body=self._exposition.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def file(self, request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /`, `/console` and `/console/{file}`: the page and its files."""
        file = self._files.get(request.rel_url.raw_path.rpartition("/")[2], FILES / PAGE)
        return page_response(request, file.read_bytes(), MEDIA[Path(file.name).suffix])

    async def releases(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /v1/releases`: the catalogue of each store, or why it cannot be read.

        A store is changeable if the service may write to it: it is the admin store, by its id, not by its URL.
        """
        urls = self._settings.stores
        reading = asyncio.gather(*map(_read_catalogue, urls))
        admin_store_id, outcomes = await asyncio.gather(self._admin_store_id(), reading)
        tiers = list[CatalogueView]()
        for name, url, outcome in zip(tier_names(urls), urls, outcomes, strict=True):
            if isinstance(outcome, Catalogue):
                is_changeable = outcome.store_id == admin_store_id
                tiers.append(CatalogueView.of(name, redacted(url), outcome, changeable=is_changeable))
            else:
                tiers.append(CatalogueView(name, redacted(url), changeable=False, error=outcome))
        return json_of(StoresView(tiers))

    async def _admin_store_id(self) -> str | None:
        """Return the id of the admin store; None if there is none, or it cannot be read."""
        if self._settings.admin_store is None:
            return None
        outcome = await _read_catalogue(self._settings.admin_store)
        return outcome.store_id if isinstance(outcome, Catalogue) else None

    async def change(
        self, change: _Change, query: QueryParser[Any], request: web.BaseRequest, raw_id: str, raw_query: str
    ) -> web.Response:
        """Change releases in the admin store, such as activate or roll back, log it, and answer with the release.

        *raw_id* is the release's id in the path, percent-encoded; empty for changes that find the release themselves.
        Raises a Problem: 403 without an admin store, 504 after CHANGE_S.
        """
        parameters = query.parse(raw_query)
        if self._settings.admin_store is None:
            raise Problem(
                403,
                "no-admin-store",
                "this service may not change releases; start it with --admin-store URL, or use `hotplate releases`",
            )
        try:
            async with opened(self._settings.admin_store) as store, asyncio.timeout(CHANGE_S):
                changed = await change.act(store, ReleaseId(unquote(raw_id)), parameters)
        except TimeoutError:
            log.warning(
                "%s sent POST %s over HTTP; it was given up after %g s, and may have taken place",
                _operator_of(request),
                request.rel_url.raw_path,
                CHANGE_S,
            )
            raise Problem(
                504,
                "change-timed-out",
                f"the change took more than {CHANGE_S:.0f} s and was given up, as when Cosmos DB is being scaled; "
                "GET /v1/releases shows whether it took place; if not, repeat it, or use `hotplate releases`, "
                "which waits",
            ) from None
        log.warning("%s %s, release %s, over HTTP", _operator_of(request), change.done, changed)
        return json_of({"release": changed})

    async def state(self, _request: web.BaseRequest, _raw_id: str, raw_query: str) -> web.Response:
        """`GET /console/state?after=`: the service, and log lines after a Unix time."""
        after = float(STATE.parse(raw_query).after)
        ready = ReadyView.of(self._memory.states.all())
        view = ServiceView(
            status=ready.status,
            workers=ready.workers,
            log=self._context.log.lines(after),
            version=version("hotplate"),
            fast_lane=lane_state(off=self._settings.no_fast_lane),
            host=platform.node(),
            url=self._context.url,
            reads_take_a_key=self._context.guard.reads_take_a_key,
            changes=self._settings.admin_store is not None,
        )
        return json_of(view)

    async def keys(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /console/keys`: the clients in the file of keys; null without a file."""
        if self._settings.keys is None:
            return json_of({"clients": None})
        clients = await self._with_keys(load)
        return json_of({"clients": [client.described() for client in clients]})

    async def create_key(self, request: web.BaseRequest, _raw_id: str, raw_query: str) -> web.Response:
        """`POST /console/keys?name=&scope=`: create a key, except with the scope admin."""
        query = KEY.parse(raw_query)
        created = await self._with_keys(lambda path: create(path, query.name, [query.scope]))
        log.warning("%s made the %s key of %s over HTTP", _operator_of(request), created.kind, created.client)
        return json_of(created)

    async def revoke_key(self, request: web.BaseRequest, _raw_id: str, raw_query: str) -> web.Response:
        """`POST /console/keys/revoke?name=`: revoke all keys of a client."""
        name = KEY.parse(raw_query).name
        await self._with_keys(lambda path: revoke(path, name))
        log.warning("%s revoked the keys of %s over HTTP", _operator_of(request), name)
        return json_of({"revoked": name})

    async def _with_keys(self, act: Callable[[Path], T]) -> T:
        """Act in a thread: this may wait for a lock."""
        path = self._settings.keys
        if path is None:
            raise Problem(403, "no-keys", "this service was started without a file of keys; see --keys")
        try:
            return await asyncio.to_thread(act, path)
        except OSError as error:
            raise KeysUnreadable(f"the keys in {path} are not changed: {error.strerror}") from None

    async def user(self, _request: web.BaseRequest, _raw_id: str, raw_query: str) -> web.Response:
        """`GET /console/user?id=&list=`: a user's list as the service would answer it, and its origin."""
        query = USER_QUERY.parse(raw_query)
        if not query.id:
            raise bad_parameter("id is missing; give that of a user, as id=42")
        return json_of(await self._user_lists.read(query.id, query.list))


async def _read_catalogue(url: str) -> Catalogue | str:
    """Return the catalogue of a store, or why it cannot be read."""
    try:
        async with opened(url) as store, asyncio.timeout(CATALOGUE_S):
            return await store.catalogue()
    except (TimeoutError, StoreError) as error:
        return str(error) or f"the catalogue could not be read in {CATALOGUE_S:.0f} s"


def _client_address(request: web.BaseRequest) -> str:
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    return peer[0] if peer else "?"


def _operator_of(request: web.BaseRequest) -> str:
    caller = request.get(CALLER)
    return "an operator" if caller is None else f"the operator {caller.name}"


def _host_named(request: web.BaseRequest) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:
        return None


def _store_problem(error: StoreError | ServiceMisused) -> Problem:
    """Return the HTTP error for an error of a store or of a file of keys."""
    match error:
        case ReleaseNotFound():
            return Problem(404, "no-such-release", str(error))
        case KeysUnreadable():
            return Problem(503, "keys-unreadable", str(error))
        case ReleaseConflict() | ReleaseCorrupt() | WrittenByNewer() | StoreMisused() | ServiceMisused():
            return Problem(409, "conflict", str(error))
    return Problem(503, "store-failed", str(error), {"Retry-After": "5"})


def json_of(answer: object, status: int = 200) -> web.Response:
    """Return a JSON response."""
    return web.Response(status=status, body=msgspec.json.encode(answer), headers={"Content-Type": "application/json"})
