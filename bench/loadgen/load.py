"""What one run requests of a service: where, what, for which users, when, and for how long."""

import asyncio
import itertools
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias
from urllib.parse import quote, urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.stores.http1 import ConnectionPool, RequestFailed, Response
from hotplate.stores.urls import redacted

# What stands for an id in a path.
KEY = "{key}"
BATCH_PATH = "/v1/recommendations"
SCORE_PATH = "/score"
# Keys and due times drawn at a time: far cheaper than one by one, and few enough that no request is late for it.
BLOCK = 256
ROUNDING = 1e-9

Positions = NDArray[np.int64]

# Judges a response by its status and body: None when it is good, else the kind of error to count it as.
ResponseCheck = Callable[[int, bytes], str | None]


@dataclass(frozen=True, slots=True)
class InTurn:
    """One after the other, over and over; no key is more popular than another, and caches see a worst case."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """Yield, without end, blocks of BLOCK positions below *count*."""
        for start in itertools.count(int(rng.integers(count)), BLOCK):
            yield np.arange(start, start + BLOCK) % count


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each as likely as any other."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """See `InTurn`."""
        while True:
            yield rng.integers(count, size=BLOCK)


@dataclass(frozen=True, slots=True)
class Zipf:
    """The k-th most popular key with a weight of 1/k^exponent; YCSB uses 0.99. Which keys those are is drawn, too."""

    exponent: float

    def __post_init__(self) -> None:
        """Refuse what is not an exponent."""
        if not 0 < self.exponent <= 10:
            raise BenchMisused(f"the exponent of zipf is above 0 and at most 10, not {self.exponent:g}")

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """See `InTurn`."""
        summed = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -self.exponent)
        order = np.random.default_rng(count).permutation(count)  # the same keys are popular in every run
        while True:
            yield order[np.searchsorted(summed, rng.random(BLOCK) * summed[-1], side="right")]


# A way to draw positions of a list; a value, so it can be sent to another process.
KeyDraw: TypeAlias = InTurn | Uniform | Zipf


@dataclass(frozen=True, slots=True)
class RequestKeys:
    """The requested ids; a share of `unknown` of them is made up, and has no list."""

    ids: Sequence[str]
    draw: KeyDraw
    unknown: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn from."""
        if not self.ids:
            raise BenchMisused("a key to request is missing")

    def __iter__(self) -> Iterator[str]:
        """Yield ids without end; the same ones each time for the same seed."""
        rng = np.random.default_rng(self.seed)
        for positions in self.draw.blocks(len(self.ids), rng):
            drawn = [self.ids[position] for position in positions.tolist()]
            if self.unknown:
                for position in np.flatnonzero(rng.random(BLOCK) < self.unknown).tolist():
                    drawn[position] = f"unknown-{int(rng.integers(10**9))}"
            yield from drawn


class Requests(Protocol):
    """What is requested; a dataclass, so it can be sent to another process."""

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield requests, whole, without end."""
        ...


@dataclass(frozen=True, slots=True)
class Gets:
    """GETs of one path, in which `{key}` is the id that was drawn."""

    path: str
    keys: RequestKeys | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a path, or has no {key} for keys."""
        _check_text(self.path)
        if not self.path.startswith("/") or " " in self.path:
            raise BenchMisused(f"a path starts with / and has no spaces, and this is {self.path!r}")
        if self.keys is not None and KEY not in self.path:
            raise BenchMisused(f"a path for keys has a {KEY} in it, and this is {self.path!r}")

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Requests`."""
        before, _, after = self.path.partition(KEY)
        head, tail = f"GET {before}".encode(), after.encode() + _request_tail(host, headers)
        for key in self.keys or itertools.repeat(""):
            yield head + quote(key, safe="").encode() + tail


@dataclass(frozen=True, slots=True)
class Posts:
    """POSTs for `batch` users each; with `score` as callers of Azure ML send them."""

    keys: RequestKeys
    batch: int
    n: int = 10
    score: bool = False

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Requests`."""
        drawn, path = iter(self.keys), SCORE_PATH if self.score else BATCH_PATH
        while True:
            users = list(itertools.islice(drawn, self.batch))
            rows = {"data": [{"user": user, "n": self.n} for user in users]}
            body = orjson.dumps(rows if self.score else {"users": users, "n": self.n})
            fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            yield f"POST {path}".encode() + _request_tail(host, fields) + body


def _check_text(text: str) -> None:
    if not text.isascii() or not text.isprintable():
        raise BenchMisused(f"{text!r} cannot stand in a request; percent-encode it")


def _request_tail(host: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    return (" HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def status_is_good(status: int, body: bytes) -> str | None:
    """Call every status from 400 on an error."""
    del body
    return "status" if status >= 400 else None


def dues(rate: float, duration_s: float, seed: int | None = None) -> Iterator[float]:
    """Yield the seconds from the start at which a request is due, in order; the same ones for the same arguments.

    Evenly spaced, or with a *seed* by a Poisson process, as independent users arrive: more than the mean in some
    moments, which is what queues are made of.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    passed = 0.0
    for block in itertools.count():
        if rng is None:
            counts = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.float64)
        else:
            counts = passed + np.cumsum(rng.exponential(1.0, BLOCK))
            passed = counts[-1]
        within = counts[counts < rate * duration_s - ROUNDING]
        yield from (within / rate).tolist()
        if len(within) < len(counts):
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A run to be made; may be run any number of times.

    Requests come at a constant `rate` a second for `duration_s`: evenly spaced, or with a `seed` as from independent
    users. Without a rate the loop is closed: each connection sends its next request when the last is answered. A
    request is given up `timeout_s` after it was due. At most `backlog` due requests wait for one of the `connections`,
    and further ones are dropped. `check` judges every response, instead of its status alone. `observe` names string
    fields of a compact JSON body whose values are counted. Of each `sample_every` responses one is kept, to be looked
    at afterwards (0: none).
    """

    url: str
    requests: Requests
    rate: float | None = None
    seed: int | None = None
    duration_s: float
    connections: int = 64
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 5.0
    backlog: int = 10_000
    check: ResponseCheck = status_is_good
    observe: Sequence[str] = ()
    sample_every: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run, with a sentence for each."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            raise BenchMisused(f"the target must look like http://HOST:PORT or https://HOST:PORT, not {self.url!r}")
        for text in itertools.chain(*self.headers.items()):
            _check_text(text)
        for name in ("rate", "duration_s", "connections", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BenchMisused(f"{name} must be above zero, and is {value}")

    def dues(self) -> Iterator[float]:
        """Yield when requests are due, in seconds from the start; nothing for a closed loop."""
        if self.rate is None:
            return iter(())
        return dues(self.rate, self.duration_s, self.seed)

    def rendered(self) -> Iterator[bytes]:
        """Yield its requests, whole, without end."""
        return self.requests.rendered(self.url.partition("://")[2].rstrip("/"), self.headers)


@dataclass(frozen=True, slots=True)
class Target:
    """Where connections go: a host, its port, and what they are encrypted with over https.

    The server's certificate must be good, by the system's authorities or those in the file *ca*.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> "Target":
        """Read a URL."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        tls = ssl.create_default_context() if secure else None
        return cls(parts.hostname or "", parts.port or (443 if secure else 80), tls)


def send_one(url: str, request: bytes, timeout_s: float) -> Response:
    """Send one request and return its response, whatever its status; BenchFailed if none comes."""
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
        raise BenchFailed(f"nothing answers at {redacted(url)} ({error.kind}); is the service running?") from error
