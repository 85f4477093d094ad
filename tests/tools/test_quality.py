"""Quality on real data, and the rows of `make quality`."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hotplate.offline.evaluate.evaluation import EvaluateOptions, evaluate_engine, fit_parts
from hotplate.offline.evaluate.splits import SplitOptions, split
from hotplate.offline.input.history import Weighing
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.matrix import to_matrix
from hotplate.offline.search.tuning import SearchData, TuneOptions, tune
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import needs_times
from tests.support.interactions import evaluate
from tests.support.paths import DATA
from tools.quality import (
    AS_TYPED,
    DATA_SETS,
    HEADINGS,
    PIECES,
    POPULARITIES,
    REPEAT_COLUMNS,
    SIMILAR_COLUMNS,
    DataSet,
    Draw,
    Trainings,
    draw_rows,
    measure_piece,
    other_rows,
    time_rows,
)

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
    evaluation = evaluate(matrix, params, SplitOptions("by-item"))
    metrics = evaluation.model
    reached = {"lead": metrics.ndcg / evaluation.baselines["popularity"].ndcg}
    reached |= {name: getattr(metrics, name) for name in least.keys() - {"lead"}}
    assert all(reached[name] >= bound for name, bound in least.items()), reached


@pytest.mark.soak
def test_log_pieces_are_trained_with_default_options_and_compared(tmp_path: Path) -> None:
    days = 60
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user}", f"i{(day // 10 * 6 + choice) % 40}", 86_400 * (18_000 + day) + user)
        for day in range(days)
        for user in rng.choice(40, 20, replace=False).tolist()
        for choice in rng.choice(12, 2, replace=False).tolist()
    ]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "log.csv")
    data = DataSet("A log", "log.csv")
    trainings = Trainings(data, tmp_path / "log.csv", tmp_path)
    lengths = [pl.read_parquet(trainings.write_piece(share)).height for share in PIECES]
    assert sorted(set(lengths)) == lengths
    assert lengths[-1] == trainings.log.height
    measured = {share: measure_piece(trainings, share) for share in PIECES[-2:]}
    *lines, mean = time_rows(data, measured)
    assert [line[1] for line in (*lines, mean)] == ["90%", "100%", "mean lead"]
    assert {len(line) for line in (*lines, mean)} == {len(HEADINGS[0])}
    for line, piece in zip(lines, measured.values(), strict=True):
        cells = dict(zip(HEADINGS[0], line, strict=True))
        typed, better = (float(cells[name].split()[0]) for name in (AS_TYPED, "lead over popularity"))
        popular = max(float(cells[name]) for name in POPULARITIES)
        assert typed - popular == pytest.approx(better, abs=2e-4)
        assert typed == pytest.approx(piece.evaluation.as_served.ndcg, abs=1e-4)
        returning, new = (float(cells[f"{group} users, popularity"].split(",")[0]) for group in ("returning", "new"))
        users, new_users = (int(count) for count in cells["users, new ones"].split(","))
        assert (returning * (users - new_users) + new * new_users) / users == pytest.approx(typed, abs=2e-4)
    for piece, compared in zip(measured.values(), other_rows(data, measured), strict=True):
        assert set(piece.similar) == set(SIMILAR_COLUMNS)
        assert set(piece.repeats) == set(REPEAT_COLUMNS), "users choose things again"
        written = [float(cell) for cell in compared[2:]]
        assert written == pytest.approx([*piece.similar.values(), *piece.repeats.values()], abs=1e-4)


def test_a_random_draw_is_a_row_beside_popularity() -> None:
    draw = Draw(value=0.2, interval=(0.19, 0.21), popularity=0.1, described="als")
    assert [*draw_rows(DataSet("A log", "log.csv"), {"by item": draw})] == [
        ("A log", "by item", "0.1000", "0.2000 ± 0.0100, als")
    ]


def choices(*, drift: float, seed: int) -> pl.DataFrame:
    """Return the choices of 1,000 users among 400 items in 120 days; no rule of the search was chosen on them.

    Items and users belong to ten groups. A user takes an item in proportion to its appeal, 20 times as likely in their
    own group. With *drift* (1/days) items appear over time, and their appeal fades by that rate since their first day;
    without, all are there from the start, and appeal is constant.
    """
    rng = np.random.default_rng(seed)
    groups, items, days = 10, 400, 120
    appeal = rng.lognormal(0, 1, items)
    group_of_item = rng.integers(0, groups, items)
    first_day = rng.uniform(-30, days, items) if drift else np.full(items, -1.0)
    rows = []
    for user in range(1_000):
        own_group = int(rng.integers(0, groups))
        count = int(rng.integers(8, 25))
        for day in np.sort(rng.uniform(rng.uniform(0, 80), days, count)).tolist():
            there = (first_day <= day) * np.exp(-drift * np.maximum(day - first_day, 0))
            weights = appeal * np.where(group_of_item == own_group, 20, 1) * there
            item = int(rng.choice(items, p=weights / weights.sum()))
            rows.append((f"u{user:04}", f"i{item:03}", int((18_000 + day) * 86_400_000_000)))
    log = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return log.with_columns(pl.col("time").cast(pl.Datetime("us")), weight=pl.lit(1.0))


@pytest.mark.soak
@pytest.mark.parametrize("drift", [0.0, 0.02, 0.2])
def test_the_search_chooses_the_better_lists_with_drift_and_without(drift: float) -> None:
    matrix = to_matrix(choices(drift=drift, seed=20), weighing=Weighing("binary"))
    parts = split(matrix.user_items, matrix.history, SplitOptions("by-time"))
    search = tune(SearchData(parts.train, parts.history, SplitOptions("by-time")), TuneOptions())
    assert search is not None
    chosen = search.trials[search.recommended].params
    taste = max(
        (trial for trial in search.trials if not needs_times(trial.params)), key=lambda trial: trial.ndcg
    ).params
    options = EvaluateOptions(popular=search.popular.for_new_users)
    metrics = {
        params: evaluate_engine(parts, fit_parts(parts, params), options).as_served.ndcg
        for params in (chosen, taste, *search.popular.baselines)
    }
    assert metrics[chosen] > 0.98 * max(metrics.values()), metrics
    if drift:
        assert metrics[chosen] > 1.1 * metrics[taste]
    else:
        assert metrics[chosen] > 1.5 * metrics[search.popular.baselines[0]]
