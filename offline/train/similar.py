"""Similar items: cosine of users, multiplied by recent popularity.

Two items are similar if the same users have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from hotplate.offline.input.history import Times
from hotplate.offline.input.pairs import (
    Allowed,
    Indices,
    UserItems,
    items_per_user,
    row_of_each_pair,
    row_slices,
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
SIMILAR_GAMMA = 0.25


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


def fit(user_items: UserItems, params: SimilarParams, times: Times | None = None) -> Similar:
    """Compare all items; *times* are those of the pairs. Raises DataError for recency without times."""
    items = np.arange(user_items.shape[1], dtype=np.int32)
    (similarity,) = similarities_by_params(user_items, times, items, [params], _KEPT_NEIGHBOURS)
    return Similar(similarity)


def similarities_by_params(
    user_items: UserItems, times: Times | None, items: Indices, candidates: Sequence[SimilarParams], most: int
) -> list[Similarities]:
    """Find the *most* similar other items of each of *items*, by each of the parameters *candidates*.

    Returns a sparse matrix [len(items), all items] for each candidate. A similarity is the cosine of the two items'
    users, lowered if few users have both (`shrink`), and multiplied by the recent popularity of the other item
    (`recency`). *times* [pairs] are those of *user_items* [users, items]. Of many pairs, users are sampled.
    """
    recencies = [params.recency for params in candidates]
    recent_factors = [
        None if recency is None else np.exp(recency.weights(user_items, times).logs) for recency in recencies
    ]

    sampled = _sampled_users(user_items)
    users_by_items = with_weights(sampled, np.ones(sampled.nnz, dtype=np.float32))
    items_by_users = csr_matrix(users_by_items.T)
    user_counts = np.maximum(users_per_item(sampled), 1)

    # The products of all items at once would exceed the memory.
    blocks: list[list[Similarities]] = [[] for _ in candidates]
    for rows in row_slices(len(items), _ITEMS_AT_ONCE):
        block = items[rows]
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
        if excess <= 0:
            continue

        row = similarities.data[start:end]
        lowest_kept = np.partition(row, excess)[excess]  # in ascending order, the values before it are the excess
        is_high = row >= lowest_kept
        is_kept[start:end] &= is_high

        surplus = np.count_nonzero(is_high) - most
        if surplus > 0:
            # Several values equal the lowest one: of these, the last columns are left out.
            places = start + np.flatnonzero(row == lowest_kept)
            by_column = places[np.argsort(similarities.indices[places])]
            is_kept[by_column[-surplus:]] = False

    highest = select_pairs(similarities, is_kept)
    highest.sort_indices()
    return highest
