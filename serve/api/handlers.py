"""Route handlers: from parameters to response bytes."""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec
import orjson
from aiohttp import hdrs, web
from xxhash import xxh3_64_hexdigest

from hotplate.serve.api.parameters import (
    ALL_FIELDS,
    FOLD_IN,
    JSON,
    MSGPACK,
    BatchBody,
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
from hotplate.serve.problems import Problem, overloaded
from hotplate.serve.reader import EncodedList, FoldInUnavailable, TieredReader
from hotplate.serve.states import ANSWERING, DEGRADED, DRAINING, NOT_READY, READY, status_of
from hotplate.serve.telemetry.spans import ListOrigin
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.encoding import encode_id, without_titles
from hotplate.stores.errors import StoreThrottled

if TYPE_CHECKING:
    from hotplate.serve.events.writer import EventWriter

PRIVATE = "private, no-cache"
# For lists that are the same for everybody; a CDN sees a new release a minute late.
SHARED = "public, max-age=60"
# The same with keys, which a shared cache would not check.
UNSHARED = "private, max-age=60"
# For fallbacks: the requested list may exist later.
NO_STORE = "no-store"

# Items of a batch before other requests run: one or two milliseconds.
PIECE_ITEMS = 1280
# Sizes above which batches are streamed, batches compressed, and pieces compressed in a thread.
STREAM_BYTES = 256 << 10
COMPRESS_BYTES = 1 << 10
THREAD_BYTES = 16 << 10
# Level 6 takes five times as long and saves a tenth.
GZIP_LEVEL = 1
_takes_gzip = re.compile(r"(?i)(?:^|,)\s*(?:gzip|\*)\s*(?:,|$|;(?!\s*q=0(?:\.0*)?\s*(?:,|$)))").search

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
    """Handlers of one worker; each takes a request, an encoded id, and a query."""

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
        """`GET /v1/recommendations/{user}?n=&exclude=&fields=&segment=`."""
        user, query = parse_id(raw_id, "user"), PERSONAL.parse(raw_query)
        encoded = await self._reader.personal(user, query.segment)
        headers = list_headers(encoded, "personal", PRIVATE)
        return self._answer(request, b'"user":%b,' % orjson.dumps(user), encoded, query, headers)

    async def recommend_many(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/recommendations` with `{"users": […], "n": 10, "exclude": […], "fields": "id", "segment": "…"}`."""
        BATCH.parse(raw_query)
        batch = parse_batch(await read_body(request))
        answers = await self._reader.personal_many(batch.users, batch.segment)
        named = releases(answers) or {RELEASE: self._reader.release()}
        results = self._results(batch, answers)
        media = MSGPACK if MSGPACK in request.headers.get(hdrs.ACCEPT, "").lower() else JSON
        encode = _msgpack_batch if media == MSGPACK else _json_batch
        headers = {"Content-Type": media, "Cache-Control": NO_STORE, "Vary": "Accept, Accept-Encoding", **named}
        return await in_pieces(request, encode(named[RELEASE], len(answers), results), headers, answers)

    async def fold_in(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/recommendations/fold-in` with `{"items": ["a", {"id": "b", "weight": 2}], "n": 10, …}`."""
        FOLDED_IN.parse(raw_query)
        body = parse_fold_in(await read_body(request))
        items = [(item, None) if isinstance(item, str) else (item.id, item.weight) for item in body.items]
        try:
            result = await self._reader.fold_in(items, body.n, _excluded(body.exclude), body.segment)
        except FoldInUnavailable as error:
            raise Problem(404, "no-fold-in", str(error)) from None
        except StoreThrottled as error:
            self._reader.metrics.count_shed("fold_in")
            raise overloaded(str(error)) from None
        subject = b'"known":%d,"unknown":%d,' % (result.known, result.unknown)
        answer = self._list(request, subject, result.found, body)
        return web.Response(body=answer, headers=list_headers(result.found, "fold-in", NO_STORE))

    async def similar(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/similar/{item}?n=&exclude=&fields=`."""
        item, query = parse_id(raw_id, "item"), SIMILAR.parse(raw_query)
        encoded = await self._reader.similar(item)
        headers = list_headers(encoded, "similar", self.shared)
        return self._answer(request, b'"item":%b,' % orjson.dumps(item), encoded, query, headers)

    async def popular(self, request: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /v1/popular?n=&exclude=&fields=&segment=`."""
        query = POPULAR.parse(raw_query)
        encoded = self._reader.popular(query.segment)
        return self._answer(request, b"", encoded, query, list_headers(encoded, "popular", self.shared))

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

    def _items(self, encoded: EncodedList, n: int, excluded: frozenset[bytes], fields: str) -> bytes:
        shorten = None if fields == ALL_FIELDS else partial(without_titles, scores=fields == "id,score")
        return self._reader.cut(encoded, n, excluded, shorten)

    def _answer(
        self, request: web.BaseRequest, subject: bytes, encoded: EncodedList, query: ListQuery, headers: dict[str, str]
    ) -> web.Response:
        body = self._list(request, subject, encoded, query)
        headers["ETag"] = etag = f'"{xxh3_64_hexdigest(body)}"'
        known = request.headers.get(hdrs.IF_NONE_MATCH)
        if known is not None and is_known(etag, known):
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers)

    def _list(self, request: web.BaseRequest, subject: bytes, encoded: EncodedList, query: ListQuery) -> bytes:
        items = self._items(encoded, query.n, _excluded(query.exclude), query.fields)
        request[FOUND] = encoded, items
        return list_body(subject, list_head(encoded), items)

    def _results(self, batch: BatchBody, answers: Sequence[EncodedList]) -> Iterator[list[bytes]]:
        size, excluded = max(1, PIECE_ITEMS // batch.n), _excluded(batch.exclude)
        rests = dict[tuple[str, int], bytes]()
        """Head and popular items by status and release."""
        for start in range(0, len(answers), size):
            piece = list[bytes]()
            for user, encoded in zip(batch.users[start : start + size], answers[start : start + size], strict=True):
                kind, is_own = (encoded.status, id(encoded.served)), encoded.status == "ok"
                rest = rests.get(kind)
                items = self._items(encoded, batch.n, excluded, batch.fields) if is_own or rest is None else b""
                if rest is None:
                    rests[kind] = rest = result_head(encoded) + (b"" if is_own else items)
                piece.append(b'{"user":%b,%b%b]}' % (orjson.dumps(user), rest, items if is_own else b""))
            yield piece


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
    """Return the part of a list answer between its subject and its items."""
    release, source, tier = encoded.served.id.encode(), encoded.source.encode(), encoded.tier.encode()
    canary = b'"canary":true,' if encoded.served.is_canary else b""
    segment = b'"segment":%b,' % orjson.dumps(encoded.segment) if encoded.source == "popular" else b""
    return b'"release":"%b",%b"source":"%b",%b"tier":"%b","items":[' % (release, canary, source, segment, tier)


def found_in(encoded: EncodedList, items: bytes) -> ListOrigin:
    """Return the origin of a list, for logs and spans."""
    return ListOrigin(encoded.served.id, encoded.source, encoded.tier, items)


def is_known(etag: str, known: str) -> bool:
    """Return whether an `If-None-Match` header matches."""
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))


def result_head(encoded: EncodedList) -> bytes:
    """Return the part of a batch result between its user and its items."""
    return b'"status":"%b",%b' % (encoded.status.encode(), list_head(encoded))


def _excluded(ids: Sequence[str]) -> frozenset[bytes]:
    return frozenset(map(encode_id, ids)) if ids else frozenset()


def _json_batch(release: str, _: int, pieces: Iterable[list[bytes]]) -> Iterator[bytes]:
    yield b'{"release":"%b","results":[' % release.encode()
    separator = b""
    for results in pieces:
        yield separator + b",\n".join(results)
        separator = b",\n"
    yield b"]}"


def _msgpack_batch(release: str, count: int, pieces: Iterable[list[bytes]]) -> Iterator[bytes]:
    encode = msgspec.msgpack.encode
    # A map of two; the second is an array with a 32-bit length.
    yield b"\x82" + encode("release") + encode(release) + encode("results") + b"\xdd" + count.to_bytes(4, "big")
    for results in pieces:
        yield b"".join(map(encode, orjson.loads(b"[" + b",".join(results) + b"]")))


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class StreamedResponse(web.Response):
    """A response with *made* as first part; the other pieces are made while it is sent.

    A piece is sent outside *turn*, so a slow reader delays no other caller. *hold* counts bytes of lists.
    """

    def __init__(
        self,
        made: bytes,
        pieces: Iterator[bytes],
        compress: _Compressor | None,
        headers: dict[str, str],
        answers: Sequence[EncodedList],
    ) -> None:
        super().__init__(body=self._stream(made, pieces, compress), headers=headers)
        self.turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        self.hold: Callable[[int], None] = lambda _: None
        self._held = sum(map(len, {id(one.body): one.body for one in answers}.values()))

    async def _stream(self, made: bytes, pieces: Iterator[bytes], compress: _Compressor | None) -> AsyncIterator[bytes]:
        self.hold(self._held)
        yield made if compress is None else await _compressed(compress, made)
        while True:
            async with self.turn():
                await asyncio.sleep(0)
                piece = next(pieces, None)
                if piece is not None and compress is not None:
                    piece = await _compressed(compress, piece)
            if piece is None:
                break
            yield piece
        self.hold(-self._held)
        if compress is not None:
            yield compress.flush()


async def in_pieces(
    request: web.BaseRequest, pieces: Iterator[bytes], headers: dict[str, str], answers: Sequence[EncodedList]
) -> web.Response:
    """Answer with *pieces*, yielding to other requests between them; streams large answers."""
    made = bytearray()
    is_large = False
    for piece in pieces:
        made += piece
        if is_large := len(made) > STREAM_BYTES:
            break
        await asyncio.sleep(0)
    compress: _Compressor | None = None
    if len(made) > COMPRESS_BYTES and _takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
        headers["Content-Encoding"], compress = "gzip", zlib.compressobj(GZIP_LEVEL, wbits=31)
    if is_large:
        return StreamedResponse(bytes(made), pieces, compress, headers, answers)
    body = bytes(made)
    if compress is not None:
        body = await _compressed(compress, body) + compress.flush()
    return web.Response(body=body, headers=headers)


async def _compressed(compress: _Compressor, data: bytes) -> bytes:
    if len(data) > THREAD_BYTES:
        return await asyncio.to_thread(compress.compress, data)
    return compress.compress(data)


def _status(status: int, fields: dict[str, object]) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(status=status, body=orjson.dumps(fields), headers=headers)
