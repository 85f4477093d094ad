"""Limits of chunked bodies, counted before aiohttp's parser, which spends a microsecond or more on each line."""

# Chunks of a body. A batch of the most users, each in a chunk, fits twice.
MAX_CHUNKS = 4096
# A chunk has two, and so has the end.
MAX_LINES = 2 * (MAX_CHUNKS + 1)
# With the sizes of chunks, and their extensions, which aiohttp skips. The largest body in the most chunks fits.
MAX_BYTES = 2 << 20


class TooManyLines(Exception):
    """A body has more lines, or bytes, than it may have."""


class LineLimit:
    """The lines and bytes that the chunked body of one request may still have, those of its content included."""

    __slots__ = ("_bytes_left", "_left")

    def __init__(self) -> None:
        self._left = MAX_LINES
        self._bytes_left = MAX_BYTES

    def count(self, data: bytes) -> None:
        """Count the lines and bytes of a further part of the body, which is not parsed yet; raises TooManyLines.

        A parser that reads only CRLF as the end of a line finds no line that is not counted, however a body is cut.
        """
        self._left -= data.count(b"\r")
        self._bytes_left -= len(data)
        if self._left < 0 or self._bytes_left < 0:
            raise TooManyLines
