"""Cells that a search tries: the default ones, those past an edge, and those with recency.

A cell is an engine with its parameters. Those past an edge and those with recency depend on the cells tried before.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from hotplate.offline.evaluate.metrics import EQUAL_WITHIN_SE
from hotplate.offline.search.trials import Trial
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import ENGINES, Engine, Params, engine_of, recency_of
from hotplate.offline.train.popularity import PopularityParams, Recency

# In days.
_FIRST_HALF_LIVES = (2.0, 8.0)
# Further half-lives and powers of recency are this factor larger or smaller.
_RECENCY_STEP = 2.0
_SHORTEST_DAYS = 0.125
_LONGEST_DAYS = 512.0
_LOWEST_GAMMA = 0.125
HIGHEST_GAMMA = 16.0


def default_cells(defaults: ALSParams, items: int, engine: Engine | None = None) -> list[Params]:
    """Return the cells (each an engine with its parameters) that a search tries by default, of all engines or of one.

    *defaults* is the first cell of ALS; others take its iterations and seed. Numbers of factors and neighbours are at
    most that of the *items* in the catalogue, except for the smallest number of neighbours.
    """
    cells = list[Params]()
    for name, spec in ENGINES.items():
        if engine in (None, name):
            cells += spec.cells(defaults if name == "als" else spec.params(), items)
    return list(dict.fromkeys(cells))


def cells_past_edge(best_first: Sequence[Params], items: int) -> list[Params]:
    """Return cells (each an engine with its parameters) to try next, beyond the range of those tried.

    They are of engines whose best cell has the largest or the smallest value of a parameter. *best_first* are the cells
    tried, the best first; *items* is the number of items in the catalogue.
    """
    cells = list[Params]()
    for name, spec in ENGINES.items():
        tried = [params for params in best_first if engine_of(params) == name]
        if tried:
            cells += spec.past_edge(tried, items)
    return [params for params in dict.fromkeys(cells) if params not in best_first]


def first_cells_with_recency(params: Params, popularity: PopularityParams | None) -> list[Params]:
    """Return *params* with the half-lives and powers of recency to try first.

    Recency multiplies scores by a power (gamma) of recent popularity, in which interactions count half per half-life.
    These are two half-lives, and the highest power at the half-life of *popularity*, the best parameters of that engine
    if it was tried before.
    """
    timings = [_Timing(half_life_days, gamma=1.0) for half_life_days in _FIRST_HALF_LIVES]
    if popularity is not None and popularity.half_life_days is not None:
        timings.append(_Timing(popularity.half_life_days, HIGHEST_GAMMA))
    return _cells_of(params, timings)


def next_cells_with_recency(params: Params, tried: Sequence[Trial]) -> list[Params]:
    """Return *params* with half-lives and powers of recency near the best of the trials *tried*; empty if none is left.

    Higher powers follow as long as they are as good.
    """
    known_cells = {trial.params for trial in tried}
    return [cell for cell in _cells_of(params, _timings_around_best(tried)) if cell not in known_cells]


class _Timing(NamedTuple):
    """The half-life of recent popularity in days, and the power (*gamma*) of it that multiplies scores."""

    half_life_days: float
    gamma: float

    @property
    def is_in_range(self) -> bool:
        """Whether it may be tried."""
        return _SHORTEST_DAYS <= self.half_life_days <= _LONGEST_DAYS and _LOWEST_GAMMA <= self.gamma <= HIGHEST_GAMMA


def _cells_of(params: Params, timings: Iterable[_Timing]) -> list[Params]:
    """Return *params* with the recency of each of *timings* in range; popularity has a half-life of counts instead."""
    in_range = [timing for timing in timings if timing.is_in_range]
    if isinstance(params, PopularityParams):
        return list(dict.fromkeys(PopularityParams(timing.half_life_days) for timing in in_range))
    recencies = dict.fromkeys(Recency(timing.half_life_days, timing.gamma) for timing in in_range)
    return [replace(params, recency=recency) for recency in recencies]


def _timings_around_best(tried: Sequence[Trial]) -> Iterator[_Timing]:
    """Yield half-lives and powers of recency to try next, near those of the best of the trials of one engine.

    These are twice and half its half-life, and twice and half its power; popularity has no power. Trials as good as the
    best, with the same half-life and at least its power, are followed by twice their power, too.
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
