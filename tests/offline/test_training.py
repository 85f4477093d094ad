"""Training from end to end, on the sample and on data that are too few."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.splits import SplitKind, SplitOptions, split
from hotplate.offline.input.columns import Columns
from hotplate.offline.input.sample import sample
from hotplate.offline.model import load
from hotplate.offline.rules import RuledLists, Rules
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Params, Ranker, fit
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, most_popular
from hotplate.offline.train.tuning import TuneOptions, tune
from hotplate.offline.training import TrainReport, TrainSettings, train
from hotplate.stores.keys import OVERALL

PARAMS = ALSParams(factors=16, iterations=5)


def test_a_training_leaves_a_model_and_reports_what_it_did(tmp_path: Path) -> None:
    sample(400, 100).write_csv(tmp_path / "sample.csv")
    reports: list[tuple[str, int, int]] = []
    settings = TrainSettings(
        tmp_path / "sample.csv", where=["weight<9"], min_per_user=3, min_per_item=3, params=PARAMS, popular_length=7
    )
    report = train(settings, tmp_path / "model", lambda *step: reports.append(step))
    assert list(dict.fromkeys(stage for stage, _, _ in reports)) == ["read", "matrix", "evaluate", "fit", "save"]
    assert ("fit", 5, 5) in reports
    assert report.note is None
    assert report.evaluation is not None
    assert report.evaluation.model.metrics.ndcg > report.evaluation.baselines[0].metrics.ndcg
    facts = json.loads(json.dumps(report.to_json()))
    assert facts["users"] == 400
    assert facts["evaluation"]["model"]["k"] == 10
    assert set(facts["seconds"]) == {"read", "matrix", "evaluate", "fit", "save"}
    model = load(tmp_path / "model")
    assert model.metrics == facts["evaluation"]
    assert model.data == facts["data"]
    assert model.data["where"] == ["weight<9"]
    assert len(model.popular.items) == 7
    assert list(model.segments) == ["east", "north", "south", "west"]
    assert set(model.titles) == set(model.matrix.item_ids)


def test_no_evaluation_is_made_when_none_is_requested(tmp_path: Path) -> None:
    sample(50, 20).write_parquet(tmp_path / "sample.parquet")
    report = train(TrainSettings(tmp_path / "sample.parquet", split=None, params=PARAMS), tmp_path / "model")
    assert report.evaluation is None
    assert report.note == "No evaluation was requested."
    assert load(tmp_path / "model").metrics is None


def test_the_popular_list_and_its_baseline_have_the_half_life_that_is_best_before_the_cut(tmp_path: Path) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        f"u{(user + day) % 40:02},i{day // 10}{choice},{(start + timedelta(days=day, minutes=user)).isoformat()}"
        for day in range(60)
        for user in range(day % 7 + 20 - day // 4)  # fewer and fewer users, so that old items stay ahead overall
        for choice in (user % 3,)
    ]
    (tmp_path / "fashions.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    report = train(TrainSettings(tmp_path / "fashions.csv", params=PARAMS, k=5), tmp_path / "model")
    assert report.evaluation is not None
    (popular,) = (each.params for each in report.evaluation.baselines if each.engine == "popularity")
    assert isinstance(popular, PopularityParams)
    assert popular.half_life_days is not None
    model = load(tmp_path / "model")
    first = [model.matrix.item_ids[item] for item in model.popular.items[:3]]
    assert sorted(first) == ["i50", "i51", "i52"], "those of the last ten days"
    ruled = RuledLists(model, Rules(excluded=frozenset({"gone"})), 5, keep_seen=False).popular()[OVERALL]
    assert ruled.items[:3].tolist() == model.popular.items[:3].tolist(), "under rules, too"
    wanted = most_popular(model.matrix, 100, popular.half_life_days)
    assert model.popular.items.tolist() == wanted.items.tolist()
    overall = TrainSettings(tmp_path / "fashions.csv", params=PARAMS, split=SplitOptions("by-item"), k=5)
    assert (
        train(overall, tmp_path / "overall").model.popular.items.tolist()
        == most_popular(model.matrix, 100).items.tolist()
    )


@pytest.mark.parametrize("split", ["random", "by-item"])
def test_data_too_few_for_an_evaluation_still_make_a_model(split: SplitKind, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\nu,i\nv,j\n")
    settings = TrainSettings(tmp_path / "a.csv", split=SplitOptions(split), params=PARAMS)
    report = train(settings, tmp_path / "model")
    assert report.evaluation is not None or "none to test on" in str(report.note)
    assert load(tmp_path / "model").matrix.user_ids == ["u", "v"]


def test_bad_data_leave_the_model_that_is_there(tmp_path: Path) -> None:
    sample(50, 20).write_csv(tmp_path / "a.csv")
    train(TrainSettings(tmp_path / "a.csv", split=None, params=PARAMS), tmp_path / "model")
    with pytest.raises(DataError, match="Nothing is left"):
        train(TrainSettings(tmp_path / "a.csv", where=["weight>99"]), tmp_path / "model")
    with pytest.raises(DataError, match="holds other things than a model"):
        train(TrainSettings(tmp_path / "a.csv"), tmp_path)
    assert load(tmp_path / "model").params == PARAMS


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"test": [Path("b.csv")], "seeds": 2}, "leave out --seeds"),
        ({"k": 100_000}, r"k is 100000; it must lie between 1 and 1000\."),
        ({"split": SplitOptions("by-time"), "seeds": 2}, "the same for every seed"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_read(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingError, match=sentence):
        TrainSettings("a.csv", **options)


CELLS: tuple[Params, ...] = (PARAMS, NeighbourParams(neighbours=30), PopularityParams())


def test_a_search_never_touches_the_test_and_the_model_keeps_its_trials(tmp_path: Path) -> None:
    sample(150, 60).write_csv(tmp_path / "sample.csv")
    reports: list[tuple[str, int, int]] = []
    drawn = SplitOptions("by-item")
    settings = TrainSettings(tmp_path / "sample.csv", tuning=TuneOptions(CELLS), split=drawn)
    report = train(settings, tmp_path / "model", lambda *step: reports.append(step))
    model = load(tmp_path / "model")
    parts = split(model.matrix.user_items, model.matrix.history, drawn)
    alone = tune(parts.train, parts.history, drawn, TuneOptions(CELLS))
    assert alone is not None
    assert model.tuning is not None
    found = [{**trial, "seconds": 0} for trial in model.tuning["trials"]]
    assert found == [{**trial, "seconds": 0} for trial in alone.to_json()["trials"]]
    assert model.params == CELLS[model.tuning["best"]]
    assert report.evaluation is not None
    assert {each.params for each in (report.evaluation.model, *report.evaluation.baselines)} == set(CELLS)
    facts = json.loads(json.dumps(report.to_json()))
    assert facts["tuning"] == model.tuning
    assert facts["tuning_note"] is None
    assert ("tune", 3, 3) in reports
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "sample.csv"]


def test_a_search_that_was_stopped_leaves_its_trials_beside_the_model_that_is_to_be(tmp_path: Path) -> None:
    sample(50, 20).write_csv(tmp_path / "sample.csv")
    settings = TrainSettings(tmp_path / "sample.csv", tuning=TuneOptions(CELLS), split=None)

    def stop(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("tune", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "model", stop)
    assert len(list((tmp_path / ".model.kept" / "trials").iterdir())) == 2
    report = train(settings, tmp_path / "model")
    assert report.search is not None
    assert not (tmp_path / ".model.kept").exists()


def test_too_few_pairs_to_hold_some_back_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("user,item\nu,i\nv,j\n")
    few = TrainSettings(tmp_path / "b.csv", params=PARAMS, tuning=TuneOptions(CELLS), split=None)
    report = train(few, tmp_path / "model")
    assert "too few to hold some back" in str(report.tuning_note)
    assert report.model.params == PARAMS
    assert load(tmp_path / "model").tuning is None


def test_a_baseline_that_ranks_better_than_the_model_is_a_warning_with_the_way_to_get_it(tmp_path: Path) -> None:
    sample(150, 60).write_csv(tmp_path / "a.csv")
    weak = ALSParams(factors=1, regularization=1e6, iterations=1)
    warning = train(TrainSettings(tmp_path / "a.csv", params=weak), tmp_path / "model").to_json()["warning"]
    assert " ranks better than this model on the test: nDCG@10 0." in warning
    assert "; train with --engine " in warning
    strong = train(TrainSettings(tmp_path / "a.csv", params=NeighbourParams(neighbours=30)), tmp_path / "model")
    assert strong.warning is None


def searched(folder: Path, k: int = 10) -> TrainSettings:
    return TrainSettings(folder / "sample.csv", tuning=TuneOptions(CELLS), k=k)


def train_until(folder: Path, stage: str, at: int) -> None:
    """Train, and be killed at an instant."""

    def kill(now: str, done: int, _total: int) -> None:
        if (now, done) == (stage, at):
            os.kill(os.getpid(), signal.SIGKILL)

    train(searched(folder), folder / "model", kill)


def killed(folder: Path, stage: str, at: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=train_until, args=(folder, stage, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def counting(made: list[str], by: str) -> Callable[..., Ranker]:
    def counted(*args: Any, **how: Any) -> Ranker:  # noqa: ANN401 -- what `fit` takes
        made.append(by)
        return fit(*args, **how)

    return counted


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    folder = tmp_path_factory.mktemp("whole")
    sample(150, 60).write_csv(folder / "sample.csv")
    return train(searched(folder), folder / "model")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("instant", "fits"),
    [(("evaluate", 0), ["evaluation"] * 3 + ["training"]), (("fit", 0), ["training"]), (("save", 0), [])],
)
def test_what_a_killed_training_had_finished_is_not_done_again(
    instant: tuple[str, int], fits: list[str], whole: TrainReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(150, 60).write_csv(tmp_path / "sample.csv")
    killed(tmp_path, *instant)
    made: list[str] = []
    for module in ("hotplate.offline.evaluate.evaluation", "hotplate.offline.training"):
        monkeypatch.setattr(f"{module}.fit", counting(made, module.rpartition(".")[2]))
    report = train(searched(tmp_path), tmp_path / "model")
    assert made == fits
    assert report.evaluation is not None
    assert whole.evaluation is not None
    assert report.evaluation.to_json() == whole.evaluation.to_json()
    assert json.dumps(report.evaluation.to_json()) == json.dumps(load(tmp_path / "model").metrics)
    assert report.evaluation.leads == whole.evaluation.leads
    users = np.arange(len(report.model.matrix.user_ids), dtype=np.int32)
    one, other = (each.ranker.recommend(each.matrix.user_items, users, 5)[0] for each in (report.model, whole.model))
    assert np.array_equal(one, other)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "sample.csv"]


@pytest.mark.parametrize("k", [5, 10], ids=["with other settings", "of which a part is kept"])
def test_what_was_finished_otherwise_is_done_again_and_removed(k: int, tmp_path: Path) -> None:
    sample(150, 60).write_csv(tmp_path / "sample.csv")
    killed(tmp_path, "save", 0)
    (fitted,) = tmp_path.glob(".model.kept/fitted-*")
    fitted.with_name(f".{fitted.name}.new-1-12345678").mkdir()  # as a kill leaves it while it is written
    if k == 10:
        (fitted / "model.json").unlink()
    report = train(searched(tmp_path, k=k), tmp_path / "model")
    assert report.evaluation is not None
    assert report.evaluation.model.metrics.k == k
    assert report.seconds["fit"] > 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "sample.csv"]


def test_a_test_of_its_own_is_of_those_whose_pairs_were_not_all_cancelled(tmp_path: Path) -> None:
    pairs = [(user, item) for user in range(30) for item in range(8)]
    rows = [f"u{user},i{item},1,2026-01-{item + 1:02d}" for user, item in pairs if (user + item) % 3]
    gone = ["gone,i1,1,2026-01-01", "gone,i1,-1,2026-01-02"]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,quantity,time", *rows, *gone]))
    rows = [f"u{user},i{item},1,2026-02-01" for user, item in pairs if (user + item) % 3 == 0]
    (tmp_path / "test.csv").write_text("\n".join(["user,item,quantity,time", *rows, "gone,i2,1,2026-02-01"]))
    columns = Columns(user="user", item="item", weight="quantity", time="time")
    settings = TrainSettings(tmp_path / "log.csv", test=[tmp_path / "test.csv"], params=PARAMS, columns=columns)
    report = train(settings, tmp_path / "model")
    assert report.model.test is not None
    assert report.model.test.shape == report.model.matrix.user_items.shape == (30, 8)
    assert report.evaluation is not None
    assert report.evaluation.model.metrics.users == 30
    assert report.model.data["test"]["unknown_users"] == 1
    assert load(tmp_path / "model").test is not None


@pytest.mark.parametrize("kind", ["polars", "arrow", "pandas"])
def test_a_data_frame_is_learnt_from_and_a_notebook_shows_the_report(kind: str, tmp_path: Path) -> None:
    frame = sample(60, 30)
    frame.write_parquet(tmp_path / "sample.parquet")
    of_file = train(TrainSettings(tmp_path / "sample.parquet", params=PARAMS), tmp_path / "of-file")
    given = {"polars": lambda: frame, "arrow": frame.to_arrow, "pandas": frame.to_pandas}[kind]()
    report = train(TrainSettings(given, params=PARAMS), tmp_path / "model")
    assert (report.model.matrix.user_items != of_file.model.matrix.user_items).nnz == 0
    assert report.model.data["source"] == "the data frame"
    shown = report._repr_html_()
    assert f"60 users, {len(report.model.matrix.item_ids)} items" in shown
    assert "<td>ndcg</td><td>0." in shown


def test_a_data_frame_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    mixed: Any = pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"]}).to_pandas().astype(object)
    mixed.loc[1, "user"] = 1
    lazy: Any = pl.LazyFrame({"user": ["a"], "item": ["x"]})
    for frame, complaint in ((mixed, "cannot be read: .*; give each column one type"), (lazy, "give what its collect")):
        with pytest.raises(DataError, match=complaint):
            train(TrainSettings(frame, params=PARAMS), tmp_path / "model")


def test_a_data_frame_without_a_column_of_users_is_refused_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data frame"):
        train(TrainSettings(sample(60, 30).select("weight", "time"), params=PARAMS), tmp_path / "model")
