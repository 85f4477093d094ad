"""Repeats: a user's own interactions as part of scores in lists that keep seen items."""

from dataclasses import dataclass, replace

import numpy as np

from hotplate.offline.evaluate.metrics import measure_users
from hotplate.offline.evaluate.splits import Parts, for_tested
from hotplate.offline.input.matrix import History, Indices, UserItems, Weighing, are_among, cells_of, decay
from hotplate.offline.train import ranking
from hotplate.offline.train.engine import Ranker

_HALF_LIVES = (240.0, 120.0, None)
_WEIGHTS = (0.5, 0.25, 1.0)


@dataclass(frozen=True, slots=True)
class RepeatParams:
    """Half-life and weight of a user's own interaction; the engine's best score is 1."""

    half_life_days: float | None = 240.0
    weight: float = 0.5


@dataclass(frozen=True, slots=True)
class RepeatSearch:
    """The *share* of repeats among held-back pairs, and nDCG@*k* of lists that keep seen items.

    *alone* is the engine's nDCG, *blended* with own counts by *params*.
    """

    share: float
    k: int
    alone: float
    blended: float
    params: RepeatParams


def own_counts(history: History, params: RepeatParams) -> UserItems:
    """Return users' decayed and weighted choices of items [users, items]."""
    if params.half_life_days is None:
        weights = np.ones(len(history.times), dtype=np.float32)
    else:
        weights = decay(history.times, params.half_life_days).astype(np.float32)
    return replace(history, weights=np.float32(params.weight) * weights, weighing=Weighing("sum")).matrix()


def search(parts: Parts, ranker: Ranker, k: int) -> RepeatSearch | None:
    """Choose the best parameters on *parts*; None without times or repeats in the test."""
    again = are_among(cells_of(parts.train), cells_of(parts.test))
    if parts.history is None or not again.any():
        return None
    alone = RepeatParams(weight=0.0)
    found = {alone: _ndcg(parts, ranker, k, None)}
    for params in (RepeatParams(half_life, weight) for half_life in _HALF_LIVES for weight in _WEIGHTS):
        found[params] = _ndcg(parts, ranker, k, own_counts(parts.history, params))
    best = max(found, key=lambda params: found[params])
    return RepeatSearch(float(again.mean()), k, found[alone], found[best], best)


def _ndcg(parts: Parts, ranker: Ranker, k: int, own: UserItems | None) -> float:
    def lists(users: Indices) -> Indices:
        return ranking.recommend(ranker, parts.seen, users, k, keep_seen=True, own=own)[0]

    return measure_users(for_tested(parts, k, lists), parts.test).metrics.ndcg
