"""The console of the admin process: a page and its files below `/console`, and the routes that they use.

The files need no key, because they contain no data of the service.
"""

import asyncio
import logging
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from hotplate.serve.access.keys import create, load, revoke
from hotplate.serve.api.app import Route, by_template
from hotplate.serve.api.openapi import ALWAYS_ASKED, PAGE_POLICY, unless_known
from hotplate.serve.api.parameters import Id, NoQuery, QueryParser
from hotplate.serve.errors import KeysUnreadable, ServiceMisused
from hotplate.serve.metrics import ROLES
from hotplate.serve.problems import Problem, bad_parameter, not_ready
from hotplate.serve.processes.worker import ProcessContext
from hotplate.serve.reader import DEFAULT_N, NotReady, TieredReader, open_reader
from hotplate.serve.releases.canary import BothCounts, click_interval
from hotplate.serve.states import TierState, WorkerState, service_status, status_now
from hotplate.stores.encoding import decode

T = TypeVar("T")
JsonObject = dict[str, object]

log = logging.getLogger(__name__)

PAGE = "index.html"
MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = files("hotplate.serve.processes") / "page"
# Time for the stores to open.
OPEN_S = 5.0


class _StateQuery(Struct, frozen=True):
    after: Annotated[str, Meta(pattern=r"^\d{1,10}(\.\d{1,9})?$")] = "0"


class _UserQuery(Struct, frozen=True):
    id: Id = ""


class _KeyQuery(Struct, frozen=True):
    name: str = ""
    scope: Literal["read", "events"] = "read"


STATE = QueryParser(_StateQuery, "GET /console/state")
USER = QueryParser(_UserQuery, "GET /console/user")
KEY = QueryParser(_KeyQuery, "POST /console/keys")
NOTHING = QueryParser(NoQuery, "this route of the console")


class Console:
    """The routes of the console."""

    def __init__(self, context: ProcessContext) -> None:
        self._context, self._settings = context, context.settings
        self._files = {each.name: each for each in FILES.iterdir()}
        self.opened, self._opening = AsyncExitStack(), asyncio.Lock()
        """Closes the reader."""
        self._reader: TieredReader | None = None
        self.routes = by_template(
            Route("/", {"GET": self.front}),
            Route("/console", {"GET": self.file}),
            *(Route(f"/console/{name}", {"GET": self.file}) for name in self._files),
        )
        self.open_paths = frozenset(self.routes)
        """Paths that need no key: a browser sends none when it opens a page."""
        self.routes |= by_template(
            Route("/console/state", {"GET": self.state}),
            Route("/console/service", {"GET": self.service}),
            Route("/console/keys", {"GET": self.keys, "POST": self.create_key}),
            Route("/console/keys/revoke", {"POST": self.revoke_key}),
            Route("/console/user", {"GET": self.user}),
        )

    async def front(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /`: redirect to the page."""
        NOTHING.parse(raw_query)
        return web.Response(status=302, headers={"Location": "/console"})

    async def file(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`GET /console` and `GET /console/{file}`: the page and its files."""
        NOTHING.parse(raw_query)
        file = self._files.get(request.rel_url.raw_path.rpartition("/")[2], FILES / PAGE)
        response = unless_known(request, file.read_bytes(), MEDIA[Path(file.name).suffix], ALWAYS_ASKED)
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    async def state(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/state?after=`: the workers' states, and log lines after a Unix time."""
        after = float(STATE.parse(raw_query).after)
        states = self._context.states.all()
        tiers = dict[str, list[TierState]]()
        for tier in (tier for state in states if state is not None for tier in state.tiers):
            tiers.setdefault(tier.tier, []).append(tier)
        return json_of(
            {
                "status": service_status(states),
                "workers": describe(states),
                "tiers": [_tier(name, reports) for name, reports in tiers.items()],
                "log": self._context.log.lines(after),
            }
        )

    async def service(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/service`: version, address and rights."""
        NOTHING.parse(raw_query)
        return json_of(
            {
                "version": version("hotplate"),
                "host": platform.node(),
                "url": self._context.url,
                "reads_take_a_key": self._context.guard.reads_take_a_key,
                "changes": self._settings.admin_store is not None,
            }
        )

    async def keys(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/keys`: the clients in the file of keys; null without a file."""
        NOTHING.parse(raw_query)
        clients = () if self._settings.keys is None else await self._with_keys(load)
        found = [
            {
                "name": client.name,
                "scopes": client.scopes,
                "created_at": [key.created_at for key in (client.primary, client.secondary) if key is not None],
            }
            for client in clients
        ]
        return json_of({"clients": None if self._settings.keys is None else found})

    async def create_key(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`POST /console/keys?name=&scope=`: create a key, except with the scope admin."""
        query = KEY.parse(raw_query)
        made = await self._with_keys(lambda path: create(path, query.name, [query.scope]))
        log.warning("an operator made the %s key of %s over HTTP", made.kind, made.client)
        return json_of({"client": made.client, "kind": made.kind, "key": made.key})

    async def revoke_key(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`POST /console/keys/revoke?name=`: revoke all keys of a client."""
        name = KEY.parse(raw_query).name
        await self._with_keys(lambda path: revoke(path, name))
        log.warning("an operator revoked the keys of %s over HTTP", name)
        return json_of({"revoked": name})

    async def _with_keys(self, act: Callable[[Path], T]) -> T:
        """Act on the file of keys in a thread, because it may wait for a lock."""
        path = self._settings.keys
        if path is None:
            raise Problem(403, "no-keys", "this service was started without a file of keys; see --keys")
        try:
            return await asyncio.to_thread(act, path)
        except KeysUnreadable as error:
            raise Problem(503, "keys-unreadable", str(error)) from None
        except (ServiceMisused, OSError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            raise Problem(409, "conflict", f"the file of keys is not changed: {text}") from None

    async def user(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/user?id=`: a user's list and its origin."""
        user = USER.parse(raw_query).id
        if not user:
            raise bad_parameter("id is missing; give that of a user, as id=42")
        reader = await self._open()
        started = time.perf_counter()
        found = await reader.personal(user)
        took_ms = round((time.perf_counter() - started) * 1000, 3)
        listed = {"source": found.source, "status": found.status, "release": found.served.id, "tier": found.tier}
        return json_of(listed | {"took_ms": took_ms, "items": decode(reader.cut(found, DEFAULT_N))})

    async def _open(self) -> TieredReader:
        """Return a reader of the workers' stores, opened on first use."""
        async with self._opening:
            if self._reader is None:
                given = self._settings  # without the shared metrics: an operator's lookups are not traffic
                reader = open_reader(given.stores, budget_s=given.budget_s, deny_list=self._context.deny_list)
                self._reader = await self.opened.enter_async_context(reader)
            try:
                await self._reader.wait_until_ready(OPEN_S)
            except NotReady as error:
                raise not_ready(str(error)) from None
        return self._reader


def describe(states: Sequence[WorkerState | None]) -> list[JsonObject]:
    """Return the state of each worker as JSON."""
    return [_worker(number, state) for number, state in enumerate(states)]


def _worker(number: int, state: WorkerState | None) -> JsonObject:
    if state is None:
        return {"worker": number, "status": status_now(None), "tiers": []}
    tiers = [
        {"tier": tier.tier, "release": tier.release, "detail": tier.detail}
        | ({"warnings": tier.warnings} if tier.warnings else {})
        for tier in state.tiers
    ]
    return {
        "worker": number,
        "status": status_now(state),
        "pid": state.pid,
        "started_at": state.started_at,
        "connections": state.connections,
        "release": next((tier.release for tier in state.tiers if tier.release), None),
        "reported_s_ago": round(state.silent_s, 3),
        "tiers": tiers,
    } | ({"warnings": state.warnings} if state.warnings else {})


def _tier(name: str, reports: list[TierState]) -> JsonObject:
    """Combine the workers' reports of a tier."""
    return {
        "tier": name,
        "workers": len(reports),
        "open": sum(one.breaker_open for one in reports),
        "releases": sorted({one.release for one in reports if one.release}),
        "details": sorted({one.detail for one in reports if one.detail}),
        "warnings": sorted({warning for one in reports for warning in one.warnings}),
        "canary": next((_canary(one.canary, one.canary_counts) for one in reports if one.canary_counts), None),
    }


def _canary(release: str | None, counts: BothCounts) -> JsonObject:
    described = (
        one._asdict() | {"lookups": one.lookups, "interval": click_interval(one.shown, one.clicks)} for one in counts
    )
    return {"release": release, **dict(zip(ROLES, described, strict=True))}


def json_of(found: JsonObject, status: int = 200) -> web.Response:
    """Return a JSON response."""
    return web.Response(status=status, body=msgspec.json.encode(found), headers={"Content-Type": "application/json"})
