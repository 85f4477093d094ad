"""Route handlers: from parameters to response bytes."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import orjson
from aiohttp import hdrs, web
from xxhash import xxh3_64_hexdigest

from hotplate.serve.api.parameters import (
    FOLD_IN,
    JSON,
    MSGPACK,
    BatchBody,
    ListFields,
    ListQuery,
    NoQuery,
    QueryParser,
    SegmentQuery,
    UserPage,
    parse_batch,
    parse_fold_in,
    parse_id,
    read_body,
)
from hotplate.serve.encoded_lists import EncodedList, NotReady
from hotplate.serve.errors import ServiceFinding
from hotplate.serve.filters import filter_of
from hotplate.serve.paging import (
    Continued,
    Cursor,
    Page,
    continued,
    continued_many,
    continued_popular,
    page_of,
    parse_cursor,
)
from hotplate.serve.problems import bad_parameter, overloaded
from hotplate.serve.reader import TieredReader
from hotplate.serve.shaping import FILTERED, Selection, Shaper
from hotplate.serve.states import ANSWERING, DEGRADED, DRAINING, NOT_READY, READY, status_of
from hotplate.serve.telemetry.spans import ListOrigin
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.encoding import ITEM, USER, RowKey
from hotplate.stores.errors import StoreMisused, StoreThrottled, StoreUnavailable

if TYPE_CHECKING:
    from hotplate.serve.events import EventWriter

PRIVATE = "private, no-cache"
# For lists that everybody shares; a CDN sees a new release a minute late.
SHARED = "public, max-age=60"
# The same with keys, which a shared cache would not check.
UNSHARED = "private, max-age=60"
# For fallbacks: the requested list may exist later.
NO_STORE = "no-store"

# Items of a batch before other requests run: one or two milliseconds.
PIECE_ITEMS = 1280

PERSONAL = QueryParser(SegmentQuery, "GET /v1/recommendations/{user}")
BATCH = QueryParser(NoQuery, "POST /v1/recommendations")
FOLDED_IN = QueryParser(NoQuery, f"POST {FOLD_IN}")
SIMILAR = QueryParser(ListQuery, "GET /v1/similar/{item}")
POPULAR = QueryParser(SegmentQuery, "GET /v1/popular")

# Headers with the releases of the lists.
RELEASE = "X-Hotplate-Release"
CANARY = "X-Hotplate-Canary"

# The origin of an answered list.
FOUND = web.RequestKey("found", ListOrigin)

RouteHandler = Callable[[web.BaseRequest, str, str], Awaitable[web.Response]]


class Handlers:
    """Each handler takes a request, an encoded id, and a query."""

    def __init__(
        self,
        reader: TieredReader,
        shaper: Shaper,
        *,
        take_a_key: bool = False,
        watched: Sequence[WatchedFiles] = (),
        writer: "EventWriter | None" = None,
    ) -> None:
        """*take_a_key*: whether reads need a key; *watched*: followed files; *writer*: of events."""
        self._reader = reader
        self._shaper = shaper
        self._watched = watched
        self._writer = writer
        self.shared = UNSHARED if take_a_key else SHARED
        self.draining = False

    async def recommend(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/recommendations/{user}?n=&exclude=&where=&fields=&segment=&list=&after=`."""
        user = parse_id(raw_id, "user")
        query = PERSONAL.parse(raw_query)
        if query.after:
            row = RowKey(USER, user)
            found = await continued(self._reader, _cursor(query), row, segment=query.segment, name=query.list)
            subject = b'"user":%b,' % orjson.dumps(user)
            return self._page(request, subject, found, query, source="personal", cache=PRIVATE, user=user)
        encoded = await self._reader.personal(user, query.segment, query.list)
        headers = list_headers(encoded, "personal", PRIVATE)
        body = self._body(request, b'"user":%b,' % orjson.dumps(user), encoded, query, user=user)
        return conditional(request, body, headers)

    async def recommend_many(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/recommendations`."""
        BATCH.parse(raw_query)
        batch = parse_batch(await read_body(request), request.content_type)
        selection = _selection(batch)
        examined = max(batch.n, FILTERED) if selection.only.where else batch.n
        if any(isinstance(user, UserPage) for user in batch.users):
            pages = await self._pages(batch)
            lists = [page.encoded for page in pages]
            elements = page_results(batch.users, pages, selection, self._shaper)
            examined = max(batch.n, FILTERED)
        else:
            lists = await self._reader.personal_many(batch.ids, batch.segment, batch.list)
            elements = results(batch.ids, lists, [selection] * len(lists), self._shaper)
        named = releases(lists) or {RELEASE: self._reader.release()}
        release = named[RELEASE]
        size = max(1, PIECE_ITEMS // examined)
        with _refusing():
            if MSGPACK in request.headers.get(hdrs.ACCEPT, "").lower():
                media = MSGPACK
                body = _packed_head(release, len(lists)) + b"".join(await in_pieces(elements, size, _packed))
            else:
                media = JSON
                joined = b",\n".join(await in_pieces(elements, size))
                body = b'{"release":"%b","results":[%b]}' % (release.encode(), joined)
        return web.Response(
            body=body, headers={"Content-Type": media, "Cache-Control": NO_STORE, "Vary": "Accept", **named}
        )

    async def _pages(self, batch: BatchBody) -> list[Continued]:
        """Read the lists to page through; those of users without `after` from their beginning."""
        with _refusing():
            cursors = [parse_cursor(user.after) if isinstance(user, UserPage) else None for user in batch.users]
        return await continued_many(self._reader, batch.ids, cursors, segment=batch.segment, name=batch.list)

    async def fold_in(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/recommendations/fold-in`."""
        FOLDED_IN.parse(raw_query)
        body = parse_fold_in(await read_body(request))
        basket = [(item, None) if isinstance(item, str) else (item.id, item.weight) for item in body.items]
        only = filter_of(body.exclude, body.where)
        try:
            result = await self._reader.fold_in(
                basket, body.n, only, segment=body.segment, recency=body.recency, name=body.list
            )
        except StoreThrottled as error:
            self._reader.metrics.count_shed("fold_in")
            raise overloaded(str(error)) from None
        subject = b'"known":%d,"unknown":%d,' % (result.known, result.unknown)
        answer = self._body(request, subject, result.found, body, beside=[item for item, _ in basket])
        return web.Response(body=answer, headers=list_headers(result.found, "fold-in", NO_STORE))

    async def similar(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/similar/{item}?n=&exclude=&where=&fields=&list=&after=`."""
        item = parse_id(raw_id, "item")
        query = SIMILAR.parse(raw_query)
        if query.after:
            found = await continued(self._reader, _cursor(query), RowKey(ITEM, item), name=query.list)
            subject = b'"item":%b,' % orjson.dumps(item)
            return self._page(request, subject, found, query, source="similar", cache=self.shared, beside=[item])
        encoded = await self._reader.similar(item, query.list)
        headers = list_headers(encoded, "similar", self.shared)
        body = self._body(request, b'"item":%b,' % orjson.dumps(item), encoded, query, beside=[item])
        return conditional(request, body, headers)

    async def popular(self, request: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /v1/popular?n=&exclude=&where=&fields=&segment=&list=&after=`."""
        query = POPULAR.parse(raw_query)
        if query.after:
            found = continued_popular(self._reader, _cursor(query), segment=query.segment, name=query.list)
            return self._page(request, b"", found, query, source="popular", cache=self.shared)
        encoded = self._reader.popular(query.segment, query.list)
        headers = list_headers(encoded, "popular", self.shared)
        return conditional(request, self._body(request, b"", encoded, query), headers)

    async def live(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /livez`: the process answers."""
        return _status(200, {"status": "alive"})

    async def ready(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /readyz`: lists can be answered."""
        status = self.status
        return _status(200 if status in ANSWERING else 503, {"status": status})

    @property
    def status(self) -> str:
        """READY, DEGRADED, NOT_READY or DRAINING."""
        if self.draining:
            return DRAINING
        status = status_of(self._reader.tiers)
        if status == NOT_READY and self._reader.kept is not None:
            return DEGRADED
        return DEGRADED if status == READY and self.findings else status

    @property
    def findings(self) -> list[ServiceFinding]:
        """Problems of watched files and of event logging."""
        found = [ServiceFinding("file", each.warning) for each in self._watched if each.warning]
        if self._writer is not None and self._writer.warning:
            found.append(ServiceFinding("events", self._writer.warning))
        return found

    def _page(
        self,
        request: web.BaseRequest,
        subject: bytes,
        found: Continued,
        query: ListFields,
        *,
        source: str,
        cache: str,
        user: str = "",
        beside: Collection[str] = (),
    ) -> web.Response:
        """Answer with a page of a list of *source*; other arguments as of `_body`."""
        encoded = found.encoded
        with _refusing():
            page = page_of(self._shaper, encoded, _selection(query), found.cursor, user=user, beside=beside)
        request[FOUND] = found_in(encoded, page.items)
        subject += _paging(found, page)
        headers = list_headers(encoded, source, NO_STORE if found.restarted else cache)
        return conditional(request, list_body(subject, list_head(encoded), page.items), headers)

    def _body(
        self,
        request: web.BaseRequest,
        subject: bytes,
        encoded: EncodedList,
        query: ListFields,
        *,
        user: str = "",
        beside: Collection[str] = (),
    ) -> bytes:
        """Return the body of a list answer, shaped for *user*, or for the items that it is listed *beside*."""
        with _refusing():
            items = self._shaper.shape(encoded, _selection(query), user=user, beside=beside)
        request[FOUND] = found_in(encoded, items)
        return list_body(subject, list_head(encoded), items)


def _selection(query: ListFields) -> Selection:
    return Selection(query.n, filter_of(query.exclude, query.where), query.fields)


def _paging(found: Continued, page: Page) -> bytes:
    """Return the members of an answer that only pages have."""
    following = b"" if page.following is None else b'"next":"%b",' % page.following.encoded().encode()
    return following + b'"restarted":true,' * found.restarted


def _cursor(query: ListQuery | SegmentQuery) -> Cursor | None:
    with _refusing():
        return parse_cursor(query.after)


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise a Problem for what shaping refuses."""
    try:
        yield
    except StoreMisused as error:
        raise bad_parameter(str(error)) from None
    except StoreUnavailable as error:
        raise NotReady(str(error)) from None


def releases(answers: Sequence[EncodedList]) -> dict[str, str]:
    """Return headers with the live release and the canary; without live lists, RELEASE is the canary."""
    canary = next((one.served.id for one in answers if one.served.is_canary), None)
    live = next((one.served.id for one in answers if not one.served.is_canary), canary)
    return {name: release for name, release in ((RELEASE, live), (CANARY, canary)) if release is not None}


def list_headers(encoded: EncodedList, source: str, cache: str) -> dict[str, str]:
    """Return the headers of a list answer; *cache* applies to lists of the requested *source*."""
    return {
        "Content-Type": JSON,
        "Cache-Control": cache if encoded.source == source else NO_STORE,
        **releases((encoded,)),
    }


def list_body(subject: bytes, head: bytes, items: bytes) -> bytes:
    """Return the body of a list answer."""
    return b"".join((b"{", subject, head, items, b"]}"))


def list_head(encoded: EncodedList) -> bytes:
    """Return the part of a list answer between subject and items."""
    release, source, tier = encoded.served.id.encode(), encoded.source.encode(), encoded.tier.encode()
    canary = b'"canary":true,' if encoded.served.is_canary else b""
    name = b'"list":"%b",' % encoded.name.encode() if encoded.name else b""
    segment = b'"segment":%b,' % orjson.dumps(encoded.segment) if encoded.source == "popular" else b""
    parts = release, canary, name, source, segment, tier
    return b'"release":"%b",%b%b"source":"%b",%b"tier":"%b","items":[' % parts


def found_in(encoded: EncodedList, items: bytes) -> ListOrigin:
    """Return the origin of a list, for logs and spans."""
    return ListOrigin(encoded.served.id, encoded.source, encoded.tier, items, encoded.name)


def conditional(request: web.BaseRequest, body: bytes, headers: dict[str, str]) -> web.Response:
    """Answer with *body* and its ETag, or with 304 if the caller has it."""
    headers["ETag"] = etag = f'"{xxh3_64_hexdigest(body)}"'
    known = request.headers.get(hdrs.IF_NONE_MATCH)
    if known is None or not is_known(etag, known):
        return web.Response(body=body, headers=headers)
    del headers["Content-Type"]
    return web.Response(status=304, headers=headers)


def is_known(etag: str, known: str) -> bool:
    """Return whether an `If-None-Match` header matches."""
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))


def results(
    users: Sequence[str], lists: Sequence[EncodedList], selections: Sequence[Selection], shaper: Shaper
) -> Iterator[bytes]:
    """Yield the result of each user."""
    heads = dict[tuple[str, int], bytes]()
    """By status and release."""

    popular = dict[tuple[str, int, Selection], bytes]()
    """Shaped popular lists, which users without a list share unless items are hidden from them."""

    for user, encoded, selection in zip(users, lists, selections, strict=True):
        origin = encoded.status, id(encoded.served)
        head = heads.get(origin)
        if head is None:
            head = heads[origin] = b'"status":"%b",%b' % (encoded.status.encode(), list_head(encoded))
        if encoded.status == "ok" or shaper.consumed_by(user) is not None:
            items = shaper.shape(encoded, selection, user=user)
        else:
            shared = popular.get((*origin, selection))
            if shared is None:
                shared = popular[*origin, selection] = shaper.shape(encoded, selection)
            items = shared
        yield b'{"user":%b,%b%b]}' % (orjson.dumps(user), head, items)


def page_results(
    users: Sequence[str | UserPage], lists: Sequence[Continued], selection: Selection, shaper: Shaper
) -> Iterator[bytes]:
    """Yield the result of each user: a page, or for an id alone the list without `next`."""
    for user, found in zip(users, lists, strict=True):
        identifier = user if isinstance(user, str) else user.id
        encoded = found.encoded
        if isinstance(user, str):
            paging = b""
            items = shaper.shape(encoded, selection, user=identifier)
        else:
            page = page_of(shaper, encoded, selection, found.cursor, user=identifier)
            paging = _paging(found, page)
            items = page.items
        head = b'"status":"%b",%b' % (encoded.status.encode(), list_head(encoded))
        yield b'{"user":%b,%b%b%b]}' % (orjson.dumps(identifier), paging, head, items)


async def in_pieces(
    elements: Iterator[bytes], size: int, join: Callable[[list[bytes]], bytes] = b",\n".join
) -> list[bytes]:
    """Join *elements* in pieces of *size*; other requests run between them."""
    pieces = list[bytes]()
    while piece := list(islice(elements, size)):
        pieces.append(join(piece))
        await asyncio.sleep(0)
    return pieces


def _packed_head(release: str, count: int) -> bytes:
    encode = msgspec.msgpack.encode
    # A map of two; the second is an array with a 32-bit length.
    return b"\x82" + encode("release") + encode(release) + encode("results") + b"\xdd" + count.to_bytes(4, "big")


def _packed(results: list[bytes]) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, orjson.loads(b"[" + b",".join(results) + b"]")))


def _status(status: int, fields: dict[str, object]) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(status=status, body=orjson.dumps(fields), headers=headers)
