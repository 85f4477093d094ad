"""Input rows, scanned by polars, and filters on them; rows left out are counted, bad ones shown.

A `Table` is one file. A `RowSchema` declares which values its columns become and which rows are left out, and `Rows`
reads the tables of one input by their schemas. A *bad row* cannot be read; few are tolerated (`Format.max_bad_rows`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from glob import escape
from io import BytesIO
from math import inf
from typing import Any, NamedTuple

import orjson
import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import (
    DECIMAL_COMMA,
    NULL_VALUES,
    NUMBERED,
    choose_columns,
    find_column,
    number_in,
    read_time,
    time_format,
)
from hotplate.offline.input.faults import SEPARATOR_LINE, check_text, data_errors
from hotplate.offline.input.files import DataFile, DataSource, input_files, named_paths
from hotplate.offline.options import Format
from hotplate.stores.encoding import MAX_ID_BYTES
from hotplate.stores.event_log import SegmentReader

# Columns added to a scan: the row's index, and its malformed part, if any: fields after the last, or a line not JSON.
ROW = "\0row"
EXTRA = "\0extra"
_MALFORMED_ROW = "malformed row"
_MOST_ROWS_SHOWN = 5
_HEAD_ROWS = 1000
_DELIMITERS = ",;\t"
# Floats from 2**53 on, and what spreadsheets make of long numbers.
_ROUNDED_PATTERN = r"^-?(\d(\.\d+)?[eE]\+\d{2,}|(9\d{15}|\d{17,})\.0)$"
_ROUNDED_FAULT = "is a rounded number, so different ids may have become one; write ids as whole numbers or texts"
NOT_FINITE = "is not a finite number"
# The number of a row's reason to be left out.
_KEPT_ROW = 0
_UUID_BYTES = 16
_UUID_PATTERN = "^(.{8})(.{4})(.{4})(.{4})(.{12})$"
_FIELD = r'(?:"(?:[^"]|"")*"|[^"\t]*)'
_QUOTED_LINE_PATTERN = rf"^\ufeff?{_FIELD}(?:\t{_FIELD})*\r?$"
_FILTER_PATTERN = re.compile(r"\s*([^<>=!~]*[^<>=!~\s])\s*(>=|<=|==|!=|!~|=|~|>|<)(.*)", re.DOTALL)
_COMPARISONS = {
    "=": pl.Expr.eq_missing, "==": pl.Expr.eq_missing, "!=": pl.Expr.ne_missing,
    ">": pl.Expr.gt, ">=": pl.Expr.ge, "<": pl.Expr.lt, "<=": pl.Expr.le,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """One file. All columns of a text file are text, null for a missing value.

    frame            the columns of *schema*, ROW and EXTRA
    first_row        number of the first data row in the file, from 1
    malformed_fault  what is wrong with malformed rows, those with a value of EXTRA, as the end of a sentence
    """

    file: DataFile
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    form: Format = field(default_factory=Format)
    first_row: int = 1
    malformed_fault: str = ""

    def text(self, name: str | None) -> pl.Expr:
        """Return an expression for the column *name* as text, null for a missing or blank value; null without a name.

        Whole floats lose their point, as pandas writes integers with missing values as floats. Raises DataError for
        nested and binary columns.
        """
        if name is None:
            return pl.lit(None, dtype=pl.String)
        dtype = self.schema[name]
        column = pl.col(name)
        if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
            raise DataError(f"The column {name!r} of {self.file} holds {dtype}, which is not a text; name another.")
        if dtype.is_float():
            return _text_of_float(column)
        text = column.cast(pl.String)
        if isinstance(dtype, pl.Decimal) and dtype.scale:
            return text.str.replace(r"\.0+$", "")
        # Blank texts sort before "!". Only texts that do are stripped, as stripping all takes as long as reading.
        is_after_blanks = text >= "!"
        stripped = pl.when(~is_after_blanks).then(text).str.strip_chars()
        return pl.when(is_after_blanks | (stripped != "")).then(text)

    def number(self, name: str) -> pl.Expr:
        """Return the column as a float, null for a missing number and for any other text."""
        dtype = self.schema[name]
        column = pl.col(name)
        if dtype.is_numeric() or dtype == pl.Boolean:
            return column.cast(pl.Float64).fill_nan(None)
        return column.cast(pl.String, strict=False).str.strip_chars().cast(pl.Float64, strict=False)

    def is_absent(self, name: str) -> pl.Expr:
        """Return whether the value is null, NaN or blank; never null."""
        dtype = self.schema[name]
        if dtype.is_float() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
            return self.text(name).is_null()
        return pl.col(name).is_null()

    def number_or_inf(self, name: str) -> pl.Expr:
        """Return the column as a float, null for a missing value, inf for what is no number."""
        number = self.number(name).fill_null(inf).fill_nan(inf)
        return pl.when(~self.is_absent(name)).then(number)

    def time(self, name: str) -> pl.Expr:
        """Return the column as a naive UTC time, null if not in the format of the first rows, or in the one given."""
        layout = self.form.time_format
        if layout is None:
            with data_errors(self.file, [self.file]):
                present = self.frame.filter(~self.is_absent(name)).select(name).head(_HEAD_ROWS).collect()
                layout = time_format(present.get_column(name))
        return read_time(name, self.schema[name], layout)

    def describe_rows(self, rows: Sequence[int], column: str, fault: str = "") -> list[str]:
        """Return a sentence for each of *rows*: file, row number, column, the value in it, and *fault*.

        *rows* are indices from 0 in `frame`, as its column ROW; *fault* is the end of a sentence, such as `is not a
        finite number`.
        """
        place = "" if column == EXTRA else f", column {column!r}"
        values = self.frame.filter(pl.col(ROW).is_in(rows)).select(ROW, column).collect(engine="streaming").sort(ROW)
        sentences = list[str]()
        for row, value in values.iter_rows():
            advice = _advice_on_number(value, fault)
            sentences.append(f"{self.file}, row {row + self.first_row}{place}: {value!r:.80} {fault}{advice}".rstrip())
        return sentences


def _text_of_float(column: pl.Expr) -> pl.Expr:
    """Return floats as texts, null for NaN; whole ones below 2**53, where floats hold every integer, have no point."""
    is_whole = column.is_finite() & (column == column.floor()) & (column.abs() < 2**53)
    whole = column.cast(pl.Int64, strict=False).cast(pl.String)
    text = pl.when(is_whole).then(whole).otherwise(column.cast(pl.String))
    return pl.when(column.is_not_nan()).then(text)


def _advice_on_number(value: object, fault: str) -> str:
    """Return advice on a text with a decimal comma that should be a number, else an empty text."""
    if not isinstance(value, str) or not fault.endswith("number"):
        return ""
    return " (write a decimal point)" if re.match(DECIMAL_COMMA, value.strip()) else ""


def open_tables(files: Sequence[DataFile], form: Format) -> list[Table]:
    """Open *files* as tables; raises DataError if they are unreadable or columns differ."""
    first, *others = tables = [_open_table(file, form) for file in files]
    for table in others:
        if table.schema.keys() != first.schema.keys():
            raise DataError(
                f"{table.file} has the columns {', '.join(table.schema)}, but {first.file} has "
                f"{', '.join(first.schema)}; files that are read together must have the same columns."
            )
    return tables


def _open_table(file: DataFile, form: Format) -> Table:
    """Open one Parquet, JSON lines or CSV file as a table: its columns are known, its rows are read later.

    The frame also has ROW, the index of a row, and EXTRA, null unless the row is malformed. Raises DataError for a file
    of another kind, and one that cannot be read.
    """
    if file.kind == "text":
        check_text(file)
    with data_errors(file, [file]):
        scan = _scan_file(file, form)
        frame = _with_constants(scan.frame, {**file.keys, EXTRA: None})
        schema = {name: dtype for name, dtype in frame.collect_schema().items() if name not in (ROW, EXTRA)}
        _check_schema(file, schema)
        return Table(
            file=file,
            frame=frame,
            schema=schema,
            form=form,
            first_row=scan.first_row,
            malformed_fault=scan.malformed_fault,
        )


def _with_constants(frame: pl.LazyFrame, values: Mapping[str, str | None]) -> pl.LazyFrame:
    """Add a column with the same text, or null, in all rows for each of *values*, unless *frame* has the column."""
    names = frame.collect_schema().names()
    return frame.with_columns(
        pl.lit(value, pl.String).alias(name) for name, value in values.items() if name not in names
    )


def _check_schema(file: DataFile, schema: Mapping[str, pl.DataType]) -> None:
    """Raise DataError for a file without columns, and for JSON that is one object with the rows inside."""
    if not schema:
        raise DataError(f'{file} has no columns, and no JSON object such as {{"user": 1, "item": 2}} on a line.')
    nested = [name for name, dtype in schema.items() if dtype == pl.List(pl.Struct)]
    if file.kind == "text" and len(schema) == len(nested) == 1:
        raise DataError(
            f"{file} is one JSON object with the rows in {nested[0]!r}; write one row a line: "
            f"jq -c '.{nested[0]}[]' {file.path.name} > lines.jsonl."
        )


class _Scan(NamedTuple):
    """The frame of a `Table`, perhaps without EXTRA, and without columns of folders; the others are the table's."""

    frame: pl.LazyFrame
    first_row: int = 1
    malformed_fault: str = ""


def _scan_file(file: DataFile, form: Format) -> _Scan:
    """Scan Parquet, JSON lines or CSV; a text that begins with a brace is JSON.

    Excel may write a first line such as `sep=;` to CSV: it names the delimiter, unless *form* has one, and is skipped.
    """
    if file.kind == "parquet":
        frame = pl.scan_parquet(file.path, glob=False, row_index_name=ROW)
        return _Scan(_decode_binary_columns(frame))

    head = pl.scan_lines(file.path, glob=False).head(2).collect().to_series()
    first, second = [*head, "", ""][:2]
    first = first.removeprefix("\ufeff")
    if first.lstrip().startswith("{"):
        return _Scan(_scan_json(file), malformed_fault="is not a JSON object")

    separator_line = SEPARATOR_LINE.match(first)
    if separator_line is None:
        return _scan_csv(file, form, first=first, delimiter=form.delimiter, skipped=0)
    return _scan_csv(file, form, first=second, delimiter=form.delimiter or separator_line[1], skipped=1)


def _scan_csv(file: DataFile, form: Format, *, first: str, delimiter: str | None, skipped: int) -> _Scan:
    """Scan a CSV file whose *first* line, a header or data, comes after *skipped* ones; all columns are texts.

    Without a *delimiter*, it is the most frequent one of the first line. Without a header, columns are numbered. A line
    with more fields than the header is malformed: the first surplus field is in EXTRA, which is null in other rows.
    """
    separator = _csv_separator(first, delimiter)
    has_quotes = separator != "\t" or _has_quoted_fields(file, first)
    scan = partial(
        pl.scan_csv,
        file.path,
        separator=separator,
        quote_char='"' if has_quotes else None,
        has_header=form.header,
        skip_lines=skipped,
        glob=False,
    )
    names = scan(infer_schema=False).collect_schema().names()
    rows_before_data = skipped
    if form.header:
        rows_before_data += 1
    else:
        names = [f"{NUMBERED}{number}" for number in range(1, len(names) + 1)]

    # EXTRA is a column after the last: missing in most lines, and read from those with more fields.
    frame = scan(
        schema=dict.fromkeys([*names, EXTRA], pl.String()),
        null_values=list(NULL_VALUES),
        extra_columns="ignore",
        missing_columns="insert",
        row_index_name=ROW,
    )
    return _Scan(frame, first_row=rows_before_data + 1, malformed_fault="stands after the last field")


def _decode_binary_columns(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return *frame* with binary columns as texts if their first values are UTF-8 texts, or 16 bytes as in UUIDs.

    Some writers do not mark texts in Parquet as such, and polars then reads bytes. Other binary columns stay; they are
    an error only if they are used.
    """
    names = [name for name, dtype in frame.collect_schema().items() if dtype == pl.Binary]
    if not names:
        return frame
    head = frame.select(names).head(_HEAD_ROWS).collect()
    texts = list[pl.Expr]()
    for name in names:
        values = head.get_column(name).drop_nulls()
        if all(map(_is_printable_text, values)):
            texts.append(pl.col(name).cast(pl.String))
        elif (values.bin.size() == _UUID_BYTES).all():
            texts.append(pl.col(name).bin.encode("hex").str.replace(_UUID_PATTERN, "$1-$2-$3-$4-$5").alias(name))
    return frame.with_columns(texts)


def _is_printable_text(value: bytes) -> bool:
    """Return whether the bytes are printable UTF-8."""
    try:
        return value.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _has_quoted_fields(file: DataFile, first: str) -> bool:
    """Return whether quotes in a tab-separated file enclose fields; else they are part of the text, as in 5" disk.

    *first* is the first line. Doubtful lines are those with quotes that do not enclose whole fields. Such a line may be
    a piece of a quoted field with line breaks, and then has fewer tabs than the first line. If most doubtful lines have
    as many tabs, their quotes are text.
    """
    if first.startswith('"'):
        return True
    line = pl.col("line")
    is_doubtful = line.str.contains('"', literal=True) & ~line.str.contains(_QUOTED_LINE_PATTERN)
    is_complete = line.str.count_matches("\t", literal=True) == first.count("\t")
    doubtful_lines = pl.scan_lines(file.path, glob=False).filter(is_doubtful)
    complete_share = doubtful_lines.select(is_complete.mean()).collect(engine="streaming").item()
    return complete_share is None or complete_share <= 0.5


def _csv_separator(first: str, delimiter: str | None) -> str:
    """Return the separator of CSV: *delimiter*, or the most frequent one in the *first* line; raises SettingError.

    A bar counts only in a line without any other delimiter, as texts such as genres have bars.
    """
    if delimiter is None:
        is_among_bars = "|" in first and not any(map(first.count, _DELIMITERS))
        return "|" if is_among_bars else max(_DELIMITERS, key=first.count)
    separator = "\t" if delimiter in ("\\t", "tab") else delimiter
    if len(separator) != 1 or not separator.isascii():
        raise SettingError(f"The delimiter {delimiter!r} cannot be used; give one ASCII character, such as ; or \\t.")
    return separator


def _scan_json(file: DataFile) -> pl.LazyFrame:
    """Scan a file with a JSON object per line; malformed lines become objects with the line as EXTRA.

    polars refuses the whole file for a malformed line, and reads half a surrogate pair as NUL, which would merge ids.
    In such files, each line is checked by orjson first, which takes longer.
    """
    lines = pl.scan_lines(file.path, glob=False)
    without_whole_pairs = pl.col("line").str.replace_all(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "")
    has_half_pair = without_whole_pairs.str.contains(r"\\u[dD][89a-fA-F]")
    if lines.filter(has_half_pair).head(1).collect(engine="streaming").is_empty():
        try:
            return _scan_objects(escape(str(file.path)))  # polars takes names with [, * and ? for patterns
        except pl.exceptions.PolarsError:
            pass  # a malformed line
    checked_lines = map(_checked_json_line, lines.collect().to_series())
    return _scan_objects(BytesIO(b"\n".join(checked_lines)))


def _scan_objects(source: str | BytesIO) -> pl.LazyFrame:
    """Scan JSON lines, with numbers as texts; all lines tell the schema, as keys may appear late."""
    schema = pl.scan_ndjson(source, infer_schema_length=None).collect_schema()
    texts = {name: dtype if dtype.is_nested() else pl.String() for name, dtype in schema.items()}
    return pl.scan_ndjson(source, schema=texts, row_index_name=ROW)


def _checked_json_line(line: str) -> bytes:
    """Return a *line* of JSON, or an object with a malformed one as EXTRA."""
    line = line.removeprefix("\ufeff")
    try:
        is_object = not line.strip() or isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        is_object = False
    return line.encode() if is_object else orjson.dumps({EXTRA: line})


class Fault(NamedTuple):
    """The fault of the values of a *column* in bad rows, as the end of a sentence: `is not a finite number`."""

    column: str
    text: str


@dataclass(slots=True)
class RowSchema:
    """How to read the rows of a *table*: a value for each name, and reasons to leave a row out, the first one first.

    values     expressions over the table's columns, by name: what is read
    filters    conditions over the table's columns that a row must meet, by the reason to leave others out
    left_out   conditions over the values, by the reason to leave a row out that meets one, such as `no user`
    bad        faults by reason, for rows that cannot be read; too many of them are an error
    examples   by reason, the name of the value that explains it: the error if nothing is left names frequent ones
    """

    table: Table
    values: dict[str, pl.Expr] = field(default_factory=dict)
    filters: dict[str, pl.Expr] = field(default_factory=dict)
    left_out: dict[str, pl.Expr] = field(default_factory=dict)
    bad: dict[str, Fault] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add_number(self, name: str, column: str, *, missing: str, invalid: str) -> None:
        """Read *column* as the number *name*.

        Rows without one are left out for the reason *missing*; another text makes a bad row, for the reason *invalid*.
        """
        self.values[name] = self.table.number_or_inf(column)
        self.left_out[missing] = pl.col(name).is_null()
        self.leave_out_bad(invalid, pl.col(name).is_infinite(), Fault(column, NOT_FINITE))

    def leave_out_bad(self, reason: str, condition: pl.Expr, fault: Fault) -> None:
        """Leave rows out as bad."""
        self.left_out[reason] = condition
        self.bad[reason] = fault

    def leave_out_bad_ids(self, columns: Mapping[str, str], values: Mapping[str, str] | None = None) -> None:
        """Leave out rows whose ids are missing, too long, or numbers that were rounded.

        *columns* are the table's columns of ids by role, such as user or item, for messages. *values* are the names of
        the ids in `values`, by role; by default the roles. A segment may be missing. Rounded ids make bad rows.
        """
        value_names = values or {role: role for role in columns}
        ids = {role: pl.col(value_names[role]) for role in columns}
        # A row counts for the first reason that applies: missing ids of all roles first.
        for role, identifier in ids.items():
            if role != "segment":
                self.left_out[f"no {role}"] = identifier.is_null()
        for role, identifier in ids.items():
            self.left_out[f"{role} id over {MAX_ID_BYTES} bytes"] = identifier.str.len_bytes() > MAX_ID_BYTES
        for role, identifier in ids.items():
            fault = Fault(columns[role], _ROUNDED_FAULT)
            self.leave_out_bad(f"{role} id that was rounded", identifier.str.contains(_ROUNDED_PATTERN), fault)


class Rows:
    """The rows of several tables.

    left_out  number of rows left out by reason, without zeros
    facts     aggregates over the rows kept; `rows` is their number
    notes     a sentence with the first bad rows, if any
    """

    def __init__(
        self, schemas: Sequence[RowSchema], source: str, *facts: pl.Expr, repeated: Sequence[str] = ()
    ) -> None:
        """Count rows, kept in memory with *repeated* texts as categories; DataError for too many bad rows, or none."""
        self._schemas = schemas
        reasons = {_MALFORMED_ROW: None}
        for schema in schemas:
            reasons |= dict.fromkeys([*schema.filters, *schema.left_out])
        self._numbers = {reason: number for number, reason in enumerate(reasons, start=_KEPT_ROW + 1)}
        marked = [self._mark_rows(schema, file, repeated) for file, schema in enumerate(schemas)]
        self._all = pl.concat(marked, how="diagonal")
        with data_errors(source, [schema.table.file for schema in schemas]):
            if repeated:
                self._all = self._all.collect(engine="streaming").lazy()
            counted = self._all.group_by("reason").agg(pl.len().alias("rows"), *facts).collect(engine="streaming")
        groups = {group["reason"]: group for group in counted.iter_rows(named=True)}
        self.total = sum(group["rows"] for group in groups.values())
        self.left_out = {reason: groups[number]["rows"] for reason, number in self._numbers.items() if number in groups}
        bad_rows = self._check_bad_rows(source)
        self.notes = [f"bad rows are left out: {'; '.join(bad_rows)}"] if bad_rows else []
        if _KEPT_ROW not in groups:
            raise self._nothing_left_error(source)
        self.facts: dict[str, Any] = groups[_KEPT_ROW]

    @property
    def kept(self) -> pl.LazyFrame:
        """The values and ROW of the rows kept."""
        return self._all.filter(pl.col("reason") == _KEPT_ROW).drop("file", "reason")

    def values(self, reason: str, name: str) -> pl.Series:
        """Return the values of *name* in rows left out for *reason*, most frequent first."""
        counted = self._rows_left_out(reason).group_by(value=pl.col(name).cast(pl.String)).len()
        return counted.sort("len", "value", descending=[True, False]).collect(engine="streaming").get_column("value")

    def _nothing_left_error(self, source: str) -> DataError:
        """Return the error for an input (*source*) without rows, or of which all were left out.

        It names the reasons with their numbers of rows (`left_out`). For some reasons, the schemas name a value as an
        example, such as the event of rows with an unknown event: its most frequent values are named, too.
        """
        if not self.total:
            return DataError(f"{source} has no rows, or a header alone.")

        counts = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        examples = ""
        for reason, value_name in self._schemas[0].examples.items():
            if reason in self.left_out:
                frequent_values = self.values(reason, value_name).head(_MOST_ROWS_SHOWN)
                values = ", ".join(f"{value!r:.80}" for value in frequent_values)
                examples += f"; the most frequent {reason}s are {values}"
        return DataError(f"Nothing is left of the {self.total:,} rows of {source}: {counts}{examples}.")

    def _check_bad_rows(self, source: str) -> list[str]:
        """Return sentences on the first bad rows for each reason; DataError if their share of all rows is too large.

        `left_out` are the numbers of rows left out by reason. Bad rows are those that cannot be read: malformed ones,
        and those for whose reason a schema has a fault. *source* names the input.
        """
        faults: dict[str, Fault | None] = {_MALFORMED_ROW: None}
        for schema in self._schemas:
            faults |= schema.bad

        sentences = list[str]()
        bad_rows = 0
        for reason, count in self.left_out.items():
            if reason in faults:
                bad_rows += count
                sentences += self._describe_bad_rows(reason, faults[reason])

        allowed_share = self._schemas[0].table.form.max_bad_rows
        if bad_rows > allowed_share * self.total:
            are = "is" if bad_rows == 1 else "are"
            way_out = ", or raise --max-bad-rows" if allowed_share else ""
            raise DataError(
                f"{'; '.join(sentences[:_MOST_ROWS_SHOWN])}. {bad_rows:,} of the {self.total:,} rows of {source} {are} "
                f"bad, and at most {allowed_share:.3%} may be; mend them{way_out}."
            )
        return sentences

    def _describe_bad_rows(self, reason: str, fault: Fault | None) -> list[str]:
        """Return sentences on the first rows left out for *reason*, with their file, row number, value and fault.

        A malformed row, which has no *fault*, has that of its table: too many fields, or no JSON object.
        """
        sentences = list[str]()
        first = self._rows_left_out(reason).select("file", ROW).head(_MOST_ROWS_SHOWN).collect()
        for (file,), rows in first.group_by("file", maintain_order=True):
            table = self._schemas[file].table
            column, text = fault or Fault(EXTRA, table.malformed_fault)
            sentences += table.describe_rows(rows.get_column(ROW).to_list(), column, text)
        return sentences

    def _rows_left_out(self, reason: str) -> pl.LazyFrame:
        """Return the rows left out for *reason*."""
        return self._all.filter(pl.col("reason") == self._numbers[reason])

    def _mark_rows(self, schema: RowSchema, file: int, repeated: Sequence[str]) -> pl.LazyFrame:
        """Return the values of a table, the number of its *file*, and that of the first reason to leave the row out.

        `_numbers` are the numbers of the reasons; a row that is kept has 0. *repeated* are names of texts that become
        categories, to save memory.
        """
        # Conditions over the table's columns are computed with the values, and are columns until the reason is known.
        is_left_out = {_MALFORMED_ROW: pl.col(EXTRA).is_not_null()}
        for reason, is_met in schema.filters.items():
            is_left_out[reason] = ~is_met
        rows = schema.table.frame.select(ROW, **is_left_out, **schema.values)

        # A separate step, as polars would compute the values again for each condition over them.
        conditions = {reason: pl.col(reason) for reason in is_left_out} | schema.left_out
        numbers = list[pl.Expr]()
        for reason, condition in conditions.items():
            numbers.append(pl.when(condition).then(pl.lit(self._numbers[reason])))
        first_number = pl.coalesce(*numbers, pl.lit(_KEPT_ROW)).cast(pl.UInt8)
        marked = rows.with_columns(file=pl.lit(file, pl.UInt16), reason=first_number)

        categories = [pl.col(name).cast(pl.Categorical) for name in repeated if name in schema.values]
        return marked.drop(*is_left_out).with_columns(categories)


class Segment(NamedTuple):
    """The *events* of one file of the event log, and the number of *damaged* ones, or damaged pieces of the file."""

    events: pl.DataFrame
    damaged: int


def read_segment(file: DataFile, schema: Mapping[str, pl.DataType]) -> Segment:
    """Read fields of the events of one file that the service wrote; raises DataError."""
    with data_errors(file):
        reader = SegmentReader(file.path.read_bytes())
        lines = b"\n".join(reader)
        events = pl.read_ndjson(BytesIO(lines), schema=schema) if lines else pl.DataFrame(schema=schema)
    return Segment(events, reader.damaged)


def read_text(
    path: DataSource, roles: Sequence[str], named: Mapping[str, str | None] | None = None, *, may_be_empty: bool = False
) -> pl.DataFrame:
    """Return columns of a small file or folder of items as `texts_by_role`."""
    with input_files([path]) as files:
        return texts_by_role(files, named_paths([path]), roles, named, may_be_empty=may_be_empty)


def texts_by_role(
    files: Sequence[DataFile],
    source: str,
    roles: Sequence[str],
    named: Mapping[str, str | None] | None = None,
    form: Format | None = None,
    *,
    may_be_empty: bool = False,
) -> pl.DataFrame:
    """Read columns of *files* as texts, and return them under the names of their roles, such as item and title.

    *named* are columns by role; *roles* are required, and found by usual names unless named. A name for the item that
    the files lack is ignored, as it may be that of another file. Rows without an item are left out. *source* names the
    files in messages. Raises DataError for a missing role, a bad row, and no rows, unless the files *may_be_empty*.
    """
    tables = open_tables(files, replace(form or Format(), max_bad_rows=0))
    available = list(tables[0].schema)
    named_columns = dict(named or {})
    if named_columns.get("item") not in available:
        named_columns["item"] = None
    columns = choose_columns(named_columns, available, source, guessed=roles, required=roles)
    columns_in_order = {role: columns[role] for role in dict.fromkeys([*roles, *columns])}

    with data_errors(source, files):
        if may_be_empty and all(table.frame.head(1).collect().is_empty() for table in tables):
            return pl.DataFrame(schema=dict.fromkeys(columns_in_order, pl.String()))
        schemas = [_text_schema(table, columns_in_order) for table in tables]
        return Rows(schemas, source).kept.drop(ROW).collect(engine="streaming")


def _text_schema(table: Table, columns: Mapping[str, str]) -> RowSchema:
    """Declare how to read *columns* as texts, by role; rows without an item are left out."""
    texts = {role: table.text(column) for role, column in columns.items()}
    return RowSchema(table, texts, left_out={"no item": pl.col("item").is_null()})


def most_frequent_titles(rows: pl.LazyFrame, source: str) -> dict[str, str]:
    """Return the most frequent title of each item in *rows* [item, perhaps title], by item; ties by alphabet.

    Items without a title are left out. *source* names the rows in a DataError.
    """
    if "title" not in rows.collect_schema():
        return {}
    with data_errors(source):
        counts = rows.group_by("item", "title").agg(rows=pl.len()).collect(engine="streaming")

    # Categories become texts only now, as few are left; titles that differ by spaces are the same.
    item = pl.col("item").cast(pl.String)
    title = pl.col("title").cast(pl.String).str.strip_chars()
    titles = counts.with_columns(item, title).filter(pl.col("title") != "")
    counts = titles.group_by("item", "title").agg(pl.col("rows").sum())

    most_frequent_first = counts.sort("rows", "title", descending=[True, False])
    best = most_frequent_first.unique("item", keep="first", maintain_order=True)
    return dict(best.select("item", "title").iter_rows())


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on rows; *text* is its original spelling."""

    text: str
    column: str
    operator: str
    value: str

    def condition(self, table: Table) -> pl.Expr:
        """Return the filter (`column`, `operator` and `value`) as a condition over the columns of *table*, never null.

        `~` searches the text with a regular expression. `<`, `>` and the like compare sizes: with a number as numbers,
        else as texts, of which only those that begin with a digit (dates) can match. `=` and `!=` compare numbers in
        columns of floats, else texts; a missing value is an empty text. Raises DataError for a missing column.
        """
        name = find_column(self.column, list(table.schema), f"filter {self.text!r}", str(table.file))
        text = table.text(name)
        if "~" in self.operator:
            matches = text.str.contains(self.value).fill_null(value=False)
            return matches if self.operator == "~" else ~matches

        compare = _COMPARISONS[self.operator]
        number = number_in(self.value)
        dtype = table.schema[name]
        if self.operator[0] in "<>":
            if number is not None:
                is_met = compare(table.number(name), pl.lit(number))
            else:
                dates = pl.when(text.str.contains(r"^\d")).then(text)
                is_met = compare(dates, pl.lit(self.value))
            return is_met.fill_null(value=False)

        if number is None or not dtype.is_numeric():
            return compare(text.fill_null(""), pl.lit(self.value))
        if dtype.is_integer():
            # As texts: floats beyond 2**53 do not hold every id.
            return compare(text.fill_null(""), pl.lit(f"{Decimal(self.value).normalize():f}"))
        return compare(table.number(name), pl.lit(number))  # 2.5 equals 2.50


def parse_filter(text: str) -> Filter:
    """Parse a filter such as `quantity>0`: a column, one of `= != > >= < <= ~ !~`, and a value.

    `~` searches with a regular expression. `<` and the like compare numbers, and texts that begin with a digit (dates).
    Raises SettingError.
    """
    parts = _FILTER_PATTERN.fullmatch(text)
    if parts is None:
        raise SettingError(
            f"The filter {text!r} cannot be read; write a column, one of = != > >= < <= ~ !~, and a value: quantity>0."
        )
    operator = parts[2]
    value = parts[3].strip()
    if operator[0] in "<>" and number_in(value) is None and not value[:1].isdigit():
        raise SettingError(f"The filter {text!r} compares with {value!r}, which is neither a number nor a date.")
    if "~" in operator:
        try:
            pl.select(pl.lit("").str.contains(value))
        except pl.exceptions.ComputeError as error:
            raise SettingError(f"The filter {text!r} has a regular expression that cannot be read.") from error
    return Filter(text=text, column=parts[1], operator=operator, value=value)
