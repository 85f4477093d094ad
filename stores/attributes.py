"""The item attributes of a release: columns of numbers and texts, by which answers are filtered.

A number is what is written: digits that a float does not hold differ, and the code 007 is not the number 7. Tables of
format 1 may have rounded their numbers when they were published, so conditions on them round, too.

    meta:attributes/000000   the first PIECE_BYTES of the table
    meta:attributes/000001   the next ones

The table is msgpack. Its items are sorted by the xxh3_64 of their ids, as by `encode_id`. The manifest has the number
of pieces, and the kinds of the columns, under ABOUT.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from math import isfinite, nan
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from hotplate.stores.encoding import ATTRIBUTES, decode_versioned, encode_id
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreMisused
from hotplate.stores.factors import PIECE_BYTES
from hotplate.stores.origin import OriginRecord
from hotplate.stores.store import Row

FORMAT = 2
# Whole numbers below this are exact as floats.
EXACT_FLOATS = 2**53
WHOLE = r"[+-]?\d+"
# A code, such as a ZIP code, and not a number: digits that begin with zero.
CODE = r"^[+-]?0\d+$"
ABOUT: Final = "item_attributes"  # a field of `Origin`
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
    parse: Callable[[str], float | str]
    """Returns a written value as one that compares with *values*; NaN for a text that is no number."""

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
            stored = decode_versioned(
                table,
                _StoredTable,
                newest=FORMAT,
                subject="the table of item attributes",
                decode=msgspec.msgpack.decode,
            )
            self._hashes = array("Q", stored.hashes)
            parse = parse_number if stored.format == FORMAT else _rounded_number
            self.columns = dict[str, Column]()
            for column in stored.columns:
                if column.texts is None:
                    self.columns[column.name] = Column(array("d", column.values), None, parse)
                else:
                    self.columns[column.name] = Column(array("I", column.values), column.texts, str)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ReleaseCorrupt(f"the item attributes cannot be read ({error}); {HEAL}") from error

    def row_of(self, identifier: bytes) -> int:
        """Return the row of an item, its id as by `encode_id`, or -1."""
        hashed = xxh3_64_intdigest(identifier)
        row = bisect_left(self._hashes, hashed)
        return row if row < len(self._hashes) and self._hashes[row] == hashed else -1


def parse_number(text: str) -> float:
    """Return a written number, which is exact if it is whole; NaN for a code and for any other text.

    Digits are those of ASCII, without underscores, as in files of attributes.
    """
    text = text.strip()
    number = _rounded_number(text)
    if not isfinite(number) or not text.isascii() or "_" in text or re.match(CODE, text):
        return nan
    return int(text) if re.fullmatch(WHOLE, text) else number


def _rounded_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def encode_attributes(
    ids: Sequence[str], columns: Mapping[str, Sequence[Any]], texts: Collection[str] = ()
) -> tuple[list[Row], OriginRecord]:
    """Return the rows of a table, and its entry in the record of the manifest's origin.

    The table is stored in pieces, one row each. *columns* have the values by name, in the order of *ids*: numbers or
    texts, None if missing. A column named in *texts* is one of texts even if all are missing. The items are sorted by
    the hashes of their ids, which take the place of the ids. Raises StoreMisused for a repeated item, and for too large
    a table.
    """
    hashes = [xxh3_64_intdigest(encode_id(identifier)) for identifier in ids]
    order = sorted(range(len(ids)), key=hashes.__getitem__)
    for row, next_row in pairwise(order):
        if hashes[row] == hashes[next_row]:
            raise StoreMisused(f"item {ids[row]!r} has two rows of attributes; keep one for each item")

    sorted_hashes = array("Q", [hashes[row] for row in order])
    stored = tuple(
        _stored_column(name, [values[row] for row in order], is_text=name in texts) for name, values in columns.items()
    )
    table = msgspec.msgpack.encode(_StoredTable(sorted_hashes.tobytes(), stored))
    if len(table) > MAX_BYTES:
        raise StoreMisused(
            f"the item attributes have {len(table)} bytes, and at most {MAX_BYTES} are kept in memory; leave out "
            "columns that no filter needs"
        )

    kinds = {column.name: "number" if column.texts is None else "text" for column in stored}
    pieces = [table[start : start + PIECE_BYTES] for start in range(0, len(table), PIECE_BYTES)]
    rows = [Row(key, piece) for key, piece in zip(piece_keys(len(pieces)), pieces, strict=True)]
    return rows, {ABOUT: {"pieces": len(pieces), "columns": kinds}}


def _stored_column(name: str, values: list[Any], *, is_text: bool) -> _StoredColumn:
    """Encode the values of a column: texts if *is_text* is true or one value is a text, else numbers.

    Numbers are float64, NaN if missing. Texts are uint32 indexes into the distinct texts, sorted; index 0 is None.
    """
    if not is_text and not any(isinstance(value, str) for value in values):
        numbers = array("d", [nan if value is None else value for value in values])
        return _StoredColumn(name, numbers.tobytes(), None)
    texts = (None, *sorted({value for value in values if value is not None}))
    index_of = {text: index for index, text in enumerate(texts)}
    return _StoredColumn(name, array("I", [index_of[value] for value in values]).tobytes(), texts)


def piece_keys(pieces: int) -> list[str]:
    """Return the keys of a table in *pieces*."""
    return [f"{ATTRIBUTES}/{number:06}" for number in range(pieces)]
