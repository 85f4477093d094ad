"""The best items for users, and the items most like an item, from factors."""

import numpy as np
from implicit.cpu.topk import topk
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

from offline.als import Factors
from offline.errors import SettingError
from offline.matrix import Floats, Indices, UserItems

_BATCH = 4096
# The scorer gives what is masked the lowest float instead of leaving it out.
_MASKED = -1e38


def recommend(
    factors: Factors, user_items: UserItems, users: Indices, n: int, *, keep_seen: bool = False
) -> tuple[Indices, Floats]:
    """
    Return (items, scores), both [len(users), min(n, number of items)], best first, for the rows *users*.

    What a user already has is left out unless *keep_seen*. Where a user has no more items to get, and throughout for
    users with no interactions, the item is -1 and the score 0. Runs on all cores, best with thousands of users.
    """
    _check_n(n)
    if user_items.shape != (len(factors.user_factors), len(factors.item_factors)):
        raise ValueError(f"user_items is {user_items.shape}, but there are factors for other users or items")
    n = min(n, len(factors.item_factors))
    items = np.full((len(users), n), -1, dtype=np.int32)
    scores = np.zeros((len(users), n), dtype=np.float32)
    with threadpool_limits(1, "blas"):
        for start in range(0, len(users), _BATCH):
            batch = users[start : start + _BATCH]
            seen = csr_matrix(user_items[batch])
            ids, values = topk(
                factors.item_factors, factors.user_factors[batch], n, filter_query_items=None if keep_seen else seen
            )
            void = (values <= _MASKED) | (np.diff(seen.indptr) == 0)[:, None]
            items[start : start + _BATCH] = np.where(void, -1, ids)
            scores[start : start + _BATCH] = np.where(void, 0, values)
    return items, scores


def similar_items(factors: Factors, items: Indices, n: int) -> tuple[Indices, Floats]:
    """
    Return (items, cosines), both [len(items), min(n, number of items - 1)], most similar first, without itself.

    An item whose factors are all zero is like no other: it gets, and is nowhere but, -1 with a score of 0.
    """
    _check_n(n)
    n = min(n, len(factors.item_factors) - 1)
    norms = np.linalg.norm(factors.item_factors, axis=1)
    safe = np.where(norms == 0, np.float32(1), norms)
    found = np.full((len(items), n), -1, dtype=np.int32)
    scores = np.zeros((len(items), n), dtype=np.float32)
    with threadpool_limits(1, "blas"):
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            ids, values = topk(factors.item_factors, factors.item_factors[batch], n + 1, item_norms=safe)
            values = values / safe[batch][:, None]
            void = (ids == batch[:, None]) | (norms[ids] == 0) | (norms[batch] == 0)[:, None]
            # A stable sort moves what is void behind the rest, and keeps the rest in its order.
            order = np.argsort(void, axis=1, kind="stable")[:, :n]
            void, ids, values = (np.take_along_axis(part, order, axis=1) for part in (void, ids, values))
            found[start : start + _BATCH] = np.where(void, -1, ids)
            scores[start : start + _BATCH] = np.where(void, 0, values)
    return found, scores


def _check_n(n: int) -> None:
    if n < 1:
        raise SettingError(f"The length of a list is {n}; it must be at least 1.")
