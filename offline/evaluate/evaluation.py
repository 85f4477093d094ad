"""Evaluation: models are learnt from one part of the data, and their lists are measured on the other part.

Also of lists as they are published: under rules, at their length, and with what users have if that is kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from html import escape
from typing import Any

import numpy as np

from hotplate.offline.evaluate.metrics import (
    ListMetrics,
    MetricInterval,
    RankingMetrics,
    Values,
    as_served,
    interval,
    measure_lists,
    measure_users,
)
from hotplate.offline.evaluate.splits import Parts, SplitOptions, for_tested, split
from hotplate.offline.input.matrix import Indices, Matrix, users_per_item
from hotplate.offline.list_encoder import check_length
from hotplate.offline.model import Model
from hotplate.offline.rules import RuledLists, Rules
from hotplate.offline.train.als import SparkParams
from hotplate.offline.train.engine import Engine, Params, Ranker, engine_of, fit, needs_times
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, by_popularity, most_popular, recent_popularity
from hotplate.offline.train.similar import SimilarParams, SimilarResult, measure
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.stores.keys import OVERALL

# The metrics of so many users have intervals of a few percent; to rank more would cost more than the fit. Of a large
# catalogue fewer are ranked, so that there are at most so many pairs of user and item, but not fewer than the least.
MOST_TESTED = 20_000
_MOST_RANKED = 400_000_000
_LEAST_TESTED = 5_000
BASELINES: tuple[Params, ...] = (PopularityParams(), NeighbourParams())
# Makes [users, k] from what was learnt of a split: the users' own lists, and what they are served.
MakeLists = Callable[[Parts, Ranker, int], tuple[Indices, Indices]]


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What one engine achieved; *as_served* are the metrics where those without a list get the popular one.

    *per_user* is the nDCG of each.
    """

    engine: Engine
    params: Params
    metrics: RankingMetrics
    as_served: RankingMetrics
    lists: ListMetrics
    per_user: Values

    def to_json(self) -> dict[str, Any]:
        """Return what was measured as plain JSON values, under the names of the metrics."""
        return {**asdict(self.metrics), **asdict(self.lists), "as_served": asdict(self.as_served)}


@dataclass(frozen=True, slots=True)
class Lead:
    """By how much the model's nDCG is above a baseline's; *interval* is of the difference, user by user."""

    ndcg: float
    interval: MetricInterval | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model and its baselines achieved; kept in the model folder as JSON.

    *split* is None if the test data were given. *cold_pairs* of the test are of items without an interaction in train,
    which no engine can find. *leads* are in the order of *baselines*. *drawn_from* is the number of users that could be
    tested, if only some of them were; *similar* is how good the lists of similar items are.
    """

    split: SplitOptions | None
    k: int
    train_pairs: int
    test_pairs: int
    model: EngineResult
    baselines: tuple[EngineResult, ...]
    cold_pairs: int = 0
    leads: tuple[Lead, ...] = ()
    drawn_from: int | None = None
    similar: SimilarResult | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; the model's metrics stand under `model` by their names."""
        model = self.model.to_json()
        beside = {name: model.pop(name) for name in ("as_served", "intervals")}
        return {
            "split": {"kind": "given"} if self.split is None else asdict(self.split),
            "k": self.k,
            "train_pairs": self.train_pairs,
            "test_pairs": self.test_pairs,
            "cold_pairs": self.cold_pairs,
            "users_drawn_from": self.drawn_from,
            "engine": self.model.engine,
            "params": asdict(self.model.params),
            "model": model,
            **beside,
            "similar": None if self.similar is None else asdict(self.similar),
            "baselines": {
                each.engine: {"params": asdict(each.params), **each.to_json(), "model_leads_by": asdict(lead)}
                for each, lead in zip(self.baselines, self.leads, strict=True)
            },
        }

    def _repr_html_(self) -> str:
        """Return the metrics of the model and its baselines as a table, for a cell of a notebook."""
        shown = [self.model, *self.baselines]
        rows = [("", "model", *(each.engine for each in self.baselines))]
        rows += metric_rows([each.to_json() for each in shown])
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        about = f"{self.test_pairs:,} pairs of {self.model.metrics.users:,} users held back, measured at {self.k}"
        return f"<p>{about} (± half of the 95 % interval)</p><table><tr>{'</tr><tr>'.join(cells)}</tr></table>"


def metric_rows(measured: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each metric, with a column for each engine, whose figures and `intervals` are by their names."""
    for name, value in measured[0].items():
        if isinstance(value, float):
            yield name, *(with_interval(each.get(name), each.get("intervals", {}).get(name)) for each in measured)


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Return a metric with half of its interval of 95 %, if there is one; nothing for None."""
    if value is None:
        return ""
    return f"{value:.4f}" if interval is None else f"{value:.4f} ± {(interval[1] - interval[0]) / 2:.4f}"


def metric_names() -> dict[str, list[str]]:
    """Return what an evaluation of a training measures at most: names of metrics, by the tables of its JSON."""
    ranking = [field.name for field in fields(RankingMetrics) if field.name != "intervals"]
    return {"model": [*ranking, *(field.name for field in fields(ListMetrics))], "as_served": ranking}


def evaluate(
    matrix: Matrix,
    params: Params,
    options: SplitOptions | None = None,
    *,
    k: int = 10,
    baselines: Sequence[Params] = BASELINES,
    popular: PopularityParams | None = None,
    make: MakeLists | None = None,
    similar: SimilarParams | None = None,
    on_iteration: Callable[[int, int], None] | None = None,
) -> Evaluation | None:
    """Learn from the train part, recommend *k* items that users do not have there, and measure them on the test part.

    Users without a list are served what is *popular*, unless *make* makes the lists. Lists of *similar* items are
    measured, too. Baselines with the engine of the model are left out. Returns None if the split leaves a part without
    pairs.
    """
    options = options or SplitOptions("by-item" if matrix.history is None else "by-time")
    check_length(k, "k")
    parts = split(matrix.user_items, matrix.history, options)
    if parts.train.nnz == 0 or parts.test.nnz == 0:
        return None
    more: dict[str, Any] = {"popular": popular, "make": make, "similar": similar, "on_iteration": on_iteration}
    return replace(evaluate_parts(parts, params, k=k, baselines=baselines, **more), split=options)


def evaluate_parts(
    parts: Parts,
    params: Params,
    *,
    k: int = 10,
    baselines: Sequence[Params] = BASELINES,
    popular: PopularityParams | None = None,
    make: MakeLists | None = None,
    similar: SimilarParams | None = None,
    on_iteration: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate on *parts* that were split already, or read from files of their own; both must hold pairs.

    At most 20,000 users are tested, drawn at random, fewer with more than 20,000 items.
    """
    testable = int(np.count_nonzero(np.diff(parts.test.indptr)))
    most = min(MOST_TESTED, max(_LEAST_TESTED, _MOST_RANKED // parts.test.shape[1]))
    parts = parts.sampled(most, seed=0)
    model = evaluate_engine(parts, params, k, on_iteration, popular=popular, make=make)
    others = [each for each in baselines if engine_of(each) != model.engine]
    results = tuple(evaluate_engine(parts, each, k, popular=popular) for each in others)
    known = users_per_item(parts.train) > 0
    return Evaluation(
        split=None,
        k=k,
        train_pairs=int(parts.train.nnz),
        test_pairs=int(parts.test.nnz),
        model=model,
        baselines=results,
        cold_pairs=int(np.count_nonzero(~known[parts.test.indices])),
        leads=tuple(_lead(model.per_user - each.per_user) for each in results),
        drawn_from=testable if testable > most else None,
        similar=None if similar is None else _measure_similar(parts, similar, k),
    )


def evaluate_engine(
    parts: Parts,
    params: Params,
    k: int,
    on_iteration: Callable[[int, int], None] | None = None,
    *,
    popular: PopularityParams | None = None,
    make: MakeLists | None = None,
) -> EngineResult:
    """Learn from the train part of one split, and measure the lists on its test part.

    Users without a list are served what is *popular*, by default what the most users have. See `evaluate` of *make*.
    """
    ranker = fit_parts(parts, params, on_iteration)
    if make is None:
        lists, times = recommend_all(ranker, parts, k), parts.train_times
        half_life = None if popular is None or times is None else popular.half_life_days
        whole = as_served(lists, by_popularity(recent_popularity(parts.train, times, half_life)))
    else:
        lists, whole = make(parts, ranker, k)
    plain, served = measure_users(lists, parts.test), measure_users(whole, parts.test)
    return EngineResult(
        engine_of(params),
        params,
        plain.metrics,
        served.metrics,
        measure_lists(lists[plain.users], parts.train),
        plain.values["ndcg"],
    )


def fit_parts(parts: Parts, params: Params, on_iteration: Callable[[int, int], None] | None = None) -> Ranker:
    """Learn from the train part, and fold in the users that were held out, if the split held any."""
    times = parts.train_times if needs_times(params) else None
    ranker = fit(parts.train, params, on_iteration, times=times)
    return ranker if parts.seen is parts.train else ranker.fold_in(parts.seen)


def recommend_all(ranker: Ranker, parts: Parts, k: int) -> Indices:
    """Return [users, k]: lists of those who have test items; -1 for all others, and where a list ends.

    Fewer than k items still make lists of k, for precision is hits / k.
    """
    return for_tested(parts, k, lambda users: ranker.recommend(parts.seen, users, k)[0])


def _measure_similar(parts: Parts, params: SimilarParams, k: int) -> SimilarResult:
    return measure(fit_similar(parts.train, params, parts.train_times), params, parts, k)


def _lead(differences: Values) -> Lead:
    return Lead(float(np.mean(differences)), interval(differences))


def as_published(
    model: Model,
    rules: Rules,
    length: int,
    *,
    keep_seen: bool,
    on_iteration: Callable[[int, int], None] | None = None,
) -> dict[str, Any] | None:
    """Return the metrics of the lists of *model* as they are published, as an evaluation has them; None if it has none.

    If these are other lists than those that were measured, the model's parameters learn once more from what the
    evaluation learnt from, and the lists for its test are made as `ModelLists` makes them. The metrics from before then
    stand below `as_trained`, without baselines. If users keep what they have, the test of a split in time is what they
    chose next, bought before or not. A model of Spark has no such metrics, because a fit takes a cluster.
    """
    before = model.metrics
    if not before or "model" not in before:
        return before
    if not keep_seen and length >= before["k"] and rules == Rules():
        return before
    if isinstance(model.params, SparkParams):
        return None
    made = partial(_published, model, partial(RuledLists, rules=rules, length=length, keep_seen=keep_seen))
    more: dict[str, Any] = {"k": before["k"], "baselines": (), "make": made, "on_iteration": on_iteration}
    split = SplitOptions(**before["split"])
    found = evaluate(model.matrix, model.params, replace(split, piece=0, repeats=keep_seen and split.in_time), **more)
    kept = {name: value for name, value in before.items() if name != "baselines"}
    if found is None:
        return None
    return found.to_json() | {"similar": before.get("similar"), "as_trained": kept}


def _published(
    model: Model, under_rules: Callable[[Model], RuledLists], parts: Parts, ranker: Ranker, k: int
) -> tuple[Indices, Indices]:
    """Return the lists of tested users, and what they are served, both [users, k]."""
    matrix = replace(model.matrix, user_items=parts.train, history=parts.history)
    popular = most_popular(matrix, len(model.popular.items), model.popular_half_life_days)
    learnt = replace(model, ranker=ranker, matrix=matrix, popular=popular, segments={})
    ruled = under_rules(learnt)
    everybody = ruled.popular()[OVERALL].items
    if parts.seen is not parts.train:
        ruled = ruled.for_users(replace(learnt, matrix=replace(matrix, user_items=parts.seen, history=None)))
    lists = for_tested(parts, k, lambda users: ruled.personal(users)[0])
    return lists, as_served(lists, everybody)
