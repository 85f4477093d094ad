"""Metrics of ratings agree with scikit-learn, and their intervals with those of a loop over users."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.evaluate.intervals import resampled_sums
from offline.evaluate.ratings import measure_ratings, rating_intervals

ratings = st.lists(st.tuples(st.floats(-5, 10), st.sampled_from([0.5, 1, 2.5, 4, 5])), min_size=2, max_size=30).filter(
    lambda pairs: len({actual for _, actual in pairs}) > 1
)


@settings(deadline=None)  # a busy machine is no failure
@given(ratings)
def test_metrics_of_ratings_are_those_of_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    # Not above, because to import it takes a second, which every worker that collects the tests would spend.
    from sklearn.metrics import (  # type: ignore[import-untyped]  # noqa: PLC0415 -- published without types; as said
        explained_variance_score,
        mean_absolute_error,
        mean_squared_error,
        r2_score,
    )

    predicted, actual = np.array(pairs).T
    found = measure_ratings(predicted, actual)
    assert found.rmse == pytest.approx(np.sqrt(mean_squared_error(actual, predicted)), rel=1e-9, abs=1e-9)
    assert found.mae == pytest.approx(mean_absolute_error(actual, predicted), rel=1e-9, abs=1e-9)
    assert found.r2 == pytest.approx(r2_score(actual, predicted), rel=1e-9, abs=1e-9)
    assert found.explained_variance == pytest.approx(explained_variance_score(actual, predicted), rel=1e-9, abs=1e-9)


def test_ratings_that_do_not_vary_are_explained_wholly_or_not_at_all() -> None:
    constant = np.full(3, 4.0)
    assert measure_ratings(constant, constant).r2 == 1
    assert measure_ratings(constant + 1, constant).r2 == 0
    assert measure_ratings(constant + 1, constant).explained_variance == 1


def test_intervals_of_ratings_are_those_of_a_loop_over_the_users_that_were_drawn() -> None:
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(30), 4)
    actual = rng.integers(1, 6, 120).astype(float)
    predicted = actual + rng.normal(0, 1, 120)
    drawn = resampled_sums(np.eye(30), seed=9)
    looped = []
    for times in drawn.astype(int):
        pairs = np.repeat(np.arange(120), times[users])
        looped.append(asdict(measure_ratings(predicted[pairs], actual[pairs])))
    for name, interval in rating_intervals(predicted, actual, users, seed=9).items():
        expected = np.quantile([each[name] for each in looped], [0.025, 0.975])
        assert interval == pytest.approx(tuple(expected), rel=1e-9)


def test_no_ratings_and_predictions_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="0 predictions of 0 ratings"):
        measure_ratings(np.array([]), np.array([]))
    with pytest.raises(ValueError, match="2 predictions of 3 ratings"):
        measure_ratings(np.ones(2), np.ones(3))
