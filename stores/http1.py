"""A small HTTP/1.1 client over raw connections: keep-alive, one request in flight on each, a deadline for each.

It parses responses (httptools) and leaves requests to the caller, who knows their bytes. `ClientConnection` reports to
a listener what becomes of each request, which is all that a load generator wants; `ConnectionPool` makes that an
awaitable `request`.
"""

import asyncio
import re
import ssl
from collections import deque
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from hotplate.stores.deadlines import Deadlines
from hotplate.stores.throttle import Backoff

Tag = TypeVar("Tag")
# Why a request has no response: no connection, one that ended, bytes that are not a response, or none in time.
FailureKind = Literal["connect", "reset", "malformed", "timeout"]

# When an attempt to connect is given up; a handshake of TLS is part of it.
CONNECT_S = 2.0

# The first and the longest pause before a server that failed is tried again; until then callers fail at once.
PAUSE_S = (0.05, 2.0)

# A connection that was not needed for so long, or twice as long at most, is closed.
IDLE_S = 60.0

# A connection that idled for so long may end for that reason only.
STALE_S = 2.0

# Of a response whose body has no length of its own, and how its last chunk ends.
CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:[^\r]*chunked")
LAST_CHUNK_END = b"\r\n\r\n"

# Of HTTP: parsers skip empty lines before it, which are what was left of something else.
FIRST_BYTE = ord("H")

# Lower statuses announce a response; none was asked to.
FINAL_STATUS = 200

LATE_S = 5.0
# A connection whose response came too late is kept for it, so long and for such a share of the size besides the others:
# a slow server is not made slower by new connections, nor do its slow responses keep the quick ones waiting.
LATE_SHARE = 0.5


class RequestFailed(Exception):
    """A request has no response; `kind` says why. Whether the server acted on it is not known, but for `connect`.

    `stale`: a connection that had been idle ended without a word, as servers end those that idle for too long.
    `retry_after_s`: how long it takes until the server is tried again, of a request that was not sent.
    """

    def __init__(self, kind: FailureKind, host: str, *, stale: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(f"no answer from {host}: {kind}")
        self.kind = kind
        self.stale = stale
        self.retry_after_s = retry_after_s


class ConnectionListener(Protocol[Tag]):
    """The sender of requests; it is called back with the result of each."""

    def on_ready(self, connection: "ClientConnection[Tag]") -> None:
        """The connection is open and has nothing in flight."""

    def on_response(self, connection: "ClientConnection[Tag]", tag: Tag) -> None:
        """The request sent with *tag* has its whole response: `status`, `body` and `head` of the connection."""

    def on_failure(self, tag: Tag, kind: FailureKind) -> None:
        """The request sent with *tag* has no response, or none that can be parsed."""

    def on_closed(self, connection: "ClientConnection[Tag]", *, unsolicited: bool) -> None:
        """The connection is closed; *unsolicited*: because the server sent bytes that no request was in flight for."""


class ClientConnection(asyncio.Protocol, Generic[Tag]):
    """A connection with at most one request in flight; lives until either side closes it.

    A response needs a length or chunks: one that ends with its connection counts as a reset. Headers are kept as they
    came: most of them are never looked at. A byte that was not asked for, even right behind a response, closes the
    connection: what follows it could be taken for another request's response.
    """

    __slots__ = (
        "_complete",
        "_heads",
        "_keep",
        "_listener",
        "_parser",
        "_pieces",
        "_received",
        "_tail",
        "_transport",
        "body",
        "head",
        "lost",
        "responses",
        "sent_at",
        "status",
        "tag",
    )

    def __init__(self, listener: ConnectionListener[Tag]) -> None:
        self._listener = listener
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._pieces = list[bytes]()
        self._complete = self._keep = False
        self._heads = 0
        """Of responses, since the request was sent."""

        self._received = 0
        """Bytes since the request was sent."""

        self._tail = b""
        """At least the last eight of them, if there are so many."""

        self.tag: Tag | None = None
        self.status = 0
        self.body = b""
        self.head = b""
        """The status line and the headers of a response as they came."""

        self.responses = 0
        """How many responses it has brought."""

        self.sent_at = 0.0
        """When its owner last sent something, if that matters to the owner."""

        self.lost: FailureKind | None = None
        """Why it is gone, where somebody failed it."""

    def send(self, request: bytes, tag: Tag) -> None:
        """Write *request*, to be reported on by *tag*; only after `on_ready`."""
        self.tag = tag
        self.head = self._tail = b""
        self._complete = False
        self._heads = self._received = 0
        self._pieces = []
        cast("asyncio.Transport", self._transport).write(request)  # `on_ready` came after connection_made

    def fail(self, kind: FailureKind) -> None:
        """Fail the request in flight as *kind*, and close: a late response must meet no later request."""
        tag, self.tag = self.tag, None
        self.lost = self.lost or kind
        if tag is not None:
            self._listener.on_failure(tag, kind)
        if self._transport is not None:
            self._transport.abort()
        self.close()

    def close(self, *, unsolicited: bool = False) -> None:
        """Close the connection, whichever side wants it; nothing may be in flight."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            self._listener.on_closed(self, unsolicited=unsolicited)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # a stream transport, because this is a stream protocol
        self._listener.on_ready(self)

    def data_received(self, data: bytes) -> None:
        if self.tag is None:
            self.close(unsolicited=True)
            return
        self._received += len(data)
        self._tail = data if len(data) >= 8 else (self._tail + data)[-8:]
        if not self._heads:
            self.head = self.head + data if self.head else data
        well_formed = True
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self.fail("malformed")
            return
        except HttpParserError:
            well_formed = False
        if self._complete:
            self._finish(self.tag, well_formed)
        elif not well_formed or self.head[0] != FIRST_BYTE:
            self.fail("malformed")

    def _finish(self, tag: Tag, well_formed: bool) -> None:  # noqa: FBT001 -- for each response: a keyword costs more
        """Report a response; what came with it and is not of it closes the connection."""
        head = self.head
        end = head.find(b"\r\n\r\n") + 4
        if self.status < FINAL_STATUS or head[0] != FIRST_BYTE:
            self.fail("malformed")
            return
        self.head = head[:end]
        self.tag = None
        self.responses += 1
        self._listener.on_response(self, tag)
        if not well_formed or (self._received != end + len(self.body) and not self._ends_with_its_last_chunk()):
            self.close(unsolicited=True)
        elif self._keep:
            self._listener.on_ready(self)
        else:
            self.close()

    def _ends_with_its_last_chunk(self) -> bool:
        """Return whether nothing follows a response in chunks, not even an empty line, which parsers skip."""
        empty_lines = self._tail[len(self._tail.rstrip(b"\r\n")) :]
        return self._heads == 1 and empty_lines == LAST_CHUNK_END and bool(CHUNKED.search(self.head))

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of the headers."""
        self._heads += 1

    def on_body(self, piece: bytes) -> None:
        """Called by the parser for each piece of the body."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a response; what it was fed may go on."""
        if not self._complete:
            self._complete = True
            pieces = self._pieces
            self.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self.status = self._parser.get_status_code()
            self._keep = self._parser.should_keep_alive()  # the parser forgets it once this call returns

    def eof_received(self) -> None:
        self.fail("reset")  # at once, so no request is written to a half-closed connection

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # the kind of loss is the same to the request in flight: it has no response
        self.fail("reset")


class Response(NamedTuple):
    """A whole response."""

    status: int
    head: bytes
    """The status line and the headers as they came."""

    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Return the header of a *name* in lower case; of several the last, None if there is none."""
        lower = self.head.lower()
        start = lower.rfind(b"\r\n%b:" % name)
        if start < 0:
            return None
        start += len(name) + 3
        return self.head[start : lower.find(b"\r\n", start)].strip(b" \t")


class Transport(Protocol):
    """Carries requests to one server: `ConnectionPool`, or whatever stands in a network's place."""

    async def request(self, message: bytes, timeout_s: float) -> Response:
        """Return the response to the bytes of one request; raises RequestFailed if there is none in *timeout_s*."""
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...


class Pending(asyncio.Future[Response]):
    """The response to one request, which is dropped when it comes if this is done by then."""

    __slots__ = ("connection", "idle_s")

    connection: "ClientConnection[Pending] | None"
    """The one that carries the request, once there is one."""

    idle_s: float
    """How long that had been idle."""


class ConnectionPool:
    """At most `size` connections to one server, and a few that are late; lives as long as its store, on one loop."""

    def __init__(self, host: str, port: int, *, size: int = 32, tls: ssl.SSLContext | None = None) -> None:
        self._host = host
        self._port = port
        self._size = size
        self._tls = tls
        self._idle = deque[ClientConnection[Pending]]()
        self._open = set[ClientConnection[Pending]]()
        self._late = dict[ClientConnection[Pending], asyncio.TimerHandle]()
        self._waiting = deque[tuple[bytes, Pending]]()
        self._opening = set[asyncio.Task[None]]()
        self._deadlines = Deadlines(self._expire)
        self._failing = False
        self._backoff = Backoff(*PAUSE_S)
        self._retry_at = 0.0
        self._connect_error: OSError | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(self, message: bytes, timeout_s: float) -> Response:
        """See `Transport`; nothing is sent twice: only the caller knows whether that would do harm."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        pending = Pending(loop=loop)
        pending.connection, pending.idle_s = None, 0.0
        due = self._deadlines.add(pending, now + timeout_s)
        if self._idle:
            connection = self._idle.pop()
            pending.idle_s = now - connection.sent_at
            self._send(connection, message, pending, now)
        else:
            self._waiting.append((message, pending))
            self._dispatch(now)
        try:
            return await pending
        except asyncio.CancelledError:
            self._abandon(pending)
            raise
        finally:
            due.discard(pending)

    def _send(self, connection: ClientConnection[Pending], message: bytes, pending: Pending, now: float) -> None:
        pending.connection, connection.sent_at = connection, now
        connection.send(message, pending)

    async def close(self) -> None:
        """Close every connection; what is in flight fails as `reset`, and what comes after as `connect`."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for opening in self._opening:
            opening.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        self._fail_waiting("reset")
        for connection in [*self._open, *self._late]:
            connection.fail("reset")
        await asyncio.sleep(0)  # sockets are closed on the loop's next turn

    def _expire(self, pending: Pending) -> None:
        """Fail a request that should have had its response by now."""
        if not pending.done():
            pending.set_exception(RequestFailed("timeout", self._host))
            self._abandon(pending)

    def _abandon(self, pending: Pending) -> None:
        """Keep the connection of an abandoned request from others until its response has come."""
        connection = pending.connection
        if connection is None or connection.tag is not pending:
            return
        if len(self._late) >= self._size * LATE_SHARE:
            connection.fail("timeout")
            return
        self._open.discard(connection)
        loop = asyncio.get_running_loop()
        self._late[connection] = loop.call_later(LATE_S, connection.fail, "timeout")
        self._dispatch(loop.time())

    def _dispatch(self, now: float) -> None:
        """Open another connection where requests wait for one, or fail them where the server is known to be away.

        After a failure there is one attempt at a time, however many wait.
        """
        if not self._waiting:
            return
        limit = 1 if self._failing else min(len(self._waiting), self._size - len(self._open))
        if len(self._opening) < limit and len(self._open) < self._size and now >= self._retry_at and not self._closed:
            opening = asyncio.ensure_future(self._connect())
            self._opening.add(opening)
            opening.add_done_callback(self._opened)
        if not self._open and not self._opening:
            self._fail_waiting("connect", self._connect_error)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(
                    lambda: ClientConnection[Pending](self), self._host, self._port, ssl=self._tls
                )
        except OSError as error:  # a timeout is one, too, and so is what TLS refuses
            self._connect_error = error
            self._note_failure()
        else:
            if self._sweep is None:
                self._sweep = loop.call_later(IDLE_S, self._sweep_idle)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled():
            self._dispatch(asyncio.get_running_loop().time())

    def _note_failure(self) -> None:
        """Pause before the next attempt: the server cannot be connected to, or accepts connections only to end them."""
        self._failing = True
        self._retry_at = asyncio.get_running_loop().time() + self._backoff.next_s()

    def _fail_waiting(self, kind: FailureKind, cause: BaseException | None = None) -> None:
        retry_after_s = max(0.0, self._retry_at - asyncio.get_running_loop().time())
        while self._waiting:
            pending = self._waiting.popleft()[1]
            if not pending.done():
                failure = RequestFailed(kind, self._host, retry_after_s=retry_after_s)
                failure.__cause__ = cause
                pending.set_exception(failure)

    def _sweep_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._drop_idle(loop.time() - IDLE_S)
        self._sweep = loop.call_later(IDLE_S, self._sweep_idle) if self._open else None

    def _drop_idle(self, before: float) -> None:
        """Close connections that were last needed before a time of the loop's clock."""
        for connection in [one for one in self._idle if one.sent_at < before]:
            connection.close()

    def on_ready(self, connection: ClientConnection[Pending]) -> None:
        if self._late and (late := self._late.pop(connection, None)) is not None:
            late.cancel()
            if len(self._open) >= self._size:
                connection.close()
                return
        self._open.add(connection)
        while self._waiting:
            message, pending = self._waiting.popleft()
            if not pending.done():
                self._send(connection, message, pending, asyncio.get_running_loop().time())
                return
        self._idle.append(connection)

    def on_response(self, connection: ClientConnection[Pending], tag: Pending) -> None:
        if self._failing:
            self._failing = False
            self._backoff.reset()
        if not tag.done():
            tag.set_result(Response(connection.status, connection.head, connection.body))

    def on_failure(self, tag: Pending, kind: FailureKind) -> None:
        connection = tag.connection
        if tag.done() or connection is None:
            return
        stale = kind == "reset" and tag.idle_s > STALE_S and not connection.head
        if stale:
            self._drop_idle(connection.sent_at - STALE_S)  # these have probably ended, too
        tag.set_exception(RequestFailed(kind, self._host, stale=stale))

    def on_closed(self, connection: ClientConnection[Pending], *, unsolicited: bool) -> None:
        del unsolicited  # whatever it sent, it carries no request of ours
        self._open.discard(connection)
        if (late := self._late.pop(connection, None)) is not None:
            late.cancel()
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.lost == "reset" and not connection.responses:
            self._note_failure()
        if self._waiting:
            self._dispatch(asyncio.get_running_loop().time())
