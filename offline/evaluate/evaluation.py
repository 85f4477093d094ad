"""Evaluation of models and baselines on a split."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np

from hotplate.offline.evaluate.metrics import (
    ListMetrics,
    RankingMetrics,
    Spread,
    Values,
    coverage,
    measure_users,
)
from hotplate.offline.evaluate.records import BaselineRecord, EvaluationRecord, Lead
from hotplate.offline.evaluate.similar_hits import measure_similar
from hotplate.offline.evaluate.splits import Parts, lists_of_tested
from hotplate.offline.evaluate.splits import split as split_pairs
from hotplate.offline.exploration import NEW_DAYS, are_new
from hotplate.offline.input.pairs import Indices, UserItems, users_per_item
from hotplate.offline.list_encoder import check_length
from hotplate.offline.model import Model
from hotplate.offline.ruled_lists import RuledLists
from hotplate.offline.rules import Rules
from hotplate.offline.train.als import SparkParams
from hotplate.offline.train.blend import Blend
from hotplate.offline.train.engine import Params, Ranker, engine_of, fit, name_of, needs_times
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.popularity import (
    Popularity,
    PopularityParams,
    chosen_items,
    most_popular,
    recent_popularity,
)
from hotplate.offline.train.ranking import ScoresOfUsers
from hotplate.offline.train.similar import Similar, SimilarParams
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.offline.train.spec import OnIteration
from hotplate.offline.variety import ItemSimilarity
from hotplate.stores.encoding import OVERALL

# More users would cost more than the fit. Each is ranked against all items, so these pairs are bounded, too, but never
# below the minimum number of users.
MOST_TESTED = 20_000
_MOST_RANKED_PAIRS = 200_000_000
_LEAST_TESTED = 5_000
BASELINES: tuple[Params, ...] = (PopularityParams(), NeighbourParams())


class EvaluatedLists(NamedTuple):
    """Lists [users, k], and the *popular* items, best first, that users without a list are served."""

    lists: Indices
    popular: Indices

    @property
    def as_served(self) -> Indices:
        """The lists, with the first of the popular items for users without one [users, k]."""
        served = self.lists.copy()
        first = self.popular[: self.lists.shape[1]]
        served[(self.lists < 0).all(axis=1), : len(first)] = first
        return served


# Returns the lists of a fitted model under the rules of a release.
MakeLists = Callable[[Parts, Ranker, Similar | None], EvaluatedLists]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """How lists are measured.

    k           their length
    popular     half-life of the popular items that users without a list are served, if there are times
    make_lists  computes the model's lists; by default the best items that users do not have in train, and popular ones
    similar     parameters of similar items; with them, the lists' variety and the similar items are measured, too
    new_days    days after its first interaction in which an item counts as new, for the variety
    """

    k: int = 10
    popular: PopularityParams = field(default_factory=PopularityParams)
    make_lists: MakeLists | None = None
    similar: SimilarParams | None = None
    new_days: int = NEW_DAYS

    def __post_init__(self) -> None:
        check_length(self.k, "k")


class EngineResult(NamedTuple):
    """Metrics of one engine.

    metrics          of personal lists: a missing one counts with zeros
    as_served        of lists with the popular one for users without any
    served_per_user  nDCG as served by user with test items
    """

    metrics: ListMetrics
    as_served: RankingMetrics
    served_per_user: Values


def evaluate_parts(
    parts: Parts,
    params: Params,
    options: EvaluateOptions,
    *,
    baselines: Sequence[Params] = BASELINES,
    on_iteration: OnIteration | None = None,
) -> EvaluationRecord:
    """Fit a model and baselines on the train part of *parts*, and measure their lists on the test part.

    params     engine of the model with its parameters
    baselines  engines to compare with; the model's engine is skipped, but not popularity

    Neither part may be empty. At most 20,000 users are tested, drawn at random, fewer with more than 10,000 items.
    """
    testable_users = len(parts.tested)
    parts = parts.sampled(most_tested_users(parts.test.shape[1]), seed=0)

    similar_items = None
    similar_result = None
    if options.similar is not None:
        similar_items = fit_similar(parts.train, options.similar, parts.train_times)
        similar_result = measure_similar(similar_items, options.similar, parts, options.k)

    ranker = fit_parts(parts, params, on_iteration)
    model = evaluate_engine(parts, ranker, options, similar=similar_items)
    # The engines of a blend are baselines, too.
    fitted = dict[Params, Ranker]()
    if isinstance(ranker, Blend):
        fitted = dict(zip(ranker.params.parts, ranker.parts, strict=True))
    del ranker
    del similar_items  # releases memory for the baselines

    engine = engine_of(params)
    records = dict[str, BaselineRecord]()
    for baseline in baselines:
        if engine_of(baseline) == engine and not isinstance(baseline, PopularityParams):
            continue
        # Popularity is the same for everybody, users without a list of their own included.
        popular = baseline if isinstance(baseline, PopularityParams) else options.popular
        result = evaluate_engine(
            parts,
            fitted.get(baseline) or fit_parts(parts, baseline),
            replace(options, make_lists=None, popular=popular),
        )
        fields = asdict(baseline)
        records[name_of(engine_of(baseline), fields)] = baseline_record(result, fields, model)

    return msgspec.structs.replace(
        record_of(parts, engine, asdict(params), model, records),
        users_drawn_from=testable_users if testable_users > len(parts.tested) else None,
        new_days=None if options.similar is None else options.new_days,
        similar=similar_result,
    )


def baseline_record(baseline: EngineResult, params: dict[str, Any], model: EngineResult) -> BaselineRecord:
    """Return the record of a baseline with *params*, to which the *model* is compared."""
    return BaselineRecord(
        **asdict(baseline.metrics),
        params=params,
        as_served=baseline.as_served,
        model_leads_by=Lead.of(model.served_per_user - baseline.served_per_user),
    )


def record_of(
    parts: Parts, engine: str, params: dict[str, Any], model: EngineResult, baselines: dict[str, BaselineRecord]
) -> EvaluationRecord:
    """Return the record of lists measured on the test part of *parts*, beside *baselines* by name."""
    is_known = users_per_item(parts.train) > 0
    return EvaluationRecord(
        split=parts.options,
        k=model.metrics.k,
        train_pairs=int(parts.train.nnz),
        test_pairs=int(parts.test.nnz),
        cold_pairs=int(np.count_nonzero(~is_known[parts.test.indices])),
        coverage_of="items of train",
        engine=engine,
        params=params,
        model=replace(model.metrics, intervals={}),
        as_served=model.as_served,
        intervals=dict(model.metrics.intervals),
        baselines=baselines,
    )


def most_tested_users(items: int) -> int:
    """Return the number of users that an evaluation tests at most, in a catalogue of *items*."""
    return min(MOST_TESTED, max(_LEAST_TESTED, _MOST_RANKED_PAIRS // items))


def evaluate_engine(
    parts: Parts,
    ranker: Ranker,
    options: EvaluateOptions,
    *,
    similar: Similar | None = None,
) -> EngineResult:
    """Measure the lists of *ranker*, a model fitted to the train part of *parts*, on the test part.

    The lists are measured as they are, and as served: users without a list are served popular items. With the *similar*
    items of the train part, the variety of lists is measured, too: the similarity of a list's items, and the share of
    new items, those with a first interaction in the last `options.new_days` of train.
    """
    if options.make_lists is None:
        evaluated = recommend_all(ranker, parts, options.k, popularity_of(parts, options.popular))
    else:
        evaluated = options.make_lists(parts, ranker, similar)

    result = measure_lists(evaluated, parts.test, parts.train)
    if similar is None:
        return result
    tested_lists = evaluated.lists[parts.tested]
    metrics = replace(
        result.metrics,
        list_similarity=ItemSimilarity(similar).mean_within(tested_lists),
        new_items=share_of_new_items(tested_lists, parts, options.new_days),
    )
    return result._replace(metrics=metrics)


def measure_lists(evaluated: EvaluatedLists, test: UserItems, train: UserItems | None) -> EngineResult:
    """Measure lists on the pairs of *test* [users, items], alone and as served; coverage is of the items of *train*."""
    personal = measure_users(evaluated.lists, test)
    served = measure_users(evaluated.as_served, test)
    tested_lists = evaluated.lists[personal.users]
    metrics = ListMetrics(
        **asdict(personal.metrics),
        coverage=None if train is None else coverage(tested_lists, train),
        **Spread.of(tested_lists)._asdict(),
    )
    return EngineResult(metrics=metrics, as_served=served.metrics, served_per_user=served.values["ndcg"])


def popularity_of(parts: Parts, popular: PopularityParams) -> Popularity:
    """Return the popularity of items in the train part.

    If *popular* has a half-life, and the data have times, recent interactions count more.
    """
    times = None if popular.half_life_days is None else parts.train_times
    half_life_days = None if times is None else popular.half_life_days
    return Popularity(recent_popularity(parts.train, times, half_life_days).astype(np.float32))


def share_of_new_items(lists: Indices, parts: Parts, days: int) -> float | None:
    """Return the share of new items among those of *lists* [users, k]; None without times or without any item.

    An item is new if its first interaction is in the last *days* of train.
    """
    times = parts.train_times
    listed = lists[lists >= 0]
    if times is None or not len(listed):
        return None
    return float(are_new(parts.train, times, days)[listed].mean())


def fit_parts(parts: Parts, params: Params, on_iteration: OnIteration | None = None) -> Ranker:
    """Fit the engine of *params* to the train part, and return a model that has lists for the tested users.

    Users who are held out of train are folded in: the fitted model gets them with the items that they are known to
    have (`parts.seen`), without another training.
    """
    times = parts.train_times if needs_times(params) else None
    ranker = fit(parts.train, params, on_iteration, times=times)
    return ranker if parts.seen is parts.train else ranker.fold_in(parts.seen)


def recommend_all(ranker: Ranker | ScoresOfUsers, parts: Parts, k: int, popularity: Popularity) -> EvaluatedLists:
    """Return the lists [users, k] of users with test items, -1 for others, and the popular list.

    Lists that are too short are filled by *popularity*, and users without items are served the popular list.
    """
    ranked = popularity.fill(parts.seen, parts.tested, ranker.recommend(parts.seen, parts.tested, k))
    lists = lists_of_tested(parts, k, ranked.items)
    return EvaluatedLists(lists, chosen_items(popularity.counts))


def evaluate_as_published(
    model: Model, rules: Rules, length: int, *, keep_seen: bool, on_iteration: OnIteration | None = None
) -> EvaluationRecord | None:
    """Return the evaluation of the lists of *model* as they are published; None if unknown.

    A training measures lists without *rules*, *length* and *keep_seen* (whether lists may hold items that the user
    has). If these do not change the lists, its evaluation is returned.

    Else the model's parameters are fitted again to the train part of the training's split, and the lists under the
    rules are measured on the test part; with *keep_seen* and a split in time, this includes items that a user chose
    again. The result of the training is then in `as_trained`. Returns None with Spark, which is not fitted again, and
    for too few pairs.
    """
    trained = model.evaluation
    if trained is None:
        return None

    has_same_lists = not keep_seen and length >= trained.k and rules == Rules()
    if has_same_lists:
        return trained

    if trained.split is None or isinstance(model.params, SparkParams):
        return None

    split = replace(trained.split, piece=0, repeats=keep_seen and trained.split.in_time)
    parts = split_pairs(model.matrix.user_items, model.matrix.history, split)
    if parts.is_empty:
        return None

    options = EvaluateOptions(
        k=trained.k,
        make_lists=partial(_published_lists, model, rules, k=trained.k, length=length, keep_seen=keep_seen),
        similar=SimilarParams() if trained.similar is None else trained.similar.params,
        new_days=NEW_DAYS if rules.explore is None else rules.explore.days,
    )
    evaluation = evaluate_parts(parts, model.params, options, baselines=(), on_iteration=on_iteration)
    as_trained = msgspec.structs.replace(trained, baselines={})
    return msgspec.structs.replace(evaluation, similar=trained.similar, as_trained=as_trained)


def _published_lists(
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
    """Return the lists of users with test items as they would have been published when the train part ended.

    *ranker* (the fitted model) and *similar* (similar items) are fitted to the train part. Impressions after its end
    are left out, too, so that nothing of the test part is known. Of lists of *length* items, the first *k* are
    returned. *rules* (pinned items, boosts and the like) apply to them. Only with *keep_seen* may they hold items that
    the user has.
    """
    if rules.showings is not None and parts.history is not None:
        train_end = int(parts.history.times.max())
        rules = replace(rules, showings=rules.showings.until(train_end))

    train_matrix = replace(model.matrix, user_items=parts.train, history=parts.history)
    train_model = replace(
        model,
        ranker=ranker,
        matrix=train_matrix,
        popular=most_popular(train_matrix, len(model.popular.items), model.popular_half_life_days),
        segments={},
        similar=similar or model.similar,
    )
    lists_of_train = RuledLists.of(train_model, rules, length, keep_seen=keep_seen)
    popular_items = lists_of_train.popular()[OVERALL].items

    lists_of_users = lists_of_train
    if parts.seen is not parts.train:
        # Held-out users are not in train. Their lists are made for the items that they are known to have.
        seen_matrix = replace(train_matrix, user_items=parts.seen, history=None)
        lists_of_users = lists_of_train.for_users(replace(train_model, matrix=seen_matrix))

    lists = lists_of_tested(parts, k, lists_of_users.personal(parts.tested).items)
    return EvaluatedLists(lists, popular_items)
