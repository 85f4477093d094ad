"""The cells of a search: the usual ones, those beyond their edges, random ones around the best, and those of a file."""

import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from offline.errors import DataError, SettingError
from offline.train.als import ALSParams
from offline.train.ease import EASEParams
from offline.train.engine import Engine, Params, engine_of, params_class
from offline.train.neighbours import NeighbourParams, NeighbourWeighting
from offline.train.popularity import PopularityParams
from offline.train.weighted import SparkParams

# Each is the best of the others on some real data and split; regularization and alpha only work together.
_ALS = ((128, 60.0, 6.0), (128, 150.0, 20.0), (128, 10.0, 1.3), (512, 30.0, 6.0))
_EASE = (6.0, 20.0, 60.0)
_NEIGHBOURS: tuple[tuple[NeighbourWeighting, tuple[int, ...]], ...] = (
    ("tfidf", (5, 10, 20, 100)),
    ("bm25", (5, 100)),
    ("rp3beta", (100,)),
)
_FEWEST = 5
# Twice the factors take two to three times as long; a search goes no further by itself.
_MOST_FACTORS = 512
# Similarities of more pairs of items than this are not worth their memory.
_MOST_SIMILARITIES = 10_000_000
# What random draws keep to, and how often one is tried until it is new.
_FACTORS = (8, 1024)
_ATTEMPTS = 50


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
    """Return new cells where the best of an engine, its first among *ranked*, lies at the edge of what was tried."""
    als = [params for params in ranked if isinstance(params, ALSParams)]
    ease = [params for params in ranked if isinstance(params, EASEParams)]
    neighbours = [params for params in ranked if isinstance(params, NeighbourParams)]
    found = [*_beyond_als(als, items), *_beyond_ease(ease), *_beyond_neighbours(neighbours, items)]
    return [params for params in dict.fromkeys(found) if params not in ranked]


def _beyond_als(ranked: Sequence[ALSParams], items: int) -> Iterator[Params]:
    if not ranked:
        return
    best, alphas = ranked[0], [params.alpha for params in ranked]
    # The best regularization and alpha are another question than the number of factors: they are crossed.
    for factors in (2 * best.factors, _MOST_FACTORS):
        if best.factors < factors <= min(_MOST_FACTORS, items):
            yield replace(best, factors=factors)
    for times, edge in ((2, max(alphas)), (0.5, min(alphas))):
        if best.alpha == edge:
            yield replace(best, regularization=times * best.regularization, alpha=times * best.alpha)


def _beyond_ease(ranked: Sequence[EASEParams]) -> Iterator[Params]:
    if not ranked:
        return
    best, tried = ranked[0].regularization, [params.regularization for params in ranked]
    for times, edge in ((3, max(tried)), (1 / 3, min(tried))):
        if best == edge:
            yield EASEParams(_rounded(times * best))


def _beyond_neighbours(ranked: Sequence[NeighbourParams], items: int) -> Iterator[Params]:
    if not ranked:
        return
    best = ranked[0]
    numbers = [params.neighbours for params in ranked if params.weighting == best.weighting]
    if best.neighbours == max(numbers):
        yield replace(best, neighbours=min(5 * best.neighbours, _most_neighbours(items)))
    if best.neighbours == min(numbers):
        yield replace(best, neighbours=max(2, best.neighbours // 2))


def draw(ranked: Sequence[Params], generator: np.random.Generator, items: int) -> Params | None:
    """
    Draw a new cell, log-uniformly, around the first of *ranked*, or half of the time around the first of ALS.

    Returns None where nothing new is found: there are only so many numbers of neighbours.
    """
    centres: list[ALSParams | EASEParams | NeighbourParams]
    centres = [one for one in ranked if isinstance(one, ALSParams | EASEParams | NeighbourParams)][:1]
    centres += [params for params in ranked if isinstance(params, ALSParams)][:1]
    for _ in range(_ATTEMPTS if centres else 0):
        centre = centres[generator.integers(len(centres))]
        near: Params
        match centre:
            case ALSParams():
                near = _near_als(centre, generator)
            case EASEParams():
                near = EASEParams(_rounded(centre.regularization * _spread(generator, 3)))
            case NeighbourParams():
                near = _near_neighbours(centre, generator, items)
        if near not in ranked:
            return near
    return None


def read_grid(path: Path, defaults: ALSParams) -> tuple[Params, ...]:
    """
    Read the cells of a file: JSON, a list of objects; or TOML, tables `[[cell]]`. Each has an engine and parameters.

    What ALS is not given is taken from *defaults*. Raises DataError for a file that cannot be read, SettingError for a
    cell that makes no sense.
    """
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text).get("cell")
    except OSError as error:
        raise DataError(f"The grid {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # of JSON, TOML and UTF-8
        raise DataError(f"The grid {path} is neither JSON nor TOML: {error}.") from error
    if not isinstance(found, list) or not found:
        raise DataError(f"The grid {path} names no cells; write [[cell]] tables, or in .json a list of objects.")
    return tuple(_cell(values, f"Cell {at} of {path}", defaults) for at, values in enumerate(found, 1))


def _cell(values: object, where: str, defaults: ALSParams) -> Params:
    """Return the parameters that *values* say; *where* they stand is named in errors."""
    if not isinstance(values, dict):
        raise SettingError(f"{where} is not a table of engine and parameters.")
    engine = values.get("engine", "als")
    try:
        kind = params_class(engine)
    except DataError as error:
        raise SettingError(f"{where}: {error}") from error
    if kind is SparkParams:
        raise SettingError(f"{where} is of Spark, whose parameters are not searched; search those of als.")
    usual: dict[str, Any] = asdict(defaults if kind is ALSParams else kind())
    usual.pop("recency", None)
    given = {name: value for name, value in values.items() if name != "engine"}
    for name, value in given.items():
        if name not in usual:
            raise SettingError(f"{where} has {name!r}, and {engine} has only {', '.join(usual) or 'no parameters'}.")
        wanted = type(usual[name]) if usual[name] is not None else float
        if isinstance(value, bool) or not isinstance(value, int | float if wanted is float else wanted):
            raise SettingError(f"{where} has {name} = {value!r}; it must be of type {wanted.__name__}.")
    try:
        return kind(**usual | given)
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from error


def _near_als(centre: ALSParams, generator: np.random.Generator) -> ALSParams:
    factors, both, regularization = (_spread(generator, times) for times in (2, 3, 2))
    least_alpha = min(1.0, centre.alpha)  # below 1, what a user has would weigh less than what they have not
    return replace(
        centre,
        factors=int(np.clip(round(factors * centre.factors), _FACTORS[0], _FACTORS[1])),
        regularization=_rounded(centre.regularization * both * regularization),
        alpha=max(_rounded(centre.alpha * both), least_alpha),
    )


def _near_neighbours(centre: NeighbourParams, generator: np.random.Generator, items: int) -> NeighbourParams:
    weightings: list[NeighbourWeighting] = [centre.weighting, *get_args(NeighbourWeighting)]
    number = round(centre.neighbours * _spread(generator, 3))
    return NeighbourParams(
        weightings[generator.integers(len(weightings))], int(np.clip(number, 2, _most_neighbours(items)))
    )


def _spread(generator: np.random.Generator, times: float) -> float:
    """Draw between 1 / *times* and *times*, both ways equally often."""
    return math.exp(generator.uniform(-math.log(times), math.log(times)))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _most_neighbours(items: int) -> int:
    return max(2, min(items, _MOST_SIMILARITIES // items))
