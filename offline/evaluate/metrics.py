"""Metrics of lists: how well they rank what was held back, averaged over users."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offline.input.matrix import Indices, UserItems


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """
    Averages at *k* over the *users* that have test items; a user without a list counts, with zeros.

    *users_with_lists* of them had at least one recommendation. All are binary: an item is liked or not.

    precision   hits / k
    recall      hits / test items
    map         the sum of the precisions at the hits / test items
    map_at_k    the same / min(k, test items)
    ndcg        discounted hits / those of the ideal list, which has min(k, test items) hits
    """

    k: int
    precision: float
    recall: float
    map: float
    map_at_k: float
    ndcg: float
    users: int
    users_with_lists: int


def measure(recommended: Indices, test: UserItems) -> RankingMetrics:
    """
    Measure the lists *recommended* [users, k], best first, -1 where there is none, against *test* [users, items].

    Both have one row per user, in one order. Raises ValueError when no user has test items.
    """
    k = recommended.shape[1]
    liked = np.diff(test.indptr)
    evaluated = liked > 0
    if not evaluated.any():
        raise ValueError("no user has test items")
    hits = _hits(recommended, test)[evaluated]
    liked = liked[evaluated]
    ranks = np.arange(1, k + 1)
    possible = np.minimum(liked, k)
    precisions_at_hits = ((np.cumsum(hits, axis=1) / ranks) * hits).sum(axis=1)
    discounts = 1 / np.log2(ranks + 1)
    ideal = np.cumsum(discounts)[possible - 1]
    return RankingMetrics(
        k=k,
        precision=float((hits.sum(axis=1) / k).mean()),
        recall=float((hits.sum(axis=1) / liked).mean()),
        map=float((precisions_at_hits / liked).mean()),
        map_at_k=float((precisions_at_hits / possible).mean()),
        ndcg=float(((hits * discounts).sum(axis=1) / ideal).mean()),
        users=int(evaluated.sum()),
        users_with_lists=int((recommended[evaluated] >= 0).any(axis=1).sum()),
    )


def _hits(recommended: Indices, test: UserItems) -> npt.NDArray[np.bool_]:
    """Return [users, k]: whether the item at that rank of the list is among the user's test items."""
    users, items = test.shape
    keys = np.sort(test.tocoo().row.astype(np.int64) * items + test.indices)
    wanted = np.arange(users, dtype=np.int64)[:, None] * items + recommended
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    hits: npt.NDArray[np.bool_] = (recommended >= 0) & (keys[places] == wanted)
    return hits
