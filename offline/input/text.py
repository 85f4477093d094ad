"""Text of rows: its delimiter and header found, its rows checked to be complete, and scanned; JSON lines as well."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import is_data, numbered
from hotplate.offline.input.files import DataFile, Format, data_errors, suffix

# How compressed files of these names begin.
_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_COMPRESSED = {".gz": _GZIP, ".zst": _ZSTD, ".zstd": _ZSTD}
_HEAD_BYTES = 4096
# Of less, no reader sees that it is compressed.
_MIN_COMPRESSED_BYTES = 5
_NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_DELIMITERS = (",", ";", "\t", "|", "::")
_SPELLED_DELIMITERS = {"\\t": "\t", "tab": "\t"}
# A byte that no text has, so splitting at it reads whole lines.
_NO_DELIMITER = "\x01"
# A column's name in RecBole's files.
_TYPED_NAME = re.compile(r"(.+):(?:token|token_seq|float|float_seq)")


def scan_text(file: DataFile, form: Format) -> tuple[pl.LazyFrame, int]:
    """Check all rows of *file*, and return its scan and the number of its first row of data, from 1.

    All columns are text, '' if a value is absent. Without a header they are named `column_1` and so on. A file that
    begins with `{` holds JSON lines. Raises DataError for what cannot be read, with the row if there is one.
    """
    _check_head(file)
    with _text_errors(file):
        first = str(_lines(file.path).head(1).collect().get_column("line")[0]).removeprefix("\ufeff")
    if not first.strip():
        raise DataError(f"{file} begins with an empty line; remove it.")
    if first.lstrip().startswith("{") or file.kind == "json":
        return _scan_json(file, first), 1
    separator = _separator(file, first, form.delimiter)
    fields = first.split(separator) if len(separator) > 1 else next(csv.reader([first], delimiter=separator))
    has_header = not is_data(fields) if form.header is None else form.header
    names = _names(file, fields) if has_header else numbered(len(fields))
    quoted = _check_rows(file, separator, len(names))
    with data_errors(file):
        if len(separator) > 1:
            split = pl.col("line").str.split_exact(separator, len(names) - 1).struct.rename_fields(names)
            frame = _lines(file.path).slice(int(has_header)).select(split).unnest("line")
        else:
            frame = pl.scan_csv(
                file.path,
                separator=separator,
                has_header=has_header,
                new_columns=names,
                quote_char='"' if quoted else None,
                infer_schema=False,
                empty_string_is_null=False,
                glob=False,
            )
        if quoted:
            frame.select(pl.len()).collect(engine="streaming")
    return frame, 2 if has_header else 1


def _names(file: DataFile, fields: Sequence[str]) -> list[str]:
    typed = [_TYPED_NAME.fullmatch(name) for name in fields]
    names = [match[1] for match in typed if match] if all(typed) else list(fields)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file} has two columns named {twice!r} in its header (row 1); rename one.")
    return names


def _scan_json(file: DataFile, first: str) -> pl.LazyFrame:
    if first.lstrip().startswith("["):
        raise DataError(f"{file} is one JSON array; write an object on each line instead: jq -c '.[]'.")
    try:
        with data_errors(file):
            # Keys may come late and types may change, so all rows are looked at; numbers keep their text.
            schema = pl.scan_ndjson(file.path, infer_schema_length=None).collect_schema()
            texts = {name: dtype if dtype.is_nested() else pl.String() for name, dtype in schema.items()}
            frame = pl.scan_ndjson(file.path, schema=texts)
            frame.select(pl.len()).collect(engine="streaming")
    except DataError as error:
        row = _row_without_object(file)
        if row is None:
            raise
        raise DataError(
            f'{file}, row {row}: not a JSON object; write one on each line, such as {{"user": 1, "item": 2}}.'
        ) from error
    return frame


def _row_without_object(file: DataFile) -> int | None:
    """Return the first row that is not one JSON object; None if Python can read them all."""
    with _text_errors(file):
        for row, line in enumerate(_all_lines(file), start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return row
            except ValueError:
                return row
    return None


def _check_head(file: DataFile) -> None:
    """Raise DataError if *file* begins neither as text nor as compressed data do, or is cut in its first bytes.

    Text is read, whatever its name: clients decompress on the way.
    """
    with data_errors(file), file.path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith((_GZIP, _ZSTD)) and len(head) >= _MIN_COMPRESSED_BYTES:
        return
    magic = _COMPRESSED.get(file.path.suffix.lower())
    if magic is not None and head[: len(magic)] == magic[: len(head)]:
        raise DataError(f"{file} is cut in the middle: it has {len(head)} bytes; fetch or copy it again.")
    if b"\0" in head or (magic is not None and _NOT_IN_TEXT.search(head)):
        raise DataError(
            f"{file} is neither UTF-8 text nor gzip or zstd data; name it as what it is, or convert it: "
            "iconv -f UTF-16 -t UTF-8."
        )


def _lines(file: Path, *, lossy: bool = False) -> pl.LazyFrame:
    """Scan *file* as lines: `row` counts from 0, the header's."""
    return pl.scan_csv(
        file,
        separator=_NO_DELIMITER,
        quote_char=None,
        has_header=False,
        new_columns=["line"],
        infer_schema=False,
        empty_string_is_null=False,
        row_index_name="row",
        encoding="utf8-lossy" if lossy else "utf8",
        glob=False,
    )


def _all_lines(file: DataFile) -> Iterator[str]:
    for batch in _lines(file.path).select("line").collect_batches(maintain_order=True):
        yield from batch.get_column("line")


def _separator(file: DataFile, first: str, delimiter: str | None) -> str:
    if delimiter is not None:
        separator = _SPELLED_DELIMITERS.get(delimiter, delimiter)
        if len(separator) == 0 or (len(separator) == 1 and not separator.isascii()):
            raise SettingError(
                f"The delimiter {delimiter!r} cannot be used; give an ASCII character, such as ; or \\t, or several."
            )
        if separator not in first:
            raise DataError(
                f"The first row of {file} has no {delimiter!r} in it: {first[:200]!r}; give another delimiter."
            )
        return separator
    if suffix(file.path) in {".tsv", ".tab", ".inter"} and "\t" in first:
        return "\t"
    if first.count("::") > 1:  # genres and the like are within a field of such files
        return "::"
    return max(_DELIMITERS, key=first.count)


def _check_rows(file: DataFile, separator: str, width: int) -> bool:
    """Check that every row of *file* has *width* fields, and return whether fields are quoted.

    A scan over lines, because a scan over fields fills in fields that are missing and drops those too many. Few files
    have quotes, so only those in which counting does not decide go through the slower csv reader.
    """
    line = pl.col("line")
    # Where the delimiter is of several characters, a quote means itself.
    opens = line.str.contains(rf'(?:^|{re.escape(separator)})"') if len(separator) == 1 else pl.lit(value=False)
    unquoted = pl.when(line.str.contains('"', literal=True)).then(line.str.replace_all('"[^"]*"', "")).otherwise(line)
    odd = (unquoted.str.count_matches(separator, literal=True) != width - 1) & (line != "")
    odd |= unquoted.str.contains('"', literal=True)
    stray = (line.str.count_matches(separator, literal=True) != width - 1) & (line != "")
    with _text_errors(file):
        facts = _lines(file.path).select(quoted=opens.any(), odd=odd.any(), stray=pl.col("row").filter(stray).min())
        quoted, suspicious, row = facts.collect(engine="streaming").row(0)
    if not quoted and row is not None:
        fields = _lines(file.path).filter(pl.col("row") == row).collect().get_column("line")[0].count(separator) + 1
        raise _ragged(file, row + 1, fields, width)
    if quoted and suspicious:
        _check_quoted_rows(file, separator, width)
    return bool(quoted)


def _check_quoted_rows(file: DataFile, separator: str, width: int) -> None:
    reader = csv.reader((f"{line}\n" for line in _all_lines(file)), delimiter=separator, strict=True)
    start = 1
    try:
        for fields in reader:
            if fields and len(fields) != width:
                raise _ragged(file, start, len(fields), width)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file}, row {start}: a quote is opened and not closed, or stands inside a field; double it."
        ) from error


def _ragged(file: DataFile, row: int, fields: int, width: int) -> DataError:
    return DataError(
        f"{file}, row {row}: too {'few' if fields < width else 'many'} fields, {fields} where the first row has {width}"
        "; mend the row (is the file cut, or a delimiter not quoted?)."
    )


@contextmanager
def _text_errors(file: DataFile) -> Iterator[None]:
    """Raise errors as `data_errors` does, and name the first row of text (1 is the header) that is not UTF-8."""
    try:
        with data_errors(file):
            yield
    except DataError as error:
        if not isinstance(error.__cause__, pl.exceptions.ComputeError):
            raise
        with data_errors(file):
            lossy = _lines(file.path, lossy=True).filter(pl.col("line").str.contains("\ufffd", literal=True))
            rows = lossy.select("row").head(1).collect()
        if rows.is_empty():
            raise
        row = rows.item() + 1
        raise DataError(f"{file}, row {row}: not UTF-8 text; convert the file: iconv -f LATIN1 -t UTF-8.") from error
