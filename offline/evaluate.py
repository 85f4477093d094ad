"""Evaluation: the matrix is split, a model is trained on one part, and its lists are measured on the other part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from offline.errors import SettingError, require_at_least
from offline.input.matrix import Indices, Matrix, UserItems
from offline.train.als import ALSParams, Factors, fit, recommend

Split = Literal["random", "stratified"]


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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the model and the popularity baseline achieved on one split; kept in the model folder."""

    split: Split
    test_share: float
    seed: int
    train_pairs: int
    test_pairs: int
    model: RankingMetrics
    popularity: RankingMetrics


def evaluate(
    matrix: Matrix,
    params: ALSParams,
    *,
    split: Split = "stratified",
    test_share: float = 0.25,
    k: int = 10,
    on_iteration: Callable[[int, int], None] | None = None,
) -> Evaluation | None:
    """
    Fit on the train part, recommend *k* items that a user does not have there, and measure them on the test part.

    The baseline ranks items by the number of train users that have them, the user's own left out alike. Stratified is
    by item. Returns None when there are too few pairs for both parts to hold any.
    """
    require_at_least("k", k)
    by: Literal["item", "all"] = "item" if split == "stratified" else "all"
    train, test = split_pairs(matrix.user_items, test_share, params.seed, by)
    if train.nnz == 0 or test.nnz == 0:
        return None
    model = measure(_lists(fit(train, params, on_iteration), train, k), test)
    popularity = measure(_lists(_popularity(train), train, k), test)
    return Evaluation(split, test_share, params.seed, int(train.nnz), int(test.nnz), model, popularity)


def split_pairs(
    user_items: UserItems, test_share: float, seed: int, by: Literal["all", "item", "user"] = "item"
) -> tuple[UserItems, UserItems]:
    """
    Return (train, test), of one shape, disjoint, together the whole; of each item (user, or all) *test_share* is test.

    Within each group the pairs are ranked by a random number; those of rank ≤ round((1 - share) x count) are train.
    """
    if not 0 < test_share < 1:
        raise SettingError(f"The test share is {test_share}; it must lie between 0 and 1, such as 0.25.")
    pairs = user_items.tocoo()
    groups = {"all": np.zeros_like(pairs.row), "item": pairs.col, "user": pairs.row}[by]
    order = np.lexsort((np.random.default_rng(seed).random(pairs.nnz), groups))
    counts = np.bincount(groups)
    first = np.cumsum(counts) - counts
    rank = np.empty(pairs.nnz, dtype=np.int64)
    rank[order] = np.arange(pairs.nnz) - first[groups[order]] + 1
    in_train = rank <= np.round((1 - test_share) * counts)[groups]
    train, test = (
        csr_matrix((pairs.data[part], (pairs.row[part], pairs.col[part])), shape=pairs.shape, dtype=np.float32)
        for part in (in_train, ~in_train)
    )
    return train, test


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


def _lists(factors: Factors, train: UserItems, k: int) -> Indices:
    """Return [users, k]; fewer than k items still make lists of k, filled up with -1, for precision is hits / k."""
    lists, _ = recommend(factors, train, np.arange(train.shape[0], dtype=np.int32), k)
    return np.pad(lists, ((0, 0), (0, k - lists.shape[1])), constant_values=-1)


def _popularity(train: UserItems) -> Factors:
    """Return factors of length one by which every user scores an item with its number of users."""
    counts = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)
    return Factors(np.ones((train.shape[0], 1), dtype=np.float32), counts[:, None])
