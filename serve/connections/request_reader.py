"""Reads the requests of a connection by aiohttp's parser: complete headers, and bodies as they arrive."""

import asyncio
from collections.abc import Iterator
from itertools import islice
from math import inf

from aiohttp import HttpVersion, HttpVersion11, hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion10, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from hotplate.serve.api.parameters import unreadable
from hotplate.serve.connections.line_limit import LineLimit
from hotplate.serve.problems import Problem

HEADER_END = b"\r\n\r\n"
# How a client that assumes HTTP/2 begins.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
# Of an empty line that is divided between two parts, at most.
DIVIDED_BYTES = len(HEADER_END) - 1
# In one part of a chunked body, its end is searched for at no more empty lines: each costs a call of the parser.
MAX_EMPTY_LINES = 16
MAX_LINE_BYTES = 8190
# Unread bytes of a body after which no more are received. Whole bodies may be larger, once their handler reads them.
UNREAD_BYTES = 1 << 18
CONTINUE = "100-continue"
CHUNKED = "chunked"


class RequestReader:
    """Reads one request after the other: its header by `read_header`, then its body by `feed` or `discard`."""

    __slots__ = ("_bytes_left", "_chunked_tail", "_lines", "_parser", "must_close", "payload")

    def __init__(self) -> None:
        self.payload = EMPTY_PAYLOAD
        """Stream of the current body, which the handler reads; at its end already for a request without one."""

        self.must_close = False
        """Whether no other request may follow the current one."""

        self._parser: HttpRequestParser | None = None
        self._bytes_left = 0.0
        """Body bytes to come; inf if chunked."""

        self._chunked_tail = b""
        """The last bytes received of a chunked body."""

        self._lines = LineLimit()

    def read_header(self, header: bytes, protocol: BaseProtocol) -> RawRequestMessage:
        """Parse a complete header. Raises Problem.

        *protocol* is the connection, which the parser pauses and resumes.
        """
        if header == HTTP2_PREFACE:  # the parser would take it without an error
            raise _unknown_version(HttpVersion(2, 0))

        if self._parser is None:
            self._parser = HttpRequestParser(
                protocol,
                asyncio.get_running_loop(),
                UNREAD_BYTES,
                max_line_size=MAX_LINE_BYTES,
                max_field_size=MAX_LINE_BYTES,
                payload_exception=web.RequestPayloadError,
                auto_decompress=False,  # small bodies may be large uncompressed
            )

        try:
            messages, _, _ = self._parser.feed_data(header)
        except HttpProcessingError as error:
            raise unreadable(400, error.message) from error
        if not messages:
            raise unreadable(400, None)

        message, payload = messages[0]
        if message.version not in (HttpVersion11, HttpVersion10):
            raise _unknown_version(message.version)
        if not _has_known_expectation(message):
            raise Problem(417, "unknown-expectation", f"the header Expect may only be {CONTINUE}")

        self.payload = payload
        self.must_close = not _may_keep_connection(message)
        self._bytes_left = inf if message.chunked else int(message.headers.get(hdrs.CONTENT_LENGTH, 0))
        self._chunked_tail = b""
        self._lines = LineLimit()
        if message.upgrade and payload.is_eof():
            self._parser = None  # after an offer to upgrade, it expects another protocol
        return message

    @property
    def must_discard(self) -> bool:
        """Whether a part of a body is to come that `discard` can discard: its size is known."""
        return 0 < self._bytes_left < inf

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived."""
        return self.payload.is_eof() and not self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether the request was given a problem instead of its body, which is discarded."""
        return self.payload.exception() is not None

    def feed(self, data: bytes) -> bytes:
        """Add a part of the body to `payload`; return the bytes after the body. A malformed body fails with 400.

        Raises TooManyLines for a chunked one.
        """
        if self.has_failed or self._parser is None:
            return b""

        try:
            if self._bytes_left == inf:
                next_bytes = self._feed_chunked(self._parser, data)
            else:
                size = self._counted(data)
                self._parser.feed_data(data[:size])
                next_bytes = data[size:]
        except HttpProcessingError as error:
            self.fail(unreadable(400, error.message))
            return b""

        if not self.payload.is_eof():
            return b""
        self._parser = None  # it may keep trailers, or expect another protocol
        return next_bytes

    def fail(self, problem: BaseException) -> None:
        """Let the request be answered with a problem, and discard the rest of its body."""
        if not self.has_failed:
            self.payload.set_exception(problem)

    def refuse(self) -> None:
        """Read no body into `payload`: the request is refused, and what arrives of its body is discarded."""
        self.payload = EMPTY_PAYLOAD
        self._parser = None  # it expects the body

    def discard(self, data: bytes) -> bytes:
        """Return the bytes of *data* after the body of a refused request."""
        return data[self._counted(data) :]

    def end_request(self) -> None:
        """Forget the body of an answered request."""
        self.payload = EMPTY_PAYLOAD

    def close(self) -> None:
        """End after the connection was lost: a body that is incomplete fails."""
        if not self.payload.is_eof():
            self.payload.set_exception(ConnectionResetError("the client has gone"))
        # Both refer to the connection: in a cycle, a body would stay in memory until the garbage collector runs.
        self.payload = EMPTY_PAYLOAD
        self._parser = None

    def _counted(self, data: bytes) -> int:
        """Return how many bytes of *data* belong to the body, and count them."""
        size = int(min(len(data), self._bytes_left))
        self._bytes_left -= size
        return size

    def _feed_chunked(self, parser: HttpRequestParser, data: bytes) -> bytes:
        """Feed a part of a chunked body to aiohttp's parser; return the bytes after the body, if it ends in *data*.

        The parser does not tell at which byte a body ends. It can end only with an empty line, so *data* is fed in
        pieces that end with one, and after each piece the parser is asked whether the body is complete.
        """
        # An empty line may be divided between two parts, so each part is searched with the end of the one before.
        joined = self._chunked_tail + data
        fed_size = len(self._chunked_tail)
        self._chunked_tail = joined[-DIVIDED_BYTES:]

        for line_end in islice(_ends_of_empty_lines(joined), MAX_EMPTY_LINES):
            self._feed_counted(parser, joined[fed_size:line_end])
            fed_size = line_end
            if self.payload.is_eof():
                return joined[line_end:]

        self._feed_counted(parser, joined[fed_size:])
        # If the parser accepts another end, bytes of the next request may be lost in it.
        self.must_close |= self.payload.is_eof()
        return b""

    def _feed_counted(self, parser: HttpRequestParser, data: bytes) -> None:
        self._lines.count(data)
        parser.feed_data(data)


def _may_keep_connection(message: RawRequestMessage) -> bool:
    """Return whether another request may follow: the client allows it, and every server finds the same end."""
    headers = message.headers
    if message.should_close or message.version < HttpVersion11 or message.method == hdrs.METH_CONNECT:
        return False
    return headers.getall(hdrs.TRANSFER_ENCODING, [CHUNKED]) == [CHUNKED]


def _ends_of_empty_lines(data: bytes) -> Iterator[int]:
    """Yield the ends of all empty lines, also of those that overlap."""
    start = data.find(HEADER_END)
    while start >= 0:
        yield start + len(HEADER_END)
        start = data.find(HEADER_END, start + 1)


def _unknown_version(version: HttpVersion) -> Problem:
    status, name = (505, "version-not-supported") if version.major else (400, "bad-request")
    detail = f"HTTP/1.1 and HTTP/1.0 are spoken here, not HTTP/{version.major}.{version.minor}"
    return Problem(status, name, detail)


def _has_known_expectation(message: RawRequestMessage) -> bool:
    return all(expected.lower() in ("", CONTINUE) for expected in message.headers.getall(hdrs.EXPECT, ()))
