"""Entries of the log of consumed items, through which the services of a shop share them.

An entry is for one user, and has at most MAX_PAIRS items, as hashes that name neither: an erasure has nothing to find.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import msgspec
from msgspec import Meta

from hotplate.serve.consumed.table import USERS, ConsumedPairs

MAX_PAIRS = 16
PAIR_BYTES = 8


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    until: Annotated[int, Meta(ge=0, lt=1 << 32)]
    slot: Annotated[int, Meta(ge=0, lt=USERS)]
    pairs: bytes


_decode = msgspec.msgpack.Decoder(_Entry).decode


def parts_of(pairs: ConsumedPairs) -> Iterator[ConsumedPairs]:
    """Divide *pairs* among entries."""
    for start in range(0, len(pairs.pairs), MAX_PAIRS):
        yield replace(pairs, pairs=pairs.pairs[start : start + MAX_PAIRS])


def encode_pairs(pairs: ConsumedPairs) -> bytes:
    """Return the value of an entry."""
    hashes = b"".join(pair.to_bytes(PAIR_BYTES, "little") for pair in pairs.pairs)
    return msgspec.msgpack.encode(_Entry(pairs.until, pairs.slot, hashes))


def decode_pairs(value: bytes) -> ConsumedPairs | None:
    """Return what an entry hides, from its *value*; None if damaged.

    `encode_pairs` wrote it: an array in msgpack, with the hashes as bytes, PAIR_BYTES for each.
    """
    try:
        entry = _decode(value)
    except (ValueError, RecursionError):  # ValueError: of msgspec
        return None
    if len(entry.pairs) % PAIR_BYTES:
        return None

    starts = range(0, len(entry.pairs), PAIR_BYTES)
    pairs = (int.from_bytes(entry.pairs[start : start + PAIR_BYTES], "little") for start in starts)
    return ConsumedPairs(entry.slot, tuple(pairs), entry.until)
