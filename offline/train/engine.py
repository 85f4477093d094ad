"""Engines: parameters, fits, and their cost."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import named_values, parse_half_life
from hotplate.offline.input.history import Times
from hotplate.offline.input.pairs import Floats, UserItems, items_per_user
from hotplate.offline.train import als, popularity
from hotplate.offline.train.als import ALSParams, Factors, SparkParams
from hotplate.offline.train.item_based import EASE, EASEParams, NeighbourParams, Neighbours, fit_ease, fit_neighbours
from hotplate.offline.train.popularity import Popularity, PopularityParams, Recency
from hotplate.stores.folders import room_bytes

Engine = Literal["als", "ease", "neighbours", "popularity", "spark"]
Params: TypeAlias = ALSParams | SparkParams | EASEParams | NeighbourParams | PopularityParams
# A fitted model; its users and items are those of its matrix.
Ranker: TypeAlias = Factors | EASE | Neighbours | Popularity

PARAMS: dict[Engine, type[Params]] = {
    "als": ALSParams,
    "ease": EASEParams,
    "neighbours": NeighbourParams,
    "popularity": PopularityParams,
    "spark": SparkParams,
}

# Alike in all cells of a search, or described with another text.
_NOT_DESCRIBED = frozenset({"iterations", "seed", "recency"})
_MEMORY_ADVICE = {
    "als": "take fewer factors, raise --min-per-user and --min-per-item, or learn with --engine spark",
    "ease": "raise --min-per-item, or learn with --engine als",
    "neighbours": "take fewer neighbours, or raise --min-per-item",
}
_INDEX_BYTES = 4
_NUMBER_BYTES = 4
# implicit's coordinates and their conversion to rows, in 64 bits.
_NEIGHBOUR_BYTES = 28


def engine_of(params: Params) -> Engine:
    """Return the engine of *params*."""
    return next(engine for engine, kind in PARAMS.items() if isinstance(params, kind))


def described(params: Params) -> str:
    """Return the engine and its parameters: `neighbours (weighting tfidf, neighbours 5)`."""
    chosen = ", ".join(f"{name} {value}" for name, value in _described_params(params).items())
    return f"{engine_of(params)} ({chosen})" if chosen else engine_of(params)


def name_of(engine: str, params: Mapping[str, Any]) -> str:
    """Return the name of an engine in tables: popularity that halves with age is `recent popularity`."""
    is_recent = engine == "popularity" and params.get("half_life_days") is not None
    return "recent popularity" if is_recent else engine


def as_options(params: Params) -> str:
    """Return *params* as the command's options."""
    chosen = ",".join(f"{name}={value}" for name, value in _described_params(params).items())
    return f"--engine {engine_of(params)}" + (f" --params {chosen}" if chosen else "")


def read_params(engine: Engine, text: str, seed: int) -> Params:
    """Read the parameters of *engine* from a text such as `factors=64,alpha=2,recency=7d,gamma=0.5`.

    `recency` is the half-life of the recent popularity that multiplies scores, and `gamma` its power. Parameters that
    are not named have their defaults; engines with a seed take *seed*. Raises SettingError.
    """
    values = dict[str, Any]()
    for pair in named_values(text):
        if pair.name or pair.value:
            values[pair.name] = re.sub(r"^\.", "0.", pair.value)  # msgspec reads no .5
    if "recency" in values:
        gamma = values.pop("gamma", 1)
        values["recency"] = {"half_life_days": _half_life_days(values["recency"]), "gamma": gamma}
    if "half_life" in values:
        values["half_life_days"] = _half_life_days(values.pop("half_life"))

    kind = PARAMS[engine]
    known = {field.name for field in fields(kind)}
    unknown = values.keys() - known
    if unknown:
        raise SettingError(f"--params: the engine {engine} has no {', '.join(sorted(unknown))}; see docs/training.md.")
    if "seed" in known:
        values.setdefault("seed", seed)
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"--params {text} cannot be read: {error}.") from error


def _half_life_days(text: str) -> float:
    return parse_half_life(text) / timedelta(days=1)


def _described_params(params: Params) -> dict[str, str]:
    """Return names and values of the parameters of an engine that a search varies, as `read_params` reads them.

    Half-lives are in days, as `7d`. Iterations and seed are left out.
    """
    values: dict[str, Any] = {}
    if isinstance(params, PopularityParams):
        if params.half_life_days is not None:
            values["half_life"] = f"{params.half_life_days:g}d"
    elif isinstance(params, NeighbourParams) and params.weighting != "rp3beta":
        # The powers of random walks mean nothing here.
        values = {"weighting": params.weighting, "neighbours": params.neighbours}
    else:
        values = {name: value for name, value in asdict(params).items() if name not in _NOT_DESCRIBED}

    recency = recency_of(params)
    if recency is not None:
        values |= {"recency": f"{recency.half_life_days:g}d", "gamma": recency.gamma}
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def recency_of(params: Params) -> Recency | None:
    """Return the recency that multiplies scores, or None."""
    return None if isinstance(params, PopularityParams) else params.recency


def without_recency(params: Params) -> Params:
    """Return *params* whose scores are not multiplied."""
    return params if isinstance(params, PopularityParams) else replace(params, recency=None)


def needs_times(params: Params) -> bool:
    """Return whether a fit needs the times of pairs."""
    return params.half_life_days is not None if isinstance(params, PopularityParams) else params.recency is not None


def params_class(engine: object) -> type[Params]:
    """Return the parameters' class; DataError for an unknown engine."""
    for name, kind in PARAMS.items():
        if name == engine:
            return kind
    raise DataError(f"The engine {engine!r} is not known; this hotplate has {', '.join(PARAMS)}.")


def params_from(engine: object, values: dict[str, Any]) -> Params:
    """Return parameters from JSON values; DataError for an unknown engine."""
    recency = values.get("recency")
    if recency is not None:
        values = values | {"recency": Recency(**recency)}
    return params_class(engine)(**values)


def fit(
    user_items: UserItems,
    params: Params,
    on_iteration: Callable[[int, int], None] | None = None,
    *,
    times: Times | None = None,
) -> Ranker:
    """Fit the engine of *params* to *user_items* on all cores, or in the Spark session; return the fitted model.

    user_items    float32 csr_matrix [users, items], canonical, above zero
    on_iteration  called with the iterations done and their total, once for engines without iterations
    times         of the pairs, in the order of user_items.data; popularity with a half-life, and recency, need them

    With recency, the model multiplies scores by recent popularity. Raises DataError for an invalid matrix and too
    little memory.
    """
    check_memory(estimate_fit_bytes(params, user_items), _MEMORY_ADVICE.get(engine_of(params), ""))
    ranker: Ranker
    match params:
        case ALSParams():
            ranker = als.fit(user_items, params, on_iteration)
        case SparkParams():
            from hotplate.offline.train import spark  # noqa: PLC0415 -- an extra

            ranker = spark.fit(user_items, params, on_iteration)
        case EASEParams():
            ranker = fit_ease(user_items, params)
        case NeighbourParams():
            ranker = fit_neighbours(user_items, params)
        case PopularityParams():
            ranker = popularity.fit(user_items, params, times)
    if on_iteration is not None and not isinstance(params, ALSParams | SparkParams):
        on_iteration(1, 1)
    recency = recency_of(params)
    return ranker if recency is None else with_recency(ranker, recency.weights(user_items, times))


def with_recency(ranker: Ranker, weights: Floats) -> Ranker:
    """Return *ranker* with scores multiplied by *weights* [items]; popularity is unchanged."""
    return ranker if isinstance(ranker, Popularity) else replace(ranker, recent=weights)


def estimate_fit_s(params: object, user_items: UserItems) -> float:
    """Estimate the seconds of a fit of *params* to *user_items* on one core; its factors were measured on a Xeon."""
    users, items = map(float, user_items.shape)
    pairs = float(user_items.nnz)
    match params:
        case ALSParams():
            of_iteration = params.factors * (7.5e-11 * params.factors * (users + items) + 6.3e-9 * pairs)
            return params.iterations * of_iteration
        case EASEParams():
            return 1.1e-11 * items**3 + 1.8e-8 * product_terms(user_items)
        case NeighbourParams():
            return 7e-9 * product_terms(user_items) + 1.5e-7 * min(params.neighbours, items) * items
        case _:
            return 1e-8 * pairs


def product_terms(user_items: UserItems) -> float:
    """Return the number of terms of a product of all items with all items."""
    return float((items_per_user(user_items).astype(np.float64) ** 2).sum())


def estimate_ranking_s(params: object, rows: UserItems) -> float:
    """Estimate the core seconds to rank items for the users of *rows*, as `estimate_fit_s`."""
    users, items = map(float, rows.shape)
    of_pair = 5e-9
    of_interaction = 0.0
    if isinstance(params, ALSParams):
        of_pair += 6e-11 * params.factors
    elif isinstance(params, EASEParams):
        of_interaction = 3e-10
    return items * (users * of_pair + of_interaction * float(rows.nnz))


def estimate_fit_bytes(params: object, user_items: UserItems) -> int:
    """Estimate the memory of a fit of *params* to *user_items* [users, items], besides this matrix, in bytes."""
    users, items = user_items.shape
    match params:
        case ALSParams():
            # Three copies of the matrix, measured with 22 million pairs.
            matrix = user_items.nnz * (_NUMBER_BYTES + _INDEX_BYTES) + (users + 1) * _INDEX_BYTES
            return int(3 * matrix + (users + items) * params.factors * _NUMBER_BYTES)
        case EASEParams():
            return int(4 * items**2 + 4096 * items)  # the item table, and one block in float64
        case NeighbourParams():
            return int(_NEIGHBOUR_BYTES * min(params.neighbours, items) * items)
        case _:
            return 0


def check_memory(needed: int, instead: str, room: float | None = None) -> None:
    """Raise DataError with advice *instead* if *needed* bytes exceed *room*, by default the free memory."""
    room = room_bytes() if room is None else room
    if needed > room:
        raise DataError(
            f"Learning takes about {needed / 1e9:,.1f} GB of memory, and {room / 1e9:,.1f} GB are left; give the "
            f"process more, {instead}."
        )
