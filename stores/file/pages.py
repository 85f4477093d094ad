"""A reader of LMDB's pages: the header of a file, and lookups on damaged files and slow disks without LMDB.

LMDB follows a length or an offset wherever it points. On a damaged page that may be beyond the end of the file, which
ends the process. And if a page is not in memory, LMDB stops the thread and its event loop until the disk has answered.
This reader reads each page alone. If a length or an offset leads out of its page, that is an error; a page that is not
in memory can be an error, too. The layout is that of LMDB 0.9, in the byte order of the machine.

Measured with LMDB 0.9.36 of py-lmdb 3.0: of 400 bytes flipped on branches none ended the process, of 400 on the last 40
pages 13 did, and of 300 in the heads of large values 36. After 200 flips anywhere, LMDB reported 61 keys as absent that
are there; after 60, this reader none. If a tenth of the keys were on a disk of 60 reads a second, p99 of the others was
3.7 to 4.5 ms with this reader (two runs), and 34 to 43 ms with LMDB alone; on a quick disk it was 2.9 and 4.3 ms (one
run).
"""

import os
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

import lmdb

from hotplate.stores.errors import NotInMemory
from hotplate.stores.file.block_sums import BLOCK_BYTES
from hotplate.stores.keys import KINDS

LEAST_PAGE_BYTES = 4096

# A meta page: the header of a page, then magic, version, address and size of the map; the database of free pages, whose
# first field is the size of a page; the database of rows: how many levels its tree has, how many pages values have of
# their own, and the page of its root; the last page in use, and the transaction that wrote all this.
_META = struct.Struct("=16xII16xI44x6xH16xQ8xQQQ")
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

# How many branches are remembered: those of a million users, in 12 MB.
_BRANCHES = 1024

# Far more than any tree of LMDB has.
_MAX_DEPTH = 32


class Meta(NamedTuple):
    """What the newer of a file's two meta pages says."""

    page_bytes: int
    root: int
    depth: int
    overflow: int
    """How many pages values have of their own."""
    size: int
    """Of the file, in bytes, up to the end of the last page in use."""


def read_meta(file: int) -> Meta | None:
    """Read the meta pages of an open file; None if one of them is not a meta page."""
    meta, newest, page_bytes = None, -1, 0
    for _ in range(2):
        page = os.pread(file, _META.size, page_bytes)
        if len(page) < _META.size:
            return None
        magic, _, page_bytes, depth, overflow, root, last_page, transaction = _META.unpack(page)
        if magic != _META_MAGIC or page_bytes < LEAST_PAGE_BYTES:
            return None
        if transaction > newest:
            newest, meta = transaction, Meta(page_bytes, root, depth, overflow, (last_page + 1) * page_bytes)
    return meta


def keys_between(file: int, start: int, end: int) -> list[str]:
    """Return the keys that can be made out on damaged leaves, sorted."""
    found = list[str]()
    for place in range(start, end, LEAST_PAGE_BYTES):
        with suppress(lmdb.CorruptedError):
            page = _Page(os.pread(file, LEAST_PAGE_BYTES, place))
            if page.kind == _LEAF:
                for index in range(page.count):
                    with suppress(UnicodeDecodeError, lmdb.CorruptedError):
                        found.append(page.key(index).decode())
    return sorted(key for key in found if key.partition(":")[0] in KINDS)


class PagedFile:
    """Looks keys up page by page in an open file with damaged blocks; lives as long as the file is open.

    It maps nothing, so it can say beforehand that a read would wait for the disk, which a map cannot.
    """

    def __init__(self, file: int, meta: Meta, damaged: Collection[int] = ()) -> None:
        self._file = file
        self._meta = meta
        self._damaged = frozenset(damaged)
        self._branches = dict[int, _Branch]()
        self._byte = [bytearray(1)]
        self.absent = 0
        """How many keys `get_at_once` did not find in memory."""
        self.can_look = _can_look(file)
        """Whether the system says without waiting whether a page is in memory."""

    def get(self, key: bytes) -> bytes | None:
        """Read one key. lmdb.CorruptedError if the way to it is damaged, so it may be there or not.

        A value of a damaged block is returned: it carries a checksum of its own.
        """
        return self._get(key, self._read)

    def get_at_once(self, key: bytes) -> bytes | None:
        """As `get`, but NotInMemory rather than to wait for the disk, which has then begun to read."""
        try:
            return self._get(key, self._read_at_once if self.can_look else self._read)
        except BlockingIOError:
            self.absent += 1
            raise NotInMemory("the value is on the disk, and not in memory") from None

    def look(self, key: bytes) -> None:
        """Raise NotInMemory where LMDB would have to wait for the disk to read a key; much quicker than `get_at_once`.

        Branches, which are read all the time, are not looked at again once they were in memory.
        """
        if self._meta.overflow:
            self.get_at_once(key)
            return
        number = self._meta.root
        if number == _NO_PAGE:
            return
        try:
            for _ in range(self._meta.depth - 1):
                branch = self._branches.get(number)
                if branch is None:
                    number = self._descend(number, key)
                else:
                    number = branch.children[bisect_right(branch.keys, key)]
            os.preadv(self._file, self._byte, self._place(number, 1, 0), os.RWF_NOWAIT)
        except BlockingIOError:
            self.absent += 1
            raise NotInMemory("the value is on the disk, and not in memory") from None

    def forget(self) -> None:
        """Give back what `look` remembers."""
        self._branches.clear()

    def _descend(self, number: int, key: bytes) -> int:
        """Return the page below a branch on which *key* would be, and remember the branch while there is room."""
        page = _Page(self._read_at_once(number, self._meta.page_bytes))
        if page.kind != _BRANCH:
            raise lmdb.CorruptedError("a page is of no kind that it could be")
        if len(self._branches) < _BRANCHES:
            keys = [page.key(index) for index in range(1, page.count)]
            self._branches[number] = _Branch(keys, array("Q", map(page.child, range(page.count))))
        return page.child(page.last_up_to(key, first=1) or 0)

    def _get(self, key: bytes, read: "_Read") -> bytes | None:
        number, passed_damage, page_bytes = self._meta.root, False, self._meta.page_bytes
        for _ in range(_MAX_DEPTH):
            if number == _NO_PAGE:
                return None
            page = _Page(read(number, page_bytes))
            if self._damaged and number * page_bytes // BLOCK_BYTES in self._damaged:
                passed_damage = True
            if page.kind == _BRANCH:
                number = page.child(page.last_up_to(key, first=1) or 0)
            elif page.kind == _LEAF:
                index = page.last_up_to(key, first=0)
                if index is not None and page.key(index) == key:
                    return page.value(index, partial(self._read_overflow, read))
                if passed_damage:
                    raise lmdb.CorruptedError("it is absent from a damaged page")
                return None
            else:
                break
        raise lmdb.CorruptedError("a page is of no kind that it could be")

    def _read(self, number: int, size: int, skip: int = 0) -> bytes:
        return os.pread(self._file, size, self._place(number, size, skip))

    def _read_at_once(self, number: int, size: int, skip: int = 0) -> bytes:
        """Read what is in memory; BlockingIOError for what is not."""
        buffer = bytearray(size)
        if os.preadv(self._file, [buffer], self._place(number, size, skip), os.RWF_NOWAIT) < size:
            raise BlockingIOError
        return bytes(buffer)

    def _place(self, number: int, size: int, skip: int) -> int:
        place = number * self._meta.page_bytes + skip
        if place + size > self._meta.size:
            raise lmdb.CorruptedError("a damaged page points beyond the end of the file")
        return place

    def _read_overflow(self, read: "_Read", number: int, size: int) -> bytes:
        kind, _ = _HEADER.unpack(read(number, _HEADER.size))
        if kind != _OVERFLOW:
            raise lmdb.CorruptedError("a page is of no kind that it could be")
        return read(number, size, _HEADER.size)


class _Branch(NamedTuple):
    """A page of a tree that leads to others: a page below it, and for each further one the first key that is there."""

    keys: list[bytes]
    children: "array[int]"


class _Read(Protocol):
    """Reads *size* bytes of a page, after the first *skip*."""

    def __call__(self, number: int, size: int, skip: int = 0) -> bytes: ...


def _can_look(file: int) -> bool:
    try:
        os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except (AttributeError, OSError):  # neither every system nor every file system has it
        return False
    return True


class _Page:
    """One page of a tree."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size or len(data) % _NUMBER.size:
            raise lmdb.CorruptedError("a page lies beyond the end of the file")
        self._data = data
        self._numbers = memoryview(data).cast("H")
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

    def last_up_to(self, key: bytes, *, first: int) -> int | None:
        """Return the last node, from the *first* on, whose key is not above *key*; a branch's first has no key."""
        data, numbers, low, high = self._data, self._numbers, first, self.count
        try:
            while low < high:
                middle = (low + high) // 2
                # As `self.key(middle)`, which would take most of the time of a lookup.
                node = numbers[_HEADER.size // 2 + middle]
                start = node + _NODE.size
                end = start + numbers[start // 2 - 1]
                if end > len(data):
                    raise lmdb.CorruptedError("a key ends beyond its page")
                if data[start:end] <= key:
                    low = middle + 1
                else:
                    high = middle
        except IndexError:
            raise lmdb.CorruptedError("a node lies beyond its page") from None
        return low - 1 if low > first else None

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
