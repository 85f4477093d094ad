"""The console: a page for operators, with its data, the service's keys, and users' lists."""

import asyncio
import logging
import platform
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from aiohttp import web
from msgspec import Meta, Struct

from hotplate.serve.access.keys import ADMIN, create, load, revoke
from hotplate.serve.api.openapi import page_response
from hotplate.serve.api.parameters import QueryParser
from hotplate.serve.api.router import Route, by_template
from hotplate.serve.connections.fast_lane import lane_state
from hotplate.serve.errors import KeysUnreadable
from hotplate.serve.lists.options import Id, ListName, Selection
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.requests import ListRequest, answer_list
from hotplate.serve.lists.shaping import Shaper
from hotplate.serve.problems import Problem, bad_parameter
from hotplate.serve.processes.context import ProcessContext
from hotplate.serve.processes.operator_view import ReadyView, ServiceView, UserView, json_of, operator_of
from hotplate.serve.tiers.tier import tiers_of
from hotplate.stores.encoding import USER, decode

T = TypeVar("T")

log = logging.getLogger(__name__)

# Timeout of opening the stores.
OPEN_S = 5.0
PAGE = "index.html"
MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = files("hotplate.serve.processes") / "page"


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


class Console:
    """The routes of the console."""

    def __init__(self, context: ProcessContext, url: str) -> None:
        """*url* is the address of the workers."""
        self._context = context
        self._url = url
        self._settings = context.settings
        self._files = {file.name: file for file in FILES.iterdir()}
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._reader: TieredReader | None = None

    async def aclose(self) -> None:
        """Close the stores that users' lists were read from."""
        await self._opened.aclose()

    def routes(self) -> dict[str, Route]:
        """Return the routes by path: those of the page and its files, and those that the page calls.

        The files take no key, because a browser sends none when it opens a page. The others take one of an operator.
        """
        page_paths = ("/", "/console", *(f"/console/{name}" for name in self._files))
        pages = (Route(path, {"GET": self.file}, scope=None) for path in page_paths)

        return by_template(
            *pages,
            Route("/console/state", {"GET": self.state}, scope=ADMIN),
            Route("/console/keys", {"GET": self.keys, "POST": self.create_key}, scope=ADMIN),
            Route("/console/keys/revoke", {"POST": self.revoke_key}, scope=ADMIN),
            Route("/console/user", {"GET": self.user}, scope=ADMIN),
        )

    async def file(self, request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /`, `/console` and `/console/{file}`: the page and its files."""
        file = self._files.get(request.rel_url.raw_path.rpartition("/")[2], FILES / PAGE)
        return page_response(request, file.read_bytes(), MEDIA[Path(file.name).suffix])

    async def state(self, _request: web.BaseRequest, _raw_id: str, raw_query: str) -> web.Response:
        """`GET /console/state?after=`: the state of the service and its workers, and log lines after a Unix time."""
        after = float(STATE.parse(raw_query).after)
        ready = ReadyView.of(self._context.states.all(), self._context.comparisons.all())
        view = ServiceView(
            status=ready.status,
            workers=ready.workers,
            log=self._context.log.lines(after),
            version=version("hotplate"),
            fast_lane=lane_state(off=self._settings.no_fast_lane),
            host=platform.node(),
            url=self._url,
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
        log.warning("%s made the %s key of %s over HTTP", operator_of(request), created.kind, created.client)
        return json_of(created)

    async def revoke_key(self, request: web.BaseRequest, _raw_id: str, raw_query: str) -> web.Response:
        """`POST /console/keys/revoke?name=`: revoke all keys of a client."""
        name = KEY.parse(raw_query).name
        await self._with_keys(lambda path: revoke(path, name))
        log.warning("%s revoked the keys of %s over HTTP", operator_of(request), name)
        return json_of({"revoked": name})

    async def _with_keys(self, act: Callable[[Path], T]) -> T:
        """Act in a thread: this may wait for a lock."""
        path = self._settings.keys
        if path is None:
            raise Problem(403, "no-keys", "this service was started without a file of keys; see --keys")
        try:
            return await asyncio.to_thread(act, path)
        except OSError as error:
            raise KeysUnreadable(f"the keys in {path} are not changed: {error.strerror or error}") from None

    async def user(self, _request: web.BaseRequest, _raw_id: str, raw_query: str) -> web.Response:
        """`GET /console/user?id=&list=`: a user's list as the service would answer it, and its origin."""
        query = USER_QUERY.parse(raw_query)
        if not query.id:
            raise bad_parameter("id is missing; give that of a user, as id=42")
        return json_of(await self._read_list(query.id, query.list))

    async def _read_list(self, user: str, list_name: str) -> UserView:
        """Return a user's list as the service would answer it, its origin, and the time taken.

        The list is read by this process, and not counted as traffic. *list_name* is empty for the default list. Raises
        UnknownList, and NotReady without a release.
        """
        reader = await self._ready_reader()
        shaper = Shaper(reader.deny_list, self._context.consumed, is_erased=reader.is_erased)
        request = ListRequest(USER, user, selection=Selection(list=list_name))

        started = time.perf_counter()
        answer = await answer_list(reader, shaper, request)
        took_ms = round((time.perf_counter() - started) * 1000, 3)

        encoded = answer.encoded
        return UserView(
            source=encoded.source,
            status=encoded.status,
            release=encoded.release.id,
            tier=encoded.tier,
            took_ms=took_ms,
            items=decode(answer.items),
            list=encoded.name,
        )

    async def _ready_reader(self) -> TieredReader:
        """Open the stores at the first call, and return their reader; raises NotReady without a release."""
        async with self._opening:
            if self._reader is None:
                settings = self._context.settings
                reader = TieredReader(
                    tiers_of(settings.stores),
                    budget_s=settings.budget_s,
                    deny_list=self._context.deny_list,
                    comparisons=self._context.comparisons,
                )
                self._reader = await self._opened.enter_async_context(reader)
            await self._reader.wait_until_ready(OPEN_S)
        return self._reader
