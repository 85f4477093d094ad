"""The routes' handlers: each reads its parameters, gets its list from the reader, and builds the response's bytes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import orjson
from aiohttp import hdrs, web
from xxhash import xxh3_64_hexdigest

from serve.answered import Found
from serve.api.formats import (
    CONTENT_TYPES,
    Compressor,
    compressor,
    content_coding,
    encode_batch,
    encode_list,
    load,
    media_type,
)
from serve.api.parameters import (
    ALL_FIELDS,
    BATCH_MEDIA,
    JSON,
    LIST_MEDIA,
    MAX_BODY_BYTES,
    BatchBody,
    ListQuery,
    NoQuery,
    QueryParser,
    SegmentQuery,
    parse_batch,
    parse_id,
)
from serve.api.problems import Problem
from serve.processes.states import ANSWERING, DEGRADED, DRAINING, READY, status_of
from serve.reader import EncodedList, TieredReader
from serve.watched import WatchedFiles
from stores.encoding import encode_id, without_titles

PRIVATE = "private, no-cache"
# What is the same for everybody may be kept by a CDN; a release that goes live is seen a minute later there.
SHARED = "public, max-age=60"
# The same where it takes a key: kept by its caller alone, as a cache in between would hand it to anybody.
UNSHARED = "private, max-age=60"
# What stands in for the list that was requested, as long as that is not there.
NO_STORE = "no-store"

# An answer for many is made in pieces of so many items, between which other requests are served: a millisecond or two.
PIECE_ITEMS = 1280
# One with more bytes is sent while it is made; one with fewer is not worth compressing, or to leave the loop for it.
STREAM_BYTES, COMPRESS_BYTES, THREAD_BYTES = 256 << 10, 1 << 10, 16 << 10

PERSONAL = QueryParser(SegmentQuery, "GET /v1/recommendations/{user}")
BATCH = QueryParser(NoQuery, "POST /v1/recommendations")
SIMILAR = QueryParser(ListQuery, "GET /v1/similar/{item}")
POPULAR = QueryParser(SegmentQuery, "GET /v1/popular")

_NOTHING = frozenset[bytes]()

# The list that a request got, and the items of it that are in the answer.
FOUND = web.RequestKey("found", tuple[EncodedList, bytes])

Handler = Callable[[web.BaseRequest, str, str], Awaitable[web.Response]]


class Handlers:
    """All handlers of one worker; each takes the request, the path's id (still encoded) and the query."""

    def __init__(self, reader: TieredReader, *, take_a_key: bool = False) -> None:
        """Take the reader, and whether nobody reads without a key."""
        self._reader = reader
        self.shared = UNSHARED if take_a_key else SHARED
        """The Cache-Control of lists that are the same for everybody."""
        self.draining = False
        self.watched = list[WatchedFiles]()
        """Files that the worker follows; what is wrong with one is a warning, for its last good version is in use."""

    async def recommend(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/recommendations/{user}?n=&exclude=&fields=&segment=`."""
        user, query = parse_id(raw_id, "user"), PERSONAL.parse(raw_query)
        encoded = await self._reader.personal(user, query.segment)
        cache = PRIVATE if encoded.source == "personal" else NO_STORE
        return self._answer(request, b'"user":%b,' % orjson.dumps(user), encoded, query, cache)

    async def recommend_many(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/recommendations` with `{"users": […], "n": 10, "exclude": […], "fields": "id", "segment": "…"}`."""
        BATCH.parse(raw_query)
        media = media_type(request.headers.get(hdrs.ACCEPT), BATCH_MEDIA)
        await load(media)
        batch = parse_batch(await read_body(request))
        answers = await self._reader.personal_many(batch.users, batch.segment)
        release = answers[0].served.id if answers else self._reader.release()
        pieces = encode_batch(
            media, release, batch.fields.split(","), len(answers), self._results(batch, answers, release.encode())
        )
        headers = {
            "Content-Type": CONTENT_TYPES.get(media, media),
            "Cache-Control": NO_STORE,
            "X-Hotplate-Release": release,
        }
        return await in_pieces(pieces, headers, content_coding(request.headers.get(hdrs.ACCEPT_ENCODING)))

    async def similar(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/similar/{item}?n=&exclude=&fields=`."""
        item, query = parse_id(raw_id, "item"), SIMILAR.parse(raw_query)
        encoded = await self._reader.similar(item)
        cache = self.shared if encoded.source == "similar" else NO_STORE
        return self._answer(request, b'"item":%b,' % orjson.dumps(item), encoded, query, cache)

    async def popular(self, request: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /v1/popular?n=&exclude=&fields=&segment=`."""
        query = POPULAR.parse(raw_query)
        return self._answer(request, b"", self._reader.popular(query.segment), query, self.shared)

    async def live(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /livez`: the process answers; no store is read."""
        return _status(200, {"status": "alive"})

    async def ready(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /readyz`: ready means "can answer"; what is wrong all the same is for operators to read."""
        status = self.status
        return _status(200 if status in ANSWERING else 503, {"status": status})

    @property
    def status(self) -> str:
        """What the worker is able to."""
        if self.draining:
            return DRAINING
        status = status_of(self._reader.tiers)
        return DEGRADED if status == READY and self.warnings else status

    @property
    def warnings(self) -> list[str]:
        """What is wrong with files whose last good version is in use."""
        return [each.warning for each in self.watched if each.warning]

    def _items(self, encoded: EncodedList, n: int, excluded: frozenset[bytes], fields: str) -> bytes:
        """Return the items that a request gets of a list."""
        items = self._reader.cut(encoded, n, excluded)
        return items if fields == ALL_FIELDS else without_titles(items, scores=fields == "id,score")

    def _answer(
        self,
        request: web.BaseRequest,
        subject: bytes,
        encoded: EncodedList,
        query: ListQuery | SegmentQuery,
        cache: str,
    ) -> web.Response:
        """Answer with a list, or with 304 where the caller says that it has just these bytes."""
        items = self._items(encoded, query.n, _excluded(query.exclude), query.fields)
        request[FOUND] = encoded, items
        body = b"{%b%b%b]}" % (subject, list_head(encoded), items)
        media = media_type(request.headers.get(hdrs.ACCEPT), LIST_MEDIA)
        headers = {
            "Content-Type": media,
            "Cache-Control": cache,
            "X-Hotplate-Release": encoded.served.id,
            "Vary": "Accept",
        }
        if media != JSON:
            body = encode_list(media, query.fields.split(","), body)
            headers["Content-Type"] = CONTENT_TYPES.get(media, media)
            headers["X-Hotplate-Source"] = encoded.source  # CSV has no other place for it
        headers["ETag"] = etag = f'"{xxh3_64_hexdigest(body)}"'
        known = request.headers.get(hdrs.IF_NONE_MATCH)
        if known is not None and is_known(etag, known):
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers)

    def _results(self, batch: BatchBody, answers: Sequence[EncodedList], release: bytes) -> Iterator[list[bytes]]:
        """Yield the results of a batch as JSON, in pieces that take a millisecond or two to make."""
        size, excluded = max(1, PIECE_ITEMS // batch.n), _excluded(batch.exclude)
        rests = dict[str, bytes]()
        """By status, what is the same for all: what comes before the items, and of the popular list these, too."""
        for start in range(0, len(answers), size):
            piece = list[bytes]()
            for user, encoded in zip(batch.users[start : start + size], answers[start : start + size], strict=True):
                rest, is_own = rests.get(encoded.status), encoded.status == "ok"
                items = self._items(encoded, batch.n, excluded, batch.fields) if is_own or rest is None else b""
                if rest is None:
                    rest = result_head(encoded, release) + (b"" if is_own else items)
                    rests[encoded.status] = rest
                piece.append(b'{"user":%b,%b%b]}' % (orjson.dumps(user), rest, items if is_own else b""))
            yield piece


def list_head(encoded: EncodedList) -> bytes:
    """Return what an answer of one list says between its subject and its items."""
    release, source, tier = encoded.served.id.encode(), encoded.source.encode(), encoded.tier.encode()
    return b'"release":"%b","source":"%b","tier":"%b","items":[' % (release, source, tier)


def found_in(encoded: EncodedList, items: bytes) -> Found:
    """Return what is recorded of a list that a request got."""
    return Found(encoded.served.id, encoded.source, encoded.tier, items)


def is_known(etag: str, known: str) -> bool:
    """Return whether an `If-None-Match` names the entity tag of an answer."""
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))


def result_head(encoded: EncodedList, release: bytes) -> bytes:
    """Return what a result says between its user and its items."""
    status, source, tier = encoded.status.encode(), encoded.source.encode(), encoded.tier.encode()
    return b'"status":"%b","release":"%b","source":"%b","tier":"%b","items":[' % (status, release, source, tier)


def _excluded(ids: Sequence[str]) -> frozenset[bytes]:
    return frozenset(map(encode_id, ids)) if ids else _NOTHING


class StreamedResponse(web.Response):
    """An answer of which *made* is ready, and the rest is made while it is sent, compressed or as it is.

    A piece is made inside of *turn*, and outside of it waits for its reader, who so holds up nobody.
    """

    def __init__(
        self, made: bytes, pieces: Iterator[bytes], compress: Compressor | None, headers: dict[str, str]
    ) -> None:
        super().__init__(body=self._stream(made, pieces, compress), headers=headers)
        self.turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext

    async def _stream(self, made: bytes, pieces: Iterator[bytes], compress: Compressor | None) -> AsyncIterator[bytes]:
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
        if compress is not None:
            yield compress.flush()


async def in_pieces(pieces: Iterator[bytes], headers: dict[str, str], coding: str | None) -> web.Response:
    """Answer with *pieces*, each made when others had their turn; where they are many, they are sent while made."""
    made = bytearray()
    for piece in pieces:
        made += piece
        if len(made) > STREAM_BYTES:
            if coding is not None:
                headers["Content-Encoding"] = coding
            compress = None if coding is None else compressor(coding)
            return StreamedResponse(bytes(made), pieces, compress, headers)
        await asyncio.sleep(0)
    body = bytes(made)
    if coding is not None and len(body) > COMPRESS_BYTES:
        headers["Content-Encoding"] = coding
        compress = compressor(coding)
        body = await _compressed(compress, body) + compress.flush()
    return web.Response(body=body, headers=headers)


async def _compressed(compress: Compressor, data: bytes) -> bytes:
    if len(data) > THREAD_BYTES:
        return await asyncio.to_thread(compress.compress, data)
    return compress.compress(data)


def _status(status: int, fields: dict[str, object]) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(status=status, body=orjson.dumps(fields), headers=headers)


def is_encoded(request: web.BaseRequest) -> bool:
    """Return whether a body is compressed: a small one may be a gigabyte unpacked."""
    return request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity"


def encoded_body() -> Problem:
    """Refuse a body that is compressed."""
    return Problem(415, "encoded-body", "a body is sent as it is, without Content-Encoding")


def too_large() -> Problem:
    """Refuse a body before it is read, or where it turns out to be too large."""
    return Problem(413, "body-too-large", f"a body has at most {MAX_BODY_BYTES} bytes; send several requests")


async def read_body(request: web.BaseRequest) -> bytes:
    """Return the body of a request; a Problem where it is too large, or compressed."""
    if is_encoded(request):
        raise encoded_body()
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large() from None
    if len(body) > MAX_BODY_BYTES:  # an application around the service may let more through
        raise too_large()
    return body
