"""Similar items: cosine of users, multiplied by recent popularity.

Two items are similar if the same users have them. The hit rate of lists of similar items is measured on users' last
items in the train part: does the list of one hold an item that the user chose next?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from hotplate.offline.evaluate.metrics import LEADING_BY_SE, MetricInterval, Values, interval_of_mean, leads_by
from hotplate.offline.evaluate.splits import Parts, rank_in_groups
from hotplate.offline.input.history import Times
from hotplate.offline.input.pairs import (
    Allowed,
    Indices,
    Mask,
    UserItems,
    has_items,
    items_per_user,
    row_of_each_pair,
    select_pairs,
    users_per_item,
    with_weights,
)
from hotplate.offline.train import ranking
from hotplate.offline.train.popularity import Recency

_KEPT_NEIGHBOURS = 100
# csr_matrix [items, items]; scipy publishes no types.
Similarities: TypeAlias = Any
# Of the matrix product; beyond them, users are sampled.
_MOST_TERMS = 100_000_000
_ITEMS_AT_ONCE = 256
# A user's last and next items, to measure quality.
_LAST_ITEMS = 5
_NEXT_ITEMS = 3
SIMILAR_GAMMA = 0.25
# Higher powers would make all lists popular ones.
_RECENCY_POWERS = (SIMILAR_GAMMA, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class SimilarParams:
    """Hyperparameters: *shrink* lowers pairs with few common users, *recency* multiplies."""

    shrink: float = 20.0
    recency: Recency | None = None


@dataclass(frozen=True, slots=True)
class Similar:
    """A fitted model: *similarity* [items, items], float32 csr, the most similar other items of each."""

    similarity: Similarities

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
    (similarity,) = _similarities_by_params(user_items, times, items, [params], _KEPT_NEIGHBOURS)
    return Similar(similarity)


def _similarities_by_params(
    user_items: UserItems, times: Times | None, items: Indices, candidates: Sequence[SimilarParams], most: int
) -> list[Similarities]:
    """Find the *most* similar other items of each of *items*, by each of the parameters *candidates*.

    Returns a sparse matrix [len(items), all items] for each candidate. A similarity is the cosine of the two items'
    users, lowered if few users have both (`shrink`), and multiplied by the recent popularity of the other item
    (`recency`). *times* [pairs] are those of *user_items* [users, items]. Of many pairs, users are sampled.
    """
    recencies = [params.recency for params in candidates]
    recent_factors = [None if recency is None else recency.weights(user_items, times) for recency in recencies]

    sampled = _sampled_users(user_items)
    users_by_items = with_weights(sampled, np.ones(sampled.nnz, dtype=np.float32))
    items_by_users = csr_matrix(users_by_items.T)
    user_counts = np.maximum(users_per_item(sampled), 1)

    # The products of all items at once would exceed the memory.
    blocks: list[list[Similarities]] = [[] for _ in candidates]
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        block = items[start : start + _ITEMS_AT_ONCE]
        common_users = items_by_users[block] @ users_by_items  # the number of users of both [len(block), all items]
        cosines = _cosines(common_users, block, user_counts)

        for params, factors, blocks_of_params in zip(candidates, recent_factors, blocks, strict=True):
            # `cosines` and `values` are in the order of the stored values of `common_users`.
            values = cosines * (common_users.data / (common_users.data + params.shrink))
            if factors is not None:
                other_items = common_users.indices
                values *= factors[other_items]

            similarities = with_weights(common_users, values.astype(np.float32))
            blocks_of_params.append(keep_highest(similarities, most))

    matrices = [csr_matrix(vstack(blocks_of_params)) for blocks_of_params in blocks]
    for matrix in matrices:
        matrix.has_canonical_format = True
    return matrices


def _cosines(common_users: Similarities, block: Indices, user_counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the cosines of items, one for each stored value of *common_users*; 0 for an item with itself.

    *common_users* is sparse [len(block), all items]: row r has the numbers of users that the item `block[r]` has in
    common with each other item. *user_counts* [items] are the numbers of users of each item.
    """
    row_items = block[row_of_each_pair(common_users)]
    other_items = common_users.indices
    cosines: npt.NDArray[np.float64] = common_users.data / np.sqrt(user_counts[row_items] * user_counts[other_items])
    cosines[row_items == other_items] = 0
    return cosines


def _sampled_users(user_items: UserItems) -> UserItems:
    """Return the rows of random users of *user_items* [users, items], few enough to compare all items by them."""
    counts = items_per_user(user_items).astype(np.float64)
    order = np.random.default_rng(0).permutation(len(counts))

    # Comparing items multiplies each two items of a user.
    terms = np.cumsum(counts[order] ** 2)
    most = int(np.searchsorted(terms, _MOST_TERMS)) + 1
    return user_items[np.sort(order[:most])]


def keep_highest(similarities: Similarities, most: int) -> Similarities:
    """Keep the *most* highest values above 0 of each row of a sparse matrix; of equal values, the first columns."""
    is_kept = similarities.data > 0
    for start, end in pairwise(similarities.indptr.tolist()):
        excess = end - start - most
        if excess > 0:
            row = similarities.data[start:end]
            lowest_kept = np.partition(row, excess)[excess]  # in ascending order, the values before it are the excess
            is_kept[start:end] &= row >= lowest_kept
    highest = select_pairs(similarities, is_kept)

    # Rows are still too long if several values equal the lowest one: of these, the last columns are left out. The
    # columns are sorted only now, as few values are left.
    highest.sort_indices()
    is_kept = np.ones(highest.nnz, dtype=np.bool_)
    for start, end in pairwise(highest.indptr.tolist()):
        excess = end - start - most
        if excess > 0:
            row = highest.data[start:end]
            lowest_places = start + np.flatnonzero(row == row.min())
            is_kept[lowest_places[-excess:]] = False
    return highest if is_kept.all() else select_pairs(highest, is_kept)


def choose_similar_params(splits: Sequence[Parts], half_life_days: float | None, k: int) -> SimilarParams:
    """Return the parameters of similar items with the best hit rate on the test parts of *splits*.

    A user's hit rate is the share of their last items in train whose *k* similar items include one that they chose
    next. As it rewards popular items, other parameters replace the default ones only if their lead is larger than a
    95 % interval. Powers of recent popularity are compared first, then the chosen parameters without `shrink`.

    Recency is tried only with *half_life_days* and times. The default then has the lowest power, else no recency.
    """
    # In the order of preference.
    candidates = [SimilarParams()]
    if half_life_days is not None and all(parts.history is not None for parts in splits):
        lowest, *higher = (SimilarParams(recency=Recency(half_life_days, gamma)) for gamma in _RECENCY_POWERS)
        candidates = [lowest, SimilarParams(), *higher]
    default = candidates[0]

    # Without a user to test, the default remains.
    tests = [_next_items_test(parts) for parts in splits]
    if not any(len(test.users) for test in tests):
        return default

    rates = _hit_rates_by_params(splits, tests, candidates, k)
    chosen = _first_not_beaten(rates)
    without_shrink = replace(chosen, shrink=0.0)
    rates_without_shrink = _hit_rates_by_params(splits, tests, [without_shrink], k)
    return _first_not_beaten({chosen: rates[chosen], **rates_without_shrink})


def _first_not_beaten(rates: Mapping[SimilarParams, Values]) -> SimilarParams:
    """Return the first parameters of *rates* that the best ones do not lead by more than a 95 % interval."""
    best_rates = max(rates.values(), key=lambda per_user: float(per_user.sum()))
    return next(params for params, per_user in rates.items() if leads_by(best_rates, per_user) <= LEADING_BY_SE)


def measure_similar(similar: Similar, params: SimilarParams, parts: Parts, k: int) -> SimilarResult | None:
    """Return the hit rate of lists of *k* similar items: the share with an item that the user chose next.

    The lists are those of each user's last items in the train part of *parts*; the next items are in the test part.
    *similar* is fitted to the train part with *params*. Returns None if no user has items in both parts.
    """
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

    items         the last items of all users, ascending
    last_users    users of the pairs of a user and a last item [pairs]
    last_places   places of the last items of these pairs in *items* [pairs]
    next_items    matrix of all users and their next items
    """

    users: Indices
    items: Indices
    last_users: npt.NDArray[np.int64]
    last_places: npt.NDArray[np.intp]
    next_items: UserItems

    def hit_rates(self, lists: Indices) -> Values:
        """Return the hit rate of each user [users]: the share of their last items with a next item among similar ones.

        *lists* [items, k] are the similar items of each of `items`, -1 after the end. `last_users` and `last_places`
        [pairs] are, for each last item of a user, the user and the row of *lists*. `next_items` is a sparse matrix of
        all users and their next items.
        """
        is_hit = has_items(self.next_items, self.last_users, lists[self.last_places])  # [pairs, k]
        hits_per_user = np.bincount(self.last_users, is_hit.any(axis=1), self.next_items.shape[0])
        last_items_per_user = np.bincount(self.last_users)
        rates: Values = hits_per_user[self.users] / last_items_per_user[self.users]
        return rates


def _next_items_test(parts: Parts) -> _NextItemsTest:
    """Return the last items of users in train, and their first ones in test, to measure similar items.

    These are at most 5 last and 3 next items of each user of *parts* who has both.
    """
    tested = parts.tested
    users = tested[items_per_user(parts.train)[tested] > 0]

    # `~` reverses the order of integers without the overflow that `-` has at NO_TIME, the least of them.
    latest_first = None if parts.train_times is None else ~parts.train_times
    user_of_pair = row_of_each_pair(parts.train)
    is_last = _are_first_of_user(parts.train, latest_first, _LAST_ITEMS) & np.isin(user_of_pair, users)
    items, places = np.unique(parts.train.indices[is_last], return_inverse=True)

    is_next = _are_first_of_user(parts.test, parts.test_times, _NEXT_ITEMS)
    return _NextItemsTest(
        users=users,
        items=items.astype(np.int32),
        last_users=user_of_pair[is_last],
        last_places=places,
        next_items=select_pairs(parts.test, is_next),
    )


def _hit_rates_by_params(
    splits: Sequence[Parts], tests: Sequence[_NextItemsTest], candidates: Sequence[SimilarParams], k: int
) -> dict[SimilarParams, Values]:
    """Return the hit rates of the tested users of all *splits*, an array [users] for each of the *candidates*.

    Each split has a test: the users' last items in train and their next ones. A user's hit rate is the share of the
    last items with a next one among *k* similar items. Only these last items are compared with all items, to save time.
    """
    per_user: dict[SimilarParams, list[Values]] = {params: [] for params in candidates}
    for parts, test in zip(splits, tests, strict=True):
        if not len(test.users):
            continue

        matrices = _similarities_by_params(parts.train, parts.train_times, test.items, candidates, k)
        all_rows = np.arange(len(test.items), dtype=np.int32)  # row r of a matrix is of the item test.items[r]
        for params, similarity in zip(candidates, matrices, strict=True):
            lists = Similar(similarity).similar_items(all_rows, k).items
            per_user[params].append(test.hit_rates(lists))

    return {params: np.concatenate(rates) for params, rates in per_user.items()}


def _are_first_of_user(pairs: UserItems, order: Times | None, most: int) -> Mask:
    """Return which pairs are among the first *most* of their user by *order* [pairs], or by item if that is None."""
    rows = row_of_each_pair(pairs)
    ranks = rank_in_groups(rows, pairs.indices.astype(np.float64) if order is None else order).ranks
    return np.asarray(ranks <= most)
