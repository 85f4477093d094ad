"""Tables: files of rows, scanned by polars, read in one shape and checked; what is left out is counted by reason."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

# Columns of a scan beside those of the file: the number of a row, from 0, and what it has that it must not have.
ROW = "\0row"
FAULT = "\0fault"
# Why rows are left out that have more fields than the header, or are no JSON.
INCOMPLETE = "incomplete"
# Of the rows that a message is about, so many are shown.
SHOWN = 5
# A whole number as pandas writes one of a column that has missing values, and as everybody else does.
_WHOLE_ID = r"^-?(?:0|[1-9]\d*)(?:\.0)?$"
# In these the format of times is looked for.
_HEAD_ROWS = 1000
_HEAD_BYTES = 4096
_NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_DELIMITERS = ",;\t|"
_SPELLED_DELIMITERS = {"\\t": "\t", "tab": "\t"}


@dataclass(frozen=True, slots=True)
class Table:
    """One file to be scanned, as often as needed; a text file has only text columns, '' if a value is absent.

    frame      the columns of *schema*, ROW, and FAULT if a row has one: '' or null for the others
    first_row  the number of the first row of data in the file, from 1
    whole      the columns of text that are whole numbers, some or all written as 17850.0
    """

    file: DataFile
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    form: Format = field(default_factory=Format)
    first_row: int = 1
    has_faults: bool = False
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

    def place(self, row: int) -> str:
        """Return how messages name a row."""
        return f"{self.file}, row {row + self.first_row}"

    @property
    def is_faulty(self) -> pl.Expr:
        """Whether a row has a fault; never null."""
        return pl.col(FAULT).fill_null("") != "" if self.has_faults else pl.lit(value=False)

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the first faulty rows."""
        if self.has_faults:
            found = self.frame.filter(self.is_faulty).select(ROW, FAULT).head(SHOWN).collect()
            for row, fault in found.iter_rows():
                is_json = fault.startswith(_NO_JSON)
                yield f"{self.place(row)}: {fault if is_json else f'too many fields, as {fault[:80]!r} after the last'}"


def open_tables(files: Sequence[DataFile], form: Format, source: str) -> list[Table]:
    """Open *files*, which messages call *source*.

    Raises DataError for what cannot be read, for too many faulty rows, and when the files differ in their columns.
    """
    opened = [_open(file, form) for file in files]
    tables = [table for table, _, _ in opened]
    first = tables[0]
    for table in tables[1:]:
        if set(table.schema) != set(first.schema):
            raise DataError(
                f"{table.file} has the columns {', '.join(table.schema)}, but {first.file} has "
                f"{', '.join(first.schema)}; files that are read together must have the same columns."
            )
    total, faulty = sum(rows for _, rows, _ in opened), sum(count for _, _, count in opened)
    if not total:
        raise DataError(f"{source} has a header but no rows; give a file with rows.")
    refuse_bad_rows(faulty, total, [each for table in tables for each in table.faults()], form.max_bad_rows, source)
    return tables


def _open(file: DataFile, form: Format) -> tuple[Table, int, int]:
    """Return a file as a table, its rows, and how many of them are faulty."""
    with data_errors(file):
        if file.path.stat().st_size == 0:
            raise DataError(f"{file} is empty; give a file with a header and rows.")
        if file.kind == "parquet":
            frame, first_row, counts = pl.scan_parquet(file.path, glob=False, row_index_name=ROW), 1, {}
            counts["rows"] = frame.select(pl.len()).collect(engine="streaming").item()
        else:
            frame, first_row, counts = _scan_text(file, form)
        faulty = counts.get("faulty", 0)
        frame = frame if faulty else frame.drop(FAULT, strict=False)
        names = frame.collect_schema().names()
        frame = frame.with_columns(
            pl.lit(value, pl.String).alias(key) for key, value in file.keys.items() if key not in names
        )
        schema = {name: dtype for name, dtype in frame.collect_schema().items() if name not in (ROW, FAULT)}
        return Table(file, frame, schema, form, first_row, bool(faulty)), counts["rows"], faulty


def _scan_text(file: DataFile, form: Format) -> tuple[pl.LazyFrame, int, dict[str, int]]:
    """Return the scan of *file*, all columns text, the number of its first row, and counts of its rows.

    Without a header columns are named `column_1` and so on. A file that begins with `{` holds JSON lines. Raises
    DataError for what cannot be read at all.
    """
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
        return _scan_json(file)
    if first.lstrip().startswith("[") and ".json" in file.path.name:
        raise DataError(f"{file} is one JSON array; write an object on each line instead: jq -c '.[]'.")
    separator = _separator(file, first, form.delimiter)
    header = next(csv.reader((f"{line}\n" for line in [first, *head[1:]]), delimiter=separator))
    names = header if form.header else numbered(len(header))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{file} has two columns named {twice!r} in its header (row 1); rename one.")
    return _scan_csv(file, separator, names, has_header=form.header)


def _scan_csv(
    file: DataFile, separator: str, names: Sequence[str], *, has_header: bool
) -> tuple[pl.LazyFrame, int, dict[str, int]]:
    """Return what `_scan_text` does; blank lines are no rows, and fields that a row lacks are absent values."""
    blank = pl.all_horizontal(pl.col(name) == "" for name in names) if len(names) > 1 else pl.lit(value=False)
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
        counted = frame.select(rows=(~blank).sum(), blank=blank.sum(), faulty=(pl.col(FAULT) != "").sum())
        try:
            counts = counted.collect(engine="streaming").row(0, named=True)
        except pl.exceptions.ComputeError as error:
            malformed = "malformed" in str(error) or "could not parse" in str(error)
            if quote is None or not malformed or _is_quoted(file, separator):
                raise
        else:
            if len(names) == 1:
                counts["rows"] = frame.select(pl.len()).collect(engine="streaming").item()
            return (frame.filter(~blank) if counts["blank"] else frame), 1 + has_header, counts
    raise AssertionError("the second scan returns or raises")


def _is_quoted(file: DataFile, separator: str) -> bool:
    """Return whether any field begins with a quote; else quotes mean themselves."""
    opens = pl.col("line").str.contains(rf'(?:^|{re.escape(separator)})"')
    return bool(_lines(file).select(opens.any()).collect(engine="streaming").item())


def _check_head(file: DataFile) -> None:
    """Raise DataError if *file* begins neither as text nor as compressed data do, or is cut in its first bytes.

    Text is read, whatever its name: clients decompress on the way.
    """
    with file.path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith(tuple(COMPRESSIONS.values())) and len(head) > 4:  # of less, no reader sees that it is compressed
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
    return pl.scan_lines(file.path, row_index_name="row", glob=False)


def _all_lines(file: DataFile) -> Iterator[str]:
    for batch in _lines(file).select("line").collect_batches(maintain_order=True):
        yield from batch.get_column("line")


def _separator(file: DataFile, first: str, delimiter: str | None) -> str:
    if delimiter is None:
        return max(_DELIMITERS, key=first.count)
    separator = _SPELLED_DELIMITERS.get(delimiter, delimiter)
    if len(separator) != 1 or not separator.isascii():
        raise SettingError(f"The delimiter {delimiter!r} cannot be used; give one ASCII character, such as ; or \\t.")
    if separator not in first:
        raise DataError(f"The first row of {file} has no {delimiter!r} in it: {first[:200]!r}; give another delimiter.")
    return separator


_NO_JSON = ("not a JSON", "half of a")


def _scan_json(file: DataFile) -> tuple[pl.LazyFrame, int, dict[str, int]]:
    # polars reads a surrogate without its other half, which is no character, as NUL; two of them would be one id.
    escaped = pl.col("line").str.replace_all(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "")
    lone = escaped.str.contains(r"\\u[dD][89a-fA-F]")
    if not _lines(file).select(lone.any()).collect(engine="streaming").item():
        try:
            frame = _ndjson(file.path)
            return frame, 1, {"rows": frame.select(pl.len()).collect(engine="streaming").item()}
        except pl.exceptions.PolarsError:
            pass
    lines, faulty = list[str](), list[str]()
    for line in _all_lines(file):
        if line.strip():
            fault = _json_fault(line)
            if fault is not None:
                faulty.append(f"{file}, row {len(lines) + 1}: {fault}.")
            lines.append(line if fault is None else json.dumps({FAULT: fault}))
    if len(faulty) == len(lines):
        raise DataError(faulty[0])
    return _ndjson(io.BytesIO("\n".join(lines).encode())), 1, {"rows": len(lines), "faulty": len(faulty)}


def _ndjson(source: object) -> pl.LazyFrame:
    # Keys may come late and types may change, so all rows are looked at; numbers keep their text.
    schema = pl.scan_ndjson(source, infer_schema_length=None).collect_schema()  # type: ignore[arg-type]  # a path or bytes
    texts = {name: dtype if dtype.is_nested() else pl.String() for name, dtype in schema.items()}
    return pl.scan_ndjson(source, schema=texts, row_index_name=ROW)  # type: ignore[arg-type]  # as above


def _json_fault(line: str) -> str | None:
    """Return what is wrong with a *line* that should be a JSON object; None if nothing is."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is no character"
    except ValueError:
        value = None
    return None if isinstance(value, dict) else 'not a JSON object such as {"user": 1, "item": 2}'


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
    pointed = [table.frame.select(pl.col(name).head(_HEAD_ROWS).str.ends_with(".0").any()) for table in texts]
    if not any(frame.collect(engine="streaming").item() for frame in pointed):
        return False
    whole = [table.frame.select(table.text(name).str.contains(_WHOLE_ID).all()) for table in texts]
    return all(frame.collect(engine="streaming").item() for frame in whole)


@dataclass(frozen=True, slots=True)
class TableShape:
    """How the rows of one *table* are read.

    values    what a row becomes: expressions over the columns of the table, each with an alias
    derived   what takes the place of some values, or stands beside them: expressions over the values
    left_out  why a row is left out: conditions over the values, in the order in which they are tried
    bad       of these reasons, those of bad rows: in which column, and what is wrong with its value
    """

    table: Table
    values: Sequence[pl.Expr]
    left_out: Mapping[str, pl.Expr]
    bad: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    derived: Sequence[pl.Expr] = ()


class Rows:
    """The rows of all tables, counted, and to be scanned as often as needed.

    total     how many there are
    left_out  how many of them are left out, by reason, in the order in which the reasons are tried; zeros not listed
    facts     by name, over those that are kept; `rows` is how many they are
    bad       the first of the bad rows, with what is wrong with them
    """

    def __init__(
        self,
        shapes: Sequence[TableShape],
        source: str,
        *facts: pl.Expr,
        advice: str = "mend the rows",
        repeated: Sequence[str] = (),
    ) -> None:
        """Read all rows once; what a table has no value of is null in its rows.

        With *repeated*, the names of texts of which many are alike, the rows stay in memory, and these are categories.
        Raises DataError for too many bad rows, and, with *advice*, when no row is kept.
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
        self.total = int(groups.get_column("rows").sum())
        self.left_out = {reason: found[number]["rows"] for reason, number in self._reasons.items() if number in found}
        faults = {reason: fault for shape in shapes for reason, fault in shape.bad.items() if reason in self.left_out}
        self.bad = [each for table in self._tables for each in table.faults()]
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
        """The rows that are not left out: their values, and ROW, their number within their file from 0."""
        return self._all.filter(pl.col("reason") == 0).drop("file", "reason")

    def values(self, reason: str, name: str) -> pl.DataFrame:
        """Return [value, len] of the value *name* of the rows that are left out for a *reason*, most frequent first."""
        left_out = self._all.filter(pl.col("reason") == self._reasons[reason])
        counted = left_out.group_by(value=name).len().with_columns(pl.col("value").cast(pl.String))
        return counted.sort("len", "value", descending=[True, False]).collect(engine="streaming")

    def cells(self, reason: str, column: str) -> Iterator[tuple[str, str]]:
        """Yield where the first rows are that are left out for a *reason*, and their values in *column*."""
        found = self._all.filter(pl.col("reason") == self._reasons[reason]).select("file", ROW).head(SHOWN)
        for file, row in found.collect().iter_rows():
            table = self._tables[file]
            value = table.frame.filter(pl.col(ROW) == row).select(column).collect().item()
            yield table.place(row), repr(value)

    def _shaped(self, number: int, shape: TableShape, repeated: Sequence[str]) -> pl.LazyFrame:
        # In steps, so what a value is made of is not computed again for each condition.
        faulty = shape.table.is_faulty.alias(FAULT)
        rows = shape.table.frame.select(ROW, faulty, *shape.values).with_columns(*shape.derived)
        left_out = {INCOMPLETE: pl.col(FAULT), **shape.left_out}
        tried = [pl.when(found).then(pl.lit(self._reasons[reason])) for reason, found in left_out.items()]
        marked = rows.with_columns(file=pl.lit(number, pl.UInt16), reason=pl.coalesce(*tried, pl.lit(0)).cast(pl.UInt8))
        helpers = [name for name in left_out if name in marked.collect_schema()]
        alike = [pl.col(name).cast(pl.Categorical) for name in repeated if name in marked.collect_schema()]
        return marked.drop(FAULT, *helpers).with_columns(alike)


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
    text = pl.col("item", "title").cast(pl.String)
    with data_errors(source):
        counted = rows.group_by("item", "title").agg(pl.len()).with_columns(text).collect(engine="streaming")
    plain = counted.with_columns(pl.col("title").str.strip_chars()).filter(pl.col("title") != "")
    counted = plain.group_by("item", "title").agg(pl.col("len").sum())
    best = counted.sort("len", "title", descending=[True, False]).unique("item", keep="first", maintain_order=True)
    return dict(zip(best.get_column("item"), best.get_column("title"), strict=True))


def note_of_bad_rows(rows: Rows) -> str | None:
    """Say which the first bad rows are that are left out."""
    return f"bad rows are left out: {'; '.join(rows.bad)}" if rows.bad else None


def note_of_whole_numbers(columns: Sequence[str]) -> str | None:
    """Say of which columns the ids are read without the .0 that they are written with."""
    if not columns:
        return None
    return f"the ids in {' and '.join(columns)} are whole numbers that are written as 17850.0; they are read as 17850"
