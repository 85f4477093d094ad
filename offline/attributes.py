"""Item attributes of a release, read from a file of items."""

import re
from typing import Any

import polars as pl

from hotplate.offline.errors import DataError
from hotplate.offline.input.columns import choose_columns
from hotplate.offline.input.files import DataSource, Format, data_errors, input_files, named_paths
from hotplate.offline.input.tables import ROW, Rows, Table, TableShape, id_reasons, open_tables
from hotplate.stores.attributes import encode_attributes
from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import Row

# As a condition of `where` can name it; `deny` is a column of overrides.
_NAME = re.compile(r"(?!deny$)[\w.-]{1,64}")
_ITEM = "item"


def read_attributes(path: DataSource | None) -> tuple[list[Row], dict[str, Any]]:
    """Read a file with a column of items, whose others are attributes; returns rows, and their entry in the manifest.

    A column of a text file is one of numbers if all its values are; Booleans are texts. Raises DataError for a repeated
    item, and for attributes that are too large or cannot be named in a filter.
    """
    if path is None:
        return [], {}
    source = named_paths([path])
    with input_files([path]) as files:
        tables = open_tables(files, Format(max_bad_rows=0))
        names = list(tables[0].schema)
        item = choose_columns({}, names, source, guessed=[_ITEM], required=[_ITEM])[_ITEM]
        columns = [name for name in names if name != item]
        if wrong := next((name for name in columns if not _NAME.fullmatch(name)), None):
            raise DataError(f"{source} has a column {wrong!r}; rename it, as filters can name letters, digits, . - _")
        if not columns:
            raise DataError(f"{source} has a column of items alone; add columns of attributes to filter by")
        with data_errors(source):
            rows = Rows([_shape(table, item, columns) for table in tables], source)
            ids, *values = rows.kept.drop(ROW).collect(engine="streaming")
    if tables[0].file.kind != "parquet":
        values = list(map(_numbers, values))
    try:
        return encode_attributes(ids.to_list(), dict(zip(columns, map(pl.Series.to_list, values), strict=True)))
    except StoreMisused as error:
        raise DataError(f"{source} cannot be published: {error}.") from error


def _shape(table: Table, item: str, columns: list[str]) -> TableShape:
    values = [table.number(name) if table.schema[name].is_numeric() else table.text(name) for name in columns]
    named = [value.alias(f"{number}") for number, value in enumerate(values)]
    return TableShape(table, [table.text(item).alias(_ITEM), *named], id_reasons({_ITEM: _ITEM}))


def _numbers(texts: pl.Series) -> pl.Series:
    """Return the column as numbers if all values are."""
    numbers = texts.str.strip_chars().cast(pl.Float64, strict=False)
    return numbers if numbers.is_finite().sum() == texts.count() else texts
