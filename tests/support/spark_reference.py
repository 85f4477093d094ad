"""What ALS on Spark is compared with: implicit's own kernels, given the objective of Spark, and lists in common."""

import numpy as np
from implicit.cpu._als import least_squares_cg
from scipy.sparse import csr_matrix, hstack
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

from hotplate.offline.input.matrix import Floats, Indices, UserItems
from hotplate.offline.train.als import Factors, SparkParams, confidences


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
