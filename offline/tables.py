"""One file opened as a table: its delimiter found, its header read and every row checked to have all its fields."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from offline.errors import DataError, SettingError
from offline.files import bare_suffix, find_files, kind_of, reading

_DELIMITERS = (",", ";", "\t", "|")
_SPELLED = {"\\t": "\t", "tab": "\t"}
# A byte that no text has: whole lines are read by splitting at it.
_NEVER = "\x01"

CsvEncoding = Literal["utf8", "utf8-lossy"]


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


def _open_table(file: Path, delimiter: str | None) -> Table:
    with reading(file):
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty; give a file with a header and rows.")
        if kind_of(file) == "parquet":
            frame = pl.scan_parquet(file, glob=False)
            return Table(file, frame, dict(frame.collect_schema()))
    with _reading_text(file):
        header = _header(file)
    separator = _separator(file, header, delimiter)
    names = next(csv.reader([header], delimiter=separator))
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{file} has two columns named {twice!r} in its header (row 1); rename one.")
    quoted = _check_rows(file, separator, len(names))
    with reading(file):
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


def _height(table: Table) -> int:
    with reading(table.file):
        return int(table.frame.select(pl.len()).collect(engine="streaming").item())


def _lines(file: Path, encoding: CsvEncoding = "utf8") -> pl.LazyFrame:
    """Scan *file* as lines: `row` counts from 0, the header's."""
    return pl.scan_csv(
        file,
        separator=_NEVER,
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
        separator = _SPELLED.get(delimiter, delimiter)
        if len(separator.encode()) != 1:
            raise SettingError(
                f"The delimiter {delimiter!r} cannot be used; give one ASCII character, such as ; or \\t."
            )
        if separator not in header:
            raise DataError(
                f"The header of {file} has no {delimiter!r} in it: {header[:200]!r}; give another delimiter."
            )
        return separator
    if bare_suffix(file) in {".tsv", ".tab"} and "\t" in header:
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

    A scan over lines, because a scan over fields fills what is missing and drops what is too much when it is not asked
    for. Quotes are an exception, so only lines that cannot be judged by counting go through the slower csv reader.
    """
    line = pl.col("line")
    opens = line.str.contains(rf'(?:^|{_escaped(separator)})"')
    unquoted = pl.when(line.str.contains('"', literal=True)).then(line.str.replace_all('"[^"]*"', "")).otherwise(line)
    odd = (unquoted.str.count_matches(separator, literal=True) != width - 1) & (line != "")
    odd |= unquoted.str.contains('"', literal=True)
    stray = (line.str.count_matches(separator, literal=True) != width - 1) & (line != "")
    with _reading_text(file):
        found = (
            _lines(file)
            .select(quoted=opens.any(), odd=odd.any(), stray=pl.col("row").filter(stray).min())
            .collect(engine="streaming")
        )
    quoted, suspicious, row = found.row(0)
    if not quoted and row is not None:
        fields = _lines(file).filter(pl.col("row") == row).collect().get_column("line")[0].count(separator) + 1
        raise _ragged(file, row + 1, fields, width)
    if quoted and suspicious:
        _read_slowly(file, separator, width)
    return bool(quoted)


def _read_slowly(file: Path, separator: str, width: int) -> None:
    batches = _lines(file).select("line").collect_batches(maintain_order=True)
    reader = csv.reader(_with_ends(batches), delimiter=separator, strict=True)
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


def _with_ends(batches: Iterable[pl.DataFrame]) -> Iterator[str]:
    for batch in batches:
        for line in batch.get_column("line"):
            yield f"{line}\n"


def _ragged(file: Path, row: int, fields: int, width: int) -> DataError:
    much = "few" if fields < width else "many"
    return DataError(
        f"{file}, row {row}: too {much} fields, {fields} where the header has {width}; "
        "mend the row (is the file cut, or a delimiter not quoted?)."
    )


@contextmanager
def _reading_text(file: Path) -> Iterator[None]:
    """Do as `reading` does, and name the row of text that is not UTF-8."""
    try:
        with reading(file):
            yield
    except DataError as error:
        row = _undecodable_row(file) if isinstance(error.__cause__, pl.exceptions.ComputeError) else None
        if row is None:
            raise
        raise DataError(f"{file}, row {row}: not UTF-8 text; convert the file: iconv -f LATIN1 -t UTF-8.") from error


def _undecodable_row(file: Path) -> int | None:
    """Return the first row (1 is the header) whose bytes are not UTF-8."""
    with reading(file):
        lossy = _lines(file, "utf8-lossy").filter(pl.col("line").str.contains("\ufffd", literal=True))
        found = lossy.select("row").head(1).collect()
    return int(found.item()) + 1 if found.height else None


def _escaped(separator: str) -> str:
    return "\\" + separator if separator in "|.^$*+?()[]{}\\-" else separator
