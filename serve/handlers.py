"""The routes' handlers: each reads its parameters, gets its list from the reader, and builds the response's bytes."""

from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from xxhash import xxh3_64_hexdigest

from serve.exposition import Exposition
from serve.parameters import (
    MAX_BODY_BYTES,
    ListQuery,
    NoQuery,
    QueryParser,
    SegmentQuery,
    parse_batch,
    parse_id,
)
from serve.problems import Problem
from serve.reader import EncodedList, TieredReader
from serve.tiers import Tier
from stores.encoding import cut

PRIVATE = "private, no-cache"
# What is the same for everybody may be kept by a CDN; a release that goes live is seen a minute later there.
SHARED = "public, max-age=60"

PERSONAL = QueryParser(SegmentQuery, "GET /v1/recommendations/{user}")
BATCH = QueryParser(NoQuery, "POST /v1/recommendations")
SIMILAR = QueryParser(ListQuery, "GET /v1/similar/{item}")
POPULAR = QueryParser(SegmentQuery, "GET /v1/popular")

Handler = Callable[[web.BaseRequest, str, str], Awaitable[web.Response]]


class Handlers:
    """All handlers of one worker; each takes the request, the path's id (still encoded) and the query."""

    def __init__(self, reader: TieredReader) -> None:
        self._reader = reader
        self._exposition = Exposition(reader.metrics, reader.tiers)
        self.draining = False

    async def recommend(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/recommendations/{user}?n=&segment=`."""
        user, query = parse_id(raw_id, "user"), PERSONAL.parse(raw_query)
        encoded = await self._reader.personal(user, query.segment)
        return _answer(request, encoded, b'{"user":%b,%b' % (orjson.dumps(user), _list(encoded, query.n)), PRIVATE)

    async def recommend_many(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/recommendations` with `{"users": […], "n": 10}`."""
        BATCH.parse(raw_query)
        batch = parse_batch(await _body(request))
        answers = await self._reader.personal_many(batch.users)
        results = b",\n".join(
            b'{"user":%b,%b' % (orjson.dumps(user), _list(encoded, batch.n))
            for user, encoded in zip(batch.users, answers, strict=True)
        )
        release = answers[0].served.id if answers else self._reader.release()
        return web.Response(
            body=b'{"release":"%b","results":[%b]}' % (release.encode(), results),
            headers={"Content-Type": "application/json", "Cache-Control": PRIVATE, "X-Hotplate-Release": release},
        )

    async def similar(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/similar/{item}?n=`."""
        item, query = parse_id(raw_id, "item"), SIMILAR.parse(raw_query)
        encoded = await self._reader.similar(item)
        return _answer(request, encoded, b'{"item":%b,%b' % (orjson.dumps(item), _list(encoded, query.n)), SHARED)

    async def popular(self, request: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /v1/popular?n=&segment=`."""
        query = POPULAR.parse(raw_query)
        encoded = self._reader.popular(query.segment)
        return _answer(request, encoded, b"{" + _list(encoded, query.n), SHARED)

    async def live(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /livez`: the process answers; no store is read."""
        return _status(200, {"status": "alive"})

    async def ready(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /readyz`: ready means "can answer"; what is wrong all the same is said as `degraded`."""
        if self.draining:
            return _status(503, {"status": "draining"})
        tiers = [_state(tier) for tier in self._reader.tiers]
        serving = [tier["release"] for tier in tiers if tier["release"]]
        if not serving:
            return _status(503, {"status": "not ready", "tiers": tiers})
        status = "degraded" if any(tier["detail"] for tier in tiers) else "ready"
        return _status(200, {"status": status, "release": serving[0], "tiers": tiers})

    async def metrics(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /metrics`: Prometheus text, summed over all workers."""
        return web.Response(body=self._exposition.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _list(encoded: EncodedList, n: int) -> bytes:
    return b'"release":"%b","source":"%b","tier":"%b","items":[%b]}' % (
        encoded.served.id.encode(),
        encoded.source.encode(),
        encoded.tier.encode(),
        cut(encoded.body, n),
    )


def _state(tier: Tier) -> dict[str, object]:
    served, error = tier.follower.served, tier.error
    if served is None:
        error = error or "the live release is being loaded"
    state: dict[str, object] = {"tier": tier.name, "release": served and served.id, "detail": error}
    return state | {"warnings": tier.follower.warnings} if tier.follower.warnings else state


def _answer(request: web.BaseRequest, encoded: EncodedList, body: bytes, cache: str) -> web.Response:
    """Answer with *body*, or with 304 where the caller says that it has just these bytes."""
    etag = f'"{xxh3_64_hexdigest(body)}"'
    headers = {
        "Content-Type": "application/json",
        "Cache-Control": cache,
        "ETag": etag,
        "X-Hotplate-Release": encoded.served.id,
    }
    known = request.headers.get("If-None-Match")
    if known is not None and (
        known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))
    ):
        del headers["Content-Type"]
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, headers=headers)


def _status(status: int, fields: dict[str, object]) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(status=status, body=orjson.dumps(fields), headers=headers)


async def _body(request: web.BaseRequest) -> bytes:
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        body = None
    if body is None or len(body) > MAX_BODY_BYTES:  # an application around the service may let more through
        raise Problem(413, "body-too-large", f"a body has at most {MAX_BODY_BYTES} bytes; send several requests")
    return body
