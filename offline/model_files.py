"""The tables and arrays of a model's folder.

users.parquet               [user]; earlier versions wrote segments, too
items.parquet               [item, title]
user_items.npz              the matrix, and the rows behind its pairs (`History`), if times are known
similar.npz                 similar items
popular.parquet             popular lists [segment, item, score]; the overall one has no segment
*.npy, similarity.npz       what the engine learned; of a blend, with the engine before the name: als.item_factors.npy
"""

from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix

from hotplate.offline.errors import ModelUnusable
from hotplate.offline.input.history import History, Weighing
from hotplate.offline.input.matrix import Matrix
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.model import DataDescription, Description, Model
from hotplate.offline.train.blend import Blend, BlendParams
from hotplate.offline.train.engine import Params, Ranker, engine_of, params_from, spec_of
from hotplate.offline.train.popularity import Popular, Recency
from hotplate.offline.train.ranking import RecentWeights
from hotplate.offline.train.similar import Similar

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = dict[str, Array]


def write(model: Model, folder: Path) -> None:
    """Write all tables and arrays of a model to an empty folder."""
    matrix = model.matrix
    pl.DataFrame({"user": matrix.user_ids}).write_parquet(folder / "users.parquet")

    titles = pl.Series("title", [model.titles.get(item) for item in matrix.item_ids], dtype=pl.String)
    pl.DataFrame({"item": matrix.item_ids, "title": titles}).write_parquet(folder / "items.parquet")

    _write_array(folder, "user_items", matrix.user_items, _arrays_of_history(matrix))
    _write_array(folder, "similar", model.similar.similarity)
    _popular_frame(model).write_parquet(folder / "popular.parquet")
    _write_ranker(model.ranker, model.params, folder)


def read(path: Path, description: Description) -> Model:
    """Return the model of a folder with this description; raises ModelUnusable and other errors for a damaged one."""
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
    )


def _write_ranker(ranker: Ranker, params: Params, folder: Path, prefix: str = "") -> None:
    """Write the arrays that an engine (the algorithm of *params*) learned to a model's folder, each to its own file.

    A sparse matrix is a file NAME.npz, any other array NAME.npy. If scores are multiplied by factors of recency,
    recent.npy has these by item. The *prefix* of names is the engine of a blend.
    """
    if isinstance(ranker, Blend):
        for part_params, part in zip(ranker.params.parts, ranker.parts, strict=True):
            _write_ranker(part, part_params, folder, f"{engine_of(part_params)}.")

    for array in spec_of(params).arrays:
        _write_array(folder, f"{prefix}{array.name}", getattr(ranker, array.name))

    if ranker.recent is not None:
        # In float64, as float32 holds no high power of a small number.
        _write_array(folder, f"{prefix}recent", np.exp(ranker.recent.logs, dtype=np.float64))


def _read_ranker(path: Path, params: Params, shape: tuple[int, int], prefix: str = "") -> Ranker:
    """Read the arrays that an engine (the algorithm of *params*) has learned from a model's folder.

    A sparse matrix is a file NAME.npz, any other array NAME.npy. *shape* is the number of users and of items. Raises
    ModelUnusable for an array of another shape. The *prefix* of names is the engine of a blend.
    """
    if isinstance(params, BlendParams):
        return Blend(tuple(_read_ranker(path, part, shape, f"{engine_of(part)}.") for part in params.parts), params)

    users, items = shape
    spec = spec_of(params)
    arrays = dict[str, Any]()
    for array in spec.arrays:
        name = f"{prefix}{array.name}"
        if array.is_sparse:
            arrays[array.name] = _csr_matrix(_read_arrays(path / f"{name}.npz"), (items, items))
        else:
            arrays[array.name] = _read_array(path, name, users if array.is_by_user else items)

    recent = None
    if params.recency is not None:
        recent = _read_recent(_read_array(path, f"{prefix}recent", items), params.recency)
    ranker: Ranker = spec.restored(arrays, params, recent)
    return ranker


def _read_recent(factors: Array, recency: Recency) -> RecentWeights:
    """Return the weights by the *factors* of items. Earlier versions wrote float32, and 0 for what that cannot hold."""
    logs = np.log(np.maximum(factors.astype(np.float64), np.finfo(np.float64).tiny))
    return RecentWeights(logs.astype(np.float32), recency.gamma)


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
