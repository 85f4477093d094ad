"""Sealed files: block checksums, LMDB's header, and lookups in damaged files.

    LMDB's pages ‖ xxh3_64 of each block of them ‖ footer

LMDB does not read beyond its last page. The footer holds the size before the sums, which shows a truncated file.

LMDB follows damaged offsets, which may end the process; `PagedFile` reads only whole blocks (LMDB 0.9, native byte
order). Measured: requests for a list with a flipped byte ended 25 workers in 26 s without it, and one with it.
"""

import os
import struct
import sys
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import lmdb
from xxhash import xxh3_64_digest, xxh3_128_digest

from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.folders import write_all

BLOCK_BYTES = 1 << 16

# Bytes checked between points of cancellation.
STRIDE_BYTES = 64 * BLOCK_BYTES

# LMDB's two meta pages, at their smallest size.
HEAD_BYTES = 8192

_MAGIC = b"hotplate"

# Magic, size without sums, sum of the head; then the sum of all sums and of these.
_FOOTER = struct.Struct("<8sQ8s")
_SUM_BYTES = 8
_FOOTER_SUM_BYTES = 16
_END_BYTES = _FOOTER.size + _FOOTER_SUM_BYTES

LEAST_PAGE_BYTES = 4096

# Meta page: magic, page size, root, last page in use, transaction.
_META = struct.Struct("=16xI20xI84xQQQ")
_META_MAGIC = 0xBEEFC0DE

# Page head: kind, end of its list of nodes.
_HEADER = struct.Struct("=10xHH2x")
_BRANCH = 1

# Node: value length (on a branch, the page below it, with the flags as highest bits), flags, key length.
_NODE = struct.Struct("=HHHH")
_VALUE_ON_SEPARATE_PAGES = 1
_NO_PAGE = (1 << 64) - 1


class Sums(NamedTuple):
    """Checksums of a file, and its *size* without them."""

    size: int
    head: bytes
    blocks: bytes


def overhead(size: int) -> int:
    """Return the size of the sums for *size* bytes."""
    return -(-size // BLOCK_BYTES) * _SUM_BYTES + _END_BYTES


def append_sums(file: int, size: int) -> None:
    """Write sums after the first *size* bytes."""
    os.ftruncate(file, size)
    blocks = b"".join(_block_sum(file, number, size) for number in range(-(-size // BLOCK_BYTES)))
    head = xxh3_64_digest(os.pread(file, HEAD_BYTES, 0))
    tail = blocks + _FOOTER.pack(_MAGIC, size, head)
    write_all(file, tail + xxh3_128_digest(tail), size)


def read_sums(file: int) -> Sums | None:
    """Read the sums; None if they are missing, damaged, or of another size."""
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
    """Raise ReleaseCorrupt if the first pages, which LMDB needs to find all others, changed."""
    if xxh3_64_digest(os.pread(file, HEAD_BYTES, 0)) != sums.head:
        raise ReleaseCorrupt(f"the first pages of {name} are damaged; repair it from another store or publish again")


def find_damage(file: int, sums: Sums, start: int, size: int = STRIDE_BYTES) -> list[int]:
    """Check *size* bytes from *start*; return the numbers of changed blocks."""
    return [
        number
        for number in range(start // BLOCK_BYTES, -(-min(start + size, sums.size) // BLOCK_BYTES))
        if _block_sum(file, number, sums.size) != sums.blocks[number * _SUM_BYTES : (number + 1) * _SUM_BYTES]
    ]


def _block_sum(file: int, number: int, size: int) -> bytes:
    start = number * BLOCK_BYTES
    return xxh3_64_digest(os.pread(file, min(BLOCK_BYTES, size - start), start))


class Meta(NamedTuple):
    """The newer meta page; *size* is in bytes, up to the last page in use."""

    page_bytes: int
    root: int
    size: int


def read_meta(file: int) -> Meta | None:
    """Read the meta pages; None if one is invalid."""
    meta, newest, page_bytes = None, -1, 0
    for _ in range(2):
        page = os.pread(file, _META.size, page_bytes)
        if len(page) < _META.size:
            return None
        magic, page_bytes, root, last_page, transaction = _META.unpack(page)
        if magic != _META_MAGIC or page_bytes < LEAST_PAGE_BYTES:
            return None
        if transaction > newest:
            newest, meta = transaction, Meta(page_bytes, root, (last_page + 1) * page_bytes)
    return meta


@dataclass(frozen=True, slots=True)
class PagedFile:
    """Looks up keys page by page in an open, damaged file; each block that is read is compared with its sum."""

    file: int
    meta: Meta
    sums: Sums

    def get(self, key: bytes) -> bytes | None:
        """Read one key; lmdb.CorruptedError if its pages, or those that lead to them, are damaged."""
        number, page_bytes = self.meta.root, self.meta.page_bytes
        while number != _NO_PAGE:
            page = self._read(number * page_bytes, page_bytes)
            kind, end = _HEADER.unpack_from(page)
            nodes = range((end - _HEADER.size) // 2)
            first = kind & _BRANCH  # a branch's first node has no key
            index = bisect_right(nodes, key, lo=first, key=lambda index: _node(page, index)[0]) - 1
            if index < 0:
                return None
            found, value, flags, start = _node(page, index)
            if kind & _BRANCH:
                number = value | flags << 32
            elif found != key:
                return None
            elif flags & _VALUE_ON_SEPARATE_PAGES:
                number = int.from_bytes(page[start : start + 8], sys.byteorder)
                return self._read(number * page_bytes + _HEADER.size, value)
            else:
                return page[start : start + value]
        return None

    def _read(self, place: int, size: int) -> bytes:
        data = os.pread(self.file, size, place)
        if len(data) < size or find_damage(self.file, self.sums, place, size):
            raise lmdb.CorruptedError("a page is damaged")
        return data


def _node(page: bytes, index: int) -> tuple[bytes, int, int, int]:
    """Return a node's key, low half of its page below or length of its value, flags, and value start."""
    (place,) = struct.unpack_from("=H", page, _HEADER.size + 2 * index)
    low, high, flags, size = _NODE.unpack_from(page, place)
    start = place + _NODE.size
    return page[start : start + size], low | high << 16, flags, start + size
