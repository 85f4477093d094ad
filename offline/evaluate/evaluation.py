"""Evaluation of models and baselines on a split."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from html import escape
from typing import Any, NamedTuple

import numpy as np

from hotplate.offline.evaluate.metrics import (
    ListMetrics,
    RankingMetrics,
    Values,
    coverage,
    fill_empty_lists,
    interval_of_mean,
    measure_users,
    measured,
    with_interval,
)
from hotplate.offline.evaluate.records import Lead, read_evaluation
from hotplate.offline.evaluate.splits import Parts, SplitOptions, lists_of_tested
from hotplate.offline.evaluate.splits import split as split_pairs
from hotplate.offline.input.matrix import Indices, users_per_item
from hotplate.offline.list_encoder import check_length
from hotplate.offline.model import Model
from hotplate.offline.rules import RuledLists, Rules
from hotplate.offline.train.als import SparkParams
from hotplate.offline.train.engine import Engine, Params, Ranker, engine_of, fit, name_of, needs_times
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, by_popularity, most_popular, recent_popularity
from hotplate.offline.train.similar import Similar, SimilarParams, SimilarResult, measure_similar
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.offline.variety import NEW_DAYS, ItemSimilarity, are_new
from hotplate.stores.encoding import OVERALL

# More users would cost more than the fit. The pairs (users times items) are bounded, too, but never below the minimum
# number of users.
MOST_TESTED = 20_000
_MOST_RANKED = 200_000_000
_LEAST_TESTED = 5_000
BASELINES: tuple[Params, ...] = (PopularityParams(), NeighbourParams())


class EvaluatedLists(NamedTuple):
    """Lists, and those *as_served*: with popular items for users without one. Both are [users, k]."""

    lists: Indices
    as_served: Indices


# Returns the lists of a fitted model under the rules of a release.
MakeLists = Callable[[Parts, Ranker, Similar | None], EvaluatedLists]


@dataclass(frozen=True, slots=True)
class Variety:
    """How users' lists vary.

    list_similarity  mean similarity of two items of a list, as of `ItemSimilarity`; None without lists of two items
    new_items        share of places with items of the last days; None without times
    """

    list_similarity: float | None = None
    new_items: float | None = None

    @classmethod
    def of(cls, lists: Indices, parts: Parts, similar: Similar, days: int) -> "Variety":
        """Measure *lists* [users, k] of the train part; items of its last *days* are new."""
        new_items = None
        listed = lists[lists >= 0]
        if parts.train_times is not None and len(listed):
            new_items = float(are_new(parts.train, parts.train_times, days)[listed].mean())
        return cls(ItemSimilarity(similar).mean_within(lists), new_items)


@dataclass(frozen=True, slots=True)
class EngineResult:
    """Metrics of one engine.

    metrics          of personal lists: a missing one counts with zeros
    as_served        of lists with the popular one for users without any
    per_user         nDCG by user with test items
    served_per_user  the same, as served
    """

    engine: Engine
    params: Params
    metrics: ListMetrics
    as_served: RankingMetrics
    per_user: Values
    served_per_user: Values

    @property
    def name(self) -> str:
        """The name in tables."""
        return name_of(self.engine, asdict(self.params))

    def to_json(self) -> dict[str, Any]:
        """Return the metrics that were measured as JSON values."""
        metrics = {name: value for name, value in asdict(self.metrics).items() if value is not None}
        return metrics | {"as_served": asdict(self.as_served)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of a model and its baselines.

    split       None if the test data were given
    cold_pairs  test pairs of items not in train
    leads       in the order of *baselines*
    drawn_from  number of testable users, if sampled
    new_days    within which an item's first interaction makes it new; None if variety was not measured
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
    new_days: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, the model's metrics as `model`."""
        model = self.model.to_json()
        beside = {name: model.pop(name) for name in ("as_served", "intervals")}
        return {
            "split": {"kind": "given"} if self.split is None else asdict(self.split),
            "k": self.k,
            "train_pairs": self.train_pairs,
            "test_pairs": self.test_pairs,
            "cold_pairs": self.cold_pairs,
            "users_drawn_from": self.drawn_from,
            "new_days": self.new_days,
            "engine": self.model.engine,
            "params": asdict(self.model.params),
            "model": model,
            **beside,
            "similar": None if self.similar is None else asdict(self.similar),
            "baselines": self._baselines_to_json(),
        }

    def _baselines_to_json(self) -> dict[Engine, dict[str, Any]]:
        """Return `BaselineRecord` by engine."""
        baselines: dict[Engine, dict[str, Any]] = {}
        for baseline, lead in zip(self.baselines, self.leads, strict=True):
            params = asdict(baseline.params)
            baselines[baseline.engine] = {"params": params, **baseline.to_json(), "model_leads_by": asdict(lead)}
        return baselines

    def _repr_html_(self) -> str:
        """Return a table for notebooks: a row per metric, a column for the model and each baseline."""
        columns = [_formatted(result.metrics) for result in (self.model, *self.baselines)]
        rows = [("", "model", *(baseline.name for baseline in self.baselines))]
        rows += [(name, *(column.get(name, "") for column in columns)) for name in columns[0]]
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        about = f"{self.test_pairs:,} pairs of {self.model.metrics.users:,} users held back, measured at {self.k}"
        return f"<p>{about} (± half of the 95 % interval)</p><table><tr>{'</tr><tr>'.join(cells)}</tr></table>"


def _formatted(metrics: ListMetrics) -> dict[str, str]:
    """Return the measured metrics by name, with their intervals, as texts."""
    texts = dict[str, str]()
    for metric in measured(metrics):
        texts[metric.name] = with_interval(metric.value, metrics.intervals.get(metric.name))
    return texts


def metric_names() -> dict[str, list[str]]:
    """Return the metrics' names by table of `Evaluation.to_json`."""
    tables = {"model": ListMetrics, "as_served": RankingMetrics}
    return {
        table: [field.name for field in fields(metrics) if field.name != "intervals"]
        for table, metrics in tables.items()
    }


def evaluate_parts(
    parts: Parts,
    params: Params,
    *,
    k: int = 10,
    baselines: Sequence[Params] = BASELINES,
    popular: PopularityParams | None = None,
    make: MakeLists | None = None,
    similar: SimilarParams | None = None,
    new_days: int = NEW_DAYS,
    split: SplitOptions | None = None,
    on_iteration: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Fit on the train part, recommend *k* items that users do not have there, measure on the test part.

    Neither part may be empty. At most 20,000 users are tested, drawn at random, fewer with more than 20,000 items.
    Baselines with the model's engine are left out. *popular* and *make* are those of `evaluate_engine`. With *similar*,
    similar items and the variety of lists are measured, too; items are new for *new_days*. *split* says how *parts*
    were made, None if they were given.
    """
    check_length(k, "k")
    testable = len(parts.tested)
    parts = parts.sampled(most_tested(parts.test.shape[1]), seed=0)
    similar_items = None if similar is None else fit_similar(parts.train, similar, parts.train_times)
    model = evaluate_engine(
        parts,
        params,
        k,
        on_iteration,
        popular=popular,
        make=make,
        similar=similar_items,
        new_days=new_days,
    )
    similar_result = None
    if similar is not None and similar_items is not None:
        similar_result = measure_similar(similar_items, similar, parts, k)
    del similar_items  # releases memory for the baselines

    compared = [baseline for baseline in baselines if engine_of(baseline) != model.engine]
    results = tuple(evaluate_engine(parts, baseline, k, popular=popular) for baseline in compared)
    return Evaluation(
        split=split,
        k=k,
        train_pairs=int(parts.train.nnz),
        test_pairs=int(parts.test.nnz),
        model=model,
        baselines=results,
        cold_pairs=_cold_pairs(parts),
        leads=tuple(_lead_over(model, baseline) for baseline in results),
        drawn_from=testable if testable > len(parts.tested) else None,
        similar=similar_result,
        new_days=None if similar is None else new_days,
    )


def _cold_pairs(parts: Parts) -> int:
    """Return the number of test pairs of items not in train."""
    known = users_per_item(parts.train) > 0
    return int(np.count_nonzero(~known[parts.test.indices]))


def _lead_over(model: EngineResult, baseline: EngineResult) -> Lead:
    """Return how much better *model* ranks than *baseline*, as both are served."""
    difference = model.served_per_user - baseline.served_per_user
    return Lead(float(np.mean(difference)), interval_of_mean(difference))


def most_tested(items: int) -> int:
    """Return the number of users that an evaluation tests at most, in a catalogue of *items*."""
    return min(MOST_TESTED, max(_LEAST_TESTED, _MOST_RANKED // items))


def evaluate_engine(
    parts: Parts,
    params: Params,
    k: int,
    on_iteration: Callable[[int, int], None] | None = None,
    *,
    popular: PopularityParams | None = None,
    make: MakeLists | None = None,
    similar: Similar | None = None,
    new_days: int = NEW_DAYS,
) -> EngineResult:
    """Fit one engine on the train part and measure its lists on the test part.

    Users without a list are served popular items: those with the most users or, given *popular* and times, by its
    half-life. *make* computes the lists, and the lists as served, instead. *similar* items measure the variety, too.
    """
    ranker = fit_parts(parts, params, on_iteration)
    if make is None:
        lists = recommend_all(ranker, parts, k)
        evaluated = EvaluatedLists(lists, fill_empty_lists(lists, _popular_items(parts, popular)))
    else:
        evaluated = make(parts, ranker, similar)
    personal = measure_users(evaluated.lists, parts.test)
    served = measure_users(evaluated.as_served, parts.test)
    of_tested = evaluated.lists[personal.users]
    variety = Variety() if similar is None else Variety.of(of_tested, parts, similar, new_days)
    metrics = ListMetrics(
        **asdict(personal.metrics),
        coverage=coverage(of_tested, parts.train.shape[1]),
        list_similarity=variety.list_similarity,
        new_items=variety.new_items,
    )
    return EngineResult(
        engine=engine_of(params),
        params=params,
        metrics=metrics,
        as_served=served.metrics,
        per_user=personal.values["ndcg"],
        served_per_user=served.values["ndcg"],
    )


def _popular_items(parts: Parts, popular: PopularityParams | None) -> Indices:
    """Return all items by popularity in the train part, recent popularity if *popular* has a half-life."""
    times = parts.train_times
    half_life = None if popular is None or times is None else popular.half_life_days
    return by_popularity(recent_popularity(parts.train, times, half_life))


def fit_parts(parts: Parts, params: Params, on_iteration: Callable[[int, int], None] | None = None) -> Ranker:
    """Fit, and fold in held-out users."""
    times = parts.train_times if needs_times(params) else None
    ranker = fit(parts.train, params, on_iteration, times=times)
    return ranker if parts.seen is parts.train else ranker.fold_in(parts.seen)


def recommend_all(ranker: Ranker, parts: Parts, k: int) -> Indices:
    """Return lists [users, k] of users with test items; -1 for others, and after the end."""
    return lists_of_tested(parts, k, lambda users: ranker.recommend(parts.seen, users, k).items)


def as_published(
    model: Model, rules: Rules, length: int, *, keep_seen: bool, on_iteration: Callable[[int, int], None] | None = None
) -> dict[str, Any] | None:
    """Return metrics of the lists of *model* as published, as `Evaluation.to_json`; None if unknown.

    If rules, length or *keep_seen* change the lists, the parameters are fitted again on the train part, except on
    Spark; the training's metrics are under `as_trained`. With *keep_seen*, a split in time also tests repeated choices.
    """
    trained = model.metrics
    if not trained or "model" not in trained:
        return trained
    if not keep_seen and length >= trained["k"] and rules == Rules():
        return trained
    record = read_evaluation(trained)
    if record is None or isinstance(model.params, SparkParams):
        return None
    options = SplitOptions(**trained["split"])
    options = replace(options, piece=0, repeats=keep_seen and options.in_time)
    parts = split_pairs(model.matrix.user_items, model.matrix.history, options)
    if parts.is_empty:
        return None
    evaluation = evaluate_parts(
        parts,
        model.params,
        split=options,
        k=record.k,
        baselines=(),
        make=partial(_lists_as_published, model, rules, k=record.k, length=length, keep_seen=keep_seen),
        similar=SimilarParams() if record.similar is None else record.similar.params,
        new_days=NEW_DAYS if rules.explore is None else rules.explore.days,
        on_iteration=on_iteration,
    )
    as_trained = {name: value for name, value in trained.items() if name != "baselines"}
    return evaluation.to_json() | {"similar": trained.get("similar"), "as_trained": as_trained}


def _lists_as_published(
    model: Model,
    rules: Rules,
    parts: Parts,
    ranker: Ranker,
    similar: Similar | None,
    *,
    k: int,
    length: int,
    keep_seen: bool,
) -> EvaluatedLists:
    """Return the lists of users with test items, under *rules*, of a model that learnt from the train part alone.

    *ranker* and *similar* are fitted to the train part; *length* is that of the lists, of which *k* items count.
    """
    matrix = replace(model.matrix, user_items=parts.train, history=parts.history)
    learnt = replace(
        model,
        ranker=ranker,
        matrix=matrix,
        popular=most_popular(matrix, len(model.popular.items), model.popular_half_life_days),
        segments={},
        similar=similar or model.similar,
    )
    if rules.showings is not None and parts.history is not None:
        cut = int(parts.history.times.max())
        rules = replace(rules, showings=rules.showings.until(cut))
    ruled = RuledLists.of(learnt, rules, length, keep_seen=keep_seen)
    everybody = ruled.popular()[OVERALL].items
    if parts.seen is not parts.train:
        folded_in = replace(matrix, user_items=parts.seen, history=None)
        ruled = ruled.for_users(replace(learnt, matrix=folded_in))
    lists = lists_of_tested(parts, k, lambda users: ruled.personal(users).items)
    return EvaluatedLists(lists, fill_empty_lists(lists, everybody))
