"""Entries of the log of consumed items, through which the services of a shop share them.

An entry is for one user, and has at most MAX_PAIRS items: their hashes, the user's id, which an erasure must find, and
the time until which the items are hidden. An entry with the time FORGOTTEN shows its items again, and names no user.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import msgspec
from msgspec import Meta

from hotplate.serve.consumed.table import ConsumedPairs

MAX_PAIRS = 16
# The time and the user of an entry whose items are shown again.
FORGOTTEN = 0
NOBODY_NAMED = ""
PAIR_BYTES = 8


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    until: Annotated[int, Meta(ge=0, lt=1 << 32)]
    user: str
    pairs: bytes


_decode = msgspec.msgpack.Decoder(_Entry).decode


def parts_of(pairs: ConsumedPairs) -> Iterator[ConsumedPairs]:
    """Divide *pairs* among entries."""
    for start in range(0, len(pairs.pairs), MAX_PAIRS):
        yield replace(pairs, pairs=pairs.pairs[start : start + MAX_PAIRS])


def encode_pairs(pairs: ConsumedPairs) -> bytes:
    """Return the value of an entry."""
    hashes = b"".join(pair.to_bytes(PAIR_BYTES, "little") for pair in pairs.pairs)
    return msgspec.msgpack.encode(_Entry(pairs.until, pairs.user, hashes))


def decode_pairs(value: bytes) -> ConsumedPairs | None:
    """Return the user, the hashes of user and items, and the time of an entry from its *value*; None if damaged.

    `encode_pairs` wrote it: an array in msgpack, with the hashes as bytes, PAIR_BYTES for each.
    """
    try:
        entry = _decode(value)
    except (ValueError, RecursionError):  # ValueError: of msgspec, or text that is not UTF-8
        return None
    if len(entry.pairs) % PAIR_BYTES:
        return None

    starts = range(0, len(entry.pairs), PAIR_BYTES)
    pairs = (int.from_bytes(entry.pairs[start : start + PAIR_BYTES], "little") for start in starts)
    return ConsumedPairs(entry.user, tuple(pairs), entry.until)
