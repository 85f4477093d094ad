"""The client of the HTTP service: a call ends by its deadline, and falls back on a popular list that it remembers.

It loads neither the service nor a store. What both clients do is one generator, `_Core.run`, which says what to send
and is given what came of it; the clients send.
"""

import asyncio
import json
import os
import time
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from math import inf
from socket import SOCK_STREAM, getaddrinfo
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack
from urllib.parse import quote, urlsplit
from weakref import WeakSet

import httpcore2

if TYPE_CHECKING:
    from ssl import SSLContext

    from hotplate.stores.encoding import Item

# How long a call may take, unless its caller says otherwise.
TIMEOUT_S = 0.2
# How many connections a client has at most (as many again for repeats), and when an idle one is closed: before the
# service closes it.
CONNECTIONS = 50
IDLE_S = 60.0
# How many items of a popular list are remembered, of how many segments, and how old they are when they are read again.
REMEMBERED_ITEMS = 100
REMEMBERED_SEGMENTS = 100
REFRESH_S = 60.0
# After how long a read of them that failed is tried again.
REFRESH_AGAIN_S = 1.0
# After how many failures in a row the service is left alone, and for how long, if something is remembered.
FAILURES = 3
PAUSE_S = 1.0
# The longest pause that a service may request.
MAX_RETRY_AFTER_S = 600.0
# The largest answer that is read, and how much of a request is written between two looks at the clock.
MAX_ANSWER_BYTES = 32 << 20
WRITE_BYTES = 16 << 10
MAX_N = 1000
MAX_FAILURE_CHARS = 300
# The service's own statuses for requests that are wrong, and for those that it does not answer this client.
WRONG = {400, 405, 406, 413, 414, 415, 431}
DENIED = {401, 403, 404}
# Those of a server in whose place another may answer at once.
UNAVAILABLE = {502, 503, 504}

# Ids of the items that a visitor has, or their weights by id.
Basket = Iterable[str] | Mapping[str, float]


class ClientError(Exception):
    """What a client raises: ServiceUnavailable or RequestRefused."""


class ServiceUnavailable(ClientError):
    """The service did not answer in time, and no popular list is remembered."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """How long the service wants to be left alone, if it said so."""


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


class SimilarOptions(TypedDict, total=False):
    """What `similar` takes: ids to leave out; `("id",)` or `("id", "score")` for those fields only; a deadline."""

    exclude: Collection[str]
    fields: Sequence[str]
    timeout_s: float


class ListOptions(SimilarOptions, total=False):
    """What the other methods take, too: the segment whose popular list stands in for a list that does not exist."""

    segment: str


@dataclass(frozen=True, slots=True)
class _Call:
    """A request, and how to cut a popular list that stands in for its answer. Reads only, so it may be repeated."""

    route: str
    path: str
    n: int
    timeout_s: float
    segment: str = ""
    exclude: Collection[str] = ()
    fields: Sequence[str] = ()
    body: Mapping[str, Any] | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        return self.began + self.timeout_s

    @property
    def users(self) -> list[str] | None:
        """The users of a batch; None if it is not one."""
        return self.body.get("users") if self.body else None


@dataclass(frozen=True, slots=True)
class _Send:
    """What a client does next: wait, then send the request, and give up at the deadline."""

    call: _Call
    deadline: float
    after_s: float = 0.0
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a request: lists, or a failure, as a sentence, with the status if there is one."""

    answers: list[Answer] = field(default_factory=list)
    failure: str = ""
    status: int = 0
    retry_after_s: float | None = None
    may_repeat: bool = False


@dataclass(slots=True)
class _RouteHealth:
    """What is known of a route: until when the service wants no requests, and until when it gets none."""

    failure: str = ""
    failures: int = 0
    requested_until: float = 0.0
    paused_until: float = 0.0


@dataclass(slots=True)
class _RememberedList:
    """The popular list of a segment, and when to read it again."""

    answer: Answer | None = None
    refresh_at: float = 0.0


class _Core:
    """What both clients know and decide; it does no I/O, and may be used by many threads."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None or parts.query:
            raise ValueError("the URL of a service looks like http://127.0.0.1:8080; a key is given as key=")
        if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
            raise ValueError("the key has characters that a header cannot have")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        self._origin = parts.scheme.encode(), parts.hostname.encode("ascii"), parts.port
        self._prefix = quote(parts.path.rstrip("/"), safe="/%")
        self._key = key
        self._headers = [("Host", parts.netloc), ("User-Agent", "hotplate"), *([("X-API-Key", key)] if key else [])]
        self._timeout_s = _check_timeout(timeout_s)
        self._popular = OrderedDict[str, _RememberedList]()
        self._health = defaultdict[str, _RouteHealth](_RouteHealth)
        self.lock = Lock()

    def get(self, route: str, name: str | None, n: int, options: Mapping[str, Any]) -> _Call:
        """Make a request for the list of *name*, or of nobody."""
        path = route if route == "popular" else f"{route}/{_encoded(name)}"
        query = [f"n={n}"]
        if exclude := options.get("exclude"):
            query.append(f"exclude={','.join(map(_encoded, exclude))}")
        if fields := options.get("fields"):
            query.append(f"fields={','.join(map(_encoded, fields))}")
        if segment := options.get("segment"):
            query.append(f"segment={_encoded(segment)}")
        return self._call(route, f"{path}?{'&'.join(query)}", n, options)

    def post(self, route: str, body: dict[str, Any], n: int, options: Mapping[str, Any]) -> _Call:
        """Make a request with a *body*: of a batch, or of a visitor's items."""
        body |= {"n": n, "segment": options.get("segment", ""), "exclude": list(options.get("exclude", ()))}
        if fields := options.get("fields"):
            body["fields"] = ",".join(fields)
        return self._call(f"POST {route}", route, n, options, body)

    def _call(
        self, route: str, path: str, n: int, options: Mapping[str, Any], body: dict[str, Any] | None = None
    ) -> _Call:
        if not 1 <= n <= MAX_N:
            raise ValueError(f"n is how many items to return, 1 to {MAX_N}, not {n}")
        options = {"timeout_s": self._timeout_s, **options}
        _check_timeout(options["timeout_s"])
        return _Call(route=route, path=f"{self._prefix}/v1/{path}", n=n, body=body, **options)

    def request(self, send: _Send) -> dict[str, Any]:
        """Return what httpcore2 takes to send a request."""
        scheme, host, port = self._origin
        url = httpcore2.URL(scheme=scheme, host=host, port=port, target=send.call.path.encode())
        if send.call.body is None:
            return {"method": "GET", "url": url, "headers": self._headers}
        content = json.dumps(send.call.body).encode()
        left_ms = min(max(1, int((send.deadline - time.monotonic()) * 1000)), 60_000)
        of_body = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        headers = [*self._headers, *of_body, ("X-Request-Timeout-Ms", str(left_ms))]
        return {"method": "POST", "url": url, "headers": headers, "content": content}

    def judge(self, call: _Call, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> _Outcome:
        """Read a response."""
        try:
            decoded = json.loads(body)
            if status == 200:
                found = [decoded] if call.users is None else decoded["results"]
                if call.users is None or len(call.users) == len(found):
                    return _Outcome([_answer(one) for one in found], "", status)
            failure = f"{status} {decoded['type'].rpartition(':')[2]}: {decoded['detail']}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            failure = f"an answer with status {status} that hotplate does not give"
        if self._key:
            failure = failure.replace(self._key, "…")  # before it is cut, or a part of the key could be left
        named = {name.lower(): value.decode("latin-1") for name, value in headers}
        retry_after_s = _retry_after_s(named) if status in {429, 503} else None
        may_repeat = status in UNAVAILABLE or retry_after_s is not None
        return _Outcome([], failure[:MAX_FAILURE_CHARS], status, retry_after_s, may_repeat)

    def run(self, call: _Call) -> Generator[_Send, _Outcome, list[Answer]]:
        """Yield what to send, take what came of it, and return the lists: one, or one for each user of a batch.

        Raises RequestRefused and ServiceUnavailable.
        """
        known = self._remembered(call.segment)
        outcome = self._paused(call.route, is_known=known is not None)
        if is_sent := outcome is None:
            outcome = yield _Send(call, call.deadline)
            wait_s = outcome.retry_after_s or 0.0
            if outcome.may_repeat and time.monotonic() + wait_s < call.deadline:
                if wait_s:
                    self._note(call.route, outcome)
                outcome = yield _Send(call, call.deadline, wait_s, is_repeat=True)
            self._note(call.route, outcome)
        for answer in outcome.answers:
            if answer.source == "popular" and answer.items and not call.exclude and known is None:
                known = self._remember(call.segment, deepcopy(answer), time.monotonic())
        if is_sent or known is None:
            yield from self._refresh(call)
        if not outcome.failure:
            return outcome.answers
        known = self._remembered(call.segment, call)
        message = f"{self.url}: {outcome.failure}"
        if outcome.status in WRONG or (known is None and outcome.status in DENIED):
            raise RequestRefused(message, outcome.status)
        if known is None:
            raise ServiceUnavailable(f"{message}; no popular list is remembered", outcome.retry_after_s)
        status = None if call.users is None else "error"
        return [
            Answer(_cut(known.items, call), "memory", known.release, known.tier, known.canary, status, message)
            for _ in ([None] if call.users is None else call.users)
        ]

    def _refresh(self, call: _Call) -> Generator[_Send, _Outcome, None]:
        """Read the popular lists that could stand in for the answer, if due, in half of the time that is left."""
        for segment in dict.fromkeys((call.segment, "")):
            now = time.monotonic()
            if now < call.deadline and self._is_due(segment, now):
                popular = self.get("popular", None, REMEMBERED_ITEMS, {"segment": segment})
                outcome = yield _Send(popular, (now + call.deadline) / 2)
                if outcome.answers and outcome.answers[0].items:
                    self._remember(segment, outcome.answers[0], now + REFRESH_S)
                elif outcome.retry_after_s is not None:
                    self._note(popular.route, outcome)

    def _paused(self, route: str, *, is_known: bool) -> _Outcome | None:
        """Return why a request is not sent now, or None. After a pause of our own, one request probes the service."""
        with self.lock:
            health, now = self._health[route], time.monotonic()
            until = max(health.requested_until, health.paused_until if is_known else 0.0)
            if now < until:
                return _Outcome([], f"not called, because of {health.failure}", 0, until - now)
            if health.failures >= FAILURES:
                health.paused_until = now + PAUSE_S
            return None

    def _note(self, route: str, outcome: _Outcome) -> None:
        """Take note of how a request ended."""
        with self.lock:
            health, now = self._health[route], time.monotonic()
            if not outcome.failure or outcome.status in WRONG | DENIED:
                health.failures, health.paused_until = 0, 0.0
                return
            health.failure = outcome.failure
            if outcome.retry_after_s:
                health.requested_until = max(health.requested_until, now + outcome.retry_after_s)
                return
            health.failures += 1
            if health.failures >= FAILURES:
                health.paused_until = now + PAUSE_S

    def _remembered(self, segment: str, call: _Call | None = None) -> Answer | None:
        """Return the list of a segment, or that of everybody, also if *call* excludes all items of the segment's."""
        with self.lock:
            of = [self._popular[name].answer for name in (segment, "") if name in self._popular]
        known = [answer for answer in of if answer is not None]
        fitting = (answer for answer in known if call is None or _cut(answer.items, call))
        return next(fitting, known[0] if known else None)

    def _is_due(self, segment: str, now: float) -> bool:
        """Return whether a popular list is to be read; of several threads, one is given the task."""
        with self.lock:
            popular = self._popular.setdefault(segment, _RememberedList())
            self._popular.move_to_end(segment)
            if len(self._popular) > REMEMBERED_SEGMENTS:
                del self._popular[next(filter(None, self._popular))]
            if now < max(popular.refresh_at, self._health["popular"].requested_until):
                return False
            popular.refresh_at = now + REFRESH_AGAIN_S
            return True

    def _remember(self, segment: str, answer: Answer, refresh_at: float) -> Answer:
        with self.lock:
            self._popular[segment] = _RememberedList(answer, refresh_at)
        return answer


class Client:
    """Lists from the HTTP service, for programs without an event loop; make one for the whole program.

    Several threads may use it, and a process that was forked has connections of its own. A method ends within
    *timeout_s*, its own or the client's: looking up the service's name, connecting, repeating what failed once on a
    new connection, and reading the answer. If the service does not answer in time, or wants to be left alone, the
    answer is the popular list that the client remembers, and its source is `memory`. Raises ServiceUnavailable if none
    is remembered, RequestRefused for a request that is wrong, and ValueError for an *n* outside 1 to 1000 and for a
    *timeout_s* that is not a number above 0.
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
        self._core = _Core(url, key, timeout_s)
        self._limits = _limits(self._core.url, max_connections, ssl_context)
        self._open()
        _CLIENTS.add(self)

    def __repr__(self) -> str:
        return f"<hotplate.Client {self._core.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
        self._repeats.close()

    def recommendations(self, user: str, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return a user's list; if there is none, the popular list."""
        return self._run(self._core.get("recommendations", user, n, options))[0]

    def batch(self, users: Sequence[str], n: int = 10, **options: Unpack[ListOptions]) -> list[Answer]:
        """Return the lists of up to 2,000 users, in order."""
        return self._run(self._core.post("recommendations", {"users": list(users)}, n, options))

    def similar(self, item: str, n: int = 10, **options: Unpack[SimilarOptions]) -> Answer:
        """Return the items that are like *item*; for an unknown one the popular list."""
        return self._run(self._core.get("similar", item, n, options))[0]

    def popular(self, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return the popular list. Call it when the program starts, with a longer `timeout_s`."""
        return self._run(self._core.get("popular", None, n, options))[0]

    def fold_in(self, items: Basket, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return a list for a visitor who has *items*, given with their weights or without."""
        return self._run(self._core.post("recommendations/fold-in", _basket(items), n, options))[0]

    def _open(self) -> None:
        backend = _Network()
        self._pool = httpcore2.ConnectionPool(network_backend=backend, keepalive_expiry=IDLE_S, **self._limits)
        self._repeats = httpcore2.ConnectionPool(network_backend=backend, max_keepalive_connections=0, **self._limits)

    def _run(self, call: _Call) -> list[Answer]:
        steps = self._core.run(call)
        try:
            send = next(steps)
            while True:
                if send.after_s:
                    time.sleep(send.after_s)
                send = steps.send(self._send(send))
        except StopIteration as end:
            answers: list[Answer] = end.value
            return answers

    def reopen(self) -> None:
        """Open connections of this process's own; those of the process that it was forked from stay open there."""
        inherited = [*self._pool.connections, *self._repeats.connections]
        self._core.lock = Lock()  # a thread that is not in this process may have held it
        self._open()
        for connection in inherited:
            connection.close()

    def _send(self, send: _Send) -> _Outcome:
        pool = self._repeats if send.is_repeat else self._pool
        try:
            instants = dict.fromkeys(("connect", "read", "write"), send.deadline)
            extensions = {"timeout": {**instants, "pool": _left(send.deadline)}}
            with pool.stream(**self._core.request(send), extensions=extensions) as response:
                body = bytearray()
                for piece in response.iter_stream():
                    _extend(body, piece)
                return self._core.judge(send.call, response.status, response.headers, bytes(body))
        except _FAILURES as error:
            return _failed(error)


# Those that open connections of their own in a process that is forked.
_CLIENTS = WeakSet[Client]()


def _reopen_all() -> None:
    for client in _CLIENTS:
        client.reopen()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reopen_all)


class AsyncClient:
    """Lists from the HTTP service, as `Client` gives them, for programs on one asyncio event loop."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_connections: int = CONNECTIONS,
        ssl_context: "SSLContext | None" = None,
    ) -> None:
        self._core = _Core(url, key, timeout_s)
        limits = _limits(self._core.url, max_connections, ssl_context) | {"network_backend": _AsyncNetwork()}
        self._pool = httpcore2.AsyncConnectionPool(keepalive_expiry=IDLE_S, **limits)
        self._repeats = httpcore2.AsyncConnectionPool(max_keepalive_connections=0, **limits)

    def __repr__(self) -> str:
        return f"<hotplate.AsyncClient {self._core.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()
        await self._repeats.aclose()

    async def recommendations(self, user: str, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return what `Client.recommendations` does."""
        return (await self._run(self._core.get("recommendations", user, n, options)))[0]

    async def batch(self, users: Sequence[str], n: int = 10, **options: Unpack[ListOptions]) -> list[Answer]:
        """Return what `Client.batch` does."""
        return await self._run(self._core.post("recommendations", {"users": list(users)}, n, options))

    async def similar(self, item: str, n: int = 10, **options: Unpack[SimilarOptions]) -> Answer:
        """Return what `Client.similar` does."""
        return (await self._run(self._core.get("similar", item, n, options)))[0]

    async def popular(self, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return what `Client.popular` does."""
        return (await self._run(self._core.get("popular", None, n, options)))[0]

    async def fold_in(self, items: Basket, n: int = 10, **options: Unpack[ListOptions]) -> Answer:
        """Return what `Client.fold_in` does."""
        return (await self._run(self._core.post("recommendations/fold-in", _basket(items), n, options)))[0]

    async def _run(self, call: _Call) -> list[Answer]:
        steps = self._core.run(call)
        try:
            send = next(steps)
            while True:
                if send.after_s:
                    await asyncio.sleep(send.after_s)
                send = steps.send(await self._send(send))
        except StopIteration as end:
            answers: list[Answer] = end.value
            return answers

    async def _send(self, send: _Send) -> _Outcome:
        pool = self._repeats if send.is_repeat else self._pool
        try:
            left = _left(send.deadline)
            # To connect, and to shake hands, take half of the time each: httpcore2 leaves what is cancelled then open.
            extensions = {"timeout": {"connect": left / 2}}
            async with (
                asyncio.timeout(left),
                pool.stream(**self._core.request(send), extensions=extensions) as response,
            ):
                body = bytearray()
                async for piece in response.aiter_stream():
                    _extend(body, piece)
                return self._core.judge(send.call, response.status, response.headers, bytes(body))
        except _FAILURES as error:
            return _failed(error)


class _Network(httpcore2.NetworkBackend):
    """Connects, and hands on connections, whose time-outs are instants by the monotonic clock, not durations.

    httpcore2 gives each read as long as the one before, so a service that sends a byte now and then would never end.
    """

    def __init__(self) -> None:
        self._sockets = httpcore2.SyncBackend()
        self._look_ups = _LookUps()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        with _as_connect_errors(host):
            addresses = [*self._look_ups.of(host, port).result(_left(timeout))]
        for others in reversed(range(len(addresses))):
            try:
                stream = self._sockets.connect_tcp(
                    addresses.pop(0), port, _left(timeout) / (2 if others else 1), local_address, socket_options
                )
                return _Stream(stream)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not others:
                    raise
        raise httpcore2.ConnectError(f"{host} has no address")


class _AsyncNetwork(httpcore2.AsyncNetworkBackend):
    """Connects as httpcore2 does by default, which looks names up in the loop's threads: others need those, too."""

    def __init__(self) -> None:
        self._sockets = httpcore2.AnyIOBackend()
        self._look_ups = _LookUps()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- as httpcore2 declares it
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        until = time.monotonic() + (timeout or 0.0)
        with _as_connect_errors(host):
            async with asyncio.timeout(timeout):
                addresses = [*await asyncio.wrap_future(self._look_ups.of(host, port))]
        for others in reversed(range(len(addresses))):
            try:
                return _AsyncStream(
                    await self._sockets.connect_tcp(
                        addresses.pop(0), port, _left(until) / (2 if others else 1), local_address, socket_options
                    )
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not others:
                    raise
        raise httpcore2.ConnectError(f"{host} has no address")


class _AsyncStream(httpcore2.AsyncNetworkStream):
    """A connection that closes if its TLS handshake fails or is cancelled; httpcore2 leaves it open."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 -- as httpcore2 has it
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- as httpcore2 has it
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: "SSLContext",
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- as httpcore2 declares it
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 -- as httpcore2 declares it
        return self._stream.get_extra_info(info)


class _LookUps:
    """Looks up the addresses of hosts, best first; the system's look-up has no time-out: a thread of its own waits."""

    def __init__(self) -> None:
        self._under_way = dict[tuple[str, int], Future[list[str]]]()
        """By host and port: a resolver that hangs costs one thread a name."""
        self._lock = Lock()

    def of(self, host: str, port: int) -> "Future[list[str]]":
        """Return the look-up of a host that is under way, or start one; RuntimeError if no thread can be started."""

        def look_up() -> None:
            try:
                found.set_result([str(one[4][0]) for one in getaddrinfo(host, port, type=SOCK_STREAM)])
            except (OSError, UnicodeError) as error:
                found.set_exception(error)
            with self._lock:
                self._under_way.pop((host, port), None)

        with self._lock:
            if (under_way := self._under_way.get((host, port))) is not None:
                return under_way
            found = Future[list[str]]()
            found.set_running_or_notify_cancel()  # one of those that wait cannot cancel it
            try:
                found.set_result([str(ip_address(host))])
            except ValueError:
                Thread(target=look_up, daemon=True).start()
                self._under_way[host, port] = found
            return found


@contextmanager
def _as_connect_errors(host: str) -> Iterator[None]:
    """Turn what a look-up raises into errors of httpcore2."""
    try:
        yield
    except TimeoutError:
        raise httpcore2.ConnectTimeout(f"the address of {host} was not found in time") from None
    except (OSError, UnicodeError, RuntimeError) as error:  # RuntimeError: no thread can be started
        raise httpcore2.ConnectError(str(error)) from error


class _Stream(httpcore2.NetworkStream):
    """A connection of `_Network`."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        socket = self._stream.get_extra_info("socket")
        try:
            for start in range(0, len(buffer), WRITE_BYTES):
                socket.settimeout(_left(timeout))
                socket.sendall(buffer[start : start + WRITE_BYTES])  # whose time-out is for all of it
        except TimeoutError as error:
            raise httpcore2.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore2.WriteError(str(error)) from error

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: "SSLContext", server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 -- as httpcore2 declares it
        return self._stream.get_extra_info(info)


# What ends a request without an answer.
_FAILURES = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)


def _limits(url: str, max_connections: int, ssl_context: "SSLContext | None") -> dict[str, Any]:
    """Return how a pool connects. Certificates are loaded here, because that takes long, and no call waits for it."""
    if ssl_context is None and url.startswith("https:"):
        ssl_context = httpcore2.default_ssl_context()
    return {"max_connections": max_connections, "ssl_context": ssl_context}


def _failed(error: Exception) -> _Outcome:
    if isinstance(error, TimeoutError | httpcore2.TimeoutException):
        return _Outcome([], "no answer in time")  # sent again, it would double the load of a slow service
    return _Outcome([], (str(error) or type(error).__name__)[:MAX_FAILURE_CHARS], may_repeat=True)


def _left(until: float | None) -> float:
    """Return how many seconds there are until an instant; raises httpcore2.ReadTimeout if it has passed."""
    left = (until or 0.0) - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the deadline has passed")
    return left


def _extend(body: bytearray, piece: bytes) -> None:
    body += piece
    if len(body) > MAX_ANSWER_BYTES:
        raise httpcore2.RemoteProtocolError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")


def _answer(decoded: dict[str, Any]) -> Answer:
    return Answer(
        items=[item for item in decoded["items"] if item["id"]],
        source=decoded["source"],
        release=decoded["release"],
        tier=decoded["tier"],
        canary=decoded.get("canary", False),
        status=decoded.get("status"),
    )


def _cut(items: "list[Item]", call: _Call) -> "list[Item]":
    """Return what the service would of a list: the first *n* items but the excluded ones, with the fields."""
    excluded = set(call.exclude)
    kept = [item for item in items if item["id"] not in excluded][: call.n]
    fields = call.fields or ("id", "score", "title")
    return [{name: item[name] for name in fields if name in item} for item in kept]  # type: ignore[literal-required,misc]  # names of fields, as the service takes them


def _basket(items: Basket) -> dict[str, Any]:
    weighted = (
        [{"id": name, "weight": weight} for name, weight in items.items()] if isinstance(items, Mapping) else items
    )
    return {"items": list(weighted)}


def _encoded(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"an id, a field and a segment are strings, and not of the type {type(name).__name__}")
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")  # else it names a folder


def _check_timeout(seconds: float) -> float:
    if not 0 < seconds < inf:
        raise ValueError(f"a time-out is a number of seconds above 0, not {seconds}")
    return seconds


def _retry_after_s(headers: Mapping[bytes, str]) -> float | None:
    """Return the seconds that a `Retry-After` names, or that are left until its date; None if there is none."""
    given = headers.get(b"retry-after", "")
    try:
        if given.strip().isdecimal():
            seconds = float(given)
        else:  # by the server's clock, since ours may be wrong
            sent = headers.get(b"date")
            now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
            seconds = (parsedate_to_datetime(given) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
