"""Metrics of ratings agree with scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.offline.evaluate.metrics import measure_ratings

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
