"""Tables: files of rows opened to be scanned, all of one shape, and their columns as text in which absence is null."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import polars as pl

from offline.errors import DataError
from offline.input.columns import is_absent, number_layout, text_of, time_layouts, time_of
from offline.input.files import DataFile, Format, data_errors
from offline.input.text import scan_text

# A whole number as pandas writes one of a column that has missing values, and as everybody else does.
_FLOAT_ID = re.compile(r"-?(?:0|[1-9]\d*)\.0")
_WHOLE_ID = r"^-?(?:0|[1-9]\d*)(?:\.0)?$"
# In these the first value of a column is looked for, before all others are.
_HEAD_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Table:
    """
    One file to be scanned, as often as needed; a text file has only text columns, '' if a value is absent.

    first_row    the number of the first row of data in the file, from 1
    null_values  the texts that mean that a value is missing
    whole        the columns of text that are whole numbers, some or all written as 17850.0
    """

    file: DataFile
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    first_row: int
    null_values: Sequence[str]
    whole: frozenset[str] = frozenset()

    def text(self, name: str | None) -> pl.Expr:
        """Return the column as text, nulls if there is no such column; raises DataError as `text_of` does."""
        if name is None:
            return pl.lit(None, dtype=pl.String)
        text = text_of(name, self.schema[name], str(self.file), self.null_values)
        return text.str.strip_suffix(".0") if name in self.whole else text

    def is_absent(self, name: str) -> pl.Expr:
        """Return whether the value of the column is missing; never null."""
        return is_absent(name, self.schema[name], self.null_values)

    def first_text(self, name: str) -> str | None:
        """Return the first value of a column of text, None if it has none or is of another type."""
        if self.schema[name] != pl.String:
            return None
        column = self.frame.select(name)
        with data_errors(self.file):
            for rows in (column.head(_HEAD_ROWS), column):
                first = rows.filter(~self.is_absent(name)).head(1).collect()
                if first.height:
                    return str(first.item())
        return None

    def time_layout(self, name: str) -> str | None:
        """Return the format that reads the most values of a column of times, texts or numbers; None if there is none.

        If every date can be read as month/day and as day/month, the month comes first.
        """
        dtype = self.schema[name]
        if dtype != pl.String and not dtype.is_numeric():
            return None
        present = self.frame.filter(~self.is_absent(name)).select(name)
        with data_errors(self.file):
            if dtype != pl.String:
                return number_layout(present.head(_HEAD_ROWS).collect().get_column(name))
            for rows in (present.head(_HEAD_ROWS), present):
                layouts = time_layouts(rows.collect(engine="streaming").get_column(name))
                if layouts:
                    break
            if len(layouts) < 2:
                return next(iter(layouts), None)
            readable = [
                time.is_not_null().sum().alias(layout)
                for layout in layouts
                if (time := time_of(name, pl.String(), layout)) is not None
            ]
            counts = present.select(readable).collect(engine="streaming").row(0, named=True)
        return max(layouts, key=lambda layout: counts[layout])


def open_tables(files: Sequence[DataFile], form: Format, source: str) -> list[Table]:
    """
    Open *files*, which messages call *source*; each is read from end to end, so that a bad row stops here.

    Raises DataError for what cannot be read, and when the files differ in their columns.
    """
    tables = [_open_table(file, form) for file in files]
    first = tables[0]
    for table in tables[1:]:
        if set(table.schema) != set(first.schema):
            raise DataError(
                f"{table.file} has the columns {', '.join(table.schema)}, but {first.file} has "
                f"{', '.join(first.schema)}; files that are read together must have the same columns."
            )
    with data_errors(source):
        if not any(table.frame.select(pl.len()).collect(engine="streaming").item() for table in tables):
            raise DataError(f"{source} has a header but no rows; give interactions.")
    return tables


def with_whole_numbers(tables: Sequence[Table], columns: Iterable[str]) -> tuple[list[Table], list[str]]:
    """
    Return *tables* in which 17850.0 is read as 17850, and in which of *columns* it is.

    Those are the columns of ids that are whole numbers throughout, in all text files, and in one are written with a .0,
    as pandas writes integers beside missing values. Versions such as 1.0 beside 1.5 are none.
    """
    whole = [name for name in dict.fromkeys(columns) if _is_whole(tables, name)]
    return [replace(table, whole=frozenset(whole)) for table in tables], whole


def _is_whole(tables: Sequence[Table], name: str) -> bool:
    texts = [table for table in tables if table.schema[name] == pl.String]
    if not any(_FLOAT_ID.fullmatch(table.first_text(name) or "") for table in texts):
        return False
    for table in texts:
        with data_errors(table.file):
            other = table.text(name).str.contains(_WHOLE_ID).not_().any()
            if table.frame.select(other).collect(engine="streaming").item():
                return False
    return True


def _open_table(file: DataFile, form: Format) -> Table:
    with data_errors(file):
        if file.path.stat().st_size == 0:
            raise DataError(f"{file} is empty; give a file with a header and rows.")
        frame, first_row = pl.scan_parquet(file.path, glob=False), 1
        if file.kind != "parquet":
            frame, first_row = scan_text(file, form)
        names = frame.collect_schema().names()
        keys = [pl.lit(value, pl.String).alias(key) for key, value in file.keys.items() if key not in names]
        frame = frame.with_columns(keys)
        return Table(file, frame, dict(frame.collect_schema()), first_row, form.null_values)
