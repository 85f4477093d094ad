"""Cells that a search tries: the default ones, those past an edge, and those with recency.

A cell is an engine with its parameters. Those past an edge and those with recency depend on the cells tried before.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hotplate.offline.search.trials import Trial, is_as_good
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import ENGINES, Engine, Params, engine_of, recency_of
from hotplate.offline.train.popularity import Recency

# In days.
_FIRST_HALF_LIVES = (2.0, 8.0)
# Further half-lives and powers of recency are this factor larger or smaller.
_RECENCY_STEP = 2.0
_SHORTEST_DAYS = 0.125
_LONGEST_DAYS = 512.0
_LOWEST_GAMMA = 0.125
_HIGHEST_GAMMA = 16.0


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


def first_cells_with_recency(params: Params, half_life_days: float) -> list[Params]:
    """Return *params* with the half-lives of recency to try first, also with *half_life_days*, the best of popularity.

    Recency multiplies scores by a power (gamma) of recent popularity, in which interactions count half per half-life.
    """
    half_lives = dict.fromkeys((*_FIRST_HALF_LIVES, half_life_days))
    return _cells_of(params, [Recency(days, gamma=1.0) for days in half_lives])


def next_cells_with_recency(tried: Sequence[Trial]) -> list[Params]:
    """Return cells with half-lives and powers of recency near the best of the trials *tried*; empty if none is left.

    Lower powers follow as long as they are as good, as their lists differ more between users.
    """
    known_cells = {trial.params for trial in tried}
    best = max(tried, key=lambda trial: trial.ndcg)
    return [cell for cell in _cells_of(best.params, _around_best(best, tried)) if cell not in known_cells]


def _cells_of(params: Params, recencies: Iterable[Recency]) -> list[Params]:
    """Return *params* with each of *recencies* in the range to try."""
    cells = list[Params]()
    for recency in recencies:
        is_in_range = _SHORTEST_DAYS <= recency.half_life_days <= _LONGEST_DAYS
        if is_in_range and _LOWEST_GAMMA <= recency.gamma <= _HIGHEST_GAMMA:
            cells.append(replace(params, recency=recency))  # type: ignore[arg-type]  # popularity has none
    return list(dict.fromkeys(cells))


def _around_best(best: Trial, tried: Sequence[Trial]) -> Iterator[Recency]:
    """Yield half-lives and powers of recency to try next, near those of the *best* of the trials of one engine.

    These are twice and half its half-life, and twice and half its power. Trials as good as the best are followed by
    half their power, too.
    """
    recency = recency_of(best.params)
    if recency is not None:
        yield Recency(recency.half_life_days * _RECENCY_STEP, recency.gamma)
        yield Recency(recency.half_life_days / _RECENCY_STEP, recency.gamma)
        yield Recency(recency.half_life_days, recency.gamma * _RECENCY_STEP)

    for trial in tried:
        recency = recency_of(trial.params)
        if recency is not None and is_as_good(trial, best):
            yield Recency(recency.half_life_days, recency.gamma / _RECENCY_STEP)
