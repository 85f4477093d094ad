"""The routes: each takes a request apart, asks the lookup, and puts the answer's bytes together."""

from collections.abc import Awaitable, Callable, Sequence

import orjson
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from xxhash import xxh3_64_hexdigest

from serve.exposition import Exposition
from serve.lookup import Found, Lookup
from serve.parameters import batch_in, count_in, path_id, query_of
from serve.problems import Problem
from serve.settings import MAX_BODY_BYTES
from serve.tiers import Tier
from stores.encoding import cut
from stores.keys import OVERALL

PRIVATE = "private, no-cache"
SHARED = "public, max-age=60"
"""What is the same for everybody may be kept by a CDN; a release that goes live is seen a minute later there."""

Handler = Callable[[web.BaseRequest, str, str], Awaitable[web.Response]]


class Handlers:
    """All handlers of one worker; each takes the request, the path's id (still encoded) and the query."""

    def __init__(self, lookup: Lookup, tiers: Sequence[Tier], exposition: Exposition) -> None:
        self._lookup = lookup
        self._tiers = tiers
        self._exposition = exposition
        self.draining = False

    async def recommend(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/recommendations/{user}?n=&segment=`."""
        user, query = path_id(raw_id, "user"), query_of(raw_query)
        n = count_in(query)
        found = await self._lookup.personal(user, query.get("segment", OVERALL))
        return _answer(request, found, b'{"user":%b,%b' % (orjson.dumps(user), _list(found, n)), PRIVATE)

    async def recommend_many(self, request: web.BaseRequest, _: str, __: str) -> web.Response:
        """`POST /v1/recommendations` with `{"users": […], "n": 10}`."""
        users, n = batch_in(await _body(request))
        answers = await self._lookup.personal_many(users)
        results = b",\n".join(
            b'{"user":%b,%b' % (orjson.dumps(user), _list(found, n)) for user, found in zip(users, answers, strict=True)
        )
        release = answers[0].view.release if answers else self._lookup.release()
        return web.Response(
            body=b'{"release":"%b","results":[%b]}' % (release.encode(), results),
            headers={"Content-Type": "application/json", "Cache-Control": PRIVATE, "X-Hotplate-Release": release},
        )

    async def similar(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/similar/{item}?n=`."""
        item, n = path_id(raw_id, "item"), count_in(query_of(raw_query))
        found = await self._lookup.similar(item)
        return _answer(request, found, b'{"item":%b,%b' % (orjson.dumps(item), _list(found, n)), SHARED)

    async def popular(self, request: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /v1/popular?n=&segment=`."""
        query = query_of(raw_query)
        n = count_in(query)
        found = self._lookup.popular(query.get("segment", OVERALL))
        return _answer(request, found, b"{" + _list(found, n), SHARED)

    async def live(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /livez`: the process answers; no store is asked."""
        return _status(200, {"status": "alive"})

    async def ready(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /readyz`: ready means "can answer"; what is wrong all the same is said as `degraded`."""
        if self.draining:
            return _status(503, {"status": "draining"})
        tiers = [_state(tier) for tier in self._tiers]
        serving = [tier["release"] for tier in tiers if tier["release"]]
        if not serving:
            return _status(503, {"status": "not ready", "tiers": tiers})
        status = "degraded" if any(tier["detail"] for tier in tiers) else "ready"
        return _status(200, {"status": status, "release": serving[0], "tiers": tiers})

    async def metrics(self, _: web.BaseRequest, __: str, ___: str) -> web.Response:
        """`GET /metrics`: Prometheus text, summed over all workers."""
        return web.Response(body=self._exposition.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _list(found: Found, n: int) -> bytes:
    return b'"release":"%b","source":"%b","tier":"%b","items":[%b]}' % (
        found.view.release.encode(),
        found.source.encode(),
        found.tier.encode(),
        cut(found.value, n),
    )


def _state(tier: Tier) -> dict[str, object]:
    view, trouble = tier.follower.view, tier.trouble
    if view is None:
        trouble = trouble or "the live release is being loaded"
    state: dict[str, object] = {"tier": tier.name, "release": view and view.release, "detail": trouble}
    return state | {"warnings": tier.follower.advice} if tier.follower.advice else state


def _answer(request: web.BaseRequest, found: Found, body: bytes, cache: str) -> web.Response:
    """Answer with *body*, or with 304 where the caller says that it has just these bytes."""
    etag = f'"{xxh3_64_hexdigest(body)}"'
    headers = {
        "Content-Type": "application/json",
        "Cache-Control": cache,
        "ETag": etag,
        "X-Hotplate-Release": found.view.release,
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
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Problem(
            413, "body-too-large", f"a body has at most {MAX_BODY_BYTES} bytes; send several requests"
        ) from None
