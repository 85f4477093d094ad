"""Tables: files of rows, opened, read in one shape and checked; rows are counted by the reason to leave them out."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from hotplate.offline.errors import DataError
from hotplate.offline.input.columns import MAX_ID_BYTES, choose_columns, is_numbered, number_in, time_layouts, time_of
from hotplate.offline.input.files import DataFile, Format, data_errors, find_files
from hotplate.offline.input.text import scan_text

# A whole number as pandas writes one of a column that has missing values, and as everybody else does.
_FLOAT_ID = re.compile(r"-?(?:0|[1-9]\d*)\.0")
_WHOLE_ID = r"^-?(?:0|[1-9]\d*)(?:\.0)?$"
# In these the first value of a column is looked for, before all others are.
_HEAD_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Table:
    """One file to be scanned, as often as needed; a text file has only text columns, '' if a value is absent.

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
        """Return the column as text, null if the value is missing; nulls if there is no such column.

        Whole numbers have no decimal point. Floats that are whole numbers become whole too: a nullable integer often
        comes as 17850.0, and means 17850. Raises DataError for columns of lists, structs or bytes.
        """
        if name is None:
            return pl.lit(None, dtype=pl.String)
        dtype, column = self.schema[name], pl.col(name)
        if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
            raise DataError(
                f"The column {name!r} of {self.file} holds {dtype}, which is neither an id nor a text; name another."
            )
        text = column.cast(pl.String)
        if dtype.is_float():
            # Beyond 2**53 a float no longer holds every whole number, so it is not an id; its own text is kept.
            whole = column.is_finite() & (column == column.floor()) & (column.abs() < 2**53)
            text = pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(text)
        text = pl.when(~self.is_absent(name)).then(text)
        return text.str.strip_suffix(".0") if name in self.whole else text

    def number(self, name: str) -> pl.Expr:
        """Return the column as a float; null if it is not a number."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype == pl.String:
            return column.str.strip_chars().cast(pl.Float64, strict=False)
        if dtype.is_numeric() or dtype == pl.Boolean:
            return column.cast(pl.Float64)
        return column.cast(pl.String, strict=False).cast(pl.Float64, strict=False)

    def is_absent(self, name: str) -> pl.Expr:
        """Return whether the value of the column is missing: null, NaN, blank or a null value; never null."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype.is_numeric():
            absent = column.is_null()
            if dtype.is_float():
                absent |= column.is_nan()
            numbers = [number for number in map(number_in, self.null_values) if number is not None]
            return absent | column.cast(pl.Float64).is_in(numbers) if numbers else absent
        if not isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
            return column.is_null()
        text = column.cast(pl.String)
        # What is blank begins with a space or less; to strip every text would take as long as to read it.
        blank = pl.when(text < "!").then(text).str.strip_chars() == ""
        return text.is_null() | blank.fill_null(value=False) | text.is_in(list(self.null_values))

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

    def first_value(self, name: str) -> str | None:
        """Return where the first value of a column is, and the value; None if it has none."""
        values = self.frame.select(row=pl.int_range(pl.len()), value=name, absent=self.is_absent(name))
        with data_errors(self.file):
            found = values.filter(~pl.col("absent")).head(1).collect().rows()
        return f"{self.file}, row {found[0][0] + self.first_row}: {found[0][1]!r}" if found else None

    def time_layout(self, name: str) -> str | None:
        """Return the format that reads the most values of a column of times, texts or numbers; None if there is none.

        If every date can be read as month/day and as day/month, the month comes first.
        """
        dtype = self.schema[name]
        if dtype != pl.String and not dtype.is_numeric():
            return None
        present = self.frame.filter(~self.is_absent(name)).select(name)
        with data_errors(self.file):
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
    """Open *files*, which messages call *source*; each is read from end to end, so a bad row stops here.

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
            raise DataError(f"{source} has a header but no rows; give a file with rows.")
    return tables


def with_whole_numbers(tables: Sequence[Table], columns: Iterable[str]) -> tuple[list[Table], list[str]]:
    """Return *tables* in which 17850.0 is read as 17850, and in which of *columns* it is.

    Those are the columns of ids that are whole numbers throughout, in all text files, and in one are written with a .0,
    as pandas writes integers if some are missing. Versions such as 1.0 and 1.5 are not.
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


@dataclass(frozen=True, slots=True)
class TableShape:
    """How the rows of one *table* are read.

    values    what a row becomes: expressions over the columns of the table, each with an alias
    left_out  why a row is left out: conditions over the values, in the order in which they are tried
    invalid   when the number of a row is invalid: a condition over the values
    """

    table: Table
    values: Sequence[pl.Expr]
    left_out: Mapping[str, pl.Expr]
    invalid: pl.Expr


class Rows:
    """The rows of all tables, counted, and to be scanned as often as needed.

    total     how many there are
    left_out  how many of them are left out, by reason, in the order in which the reasons are tried; zeros not listed
    facts     by name, over those that are kept; `rows` is how many they are
    """

    def __init__(
        self, shapes: Sequence[TableShape], source: str, role: str, column: str | None, *facts: pl.Expr, advice: str
    ) -> None:
        """Read all rows once; what a table has no value of is null in its rows.

        Raises DataError for the first row whose number, the *role* in *column*, is invalid, and, with *advice*, when no
        row is kept.
        """
        self._tables = [shape.table for shape in shapes]
        reasons = dict.fromkeys(reason for shape in shapes for reason in shape.left_out)
        self._reasons = {reason: number for number, reason in enumerate(reasons, start=1)}
        self._all = pl.concat([self._shaped(*numbered) for numbered in enumerate(shapes)], how="diagonal")
        with data_errors(source):
            counts = pl.len().alias("rows"), pl.col("invalid").sum()
            groups = self._all.group_by("reason").agg(*counts, *facts).collect(engine="streaming")
        if column is not None and groups.get_column("invalid").sum():
            ((place, value),) = self._cells(pl.col("invalid"), column, 1)
            raise DataError(
                f"{place}, column {column!r}: the {role} {value} is not a finite number; mend the row, remove it, or "
                f"name another {role} column."
            )
        found = {group["reason"]: group for group in groups.iter_rows(named=True)}
        self.total = int(groups.get_column("rows").sum())
        self.left_out = {reason: found[number]["rows"] for reason, number in self._reasons.items() if number in found}
        if 0 not in found:
            counted = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            raise DataError(f"Nothing is left of the {self.total:,} rows of {source}: {counted}; {advice}.")
        self.facts: dict[str, Any] = found[0]

    @property
    def kept(self) -> pl.LazyFrame:
        """The rows that are not left out: their values, and `row`, their number within their file from 0."""
        return self._all.filter(pl.col("reason") == 0).drop("file", "reason", "invalid")

    def _shaped(self, number: int, shape: TableShape) -> pl.LazyFrame:
        # In two steps, so what a value is made of is not computed again for each condition.
        rows = shape.table.frame.with_row_index("row").select("row", *shape.values)
        tried = [pl.when(found).then(pl.lit(self._reasons[reason])) for reason, found in shape.left_out.items()]
        reason = pl.coalesce(*tried, pl.lit(0)).cast(pl.UInt8)
        rows = rows.with_columns(file=pl.lit(number), reason=reason)
        return rows.with_columns(invalid=shape.invalid & (pl.col("reason") == 0))

    def examples(self, reason: str, column: str, count: int) -> list[str]:
        """Return the places and values in *column* of the first *count* rows that are left out for a *reason*."""
        found = self._cells(pl.col("reason") == self._reasons[reason], column, count)
        return [f"{place}: {value}" for place, value in found]

    def _cells(self, condition: pl.Expr, column: str, count: int) -> Iterator[tuple[str, str]]:
        """Yield where the first *count* rows that meet a *condition* are, and their values in *column*."""
        for file, row in self._all.filter(condition).select("file", "row").head(count).collect().iter_rows():
            table = self._tables[file]
            value = table.frame.slice(row, 1).select(column).collect().item()
            yield f"{table.file}, row {row + table.first_row}", repr(value)


def id_reasons(ids: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Return the reasons to leave a row out for its *ids*, values by role; one without a segment counts for all."""
    absent = {f"no {role}": pl.col(value).is_null() for role, value in ids.items() if role != "segment"}
    sizes = {f"{role} id over {MAX_ID_BYTES} bytes": pl.col(value).str.len_bytes() for role, value in ids.items()}
    return absent | {reason: size > MAX_ID_BYTES for reason, size in sizes.items()}


def read_titles(
    path: Path | None, named: Mapping[str, str | None], form: Format, rows: pl.LazyFrame, source: str
) -> dict[str, str]:
    """Return titles by item, as the file, or folder, at *path* says, or else *rows* [item, perhaps title] of *source*.

    *named* are the columns of the file by role: that of the item need not be there, and is guessed then, as both are
    if no name is given. Of several titles the most frequent counts, the first by alphabet among equals. Raises
    DataError when either column is missing or a file cannot be read.
    """
    if path is not None:
        source = str(path)
        tables = open_tables(find_files(path), form, source)
        schema = list(tables[0].schema)
        item = named.get("item") if named.get("item") in schema and not is_numbered(schema) else None
        roles = {"item": item, "title": named.get("title")}
        columns = choose_columns(roles, schema, source, guessed=roles, required=list(roles))
        tables, _ = with_whole_numbers(tables, [columns["item"]])
        texts = (table.frame.select(**{role: table.text(columns[role]) for role in roles}) for table in tables)
        rows = pl.concat(texts).drop_nulls()
    if "title" not in rows.collect_schema():
        return {}
    title = pl.col("title").str.strip_chars()
    with data_errors(source):
        titled = rows.select("item", title=title).filter(pl.col("title") != "")
        counted = titled.group_by("item", "title").len().collect(engine="streaming")
    best = counted.sort("len", "title", descending=[True, False]).unique("item", keep="first", maintain_order=True)
    return dict(zip(best.get_column("item"), best.get_column("title"), strict=True))
