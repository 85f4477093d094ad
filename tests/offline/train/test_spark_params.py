"""Spark's parameters and its objective, as far as they are known without Spark."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.export import to_implicit
from hotplate.offline.train.als import ALSParams, Factors, SparkParams, confidences, solve
from hotplate.offline.train.cells import read_grid
from hotplate.offline.train.engine import as_options, described, engine_of, params_from
from tests.support.command import failed, hotplate
from tests.support.interactions import checkerboard
from tests.support.spark import model_of


@pytest.mark.parametrize(
    "wrong", [{"factors": 0}, {"reg_param": -1.0}, {"alpha": 0.0}, {"iterations": 0}, {"seed": -1}, {"alpha": np.inf}]
)
def test_parameters_that_make_no_sense_are_refused_by_name(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(SettingError, match=name.replace("_", "-")):
        SparkParams(**wrong)  # type: ignore[arg-type]  # as the test says


def test_they_are_of_an_engine_of_their_own() -> None:
    params = SparkParams(factors=8, reg_param=0.5, alpha=2)
    assert engine_of(params) == "spark"
    assert described(params) == "spark (factors 8, reg-param 0.5, alpha 2)"
    assert as_options(params) == "--engine spark --factors 8 --reg-param 0.5 --alpha 2"
    assert params_from("spark", {"factors": 8, "reg_param": 0.5, "alpha": 2}) == params


def test_a_pair_weighs_what_it_does_for_implicit_and_always_more_than_none() -> None:
    weights = np.array([0.001, 0.25, 1, 3], dtype=np.float32)
    assert confidences(weights, 4.0)[2:].tolist() == [4, 12]
    assert (confidences(weights, 4.0) > 1).all()


def test_users_are_solved_with_a_regularization_for_each_of_their_items() -> None:
    board = checkerboard(6)
    generator = np.random.default_rng(1)
    items = generator.normal(size=(6, 2)).astype(np.float32)
    params = SparkParams(factors=2, reg_param=0.3, alpha=3.0)
    found = Factors(np.zeros((6, 2), dtype=np.float32), items, params).fold_in(board)
    assert (found.user_factors == solve(items, board, params)).all()
    for user, row in enumerate(board.toarray()):
        confidence = np.where(row > 0, 3.0, 1.0)
        left = (items.T * confidence) @ items + 0.3 * (row > 0).sum() * np.eye(2)
        right = items.T @ (confidence * (row > 0))
        assert np.allclose(left @ found.user_factors[user], right, atol=1e-4)


def test_its_factors_are_no_model_of_implicit() -> None:
    model = model_of(20)
    assert isinstance(model.ranker, Factors)
    learnt = replace(model, ranker=replace(model.ranker, params=SparkParams(factors=8)))
    with pytest.raises(DataError, match="Spark"):
        to_implicit(learnt)


def test_its_parameters_are_not_searched(tmp_path: Path) -> None:
    grid = tmp_path / "cells.toml"
    grid.write_text('[[cell]]\nengine = "spark"\n')
    with pytest.raises(SettingError, match="not searched"):
        read_grid(grid, ALSParams())


@pytest.mark.skipif(find_spec("pyspark") is not None, reason="pyspark is installed")
@pytest.mark.parametrize("command", [["train", "log.csv", "--engine", "spark", "--out"], ["publish"]])
def test_without_the_extra_a_sentence_says_what_to_install(command: list[str], tmp_path: Path) -> None:
    done = hotplate(*command, tmp_path / "model", "--master", "local[2]")
    failed(done, "is not installed; install it with: pip install 'hotplate[spark]'")


def test_a_master_is_for_spark_alone(tmp_path: Path) -> None:
    failed(hotplate("train", "x.csv", "--master", "local[2]", "--out", tmp_path / "m"), "--engine spark", code=2)
