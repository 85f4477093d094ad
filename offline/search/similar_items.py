"""The choice of the parameters of similar items, by the hit rate of their lists."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hotplate.offline.evaluate.metrics import Values, unbeaten
from hotplate.offline.evaluate.similar_hits import NextItemsTest, next_items_test
from hotplate.offline.evaluate.splits import Parts
from hotplate.offline.train.popularity import Recency
from hotplate.offline.train.similar import SIMILAR_GAMMA, Similar, SimilarParams, similarities_by_params

# Higher powers would make all lists popular ones.
_RECENCY_POWERS = (SIMILAR_GAMMA, 0.5, 1.0)


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
    tests = [next_items_test(parts) for parts in splits]
    if not any(len(test.users) for test in tests):
        return default

    rates = _hit_rates_by_params(splits, tests, candidates, k)
    chosen = unbeaten(rates)[0]
    without_shrink = replace(chosen, shrink=0.0)
    rates_without_shrink = _hit_rates_by_params(splits, tests, [without_shrink], k)
    return unbeaten({chosen: rates[chosen], **rates_without_shrink})[0]


def _hit_rates_by_params(
    splits: Sequence[Parts], tests: Sequence[NextItemsTest], candidates: Sequence[SimilarParams], k: int
) -> dict[SimilarParams, Values]:
    """Return the hit rates of the tested users of all *splits*, an array [users] for each of the *candidates*.

    Each split has a test: the users' last items in train and their next ones. A user's hit rate is the share of the
    last items with a next one among *k* similar items. Only these last items are compared with all items, to save time.
    """
    per_user: dict[SimilarParams, list[Values]] = {params: [] for params in candidates}
    for parts, test in zip(splits, tests, strict=True):
        if not len(test.users):
            continue

        matrices = similarities_by_params(parts.train, parts.train_times, test.items, candidates, k)
        all_rows = np.arange(len(test.items), dtype=np.int32)  # row r of a matrix is of the item test.items[r]
        for params, similarity in zip(candidates, matrices, strict=True):
            lists = Similar(similarity).similar_items(all_rows, k).items
            per_user[params].append(test.hit_rates(lists))

    return {params: np.concatenate(rates) for params, rates in per_user.items()}
