"""Client of the HTTP service, with a deadline for each call and popular lists as a fallback.

Importing it loads neither the service nor a store.
"""

import asyncio
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack
from urllib.parse import quote, urlsplit

import httpcore2

from hotplate.background import Background, blocking

if TYPE_CHECKING:
    from ssl import SSLContext

    from hotplate.stores.encoding import Item

TIMEOUT_S = 0.2
CONNECTIONS = 50
# Shorter than the idle timeout of the service.
IDLE_S = 60.0
# Remembered popular lists: items of each, segments, age at which they are read again, and pause after a failure.
REMEMBERED_ITEMS = 100
REMEMBERED_SEGMENTS = 100
REFRESH_S = 60.0
REFRESH_AGAIN_S = 1.0
MAX_ANSWER_BYTES = 32 << 20
MAX_N = 1000
# Statuses of invalid requests, and of requests that this client is not allowed to send.
WRONG = {400, 405, 413, 414, 415, 431}
DENIED = {401, 403, 404}


class ClientError(Exception):
    """Base class of the errors of a client."""


class ServiceUnavailable(ClientError):
    """No answer in time and no remembered list, or the client was closed."""


class RequestRefused(ClientError):
    """The service refused the request as invalid, or the client's key."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """One list, best item first."""

    items: "list[Item]"
    source: str
    """`personal`, `similar`, `fold-in` or `popular`; `memory` for a remembered popular list."""

    release: str
    tier: str
    canary: bool = False
    status: str | None = None
    """In a batch: `ok`, `unknown`, or `error` (also for a list from memory)."""

    failure: str | None = None
    segment: str | None = None
    """Segment of a popular list, empty for the overall list."""


class ListOptions(TypedDict, total=False):
    """Options of a call."""

    exclude: Collection[str]
    fields: Sequence[str]
    """To return, such as `("id", "score")`."""

    timeout_s: float
    segment: str
    """Of the popular list that replaces a missing list; not for `similar`."""


class ClientOptions(TypedDict, total=False):
    """Options of a client, as of `AsyncClient`."""

    key: str | None
    timeout_s: float
    max_connections: int
    ssl_context: "SSLContext | None"


class _Failed(Exception):
    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Call:
    """A request, with options for cutting a remembered list. All requests are safe to repeat."""

    path: str
    n: int
    until: float
    subject: str = ""
    """Field of the response: `user`, `item`, or none."""

    subjects: Sequence[str] = ("",)
    body: dict[str, Any] | None = None
    segment: str = ""
    exclude: Collection[str] = ()
    fields: Sequence[str] = ()

    def request(self) -> tuple[str, list[tuple[str, str]], bytes]:
        if self.body is None:
            lists = [("exclude", self.exclude), ("fields", self.fields), ("segment", filter(None, [self.segment]))]
            query = [f"{name}={joined}" for name, values in lists if (joined := ",".join(map(_quoted, values)))]
            return f"{self.path}?{'&'.join([f'n={self.n}', *query])}", [], b""
        options = {"exclude": list(self.exclude), "fields": ",".join(self.fields), "segment": self.segment}
        content = json.dumps(self.body | {"n": self.n} | {name: one for name, one in options.items() if one}).encode()
        left_ms = min(max(1, int((self.until - time.monotonic()) * 1000)), 60_000)
        return self.path, [("Content-Type", "application/json"), ("X-Request-Timeout-Ms", str(left_ms))], content


class AsyncClient:
    """Client for asyncio programs; use one per event loop.

    A call ends within *timeout_s*, its own or the client's, including name look-up, connecting, and one repeat after a
    connection error. Without an answer in time it returns a remembered popular list, with the source `memory`. Raises
    ServiceUnavailable if there is none, RequestRefused if the service refuses the request, and ValueError for an *n*
    outside 1 to 1000 or a *timeout_s* of 0 or less.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_connections: int = CONNECTIONS,
        ssl_context: "SSLContext | None" = None,
    ) -> None:
        parts = urlsplit(url)
        if not (parts.scheme in {"http", "https"} and parts.hostname) or parts.username is not None or parts.query:
            raise ValueError("the URL of a service looks like http://127.0.0.1:8080; pass a key as key=")
        if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
            raise ValueError("the key has characters that a header cannot have")
        self._url = f"{parts.scheme}://{parts.netloc}{quote(parts.path, safe='/%')}".rstrip("/")
        self._key = key
        self._headers = [("Host", parts.netloc), ("User-Agent", "hotplate"), *([("X-API-Key", key)] if key else [])]
        _ = parts.port  # raises ValueError
        self._timeout_s = _checked_timeout(timeout_s)
        self._popular = dict[str, Answer]()
        self._due = dict[str, float]()  # when to read a segment's popular list again
        if ssl_context is None and parts.scheme == "https":
            ssl_context = httpcore2.default_ssl_context()  # slow, so before the first call
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context, max_connections=max_connections, keepalive_expiry=IDLE_S, network_backend=_Network()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def recommendations(self, user: str, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return a user's list, or the popular list for an unknown user."""
        path = f"recommendations/{_quoted(user)}"
        return (await self._run(path, n, options, subject="user", subjects=[user]))[0]

    async def batch(self, users: Sequence[str], n: int = 10, **options: Unpack[ListOptions]) -> list[Answer]:
        """Return the lists of up to 2,000 users, in order."""
        users = list(users)
        return await self._run("recommendations", n, options, subject="user", subjects=users, body={"users": users})

    async def similar(self, item: str, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return the items similar to *item*, or the popular list for an unknown item."""
        return (await self._run(f"similar/{_quoted(item)}", n, options, subject="item", subjects=[item]))[0]

    async def popular(self, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return the popular list. Call it at start with a longer `timeout_s`, to have it remembered."""
        return (await self._run("popular", n, options))[0]

    async def fold_in(
        self, items: Iterable[str] | Mapping[str, float], n: int = 10, **options: Unpack[ListOptions]
    ) -> Answer:
        """Return a list for a visitor's basket of items, or of weights by item."""
        basket: list[Any] = list(items)
        if isinstance(items, Mapping):
            basket = [{"id": item, "weight": weight} for item, weight in items.items()]
        return (await self._run("recommendations/fold-in", n, options, body={"items": basket}))[0]

    async def _run(self, path: str, n: int, options: Mapping[str, Any], **request: Any) -> list[Answer]:  # noqa: ANN401 -- fields of a _Call
        if not 1 <= n <= MAX_N:
            raise ValueError(f"n must be 1 to {MAX_N}, not {n}")
        others = dict(options)
        timeout_s = _checked_timeout(others.pop("timeout_s", self._timeout_s))
        call = _Call(path, n, time.monotonic() + timeout_s, **others, **request)
        try:
            answers = await self._try(call)
        except _Failed as error:
            await self._refresh(call)
            return self._stand_in(call, error)
        await self._refresh(call)
        return answers

    async def _try(self, call: _Call) -> list[Answer]:
        failure = ""
        for _ in range(2):
            try:
                return await self._send(call)
            except (TimeoutError, httpcore2.TimeoutException):  # a repeat would double the load of a slow service
                raise _Failed("no answer in time") from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
                failure = str(error) or type(error).__name__
        raise _Failed(failure)

    async def _send(self, call: _Call) -> list[Answer]:
        path, headers, content = call.request()
        method, url, body = "GET" if call.body is None else "POST", f"{self._url}/v1/{path}", bytearray()
        async with (
            asyncio.timeout(call.until - time.monotonic()),
            self._pool.stream(method, url, headers=[*self._headers, *headers], content=content or None) as response,
        ):
            async for piece in response.aiter_stream():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise _Failed(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        return self._read(call, response.status, bytes(body))

    def _read(self, call: _Call, status: int, body: bytes) -> list[Answer]:
        try:
            decoded = json.loads(body)
            if status == 200:
                lists = decoded.get("results", [decoded])
                if call.subject and [one[call.subject] for one in lists] != list(call.subjects):
                    raise _Failed(f"an answer for another {call.subject} than was requested")
                return [_answer(one) for one in lists]
            failure = f"{status} {decoded['type'].rpartition(':')[2]}: {decoded['detail']}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            failure = f"unexpected response with status {status}"
        raise _Failed(failure.replace(self._key, "…") if self._key else failure, status)

    async def _refresh(self, call: _Call) -> None:
        """Read due popular lists, each in half of the time left."""
        for segment in {"", call.segment}:
            now = time.monotonic()
            is_known = segment in self._due or len(self._due) < REMEMBERED_SEGMENTS
            if is_known and self._due.get(segment, 0.0) <= now < call.until:
                self._due[segment] = now + REFRESH_AGAIN_S
                with suppress(_Failed):
                    (answer,) = await self._try(
                        _Call("popular", REMEMBERED_ITEMS, (now + call.until) / 2, segment=segment)
                    )
                    if answer.items:
                        self._popular[segment], self._due[segment] = answer, now + REFRESH_S

    def _stand_in(self, call: _Call, error: _Failed) -> list[Answer]:
        known = [self._popular[name] for name in (call.segment, "") if name in self._popular]
        message = f"{self._url}: {error}"
        if error.status in WRONG or (not known and error.status in DENIED):
            raise RequestRefused(message, error.status)
        if not known:
            raise ServiceUnavailable(f"{message}; no popular list is remembered")
        answer = next((one for one in known if _cut(one.items, call)), known[0])
        status = "error" if call.path == "recommendations" else None
        return [
            replace(answer, items=_cut(answer.items, call), source="memory", status=status, failure=message)
            for _ in call.subjects
        ]


class Client(Background[AsyncClient]):
    """Client for programs without an event loop, with the options of `AsyncClient`; threads may share it.

    A background thread does the I/O, in each process. After `close`, calls raise ServiceUnavailable.
    """

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        if options.get("ssl_context") is None and url.lower().startswith("https:"):
            options["ssl_context"] = httpcore2.default_ssl_context()  # slow, so once, and not in the first call
        make = partial(AsyncClient, url, **options)
        make()  # checks the arguments
        super().__init__(make, lambda: ServiceUnavailable("the client was closed"))

    recommendations = blocking(AsyncClient.recommendations)
    batch = blocking(AsyncClient.batch)
    similar = blocking(AsyncClient.similar)
    popular = blocking(AsyncClient.popular)
    fold_in = blocking(AsyncClient.fold_in)


class _Network(httpcore2.AnyIOBackend):
    """Closes connections if their TLS handshake is cancelled, which httpcore2 does not."""

    async def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore2.AsyncNetworkStream:  # noqa: ANN401 -- as in httpcore2
        stream = await super().connect_tcp(*arguments, **options)
        start_tls = stream.start_tls

        async def start_or_close(*arguments: Any, **options: Any) -> httpcore2.AsyncNetworkStream:  # noqa: ANN401
            try:
                return await start_tls(*arguments, **options)
            except BaseException:
                await stream.aclose()
                raise

        stream.start_tls = start_or_close  # type: ignore[method-assign]
        return stream


def _answer(decoded: dict[str, Any]) -> Answer:
    optional = {name: decoded[name] for name in ("canary", "status", "segment") if name in decoded}
    items = [item for item in decoded["items"] if item["id"]]
    return Answer(items, decoded["source"], decoded["release"], decoded["tier"], **optional)


def _cut(items: "list[Item]", call: _Call) -> "list[Item]":
    """Return the first *n* items that are not excluded, with the requested fields."""
    excluded = set(call.exclude)
    kept = [item for item in items if item["id"] not in excluded][: call.n]
    fields = call.fields or ("id", "score", "title")
    return [{name: item[name] for name in fields if name in item} for item in kept]  # type: ignore[literal-required,misc]  # names of fields, as the service takes them


def _quoted(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"ids, fields and segments are strings, and not of the type {type(name).__name__}")
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")  # `..` would be a parent folder


def _checked_timeout(seconds: float) -> float:
    if not 0 < seconds < inf:
        raise ValueError(f"timeout_s is a number of seconds above 0, not {seconds}")
    return seconds
