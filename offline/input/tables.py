"""Tables: files of rows, opened, read in one shape and checked; rows are counted by the reason to leave them out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from hotplate.offline.errors import DataError
from hotplate.offline.input.columns import MAX_ID_BYTES, choose_columns, number_in, read_time, time_format
from hotplate.offline.input.files import DataFile, DataSource, Format, data_errors, input_files, named_paths
from hotplate.offline.input.text import SHOWN, Text, scan_text

# A whole number as pandas writes one of a column that has missing values, and as everybody else does.
_WHOLE_ID = r"^-?(?:0|[1-9]\d*)(?:\.0)?$"
# In these the format of times is looked for.
_HEAD_ROWS = 1000
# Why incomplete rows are left out.
INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Table:
    """One file to be scanned, as often as needed; a text file has only text columns, '' if a value is absent.

    first_row    the number of the first row of data in the file, from 1
    bad          the rows, from 0, that are not complete
    shown        what the first of these are
    whole        the columns of text that are whole numbers, some or all written as 17850.0
    """

    file: DataFile
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    form: Format = field(default_factory=Format)
    first_row: int = 1
    bad: Sequence[int] = ()
    shown: Sequence[str] = ()
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
        dtype, column, null_values = self.schema[name], pl.col(name), self.form.null_values
        if dtype.is_numeric():
            absent = column.is_null()
            if dtype.is_float():
                absent |= column.is_nan()
            numbers = [number for number in map(number_in, null_values) if number is not None]
            return absent | column.cast(pl.Float64).is_in(numbers) if numbers else absent
        if not isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
            return column.is_null()
        text = column.cast(pl.String)
        # What is blank begins with a space or less; to strip every text would take as long as to read it.
        blank = pl.when(text < "!").then(text).str.strip_chars() == ""
        return text.is_null() | blank.fill_null(value=False) | text.is_in(list(null_values))

    def time_format(self, name: str) -> str:
        """Return the format of a column of times, by its first values."""
        present = self.frame.filter(~self.is_absent(name)).select(name).head(_HEAD_ROWS)
        with data_errors(self.file):
            return time_format(present.collect().get_column(name), self.form.time_format)

    def time(self, name: str, layout: str) -> pl.Expr:
        """Return the column as a naive UTC time; null if it is not one of the format *layout*."""
        return read_time(name, self.schema[name], layout)


def open_tables(files: Sequence[DataFile], form: Format, source: str) -> list[Table]:
    """Open *files*, which messages call *source*; each is read from end to end, so a bad row stops here.

    Raises DataError for what cannot be read, for too many incomplete rows, and when the files differ in their columns.
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
        total = sum(table.frame.select(pl.len()).collect(engine="streaming").item() for table in tables)
    if not total:
        raise DataError(f"{source} has a header but no rows; give a file with rows.")
    shown = [each for table in tables for each in table.shown]
    refuse_bad_rows(sum(len(table.bad) for table in tables), total, shown, form.max_bad_rows, source)
    return tables


def refuse_bad_rows(bad: int, total: int, shown: Sequence[str], share: float, source: str) -> None:
    """Raise DataError if *bad* of *total* rows are more than a *share*; the message has those *shown*."""
    if bad > share * total:
        raise DataError(
            f"{'; '.join(shown[:SHOWN])}. {bad:,} of the {total:,} rows of {source} {'is' if bad == 1 else 'are'} bad, "
            f"and at most {share:.3%} may be; mend them, or raise --max-bad-rows."
        )


def read_text(path: DataSource, roles: Sequence[str], **named: str | None) -> pl.DataFrame:
    """Return columns of a small file, or folder, at *path* by role; see `text_of`."""
    with input_files([path]) as files:
        return text_of(files, named_paths([path]), roles, **named)


def text_of(files: Sequence[DataFile], source: str, roles: Sequence[str], **named: str | None) -> pl.DataFrame:
    """Return columns of *files* as text, by role: those *named*, and *roles* by their usual names.

    Rows without an item are left out. The column that is named for the item need not be there.
    """
    with data_errors(source):
        tables = open_tables(files, Format(max_bad_rows=0), source)
        available = list(tables[0].schema)
        named = named | ({} if named.get("item") in available else {"item": None})
        columns = choose_columns(named, available, source, guessed=roles, required=roles)
        tables, _ = with_whole_numbers(tables, [columns["item"]])
        order = dict.fromkeys([*roles, *columns])
        texts = (table.frame.select(**{role: table.text(columns[role]) for role in order}) for table in tables)
        return pl.concat(texts).drop_nulls("item").collect(engine="streaming")


def with_whole_numbers(tables: Sequence[Table], columns: Iterable[str]) -> tuple[list[Table], list[str]]:
    """Return *tables* in which 17850.0 is read as 17850, and in which of *columns* it is.

    Those are the columns of ids that are whole numbers throughout, in all text files, and in one begin with one that is
    written with a .0, as pandas writes integers if some are missing. Versions such as 1.0 and 1.5 are not.
    """
    whole = [name for name in dict.fromkeys(columns) if _is_whole(tables, name)]
    return [replace(table, whole=frozenset(whole)) for table in tables], whole


def _is_whole(tables: Sequence[Table], name: str) -> bool:
    texts = [table for table in tables if table.schema[name] == pl.String]
    column = pl.col(name)
    for table in texts:
        with data_errors(table.file):
            first = table.frame.filter(~table.is_absent(name)).select(column.str.ends_with(".0")).head(1).collect()
            if first.to_series().any():
                break
    else:
        return False
    for table in texts:
        with data_errors(table.file):
            if (
                table.frame.select(table.text(name).str.contains(_WHOLE_ID).not_().any())
                .collect(engine="streaming")
                .item()
            ):
                return False
    return True


def _open_table(file: DataFile, form: Format) -> Table:
    with data_errors(file):
        if file.path.stat().st_size == 0:
            raise DataError(f"{file} is empty; give a file with a header and rows.")
        is_parquet = file.kind == "parquet"
        text = Text(pl.scan_parquet(file.path, glob=False), 1) if is_parquet else scan_text(file, form)
        names = text.frame.collect_schema().names()
        frame = text.frame.with_columns(
            pl.lit(value, pl.String).alias(key) for key, value in file.keys.items() if key not in names
        )
        return Table(file, frame, dict(frame.collect_schema()), form, text.first_row, text.bad, text.shown)


@dataclass(frozen=True, slots=True)
class TableShape:
    """How the rows of one *table* are read.

    values    what a row becomes: expressions over the columns of the table, each with an alias
    left_out  why a row is left out: conditions over the values, in the order in which they are tried
    bad       of these reasons, those of bad rows: in which column, and what is wrong with its value
    """

    table: Table
    values: Sequence[pl.Expr]
    left_out: Mapping[str, pl.Expr]
    bad: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Rows:
    """The rows of all tables, counted, and to be scanned as often as needed.

    total     how many there are
    left_out  how many of them are left out, by reason, in the order in which the reasons are tried; zeros not listed
    facts     by name, over those that are kept; `rows` is how many they are
    bad       the first of the bad rows, with what is wrong with them
    """

    def __init__(
        self, shapes: Sequence[TableShape], source: str, *facts: pl.Expr, advice: str = "mend the rows"
    ) -> None:
        """Read all rows once; what a table has no value of is null in its rows.

        Raises DataError for too many bad rows, and, with *advice*, when no row is kept.
        """
        self._tables = [shape.table for shape in shapes]
        reasons = dict.fromkeys([INCOMPLETE, *(reason for shape in shapes for reason in shape.left_out)])
        self._reasons = {reason: number for number, reason in enumerate(reasons, start=1)}
        self._all = pl.concat([self._shaped(*numbered) for numbered in enumerate(shapes)], how="diagonal")
        with data_errors(source):
            groups = self._all.group_by("reason").agg(pl.len().alias("rows"), *facts).collect(engine="streaming")
        found = {group["reason"]: group for group in groups.iter_rows(named=True)}
        self.total = int(groups.get_column("rows").sum())
        self.left_out = {reason: found[number]["rows"] for reason, number in self._reasons.items() if number in found}
        faults = {reason: fault for shape in shapes for reason, fault in shape.bad.items() if reason in self.left_out}
        self.bad = [each for table in self._tables for each in table.shown]
        for reason, (column, wrong) in faults.items():
            self.bad += [f"{place}, column {column!r}: {value} {wrong}" for place, value in self.cells(reason, column)]
        count = sum(self.left_out.get(reason, 0) for reason in (INCOMPLETE, *faults))
        refuse_bad_rows(count, self.total, self.bad, shapes[0].table.form.max_bad_rows, source)
        if 0 not in found:
            counted = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            raise DataError(f"Nothing is left of the {self.total:,} rows of {source}: {counted}; {advice}.")
        self.facts: dict[str, Any] = found[0]

    @property
    def kept(self) -> pl.LazyFrame:
        """The rows that are not left out: their values, and `row`, their number within their file from 0."""
        return self._all.filter(pl.col("reason") == 0).drop("file", "reason")

    def values(self, reason: str, name: str) -> pl.DataFrame:
        """Return [value, len] of the value *name* of the rows that are left out for a *reason*, most frequent first."""
        left_out = self._all.filter(pl.col("reason") == self._reasons[reason])
        counted = left_out.group_by(value=name).len().sort("len", "value", descending=[True, False])
        return counted.collect(engine="streaming")

    def cells(self, reason: str, column: str) -> Iterator[tuple[str, str]]:
        """Yield where the first rows are that are left out for a *reason*, and their values in *column*."""
        found = self._all.filter(pl.col("reason") == self._reasons[reason]).select("file", "row").head(SHOWN)
        for file, row in found.collect().iter_rows():
            table = self._tables[file]
            value = table.frame.slice(row, 1).select(column).collect().item()
            yield f"{table.file}, row {row + table.first_row}", repr(value)

    def _shaped(self, number: int, shape: TableShape) -> pl.LazyFrame:
        # In two steps, so what a value is made of is not computed again for each condition.
        rows = shape.table.frame.with_row_index("row").select("row", *shape.values)
        left_out = dict(shape.left_out)
        if shape.table.bad:
            left_out = {INCOMPLETE: pl.col("row").is_in(list(shape.table.bad)), **left_out}
        tried = [pl.when(found).then(pl.lit(self._reasons[reason])) for reason, found in left_out.items()]
        return rows.with_columns(file=pl.lit(number), reason=pl.coalesce(*tried, pl.lit(0)).cast(pl.UInt8))


def id_reasons(ids: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Return the reasons to leave a row out for its *ids*, values by role; one without a segment counts for all."""
    absent = {f"no {role}": pl.col(value).is_null() for role, value in ids.items() if role != "segment"}
    sizes = {f"{role} id over {MAX_ID_BYTES} bytes": pl.col(value).str.len_bytes() for role, value in ids.items()}
    return absent | {reason: size > MAX_ID_BYTES for reason, size in sizes.items()}


def titles_of(rows: pl.LazyFrame, source: str) -> dict[str, str]:
    """Return titles by item, as *rows* [item, perhaps title] of *source* say.

    Of several titles the most frequent counts, the first by alphabet among equals.
    """
    if "title" not in rows.collect_schema():
        return {}
    title = pl.col("title").str.strip_chars()
    with data_errors(source):
        titled = rows.select("item", title=title).filter(pl.col("title") != "")
        counted = titled.group_by("item", "title").len().collect(engine="streaming")
    best = counted.sort("len", "title", descending=[True, False]).unique("item", keep="first", maintain_order=True)
    return dict(zip(best.get_column("item"), best.get_column("title"), strict=True))
