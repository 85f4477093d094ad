"""The ends of request bodies, found before aiohttp's parser reads them, and the limits of chunked ones.

The parser does not tell at which byte a chunked body ends, and spends a microsecond or more on each chunk.
"""

import re

# Chunks of a body, and trailers. A batch of the most users, each in a chunk, fits twice.
MAX_CHUNKS = 4096
# A chunk has two, and so has the end.
MAX_LINES = 2 * (MAX_CHUNKS + 1)
# With the sizes of chunks, and their extensions, which aiohttp skips. The largest body in the most chunks fits.
MAX_BYTES = 2 << 20
# Of the size of a chunk, with its extensions, and of a trailer.
MAX_LINE_BYTES = 8190
LINE_END = b"\r\n"
_match_size = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n").match


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
        # The body goes on to the first empty line, so a flood of chunks is counted at once.
        if data.count(b"\r", 0, data.find(2 * LINE_END)) > MAX_LINES:
            raise TooManyChunks

        position = 0
        while position < len(data) and not self.is_complete:
            received = len(data) - position
            if self._content_left >= received:
                self._content_left -= received
                position = len(data)
            else:
                position = self._take_line(data, position + self._content_left)
                if self._lines_left < 0:
                    raise TooManyChunks

        self._bytes_left -= position
        if self._bytes_left < 0:
            raise TooManyChunks
        return position

    def _take_line(self, data: bytes, start: int) -> int:
        """Take the size of a chunk, a trailer, or the part of it that has arrived; return its end in *data*."""
        self._content_left = 0
        if not self._line and not self._in_trailers:
            size = _match_size(data, start)
            while size is not None:
                content_bytes = int(size[1], 16)
                start = size.end() + content_bytes + len(LINE_END)
                if not content_bytes or start >= len(data):
                    self._read_size(size[1])
                    return size.end()
                self._lines_left -= 1
                if self._lines_left < 0:
                    raise TooManyChunks
                size = _match_size(data, start)

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
