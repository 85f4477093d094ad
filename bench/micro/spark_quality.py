"""How alike models of Spark and of implicit are: nDCG on pairs that neither has learnt from, and their lists in common.

No constant regularization is that of Spark, which grows with what a user or an item has. So implicit's own kernels are
given Spark's objective, too: what then differs is rounding, the start of the fit, and how it is solved.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from implicit.cpu._als import least_squares_cg
from scipy.sparse import csr_matrix, hstack
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

from bench.micro.rounds import Figure, at_least, at_most
from offline.evaluate.metrics import measure_users
from offline.evaluate.splits import SplitOptions, split
from offline.input.matrix import Floats, Indices, Matrix, UserItems, known_pairs, to_matrix
from offline.model import load
from offline.train.als import Factors
from offline.train.weighted import SparkParams, confidences

K = 10
_TEST = SplitOptions("by-item", test_share=0.1)
_SAME = "implicit with Spark's objective"
_NDCG_APART, _OVERLAP = 0.01, 0.70


def hold_back(pairs: pl.DataFrame, learnt_from: Path) -> pl.DataFrame:
    """Write nine tenths of *pairs* [user, item] as Parquet; return the others [user, item, weight]."""
    matrix = to_matrix(pairs.with_columns(weight=pl.lit(1.0)), 5, 5)
    parts = split(matrix.user_items, None, _TEST)
    _frame(parts.train, matrix).write_parquet(learnt_from)
    return _frame(parts.test, matrix)


def compare(what: str, spark: Path, implicit: Path, held_back: pl.DataFrame) -> Iterator[Figure]:
    """Yield how well the models in two folders, learnt from the same data, rank what was held back, and how alike."""
    on_spark, constant = load(spark), load(implicit)
    matrix, params = on_spark.matrix, on_spark.params
    if not isinstance(params, SparkParams):
        raise TypeError(f"{spark} is a model of {type(params).__name__}")
    test = known_pairs(held_back, matrix).user_items
    users = np.arange(len(matrix.user_ids), dtype=np.int32)
    rankers = {
        "Spark": on_spark.ranker,
        "implicit": constant.ranker,
        _SAME: fit_by_implicit(matrix.user_items, params),
    }
    lists = {name: ranker.recommend(matrix.user_items, users, K)[0] for name, ranker in rankers.items()}
    ndcg = {name: measure_users(found, test).metrics.ndcg for name, found in lists.items()}
    for name, value in ndcg.items():
        yield Figure(f"{what}, {name}: nDCG@{K}", "", [value])
    both = f"{what}, Spark and {_SAME}"
    yield Figure(f"{both}: nDCG@{K} apart", "", [abs(ndcg["Spark"] - ndcg[_SAME])], at_most(_NDCG_APART))
    yield Figure(f"{both}: overlap@{K}", "", [overlap(lists["Spark"], lists[_SAME])], at_least(_OVERLAP))


def overlap(one: Indices, other: Indices) -> float:
    """Return which share of its lists [users, k] two models have in common."""
    pairs = zip(one.tolist(), other.tolist(), strict=True)
    return float(np.mean([len(set(ours) & set(theirs)) / one.shape[1] for ours, theirs in pairs]))


def fit_by_implicit(user_items: UserItems, params: SparkParams) -> Factors:
    """Learn with the objective of Spark by conjugate gradients, from a start of implicit's kind.

    A constant regularization is all that implicit has. But a negative confidence is a dislike, and the dislike of an
    item whose factors are a unit vector adds to the diagonal: one such for each factor adds what a user's own is.
    """
    generator = np.random.default_rng(params.seed)
    users, items = (
        generator.random((count, params.factors), dtype=np.float32) * np.float32(0.01) for count in user_items.shape
    )
    weights = confidences(user_items.data, params.alpha)
    by_user = csr_matrix((weights, user_items.indices, user_items.indptr), shape=user_items.shape)
    by_item = csr_matrix(by_user.T)
    with threadpool_limits(1, "blas"):
        for _ in range(params.iterations):
            _solve(by_user, users, items, params)
            _solve(by_item, items, users, params)
    return Factors(users, items, params)


def _solve(pairs: UserItems, factors: Floats, others: Floats, params: SparkParams) -> None:
    """Improve *factors* by a few steps; the unit vectors stand in the product of all *others* with 1 already."""
    own = params.reg_param * np.diff(pairs.indptr).astype(np.float32)
    dislikes = csr_matrix(-np.repeat(own[:, None], params.factors, axis=1))
    everything = csr_matrix(hstack([pairs, dislikes], format="csr", dtype=np.float32))
    unit = np.eye(params.factors, dtype=np.float32)
    least_squares_cg(everything, factors, np.vstack([others, unit]), 0.0, cg_steps=5)


def _frame(user_items: UserItems, matrix: Matrix) -> pl.DataFrame:
    users = np.repeat(np.arange(user_items.shape[0]), np.diff(user_items.indptr))
    ids = {"user": pl.Series(matrix.user_ids)[users], "item": pl.Series(matrix.item_ids)[user_items.indices]}
    return pl.DataFrame(ids).with_columns(weight=pl.lit(1.0))
