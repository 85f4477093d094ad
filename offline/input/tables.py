"""Input files as tables, scanned by polars: Parquet, JSON lines and CSV."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from glob import escape
from io import BytesIO
from math import inf
from typing import NamedTuple

import orjson
import polars as pl
import polars.selectors as cs

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import EPOCH, NULL_VALUES, NUMBERED, UsualTimes, is_date, read_time
from hotplate.offline.input.faults import SEPARATOR_LINE, check_head, data_errors
from hotplate.offline.input.files import DataFile
from hotplate.offline.options import Format
from hotplate.stores.attributes import IN_ARRAY

# Columns added to a scan: the row's index, and its malformed part, if any: fields after the last, or a line not JSON.
ROW = "\0row"
EXTRA = "\0extra"
_HEAD_ROWS = 1000
_DELIMITERS = ",;\t"
# How a message shows a null.
_MISSING = f"a missing value (empty or, in CSV, {', '.join(NULL_VALUES)})"
# From these numbers on, the types do not hold every integer.
_WHOLE_FLOATS: Mapping[pl.DataType, int] = {pl.Float16(): 2**11, pl.Float32(): 2**24, pl.Float64(): 2**53}
# Types of which no text, and no time, can be made.
_NOT_TEXTS: Sequence[type[pl.DataType]] = (pl.Binary, pl.Object, pl.Duration)
_NOT_TIMES: Sequence[type[pl.DataType]] = (*_NOT_TEXTS, pl.Boolean, pl.Time)
# Of a decimal, as polars reads it; Parquet has types with up to 76.
_MOST_DIGITS = 38
_UUID_BYTES = 16
_UUID_PATTERN = "^(.{8})(.{4})(.{4})(.{4})(.{12})$"
_FIELD = r'(?:"(?:[^"]|"")*"|[^"\t]*)'
# Surrogate pairs (and escaped backslashes), and escapes that remain without them; numbers that may be from 2**53 on.
_WHOLE_PAIR = r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F].."
_HALF_PAIR = r"\\u[dD][89a-fA-F]"
_JSON_OBJECT = r"^[\ufeff\s]*(\{|$)"
_LARGE_FLOAT = r":\s*-?(\d{16,}\.|[\d.]+[eE]\+?\d)"
_QUOTED_LINE_PATTERN = rf"^\ufeff?{_FIELD}(?:\t{_FIELD})*\r?$"


class DescribedRow(NamedTuple):
    """The beginning of a sentence about a row, and the text of its value."""

    text: str
    value: str


@dataclass(frozen=True, slots=True)
class Table:
    """One file. All columns of a text file are text, or Booleans in JSON; null for a missing value.

    frame      the columns of *schema*, ROW and EXTRA; malformed rows have a value of EXTRA
    first_row  number of the first data row in the file, from 1
    is_json    whether texts may be arrays or objects of JSON
    """

    file: DataFile
    frame: pl.LazyFrame
    form: Format
    schema: dict[str, pl.DataType] = field(default_factory=dict)
    first_row: int = 1
    is_json: bool = False

    def text(self, name: str) -> pl.Expr:
        """Return an expression for the column *name* as text, null for a missing or blank value.

        Whole numbers lose their point (`7.0` becomes `7`), as pandas writes integers as floats if values are missing.
        Raises DataError for a column of lists, structs, bytes or durations.
        """
        dtype = self._dtype_of(name, "text")
        column = pl.col(name)
        if dtype.is_float():
            return _text_of_float(column, _WHOLE_FLOATS[dtype])
        text = column.cast(pl.String)
        if isinstance(dtype, pl.Decimal) and dtype.scale:
            return text.str.replace(r"\.0+$", "")

        # "!" is the first character after the space, so a blank text sorts before it. Only the texts that sort before
        # it are stripped to see if they are blank, as stripping all takes as long as reading.
        is_after_blanks = text >= "!"
        stripped = pl.when(~is_after_blanks).then(text).str.strip_chars()
        return pl.when(is_after_blanks | (stripped != "")).then(text)

    def texts(self, name: str) -> pl.Expr:
        """Return a column of arrays as texts, IN_ARRAY before each value, or any other column as `text` does."""
        dtype = self.schema[name]
        if not isinstance(dtype, pl.List | pl.Array) or pl.List(dtype.inner).inner.is_nested():
            return self.text(name)
        return pl.lit(IN_ARRAY) + pl.col(name).cast(pl.List(pl.String)).list.join(IN_ARRAY)

    def number(self, name: str) -> pl.Expr:
        """Return the column as a float, null for a missing number and any other text; raises DataError as `text`."""
        dtype = self._dtype_of(name, "number")
        number = pl.col(name)
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            number = number.cast(pl.String, strict=False).str.strip_chars()
        return number.cast(pl.Float64, strict=False).fill_nan(None)

    def is_absent(self, name: str) -> pl.Expr:
        """Return whether the value is null, NaN or blank; never null."""
        dtype = self.schema[name]
        return (self.text(name) if dtype.is_float() or dtype == pl.String else pl.col(name)).is_null()

    def number_or_inf(self, name: str) -> pl.Expr:
        """Return the column as a float, null for a missing value, inf for any other text than a number."""
        return pl.when(~self.is_absent(name)).then(self.number(name).fill_null(inf))

    def time(self, name: str) -> pl.Expr:
        """Return the column *name* as a time in UTC, without a zone; null if it cannot be read.

        The format is the one given in `form`, or else ISO 8601 or a time since 1970, by value. Raises DataError for a
        column of Booleans or times of day, and as `text`.
        """
        dtype = self._dtype_of(name, "point in time", unusable=_NOT_TIMES)
        if is_date(dtype) or self.form.time_format is not None:
            return read_time(name, dtype, self.form.time_format or EPOCH)
        return pl.col(name).map_batches(UsualTimes(), return_dtype=pl.Datetime("us"), is_elementwise=True)

    def _dtype_of(self, name: str, kind: str, unusable: Sequence[type[pl.DataType]] = _NOT_TEXTS) -> pl.DataType:
        """Return the type of the column *name*.

        Raises DataError if it is nested, *unusable* as a *kind* of value, or of decimals that polars cannot read.
        """
        dtype = self.schema[name]
        if dtype.is_nested() or dtype in unusable:
            raise DataError(f"The column {name!r} of {self.file} holds {dtype}, which is not a {kind}; name another.")
        if isinstance(dtype, pl.Decimal) and dtype.precision > _MOST_DIGITS:
            raise DataError(
                f"The column {name!r} of {self.file} has decimals of {dtype.precision} digits, and at most "
                f"{_MOST_DIGITS} can be read; write them as float64, or ids as texts."
            )
        return dtype

    def describe(self, row: int, column: str) -> DescribedRow:
        """Describe a *row* by file, row number, column and value, as `log.csv, row 7, column 'price': 'abc'`.

        *row* is an index from 0 in `frame` (its column ROW). For a malformed row, *column* is EXTRA.
        """
        value = self.frame.filter(pl.col(ROW) == row).select(column).head(1).collect(engine="streaming").item()
        place = "" if column == EXTRA else f", column {column!r}"
        shown = _MISSING if value is None else f"{value!r:.80}"
        return DescribedRow(f"{self.file}, row {row + self.first_row}{place}: {shown}", str(value).strip())


def _text_of_float(column: pl.Expr, limit: int) -> pl.Expr:
    """Return a column of floats as texts: `7.0` as `7`, `7.5` as `7.5`, NaN as null.

    Numbers from *limit* on keep their point, as the column's type does not hold every integer there.
    """
    whole = column.cast(pl.Int64, strict=False)
    is_whole = column.is_finite() & (column == whole) & (column.abs() < limit)
    text = pl.when(is_whole).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
    return pl.when(column.is_not_nan()).then(text)


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

    Raises DataError for a file of another kind, and one that cannot be read.
    """
    check_head(file)
    with data_errors(file, [file]):
        table = _scan_file(file, form)
        # Names of folders such as date=2026-01-01 are columns, too.
        names = table.frame.collect_schema().names()
        constants = {name: value for name, value in {**file.keys, EXTRA: None}.items() if name not in names}
        frame = table.frame.with_columns(pl.lit(value, pl.String).alias(name) for name, value in constants.items())
        schema = dict(frame.drop(ROW, EXTRA).collect_schema())
        _check_schema(file, schema)
        return replace(table, frame=frame, schema=schema)


def _check_schema(file: DataFile, schema: Mapping[str, pl.DataType]) -> None:
    """Raise DataError for a file without columns, and for JSON that is one object with the rows inside."""
    if not schema:
        raise DataError(f'{file} has no columns, and no JSON object such as {{"user": 1, "item": 2}} on a line.')
    nested = [name for name, dtype in schema.items() if dtype == pl.List(pl.Struct)]
    if file.kind != "parquet" and len(schema) == len(nested) == 1:
        raise DataError(
            f"{file} is one JSON object with the rows in {nested[0]!r}; write one row a line: "
            f"jq -c '.{nested[0]}[]' {file.path.name} > lines.jsonl."
        )


def _scan_file(file: DataFile, form: Format) -> Table:
    """Scan a file as Parquet by its kind, and else as JSON lines if it begins with a brace, or CSV.

    The frame may lack EXTRA. Excel may write a first line such as `sep=;` to CSV: it names the delimiter, unless *form*
    has one, and is skipped. *form* says how CSV is written.
    """
    if file.kind == "parquet":
        return Table(file, _scan_parquet(file), form)

    # The first two lines that are not blank, and their indices; fewer in a short file.
    lines = pl.scan_lines(file.path, glob=False, row_index_name=ROW)
    head = lines.filter(pl.col("line").str.strip_chars() != "").head(2).collect()
    first, second = [*head.get_column("line"), "", ""][:2]
    first_row, second_row = [*head.get_column(ROW), 0, 0][:2]
    first = first.removeprefix("\ufeff")
    if first.lstrip().startswith("{"):
        return Table(file, _scan_json(file), form, is_json=True)

    separator_line = SEPARATOR_LINE.match(first)
    if separator_line is None:
        return _scan_csv(file, form, first, skipped=first_row)
    form = replace(form, delimiter=form.delimiter or separator_line[1])
    return _scan_csv(file, form, second, skipped=second_row)


def _scan_parquet(file: DataFile) -> pl.LazyFrame:
    frame = pl.scan_parquet(file.path, glob=False, row_index_name=ROW)
    # A column without any value has no type. Categories, as of pandas, are texts.
    frame = frame.with_columns((cs.by_dtype(pl.Null) | cs.categorical() | cs.enum()).cast(pl.String))
    return _decode_binary_columns(frame)


def _scan_csv(file: DataFile, form: Format, first: str, skipped: int) -> Table:
    """Scan a CSV file, with all columns as texts.

    first    the text of the first line, a header or data
    skipped  number of lines before the first line, which are not read

    Without a header, columns are numbered. A line with more fields than the header is malformed: the first surplus
    field is in the column EXTRA, which is null in other rows. If names in the header have blanks around them, as in
    `user, item`, these are stripped from the names and from all values; else blanks belong to the values.
    """
    separator = _csv_separator(first, form.delimiter)
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
    if not form.header:
        names = [f"{NUMBERED}{number}" for number in range(1, len(names) + 1)]

    # EXTRA is a column after the last: missing in most lines, and read from those with more fields.
    frame = scan(
        schema=dict.fromkeys([*names, EXTRA], pl.String()),
        null_values=list(NULL_VALUES),
        extra_columns="ignore",
        missing_columns="insert",
        row_index_name=ROW,
    )
    plain_names = {name: name.strip() for name in names if name != name.strip()}
    if plain_names:
        frame = frame.with_columns(pl.col(*names).str.strip_chars()).rename(plain_names)
    first_row = 1 + skipped + form.header
    return Table(file, frame, form, first_row=first_row)


def _decode_binary_columns(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return the *frame* of a Parquet file with binary columns that hold texts or UUIDs as texts.

    Some writers do not mark texts in Parquet as such, and polars then reads bytes. The first values decide: printable
    UTF-8 is text, and 16 bytes are a UUID. Other binary columns stay; they are an error only if they are used.
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

    *first* is the first line. A line is doubtful if it has quotes that do not enclose whole fields. Either its quotes
    are text, and it has as many tabs as the first line, or it is a piece of a record with line breaks in a quoted
    field, and has fewer. Quotes are text if most doubtful lines have as many.
    """
    if first.startswith('"'):
        return True

    line = pl.col("line")
    is_doubtful = line.str.contains('"', literal=True) & ~line.str.contains(_QUOTED_LINE_PATTERN)
    is_complete = line.str.count_matches("\t", literal=True) == first.count("\t")

    # Null without doubtful lines.
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
    """Scan a file with a JSON object per line, with all values as texts, but Booleans; malformed lines are in EXTRA.

    polars refuses the whole file for a malformed line, or for arrays among numbers, reads half a surrogate pair as NUL,
    so that different ids would become one, and does not tell rounded numbers from others. Such files are rewritten
    first, which takes longer.
    """
    lines = pl.scan_lines(file.path, glob=False)
    line = pl.col("line")
    is_doubtful = line.str.contains(_LARGE_FLOAT) | ~line.str.contains(_JSON_OBJECT)
    has_half_pair = line.str.replace_all(_WHOLE_PAIR, "").str.contains(_HALF_PAIR)
    # The first filter is fast, and leaves few lines for the second.
    doubtful = lines.filter(is_doubtful | line.str.contains(_HALF_PAIR)).filter(is_doubtful | has_half_pair)
    if doubtful.head(1).collect(engine="streaming").is_empty():
        path = escape(str(file.path))  # polars takes names with [, * and ? for patterns
        try:
            # All lines tell the schema, as keys may appear late.
            dtypes = dict[str, pl.DataType](pl.scan_ndjson(path, infer_schema_length=None).collect_schema())
        except pl.exceptions.PolarsError:
            pass  # a malformed line, or arrays among other values
        else:
            is_text = {name: not dtype.is_nested() and dtype != pl.Boolean for name, dtype in dtypes.items()}
            schema = {name: pl.String() if is_text[name] else dtype for name, dtype in dtypes.items()}
            return pl.scan_ndjson(path, schema=schema, row_index_name=ROW)
    return _scan_exact_lines(lines.collect().to_series())


def _scan_exact_lines(lines: pl.Series) -> pl.LazyFrame:
    """Scan lines of JSON as `_scan_json`; arrays among other values, and those that are nested, are texts."""
    dtypes = defaultdict[str, set[pl.DataType]](set)
    exact_lines = list[bytes]()
    for line in lines:
        text = line.removeprefix("\ufeff").strip()
        if not text:
            continue
        try:
            row = orjson.loads(text)
        except orjson.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            row = {EXTRA: text}
            text = json.dumps(row)
        elif re.search(_LARGE_FLOAT, text):
            text = json.dumps(json.loads(text, parse_int=str, parse_float=_text_of_json_float))
        exact_lines.append(text.encode())
        for name, value in row.items():
            dtypes[name].update(_json_types(value))

    schema = {name: types.pop() if len(types) == 1 else pl.String() for name, types in dtypes.items()}
    return pl.scan_ndjson(BytesIO(b"\n".join(exact_lines)), schema=schema, row_index_name=ROW)


def _json_types(value: object) -> Sequence[pl.DataType]:
    """Return the type of the column of a *value* of JSON; none of null."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [pl.Boolean()]
    is_array = isinstance(value, list) and not any(isinstance(element, list | dict) for element in value)
    return [pl.List(pl.String()) if is_array else pl.String()]


def _text_of_json_float(text: str) -> str:
    number = float(text)
    is_whole = number.is_integer() and abs(number) < _WHOLE_FLOATS[pl.Float64()]
    return str(int(number)) if is_whole else str(number)
