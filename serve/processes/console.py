"""The console: its page and files, and the routes that these read; all of it in the admin process.

Below `/console` are the page's files, which need no key because they hold no data of this service, and the routes:

stream      the figures of each second and the lines of the log, as server-sent events
hour        the curves of all pods
service     version, settings and limits, without secrets
keys        the clients and the last use of their keys, never a key
user, item  a list as a worker would answer it
diff        how users' lists would change if a release went live
"""

import asyncio
import logging
import platform
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import msgspec
from aiohttp import web
from msgspec import Struct

from hotplate.serve.access.auth import Guard
from hotplate.serve.access.keys import load
from hotplate.serve.api.app import Route, by_template
from hotplate.serve.api.openapi import ALWAYS_ASKED, PAGE_POLICY, unless_known
from hotplate.serve.api.parameters import Count, Id, NoQuery, QueryParser, Segment
from hotplate.serve.errors import KeysUnreadable
from hotplate.serve.events.writer import WrittenEvent
from hotplate.serve.metrics import IMPRESSION
from hotplate.serve.problems import Problem, bad_parameter, not_ready
from hotplate.serve.processes.figures import HISTORY_S, LONG_HISTORY_S, WINDOW_S, JsonObject, Sampler
from hotplate.serve.processes.logs import without_secrets
from hotplate.serve.processes.prometheus import NOT_NAMED, Prometheus
from hotplate.serve.processes.worker import ProcessContext, background
from hotplate.serve.reader import DEFAULT_N, EncodedList, NotReady, TieredReader, open_reader
from hotplate.serve.settings import Limits, ServiceSettings
from hotplate.serve.tiers import tier_names
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.encoding import decode
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.event_log import SUFFIX, SegmentReader
from hotplate.stores.keys import OVERALL
from hotplate.stores.urls import redacted, scheme_of
from hotplate.stores.verification import diff, load_manifest

log = logging.getLogger(__name__)

PAGE = "index.html"
MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = files("hotplate.serve.processes") / "page"
# How many pages are sent events at once, and how often.
STREAMS = 8
EVERY_S = 1.0
# How long two releases are compared before what was compared until then is the answer.
DIFF_S = 3.0
# How long the first lookup waits for the stores that it reads.
OPEN_S = 5.0
# Of how many releases what their manifests say is kept.
DESCRIBED = 64
# How many events of a user are shown, and how long is looked for them.
EVENTS = 20
READ_S = 1.0

_decode_event = msgspec.json.Decoder(WrittenEvent).decode


class LookupQuery(Struct, frozen=True):
    """The query of `GET /console/user` and `GET /console/item`."""

    id: Id = ""
    n: Count = DEFAULT_N
    segment: Segment = OVERALL


class DiffQuery(Struct, frozen=True):
    """The query of `GET /console/diff`."""

    release: str = ""
    """The release that would take the live one's place."""


class ReleaseQuery(Struct, frozen=True):
    """The query of `GET /console/release`."""

    tier: str = ""
    release: str = ""


RELEASE = QueryParser(ReleaseQuery, "GET /console/release")
USER = QueryParser(LookupQuery, "GET /console/user")
ITEM = QueryParser(LookupQuery, "GET /console/item")
DIFF = QueryParser(DiffQuery, "GET /console/diff")
NOTHING = QueryParser(NoQuery, "this route of the console")


class Console:
    """Answers what the console's page requests; lives as long as the admin process."""

    def __init__(self, context: ProcessContext, guard: Guard | None) -> None:
        self._context, self._settings = context, context.settings
        self._guard = guard
        self._sampler = Sampler(context.metrics, context.states.all, tier_names(self._settings.stores))
        url = self._settings.prometheus
        self._prometheus = None if url is None else Prometheus(url)
        self._files = {each.name: each for each in FILES.iterdir()}
        self._figures = b""
        """The event of this second, once somebody wants it."""
        self._ticked, self._stopping = asyncio.Event(), False
        self._streams = 0
        self._opened, self._opening = AsyncExitStack(), asyncio.Lock()
        self._reader: TieredReader | None = None
        self._comparing = asyncio.Lock()
        self._described = dict[ReleaseQuery, JsonObject]()
        """The latest releases that pages asked for: what a manifest says does not change."""
        self.routes = by_template(
            Route("/console", {"GET": self.file}),
            *(Route(f"/console/{name}", {"GET": self.file}) for name in self._files),
        )
        self.routes |= by_template(Route("/", {"GET": self.front}))
        self.open_paths = frozenset(self.routes)
        """What is answered without a key: a browser sends none when it opens a page."""
        self.routes |= by_template(
            Route("/console/stream", {"GET": self.stream}),
            Route("/console/hour", {"GET": self.hour}),
            Route("/console/service", {"GET": self.service}),
            Route("/console/keys", {"GET": self.keys}),
            Route("/console/user", {"GET": self.user}),
            Route("/console/item", {"GET": self.item}),
            Route("/console/diff", {"GET": self.diff}),
            Route("/console/release", {"GET": self.release}),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sample the counters until the block ends; then what lookups read is closed."""
        async with self._opened, background(self._sample()):
            yield

    def stop(self) -> None:
        """End the streams."""
        self._stopping = True
        self._ticked.set()

    async def front(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /`: where the page is."""
        NOTHING.parse(raw_query)
        return web.Response(status=302, headers={"Location": "/console"})

    async def file(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`GET /console`, the page, and `GET /console/{file}`, what it consists of."""
        NOTHING.parse(raw_query)
        file = self._files.get(request.rel_url.raw_path.rpartition("/")[2], FILES / PAGE)
        response = unless_known(request, file.read_bytes(), MEDIA[Path(file.name).suffix], ALWAYS_ASKED)
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    async def stream(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/stream`: the figures each second, and the lines of the log."""
        NOTHING.parse(raw_query)
        if self._streams >= STREAMS:
            detail = f"{STREAMS} pages are open, and get the figures as they come; close one, and reload this one"
            raise Problem(503, "too-many-streams", detail, {"Retry-After": "5"})
        return web.Response(body=self._events(), headers={"Content-Type": "text/event-stream"})

    async def _events(self) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            counts = [0] * self._context.log.processes
            short, long = self._sampler.before
            yield _event(
                "history",
                {
                    "short": {"seconds": HISTORY_S, "every_s": EVERY_S, "points": short},
                    "long": {"seconds": LONG_HISTORY_S, "every_s": WINDOW_S, "points": long},
                },
            )
            while not self._stopping:
                lines, counts = self._context.log.since(counts)
                if lines:
                    yield _event("log", lines)
                self._figures = self._figures or _event("figures", self._sampler.figures())
                yield self._figures
                await self._ticked.wait()
        finally:
            self._streams -= 1

    async def _sample(self) -> None:
        while not self._stopping:
            try:
                self._sampler.sample()
                self._figures = b""
                if self._guard is not None:
                    self._guard.uses.record()
            except Exception:  # a defect in the figures must not end those of the seconds after it
                log.exception("the figures of the console could not be made")
            self._ticked.set()
            self._ticked = asyncio.Event()
            await asyncio.sleep(EVERY_S)

    async def hour(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/hour`: the curves of all pods, if a Prometheus is named and answers, and whose they are."""
        NOTHING.parse(raw_query)
        return json_of(NOT_NAMED if self._prometheus is None else await self._prometheus.hour())

    async def service(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/service`: what runs here, and how it was started."""
        NOTHING.parse(raw_query)
        settings, guard = self._settings, self._context.guard
        return json_of(
            {
                "version": version("hotplate"),
                "python": platform.python_version(),
                "system": f"{platform.system()} {platform.release()} {platform.machine()}",
                "host": platform.node(),
                "started_at": self._context.started_at,
                "url": self._context.url,
                "reads_take_a_key": guard.reads_take_a_key,
                "has_keys": settings.keys is not None,
                "changes": settings.admin_store is not None,
                "diff_is_charged": scheme_of(settings.admin_store or "").startswith("cosmos"),
                "settings": shown_settings(settings),
                "limits": {each.name: _plain(getattr(settings.limits, each.name)) for each in fields(Limits)},
            }
        )

    async def keys(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/keys`: the clients of the file of keys."""
        NOTHING.parse(raw_query)
        path = self._settings.keys
        if path is None:
            return json_of({"clients": None})
        try:
            clients = await asyncio.to_thread(load, path)
        except KeysUnreadable as error:
            raise Problem(503, "keys-unreadable", str(error)) from None
        uses = self._context.guard.uses
        found = [
            {
                "name": client.name,
                "scopes": client.scopes,
                "rate": client.rate,
                "primary_created_at": client.primary and client.primary.created_at,
                "secondary_created_at": client.secondary and client.secondary.created_at,
                "last_used_at": uses.of(client.name),
            }
            for client in clients
        ]
        return json_of({"clients": found, "since": self._context.started_at})

    async def user(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/user?id=&n=&segment=`: a user's list, and the user's latest events."""
        query = _with_id(USER, raw_query)
        reader = await self._open()
        started = time.perf_counter()
        found = await reader.personal(query.id, query.segment)
        took_s = time.perf_counter() - started
        folder = self._settings.events
        history = None if folder is None else await asyncio.to_thread(history_of, query.id, folder)
        return json_of({"user": query.id, "history": history, **_list(reader, found, query.n, took_s)})

    async def item(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/item?id=&n=`: the items that are like one."""
        query = _with_id(ITEM, raw_query)
        reader = await self._open()
        started = time.perf_counter()
        found = await reader.similar(query.id)
        return json_of({"item": query.id, **_list(reader, found, query.n, time.perf_counter() - started)})

    async def _open(self) -> TieredReader:
        """Return a reader of the same stores as the workers', opened when it is used for the first time."""
        async with self._opening:
            if self._reader is None:
                settings = self._settings
                reader = open_reader(
                    settings.stores, budget_s=settings.budget_s, deny_list=self._context.deny_list
                )  # its counters are its own: what an operator tries is not traffic
                self._reader = await self._opened.enter_async_context(reader)
            try:
                await self._reader.wait_until_ready(OPEN_S)
            except NotReady as error:
                raise not_ready(str(error)) from None
        return self._reader

    async def release(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/release?tier=&release=`: engine, rows, quality and gates of a release, by its manifest."""
        query = RELEASE.parse(raw_query)
        url = dict(zip(tier_names(self._settings.stores), self._settings.stores, strict=True)).get(query.tier)
        if url is None:
            raise bad_parameter(f"tier is {query.tier!r}, which this service does not have")
        if query not in self._described:
            self._described[query] = await describe(url, ReleaseId(query.release))
            for oldest in list(self._described)[:-DESCRIBED]:
                del self._described[oldest]
        return json_of(self._described[query])

    async def diff(self, _: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /console/diff?release=`: compare a release of the admin store with the one that is live there."""
        query = DIFF.parse(raw_query)
        if self._settings.admin_store is None:
            raise Problem(403, "no-admin-store", "no store is named whose releases may be changed; see --admin-store")
        if self._comparing.locked():
            raise Problem(409, "busy", "two releases are being compared for somebody else; try again in a few seconds")
        async with self._comparing:
            return json_of(await compare(self._settings.admin_store, ReleaseId(query.release)))


async def describe(url: str, release: ReleaseId) -> JsonObject:
    """Read the manifest of a release, and say what an operator wants to know of it and of the run that made it."""
    store = connect(url)
    try:
        async with asyncio.timeout(OPEN_S):
            manifest = await load_manifest(store, (await store.catalogue()).find(release).ref)
    except TimeoutError:
        raise StoreUnavailable(f"the manifest of {release} could not be read in {OPEN_S:.0f} s") from None
    finally:
        await store.close()
    about = manifest.about
    metrics, gates = about.get("metrics") or {}, about.get("gates") or {}
    return {
        "engine": about.get("engine"),
        "trained_at": about.get("trained_at"),
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "k": metrics.get("k"),
        "ndcg": metrics.get("model", {}).get("ndcg"),
        "gates": gates.get("verdicts", ()),
        "forced": gates.get("forced", False),
    }


async def compare(url: str, release: ReleaseId, *, limit_s: float = DIFF_S) -> JsonObject:
    """Compare a release with the live one of its store, for *limit_s* at most."""
    store, started, read = connect(url), time.monotonic(), [0, 0]

    def on_progress(done: int, total: int) -> None:
        read[:] = done, total

    try:
        catalogue = await store.catalogue()
        live, other = catalogue.live_ref, catalogue.find(release).ref
        if live is None or live == other:
            return {"live": live and live.id, "release": release, "difference": None}
        found = await diff(
            store, live, other, on_progress=on_progress, stop=lambda: time.monotonic() > started + limit_s
        )
    finally:
        await store.close()
    return {
        "live": live.id,
        "release": release,
        "took_s": round(time.monotonic() - started, 2),
        "rows_read": read[0],
        "rows": read[1],
        "difference": {
            "complete": found.complete,
            "compared": found.compared,
            "unchanged": found.unchanged,
            "overlap_at_10": found.overlap,
            "only_live": found.only_first,
            "only_release": found.only_second,
            "popular_share": [{str(n): share for n, share in shares.items()} for shares in found.popular_share],
        },
    }


def shown_settings(settings: ServiceSettings) -> JsonObject:
    """Return the settings by name, free of secrets; the limits have a place of their own."""
    return {each.name: _plain(getattr(settings, each.name)) for each in fields(settings) if each.name != "limits"}


def _plain(value: object) -> object:
    """Return a setting as it may be shown: of a URL without its secrets, of a compound only that it is set."""
    match value:
        case None | bool() | int() | float():
            return value
        case str() | Path():
            return without_secrets(redacted(str(value)) if "://" in str(value) else str(value))
        case tuple():
            return [_plain(each) for each in value]
    return "given"


def _with_id(parser: QueryParser[LookupQuery], raw_query: str) -> LookupQuery:
    query = parser.parse(raw_query)
    if not query.id:
        raise bad_parameter("id is missing; give that of a user or an item, as id=42")
    return query


def _list(reader: TieredReader, found: EncodedList, n: int, took_s: float) -> JsonObject:
    """Describe a list that was read, and where it came from."""
    return {
        "source": found.source,
        "status": found.status,
        "release": found.served.id,
        "tier": found.tier,
        "took_ms": round(took_s * 1000, 3),
        "items": decode(reader.cut(found, n)),
    }


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


def json_of(found: JsonObject, status: int = 200) -> web.Response:
    """Return the answer to a request of an operator."""
    return web.Response(status=status, body=msgspec.json.encode(found), headers={"Content-Type": "application/json"})


class UserEvent(Struct, frozen=True):
    """One event of a user that is more than being shown a list."""

    type: str
    items: tuple[str, ...]
    at: float
    """As Unix time."""


class UserHistory(Struct, frozen=True):
    """The latest events of one user, the newest first."""

    events: list[UserEvent]
    complete: bool
    """Whether all events in the folder were looked at, or as many were found as are shown."""


def history_of(user: str, folder: Path) -> UserHistory:
    """Read the latest events of a user in a folder of segments; raises OSError.

    There is no index of events by user, so the segments are read, the newest first, for READ_S: what is found in that
    is shown, and how far back it goes is said.
    """
    deadline, events, named = time.monotonic() + READ_S, list[UserEvent](), msgspec.json.encode(user)
    # A segment that is being written has a dot before its name; what is torn at its end is left out.
    paths = sorted(
        (path for path in folder.iterdir() if path.name.endswith(SUFFIX)),
        key=lambda path: path.name.lstrip("."),
        reverse=True,
    )
    for path in paths:
        if time.monotonic() > deadline:
            return UserHistory(events[:EVENTS], complete=False)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # it was closed, or shipped, in between
        events += _events_of(user, named, data)
        if len(events) >= EVENTS:
            break
    return UserHistory(sorted(events, key=lambda event: -event.at)[:EVENTS], complete=True)


def _events_of(user: str, named: bytes, data: bytes) -> list[UserEvent]:
    """Return the events of a user in one segment, impressions left out."""
    written = (_decode_event(event) for event in SegmentReader(data) if named in event)
    own = (each for each in written if each.user == user and each.type != IMPRESSION)
    return [UserEvent(each.type, each.items, each.time) for each in own]
