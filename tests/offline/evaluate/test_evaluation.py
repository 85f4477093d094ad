"""Evaluation: metrics of each engine's lists, with intervals."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from msgspec import structs
from scipy.sparse import csr_matrix

from hotplate.offline.evaluate.evaluation import (
    EvaluateOptions,
    evaluate_engine,
    evaluate_parts,
    fit_parts,
    popularity_of,
    recommend_all,
)
from hotplate.offline.evaluate.metrics import measure_users
from hotplate.offline.evaluate.model_report import answer_in_words, certainty
from hotplate.offline.evaluate.records import metric_names
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.history import History
from hotplate.offline.input.matrix import Matrix, to_matrix
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.input.sample import sample
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.blend import BlendParams
from hotplate.offline.train.engine import Params, Ranker, fit
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams
from hotplate.offline.train.similar import SimilarParams
from hotplate.offline.train.spec import OnIteration
from tests.support.interactions import evaluate

PARAMS = ALSParams(factors=4, iterations=3)
RANKING = {"precision", "recall", "recall_at_k", "map", "ndcg", "mrr", "hit_rate"}


def board(users: int = 60, items: int = 30, seed: int = 1) -> UserItems:
    """Return a checkerboard with gaps: users like items of the same parity."""
    rng = np.random.default_rng(seed)
    same = (np.arange(users)[:, None] + np.arange(items)) % 2 == 0
    return csr_matrix((same & (rng.random((users, items)) < 0.7)).astype(np.float32))


def matrix_of(user_items: UserItems) -> Matrix:
    users, items = (
        [f"{prefix}{at:04}" for at in range(size)] for prefix, size in zip("ui", user_items.shape, strict=True)
    )
    times = np.random.default_rng(2).integers(0, 10**9, user_items.nnz)
    return Matrix(users, items, user_items, History.of(user_items, times))


def test_a_report_holds_each_engine_with_intervals_and_leads() -> None:
    matrix = matrix_of(board())
    evaluation = evaluate(matrix, PARAMS, SplitOptions("by-user", 0.3), k=5)
    parts = split(matrix.user_items, matrix.history, SplitOptions("by-user", 0.3))
    whole_model = replace(evaluation.model, intervals=evaluation.intervals)
    assert whole_model == evaluate_engine(parts, fit_parts(parts, PARAMS), EvaluateOptions(k=5)).metrics
    for metrics in (whole_model, *evaluation.baselines.values()):
        low, high = metrics.intervals["ndcg"]
        assert low <= metrics.ndcg <= high
        assert metrics.intervals.keys() == RANKING
    for baseline in evaluation.baselines.values():
        lead = baseline.model_leads_by
        assert lead.ndcg == pytest.approx(evaluation.as_served.ndcg - baseline.as_served.ndcg)
        assert lead.interval is not None
        assert lead.interval[0] <= lead.ndcg <= lead.interval[1]
    assert [*evaluation.baselines] == ["popularity", "neighbours"]


def test_an_evaluation_of_one_user_is_told_without_an_interval() -> None:
    record = evaluate(matrix_of(board(users=20)), PARAMS, k=5)
    of_one_user = structs.replace(record, as_served=replace(record.as_served, intervals={}))
    assert certainty(of_one_user) == "no interval is known, as it takes two users"


def test_the_json_of_a_report_has_all_metrics_under_their_names() -> None:
    report = evaluate(matrix_of(board()), PARAMS, k=5, similar=SimilarParams())
    facts = json.loads(json.dumps(report.to_json()))
    assert facts["model"]["ndcg"] == report.model.ndcg
    assert facts["model"]["coverage"] == report.model.coverage
    assert facts["as_served"]["ndcg"] == report.as_served.ndcg
    assert facts["intervals"]["ndcg"] == list(report.intervals["ndcg"])
    assert facts["split"] == asdict(SplitOptions())
    measured = {f"{table}.{name}" for table in ("model", "as_served") for name in facts[table].keys() - {"intervals"}}
    assert measured == set(metric_names(has_similar=False))
    assert set(metric_names(has_similar=True)) <= set(report.metrics)
    popular = facts["baselines"]["popularity"]
    assert popular["ndcg"] == report.baselines["popularity"].ndcg
    assert popular["as_served"]["intervals"].keys() == RANKING
    assert popular["model_leads_by"]["ndcg"] == report.baselines["popularity"].model_leads_by.ndcg


def test_users_without_a_list_get_recent_popular_items_on_request() -> None:
    train, test = (
        csr_matrix(np.array(rows, dtype=np.float32))
        for rows in (
            [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
        )
    )
    days = np.array([0, 1, 0, 1, 2, 2, 50, 51]) * 86_400_000_000
    parts = Parts.of(train, test, History.of(train, days))
    evaluations = {
        days: evaluate_engine(parts, fit_parts(parts, PARAMS), EvaluateOptions(k=2, popular=PopularityParams(days)))
        for days in (None, 3.0)
    }
    assert [evaluation.metrics.ndcg for evaluation in evaluations.values()] == [0, 0]
    assert evaluations[None].as_served.ndcg == 0, "items 0 and 1 have been chosen most"
    assert evaluations[3.0].as_served.ndcg == 1, "item 3 was chosen last"


def test_users_without_a_list_score_zero_and_are_served_popular_items() -> None:
    whole = board().toarray()
    cold = np.arange(60)[:, None] < 10
    train = csr_matrix(np.where(cold, 0, whole))
    test = csr_matrix(np.where(cold, whole, 0))
    parts = Parts.of(train, test)
    evaluation = evaluate_parts(parts, PARAMS, EvaluateOptions(k=5))
    assert evaluation.split is None
    assert evaluation.to_json()["split"] == {"kind": "given"}
    assert evaluation.model.users == 10
    assert evaluation.model.users_with_lists == 0
    assert evaluation.model.ndcg == 0
    assert evaluation.as_served == evaluation.baselines["popularity"].as_served
    assert evaluation.as_served.ndcg > 0
    popular = np.argsort(-train.getnnz(axis=0), kind="stable")[:5].astype(np.int32)
    lists = recommend_all(fit(train, PARAMS), parts, 5, popularity_of(parts, PopularityParams())).as_served
    assert lists[0].tolist() == popular.tolist()
    assert measure_users(lists, parts.test).metrics == evaluation.as_served


def test_the_engines_of_a_blend_are_fitted_once_for_it_and_as_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = to_matrix(sample(60, 30))
    parts = split(matrix.user_items, matrix.history, SplitOptions("by-item"))
    neighbours = NeighbourParams(neighbours=5)
    alone = evaluate_parts(parts, PARAMS, EvaluateOptions(k=5), baselines=[neighbours])
    fits: list[Params] = []

    def counted(parts: Parts, params: Params, on_iteration: OnIteration | None = None) -> Ranker:
        fits.append(params)
        return fit_parts(parts, params, on_iteration)

    monkeypatch.setattr("hotplate.offline.evaluate.evaluation.fit_parts", counted)
    blend = BlendParams(PARAMS, neighbours)
    together = evaluate_parts(parts, blend, EvaluateOptions(k=5), baselines=[PARAMS, neighbours])
    assert fits == [blend]
    assert together.baselines["als"].as_served == alone.as_served
    assert together.baselines["neighbours"].as_served == alone.baselines["neighbours"].as_served


def test_recent_popularity_is_told_from_that_of_another_half_life() -> None:
    matrix = matrix_of(board())
    parts = split(matrix.user_items, matrix.history, SplitOptions("by-time"))
    record = evaluate_parts(parts, PopularityParams(1.0), EvaluateOptions(k=5), baselines=[PopularityParams(4.0)])
    sentence = answer_in_words(record)
    assert sentence.startswith("Everybody gets what is popular now (recent popularity); these lists are ")
    assert "recent popularity with a half-life of 4 days" in sentence


def test_item_pairs_without_users_are_counted() -> None:
    train = board().toarray()
    test = np.zeros((60, 30), dtype=np.float32)
    train[:, 3] = train[0, 4] = 0
    test[:7, 3] = test[0, 4] = 1
    parts = Parts.of(csr_matrix(train), csr_matrix(test))
    assert evaluate_parts(parts, PopularityParams(), EvaluateOptions(k=5)).cold_pairs == 7


def test_large_tests_use_a_reported_draw_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(matrix_of(board()), PARAMS, k=5)
    monkeypatch.setattr("hotplate.offline.evaluate.evaluation.MOST_TESTED", 20)
    drawn = evaluate(matrix_of(board()), PARAMS, k=5)
    assert whole.users_drawn_from is None
    assert [metrics.users for metrics in (drawn.model, *drawn.baselines.values())] == [20, 20, 20]
    assert drawn.users_drawn_from == drawn.to_json()["users_drawn_from"] == whole.model.users
    assert drawn.train_pairs == whole.train_pairs, "all users are learnt from"
    low, high = drawn.intervals["ndcg"]
    assert low <= whole.model.ndcg <= high
