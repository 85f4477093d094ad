"""Similar items, whatever the engine: items that the same users have, by their cosine, and recent popularity."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from hotplate.offline.evaluate.metrics import MetricInterval, interval
from hotplate.offline.evaluate.splits import Parts, ranked, rows_of
from hotplate.offline.input.matrix import (
    Allowed,
    Floats,
    Indices,
    Mask,
    Times,
    UserItems,
    are_among,
    cells_of,
    users_per_item,
)
from hotplate.offline.train import ranking
from hotplate.offline.train.popularity import Recency

# Of each item so many are kept: as many as a list has, as a rule, under rules, too.
_KEPT = 100
# A product of the matrix with itself has at most so many terms; of larger logs users are drawn.
_MOST_TERMS = 100_000_000
_ITEMS_AT_ONCE = 256
# How similar items are judged: the next items of a user should be in the lists of the last ones.
_LAST, _NEXT = 5, 3
SIMILAR_GAMMA = 0.25


@dataclass(frozen=True, slots=True)
class SimilarParams:
    """How items are compared: pairs with few users in common are held back by *shrink*, recency multiplies."""

    shrink: float = 20.0
    recency: Recency | None = None


@dataclass(frozen=True, slots=True)
class Similar:
    """The model: *similarity* [items, items], float32 csr, of each item the most similar ones, without itself."""

    similarity: Any

    def similar_items(self, items: Indices, n: int, *, allowed: Allowed = None) -> tuple[Indices, Floats]:
        """Return (items, scores), both [len(items), min(n, number of items - 1)], most similar first, then -1 and 0."""
        most = min(n, self.similarity.shape[0] - 1)
        return ranking.best_of_sparse(lambda batch: self.similarity[batch], items, most, allowed)


@dataclass(frozen=True, slots=True)
class SimilarResult:
    """The share of the last items of *users* that have one of the next items among their *k* similar ones.

    *interval* is of 95 %, over users.
    """

    params: SimilarParams
    k: int
    hit_rate: float
    interval: MetricInterval | None
    users: int


def fit(user_items: UserItems, params: SimilarParams, times: Times | None = None) -> Similar:
    """Compare all items of *user_items*; *times* are those of its pairs, which recency needs.

    Raises DataError for recency without times.
    """
    recent = None if params.recency is None else params.recency.weights(user_items, times)
    has = np.diff(user_items.indptr).astype(np.float64)
    drawn = np.random.default_rng(0).permutation(len(has))
    rows = user_items[np.sort(drawn[: int(np.searchsorted(np.cumsum(has[drawn] ** 2), _MOST_TERMS)) + 1])]
    binary = csr_matrix((np.ones(rows.nnz, dtype=np.float32), rows.indices, rows.indptr), shape=rows.shape)
    by_item, counts = csr_matrix(binary.T), np.maximum(users_per_item(rows), 1)
    kept = []
    for start in range(0, binary.shape[1], _ITEMS_AT_ONCE):
        both = by_item[start : start + _ITEMS_AT_ONCE] @ binary
        of = np.repeat(np.arange(start, start + both.shape[0]), np.diff(both.indptr))
        together, others = both.data, both.indices
        both.data = together / np.sqrt(counts[of] * counts[others]) * (together / (together + params.shrink))
        if recent is not None:
            both.data *= recent[others]
        both.data[of == others] = 0
        kept.append(nearest(both.astype(np.float32), _KEPT))
    similarity = csr_matrix(vstack(kept))
    similarity.has_canonical_format = True
    return Similar(similarity)


def nearest(similarity: Any, most: int) -> Any:  # noqa: ANN401 -- scipy publishes no types
    """Return the *most* highest of each row of a csr_matrix, without zeros; which of equals is the same on each run."""
    data, kept = similarity.data, similarity.data > 0
    for start, end in pairwise(similarity.indptr.tolist()):
        if end - start > most:
            row = data[start:end]
            least = np.partition(row, end - start - most)[end - start - most]
            kept[start:end] &= row >= least
            excess = int(np.count_nonzero(row >= least)) - most
            if excess:
                kept[start + np.flatnonzero(row == least)[-excess:]] = False
    ends = np.concatenate([[0], np.cumsum(kept)])[similarity.indptr]
    found = csr_matrix((data[kept], similarity.indices[kept], ends), shape=similarity.shape)
    found.sort_indices()
    return found


def choose(parts: Parts, half_life_days: float | None, k: int) -> SimilarParams:
    """Return what finds the most next items of *parts*: with or without shrinking, and a little of recency.

    The measure rewards popular items, so the power of recency is bounded.
    """
    is_timed = half_life_days is not None and parts.history is not None
    recencies = (None, Recency(half_life_days, SIMILAR_GAMMA)) if half_life_days is not None and is_timed else (None,)
    cells = [SimilarParams(shrink, recency) for recency in recencies for shrink in (20.0, 0.0)]

    def hit_rate(params: SimilarParams) -> float:
        return measure(fit(parts.train, params, parts.train_times), params, parts, k).hit_rate

    return max(cells, key=hit_rate)


def measure(similar: Similar, params: SimilarParams, parts: Parts, k: int) -> SimilarResult:
    """Measure lists of *k* by the users of *parts* that have items before and after the cut."""
    users = np.flatnonzero((np.diff(parts.test.indptr) > 0) & (np.diff(parts.train.indptr) > 0))
    has = np.isin(rows_of(parts.train), users)
    last = _first(parts.train, None if parts.train_times is None else -parts.train_times, _LAST) & has
    following = cells_of(parts.test)[_first(parts.test, parts.test_times, _NEXT)]
    of_user, items = rows_of(parts.train)[last], parts.train.indices[last]
    distinct, at = np.unique(items, return_inverse=True)
    lists, _ = similar.similar_items(distinct.astype(np.int32), k)
    found = lists[at]
    hits = (found >= 0) & are_among(following, of_user[:, None] * parts.test.shape[1] + found)
    per_user = np.bincount(of_user, hits.any(axis=1), parts.test.shape[0])[users] / np.bincount(of_user)[users]
    rate = float(per_user.mean()) if len(users) else 0.0
    return SimilarResult(params, k, rate, interval(per_user), len(users))


def _first(pairs: UserItems, order: Times | None, most: int) -> Mask:
    """Return which pairs are among the first *most* of their user by *order*, or by item without one."""
    rows = rows_of(pairs)
    rank, _ = ranked(rows, pairs.indices.astype(np.float64) if order is None else order)
    return np.asarray(rank <= most)
