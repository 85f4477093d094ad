"""Route handlers: from parameters to response bytes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import orjson
from aiohttp import hdrs, web
from xxhash import xxh3_64_hexdigest

from hotplate.serve.api.parameters import (
    ALL_FIELDS,
    FOLD_IN,
    JSON,
    MSGPACK,
    ListQuery,
    NoQuery,
    QueryParser,
    SegmentQuery,
    parse_batch,
    parse_fold_in,
    parse_id,
    read_body,
)
from hotplate.serve.errors import ServiceFinding
from hotplate.serve.filters import ItemFilter, filter_of
from hotplate.serve.problems import bad_parameter, overloaded
from hotplate.serve.reader import FILTERED, EncodedList, NotReady, TieredReader
from hotplate.serve.states import ANSWERING, DEGRADED, DRAINING, NOT_READY, READY, status_of
from hotplate.serve.telemetry.spans import ListOrigin
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.encoding import without_titles
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

# The list of a request, and its answered items.
FOUND = web.RequestKey("found", tuple[EncodedList, bytes])

RouteHandler = Callable[[web.BaseRequest, str, str], Awaitable[web.Response]]


class Handlers:
    """Each handler takes a request, an encoded id, and a query."""

    def __init__(
        self,
        reader: TieredReader,
        *,
        take_a_key: bool = False,
        watched: Sequence[WatchedFiles] = (),
        writer: "EventWriter | None" = None,
    ) -> None:
        """*take_a_key*: whether reads need a key; *watched*: followed files; *writer*: of events."""
        self._reader, self._watched, self._writer = reader, watched, writer
        self.shared = UNSHARED if take_a_key else SHARED
        self.draining = False

    async def recommend(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/recommendations/{user}?n=&exclude=&where=&fields=&segment=&list=`."""
        user, query = parse_id(raw_id, "user"), PERSONAL.parse(raw_query)
        encoded = await self._reader.personal(user, query.segment, query.list)
        headers = list_headers(encoded, "personal", PRIVATE)
        return self._answer(
            request, b'"user":%b,' % orjson.dumps(user), encoded, query, headers, only=_filter_of(query)
        )

    async def recommend_many(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/recommendations`."""
        BATCH.parse(raw_query)
        batch = parse_batch(await read_body(request), request.content_type)
        answers = await self._reader.personal_many(batch.users, batch.segment, batch.list)
        named = releases(answers) or {RELEASE: self._reader.release()}
        only, release = _filter_of(batch), named[RELEASE]
        size = max(1, PIECE_ITEMS // (max(batch.n, FILTERED) if only.where else batch.n))
        elements = results(
            ((user, encoded, batch.n) for user, encoded in zip(batch.users, answers, strict=True)),
            lambda encoded, n: self._items(encoded, n, only, batch.fields),
        )
        media = MSGPACK if MSGPACK in request.headers.get(hdrs.ACCEPT, "").lower() else JSON
        if media == MSGPACK:
            body = _packed_head(release, len(answers)) + b"".join(await in_pieces(elements, size, _packed))
        else:
            body = b'{"release":"%b","results":[%b]}' % (release.encode(), b",\n".join(await in_pieces(elements, size)))
        return web.Response(
            body=body, headers={"Content-Type": media, "Cache-Control": NO_STORE, "Vary": "Accept", **named}
        )

    async def fold_in(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/recommendations/fold-in`."""
        FOLDED_IN.parse(raw_query)
        body = parse_fold_in(await read_body(request))
        items = [(item, None) if isinstance(item, str) else (item.id, item.weight) for item in body.items]
        try:
            only, options = _filter_of(body), (body.segment, body.recency)
            result = await self._reader.fold_in(items, body.n, only, *options, name=body.list)
        except StoreThrottled as error:
            self._reader.metrics.count_shed("fold_in")
            raise overloaded(str(error)) from None
        subject = b'"known":%d,"unknown":%d,' % (result.known, result.unknown)
        found = self._reader.beside([item for item, _ in items], result.found, only)
        answer = self._list(request, subject, found, body, only)
        return web.Response(body=answer, headers=list_headers(found, "fold-in", NO_STORE))

    async def similar(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/similar/{item}?n=&exclude=&where=&fields=&list=`."""
        item, query = parse_id(raw_id, "item"), SIMILAR.parse(raw_query)
        only = _filter_of(query)
        encoded = self._reader.beside([item], await self._reader.similar(item, query.list), only)
        headers = list_headers(encoded, "similar", self.shared)
        return self._answer(request, b'"item":%b,' % orjson.dumps(item), encoded, query, headers, only=only)

    async def popular(self, request: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /v1/popular?n=&exclude=&where=&fields=&segment=&list=`."""
        query = POPULAR.parse(raw_query)
        encoded = self._reader.popular(query.segment, query.list)
        headers = list_headers(encoded, "popular", self.shared)
        return self._answer(request, b"", encoded, query, headers, only=_filter_of(query))

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

    def _items(self, encoded: EncodedList, n: int, only: ItemFilter, fields: str) -> bytes:
        shorten = None if fields == ALL_FIELDS else partial(without_titles, scores=fields == "id,score")
        try:
            return self._reader.cut(encoded, n, only, shorten)
        except StoreMisused as error:
            raise bad_parameter(str(error)) from None
        except StoreUnavailable as error:
            raise NotReady(str(error)) from None

    def _answer(
        self,
        request: web.BaseRequest,
        subject: bytes,
        encoded: EncodedList,
        query: ListQuery,
        headers: dict[str, str],
        *,
        only: ItemFilter,
    ) -> web.Response:
        return conditional(request, self._list(request, subject, encoded, query, only), headers)

    def _list(
        self, request: web.BaseRequest, subject: bytes, encoded: EncodedList, query: ListQuery, only: ItemFilter
    ) -> bytes:
        items = self._items(encoded, query.n, only, query.fields)
        request[FOUND] = encoded, items
        return list_body(subject, list_head(encoded), items)


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
    wanted: Iterable[tuple[str, EncodedList, int]], cut: Callable[[EncodedList, int], bytes]
) -> Iterator[bytes]:
    """Yield the result of each user; *cut* cuts a list to a number of items."""
    rests = dict[tuple[str, int, int, int], bytes]()
    """Head and popular items by status, release, number of items, and hidden ones."""
    for user, encoded, n in wanted:
        kind, is_own = (encoded.status, id(encoded.served), n, id(encoded.hidden)), encoded.status == "ok"
        rest = rests.get(kind)
        items = cut(encoded, n) if is_own or rest is None else b""
        if rest is None:
            head = b'"status":"%b",%b' % (encoded.status.encode(), list_head(encoded))
            rests[kind] = rest = head if is_own else head + items
        yield b'{"user":%b,%b%b]}' % (orjson.dumps(user), rest, items if is_own else b"")


async def in_pieces(
    elements: Iterator[bytes], size: int, join: Callable[[list[bytes]], bytes] = b",\n".join
) -> list[bytes]:
    """Join *elements* in pieces of *size*; other requests run between them."""
    pieces = list[bytes]()
    while piece := list(islice(elements, size)):
        pieces.append(join(piece))
        await asyncio.sleep(0)
    return pieces


def _filter_of(query: ListQuery) -> ItemFilter:
    return filter_of(query.exclude, query.where)


def _packed_head(release: str, count: int) -> bytes:
    encode = msgspec.msgpack.encode
    # A map of two; the second is an array with a 32-bit length.
    return b"\x82" + encode("release") + encode(release) + encode("results") + b"\xdd" + count.to_bytes(4, "big")


def _packed(results: list[bytes]) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, orjson.loads(b"[" + b",".join(results) + b"]")))


def _status(status: int, fields: dict[str, object]) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(status=status, body=orjson.dumps(fields), headers=headers)
