"""Files of rows: listed by path, recognized by name, fingerprinted, and opened as tables whose rows are complete."""

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import xxhash

from offline.errors import DataError, SettingError

Kind = Literal["text", "parquet"]
CsvEncoding = Literal["utf8", "utf8-lossy"]

_KINDS: dict[str, Kind] = {
    ".csv": "text",
    ".tsv": "text",
    ".tab": "text",
    ".psv": "text",
    ".txt": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
}
# What a file of this name holds, and how it begins.
_GZIP, _ZSTD = ("gzip data", b"\x1f\x8b\x08"), ("zstd data", b"\x28\xb5\x2f\xfd")
_COMPRESSED = {".gz": _GZIP, ".zst": _ZSTD, ".zstd": _ZSTD}
# How files begin that are often given another's name.
_OTHER_KINDS = {
    b"PK\x03\x04": "a ZIP archive",
    b"PAR1": "a Parquet file",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ\x00": "xz data",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_HEAD_BYTES = 4096
# Of less, no reader sees that it is compressed.
_MIN_COMPRESSED_BYTES = 5
_NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_CHUNK_BYTES = 1 << 20
# What a reader's message, in lower case, means for the person who brought the file; the first part in it decides.
_READER_ERRORS = {
    ("empty csv",): "is empty; give a file with a header and rows.",
    ("unexpected end of file", "incomplete frame"): (
        "is cut in the middle: its compressed data end too early; fetch or copy it again."
    ),
    ("out of specification", "out-of-spec", "thrift", "encoded schema"): (
        "is cut in the middle or is not a Parquet file; fetch or copy it again."
    ),
    ("corrupt", "panic", "assertion failed", "gzip header", "checksum", "frame"): (
        "is damaged; fetch or copy it again."
    ),
    # Whole lines are read by splitting at this character.
    ("more fields", "new_columns"): "holds the control character 0x01, which is no text; remove it: tr -d '\\001'.",
    ("utf-8", "utf8"): "is not UTF-8 text; convert it: iconv -f LATIN1 -t UTF-8.",
    ("malformed", "could not parse"): "has a quote inside a field; double it, and put the field in quotes.",
}
_DELIMITERS = (",", ";", "\t", "|")
_SPELLED_DELIMITERS = {"\\t": "\t", "tab": "\t"}
# A byte that no text has, so that splitting at it reads whole lines.
_NO_DELIMITER = "\x01"


@dataclass(frozen=True, slots=True)
class Table:
    """One file to be scanned, as often as needed; a text file has only text columns, '' where a value is absent."""

    file: Path
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]


def open_tables(path: Path, delimiter: str | None) -> list[Table]:
    """
    Open the file, or the files of the folder, at *path*; each is read from end to end, so that a bad row stops here.

    *delimiter* None guesses among comma, semicolon, tab and bar. Raises DataError for what cannot be read, and when the
    files of one folder differ in their columns.
    """
    tables = [_open_table(file, delimiter) for file in find_files(path)]
    first = tables[0]
    for table in tables[1:]:
        if list(table.schema) != list(first.schema):
            raise DataError(
                f"{table.file} has the columns {', '.join(table.schema)}, but {first.file.name} in the same folder has "
                f"{', '.join(first.schema)}; keep files of one shape in a folder."
            )
    if all(_height(table) == 0 for table in tables):
        raise DataError(f"{path} has a header but no rows; give interactions.")
    return tables


def find_files(path: Path) -> list[Path]:
    """
    Return the files to read, sorted: *path* itself, or what lies directly in the folder *path*, hidden names aside.

    Raises DataError for a path that is missing, a folder that is empty or of several kinds, and a kind that is unknown.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give a CSV, TSV or Parquet file, or a folder of them.")
    if not path.is_dir():
        _kind(path)
        return [path]
    files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith((".", "_")))
    if not files:
        raise DataError(f"The folder {path} holds no files; give one with CSV, TSV or Parquet files directly in it.")
    kinds = {_kind(file): file.name for file in reversed(files)}
    if len(kinds) > 1:
        raise DataError(
            f"The folder {path} holds files of several kinds ({', '.join(kinds.values())}); keep one kind in it."
        )
    return files


def _kind(file: Path) -> Kind:
    """Return what the name of *file* says it is; raises DataError for a name that says nothing."""
    kind = _KINDS.get(_suffix(file))
    if kind is None or (kind == "parquet" and file.suffix.lower() in _COMPRESSED):
        raise DataError(
            f"{file} is not of a known kind; it must end in .csv, .tsv, .txt (also .gz or .zst after that) or .parquet."
        )
    return kind


def _suffix(file: Path) -> str:
    """Return the suffix in lower case, that of a compression left aside: `.csv` for `a.csv.gz`."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def fingerprint(files: Sequence[Path]) -> str:
    """Return a digest (32 hex digits) of the names, sizes and bytes of *files*, in order; reads each once."""
    digest = xxhash.xxh3_128()
    for file in files:
        with data_errors(file), file.open("rb") as stream:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def data_errors(source: Path) -> Iterator[None]:
    """Raise errors of polars and of the system about unreadable input as a DataError that names *source*."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        raise DataError(_sentence(source, error)) from error


def _sentence(source: Path, error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return f"{source} may not be read by this user; change its permissions."
    message = str(error).strip() or type(error).__name__
    for parts, sentence in _READER_ERRORS.items():
        if any(part in message.lower() for part in parts):
            return f"{source} {sentence}"
    return f"{source} cannot be read: {message.splitlines()[0]}."


def _open_table(file: Path, delimiter: str | None) -> Table:
    with data_errors(file):
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty; give a file with a header and rows.")
        if _kind(file) == "parquet":
            frame = pl.scan_parquet(file, glob=False)
            return Table(file, frame, dict(frame.collect_schema()))
    _check_head(file)
    with _text_errors(file):
        header = _header(file)
    separator = _separator(file, header, delimiter)
    names = next(csv.reader([header], delimiter=separator))
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{file} has two columns named {twice!r} in its header (row 1); rename one.")
    quoted = _check_rows(file, separator, len(names))
    with data_errors(file):
        frame = pl.scan_csv(
            file,
            separator=separator,
            quote_char='"' if quoted else None,
            infer_schema=False,
            empty_string_is_null=False,
            glob=False,
        )
        table = Table(file, frame, dict(frame.collect_schema()))
        if quoted:
            _height(table)
    return table


def _check_head(file: Path) -> None:
    """Raise DataError where *file* begins neither as text nor as compressed data do, or is cut in its first bytes."""
    with data_errors(file), file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith((_GZIP[1], _ZSTD[1])) and len(head) >= _MIN_COMPRESSED_BYTES:
        return
    kind, magic = _COMPRESSED.get(file.suffix.lower(), ("UTF-8 text", b""))
    if magic and head[: len(magic)] == magic[: len(head)]:
        raise DataError(f"{file} is cut in the middle: it has {len(head)} bytes; fetch or copy it again.")
    found = next((name for begin, name in _OTHER_KINDS.items() if head.startswith(begin)), None)
    if found is None and (b"\0" in head or (magic and _NOT_IN_TEXT.search(head))):
        found = "data of an unknown kind"
    if found is None and magic:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head)  # it may end within a character
        except UnicodeDecodeError:
            found = "text in another encoding than UTF-8, or data of an unknown kind"
    if found is not None:  # text is read, whatever its name: clients decompress on the way
        raise DataError(f"{file} is not {kind}, as its name says, but {found}; fetch it again, or name it as it is.")


def _height(table: Table) -> int:
    with data_errors(table.file):
        return int(table.frame.select(pl.len()).collect(engine="streaming").item())


def _lines(file: Path, encoding: CsvEncoding = "utf8") -> pl.LazyFrame:
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
        encoding=encoding,
        glob=False,
    )


def _header(file: Path) -> str:
    line = str(_lines(file).head(1).collect().get_column("line")[0])
    if not line.strip():
        raise DataError(f"{file} begins with an empty line; its first row must name the columns.")
    return line.removeprefix("\ufeff")


def _separator(file: Path, header: str, delimiter: str | None) -> str:
    if delimiter is not None:
        separator = _SPELLED_DELIMITERS.get(delimiter, delimiter)
        if len(separator.encode()) != 1:
            raise SettingError(
                f"The delimiter {delimiter!r} cannot be used; give one ASCII character, such as ; or \\t."
            )
        if separator not in header:
            raise DataError(
                f"The header of {file} has no {delimiter!r} in it: {header[:200]!r}; give another delimiter."
            )
        return separator
    if _suffix(file) in {".tsv", ".tab"} and "\t" in header:
        return "\t"
    best = max(_DELIMITERS, key=header.count)
    if best not in header:
        raise DataError(
            f"{file} has a single column, {header[:200]!r}; it needs one for the user and one for the item. "
            "If they are split by another character than , ; | or a tab, name it with --delimiter."
        )
    return best


def _check_rows(file: Path, separator: str, width: int) -> bool:
    """
    Check that every row of *file* has *width* fields, and return whether fields are quoted.

    A scan over lines, because a scan over fields fills in fields that are missing and drops those too many. Few files
    have quotes, so only those in which counting does not decide go through the slower csv reader.
    """
    line = pl.col("line")
    opens = line.str.contains(rf'(?:^|{re.escape(separator)})"')
    unquoted = pl.when(line.str.contains('"', literal=True)).then(line.str.replace_all('"[^"]*"', "")).otherwise(line)
    odd = (unquoted.str.count_matches(separator, literal=True) != width - 1) & (line != "")
    odd |= unquoted.str.contains('"', literal=True)
    stray = (line.str.count_matches(separator, literal=True) != width - 1) & (line != "")
    with _text_errors(file):
        facts = (
            _lines(file)
            .select(quoted=opens.any(), odd=odd.any(), stray=pl.col("row").filter(stray).min())
            .collect(engine="streaming")
        )
    quoted, suspicious, row = facts.row(0)
    if not quoted and row is not None:
        fields = _lines(file).filter(pl.col("row") == row).collect().get_column("line")[0].count(separator) + 1
        raise _ragged(file, row + 1, fields, width)
    if quoted and suspicious:
        _check_quoted_rows(file, separator, width)
    return bool(quoted)


def _check_quoted_rows(file: Path, separator: str, width: int) -> None:
    batches = _lines(file).select("line").collect_batches(maintain_order=True)
    lines = (f"{line}\n" for batch in batches for line in batch.get_column("line"))
    reader = csv.reader(lines, delimiter=separator, strict=True)
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


def _ragged(file: Path, row: int, fields: int, width: int) -> DataError:
    much = "few" if fields < width else "many"
    return DataError(
        f"{file}, row {row}: too {much} fields, {fields} where the header has {width}; "
        "mend the row (is the file cut, or a delimiter not quoted?)."
    )


@contextmanager
def _text_errors(file: Path) -> Iterator[None]:
    """Raise errors as `data_errors` does, and name the row of text that is not UTF-8."""
    try:
        with data_errors(file):
            yield
    except DataError as error:
        row = _undecodable_row(file) if isinstance(error.__cause__, pl.exceptions.ComputeError) else None
        if row is None:
            raise
        raise DataError(f"{file}, row {row}: not UTF-8 text; convert the file: iconv -f LATIN1 -t UTF-8.") from error


def _undecodable_row(file: Path) -> int | None:
    """Return the first row (1 is the header) whose bytes are not UTF-8."""
    with data_errors(file):
        lossy = _lines(file, "utf8-lossy").filter(pl.col("line").str.contains("\ufffd", literal=True))
        first = lossy.select("row").head(1).collect()
    return int(first.item()) + 1 if first.height else None
