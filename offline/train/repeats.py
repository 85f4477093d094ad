"""Repeats: a user's own interactions as part of scores in lists that keep seen items.

A repeat is a test pair that is in train, too: the user chose the item again.
"""

from dataclasses import dataclass, replace

import numpy as np

from hotplate.offline.evaluate.metrics import measure_users
from hotplate.offline.evaluate.splits import Parts, lists_of_tested
from hotplate.offline.input.history import History, Weighing, decay_factors
from hotplate.offline.input.pairs import Indices, UserItems
from hotplate.offline.train import ranking
from hotplate.offline.train.engine import Ranker
from hotplate.offline.train.popularity import Recency

_HALF_LIVES = (240.0, 120.0, None)
_WEIGHTS = (0.5, 0.25, 1.0)
# Tried with recency: half-life, weight, and the power of recent popularity.
_RECENT_HALF_LIFE = 120.0
_RECENT_WEIGHT = 3.0
_RECENT_GAMMA = 0.25


@dataclass(frozen=True, slots=True)
class RepeatParams:
    """Half-life and weight of a user's own interaction; the engine's best score is 1. *recency* multiplies."""

    half_life_days: float | None = 240.0
    weight: float = 0.5
    recency: Recency | None = None


@dataclass(frozen=True, slots=True)
class RepeatSearch:
    """The *share* of repeats among held-back pairs, and nDCG@*k* of three kinds of lists on all of them.

    without  lists without items that the user has
    alone    lists that may hold them, by the scores of the engine alone
    blended  lists that may hold them, by scores to which the user's own choices are added with *params*
    """

    share: float
    k: int
    without: float
    alone: float
    blended: float
    params: RepeatParams


def own_counts(history: History, params: RepeatParams) -> UserItems:
    """Return the weights of users' own choices, to be added to the scores of these items: sparse [users, items].

    Each choice (a row of *history*) has `params.weight`, halved per half-life before the newest row, and those of the
    same user and item are added up. With `params.recency`, sums are multiplied by the item's recent popularity.
    """
    row_weights = np.full(len(history.times), params.weight, dtype=np.float32)
    if params.half_life_days is not None:
        row_weights *= decay_factors(history.times, params.half_life_days).astype(np.float32)

    counts = replace(history, weights=row_weights, weighing=Weighing("sum")).matrix()
    if params.recency is not None:
        factor_of_item = params.recency.weights(counts, history.first_times(counts))
        counts.data *= factor_of_item[counts.indices]
    return counts


def choose_repeats(
    parts: Parts, ranker: Ranker, k: int, popular_half_life_days: float | None = None
) -> RepeatSearch | None:
    """Choose how much a user's own earlier choices raise the scores of these items, in lists that may repeat them.

    *ranker* (a fitted model) is fitted to the train part of *parts*. Lists of *k* items by several weights and
    half-lives of own choices, also weight 0, are compared by their nDCG on the test part. With
    *popular_half_life_days*, own choices times recent popularity are tried, too. Returns None without times, and if no
    user chose an item of train again (a repeat).
    """
    is_repeat = parts.is_repeat
    if parts.history is None or not is_repeat.any():
        return None

    engine_alone = RepeatParams(weight=0.0)
    candidates = [engine_alone]
    for half_life_days in _HALF_LIVES:
        candidates += [RepeatParams(half_life_days, weight) for weight in _WEIGHTS]
    if popular_half_life_days is not None:
        recency = Recency(popular_half_life_days, _RECENT_GAMMA)
        candidates.append(RepeatParams(_RECENT_HALF_LIFE, _RECENT_WEIGHT, recency))

    # Of equal ones, the first is the best.
    ndcg_by_params = {params: ndcg(parts, ranker, k, params) for params in candidates}
    best = max(candidates, key=lambda params: ndcg_by_params[params])
    return RepeatSearch(
        share=float(is_repeat.mean()),
        k=k,
        without=ndcg(parts, ranker, k, engine_alone, keep_seen=False),
        alone=ndcg_by_params[engine_alone],
        blended=ndcg_by_params[best],
        params=best,
    )


def ndcg(parts: Parts, ranker: Ranker, k: int, params: RepeatParams, *, keep_seen: bool = True) -> float:
    """Return the nDCG of lists of *k* items on the test part of *parts*.

    The lists are by the scores of *ranker* (a fitted model); *params* say how much a user's own earlier choices raise
    the scores of these items. Only with *keep_seen* may lists hold items that the user has.
    """
    own = None
    if parts.history is not None and params.weight:
        own = own_counts(parts.history, params)

    def lists_of(users: Indices) -> Indices:
        return ranking.recommend(ranker, parts.seen, users, k, keep_seen=keep_seen, own=own).items

    return measure_users(lists_of_tested(parts, k, lists_of), parts.test).metrics.ndcg
