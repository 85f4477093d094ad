"""The cells of a search: the usual ones, those beyond their edges, random ones around the best, and those of a file."""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.train.als import ALSParams, SparkParams
from hotplate.offline.train.ease import EASEParams
from hotplate.offline.train.engine import Engine, Params, engine_of, params_class
from hotplate.offline.train.neighbours import NeighbourParams, NeighbourWeighting
from hotplate.offline.train.popularity import PopularityParams

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
    """Return new cells if the best of an engine, its first among *ranked*, lies at the edge of what was tried."""
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
    return [params for params in dict.fromkeys(found) if params not in ranked]


def _past(values: Sequence[float], up: float, down: float) -> list[float]:
    """Return by what to multiply the first of *values*, the best one, to go beyond all: nothing if it is no edge."""
    return [times for times, edge in ((up, max), (down, min)) if values and values[0] == edge(values)]


def draw(ranked: Sequence[Params], generator: np.random.Generator, items: int) -> Params | None:
    """Draw a new cell, log-uniformly, around the first of *ranked*, or half of the time around the first of ALS.

    Returns None if nothing new is found: there are only so many numbers of neighbours.
    """
    searched = [params for params in ranked if isinstance(params, ALSParams | EASEParams | NeighbourParams)]
    centres = searched[:1] + [params for params in searched if isinstance(params, ALSParams)][:1]
    for _ in range(_ATTEMPTS if centres else 0):
        near = _near(centres[generator.integers(len(centres))], generator, items)
        if near not in ranked:
            return near
    return None


def _near(centre: Params, generator: np.random.Generator, items: int) -> Params:
    def spread(times: float) -> float:
        """Draw between 1 / *times* and *times*, both ways equally often."""
        return math.exp(generator.uniform(-math.log(times), math.log(times)))

    match centre:
        case ALSParams():
            factors, both, regularization = spread(2), spread(3), spread(2)
            return replace(
                centre,
                factors=int(np.clip(round(factors * centre.factors), _FACTORS[0], _FACTORS[1])),
                regularization=_rounded(centre.regularization * both * regularization),
                # Below 1, what a user has would weigh less than what they have not.
                alpha=max(_rounded(centre.alpha * both), min(1.0, centre.alpha)),
            )
        case EASEParams():
            return EASEParams(_rounded(centre.regularization * spread(3)))
        case NeighbourParams():
            weightings: list[NeighbourWeighting] = [centre.weighting, *get_args(NeighbourWeighting)]
            number = int(np.clip(round(centre.neighbours * spread(3)), 2, _most_neighbours(items)))
            return NeighbourParams(weightings[generator.integers(len(weightings))], number)
        case _:
            return centre


def read_grid(path: Path, defaults: ALSParams) -> tuple[Params, ...]:
    """Read the cells of a file: JSON, a list of objects; or TOML, tables `[[cell]]`. Each has an engine and parameters.

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
    cells = []
    for at, values in enumerate(found, 1):
        try:
            cells.append(_cell(values, defaults))
        except (DataError, SettingError) as error:
            raise SettingError(f"Cell {at} of {path}: {error}") from error
    return tuple(cells)


def _cell(values: object, defaults: ALSParams) -> Params:
    if not isinstance(values, dict):
        raise SettingError("It is not a table of engine and parameters.")
    engine = values.get("engine", "als")
    kind = params_class(engine)
    if kind is SparkParams:
        raise SettingError("The parameters of Spark are not searched; search those of als.")
    usual: dict[str, Any] = asdict(defaults if kind is ALSParams else kind())
    usual.pop("recency", None)
    given = {name: value for name, value in values.items() if name != "engine"}
    for name, value in given.items():
        if name not in usual:
            raise SettingError(f"It has {name!r}, and {engine} has only {', '.join(usual) or 'no parameters'}.")
        wanted = type(usual[name]) if usual[name] is not None else float
        if isinstance(value, bool) or not isinstance(value, int | float if wanted is float else wanted):
            raise SettingError(f"It has {name} = {value!r}; it must be of type {wanted.__name__}.")
    return kind(**usual | given)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _most_neighbours(items: int) -> int:
    return max(2, min(items, _MOST_SIMILARITIES // items))
