"""Cells of memory that all processes of a service share: the latest value of one writer each, whole or not at all."""

import mmap
from struct import Struct

from xxhash import xxh3_64_intdigest

_HEAD = Struct("<QQ")  # bytes of the value, and their checksum
_READS = 10


class SharedCells:
    """Cells of fixed size; made before the processes, as long as the service. Untouched cells take no memory.

    A cell has one writer at a time, and may have another after that one's death. A reader checks the checksum of what
    it copied, so it never sees half of one value and half of the next.
    """

    def __init__(self, cells: int, largest: int) -> None:
        """Take how many cells there are, and how many bytes a value has at most."""
        self.largest = largest
        self._bytes = largest + _HEAD.size
        self._map = mmap.mmap(-1, cells * self._bytes)

    def write(self, cell: int, value: bytes) -> None:
        """Replace a value; it is not empty, and no larger than `largest`."""
        start = cell * self._bytes
        written = _HEAD.pack(len(value), xxh3_64_intdigest(value)) + value
        self._map[start : start + len(written)] = written

    def read(self, cell: int) -> bytes | None:
        """Return a value; None if there is none, or its writer was killed while it wrote."""
        start = cell * self._bytes
        for _ in range(_READS):
            length, checksum = _HEAD.unpack_from(self._map, start)
            value = self._map[start + _HEAD.size : start + _HEAD.size + length]
            if length and xxh3_64_intdigest(value) == checksum:
                return value
            if not length:
                break
        return None

    def clear(self, cell: int) -> None:
        """Take a value away."""
        start = cell * self._bytes
        self._map[start : start + _HEAD.size] = bytes(_HEAD.size)
