"""Lists from scores, for all engines."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from implicit.cpu.topk import topk
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

from hotplate.offline.errors import require_at_least
from hotplate.offline.input.matrix import Allowed, Floats, Indices, UserItems, items_per_user, row_of_each_pair

# Bounds memory; `topk` holds a hundred rows per core.
_RANKED_AT_ONCE = 4096
_SPARSE_AT_ONCE = 256  # a row may have a hundred thousand scores
ScoreTable = npt.NDArray[Any]
RankerT = TypeVar("RankerT")


class Ranked(NamedTuple):
    """Lists of *items* with their *scores* [lists, n], best first; -1 with score 0 after the end."""

    items: Indices
    scores: Floats


class Scorer(Protocol):
    """Scores pairs of users and items."""

    @property
    def shape(self) -> tuple[int | None, int]:
        """Number of users (None for any) and items."""

    @property
    def floor(self) -> float:
        """Items with this score or less are not listed."""

    @property
    def recent(self) -> Floats | None:
        """Factors of the scores in users' lists [items], or None."""

    def score(self, rows: UserItems, users: Indices) -> ScoreTable:
        """Return a new table [users, items]; *rows* are the interactions of *users*."""


def recommend(
    ranker: Scorer,
    user_items: UserItems,
    users: Indices,
    n: int,
    *,
    keep_seen: bool = False,
    allowed: Allowed = None,
    own: UserItems | None = None,
) -> Ranked:
    """Return lists of min(n, number of items) for the rows *users* of *user_items* [users, items].

    A user without interactions has an empty list. The user's items are left out unless *keep_seen*, and items that are
    not *allowed* [items]. *own* [users, items], values of users' own choices, is added to scores that are scaled to a
    maximum of 1 per user. Raises ValueError if *user_items* has another shape than the matrix *ranker* learnt from.
    """
    for learnt, size in zip(ranker.shape, user_items.shape, strict=True):
        if learnt not in (None, size):
            raise ValueError(f"user_items is {user_items.shape}, but {ranker.shape} was learnt from")

    def score_batch(batch: Indices) -> ScoreTable:
        """Return the scores of a batch of users [users, items], -inf for items that may not be listed."""
        rows = user_items[batch]
        table = ranker.score(rows, batch)
        if ranker.recent is not None:
            table *= ranker.recent
        if own is not None:
            _add_own_choices(table, own[batch])
        table[items_per_user(rows) == 0] = -np.inf
        if not keep_seen:
            table[row_of_each_pair(rows), rows.indices] = -np.inf
        return table

    return _best_of_tables(score_batch, users, ranker.floor, min(n, ranker.shape[1]), allowed)


def _add_own_choices(table: ScoreTable, own: UserItems) -> None:
    """Scale the scores of *table* to a maximum of 1, and add those of *own*."""
    best = table.max(axis=1, keepdims=True)
    table /= np.where(best > 0, best, 1)
    table[row_of_each_pair(own), own.indices] += own.data


def best_of_sparse(score_batch: Callable[[Indices], Any], rows: Indices, n: int, allowed: Allowed) -> Ranked:
    """Return the *n* items with the highest scores above 0 for each of *rows* (users or items), ties by item.

    *score_batch* returns the scores of some of the rows, a csr_matrix [rows, items] in which few are stored. All items
    are listed, or those *allowed* [items]. After the end of a list, items are -1 and scores 0.
    """
    require_at_least("The length of a list", n)
    items = np.full((len(rows), n), -1, dtype=np.int32)
    scores = np.zeros((len(rows), n), dtype=np.float32)
    for start in range(0, len(rows), _SPARSE_AT_ONCE):
        stored = score_batch(rows[start : start + _SPARSE_AT_ONCE])
        is_listable = stored.data > 0
        if allowed is not None:
            is_listable &= allowed[stored.indices]
        stored_rows = row_of_each_pair(stored)[is_listable]
        stored_items = stored.indices[is_listable]
        values = stored.data[is_listable]

        best_first = np.lexsort((stored_items, -values, stored_rows))  # row by row
        sorted_rows = stored_rows[best_first]
        first_of_row = np.searchsorted(sorted_rows, sorted_rows)
        ranks = np.arange(len(sorted_rows)) - first_of_row

        is_listed = ranks < n
        places = start + sorted_rows[is_listed], ranks[is_listed]
        items[places] = stored_items[best_first][is_listed]
        scores[places] = values[best_first][is_listed]
    return Ranked(items, scores)


def itself(ranker: RankerT, _user_items: UserItems) -> RankerT:
    """Fold users in for engines without user parameters."""
    return ranker


class _Queries:
    """Queries that `topk` would multiply with items, a hundred rows at a time; computes their scores instead."""

    def __init__(self, score_batch: Callable[[Indices], ScoreTable], batch: Indices) -> None:
        self._score_batch = score_batch
        self._batch = batch
        self.shape = (len(batch), 0)

    @property
    def dtype(self) -> npt.DTypeLike:
        return self._score_batch(self._batch[:0]).dtype

    def __getitem__(self, rows: slice) -> "_Queries":
        return _Queries(self._score_batch, self._batch[rows])

    def dot(self, _items: object) -> ScoreTable:
        return self._score_batch(self._batch)


def _best_of_tables(
    score_batch: Callable[[Indices], ScoreTable], users: Indices, floor: float, n: int, allowed: Allowed
) -> Ranked:
    """Return the *n* items with the highest scores above *floor* for each of *users*, ties by item.

    *score_batch* returns the scores of some of the users, a table [users, items]. All items are listed, or those
    *allowed* [items]. After the end of a list, items are -1 and scores 0.
    """
    require_at_least("The length of a list", n)
    not_allowed = None if allowed is None else np.flatnonzero(~allowed)
    items = np.full((len(users), n), -1, dtype=np.int32)
    scores = np.zeros((len(users), n), dtype=np.float32)
    with threadpool_limits(1, "blas"):
        for start in range(0, len(users), _RANKED_AT_ONCE):
            batch = slice(start, start + _RANKED_AT_ONCE)
            # `topk` multiplies items with queries; these queries return their scores instead.
            queries = _Queries(score_batch, users[batch])
            best_items, best_scores = topk(np.empty((0, 0)), queries, n, filter_items=not_allowed)

            # Equal scores are put in the order of items.
            order = np.lexsort((best_items, -best_scores), axis=1)
            best_items = np.take_along_axis(best_items, order, axis=1)
            best_scores = np.take_along_axis(best_scores, order, axis=1)

            # `topk` gives filtered items the least float.
            is_listed = (best_scores > floor) & (best_scores > np.finfo(best_scores.dtype).min)
            items[batch] = np.where(is_listed, best_items, -1)
            scores[batch] = np.where(is_listed, best_scores, 0)
    return Ranked(items, scores)
