"""Alternating least squares on implicit feedback: factors from the matrix, and the best items that they give."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from implicit.cpu._als import least_squares_cg
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.topk import topk
from implicit.recommender_base import ModelFitError
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

from offline.errors import DataError, SettingError, require_at_least
from offline.input.matrix import Allowed, Floats, Indices, UserItems, check_user_items
from offline.train.recency import Recency
from offline.train.weighted import SparkParams, check_hyperparameters, solve

# Bounds the memory that a batch takes beside the factors.
_SOLVED_AT_ONCE = 50_000
_RANKED_AT_ONCE = 4096
# Give the same nDCG as an exact solution, to five digits.
_LAST_STEPS = 6
# The scorer gives what is masked the lowest float instead of leaving it out.
_MASKED = -1e38


@dataclass(frozen=True, slots=True)
class ALSParams:
    """
    Hyperparameters of the fit; raises SettingError for values that make no sense.

    The defaults are measured ones: the library's own rank below plain popularity on sparse data.
    """

    factors: int = 256
    regularization: float = 30.0
    alpha: float = 4.0
    iterations: int = 15
    seed: int = 42
    recency: Recency | None = None

    def __post_init__(self) -> None:
        check_hyperparameters(self.factors, self.iterations, self.alpha, self.seed)
        if not 0 <= self.regularization < math.inf:
            raise SettingError(f"regularization is {self.regularization}; it must be zero or above.")


class _Row(NamedTuple):
    indices: Indices


class _Rows:
    """The rows of a csr matrix as `topk` takes them, one after the other: scipy makes one in 20 µs, this in 1."""

    def __init__(self, matrix: UserItems) -> None:
        self._indices, self._ends = matrix.indices, matrix.indptr.tolist()

    def __getitem__(self, row: int) -> _Row:
        return _Row(self._indices[self._ends[row] : self._ends[row + 1]])


@dataclass(frozen=True, slots=True)
class Factors:
    """The model: float32 rows of one length, user_factors [users, factors] and item_factors [items, factors]."""

    user_factors: Floats
    item_factors: Floats
    params: ALSParams | SparkParams = field(default_factory=ALSParams)
    recent: Floats | None = None
    """[items], multiplies the scores of users' lists, if recency is wanted."""

    @property
    def _ranked_factors(self) -> Floats:
        """The factors of the items by which lists of users are ranked."""
        return self.item_factors if self.recent is None else self.item_factors * self.recent[:, None]

    def recommend(
        self,
        user_items: UserItems,
        users: Indices,
        n: int,
        *,
        keep_seen: bool = False,
        allowed: Allowed = None,
    ) -> tuple[Indices, Floats]:
        """Rank items by the products of their factors with a user's; see `Ranker`."""
        require_at_least("The length of a list", n)
        if user_items.shape != (len(self.user_factors), len(self.item_factors)):
            raise ValueError(f"user_items is {user_items.shape}, but there are factors for other users or items")
        n = min(n, len(self.item_factors))
        banned = _banned(allowed)
        items = np.full((len(users), n), -1, dtype=np.int32)
        scores = np.zeros((len(users), n), dtype=np.float32)
        ranked = self._ranked_factors
        with threadpool_limits(1, "blas"):
            for start in range(0, len(users), _RANKED_AT_ONCE):
                batch = users[start : start + _RANKED_AT_ONCE]
                seen = csr_matrix(user_items[batch])
                ids, values = topk(
                    ranked,
                    self.user_factors[batch],
                    n,
                    filter_query_items=None if keep_seen else _Rows(seen),
                    filter_items=banned,
                )
                missing = (values <= _MASKED) | (np.diff(seen.indptr) == 0)[:, None]
                items[start : start + _RANKED_AT_ONCE] = np.where(missing, -1, ids)
                scores[start : start + _RANKED_AT_ONCE] = np.where(missing, 0, values)
        return items, scores

    def scores(self, user_items: UserItems, users: Indices) -> Floats:
        """Multiply the factors of *users* with those of all items; see `Ranker`."""
        has_any = np.diff(user_items.indptr)[users] > 0
        with threadpool_limits(1, "blas"):
            scores: Floats = np.where(has_any[:, None], self.user_factors[users], 0) @ self._ranked_factors.T
        return scores

    def similar_items(self, items: Indices, n: int, *, allowed: Allowed = None) -> tuple[Indices, Floats]:
        """
        Rank items by the cosine of their factors; see `Ranker`.

        An item whose factors are all zero is like no other: it gets, and is nowhere but, -1 with a score of 0.
        """
        require_at_least("The length of a list", n)
        n = min(n, len(self.item_factors) - 1)
        norms = np.linalg.norm(self.item_factors, axis=1)
        divisors = np.where(norms == 0, np.float32(1), norms)
        banned = _banned(allowed)
        similar = np.full((len(items), n), -1, dtype=np.int32)
        scores = np.zeros((len(items), n), dtype=np.float32)
        with threadpool_limits(1, "blas"):
            for start in range(0, len(items), _RANKED_AT_ONCE):
                batch = items[start : start + _RANKED_AT_ONCE]
                ids, values = topk(
                    self.item_factors, self.item_factors[batch], n + 1, item_norms=divisors, filter_items=banned
                )
                missing = (ids == batch[:, None]) | (norms[ids] == 0) | (norms[batch] == 0)[:, None]
                missing |= values <= _MASKED
                values = np.where(missing, 0, values) / divisors[batch][:, None]
                # A stable sort moves missing ones to the end and keeps the others in their order.
                order = np.argsort(missing, axis=1, kind="stable")[:, :n]
                missing, ids, values = (np.take_along_axis(part, order, axis=1) for part in (missing, ids, values))
                similar[start : start + _RANKED_AT_ONCE] = np.where(missing, -1, ids)
                scores[start : start + _RANKED_AT_ONCE] = values
        return similar, scores

    def fold_in(self, user_items: UserItems) -> "Factors":
        """Return the same items, and for users the factors that solve their rows of *user_items* exactly."""
        if isinstance(self.params, SparkParams):
            return replace(self, user_factors=solve(self.item_factors, user_items, self.params))
        model = AlternatingLeastSquares(
            factors=self.item_factors.shape[1], regularization=self.params.regularization, alpha=self.params.alpha
        )
        model.item_factors = self.item_factors
        factors = np.empty((user_items.shape[0], self.item_factors.shape[1]), dtype=np.float32)
        with threadpool_limits(1, "blas"):
            for start in range(0, user_items.shape[0], _SOLVED_AT_ONCE):
                rows = user_items[start : start + _SOLVED_AT_ONCE]
                factors[start : start + _SOLVED_AT_ONCE] = model.recalculate_user(np.arange(rows.shape[0]), rows)
        return replace(self, user_factors=factors)


def fit(user_items: UserItems, params: ALSParams, on_iteration: Callable[[int, int], None] | None = None) -> Factors:
    """
    Factorize *user_items* (float32 csr_matrix, canonical, above zero) on all cores.

    The factors of all users are solved once more at the end, against the final item factors, so that folding a user in
    later gives the same, but for 1e-4 of the largest. The same seed gives the same bits on one machine. *on_iteration*
    is called with (done, total). Memory: about 4 times the matrix, and 4 (users + items) factors bytes. Raises
    DataError for a matrix that cannot be factorized, and when the factors are not finite.
    """
    check_user_items(user_items)
    if float(user_items.data.max()) * params.alpha > float(np.finfo(np.float32).max):
        raise _diverged(params)

    def report(iteration: int, _elapsed_s: float, _loss: float | None) -> None:
        if on_iteration is not None:
            on_iteration(iteration + 1, params.iterations)

    # Threads of the linear algebra under the threads of the solver double the time.
    with threadpool_limits(1, "blas"):
        # A new model each time: one that was fitted before starts from its old factors, or crashes on another shape.
        model = AlternatingLeastSquares(
            factors=params.factors,
            regularization=params.regularization,
            alpha=params.alpha,
            iterations=params.iterations,
            random_state=params.seed,
        )
        try:
            model.fit(user_items, show_progress=False, callback=report)
        except ModelFitError as error:
            raise _diverged(params) from error
        # Conjugate gradients from where the fit ended: exact solving would take as long as half of the fit or more.
        confidence = user_items if params.alpha == 1 else params.alpha * user_items
        least_squares_cg(
            confidence, model.user_factors, model.item_factors, params.regularization, cg_steps=_LAST_STEPS
        )
    if not (np.isfinite(model.user_factors).all() and np.isfinite(model.item_factors).all()):
        raise _diverged(params)
    return Factors(model.user_factors, model.item_factors, params)


def _banned(allowed: Allowed) -> Indices | None:
    return None if allowed is None else np.flatnonzero(~allowed).astype(np.int32)


def _diverged(params: ALSParams) -> DataError:
    return DataError(
        f"The factors are not finite with regularization {params.regularization} and alpha {params.alpha}; "
        "raise the regularization, lower alpha, or use log weighting."
    )
