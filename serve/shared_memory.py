"""Memory that the processes of a service share: rows of numbers or of records.

It is created before the first fork; children inherit the mapping, and its size never changes. Pages that nobody wrote
take no memory.

    numbers     float64 or uint32: a reader sees a number whole, old or new
    record      two versions, written in turn
    version     sequence uint64 | length uint64 | checksum uint64 | value, at most `size` bytes

A row has one writer at a time: a worker has the rows of its number, the admin process those of files, and the parent
those of a process that has ended. Cells that several workers write (rates, consumed items) hold one number each, and
their classes say what a lost update costs. There are no locks.

A write replaces the older version. The checksum covers sequence, length and value: a version that is half written,
because its writer was killed or is not done, is invalid, and readers take the other one. The next writer overwrites the
invalid version, and continues the numbers where they are, so the counts of a worker that ended are kept.
"""

import mmap
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct

from xxhash import xxh3_64_intdigest

_HEAD = Struct("<QQQ")
_NEVER_WRITTEN = bytes(_HEAD.size)
# Attempts to read a record: a writer may replace both versions during one of them.
_READS = 100
# Of a larger record, only the newest version stays in memory.
_LARGE_BYTES = 1 << 16


class RecordTooLarge(Exception):
    """A record does not fit into its row, which stays as it was."""


def shared_floats(count: int) -> "memoryview[float]":
    """Return *count* numbers of type float64; raises OSError if there is no such memory."""
    return memoryview(mmap.mmap(-1, 8 * count)).cast("d")


def shared_integers(count: int) -> "memoryview[int]":
    """Return *count* numbers of type uint32; raises OSError if there is no such memory."""
    return memoryview(mmap.mmap(-1, 4 * count)).cast("I")


@dataclass(frozen=True, slots=True)
class _Version:
    place: int
    """0 or 1, in its row."""

    sequence: int
    value: bytes


class Records:
    """Rows of records."""

    def __init__(self, name: str, size: int, rows: int = 1) -> None:
        """*size* is that of the largest record; raises OSError if there is no such memory."""
        self.size = size
        self._name = name
        self._version_bytes = -(-(_HEAD.size + size) // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages
        self.memory = mmap.mmap(-1, 2 * rows * self._version_bytes)

    def write(self, row: int, value: bytes) -> None:
        """Replace the record in *row*; raises RecordTooLarge.

        A row has room for two versions, of which readers take the newest whole one. The new version overwrites the
        older one, so that there is always a whole one, also if this process is killed meanwhile. A row has one writer
        at a time.
        """
        if len(value) > self.size:
            raise RecordTooLarge(
                f"{len(value)} bytes do not fit into the shared record {self._name!r}: it has at most {self.size}"
            )

        newest = self._newest(row)
        sequence = newest.sequence + 1
        start = self._start_of(row, 1 - newest.place)
        value_start = start + _HEAD.size
        self.memory[start:value_start] = _HEAD.pack(sequence, len(value), _checksum(sequence, value))
        self.memory[value_start : value_start + len(value)] = value

        # The former version is not needed any more: the system takes its memory, but for the head.
        if len(newest.value) > _LARGE_BYTES:
            behind_head = self._start_of(row, newest.place) + mmap.PAGESIZE
            with suppress(OSError):  # not offered by every kernel
                self.memory.madvise(mmap.MADV_REMOVE, behind_head, self._version_bytes - mmap.PAGESIZE)

    def read(self, row: int) -> bytes | None:
        """Return a record; None if none was written or it was cleared."""
        return self._newest(row).value or None

    def clear(self, row: int) -> None:
        """Delete a record."""
        self.write(row, b"")

    def _newest(self, row: int) -> _Version:
        """Return the newest whole version of a row's record; an empty one if there is none.

        A row has room for two versions. Tried several times, as both may be replaced during a read.
        """
        for _ in range(_READS):
            places = sorted((0, 1), key=lambda place: self._sequence(row, place), reverse=True)
            # Newest first: if it is invalid, it is being written, or its writer was killed, and the other is whole.
            for place in places:
                version = self._version(row, place)
                if version is not None:
                    return version
        return _Version(place=0, sequence=0, value=b"")

    def _version(self, row: int, place: int) -> _Version | None:
        """Return one of the two versions of a row's record: *place* is 0 or 1. Later versions have higher sequences.

        If none was written there, it has the sequence 0. None if its length or checksum is wrong, because a writer was
        killed or is not done.
        """
        start = self._start_of(row, place)
        value_start = start + _HEAD.size
        head = self.memory[start:value_start]
        if head == _NEVER_WRITTEN:
            return _Version(place, sequence=0, value=b"")

        sequence, length, checksum = _HEAD.unpack(head)
        if length > self.size:
            return None
        value = self.memory[value_start : value_start + length]
        return _Version(place, sequence, value) if _checksum(sequence, value) == checksum else None

    def _sequence(self, row: int, place: int) -> int:
        sequence, _, _ = _HEAD.unpack_from(self.memory, self._start_of(row, place))
        return int(sequence)

    def _start_of(self, row: int, place: int) -> int:
        return (2 * row + place) * self._version_bytes


def _checksum(sequence: int, value: bytes) -> int:
    return xxh3_64_intdigest(value, sequence)
