"""Models in MLflow, if it is installed: logged, registered, fetched and published."""

import json
from pathlib import Path

import pytest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.model_folder import save
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.interactions import checkerboard_model, write

mlflow = pytest.importorskip("mlflow")
from hotplate.offline import mlflow_models  # noqa: E402 -- it loads mlflow
from hotplate.offline.mlflow_models import Tracking  # noqa: E402 -- as above

pytestmark = pytest.mark.filterwarnings("ignore")  # by MLflow and its imports


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return uri


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(checkerboard_model(), tmp_path / "model")
    return tmp_path / "model"


def test_registered_model_is_fetched_unchanged(folder: Path, tmp_path: Path) -> None:
    logged = Tracking.of("shop@champion").log(folder, job="one")
    assert Tracking.of("shop@champion").log(folder, job="one") == logged
    assert logged.uri == "models:/shop/1"
    run = mlflow.get_run(logged.run)
    assert run.data.params["engine"] == "als"
    assert run.data.params["data.fingerprint"] == "abc"
    with pytest.raises(DataError, match=r"MLflow at sqlite:.* failed"):
        mlflow_models.fetch("models:/shop@champion", tmp_path / "early")
    logged.set_alias()
    fetched = mlflow_models.fetch("models:/shop@champion", tmp_path / "out")
    assert (fetched / "model.json").read_bytes() == (folder / "model.json").read_bytes()
    mlflow_models.record_release(mlflow_models.resolve("models:/shop@champion"), "redis://user:hidden@host/0", "r1")
    tags = mlflow.MlflowClient().get_model_version("shop", "1").tags
    assert (tags["hotplate.release"], "hidden" in json.dumps(tags)) == ("r1", False)


@pytest.mark.parametrize("text", ["", "@champion", "shop@", "a/b"])
def test_invalid_model_name_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="NAME@ALIAS"):
        Tracking.of(text)


def test_train_registers_and_publish_takes_the_version_by_its_alias(tmp_path: Path) -> None:
    rows = "".join(f"u{at % 12},i{at * at % 17}\n" for at in range(200))
    data = write(tmp_path / "data.csv", "user,item\n" + rows)
    store = f"file://{tmp_path}/store"
    quick = ("--engine", "popularity", "--no-tune", "--split", "none", "--out", tmp_path / "model")
    trained = hotplate("train", data, *quick, "--register", "shop@champion", "--json")
    json.loads(trained.stdout)
    assert "models:/shop/1 in MLflow" in trained.stderr
    release = json_of("publish", "models:/shop@champion", "--store", store)["release"]["release"]
    version = mlflow.MlflowClient().get_model_version_by_alias("shop", "champion")
    assert version.tags["hotplate.release"] == release
    failed(hotplate("publish", "models:/shop@nothing", "--store", store), "MLflow at")


def test_a_run_gives_the_alias_only_to_a_model_whose_release_is_live(tmp_path: Path) -> None:
    rows = "".join(f"u{at % 12},i{at * at % 17}\n" for at in range(200))
    write(tmp_path / "data.csv", "user,item\n" + rows)
    train = 'data = "data.csv"\nengine = "popularity"\nno_tune = true\nsplit = "none"\nregister = "shop@champion"'
    text = f'[train]\n{train}\n[publish]\nstore = "file://{tmp_path}/store"\n[run]\nwork = "work"\n'

    def run(pipeline: str) -> dict[str, str]:
        done = hotplate("run", write(tmp_path / "nightly.toml", pipeline))
        return dict(json.loads(done.stdout.splitlines()[-1]))

    done = run(text)
    assert (done["outcome"], done["tracked"]) == ("published", "models:/shop/1"), done
    assert run(text + "[gates]\noverlap = 1.0\ncoverage = 1.0\nshortest_list = 900\n")["outcome"] == "refused"
    ready = run(text.replace("[publish]", "[publish]\nactivate = false"))
    hotplate("releases", "canary", ready["release"], "--days", "14", "--store", f"file://{tmp_path}/store")
    assert run(text.replace("[publish]", '[publish]\narm = "B"'))["outcome"] == ready["outcome"] == "published"
    client = mlflow.MlflowClient()
    assert str(client.get_model_version_by_alias("shop", "champion").version) == "1"
    assert len(client.search_model_versions("name = 'shop'")) == 4


def test_run_with_a_withdrawn_release_leaves_the_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"file://{tmp_path}/store"
    train = 'data = "data.csv"\nengine = "popularity"\nno_tune = true\nsplit = "none"\nregister = "shop@champion"'
    pipeline = write(
        tmp_path / "nightly.toml", f'[train]\n{train}\n[publish]\nstore = "{store}"\n[run]\nwork = "work"\n'
    )

    def run(items: int) -> dict[str, str]:
        rows = "".join(f"u{at % 12},i{at * at % items}\n" for at in range(200))
        write(tmp_path / "data.csv", "user,item\n" + rows)
        return dict(json.loads(hotplate("run", pipeline).stdout.splitlines()[-1]))

    assert run(items=17)["outcome"] == "published"
    with monkeypatch.context() as patch:
        patch.setattr("hotplate.offline.job.prune", interrupt)
        assert run(items=19)["outcome"] == "interrupted"
    succeeded("releases", "rollback", "--store", store)
    assert run(items=19)["outcome"] == "refused"
    assert str(mlflow.MlflowClient().get_model_version_by_alias("shop", "champion").version) == "1"


def test_run_is_published_with_a_warning_if_mlflow_fails_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataError("MLflow is away")

    write(tmp_path / "data.csv", "user,item\n" + "".join(f"u{at % 12},i{at * at % 17}\n" for at in range(200)))
    train = 'data = "data.csv"\nengine = "popularity"\nno_tune = true\nsplit = "none"\nregister = "shop@champion"'
    text = f'[train]\n{train}\n[publish]\nstore = "file://{tmp_path}/store"\n[run]\nwork = "work"\n'
    pipeline = write(tmp_path / "nightly.toml", text)
    with monkeypatch.context() as outage:
        outage.setattr(mlflow_models.Logged, "set_alias", fail)
        done = hotplate("run", pipeline)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, summary["outcome"]) == (0, "published"), done.stderr
    assert "not recorded in MLflow: MLflow is away" in summary["warnings"][0]
    assert json.loads(hotplate("run", pipeline).stdout.splitlines()[-1])["outcome"] == "unchanged"
    client = mlflow.MlflowClient()
    assert str(client.get_model_version_by_alias("shop", "champion").version) == "1"
    assert len(client.search_model_versions("name = 'shop'")) == 1


async def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_alias_and_latest_are_one_version_for_all_of_a_publish(folder: Path) -> None:
    for _ in range(2):
        logged = Tracking.of("shop@champion").log(folder)
    logged.set_alias()
    assert mlflow_models.resolve("models:/shop@champion") == "models:/shop/2"
    assert mlflow_models.resolve("models:/shop/latest") == "models:/shop/2"
    assert mlflow_models.resolve("models:/shop/1") == "models:/shop/1"
    assert mlflow_models.resolve(f"runs:/{logged.run}/model") == f"runs:/{logged.run}/model"
    for without_version in ("models:/shop", "models:/m-1a2b"):
        assert mlflow_models.resolve(without_version) == without_version
        mlflow_models.record_release(without_version, "redis://h/0", "r1")
    for missing in ("models:/shop@nobody", "models:/none/latest"):
        with pytest.raises(DataError):
            mlflow_models.resolve(missing)
