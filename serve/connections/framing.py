"""The ends of request bodies, found before aiohttp's parser reads them, and the limits of chunked ones.

The parser does not tell at which byte a chunked body ends, and spends a microsecond or more on each chunk.
"""

import re

# Chunks of a body. A batch of the most users, each in a chunk, fits twice.
MAX_CHUNKS = 4096
# With the sizes of chunks, and their extensions, which aiohttp skips. The largest body in the most chunks fits.
MAX_BYTES = 2 << 20
# Of the size of a chunk, with its extensions, and of a trailer.
MAX_LINE_BYTES = 8190
_LINE_END = b"\r\n"
_read_size = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n").fullmatch


class TooManyChunks(Exception):
    """A body has more chunks, or bytes, than it may have."""


class MalformedBody(Exception):
    """A body is not chunked as its header says."""


class SizedBody:
    """A body of a known size."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    @property
    def is_complete(self) -> bool:
        """Whether all of it was taken."""
        return self._left == 0

    def take(self, data: bytes) -> int:
        """Return how many bytes of *data*, which follows what was taken before, belong to the body."""
        size = min(len(data), self._left)
        self._left -= size
        return size


NO_BODY = SizedBody(0)


class ChunkedBody:
    """A chunked body: chunks, the last of which has the size 0, then trailers and an empty line."""

    __slots__ = ("_bytes_left", "_content_left", "_in_trailers", "_line", "_lines_left", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False
        self._line = b""  # the part of a line that was taken
        self._content_left = 0  # bytes of the current chunk, and its CRLF
        self._in_trailers = False
        self._lines_left = MAX_CHUNKS + 2  # the last chunk and the empty line
        self._bytes_left = MAX_BYTES

    def take(self, data: bytes) -> int:
        """Return how many bytes of *data* belong to the body; raises TooManyChunks and MalformedBody."""
        position = 0
        while position < len(data) and not self.is_complete:
            if self._content_left:
                size = min(self._content_left, len(data) - position)
                self._content_left -= size
                position += size
                continue

            end = data.find(b"\n", position) + 1
            line = self._line + data[position : end or len(data)]
            if len(line) > MAX_LINE_BYTES:
                raise MalformedBody("a line is too long")
            if end:
                self._line = b""
                self._read_line(line)
                position = end
            else:
                self._line = line
                position = len(data)

        self._bytes_left -= position
        if self._bytes_left < 0:
            raise TooManyChunks
        return position

    def _read_line(self, line: bytes) -> None:
        """Read a trailer, the empty line after them, or the size of a chunk."""
        self._lines_left -= 1
        if self._lines_left < 0:
            raise TooManyChunks
        if self._in_trailers:
            self.is_complete = line == _LINE_END
            return

        size = _read_size(line)
        if size is None:
            raise MalformedBody("the size of a chunk is not a hexadecimal number")
        content_bytes = int(size[1], 16)
        self._in_trailers = content_bytes == 0
        if content_bytes:
            self._content_left = content_bytes + len(_LINE_END)
