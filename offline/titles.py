"""What items are called: the title that most rows give an item, or the one in a file of titles."""

from pathlib import Path

import polars as pl

from offline.columns import find_column, guess_column
from offline.errors import DataError
from offline.files import reading
from offline.tables import Table, open_tables
from offline.values import text_of


def most_frequent(named: pl.LazyFrame, place: Path) -> dict[str, str]:
    """Return the title of each item of *named* [item, title]: the most frequent, the first by alphabet among equals."""
    title = pl.col("title").str.strip_chars()
    with reading(place):
        counted = (
            named.select("item", title=title)
            .filter(pl.col("title") != "")
            .group_by("item", "title")
            .len()
            .collect(engine="streaming")
        )
    best = counted.sort("item", "len", "title", descending=[False, True, False]).unique(
        "item", keep="first", maintain_order=True
    )
    return dict(zip(best.get_column("item"), best.get_column("title"), strict=True))


def read_titles(path: Path, item_column: str, title_column: str | None, delimiter: str | None) -> dict[str, str]:
    """
    Return the titles in the file (or folder) at *path*.

    Its item column is the one called *item_column*, as in the interactions, or else guessed; its title column is
    *title_column*, or guessed. Raises DataError when either is missing or the file cannot be read.
    """
    tables = open_tables(path, delimiter)
    available = list(tables[0].schema)
    item = item_column if item_column in available else guess_column("item", available)
    title = (
        find_column(title_column, available, "title", str(path)) if title_column else guess_column("title", available)
    )
    if item is None or title is None:
        missing = "item" if item is None else "title"
        raise DataError(f"No column of {path} looks like the {missing}; its columns are: {', '.join(available)}.")
    return most_frequent(pl.concat([_projected(table, item, title) for table in tables]), path)


def _projected(table: Table, item: str, title: str) -> pl.LazyFrame:
    place = str(table.file)
    return table.frame.select(
        item=text_of(item, table.schema[item], place), title=text_of(title, table.schema[title], place)
    ).drop_nulls()
