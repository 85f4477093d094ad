"""The choice of the weight of a user's own interactions, by the nDCG of lists that keep seen items.

A repeat is a test pair that is in train, too: the user chose the item again.
"""

from hotplate.offline.evaluate.metrics import measure_users
from hotplate.offline.evaluate.records import RepeatSearch
from hotplate.offline.evaluate.splits import Parts, lists_of_tested
from hotplate.offline.train.engine import Ranker
from hotplate.offline.train.popularity import Recency
from hotplate.offline.train.ranking import RankOptions, ScoresOfUsers
from hotplate.offline.train.repeats import RepeatParams, own_counts

_HALF_LIVES = (240.0, 120.0, None)
_WEIGHTS = (0.5, 0.25, 1.0)
# Tried with recency: half-life, weight, and the power of recent popularity.
_RECENT_HALF_LIFE = 120.0
_RECENT_WEIGHT = 3.0
_RECENT_GAMMA = 0.25


def choose_repeats(parts: Parts, ranker: Ranker, k: int, popular_half_life_days: float | None = None) -> RepeatSearch:
    """Choose how much a user's own earlier choices raise the scores of these items, in lists that may repeat them.

    *ranker* (a fitted model) is fitted to the train part of *parts*. Lists of *k* items by several weights and
    half-lives of own choices, also weight 0, are compared by their nDCG on the test part. With
    *popular_half_life_days*, own choices times recent popularity are tried, too. *parts* must have times and repeats.
    """
    engine_alone = RepeatParams(weight=0.0)
    candidates = [engine_alone]
    for half_life_days in _HALF_LIVES:
        candidates += [RepeatParams(half_life_days, weight) for weight in _WEIGHTS]
    if popular_half_life_days is not None:
        recency = Recency(popular_half_life_days, _RECENT_GAMMA)
        candidates.append(RepeatParams(_RECENT_HALF_LIFE, _RECENT_WEIGHT, recency))

    # Computed once for all candidates.
    scores = ScoresOfUsers.of(ranker, parts.seen, parts.tested)

    # Of equal ones, the first is the best.
    ndcg_by_params = {params: ndcg(parts, scores, k, params) for params in candidates}
    best = max(candidates, key=lambda params: ndcg_by_params[params])
    return RepeatSearch(
        share=float(parts.is_repeat.mean()),
        k=k,
        without=ndcg(parts, ranker, k, engine_alone, keep_seen=False),
        alone=ndcg_by_params[engine_alone],
        blended=ndcg_by_params[best],
        params=best,
    )


def ndcg(
    parts: Parts, ranker: Ranker | ScoresOfUsers, k: int, params: RepeatParams, *, keep_seen: bool = True
) -> float:
    """Return the nDCG of lists of *k* items on the test part of *parts*.

    The lists are by the scores of *ranker* (a fitted model); *params* say how much a user's own earlier choices raise
    the scores of these items. Only with *keep_seen* may lists hold items that the user has.
    """
    own = None
    if parts.history is not None and params.weight:
        own = own_counts(parts.history, params)

    ranked = ranker.recommend(parts.seen, parts.tested, k, RankOptions(keep_seen, own=own))
    return measure_users(lists_of_tested(parts, k, ranked.items), parts.test).metrics.ndcg
