"""Models for the tests of Spark: one with many users, and ALS with Spark's objective by implicit's own kernels."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import numpy as np
import pytest
from implicit.cpu._als import least_squares_cg
from scipy.sparse import csr_matrix, hstack

from offline.input.matrix import Floats, Matrix, UserItems
from offline.model import Model
from offline.train.als import ALSParams, Factors
from offline.train.popularity import most_popular
from offline.train.weighted import SparkParams, confidences
from stores.encoding import OFFSET_BYTES, decode
from stores.store import Row


def model_of(users: int, items: int = 50, factors: int = 8) -> Model:
    """Return a model of random factors, whose lists nobody has to learn."""
    generator = np.random.default_rng(7)
    places = np.sort(generator.random((users, items)).argsort(axis=1)[:, :5], axis=1)
    indptr = np.arange(0, 5 * users + 1, 5)
    user_items = csr_matrix((np.ones(5 * users, dtype=np.float32), places.ravel(), indptr), shape=(users, items))
    user_items.has_canonical_format = True
    learnt = generator.normal(size=(users + items, factors)).astype(np.float32)
    matrix = Matrix([f"n{n:06}" for n in range(users)], [f"i{n:04}" for n in range(items)], user_items)
    params = ALSParams(factors=factors)
    return Model(
        ranker=Factors(learnt[:users], learnt[users:], params),
        matrix=matrix,
        titles={},
        popular=most_popular(matrix, 5),
        segments={},
        params=params,
        metrics=None,
        data={"fingerprint": "abc"},
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
    )


def assert_same_lists(found: Sequence[Row], expected: Sequence[Row]) -> None:
    """Hold rows of lists, without offsets, to others: the last digit of a score depends on what is computed with it."""
    assert [row.key for row in found] == [row.key for row in expected]
    for (key, one), (_, other) in zip(found, expected, strict=True):
        ours, theirs = decode(one), decode(other)
        assert [item["id"] for item in ours] == [item["id"] for item in theirs], key
        assert [item["score"] for item in ours] == pytest.approx([item["score"] for item in theirs], abs=3e-6)


def bodies_as_lists(rows: Iterable[Row]) -> list[Row]:
    """Return rows of bodies in the order of their keys, without their offsets."""
    return [Row(key, body[OFFSET_BYTES:]) for key, body in sorted(rows)]


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
