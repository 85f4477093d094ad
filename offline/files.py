"""The files that interactions come in: found, told apart by name, and fingerprinted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import polars as pl
import xxhash

from offline.errors import DataError

Kind = Literal["text", "parquet"]

_KINDS: dict[str, Kind] = {
    ".csv": "text",
    ".tsv": "text",
    ".tab": "text",
    ".psv": "text",
    ".txt": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED = (".gz", ".zst", ".zstd")
_PIECE_BYTES = 1 << 20
_CUT_PARQUET = "is cut in the middle or is not a Parquet file; fetch or copy it again."
_DAMAGED = "is damaged; fetch or copy it again."
# Lines are read by splitting at a byte that text does not have.
_CONTROL = "holds the control character 0x01, which is no text; remove it: tr -d '\\001'."
# What readers say, in lower case, and what it means for the person who brought the file.
_SAID = {
    "empty csv": "is empty; give a file with a header and rows.",
    "unexpected end of file": "is cut in the middle: its compressed data end too early; fetch or copy it again.",
    "incomplete frame": "is cut in the middle: its compressed data end too early; fetch or copy it again.",
    "out of specification": _CUT_PARQUET,
    "out-of-spec": _CUT_PARQUET,
    "thrift": _CUT_PARQUET,
    "encoded schema": _CUT_PARQUET,
    "corrupt": _DAMAGED,
    "panic": _DAMAGED,
    "assertion failed": _DAMAGED,
    "more fields": _CONTROL,
    "new_columns": _CONTROL,
    "utf-8": "is not UTF-8 text; convert it: iconv -f LATIN1 -t UTF-8.",
    "utf8": "is not UTF-8 text; convert it: iconv -f LATIN1 -t UTF-8.",
    "malformed": "has a quote inside a field; double it, and put the field in quotes.",
    "could not parse": "has a quote inside a field; double it, and put the field in quotes.",
}


def find_files(path: Path) -> list[Path]:
    """
    Return the files to read, sorted: *path* itself, or what lies directly in the folder *path*, hidden names aside.

    Raises DataError for a path that is missing, a folder that is empty or of several kinds, and a kind that is unknown.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give a CSV, TSV or Parquet file, or a folder of them.")
    if not path.is_dir():
        kind_of(path)
        return [path]
    files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith((".", "_")))
    if not files:
        raise DataError(f"The folder {path} holds no files; give one with CSV, TSV or Parquet files directly in it.")
    kinds = {kind_of(file): file.name for file in reversed(files)}
    if len(kinds) > 1:
        raise DataError(
            f"The folder {path} holds files of several kinds ({', '.join(kinds.values())}); keep one kind in it."
        )
    return files


def kind_of(file: Path) -> Kind:
    """Return what the name of *file* says it is; raises DataError for a name that says nothing."""
    kind = _KINDS.get(bare_suffix(file))
    if kind is None or (kind == "parquet" and file.suffix.lower() in _COMPRESSED):
        raise DataError(
            f"{file} is not of a known kind; it must end in .csv, .tsv, .txt (also .gz or .zst after that) or .parquet."
        )
    return kind


def bare_suffix(file: Path) -> str:
    """Return the suffix in lower case, that of a compression left aside: `.csv` for `a.csv.gz`."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def fingerprint(files: Sequence[Path]) -> str:
    """Return a digest (32 hex digits) of the names, sizes and bytes of *files*, in order; reads each once."""
    digest = xxhash.xxh3_128()
    for file in files:
        with reading(file), file.open("rb") as stream:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Turn what polars and the system say about unreadable input into a DataError that names *place*."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        raise DataError(_sentence(place, error)) from error


def _sentence(place: Path, error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return f"{place} may not be read by this user; change its permissions."
    said = str(error).strip() or type(error).__name__
    for mark, sentence in _SAID.items():
        if mark in said.lower():
            return f"{place} {sentence}"
    return f"{place} cannot be read: {said.splitlines()[0]}."
