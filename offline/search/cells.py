"""Cells that a search tries: the default ones, those past an edge, and those with recency.

A cell is an engine with its parameters. Those past an edge and those with recency depend on the cells tried before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hotplate.offline.search.trials import Trial, is_as_good
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import ENGINES, Engine, Params, engine_of
from hotplate.offline.train.popularity import PopularityParams, Recency

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

    They are of the engine of the best cell, if that has the largest or the smallest value of a parameter. *best_first*
    are the cells tried, the best first; *items* is the number of items in the catalogue. Popularity has no more cells.
    """
    personal = [params for params in best_first if not isinstance(params, PopularityParams)]
    if not personal:
        return []
    engine = engine_of(personal[0])
    tried = [params for params in personal if engine_of(params) == engine]
    cells = ENGINES[engine].past_edge(tried, items)
    return [params for params in dict.fromkeys(cells) if params not in tried]


def with_recency_first(cells: Sequence[Params], half_life_days: float | None) -> list[Params]:
    """Return *cells* with the recency to try first: a power (gamma) of 1, and the half-life of the best popularity.

    Recency multiplies scores by a power of recent popularity, in which interactions count half per half-life. Without
    *half_life_days*, the cells are returned as they are.
    """
    if half_life_days is None:
        return list(cells)
    recency = Recency(half_life_days, gamma=1.0)
    return [replace(params, recency=recency) for params in cells]  # type: ignore[arg-type]  # popularity has none


def next_cells_with_recency(tried: Sequence[Trial]) -> list[Params]:
    """Return cells with half-lives and powers of recency near the best of the trials *tried*; empty if none is left.

    Lower powers come first, as long as they are as good: their lists differ more between users, and mostly rank better.
    """
    known_cells = {trial.params for trial in tried}
    best = max(tried, key=lambda trial: trial.ndcg)
    for recencies in (_with_lower_powers(best, tried), _around_best(best)):
        cells = [replace(best.params, recency=recency) for recency in recencies]  # type: ignore[arg-type]
        new = [cell for cell in dict.fromkeys(cells) if cell not in known_cells]
        if new:
            return new
    return []


def _with_lower_powers(best: Trial, tried: Sequence[Trial]) -> Iterator[Recency | None]:
    """Yield the recencies of trials that are as good as the *best* of an engine, with half the power.

    The lowest power is followed by no recency.
    """
    for trial in tried:
        recency = trial.params.recency
        if recency is not None and is_as_good(trial, best):
            is_lowest = recency.gamma <= _LOWEST_GAMMA
            yield None if is_lowest else Recency(recency.half_life_days, recency.gamma / _RECENCY_STEP)


def _around_best(best: Trial) -> Iterator[Recency]:
    """Yield twice and half the half-life of the *best* trial of an engine, and twice its power."""
    recency = best.params.recency
    if recency is None:
        return
    if recency.half_life_days < _LONGEST_DAYS:
        yield Recency(recency.half_life_days * _RECENCY_STEP, recency.gamma)
    if recency.half_life_days > _SHORTEST_DAYS:
        yield Recency(recency.half_life_days / _RECENCY_STEP, recency.gamma)
    if recency.gamma < _HIGHEST_GAMMA:
        yield Recency(recency.half_life_days, recency.gamma * _RECENCY_STEP)
