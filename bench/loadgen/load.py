"""The load of one run: target, requests, keys, rate and duration."""

import itertools
import math
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from hotplate.base.recommendations import RequestOptions
from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.result import AnsweredList, ResponseSample
from hotplate.stores.urls import redacted

KEY = "{key}"
BATCH_PATH = "/v1/recommendations"
SCORE_PATH = "/score"
LIST_LENGTH = 10  # by default
BLOCK = 256  # few enough not to delay a request
OK = 200
# Kinds of errors.
REDIRECT = "redirect"
STATUS = "status"
CONTENT_TYPE = "content type"
MISSING_LIST = "missing list"
EMPTY_LIST = "empty list"
TLS = "TLS"  # begins the kind of a failed handshake, which ends with the reason
# Options that never empty a list.
HARMLESS = {"fields", "list", "segment", "per", "else_", "timeout_s"}
# Parameters of a request that allow an empty list.
FILTERS = [f"{name}=".encode() for name in RequestOptions.__optional_keys__ - HARMLESS]
ROUNDING = 1e-9

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


class AnsweredBatch(msgspec.Struct, gc=False):
    """The response to a batch."""

    results: list[AnsweredList]


DECODERS: Mapping[bytes, Callable[..., Any]] = {b"json": msgspec.json.decode, b"msgpack": msgspec.msgpack.decode}
MEDIA_TYPE = re.compile(rb"\r\ncontent-type:\s*application/(json|msgpack)\s*[;\r]", re.IGNORECASE)
# The begin of an array that is not empty, in JSON and in msgpack.
HAS_ITEMS = re.compile(rb"\[\s*[^\s\]]|[\x91-\x9f\xdc\xdd]")


def decode_body(head: bytes, body: bytes, form: Any = Any) -> Any:  # noqa: ANN401 -- as of msgspec
    """Decode a body in JSON or msgpack as a *form*; None for another media type, ValueError for another form."""
    media_type = MEDIA_TYPE.search(head)
    if media_type is None:
        return None
    try:
        return DECODERS[media_type[1].lower()](body, type=form)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error


def decode_lists(head: bytes, body: bytes, form: Any) -> Sequence[AnsweredList] | None:  # noqa: ANN401 -- as of msgspec
    """Return the lists of a response, none if it has another *form*; None if it is neither JSON nor msgpack."""
    try:
        answer = decode_body(head, body, form)
    except ValueError:
        return ()
    if isinstance(answer, AnsweredList):
        return (answer,)
    lists: Sequence[AnsweredList] | None = answer.results if isinstance(answer, AnsweredBatch) else answer
    return lists


class Request(NamedTuple):
    """A complete request, and the keys of the lists that it requests."""

    data: bytes
    keys: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Gets:
    """GETs of a path, with an id for `{key}`."""

    path: str
    keys: RequestKeys | None = None
    form: ClassVar[Any] = AnsweredList

    def __post_init__(self) -> None:
        _check_text(self.path)
        if not self.path.startswith("/") or " " in self.path:
            raise BenchMisused(f"a path starts with / and has no spaces, and this is {self.path!r}")
        if self.keys is not None and KEY not in self.path:
            raise BenchMisused(f"a path for keys has a {KEY} in it, and this is {self.path!r}")

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[Request]:
        """Yield complete GETs, infinitely; without keys, all are the same."""
        before, _, after = self.path.partition(KEY)
        head = f"GET {before}".encode()
        tail = after.encode() + _request_tail(host, headers)
        if self.keys is None:
            yield from itertools.repeat(Request(head + tail))
            return
        for key in self.keys:
            yield Request(head + quote(key, safe="").encode() + tail, (key,))


@dataclass(frozen=True, slots=True)
class Posts:
    """POSTs for `batch` users; `score` uses Azure ML's form."""

    keys: RequestKeys
    batch: int
    score: bool = False

    @property
    def form(self) -> Any:  # noqa: ANN401 -- as of msgspec
        """The form of a response."""
        return list[AnsweredList] if self.score else AnsweredBatch

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[Request]:
        """Yield HTTP requests, complete and without end, each for the lists of the next `batch` users.

        The body is that of hotplate's batches or, with `score`, of Azure ML's scoring: a row for each user.
        """
        next_users = iter(self.keys)
        path = SCORE_PATH if self.score else BATCH_PATH
        while True:
            users = tuple(itertools.islice(next_users, self.batch))
            content: dict[str, Any] = {"users": users, "n": LIST_LENGTH}
            if self.score:
                content = {"data": [{"user": user, "n": LIST_LENGTH} for user in users]}

            body = orjson.dumps(content)
            fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            yield Request(f"POST {path}".encode() + _request_tail(host, fields) + body, users)


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


def failure_of_lists(response: ResponseSample) -> str | None:
    """Return the kind of error of a response without the lists of its keys, in their order, as a `ResponseCheck`.

    Without keys, all responses of status 200 are good.
    """
    if response.status != OK or not response.keys:
        return failure_by_status(response)
    if response.lists is None:
        return CONTENT_TYPE
    if [answered.user or answered.item for answered in response.lists] != list(response.keys):
        return MISSING_LIST
    if all(HAS_ITEMS.match(answered.items) for answered in response.lists):
        return None
    request_line = response.request.partition(b"\r\n")[0]
    return None if any(name in request_line for name in FILTERS) else EMPTY_LIST


def dues(rate: float, duration_s: float, seed: int | None = None) -> Iterator[float]:
    """Yield the times at which requests are due, in seconds from the start, up to *duration_s*.

    They are evenly spaced at *rate* a second or, with a *seed*, at random by a Poisson process of this mean rate.
    """
    end = rate * duration_s - ROUNDING  # in units of the mean interval, 1 / rate
    if seed is None:
        yield from (number / rate for number in range(math.ceil(end)))
        return

    rng = np.random.default_rng(seed)
    due = 0.0
    while True:
        for interval in rng.exponential(1.0, BLOCK).tolist():
            due += interval
            if due >= end:
                return
            yield due / rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The parameters of a run.

    rate       requests due a second; None for a closed loop, each connection sending after its last response
    seed       of random due times, see `dues`; None for even ones
    timeout_s  a request fails this many seconds after it was due
    backlog    due requests that may wait for a connection; further ones are dropped
    check      says why a response is not good
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
    check: ResponseCheck = failure_of_lists
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

    def rendered(self) -> Iterator[Request]:
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
