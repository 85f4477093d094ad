"""The jobs as functions: what a notebook or a task of a scheduler calls."""

import asyncio
import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import hotplate
import hotplate.offline
from hotplate.offline.errors import DataError
from hotplate.offline.input.sample import sample
from tests.support.memory_store import MemoryStore


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    sample(users=40, items=20).write_csv(folder / "clicks.csv")
    hotplate.train(
        hotplate.TrainSettings(str(folder / "clicks.csv"), params=hotplate.EASEParams()), str(folder / "model")
    )
    return folder / "model"


async def test_release_functions_work_inside_a_running_loop(model: Path, tmp_path: Path) -> None:
    assert asyncio.get_running_loop().is_running()
    store_url = f"file://{tmp_path / 'one'}"
    other = f"file://{tmp_path / 'other'}"
    first, second = (hotplate.publish(str(model), store_url).result.manifest for _ in range(2))
    assert hotplate.verify(store_url) == second
    assert hotplate.rollback(store_url) == first.release
    assert hotplate.copy(store_url, other).manifest == first == hotplate.verify(other, first.release)
    hotplate.activate(store_url, second.release)
    assert hotplate.prune(store_url, keep=0, grace_s=0) == [first.release]
    with pytest.raises(hotplate.ReleaseNotFound):
        hotplate.activate(store_url, first.release)
    with pytest.raises(hotplate.StoreMisused, match="both stores"):
        hotplate.copy(store_url, store_url)


def test_failed_gate_is_an_error_and_live_release_stays(model: Path) -> None:
    store = MemoryStore()
    live = hotplate.publish(hotplate.load_model(model), store).result.manifest.release
    with pytest.raises(hotplate.GateFailed, match="coverage") as refused:
        hotplate.publish(model, store, hotplate.PublishSettings(gates={"coverage": 1.0}), hotplate.ListSettings(1))
    assert refused.value.result.manifest.release != live == asyncio.run(store.catalogue()).live


@pytest.mark.parametrize("name", ["state.json", "model.json", "items.parquet", "similar.npz"])
def test_a_run_keeps_a_model_that_cannot_be_read_for_a_moment(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(users=40, items=20).write_csv(tmp_path / "clicks.csv")
    pipeline = tmp_path / "nightly.toml"
    train = '[train]\ndata = "clicks.csv"\nengine = "als"\nno_tune = true'
    publish = f'[publish]\nstore = "file://{tmp_path / "store"}"\navailable = "available.csv"'
    pipeline.write_text(f'{train}\n{publish}\n[run]\nwork = "work"\n')
    (tmp_path / "available.csv").write_text("stock\n")
    with pytest.raises(DataError, match="looks like the item"):  # after the training
        hotplate.run(pipeline)
    trained = [path.read_bytes() for path in (tmp_path / "work").glob("model-*/model.json")]
    clicks = pl.read_csv(tmp_path / "clicks.csv")
    clicks.select("item").unique().write_csv(tmp_path / "available.csv")

    open_file = Path.open

    def failing(file: Path, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 -- as of Path.open
        if file.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return open_file(file, *arguments, **options)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "open", failing)
        with pytest.raises(DataError, match=rf"cannot be read at present: .*{name}.*; try again"):
            hotplate.run(pipeline)

    done = hotplate.run(pipeline)
    assert (done["outcome"], "train" in done["seconds"]) == ("published", False)
    assert [path.read_bytes() for path in (tmp_path / "work").glob("model-*/model.json")] == trained


class RegistryStandIn:
    """Stands in for `hotplate.offline.mlflow_models` with a registry that may be away, and records the calls."""

    def __init__(self) -> None:
        self.away = set[str]()
        self.calls = list[str]()
        self.Tracking = SimpleNamespace(of=lambda _: SimpleNamespace(log=self._log))

    def _log(self, _: Path, job: str) -> SimpleNamespace:
        assert job
        self._call("log")
        return SimpleNamespace(
            uri="models:/shop/1",
            record_release=lambda *_: self._call("record_release"),
            set_alias=lambda: self._call("set_alias"),
        )

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.away:
            raise DataError("MLflow is away")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> RegistryStandIn:
    registry = RegistryStandIn()
    monkeypatch.setitem(sys.modules, "hotplate.offline.mlflow_models", registry)
    monkeypatch.setattr(hotplate.offline, "mlflow_models", registry, raising=False)
    return registry


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Return a pipeline that registers its model and publishes to the folder `store` next to it."""
    sample(users=40, items=20).write_csv(tmp_path / "clicks.csv")
    train = '[train]\ndata = "clicks.csv"\nengine = "popularity"\nno_tune = true\nregister = "shop@champion"'
    publish = f'[publish]\nstore = "file://{tmp_path / "store"}"'
    path = tmp_path / "nightly.toml"
    path.write_text(f'{train}\n{publish}\n[run]\nwork = "work"\n')
    return path


def test_a_run_repeats_a_note_of_its_release_that_failed(registry: RegistryStandIn, pipeline: Path) -> None:
    def run(*away: str) -> tuple[str, bool, list[str]]:
        """Run with these calls failing; return the outcome, whether there is a warning, and the calls."""
        registry.away = set(away)
        registry.calls.clear()
        done = hotplate.run(pipeline)
        return done["outcome"], "not recorded in MLflow" in str(done.get("warnings")), registry.calls.copy()

    noted = ["log", "record_release", "set_alias"]
    assert run("set_alias") == ("published", True, noted)
    assert run("log") == ("unchanged", True, noted[:1])
    assert run("record_release") == ("unchanged", True, noted[:2])
    assert run() == ("unchanged", False, noted)
    assert run() == ("unchanged", False, [])


def test_a_repeated_note_sets_no_alias_if_another_release_went_live(registry: RegistryStandIn, pipeline: Path) -> None:
    registry.away = {"set_alias"}
    model = hotplate.run(pipeline)["model"]
    hotplate.publish(str(model), f"file://{pipeline.parent / 'store'}")
    registry.away.clear()
    registry.calls.clear()
    assert hotplate.run(pipeline)["outcome"] == "unchanged"
    assert registry.calls == ["log", "record_release"]


def test_a_run_repeats_a_note_of_a_refused_release(registry: RegistryStandIn, pipeline: Path) -> None:
    gated = "list_length = 2\n[gates]\ncoverage = 1.0\n[run]"
    pipeline.write_text(pipeline.read_text().replace("[run]", gated))
    registry.away = {"record_release"}
    assert hotplate.run(pipeline)["outcome"] == "refused"
    registry.away.clear()
    registry.calls.clear()
    again = hotplate.run(pipeline)
    assert (again["outcome"], again.get("warnings")) == ("refused", None)
    assert registry.calls == ["log", "record_release"]
    hotplate.run(pipeline)
    assert registry.calls == ["log", "record_release"]


def test_a_refused_release_that_was_erased_is_not_to_be_activated(
    registry: RegistryStandIn,  # noqa: ARG001 -- stands in for MLflow
    pipeline: Path,
) -> None:
    hotplate.run(pipeline)
    gated = "list_length = 2\n[gates]\ncoverage = 1.0\n[run]"
    pipeline.write_text(pipeline.read_text().replace("[run]", gated))
    refused = hotplate.run(pipeline)
    assert f"releases activate --force {refused['release']}" in refused["error"]
    hotplate.prune(f"file://{pipeline.parent / 'store'}", grace_s=0, keep_ready_s=0)
    again = hotplate.run(pipeline)
    assert again["outcome"] == "refused"
    assert f"release {refused['release']} was refused, and erased since" in again["error"]
