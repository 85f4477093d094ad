"""The load of one run: target, requests, keys, rate and duration."""

import asyncio
import itertools
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from hotplate.base.http1 import ConnectionPool, RequestFailed, Response
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.result import ResponseSample
from hotplate.stores.errors import reason_of
from hotplate.stores.urls import redacted

KEY = "{key}"
BATCH_PATH = "/v1/recommendations"
SCORE_PATH = "/score"
BLOCK = 256  # few enough not to delay a request
OK = 200
JSON = b"application/json"
MSGPACK = b"application/msgpack"
END_OF_HEAD = b"\r\n\r\n"
END_OF_TARGET = b" HTTP/1.1\r\n"
USER = b'{"user":'
ITEM = b'{"item":'
ITEMS = b'"items":[{'  # the first item has begun
# Kinds of errors.
REDIRECT = "redirect"
STATUS = "status"
CONTENT_TYPE = "content type"
MISSING_LIST = "missing list"
EMPTY_LIST = "empty list"
# Parameters of a request that allow an empty list.
FILTERS = ("where=", "exclude=", "after=")
ROUNDING = 1e-9

_encode = msgspec.json.Encoder().encode

Positions = NDArray[np.int64]
ResponseCheck = Callable[[ResponseSample], str | None]  # returns the kind of error, None for a good response


@dataclass(frozen=True, slots=True)
class InTurn:
    """Keys in order, repeatedly: the worst case for caches."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """Yield blocks of BLOCK positions below *count*, infinitely, from a random one on."""
        for start in itertools.count(int(rng.integers(count)), BLOCK):
            yield np.arange(start, start + BLOCK) % count


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniformly random keys."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """Yield blocks of BLOCK random positions below *count*, infinitely."""
        while True:
            yield rng.integers(count, size=BLOCK)


@dataclass(frozen=True, slots=True)
class Zipf:
    """The k-th most popular key has weight 1/k^exponent (YCSB: 0.99); the ranking is random."""

    exponent: float

    def __post_init__(self) -> None:
        if not 0 < self.exponent <= 10:
            raise BenchMisused(f"the exponent of zipf is above 0 and at most 10, not {self.exponent:g}")

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """Yield arrays of BLOCK random positions from 0 to *count* - 1, infinitely.

        The position of rank r has a weight of r ** -exponent. Ranks are given to positions at random, but alike in
        every run with the same *count*.
        """
        cumulative_weights = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -self.exponent)
        position_by_rank = np.random.default_rng(count).permutation(count)
        while True:
            # A random share of the total weight falls into the range of one rank.
            yield position_by_rank[
                np.searchsorted(cumulative_weights, rng.random(BLOCK) * cumulative_weights[-1], side="right")
            ]


KeyDraw: TypeAlias = InTurn | Uniform | Zipf


@dataclass(frozen=True, slots=True)
class RequestKeys:
    """The users to request, infinitely often, as an iterable of their ids.

    draw     the order: sequential, uniform or Zipf-distributed
    unknown  share of requests for made-up ids, which have no lists
    """

    ids: Sequence[str]
    draw: KeyDraw
    unknown: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.ids:
            raise BenchMisused("a key to request is missing")

    def __iter__(self) -> Iterator[str]:
        """Yield ids of users, infinitely, in the order of `draw`, which yields blocks of positions in `ids`.

        A random share of them, `unknown`, is replaced by ids that no list has, such as "unknown-123".
        """
        rng = np.random.default_rng(self.seed)
        for positions in self.draw.blocks(len(self.ids), rng):
            block = [self.ids[position] for position in positions.tolist()]

            if self.unknown:
                for position in np.flatnonzero(rng.random(BLOCK) < self.unknown).tolist():
                    block[position] = f"unknown-{int(rng.integers(10**9))}"
            yield from block


@dataclass(frozen=True, slots=True)
class Gets:
    """GETs of a path, with an id for `{key}`."""

    path: str
    keys: RequestKeys | None = None

    def __post_init__(self) -> None:
        _check_text(self.path)
        if not self.path.startswith("/") or " " in self.path:
            raise BenchMisused(f"a path starts with / and has no spaces, and this is {self.path!r}")
        if self.keys is not None and KEY not in self.path:
            raise BenchMisused(f"a path for keys has a {KEY} in it, and this is {self.path!r}")

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield complete GETs, infinitely; without keys, all are the same."""
        before, _, after = self.path.partition(KEY)
        head = f"GET {before}".encode()
        tail = after.encode() + _request_tail(host, headers)
        for key in self.keys or itertools.repeat(""):
            yield head + quote(key, safe="").encode() + tail

    @staticmethod
    def received(request: bytes, status: int, head: bytes, body: bytes) -> ResponseSample:
        """Return the response to a request."""
        return ResponseSample(request, status, body, head, (body,))

    def failure(self, response: ResponseSample) -> str | None:
        """Return the kind of error of a response without the list of the requested key, as a `ResponseCheck`.

        Without keys, all responses of status 200 are good.
        """
        if response.status != OK or self.keys is None:
            return failure_by_status(response)

        start, after_key = _around_key(self.path)
        request = response.request
        encoded_key = request[start : request.index(END_OF_TARGET) - after_key]
        if _begins_as_list_of(encoded_key, response.body) and response.head.find(JSON) > 0:
            return None

        key = unquote(encoded_key.decode())
        may_be_empty = any(name in self.path for name in FILTERS)
        return _failure_of_content(response, [key], is_batch=False, may_be_empty=may_be_empty)


@dataclass(frozen=True, slots=True)
class Posts:
    """POSTs for `batch` users; `score` uses Azure ML's form."""

    keys: RequestKeys
    batch: int
    n: int = 10
    score: bool = False

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield HTTP requests, complete and without end, each for the lists of the next `batch` users.

        The body is that of hotplate's batches or, with `score`, of Azure ML's scoring: a row for each user.
        """
        next_users = iter(self.keys)
        path = SCORE_PATH if self.score else BATCH_PATH
        while True:
            users = list(itertools.islice(next_users, self.batch))
            content: dict[str, Any] = {"users": users, "n": self.n}
            if self.score:
                content = {"data": [{"user": user, "n": self.n} for user in users]}

            body = orjson.dumps(content)
            fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            yield f"POST {path}".encode() + _request_tail(host, fields) + body

    def received(self, request: bytes, status: int, head: bytes, body: bytes) -> ResponseSample:
        """Return the response to a request, split into lists. Valid msgpack is converted to JSON.

        All lists of a batch have the same fields before their items, unless some are of another source: then it is
        split before each user, and else at these fields, so that each part ends with a user.
        """
        if not body.startswith((b"{", b"[")) and _media_type(head) == MSGPACK:
            with suppress(ValueError, TypeError):
                body = orjson.dumps(msgspec.msgpack.decode(body))

        first_user = body.find(USER) + len(USER)
        fields = body[body.find(b'",', first_user) + 1 : body.find(ITEMS) + len(ITEMS)]
        if fields:
            parts = body.split(fields)
            if len(parts) == self.batch + 1:
                return ResponseSample(request, status, body, head, parts[:-1], fields)
        return ResponseSample(request, status, body, head, body.split(USER)[1:] or (body,))

    def failure(self, response: ResponseSample) -> str | None:
        """Return the kind of error of a response without all lists of the batch, as a `ResponseCheck`."""
        kind = failure_by_status(response)
        if kind is not None:
            return kind
        _, _, body = response.request.partition(END_OF_HEAD)
        content = orjson.loads(body)
        users = [row["user"] for row in content["data"]] if self.score else content["users"]
        if _are_lists_of(users, response) and _media_type(response.head) in {JSON, MSGPACK}:
            return None
        return _failure_of_content(response, users, is_batch=True)


def _check_url(url: str) -> None:
    form = "the target must look like http://HOST:PORT or https://HOST:PORT"
    if "@" in url:  # before it is parsed: the errors quote parts of the URL, perhaps of a password
        raise BenchMisused(f"{form}, without a user or password; give --header Authorization:VALUE instead")

    expected = f"{form}, not {redacted(url)!r}"
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed on access
    except ValueError as error:
        raise BenchMisused(f"{expected}: {error}") from None

    has_more = parts.path not in {"", "/"} or parts.query or parts.fragment
    if parts.scheme not in {"http", "https"} or not parts.hostname or has_more:
        raise BenchMisused(expected)


def _check_text(text: str) -> None:
    if not text.isascii() or not text.isprintable():
        raise BenchMisused(f"{text!r} cannot stand in a request; percent-encode it")


def _request_tail(host: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    return (" HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def failure_by_status(response: ResponseSample) -> str | None:
    """Return the kind of error of a response with another status than 200, as a `ResponseCheck`."""
    if response.status == OK:
        return None
    return REDIRECT if 300 <= response.status < 400 else STATUS


@cache
def _around_key(path: str) -> tuple[int, int]:
    """Return where the key begins in GETs of a path, and the length of the path after it."""
    before, _, after = path.partition(KEY)
    return len("GET ") + len(before), len(after)


def _media_type(head: bytes) -> bytes:
    media_type = Response(OK, head, b"").header(b"content-type") or b""
    return media_type.partition(b";")[0].strip().lower()


def _failure_of_content(
    response: ResponseSample, keys: Sequence[str], *, is_batch: bool, may_be_empty: bool = False
) -> str | None:
    """Return the kind of error of a response by its parsed content, the lists of *keys* in their order.

    It is only for responses that are not written as hotplate's are: parsing takes longer than all else of a request.
    """
    if _media_type(response.head) not in {JSON, MSGPACK}:
        return CONTENT_TYPE
    try:
        results = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return MISSING_LIST

    if not is_batch:
        results = [results]
    elif isinstance(results, dict):
        results = results.get("results")
    if not isinstance(results, list) or len(results) != len(keys):
        return MISSING_LIST
    if not all(_is_list_of(key, result) for key, result in zip(keys, results, strict=True)):
        return MISSING_LIST
    return None if may_be_empty or all(result["items"] for result in results) else EMPTY_LIST


def _begins_as_list_of(encoded_key: bytes, body: bytes) -> bool:
    """Return whether a body has the key, an item and the end of a list, as hotplate writes it.

    A key that is not percent-encoded in a path is the same in JSON. Operators that search bytes are slower than `find`.
    """
    return (
        body.startswith(b'"' + encoded_key + b'",', len(USER))
        and body.startswith((USER, ITEM))
        and body.find(ITEMS) > 0
        and body.endswith(b"]}")
        and encoded_key.find(b"%") < 0
    )


def _is_list_of(key: str, result: object) -> bool:
    if not isinstance(result, dict):
        return False
    return key in (result.get("user"), result.get("item")) and isinstance(result.get("items"), list)


def _are_lists_of(users: Sequence[str], response: ResponseSample) -> bool:
    """Return whether a response has the lists of these users in their order, as hotplate writes them."""
    lists = response.lists
    encoded_users = map(_encode, users)
    if len(lists) != len(users) or not response.body.endswith((b"]}", b"}]")):
        return False
    if response.fields:
        return all(map(bytes.endswith, lists, [USER + user for user in encoded_users]))
    return all(map(bytes.startswith, lists, encoded_users)) and all(text.find(ITEMS) > 0 for text in lists)


def dues(rate: float, duration_s: float, seed: int | None = None) -> Iterator[float]:
    """Yield the times at which requests are due, in seconds from the start, up to *duration_s*.

    They are evenly spaced at *rate* a second or, with a *seed*, at random by a Poisson process of this mean rate.
    """
    rng = None if seed is None else np.random.default_rng(seed)

    # Times are computed in blocks, in units of the mean interval, 1 / rate.
    end = rate * duration_s - ROUNDING
    last_random = 0.0
    for block in itertools.count():
        if rng is None:
            times = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.float64)
        else:
            times = last_random + np.cumsum(rng.exponential(1.0, BLOCK))
            last_random = times[-1]

        times_before_end = times[times < end]
        yield from (times_before_end / rate).tolist()
        if len(times_before_end) < BLOCK:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The parameters of a run.

    rate       requests due a second; None for a closed loop, each connection sending after its last response
    seed       of random due times, see `dues`; None for even ones
    timeout_s  a request fails this many seconds after it was due
    backlog    due requests that may wait for a connection; further ones are dropped
    check      says why a response is not good
    observe    names of string fields of a compact JSON body, of which each value is counted
    samples    most responses that are kept, drawn at random
    """

    url: str
    requests: Gets | Posts
    rate: float | None = None
    seed: int | None = None
    duration_s: float
    connections: int = 64
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 5.0
    backlog: int = 10_000
    check: ResponseCheck = failure_by_status
    observe: Sequence[str] = ()
    samples: int = 0

    def __post_init__(self) -> None:
        """Validate the URL, the header fields and the numbers. Raises BenchMisused."""
        _check_url(self.url)
        for text in itertools.chain(*self.headers.items()):
            _check_text(text)  # a line break in a field would start another one

        for name in ("rate", "duration_s", "connections", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BenchMisused(f"{name} must be above zero, and is {value}")

    def dues(self) -> Iterator[float]:
        """Yield due times in seconds; none for a closed loop."""
        if self.rate is None:
            return iter(())
        return dues(self.rate, self.duration_s, self.seed)

    def rendered(self) -> Iterator[bytes]:
        """Yield complete requests, infinitely."""
        return self.requests.rendered(self.url.partition("://")[2].rstrip("/"), self.headers)


@dataclass(frozen=True, slots=True)
class Target:
    """Host, port and TLS context of a URL."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> "Target":
        """Parse a URL."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        tls = ssl.create_default_context() if secure else None
        return cls(parts.hostname or "", parts.port or (443 if secure else 80), tls)


def send_one(url: str, request: bytes, timeout_s: float) -> Response:
    """Send a complete HTTP *request* to the server of *url*; return its response, whatever the status.

    Blocks the thread. Raises BenchFailed if no response arrives within *timeout_s*, or the server cannot be reached.
    """
    target = Target.of(url)

    async def send() -> Response:
        pool = ConnectionPool(target.host, target.port, size=1, tls=target.tls)
        try:
            return await pool.request(request, timeout_s)
        finally:
            await pool.close()

    try:
        return asyncio.run(send())
    except RequestFailed as error:
        if error.kind == "malformed":
            raise BenchFailed(
                f"{redacted(url)} answers, but not as HTTP/1.1 with Content-Length or chunks: a 1xx response, and a "
                "body that ends with the connection, are not read"
            ) from error
        if target.tls and isinstance(error.__cause__, ssl.SSLError):
            raise BenchFailed(f"{redacted(url)} has no valid TLS: {reason_of(error.__cause__)}") from error
        raise BenchFailed(f"nothing answers at {redacted(url)} ({error.kind}); is the service running?") from error
