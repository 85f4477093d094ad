"""Trained models and their folders.

model.json                  the `Description`
users.parquet               [user, perhaps segment]
items.parquet               [item, title]
user_items.npz              the matrix, and the rows behind its pairs (`History`), if times are known
similar.npz                 similar items
popular.parquet             popular lists [segment, item, score]; the overall one has no segment
*.npy, similarity.npz       what the engine learned
"""

import errno
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple, TypeAlias, TypeVar
from zipfile import BadZipFile

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
from msgspec import UNSET, UnsetType
from scipy.sparse import csr_matrix
from xxhash import xxh3_64, xxh3_64_hexdigest

from hotplate.offline.errors import DataError, MemoryShortage, ModelUnusable, SettingError, why_not_written
from hotplate.offline.evaluate.records import EvaluationRecord, SearchRecord, json_values, read_evaluation
from hotplate.offline.input.history import History, Weighing, Weighting
from hotplate.offline.input.matrix import LeftOut, Matrix
from hotplate.offline.input.pairs import Floats, UserItems
from hotplate.offline.options import Columns
from hotplate.offline.train.als import Factors
from hotplate.offline.train.engine import Params, Ranker, engine_of, params_from, recency_of, spec_of
from hotplate.offline.train.popularity import Popular
from hotplate.offline.train.ranking import RecentWeights
from hotplate.offline.train.repeats import RepeatParams, own_counts
from hotplate.offline.train.similar import Similar
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

Array: TypeAlias = npt.NDArray[Any]
_Read = TypeVar("_Read")
Arrays: TypeAlias = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model with its interactions.

    evaluation     None if it was not evaluated
    data           description of the interactions
    titles         by item id, as far as known
    search         None if its parameters were not searched
    similar        source of similar items
    repeats        how users' own interactions count in lists that keep seen items
    user_segments  the segment of each user, None where unknown; None without segments
    popular_half_life_days  of popularity; None counts all users alike
    """

    ranker: Ranker
    matrix: Matrix
    titles: dict[str, str]
    popular: Popular
    segments: dict[str, Popular]
    params: Params
    evaluation: EvaluationRecord | None
    data: "DataDescription"
    created_at: datetime
    similar: Similar
    search: SearchRecord | None = None
    popular_half_life_days: float | None = None
    repeats: RepeatParams = field(default_factory=RepeatParams)
    user_segments: list[str | None] | None = None

    @property
    def id(self) -> str:
        """Identity of the training, kept by `save`."""
        trained = _timestamp(self.created_at), engine_of(self.params), asdict(self.params), self.data.fingerprint
        return xxh3_64_hexdigest(json.dumps(trained, sort_keys=True).encode())

    @property
    def learnt_until(self) -> str | None:
        """Time of the newest interaction, in ISO 8601 with UTC, if known."""
        times = self.data.time_range
        return None if times is None else f"{times[1]}+00:00"

    def own_counts(self) -> UserItems | None:
        """Return what users' own interactions add to scores [users, items]; None without weight or times."""
        history = self.matrix.history
        return None if history is None or not self.repeats.weight else own_counts(history, self.repeats)

    def users(self, start: int, stop: int) -> "Users":
        """Return a range of users."""
        ranker = self.ranker
        rows = slice(start, stop)
        return Users(
            ids=self.matrix.user_ids[rows],
            user_items=self.matrix.user_items[rows],
            factors=ranker.user_factors[rows] if isinstance(ranker, Factors) else None,
            segments=None if self.user_segments is None else self.user_segments[rows],
        )

    def with_users(self, users: "Users") -> "Model":
        """Return the model for *users* alone, with all items and popular lists."""
        ranker = self.ranker
        if isinstance(ranker, Factors) and users.factors is not None:
            ranker = replace(ranker, user_factors=users.factors)
        matrix = replace(self.matrix, user_ids=users.ids, user_items=users.user_items, history=None)
        return replace(self, ranker=ranker, matrix=matrix, user_segments=users.segments)


class Users(NamedTuple):
    """Some users of a model, and what rules know of them [users, items].

    own    counts of users' own interactions, if lists keep seen items
    shown  days on which an item was shown without a click
    """

    ids: list[str]
    user_items: UserItems
    factors: Floats | None
    segments: list[str | None] | None
    own: UserItems | None = None
    shown: UserItems | None = None


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
        params = params_from(description.engine, description.params)
        items = _read_table(path / "items.parquet")
        users = _read_table(path / "users.parquet")

        interactions = _read_arrays(path / "user_items.npz")
        user_items = _csr_matrix(interactions, (users.height, items.height))
        matrix = Matrix(
            user_ids=users.get_column("user").to_list(),
            item_ids=items.get_column("item").to_list(),
            user_items=user_items,
            history=_read_history(interactions, user_items, description.data),
            left_out=description.matrix,
        )

        titled = items.drop_nulls("title")
        popular = _read_popular(path / "popular.parquet", items.height)
        return Model(
            ranker=_read_ranker(path, params, user_items.shape),
            matrix=matrix,
            titles=dict(zip(titled.get_column("item"), titled.get_column("title"), strict=True)),
            popular=popular[None],
            segments={segment: of_segment for segment, of_segment in popular.items() if segment is not None},
            params=params,
            evaluation=description.evaluation,
            data=description.data,
            created_at=datetime.fromisoformat(description.created_at),
            similar=Similar(_csr_matrix(_read_arrays(path / "similar.npz"), (items.height, items.height))),
            search=description.tuning,
            popular_half_life_days=description.popular_half_life_days,
            repeats=description.repeats,
            user_segments=users.get_column("segment").to_list() if "segment" in users.columns else None,
        )


def _checked_path(path: Path | str) -> Path:
    """Return a path of this machine; SettingError for a URL."""
    try:
        return local_path(path)
    except ValueError as error:
        raise SettingError(f"The model's folder: {error}; a model of MLflow is models:/NAME@ALIAS.") from error


class DataDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The interactions that a model learned from, and how they were read.

    rows, left_out  rows read, and those left out by reason
    fingerprint     digest of all files
    notes           sentences about doubtful data
    source, titles  names of the files
    time_range      first and last time of the rows kept, in ISO 8601 without UTC, if known
    columns         names by role
    """

    rows: int
    left_out: dict[str, int]
    fingerprint: str
    notes: list[str]
    source: str
    titles: str | None
    time_range: tuple[str, str] | None
    columns: Columns
    where: list[str]
    event_weights: dict[str, float] | None
    half_life_s: float | None
    weighting: Weighting
    min_per_user: int
    min_per_item: int


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The file model.json, with some fields of Model.

    metrics   `evaluation` as JSON
    versions  of hotplate and of libraries, by name
    files     sizes in bytes, by name
    digests   of the files, by name
    digest    of the other fields; earlier versions wrote neither
    """

    format: int
    engine: str
    created_at: str
    params: dict[str, Any]
    metrics: dict[str, Any] | None = None
    tuning: SearchRecord | None = None
    popular_half_life_days: float | None = None
    data: DataDescription
    repeats: RepeatParams
    matrix: LeftOut
    users: int
    items: int
    pairs: int
    versions: dict[str, str]
    python: str
    files: dict[str, int]
    digests: dict[str, str] | UnsetType = UNSET
    digest: str | UnsetType = UNSET

    @property
    def evaluation(self) -> EvaluationRecord | None:
        """The evaluation; DataError if it cannot be read."""
        return read_evaluation(self.metrics)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        description: dict[str, Any] = json_values(self)
        return description


def describe(path: Path) -> Description:
    """Return the description of a model folder, its file model.json, after a check of the sizes of all files.

    It is read again if the folder is replaced meanwhile. Raises ModelUnusable for a folder that is missing, is no
    model, is damaged, or has another format, and DataError if it cannot be read at present.
    """
    return _read_unreplaced(path, _describe)


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


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")


def _write_files(model: Model, folder: Path) -> None:
    """Write the files of *model* into an empty folder, the description last, and flush them to the disk."""
    _write_tables(model, folder)
    _write_ranker(model.ranker, model.params, folder)
    fields = _description(model, folder).to_json()
    fields["digest"] = _digest_of_fields(fields)
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / _DESCRIPTION).write_bytes(f"{text}\n".encode())
    for file in folder.iterdir():
        flush(file)
    flush(folder)


def _write_tables(model: Model, folder: Path) -> None:
    """Write the files of users, items, interactions, similar items and popular lists of a model to its folder."""
    matrix = model.matrix
    users = pl.DataFrame({"user": matrix.user_ids})
    if model.user_segments is not None:
        users = users.with_columns(pl.Series("segment", model.user_segments, dtype=pl.String))
    users.write_parquet(folder / "users.parquet")

    titles = pl.Series("title", [model.titles.get(item) for item in matrix.item_ids], dtype=pl.String)
    pl.DataFrame({"item": matrix.item_ids, "title": titles}).write_parquet(folder / "items.parquet")

    _write_array(folder, "user_items", matrix.user_items, _arrays_of_history(matrix))
    _write_array(folder, "similar", model.similar.similarity)
    _popular_frame(model).write_parquet(folder / "popular.parquet")


def _description(model: Model, folder: Path) -> Description:
    """Return the description of a model, with sizes and digests of its files, which are in *folder* already."""
    matrix = model.matrix
    files = [file for file in sorted(folder.iterdir()) if file.name != LOCK]
    return Description(
        format=FORMAT,
        engine=engine_of(model.params),
        created_at=_timestamp(model.created_at),
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


def _write_ranker(ranker: Ranker, params: Params, folder: Path) -> None:
    """Write the arrays that an engine (the algorithm of *params*) learned to a model's folder, each to its own file.

    A sparse matrix is a file NAME.npz, any other array NAME.npy. If scores are multiplied by factors of recency,
    recent.npy has these by item.
    """
    for array in spec_of(params).arrays:
        _write_array(folder, array.name, getattr(ranker, array.name))

    if ranker.recent is not None:
        # In float64, as float32 holds no high power of a small number.
        _write_array(folder, "recent", np.exp(ranker.recent.logs, dtype=np.float64))


def _read_ranker(path: Path, params: Params, shape: tuple[int, int]) -> Ranker:
    """Read the arrays that an engine (the algorithm of *params*) has learned from a model's folder.

    A sparse matrix is a file NAME.npz, any other array NAME.npy. *shape* is the number of users and of items. Raises
    ModelUnusable for an array of another shape.
    """
    users, items = shape
    recent = None
    recency = recency_of(params)
    if recency is not None:
        # Earlier versions wrote float32, and 0 for what that cannot hold.
        factors = np.maximum(_read_array(path, "recent", items).astype(np.float64), np.finfo(np.float64).tiny)
        recent = RecentWeights(np.log(factors).astype(np.float32), recency.gamma)

    spec = spec_of(params)
    arrays = dict[str, Any]()
    for array in spec.arrays:
        if array.is_sparse:
            arrays[array.name] = _csr_matrix(_read_arrays(path / f"{array.name}.npz"), (items, items))
        else:
            arrays[array.name] = _read_array(path, array.name, users if array.is_by_user else items)

    ranker: Ranker = spec.restored(arrays, params, recent)
    return ranker


def _read_array(path: Path, name: str, length: int) -> Array:
    """Read an array of the model folder *path*; ModelUnusable if it has another length."""
    array: Array = np.load(path / f"{name}.npy", allow_pickle=False)
    if array.shape[:1] != (length,):
        raise ModelUnusable(f"The parts of the model {path} do not belong together ({name}.npy); train it again.")
    return array


def _write_array(folder: Path, name: str, values: Any, more: Arrays | None = None) -> None:  # noqa: ANN401 -- scipy publishes no types
    """Write an array as NAME.npy, or a csr_matrix as NAME.npz with its arrays and *more*."""
    if isinstance(values, np.ndarray):
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
        return
    of_matrix = {"data": values.data, "indices": values.indices, "indptr": values.indptr}
    np.savez(folder / f"{name}.npz", allow_pickle=False, **of_matrix, **(more or {}))


def _read_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _csr_matrix(arrays: Arrays, shape: tuple[int, int]) -> UserItems:
    """Return the csr_matrix of such arrays, which are canonical; ValueError for places outside of *shape*."""
    pairs = csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
    pairs.check_format(full_check=True)
    pairs.has_canonical_format = True
    return pairs


def _arrays_of_history(matrix: Matrix) -> Arrays:
    """Return the arrays by which the history of a matrix (the rows of the log) is stored; empty without times.

    These are the first times of the pairs of user and item and, if pairs have several rows or weights that decay, the
    pair, time and weight of each row, and the time of its cancellation.
    """
    history = matrix.history
    if history is None or matrix.times is None:
        return {}

    arrays: Arrays = {"times": matrix.times}
    if len(history.pair_numbers) != matrix.user_items.nnz or history.weighing.half_life is not None:
        arrays |= {"row_cells": history.pair_numbers, "row_times": history.times, "row_weights": history.weights}
        if history.ended is not None:
            arrays["row_ended"] = history.ended
    return arrays


def _read_history(arrays: Arrays, user_items: UserItems, data: DataDescription) -> History | None:
    """Return the rows of the log behind *user_items*, from the arrays of `_arrays_of_history`; None without times.

    Without arrays of rows, there is one row for each pair. *data* is `Model.data`, which says how rows were weighed.
    """
    if "row_cells" not in arrays:
        return History.of(user_items, arrays["times"]) if "times" in arrays else None
    half_life = timedelta(seconds=data.half_life_s) if data.half_life_s else None
    return History(
        shape=user_items.shape,
        pair_numbers=arrays["row_cells"],
        times=arrays["row_times"],
        weights=arrays["row_weights"],
        weighing=Weighing(data.weighting, half_life),
        ended=arrays.get("row_ended"),
    )


def _popular_frame(model: Model) -> pl.DataFrame:
    """Return all popular lists as rows [segment, item, score]; the overall one has no segment."""
    lists: list[tuple[str | None, Popular]] = [(None, model.popular), *model.segments.items()]
    segments = list[str | None]()
    for segment, popular in lists:
        segments += [segment] * len(popular.items)
    return pl.DataFrame(
        {
            "segment": pl.Series(segments, dtype=pl.String),
            "item": np.concatenate([popular.items for _, popular in lists]),
            "score": np.concatenate([popular.scores for _, popular in lists]),
        }
    )


def _read_popular(path: Path, items: int) -> dict[str | None, Popular]:
    """Return the lists by segment; the overall one has None. Raises ValueError for numbers beyond those of *items*."""
    lists = _read_table(path)
    if not lists.get_column("item").is_between(0, items - 1).all():
        raise ValueError(f"{path.name} has unknown items")

    popular = dict[str | None, Popular]()
    for (segment,), rows in lists.group_by("segment", maintain_order=True):
        popular[segment] = Popular(rows["item"].to_numpy(), rows["score"].to_numpy())
    return popular


def _read_table(path: Path) -> pl.DataFrame:
    """Read a Parquet file as a whole, as a failing disk would kill a process that has mapped it."""
    return pl.read_parquet(BytesIO(path.read_bytes()))


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
        *(msgspec.MsgspecError, pl.exceptions.PanicException, pl.exceptions.PolarsError),
    ) as error:
        raise _damaged(path, reason_of(error)) from error
