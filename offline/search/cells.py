"""Cells that a search tries: the default ones, those past an edge, and those with recency.

A cell is an engine with its parameters. Those past an edge and those with recency depend on the cells tried before.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hotplate.offline.evaluate.metrics import EQUAL_WITHIN_SE
from hotplate.offline.search.trials import Trial
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import ENGINES, Engine, Params, engine_of
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
    recencies = [Recency(half_life_days, gamma=1.0) for half_life_days in _FIRST_HALF_LIVES]
    if popularity is not None and popularity.half_life_days is not None:
        recencies.append(Recency(popularity.half_life_days, HIGHEST_GAMMA))
    return _cells_of(params, recencies)


def next_cells_with_recency(params: Params, tried: Sequence[Trial]) -> list[Params]:
    """Return *params* with half-lives and powers of recency near the best of the trials *tried*; empty if none is left.

    Higher powers follow as long as they are as good.
    """
    known_cells = {trial.params for trial in tried}
    return [cell for cell in _cells_of(params, _around_best(tried)) if cell not in known_cells]


def _cells_of(params: Params, recencies: Iterable[Recency]) -> list[Params]:
    """Return *params* with each of *recencies* in the range to try; popularity has a half-life of counts instead."""
    cells = list[Params]()
    for recency in recencies:
        if not _SHORTEST_DAYS <= recency.half_life_days <= _LONGEST_DAYS:
            continue
        if isinstance(params, PopularityParams):
            cells.append(PopularityParams(recency.half_life_days))
        elif _LOWEST_GAMMA <= recency.gamma <= HIGHEST_GAMMA:
            cells.append(replace(params, recency=recency))
    return list(dict.fromkeys(cells))


def _around_best(tried: Sequence[Trial]) -> Iterator[Recency]:
    """Yield half-lives and powers of recency to try next, near those of the best of the trials of one engine.

    These are twice and half its half-life, and twice and half its power; popularity has no power. Trials as good as the
    best, with the same half-life and at least its power, are followed by twice their power, too.
    """
    best = max(tried, key=lambda trial: trial.ndcg)
    recency = _recency_of(best.params)
    half_life_days = recency.half_life_days
    yield Recency(half_life_days * _RECENCY_STEP, recency.gamma)
    yield Recency(half_life_days / _RECENCY_STEP, recency.gamma)
    if isinstance(best.params, PopularityParams):
        return

    yield Recency(half_life_days, recency.gamma * _RECENCY_STEP)
    yield Recency(half_life_days, recency.gamma / _RECENCY_STEP)

    for trial in tried:
        other = _recency_of(trial.params)
        is_as_recent = other.half_life_days == half_life_days and other.gamma >= recency.gamma
        if is_as_recent and best.leads_by(trial) <= EQUAL_WITHIN_SE:
            yield Recency(half_life_days, other.gamma * _RECENCY_STEP)


def _recency_of(params: Params) -> Recency:
    """Return the recency of a cell; for popularity, its half-life with a power of 1. Without one, both are 1."""
    if isinstance(params, PopularityParams):
        return Recency(params.half_life_days or 1.0, 1.0)
    return params.recency or Recency(1.0, 1.0)
