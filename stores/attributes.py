"""The item attributes of a release: columns of values by which answers are filtered, of one kind each.

    number  what is written: digits that a float does not hold differ, and the code 007 is not the number 7
    text    compared as a whole
    list    several texts, as `men|shoes`
    date    a date or a time as of ISO 8601, in UTC unless it has a zone

Tables of format 1 may have rounded their numbers when they were published, so conditions on them round, too. Those of
format 3 have lists or dates.

    meta:attributes/000000   the first PIECE_BYTES of the table
    meta:attributes/000001   the next ones

The table is msgpack. Its items are sorted by the xxh3_64 of their ids, as by `encode_id`. The manifest has the number
of pieces, and the kinds of the columns, under ABOUT.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from math import isfinite, nan
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from hotplate.stores.encoding import ATTRIBUTES, decode_versioned, encode_id
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreMisused
from hotplate.stores.factors import PIECE_BYTES
from hotplate.stores.origin import OriginRecord
from hotplate.stores.store import Row

FORMAT = 3
# Of a table without lists and dates, which earlier services can read, too.
_PLAIN_FORMAT = 2
# Whole numbers below this are exact as floats.
EXACT_FLOATS = 2**53
WHOLE = r"[+-]?\d+"
# A code, such as a ZIP code, and not a number: digits that begin with zero.
CODE = r"^[+-]?0\d+$"
ABOUT: Final = "item_attributes"  # a field of `Origin`
MAX_BYTES = 64 << 20  # in each worker: a million items of five columns

# A date of an item that leaves all lists then.
EXPIRES: Final = "expires"
SEVERAL = "|"
# Before each text of an array, instead of any other separator, as no text has it.
IN_ARRAY = "\x1f"
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:.*)?")
# As Unix times, the first second of the year 1 and the last one of 9999, as which earlier and later ones are read: a
# zone or rounding of the microseconds may lead to another year.
_FIRST_S = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST_S = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()

Kind = Literal["number", "text", "list", "date"]
# A list is a tuple.
Texts = tuple[str | tuple[str, ...] | None, ...]
Value = float | str | tuple[str, ...] | None


class _StoredColumn(Struct, frozen=True, omit_defaults=True):
    """An array, little-endian as all: float64, NaN if missing, or uint32 numbers of *texts*, the first of them None."""

    name: str
    values: bytes
    texts: Texts | None
    new_kind: Literal["list", "date"] | None = None
    """Of format 3."""

    @property
    def kind(self) -> Kind:
        """The kind of the values."""
        return self.new_kind or ("number" if self.texts is None else "text")


class _StoredTable(Struct, frozen=True):
    hashes: bytes
    """uint64."""

    columns: tuple[_StoredColumn, ...]
    format: int


class Column(NamedTuple):
    """The values of one column, by row; *texts* is None for a column of numbers or dates, in Unix time."""

    kind: Kind
    values: "array[Any]"
    texts: Texts | None
    parse: Callable[[str], float | str | tuple[str, ...]]
    """Returns a written value as one of the column; NaN for a text that is no number or no date."""

    def value(self, row: int) -> Value:
        """Return the value in a row; NaN or None for a missing value, as of the row -1."""
        if self.texts is None:
            return self.values[row] if row >= 0 else nan
        return self.texts[self.values[row]] if row >= 0 else None

    def shown(self, value: Value) -> Value:
        """Return a value as JSON has it: a whole number without a fraction, a date as text, None for a missing one."""
        if not isinstance(value, float | int):
            return value
        if not isfinite(value):
            return None
        if self.kind == "date":
            return format_date(value)
        return int(value) if abs(value) < EXACT_FLOATS and value == int(value) else float(value)


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
            parsers = dict(_PARSERS)
            if stored.format < _PLAIN_FORMAT:
                parsers["number"] = _rounded_number
            self.columns = dict[str, Column]()
            for column in stored.columns:
                values = array("d" if column.texts is None else "I", column.values)
                self.columns[column.name] = Column(column.kind, values, column.texts, parsers[column.kind])
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


def parse_date(text: str) -> float:
    """Return the Unix time of a date, or of a date and a time, of ISO 8601; in UTC without a zone. NaN for others."""
    text = text.strip()
    try:
        time = datetime.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        time = None
    if time is None:
        return nan
    seconds = time.replace(tzinfo=time.tzinfo or UTC).timestamp()
    return min(max(seconds, _FIRST_S), _LAST_S)


def format_date(seconds: float) -> str:
    """Return a Unix time as `2026-12-01`, or `2026-12-01T10:30:00Z` within a day."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat()
    return text.removesuffix("T00:00:00+00:00").replace("+00:00", "Z")


def join_array(texts: Iterable[str]) -> str:
    """Return an array as one text for `parse_list`."""
    return "".join(f"{IN_ARRAY}{text}" for text in texts)


def parse_text(text: str) -> str:
    """Return a text, and an array as `men|shoes`."""
    return text.removeprefix(IN_ARRAY).replace(IN_ARRAY, SEVERAL)


def parse_list(text: str, separator: str = SEVERAL) -> tuple[str, ...]:
    """Return the texts of a list, such as `men|shoes` or an array, each once."""
    texts = map(str.strip, text.split(IN_ARRAY if text.startswith(IN_ARRAY) else separator))
    return tuple(dict.fromkeys(filter(None, texts)))


_PARSERS: Mapping[Kind, Callable[[str], float | str | tuple[str, ...]]] = {
    "number": parse_number,
    "text": parse_text,
    "list": parse_list,
    "date": parse_date,
}


def encode_attributes(
    ids: Sequence[str], columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, Kind] | None = None
) -> tuple[list[Row], OriginRecord]:
    """Return the rows of a table, and its entry in the record of the manifest's origin.

    The table is stored in pieces, one row each. *columns* have the values by name, in the order of *ids*, None if
    missing: those of *kinds*, else numbers, or texts if one is a text; a date is a Unix time, and a list a tuple of
    texts. The items are sorted by the hashes of their ids, which take the place of the ids. Raises StoreMisused for a
    repeated item, and for too large a table.
    """
    kinds = kinds or {}
    hashes = [xxh3_64_intdigest(encode_id(identifier)) for identifier in ids]
    order = sorted(range(len(ids)), key=hashes.__getitem__)
    for row, next_row in pairwise(order):
        if hashes[row] == hashes[next_row]:
            raise StoreMisused(f"item {ids[row]!r} has two rows of attributes; keep one for each item")

    sorted_hashes = array("Q", [hashes[row] for row in order])
    stored = tuple(
        _stored_column(name, [values[row] for row in order], kinds.get(name)) for name, values in columns.items()
    )
    table_format = FORMAT if any(column.new_kind for column in stored) else _PLAIN_FORMAT
    table = msgspec.msgpack.encode(_StoredTable(sorted_hashes.tobytes(), stored, table_format))
    if len(table) > MAX_BYTES:
        raise StoreMisused(
            f"the item attributes have {len(table)} bytes, and at most {MAX_BYTES} are kept in memory; leave out "
            "columns that no filter needs"
        )

    pieces = [table[start : start + PIECE_BYTES] for start in range(0, len(table), PIECE_BYTES)]
    rows = [Row(key, piece) for key, piece in zip(piece_keys(len(pieces)), pieces, strict=True)]
    described: dict[str, str] = {column.name: column.kind for column in stored}
    return rows, {ABOUT: {"pieces": len(pieces), "columns": described}}


def _stored_column(name: str, values: list[Any], kind: Kind | None) -> _StoredColumn:
    """Encode the values of a column of a *kind*: without one, texts if one value is a text, else numbers.

    Numbers and dates are float64, NaN if missing. Texts and lists are uint32 indexes into the distinct ones, sorted;
    index 0 is None.
    """
    if kind is None:
        kind = "text" if any(isinstance(value, str) for value in values) else "number"
    stored_kind = kind if kind in ("list", "date") else None
    if kind in ("number", "date"):
        numbers = array("d", [nan if value is None else value for value in values])
        return _StoredColumn(name, numbers.tobytes(), None, stored_kind)
    texts = (None, *sorted({value for value in values if value is not None}))
    index_of = {text: index for index, text in enumerate(texts)}
    return _StoredColumn(name, array("I", [index_of[value] for value in values]).tobytes(), texts, stored_kind)


def piece_keys(pieces: int) -> list[str]:
    """Return the keys of a table in *pieces*."""
    return [f"{ATTRIBUTES}/{number:06}" for number in range(pieces)]
