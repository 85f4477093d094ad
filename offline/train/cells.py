"""The cells of a search: the usual ones, those around the best of them, and those with recency."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.ease import EASEParams
from hotplate.offline.train.engine import Engine, Params, engine_of, recency_of
from hotplate.offline.train.neighbours import NeighbourParams, NeighbourWeighting
from hotplate.offline.train.popularity import PopularityParams, Recency

# Each is the best of the others on some real data and split; regularization and alpha only work together.
_ALS = ((128, 60.0, 6.0), (128, 150.0, 20.0), (128, 10.0, 1.3), (512, 30.0, 6.0))
_EASE = (6.0, 20.0, 60.0)
_NEIGHBOURS: tuple[tuple[NeighbourWeighting, tuple[int, ...]], ...] = (
    ("tfidf", (5, 10, 20, 100)),
    ("bm25", (5, 100)),
    ("rp3beta", (100,)),
)
_FEWEST = 5
# Twice the factors take two to three times as long; a search goes no further on its own.
_MOST_FACTORS = 512
# Similarities of more pairs of items than this are not worth their memory.
_MOST_SIMILARITIES = 10_000_000
# The steps by which the powers of rp3beta are searched, alpha and beta.
_WALK_STEP = 0.1
# Recency is tried with these half-lives in days first, then with others and other powers around the best.
_HALF_LIVES = (2.0, 8.0)
_STEP = 2.0
_SHORTEST_DAYS, _LONGEST_DAYS = 0.125, 512.0
_LEAST_GAMMA, _MOST_GAMMA = 0.125, 4.0


def default_cells(defaults: ALSParams, items: int, engine: Engine | None = None) -> list[Params]:
    """Return *defaults*, what else was best on real data, and the simpler engines; only those of *engine*, if given."""
    als = (
        replace(defaults, factors=min(factors, items), regularization=regularization, alpha=alpha)
        for factors, regularization, alpha in _ALS
    )
    neighbours = (
        NeighbourParams(weighting, number)
        for weighting, numbers in _NEIGHBOURS
        for number in numbers
        if number <= max(items, _FEWEST)
    )
    ease = (EASEParams(regularization) for regularization in _EASE)
    cells: dict[Params, None] = dict.fromkeys((defaults, *als, *ease, *neighbours, PopularityParams()))
    return [params for params in cells if engine in (None, engine_of(params))]


def beyond(ranked: Sequence[Params], items: int) -> list[Params]:
    """Return new cells if the best of an engine, its first among *ranked*, lies at the edge of what was tried.

    The powers of rp3beta are searched around its best, in steps.
    """
    als = [params for params in ranked if isinstance(params, ALSParams)]
    ease = [params for params in ranked if isinstance(params, EASEParams)]
    neighbours = [params for params in ranked if isinstance(params, NeighbourParams)]
    found: list[Params] = []
    for best in als[:1]:
        # The best regularization and alpha are another question than the number of factors: they are crossed.
        more = (factors for factors in (2 * best.factors, _MOST_FACTORS) if factors <= min(_MOST_FACTORS, items))
        found += [replace(best, factors=factors) for factors in more if factors > best.factors]
        for times in _past([params.alpha for params in als], 2, 0.5):
            found.append(replace(best, regularization=times * best.regularization, alpha=times * best.alpha))
    for times in _past([params.regularization for params in ease], 3, 1 / 3):
        found.append(EASEParams(_rounded(times * ease[0].regularization)))
    alike = [params.neighbours for params in neighbours if params.weighting == neighbours[0].weighting]
    for times in _past(alike, 5, 0.5):
        number = int(np.clip(times * alike[0], 2, _most_neighbours(items)))
        found.append(replace(neighbours[0], neighbours=number))
    for walk in [params for params in neighbours if params.weighting == "rp3beta"][:1]:
        for alpha, beta in ((_WALK_STEP, 0), (-_WALK_STEP, 0), (0, _WALK_STEP), (0, -_WALK_STEP)):
            powers = round(walk.walk_alpha + alpha, 2), round(walk.walk_beta + beta, 2)
            if powers[0] > 0 and powers[1] >= 0:
                found.append(replace(walk, walk_alpha=powers[0], walk_beta=powers[1]))
    return [params for params in dict.fromkeys(found) if params not in ranked]


def _past(values: Sequence[float], up: float, down: float) -> list[float]:
    """Return by what to multiply the first of *values*, the best one, to go beyond all: nothing if it is no edge."""
    return [times for times, edge in ((up, max), (down, min)) if values and values[0] == edge(values)]


def more_recency(params: Params, tried: Mapping[Params, float]) -> list[Params]:
    """Return *params* with the recencies to try next, given the ndcg of those that were *tried*.

    Half-lives come first, then those and powers around the best one. Popularity has a half-life alone.
    """
    near = [(half_life, 1.0) for half_life in _HALF_LIVES]
    if tried:
        days, gamma = _timing(max(tried, key=lambda each: tried[each]))
        near = [(days * _STEP, gamma), (days / _STEP, gamma)]
        near += [] if isinstance(params, PopularityParams) else [(days, gamma * _STEP), (days, gamma / _STEP)]
    found = [
        _with_timing(params, days, gamma)
        for days, gamma in near
        if _SHORTEST_DAYS <= days <= _LONGEST_DAYS and _LEAST_GAMMA <= gamma <= _MOST_GAMMA
    ]
    return [each for each in found if each not in tried]


def _with_timing(params: Params, days: float, gamma: float) -> Params:
    if isinstance(params, PopularityParams):
        return PopularityParams(days)
    return replace(params, recency=Recency(days, gamma))


def _timing(params: Params) -> tuple[float, float]:
    """Return the half-life in days and the power of *params*, which have recency."""
    if isinstance(params, PopularityParams):
        return params.half_life_days or 1.0, 1.0
    recency = recency_of(params)
    return (1.0, 1.0) if recency is None else (recency.half_life_days, recency.gamma)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _most_neighbours(items: int) -> int:
    return max(2, min(items, _MOST_SIMILARITIES // items))
