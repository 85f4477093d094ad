"""Client of the HTTP service, with deadlines and popular lists as a fallback; loads neither service nor store."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from numbers import Real
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack
from urllib.parse import SplitResult, quote, urlsplit

import httpcore2

from hotplate.base.background import Background, blocking
from hotplate.base.proxies import proxy_for
from hotplate.base.recommendations import Recommendations, RequestOptions
from hotplate.remembered_lists import REMEMBERED_ITEMS, RememberedLists

if TYPE_CHECKING:
    from ssl import SSLContext

TIMEOUT_S = 0.2
CONNECTIONS = 50
# Shorter than the idle timeout of the service, which would otherwise close a connection as it is used.
IDLE_S = 60.0
# Stores take lists of at most 4 MiB; popular items may follow. Parsing takes time, and many times the memory.
MAX_LIST_BYTES = 9 << 20
MAX_ANSWER_BYTES = 32 << 20
# The service accepts no longer time limit.
MAX_TIMEOUT_MS = 60_000.0
# Fields that only some answers have.
OPTIONAL = ("canary", "status", "segment", "list", "next", "restarted")
# `after` of a first page.
FIRST_PAGE = "0"
# 4xx that say nothing against the request: too slow, and too many.
TRANSIENT = {408, 429}
# 4xx that a remembered list replaces: no valid key, no right, no release yet, and a proxy's refusal.
DENIED = {401, 403, 404, 407}
# Fields of an answer that only a user's list has, or one of similar items.
SUBJECTS = {"user", "item"}
# What identifies the popular list, which would be shown to everybody.
POPULAR_FIELDS = {"source": "popular"}
Basket = Iterable[str] | Mapping[str, float]
# Options that are collections of texts.
COLLECTIONS = ("exclude", "fields")


class ClientError(Exception):
    """Base class of the errors of a client."""


class ClientClosed(ClientError, RuntimeError):
    """The client was used after it was closed."""


class ServiceUnavailable(ClientError):
    """No answer in time and no remembered list."""


class BatchTooLarge(ClientError):
    """The lists of a batch have more bytes than one answer may have; ask for fewer users at once, or fewer items."""


class RequestRefused(ClientError):
    """The service refused the request as invalid, or the client's key."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        """Pickle both arguments, as a pool of processes does."""
        return type(self), (str(self), self.status)


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
    """A call of a client, which is safe to repeat: its request, and what the answer must contain.

    path      below `/v1/`
    n         number of items of each list
    deadline  time of `time.monotonic` by which it ends
    expected  for each list of the answer, the fields that identify it, as {"user": "7"}
    body      fields of the JSON of a POST, besides the options below; None for a GET

    options   those of `RequestOptions` that the request has, without empty ones
    """

    path: str
    n: int
    deadline: float
    expected: Sequence[dict[str, str]] = ({},)
    body: dict[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def page_cursors(self) -> Sequence[str]:
        """The `after` of each list, empty for one that is not read by pages."""
        if self.body is None:
            return [self.options.get("after", "")]
        users = self.body.get("users", [""])
        return ["" if isinstance(user, str) else user["after"] for user in users]

    def request(self, root: str) -> "_Request":
        """Return the HTTP request to the service whose API begins at *root*, a URL.

        A call without a body is a GET with the options in its query, another one a POST with the options in its JSON,
        and the time that is left in a header.
        """
        if self.body is None:
            parameters = [f"n={self.n}"]
            for name, value in self.options.items():
                texts = value if isinstance(value, tuple) else [value]
                parameters.append(f"{name}={','.join(map(_quoted, texts))}")
            return _Request("GET", f"{root}{self.path}?{'&'.join(parameters)}")

        content = {**self.body, "n": self.n, **self.options}
        if "fields" in content:
            content["fields"] = ",".join(content["fields"])

        left_ms = (self.deadline - time.monotonic()) * 1000
        limit_ms = int(min(max(1.0, left_ms), MAX_TIMEOUT_MS))
        headers = [("Content-Type", "application/json"), ("X-Request-Timeout-Ms", str(limit_ms))]
        return _Request("POST", root + self.path, headers=headers, content=json.dumps(content).encode())


@dataclass(slots=True)
class _LoopState:
    """What a client has on one event loop: its connections, and the task that renews remembered popular lists.

    blocks   number of `async with` blocks that the loop is inside
    sending  number of requests in flight; the last one closes the connections if the client was closed meanwhile
    """

    pool: httpcore2.AsyncConnectionPool
    renewal: asyncio.Task[None] | None = None
    blocks: int = 0
    sending: int = 0
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """An HTTP request."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = ()
    content: bytes | None = None


def _check_key(key: str | None) -> None:
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise ValueError("the key has characters that a header cannot have")


def _check_collection(name: str, texts: object) -> None:
    if isinstance(texts, str):
        raise TypeError(f"{name} takes a collection of strings, not the string {texts!r}")


def _check_timeout(timeout_s: object) -> None:
    if not (isinstance(timeout_s, Real) and 0 < float(timeout_s) < inf):  # numpy's numbers are Real, arrays are not
        raise ValueError(f"timeout_s must be a finite number of seconds above 0, not {timeout_s!r}")


def _closed() -> ClientClosed:
    return ClientClosed("the client has been closed")


class AsyncClient(AbstractAsyncContextManager["AsyncClient"]):
    """Client for asyncio programs, which may use it on several event loops.

    A call ends within *timeout_s*, its own or the client's, including name look-up, connecting, and one repeat after a
    connection error. Without an answer in time it returns a remembered popular list, with the source `memory`. Raises
    ServiceUnavailable if there is none, RequestRefused if the service refuses the request, and BatchTooLarge.

    On one event loop, the end of the last `async with` block closes the client, and so does `aclose`, for all blocks.
    Later calls there raise ClientClosed. A block may be entered again once all others have ended.
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
        address = _service_address(url)
        _check_key(key)
        _check_timeout(timeout_s)
        if max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {max_connections}")
        if ssl_context is None and address.scheme == "https":
            ssl_context = httpcore2.default_ssl_context()  # too slow for a call
        self.ssl_context = ssl_context
        self._url = f"{address.scheme}://{address.netloc}{quote(address.path, safe='/%')}".rstrip("/")
        self._key = key
        self._headers = [("Host", address.netloc), ("User-Agent", "hotplate")]
        if key:
            self._headers.append(("X-API-Key", key))
        self._timeout_s = timeout_s
        self._remembered = RememberedLists[Answer]()
        # Whether an event loop has ended before a renewal, as `asyncio.run` for each call does.
        self._loops_end_early = False
        self._max_connections = max_connections
        self._proxy = proxy_for(self._url)
        self._loops = dict[asyncio.AbstractEventLoop, _LoopState]()

    async def __aenter__(self) -> Self:
        """Use the client on this event loop; if it was closed there, open it again.

        Raises ClientClosed if another block has closed it and has not ended.
        """
        state = self._loop_state()
        if state.is_closed and state.blocks:
            raise _closed()
        if state.is_closed:
            state = self._new_loop_state()
        state.blocks += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client on this event loop, unless another block on it has not ended."""
        state = self._loop_state()
        state.blocks -= 1
        if state.blocks <= 0:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of this event loop, stop renewing popular lists on it, and refuse later calls on it.

        Calls that have begun keep their connections until they end; one that fails raises ClientClosed, not repeated.
        """
        state = self._loop_state()
        state.is_closed = True
        try:
            if state.renewal is not None:
                state.renewal.cancel()
                await asyncio.wait([state.renewal])
                self._note_unfinished_renewal(state.renewal)
        finally:
            if not state.sending:
                await state.pool.aclose()

    def _loop_state(self) -> _LoopState:
        """Return the state of the running event loop, which its first call creates."""
        return self._loops.get(asyncio.get_running_loop()) or self._new_loop_state()

    def _new_loop_state(self) -> _LoopState:
        """Create the state of the running event loop, since a connection works on one loop only.

        `_loops` has one for each loop. Those of closed loops are removed.
        """
        closed_loops = [other for other in list(self._loops) if other.is_closed()]
        for closed in closed_loops:
            ended = self._loops.pop(closed, None)  # another thread may have removed it
            if ended is not None and ended.renewal is not None:
                self._note_unfinished_renewal(ended.renewal)

        proxy = None if self._proxy is None else httpcore2.Proxy(self._proxy.url, self._proxy.credentials)
        pool = httpcore2.AsyncConnectionPool(
            self.ssl_context,
            proxy,
            max_connections=self._max_connections,
            keepalive_expiry=IDLE_S,
        )
        state = self._loops[asyncio.get_running_loop()] = _LoopState(pool)
        return state

    def _note_unfinished_renewal(self, renewal: asyncio.Task[None]) -> None:
        """Let later calls renew popular lists themselves if *renewal*, a task of an ended loop, did not complete.

        Lists that are not remembered yet may then be read at once.
        """
        if renewal.done() and not renewal.cancelled():
            return
        self._loops_end_early = True
        self._remembered.forget_attempts()

    async def recommendations(self, user: str, n: int = 10, **options: Unpack[RequestOptions]) -> Answer:
        """Return a user's list, or the popular list for an unknown user."""
        return (await self._call(f"recommendations/{_quoted(user)}", n, options, expected=[{"user": user}]))[0]

    async def batch(
        self, users: Sequence[str] | Mapping[str, str], n: int = 10, **options: Unpack[RequestOptions]
    ) -> list[Answer]:
        """Return the lists of up to 2,000 users, in order; BatchTooLarge if they have more than 32 MiB together.

        With a mapping, return a page of each list: it maps users to where the page begins, "0" for the first page, and
        the `next` of a page's answer for the page that follows.
        """
        _check_collection("users", users)
        expected = [{"user": user} for user in users]  # fields by which an answer for another user is detected
        requested: list[Any] = list(users)
        if isinstance(users, Mapping):
            requested = [{"id": user, "after": after} for user, after in users.items()]
        return await self._call("recommendations", n, options, expected=expected, body={"users": requested})

    async def similar(self, item: str, n: int = 10, **options: Unpack[RequestOptions]) -> Answer:
        """Return the items similar to *item*, or the popular list for an unknown item."""
        return (await self._call(f"similar/{_quoted(item)}", n, options, expected=[{"item": item}]))[0]

    async def popular(self, n: int = 10, **options: Unpack[RequestOptions]) -> Answer:
        """Return the popular list, and remember it. Call it at the start, with a longer `timeout_s`."""
        return (await self._call("popular", n, options, expected=[POPULAR_FIELDS]))[0]

    async def fold_in(
        self, items: Basket, n: int = 10, *, recency: float | None = None, **options: Unpack[RequestOptions]
    ) -> Answer:
        """Return a list for a visitor's basket of items, or of weights by item, the newest item last.

        With *recency*, above 0 and at most 1, the weight of an item is multiplied by it for each newer item; without,
        the order does not matter.
        """
        _check_collection("items", items)
        basket: list[Any] = list(items)
        if isinstance(items, Mapping):
            basket = [{"id": item, "weight": weight} for item, weight in items.items()]
        body: dict[str, Any] = {"items": basket}
        if recency is not None:
            body["recency"] = recency
        return (await self._call("recommendations/fold-in", n, options, body=body))[0]

    async def _call(
        self,
        path: str,
        n: int,
        options: Mapping[str, Any],
        *,
        expected: Sequence[dict[str, str]] = ({},),
        body: dict[str, Any] | None = None,
    ) -> list[Answer]:
        """Send a request and return an answer for each list, remembered popular lists if the request fails.

        path      below `/v1/`
        n         number of items of each list
        options   RequestOptions, as `segment` and `timeout_s`
        expected  for each list, the fields that identify it in the response, as {"user": "7"}
        body      fields of the JSON of a POST; None for a GET

        Old popular lists are renewed by a background task. The call itself renews them, in the time that is left, if it
        is for the popular list, if it failed and none is remembered, or if event loops have ended before such tasks.
        No list is renewed after an error that none can replace.
        Raises ServiceUnavailable if no list can replace the answer, RequestRefused if the service refuses the request.
        """
        for name in options:
            if name not in RequestOptions.__optional_keys__:
                allowed = ", ".join(sorted(RequestOptions.__optional_keys__))
                raise TypeError(f"a client's call got an unexpected keyword argument {name!r}; it takes {allowed}")
        call_options = {"timeout_s": self._timeout_s, **options}
        timeout_s = call_options.pop("timeout_s")
        _check_timeout(timeout_s)
        for name in call_options.keys() & COLLECTIONS:
            _check_collection(name, call_options[name])
            call_options[name] = tuple(call_options[name])  # an iterator would be empty for a repeat
        call_options = {name.removesuffix("_"): value for name, value in call_options.items() if value}
        if self._loop_state().is_closed:
            raise _closed()
        deadline = time.monotonic() + timeout_s
        if "list" in call_options:
            expected = [{**fields, "list": call_options["list"]} for fields in expected]
        call = _Call(path, n, deadline, expected=expected, body=body, options=call_options)

        try:
            answers = await self._send_until_deadline(call)
        except ClientError as error:
            if not _is_replaceable(error):
                raise
            popular = self._remembered.replacement(call.options, n)
            await self._renew_popular_lists(call, timeout_s, waits=popular is None)
            return self._popular_instead(call, popular or self._remembered.replacement(call.options, n), error)

        await self._renew_popular_lists(call, timeout_s, waits=path == "popular" or self._loops_end_early)
        return answers

    async def _send_until_deadline(self, call: _Call) -> list[Answer]:
        """Send a request, once more after a connection error, and return its answers; raises ClientError."""
        failure = ""
        for _ in range(2):
            if self._loop_state().is_closed:  # since the call began
                raise _closed()
            try:
                async with asyncio.timeout(call.deadline - time.monotonic()):
                    return await self._send(call)
            except (TimeoutError, httpcore2.TimeoutException):  # a repeat would double the load of a slow service
                raise ServiceUnavailable(f"{self._url}: no answer in time") from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError, OSError) as error:
                failure = str(error) or type(error).__name__
        raise ServiceUnavailable(f"{self._url}: {failure}")

    async def _send(self, call: _Call) -> list[Answer]:
        """Send a request once, and return the answers of its response; raises ClientError, and errors of httpcore2."""
        state = self._loop_state()
        request = call.request(f"{self._url}/v1/")
        body = bytearray()
        limit = min(MAX_ANSWER_BYTES, MAX_LIST_BYTES * max(1, len(call.expected)))
        state.sending += 1
        try:
            async with state.pool.stream(
                request.method,
                request.url,
                headers=[*request.headers, *self._headers],
                content=request.content,
                extensions={"trace": _closing_failed_handshakes()},
            ) as response:
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) > limit:
                        raise self._too_large(call, limit)
        finally:
            state.sending -= 1
            if state.is_closed and not state.sending:
                await state.pool.aclose()
        return self._parse_response(call, response.status, body)

    def _too_large(self, call: _Call, limit: int) -> ClientError:
        """Return the failure of a call whose answer has more than *limit* bytes."""
        lists = len(call.expected)
        if lists == 1:  # no store has such a list
            return ServiceUnavailable(f"{self._url}: the answer has more than {limit} bytes")
        return BatchTooLarge(
            f"{self._url}: the lists of {lists:,} users have more than {limit} bytes together; ask for fewer users at "
            f"once, or for fewer items with n"
        )

    def _parse_response(self, call: _Call, status: int, body: bytearray) -> list[Answer]:
        """Return the answers in the JSON of a response's *body*.

        Raises RequestRefused for statuses 4xx, except transient ones; ServiceUnavailable for others, for a body that
        cannot be read, and for answers without the fields that the call expects, as {"user": "7"}: another user's.
        The client's key is removed from messages.
        """
        try:
            content = json.loads(body)
            if status == 200:
                lists = content.get("results", [content])  # a batch has several
                pairs = zip(lists, call.expected, strict=True)
                if all(_is_expected(fields, expected) for fields, expected in pairs):
                    return [_parse_answer(fields) for fields in lists]
                failure = "an answer for another user or item than was requested"
            else:
                failure = f"{status} {content['type'].rpartition(':')[2]}: {content['detail']}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            failure = f"unexpected response with status {status}"

        if self._key:
            failure = failure.replace(self._key, "…")
        if status // 100 == 4 and status not in TRANSIENT:
            raise RequestRefused(f"{self._url}: {failure}", status)
        raise ServiceUnavailable(f"{self._url}: {failure}")

    async def _renew_popular_lists(self, call: _Call, timeout_s: float, *, waits: bool) -> None:
        """Renew the old popular lists of *call*: now if it *waits*, in the time that it has left.

        Without any left, or if it does not wait, a task does so within *timeout_s*, unless this loop has one.
        """
        if waits:
            await self._remembered.renew(call.options, call.deadline, self._read_popular)
        state = self._loop_state()
        is_running = state.renewal is not None and not state.renewal.done()
        if not (is_running or state.is_closed) and self._remembered.has_old(call.options):
            deadline = time.monotonic() + timeout_s
            state.renewal = asyncio.create_task(self._remembered.renew(call.options, deadline, self._read_popular))

    async def _read_popular(self, options: Mapping[str, Any], deadline: float) -> Answer | None:
        """Return a popular list to remember, None if it cannot be read."""
        call = _Call("popular", REMEMBERED_ITEMS, deadline, expected=[POPULAR_FIELDS], options=options)
        try:
            return (await self._send_until_deadline(call))[0]
        except ClientError:
            return None

    def _popular_instead(self, call: _Call, popular: Answer | None, error: ClientError) -> list[Answer]:
        """Return *popular*, a remembered list, for each list of a call that failed with *error*.

        Without one, raises *error* if the service refused the request, ServiceUnavailable for other errors.
        """
        if popular is None:
            if isinstance(error, RequestRefused):
                raise error
            raise ServiceUnavailable(f"{error}; no popular list is remembered") from None

        answer = replace(
            popular,
            source="memory",
            status="error" if call.path == "recommendations" else None,  # only the lists of a batch have one
            failure=str(error),
        )
        # The next page of another list cannot follow: it begins again.
        return [replace(answer, restarted=after not in ("", FIRST_PAGE)) for after in call.page_cursors]


class Client(Background[AsyncClient]):
    """Client for programs without an event loop, with the options of `AsyncClient`; threads may share it.

    A background thread does the I/O, in each process. After `close`, calls raise ClientClosed.
    """

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        options["ssl_context"] = AsyncClient(url, **options).ssl_context  # checks the arguments
        super().__init__(partial(AsyncClient, url, **options), _closed)

    recommendations = blocking(AsyncClient.recommendations)
    batch = blocking(AsyncClient.batch)
    similar = blocking(AsyncClient.similar)
    popular = blocking(AsyncClient.popular)

    def fold_in(
        self, items: Basket, n: int = 10, *, recency: float | None = None, **options: Unpack[RequestOptions]
    ) -> Answer:
        """See `AsyncClient.fold_in`."""
        basket = items if isinstance(items, Mapping | str) else list(items)  # a lazy one is read in the caller's thread
        return self._run(lambda client: client.fold_in(basket, n, recency=recency, **options))


def _service_address(url: str) -> SplitResult:
    """Return the parts of a service's URL; ValueError if it is not HTTP or has credentials, a query or port 0.

    A host that is not ASCII is refused, too, because versions of IDNA encode some names differently.
    """
    address = urlsplit(url)
    is_usable = address.scheme in {"http", "https"} and address.hostname and address.port != 0  # raises ValueError
    if not is_usable or address.username is not None or address.query:
        raise ValueError("the URL of a service looks like http://127.0.0.1:8080; pass a key as key=")
    if not address.netloc.isascii():
        raise ValueError("the host of a service's URL has characters beyond ASCII; write its IDNA form, xn--…")
    return address


def _is_replaceable(error: ClientError) -> bool:
    """Return whether a popular list may replace the answer of a call that failed with *error*.

    It replaces no answer to an invalid request or to a batch that is too large, and none of a closed client.
    """
    if isinstance(error, RequestRefused):
        return error.status in DENIED
    return not isinstance(error, BatchTooLarge | ClientClosed)


def _closing_failed_handshakes() -> Callable[[str, dict[str, Any]], Coroutine[Any, Any, None]]:
    """Return a trace of a request that closes its connection if the TLS handshake is cancelled; httpcore2 does not."""
    opened = list[httpcore2.AsyncNetworkStream]()

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            opened.append(info["return_value"])
        elif event == "connection.start_tls.failed":
            await opened[-1].aclose()

    return trace


def _is_expected(fields: Mapping[str, Any], expected: Mapping[str, str]) -> bool:
    """Whether an answer has the *expected* fields, as {"user": "7"}, and is not of a user or item besides."""
    return expected.items() <= fields.items() and SUBJECTS & fields.keys() <= expected.keys()


def _parse_answer(fields: dict[str, Any]) -> Answer:
    """Return an answer from the fields of its JSON; raises KeyError or TypeError for missing or unexpected ones."""
    optional = {name: fields[name] for name in OPTIONAL if name in fields}
    items = [item for item in fields["items"] if item["id"]]
    return Answer(items=items, source=fields["source"], release=fields["release"], tier=fields["tier"], **optional)


def _quoted(name: object) -> str:
    """Return an id or a name as one segment of a path or a part of a query; TypeError if it is not a str."""
    if not isinstance(name, str):
        raise TypeError(f"ids, fields and segments are strings, and not of the type {type(name).__name__}")
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")  # `..` would be a parent folder
