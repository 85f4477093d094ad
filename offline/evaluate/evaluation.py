"""Evaluation: models are learnt from one part of the data, and their lists are measured on the other part."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from offline.errors import require_at_least
from offline.evaluate.metrics import RankingMetrics, measure
from offline.evaluate.splits import Parts, SplitOptions, split
from offline.input.matrix import Indices, Matrix
from offline.train.engine import Engine, Params, Ranker, engine_of, fit
from offline.train.neighbours import NeighbourParams
from offline.train.popularity import PopularityParams

BASELINES: tuple[Params, ...] = (PopularityParams(), NeighbourParams())


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What one engine achieved; *as_served* are the metrics where those without a list get the popular one."""

    engine: Engine
    params: Params
    metrics: RankingMetrics
    as_served: RankingMetrics


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model and its baselines achieved on one split; kept in the model folder as JSON."""

    split: SplitOptions
    k: int
    train_pairs: int
    test_pairs: int
    model: EngineResult
    baselines: tuple[EngineResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; the model's metrics stand under `model` by their names."""
        return {
            "split": asdict(self.split),
            "k": self.k,
            "train_pairs": self.train_pairs,
            "test_pairs": self.test_pairs,
            "engine": self.model.engine,
            "params": asdict(self.model.params),
            "model": asdict(self.model.metrics),
            "as_served": asdict(self.model.as_served),
            "baselines": {
                each.engine: {
                    "params": asdict(each.params),
                    **asdict(each.metrics),
                    "as_served": asdict(each.as_served),
                }
                for each in self.baselines
            },
        }


def evaluate(
    matrix: Matrix,
    params: Params,
    options: SplitOptions | None = None,
    *,
    k: int = 10,
    baselines: Sequence[Params] = BASELINES,
    on_iteration: Callable[[int, int], None] | None = None,
) -> Evaluation | None:
    """
    Learn from the train part, recommend *k* items that a user does not have there, and measure them on the test part.

    Baselines with the engine of the model are left out. Returns None where there are too few pairs for both parts to
    hold any.
    """
    require_at_least("k", k)
    options = options or SplitOptions()
    parts = split(matrix.user_items, matrix.times, options)
    if parts.train.nnz == 0 or parts.test.nnz == 0:
        return None
    model = evaluate_engine(parts, params, k, on_iteration)
    others = tuple(evaluate_engine(parts, each, k) for each in baselines if engine_of(each) != model.engine)
    return Evaluation(options, k, int(parts.train.nnz), int(parts.test.nnz), model, others)


def evaluate_engine(
    parts: Parts, params: Params, k: int, on_iteration: Callable[[int, int], None] | None = None
) -> EngineResult:
    """Learn from the train part of one split, and measure the lists on its test part."""
    ranker = fit(parts.train, params, on_iteration)
    if parts.seen is not parts.train:
        ranker = ranker.fold_in(parts.seen)
    lists = recommend_all(ranker, parts, k)
    plain, served = measure(lists, parts.test), measure(as_served(lists, parts), parts.test)
    return EngineResult(engine_of(params), params, plain, served)


def recommend_all(ranker: Ranker, parts: Parts, k: int) -> Indices:
    """Return [users, k]: lists of those who have test items; -1 for all others, and where a list ends.

    Fewer than k items still make lists of k, for precision is hits / k.
    """
    tested = np.flatnonzero(np.diff(parts.test.indptr)).astype(np.int32)
    found, _ = ranker.recommend(parts.seen, tested, k)
    lists = np.full((parts.test.shape[0], k), -1, dtype=np.int32)
    lists[tested, : found.shape[1]] = found
    return lists


def as_served(lists: Indices, parts: Parts) -> Indices:
    """Return *lists* with the popular list of the train part for those who have none, as the service answers."""
    counts = np.bincount(parts.train.indices, minlength=parts.train.shape[1]).astype(np.float32)
    popular = np.lexsort((np.arange(len(counts)), -counts))[: lists.shape[1]].astype(np.int32)
    served = lists.copy()
    served[(lists < 0).all(axis=1), : len(popular)] = popular
    return served
