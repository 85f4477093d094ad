"""The routes' handlers: each reads its parameters, gets its list from the reader, and builds the response's bytes."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from xxhash import xxh3_64_hexdigest

from serve.exposition import Exposition
from serve.problems import Problem, bad_parameter
from serve.reader import DEFAULT_N, EncodedList, TieredReader
from serve.tiers import Tier
from serve.watched import WatchedFiles
from stores.encoding import cut
from stores.errors import StoreMisused
from stores.keys import OVERALL, check_id

MAX_N = 1000
# How many users one POST may name.
MAX_USERS = 2000
MAX_BODY_BYTES = 1 << 20
PRIVATE = "private, no-cache"
# What is the same for everybody may be kept by a CDN; a release that goes live is seen a minute later there.
SHARED = "public, max-age=60"

Handler = Callable[[web.BaseRequest, str, str], Awaitable[web.Response]]


class Handlers:
    """All handlers of one worker; each takes the request, the path's id (still encoded) and the query."""

    def __init__(self, reader: TieredReader) -> None:
        self._reader = reader
        self._exposition = Exposition(reader.metrics, reader.tiers)
        self.draining = False
        self.watched = list[WatchedFiles]()
        """Files that the worker follows; what is wrong with one is a warning, for its last good version is in use."""

    async def recommend(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/recommendations/{user}?n=&segment=`."""
        user, query = _path_id(raw_id, "user"), _query_of(raw_query)
        n = _count_in(query)
        encoded = await self._reader.personal(user, query.get("segment", OVERALL))
        return _answer(request, encoded, b'{"user":%b,%b' % (orjson.dumps(user), _list(encoded, n)), PRIVATE)

    async def recommend_many(self, request: web.BaseRequest, _: str, __: str) -> web.Response:
        """`POST /v1/recommendations` with `{"users": […], "n": 10}`."""
        users, n = _batch_in(await _body(request))
        answers = await self._reader.personal_many(users)
        results = b",\n".join(
            b'{"user":%b,%b' % (orjson.dumps(user), _list(encoded, n))
            for user, encoded in zip(users, answers, strict=True)
        )
        release = answers[0].served.id if answers else self._reader.release()
        return web.Response(
            body=b'{"release":"%b","results":[%b]}' % (release.encode(), results),
            headers={"Content-Type": "application/json", "Cache-Control": PRIVATE, "X-Hotplate-Release": release},
        )

    async def similar(self, request: web.BaseRequest, raw_id: str, raw_query: str) -> web.Response:
        """`GET /v1/similar/{item}?n=`."""
        item, n = _path_id(raw_id, "item"), _count_in(_query_of(raw_query))
        encoded = await self._reader.similar(item)
        return _answer(request, encoded, b'{"item":%b,%b' % (orjson.dumps(item), _list(encoded, n)), SHARED)

    async def popular(self, request: web.BaseRequest, __: str, raw_query: str) -> web.Response:
        """`GET /v1/popular?n=&segment=`."""
        query = _query_of(raw_query)
        n = _count_in(query)
        encoded = self._reader.popular(query.get("segment", OVERALL))
        return _answer(request, encoded, b"{" + _list(encoded, n), SHARED)

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
        state: dict[str, object] = {"status": status, "release": serving[0], "tiers": tiers}
        warnings = [each.warning for each in self.watched if each.warning]
        return _status(200, state | {"warnings": warnings} if warnings else state)

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


def _path_id(raw: str, what: str) -> str:
    """Decode one percent-encoded path segment into an id; *what* names it in the sentence of a refusal."""
    if "%" in raw:
        try:
            raw = unquote_to_bytes(raw).decode()
        except UnicodeError:
            raise bad_parameter(f"the {what} id in the path is not percent-encoded UTF-8") from None
    return _checked(raw, f"the {what} id in the path")


def _query_of(raw: str) -> Mapping[str, str]:
    """Parse a query string; of a name given twice the first counts."""
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise bad_parameter("the query is not percent-encoded UTF-8 of at most 20 fields") from None
    return dict(reversed(pairs))


def _count_in(query: Mapping[str, str]) -> int:
    """Read `n`, 1 … MAX_N."""
    given = query.get("n")
    if given is None:
        return DEFAULT_N
    if not (given.isascii() and given.isdecimal() and len(given) <= 9 and 1 <= int(given) <= MAX_N):
        raise bad_parameter(f"n must be a whole number from 1 to {MAX_N}, not {given[:40]!r}")
    return int(given)


def _batch_in(body: bytes) -> tuple[list[str], int]:
    """Read `{"users": […], "n": …}`: the users, in order, and n."""
    try:
        fields: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_parameter(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("users"), list):
        raise bad_parameter('the body must be an object with a list of users, as {"users": ["42"], "n": 10}')
    users, n = fields["users"], fields.get("n", DEFAULT_N)
    if len(users) > MAX_USERS:
        raise bad_parameter(f"one request names at most {MAX_USERS} users, not {len(users)}; send several requests")
    if type(n) is not int or not 1 <= n <= MAX_N:
        raise bad_parameter(f"n must be a whole number from 1 to {MAX_N}, not {str(n)[:40]!r}")
    for index, user in enumerate(users):
        if not isinstance(user, str):
            raise bad_parameter(f"users[{index}] is not a string")
        _checked(user, f"users[{index}]")
    return users, n


def _checked(identifier: str, what: str) -> str:
    try:
        return check_id(identifier)
    except StoreMisused as error:
        raise bad_parameter(f"{what} cannot be used: {error}") from None
