"""Client of the HTTP service, with deadlines and popular lists as a fallback; loads neither service nor store."""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from urllib.parse import quote, urlsplit

import httpcore2

from hotplate.background import Background, blocking
from hotplate.proxies import proxy_for
from hotplate.recommendations import Recommendations, RequestOptions

if TYPE_CHECKING:
    from ssl import SSLContext

    from hotplate.stores.encoding import Item

TIMEOUT_S = 0.2
CONNECTIONS = 50
IDLE_S = 60.0  # shorter than the idle timeout of the service
# Remembered popular lists: items of each, lists, age at which they are read again, and pause after a failure.
REMEMBERED_ITEMS = 100
REMEMBERED_LISTS = 100
REFRESH_S = 60.0
REFRESH_AGAIN_S = 1.0
MAX_ANSWER_BYTES = 32 << 20
# Fields that only some answers have.
OPTIONAL = ("canary", "status", "segment", "list", "next", "restarted")
# `after` of a first page.
FIRST_PAGE = "0"
# Statuses 4xx that refuse no request, and those that a remembered list replaces.
TRANSIENT = {408, 429}
DENIED = {401, 403, 404}
Basket = Iterable[str] | Mapping[str, float]


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
class Answer(Recommendations):
    """A list of the service; *source* is `memory` for a remembered popular list, with a *failure*.

    In a batch, *status* is `ok`, `unknown`, or `error`.
    """

    status: str | None = None
    failure: str | None = None


class ClientOptions(TypedDict, total=False):
    """Options of a client, as of `AsyncClient`."""

    key: str | None
    timeout_s: float
    max_connections: int
    ssl_context: "SSLContext | None"


@dataclass(frozen=True, slots=True)
class _Call:
    """A request, which is safe to repeat, with what its answers must contain."""

    path: str
    n: int
    until: float
    expected: Sequence[dict[str, str]] = ({},)
    body: dict[str, Any] | None = None
    segment: str = ""
    exclude: Collection[str] = ()
    where: str = ""
    fields: Sequence[str] = ()
    list: str = ""
    after: str = ""

    @property
    def cursors(self) -> Sequence[str]:
        """The `after` of each list."""
        if self.body is None:
            return [self.after]
        users = self.body.get("users", [""])
        return ["" if isinstance(user, str) else user["after"] for user in users]

    def request(self, url: str) -> "_Request":
        """Return the request of this call, a GET without a body."""
        single = {"where": self.where, "segment": self.segment, "list": self.list, "after": self.after}
        if self.body is None:
            parameters = [f"n={self.n}"]
            options = {"exclude": self.exclude, "fields": self.fields}
            for name, values in (options | {name: [value] for name, value in single.items()}).items():
                joined = ",".join(map(_quoted, values))
                if joined:
                    parameters.append(f"{name}={joined}")
            return _Request("GET", f"{url}{self.path}?{'&'.join(parameters)}")
        fields = {"exclude": [*self.exclude], "fields": ",".join(self.fields)} | single
        content = self.body | {"n": self.n} | {name: value for name, value in fields.items() if value}
        left_ms = int(min(max(1.0, (self.until - time.monotonic()) * 1000), 60_000.0))
        headers = [("Content-Type", "application/json"), ("X-Request-Timeout-Ms", str(left_ms))]
        return _Request("POST", url + self.path, headers=headers, content=json.dumps(content).encode())


@dataclass(frozen=True, slots=True)
class _Request:
    """An HTTP request."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = ()
    content: bytes | None = None


class AsyncClient(AbstractAsyncContextManager["AsyncClient"]):
    """Client for asyncio programs, which may use it on several event loops.

    A call ends within *timeout_s*, its own or the client's, including name look-up, connecting, and one repeat after a
    connection error. Without an answer in time it returns a remembered popular list, with the source `memory`. Raises
    ServiceUnavailable if there is none, and RequestRefused if the service refuses the request.
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
        is_usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0  # raises ValueError
        if not is_usable or parts.username is not None or parts.query:
            raise ValueError("the URL of a service looks like http://127.0.0.1:8080; pass a key as key=")
        if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
            raise ValueError("the key has characters that a header cannot have")
        self._service = url
        self._options = ClientOptions(
            key=key, timeout_s=timeout_s, max_connections=max_connections, ssl_context=ssl_context
        )
        self._url = f"{parts.scheme}://{parts.netloc}{quote(parts.path, safe='/%')}".rstrip("/")
        self._key = key
        self._headers = [("Host", parts.netloc), ("User-Agent", "hotplate"), *([("X-API-Key", key)] if key else [])]
        self._timeout_s = timeout_s
        self._popular = dict[tuple[str, str, str], Answer]()  # by list, segment and `where`
        self._due = dict[tuple[str, str, str], float]()  # when to read it again
        is_plain = parts.scheme == "http"
        self.ssl_context = ssl_context or (None if is_plain else httpcore2.default_ssl_context())  # slow: not in a call
        self._max_connections = max_connections
        self._proxy = proxy_for(self._url)
        self._pools = dict[asyncio.AbstractEventLoop, httpcore2.AsyncConnectionPool]()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle the arguments, with the key, and not the connections; an `ssl_context` cannot be pickled."""
        return partial(type(self), self._service, **self._options), ()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def _pool(self) -> httpcore2.AsyncConnectionPool:
        """Return the connections of this event loop."""
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for closed in [other for other in list(self._pools) if other.is_closed()]:
                self._pools.pop(closed, None)
            pool = self._pools[loop] = httpcore2.AsyncConnectionPool(
                self.ssl_context,
                None if self._proxy is None else httpcore2.Proxy(self._proxy.url, self._proxy.credentials),
                max_connections=self._max_connections,
                keepalive_expiry=IDLE_S,
            )
        return pool

    async def recommendations(self, user: str, n: int = 10, **options: Unpack[RequestOptions]) -> Answer:
        """Return a user's list, or the popular list for an unknown user."""
        return (await self._run(f"recommendations/{_quoted(user)}", n, options, expected=[{"user": user}]))[0]

    async def batch(
        self, users: Sequence[str] | Mapping[str, str], n: int = 10, **options: Unpack[RequestOptions]
    ) -> list[Answer]:
        """Return the lists of up to 2,000 users, in order; from a mapping of users to their `after`, pages."""
        expected = [{"user": user} for user in users]
        wanted: list[Any] = list(users)
        if isinstance(users, Mapping):
            wanted = [{"id": user, "after": after} for user, after in users.items()]
        return await self._run("recommendations", n, options, expected=expected, body={"users": wanted})

    async def similar(self, item: str, n: int = 10, **options: Unpack[RequestOptions]) -> Answer:
        """Return the items similar to *item*, or the popular list for an unknown item."""
        return (await self._run(f"similar/{_quoted(item)}", n, options, expected=[{"item": item}]))[0]

    async def popular(self, n: int = 10, **options: Unpack[RequestOptions]) -> Answer:
        """Return the popular list. Call it at start with a longer `timeout_s`, to have it remembered."""
        return (await self._run("popular", n, options))[0]

    async def fold_in(
        self, items: Basket, n: int = 10, *, recency: float | None = None, **options: Unpack[RequestOptions]
    ) -> Answer:
        """Return a list for a visitor's basket of items, or of weights by item, the newest last.

        *recency* is the factor of an item's weight for each newer one, above 0 and at most 1 (any order).
        """
        basket: list[Any] = list(items)
        if isinstance(items, Mapping):
            basket = [{"id": item, "weight": weight} for item, weight in items.items()]
        body: dict[str, Any] = {"items": basket}
        if recency is not None:
            body["recency"] = recency
        return (await self._run("recommendations/fold-in", n, options, body=body))[0]

    async def _run(
        self,
        path: str,
        n: int,
        options: Mapping[str, Any],
        *,
        expected: Sequence[dict[str, str]] = ({},),
        body: dict[str, Any] | None = None,
    ) -> list[Answer]:
        own = {"timeout_s": self._timeout_s, **options}
        until = time.monotonic() + own.pop("timeout_s")
        call = _Call(path, n, until, expected=expected, body=body, **own)
        if call.list:
            call = replace(call, expected=[{**fields, "list": call.list} for fields in call.expected])
        answers = await self._try(call)
        await self._refresh(call)
        return self._stand_in(call, answers) if isinstance(answers, ClientError) else answers

    async def _try(self, call: _Call) -> list[Answer] | ClientError:
        failure = ""
        for _ in range(2):
            try:
                async with asyncio.timeout(call.until - time.monotonic()):
                    return await self._send(call)
            except (TimeoutError, httpcore2.TimeoutException):  # a repeat would double the load of a slow service
                return ServiceUnavailable(f"{self._url}: no answer in time")
            except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
                failure = str(error) or type(error).__name__
        return ServiceUnavailable(f"{self._url}: {failure}")

    async def _send(self, call: _Call) -> list[Answer] | ClientError:
        request = call.request(f"{self._url}/v1/")
        body = bytearray()
        async with self._pool().stream(
            request.method,
            request.url,
            headers=[*request.headers, *self._headers],
            content=request.content,
            extensions={"trace": _closing_failed_handshakes()},
        ) as response:
            async for piece in response.aiter_stream():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    return ServiceUnavailable(f"{self._url}: the answer has more than {MAX_ANSWER_BYTES} bytes")
        return self._decoded(call, response.status, body)

    def _decoded(self, call: _Call, status: int, body: bytearray) -> list[Answer] | ClientError:
        try:
            decoded = json.loads(body)
            if status == 200:
                lists = list(zip(decoded.get("results", [decoded]), call.expected, strict=True))
                if all(expected.items() <= fields.items() for fields, expected in lists):
                    return [_answer(fields) for fields, _ in lists]
                failure = "an answer for another user or item than was requested"
            else:
                failure = f"{status} {decoded['type'].rpartition(':')[2]}: {decoded['detail']}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            failure = f"unexpected response with status {status}"
        if self._key:
            failure = failure.replace(self._key, "…")
        if status // 100 == 4 and status not in TRANSIENT:
            return RequestRefused(f"{self._url}: {failure}", status)
        return ServiceUnavailable(f"{self._url}: {failure}")

    async def _refresh(self, call: _Call) -> None:
        """Read due popular lists, each in half of the time left."""
        for key in {(call.list, "", call.where), (call.list, call.segment, call.where)}:
            now = time.monotonic()
            room = REMEMBERED_LISTS // 2 if call.where else REMEMBERED_LISTS  # conditions may vary without end
            is_known = key in self._due or len(self._due) < room
            if is_known and self._due.get(key, 0.0) <= now < call.until:
                self._due[key] = now + REFRESH_AGAIN_S
                popular = _Call(
                    path="popular",
                    n=REMEMBERED_ITEMS,
                    until=(now + call.until) / 2,
                    segment=key[1],
                    where=call.where,
                    list=call.list,
                )
                answers = await self._try(popular)
                if isinstance(answers, list) and answers[0].items:
                    self._popular[key] = answers[0]
                    self._due[key] = now + REFRESH_S

    def _stand_in(self, call: _Call, error: ClientError) -> list[Answer]:
        keys = [(call.list, segment, call.where) for segment in (call.segment, "")]
        known = [self._popular[key] for key in keys if key in self._popular]
        if isinstance(error, RequestRefused) and (error.status not in DENIED or not known):
            raise error
        if not known:
            raise ServiceUnavailable(f"{error}; no popular list is remembered")
        answer = next((popular for popular in known if _cut(popular.items, call)), known[0])
        status = "error" if call.path == "recommendations" else None
        items = _cut(answer.items, call)
        answer = replace(answer, items=items, source="memory", status=status, failure=str(error))
        return [replace(answer, restarted=after not in ("", FIRST_PAGE)) for after in call.cursors]


class Client(Background[AsyncClient]):
    """Client for programs without an event loop, with the options of `AsyncClient`; threads may share it.

    A background thread does the I/O, in each process. After `close`, calls raise ServiceUnavailable.
    """

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        self._service = url
        self._options = options.copy()
        options["ssl_context"] = AsyncClient(url, **options).ssl_context  # checks the arguments
        super().__init__(partial(AsyncClient, url, **options), lambda: ServiceUnavailable("the client was closed"))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """As of `AsyncClient`."""
        return partial(type(self), self._service, **self._options), ()

    recommendations = blocking(AsyncClient.recommendations)
    batch = blocking(AsyncClient.batch)
    similar = blocking(AsyncClient.similar)
    popular = blocking(AsyncClient.popular)

    def fold_in(
        self, items: Basket, n: int = 10, *, recency: float | None = None, **options: Unpack[RequestOptions]
    ) -> Answer:
        """See `AsyncClient.fold_in`."""
        basket = items if isinstance(items, Mapping) else list(items)  # a lazy one is read in the caller's thread
        return self._run(lambda client: client.fold_in(basket, n, recency=recency, **options))


def _closing_failed_handshakes() -> Callable[[str, dict[str, Any]], Coroutine[Any, Any, None]]:
    """Return a trace of a request that closes its connection if the TLS handshake is cancelled; httpcore2 does not."""
    opened = list[httpcore2.AsyncNetworkStream]()

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            opened.append(info["return_value"])
        elif event == "connection.start_tls.failed":
            await opened[-1].aclose()

    return trace


def _answer(decoded: dict[str, Any]) -> Answer:
    optional = {name: decoded[name] for name in OPTIONAL if name in decoded}
    items = [item for item in decoded["items"] if item["id"]]
    return Answer(items=items, source=decoded["source"], release=decoded["release"], tier=decoded["tier"], **optional)


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
