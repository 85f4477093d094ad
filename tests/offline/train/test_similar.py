"""Similar items of any engine: comparison, metrics, and the choice of the search."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hotplate.offline.evaluate.similar_hits import SimilarResult, measure_similar
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.history import NO_TIME, History, Weighing
from hotplate.offline.input.matrix import Matrix
from hotplate.offline.search.similar_items import choose_similar_params
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.similar import Similar, SimilarParams, fit
from tests.support.interactions import evaluate, matrix_of


@pytest.fixture(scope="module")
def series() -> Matrix:
    """Users go through the parts of one of four series in order, one a day; the first series began last."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        (f"u{user:02}", f"s{user % 4}-{part}", start + timedelta(days=part, hours=user % 4))
        for user in range(40)
        for part in range(8)
    ]
    return matrix_of(rows, Weighing())


def test_items_of_the_same_users_are_similar_and_never_the_item_itself(series: Matrix) -> None:
    items, scores = fit(series.user_items, SimilarParams()).similar_items(np.arange(32, dtype=np.int32), 10)
    ids = np.array(series.item_ids)
    for item, row in enumerate(items):
        assert {ids[other][:2] for other in row[row >= 0]} == {ids[item][:2]}
        assert item not in row
    assert (items >= 0).sum(axis=1).tolist() == [7] * 32
    assert (np.diff(scores, axis=1) <= 0).all()
    allowed = np.isin(np.arange(32), [3, 8, 9, 14])
    some, _ = fit(series.user_items, SimilarParams()).similar_items(np.arange(32, dtype=np.int32), 3, allowed=allowed)
    assert set(some.ravel()) == {-1, 3, 8, 9, 14}


def test_cosines_are_damped_for_few_shared_users_and_scaled_by_recency() -> None:
    has = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1], [1, 0, 0]], dtype=np.float32)
    user_items = csr_matrix(has)
    times = np.arange(7) * 86_400_000_000
    plain = fit(user_items, SimilarParams(shrink=0)).similarity.toarray()
    assert plain[0, 1] == pytest.approx(2 / 3)
    assert plain[1, 2] == pytest.approx(1 / np.sqrt(3))
    assert fit(user_items, SimilarParams(shrink=2)).similarity.toarray()[0, 1] == pytest.approx(2 / 3 * 2 / 4)
    recency = Recency(1.0, 0.25)
    recent = fit(user_items, SimilarParams(0, recency), times).similarity.toarray()
    assert np.allclose(recent, plain * np.exp(recency.weights(user_items, times).logs))


def test_hit_rate_counts_next_items_for_last_items(series: Matrix) -> None:
    parts = split(series.user_items, series.history, SplitOptions("by-time"))
    params = SimilarParams(shrink=0)
    measured, nothing = (
        measure_similar(fit(train, params), params, parts, 7) for train in (series.user_items, parts.train)
    )
    assert measured == SimilarResult(params, 7, 1.0, (1.0, 1.0), 40), "what was learnt from all data knows the series"
    assert nothing == SimilarResult(params, 7, 0.0, (0.0, 0.0), 40), "the next parts were not known yet"
    held_out = split(series.user_items, series.history, SplitOptions("held-out-users"))
    assert measure_similar(fit(held_out.train, params), params, held_out, 7) is None, "no user is in both parts"


def test_an_item_without_a_time_is_the_first_of_a_user() -> None:
    train, test = (csr_matrix(np.array([row], dtype=np.float32)) for row in ([1] * 6 + [0], [0] * 6 + [1]))
    parts = Parts.of(train, test, History.of(train, np.array([NO_TIME, 1, 2, 3, 4, 5])))
    similar = Similar(csr_matrix(([1.0], ([0], [6])), shape=(7, 7)))
    assert measure_similar(similar, SimilarParams(), parts, 1) == SimilarResult(SimilarParams(), 1, 0.0, None, 1)


def test_an_evaluation_measures_similar_items_and_a_gate_can_be_set_on_them(series: Matrix) -> None:
    evaluation = evaluate(series, PopularityParams(), SplitOptions("by-item"), k=5, similar=SimilarParams())
    assert evaluation.similar is not None
    facts = evaluation.to_json()["similar"]
    assert facts["hit_rate"] == evaluation.metric("similar.hit_rate") == evaluation.similar.hit_rate > 0.8
    assert evaluate(series, PopularityParams(), SplitOptions("by-item"), k=5).to_json()["similar"] is None


def test_recency_is_chosen_for_recent_next_items() -> None:
    rng = np.random.default_rng(1)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        (f"u{rng.integers(60):02}", f"i{(3 * day + rng.integers(6)) % 200:03}", start + timedelta(days=day, minutes=at))
        for day in range(60)
        for at in range(90)
    ]
    matrix = matrix_of(rows, Weighing("binary"))
    parts = split(matrix.user_items, matrix.history, SplitOptions("by-time", 0.1))
    assert choose_similar_params([parts], 2.0, 10).recency == Recency(2.0, 1.0), "the highest power is clearly better"
    assert choose_similar_params([parts], None, 10).recency is None
    assert choose_similar_params([parts._replace(history=None)], 2.0, 10).recency is None, "there are no times"


def test_default_recency_power_stays_unless_another_is_better(series: Matrix) -> None:
    parts = split(series.user_items, series.history, SplitOptions("by-item"))
    assert choose_similar_params([parts], 2.0, 7) == SimilarParams(20.0, Recency(2.0, 0.25)), (
        "all powers find all parts of a series"
    )
    assert choose_similar_params([parts], None, 7) == SimilarParams(20.0, None)
