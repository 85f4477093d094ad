"""Input files, local or remote, and their fingerprints."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable
from urllib.parse import unquote, urlsplit

import fsspec
import polars as pl
import xxhash

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.faults import data_errors, decompressed
from hotplate.stores.folders import temporary_folder
from hotplate.stores.urls import redacted, scheme_of, url_of

# CSV and JSON lines may have the ends of each other's names, as .txt.
FileKind = Literal["text", "json", "parquet", "events"]


@runtime_checkable
class Frame(Protocol):
    """A polars, Arrow or pandas table (Arrow PyCapsule interface)."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows as an Arrow stream."""


# A path, an fsspec URL, or a data frame.
DataSource: TypeAlias = Path | str | Frame

_FRAME = "the data frame"
_KINDS: dict[str, FileKind] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".psv", ".txt", ".data", ".dat"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    ".events": "events",  # segments of the event log
}
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_CHUNK_BYTES = 1 << 20
# fsspec counts the query of a signed HTTP URL as part of its path.
_HTTP_SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One input file.

    keys    columns from folder names, such as date=2026-01-01
    origin  the name for messages, if *path* is a temporary copy
    """

    path: Path
    keys: Mapping[str, str | None] = field(default_factory=dict)
    origin: str | None = None

    def __str__(self) -> str:
        return self.origin or str(self.path)

    @property
    def kind(self) -> FileKind:
        """The kind by the end of the name; raises DataError for an unknown one."""
        plain = decompressed(self.path.name.lower())
        kind = _KINDS.get(Path(plain).suffix)
        if kind is None or (kind == "parquet" and plain != self.path.name.lower()):
            raise DataError(
                f"{self} is not of a known kind; its name must end in {', '.join(_KINDS)}, perhaps .gz or .zst."
            )
        return kind


@contextmanager
def input_files(paths: Sequence[DataSource]) -> Iterator[list[DataFile]]:
    """Yield the files at *paths*; URLs are downloaded and data frames written to temporary files, deleted at the end.

    Raises DataError for a path that is missing or has no files, and if a URL cannot be read.
    """
    with ExitStack() as stack:
        files = list[DataFile]()
        for path in paths:
            if isinstance(path, Frame):
                files.append(stack.enter_context(_frame_as_file(path)))
            elif (url := url_of(path)) is not None:
                files += stack.enter_context(_local_copies(url))
            else:
                files += find_files(Path(path))
        yield files


def check_source(source: object) -> None:
    """Raise SettingError unless *source* is a DataSource."""
    if not isinstance(source, Path | str | Frame):
        raise SettingError(
            f"The data are a {type(source).__name__}; give a path, a URL, or a polars, Arrow or pandas table "
            "(collect a LazyFrame first)."
        )


def named_paths(paths: Sequence[DataSource]) -> str:
    """Return the input's name for messages: at most two paths, without secrets of URLs."""
    names = [_name_of(path) for path in paths]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} others"


def _name_of(path: DataSource) -> str:
    if isinstance(path, Frame):
        return _FRAME
    url = url_of(path)
    return str(path) if url is None else redacted(url)


@contextmanager
def _frame_as_file(frame: Frame) -> Iterator[DataFile]:
    """Yield a temporary Parquet file of a data frame; DataError if it cannot be converted."""
    with temporary_folder("input") as folder:
        path = folder / "frame.parquet"
        try:
            pl.DataFrame(frame).write_parquet(path)
        except (TypeError, ValueError, ImportError, pl.exceptions.PolarsError) as error:  # also pyarrow's errors
            raise DataError(f"The data frame cannot be read: {error!r:.200}.") from error
        yield DataFile(path, origin=_FRAME)


@contextmanager
def _local_copies(url: str) -> Iterator[list[DataFile]]:
    """Download the file or folder at *url*, and yield its files; they are deleted at the end.

    In messages, files have the name that they have at the URL, without its secrets. Raises DataError and SettingError.
    """
    shown_url = redacted(url)
    with temporary_folder("input") as folder:
        with _open_remote(url) as remote:
            is_http = scheme_of(url) in _HTTP_SCHEMES
            remote_path = urlsplit(remote.path).path if is_http else remote.path
            copy = folder / (Path(remote_path).name or "data")

            # HTTP has no folders.
            if is_http:
                remote.file_system.get_file(remote.path, str(copy))
            else:
                remote.file_system.get(remote.path, str(copy), recursive=True)

        try:
            copied_files = find_files(copy)
        except DataError as error:
            raise DataError(str(error).replace(str(copy), shown_url)) from error

        shown_folder = shown_url.rstrip("/")
        yield [replace(file, origin=str(file).replace(str(copy), shown_folder)) for file in copied_files]


class _Remote(NamedTuple):
    """A file system of fsspec, and the path of a URL in it; for HTTP, the URL itself."""

    file_system: Any
    path: str


@contextmanager
def _open_remote(url: str) -> Iterator[_Remote]:
    """Yield the file system of fsspec for *url*, and the path in it.

    Any error within the context is taken for one of the file system, and raised as DataError. SettingError is raised if
    fsspec does not know the scheme, or needs a package for it that is not installed.
    """
    shown = redacted(url)
    scheme = scheme_of(url)
    if scheme and scheme not in fsspec.available_protocols():
        raise SettingError(f"{shown} cannot be read: fsspec knows no {scheme}://; it knows az, abfs, s3, gs and https.")

    try:
        options = {}
        if scheme in _HTTP_SCHEMES:
            from aiohttp import ClientTimeout  # noqa: PLC0415 -- takes 0.2 s to load

            # aiohttp limits a whole download to 5 minutes by default.
            options["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        file_system, path = fsspec.url_to_fs(url, **options)
        yield _Remote(file_system, path.rstrip("/"))
    except ImportError as error:
        raise SettingError(
            f"{scheme_of(url)}:// needs a package that is not installed ({error}); install it with pip."
        ) from error
    except Exception as error:  # the exceptions differ by file system
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise DataError(f"{shown} cannot be read: {reason}; check the URL and its credentials.") from error


def find_files(path: Path) -> list[DataFile]:
    """Return *path*, or the files in this folder and its `key=value` folders, sorted and not hidden.

    Raises DataError for a path without files, files of different kinds or one with its compressed copy, which may hold
    the same rows, and files in other folders below.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give a CSV, TSV, JSON lines or Parquet file, or a folder of them.")
    files = _files_at(path)
    if not files:
        raise DataError(f"The folder {path} holds no files, neither directly nor in folders such as date=2026-01-01.")

    for first, second in pairwise(files):
        if first.kind != second.kind or decompressed(str(first)) == decompressed(str(second)):
            raise DataError(
                f"{first} and {second} may hold the same rows; keep one kind of file in the folder {path}, or name its "
                "files."
            )
    return files


def _files_at(path: Path) -> list[DataFile]:
    """Return *path*, or the files in this folder and its `key=value` folders; raises DataError for a pipe."""
    if path.is_dir():
        return [*_files_in_folder(path)]
    if path.is_file():
        return [DataFile(path)]
    raise DataError(f"{path} is a pipe or a device, which can be read only once; write the data to a file first.")


def _files_in_folder(folder: Path) -> Iterator[DataFile]:
    """Yield the visible files in *folder* and in its folders named `key=value`, as Hive and Spark write them.

    Such a folder, as `date=2026-01-01`, is a column `date` with the same value in all files below it.
    """
    # Links to folders count as folders, which Path.rglob does not enter.
    paths = (Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    for path in sorted(paths):
        *folders, name = path.relative_to(folder).parts
        if not path.is_file() or any(map(_is_hidden, (*folders, name))):
            continue
        keys = dict[str, str | None]()
        for part in folders:
            key, equals, text = part.partition("=")
            if not equals:
                raise DataError(
                    f"The files in {path.parent} would be left out, as folders of data are named like date=2026-01-01; "
                    "move the folder, or name it as data of its own."
                )
            keys[unquote(key)] = None if text == _HIVE_NULL else unquote(text)
        yield DataFile(path, keys)


def _is_hidden(name: str) -> bool:
    """Return whether a name stands for no data: an open segment of events, or a marker or checksum of Spark."""
    return name.startswith((".", "_")) or name.endswith(".crc")


def fingerprint(files: Sequence[DataFile]) -> str:
    """Return a digest of bytes, names and keys of *files*, independent of their folder."""
    named = list[tuple[str, Path]]()
    for file in files:
        folders = "".join(f"{key}={value}/" for key, value in file.keys.items())
        named.append((folders + file.path.name, file.path))
    return digest(named)


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """Return a digest (32 hex digits) of names, sizes and bytes of *files*, in order."""
    hasher = xxhash.xxh3_128()
    for name, path in files:
        with data_errors(path), path.open("rb") as stream:
            hasher.update(f"{name}\0{path.stat().st_size}\0".encode())
            while chunk := stream.read(_CHUNK_BYTES):
                hasher.update(chunk)
    return hasher.hexdigest()


def digest_of_paths(paths: Iterable[Path]) -> str:
    """Return a hexadecimal digest of the files and folders at *paths*, local or remote, to see whether they change.

    Files of any kind count, such as those of a model. Local files are read whole. Remote ones are not read: their
    sizes, times and tags, as fsspec reports them, count. Raises DataError for a path that does not exist.
    """
    states = list[str]()
    for path in paths:
        url = url_of(path)
        if url is not None:
            states += _states_of_remote(url)
            continue
        if not path.exists():
            raise DataError(f"{path} does not exist.")
        states.append(fingerprint(_files_at(path)))
    return xxhash.xxh3_128_hexdigest("\n".join(states).encode())


def _states_of_remote(url: str) -> list[str]:
    """Return the name, size, time and tag of the file, or of each file in the folder, at *url*."""
    with _open_remote(url) as remote:
        # HTTP lists no folders.
        found = [] if scheme_of(url) in _HTTP_SCHEMES else sorted(remote.file_system.find(remote.path))
        names = [name for name in found if not any(map(_is_hidden, name.removeprefix(remote.path).split("/")))]
        return [f"{name} {remote.file_system.info(name)}" for name in names or [remote.path]]
