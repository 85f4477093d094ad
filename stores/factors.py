"""The item factors of a release, in pieces, from which fold-in computes a visitor's list.

    meta:factors            a Description, as JSON
    meta:factors/000000     the first items:  LENGTH ‖ entries ‖ factors
    meta:factors/000001     the next ones

LENGTH, 4 bytes big-endian, is that of the entries: the items' ids, titles and rules, as JSON. The factors are
float32, little-endian, one row per item. Pieces are equal in all stores, because copies are equal byte for byte.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from hotplate.stores.encoding import FACTORS, decode_versioned
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.store import Row

FORMAT = 2
# Of items with at most one category each, which earlier services can read, too.
PLAIN_FORMAT = 1
PIECE_BYTES = 64 << 10  # a row of this size costs over a hundred request units in Cosmos DB
_LENGTH = struct.Struct(">I")
_FLOAT_BYTES = 4


class Description(Struct, frozen=True):
    """Shape of the factors, and parameters for solving a visitor's factors.

    Spark multiplies *regularization* by the number of items; *weight*, the median of the training data, is the default.
    A score times its multiplier is raised to the power 1 / (1 + *gamma*), the power of recent popularity.
    """

    engine: Literal["als", "spark"]
    items: int
    factors: int
    pieces: int
    regularization: float
    alpha: float
    weight: float
    max_per_category: int | None = None
    gamma: float = 0.0
    format: int = PLAIN_FORMAT


class ItemEntry(Struct, frozen=True, array_like=True, gc=False):
    """An item, whether it may be recommended, and what changes its scores: *multiplier*, by recency, and *boost*.

    Several categories are a tuple, in format 2. Earlier releases have boosts in the multiplier. Not tracked by the
    garbage collector, which a service loading a million of them would notice.
    """

    id: str
    title: str | None = None
    allowed: bool = True
    category: int | tuple[int, ...] | None = None
    multiplier: float = 1.0
    boost: float = 1.0

    @property
    def categories(self) -> tuple[int, ...]:
        """The numbers of the item's categories."""
        if self.category is None:
            return ()
        return self.category if isinstance(self.category, tuple) else (self.category,)


def lift_of(boost: float) -> float:
    """Return what a boost adds to `boost * score`, where 1 is the best score of a list; 0 for a boost up to 1.

    An item with a boost of 11 is ahead of all without one, even if its score is 0. Of items whose boosts differ by 50
    or more, the higher boost is ahead.
    """
    return max(boost * boost - 1, 0.0) / 100


def piece_key(number: int) -> str:
    """Return the key of a piece; numbers start at 0."""
    return f"{FACTORS}/{number:06}"


def pieces(items: Iterable[tuple[ItemEntry, bytes]]) -> Iterator[Row]:
    """Yield the rows in which item factors are stored: pieces of several items, each of at most PIECE_BYTES.

    *items* are pairs of an item and its factors, in bytes. A larger item is a piece by itself.
    """
    number = 0
    size = 0
    entries = list[bytes]()
    factors = list[bytes]()
    for entry, item_factors in items:
        encoded = msgspec.json.encode(entry)
        item_size = len(encoded) + 1 + len(item_factors)
        if entries and size + item_size > PIECE_BYTES:
            yield _piece(number, entries, factors)
            number += 1
            size = 0
            entries = []
            factors = []

        entries.append(encoded)
        factors.append(item_factors)
        size += item_size
    if entries:
        yield _piece(number, entries, factors)


def _piece(number: int, entries: list[bytes], factors: list[bytes]) -> Row:
    encoded = b"[" + b",".join(entries) + b"]"
    return Row(piece_key(number), b"".join([_LENGTH.pack(len(encoded)), encoded, *factors]))


def description_row(description: Description) -> Row:
    """Return the row that describes the pieces."""
    return Row(FACTORS, msgspec.json.encode(description))


def read_description(body: bytes) -> Description:
    """Parse a description; raises ReleaseCorrupt, and WrittenByNewer for a newer format."""
    try:
        return decode_versioned(body, Description, newest=FORMAT, subject=f"the row {FACTORS!r}")
    except ValueError as error:
        raise ReleaseCorrupt(f"the row {FACTORS!r} cannot be read ({error}); publish the release again") from error


def read_piece(body: bytes, factors: int) -> tuple[list[ItemEntry], memoryview]:
    """Return a piece's items and the bytes of their factors, *factors* each; raises ReleaseCorrupt."""
    try:
        (length,) = _LENGTH.unpack_from(body)
        entries = msgspec.json.decode(body[_LENGTH.size : _LENGTH.size + length], type=list[ItemEntry])
    except (struct.error, ValueError) as error:
        raise ReleaseCorrupt(f"a piece of {FACTORS!r} cannot be read ({error}); publish the release again") from error
    rows = memoryview(body)[_LENGTH.size + length :]
    if len(rows) != len(entries) * factors * _FLOAT_BYTES:
        raise ReleaseCorrupt(f"a piece of {FACTORS!r} has {len(rows)} bytes of factors; publish the release again")
    return entries, rows
