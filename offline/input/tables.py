"""Input rows, scanned by polars, and filters on them; rows left out are counted, bad ones shown."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from typing import Any

import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import (
    MAX_ID_BYTES,
    choose_columns,
    find_column,
    number_in,
    numbered,
    read_time,
    time_format,
)
from hotplate.offline.input.files import DataFile, DataSource, Format, data_errors, input_files, named_paths

# Columns added to a scan: the row's index in the file, and what follows its last field, if anything.
ROW = "\0row"
EXTRA = "\0extra"
_TOO_LONG = "too many fields"
# Rows shown in a message.
_SHOWN = 5
_HEAD_ROWS = 1000
_DELIMITERS = ",;\t"
_FILTER = re.compile(
    r"\s*(?P<column>[^<>=!~]*[^<>=!~\s])\s*(?P<operator>>=|<=|==|!=|!~|=|~|>|<)(?P<value>.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Table:
    """One file, scanned as often as needed. All columns of a text file are text, null for a missing value.

    frame      the columns of *schema*, ROW and EXTRA
    first_row  number of the first data row in the file, from 1
    """

    file: DataFile
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    form: Format = field(default_factory=Format)
    first_row: int = 1

    def text(self, name: str | None) -> pl.Expr:
        """Return the column as text, null for a missing or blank value; all null without a *name*.

        Whole floats lose their point, as pandas stores nullable integers as floats. Raises DataError for nested and
        binary columns.
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
            # Floats beyond 2**53 do not hold every integer.
            whole = column.is_finite() & (column == column.floor()) & (column.abs() < 2**53)
            text = pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(text)
            return pl.when(column.is_not_nan()).then(text)
        # Only texts below "!" can be blank; stripping all takes as long as reading.
        return pl.when((text >= "!") | (pl.when(text < "!").then(text).str.strip_chars() != "")).then(text)

    def number(self, name: str) -> pl.Expr:
        """Return the column as a float, null for a missing number and for any other text."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype.is_numeric() or dtype == pl.Boolean:
            return column.cast(pl.Float64).fill_nan(None)
        return column.cast(pl.String, strict=False).str.strip_chars().cast(pl.Float64, strict=False)

    def is_absent(self, name: str) -> pl.Expr:
        """Return whether the value is null, NaN or blank; never null."""
        dtype = self.schema[name]
        has_text = dtype.is_float() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
        return (self.text(name) if has_text else pl.col(name)).is_null()

    def time(self, name: str) -> pl.Expr:
        """Return the column as a naive UTC time, null if not in the format of the first rows, or in the one given."""
        layout = self.form.time_format
        if layout is None:
            with data_errors(self.file):
                present = self.frame.filter(~self.is_absent(name)).select(name).head(_HEAD_ROWS).collect()
                layout = time_format(present.get_column(name))
        return read_time(name, self.schema[name], layout)

    def cells(self, rows: Sequence[int], column: str) -> Iterator[tuple[str, object]]:
        """Yield the place and the value of a *column* in some *rows*."""
        found = self.frame.filter(pl.col(ROW).is_in(rows)).select(ROW, column).collect(engine="streaming")
        for row, value in found.sort(ROW).iter_rows():
            yield f"{self.file}, row {row + self.first_row}", value


def open_tables(files: Sequence[DataFile], form: Format) -> list[Table]:
    """Open *files* as tables; raises DataError if they are unreadable or columns differ."""
    tables = [_open(file, form) for file in files]
    for table in tables[1:]:
        if set(table.schema) != set(tables[0].schema):
            raise DataError(
                f"{table.file} has the columns {', '.join(table.schema)}, but {tables[0].file} has "
                f"{', '.join(tables[0].schema)}; files that are read together must have the same columns."
            )
    return tables


def _open(file: DataFile, form: Format) -> Table:
    with data_errors(file):
        if file.kind == "parquet":
            frame, first_row = pl.scan_parquet(file.path, glob=False, row_index_name=ROW), 1
        else:
            frame, first_row = _scan_text(file, form)
        names = frame.collect_schema().names()
        added = {key: value for key, value in {**file.keys, EXTRA: None}.items() if key not in names}
        frame = frame.with_columns(pl.lit(value, pl.String).alias(key) for key, value in added.items())
        schema = {name: dtype for name, dtype in frame.collect_schema().items() if name not in (ROW, EXTRA)}
        return Table(file, frame, schema, form, first_row)


def _scan_text(file: DataFile, form: Format) -> tuple[pl.LazyFrame, int]:
    head = pl.scan_lines(file.path, glob=False).head(1).collect().to_series()
    first = str(head[0]).removeprefix("\ufeff") if len(head) else ""
    if not len(head):
        raise DataError(f"{file} is empty; give a file with a header and rows.")
    if "\r" in first:
        raise DataError(f"{file} has lines that end with CR alone; convert it: tr '\\r' '\\n'.")
    if first.lstrip().startswith("{"):
        return _scan_json(file), 1
    how: dict[str, Any] = {"separator": _separator(first, form.delimiter), "has_header": form.header, "glob": False}
    names = pl.scan_csv(file.path, infer_schema=False, **how).collect_schema().names()
    frame = pl.scan_csv(
        file.path,
        schema=dict.fromkeys([*(names if form.header else numbered(len(names))), EXTRA], pl.String()),
        null_values=list(form.null_values),
        extra_columns="ignore",
        missing_columns="insert",
        row_index_name=ROW,
        **how,
    )
    return frame, 1 + form.header


def _separator(first: str, delimiter: str | None) -> str:
    if delimiter is None:
        return max(_DELIMITERS, key=first.count)
    separator = "\t" if delimiter in ("\\t", "tab") else delimiter
    if len(separator) != 1 or not separator.isascii():
        raise SettingError(f"The delimiter {delimiter!r} cannot be used; give one ASCII character, such as ; or \\t.")
    return separator


def _scan_json(file: DataFile) -> pl.LazyFrame:
    # polars reads half a surrogate pair as NUL, which would merge ids.
    escaped = pl.col("line").str.replace_all(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "")
    lines = pl.scan_lines(file.path, row_index_name=ROW, glob=False)
    halves = lines.filter(escaped.str.contains(r"\\u[dD][89a-fA-F]")).select(ROW).head(1).collect(engine="streaming")
    if halves.height:
        raise DataError(f"{file}, row {halves.item() + 1}: half a surrogate pair, which is not a character.")
    path = escape(str(file.path))  # polars takes names with [, * and ? for patterns
    try:
        # Keys may appear late; numbers keep their text.
        schema = pl.scan_ndjson(path, infer_schema_length=None).collect_schema()
    except pl.exceptions.PolarsError as error:
        each = lines.collect().iter_rows()
        bad = next((row for row, line in each if line.strip() and not _is_object(line)), None)
        if bad is None:
            raise
        raise DataError(f'{file}, row {bad + 1}: not a JSON object such as {{"user": 1, "item": 2}}.') from error
    texts = {name: dtype if dtype.is_nested() else pl.String() for name, dtype in schema.items()}
    return pl.scan_ndjson(path, schema=texts, row_index_name=ROW)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class TableShape:
    """How to read the rows of a *table*.

    values    aliased expressions over the table's columns
    left_out  conditions over the values by reason, tried in this order
    bad       for reasons that make a row bad: its column, and the fault
    """

    table: Table
    values: Sequence[pl.Expr]
    left_out: Mapping[str, pl.Expr]
    bad: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Rows:
    """The rows of several tables.

    total     number of rows
    left_out  number of rows left out by reason, without zeros
    facts     aggregates over the rows kept; `rows` is their number
    notes     a sentence that shows the first bad rows, if any
    """

    def __init__(
        self, shapes: Sequence[TableShape], source: str, *facts: pl.Expr, repeated: Sequence[str] = ()
    ) -> None:
        """Count all rows; text columns in *repeated* become categories, and the rows stay in memory.

        Raises DataError for too many bad rows, and if no row is kept.
        """
        self._shapes = shapes
        reasons = dict.fromkeys([_TOO_LONG, *(reason for shape in shapes for reason in shape.left_out)])
        self._numbers = {reason: number for number, reason in enumerate(reasons, start=1)}
        self._all = pl.concat([self._shaped(*numbered, repeated) for numbered in enumerate(shapes)], how="diagonal")
        with data_errors(source):
            if repeated:
                self._all = self._all.collect(engine="streaming").lazy()
            groups = self._all.group_by("reason").agg(pl.len().alias("rows"), *facts).collect(engine="streaming")
        found = {group["reason"]: group for group in groups.iter_rows(named=True)}
        self.total = sum(group["rows"] for group in found.values())
        if not self.total:
            raise DataError(f"{source} has a header but no rows; give a file with rows.")
        self.left_out = {reason: found[number]["rows"] for reason, number in self._numbers.items() if number in found}
        bad = self._bad_rows(source)
        self.notes = [f"bad rows are left out: {'; '.join(bad)}"] if bad else []
        if 0 not in found:
            counted = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            raise DataError(f"Nothing is left of the {self.total:,} rows of {source}: {counted}.")
        self.facts: dict[str, Any] = found[0]

    @property
    def kept(self) -> pl.LazyFrame:
        """The values and ROW of the rows kept."""
        return self._all.filter(pl.col("reason") == 0).drop("file", "reason")

    def values(self, reason: str, name: str) -> pl.Series:
        """Return the values of *name* in rows left out for *reason*, most frequent first."""
        counted = self._only(reason).group_by(value=pl.col(name).cast(pl.String)).len()
        return counted.sort("len", "value", descending=[True, False]).collect(engine="streaming").get_column("value")

    def _bad_rows(self, source: str) -> list[str]:
        shown, count = list[str](), 0
        bad = {_TOO_LONG: (EXTRA, "stands after the last field")}
        for reason, (column, wrong) in {
            **bad,
            **{key: at for shape in self._shapes for key, at in shape.bad.items()},
        }.items():
            count += self.left_out.get(reason, 0)
            if reason in self.left_out:
                first = self._only(reason).select("file", ROW).head(_SHOWN).collect()
                for (file,), rows in first.group_by("file", maintain_order=True):
                    for place, value in self._shapes[file].table.cells(rows.get_column(ROW).to_list(), column):
                        at = "" if column == EXTRA else f", column {column!r}"
                        shown.append(f"{place}{at}: {value!r:.80} {wrong}")
        share = self._shapes[0].table.form.max_bad_rows
        if count > share * self.total:
            raise DataError(
                f"{'; '.join(shown[:_SHOWN])}. {count:,} of the {self.total:,} rows of {source} "
                f"{'is' if count == 1 else 'are'} bad, and at most {share:.3%} may be; mend them"
                f"{', or raise --max-bad-rows' if share else ''}."
            )
        return shown

    def _only(self, reason: str) -> pl.LazyFrame:
        return self._all.filter(pl.col("reason") == self._numbers[reason])

    def _shaped(self, number: int, shape: TableShape, repeated: Sequence[str]) -> pl.LazyFrame:
        # In steps, as polars would compute the values for each condition.
        rows = shape.table.frame.select(ROW, pl.col(EXTRA).is_not_null(), *shape.values)
        left_out = {_TOO_LONG: pl.col(EXTRA), **shape.left_out}
        tried = [pl.when(found).then(pl.lit(self._numbers[reason])) for reason, found in left_out.items()]
        marked = rows.with_columns(file=pl.lit(number, pl.UInt16), reason=pl.coalesce(*tried, pl.lit(0)).cast(pl.UInt8))
        names = marked.collect_schema().names()
        alike = [pl.col(name).cast(pl.Categorical) for name in repeated if name in names]
        return marked.drop(EXTRA, *(name for name in left_out if name in names)).with_columns(alike)


def read_text(path: DataSource, roles: Sequence[str], **named: str | None) -> pl.DataFrame:
    """Return columns of a small file or folder as `text_of`."""
    with input_files([path]) as files:
        return text_of(files, named_paths([path]), roles, **named)


def text_of(files: Sequence[DataFile], source: str, roles: Sequence[str], **named: str | None) -> pl.DataFrame:
    """Return columns of *files* as text, by role: those *named*, and *roles* by their usual names.

    Rows without an item are left out. The item's column may be missing. Raises DataError for a bad row.
    """
    tables = open_tables(files, Format(max_bad_rows=0))
    available = list(tables[0].schema)
    named = named | ({} if named.get("item") in available else {"item": None})
    columns = choose_columns(named, available, source, guessed=roles, required=roles)
    order = dict.fromkeys([*roles, *columns])
    missing = {"no item": pl.col("item").is_null()}
    shapes = [TableShape(table, [table.text(columns[role]).alias(role) for role in order], missing) for table in tables]
    with data_errors(source):
        return Rows(shapes, source).kept.drop(ROW).collect(engine="streaming")


def id_reasons(ids: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Return conditions to leave a row out for its *ids*, values by role."""
    absent = {f"no {role}": pl.col(value).is_null() for role, value in ids.items() if role != "segment"}
    sizes = {f"{role} id over {MAX_ID_BYTES} bytes": pl.col(value).str.len_bytes() for role, value in ids.items()}
    return absent | {reason: size > MAX_ID_BYTES for reason, size in sizes.items()}


def titles_of(rows: pl.LazyFrame, source: str) -> dict[str, str]:
    """Return the most frequent title of each item in *rows* [item, perhaps title]; ties by alphabet."""
    if "title" not in rows.collect_schema():
        return {}
    title = pl.col("title").cast(pl.String).str.strip_chars()
    with data_errors(source):
        counted = rows.group_by("item", "title").agg(pl.len()).collect(engine="streaming")
    plain = counted.with_columns(title, pl.col("item").cast(pl.String)).filter(pl.col("title") != "")
    ranked = plain.group_by("item", "title").agg(pl.col("len").sum()).sort("len", "title", descending=[True, False])
    best = ranked.unique("item", keep="first", maintain_order=True)
    return dict(zip(best.get_column("item"), best.get_column("title"), strict=True))


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on rows; *text* is its original spelling."""

    text: str
    column: str
    operator: str
    value: str

    def expression(self, table: Table) -> pl.Expr:
        """Return the condition over the columns of *table*, never null.

        A missing value counts as an empty text, and meets no comparison of size. Raises DataError for a missing column.
        """
        name = find_column(self.column, list(table.schema), f"filter {self.text!r}", str(table.file))
        text, own_number, number = table.text(name), table.number(name), number_in(self.value)
        if self.operator in {"~", "!~"}:
            matches = text.str.contains(self.value).fill_null(value=False)
            return matches if self.operator == "~" else ~matches
        if self.operator in {"=", "!="}:
            # As numbers, 2.5 equals 2.50.
            as_number = number is not None and table.schema[name].is_numeric()
            same = own_number.eq_missing(number) if as_number else text.fill_null("") == self.value
            return same if self.operator == "=" else ~same
        if number is not None:
            side, bound = own_number, pl.lit(number)
        else:
            side, bound = pl.when(text.str.contains(r"^\d")).then(text), pl.lit(self.value)
        compared = {">": side > bound, ">=": side >= bound, "<": side < bound, "<=": side <= bound}[self.operator]
        return compared.fill_null(value=False)


def parse_filter(text: str) -> Filter:
    """Parse a column, one of `= != > >= < <= ~ !~`, and a value.

    `~` searches with a regular expression; comparisons of size need a number, or a text that begins with a digit
    (dates). Raises SettingError for anything else.
    """
    parts = _FILTER.fullmatch(text)
    if parts is None:
        raise SettingError(
            f"The filter {text!r} cannot be read; write a column, one of = != > >= < <= ~ !~, and a value: quantity>0."
        )
    operator = "=" if parts["operator"] == "==" else parts["operator"]
    value = parts["value"].strip()
    if operator in {"~", "!~"}:
        try:
            pl.select(pl.lit("").str.contains(value))
        except pl.exceptions.ComputeError as error:
            raise SettingError(f"The filter {text!r} has a regular expression that cannot be read.") from error
    elif operator not in {"=", "!="} and number_in(value) is None and not value[:1].isdigit():
        raise SettingError(f"The filter {text!r} compares with {value!r}, which is neither a number nor a date.")
    return Filter(text, parts["column"], operator, value)
