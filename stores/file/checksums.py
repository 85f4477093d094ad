"""Checksums of a sealed file: one for each block of 64 KiB, at its end.

    data ‖ xxh3_64 of each block ‖ footer

The footer holds the size of the data, which shows a truncated file, and a checksum of the checksums.
"""

import os
import struct
from typing import NamedTuple

from xxhash import xxh3_64_digest, xxh3_128_digest

from hotplate.stores.errors import HEAL, ReleaseCorrupt
from hotplate.stores.folders import write_all

BLOCK_BYTES = 1 << 16

# Bytes checked between points of cancellation.
STRIDE_BYTES = 64 * BLOCK_BYTES

# LMDB's two meta pages, at their smallest size.
HEAD_BYTES = 8192

_MAGIC = b"hotplate"

# Magic, size of the data, checksum of its head; then a checksum of all checksums and of these.
_FOOTER = struct.Struct("<8sQ8s")
_SUM_BYTES = 8
_FOOTER_SUM_BYTES = 16
_END_BYTES = _FOOTER.size + _FOOTER_SUM_BYTES


class Checksums(NamedTuple):
    """Checksums of a file's data, which has *size* bytes."""

    size: int
    head: bytes
    blocks: bytes


def overhead(size: int) -> int:
    """Return how many bytes the checksums of *size* bytes take."""
    return _block_count(size) * _SUM_BYTES + _END_BYTES


def append_checksums(file: int, size: int) -> None:
    """Write the checksums of a file's first *size* bytes after them, and cut what follows.

    These are one checksum per block of 64 KiB, the footer, and a checksum of both.
    """
    os.ftruncate(file, size)
    blocks = b"".join(_block_checksum(file, number, size) for number in range(_block_count(size)))
    head = xxh3_64_digest(os.pread(file, HEAD_BYTES, 0))
    tail = blocks + _FOOTER.pack(_MAGIC, size, head)
    write_all(file, tail + xxh3_128_digest(tail), size)


def read_checksums(file: int) -> Checksums | None:
    """Read the checksums of a release file's blocks from its end; None if they are missing or damaged.

    *file* is a descriptor. The last bytes of the file are a magic number, the size of the data, a checksum of its first
    pages, and a checksum of all of these. The result is also None if the file is not as long as the data and the
    checksums together, for example because it was truncated.
    """
    file_bytes = os.fstat(file).st_size

    end = os.pread(file, _END_BYTES, max(0, file_bytes - _END_BYTES))
    if len(end) < _END_BYTES:
        return None
    magic, size, head = _FOOTER.unpack_from(end)
    if magic != _MAGIC or size + overhead(size) != file_bytes:
        return None

    tail = os.pread(file, file_bytes - size, size)
    if xxh3_128_digest(tail[:-_FOOTER_SUM_BYTES]) != tail[-_FOOTER_SUM_BYTES:]:
        return None
    return Checksums(size, head, blocks=tail[:-_END_BYTES])


def check_head(file: int, checksums: Checksums, name: str) -> None:
    """Raise ReleaseCorrupt if the first pages, which LMDB needs to find all others, changed."""
    if xxh3_64_digest(os.pread(file, HEAD_BYTES, 0)) != checksums.head:
        raise ReleaseCorrupt(f"the first pages of {name} are damaged; {HEAL}")


def damaged_blocks(file: int, checksums: Checksums, start: int, size: int = STRIDE_BYTES) -> list[int]:
    """Check *size* bytes from *start*; return the numbers of blocks that changed or cannot be read."""
    end = min(start + size, checksums.size)
    numbers = range(start // BLOCK_BYTES, _block_count(end))
    return [number for number in numbers if not _is_intact(file, number, checksums)]


def _block_count(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def _is_intact(file: int, number: int, checksums: Checksums) -> bool:
    try:
        checksum = _block_checksum(file, number, checksums.size)
    except OSError:
        return False
    first = number * _SUM_BYTES
    return checksum == checksums.blocks[first : first + _SUM_BYTES]


def _block_checksum(file: int, number: int, size: int) -> bytes:
    start = number * BLOCK_BYTES
    return xxh3_64_digest(os.pread(file, min(BLOCK_BYTES, size - start), start))
