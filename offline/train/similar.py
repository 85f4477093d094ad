"""Similar items: cosine of users, multiplied by recent popularity.

Two items are similar if the same users have them. The hit rate of lists of similar items is measured on users' last
items in the train part: does the list of one hold an item that the user chose next?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from hotplate.offline.evaluate.metrics import LEADING, MetricInterval, Values, interval_of_mean, leads_by
from hotplate.offline.evaluate.splits import Parts, rank_in_groups
from hotplate.offline.input.matrix import (
    Allowed,
    Indices,
    Mask,
    PairNumbers,
    Times,
    UserItems,
    are_among,
    items_per_user,
    pair_numbers,
    row_of_each_pair,
    select_pairs,
    users_per_item,
    with_weights,
)
from hotplate.offline.train import ranking
from hotplate.offline.train.popularity import Recency

_KEPT = 100
# Of the matrix product; beyond them, users are sampled.
_MOST_TERMS = 100_000_000
_ITEMS_AT_ONCE = 256
# A user's last and next items, to measure quality.
_LAST = 5
_NEXT = 3
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

    def similar_items(self, items: Indices, n: int, *, allowed: Allowed = None) -> ranking.Ranked:
        """Return (items, scores), both [len(items), min(n, number of items - 1)], descending, then -1 and 0."""
        most = min(n, self.similarity.shape[1] - 1)
        return ranking.best_of_sparse(lambda batch: self.similarity[batch], items, most, allowed)


@dataclass(frozen=True, slots=True)
class SimilarResult:
    """Share of last items of *users* with a next item among *k* similar ones; 95 % *interval*."""

    params: SimilarParams
    k: int
    hit_rate: float
    interval: MetricInterval | None
    users: int


def fit(user_items: UserItems, params: SimilarParams, times: Times | None = None) -> Similar:
    """Compare all items; *times* are those of the pairs. Raises DataError for recency without times."""
    items = np.arange(user_items.shape[1], dtype=np.int32)
    (similarity,) = _nearest_by_params(user_items, times, items, [params], _KEPT)
    return Similar(similarity)


def _nearest_by_params(
    user_items: UserItems, times: Times | None, items: Indices, cells: Sequence[SimilarParams], most: int
) -> list[Any]:
    """Return the *most* similar items of *items* by each of *cells*: csr matrices [len(items), all items]."""
    recencies = [None if params.recency is None else params.recency.weights(user_items, times) for params in cells]
    sampled = _sampled_users(user_items)
    binary = with_weights(sampled, np.ones(sampled.nnz, dtype=np.float32))
    by_item = csr_matrix(binary.T)
    counts = np.maximum(users_per_item(sampled), 1)
    blocks: list[list[Any]] = [[] for _ in cells]
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        block = items[start : start + _ITEMS_AT_ONCE]
        together = by_item[block] @ binary
        cosines = _cosines(together, block, counts)
        for params, recent, of_cell in zip(cells, recencies, blocks, strict=True):
            values = cosines * (together.data / (together.data + params.shrink))
            if recent is not None:
                values *= recent[together.indices]
            of_cell.append(keep_highest(with_weights(together, values.astype(np.float32)), most))
    stacked = [csr_matrix(vstack(of_cell)) for of_cell in blocks]
    for similarity in stacked:
        similarity.has_canonical_format = True
    return stacked


def _cosines(together: Any, block: Indices, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:  # noqa: ANN401 -- scipy publishes no types
    """Return the cosines of the numbers of common users *together* of *block* and all items; 0 for the same item."""
    of_row = block[row_of_each_pair(together)]
    cosines: npt.NDArray[np.float64] = together.data / np.sqrt(counts[of_row] * counts[together.indices])
    cosines[of_row == together.indices] = 0
    return cosines


def _sampled_users(user_items: UserItems) -> UserItems:
    """Return the rows of random users whose comparison takes some 100 million terms."""
    counts = items_per_user(user_items).astype(np.float64)
    order = np.random.default_rng(0).permutation(len(counts))
    terms = np.cumsum(counts[order] ** 2)
    most = int(np.searchsorted(terms, _MOST_TERMS)) + 1
    return user_items[np.sort(order[:most])]


def keep_highest(similarity: Any, most: int) -> Any:  # noqa: ANN401 -- scipy publishes no types
    """Return the *most* highest values above 0 per row of a csr_matrix, ties by column."""
    data = similarity.data
    kept = data > 0
    for start, end in pairwise(similarity.indptr.tolist()):
        beyond = end - start - most
        if beyond > 0:
            row = data[start:end]
            kept[start:end] &= row >= np.partition(row, beyond)[beyond]
    highest = select_pairs(similarity, kept)
    highest.sort_indices()  # far fewer than all
    # Of values equal to the lowest one, the last columns are left out.
    kept = np.ones(highest.nnz, dtype=np.bool_)
    for start, end in pairwise(highest.indptr.tolist()):
        beyond = end - start - most
        if beyond > 0:
            row = highest.data[start:end]
            kept[start + np.flatnonzero(row == row.min())[-beyond:]] = False
    return highest if kept.all() else select_pairs(highest, kept)


def choose_similar_params(cuts: Sequence[Parts], half_life_days: float | None, k: int) -> SimilarParams:
    """Return the parameters with the best hit rate on all *cuts*, which are those of the search.

    The hit rate rewards popular items. So another power of recency than the default has to lead it by more than a 95 %
    interval, and so has another *shrink*.
    """
    recencies: list[Recency | None] = [None]
    if half_life_days is not None and all(parts.history is not None for parts in cuts):
        usual, *higher = (Recency(half_life_days, gamma) for gamma in _GAMMAS)
        recencies = [usual, None, *higher]
    cells = [SimilarParams(recency=recency) for recency in recencies]
    tests = [_next_items_test(parts) for parts in cuts]
    if not any(len(test.users) for test in tests):
        return cells[0]
    rates = _hit_rates_by_params(cuts, tests, cells, k)
    best = _first_as_good(rates)
    undamped = replace(best, shrink=0.0)
    return _first_as_good({best: rates[best], **_hit_rates_by_params(cuts, tests, [undamped], k)})


def _first_as_good(rates: Mapping[SimilarParams, Values]) -> SimilarParams:
    """Return the first cell that the best one does not lead by more than a 95 % interval."""
    best = max(rates.values(), key=lambda per_user: float(per_user.sum()))
    return next(params for params, per_user in rates.items() if leads_by(best, per_user) <= LEADING)


def measure_similar(similar: Similar, params: SimilarParams, parts: Parts, k: int) -> SimilarResult | None:
    """Measure lists of *k* on users of *parts* with items in train and test; None if there are none."""
    test = _next_items_test(parts)
    if not len(test.users):
        return None
    lists, _ = similar.similar_items(test.items, k)
    per_user = test.hit_rates(lists)
    return SimilarResult(
        params=params,
        k=k,
        hit_rate=float(per_user.mean()),
        interval=interval_of_mean(per_user),
        users=len(test.users),
    )


@dataclass(frozen=True, slots=True)
class _NextItemsTest:
    """The last items in train, and the next ones in test, of *users* that have both.

    items      the last items of all users, ascending
    last       pairs of a user and a last item: *last_users* and places in *items*
    following  cells of users and next items
    """

    users: Indices
    items: Indices
    last_users: npt.NDArray[np.int64]
    last: npt.NDArray[np.intp]
    following: PairNumbers
    shape: tuple[int, int]

    def hit_rates(self, lists: Indices) -> Values:
        """Return, by user [users], the share of the user's last items in train whose list has one of the next items.

        *lists* [items, k] are the similar items of each of `items`, -1 after the end. `last` and `last_users` [pairs]
        say for each last item of a user which row of *lists* and which user it is; `following` are the pairs of a user
        and a next item, as numbers: user * number of items + item.
        """
        listed = lists[self.last]
        hits = (listed >= 0) & are_among(self.following, self.last_users[:, None] * self.shape[1] + listed)
        hits_per_user = np.bincount(self.last_users, hits.any(axis=1), self.shape[0])
        rates: Values = hits_per_user[self.users] / np.bincount(self.last_users)[self.users]
        return rates


def _next_items_test(parts: Parts) -> _NextItemsTest:
    """Return the last items in train and the first in test (at most 5 and 3) of users of *parts* that have both."""
    tested = parts.tested
    users = tested[items_per_user(parts.train)[tested] > 0]
    # `~` reverses the order of integers without the overflow that `-` has at NO_TIME, the least of them.
    latest_first = None if parts.train_times is None else ~parts.train_times
    rows = row_of_each_pair(parts.train)
    last = _are_first_of_user(parts.train, latest_first, _LAST) & np.isin(rows, users)
    items, places = np.unique(parts.train.indices[last], return_inverse=True)
    return _NextItemsTest(
        users=users,
        items=items.astype(np.int32),
        last_users=rows[last],
        last=places,
        following=pair_numbers(parts.test)[_are_first_of_user(parts.test, parts.test_times, _NEXT)],
        shape=parts.test.shape,
    )


def _hit_rates_by_params(
    cuts: Sequence[Parts], tests: Sequence[_NextItemsTest], cells: Sequence[SimilarParams], k: int
) -> dict[SimilarParams, Values]:
    """Return the hit rates of the users of all *cuts* by each of *cells*; only items of the tests are compared."""
    per_user: dict[SimilarParams, list[Values]] = {params: [] for params in cells}
    for parts, test in zip(cuts, tests, strict=True):
        if not len(test.users):
            continue
        similarities = _nearest_by_params(parts.train, parts.train_times, test.items, cells, k)
        for params, similarity in zip(cells, similarities, strict=True):
            lists, _ = Similar(similarity).similar_items(np.arange(len(test.items), dtype=np.int32), k)
            per_user[params].append(test.hit_rates(lists))
    return {params: np.concatenate(rates) for params, rates in per_user.items()}


def _are_first_of_user(pairs: UserItems, order: Times | None, most: int) -> Mask:
    """Return which pairs are among the first *most* of their user by *order* [pairs], or by item if that is None."""
    rows = row_of_each_pair(pairs)
    rank, _ = rank_in_groups(rows, pairs.indices.astype(np.float64) if order is None else order)
    return np.asarray(rank <= most)
