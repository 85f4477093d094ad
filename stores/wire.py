"""A small HTTP/1.1 client over raw connections: keep-alive, one request in flight on each, a deadline for every answer.

It parses answers (httptools) and leaves requests to the caller, who knows their bytes. `Connection` tells an owner what
becomes of each request, which is all that a load generator wants; `Pool` makes that an awaitable `ask`.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Literal, Protocol, TypeVar, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

Tag = TypeVar("Tag")
Kind = Literal["connect", "reset", "malformed", "timeout"]
"""Why a request has no answer: no connection, one that ended, bytes that are no answer, or none in time."""


class WireFailed(Exception):
    """A request has no answer; `kind` says why. Whether the server acted on it is not known, but for `connect`."""

    def __init__(self, kind: Kind, host: str) -> None:
        super().__init__(f"no answer from {host}: {kind}")
        self.kind = kind


class Owner(Protocol[Tag]):
    """Whoever hands out requests; it hears of everything that becomes of them."""

    def ready(self, connection: "Connection[Tag]") -> None:
        """The connection is open and has nothing in flight."""

    def answered(self, connection: "Connection[Tag]", tag: Tag) -> None:
        """The request sent with *tag* has its whole answer: `status`, `body` and `headers` of the connection."""

    def failed(self, tag: Tag, kind: Kind) -> None:
        """The request sent with *tag* gets no answer, or none that is one."""

    def gone(self, connection: "Connection[Tag]", *, unasked: bool) -> None:
        """The connection is closed; `unasked`: because the server sent bytes that nobody had asked for."""


class Connection(asyncio.Protocol, Generic[Tag]):
    """A connection with at most one request in flight; lives until either side closes it.

    An answer needs a length or chunks: one that ends with its connection counts as a reset. Headers are kept, by
    lower-case name, only where they are asked for: they cost a call each.
    """

    __slots__ = (
        "_answers",
        "_keep",
        "_owner",
        "_parser",
        "_pieces",
        "_transport",
        "body",
        "headers",
        "on_header",
        "status",
        "tag",
    )

    def __init__(self, owner: Owner[Tag], *, headers: bool = False) -> None:
        if headers:
            self.on_header = self._keep_header  # the parser looks for it now, and calls it only where it is set
        self._owner = owner
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._pieces = list[bytes]()
        self._answers = 0
        self._keep = False
        self.tag: Tag | None = None
        self.status = 0
        self.body = b""
        self.headers = dict[bytes, bytes]()

    def send(self, request: bytes, tag: Tag) -> None:
        """Write *request*, to be told of by *tag*; only after `ready`."""
        self.tag = tag
        self._answers = 0
        cast("asyncio.Transport", self._transport).write(request)  # `ready` came after connection_made

    def fail(self, kind: Kind) -> None:
        """Give up the request in flight as *kind*, and the connection with it: a late answer must meet no later one."""
        tag, self.tag = self.tag, None
        if tag is not None:
            self._owner.failed(tag, kind)
        if self._transport is not None:
            self._transport.abort()
        self.close()

    def close(self, *, unasked: bool = False) -> None:
        """Close the connection, whichever side wants it; nothing may be in flight."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            self._owner.gone(self, unasked=unasked)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # a stream transport, because this is a stream protocol
        self._owner.ready(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.tag is None:
            self.close(unasked=True)
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self.fail("malformed")
            return
        if self._answers == 1:
            self._finish(self.tag)
        elif self._answers:
            self.fail("malformed")

    def _finish(self, tag: Tag) -> None:
        self.tag = None
        pieces = self._pieces
        self.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.status = self._parser.get_status_code()
        self._owner.answered(self, tag)
        if self._keep:
            self._owner.ready(self)
        else:
            self.close()

    def on_message_begin(self) -> None:
        """Called by the parser at the start of an answer."""
        self._pieces = []
        self.headers = {}

    def on_body(self, piece: bytes) -> None:
        """Called by the parser for each piece of the body."""
        self._pieces.append(piece)

    def _keep_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_message_complete(self) -> None:
        """Called by the parser at the end of an answer; the rest of the bytes it was fed may still be refused."""
        self._answers += 1
        self._keep = self._parser.should_keep_alive()  # forgotten by the parser once this call returns

    def eof_received(self) -> None:
        """See `asyncio.Protocol`; acted on at once, so that no request is written to a half-closed connection."""
        self.fail("reset")

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        del exc  # the kind of loss is the same to the request in flight: it has no answer
        self.fail("reset")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names are in lower case, and of a name given twice the last counts."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


Asked = asyncio.Future[Answer]


class Pool:
    """At most `size` connections to one server, opened when needed and kept; lives as long as its store."""

    def __init__(self, host: str, port: int, *, size: int = 32, tls: ssl.SSLContext | None = None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._room = asyncio.Semaphore(size)
        self._idle = deque[Connection[Asked]]()
        self._open = set[Connection[Asked]]()

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Send the bytes of one request and wait for its answer; WireFailed where there is none in *timeout_s*.

        A connection whose answer is not waited for any more is closed. Nothing is sent twice: only the caller knows
        whether that would do harm.
        """
        asked: Asked = asyncio.get_running_loop().create_future()
        connection: Connection[Asked] | None = None
        try:
            async with asyncio.timeout(timeout_s), self._room:
                connection = self._idle.popleft() if self._idle else await self._connect()
                connection.send(request, asked)
                return await asked
        except TimeoutError:
            raise WireFailed("timeout", self._host) from None
        except OSError as error:
            raise WireFailed("connect", self._host) from error
        finally:
            if connection is not None and connection.tag is asked:
                asked.cancel()
                connection.fail("timeout")

    async def close(self) -> None:
        """Close every connection; what is in flight fails as `reset`."""
        for connection in list(self._open):
            connection.fail("reset")
        await asyncio.sleep(0)  # sockets are closed on the loop's next turn

    async def _connect(self) -> Connection[Asked]:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection[Asked](self, headers=True), self._host, self._port, ssl=self._tls
        )
        self._idle.remove(connection)  # `ready` put it there
        return connection

    def ready(self, connection: Connection[Asked]) -> None:
        """See `Owner`."""
        self._open.add(connection)
        self._idle.append(connection)

    def answered(self, connection: Connection[Asked], tag: Asked) -> None:
        """See `Owner`."""
        if not tag.done():
            tag.set_result(Answer(connection.status, MappingProxyType(connection.headers), connection.body))

    def failed(self, tag: Asked, kind: Kind) -> None:
        """See `Owner`."""
        if not tag.done():
            tag.set_exception(WireFailed(kind, self._host))

    def gone(self, connection: Connection[Asked], *, unasked: bool) -> None:
        """See `Owner`."""
        del unasked  # whatever it sent, it carries no request of ours
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
