"""Cells that a search tries: the default ones, those past an edge, and those with recency.

A cell is an engine with its parameters. Those past an edge and those with recency depend on the cells tried before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hotplate.offline.evaluate.metrics import EQUAL_WITHIN_SE
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Engine, Params, engine_of, recency_of
from hotplate.offline.train.item_based import EASEParams, NeighbourParams, NeighbourWeighting
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.trials import Trial

# Each won on some real data and split.
_ALS_CELLS = ((128, 60.0, 6.0), (128, 150.0, 20.0), (128, 10.0, 1.3), (512, 30.0, 6.0))
_EASE_CELLS = (6.0, 20.0, 60.0)
_NEIGHBOUR_CELLS: tuple[tuple[NeighbourWeighting, tuple[int, ...]], ...] = (
    ("tfidf", (5, 10, 20, 100)),
    ("bm25", (5, 100)),
    ("rp3beta", (100,)),
)
_FEWEST_NEIGHBOURS = 5
# Twice the factors take two to three times as long.
_MOST_FACTORS = 512
# A fit takes 28 bytes for each.
_MOST_SIMILARITIES = 5_000_000
_WALK_STEP = 0.1
# In days.
_FIRST_HALF_LIVES = (2.0, 8.0)
# Further half-lives and powers of recency are this factor larger or smaller.
_RECENCY_STEP = 2.0
_SHORTEST_DAYS = 0.125
_LONGEST_DAYS = 512.0
_LOWEST_GAMMA = 0.125
HIGHEST_GAMMA = 16.0


def default_cells(defaults: ALSParams, items: int, engine: Engine | None = None) -> list[Params]:
    """Return the default cells, engines with parameters, of all engines or of one *engine*.

    The first one is *defaults*; other cells of ALS take its iterations and seed. None has more factors than there are
    *items* in the catalogue, and none more neighbours, but for the fewest.
    """
    cells: list[Params] = [defaults]
    for most_factors, regularization, alpha in _ALS_CELLS:
        factors = min(most_factors, items)
        cells.append(replace(defaults, factors=factors, regularization=regularization, alpha=alpha))
    cells += [EASEParams(regularization) for regularization in _EASE_CELLS]
    for weighting, numbers in _NEIGHBOUR_CELLS:
        cells += [NeighbourParams(weighting, number) for number in numbers if number <= max(items, _FEWEST_NEIGHBOURS)]
    cells.append(PopularityParams())
    return [params for params in dict.fromkeys(cells) if engine in (None, engine_of(params))]


def cells_past_edge(best_first: Sequence[Params], items: int) -> list[Params]:
    """Return cells to try next, for each engine whose best one has the largest or smallest value of a parameter.

    *best_first* are the cells tried, engines with parameters; there are *items* in the catalogue. The two powers of
    rp3beta, a kind of neighbours, are always searched around its best cell.
    """
    als = [params for params in best_first if isinstance(params, ALSParams)]
    ease = [params for params in best_first if isinstance(params, EASEParams)]
    neighbours = [params for params in best_first if isinstance(params, NeighbourParams)]
    rp3beta = [params for params in neighbours if params.weighting == "rp3beta"]

    cells: list[Params] = []
    if als:
        cells += _als_past_edge(als, items)
    if ease:
        cells += _ease_past_edge(ease)
    if neighbours:
        cells += _neighbours_past_edge(neighbours, items)
    if rp3beta:
        cells += _powers_around(rp3beta[0])
    return [params for params in dict.fromkeys(cells) if params not in best_first]


def _als_past_edge(best_first: Sequence[ALSParams], items: int) -> Iterator[Params]:
    """Yield the best of the parameters tried with twice the factors, and with 512, unless there are fewer *items*.

    If its alpha is the largest one tried, it is also yielded with alpha and regularization doubled; if it is the
    smallest, with both halved.
    """
    best = best_first[0]
    for factors in (2 * best.factors, _MOST_FACTORS):
        if best.factors < factors <= min(_MOST_FACTORS, items):
            yield replace(best, factors=factors)
    for scale in _scales_past_edge([params.alpha for params in best_first], 2, 0.5):
        yield replace(best, regularization=scale * best.regularization, alpha=scale * best.alpha)


def _ease_past_edge(best_first: Sequence[EASEParams]) -> Iterator[Params]:
    """Yield a larger or smaller regularization, if the best one is at an edge."""
    for scale in _scales_past_edge([params.regularization for params in best_first], 3, 1 / 3):
        yield EASEParams(float(f"{scale * best_first[0].regularization:.3g}"))


def _neighbours_past_edge(best_first: Sequence[NeighbourParams], items: int) -> Iterator[Params]:
    """Yield the best of the parameters tried with more or fewer neighbours, if its number is at an edge.

    The edge is that of trials with the same other parameters. A model of all *items* keeps at most 5 million
    similarities, for its memory.
    """
    best = best_first[0]
    # Of parameters that differ from the best in the number of neighbours alone.
    numbers = [params.neighbours for params in best_first if replace(params, neighbours=best.neighbours) == best]
    most_neighbours = max(2, min(items, _MOST_SIMILARITIES // items))
    for scale in _scales_past_edge(numbers, 5, 0.5):
        yield replace(best, neighbours=int(np.clip(scale * best.neighbours, 2, most_neighbours)))


def _powers_around(walk: NeighbourParams) -> Iterator[Params]:
    """Yield the neighbouring powers of a random walk."""
    for alpha_step, beta_step in ((_WALK_STEP, 0), (-_WALK_STEP, 0), (0, _WALK_STEP), (0, -_WALK_STEP)):
        alpha = round(walk.walk_alpha + alpha_step, 2)
        beta = round(walk.walk_beta + beta_step, 2)
        if alpha > 0 and beta >= 0:
            yield replace(walk, walk_alpha=alpha, walk_beta=beta)


def _scales_past_edge(values: Sequence[float], up: float, down: float) -> list[float]:
    """Return *up* if the first of *values*, the best one, is the largest, and *down* if it is the smallest."""
    scales = []
    if values[0] == max(values):
        scales.append(up)
    if values[0] == min(values):
        scales.append(down)
    return scales


def cells_with_recency(
    params: Params, tried: Sequence[Trial], popularity: PopularityParams | None = None
) -> list[Params]:
    """Return *params* with half-lives and powers of recency to try next, without those *tried*; none at the end.

    Recency multiplies scores by a power (gamma) of recent popularity, halved per half-life. First come two half-lives,
    and the highest power at the half-life of *popularity*. After trials, it is half-lives and powers around the best
    trial, and higher powers as long as they are as good.
    """
    if tried:
        timings = list(_timings_around_best(tried))
    else:
        timings = [_Timing(half_life_days, gamma=1.0) for half_life_days in _FIRST_HALF_LIVES]
        if popularity is not None and popularity.half_life_days is not None:
            timings.append(_Timing(popularity.half_life_days, HIGHEST_GAMMA))

    known_cells = {trial.params for trial in tried}
    cells = list[Params]()
    for timing in timings:
        if not timing.is_in_range:
            continue
        cell: Params = PopularityParams(timing.half_life_days)
        if not isinstance(params, PopularityParams):
            cell = replace(params, recency=Recency(timing.half_life_days, timing.gamma))
        if cell not in known_cells:
            known_cells.add(cell)
            cells.append(cell)
    return cells


class _Timing(NamedTuple):
    """The half-life of recent popularity in days, and the power (*gamma*) of it that multiplies scores."""

    half_life_days: float
    gamma: float

    @property
    def is_in_range(self) -> bool:
        """Whether it may be tried."""
        return _SHORTEST_DAYS <= self.half_life_days <= _LONGEST_DAYS and _LOWEST_GAMMA <= self.gamma <= HIGHEST_GAMMA


def _timings_around_best(tried: Sequence[Trial]) -> Iterator[_Timing]:
    """Yield twice and half the half-life of the best of the trials of an engine, and twice and half its power.

    Popularity has no power. For other engines, a trial that is as good as the best one, with the same half-life and at
    least its power, is followed by one with twice that power, too.
    """
    best = max(tried, key=lambda trial: trial.ndcg)
    half_life_days, gamma = _timing_of(best.params)
    yield _Timing(half_life_days * _RECENCY_STEP, gamma)
    yield _Timing(half_life_days / _RECENCY_STEP, gamma)
    if isinstance(best.params, PopularityParams):
        return

    yield _Timing(half_life_days, gamma * _RECENCY_STEP)
    yield _Timing(half_life_days, gamma / _RECENCY_STEP)
    for trial in tried:
        if _is_as_good_and_recent(trial, best):
            yield _Timing(half_life_days, _timing_of(trial.params).gamma * _RECENCY_STEP)


def _is_as_good_and_recent(trial: Trial, best: Trial) -> bool:
    """Return whether *trial* has the half-life of *best*, a power as high, and cannot be told apart from it."""
    timing = _timing_of(trial.params)
    best_timing = _timing_of(best.params)
    is_as_recent = timing.half_life_days == best_timing.half_life_days and timing.gamma >= best_timing.gamma
    return is_as_recent and best.leads_by(trial) <= EQUAL_WITHIN_SE


def _timing_of(params: Params) -> _Timing:
    """Return the half-life and the power of recency of a cell; defaults of 1 without."""
    if isinstance(params, PopularityParams):
        return _Timing(params.half_life_days or 1.0, 1.0)
    recency = recency_of(params)
    return _Timing(1.0, 1.0) if recency is None else _Timing(recency.half_life_days, recency.gamma)
