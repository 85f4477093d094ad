"""ALS: its differences from other engines, and its objective on Spark as far as known without Spark."""

import os
import sys

import numpy as np
import pytest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.pairs import Indices
from hotplate.offline.train.als import ALSParams, Factors, SparkParams, confidences, fit
from tests.support.interactions import checkerboard
from tests.support.paths import ROOT
from tests.support.processes import run_process

SIZE = 50
PARAMS = ALSParams(factors=3, regularization=0.1, alpha=1.0, seed=23)


def everyone() -> Indices:
    return np.arange(SIZE, dtype=np.int32)


@pytest.fixture(scope="module")
def factors() -> Factors:
    return fit(checkerboard(SIZE), PARAMS)


def test_a_fit_is_the_same_for_the_same_seed_and_reports_every_iteration(factors: Factors) -> None:
    reports: list[tuple[int, int]] = []
    again = fit(checkerboard(SIZE), PARAMS, lambda done, total: reports.append((done, total)))
    assert reports == [(at, 15) for at in range(1, 16)]
    assert np.array_equal(again.user_factors, factors.user_factors)
    assert np.array_equal(again.item_factors, factors.item_factors)
    other = fit(checkerboard(SIZE), ALSParams(factors=3, regularization=0.1, alpha=1.0, seed=24))
    assert not np.array_equal(other.item_factors, factors.item_factors)


def test_idle_threads_of_the_solver_do_not_spin() -> None:
    program = "import os, hotplate.offline.train.als; print(os.environ['OMP_WAIT_POLICY'])"
    unset = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert run_process(sys.executable, "-c", program, env=unset, cwd=ROOT).stdout == "passive\n"


def test_factors_that_are_not_finite_are_an_error_with_advice() -> None:
    board = checkerboard(SIZE)
    board.data[:] = 3e38
    for alpha in (1.0, 100.0):
        with pytest.raises(DataError, match=r"not finite with regularization .* lower alpha"):
            fit(board, ALSParams(factors=3, alpha=alpha))


def test_folding_in_without_a_single_solution_is_an_error_with_advice() -> None:
    board = checkerboard(SIZE)
    factors = np.zeros((SIZE, 3), dtype=np.float32)
    with pytest.raises(DataError, match=r"not finite with regularization 0\.0 .* raise the regularization"):
        Factors(factors, factors, ALSParams(factors=3, regularization=0.0)).fold_in(board)


def test_confidence_matches_implicit_and_is_above_no_interaction() -> None:
    weights = np.array([0.001, 0.25, 1, 3], dtype=np.float32)
    assert confidences(weights, 4.0)[2:].tolist() == [4, 12]
    assert (confidences(weights, 4.0) > 1).all()


def test_spark_model_folds_in_no_users() -> None:
    factors = np.zeros((6, 2), dtype=np.float32)
    with pytest.raises(SettingError, match="another split than held-out-users"):
        Factors(factors, factors, SparkParams(factors=2)).fold_in(checkerboard(6))
