"""The matrix in two: what the model may learn from, and what it must find."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from offline.errors import SettingError
from offline.matrix import UserItems


def random_split(user_items: UserItems, test_share: float, seed: int) -> tuple[UserItems, UserItems]:
    """Return (train, test), of one shape, disjoint, together the whole; a random *test_share* of all pairs is test."""
    _check_share(test_share)
    order = np.random.default_rng(seed).permutation(user_items.nnz)
    in_train = np.zeros(user_items.nnz, dtype=np.bool_)
    in_train[order[: round((1 - test_share) * user_items.nnz)]] = True
    return _divided(user_items, in_train)


def stratified_split(
    user_items: UserItems, test_share: float, seed: int, by: Literal["item", "user"] = "item"
) -> tuple[UserItems, UserItems]:
    """
    Return (train, test) as random_split does, but with *test_share* of the pairs of each item (or user) in test.

    Within each group the pairs are ranked by a random number; those of rank ≤ round((1 - share) x count) are train.
    """
    _check_share(test_share)
    rows = np.repeat(np.arange(user_items.shape[0]), np.diff(user_items.indptr))
    groups = user_items.indices if by == "item" else rows
    order = np.lexsort((np.random.default_rng(seed).random(user_items.nnz), groups))
    counts = np.bincount(groups, minlength=user_items.shape[1] if by == "item" else user_items.shape[0])
    first = np.cumsum(counts) - counts
    rank = np.empty(user_items.nnz, dtype=np.int64)
    rank[order] = np.arange(user_items.nnz) - first[groups[order]] + 1
    return _divided(user_items, rank <= np.round((1 - test_share) * counts)[groups])


def _check_share(test_share: float) -> None:
    if not 0 < test_share < 1:
        raise SettingError(f"The test share is {test_share}; it must lie between 0 and 1, such as 0.25.")


def _divided(user_items: UserItems, in_train: npt.NDArray[np.bool_]) -> tuple[UserItems, UserItems]:
    rows = np.repeat(np.arange(user_items.shape[0]), np.diff(user_items.indptr))
    train, test = (
        csr_matrix(
            (user_items.data[part], (rows[part], user_items.indices[part])), shape=user_items.shape, dtype=np.float32
        )
        for part in (in_train, ~in_train)
    )
    return train, test
