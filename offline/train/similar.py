"""Similar items: cosine of users, multiplied by recent popularity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from hotplate.offline.evaluate.metrics import LEADING, MetricInterval, Values, interval, leads_by
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

_KEPT = 100
# Of the matrix product; beyond them, users are sampled.
_MOST_TERMS = 100_000_000
_ITEMS_AT_ONCE = 256
# A user's last and next items, to measure quality.
_LAST, _NEXT = 5, 3
SIMILAR_GAMMA = 0.25
# Higher powers would make all lists popular ones.
_GAMMAS = (SIMILAR_GAMMA, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class SimilarParams:
    """Hyperparameters: *shrink* lowers pairs with few common users, *recency* multiplies."""

    shrink: float = 20.0
    recency: Recency | None = None


@dataclass(frozen=True, slots=True)
class Similar:
    """A fitted model: *similarity* [items, items], float32 csr, the most similar other items of each."""

    similarity: Any

    def similar_items(self, items: Indices, n: int, *, allowed: Allowed = None) -> tuple[Indices, Floats]:
        """Return (items, scores), both [len(items), min(n, number of items - 1)], descending, then -1 and 0."""
        most = min(n, self.similarity.shape[0] - 1)
        return ranking.best_of_sparse(lambda batch: self.similarity[batch], items, most, allowed)


@dataclass(frozen=True, slots=True)
class SimilarResult:
    """Share of last items of *users* with a next item among *k* similar ones; 95 % *interval*."""

    params: SimilarParams
    k: int
    hit_rate: float
    interval: MetricInterval | None
    users: int


def similar_from(values: Mapping[str, Any] | None) -> SimilarParams:
    """Return the parameters of a SimilarResult from JSON values; the default ones for None."""
    if values is None:
        return SimilarParams()
    params = values["params"]
    recency = params["recency"]
    return SimilarParams(params["shrink"], None if recency is None else Recency(**recency))


def fit(user_items: UserItems, params: SimilarParams, times: Times | None = None) -> Similar:
    """Compare all items; *times* are those of the pairs. Raises DataError for recency without times."""
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
        values = together / np.sqrt(counts[of] * counts[others]) * (together / (together + params.shrink))
        if recent is not None:
            values *= recent[others]
        values[of == others] = 0
        both.data = values.astype(np.float32)
        kept.append(nearest(both, _KEPT))
    similarity = csr_matrix(vstack(kept))
    similarity.has_canonical_format = True
    return Similar(similarity)


def nearest(similarity: Any, most: int) -> Any:  # noqa: ANN401 -- scipy publishes no types
    """Return the *most* highest values above 0 per row of a csr_matrix, ties by column."""
    data, kept = similarity.data, similarity.data > 0
    for start, end in pairwise(similarity.indptr.tolist()):
        if end - start > most:
            row = data[start:end]
            kept[start:end] &= row >= np.partition(row, end - start - most)[end - start - most]
    found = _part(similarity, kept)
    found.sort_indices()  # far fewer than all
    rest, data = np.ones(found.nnz, dtype=np.bool_), found.data
    for start, end in pairwise(found.indptr.tolist()):
        if end - start > most:
            row = data[start:end]
            rest[start + np.flatnonzero(row == row.min())[most - (end - start) :]] = False
    return found if rest.all() else _part(found, rest)


def _part(similarity: Any, kept: Mask) -> Any:  # noqa: ANN401 -- as above
    ends = np.concatenate([[0], np.cumsum(kept)])[similarity.indptr]
    return csr_matrix((similarity.data[kept], similarity.indices[kept], ends), shape=similarity.shape)


def choose(parts: Parts, half_life_days: float | None, k: int) -> SimilarParams:
    """Return the parameters with the best hit rate on *parts*.

    The hit rate rewards popular items. So another power of recency than the default has to lead it by more than a 95 %
    interval, and so has another *shrink*.
    """
    powers: list[Recency | None] = [None]
    if half_life_days is not None and parts.history is not None:
        usual, *others = (Recency(half_life_days, gamma) for gamma in _GAMMAS)
        powers = [usual, None, *others]
    recent = _first_as_good([SimilarParams(recency=recency) for recency in powers], parts, k)
    return _first_as_good([recent, replace(recent, shrink=0.0)], parts, k)


def _first_as_good(cells: Sequence[SimilarParams], parts: Parts, k: int) -> SimilarParams:
    """Return the first cell that the best one does not lead by more than a 95 % interval."""
    users = _measurable(parts)
    if len(cells) == 1 or not len(users):
        return cells[0]
    hits = [_hit_rates(fit(parts.train, params, parts.train_times), parts, users, k) for params in cells]
    best = max(hits, key=lambda rates: float(rates.sum()))
    return next(params for params, rates in zip(cells, hits, strict=True) if leads_by(best, rates) <= LEADING)


def measure(similar: Similar, params: SimilarParams, parts: Parts, k: int) -> SimilarResult | None:
    """Measure lists of *k* on users of *parts* with items in train and test; None if there are none."""
    users = _measurable(parts)
    if not len(users):
        return None
    per_user = _hit_rates(similar, parts, users, k)
    return SimilarResult(params, k, float(per_user.mean()), interval(per_user), len(users))


def _measurable(parts: Parts) -> Indices:
    in_both = (np.diff(parts.test.indptr) > 0) & (np.diff(parts.train.indptr) > 0)
    return np.flatnonzero(in_both).astype(np.int32)


def _hit_rates(similar: Similar, parts: Parts, users: Indices, k: int) -> Values:
    """Return the share of last items with a next item among *k* similar ones [users]."""
    has = np.isin(rows_of(parts.train), users)
    last = _first(parts.train, None if parts.train_times is None else ~parts.train_times, _LAST) & has
    following = cells_of(parts.test)[_first(parts.test, parts.test_times, _NEXT)]
    of_user, items = rows_of(parts.train)[last], parts.train.indices[last]
    distinct, at = np.unique(items, return_inverse=True)
    lists, _ = similar.similar_items(distinct.astype(np.int32), k)
    found = lists[at]
    hits = (found >= 0) & are_among(following, of_user[:, None] * parts.test.shape[1] + found)
    rates: Values = np.bincount(of_user, hits.any(axis=1), parts.test.shape[0])[users] / np.bincount(of_user)[users]
    return rates


def _first(pairs: UserItems, order: Times | None, most: int) -> Mask:
    rows = rows_of(pairs)
    rank, _ = ranked(rows, pairs.indices.astype(np.float64) if order is None else order)
    return np.asarray(rank <= most)
