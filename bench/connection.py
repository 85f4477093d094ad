"""One keep-alive connection, as a client on the other end of the service would hold it."""

import asyncio
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser


class Owner(Protocol):
    """Whoever hands out requests; it hears of everything that becomes of them."""

    def ready(self, connection: "Connection") -> None:
        """The connection is open and has nothing in flight."""

    def answered(self, due_s: float, status: int, body: bytes) -> None:
        """The request that was due at `due_s` has its whole answer."""

    def failed(self, kind: str) -> None:
        """A request gets no answer, or no good one."""

    def gone(self, connection: "Connection", *, unasked: bool) -> None:
        """The connection is closed; `unasked`: because the server sent bytes that nobody had asked for."""


class Connection(asyncio.Protocol):
    """A connection with at most one request in flight; lives until either side closes it.

    An answer needs a length or chunks: one that ends with its connection counts as a reset.
    """

    __slots__ = ("_answers", "_body", "_keep", "_owner", "_parser", "_transport", "due_s")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._body = b""
        self._answers = 0
        self._keep = False
        self.due_s: float | None = None

    def send(self, request: bytes, due_s: float) -> None:
        """Write *request*, which was due at *due_s*; only after `ready`."""
        self.due_s = due_s
        self._body = b""
        self._answers = 0
        cast("asyncio.Transport", self._transport).write(request)  # `ready` came after connection_made

    def fail(self, kind: str) -> None:
        """Give up the request in flight as *kind*, and the connection with it: a late answer must meet no later one."""
        in_flight, self.due_s = self.due_s is not None, None
        if in_flight:
            self._owner.failed(kind)
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
        if self.due_s is None:
            self.close(unasked=True)
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self.fail("malformed")
            return
        if self._answers == 1:
            self._finish(self.due_s)
        elif self._answers:
            self.fail("malformed")

    def _finish(self, due_s: float) -> None:
        self.due_s = None
        self._owner.answered(due_s, self._parser.get_status_code(), self._body)
        if self._keep:
            self._owner.ready(self)
        else:
            self.close()

    def on_body(self, piece: bytes) -> None:
        """Called by the parser for each piece of the body."""
        self._body = self._body + piece if self._body else piece

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
