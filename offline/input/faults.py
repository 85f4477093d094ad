"""Why a file cannot be read: the cause, its line and a way out, in place of the messages of parsers."""

import csv
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol

import polars as pl
import zstandard
from fsspec.implementations.local import LocalFileSystem

from hotplate.offline.errors import DataError

HEAD_BYTES = 1 << 16
# Excel's first line, which names the delimiter.
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*$')

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_CUT = (EOFError, zlib.error, zstandard.ZstdError, OSError)
_UTF_16 = "is UTF-16, not UTF-8; convert it: iconv -f {encoding} -t UTF-8 {{name}} > utf8-{{name}}"
# What the first bytes of a file that is neither CSV nor JSON lines tell, as the end of a sentence.
_TEXT_HEADS = {
    rb"(\xef\xbb\xbf)?\s*\Z": "is empty",
    rb"PK\x03\x04": "is an Excel workbook or a ZIP archive; save it as CSV, or unpack it",
    rb"\xd0\xcf\x11\xe0": "is an old Excel workbook; save it as CSV",
    rb"PAR1": "is Parquet; let its name end in .parquet",
    rb"ORC": "is ORC; write it as Parquet",
    rb"Obj\x01": "is Avro; write it as Parquet",
    rb"ARROW1": "is Arrow; write it as Parquet",
    rb"BZh|\xfd7zXZ|\x1f\x8b|\x28\xb5\x2f\xfd": "is of bzip2 or xz, or compressed twice; compress it once by gzip",
    rb"%PDF|\x89PNG|\xff\xd8\xff": "is a PDF or an image; export the table as CSV",
    rb"SQLite format 3": "is a SQLite database; export its table as CSV",
    rb"\xff\xfe|\xfe\xff": _UTF_16.format(encoding="UTF-16"),
    # Without a mark: two ASCII characters with their NUL bytes.
    rb"[^\0]\0[^\0]\0": _UTF_16.format(encoding="UTF-16LE"),
    rb"\0[^\0]\0[^\0]": _UTF_16.format(encoding="UTF-16BE"),
    rb"\s*<(?i:!doctype|html|\?xml)": (
        "is HTML or XML, perhaps the page of an error or a login; download the data again"
    ),
    rb'\s*\[\s*([{\["\]]|\Z)': "is a JSON array; write one object a line: jq -c '.[]' {name} > lines.jsonl",
    rb'(\xef\xbb\xbf)?\s*\{\s*("[^"]*"\s*:\s*)?[\[{]?\s*(\n|\Z)': (
        "is JSON with objects over several lines; write one a line: jq -c . {name} > lines.jsonl"
    ),
    rb"[^\n\r]*+\r[^\S\n]*+\S[^\n]*+\Z": (
        "ends its lines with CR alone; convert it: tr '\\r' '\\n' < {name} > lf-{name}"
    ),
}
_PARQUET_HEADS = {
    rb"\Z": "is empty",
    rb"(?!PAR1)": "is not Parquet, but begins with {head}; rename it by its kind, such as .csv",
}
# The beginning of an error of a Parquet reader, and what it tells, as the end of a sentence.
_PARQUET_ERRORS = {
    r"parquet: ": " is cut or damaged; copy it again",
    r"column with name '(.*)' has more than one occurrence": " has the column '{0}' more than once; rename all but one",
}
_DELIMITERS = ",;\t|"


class _File(Protocol):
    """A DataFile."""

    @property
    def path(self) -> Path: ...

    @property
    def kind(self) -> str: ...


def check_head(file: _File) -> None:
    """Raise DataError if the beginning of a file shows that it is of another kind."""
    try:
        with _opened(file.path) as stream:
            head = stream.read(HEAD_BYTES)
    except _CUT:
        return  # reported by its reader
    if _compression(file.path) and not head:  # zstandard reads nothing from a file that ends in its first block
        raise DataError(f"{file} is empty or cut; copy it again.")
    heads = _PARQUET_HEADS if file.kind == "parquet" else _TEXT_HEADS
    for pattern, fault in heads.items():
        if re.match(pattern, head):
            raise DataError(f"{file} {_with_name(fault, file.path).replace('{head}', repr(head[:4]))}.")


@contextmanager
def data_errors(source: object, files: Sequence[_File] = ()) -> Iterator[None]:
    """Raise errors of polars and the operating system within the context as DataError.

    *source* names the data in messages. After an error of polars, *files* are read again to find what is wrong.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, UnicodeError) as error:
        for file in files:
            fault = _fault_of_contents(file, error)
            if fault is not None:
                raise DataError(f"{file}{fault}.") from error
        raise DataError(f"{source} cannot be read or written: {_first_line(error)}.") from error
    except OSError as error:
        # An error of decompression is an OSError without errno.
        if error.errno is None and any(_compression(file.path) for file in files):
            raise DataError(f"{source} is cut or damaged ({_first_line(error)}); copy it again.") from error
        raise DataError(f"{source} cannot be read or written: {error.strerror or _first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _compression(path: Path) -> str | None:
    """Return how a file is compressed, by its first bytes, as for polars."""
    with path.open("rb") as stream:
        magic = stream.read(4)
    return next((name for start, name in _COMPRESSIONS.items() if magic.startswith(start)), None)


def _opened(path: Path) -> BinaryIO:
    """Open a file, decompressed."""
    return BufferedReader(LocalFileSystem().open(str(path), compression=_compression(path)))


def decompressed(name: str) -> str:
    """Return the name of a file without the end that names its compression."""
    return re.sub(r"\.(gz|zstd?)$", "", name)


def _with_name(fault: str, path: Path) -> str:
    """Put the name of a file into the command that a *fault* advises, which cannot read a compressed file."""
    advice = "; decompress it first" if ": " in fault and _compression(path) else ""
    return fault.replace("{name}", decompressed(path.name)) + advice


def _fault_of_contents(file: _File, error: Exception) -> str | None:
    """Return what is wrong with a file that could not be parsed, to be put after its name; None if unknown."""
    if file.kind == "events":
        return None
    if file.kind == "parquet":
        faults = ((re.match(beginning, str(error)), fault) for beginning, fault in _PARQUET_ERRORS.items())
        return next((fault.format(*match.groups()) for match, fault in faults if match), None)
    try:
        with _opened(file.path) as lines:
            fault = _fault_of_encoding(lines)
        if fault is None:
            with _opened(file.path) as lines:
                fault = _fault_of_quotes(map(bytes.decode, lines))
        if fault is not None:
            return _with_name(fault, file.path)
    except _CUT:
        pass
    return None if _compression(file.path) is None else " is cut or damaged; copy it again"


def _fault_of_encoding(lines: Iterable[bytes]) -> str | None:
    """Find the first line that is not UTF-8.

    Returns the rest of a sentence that begins with the file, such as `, line 7: … is not UTF-8; …`, or None.
    """
    for number, line in enumerate(lines, start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            part = line[max(0, error.start - 20) : error.end + 20]
            return (
                f", line {number}: {part!r} is not UTF-8; convert the file: "
                "iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8-{name}"
            )
    return None


def _fault_of_quotes(lines: Iterator[str]) -> str | None:
    """Find the first record of CSV with a quote that is never closed, and return the rest of a sentence on it, or None.

    Such a record has an odd number of quotes, or goes on over lines until it has too many fields. JSON has no such
    faults.
    """
    # The first line tells the kind of the file, the delimiter and the number of fields.
    header = next(lines, "")
    if header.lstrip("\ufeff").startswith("{"):
        return None
    delimiter = max(_DELIMITERS, key=header.count)
    record = list[str]()
    reader = csv.reader(_noted(chain([header], lines), record), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            has_odd_quotes = "".join(record).count('"') % 2 == 1
            if has_odd_quotes or (len(record) > 1 and len(fields) > header.count(delimiter) + 1):
                break
            record.clear()
    except csv.Error:  # such as a field that is too large
        pass
    if not record:
        return None
    return (
        f', line {reader.line_num - len(record) + 1}: {record[0].rstrip()!r:.120} has a quote (") that is not closed; '
        'remove it, or enclose the field in quotes and write those within as ""'
    )


def _noted(lines: Iterable[str], record: list[str]) -> Iterator[str]:
    """Yield *lines*, which are added to *record*."""
    for line in lines:
        record.append(line)
        yield line
