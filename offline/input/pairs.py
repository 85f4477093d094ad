"""Pairs of users and items as sparse matrices.

A pair is a user and an item with an interaction, and its pair number is user * number of items + item. A k-core has
only users with a minimum number of items, and items with a minimum number of users.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError

# float32 csr_matrix, users by items, canonical (summed, no zeros, sorted); scipy publishes no types.
UserItems = Any
Indices = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
# True for allowed items; None if all are.
Allowed: TypeAlias = npt.NDArray[np.bool_] | None
# user * number of items + item, see `pair_numbers`.
PairNumbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def row_slices(count: int, at_once: int) -> Iterator[slice]:
    """Yield slices of *at_once* of *count* rows, or of one row if that is 0."""
    step = max(1, at_once)
    for start in range(0, count, step):
        yield slice(start, start + step)


def offsets(lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return where each of several parts begins, one after another, and where the last one ends [parts + 1]."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def no_items(lists: int, n: int) -> Indices:
    """Return lists of item numbers without any [lists, n], to be changed in place."""
    return np.full((lists, n), -1, dtype=np.int32)


def pair_numbers(user_items: UserItems) -> PairNumbers:
    """Return user * number of items + item for each pair, ascending [pairs]."""
    numbers: PairNumbers = row_of_each_pair(user_items) * user_items.shape[1] + user_items.indices
    return numbers


def are_among(known: PairNumbers, numbers: PairNumbers) -> Mask:
    """Return which *numbers* are in *known* (ascending); ten times as fast as `np.isin`."""
    if not len(known):
        return np.zeros(numbers.shape, dtype=np.bool_)
    return np.asarray(known.take(np.searchsorted(known, numbers), mode="clip") == numbers)


def has_items(user_items: UserItems, users: npt.NDArray[np.integer[Any]], lists: Indices) -> Mask:
    """Return which items of *lists* [users, n] their users have in *user_items* [users, n]; none at -1."""
    return np.asarray(values_at(user_items, users, lists) > 0)


def values_at(pairs: UserItems, rows: npt.NDArray[np.integer[Any]], lists: Indices) -> Floats:
    """Return the values in these *rows* of *pairs* at the items of *lists* [rows, n]; 0 for other items and -1."""
    return np.where(lists >= 0, pairs[rows[:, None], lists].toarray(), np.float32(0))


def k_core(user_items: UserItems, min_per_user: int, min_per_item: int) -> UserItems:
    """Return the k-core of the sparse matrix *user_items*; users and items outside of it have empty rows or columns.

    It is the largest set of pairs in which each user has *min_per_user* items and each item *min_per_item* users. Each
    removal can bring other users or items below their minimum, so it repeats until all have enough.
    """
    kept = np.ones(user_items.nnz, dtype=np.bool_)
    items = user_items.indices
    users = row_of_each_pair(user_items)
    while True:
        has_enough_items = np.bincount(users[kept], minlength=1) >= min_per_user  # [users]
        has_enough_users = np.bincount(items[kept], minlength=1) >= min_per_item  # [items]
        has_enough = has_enough_items[users[kept]] & has_enough_users[items[kept]]  # [pairs kept]
        if has_enough.all():
            return user_items if kept.all() else select_pairs(user_items, kept)

        kept_pairs = np.flatnonzero(kept)
        kept[kept_pairs[~has_enough]] = False


def select_pairs(user_items: UserItems, kept: Mask) -> UserItems:
    """Return the sparse matrix of the pairs whose mask *kept* [pairs] is True; the mask is in the order of the data."""
    ends = offsets(kept)[user_items.indptr].astype(user_items.indptr.dtype)
    pairs = csr_matrix((user_items.data[kept], user_items.indices[kept], ends), shape=user_items.shape)
    pairs.has_canonical_format = user_items.has_canonical_format
    return pairs


def with_weights(user_items: UserItems, weights: npt.NDArray[Any]) -> UserItems:
    """Return the same pairs with other *weights*."""
    return csr_matrix((weights, user_items.indices, user_items.indptr), shape=user_items.shape)


def row_of_each_pair(user_items: UserItems) -> npt.NDArray[np.int64]:
    """Return the row (user) of each pair [pairs], in the order of the data; of other sparse matrices, of each value."""
    return np.repeat(np.arange(user_items.shape[0]), items_per_user(user_items))


def items_per_user(user_items: UserItems) -> Indices:
    """Return the number of items of each user [users]."""
    counts: Indices = np.diff(user_items.indptr)
    return counts


def users_per_item(user_items: UserItems) -> npt.NDArray[np.int64]:
    """Return the number of users of each item [items]."""
    return np.bincount(user_items.indices, minlength=user_items.shape[1])


def are_finite_above_zero(data: Floats) -> bool:
    """Return whether weights can be learned from."""
    return bool(np.isfinite(data).all() and (data > 0).all())


def check_user_items(user_items: UserItems) -> None:
    """Raise DataError for a matrix that engines cannot learn from, TypeError for other types."""
    if not isinstance(user_items, csr_matrix) or user_items.dtype != np.float32:
        raise TypeError("user_items must be a scipy csr_matrix of float32")
    users, items = user_items.shape
    if users < 2 or items < 2 or user_items.nnz == 0:
        raise DataError(
            f"There are {users} users, {items} items and {user_items.nnz} pairs; learning needs two of each."
        )
    if not (user_items.has_canonical_format and are_finite_above_zero(user_items.data)):
        raise DataError("The matrix holds a pair twice, or a weight that is not finite and above zero; build it again.")


def first_rows(numbers: PairNumbers) -> npt.NDArray[np.int64]:
    """Return the first row of each pair [pairs]; *numbers* [rows] ascend."""
    return np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))[: len(numbers)])


def matrix_of_pairs(numbers: PairNumbers, weights: Floats, shape: tuple[int, int]) -> UserItems:
    """Return the csr_matrix of *shape* (users, items) with these pairs and their *weights* [pairs].

    *numbers* are user * number of items + item of each pair; they are unique and ascend.
    """
    users, items = np.divmod(numbers, shape[1])
    counts = np.bincount(users, minlength=shape[0])
    # Row r of a csr_matrix is the data from row_ends[r] to row_ends[r + 1].
    row_ends = offsets(counts)
    pairs = csr_matrix((weights, items.astype(np.int32), row_ends.astype(np.int32)), shape=shape)
    pairs.has_canonical_format = True
    return pairs
