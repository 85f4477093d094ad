"""The client of the HTTP service: a call ends by its deadline, and falls back on a popular list that it remembers.

It loads neither the service nor a store.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit

import httpcore2

if TYPE_CHECKING:
    from ssl import SSLContext

    from hotplate.stores.encoding import Item

T = TypeVar("T")

# How long a call may take, unless its caller says otherwise.
TIMEOUT_S = 0.2
# How many connections a client has at most, and when an idle one is closed: before the service closes it.
CONNECTIONS = 50
IDLE_S = 60.0
# How many items of a popular list are remembered, of how many segments, how old they are when they are read again, and
# when a read of them that failed is tried again.
REMEMBERED_ITEMS = 100
REMEMBERED_SEGMENTS = 100
REFRESH_S = 60.0
REFRESH_AGAIN_S = 1.0
MAX_ANSWER_BYTES = 32 << 20
MAX_N = 1000
MAX_FAILURE_CHARS = 300
# The service's statuses for requests that are wrong, and for those that this client may not send.
WRONG = {400, 405, 413, 414, 415, 431}
DENIED = {401, 403, 404}
CLOSED = "the client was closed"

# Ids of the items that a visitor has, or their weights by id.
Basket = Iterable[str] | Mapping[str, float]


class ClientError(Exception):
    """What a client raises: ServiceUnavailable or RequestRefused."""


class ServiceUnavailable(ClientError):
    """The service did not answer in time, and no popular list is remembered."""


class RequestRefused(ClientError):
    """The service says that the request is wrong, or that this client may not send it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """One list, best item first, and where it came from."""

    items: "list[Item]"
    source: str
    """`personal`, `similar`, `fold-in` or `popular`; `memory` for a popular list that the client remembers."""

    release: str
    tier: str
    canary: bool = False
    status: str | None = None
    """Of a batch: `ok`, `unknown`, or `error`, which those from memory are, too."""

    failure: str | None = None
    """Why the list is from memory."""

    segment: str | None = None
    """The segment of a popular list, empty for the list of everybody."""


class SimilarOptions(TypedDict, total=False):
    """Options of `similar`: ids to leave out; `("id",)` or `("id", "score")` for those fields only; a deadline."""

    exclude: Collection[str]
    fields: Sequence[str]
    timeout_s: float


class ListOptions(SimilarOptions, total=False):
    """Options of the other methods: the segment whose popular list stands in for a list that does not exist, too."""

    segment: str


class _Failed(Exception):
    """A request without lists in its answer; its status, if there was an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message[:MAX_FAILURE_CHARS])
        self.status = status


@dataclass(frozen=True, slots=True)
class _Call:
    """A request, and how to cut a popular list that stands in for its answer. Reads only, so it may be repeated."""

    route: str
    path: str
    n: int
    timeout_s: float
    subject: str = ""
    """What the lists are for, as the answer names it: `user`, `item`, or nothing."""

    subjects: Sequence[str] = ("",)
    body: dict[str, Any] | None = None
    segment: str = ""
    exclude: Collection[str] = ()
    fields: Sequence[str] = ()
    until: float = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_N:
            raise ValueError(f"n is how many items to return, 1 to {MAX_N}, not {self.n}")
        object.__setattr__(self, "until", time.monotonic() + _checked_timeout(self.timeout_s))

    def request(self) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return the path and query below `/v1/`, headers, and the body."""
        if self.body is None:
            lists = [("exclude", self.exclude), ("fields", self.fields), ("segment", filter(None, [self.segment]))]
            query = [f"{name}={joined}" for name, values in lists if (joined := ",".join(map(_quoted, values)))]
            return f"{self.path}?{'&'.join([f'n={self.n}', *query])}", [], b""
        options = {"exclude": list(self.exclude), "fields": ",".join(self.fields), "segment": self.segment}
        content = json.dumps(self.body | {"n": self.n} | {name: one for name, one in options.items() if one}).encode()
        left_ms = min(max(1, int((self.until - time.monotonic()) * 1000)), 60_000)
        of_body = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        return self.path, [*of_body, ("X-Request-Timeout-Ms", str(left_ms))], content


class AsyncClient:
    """Lists from the HTTP service, for programs on one asyncio event loop; make one for the whole program.

    A method ends within *timeout_s*, its own or the client's: looking up the service's name, connecting, repeating what
    failed with its connection once, and reading the answer. If the service does not answer in time, the answer is the
    popular list that the client remembers, and its source is `memory`. Raises ServiceUnavailable if none is remembered,
    RequestRefused for a request that is wrong, and ValueError for an *n* outside 1 to 1000 and for a *timeout_s* that
    is not a number above 0.
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
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None or parts.query:
            raise ValueError("the URL of a service looks like http://127.0.0.1:8080; a key is given as key=")
        if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
            raise ValueError("the key has characters that a header cannot have")
        self._url = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        self._origin = {"scheme": parts.scheme, "host": parts.hostname, "port": parts.port}
        self._prefix = quote(parts.path.rstrip("/"), safe="/%")
        self._key = key
        self._headers = [("Host", parts.netloc), ("User-Agent", "hotplate"), *([("X-API-Key", key)] if key else [])]
        self._timeout_s = _checked_timeout(timeout_s)
        self._popular = dict[str, Answer]()
        self._due = dict[str, float]()
        """When to read the popular list of a segment again."""
        if ssl_context is None and parts.scheme == "https":
            ssl_context = httpcore2.default_ssl_context()  # here, because it takes long
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
        """Return a user's list; if there is none, the popular list."""
        return (await self._run("recommendations/{}", n, options, subject="user", subjects=[user]))[0]

    async def batch(self, users: Sequence[str], n: int = 10, **options: Unpack[ListOptions]) -> list[Answer]:
        """Return the lists of up to 2,000 users, in order."""
        users = list(users)
        return await self._run("recommendations", n, options, subject="user", subjects=users, body={"users": users})

    async def similar(self, item: str, n: int = 10, **options: Unpack[SimilarOptions]) -> Answer:
        """Return the items that are like *item*; for an unknown one the popular list."""
        return (await self._run("similar/{}", n, options, subject="item", subjects=[item]))[0]

    async def popular(self, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return the popular list. Call it when the program starts, with a longer `timeout_s`."""
        return (await self._run("popular", n, options))[0]

    async def fold_in(self, items: Basket, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return a list for a visitor who has *items*, given with their weights or without."""
        weighted = (
            [{"id": item, "weight": weight} for item, weight in items.items()]
            if isinstance(items, Mapping)
            else list(items)
        )
        return (await self._run("recommendations/fold-in", n, options, body={"items": weighted}))[0]

    async def _run(
        self,
        route: str,
        n: int,
        options: Mapping[str, Any],
        *,
        subjects: Sequence[str] = ("",),
        **request: Any,  # noqa: ANN401 -- fields of a _Call
    ) -> list[Answer]:
        path = route.format(*map(_quoted, subjects)) if "{}" in route else route
        call = _Call(route, path, n, **({"timeout_s": self._timeout_s} | dict(options)), subjects=subjects, **request)
        try:
            answers = await self._try(call)
        except _Failed as error:
            await self._refresh(call)
            return self._stand_in(call, error)
        for answer in answers:
            to_remember = call.segment in self._due and call.segment not in self._popular
            if to_remember and answer.source == "popular" and answer.items and not call.exclude:
                self._popular[call.segment] = deepcopy(answer)  # in case that it could not be read as below
        await self._refresh(call)
        return answers

    async def _try(self, call: _Call) -> list[Answer]:
        try:
            try:
                return await self._send(call)
            except TimeoutError:  # an OSError
                raise
            except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
                return await self._send(call)  # all that are dead have left the pool
        except (TimeoutError, httpcore2.TimeoutException):  # not repeated: that would double the load of a slow service
            raise _Failed("no answer in time") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
            raise _Failed(str(error) or type(error).__name__) from None

    async def _send(self, call: _Call) -> list[Answer]:
        path, headers, content = call.request()
        url = httpcore2.URL(**self._origin, target=f"{self._prefix}/v1/{path}".encode())  # type: ignore[arg-type]
        method, body = "GET" if call.body is None else "POST", bytearray()
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
        """Return the lists of an answer; raises _Failed for any other."""
        try:
            decoded = json.loads(body)
            if status == 200:
                lists = decoded.get("results", [decoded])
                if call.subject and [one[call.subject] for one in lists] != list(call.subjects):
                    raise _Failed(f"an answer for another {call.subject} than was requested")
                return [_answer(one) for one in lists]
            failure = f"{status} {decoded['type'].rpartition(':')[2]}: {decoded['detail']}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            failure = f"an answer with status {status} that hotplate does not give"
        if self._key:
            failure = failure.replace(self._key, "…")  # before it is cut, or a part of the key could be left
        raise _Failed(failure, status)

    async def _refresh(self, call: _Call) -> None:
        """Read the popular lists that could stand in for an answer, if due, each in half of the time that is left."""
        for segment in {"", call.segment}:
            now = time.monotonic()
            is_known = segment in self._due or len(self._due) < REMEMBERED_SEGMENTS
            if is_known and self._due.get(segment, 0.0) <= now < call.until:
                self._due[segment] = now + REFRESH_AGAIN_S
                popular = _Call("popular", "popular", REMEMBERED_ITEMS, (call.until - now) / 2, segment=segment)
                with suppress(_Failed):
                    (answer,) = await self._try(popular)
                    if answer.items:
                        self._popular[segment], self._due[segment] = answer, now + REFRESH_S

    def _stand_in(self, call: _Call, error: _Failed) -> list[Answer]:
        """Return remembered lists in place of an answer; raises RequestRefused and ServiceUnavailable."""
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


class Client:
    """Lists from the HTTP service, as `AsyncClient` gives them, for programs without an event loop.

    Several threads may use it. A thread of its own does the I/O; a process that was forked starts another, with
    connections of its own.
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
        if ssl_context is None and url.startswith("https:"):
            ssl_context = httpcore2.default_ssl_context()
        self._open = partial(
            AsyncClient, url, key=key, timeout_s=timeout_s, max_connections=max_connections, ssl_context=ssl_context
        )
        self._open()  # raises what is wrong with the arguments
        self._running = dict[int, _Running]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end the thread."""
        if running := self._running.pop(os.getpid(), None):
            running.close()

    def recommendations(self, user: str, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return what `AsyncClient.recommendations` does."""
        return self._run(lambda client: client.recommendations(user, n, **options))

    def batch(self, users: Sequence[str], n: int = 10, **options: Unpack[ListOptions]) -> list[Answer]:
        """Return what `AsyncClient.batch` does."""
        return self._run(lambda client: client.batch(users, n, **options))

    def similar(self, item: str, n: int = 10, **options: Unpack[SimilarOptions]) -> Answer:
        """Return what `AsyncClient.similar` does."""
        return self._run(lambda client: client.similar(item, n, **options))

    def popular(self, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return what `AsyncClient.popular` does."""
        return self._run(lambda client: client.popular(n, **options))

    def fold_in(self, items: Basket, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return what `AsyncClient.fold_in` does."""
        return self._run(lambda client: client.fold_in(items, n, **options))

    def _run(self, call: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
        here = os.getpid()
        running = self._running.get(here) or self._running.setdefault(here, _Running())  # the same one in all threads
        return running.run(call, self._open)


class _Running:
    """A client of one process, and the thread whose loop it is used on."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._client: AsyncClient | None = None
        self._is_closed = False

    def run(self, call: Callable[[AsyncClient], Coroutine[Any, Any, T]], open_it: Callable[[], AsyncClient]) -> T:
        """Run a call on the loop, which is started first; the call has a deadline of its own."""
        with self._lock:
            if self._is_closed:
                raise ServiceUnavailable(CLOSED)
            if self._client is None:
                self._client, self._loop = open_it(), asyncio.new_event_loop()
                self._thread = Thread(target=self._loop.run_forever, name="hotplate-client", daemon=True)
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(call(self._client), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ServiceUnavailable(CLOSED) from None
        except BaseException:
            future.cancel()  # on KeyboardInterrupt
            raise

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._client is not None:
                asyncio.run_coroutine_threadsafe(_end(self._client), self._loop).result()
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()


async def _end(client: AsyncClient) -> None:
    """Cancel the calls of other threads, and close the connections."""
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await client.aclose()


class _Network(httpcore2.AnyIOBackend):
    """Opens connections that close if their TLS handshake is cancelled; those of httpcore2 stay open."""

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
    """Return the first *n* items of a list but the excluded ones, with the fields, as the service does."""
    excluded = set(call.exclude)
    kept = [item for item in items if item["id"] not in excluded][: call.n]
    fields = call.fields or ("id", "score", "title")
    return [{name: item[name] for name in fields if name in item} for item in kept]  # type: ignore[literal-required,misc]  # names of fields, as the service takes them


def _quoted(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"an id, a field and a segment are strings, and not of the type {type(name).__name__}")
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")  # else it names a folder


def _checked_timeout(seconds: float) -> float:
    if not 0 < seconds < inf:
        raise ValueError(f"a time-out is a number of seconds above 0, not {seconds}")
    return seconds
