"""A small HTTP/1.1 client over raw connections: keep-alive, one request in flight on each, a deadline for every answer.

It parses answers (httptools) and leaves requests to the caller, who knows their bytes. `Connection` tells an owner what
becomes of each request, which is all that a load generator wants; `stores.pool` makes that an awaitable `ask`.
"""

import asyncio
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

Tag = TypeVar("Tag")
Kind = Literal["connect", "reset", "malformed", "timeout"]
"""Why a request has no answer: no connection, one that ended, bytes that are no answer, or none in time."""


class WireFailed(Exception):
    """A request has no answer; `kind` says why. Whether the server acted on it is not known, but for `connect`.

    `stale`: a connection that had been idle ended without a word, as servers end those that idle for too long.
    """

    def __init__(self, kind: Kind, host: str, *, stale: bool = False) -> None:
        super().__init__(f"no answer from {host}: {kind}")
        self.kind = kind
        self.stale = stale


class Owner(Protocol[Tag]):
    """Whoever hands out requests; it hears of everything that becomes of them."""

    def ready(self, connection: "Connection[Tag]") -> None:
        """The connection is open and has nothing in flight."""

    def answered(self, connection: "Connection[Tag]", tag: Tag) -> None:
        """The request sent with *tag* has its whole answer: `status`, `body` and `head` of the connection."""

    def failed(self, tag: Tag, kind: Kind) -> None:
        """The request sent with *tag* gets no answer, or none that is one."""

    def gone(self, connection: "Connection[Tag]", *, unasked: bool) -> None:
        """The connection is closed; `unasked`: because the server sent bytes that nobody had asked for."""


class Connection(asyncio.Protocol, Generic[Tag]):
    """A connection with at most one request in flight; lives until either side closes it.

    An answer needs a length or chunks: one that ends with its connection counts as a reset. Headers are kept only where
    they are asked for, as they came: most of them are never looked at.
    """

    __slots__ = (
        "_answers",
        "_in_head",
        "_keep",
        "_keeps_head",
        "_owner",
        "_parser",
        "_pieces",
        "_transport",
        "answered",
        "body",
        "head",
        "lost",
        "on_headers_complete",
        "sent_at",
        "status",
        "tag",
    )

    def __init__(self, owner: Owner[Tag], *, headers: bool = False) -> None:
        if headers:
            self.on_headers_complete = self._end_head  # the parser looks for it now, and calls it only where it is set
        self._keeps_head = self._in_head = headers
        self._owner = owner
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._pieces = list[bytes]()
        self._answers = 0
        self._keep = False
        self.tag: Tag | None = None
        self.status = 0
        self.body = b""
        self.head = b""
        """The status line and the headers as they came, and perhaps what came with them."""

        self.answered = 0
        """How many answers it has brought."""

        self.sent_at = 0.0
        """When its owner last sent something, where that matters to the owner."""

        self.lost: Kind | None = None
        """Why it is gone, where somebody failed it."""

    def send(self, request: bytes, tag: Tag) -> None:
        """Write *request*, to be told of by *tag*; only after `ready`."""
        self.tag = tag
        self.head = b""
        self._in_head = self._keeps_head
        self._answers = 0
        cast("asyncio.Transport", self._transport).write(request)  # `ready` came after connection_made

    def fail(self, kind: Kind) -> None:
        """Give up the request in flight as *kind*, and the connection with it: a late answer must meet no later one."""
        tag, self.tag = self.tag, None
        self.lost = self.lost or kind
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
        if self._in_head:
            self.head = self.head + data if self.head else data
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
        self.answered += 1
        self._owner.answered(self, tag)
        if self._keep:
            self._owner.ready(self)
        else:
            self.close()

    def on_message_begin(self) -> None:
        """Called by the parser at the start of an answer."""
        self._pieces = []

    def on_body(self, piece: bytes) -> None:
        """Called by the parser for each piece of the body."""
        self._pieces.append(piece)

    def _end_head(self) -> None:
        self._in_head = False

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


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    head: bytes
    """The status line and the headers as they came, and perhaps what came with them."""

    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Return the header of a *name* in lower case; of several the last, None where there is none."""
        head = self.head[: self.head.find(b"\r\n\r\n") + 2]
        lower = head.lower()
        start = lower.rfind(b"\r\n%b:" % name)
        if start < 0:
            return None
        start += len(name) + 3
        return head[start : lower.find(b"\r\n", start)].strip(b" \t")


class Transport(Protocol):
    """Carries requests to one server: `stores.pool.Pool`, or whatever stands in a network's place."""

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Return the answer to the bytes of one request; raises WireFailed where there is none in *timeout_s*."""
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...
