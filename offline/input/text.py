"""Text of rows, delimited or JSON lines: scanned by polars, with the rows that are not complete found beforehand."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import numbered
from hotplate.offline.input.files import COMPRESSIONS, DataFile, Format, data_errors

_HEAD_BYTES = 4096
_NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_DELIMITERS = ",;\t|"
_SPELLED_DELIMITERS = {"\\t": "\t", "tab": "\t"}
# Of the rows that a message is about, so many are shown.
SHOWN = 5


class Text(NamedTuple):
    """A text to be scanned.

    first_row  the number of the first row of data in the file, from 1
    bad        the rows, from 0, that are not complete
    shown      what the first of these are
    """

    frame: pl.LazyFrame
    first_row: int
    bad: Sequence[int] = ()
    shown: Sequence[str] = ()


def scan_text(file: DataFile, form: Format) -> Text:
    """Return the scan of *file*; all columns are text, '' if a value is absent.

    Without a header they are named `column_1` and so on. A file that begins with `{` holds JSON lines. Raises DataError
    for what cannot be read at all.
    """
    _check_head(file)
    head = _lines(file).head(1).collect().get_column("line")
    if head.is_empty():
        raise DataError(f"{file} is empty; give a file with a header and rows.")
    first = str(head[0]).removeprefix("\ufeff")
    if "\r" in first:
        raise DataError(f"{file} has lines that end with CR alone; convert it: tr '\\r' '\\n'.")
    if not first.strip():
        raise DataError(f"{file} begins with an empty line; remove it.")
    if first.lstrip().startswith("{"):
        return _scan_json(file)
    if first.lstrip().startswith("[") and ".json" in file.path.name:
        raise DataError(f"{file} is one JSON array; write an object on each line instead: jq -c '.[]'.")
    separator = _separator(file, first, form.delimiter)
    header = next(csv.reader([first], delimiter=separator))
    names = header if form.header else numbered(len(header))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{file} has two columns named {twice!r} in its header (row 1); rename one.")
    quoted, bad, shown = _incomplete(file, separator, len(names), int(form.header))
    frame = pl.scan_csv(
        file.path,
        separator=separator,
        has_header=form.header,
        new_columns=names,
        quote_char='"' if quoted else None,
        infer_schema=False,
        empty_string_is_null=False,
        extra_columns="ignore",
        missing_columns="insert",
        glob=False,
    )
    return Text(frame, 1 + form.header, bad, shown)


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


def _incomplete(file: DataFile, separator: str, width: int, header: int) -> tuple[bool, list[int], list[str]]:
    """Return whether fields are quoted, and the rows that have not *width* fields, because a scan hides that.

    Only files in which counting delimiters by line does not decide go through the slower csv reader.
    """
    line = pl.col("line")
    opens = line.str.contains(rf'(?:^|{re.escape(separator)})"')
    unquoted = pl.when(line.str.contains('"', literal=True)).then(line.str.replace_all('"[^"]*"', "")).otherwise(line)
    odd = (unquoted.str.count_matches(separator, literal=True) != width - 1) & (line != "")
    odd |= unquoted.str.contains('"', literal=True)
    found = _lines(file).select(quoted=opens.any(), odd=odd.any())
    quoted, suspicious = found.collect(engine="streaming").row(0)
    if quoted:
        rows = _quoted_fields(file, separator) if suspicious else iter(())
    else:
        fields = line.str.count_matches(separator, literal=True) + 1
        counted = _lines(file).filter((fields != width) & (line != "")).select("row", fields)
        rows = iter(counted.collect(engine="streaming").iter_rows())
    bad = [(row, count) for row, count in rows if count not in (0, width)]
    shown = [
        f"{file}, row {row + 1}: too {'few' if count < width else 'many'} fields, {count} where row 1 has {width}"
        for row, count in bad[:SHOWN]
    ]
    return bool(quoted), [row - header for row, _ in bad], shown


def _quoted_fields(file: DataFile, separator: str) -> Iterator[tuple[int, int]]:
    """Yield each row and how many fields it has."""
    row = -1
    try:
        for row, fields in enumerate(
            csv.reader((f"{line}\n" for line in _all_lines(file)), delimiter=separator, strict=True)
        ):
            yield row, len(fields)
    except csv.Error as error:
        raise DataError(
            f"{file}, row {row + 2}: a quote is opened and not closed, or stands inside a field; double it."
        ) from error


def _scan_json(file: DataFile) -> Text:
    # polars reads a surrogate without its other half, which is no character, as NUL; two of them would be one id.
    escaped = pl.col("line").str.replace_all(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "")
    lone = escaped.str.contains(r"\\u[dD][89a-fA-F]")
    with data_errors(file):
        if not _lines(file).select(lone.any()).collect(engine="streaming").item():
            try:
                return Text(_ndjson(file.path), 1)
            except pl.exceptions.PolarsError:
                pass
    lines, bad, shown = list[str](), list[int](), list[str]()
    for line in _all_lines(file):
        if not line.strip():
            continue
        fault = _json_fault(line)
        if fault is not None:
            bad.append(len(lines))
            shown.append(f"{file}, row {len(lines) + 1}: {fault}")
        lines.append("{}" if fault else line)
    if len(bad) == len(lines):
        raise DataError(f"{shown[0]}.")
    return Text(_ndjson(io.BytesIO("\n".join(lines).encode())), 1, bad, shown[:SHOWN])


def _ndjson(source: object) -> pl.LazyFrame:
    # Keys may come late and types may change, so all rows are looked at; numbers keep their text.
    schema = pl.scan_ndjson(source, infer_schema_length=None).collect_schema()  # type: ignore[arg-type]  # a path or bytes
    texts = {name: dtype if dtype.is_nested() else pl.String() for name, dtype in schema.items()}
    frame = pl.scan_ndjson(source, schema=texts)  # type: ignore[arg-type]  # as above
    frame.select(pl.len()).collect(engine="streaming")
    return frame


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
