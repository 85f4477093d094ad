"""Reads business rules from files: which items are available, excluded, boosted or pinned, and their categories."""

import re
from functools import cache
from pathlib import Path

import polars as pl

from hotplate.offline.errors import DataError
from hotplate.offline.exploration import read_explore
from hotplate.offline.input.columns import usual_column
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import input_files, named_paths
from hotplate.offline.input.rows import read_text
from hotplate.offline.input.showings import read_showings
from hotplate.offline.input.tables import open_tables
from hotplate.offline.options import Format, RuleFiles
from hotplate.offline.rules import MAX_BOOST, Rules
from hotplate.stores.attributes import parse_list

_LIKE_STOCK = re.compile(r"(?i)sto?c?k(?!.?(code|id))|qty|quant|avail")
_IN_STOCK = ["true", "yes", "in stock", "instock"]
_OUT_OF_STOCK = ["false", "no", "out of stock", "outofstock"]


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
        return read_text(path, ["item"], may_be_empty=may_be_empty).get_column("item").to_list()

    with input_files([path]) as files, data_errors(named_paths([path]), files):
        lines = list[str]()
        for file in files:
            lines += file.path.read_text("utf-8-sig").splitlines()

    stripped = [line.strip() for line in lines]
    return [*filter(None, stripped)]


def _read_available(path: Path) -> list[str]:
    """Return the ids of the items in a file that are in stock.

    These are the items with a number above 0, or a word such as `true`, in the column of stock, which is found by its
    name. Without such a column, they are all items of the file. Raises DataError for other values.
    """
    stock = None if path.suffix.lower() == ".txt" else _stock_column(path)
    if stock is None:
        return _read_items(path, may_be_empty=False)

    # Words such as `true` become amounts; others are numbers, or null if they cannot be read.
    text = pl.col("stock").str.strip_chars().str.to_lowercase()
    number = text.cast(pl.Float64, strict=False).fill_nan(None)
    amount = pl.when(text.is_in(_IN_STOCK)).then(1.0).when(text.is_in(_OUT_OF_STOCK)).then(0.0).otherwise(number)
    rows = read_text(path, ["item"], {"stock": stock}).with_columns(amount=amount)

    unread = rows.filter(pl.col("amount").is_null())
    if unread.height:
        item, value = unread.select("item", "stock").row(0)
        raise DataError(
            f"{named_paths([path])} has {value!r} as the {stock} of item {item!r}; write a number, true or false."
        )
    return rows.filter(pl.col("amount") > 0).get_column("item").to_list()


def _stock_column(path: Path) -> str | None:
    """Return the column of a file that tells whether an item is in stock, by its name, or None.

    Raises DataError for a similar name, as items that are sold out would count as available.
    """
    with input_files([path]) as files:
        names = list(open_tables(files, Format())[0].schema)
    stock = usual_column("stock", names)
    alike = next(filter(_LIKE_STOCK.search, names), None)
    if stock is None and alike is not None:
        raise DataError(f"{named_paths([path])} has a column {alike!r}; call it stock, or remove it if it is none.")
    return stock


def _read_categories(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the categories in a file, by item id: several are an array, a text as `men|shoes`, or several rows."""
    categories = dict[str, tuple[str, ...]]()
    parse = cache(parse_list)  # equal texts share a tuple
    for item, text in read_text(path, ["item", "category"]).drop_nulls().iter_rows():
        if names := parse(text):
            categories[item] = categories.get(item, ()) + names
    return categories


def _read_boosts(path: Path) -> dict[str, float]:
    """Return the boosts in a file, factors of items' scores, by item id.

    Raises DataError for a boost that is not a number above 0, or is too large, and for an item with two.
    """
    boost = pl.col("boost")
    rows = read_text(path, ["item", "boost"], may_be_empty=True).with_columns(boost.cast(pl.Float64, strict=False))

    # A text that is not a number has become null.
    is_valid = (boost > 0) & (boost <= MAX_BOOST)
    wrong = rows.filter(~is_valid.fill_null(value=False)).get_column("item").sort()
    if len(wrong):
        bounds = f"above zero and at most {MAX_BOOST:,}"
        raise DataError(f"{named_paths([path])} has no number {bounds} as the boost of item {wrong[0]!r}.")
    rows = rows.unique()
    repeated = rows.filter(pl.col("item").is_duplicated()).get_column("item").sort()
    if len(repeated):
        raise DataError(f"{named_paths([path])} has item {repeated[0]!r} with two boosts; keep one for each item.")
    return dict(rows.iter_rows())
