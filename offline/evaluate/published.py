"""Evaluation of lists as they are published: under rules, at their length, and with what users have if that is kept."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from offline.evaluate.evaluation import evaluate, evaluate_parts, for_tested
from offline.evaluate.metrics import as_served
from offline.evaluate.splits import Parts, SplitOptions
from offline.input.matrix import Indices
from offline.model import Model
from offline.rules import RuledLists, Rules
from offline.train.engine import Ranker
from offline.train.popularity import most_popular
from offline.train.weighted import SparkParams
from stores.keys import OVERALL


def as_published(
    model: Model,
    rules: Rules,
    length: int,
    *,
    keep_seen: bool,
    on_iteration: Callable[[int, int], None] | None = None,
) -> dict[str, Any] | None:
    """
    Return the metrics of the lists of *model* as they are published, as an evaluation has them; None if it has none.

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
    matrix = model.matrix
    made = partial(_lists, model, partial(RuledLists, rules=rules, length=length, keep_seen=keep_seen))
    more: dict[str, Any] = {"k": before["k"], "baselines": (), "make": made, "on_iteration": on_iteration}
    if before["split"]["kind"] != "given":
        split = SplitOptions(**before["split"])
        split = replace(split, piece=0, repeats=keep_seen and split.in_time)
        found = evaluate(matrix, model.params, split, seeds=1 if split.in_time else before["runs"], **more)
    elif model.test is None:
        return None
    else:
        parts = Parts.of(matrix.user_items, model.test, matrix.history, repeats=keep_seen)
        found = evaluate_parts(parts, model.params, learnt=model.ranker, **more)
    kept = {name: value for name, value in before.items() if name != "baselines"}
    return None if found is None else found.to_json() | {"as_trained": kept}


def _lists(
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
