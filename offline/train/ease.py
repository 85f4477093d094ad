"""EASE: weights between items, solved in one step, by which what a user has speaks for what they have not."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, diags_array

from offline.errors import SettingError, require_at_least
from offline.input.matrix import Allowed, Floats, Indices, UserItems, check_user_items
from offline.train.recency import Recency

# A user counts by the square root of what they have: between one vote for each user and one for each pair.
_USER_POWER = -0.25
# The share of a user's items that the weights must do without; regularizes items by how many users they have.
_DROPOUT = 0.2
# Rows of a table of items, or of users by items, that are made at once: bounds the memory beside it.
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class EASEParams:
    """How much the weights are held back; raises SettingError for what makes no sense."""

    regularization: float = 20.0
    recency: Recency | None = None

    def __post_init__(self) -> None:
        if not 0 < self.regularization < math.inf:
            raise SettingError(f"regularization is {self.regularization}; EASE needs it to be above zero.")


@dataclass(frozen=True, slots=True)
class EASE:
    """
    The model: *weights* [items, items], float32, of what an item that a user has adds to the score of another.

    *recent* [items] multiplies the scores, if recency is wanted.
    """

    weights: Floats
    recent: Floats | None = None

    def recommend(
        self,
        user_items: UserItems,
        users: Indices,
        n: int,
        *,
        keep_seen: bool = False,
        allowed: Allowed = None,
    ) -> tuple[Indices, Floats]:
        """Rank items by the sum of the weights of what a user has; see `Ranker`."""
        require_at_least("The length of a list", n)
        if user_items.shape[1] != len(self.weights):
            raise ValueError(f"user_items is {user_items.shape}, but there are weights of other items")
        n = min(n, len(self.weights))
        items = np.full((len(users), n), -1, dtype=np.int32)
        scores = np.zeros((len(users), n), dtype=np.float32)
        for start in range(0, len(users), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            seen = user_items[users[rows]]
            table = self._summed(seen)
            if not keep_seen:
                table[np.repeat(np.arange(len(table)), np.diff(seen.indptr)), seen.indices] = 0
            items[rows], scores[rows] = _best(table, n, allowed)
        return items, scores

    def scores(self, user_items: UserItems, users: Indices) -> Floats:
        """Sum up the weights of what *users* have; see `Ranker`."""
        return self._summed(user_items[users])

    def _summed(self, rows: UserItems) -> Floats:
        summed: Floats = _damped(rows).astype(np.float32) @ self.weights
        if self.recent is not None:
            summed *= self.recent
        return np.maximum(summed, 0, out=summed)

    def similar_items(self, items: Indices, n: int, *, allowed: Allowed = None) -> tuple[Indices, Floats]:
        """Return what each of *items* speaks for most; see `Ranker`."""
        require_at_least("The length of a list", n)
        n = min(n, len(self.weights) - 1)
        similar = np.full((len(items), n), -1, dtype=np.int32)
        scores = np.zeros((len(items), n), dtype=np.float32)
        for start in range(0, len(items), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            similar[rows], scores[rows] = _best(np.maximum(self.weights[items[rows]], 0), n, allowed)
        return similar, scores

    def fold_in(self, user_items: UserItems) -> "EASE":  # noqa: ARG002 -- lists come of the items alone
        """Return itself: what a user has is all that a list is made of."""
        return self


def fit(user_items: UserItems, params: EASEParams) -> EASE:
    """
    Solve for the weights that best give each item of a user from the others; the same on every run of a machine.

    Regularized by a constant and by dropout (Steck, Embarrassingly shallow autoencoders, WWW 2019; Autoencoders that
    don't overfit towards the identity, NeurIPS 2020). Takes items^3 operations and 16 items^2 bytes. Raises DataError
    for a matrix that cannot be learnt from.
    """
    check_user_items(user_items)
    has = np.asarray(user_items.sum(axis=1, dtype=np.float64)).ravel()
    scaled = csr_matrix(diags_array(np.where(has > 0, has, 1) ** _USER_POWER) @ _damped(user_items))
    by_item = csr_matrix(scaled.T)
    table = np.empty((user_items.shape[1], user_items.shape[1]))
    for start in range(0, len(table), _AT_ONCE):
        table[start : start + _AT_ONCE] = (by_item[start : start + _AT_ONCE] @ scaled).toarray()
    diagonal = np.diag_indices_from(table)
    table[diagonal] = table[diagonal] / (1 - _DROPOUT) + params.regularization
    # It is symmetric, so that its transpose lies in memory as LAPACK wants it; only one triangle is written. With what
    # dropout adds to the diagonal it is positive definite, whatever users have.
    factor, _ = lapack.dpotrf(table.T, lower=True, overwrite_a=True)
    inverse, _ = lapack.dpotri(factor, lower=True, overwrite_c=True)
    variances = inverse[diagonal]
    weights = np.tril(inverse.astype(np.float32), -1)
    weights += weights.T.copy()
    weights /= -variances.astype(np.float32)
    return EASE(weights)


def _damped(user_items: UserItems) -> csr_matrix:
    """Return the square roots of the weights: a user who has something a hundred times is not that much surer."""
    data = np.sqrt(user_items.data, dtype=np.float64)
    return csr_matrix((data, user_items.indices, user_items.indptr), shape=user_items.shape)


def _best(table: Floats, n: int, allowed: Allowed) -> tuple[Indices, Floats]:
    """Return the *n* highest of each row that are above zero, the lower index among equals; -1 with 0 after them."""
    if allowed is not None:
        table[:, ~allowed] = 0
    if n < table.shape[1]:
        places = np.argpartition(-table, n - 1, axis=1)[:, :n].astype(np.int32)
    else:
        places = np.tile(np.arange(table.shape[1], dtype=np.int32), (len(table), 1))
    values = np.take_along_axis(table, places, axis=1)
    order = np.lexsort((places, -values), axis=1)
    places, values = np.take_along_axis(places, order, axis=1), np.take_along_axis(values, order, axis=1)
    return np.where(values > 0, places, np.int32(-1)), values
