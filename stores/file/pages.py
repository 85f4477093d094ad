"""A reader of LMDB's pages: the header of a file, and lookups in a damaged file without LMDB.

LMDB follows a length or an offset wherever it points. On a damaged page that may be beyond the end of the file, which
ends the process. This reader reads each page alone. If a length or an offset leads out of its page, that is an error.
The layout is that of LMDB 0.9, in the byte order of the machine.

Measured with LMDB 0.9.36 of py-lmdb 3.0: of 400 bytes flipped on branches none ended the process, of 400 on the last 40
pages 13 did, and of 300 in the heads of large values 36. After 200 flips anywhere, LMDB reported 61 keys as absent that
are there; after 60, this reader none.
"""

import os
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Collection
from typing import NamedTuple

import lmdb

from hotplate.stores.file.block_sums import BLOCK_BYTES

LEAST_PAGE_BYTES = 4096

# A meta page: the header of a page, then magic, version, address and size of the map; the database of free pages, whose
# first field is the size of a page; the database of rows, of which the page of its root matters here; the last page in
# use, and the transaction that wrote all this.
_META = struct.Struct("=16xII16xI84xQQQ")
_META_MAGIC = 0xBEEFC0DE

# The header of a page, of which only its kind and the end of its list of nodes matter here.
_HEADER = struct.Struct("=10xHH2x")
_BRANCH = 1
_LEAF = 2
_OVERFLOW = 4

# A node: the length of its value (on a branch the page below it, the flags being its highest bits), flags, the key's
# length.
_NODE = struct.Struct("=HHHH")
_NUMBER = struct.Struct("=H")
_VALUE_ON_PAGES_OF_ITS_OWN = 1

_NO_PAGE = (1 << 64) - 1

# Far more than any tree of LMDB has.
_MAX_DEPTH = 32


class Meta(NamedTuple):
    """What the newer of a file's two meta pages says."""

    page_bytes: int
    root: int
    size: int
    """Of the file, in bytes, up to the end of the last page in use."""


def read_meta(file: int) -> Meta | None:
    """Read the meta pages of an open file; None if one of them is not a meta page."""
    meta, newest, page_bytes = None, -1, 0
    for _ in range(2):
        page = os.pread(file, _META.size, page_bytes)
        if len(page) < _META.size:
            return None
        magic, _, page_bytes, root, last_page, transaction = _META.unpack(page)
        if magic != _META_MAGIC or page_bytes < LEAST_PAGE_BYTES:
            return None
        if transaction > newest:
            newest, meta = transaction, Meta(page_bytes, root, (last_page + 1) * page_bytes)
    return meta


class PagedFile:
    """Looks keys up page by page in an open file with damaged blocks; lives as long as the file is open."""

    def __init__(self, file: int, meta: Meta, damaged: Collection[int]) -> None:
        self._file = file
        self._meta = meta
        self._damaged = frozenset(damaged)

    def get(self, key: bytes) -> bytes | None:
        """Read one key. lmdb.CorruptedError if the way to it is damaged, so it may be there or not.

        A value of a damaged block is returned: it carries a checksum of its own.
        """
        number, passed_damage, page_bytes = self._meta.root, False, self._meta.page_bytes
        for _ in range(_MAX_DEPTH):
            if number == _NO_PAGE:
                return None
            page = _Page(self._read(number, page_bytes))
            if number * page_bytes // BLOCK_BYTES in self._damaged:
                passed_damage = True
            if page.kind == _BRANCH:
                number = page.child(page.count_up_to(key, first=1) - 1)  # the first node of a branch has no key
            elif page.kind == _LEAF:
                index = page.count_up_to(key) - 1
                if index >= 0 and page.key(index) == key:
                    return page.value(index, self._read_overflow)
                if passed_damage:
                    raise lmdb.CorruptedError("it is absent from a damaged page")
                return None
            else:
                break
        raise lmdb.CorruptedError("a page is of no kind that it could be")

    def _read(self, number: int, size: int, skip: int = 0) -> bytes:
        place = number * self._meta.page_bytes + skip
        if place + size > self._meta.size:
            raise lmdb.CorruptedError("a damaged page points beyond the end of the file")
        data = os.pread(self._file, size, place)
        if len(data) < size:
            raise lmdb.CorruptedError("the file was cut")
        return data

    def _read_overflow(self, number: int, size: int) -> bytes:
        kind, _ = _HEADER.unpack(self._read(number, _HEADER.size))
        if kind != _OVERFLOW:
            raise lmdb.CorruptedError("a page is of no kind that it could be")
        return self._read(number, size, _HEADER.size)


class _Page:
    """One page of a tree."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.kind, end = _HEADER.unpack_from(data)
        self.count = (min(end, len(data)) - _HEADER.size) // 2

    def key(self, index: int) -> bytes:
        node = self._node(index)
        size = _NODE.unpack_from(self._data, node)[3]
        return self._cut(node + _NODE.size, size)

    def child(self, index: int) -> int:
        low, high, highest, _ = _NODE.unpack_from(self._data, self._node(index))
        return int(low | high << 16 | highest << 32)

    def value(self, index: int, read_overflow: Callable[[int, int], bytes]) -> bytes:
        node = self._node(index)
        low, high, flags, key_size = _NODE.unpack_from(self._data, node)
        start, size = node + _NODE.size + key_size, low | high << 16
        if flags & _VALUE_ON_PAGES_OF_ITS_OWN:
            return read_overflow(int.from_bytes(self._cut(start, 8), sys.byteorder), size)
        return self._cut(start, size)

    def count_up_to(self, key: bytes, first: int = 0) -> int:
        """Return how many nodes there are up to the last whose key is not above *key*, which the *first* may be."""
        return bisect_right(range(self.count), key, lo=first, key=self.key)

    def _node(self, index: int) -> int:
        """Return where a node begins, whose head is on the page."""
        if not 0 <= index < self.count:
            raise lmdb.CorruptedError("a page has no nodes")
        node: int = _NUMBER.unpack_from(self._data, _HEADER.size + 2 * index)[0]
        if node + _NODE.size > len(self._data):
            raise lmdb.CorruptedError("a node lies beyond its page")
        return node

    def _cut(self, start: int, size: int) -> bytes:
        if start + size > len(self._data):
            raise lmdb.CorruptedError("a key or a value ends beyond its page")
        return self._data[start : start + size]
