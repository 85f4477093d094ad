"""HTTP/1.1 on one connection: bytes in, requests to the service, answers out in the order of their requests.

The service answers at once, without waiting for anything, so that there is neither a task nor a future for a request:
that is what keeps a read below 50 µs.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

import httptools

from bench.cosmos_emulator.errors import Refused
from bench.cosmos_emulator.messages import Answer, Request
from bench.cosmos_emulator.service import refused

MOST_HEAD_BYTES = 64 * 1024
MOST_BODY_BYTES = 2 * 1024 * 1024
MOST_SWALLOWED_BYTES = 64 * 1024 * 1024
"""A body that is too large is read to here before it is refused: a client that still writes may not hear the answer."""

MOST_WAITING = 64
"""Pipelined requests that wait behind a delayed answer; more are left in the kernel."""

IDLE_S = 120.0

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus} | {
    449: "HTTP/1.1 449 Retry With\r\n"
}
COMMON = (
    "server: hotplate-cosmos-emulator\r\n"
    "x-ms-emulation: hotplate; not Azure Cosmos DB\r\n"
    "x-ms-serviceversion: emulation\r\n"
)

Answering = Callable[[Request], Answer]


class Connection(asyncio.Protocol):
    """One connection, from its making to its loss."""

    def __init__(self, answering: Answering, alive: "set[Connection]", region: int, scheme: str) -> None:
        self._answering = answering
        self._alive = alive
        self._region = region
        self._scheme = scheme
        self._waiting = deque[tuple[Request | Answer, bool]]()
        self._is_busy = False
        self._is_stuck = False
        self._is_ending = False
        self._is_closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers = dict[bytes, bytes]()
        self._body = list[bytes]()
        self._body_bytes = 0
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # asyncio gives TCP servers this kind
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self._alive.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; what waits is not answered any more."""
        del exc
        self._alive.discard(self)
        self._is_closing = True
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def close_idle(self, now: float) -> None:
        """Close a connection that has said nothing for long, half a request included."""
        if not self._is_busy and now - self.heard_at > IDLE_S:
            self._transport.close()

    def reset(self) -> None:
        """Cut the connection as a crash would."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on; what is not HTTP is answered with 400, after what came before it."""
        if self._is_closing:
            return
        self.heard_at = self._loop.time()
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request was answered as if it had not asked for another protocol; what follows may be in that one.
            self._is_ending = True
            self._go_on()
        except httptools.HttpParserError:
            self._give_up(400, "the request is not HTTP/1.1")
        if (self._in_head and self._head_bytes > MOST_HEAD_BYTES + len(data)) or len(self._url) > MOST_HEAD_BYTES:
            self._give_up(431, f"the head of a request has at most {MOST_HEAD_BYTES} bytes")
        if self._body_bytes > MOST_SWALLOWED_BYTES:
            self._give_up(413, "Request size is too large: a request has at most 2 MB.")

    def pause_writing(self) -> None:
        """Neither read from a client that does not read its answers, nor make more of them."""
        self._is_stuck = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._is_stuck = False
        self._go_on()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the path."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; of several with a name, the last."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Let a client go on that asks before it sends its body."""
        self._in_head = False
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and not self._is_busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; what is too much is counted, not kept."""
        self._body_bytes += len(body)
        if self._body_bytes <= MOST_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer a whole request, or let it wait behind a delayed one."""
        path, _, query = self._url.decode("latin-1").partition("?")
        keeps = self._parser.should_keep_alive()
        asked: Request | Answer
        if self._body_bytes > MOST_BODY_BYTES:
            asked = refused(Refused(413, "Request size is too large: a request has at most 2 MB."))
        else:
            method = self._parser.get_method().decode("latin-1")
            body = b"".join(self._body)
            asked = Request(method, path, self._headers, body, self._region, self._scheme, query)
        self._head_bytes, self._in_head, self._body_bytes = 0, True, 0
        self._ask(asked, keeps=keeps)

    def _give_up(self, status: int, message: str) -> None:
        if not self._is_closing:
            self._ask(refused(Refused(status, message)), keeps=False)
            self._is_closing = True

    def _ask(self, asked: Request | Answer, *, keeps: bool) -> None:
        if self._is_closing:
            return
        if self._is_busy or self._is_stuck:
            self._waiting.append((asked, keeps))
            if len(self._waiting) >= MOST_WAITING:
                self._transport.pause_reading()
            return
        self._do(asked, keeps=keeps)

    def _do(self, asked: Request | Answer, *, keeps: bool) -> None:
        answer = self._answering(asked) if isinstance(asked, Request) else asked
        is_head = isinstance(asked, Request) and asked.method == "HEAD"
        if answer.delay_s > 0:
            self._is_busy = True
            self._timer = self._loop.call_later(answer.delay_s, self._late, answer, keeps, is_head)
        else:
            self._write(answer, keeps=keeps, is_head=is_head)

    def _late(self, answer: Answer, keeps: bool, is_head: bool) -> None:  # noqa: FBT001 -- call_later passes no keywords
        self._is_busy, self._timer = False, None
        self._write(answer, keeps=keeps, is_head=is_head)
        self._go_on()

    def _go_on(self) -> None:
        """Answer what waits, until one of the answers has to wait itself."""
        while self._waiting and not self._is_busy and not self._is_stuck:
            asked, keeps = self._waiting.popleft()
            self._do(asked, keeps=keeps)
        if self._is_ending and not self._waiting and not self._is_busy:
            self._is_closing = True
            self._transport.close()
        elif len(self._waiting) < MOST_WAITING and not self._is_stuck and not self._transport.is_closing():
            self._transport.resume_reading()

    def _write(self, answer: Answer, *, keeps: bool, is_head: bool) -> None:
        if self._transport.is_closing():
            return
        if answer.reset:
            self.reset()
            return
        self._transport.write(rendered(answer, keeps=keeps, is_head=is_head))
        if not keeps:
            self._is_closing = True
            self._waiting.clear()
            self._transport.close()


def rendered(answer: Answer, *, keeps: bool = True, is_head: bool = False) -> bytes:
    """Return an answer's bytes."""
    length = "" if answer.status in (204, 304) else f"content-length: {len(answer.body)}\r\n"
    kind = f"content-type: {answer.content_type}\r\n" if answer.body else ""
    close = "" if keeps else "connection: close\r\n"
    lines = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()])
    head = (
        f"{STATUS_LINES[answer.status]}{length}{kind}x-ms-request-charge: {answer.charge_ru:.2f}\r\n"
        f"{lines}{close}{COMMON}\r\n"
    )
    return head.encode("latin-1") + (b"" if is_head else answer.body)
