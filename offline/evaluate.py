"""Train on a part, rank, and measure on the rest, beside what plain popularity would have given."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from offline.als import ALSParams, Factors, fit
from offline.errors import SettingError
from offline.matrix import Indices, Matrix, UserItems
from offline.metrics import RankingMetrics, measure
from offline.ranking import recommend
from offline.split import random_split, stratified_split

Split = Literal["random", "stratified"]


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

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def evaluate(
    matrix: Matrix,
    params: ALSParams,
    *,
    split: Split = "stratified",
    test_share: float = 0.25,
    k: int = 10,
    seed: int = 42,
    on_iteration: Callable[[int, int], None] | None = None,
) -> Evaluation | None:
    """
    Fit on the train part, recommend *k* items that a user does not have there, and measure them on the test part.

    The baseline ranks items by the number of train users that have them, the user's own left out alike. Stratified is
    by item. Returns None when there are too few pairs for both parts to hold any.
    """
    if k < 1:
        raise SettingError(f"Metrics at {k} make no sense; k must be at least 1.")
    divide = stratified_split if split == "stratified" else random_split
    train, test = divide(matrix.user_items, test_share, seed)
    if train.nnz == 0 or test.nnz == 0:
        return None
    lists = _lists(fit(train, params, on_iteration), train, k)
    popular_lists = _lists(_popularity(train), train, k)
    return Evaluation(
        split, test_share, seed, int(train.nnz), int(test.nnz), measure(lists, test), measure(popular_lists, test)
    )


def _lists(factors: Factors, train: UserItems, k: int) -> Indices:
    """Return [users, k]; fewer than k items still make lists of k, filled up with -1, for precision is hits / k."""
    lists, _ = recommend(factors, train, np.arange(train.shape[0], dtype=np.int32), k)
    return np.pad(lists, ((0, 0), (0, k - lists.shape[1])), constant_values=-1)


def _popularity(train: UserItems) -> Factors:
    """Return factors of length one by which every user scores an item with its number of users."""
    counts = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)
    return Factors(np.ones((train.shape[0], 1), dtype=np.float32), counts[:, None])
