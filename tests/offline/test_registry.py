"""The registry: numbers are given once, nothing half-made is listed, and what a model came to be is on record."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.model import load, save
from hotplate.offline.registry import Registry
from hotplate.stores.catalogue import ReleaseId
from tests.support.interactions import checkerboard_model

REGISTER = "import sys; from pathlib import Path; from hotplate.offline.registry import Registry; "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry") / "model"
    save(checkerboard_model(), folder)
    return folder


@pytest.fixture(params=["folder", "file", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    name = f"models [{uuid.uuid4().hex}]"  # brackets mean nothing here
    urls = {"folder": f"{tmp_path}/{name}", "file": f"file://{tmp_path}/{name}", "memory": f"memory://{name}"}
    yield Registry(urls[request.param])
    memory = fsspec.filesystem("memory")
    for file in memory.find(name):
        memory.rm_file(file)


def test_the_code_that_is_recorded_is_that_of_the_training(registry: Registry, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    described = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps(described | {"python": "3.11.0"}))
    origin, same = registry.register(other, "shop").origin, registry.register(model, "shop").origin
    assert (origin["python"], origin["registered_with"]["python"]) == ("3.11.0", described["python"])
    assert "python" not in same.get("registered_with", {})


def test_a_model_comes_back_as_it_was_registered_with_all_that_is_known_of_it(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    assert registry.entries() == []
    entry = registry.register(model, "shop", {"owner": "search"}, "staging")
    assert (entry.reference, entry.stages, entry.tags) == ("shop@1", ("staging",), {"owner": "search"})
    assert entry.origin["data"] == {"fingerprint": "abc"}
    assert entry.origin["params"]["factors"] == 8
    assert entry.origin["metrics"] == {"ndcg": 0.5}
    assert entry.origin["python"] == ".".join(map(str, sys.version_info[:3]))
    out = tmp_path / "pulled"
    assert registry.pull("shop@staging", out) == entry
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        file.name: file.read_bytes() for file in model.iterdir()
    }
    registry.pull("shop", out)  # another model there is replaced
    assert np.array_equal(load(out).matrix.user_items.toarray(), load(model).matrix.user_items.toarray())


def test_a_stage_is_one_versions_and_moves(registry: Registry, model: Path) -> None:
    for _ in range(2):
        registry.register(model, "shop", stage="production")
    registry.register(model, "other", stage="production")
    assert registry.find("shop@production").version == 2
    assert registry.change("shop@1", {"checked": "yes"}, "production").stages == ("production",)
    assert [entry.stages for entry in registry.entries("shop")] == [("production",), ()]
    assert registry.find("other@production").version == 1
    assert registry.find("shop").version == 2
    assert registry.find("shop@1").tags == {"checked": "yes"}


def test_releases_are_recorded_once_without_secrets(registry: Registry, model: Path) -> None:
    registry.register(model, "shop")
    for _ in range(2):
        registry.record_release("shop@1", "redis://user:secret@cache/0?x=secret", ReleaseId("20261121T000000Z-abcd"))
    (release,) = registry.find("shop").releases
    assert (release.id, release.store) == ("20261121T000000Z-abcd", "redis://cache/0")


def test_two_at_once_never_take_one_version(registry: Registry, model: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: registry.register(model, "shop", stage="staging"), range(6)))
    assert sorted(entry.version for entry in made) == [1, 2, 3, 4, 5, 6]
    assert [entry.version for entry in registry.entries("shop")] == [1, 2, 3, 4, 5, 6]
    assert sum(entry.stages == ("staging",) for entry in registry.entries("shop")) == 1


def test_a_registration_that_was_killed_is_never_listed_and_removed_by_the_next(tmp_path: Path, model: Path) -> None:
    root = tmp_path / "models"
    kill = "import os, fsspec; fsspec.filesystem('file').put_file = lambda *_: os.kill(os.getpid(), 9); "
    register = "Registry(sys.argv[1]).register(Path(sys.argv[2]), 'shop')"
    command = [sys.executable, "-c", REGISTER + kill + register, str(root), str(model)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in root.rglob("*.json")] == ["claim.json"]
    registry = Registry(str(root))
    assert registry.entries() == []
    with pytest.raises(DataError, match="it has no models"):
        registry.find("shop")
    (root / "shop" / "1" / "entry.json").write_text('{"name": "sh')  # as a kill leaves it while it is written
    assert registry.entries() == []
    assert registry.register(model, "shop").version == 1
    assert sorted(path.name for path in (root / "shop" / "1").iterdir()) == ["claim.json", "entry.json", "model"]


@pytest.mark.parametrize(
    ("since", "removed"), [("2026-11-01T00:00:00+00:00", True), ("2999-01-01T00:00:00+00:00", False)]
)
def test_what_another_host_began_is_removed_after_a_day(since: str, removed: bool, tmp_path: Path, model: Path) -> None:  # noqa: FBT001 -- as parametrized
    begun = tmp_path / "shop" / "1" / "claim.json"
    begun.parent.mkdir(parents=True)
    begun.write_text(json.dumps({"token": "", "host": "elsewhere", "process": os.getpid(), "since": since}))
    assert Registry(str(tmp_path)).register(model, "shop").version == (1 if removed else 2)


def test_a_copy_that_was_cut_is_not_pulled_and_a_cut_model_not_registered(tmp_path: Path, model: Path) -> None:
    registry = Registry(str(tmp_path / "models"))
    registry.register(model, "shop")
    factors = tmp_path / "models" / "shop" / "1" / "model" / "item_factors.npy"
    factors.write_bytes(factors.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"item_factors.npy of shop@1 in .* is cut"):
        registry.pull("shop", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="is cut or changed"):
        registry.register(factors.parent, "shop")
    with pytest.raises(DataError, match="no model folder"):
        registry.register(tmp_path / "nothing", "shop")
    assert len(registry.entries()) == 1


def test_a_registration_that_fails_leaves_nothing_behind(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", full)
    with pytest.raises(DataError, match="No space left on device"):
        Registry(str(tmp_path / "models")).register(model, "shop")
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file()] == []


def test_what_is_no_registry_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for url, reason in (("", "is empty"), (str(tmp_path / "file"), "is not a folder")):
        with pytest.raises(SettingError, match=reason):
            Registry(url)


def test_a_model_of_an_engine_that_is_not_known_is_not_registered(tmp_path: Path, model: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    described = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps(described | {"engine": "bpr"}))
    with pytest.raises(DataError, match="'bpr' is not known"):
        Registry(str(tmp_path / "models")).register(other, "shop")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "é", "a" * 101, "shop@1"])
def test_a_name_that_is_no_path_is_refused(name: str, tmp_path: Path, model: Path) -> None:
    registry = Registry(str(tmp_path / "models"))
    with pytest.raises(SettingError, match="cannot be the name of a model"):
        registry.register(model, name)
    with pytest.raises(SettingError, match="cannot be the name of a stage"):
        registry.register(model, "shop", stage="1")
    with pytest.raises(SettingError, match="cannot be the name of a tag"):
        registry.register(model, "shop", {name: "x"})
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_exist_is_said_with_what_does(tmp_path: Path, model: Path) -> None:
    registry = Registry(str(tmp_path))
    registry.register(model, "shop", stage="staging")
    with pytest.raises(DataError, match=r"no model shoe in .*; models: shop"):
        registry.find("shoe@1")
    for which in ("2", "production", ""):
        with pytest.raises(DataError, match=r"no version or stage .*; versions: 1, stages: staging"):
            registry.find(f"shop@{which}")


@pytest.mark.parametrize(("url", "package"), [("az://c/models", "adlfs"), ("s3://b/models", "s3fs")])
def test_a_package_that_is_missing_is_named(url: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(SettingError, match=f"Install {package}"):
        Registry(url)


def test_no_credential_of_a_url_reaches_an_error(tmp_path: Path, model: Path) -> None:
    with pytest.raises(SettingError) as unknown:
        Registry("nope://user:hidden@host/models?key=hidden")
    (tmp_path / "file").touch()
    unusable = Registry(f"file://{tmp_path}/file/hidden@models")
    with pytest.raises(DataError) as failed:
        unusable.register(model, "shop")
    assert "hidden" not in f"{unknown.value} {failed.value}"
    assert "Not a directory" in str(failed.value)
