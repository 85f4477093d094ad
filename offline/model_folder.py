"""Folders of trained models: `model.json`, the `Description`, and the files of `model_files`.

A folder is replaced as a whole, and read again if it is replaced meanwhile. The description has the sizes and digests
of the files, and a digest of its other fields.
"""

import errno
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar
from zipfile import BadZipFile

import msgspec
import polars as pl
from msgspec import UNSET
from xxhash import xxh3_64, xxh3_64_hexdigest

from hotplate.offline import model_files
from hotplate.offline.errors import DataError, MemoryShortage, ModelUnusable, SettingError, why_not_written
from hotplate.offline.model import Description, Model, timestamp
from hotplate.offline.train.engine import engine_of, params_from
from hotplate.stores.errors import reason_of
from hotplate.stores.folders import LOCK, flush, marked, scratch_folder
from hotplate.stores.urls import local_path

# Changes when older versions of hotplate cannot read the folder.
FORMAT = 3
_DESCRIPTION = "model.json"
# New models, and former ones during a replacement and after a writer was killed in it.
_NEW = ".{}.new-"
_OLD = ".{}.old-"
# A model that is replaced while it is read is read again, at most this often, after a pause.
_MOST_READS = 100
_PAUSE_S = 0.01
_VERSIONED = ("hotplate", "implicit", "numpy", "polars", "scipy")

_Read = TypeVar("_Read")


def save(model: Model, path: Path) -> None:
    """Write *model* as the folder *path*, replacing an existing model.

    The new folder is written beside it as .NAME.new-*, then the old one is renamed to .NAME.old-*, and the new one to
    NAME. A crash between the two renames leaves the old model as .NAME.old-*, until the next save. Of two concurrent
    writers the later one wins. Raises DataError if *path* holds something else or cannot be written.
    """
    path = _checked_path(path).resolve()
    check_target(path)

    # A writer's new and old folders have the same suffix.
    new = _NEW.format(path.name)
    old = _OLD.format(path.name)
    with _draft_of(path) as draft:
        _write_files(model, draft)
        _put_in_place(draft, path, path.with_name(old + draft.name.removeprefix(new)))
        (path / LOCK).unlink(missing_ok=True)  # of the scratch folder

    # Remove old models, also those that crashed writers left.
    for replaced in _replaced_by_writers(path):
        new_folder = path.with_name(new + replaced.name.removeprefix(old))
        if not new_folder.exists():  # else its writer may restore it
            shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """Make a folder for a new model beside *path*, and its parents; raises DataError if that cannot be written."""
    try:
        with scratch_folder(path.parent, _NEW.format(path.name)) as draft:
            yield draft
    except (OSError, pl.exceptions.ComputeError) as error:
        raise DataError(f"The model cannot be written to {path}: {why_not_written(error)}.") from error


def _put_in_place(draft: Path, path: Path, old: Path) -> None:
    """Rename the folder *draft* to *path*; an existing folder is first renamed to *old*, and back after an error."""
    try:
        # The rename fails while there is a model at *path*; another writer may put one there after it was moved away.
        while True:
            try:
                draft.rename(path)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

            shutil.rmtree(old, ignore_errors=True)
            with suppress(FileNotFoundError):
                path.rename(old)
        flush(path.parent)
    except BaseException:
        with suppress(OSError):  # no old model, or a new one at *path*
            old.rename(path)
        raise


def _write_files(model: Model, folder: Path) -> None:
    """Write the files of *model* into an empty folder, the description last, and flush them to the disk."""
    model_files.write(model, folder)
    fields = _description(model, folder).to_json()
    fields["digest"] = _digest_of_fields(fields)
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / _DESCRIPTION).write_bytes(f"{text}\n".encode())
    for file in folder.iterdir():
        flush(file)
    flush(folder)


def _description(model: Model, folder: Path) -> Description:
    """Return the description of a model, with sizes and digests of its files, which are in *folder* already."""
    matrix = model.matrix
    files = [file for file in sorted(folder.iterdir()) if file.name != LOCK]
    return Description(
        format=FORMAT,
        engine=engine_of(model.params),
        created_at=timestamp(model.created_at),
        params=asdict(model.params),
        metrics=None if model.evaluation is None else model.evaluation.to_json(),
        tuning=model.search,
        popular_half_life_days=model.popular_half_life_days,
        data=model.data,
        repeats=model.repeats,
        matrix=matrix.left_out,
        users=len(matrix.user_ids),
        items=len(matrix.item_ids),
        pairs=int(matrix.user_items.nnz),
        versions={name: version(name) for name in _VERSIONED},
        python=platform.python_version(),
        files={file.name: file.stat().st_size for file in files},
        digests={file.name: _digest_of_file(file) for file in files},
    )


def is_model(path: Path) -> bool:
    """Return whether *path* is a model folder, perhaps incomplete."""
    return (path / _DESCRIPTION).is_file()


def check_target(path: Path) -> None:
    """Raise DataError unless *path* can be written and is missing, an empty folder, or a model.

    Makes the folders above it. Raises SettingError for a URL.
    """
    resolved = _checked_path(path).resolve()
    try:
        names = {file.name for file in path.iterdir()}  # listed once; a writer may replace it
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink() or path.is_file():
            raise DataError(f"{path} is not a folder; name another folder for the model.") from error
        names = set()
    if names and _DESCRIPTION not in names:
        raise DataError(f"The folder {path} holds other things than a model; name another folder for it.")
    with _draft_of(resolved):
        pass


def load(path: Path | str) -> Model:
    """Read a model folder, again if it is replaced meanwhile.

    Raises ModelUnusable if it is missing, damaged, or of another format, DataError if it cannot be read at present, and
    SettingError for a URL.
    """
    return _read_unreplaced(_checked_path(path), _load)


def describe(path: Path) -> Description:
    """Return the description of a model folder, its file model.json, after a check of the sizes of all files.

    It is read again if the folder is replaced meanwhile. Raises ModelUnusable for a folder that is missing, is no
    model, is damaged, or has another format, and DataError if it cannot be read at present.
    """
    return _read_unreplaced(path, _describe)


def _read_unreplaced(path: Path, read: Callable[[Path], _Read]) -> _Read:
    """Return *read* of a model folder, again if `save` replaces it meanwhile; raises DataError.

    Between the two renames of `save` there is no folder *path*, only the old one under another name.
    """
    for _ in range(_MOST_READS):
        before = _version(path)
        try:
            result = read(path)
        except DataError:
            if not _is_replaced(path, before):
                raise
        else:
            if not _is_replaced(path, before):
                return result
        time.sleep(_PAUSE_S)
    return read(path)


def _is_replaced(path: Path, before: tuple[bytes, int] | None) -> bool:
    """Return whether a model that had the version *before* has been replaced, or is between two renames."""
    # Before the version: a writer that ends in between has put a version in place.
    is_moved_away = any(True for _ in _replaced_by_writers(path))
    after = _version(path)
    return after != before or (after is None and is_moved_away)


def _version(path: Path) -> tuple[bytes, int] | None:
    """Return the bytes and the time of the description in a model folder, None without one.

    They tell a model from others on any file system: network file systems that are mounted with FUSE may number folders
    anew, or not at all.
    """
    file = path / _DESCRIPTION
    try:
        return file.read_bytes(), file.stat().st_mtime_ns
    except OSError:
        return None


def _replaced_by_writers(path: Path) -> Iterator[Path]:
    """Yield former models at *path* that writers have moved away, and not removed yet."""
    path = path.resolve()
    return marked(path.parent, _OLD.format(path.name))


def _load(path: Path) -> Model:
    """Read a model from its folder *path*.

    Raises DataError if files cannot be read, ModelUnusable if they contradict each other or the description.
    """
    description = _describe(path)
    with _load_errors(path):
        _check_digests(path, description)
        return model_files.read(path, description)


def _describe(path: Path) -> Description:
    with _load_errors(path / _DESCRIPTION):
        _check_folder(path)
        fields = msgspec.json.decode((path / _DESCRIPTION).read_bytes())
        _check_format(path, fields.get("format") if isinstance(fields, dict) else None)
        if fields.get("digest", UNSET) not in (UNSET, _digest_of_fields(fields)):
            raise _damaged(path / _DESCRIPTION, "it has other fields than were written")
        description = msgspec.convert(fields, Description)
        params_from(description.engine, description.params)  # raises an error for unknown ones

        for name, size in description.files.items():
            if (path / name).stat().st_size != size:
                raise ModelUnusable(
                    f"{path / name} is cut or changed: it should have {size:,} bytes; train or copy it again."
                )
    return description


def _checked_path(path: Path | str) -> Path:
    """Return a path of this machine; SettingError for a URL."""
    try:
        return local_path(path)
    except ValueError as error:
        raise SettingError(f"The model's folder: {error}; a model of MLflow is models:/NAME@ALIAS.") from error


def _check_folder(path: Path) -> None:
    """Raise ModelUnusable unless *path* is a folder with a description."""
    if not path.is_dir():
        former = next(_replaced_by_writers(path), None)
        if former is not None:
            raise ModelUnusable(
                f"There is no model folder {path}, as a writer was killed while it replaced the model. The former one "
                f"is {former}; rename it to {path.name}, or train again."
            )
        if path.is_file():
            raise ModelUnusable(f"{path} is a file, not a model folder; hotplate train {path} --out FOLDER makes one.")
        raise ModelUnusable(f"There is no model folder {path}; hotplate train DATA --out {path} makes one.")
    if not (path / _DESCRIPTION).is_file():
        raise ModelUnusable(f"The folder {path} is not a model: it has no {_DESCRIPTION}.")


def _check_format(path: Path, number: object) -> None:
    """Raise ModelUnusable for the model of another format."""
    if number != FORMAT:
        advice = "upgrade hotplate" if isinstance(number, int) and number > FORMAT else "train it again"
        raise ModelUnusable(
            f"The model {path} has the format {number or 'unknown'}; this hotplate reads {FORMAT}: {advice}."
        )


def _check_digests(path: Path, description: Description) -> None:
    """Raise ModelUnusable for a file that has changed since it was written; earlier versions wrote no digests."""
    digests = {} if description.digests is UNSET else description.digests
    for name, written in digests.items():
        if _digest_of_file(path / name) != written:
            raise _damaged(path / name, "it has other bytes than were written")


def _digest_of_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, xxh3_64).hexdigest()


def _digest_of_fields(fields: Mapping[str, Any]) -> str:
    """Return a digest of the JSON values of a description without its own digest."""
    digested = {name: value for name, value in fields.items() if name != "digest"}
    return xxh3_64_hexdigest(json.dumps(digested, sort_keys=True).encode())


def _damaged(path: Path, reason: str) -> ModelUnusable:
    """Return the error for a model folder, or a file of one."""
    return ModelUnusable(f"The model {path} is incomplete or damaged ({reason}); train or copy it again.")


@contextmanager
def _load_errors(path: Path) -> Iterator[None]:
    """Raise errors of reading a model as ModelUnusable, and those that may pass as another DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise _damaged(path, reason_of(error)) from error
    except OSError as error:
        if error.errno is None:  # of numpy, for a cut file
            raise _damaged(path, reason_of(error)) from error
        raise DataError(f"The model {path} cannot be read at present: {error}; try again.") from error
    except MemoryError as error:
        raise MemoryShortage(f"The model {path} does not fit into the free memory; give the process more.") from error
    except DataError as error:
        raise ModelUnusable(str(error)) from error
    except (
        *(BadZipFile, EOFError, KeyError, TokenError, TypeError, ValueError),
        *(SettingError, msgspec.MsgspecError, pl.exceptions.PanicException, pl.exceptions.PolarsError),
    ) as error:
        raise _damaged(path, reason_of(error)) from error
