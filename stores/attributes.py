"""The item attributes of a release: columns of numbers and texts, by which answers are filtered.

    meta:attributes/000000   the first PIECE_BYTES of the table
    meta:attributes/000001   the next ones

The table is msgpack. Its items are sorted by the xxh3_64 of their ids, as by `encode_id`. The manifest has the number
of pieces, and the kinds of the columns, under ABOUT.
"""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import nan
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from hotplate.stores.catalogue import RecordFormat
from hotplate.stores.encoding import ATTRIBUTES, encode_id
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreMisused, check_format
from hotplate.stores.factors import PIECE_BYTES
from hotplate.stores.store import Row

FORMAT = 1
ABOUT = "item_attributes"  # a field of `Origin`
MAX_BYTES = 64 << 20  # in each worker: a million items of five columns

Texts = tuple[str | None, ...]


class _StoredColumn(Struct, frozen=True):
    """An array, little-endian as all: float64, NaN if missing, or uint32 numbers of *texts*, the first of them None."""

    name: str
    values: bytes
    texts: Texts | None


class _StoredTable(Struct, frozen=True):
    hashes: bytes
    """uint64."""

    columns: tuple[_StoredColumn, ...]
    format: int = FORMAT


class Column(NamedTuple):
    """The values of one column, by row; *texts* is None for a column of numbers."""

    values: "array[Any]"
    texts: Texts | None

    def value(self, row: int) -> float | str | None:
        """Return a number or a text; NaN or None for a missing value, as of the row -1."""
        if self.texts is None:
            return self.values[row] if row >= 0 else nan
        return self.texts[self.values[row]] if row >= 0 else None


class ItemAttributes:
    """The table of one release, immutable."""

    def __init__(self, table: bytes) -> None:
        """Parse the pieces, joined; raises ReleaseCorrupt, and WrittenByNewer for a newer format."""
        try:
            written = msgspec.msgpack.decode(table, type=RecordFormat).format
            check_format(written, FORMAT, "the table of item attributes")
            stored = msgspec.msgpack.decode(table, type=_StoredTable)
            self._hashes = array("Q", stored.hashes)
            self.columns = {
                name: Column(array("d" if texts is None else "I", values), texts)
                for name, values, texts in map(msgspec.structs.astuple, stored.columns)
            }
        except (msgspec.MsgspecError, ValueError) as error:
            raise ReleaseCorrupt(f"the item attributes cannot be read ({error}); {HEAL}") from error

    def row_of(self, identifier: bytes) -> int:
        """Return the row of an item, its id as by `encode_id`, or -1."""
        hashed = xxh3_64_intdigest(identifier)
        row = bisect_left(self._hashes, hashed)
        return row if row < len(self._hashes) and self._hashes[row] == hashed else -1


def encode_attributes(
    ids: Sequence[str], columns: Mapping[str, Sequence[Any]], texts: Collection[str] = ()
) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a table, and its entry in the manifest's origin.

    Columns have numbers or texts, None if missing; those named in *texts* are of texts even without any. Raises
    StoreMisused for a repeated item, and for too large a table.
    """
    hashes = [xxh3_64_intdigest(encode_id(identifier)) for identifier in ids]
    order = sorted(range(len(ids)), key=hashes.__getitem__)
    for place, other in pairwise(order):
        if hashes[place] == hashes[other]:
            raise StoreMisused(f"item {ids[place]!r} has two rows of attributes; keep one for each item")
    stored = tuple(
        _stored(name, [values[row] for row in order], is_text=name in texts) for name, values in columns.items()
    )
    table = msgspec.msgpack.encode(_StoredTable(array("Q", map(hashes.__getitem__, order)).tobytes(), stored))
    if len(table) > MAX_BYTES:
        raise StoreMisused(
            f"the item attributes have {len(table)} bytes, and at most {MAX_BYTES} are kept in memory; leave out "
            "columns that no filter needs"
        )
    pieces = [table[start : start + PIECE_BYTES] for start in range(0, len(table), PIECE_BYTES)]
    kinds = {column.name: "number" if column.texts is None else "text" for column in stored}
    about = {ABOUT: {"pieces": len(pieces), "columns": kinds}}
    return list(map(Row, piece_keys(len(pieces)), pieces)), about


def _stored(name: str, values: list[Any], *, is_text: bool) -> _StoredColumn:
    if not is_text and not any(isinstance(value, str) for value in values):
        return _StoredColumn(name, array("d", (nan if value is None else value for value in values)).tobytes(), None)
    texts = (None, *sorted({value for value in values if value is not None}))
    numbers = {text: number for number, text in enumerate(texts)}
    return _StoredColumn(name, array("I", map(numbers.__getitem__, values)).tobytes(), texts)


def piece_keys(pieces: int) -> list[str]:
    """Return the keys of a table in *pieces*."""
    return [f"{ATTRIBUTES}/{number:06}" for number in range(pieces)]
