"""The factors of a release's items, in pieces: what a visitor's list is computed from while they wait.

    meta:factors            a Description, as JSON
    meta:factors/000000     the first items:  LENGTH ‖ entries ‖ factors
    meta:factors/000001     the next ones

LENGTH is that of the entries, in 4 bytes, big-endian; the entries are the items' ids, titles and rules, as JSON; the
factors are float32, little-endian, one row an item. So a piece needs no other, and one that is damaged is known by its
checksum, as any row. Pieces are of one size on every store, because a copy of a release is equal byte for byte.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.keys import FACTORS
from hotplate.stores.store import Row

# Redis and LMDB would take more; one of Cosmos DB costs some hundred request units to write, as it is.
PIECE_BYTES = 64 << 10

_LENGTH = struct.Struct(">I")
# Of one factor.
_FLOAT_BYTES = 4


class Description(Struct, frozen=True):
    """What the factors are of, and how those of a visitor are solved from them."""

    engine: Literal["als", "spark"]
    items: int
    factors: int
    pieces: int
    regularization: float
    """As the engine means it: the same for all, or, of Spark, for each item that a visitor has."""

    alpha: float
    weight: float
    """Of an item whose weight is not given: the median of those that were learnt from."""

    max_per_category: int | None = None


class ItemEntry(Struct, frozen=True, array_like=True):
    """One item: its title and category, if it has them, and whether it may be recommended."""

    id: str
    title: str | None = None
    allowed: bool = True
    category: int | None = None


def piece_key(number: int) -> str:
    """Return the key of a piece, numbered from 0."""
    return f"{FACTORS}/{number:06}"


def pieces(items: Iterable[tuple[ItemEntry, bytes]]) -> Iterator[Row]:
    """Yield items, with their factors as bytes, in pieces of PIECE_BYTES at most, or of a single item."""
    number = size = 0
    entries, factors = list[bytes](), list[bytes]()
    for entry, row in items:
        encoded = msgspec.json.encode(entry)
        more = len(encoded) + 1 + len(row)
        if entries and size + more > PIECE_BYTES:
            yield _piece(number, entries, factors)
            number += 1
            size, entries, factors = 0, [], []
        entries.append(encoded)
        factors.append(row)
        size += more
    if entries:
        yield _piece(number, entries, factors)


def _piece(number: int, entries: list[bytes], factors: list[bytes]) -> Row:
    listed = b"[" + b",".join(entries) + b"]"
    return Row(piece_key(number), b"".join([_LENGTH.pack(len(listed)), listed, *factors]))


def description_row(description: Description) -> Row:
    """Return the row that describes the pieces."""
    return Row(FACTORS, msgspec.json.encode(description))


def read_description(body: bytes) -> Description:
    """Parse a description; ReleaseCorrupt for anything else, and for one that this hotplate does not know."""
    try:
        return msgspec.json.decode(body, type=Description)
    except msgspec.DecodeError as error:
        raise ReleaseCorrupt(
            f"the row {FACTORS!r} cannot be read ({error}); upgrade hotplate or publish again"
        ) from error


def read_piece(body: bytes, factors: int) -> tuple[list[ItemEntry], memoryview]:
    """Return the items of a piece, and their factors, so many of each, one row after another; or ReleaseCorrupt."""
    try:
        (length,) = _LENGTH.unpack_from(body)
        entries = msgspec.json.decode(body[_LENGTH.size : _LENGTH.size + length], type=list[ItemEntry])
    except (struct.error, msgspec.DecodeError) as error:
        raise ReleaseCorrupt(f"a piece of {FACTORS!r} cannot be read ({error}); publish the release again") from error
    rows = memoryview(body)[_LENGTH.size + length :]
    if len(rows) != len(entries) * factors * _FLOAT_BYTES:
        raise ReleaseCorrupt(f"a piece of {FACTORS!r} has {len(rows)} bytes of factors; publish the release again")
    return entries, rows
