"""Reads business rules from files: which items are available, excluded, boosted or pinned, and their categories."""

import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import orjson
import polars as pl

from hotplate.offline.errors import DataError
from hotplate.offline.exploration import read_explore
from hotplate.offline.input.columns import usual_column
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import input_files, named_paths
from hotplate.offline.input.rows import read_roles_of
from hotplate.offline.input.showings import read_showings
from hotplate.offline.input.tables import open_tables
from hotplate.offline.options import Format, RuleFiles
from hotplate.offline.rules import Rules
from hotplate.stores.attributes import parse_list

_LIKE_STOCK = re.compile(r"(?i)sto?c?k(?!.?(code|id))|qty|quant|avail")


def read_rules(files: RuleFiles) -> Rules:
    """Read the business rules of lists, each from its file; `rotate` is read from recorded events.

    Raises DataError for files that cannot be used, and SettingError.
    """
    return Rules(
        available=None if files.available is None else frozenset(_read_available(files.available)),
        excluded=frozenset() if files.exclude is None else frozenset(_read_items(files.exclude)),
        categories={} if files.categories is None else _read_categories(files.categories),
        max_per_category=files.max_per_category,
        min_history=files.min_history,
        boosts={} if files.boost is None else _read_boosts(files.boost),
        pinned=() if files.pin is None else tuple(_read_items(files.pin)),
        diversity=files.diversity,
        showings=None if files.rotate is None else read_showings(files.rotate),
        explore=None if files.explore is None else read_explore(files.explore),
    )


def _read_items(path: Path, *, may_be_empty: bool = True) -> list[str]:
    """Return the ids of items in a file: the lines of a .txt file, without blank ones, else the column of items.

    A file with columns must have rows, or DataError is raised, unless it *may_be_empty*.
    """
    if path.suffix.lower() != ".txt":
        return read_roles_of(path, ["item"], may_be_empty=may_be_empty).get_column("item").to_list()

    with input_files([path]) as files, data_errors(named_paths([path]), files):
        lines = list[str]()
        for file in files:
            lines += file.path.read_text("utf-8-sig").splitlines()

    stripped = [*filter(None, map(str.strip, lines))]
    first = re.split(r"[,;\t|]", stripped[0]) if stripped else []
    if len(first) > 1 and usual_column("item", first) is not None:
        raise DataError(f"{named_paths([path])} has several columns; let its name end in .csv, or write an id a line.")
    return stripped


def _read_available(path: Path) -> list[str]:
    """Return the ids of the items in a file that are in stock.

    These are the items with a number above 0, or a word such as `true`, in the column of stock, which is found by its
    name. Without such a column, they are all items of the file. Raises DataError for other values.
    """
    if path.suffix.lower() == ".txt" or not _has_stock(path):
        return _read_items(path, may_be_empty=False)
    return read_roles_of(path, ["item", "stock"]).filter(pl.col("stock") > 0).get_column("item").to_list()


def _has_stock(path: Path) -> bool:
    """Return whether a file has a column that tells whether an item is in stock, by its name.

    Raises DataError for a similar name, as items that are sold out would count as available.
    """
    with input_files([path]) as files:
        names = list(open_tables(files, Format())[0].schema)
    has_stock = usual_column("stock", names) is not None
    alike = next(filter(_LIKE_STOCK.search, names), None)
    if alike is not None and not has_stock:
        raise DataError(f"{named_paths([path])} has a column {alike!r}; call it stock, or remove it if it is none.")
    return has_stock


def _read_categories(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the categories in a file, by item id: several are an array, a text as `men|shoes`, or several rows."""
    categories = dict[str, tuple[str, ...]]()
    parse = cache(_parse_categories)  # equal texts share a tuple
    for item, text in read_roles_of(path, ["item", "category"]).drop_nulls().iter_rows():
        if names := parse(text):
            categories[item] = categories.get(item, ()) + names
    if not categories:
        raise DataError(f"{named_paths([path])} has no item with a category.")
    return categories


def _parse_categories(text: str) -> tuple[str, ...]:
    # An array among texts, which JSON lines may have.
    with suppress(orjson.JSONDecodeError):
        if text.startswith("["):
            return tuple(map(str, orjson.loads(text)))
    return parse_list(text)


def _read_boosts(path: Path) -> dict[str, float]:
    """Return the boosts in a file, factors of items' scores, by item id.

    Raises DataError for a boost that is not a number above 0, or is too large, and for an item with two.
    """
    rows = read_roles_of(path, ["item", "boost"], may_be_empty=True).unique()
    repeated = rows.filter(pl.col("item").is_duplicated()).get_column("item").sort()
    if len(repeated):
        raise DataError(f"{named_paths([path])} has item {repeated[0]!r} with two boosts; keep one for each item.")
    return dict(rows.iter_rows())
