"""Metrics of lists and of ratings: what their definitions say, and what independent implementations give."""

from dataclasses import asdict

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hotplate.offline.evaluate.metrics import (
    NO_SPREAD,
    Spread,
    coverage,
    interval_of_mean,
    measure_ratings,
    measure_users,
)
from hotplate.offline.input.pairs import UserItems
from tests.support.property import explored

Case = tuple[list[list[int]], list[set[int]], int, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw lists, liked items, k, and the number of items."""
    items = draw(st.integers(2, 9))
    k = draw(st.integers(1, 9))
    users = draw(st.integers(1, 6))
    lists = draw(
        st.lists(
            st.lists(st.integers(0, items - 1), unique=True, max_size=k).map(lambda row: row + [-1] * (k - len(row))),
            min_size=users,
            max_size=users,
        )
    )
    liked = draw(st.lists(st.sets(st.integers(0, items - 1)), min_size=users, max_size=users).filter(any))
    return lists, liked, k, items


def matrix_of(liked: list[set[int]], items: int) -> UserItems:
    weights = np.zeros((len(liked), items), dtype=np.float32)
    for user, wanted in enumerate(liked):
        weights[user, list(wanted)] = 1
    return csr_matrix(weights)


@explored(40, 500, case=cases())
def test_ranking_metrics_match_trec_eval(case: Case) -> None:
    lists, liked, k, items = case
    recommended = np.array(lists, dtype=np.int32).reshape(len(liked), k)
    test = matrix_of(liked, items)
    measured = measure_users(recommended, test)
    truth = {str(user): {str(item): 1 for item in wanted} for user, wanted in enumerate(liked) if wanted}
    # A run needs a line for each user: an item that nobody likes is not a hit.
    run = {
        user: {"no such item": 0.0}
        | {str(item): float(k - rank) for rank, item in enumerate(lists[int(user)]) if item >= 0}
        for user in truth
    }
    cuts = {"precision": "P", "recall": "recall", "map": "map_cut", "ndcg": "ndcg_cut", "hit_rate": "success"}
    names = {ours: f"{theirs}_{k}" for ours, theirs in cuts.items()} | {"mrr": "recip_rank"}
    measures = {f"{theirs}.{k}" for theirs in cuts.values()} | {"recip_rank"}
    expected = pytrec_eval.RelevanceEvaluator(truth, measures).evaluate(run)
    wanted = {ours: [expected[user][theirs] for user in truth] for ours, theirs in names.items()}
    possible = [min(k, len(items)) / len(items) for items in truth.values()]
    wanted["recall_at_k"] = [recall / share for recall, share in zip(wanted["recall"], possible, strict=True)]
    assert set(wanted) == set(measured.values)
    metrics = measured.metrics
    for name, values in wanted.items():
        assert measured.values[name].tolist() == pytest.approx(values, rel=1e-12)
        assert asdict(metrics)[name] == pytest.approx(np.mean(values), rel=1e-12)
    assert (metrics.k, metrics.users) == (k, len(truth))
    assert metrics.users_with_lists == sum(max(lists[int(user)]) >= 0 for user in truth)


@settings(max_examples=40)
@given(cases())
def test_coverage_is_the_share_of_the_items_of_train_in_any_list(case: Case) -> None:
    lists, liked, k, items = case
    trained = set[int]().union(*liked)
    listed = {item for items in lists for item in items if item >= 0}
    share = coverage(np.array(lists, dtype=np.int32).reshape(len(lists), k), matrix_of(liked, items))
    assert share == len(listed & trained) / len(trained)


@pytest.mark.parametrize("share_without_hits", [0.85, 0.6, 0.3])
def test_intervals_of_thirty_users_hold_the_mean_in_95_of_100_draws(share_without_hits: float) -> None:
    rng = np.random.default_rng(3)
    users = np.where(rng.random(4_000) < share_without_hits, 0, rng.beta(1.2, 3, 4_000))
    others = np.where(rng.random(4_000) < share_without_hits, 0, rng.beta(1.2, 3.5, 4_000))
    for values in (users, users - 0.9 * others):
        intervals = [interval_of_mean(drawn) for drawn in values[rng.integers(0, 4_000, (2_000, 30))]]
        held = [interval is not None and interval[0] <= values.mean() <= interval[1] for interval in intervals]
        assert 0.92 <= np.mean(held) <= 0.985


def test_spread_tells_personal_lists_from_popular_ones() -> None:
    same = np.tile(np.arange(5, dtype=np.int32), (40, 1))
    assert Spread.of(same) == pytest.approx(Spread(5.0, 3.0, 5.0))
    different = np.arange(200, dtype=np.int32).reshape(40, 5)
    assert Spread.of(different) == pytest.approx(Spread(0.0, 100.0, 200.0))
    rng = np.random.default_rng(2)
    lists = np.array([rng.choice(30, 5, replace=False) for _ in range(20)], dtype=np.int32)
    lists[3, 2:] = -1
    shared = [len({*a} & {*b} - {-1}) for i, a in enumerate(lists.tolist()) for b in lists.tolist()[:i]]
    assert Spread.of(lists).shared_items == pytest.approx(np.mean(shared))
    assert Spread.of(np.full((3, 5), -1, dtype=np.int32)) == NO_SPREAD


def test_interval_matches_the_textbook() -> None:
    # t(4 degrees of freedom, 0.975) = 2.776445
    expected = pytest.approx((3 - 2.776445 * 0.7071068, 3 + 2.776445 * 0.7071068))
    assert interval_of_mean([1.0, 2.0, 3.0, 4.0, 5.0]) == expected
    assert interval_of_mean([1.0]) is None


ratings = st.lists(st.tuples(st.floats(-5, 10), st.sampled_from([0.5, 1, 2.5, 4, 5])), min_size=2, max_size=30).filter(
    lambda pairs: len({actual for _, actual in pairs}) > 1
)


@settings(max_examples=40)
@given(ratings)
def test_rating_metrics_match_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    # Not above, because to import it takes a second, which every worker that collects the tests would spend.
    from sklearn.metrics import explained_variance_score, mean_absolute_error, mean_squared_error, r2_score  # type: ignore[import-untyped]  # noqa: PLC0415 -- published without types; as said

    predicted, actual = np.array(pairs).T
    metrics = measure_ratings(predicted, actual)
    assert metrics.rmse == pytest.approx(np.sqrt(mean_squared_error(actual, predicted)), rel=1e-9, abs=1e-9)
    assert metrics.mae == pytest.approx(mean_absolute_error(actual, predicted), rel=1e-9, abs=1e-9)
    assert metrics.r2 == pytest.approx(r2_score(actual, predicted), rel=1e-9, abs=1e-9)
    assert metrics.explained_variance == pytest.approx(explained_variance_score(actual, predicted), rel=1e-9, abs=1e-9)


def test_r2_of_constant_ratings_is_one_or_zero() -> None:
    constant = np.full(3, 4.0)
    assert measure_ratings(constant, constant).r2 == 1
    assert measure_ratings(constant + 1, constant).r2 == 0
    assert measure_ratings(constant + 1, constant).explained_variance == 1
