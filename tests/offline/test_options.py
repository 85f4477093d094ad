"""Settings as a program constructs them: invalid values are refused with the name of the field and the value."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import hotplate
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.sample import sample
from hotplate.offline.model_folder import load
from hotplate.offline.options import Format, RuleFiles

WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (hotplate.TrainSettings, {"weighting": "Log"}, "weighting is 'Log'; it must be sum or binary or log"),
    (hotplate.TrainSettings, {"half_life": timedelta(days=-30)}, "half_life is -30 days"),
    (hotplate.TrainSettings, {"half_life": timedelta(0)}, "half_life is 0:00:00"),
    (hotplate.TrainSettings, {"popular_length": 0}, "popular_length is 0"),
    (hotplate.TrainSettings, {"k": 0}, "k is 0"),
    (hotplate.TrainSettings, {"min_per_user": 0}, "min_per_user is 0"),
    (hotplate.TrainSettings, {"min_per_item": -1}, "min_per_item is -1"),
    (hotplate.TrainSettings, {"event_weights": {"buy": -1.0}}, "event 'buy' is -1.0"),
    (hotplate.TrainSettings, {"event_weights": {"buy": float("nan")}}, "event 'buy' is nan"),
    (hotplate.TrainSettings, {"more": [pl.LazyFrame({"user": ["u"]})]}, "LazyFrame"),
    (hotplate.TrainSettings, {"params": hotplate.EASEParams(), "tuning": hotplate.TuneOptions()}, "would ignore"),
    (hotplate.Rules, {"boosts": {"p01": -2.0}}, "item 'p01' is -2.0"),
    (hotplate.Rules, {"boosts": {"p01": float("inf")}}, "item 'p01' is inf"),
    (hotplate.ListSettings, {"length": 0}, "length is 0"),
    (hotplate.ListSettings, {"attributes": pl.LazyFrame({"item": ["p"]})}, "LazyFrame"),
    (hotplate.PublishSettings, {"keep": -1}, "keep is -1; it must be at least 0"),
    (hotplate.PublishSettings, {"encoding": "gzip"}, "encoding is 'gzip'; it must be json or zstd"),
    (hotplate.PublishSettings, {"arm": "C"}, "arm is 'C'; it must be A or B"),
    (Format, {"max_bad_rows": 1.5}, "max_bad_rows is 1.5; it must be at most 1"),
    (Format, {"max_bad_rows": float("nan")}, "max_bad_rows is nan"),
    (RuleFiles, {"min_history": 0}, "min_history is 0"),
    (RuleFiles, {"diversity": 1.0}, "diversity is 1.0"),
]


@pytest.mark.parametrize(("settings", "values", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_invalid_value_is_refused_by_name(settings: Callable[..., Any], values: dict[str, Any], message: str) -> None:
    if settings is hotplate.TrainSettings:
        values = {"path": "clicks.csv", **values}
    with pytest.raises(SettingError, match=message):
        settings(**values)


def test_searched_engine_takes_its_default_params() -> None:
    tuning = hotplate.TuneOptions(engine="ease")
    settings = hotplate.TrainSettings("clicks.csv", params=hotplate.EASEParams(), tuning=tuning)
    assert settings.tuning == tuning
    with pytest.raises(SettingError, match="would ignore"):
        hotplate.TrainSettings("clicks.csv", params=hotplate.EASEParams(regularization=7.0), tuning=tuning)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    settings = hotplate.TrainSettings(sample(users=40, items=20), params=hotplate.EASEParams(), split=None)
    hotplate.train(settings, str(folder / "model"))
    return folder / "model"


def test_named_lists_share_settings_of_attributes(model: Path, tmp_path: Path) -> None:
    items = pl.DataFrame({"item": ["p1", "p2"], "price": ["10", "12"]})
    lists = hotplate.ListSettings(attributes=items, attribute_kinds={"price": "number"})
    written = hotplate.publish({"home": model, "basket": model}, f"file://{tmp_path}/store", lists=lists)
    assert written.result.manifest.about["item_attributes"]["columns"] == {"price": "number"}


def test_unknown_kind_of_attribute_is_refused(model: Path, tmp_path: Path) -> None:
    lists = hotplate.ListSettings(
        attributes=pl.DataFrame({"item": ["p1"], "price": ["1"]}), attribute_kinds={"price": "txt"}
    )
    with pytest.raises(SettingError, match="'price' is 'txt'; write NAME=number, text, date or list"):
        hotplate.publish(model, f"file://{tmp_path}/store", lists=lists)


def test_force_publishes_with_few_available_items(model: Path, tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    available = frozenset(load(model).matrix.item_ids[:2])
    lists = hotplate.ListSettings(rules=hotplate.Rules(available=available))
    with pytest.raises(DataError, match="Only 2 of"):
        hotplate.publish(model, store, lists=lists)
    assert hotplate.publish(model, store, hotplate.PublishSettings(force=True), lists).refused is None
