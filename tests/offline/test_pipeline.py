"""Training from end to end, on the sample and on data that are too few."""

import json
from pathlib import Path

import pytest

from offline.errors import DataError, SettingError
from offline.evaluate.splits import SplitKind, SplitOptions
from offline.input.sample import sample
from offline.model import load
from offline.pipeline import TrainSettings, train
from offline.train.als import ALSParams

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
    groups = [(each["by"], each["name"]) for each in facts["evaluation"]["segments"]]
    assert sorted(name for by, name in groups if by == "segment") == ["east", "north", "south", "west"]
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


def test_seeds_of_test_data_that_are_given_are_refused(tmp_path: Path) -> None:
    settings = TrainSettings(tmp_path / "a.csv", test=[tmp_path / "b.csv"], seeds=2)
    with pytest.raises(SettingError, match="leave out --seeds"):
        train(settings, tmp_path / "model")
