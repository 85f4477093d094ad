"""HTTP/1.1 server with a synchronous handler: a point read takes 14 µs, for the 11,000 a second of `bench ru`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
import orjson

PHRASES = {status.value: status.phrase for status in HTTPStatus} | {449: "Retry With"}
# The `code` of error bodies.
CODES = {status: phrase.replace(" ", "") for status, phrase in PHRASES.items()}
COMMON_HEADERS = "server: hotplate-cosmos-emulator\r\nx-ms-emulation: hotplate; not Azure Cosmos DB\r\n"
MAX_BODY_BYTES = 2 * 1024 * 1024


class Substatus(IntEnum):
    """Substatus codes, named as in Microsoft's SDKs."""

    WRITE_FORBIDDEN = 3
    PARTITION_KEY_MISMATCH = 1001
    PARTITION_KEY_RANGE_GONE = 1002
    OWNER_RESOURCE_NOT_FOUND = 1003
    REQUEST_RATE_TOO_LARGE = 3200


@dataclass(eq=False)
class HttpError(Exception):
    """Ends a request with an error response."""

    status: int
    message: str
    substatus: int = 0
    charge_ru: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> "HttpResponse":
        """Return the response in the service's format."""
        body = orjson.dumps({"code": CODES[self.status], "message": self.message})
        headers = {**self.headers, "x-ms-substatus": str(self.substatus)}
        return HttpResponse(self.status, body, headers, self.charge_ru)


@dataclass(slots=True)
class Request:
    """A request; header names are in lower case."""

    method: str
    path: str  # percent-encoded, without the query string
    headers: dict[bytes, bytes]
    body: bytes = b""
    region: int = 0  # 0 is the write region
    scheme: str = "http"
    query: str = ""

    def header(self, name: bytes) -> str:
        """Return a header, empty if absent."""
        return self.headers.get(name, b"").decode("latin-1")

    def flag(self, name: bytes) -> bool:
        """Return whether a header is `true`."""
        return self.headers.get(name, b"").lower() == b"true"

    def object(self) -> dict[str, Any]:
        """Parse the body as a JSON object."""
        value = parse_json(self.body)
        if not isinstance(value, dict):
            raise HttpError(400, "the body must be a JSON object")
        return value


@dataclass(slots=True)
class HttpResponse:
    """A response, with an injected delay or reset."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    charge_ru: float = 0.0
    content_type: str = "application/json"
    delay_s: float = 0.0
    reset: bool = False  # instead of responding


HttpHandler = Callable[[Request], HttpResponse]


def parse_json(raw: bytes, name: str = "the body") -> Any:  # noqa: ANN401 -- any JSON value
    """Parse JSON; raises 400."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"{name} is not JSON: {error.msg}") from None


def render(response: HttpResponse, *, keep_alive: bool = True) -> bytes:
    """Encode a response."""
    length = "" if response.status in (204, 304) else f"content-length: {len(response.body)}\r\n"
    content_type = f"content-type: {response.content_type}\r\n" if response.body else ""
    close = "" if keep_alive else "connection: close\r\n"
    lines = "".join([f"{name}: {value}\r\n" for name, value in response.headers.items()])
    head = (
        f"HTTP/1.1 {response.status} {PHRASES[response.status]}\r\n{length}{content_type}"
        f"x-ms-request-charge: {response.charge_ru:.2f}\r\n{lines}{close}{COMMON_HEADERS}\r\n"
    )
    return head.encode("latin-1") + response.body


class HttpConnection(asyncio.Protocol):
    """One connection; httptools calls `on_…`."""

    def __init__(self, handler: HttpHandler, connections: "set[HttpConnection]", region: int, scheme: str) -> None:
        self._handler = handler
        self._connections = connections
        self._region = region
        self._scheme = scheme
        self._is_closing = False
        self._delayed = 0
        self._last_due = 0.0
        self._parser = httptools.HttpRequestParser(self)
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 -- asyncio's
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._loop = asyncio.get_running_loop()
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102 -- asyncio's
        self._is_closing = True
        self._connections.discard(self)

    def reset(self) -> None:
        """Abort the connection."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102 -- asyncio's
        if self._is_closing:
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._respond(HttpError(400, "the request is not HTTP/1.1").response(), keep_alive=False)

    def on_message_begin(self) -> None:  # noqa: D102 -- httptools'
        self._url = b""
        self._headers = dict[bytes, bytes]()
        self._body = list[bytes]()
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:  # noqa: D102 -- httptools'
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header; the last wins."""
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        """Store a piece of the body; only count the excess."""
        self._body_bytes += len(body)
        if self._body_bytes <= MAX_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer a request that the parser has read completely; 413 if its body was too large.

        The parser has passed the parts of the request to other callbacks, which keep them. The connection is kept open
        if the client's headers allow it.
        """
        if self._is_closing:  # a further request was pipelined after the last one
            return

        keep_alive = self._parser.should_keep_alive()
        if self._body_bytes > MAX_BODY_BYTES:
            error = HttpError(413, "Request size is too large: a request has at most 2 MB.")
            self._respond(error.response(), keep_alive=keep_alive)
            return

        path, _, query = self._url.decode("latin-1").partition("?")
        method = self._parser.get_method().decode("latin-1")
        body = b"".join(self._body)
        request = Request(method, path, self._headers, body, self._region, self._scheme, query)
        self._respond(self._handler(request), keep_alive=keep_alive)

    def _respond(self, response: HttpResponse, *, keep_alive: bool) -> None:
        """Send a response after its delay, and after those before it, as HTTP/1.1 demands."""
        self._is_closing = not keep_alive
        if response.delay_s <= 0 and not self._delayed:
            self._write(response, keep_alive=keep_alive)
            return

        # Timers with equal times have no order, so each is later than the one before.
        self._last_due = max(self._loop.time() + response.delay_s, self._last_due + 1e-6)
        self._delayed += 1
        self._loop.call_at(self._last_due, partial(self._write_delayed, response, keep_alive=keep_alive))

    def _write_delayed(self, response: HttpResponse, *, keep_alive: bool) -> None:
        self._delayed -= 1
        self._write(response, keep_alive=keep_alive)

    def _write(self, response: HttpResponse, *, keep_alive: bool) -> None:
        """Write a response, or reset the connection if it says so; close it unless *keep_alive*."""
        if self._transport.is_closing():
            return
        if response.reset:
            self.reset()
            return
        self._transport.write(render(response, keep_alive=keep_alive))
        if not keep_alive:
            self._transport.close()
