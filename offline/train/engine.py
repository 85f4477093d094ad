"""Engines by name: their parameters and fits."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from hotplate.offline.errors import DataError, MemoryShortage, SettingError
from hotplate.offline.input.columns import named_values, parse_half_life
from hotplate.offline.input.history import Times
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.train.als import ALS, FACTOR_ARRAYS, ALSParams, Factors, SparkParams
from hotplate.offline.train.blend import Blend, BlendParams
from hotplate.offline.train.item_based import (
    EASE,
    EASE_ENGINE,
    NEIGHBOURS,
    EASEParams,
    NeighbourParams,
    Neighbours,
)
from hotplate.offline.train.popularity import POPULARITY, Popularity, PopularityParams
from hotplate.offline.train.ranking import RecentWeights, ScoresOfUsers
from hotplate.offline.train.spec import EngineSpec, OnIteration
from hotplate.stores.folders import room_bytes

# The engine blend is made of others; only a search chooses it.
Engine = Literal["als", "ease", "neighbours", "popularity", "blend", "spark"]
Params: TypeAlias = ALSParams | SparkParams | EASEParams | NeighbourParams | PopularityParams | BlendParams
# A fitted model; its users and items are those of its matrix.
Ranker: TypeAlias = Factors | EASE | Neighbours | Popularity | Blend
ScoringT = TypeVar("ScoringT", bound=Ranker | ScoresOfUsers)


def _fit_on_spark(
    user_items: UserItems, params: SparkParams, on_iteration: OnIteration | None, _times: object
) -> Factors:
    from hotplate.offline.train import spark  # noqa: PLC0415 -- an extra

    return spark.fit(user_items, params, on_iteration)


def _fit_blend(
    user_items: UserItems, params: BlendParams, on_iteration: OnIteration | None, times: Times | None
) -> Blend:
    return Blend(tuple(fit(user_items, part, on_iteration, times=times) for part in params.parts), params)


BLEND = EngineSpec(
    params=BlendParams,
    ranker=Blend,
    fit=_fit_blend,
    arrays=(),
    varied=lambda params: {"als": 1, "neighbours": 1, "popularity": params.popularity_weight},
    fit_s=lambda params, user_items: sum(estimate_fit_s(part, user_items) for part in params.parts),
    fit_bytes=lambda params, user_items: sum(estimate_fit_bytes(part, user_items) for part in params.parts),
    ranking_s=lambda params, rows: sum(estimate_ranking_s(part, rows) for part in params.parts),
    memory_advice="or learn with --engine als",
)
# Declared here because the module needs an extra. The cluster has the work and the memory; it is not searched.
SPARK = EngineSpec(
    params=SparkParams,
    ranker=Factors,
    fit=_fit_on_spark,
    arrays=FACTOR_ARRAYS,
)
# The specs are of different types, so they are not checked where they are called.
ENGINES: dict[Engine, EngineSpec[Any, Any]] = {
    "als": ALS,
    "ease": EASE_ENGINE,
    "neighbours": NEIGHBOURS,
    "popularity": POPULARITY,
    "blend": BLEND,
    "spark": SPARK,
}
_NAMES: dict[type[Params], Engine] = {spec.params: name for name, spec in ENGINES.items()}


def engine_of(params: Params) -> Engine:
    """Return the engine of *params*; SettingError for what are no parameters of one."""
    engine = _NAMES.get(type(params))
    if engine is None:
        kinds = ", ".join(kind.__name__ for kind in _NAMES)
        raise SettingError(f"params is {params!r}; it must be ALSParams(factors=64), or another of {kinds}.")
    return engine


def spec_of(params: Params) -> EngineSpec[Any, Any]:
    """Return the declaration of the engine of *params*."""
    return ENGINES[engine_of(params)]


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

    An engine is an algorithm, such as `als`. `recency` is the half-life of the recent popularity that multiplies
    scores, and `gamma` its power. Parameters that are not named have their defaults; engines with a seed take *seed*.
    Raises SettingError.
    """
    values = dict[str, Any]()
    for pair in named_values(text):
        if pair.name or pair.value:
            values[pair.name] = re.sub(r"^\.", "0.", pair.value)  # msgspec reads no .5

    # The fields of the parameters: a record for recency, and half-lives in days.
    if "recency" in values:
        gamma = values.pop("gamma", 1)
        values["recency"] = {"half_life_days": _half_life_days(values["recency"]), "gamma": gamma}
    if "half_life" in values:
        values["half_life_days"] = _half_life_days(values.pop("half_life"))

    kind: type[Params] = ENGINES[engine].params
    if any(field.name == "seed" for field in fields(kind)):
        values.setdefault("seed", seed)
    try:
        params = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"--params {text} cannot be read: {error}.") from error
    _check_names(engine, values, params)
    return params


def _check_names(engine: object, values: Mapping[str, Any], params: Any) -> None:  # noqa: ANN401 -- any dataclass
    """Raise SettingError if *values*, from which *params* of *engine* were read, have others, also in their tables."""
    known = {field.name for field in fields(params)}
    unknown = values.keys() - known
    if unknown:
        names = sorted(name.removesuffix("_days") for name in known)
        if "recency" in known:
            names.append("gamma")
        raise SettingError(
            f"params: the engine {engine} has no {', '.join(sorted(unknown))}; it has {', '.join(names)}."
        )
    for name, value in values.items():
        if isinstance(value, dict):
            _check_names(engine, value, getattr(params, name))


def _half_life_days(text: str) -> float:
    return parse_half_life(text) / timedelta(days=1)


def _described_params(params: Params) -> dict[str, str]:
    """Return the parameters that a search varies as texts by name: `{"factors": "64", "recency": "7d", "gamma": "1"}`.

    `read_params` reads them. Half-lives are in days. Iterations and seed are left out.
    """
    values = spec_of(params).varied(params)
    recency = params.recency
    if recency is not None:
        values |= {"recency": f"{recency.half_life_days:g}d", "gamma": recency.gamma}
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def without_recency(params: Params) -> Params:
    """Return *params* whose scores are not multiplied."""
    return params if params.recency is None else replace(params, recency=None)


def needs_times(params: Params) -> bool:
    """Return whether a fit needs the times of pairs."""
    if isinstance(params, PopularityParams):
        return params.half_life_days is not None
    if isinstance(params, BlendParams):
        return any(needs_times(part) for part in params.parts)
    return params.recency is not None


def params_class(engine: object) -> type[Params]:
    """Return the parameters' class; DataError for an unknown engine."""
    for name, spec in ENGINES.items():
        if name == engine:
            return spec.params
    raise DataError(f"The engine {engine!r} is not known; this hotplate has {', '.join(ENGINES)}.")


def params_from(engine: object, values: dict[str, Any]) -> Params:
    """Return parameters from JSON values; DataError for an unknown engine, SettingError for unknown parameters."""
    params = msgspec.convert(values, params_class(engine))
    _check_names(engine, values, params)
    return params


def fit(
    user_items: UserItems,
    params: Params,
    on_iteration: OnIteration | None = None,
    *,
    times: Times | None = None,
) -> Ranker:
    """Fit the engine (algorithm) of *params* to *user_items* on all cores, or in the Spark session.

    user_items    float32 csr_matrix [users, items], canonical, above zero
    on_iteration  called with the iterations done and their total, by engines that have any
    times         of the pairs, in the order of user_items.data; popularity with a half-life, and recency, need them

    Returns the fitted model. With recency, it multiplies scores by recent popularity. Raises DataError for an invalid
    matrix and too little memory.
    """
    spec = spec_of(params)
    check_memory(spec.fit_bytes(params, user_items), spec.memory_advice)
    ranker: Ranker = spec.fit(user_items, params, on_iteration, times)
    if params.recency is None:
        return ranker
    return with_recency(ranker, params.recency.weights(user_items, times))


def with_recency(ranker: ScoringT, weights: RecentWeights) -> ScoringT:
    """Return *ranker* with scores combined with recent popularity; popularity is unchanged."""
    return ranker if isinstance(ranker, Popularity | Blend) else replace(ranker, recent=weights)


def estimate_fit_s(params: Params, user_items: UserItems) -> float:
    """Estimate the seconds of a fit of *params* to *user_items* on one core; its factors were measured on a Xeon."""
    return spec_of(params).fit_s(params, user_items)


def estimate_ranking_s(params: Params, rows: UserItems) -> float:
    """Estimate the core seconds to rank items for the users of *rows*, as `estimate_fit_s`."""
    return spec_of(params).ranking_s(params, rows)


def estimate_fit_bytes(params: Params, user_items: UserItems) -> int:
    """Estimate the memory of a fit of *params* to *user_items* [users, items], besides this matrix, in bytes."""
    return spec_of(params).fit_bytes(params, user_items)


def check_memory(needed: int, instead: str) -> None:
    """Raise MemoryShortage with advice *instead* if *needed* bytes exceed the free memory."""
    room = room_bytes()
    if needed > room:
        raise MemoryShortage(
            f"Learning takes about {needed / 1e9:,.1f} GB of memory, and {room / 1e9:,.1f} GB are left; give the "
            f"process more, {instead}."
        )
