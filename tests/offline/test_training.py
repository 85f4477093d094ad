"""Training from end to end, on the sample and on data that are too few."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.records import Lead, json_values
from hotplate.offline.evaluate.splits import SplitKind, SplitOptions, split
from hotplate.offline.input.sample import sample
from hotplate.offline.model_folder import load
from hotplate.offline.ruled_lists import RuledLists
from hotplate.offline.rules import Rules
from hotplate.offline.search.tuning import SearchData, TuneOptions, tune
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Params, params_from
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, most_popular
from hotplate.offline.training import TrainSettings, train
from hotplate.stores.encoding import OVERALL

PARAMS = ALSParams(factors=16, iterations=5)


def test_a_training_leaves_a_model_and_reports_what_it_did(tmp_path: Path) -> None:
    sample(400, 100).write_csv(tmp_path / "sample.csv")
    reports: list[tuple[str, int, int]] = []
    settings = TrainSettings(
        tmp_path / "sample.csv", where=["weight<9"], min_per_user=3, min_per_item=3, params=PARAMS, popular_length=7
    )
    report = train(settings, tmp_path / "model", lambda *step: reports.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in reports))
    assert stages == ["read", "matrix", "choose", "evaluate", "fit", "save"]
    assert ("fit", 5, 5) in reports
    assert report.note is None
    evaluation = report.model.evaluation
    assert evaluation is not None
    assert evaluation.model.ndcg > evaluation.baselines["popularity"].ndcg
    facts = json.loads(json.dumps(report.to_json()))
    assert facts["users"] == 400
    assert facts["evaluation"]["model"]["k"] == 10
    assert set(facts["seconds"]) == {"read", "matrix", "choose", "evaluate", "fit", "save"}
    model = load(tmp_path / "model")
    assert model.evaluation == report.model.evaluation
    assert model.evaluation is not None
    assert model.evaluation.to_json() == facts["evaluation"]
    assert json_values(model.data) == facts["data"]
    assert model.data.where == ["weight<9"]
    assert len(model.popular.items) == 7
    assert list(model.segments) == ["east", "north", "south", "west"]
    assert set(model.titles) == set(model.matrix.item_ids)


@pytest.mark.parametrize("params", [{"factors": 32}, "als", ALSParams])
def test_params_of_another_type_are_a_misuse_that_names_the_known_ones(params: object, tmp_path: Path) -> None:
    message = r"params is .*; it must be ALSParams\(factors=64\), or another of ALSParams, EASEParams, .*SparkParams\."
    with pytest.raises(SettingError, match=message):
        TrainSettings(tmp_path / "clicks.csv", params=params)  # type: ignore[arg-type]  # as a caller without types


def test_a_baseline_is_recommended_only_if_it_is_certainly_better(tmp_path: Path) -> None:
    sample(60, 30).write_csv(tmp_path / "sample.csv")
    report = train(TrainSettings(tmp_path / "sample.csv", params=PARAMS), tmp_path / "model")
    assert report.model.evaluation is not None
    known = report.model.evaluation.baselines
    for interval, is_recommended in (((-0.3, 0.1), False), ((-0.3, -0.1), True), (None, False)):
        baselines = {name: replace(known[name], model_leads_by=Lead(-0.2, interval)) for name in known}
        evaluation = msgspec.structs.replace(report.model.evaluation, baselines=baselines)
        warning = replace(report, model=replace(report.model, evaluation=evaluation)).warning
        assert ("ranks better than this model on the test" in (warning or "")) == is_recommended


def test_folder_that_cannot_be_written_is_named_before_the_training(tmp_path: Path) -> None:
    sample(60, 30).write_csv(tmp_path / "sample.csv")
    stages = list[str]()
    for tuning in (TuneOptions(), None):
        settings = TrainSettings(tmp_path / "sample.csv", tuning=tuning)
        with pytest.raises(DataError, match=r"The model cannot be written to /proc/m: "):
            train(settings, "/proc/m", lambda stage, _done, _total: stages.append(stage))
    assert stages == []


def test_a_split_by_name_is_a_misuse_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"split is 'none'; it must be SplitOptions.*, or None for no evaluation"):
        TrainSettings(tmp_path / "clicks.csv", split="none")  # type: ignore[arg-type]  # as a caller without types


@pytest.fixture
def fashions(tmp_path: Path) -> Path:
    """A log in which users choose among three items for ten days each, and of fewer and fewer users."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        f"u{(user + day) % 40:02},i{day // 10}{user % 3},{(start + timedelta(days=day, minutes=user)).isoformat()}"
        for day in range(60)
        for user in range(day % 7 + 20 - day // 4)
    ]
    path = tmp_path / "fashions.csv"
    path.write_text("\n".join(["user,item,time", *rows]) + "\n")
    return path


def test_popular_list_and_baseline_use_best_half_life_before_the_cut(fashions: Path, tmp_path: Path) -> None:
    report = train(TrainSettings(fashions, params=PARAMS, k=5), tmp_path / "model")
    assert report.model.evaluation is not None
    baselines = report.model.evaluation.baselines
    recent = baselines["recent popularity"]
    assert recent.as_served.ndcg > baselines["popularity"].as_served.ndcg
    assert recent.params["half_life_days"] is not None
    model = load(tmp_path / "model")
    wanted = most_popular(model.matrix, 100, model.popular_half_life_days)
    assert model.popular.items.tolist() == wanted.items.tolist()
    first = [model.matrix.item_ids[item] for item in wanted.items[:3]]
    assert sorted(first) == ["i50", "i51", "i52"], "those of the last ten days"
    ruled = RuledLists.of(model, Rules(excluded=frozenset({"gone"})), 5, keep_seen=False).popular()[OVERALL]
    assert ruled.items[:3].tolist() == wanted.items[:3].tolist(), "under rules, too"


def test_popular_list_has_no_half_life_after_a_random_split(fashions: Path, tmp_path: Path) -> None:
    at_random = TrainSettings(fashions, params=PARAMS, split=SplitOptions("by-item"), k=5)
    model = train(at_random, tmp_path / "model").model
    assert model.popular.items.tolist() == most_popular(model.matrix, 100).items.tolist()


@pytest.mark.parametrize("split", ["random", "by-item"])
def test_small_data_give_a_model_without_evaluation(split: SplitKind, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\nu,i\nv,j\n")
    settings = TrainSettings(tmp_path / "a.csv", split=SplitOptions(split), params=PARAMS)
    report = train(settings, tmp_path / "model")
    assert report.model.evaluation is not None or "none to test on" in str(report.note)
    assert load(tmp_path / "model").matrix.user_ids == ["u", "v"]


def test_bad_data_keep_the_existing_model(tmp_path: Path) -> None:
    sample(50, 20).write_csv(tmp_path / "a.csv")
    train(TrainSettings(tmp_path / "a.csv", split=None, params=PARAMS), tmp_path / "model")
    with pytest.raises(DataError, match="Nothing is left"):
        train(TrainSettings(tmp_path / "a.csv", where=["weight>99"]), tmp_path / "model")
    with pytest.raises(DataError, match="holds other things than a model"):
        train(TrainSettings(tmp_path / "a.csv"), tmp_path)
    assert load(tmp_path / "model").params == PARAMS


CELLS: tuple[Params, ...] = (PARAMS, NeighbourParams(neighbours=30), PopularityParams())


def test_search_does_not_use_test_data_and_trials_are_saved(tmp_path: Path) -> None:
    sample(150, 60).write_csv(tmp_path / "sample.csv")
    reports: list[tuple[str, int, int]] = []
    drawn = SplitOptions("by-item")
    settings = TrainSettings(tmp_path / "sample.csv", tuning=TuneOptions(CELLS), split=drawn)
    report = train(settings, tmp_path / "model", lambda *step: reports.append(step))
    model = load(tmp_path / "model")
    parts = split(model.matrix.user_items, model.matrix.history, drawn)
    alone = tune(SearchData(parts.train, parts.history, drawn), TuneOptions(CELLS))
    assert alone is not None
    assert model.search is not None
    trials = [msgspec.structs.replace(trial, seconds=0) for trial in model.search.trials]
    assert trials == [msgspec.structs.replace(trial, seconds=0) for trial in alone.record(None).trials]
    assert model.params == CELLS[model.search.best]
    assert report.model.evaluation is not None
    baselines = report.model.evaluation.baselines
    evaluated = [model.params, *(params_from(name, baselines[name].params) for name in baselines)]
    assert set(evaluated) == set(CELLS)
    facts = json.loads(json.dumps(report.to_json()))
    assert facts["tuning"] == json_values(model.search)
    assert facts["tuning_note"] is None
    assert ("tune", 3, 3) in reports
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "sample.csv"]


def test_stopped_search_keeps_its_trials_next_to_the_model_path(tmp_path: Path) -> None:
    sample(50, 20).write_csv(tmp_path / "sample.csv")
    settings = TrainSettings(tmp_path / "sample.csv", tuning=TuneOptions(CELLS), split=None)

    def stop(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("tune", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "model", stop)
    assert len(list((tmp_path / ".model.kept").iterdir())) == 2
    report = train(settings, tmp_path / "model")
    assert report.search is not None
    assert not (tmp_path / ".model.kept").exists()


def test_small_data_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("user,item\nu,i\nv,j\n")
    few = TrainSettings(tmp_path / "b.csv", params=PARAMS, tuning=TuneOptions(CELLS), split=None)
    report = train(few, tmp_path / "model")
    assert "too few to search" in str(report.tuning_note)
    assert report.model.params == PARAMS
    assert load(tmp_path / "model").search is None


@pytest.mark.parametrize("kind", ["polars", "arrow", "pandas"])
def test_data_frame_is_accepted_and_report_renders_in_a_notebook(kind: str, tmp_path: Path) -> None:
    frame = sample(60, 30)
    frame.write_parquet(tmp_path / "sample.parquet")
    of_file = train(TrainSettings(tmp_path / "sample.parquet", params=PARAMS), tmp_path / "of-file")
    source = {"polars": lambda: frame, "arrow": frame.to_arrow, "pandas": frame.to_pandas}[kind]()
    report = train(TrainSettings(source, params=PARAMS), tmp_path / "model")
    assert (report.model.matrix.user_items != of_file.model.matrix.user_items).nnz == 0
    assert report.model.data.source == "the data frame"
    shown = report._repr_html_()
    assert f"60 users, {len(report.model.matrix.item_ids)} items" in shown
    assert 'data-figure="nDCG@10">0.' in shown
