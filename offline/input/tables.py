"""Input rows, scanned by polars; rows left out are counted, bad ones shown."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import MAX_ID_BYTES, choose_columns, number_in, numbered, read_time, time_format
from hotplate.offline.input.files import (
    COMPRESSIONS,
    DataFile,
    DataSource,
    Format,
    data_errors,
    input_files,
    named_paths,
)

# Columns added to a scan: the row's index in the file, and its fault, if any.
ROW = "\0row"
FAULT = "\0fault"
INCOMPLETE = "incomplete"
# Rows shown in a message.
SHOWN = 5
_HEAD_ROWS = 1000
_HEAD_BYTES = 4096
_NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_DELIMITERS = ",;\t"
_SPELLED_DELIMITERS = {"\\t": "\t", "tab": "\t"}
_FEW_FIELDS, _NO_JSON, _HALF = "too few fields", 'not a JSON object such as {"user": 1, "item": 2}', "half of a "


@dataclass(frozen=True, slots=True)
class Table:
    """One file, scanned as often as needed. All columns of a text file are text, '' for a missing value.

    frame      the columns of *schema*, ROW and FAULT
    first_row  number of the first data row in the file, from 1
    """

    file: DataFile
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    form: Format = field(default_factory=Format)
    first_row: int = 1

    def text(self, name: str | None) -> pl.Expr:
        """Return the column as text, null for a missing value; all null without a *name*.

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
        return pl.when(~self.is_absent(name)).then(text)

    def number(self, name: str) -> pl.Expr:
        """Return the column as a float, null if it is not a number."""
        dtype, column = self.schema[name], pl.col(name)
        if dtype.is_numeric() or dtype == pl.Boolean:
            return column.cast(pl.Float64)
        return column.cast(pl.String, strict=False).str.strip_chars().cast(pl.Float64, strict=False)

    def is_absent(self, name: str) -> pl.Expr:
        """Return whether the value is null, NaN, blank or a null value; never null."""
        dtype, column, null_values = self.schema[name], pl.col(name), self.form.null_values
        if dtype.is_numeric():
            absent = column.is_null() | column.is_nan() if dtype.is_float() else column.is_null()
            numbers = [number for number in map(number_in, null_values) if number is not None]
            return absent | column.cast(pl.Float64).is_in(numbers) if numbers else absent
        if not isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
            return column.is_null()
        text = column.cast(pl.String)
        # Only texts below "!" can be blank; stripping all takes as long as reading.
        blank = pl.when(text < "!").then(text).str.strip_chars() == ""
        return text.is_null() | blank.fill_null(value=False) | text.is_in(list(null_values))

    def time_format(self, name: str) -> str:
        """Return the format of a column of times."""
        present = self.frame.filter(~self.is_absent(name)).select(name).head(_HEAD_ROWS)
        with data_errors(self.file):
            return time_format(present.collect().get_column(name), self.form.time_format)

    def time(self, name: str, layout: str) -> pl.Expr:
        """Return the column as a naive UTC time, null if not in the format *layout*."""
        return read_time(name, self.schema[name], layout)

    def place(self, row: int) -> str:
        """Return the name of a row for messages."""
        return f"{self.file}, row {row + self.first_row}"

    def faults(self) -> Iterator[str]:
        """Describe the first faulty rows."""
        found = self.frame.filter(pl.col(FAULT) != "").select(ROW, FAULT).head(SHOWN).collect()
        for row, fault in found.iter_rows():
            known = fault.startswith((_FEW_FIELDS, _NO_JSON, _HALF))
            yield f"{self.place(row)}: {fault if known else f'too many fields, as {fault[:80]!r} after the last'}"


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
        if file.path.stat().st_size == 0:
            raise DataError(f"{file} is empty; give a file with a header and rows.")
        if file.kind == "parquet":
            frame, first_row = pl.scan_parquet(file.path, glob=False, row_index_name=ROW), 1
        else:
            frame, first_row = _scan_text(file, form)
        names = frame.collect_schema().names()
        keys = {key: value for key, value in file.keys.items() if key not in names}
        if FAULT not in names:
            keys[FAULT] = None
        frame = frame.with_columns(pl.lit(value, pl.String).alias(key) for key, value in keys.items())
        schema = {name: dtype for name, dtype in frame.collect_schema().items() if name not in (ROW, FAULT)}
        return Table(file, frame, schema, form, first_row)


def _scan_text(file: DataFile, form: Format) -> tuple[pl.LazyFrame, int]:
    _check_head(file)
    head = [str(line) for line in _lines(file).head(_HEAD_ROWS).collect().get_column("line")]
    first = head[0].removeprefix("\ufeff") if head else ""
    if not head:
        raise DataError(f"{file} is empty; give a file with a header and rows.")
    if "\r" in first:
        raise DataError(f"{file} has lines that end with CR alone; convert it: tr '\\r' '\\n'.")
    if not first.strip():
        raise DataError(f"{file} begins with an empty line; remove it.")
    if first.lstrip().startswith("{"):
        return _scan_json(file), 1
    if first.lstrip().startswith("[") and ".json" in file.path.name:
        raise DataError(f"{file} is one JSON array; write an object on each line instead: jq -c '.[]'.")
    separator = _separator(file, first, form.delimiter)
    names = next(csv.reader((f"{line}\n" for line in [first, *head[1:]]), delimiter=separator))
    if not form.header:
        names = numbered(len(names))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{file} has two columns named {twice!r} in its header (row 1); rename one.")
    return _scan_csv(file, separator, names, has_header=form.header), 1 + form.header


def _check_head(file: DataFile) -> None:
    """Raise DataError for binary and cut files; a .gz may be decompressed already."""
    with file.path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith(tuple(COMPRESSIONS.values())) and len(head) > 4:  # polars does not recognize shorter ones
        return
    magic = COMPRESSIONS.get(file.path.suffix.lower())
    if magic is not None and head[: len(magic)] == magic[: len(head)]:
        raise DataError(f"{file} is cut in the middle: it has {len(head)} bytes; fetch or copy it again.")
    if b"\0" in head or (magic is not None and _NOT_IN_TEXT.search(head)):
        raise DataError(
            f"{file} is neither UTF-8 text nor gzip or zstd data; name it as what it is, or convert it: "
            "iconv -f UTF-16 -t UTF-8."
        )


def _lines(file: DataFile) -> pl.LazyFrame:
    return pl.scan_lines(file.path, row_index_name=ROW, glob=False)


def _separator(file: DataFile, first: str, delimiter: str | None) -> str:
    if delimiter is None:
        return max(_DELIMITERS, key=first.count)
    separator = _SPELLED_DELIMITERS.get(delimiter, delimiter)
    if len(separator) != 1 or not separator.isascii():
        raise SettingError(f"The delimiter {delimiter!r} cannot be used; give one ASCII character, such as ; or \\t.")
    if separator not in first:
        raise DataError(f"The first row of {file} has no {delimiter!r} in it: {first[:200]!r}; give another delimiter.")
    return separator


def _scan_csv(file: DataFile, separator: str, names: Sequence[str], *, has_header: bool) -> pl.LazyFrame:
    """Return the rows without blank lines. If no field begins with a quote, quotes are plain text."""
    blank = pl.all_horizontal(pl.col(name) == "" for name in names) if len(names) > 1 else pl.lit(value=False)
    ends = (pl.col(names[-1]) == "") & ~blank
    for quote in ('"', None):
        frame = pl.scan_csv(
            file.path,
            schema=dict.fromkeys([*names, FAULT], pl.String()),
            separator=separator,
            has_header=has_header,
            quote_char=quote,
            empty_string_is_null=False,
            extra_columns="ignore",
            missing_columns="insert",
            row_index_name=ROW,
            glob=False,
        )
        try:
            counts = frame.select(blank=blank.sum(), ends=ends.sum()).collect(engine="streaming").row(0, named=True)
        except pl.exceptions.ComputeError as error:
            malformed = "malformed" in str(error) or "could not parse" in str(error)
            if quote is None or not malformed or _any_line(file, rf'(?:^|{re.escape(separator)})"'):
                raise
            continue
        frame = frame.filter(~blank) if counts["blank"] else frame
        short = _short_rows(file, separator, len(names), quote) if counts["ends"] and len(names) > 1 else []
        if short:
            is_short = pl.col(ROW).is_in([row - has_header for row in short])
            frame = frame.with_columns(pl.when(is_short).then(pl.lit(_FEW_FIELDS)).otherwise(FAULT).alias(FAULT))
        return frame
    raise AssertionError("the second scan returns or raises")


def _any_line(file: DataFile, pattern: str) -> bool:
    found = _lines(file).select(pl.col("line").str.contains(pattern).any())
    return bool(found.collect(engine="streaming").item())


def _short_rows(file: DataFile, separator: str, fields: int, quote: str | None) -> list[int]:
    """Return indices of lines with too few *fields*, which polars fills up; none if quoted fields have line ends."""
    line = pl.col("line")
    plain = line
    if quote is not None:
        open_quotes = _lines(file).select((line.str.count_matches(quote, literal=True) % 2 == 1).any())
        if open_quotes.collect(engine="streaming").item():
            return []
        # Quotes inside a field do not enclose separators.
        plain = line.str.replace_all(rf'(^|{re.escape(separator)})"(?:[^"]|"")*"', "$1")
    is_short = (plain.str.count_matches(separator, literal=True) < fields - 1) & (line.str.strip_chars() != "")
    return _lines(file).filter(is_short).select(ROW).collect(engine="streaming").get_column(ROW).to_list()


def _scan_json(file: DataFile) -> pl.LazyFrame:
    # polars reads half a surrogate pair as NUL, which would merge ids.
    escaped = pl.col("line").str.replace_all(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "")
    halves = _lines(file).select(escaped.str.contains(r"\\u[dD][89a-fA-F]").any())
    if not halves.collect(engine="streaming").item():
        try:
            frame = _ndjson(file.path)
            frame.select(pl.len()).collect(engine="streaming")
        except pl.exceptions.PolarsError:
            pass
        else:
            return frame
    lines, first_fault = list[str](), None
    for batch in _lines(file).select("line").collect_batches(maintain_order=True):
        for line in filter(str.strip, batch.get_column("line")):
            fault = _json_fault(line)
            first_fault = first_fault or (fault and f"{file}, row {len(lines) + 1}: {fault}.")
            lines.append(line if fault is None else json.dumps({FAULT: fault}))
    frame = _ndjson(io.BytesIO("\n".join(lines).encode()))
    if first_fault is not None and frame.collect_schema().names() == [ROW, FAULT]:
        raise DataError(first_fault)
    return frame


def _ndjson(source: Any) -> pl.LazyFrame:  # noqa: ANN401 -- a path or a stream
    # Keys may appear late; numbers keep their text.
    schema = pl.scan_ndjson(source, infer_schema_length=None).collect_schema()
    texts = {name: dtype if dtype.is_nested() else pl.String() for name, dtype in schema.items()}
    return pl.scan_ndjson(source, schema=texts, row_index_name=ROW)


def _json_fault(line: str) -> str | None:
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return f"{_HALF}surrogate pair, which is not a character"
    except ValueError:
        return _NO_JSON
    return None if isinstance(value, dict) else _NO_JSON


@dataclass(frozen=True, slots=True)
class TableShape:
    """How to read the rows of a *table*.

    values    aliased expressions over the table's columns
    derived   expressions over the values
    left_out  conditions over the values by reason, tried in this order
    bad       for reasons that make a row bad: its column, and the fault
    """

    table: Table
    values: Sequence[pl.Expr]
    left_out: Mapping[str, pl.Expr]
    bad: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    derived: Sequence[pl.Expr] = ()


class Rows:
    """The rows of several tables.

    total     number of rows
    left_out  number of rows left out by reason, without zeros
    facts     aggregates over the rows kept; `rows` is their number
    bad       descriptions of the first bad rows
    """

    def __init__(
        self,
        shapes: Sequence[TableShape],
        source: str,
        *facts: pl.Expr,
        advice: str = "mend the rows",
        repeated: Sequence[str] = (),
    ) -> None:
        """Count all rows; text columns in *repeated* become categories, and the rows stay in memory.

        Raises DataError for too many bad rows, and, with *advice*, if no row is kept.
        """
        self._tables = [shape.table for shape in shapes]
        reasons = dict.fromkeys([INCOMPLETE, *(reason for shape in shapes for reason in shape.left_out)])
        self._reasons = {reason: number for number, reason in enumerate(reasons, start=1)}
        self._all = pl.concat([self._shaped(*numbered, repeated) for numbered in enumerate(shapes)], how="diagonal")
        with data_errors(source):
            if repeated:
                self._all = self._all.collect(engine="streaming").lazy()
            groups = self._all.group_by("reason").agg(pl.len().alias("rows"), *facts).collect(engine="streaming")
        found = {group["reason"]: group for group in groups.iter_rows(named=True)}
        self.total = sum(group["rows"] for group in found.values())
        if not self.total:
            raise DataError(f"{source} has a header but no rows; give a file with rows.")
        self.left_out = {reason: found[number]["rows"] for reason, number in self._reasons.items() if number in found}
        self.bad = self._bad_rows(shapes, source)
        if 0 not in found:
            counted = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            raise DataError(f"Nothing is left of the {self.total:,} rows of {source}: {counted}; {advice}.")
        self.facts: dict[str, Any] = found[0]

    @property
    def kept(self) -> pl.LazyFrame:
        """The values and ROW of the rows kept."""
        return self._all.filter(pl.col("reason") == 0).drop("file", "reason")

    def values(self, reason: str, name: str) -> pl.DataFrame:
        """Return [value, len] of *name* in rows left out for *reason*, most frequent first."""
        left_out = self._all.filter(pl.col("reason") == self._reasons[reason])
        counted = left_out.group_by(value=name).len().with_columns(pl.col("value").cast(pl.String))
        return counted.sort("len", "value", descending=[True, False]).collect(engine="streaming")

    def cells(self, reason: str, column: str) -> Iterator[tuple[str, str]]:
        """Yield place and value in *column* of the first rows left out for *reason*."""
        found = self._all.filter(pl.col("reason") == self._reasons[reason]).select("file", ROW).head(SHOWN)
        for file, row in found.collect().iter_rows():
            table = self._tables[file]
            yield table.place(row), repr(table.frame.filter(pl.col(ROW) == row).select(column).collect().item())

    def note_of_bad_rows(self) -> str | None:
        """Return a sentence that shows the bad rows, if any."""
        return f"bad rows are left out: {'; '.join(self.bad)}" if self.bad else None

    def _bad_rows(self, shapes: Sequence[TableShape], source: str) -> list[str]:
        shown, faults = list[str](), {INCOMPLETE} & self.left_out.keys()
        if faults:
            shown += [each for table in self._tables for each in table.faults()]
        for reason, (column, wrong) in {each: bad for shape in shapes for each, bad in shape.bad.items()}.items():
            if reason in self.left_out:
                faults.add(reason)
                shown += [f"{place}, column {column!r}: {value} {wrong}" for place, value in self.cells(reason, column)]
        bad, share = sum(self.left_out[reason] for reason in faults), shapes[0].table.form.max_bad_rows
        if bad > share * self.total:
            raise DataError(
                f"{'; '.join(shown[:SHOWN])}. {bad:,} of the {self.total:,} rows of {source} "
                f"{'is' if bad == 1 else 'are'} bad, and at most {share:.3%} may be; mend them"
                f"{', or raise --max-bad-rows' if share else ''}."
            )
        return shown

    def _shaped(self, number: int, shape: TableShape, repeated: Sequence[str]) -> pl.LazyFrame:
        # In steps, as polars would compute the values for each condition.
        faulty = (pl.col(FAULT) != "").fill_null(value=False).alias(FAULT)
        rows = shape.table.frame.select(ROW, faulty, *shape.values).with_columns(*shape.derived)
        left_out = {INCOMPLETE: pl.col(FAULT), **shape.left_out}
        tried = [pl.when(found).then(pl.lit(self._reasons[reason])) for reason, found in left_out.items()]
        marked = rows.with_columns(file=pl.lit(number, pl.UInt16), reason=pl.coalesce(*tried, pl.lit(0)).cast(pl.UInt8))
        helpers = [name for name in left_out if name in marked.collect_schema()]
        alike = [pl.col(name).cast(pl.Categorical) for name in repeated if name in marked.collect_schema()]
        return marked.drop(FAULT, *helpers).with_columns(alike)


def read_text(path: DataSource, roles: Sequence[str], **named: str | None) -> pl.DataFrame:
    """Return columns of a small file or folder as `text_of`."""
    with input_files([path]) as files:
        return text_of(files, named_paths([path]), roles, **named)


def text_of(files: Sequence[DataFile], source: str, roles: Sequence[str], **named: str | None) -> pl.DataFrame:
    """Return columns of *files* as text, by role: those *named*, and *roles* by their usual names.

    Rows without an item are left out. The item's column may be missing, and fields at the end of rows. Raises DataError
    for any other bad row.
    """
    fault = pl.when(pl.col(FAULT) != _FEW_FIELDS).then(FAULT).alias(FAULT)
    tables = [
        replace(table, frame=table.frame.with_columns(fault)) for table in open_tables(files, Format(max_bad_rows=0))
    ]
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
