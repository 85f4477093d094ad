"""Checksums at the end of a sealed file, one for each block, so any changed byte is found, and about where it is.

    the file as it was written ‖ xxh3_64 of each block of it ‖ footer

LMDB has no checksums of its own, and does not look beyond its last page, so the sums travel with the file. The
footer says how long the file was, so a cut one is known without a look at any page.
"""

import os
import struct
from typing import NamedTuple

from xxhash import xxh3_64_digest, xxh3_128_digest

from hotplate.stores.errors import ReleaseCorrupt

BLOCK_BYTES = 1 << 16

# How much is read and checked in one go: a thread's share, after which those who wait may give up.
STRIDE_BYTES = 64 * BLOCK_BYTES

# LMDB's two meta pages, at its smallest page size: what says where everything else is.
HEAD_BYTES = 8192

_MAGIC = b"hotplate"

# The magic, bytes of the file before the sums, sum of its head; after them the sum of all sums and of these.
_FOOTER = struct.Struct("<8sQ8s")
_SUM_BYTES = 8
_FOOTER_SUM_BYTES = 16
_END_BYTES = _FOOTER.size + _FOOTER_SUM_BYTES


class Sums(NamedTuple):
    """What a file said of itself when it was sealed."""

    size: int
    """Of the file without its sums."""

    head: bytes
    blocks: bytes


def overhead(size: int) -> int:
    """Return how many bytes the sums of a file of *size* bytes take."""
    return -(-size // BLOCK_BYTES) * _SUM_BYTES + _END_BYTES


def append(file: int, size: int) -> None:
    """Write the sums behind the first *size* bytes of an open file, in place of whatever was there."""
    os.ftruncate(file, size)
    blocks = b"".join(_block_sum(file, number, size) for number in range(-(-size // BLOCK_BYTES)))
    head = xxh3_64_digest(os.pread(file, HEAD_BYTES, 0))
    tail = blocks + _FOOTER.pack(_MAGIC, size, head)
    tail += xxh3_128_digest(tail)
    written = 0
    while written < len(tail):
        written += os.pwrite(file, tail[written:], size + written)


def read(file: int) -> Sums | None:
    """Read the sums of an open file; None if it has none that are whole and of a file of this size."""
    found = os.fstat(file).st_size
    end = os.pread(file, _END_BYTES, max(0, found - _END_BYTES))
    if len(end) < _END_BYTES:
        return None
    magic, size, head = _FOOTER.unpack_from(end)
    if magic != _MAGIC or size + overhead(size) != found:
        return None
    tail = os.pread(file, found - size, size)
    if xxh3_128_digest(tail[:-_FOOTER_SUM_BYTES]) != tail[-_FOOTER_SUM_BYTES:]:
        return None
    return Sums(size, head, tail[:-_END_BYTES])


def check_head(file: int, sums: Sums, name: str) -> None:
    """Raise ReleaseCorrupt if the first pages of an open file, without which none can be found, were changed."""
    if xxh3_64_digest(os.pread(file, HEAD_BYTES, 0)) != sums.head:
        raise ReleaseCorrupt(f"the first pages of {name} are damaged; repair it from another store or publish again")


def find_damage(file: int, sums: Sums, start: int) -> list[int]:
    """Check STRIDE_BYTES from *start* on, a block's; return the numbers of the blocks that were changed."""
    return [
        number
        for number in range(start // BLOCK_BYTES, -(-min(start + STRIDE_BYTES, sums.size) // BLOCK_BYTES))
        if _block_sum(file, number, sums.size) != sums.blocks[number * _SUM_BYTES : (number + 1) * _SUM_BYTES]
    ]


def _block_sum(file: int, number: int, size: int) -> bytes:
    start = number * BLOCK_BYTES
    return xxh3_64_digest(os.pread(file, min(BLOCK_BYTES, size - start), start))
