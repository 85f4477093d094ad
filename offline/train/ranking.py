"""Lists from scores, for all engines, and operations on lists."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from implicit.cpu.topk import topk
from scipy.sparse import issparse
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # published without types

from hotplate.offline.errors import require_at_least
from hotplate.offline.input.pairs import (
    Allowed,
    Floats,
    Indices,
    Mask,
    UserItems,
    items_per_user,
    no_items,
    row_of_each_pair,
    row_slices,
)
from hotplate.stores.factors import lift_of

# Bounds memory; `topk` holds a hundred rows per core.
_RANKED_AT_ONCE = 4096
_SPARSE_AT_ONCE = 256  # a row may have a hundred thousand scores
ScoreTable = npt.NDArray[Any]
RankerT = TypeVar("RankerT")


class Ranked(NamedTuple):
    """Lists of *items*, numbers by the model's matrix, with their *scores*, best first.

    Both are [lists, n]; a list of fewer items ends with -1 and scores of 0.
    """

    items: Indices
    scores: Floats

    @classmethod
    def empty(cls, lists: int, n: int) -> "Ranked":
        """Return lists without items, to be changed in place."""
        return cls(no_items(lists, n), np.zeros((lists, n), dtype=np.float32))

    def put(self, places: npt.NDArray[np.integer[Any]] | Mask | slice, lists: "Ranked") -> None:
        """Replace the lists at *places* in place, from their first items on."""
        width = lists.items.shape[1]
        self.items[places, :width] = lists.items
        self.scores[places, :width] = lists.scores

    def ordered(self, order: npt.NDArray[np.integer[Any]]) -> "Ranked":
        """Return the items of each list at the places in *order* [lists, any]."""
        return Ranked(np.take_along_axis(self.items, order, axis=1), np.take_along_axis(self.scores, order, axis=1))

    def followed_by(self, others: "Ranked", n: int) -> "Ranked":
        """Return lists of *n* items: these, and then *others*, as by `without_repeats`."""
        items = np.concatenate([self.items, others.items], axis=1)
        scores = np.concatenate([self.scores, others.scores], axis=1)
        return Ranked(items, scores).without_repeats(n)

    def without_repeats(self, n: int) -> "Ranked":
        """Return lists of *n* items, each at its first place in its list; -1 entries are left out."""
        # A stable sort puts equal items side by side, the first one first.
        order = np.argsort(self.items, axis=1, kind="stable")
        ordered = np.take_along_axis(self.items, order, axis=1)
        is_first = ordered >= 0
        is_first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]

        kept = np.empty_like(is_first)
        np.put_along_axis(kept, order, is_first, axis=1)
        return self.only(kept, n)

    def only(self, kept: Mask, n: int) -> "Ranked":
        """Return lists of the first *n* items that are *kept* [lists, any], then -1 with score 0."""
        # A stable sort of the mask moves the kept entries to the front, in their order.
        order = np.argsort(~kept, axis=1, kind="stable")[:, :n]
        return self.ordered(order).where(np.take_along_axis(kept, order, axis=1))

    def where(self, listed: Mask) -> "Ranked":
        """Return -1 with a score of 0 in the place of items that are not *listed*."""
        return Ranked(np.where(listed, self.items, np.int32(-1)), np.where(listed, self.scores, np.float32(0)))


class RecentWeights(NamedTuple):
    """Recent popularity as part of scores: exp((ln score + logs) / (1 + gamma)), a weighted geometric mean.

    *logs* [items] are gamma times the logarithm of an item's recent popularity as a share of the highest.
    """

    logs: Floats
    gamma: float

    def apply(self, scores: ScoreTable, items: Indices | slice = slice(None)) -> None:
        """Change the *scores* [..., items] of *items* in place; those that are not above 0 become 0."""
        with np.errstate(divide="ignore"):  # the logarithm of 0
            np.log(np.maximum(scores, 0, out=scores), out=scores)
        scores += self.logs[items]
        scores /= 1 + self.gamma
        np.exp(scores, out=scores)


class Boosts(NamedTuple):
    """Boosts of items: a score becomes *factors* * score / the user's best score + *lifts*, both [items]."""

    factors: npt.NDArray[np.float64]
    lifts: npt.NDArray[np.float64]

    @classmethod
    def of(cls, boosts: npt.ArrayLike) -> "Boosts":
        """Return the boosts of items that have these boosts, 1 for none [items]."""
        factors = np.asarray(boosts, dtype=np.float64)
        return cls(factors, np.array([lift_of(boost) for boost in factors.tolist()]))

    def apply(self, scores: ScoreTable) -> ScoreTable:
        """Return the boosted *scores* [..., items], in float64; -inf stays."""
        positive = np.maximum(scores, 0)
        best = positive.max(axis=-1, keepdims=True)
        boosted = positive / np.where(best > 0, best, 1).astype(np.float64) * self.factors + self.lifts
        return np.where(np.isneginf(scores), scores, boosted)


@dataclass(frozen=True, slots=True)
class RankOptions:
    """What lists may hold, and what is added to scores.

    keep_seen  whether lists may hold items that the user has
    allowed    mask of the items that may be listed [items]; None for all
    own        weights of what users chose before [users, items]; a user's scores are divided by their maximum, and
               these weights added
    boosts     of items
    """

    keep_seen: bool = False
    allowed: Allowed = None
    own: UserItems | None = None
    boosts: Boosts | None = None

    @property
    def changes_scores(self) -> bool:
        """Whether own choices or boosts change scores."""
        return self.own is not None or self.boosts is not None


PLAIN = RankOptions()


class Scorer(Protocol):
    """Scores pairs of users and items."""

    @property
    def recent(self) -> RecentWeights | None:
        """How recent popularity counts in users' lists; None without recency."""

    def score(self, rows: UserItems, users: Indices) -> ScoreTable:
        """Return a new table [users, items]; *rows* are the interactions of *users*."""


def recommend(
    ranker: Scorer,
    user_items: UserItems,
    users: Indices,
    n: int,
    options: RankOptions = PLAIN,
) -> Ranked:
    """Return lists of min(n, number of items) for the rows *users* of *user_items* [users, items], best first.

    The scores of *ranker*, a fitted model, are combined with recent popularity, if it has any. Only items with a score
    above 0 are listed. A user without interactions has an empty list.
    """

    def score_batch(batch: Indices) -> ScoreTable:
        """Return the scores of a batch of users [users, items], -inf for items that may not be listed."""
        rows = user_items[batch]
        table = ranker.score(rows, batch)
        if ranker.recent is not None:
            ranker.recent.apply(table)
        if options.own is not None:
            _add_own_choices(table, options.own[batch])

        table[items_per_user(rows) == 0] = -np.inf
        if not options.keep_seen:
            table[row_of_each_pair(rows), rows.indices] = -np.inf
        return table if options.boosts is None else options.boosts.apply(table)

    return _best_of_tables(score_batch, users, min(n, user_items.shape[1]), options.allowed)


def _add_own_choices(table: ScoreTable, own: UserItems) -> None:
    """Scale the scores of *table* to a maximum of 1, and add those of *own*."""
    best = table.max(axis=1, keepdims=True)
    table /= np.where(best > 0, best, 1)
    table[row_of_each_pair(own), own.indices] += own.data


def best_of_sparse(score_batch: Callable[[Indices], Any], rows: Indices, n: int, allowed: Allowed) -> Ranked:
    """Return the *n* items with the highest scores above 0 for each of *rows* (users or items), ties by item.

    *score_batch* is called with a batch of the rows, and returns their scores as a csr_matrix [batch, items] that
    stores few of them. Only items that are *allowed* [items] are listed; None allows all. After the end of a list,
    items are -1 and scores 0.
    """
    require_at_least("The length of a list", n)
    items, scores = lists = Ranked.empty(len(rows), n)
    for batch in row_slices(len(rows), _SPARSE_AT_ONCE):
        batch_scores = score_batch(rows[batch])
        is_listable = batch_scores.data > 0
        if allowed is not None:
            is_listable &= allowed[batch_scores.indices]
        score_rows = row_of_each_pair(batch_scores)[is_listable]  # from 0 in each batch
        score_items = batch_scores.indices[is_listable]
        values = batch_scores.data[is_listable]

        # Sorted by row, and in each row the best first: the rank of a score is its distance from the first of its row.
        order = np.lexsort((score_items, -values, score_rows))
        score_rows = score_rows[order]
        score_items = score_items[order]
        values = values[order]
        first_of_row = np.searchsorted(score_rows, score_rows)
        ranks = np.arange(len(score_rows)) - first_of_row

        # Put each score at its row and rank.
        is_listed = ranks < n
        listed_rows = batch.start + score_rows[is_listed]
        listed_ranks = ranks[is_listed]
        items[listed_rows, listed_ranks] = score_items[is_listed]
        scores[listed_rows, listed_ranks] = values[is_listed]
    return lists


@dataclass(frozen=True, slots=True)
class ScoresOfUsers:
    """What a fitted model says of some *users*, in ascending order: its *table* of scores [users, items].

    The table may be a csr_matrix.
    """

    table: Any
    users: Indices
    recent: RecentWeights | None = None

    recommend = recommend

    @classmethod
    def of(cls, ranker: Scorer, user_items: UserItems, users: Indices) -> "ScoresOfUsers":
        """Return the scores of *users*, rows of *user_items* [users, items]."""
        return cls(ranker.score(user_items[users], users), users, ranker.recent)

    def score(self, _rows: UserItems, users: Indices) -> ScoreTable:
        """Return scores [users, items]."""
        rows = self.table[np.searchsorted(self.users, users)]
        scores: ScoreTable = rows.toarray() if issparse(rows) else rows
        return scores


def itself(ranker: RankerT, _user_items: UserItems) -> RankerT:
    """Fold users in for engines without user parameters."""
    return ranker


def one_blas_thread() -> AbstractContextManager[object]:
    """Limit BLAS to one thread during a block."""
    limited: AbstractContextManager[object] = _threaded_libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _threaded_libraries() -> ThreadpoolController:
    """Return the libraries of this process with thread pools; a search for them takes a millisecond."""
    return ThreadpoolController()


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


def _best_of_tables(score_batch: Callable[[Indices], ScoreTable], users: Indices, n: int, allowed: Allowed) -> Ranked:
    """Return the *n* items with the highest scores above 0 for each of *users*.

    *score_batch* is called with some of the users, and returns their scores, a table [users, items]. Only items that
    are *allowed* [items] are listed; None allows all. After the end of a list, items are -1 and scores 0. Ties are in
    the order of items; which of several items with the score of the last place are listed is not defined.

    The best items are selected by implicit's `topk`, which multiplies queries with factors of items to get scores. As
    the scores are known, `_Queries` stand for the queries: their product with an empty matrix of factors is the scores.
    """
    require_at_least("The length of a list", n)
    not_allowed = None if allowed is None else np.flatnonzero(~allowed)
    lists = Ranked.empty(len(users), n)
    with one_blas_thread():
        for batch in row_slices(len(users), _RANKED_AT_ONCE):
            queries = _Queries(score_batch, users[batch])
            no_factors = np.empty((0, 0))
            best = Ranked(*topk(no_factors, queries, n, filter_items=not_allowed))

            # Equal scores are put in the order of items.
            best = best.ordered(np.lexsort((best.items, -best.scores), axis=1))
            lists.put(batch, best.where(best.scores > 0))  # `topk` gives filtered items the least float
    return lists
