"""The deny-list: a watched file of items that no answer contains, and users that are treated as unknown.

One `item:ID` or `user:ID` per line; blank lines and `#` comments are ignored. An id with spaces around it or a leading
quote is written as a JSON string.

Overrides, in another watched file, deny items, too, and replace values of item attributes: CSV with a header or JSON
lines, as `{"item": "42", "stock": 0, "deny": true}`. An empty cell or null overrides nothing.
"""

import csv
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import msgspec
import orjson

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.generation import Policy
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.attributes import join_array
from hotplate.stores.encoding import ITEM, USER, check_id, encode_id
from hotplate.stores.errors import StoreMisused, did_you_mean

MAX_BYTES = 16 << 20
# A background thread sleeps after each batch of lines to release the GIL.
LINES_AT_ONCE = 64
PAUSE_S = 2e-4
# Rows, and values, of overrides; blank lines are no rows. Per process: about 25 MB.
MAX_OVERRIDES = 200_000
DENIED = {"true": True, "1": True, "false": False, "0": False, "": False}

# Texts and numbers by attribute and item (`encode_id`).
Overrides = Mapping[str, Mapping[bytes, str]]
NO_OVERRIDES: Overrides = {}

_decode_row = msgspec.json.Decoder(dict[str, str | int | float | bool | list[str] | None]).decode


class DenyListInvalid(ServiceMisused):
    """A file cannot be parsed. The message contains no id, which may be personal."""


@dataclass(frozen=True, slots=True)
class DenyList:
    """The entries of one version of the files."""

    users: frozenset[str] = frozenset()
    items: frozenset[bytes] = frozenset()
    """Encoded by `encode_id`."""

    overrides: Overrides = field(default_factory=lambda: NO_OVERRIDES)


def parse(content: bytes) -> DenyList:
    """Parse a deny-list: users who are answered as unknown, and items that are not shown.

    *content* is UTF-8. A line is `item:ID` or `user:ID`; empty lines and those that begin with # are skipped. A million
    lines take some seconds. Raises DenyListInvalid.
    """
    users = set[str]()
    items = set[bytes]()
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for number, raw_line in _paced(BytesIO(content)):
        try:
            line = raw_line.decode().strip()
            if not line or line.startswith("#"):
                continue
            kind, identifier = _parse_entry(line)
        except (ValueError, StoreMisused):
            raise DenyListInvalid(
                f"line {number} is not an entry; an entry is item:ID or user:ID, of at most 256 bytes of UTF-8"
            ) from None

        if kind == USER:
            users.add(identifier)
        else:
            items.add(encode_id(identifier))
    return DenyList(frozenset(users), frozenset(items))


def _parse_entry(line: str) -> tuple[str, str]:
    """Return the kind of an entry, USER or ITEM, and its id; one in quotation marks is a JSON string.

    Raises ValueError or StoreMisused.
    """
    kind, colon, identifier = line.partition(":")
    if kind + colon not in (USER, ITEM):
        raise ValueError("neither an item nor a user")
    identifier = identifier.strip()
    if identifier.startswith('"'):
        identifier = orjson.loads(identifier)
    return kind + colon, check_id(identifier)


def parse_overrides(content: bytes) -> DenyList:
    """Parse overrides: values that replace item attributes of the release, such as a price that has changed.

    *content* is UTF-8: a CSV table with a header, or a JSON object per line. A row has the id of an `item`, a column
    per attribute (an empty value overrides nothing), and perhaps `deny`, which denies the item: `item,price,deny`, then
    `7,9.99,` and `8,,true`. Raises DenyListInvalid, also for more than MAX_OVERRIDES rows or values.
    """
    values = dict[str, dict[bytes, str]]()
    """Overriding values, by attribute and by item."""

    denied = set[bytes]()
    count = 0  # of values
    number = 0  # of the row, for errors
    try:
        for number, row in _paced(_override_rows(content)):
            cells = _cells_of(row)
            item = encode_id(check_id(cells.pop("item")))
            if DENIED[cells.pop("deny", "").lower()]:
                denied.add(item)
            for attribute, value in cells.items():
                if value:
                    values.setdefault(attribute, {})[item] = sys.intern(value)
                    count += 1
            if max(number, count) > MAX_OVERRIDES:
                raise DenyListInvalid(
                    f"it has over {MAX_OVERRIDES:,} rows or values; publish the item attributes again"
                )
    except (ValueError, LookupError, AttributeError, StoreMisused, csv.Error):
        where = f"row {number}" if number else "the header"
        raise DenyListInvalid(
            f"{where} cannot be read; a row has an item, attributes, and perhaps deny, which is true or false"
        ) from None
    return DenyList(items=frozenset(denied), overrides=values)


def _override_rows(content: bytes) -> Iterable[str | dict[str, str]]:
    """Return the rows of overrides: JSON objects as text, or rows of a CSV table by column.

    Raises ValueError for a table without a column of items, as which a JSON array is read, and DenyListInvalid for
    another encoding.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise DenyListInvalid("it is not UTF-8; save it as UTF-8") from None
    if text.lstrip().startswith("{"):
        return (line for line in StringIO(text) if line.strip())
    table = csv.DictReader(StringIO(text, newline=""), strict=True)
    if text.strip() and "item" not in map(str.strip, table.fieldnames or ()):
        raise ValueError("no column of items")
    return table


def _cells_of(row: str | dict[str, str]) -> dict[str, str]:
    """Return the texts of a row by column; raises ValueError, or AttributeError for too many cells."""
    cells = _decode_row(row) if isinstance(row, str) else row
    return {name.strip(): _text_of(cell) for name, cell in cells.items()}


def _text_of(cell: str | float | list[str] | None) -> str:
    """Return a cell as text; a boolean of a JSON object as "true" or "false"."""
    if cell is None:
        return ""
    if isinstance(cell, list):
        return join_array(cell)
    if isinstance(cell, str):
        return cell
    return str(cell).lower()


def _paced(lines: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Number lines from 1, with pauses in a background thread."""
    pauses = threading.current_thread() is not threading.main_thread()
    for number, line in enumerate(lines, 1):
        if pauses and number % LINES_AT_ONCE == 0:
            time.sleep(PAUSE_S)
        yield number, line


class DenyListFile:
    """The deny-list and the overrides in watched files; one per process."""

    current = Policy[DenyList]()
    """Of both files."""

    def __init__(
        self,
        path: Path | None = None,
        overrides: Path | None = None,
        *,
        attributes: Callable[[], AbstractSet[str] | None] = lambda: None,
    ) -> None:
        """Read the files, if any; raises ServiceMisused.

        *attributes* returns the names of the item attributes of served releases, None while they are unknown.
        """
        self.current = DenyList()
        self._listed = DenyList()
        self._overrides = DenyList()
        self.watched = list[WatchedFiles]()
        if path is not None:
            self.watched.append(WatchedFiles([path], partial(self._load_listed, path), max_bytes=MAX_BYTES))
        if overrides is not None:
            self.watched.append(
                WatchedFiles(
                    [overrides],
                    partial(self._load_overrides, overrides),
                    context=lambda: () if (known := attributes()) is None else (known,),
                    max_bytes=MAX_BYTES,
                )
            )

    def _load_listed(self, path: Path, contents: Sequence[bytes]) -> None:
        """Take the new content of the deny-list; raises DenyListInvalid."""
        try:
            self._listed = parse(contents[0])
        except DenyListInvalid as error:
            raise DenyListInvalid(f"the deny-list {path} cannot be used: {error}") from None
        self._combine()

    def _load_overrides(
        self, path: Path, contents: Sequence[bytes], known: AbstractSet[str] | None = None
    ) -> str | None:
        """Take the content of the file of overrides, and return why a column is not in use; raises DenyListInvalid.

        *known* are the attributes of served releases, if these are known. A misspelt one would bring back the values of
        the release, so content with another unknown one than before is refused.
        """
        try:
            overrides = parse_overrides(contents[0])
        except DenyListInvalid as error:
            raise DenyListInvalid(f"overrides {path} cannot be used: {error}") from None

        warning = None
        unknown = set[str]() if known is None else overrides.overrides.keys() - known
        if known is not None and unknown:
            name = min(unknown)
            advice = did_you_mean(name, [*known, "item", "deny"]) or f"they have {', '.join(sorted(known)) or 'none'}"
            warning = (
                f"overrides {path} have a column {name:.64}, which is no attribute of served releases; {advice:.200}"
            )
        if unknown - self._overrides.overrides.keys():
            raise DenyListInvalid(warning)
        self._overrides = overrides
        self._combine()
        return warning

    def _combine(self) -> None:
        """Apply both files by one assignment, as they are loaded in threads."""
        items = self._listed.items | self._overrides.items
        self.current = DenyList(self._listed.users, items, self._overrides.overrides)
