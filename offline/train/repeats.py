"""Repeats: a user's own interactions as part of scores in lists that keep seen items."""

from dataclasses import dataclass, replace

import numpy as np

from hotplate.offline.input.history import History, Weighing, decay_factors
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.train.popularity import Recency


@dataclass(frozen=True, slots=True)
class RepeatParams:
    """Half-life and weight of a user's own interaction; the engine's best score is 1. *recency* multiplies."""

    half_life_days: float | None = 240.0
    weight: float = 0.5
    recency: Recency | None = None


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
        recent = params.recency.weights(counts, history.first_times(counts))
        counts.data *= np.exp(recent.logs[counts.indices])
    return counts
