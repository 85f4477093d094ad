"""The keys of one acknowledged batch, packed: two bytes a key instead of twenty, and still found by range.

Rows are scanned in order without holding all keys: batches were acknowledged in ascending order, so one is unpacked at
a time. Where batches overlap (one was written again, or out of order), those are unpacked together.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import orjson

HEAD = struct.Struct(">HH")


class Span(NamedTuple):
    """Which keys a packed batch reaches over, and where it lies; a tuple because a release has thousands."""

    first: str
    last: str
    source: str
    place: int


def pack(keys: Sequence[str]) -> bytes:
    """Pack keys, in any order; 0.05 µs a key."""
    first, last = min(keys).encode(), max(keys).encode()  # code points sort as their UTF-8 bytes do
    return HEAD.pack(len(first), len(last)) + first + last + zlib.compress(orjson.dumps(keys), 1)


def bounds(packed: bytes) -> tuple[str, str]:
    """Return the first and the last key, without unpacking."""
    first, last = HEAD.unpack_from(packed)
    middle = HEAD.size + first
    return packed[HEAD.size : middle].decode(), packed[middle : middle + last].decode()


def unpack(packed: bytes) -> list[str]:
    """Return all keys, as they were given."""
    first, last = HEAD.unpack_from(packed)
    keys: list[str] = orjson.loads(zlib.decompress(packed[HEAD.size + first + last :]))
    return keys


def overlapping(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Group spans that overlap, in ascending order of keys; in the ordinary case each is alone."""
    group, reach = list[Span](), ""
    for span in sorted(spans):
        if group and span.first > reach:
            yield group
            group = []
        reach = max(reach, span.last) if group else span.last
        group.append(span)
    if group:
        yield group
