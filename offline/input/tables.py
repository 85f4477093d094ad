"""Input rows, scanned by polars, and filters on them; rows left out are counted, bad ones shown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from glob import escape
from io import BytesIO
from typing import Any

import orjson
import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import (
    DECIMAL_COMMA,
    NULL_VALUES,
    choose_columns,
    find_column,
    number_in,
    read_time,
    time_format,
)
from hotplate.offline.input.faults import SEPARATOR_LINE, check_text, data_errors
from hotplate.offline.input.files import DataFile, DataSource, Format, input_files, named_paths
from hotplate.stores.encoding import MAX_ID_BYTES

# Columns added to a scan: the row's index, and its malformed part, if any: fields after the last, or a line not JSON.
ROW = "\0row"
EXTRA = "\0extra"
_MALFORMED = "malformed row"
_ROWS_SHOWN = 5
_HEAD_ROWS = 1000
_DELIMITERS = ",;\t"
# Floats from 2**53 on, and what spreadsheets make of long numbers.
_ROUNDED = r"^-?(\d(\.\d+)?[eE]\+\d{2,}|(9\d{15}|\d{17,})\.0)$"
_UUID_BYTES = 16
_UUID = "^(.{8})(.{4})(.{4})(.{4})(.{12})$"
_FIELD = r'(?:"(?:[^"]|"")*"|[^"\t]*)'
_QUOTED_LINE = rf"^\ufeff?{_FIELD}(?:\t{_FIELD})*\r?$"
_FILTER = re.compile(r"\s*([^<>=!~]*[^<>=!~\s])\s*(>=|<=|==|!=|!~|=|~|>|<)(.*)", re.DOTALL)
_COMPARISONS = {
    "=": pl.Expr.eq_missing, "==": pl.Expr.eq_missing, "!=": pl.Expr.ne_missing,
    ">": pl.Expr.gt, ">=": pl.Expr.ge, "<": pl.Expr.lt, "<=": pl.Expr.le,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """One file. All columns of a text file are text, null for a missing value.

    frame      the columns of *schema*, ROW and EXTRA
    first_row  number of the first data row in the file, from 1
    fault      of EXTRA, for messages
    """

    file: DataFile
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    form: Format = field(default_factory=Format)
    first_row: int = 1
    fault: str = ""

    def text(self, name: str | None) -> pl.Expr:
        """Return the column as text, null for a missing or blank value; all null without a *name*.

        Whole floats lose their point: pandas' nullable integers. Raises DataError for nested and binary columns.
        """
        if name is None:
            return pl.lit(None, dtype=pl.String)
        dtype, column = self.schema[name], pl.col(name)
        if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
            raise DataError(f"The column {name!r} of {self.file} holds {dtype}, which is not a text; name another.")
        text = column.cast(pl.String)
        if isinstance(dtype, pl.Decimal) and dtype.scale:
            return text.str.replace(r"\.0+$", "")
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
            with data_errors(self.file, [self.file]):
                present = self.frame.filter(~self.is_absent(name)).select(name).head(_HEAD_ROWS).collect()
                layout = time_format(present.get_column(name))
        return read_time(name, self.schema[name], layout)

    def shown(self, rows: Sequence[int], column: str, fault: str = "") -> list[str]:
        """Return the place and value of a *column* in some *rows*, with their *fault*."""
        found = self.frame.filter(pl.col(ROW).is_in(rows)).select(ROW, column).collect(engine="streaming").sort(ROW)
        at = "" if column == EXTRA else f", column {column!r}"
        return [
            f"{self.file}, row {row + self.first_row}{at}: {value!r:.80} {fault}{_hint(value, fault)}".rstrip()
            for row, value in found.iter_rows()
        ]


def _hint(value: object, fault: str) -> str:
    is_comma = isinstance(value, str) and re.match(DECIMAL_COMMA, value.strip()) is not None
    return " (write a decimal point)" if is_comma and fault.endswith("number") else ""


def open_tables(files: Sequence[DataFile], form: Format) -> list[Table]:
    """Open *files* as tables; raises DataError if they are unreadable or columns differ."""
    first, *others = tables = [_open(file, form) for file in files]
    for table in others:
        if table.schema.keys() != first.schema.keys():
            raise DataError(
                f"{table.file} has the columns {', '.join(table.schema)}, but {first.file} has "
                f"{', '.join(first.schema)}; files that are read together must have the same columns."
            )
    return tables


def _open(file: DataFile, form: Format) -> Table:
    if file.kind == "text":
        check_text(file)
    with data_errors(file, [file]):
        frame, first_row, fault = _scan(file, form)
        names = frame.collect_schema().names()
        added = {key: value for key, value in {**file.keys, EXTRA: None}.items() if key not in names}
        frame = frame.with_columns(pl.lit(value, pl.String).alias(key) for key, value in added.items())
        schema = {name: dtype for name, dtype in frame.collect_schema().items() if name not in (ROW, EXTRA)}
        if not schema:
            raise DataError(f'{file} has no columns, and no JSON object such as {{"user": 1, "item": 2}} on a line.')
        nested = [name for name, dtype in schema.items() if dtype == pl.List(pl.Struct)]
        if file.kind == "text" and len(schema) == len(nested) == 1:
            raise DataError(
                f"{file} is one JSON object with the rows in {nested[0]!r}; write one row a line: "
                f"jq -c '.{nested[0]}[]' {file.path.name} > lines.jsonl."
            )
        return Table(file, frame, schema, form, first_row, fault)


def _scan(file: DataFile, form: Format) -> tuple[pl.LazyFrame, int, str]:
    """Return the frame, first row and fault of a Table."""
    if file.kind == "parquet":
        frame = pl.scan_parquet(file.path, glob=False, row_index_name=ROW)
        return _with_texts_of_bytes(frame), 1, ""
    head = pl.scan_lines(file.path, glob=False).head(2).collect().to_series()
    first, second, *_ = *map(str, head), "", ""
    first = first.removeprefix("\ufeff")
    named_separator = SEPARATOR_LINE.match(first)
    skipped = 0 if named_separator is None else 1
    if first.lstrip().startswith("{"):
        return _scan_json(file), 1, "is not a JSON object"
    delimiter = form.delimiter
    if named_separator is not None:
        first, delimiter = second, delimiter or named_separator[1]
    how: dict[str, Any] = {
        "separator": _separator(first, delimiter),
        "has_header": form.header,
        "skip_lines": skipped,
        "glob": False,
    }
    if how["separator"] == "\t" and not _is_quoted(file, first):
        how["quote_char"] = None
    names = pl.scan_csv(file.path, infer_schema=False, **how).collect_schema().names()
    if not form.header:
        names = [f"column_{number}" for number in range(1, len(names) + 1)]
    frame = pl.scan_csv(
        file.path,
        schema=dict.fromkeys([*names, EXTRA], pl.String()),
        null_values=list(NULL_VALUES),
        extra_columns="ignore",
        missing_columns="insert",
        row_index_name=ROW,
        **how,
    )
    return frame, 1 + form.header + skipped, "stands after the last field"


def _with_texts_of_bytes(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return *frame* with UUIDs, and texts that are not marked as such, as texts; polars reads both as bytes."""
    names = [name for name, dtype in frame.collect_schema().items() if dtype == pl.Binary]
    if not names:
        return frame
    head = frame.select(names).head(_HEAD_ROWS).collect()
    texts = list[pl.Expr]()
    for name in names:
        values = head.get_column(name).drop_nulls()
        if all(map(_is_text, values)):
            texts.append(pl.col(name).cast(pl.String))
        elif (values.bin.size() == _UUID_BYTES).all():
            texts.append(pl.col(name).bin.encode("hex").str.replace(_UUID, "$1-$2-$3-$4-$5").alias(name))
    return frame.with_columns(texts)


def _is_text(value: bytes) -> bool:
    try:
        return value.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _is_quoted(file: DataFile, first: str) -> bool:
    """Return whether quotes in a TSV file with this *first* line enclose fields (RFC 4180), or else are text.

    If they enclose line breaks, most lines with a single quote lack fields.
    """
    if first.startswith('"'):
        return True
    line = pl.col("line")
    odd = line.str.contains('"', literal=True) & ~line.str.contains(_QUOTED_LINE)
    whole = (line.str.count_matches("\t", literal=True) == first.count("\t")).mean()
    share = pl.scan_lines(file.path, glob=False).filter(odd).select(whole).collect(engine="streaming").item()
    return share is None or share <= 0.5


def _separator(first: str, delimiter: str | None) -> str:
    if delimiter is None:
        is_among_bars = "|" in first and not any(map(first.count, _DELIMITERS))
        return "|" if is_among_bars else max(_DELIMITERS, key=first.count)
    separator = "\t" if delimiter in ("\\t", "tab") else delimiter
    if len(separator) != 1 or not separator.isascii():
        raise SettingError(f"The delimiter {delimiter!r} cannot be used; give one ASCII character, such as ; or \\t.")
    return separator


def _scan_json(file: DataFile) -> pl.LazyFrame:
    # polars reads half a surrogate pair as NUL, which would merge ids.
    escaped = pl.col("line").str.replace_all(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "")
    lines = pl.scan_lines(file.path, glob=False)
    halves = lines.filter(escaped.str.contains(r"\\u[dD][89a-fA-F]")).head(1).collect(engine="streaming")
    source: str | BytesIO = escape(str(file.path))  # polars takes names with [, * and ? for patterns
    if halves.is_empty():
        try:
            return _scan_objects(source)
        except pl.exceptions.PolarsError:
            pass  # a malformed line
    return _scan_objects(BytesIO(b"\n".join(map(_object, lines.collect().to_series()))))


def _scan_objects(source: str | BytesIO) -> pl.LazyFrame:
    # Keys may appear late; numbers keep their text.
    schema = pl.scan_ndjson(source, infer_schema_length=None).collect_schema()
    texts = {name: dtype if dtype.is_nested() else pl.String() for name, dtype in schema.items()}
    return pl.scan_ndjson(source, schema=texts, row_index_name=ROW)


def _object(line: str) -> bytes:
    """Return a *line* of JSON, or an object with a malformed one as EXTRA."""
    line = line.removeprefix("\ufeff")
    try:
        is_object = not line.strip() or isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        is_object = False
    return line.encode() if is_object else orjson.dumps({EXTRA: line})


@dataclass(frozen=True, slots=True)
class TableShape:
    """How to read the rows of a *table*.

    values     aliased expressions over the table's columns
    left_out   conditions over the values by reason, in order
    bad        column and fault, by reason
    explained  a value, by reason, whose most frequent ones are named if nothing is left
    """

    table: Table
    values: Sequence[pl.Expr]
    left_out: Mapping[str, pl.Expr]
    bad: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    explained: Mapping[str, str] = field(default_factory=dict)


class Rows:
    """The rows of several tables.

    left_out  number of rows left out by reason, without zeros
    facts     aggregates over the rows kept; `rows` is their number
    notes     a sentence with the first bad rows, if any
    """

    def __init__(
        self, shapes: Sequence[TableShape], source: str, *facts: pl.Expr, repeated: Sequence[str] = ()
    ) -> None:
        """Count rows, kept in memory with *repeated* texts as categories; DataError for too many bad rows, or none."""
        self._shapes = shapes
        reasons = dict.fromkeys([_MALFORMED, *(reason for shape in shapes for reason in shape.left_out)])
        self._numbers = {reason: number for number, reason in enumerate(reasons, start=1)}
        self._all = pl.concat([self._shaped(*numbered, repeated) for numbered in enumerate(shapes)], how="diagonal")
        with data_errors(source, [shape.table.file for shape in shapes]):
            if repeated:
                self._all = self._all.collect(engine="streaming").lazy()
            groups = self._all.group_by("reason").agg(pl.len().alias("rows"), *facts).collect(engine="streaming")
        found = {group["reason"]: group for group in groups.iter_rows(named=True)}
        self.total = sum(group["rows"] for group in found.values())
        self.left_out = {reason: found[number]["rows"] for reason, number in self._numbers.items() if number in found}
        bad = self._bad_rows(source)
        self.notes = [f"bad rows are left out: {'; '.join(bad)}"] if bad else []
        if 0 not in found:
            examples = [self._examples(reason, name) for reason, name in shapes[0].explained.items()]
            if not self.total:
                raise DataError(f"{source} has no rows, or a header alone.")
            counted = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            raise DataError(f"Nothing is left of the {self.total:,} rows of {source}: {counted}{''.join(examples)}.")
        self.facts: dict[str, Any] = found[0]

    @property
    def kept(self) -> pl.LazyFrame:
        """The values and ROW of the rows kept."""
        return self._all.filter(pl.col("reason") == 0).drop("file", "reason")

    def values(self, reason: str, name: str) -> pl.Series:
        """Return the values of *name* in rows left out for *reason*, most frequent first."""
        counted = self._only(reason).group_by(value=pl.col(name).cast(pl.String)).len()
        return counted.sort("len", "value", descending=[True, False]).collect(engine="streaming").get_column("value")

    def _examples(self, reason: str, name: str) -> str:
        if reason not in self.left_out:
            return ""
        values = self.values(reason, name).head(_ROWS_SHOWN)
        return f"; the most frequent {reason}s are " + ", ".join(f"{value!r:.80}" for value in values)

    def _bad_rows(self, source: str) -> list[str]:
        shown, count = list[str](), 0
        bad = {reason: found for shape in self._shapes for reason, found in shape.bad.items()}
        for reason in (each for each in self.left_out if each in {_MALFORMED, *bad}):
            count += self.left_out[reason]
            first = self._only(reason).select("file", ROW).head(_ROWS_SHOWN).collect()
            for (file,), rows in first.group_by("file", maintain_order=True):
                table = self._shapes[file].table
                shown += table.shown(rows.get_column(ROW).to_list(), *bad.get(reason, (EXTRA, table.fault)))
        share = self._shapes[0].table.form.max_bad_rows
        if count > share * self.total:
            raise DataError(
                f"{'; '.join(shown[:_ROWS_SHOWN])}. {count:,} of the {self.total:,} rows of {source} "
                f"{'is' if count == 1 else 'are'} bad, and at most {share:.3%} may be; mend them"
                f"{', or raise --max-bad-rows' if share else ''}."
            )
        return shown

    def _only(self, reason: str) -> pl.LazyFrame:
        return self._all.filter(pl.col("reason") == self._numbers[reason])

    def _shaped(self, number: int, shape: TableShape, repeated: Sequence[str]) -> pl.LazyFrame:
        # In steps, as polars would compute the values for each condition.
        rows = shape.table.frame.select(ROW, pl.col(EXTRA).is_not_null(), *shape.values)
        left_out = {_MALFORMED: pl.col(EXTRA), **shape.left_out}
        tried = [pl.when(found).then(pl.lit(self._numbers[reason])) for reason, found in left_out.items()]
        marked = rows.with_columns(file=pl.lit(number, pl.UInt16), reason=pl.coalesce(*tried, pl.lit(0)).cast(pl.UInt8))
        names = marked.collect_schema().names()
        alike = [pl.col(name).cast(pl.Categorical) for name in repeated if name in names]
        return marked.drop(EXTRA, *(name for name in left_out if name in names)).with_columns(alike)


def read_text(
    path: DataSource, roles: Sequence[str], named: Mapping[str, str | None] | None = None, *, may_be_empty: bool = False
) -> pl.DataFrame:
    """Return columns of a small file or folder as `text_of`."""
    with input_files([path]) as files:
        return text_of(files, named_paths([path]), roles, named, may_be_empty=may_be_empty)


def text_of(
    files: Sequence[DataFile],
    source: str,
    roles: Sequence[str],
    named: Mapping[str, str | None] | None = None,
    form: Format | None = None,
    *,
    may_be_empty: bool = False,
) -> pl.DataFrame:
    """Return columns of *files* as text, by role: those *named*, and *roles* by their usual names.

    Rows without an item are left out. Raises DataError for a bad row, and for no rows, unless they *may_be_empty*.
    """
    tables = open_tables(files, replace(form or Format(), max_bad_rows=0))
    available = list(tables[0].schema)
    given = dict(named or {})
    given |= {} if given.get("item") in available else {"item": None}
    columns = choose_columns(given, available, source, guessed=roles, required=roles)
    order = dict.fromkeys([*roles, *columns])
    missing = {"no item": pl.col("item").is_null()}
    shapes = [TableShape(table, [table.text(columns[role]).alias(role) for role in order], missing) for table in tables]
    with data_errors(source, files):
        if may_be_empty and all(table.frame.head(1).collect().is_empty() for table in tables):
            return pl.DataFrame(schema=dict.fromkeys(order, pl.String()))
        return Rows(shapes, source).kept.drop(ROW).collect(engine="streaming")


def id_reasons(ids: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Return conditions to leave a row out for its *ids*, values by role."""
    absent = {f"no {role}": pl.col(value).is_null() for role, value in ids.items() if role != "segment"}
    sizes = {f"{role} id over {MAX_ID_BYTES} bytes": pl.col(value).str.len_bytes() for role, value in ids.items()}
    rounded = {f"{role} id that was rounded": pl.col(value).str.contains(_ROUNDED) for role, value in ids.items()}
    return absent | {reason: size > MAX_ID_BYTES for reason, size in sizes.items()} | rounded


def bad_ids(columns: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the bad rows among the conditions of `id_reasons`, as of a TableShape; *columns* are names by role."""
    fault = "is a rounded number, so different ids may have become one; write ids as whole numbers or texts"
    return {f"{role} id that was rounded": (name, fault) for role, name in columns.items()}


def titles_of(rows: pl.LazyFrame, source: str) -> dict[str, str]:
    """Return the most frequent title of each item in *rows* [item, perhaps title]; ties by alphabet."""
    if "title" not in rows.collect_schema():
        return {}
    title = pl.col("title").cast(pl.String).str.strip_chars()
    with data_errors(source):
        counted = rows.group_by("item", "title").agg(pl.len()).collect(engine="streaming")
    plain = counted.with_columns(title, pl.col("item").cast(pl.String)).filter(pl.col("title") != "")
    ranked = plain.group_by("item", "title").agg(pl.col("len").sum()).sort("len", "title", descending=[True, False])
    return dict(ranked.unique("item", keep="first", maintain_order=True).select("item", "title").iter_rows())


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on rows; *text* is its original spelling."""

    text: str
    column: str
    operator: str
    value: str

    def expression(self, table: Table) -> pl.Expr:
        """Return the condition over the columns of *table*, never null.

        A missing value is an empty text without a size. Raises DataError for a missing column.
        """
        name = find_column(self.column, list(table.schema), f"filter {self.text!r}", str(table.file))
        text, number = table.text(name), number_in(self.value)
        if "~" in self.operator:
            matches = text.str.contains(self.value).fill_null(value=False)
            return matches if self.operator == "~" else ~matches
        compare, is_size = _COMPARISONS[self.operator], self.operator[0] in "<>"
        dtype, value = table.schema[name], self.value
        if number is not None and not is_size and dtype.is_integer():  # floats beyond 2**53 do not hold every id
            value = f"{Decimal(value).normalize():f}"
        elif number is not None and (is_size or dtype.is_numeric()):  # 2.5 equals 2.50
            return compare(table.number(name), pl.lit(number)).fill_null(value=False)
        text = pl.when(text.str.contains(r"^\d")).then(text) if is_size else text.fill_null("")
        return compare(text, pl.lit(value)).fill_null(value=False)


def parse_filter(text: str) -> Filter:
    """Parse a column, one of `= != > >= < <= ~ !~`, and a value.

    `~` searches with a regular expression. Only numbers and texts that begin with a digit (dates) have a size. Raises
    SettingError.
    """
    parts = _FILTER.fullmatch(text)
    if parts is None:
        raise SettingError(
            f"The filter {text!r} cannot be read; write a column, one of = != > >= < <= ~ !~, and a value: quantity>0."
        )
    operator, value = parts[2], parts[3].strip()
    if operator[0] in "<>" and number_in(value) is None and not value[:1].isdigit():
        raise SettingError(f"The filter {text!r} compares with {value!r}, which is neither a number nor a date.")
    if "~" in operator:
        try:
            pl.select(pl.lit("").str.contains(value))
        except pl.exceptions.ComputeError as error:
            raise SettingError(f"The filter {text!r} has a regular expression that cannot be read.") from error
    return Filter(text, parts[1], operator, value)
