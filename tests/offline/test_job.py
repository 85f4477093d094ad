"""The jobs as functions: what a notebook or a task of a scheduler calls."""

import asyncio
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import polars as pl
import pytest

import hotplate
from hotplate.offline.input.sample import sample
from tests.support.examples import examples
from tests.support.memory_store import MemoryStore


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    sample(users=40, items=20).write_csv(folder / "clicks.csv")
    hotplate.train(
        hotplate.TrainSettings(str(folder / "clicks.csv"), params=hotplate.EASEParams()), str(folder / "model")
    )
    return folder / "model"


@pytest.mark.soak
def test_the_examples_of_the_docs_run(tmp_path: Path) -> None:
    clicks = sample(users=200, items=50).with_columns(pl.col("user").str.strip_prefix("u").str.strip_chars_start("0"))
    clicks.write_csv(tmp_path / "clicks.csv")

    def run(heading: str) -> str:
        (program,) = examples("docs/integration.md", heading)
        program = program.replace("file:///var/lib/hotplate", f"file://{tmp_path / 'store'}")
        command = [sys.executable, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=120).stdout

    ndcg, release, rows = run("Jobs").splitlines()
    assert 0 < float(ndcg) < 1
    assert release.endswith(" []")
    assert int(rows) > 200
    settings = hotplate.TrainSettings(str(tmp_path / "clicks.csv"), params=hotplate.ALSParams(factors=8, iterations=2))
    hotplate.train(settings, str(tmp_path / "model"))
    assert len(literal_eval(run("Models"))) == 10


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


def test_a_pipeline_is_run_once_for_each_state_of_its_data(tmp_path: Path) -> None:
    sample(users=40, items=20).write_csv(tmp_path / "clicks.csv")
    url = f"file://{tmp_path / 'store'}"
    pipeline = tmp_path / "nightly.toml"
    train = '[train]\ndata = "clicks.csv"\nengine = "ease"\nno_tune = true'
    pipeline.write_text(f'{train}\n[publish]\nstore = "{url}"\n[run]\nwork = "work"\n')
    done = hotplate.run(pipeline)
    assert (done["outcome"], done["release"]) == ("published", hotplate.verify(url).release)
    assert hotplate.run(str(pipeline))["outcome"] == "unchanged"
    pipeline.write_text("[trian]")
    with pytest.raises(hotplate.SettingError, match="may have the tables"):
        hotplate.run(pipeline)
