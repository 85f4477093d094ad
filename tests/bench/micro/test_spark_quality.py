"""The comparison of models of Spark and of implicit, on models that nobody needs Spark for."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from bench.micro.spark_quality import compare, fit_by_implicit, hold_back
from offline.input.matrix import to_matrix
from offline.model import save
from offline.train.als import ALSParams, fit
from offline.train.weighted import SparkParams
from tests.support.spark import model_of

SIDE = 24


def test_models_of_one_objective_rank_what_was_held_back_alike(tmp_path: Path) -> None:
    board = [(f"u{user}", f"i{item}") for user in range(SIDE) for item in range(SIDE) if (user + item) % 2]
    pairs = pl.DataFrame(board, schema=["user", "item"], orient="row")
    held_back = hold_back(pairs, tmp_path / "data.parquet")
    learnt_from = pl.read_parquet(tmp_path / "data.parquet")
    assert sorted([*learnt_from.select("user", "item").rows(), *held_back.select("user", "item").rows()]) == sorted(
        board
    )

    matrix = to_matrix(learnt_from)
    weighted, constant = SparkParams(factors=3, reg_param=0.01, alpha=2.0), ALSParams(factors=3, regularization=1.0)
    rankers = {"spark": fit_by_implicit(matrix.user_items, weighted), "implicit": fit(matrix.user_items, constant)}
    for name, ranker in rankers.items():
        save(replace(model_of(SIDE), ranker=ranker, matrix=matrix, params=ranker.params), tmp_path / name)
    found = {one.name: one for one in compare("a board", tmp_path / "spark", tmp_path / "implicit", held_back)}
    assert found["a board, Spark: nDCG@10"].median > 0.9
    assert found["a board, implicit: nDCG@10"].median > 0.9
    assert found["a board, Spark and implicit with Spark's objective: nDCG@10 apart"].values == [0]
    assert found["a board, Spark and implicit with Spark's objective: overlap@10"].values == [1]
