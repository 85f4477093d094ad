"""Quality on real data, and the rows of `make quality`."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hotplate.offline.evaluate.evaluation import evaluate
from hotplate.offline.evaluate.splits import SplitOptions
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.matrix import to_matrix
from hotplate.offline.quality import DATA_SETS, PIECES, DataSet, Trainings, time_rows
from hotplate.offline.train.als import ALSParams
from tests.support.paths import DATA

MOVIES, RETAIL = DATA_SETS


@pytest.mark.soak
@pytest.mark.parametrize(
    ("recipe", "shape", "params", "least"),
    [
        (MOVIES, (4333, 2414, 68_055), ALSParams(factors=64, regularization=150, alpha=20), {"lead": 1.2}),
        (
            RETAIL,
            (4074, 3145, 264_510),
            ALSParams(factors=128, regularization=30, alpha=4),
            {"lead": 1.5, "ndcg": 0.260, "map": 0.098, "precision": 0.195, "recall": 0.177},
        ),
    ],
    ids=["movies", "retail"],
)
def test_a_recipe_gives_its_matrix_and_als_beats_popularity_on_it(
    recipe: DataSet, shape: tuple[int, int, int], params: ALSParams, least: dict[str, float]
) -> None:
    file = DATA / recipe.file
    if not file.exists():
        pytest.skip(f"{file} is not on this machine")
    log = read_interactions(file, columns=recipe.columns, where=recipe.where, weighting="binary").log
    matrix = to_matrix(log, 5, 5)
    assert (*matrix.user_items.shape, matrix.user_items.nnz) == shape
    found = evaluate(matrix, params, SplitOptions("by-item"))
    assert found is not None
    metrics = found.model.metrics
    reached = {"lead": metrics.ndcg / found.baselines[0].metrics.ndcg}
    reached |= {name: getattr(metrics, name) for name in least.keys() - {"lead"}}
    assert all(reached[name] >= bound for name, bound in least.items()), reached


@pytest.mark.soak
def test_log_pieces_are_trained_with_default_options_and_compared(tmp_path: Path) -> None:
    days, rng = 60, np.random.default_rng(3)
    rows = [
        (f"u{user}", f"i{(day // 10 * 6 + choice) % 40}", 86_400 * (18_000 + day) + user)
        for day in range(days)
        for user in rng.choice(40, 20, replace=False).tolist()
        for choice in rng.choice(12, 2, replace=False).tolist()
    ]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "log.csv")
    data = DataSet("A log", "log.csv")
    trainings = Trainings(data, tmp_path / "log.csv", tmp_path)
    lengths = [pl.read_parquet(trainings.piece(share)).height for share in PIECES]
    assert lengths[0] < lengths[1] < lengths[2] == trainings.log.height
    *pieces, mean = time_rows(data, trainings)
    assert [row[1] for row in (*pieces, mean)] == ["60%", "80%", "100%", "mean"]
    figures = [[float(cell.split()[0]) for cell in row[3:]] for row in pieces]
    assert [float(cell) for cell in mean[3:]] == pytest.approx(np.mean(figures, axis=0), abs=1e-4)
    assert all(row[-1] in row[-3:-1] for row in figures), "what is typed is one of the two columns before it"
