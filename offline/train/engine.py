"""Engines: what can be learnt from a matrix, what that takes, and what ranks items for users once it is learnt."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from hotplate.offline.errors import DataError
from hotplate.offline.input.matrix import Floats, Times, UserItems
from hotplate.offline.train import als, ease, neighbours, popularity
from hotplate.offline.train.als import ALSParams, Factors, SparkParams
from hotplate.offline.train.ease import EASE, EASEParams
from hotplate.offline.train.neighbours import NeighbourParams, Neighbours
from hotplate.offline.train.popularity import Popularity, PopularityParams, Recency
from hotplate.stores.file.memory import room_bytes

Engine = Literal["als", "ease", "neighbours", "popularity", "spark"]
Params: TypeAlias = ALSParams | SparkParams | EASEParams | NeighbourParams | PopularityParams
# What an engine has learnt, of which lists are made as `hotplate.offline.train.ranking` says. Rows of users and columns
# of items are those of the matrix that it learnt from, or of the users that were folded in.
Ranker: TypeAlias = Factors | EASE | Neighbours | Popularity

PARAMS: dict[Engine, type[Params]] = {
    "als": ALSParams,
    "ease": EASEParams,
    "neighbours": NeighbourParams,
    "popularity": PopularityParams,
    "spark": SparkParams,
}

# What a search leaves as it is, and options that are not named as their parameters are.
_ALIKE = frozenset({"iterations", "seed", "recency"})
_OPTIONS = {"weighting": "neighbour-weighting", "half_life_days": "popular-half-life"}
# What helps an engine that memory is too small for, besides more of it.
_LESS_MEMORY = {
    "als": "lower --factors, raise --min-per-user and --min-per-item, or learn on a Spark cluster with --engine spark",
    "ease": "raise --min-per-item, or learn with --engine als",
}
_INDEX_BYTES = 4
_NUMBER_BYTES = 4


def engine_of(params: Params) -> Engine:
    """Return the engine whose parameters these are."""
    return next(engine for engine, kind in PARAMS.items() if isinstance(params, kind))


def described(params: Params) -> str:
    """Return the engine and what was chosen of it: `neighbours (neighbours 5, weighting tfidf)`."""
    chosen = ", ".join(f"{name.removeprefix('neighbour-')} {value}" for name, value in _chosen(params).items())
    return f"{engine_of(params)} ({chosen})" if chosen else engine_of(params)


def as_options(params: Params) -> str:
    """Return the options of the command that choose *params*."""
    options = (f" --{name} {value}" for name, value in _chosen(params).items())
    return f"--engine {engine_of(params)}{''.join(options)}"


def _chosen(params: Params) -> dict[str, str]:
    """Return what tells *params* from others of their engine, by the names of the command's options."""
    found = {name: value for name, value in asdict(params).items() if name not in _ALIKE and value is not None}
    if isinstance(params, NeighbourParams) and params.weighting != "rp3beta":
        found = {"neighbours": params.neighbours, "weighting": params.weighting}
    if (recency := recency_of(params)) is not None:
        found |= {"recency": f"{recency.half_life_days:g}d", "recency-gamma": recency.gamma}
    if isinstance(params, PopularityParams) and params.half_life_days is not None:
        found = {"half_life_days": f"{params.half_life_days:g}d"}
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in found.items()}
    return {option_of(name): text for name, text in texts.items()}


def option_of(name: str) -> str:
    """Return the option of the command, without its dashes, that gives the parameter *name*."""
    return _OPTIONS.get(name, name.replace("_", "-"))


def recency_of(params: Params) -> Recency | None:
    """Return the recency by which scores are multiplied; None if they are not."""
    return None if isinstance(params, PopularityParams) else params.recency


def needs_times(params: Params) -> bool:
    """Return whether it counts when pairs began."""
    return params.half_life_days is not None if isinstance(params, PopularityParams) else params.recency is not None


def params_class(engine: object) -> type[Params]:
    """Return the class of the parameters of *engine*, as a model or a file names it; DataError if it is unknown."""
    for name, kind in PARAMS.items():
        if name == engine:
            return kind
    raise DataError(f"The engine {engine!r} is not known; this hotplate has {', '.join(PARAMS)}.")


def params_from(engine: object, values: dict[str, Any]) -> Params:
    """Return the parameters of *engine* that a model or a file says; raises DataError for an engine that is unknown."""
    given = values.get("recency")
    return params_class(engine)(**values if given is None else values | {"recency": Recency(**given)})


def fit(
    user_items: UserItems,
    params: Params,
    on_iteration: Callable[[int, int], None] | None = None,
    *,
    times: Times | None = None,
) -> Ranker:
    """Learn from *user_items* (float32 csr_matrix, canonical, above zero) on all cores.

    *times* are when its pairs began, in the order of its data; a half-life needs them. *on_iteration* is called with
    (done, total). On Spark the session is used that is open. Raises DataError for a matrix that cannot be
    learnt from, and if the memory that it takes is not there.
    """
    check_memory(fit_bytes(params, user_items), _LESS_MEMORY.get(engine_of(params), ""))
    ranker: Ranker
    match params:
        case ALSParams():
            ranker = als.fit(user_items, params, on_iteration)
        case SparkParams():
            from hotplate.offline.spark import training  # noqa: PLC0415 -- an extra: only its users need it

            ranker = training.fit(user_items, params, on_iteration)
        case EASEParams():
            ranker = ease.fit(user_items, params)
        case NeighbourParams():
            ranker = neighbours.fit(user_items, params)
        case PopularityParams():
            ranker = popularity.fit(user_items, params, times)
    if on_iteration is not None and not isinstance(params, ALSParams | SparkParams):
        on_iteration(1, 1)
    recency = recency_of(params)
    return ranker if recency is None else with_recency(ranker, recency.weights(user_items, times))


def with_recency(ranker: Ranker, weights: Floats) -> Ranker:
    """Return *ranker* with the scores of users' lists multiplied by *weights* [items]; popularity stays as it is."""
    return ranker if isinstance(ranker, Popularity) else replace(ranker, recent=weights)


def fit_s(params: object, user_items: UserItems) -> float:
    """Return about how many seconds of a core a fit takes; measured on an Intel Xeon."""
    together = float((np.diff(user_items.indptr).astype(np.float64) ** 2).sum())  # pairs of items that users have
    match params:
        case ALSParams():
            return 5e-10 * params.iterations * params.factors**2 * float(sum(user_items.shape))
        case EASEParams():
            return 1.1e-11 * float(user_items.shape[1]) ** 3 + 1.8e-8 * together
        case NeighbourParams():
            return 3e-8 * together
        case _:
            return 1e-8 * float(user_items.nnz)


def rank_s(params: object, rows: UserItems) -> float:
    """Return about how many seconds of a core the lists take of the users who have *rows* [users, items]."""
    users, items = map(float, rows.shape)
    of_pair = 5e-9 + (6e-11 * params.factors if isinstance(params, ALSParams) else 0)
    return items * (users * of_pair + (3e-10 * float(rows.nnz) if isinstance(params, EASEParams) else 0))


def fit_bytes(params: object, user_items: UserItems) -> int:
    """Return about how many bytes a fit takes besides the matrix that it learns from."""
    users, items = user_items.shape
    match params:
        case ALSParams():
            # Three more of the matrix (with confidences, turned round, and on the way there) and the factors: measured
            # with 22 million pairs.
            matrix = user_items.nnz * (_NUMBER_BYTES + _INDEX_BYTES) + (users + 1) * _INDEX_BYTES
            return int(3 * matrix + (users + items) * params.factors * _NUMBER_BYTES)
        case EASEParams():
            return int(4 * items**2 + 4096 * items)  # a table of items by items, and a block of it in float64
        case _:
            return 0


def check_memory(needed: int, instead: str, room: float | None = None) -> None:
    """Raise DataError if *needed* bytes are more than the *room*: by default what machine and cgroups have left.

    *instead* is what else would help than more memory.
    """
    room = room_bytes() if room is None else room
    if needed > room:
        raise DataError(
            f"Learning takes about {needed / 1e9:,.1f} GB of memory, and {room / 1e9:,.1f} GB are left; give the "
            f"process more, {instead}."
        )
