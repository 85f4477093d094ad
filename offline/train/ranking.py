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
    """Return lists of min(n, number of items) for the rows *users* of *user_items*; empty without interactions.

    The user's items are left out unless *keep_seen*, and items that are not *allowed*. *own* [users, items] is added to
    scores scaled to a maximum of 1. Raises ValueError if *user_items* has another shape than the learnt matrix.
    """
    for learnt, size in zip(ranker.shape, user_items.shape, strict=True):
        if learnt not in (None, size):
            raise ValueError(f"user_items is {user_items.shape}, but {ranker.shape} was learnt from")

    def scores_of(batch: Indices) -> ScoreTable:
        """Return the scores of a batch of users [users, items], -inf for items that may not be listed."""
        rows = user_items[batch]
        table = ranker.score(rows, batch)
        if ranker.recent is not None:
            table *= ranker.recent
        if own is not None:
            _add_own(table, own[batch])
        table[items_per_user(rows) == 0] = -np.inf
        if not keep_seen:
            table[row_of_each_pair(rows), rows.indices] = -np.inf
        return table

    return _best_of_tables(scores_of, users, ranker, min(n, ranker.shape[1]), allowed)


def _add_own(table: ScoreTable, own: UserItems) -> None:
    """Scale the scores of *table* to a maximum of 1, and add those of *own*."""
    best = table.max(axis=1, keepdims=True)
    table /= np.where(best > 0, best, 1)
    table[row_of_each_pair(own), own.indices] += own.data


def best_of_sparse(scores_of: Callable[[Indices], Any], rows: Indices, n: int, allowed: Allowed) -> Ranked:
    """Return lists of *n* as `recommend`, for a catalogue of which few items have a score.

    *scores_of* returns scores of some of the *rows* as a csr matrix; only those above 0 are listed.
    """
    require_at_least("The length of a list", n)
    items = np.full((len(rows), n), -1, dtype=np.int32)
    scores = np.zeros((len(rows), n), dtype=np.float32)
    for start in range(0, len(rows), _SPARSE_AT_ONCE):
        stored = scores_of(rows[start : start + _SPARSE_AT_ONCE])
        kept = stored.data > 0
        if allowed is not None:
            kept &= allowed[stored.indices]
        of_row = row_of_each_pair(stored)[kept]
        ids = stored.indices[kept]
        values = stored.data[kept]
        order = np.lexsort((ids, -values, of_row))
        of_row = of_row[order]
        rank = np.arange(len(of_row)) - np.searchsorted(of_row, of_row)
        first = rank < n
        places = start + of_row[first], rank[first]
        items[places] = ids[order][first]
        scores[places] = values[order][first]
    return Ranked(items, scores)


def itself(ranker: RankerT, _user_items: UserItems) -> RankerT:
    """Fold users in for engines without user parameters."""
    return ranker


class _Queries:
    """Queries that `topk` would multiply with items, a hundred rows at a time; computes their scores instead."""

    def __init__(self, scores_of: Callable[[Indices], ScoreTable], batch: Indices) -> None:
        self._scores_of = scores_of
        self._batch = batch
        self.shape = (len(batch), 0)

    @property
    def dtype(self) -> npt.DTypeLike:
        return self._scores_of(self._batch[:0]).dtype

    def __getitem__(self, rows: slice) -> "_Queries":
        return _Queries(self._scores_of, self._batch[rows])

    def dot(self, _items: object) -> ScoreTable:
        return self._scores_of(self._batch)


def _best_of_tables(
    scores_of: Callable[[Indices], ScoreTable], rows: Indices, ranker: Scorer, n: int, allowed: Allowed
) -> Ranked:
    """Return lists of *n* as `recommend`; *scores_of* returns the scores of some of the *rows* [rows, items]."""
    require_at_least("The length of a list", n)
    banned = None if allowed is None else np.flatnonzero(~allowed)
    items = np.full((len(rows), n), -1, dtype=np.int32)
    scores = np.zeros((len(rows), n), dtype=np.float32)
    with threadpool_limits(1, "blas"):
        for start in range(0, len(rows), _RANKED_AT_ONCE):
            part = slice(start, start + _RANKED_AT_ONCE)
            ids, values = topk(np.empty((0, 0)), _Queries(scores_of, rows[part]), n, filter_items=banned)
            order = np.lexsort((ids, -values), axis=1)
            ids = np.take_along_axis(ids, order, axis=1)
            values = np.take_along_axis(values, order, axis=1)
            # `topk` gives filtered items the type's minimum.
            is_listed = (values > ranker.floor) & (values > np.finfo(values.dtype).min)
            items[part] = np.where(is_listed, ids, -1)
            scores[part] = np.where(is_listed, values, 0)
    return Ranked(items, scores)
