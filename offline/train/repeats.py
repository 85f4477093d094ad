"""Repeats: a user's own interactions as part of scores in lists that keep seen items.

A repeat is a test pair that is in train, too: the user chose the item again.
"""

from dataclasses import dataclass, replace

import numpy as np

from hotplate.offline.evaluate.metrics import measure_users
from hotplate.offline.evaluate.splits import Parts, lists_of_tested
from hotplate.offline.input.matrix import History, Indices, UserItems, Weighing, are_among, decay_factors, pair_numbers
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
    """The *share* of repeats among held-back pairs, and nDCG@*k* of lists on them.

    *without* is of lists of new items, *alone* of lists that keep seen items, *blended* with own counts by *params*.
    """

    share: float
    k: int
    without: float
    alone: float
    blended: float
    params: RepeatParams


def own_counts(history: History, params: RepeatParams) -> UserItems:
    """Return users' decayed and weighted choices of items [users, items]."""
    if params.half_life_days is None:
        weights = np.ones(len(history.times), dtype=np.float32)
    else:
        weights = decay_factors(history.times, params.half_life_days).astype(np.float32)
    counts = replace(history, weights=np.float32(params.weight) * weights, weighing=Weighing("sum")).matrix()
    if params.recency is not None:
        counts.data *= params.recency.weights(counts, history.first_times(counts))[counts.indices]
    return counts


def choose_repeats(
    parts: Parts, ranker: Ranker, k: int, popular_half_life_days: float | None = None
) -> RepeatSearch | None:
    """Choose the best parameters on *parts*; None without times or repeats in the test.

    With the half-life of popular lists, own counts times recent popularity are tried, too.
    """
    again = are_among(pair_numbers(parts.train), pair_numbers(parts.test))
    if parts.history is None or not again.any():
        return None
    cells = [RepeatParams(weight=0.0)]
    cells += [RepeatParams(half_life, weight) for half_life in _HALF_LIVES for weight in _WEIGHTS]
    if popular_half_life_days is not None:
        recency = Recency(popular_half_life_days, _RECENT_GAMMA)
        cells.append(RepeatParams(_RECENT_HALF_LIFE, _RECENT_WEIGHT, recency))
    scores = {params: ndcg(parts, ranker, k, params) for params in cells}
    best = max(scores, key=lambda params: scores[params])
    return RepeatSearch(
        share=float(again.mean()),
        k=k,
        without=ndcg(parts, ranker, k, cells[0], keep_seen=False),
        alone=scores[cells[0]],
        blended=scores[best],
        params=best,
    )


def ndcg(parts: Parts, ranker: Ranker, k: int, params: RepeatParams, *, keep_seen: bool = True) -> float:
    """Return nDCG@*k* of lists with own counts by *params*; *parts* need times."""
    own = own_counts(parts.history, params) if parts.history is not None and params.weight else None

    def lists_of(users: Indices) -> Indices:
        return ranking.recommend(ranker, parts.seen, users, k, keep_seen=keep_seen, own=own)[0]

    return measure_users(lists_of_tested(parts, k, lists_of), parts.test).metrics.ndcg
