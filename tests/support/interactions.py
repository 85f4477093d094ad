"""Interactions with provably right recommendations."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from hotplate.offline.evaluate.evaluation import EvaluateOptions, evaluate_parts
from hotplate.offline.evaluate.metrics import ListMetrics, RankingMetrics
from hotplate.offline.evaluate.records import EvaluationRecord
from hotplate.offline.evaluate.splits import SplitOptions, split
from hotplate.offline.input.history import Weighing
from hotplate.offline.input.interactions import Interactions
from hotplate.offline.input.matrix import Matrix, to_matrix
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.model import DataDescription, Model
from hotplate.offline.options import Columns
from hotplate.offline.train.als import ALSParams, fit
from hotplate.offline.train.engine import Params
from hotplate.offline.train.popularity import Popular, most_popular
from hotplate.offline.train.similar import SimilarParams
from hotplate.offline.train.similar import fit as fit_similar

# Reads a text with options of `read_interactions`.
ReadText = Callable[..., Interactions]

DATA = DataDescription(
    rows=9,
    left_out={},
    fingerprint="abc",
    notes=[],
    source="log.csv",
    titles=None,
    time_range=None,
    columns=Columns(user="user", item="item"),
    where=[],
    event_weights=None,
    half_life_s=None,
    weighting="sum",
    min_per_user=1,
    min_per_item=1,
)


def under_cap(items: Iterable[str], categories: Mapping[str, str | Collection[str]], cap: int | None) -> list[str]:
    """Return the *items* of a list that a cap on each category leaves in it, one after another."""
    listed = list[str]()
    counts = Counter[str]()
    for item in items:
        names = categories.get(item, ())
        names = {names} if isinstance(names, str) else set(names)
        if cap is None or all(counts[name] < cap for name in names):
            listed.append(item)
            counts.update(names)
    return listed


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, with the folders that it lies in; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs_of(read: Interactions) -> list[tuple[str, str, float]]:
    """Return the pairs of users and items with their weights, float32, in order of ids."""
    matrix = to_matrix(read.log, weighing=read.weighing)
    users, items = matrix.user_items.nonzero()
    weights = matrix.user_items.data.tolist()
    return [
        (matrix.user_ids[user], matrix.item_ids[item], weight)
        for user, item, weight in zip(users.tolist(), items.tolist(), weights, strict=True)
    ]


def matrix_of(rows: Sequence[tuple[str, str, datetime]], weighing: Weighing) -> Matrix:
    """Return the matrix of rows of user, item and time, each of weight 1."""
    log = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").with_columns(weight=pl.lit(1.0))
    return to_matrix(log, weighing=weighing)


def checkerboard(size: int) -> UserItems:
    """Even users like even items, odd users odd ones; each lacks the item of the same number: the one to find."""
    rows, columns = np.indices((size, size))
    return csr_matrix(((rows % 2 == columns % 2) & (rows != columns)).astype(np.float32))


def checkerboard_model(size: int = 20) -> Model:
    """A model of a checkerboard, with two titles and a segment."""
    user_items = checkerboard(size)
    ids = sorted(f"n{n}" for n in range(size))
    matrix = Matrix(ids, [f"i{name}" for name in ids], user_items)
    params = ALSParams(factors=8, regularization=0.1, alpha=2.0, iterations=20)
    segments = {"North & South": Popular(np.array([3], dtype=np.int32), np.array([7], dtype=np.float32))}
    return Model(
        ranker=fit(user_items, params),
        matrix=matrix,
        titles={"in0": 'The "first"', "in3": "Üñí 😀"},
        popular=most_popular(matrix, 5),
        segments=segments,
        params=params,
        evaluation=None,
        data=DATA,
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
        similar=fit_similar(user_items, SimilarParams(0)),
    )


def evaluated(ndcg: float = 0.5, *, k: int = 10, split: SplitOptions | None = None) -> EvaluationRecord:
    """Return the evaluation of a model with this nDCG as served, 0.4 of personal lists alone, and without baselines."""
    as_served = RankingMetrics(
        k=k,
        precision=0.0,
        recall=0.0,
        recall_at_k=0.0,
        map=0.0,
        ndcg=ndcg,
        mrr=0.0,
        hit_rate=0.0,
        users=9,
        users_with_lists=9,
    )
    return EvaluationRecord(
        split=split or SplitOptions("by-item", seed=1),
        k=k,
        train_pairs=27,
        test_pairs=9,
        cold_pairs=0,
        engine="als",
        params={},
        model=ListMetrics(**asdict(replace(as_served, ndcg=0.4))),
        as_served=as_served,
        intervals={},
        baselines={},
    )


def evaluate(
    matrix: Matrix,
    params: Params,
    options: SplitOptions | None = None,
    **how: Any,  # noqa: ANN401 -- fields of EvaluateOptions
) -> EvaluationRecord:
    """Split a matrix, by time if it has a history, and evaluate as `evaluate_parts`."""
    options = options or SplitOptions("by-item" if matrix.history is None else "by-time")
    parts = split(matrix.user_items, matrix.history, options)
    return evaluate_parts(parts, params, EvaluateOptions(**how))
