"""What one run requests of a service: where, what, for which keys, how often and for how long."""

import asyncio
import itertools
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Protocol, TypeVar
from urllib.parse import quote, urlsplit

import orjson

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.keys import RequestKeys
from hotplate.bench.loadgen.schedule import dues
from hotplate.stores.http1 import ConnectionPool, RequestFailed, Response
from hotplate.stores.urls import redacted

# What stands for an id in a path.
KEY = "{key}"

BATCH_PATH = "/v1/recommendations"
SCORE_PATH = "/score"

T = TypeVar("T")

# Judges a response by its status and body: None when it is good, else the kind of error to count it as.
ResponseCheck = Callable[[int, bytes], str | None]


class Requests(Protocol):
    """What is requested; a dataclass, so it can be sent to another process, which draws keys of its own."""

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield requests, whole, without end."""
        ...


@dataclass(frozen=True, slots=True)
class Gets:
    """GETs of one path, in which `{key}` is the id that was drawn; each has the next of the `varying` headers, too."""

    path: str
    keys: RequestKeys | None = None
    varying: Sequence[Mapping[str, str]] = ()

    def __post_init__(self) -> None:
        """Refuse what is not a path, or has no {key} for keys."""
        check_path(self.path)
        if self.keys is not None and KEY not in self.path:
            raise BenchMisused(f"a path for keys has a {KEY} in it, and this is {self.path!r}")

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Requests`."""
        before, _, after = self.path.partition(KEY)
        head = f"GET {before}".encode()
        tails = [after.encode() + request_tail(host, {**headers, **changing}) for changing in self.varying or ({},)]
        for key, tail in zip(self.keys or itertools.repeat(""), itertools.cycle(tails), strict=False):
            yield head + quote(key, safe="").encode() + tail


@dataclass(frozen=True, slots=True)
class Posts:
    """POSTs for `batch` users each; with `score` as callers of Azure ML send them."""

    keys: RequestKeys
    batch: int
    n: int = 10
    score: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.batch < 1:
            raise BenchMisused(f"a batch has one user or more, not {self.batch}")

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Requests`."""
        drawn, path = iter(self.keys), SCORE_PATH if self.score else BATCH_PATH
        while True:
            users = list(itertools.islice(drawn, self.batch))
            rows = {"data": [{"user": user, "n": self.n} for user in users]}
            body = orjson.dumps(rows if self.score else {"users": users, "n": self.n})
            fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            yield f"POST {path}".encode() + request_tail(host, fields) + body


def for_part(value: T, part: int) -> T:
    """Return requests, or anything in them, as one of several processes makes them: it draws keys of its own."""
    if isinstance(value, RequestKeys):
        return replace(value, part=part)
    if isinstance(value, type) or not is_dataclass(value):
        return value
    changes = {each.name: for_part(getattr(value, each.name), part) for each in fields(value)}
    return replace(value, **changes)  # type: ignore[type-var]  # an instance of a dataclass, which mypy does not see


def check_path(path: str) -> None:
    """Refuse what cannot stand in the first line of a request."""
    check_text(path)
    if not path.startswith("/") or " " in path:
        raise BenchMisused(f"A path starts with / and has no spaces, and this is {path!r}.")


def check_text(text: str) -> None:
    """Refuse what cannot stand in the head of a request."""
    if not text.isascii() or not text.isprintable():
        raise BenchMisused(f"{text!r} cannot stand in a request; percent-encode it.")


def request_tail(host: str, headers: Mapping[str, str]) -> bytes:
    """Return what follows the path in the head of a request."""
    lines = [f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    return (" HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def status_is_good(status: int, body: bytes) -> str | None:
    """Call every status from 400 on an error."""
    del body
    return "status" if status >= 400 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A run to be made; may be run any number of times.

    Requests come at a constant `rate` a second for `duration_s`: evenly spaced, or with a `seed` as from independent
    users. Without a rate the loop is closed: each connection sends its next request when the last is answered, or
    `think_s` later, more or less by up to `think_spread` of that. A request is given up `timeout_s` after it was due.
    At most `backlog` due requests wait for one of the `connections`, and further ones are dropped. `check` judges every
    response, instead of its status alone; an exception from it ends the run. `observe` names string fields of a compact
    JSON body whose values are counted. Of each `sample_every` responses one is kept, to be looked at afterwards (0:
    none). `tally` names a header of responses whose numbers are added up. Over https the server's certificate must be
    good, by the system's authorities or those in the file `ca`. Of several processes each has its `part` of all
    `parts`.
    """

    url: str
    requests: Requests
    rate: float | None = None
    seed: int | None = None
    duration_s: float
    think_s: float = 0.0
    think_spread: float = 0.0
    connections: int = 64
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 5.0
    backlog: int = 10_000
    check: ResponseCheck = status_is_good
    observe: Sequence[str] = ()
    sample_every: int = 0
    tally: str = ""
    ca: str | None = None
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be run, with a sentence for each."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            raise BenchMisused(f"The target must look like http://HOST:PORT or https://HOST:PORT, not {self.url!r}.")
        for name, value in self.headers.items():
            check_text(name)
            check_text(value)
        for name in ("rate", "duration_s", "connections", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BenchMisused(f"{name} must be above zero, and is {value}.")

    @property
    def host(self) -> str:
        """Where to connect to."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Where to connect to; 80, or 443 for https, by default."""
        return urlsplit(self.url).port or (443 if self.url.startswith("https:") else 80)

    def tls(self) -> ssl.SSLContext | None:
        """Make what a connection is encrypted with; None for plain http."""
        return tls_of(self.url, self.ca)

    def dues(self) -> Iterator[float]:
        """Yield when requests are due, in seconds from the start; nothing for a closed loop."""
        if self.rate is None:
            return iter(())
        return dues(self.rate, self.duration_s, self.seed, self.part, self.parts)

    def rendered(self) -> Iterator[bytes]:
        """Yield its requests, whole, without end."""
        host = self.url.partition("://")[2].rstrip("/")
        return self.requests.rendered(host, self.headers)

    def share(self, part: int, parts: int) -> "Load":
        """Return the load of one of *parts* processes; together they make the same run."""
        connections = self.connections // parts + (part < self.connections % parts)
        if connections == 0:
            raise BenchMisused(f"{parts} processes need a connection each, and there are {self.connections} in all")
        return replace(
            self,
            requests=for_part(self.requests, part),
            part=part,
            parts=parts,
            connections=connections,
            backlog=max(1, self.backlog // parts),
        )


def tls_of(url: str, ca: str | None) -> ssl.SSLContext | None:
    """Make what a connection to *url* is encrypted with; None for plain http."""
    return ssl.create_default_context(cafile=ca) if url.startswith("https:") else None


def send_one(url: str, request: bytes, timeout_s: float, ca: str | None = None) -> Response:
    """Send one request and return its response, whatever its status; BenchFailed if none comes."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)

    async def send() -> Response:
        pool = ConnectionPool(parts.hostname or "", port, size=1, tls=tls_of(url, ca))
        try:
            return await pool.request(request, timeout_s)
        finally:
            await pool.close()

    try:
        return asyncio.run(send())
    except RequestFailed as error:
        raise BenchFailed(f"nothing answers at {redacted(url)} ({error.kind}); is the service running?") from error
