"""The ends of request headers and bodies, found before aiohttp's parser reads them, and their limits.

The parser does not tell at which byte a chunked body ends, and spends a microsecond or more on each chunk.
"""

import re
from math import inf

# Of a header and of a body.
MAX_HEADER_BYTES = 16_384
MAX_BODY_BYTES = 1 << 20
# Chunks of a body, and trailers. A batch of the most users, each in a chunk, fits twice.
MAX_CHUNKS = 4096
# With the sizes of chunks, and their extensions, which aiohttp skips. The largest body in the most chunks fits.
MAX_CHUNKED_BYTES = 2 * MAX_BODY_BYTES
# Of the size of a chunk, with its extensions, and of a trailer.
MAX_LINE_BYTES = 8190
LINE_END = b"\r\n"
HEADER_END = b"\r\n\r\n"
# Of a chunked body that is read before other connections are served: hundreds of the smallest chunks.
CHUNKED_PIECE_BYTES = 4096
# Of a chunk; zeros may lead.
_match_size = re.compile(rb"(0*+[1-9A-Fa-f][0-9A-Fa-f]{0,7}|0++)[ \t]*(?:;[^\r\n]*)?\r\n").match


class MalformedHeader(Exception):
    """What was received does not begin as HTTP does."""


class HeaderTooLarge(Exception):
    """A header is larger than it may be."""


class TooManyChunks(Exception):
    """A body has more chunks, or bytes, than it may have."""


class MalformedBody(Exception):
    """A body is not chunked as its header says."""


def take_header(received: bytearray, max_bytes: int) -> bytes | None:
    """Remove the first header from *received*, and return it, with the empty line at its end; None if it is incomplete.

    Empty lines before it are removed, too. Raises MalformedHeader and HeaderTooLarge.
    """
    if received.startswith((b"\r", b"\n")):  # all at once: each costs the parser a call
        received[:] = received.lstrip(LINE_END)
    if received and not received[:1].isalpha():  # as a TLS handshake begins
        raise MalformedHeader

    end = received.find(HEADER_END)
    size = end + len(HEADER_END) if end >= 0 else len(received)
    if size > max_bytes:
        raise HeaderTooLarge
    if end < 0:
        return None
    header = bytes(received[:size])
    del received[:size]
    return header


class Body:
    """A body of a known size, or in chunks: after the last one, of the size 0, trailers and an empty line follow."""

    __slots__ = ("_bytes_left", "_content_left", "_in_trailers", "_line", "_lines_left", "is_chunked", "is_complete")

    def __init__(self, size: int | None) -> None:
        """*size* is None for a chunked body."""
        self.is_chunked = size is None
        self.is_complete = size == 0
        """Whether all of it was taken."""
        self._content_left = size or 0  # bytes of the body, or of the current chunk and its CRLF
        self._line = b""  # the part of a line that was taken
        self._in_trailers = False
        self._lines_left = MAX_CHUNKS + 2  # the last chunk and the empty line
        self._bytes_left = MAX_CHUNKED_BYTES if self.is_chunked else inf

    def take_from(self, received: bytearray) -> bytes:
        """Remove the next piece of the body from *received*, and return it; raises as `take`."""
        data = bytes(received[: self._piece_bytes])
        size = self.take(data)
        del received[:size]
        return data[:size]

    def drop_from(self, received: bytearray) -> None:
        """Remove a piece of a refused body, or what follows it, no faster than one that is taken."""
        del received[: self._piece_bytes]

    @property
    def _piece_bytes(self) -> int | None:
        return CHUNKED_PIECE_BYTES if self.is_chunked else None

    def take(self, data: bytes) -> int:
        """Return how many bytes of *data*, which follows what was taken before, belong to the body.

        Raises TooManyChunks and MalformedBody.
        """
        position = 0
        while position < len(data) and not self.is_complete:
            received = len(data) - position
            if self.is_chunked and self._content_left < received:
                position = self._take_line(data, position + self._content_left)
                if self._lines_left < 0:
                    raise TooManyChunks
            else:
                content = min(self._content_left, received)
                self._content_left -= content
                position += content
                self.is_complete = not self.is_chunked and self._content_left == 0

        self._bytes_left -= position
        if self._bytes_left < 0:
            raise TooManyChunks
        return position

    def _take_line(self, data: bytes, start: int) -> int:
        """Take the size of a chunk, a trailer, or the part of it that has arrived; return its end in *data*."""
        self._content_left = 0
        if not self._line and not self._in_trailers:  # the usual case, in half of the time: a flood has thousands
            size = _match_size(data, start)
            if size is not None and size.end() - start <= MAX_LINE_BYTES:
                self._read_size(size[1])
                return size.end()

        end = data.find(b"\n", start) + 1 or len(data)
        self._line += data[start:end]
        if len(self._line) > MAX_LINE_BYTES:
            raise MalformedBody("a line is too long")
        if self._line.endswith(b"\n"):
            self._read_line(self._line)
            self._line = b""
        return end

    def _read_line(self, line: bytes) -> None:
        size = _match_size(line)
        if self._in_trailers:
            self._lines_left -= 1
            self.is_complete = line == LINE_END
        elif size is not None:
            self._read_size(size[1])
        else:
            raise MalformedBody("the size of a chunk is not a hexadecimal number")

    def _read_size(self, digits: bytes) -> None:
        self._lines_left -= 1
        content_bytes = int(digits, 16)
        if content_bytes:
            self._content_left = content_bytes + len(LINE_END)
        else:
            self._in_trailers = True


NO_BODY = Body(0)
