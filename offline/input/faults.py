"""Why a file cannot be read: the cause, its line and a way out, in place of the messages of parsers."""

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import polars as pl
import zstandard

from hotplate.offline.errors import DataError

HEAD_BYTES = 1 << 16
# Excel's first line, which names the delimiter.
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*$')

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PARQUET = b"PAR1"
_CUT = (EOFError, zlib.error, zstandard.ZstdError, OSError)
# Beginnings of files that are no text, and what to do with them.
_KINDS_BY_MAGIC = {
    b"PK\x03\x04": "an Excel workbook or a ZIP archive; save it as CSV, or unpack it",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as CSV",
    _PARQUET: "Parquet; let its name end in .parquet",
    b"ORC": "ORC; write it as Parquet",
    b"Obj\x01": "Avro; write it as Parquet",
    b"ARROW1": "Arrow; write it as Parquet",
    b"SQLite format 3": "a SQLite database; export its table as CSV",
}
_HTML_PATTERN = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)
_JSON_ARRAY_PATTERN = re.compile(rb'\s*\[\s*([{\["\]]|$)')
_OPEN_BRACE_PATTERN = re.compile(rb"\s*\{\s*(\"[^\"]*\"\s*:\s*)?[\[{]?\s*$")
# At least this share of NUL bytes is UTF-16 without a mark.
_NUL_SHARE = 0.2
# A quoted field does not have more lines.
_MOST_FIELD_LINES = 1000
_DELIMITERS = ",;\t|"


class _File(Protocol):
    """A DataFile."""

    @property
    def path(self) -> Path: ...

    @property
    def kind(self) -> str: ...


def check_text(file: _File) -> None:
    """Raise DataError if the beginning of a text file shows that it is of another kind."""
    try:
        with _opened(file.path) as stream:
            head = stream.read(HEAD_BYTES)
    except _CUT:
        return  # reported by its reader
    is_compressed = _is_compressed(file.path)
    if is_compressed and not head:  # zstandard reads nothing from a file that ends in its first block
        raise DataError(f"{file} is empty or cut; copy it again.")
    fault = next(_faults_of_head(decompressed(file.path.name), head), None)
    if fault is not None:
        raise DataError(f"{file} {_decompressed_first(fault, file.path)}.")


@contextmanager
def data_errors(source: object, files: Sequence[_File] = ()) -> Iterator[None]:
    """Raise errors of polars and the operating system within the context as DataError.

    *source* names the data in messages. After an error of polars, *files* are read again to find what is wrong.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, UnicodeError) as error:
        for file in files:
            fault = _fault_of_contents(file)
            if fault is not None:
                raise DataError(f"{file}{fault}.") from error
        raise DataError(f"{source} cannot be read or written: {_first_line(error)}.") from error
    except OSError as error:
        # An error of decompression is an OSError without errno.
        if error.errno is None and any(map(_is_compressed, (file.path for file in files))):
            raise DataError(f"{source} is cut or damaged ({_first_line(error)}); copy it again.") from error
        raise DataError(f"{source} cannot be read or written: {error.strerror or _first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _opened(path: Path) -> BinaryIO:
    """Open a file, decompressed as polars does it: by its first bytes."""
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic.startswith(_GZIP):
        return cast("BinaryIO", gzip.open(path, "rb"))
    if magic == _ZSTD:
        return BufferedReader(zstandard.open(path, "rb"))
    return path.open("rb")


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4).startswith((_GZIP, _ZSTD))


def decompressed(name: str) -> str:
    """Return the name of a file without the end that names its compression."""
    return re.sub(r"\.(gz|zstd?)$", "", name)


def _decompressed_first(fault: str, path: Path) -> str:
    """Return a *fault*, with further advice if it names a command, which cannot read a compressed file."""
    return f"{fault}; decompress it first" if ": " in fault and _is_compressed(path) else fault


def _faults_of_head(name: str, head: bytes) -> Iterator[str]:
    """Yield reasons why a file cannot be read as CSV or JSON lines, found in its first bytes (*head*).

    Each is the end of a sentence that begins with the file, such as `is empty`. *name* is the file's name in the
    commands that a reason suggests.
    """
    if not head.removeprefix(codecs.BOM_UTF8).strip():
        yield "is empty"

    for magic, kind in _KINDS_BY_MAGIC.items():
        if head.startswith(magic):
            yield f"is {kind}"

    if encoding := _utf_16_encoding(head):
        yield f"is UTF-16, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 {name} > utf8-{name}"
    if _HTML_PATTERN.match(head):
        yield "is HTML or XML, perhaps the page of an error or a login; download the data again"

    if _JSON_ARRAY_PATTERN.match(head):
        yield f"is a JSON array; write one object a line: jq -c '.[]' {name} > lines.jsonl"
    first_line = head.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0]
    if _OPEN_BRACE_PATTERN.match(first_line):
        yield f"is JSON with objects over several lines; write one a line: jq -c . {name} > lines.jsonl"

    if b"\n" not in head and b"\r" in head.rstrip():
        yield f"ends its lines with CR alone; convert it: tr '\\r' '\\n' < {name} > lf-{name}"


def _utf_16_encoding(head: bytes) -> str | None:
    """Return the encoding as iconv calls it, by the mark, or by the NUL bytes of ASCII characters."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if head.count(0) <= _NUL_SHARE * len(head):
        return None
    return "UTF-16LE" if head[1::2].count(0) > head[::2].count(0) else "UTF-16BE"


def _fault_of_contents(file: _File) -> str | None:
    """Return what is wrong with a file that could not be parsed, to be put after its name; None if unknown."""
    if file.kind == "parquet":
        return _fault_of_parquet(file.path)
    if file.kind == "events":
        return None
    try:
        with _opened(file.path) as lines:
            fault = _fault_of_encoding(lines, decompressed(file.path.name))
        if fault is None:
            with _opened(file.path) as lines:
                fault = _fault_of_quotes(map(bytes.decode, lines))
    except _CUT:
        return " is cut or damaged; copy it again"
    if fault is None and _is_compressed(file.path):
        return " is cut or damaged; copy it again"
    return fault and _decompressed_first(fault, file.path)


def _fault_of_parquet(path: Path) -> str | None:
    if not path.stat().st_size:
        return " is empty"
    with path.open("rb") as stream:
        magic = stream.read(len(_PARQUET))
        stream.seek(-min(len(_PARQUET), path.stat().st_size), 2)
        end = stream.read()
    if magic != _PARQUET:
        return f" is not Parquet, but begins with {magic!r}; rename it by its kind, such as .csv"
    return None if end == _PARQUET else " is cut, as it has no end; copy it again"


def _fault_of_encoding(lines: Iterable[bytes], name: str) -> str | None:
    """Find the first line that is not UTF-8.

    Returns the rest of a sentence that begins with the file, such as `, line 7: … is not UTF-8; …`, or None.
    *name* is the file's name in a command that converts it.
    """
    for number, line in enumerate(lines, start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            part = line[max(0, error.start - 20) : error.end + 20]
            return (
                f", line {number}: {part!r} is not UTF-8; convert the file: "
                f"iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8-{name}"
            )
    return None


def _fault_of_quotes(lines: Iterator[str]) -> str | None:
    """Find the first line of CSV with a quote that is never closed, and return the rest of a sentence on it, or None.

    A line with an odd number of quotes opens a quoted field, or closes the open one. The opening line is at fault if
    the lines up to the closing one are not one record, or are too many. JSON has no such faults.
    """
    # The first line tells the kind of the file, the delimiter and the number of fields.
    header = next(lines, "")
    if header.lstrip("\ufeff").startswith("{"):
        return None
    delimiter = max(_DELIMITERS, key=header.count)
    fields = header.count(delimiter) + 1

    # The lines since a quote was opened, with the number of the first; empty while none is open.
    record = list[str]()
    first_number = 0
    for number, line in enumerate(chain([header], lines), start=1):
        has_odd_quotes = line.count('"') % 2 == 1
        if not record:
            if has_odd_quotes:
                record.append(line)
                first_number = number
            continue

        # A quoted field is open: the line continues it or closes it.
        record.append(line)
        if has_odd_quotes:
            if not _is_record(record, delimiter, fields):
                break
            record.clear()
        elif len(record) > _MOST_FIELD_LINES:
            break

    if not record:
        return None
    return (
        f', line {first_number}: {record[0].rstrip()!r:.120} has a quote (") that is not closed; remove it, or enclose '
        'the field in quotes and write those within as ""'
    )


def _is_record(lines: Sequence[str], delimiter: str, fields: int) -> bool:
    """Return whether *lines* of CSV are one record with at most this number of *fields*."""
    try:
        records = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return len(records) == 1 and len(records[0]) <= fields
