"""`hotplate models`, and publishing from the registry: from data to the release that a model became, as typed."""

from pathlib import Path

import pytest

from hotplate.offline.model import save
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.interactions import checkerboard_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    save(checkerboard_model(), folder)
    return folder


def test_a_model_goes_from_a_folder_to_a_stage_to_a_release_and_all_of_it_is_on_record(
    model: Path, tmp_path: Path
) -> None:
    registry, store = f"file://{tmp_path}/models", f"file://{tmp_path}/store"
    registered = hotplate("models", "register", model, "shop", "--tag", "owner=search", HOTPLATE_REGISTRY=registry)
    assert "shop@1" in registered.stdout, registered.stderr
    tagged = hotplate("models", "tag", "shop@1", "checked=yes", "--stage", "production", "--registry", registry)
    assert "checked=yes, owner=search" in tagged.stdout
    succeeded("publish", "shop@production", "--registry", registry, "--store", store, "--dry-run")
    release = json_of("publish", "shop@production", "--registry", registry, "--store", store)["release"]["release"]
    shown = hotplate("models", "show", "shop@production", "--registry", registry)
    for part in ("fingerprint abc", "factors 8", "Python 3.", release, f"in {store}"):
        assert part in shown.stdout
    (entry,) = json_of("models", "list", "--registry", registry)["models"]
    assert [each["id"] for each in entry["releases"]] == [release]
    assert "production" in hotplate("models", "list", "shop", "--registry", registry).stdout
    pulled = hotplate("models", "pull", "shop@1", "--out", tmp_path / "out", "--registry", registry)
    assert pulled.stdout == f"shop@1 written to {tmp_path / 'out'}\n"
    assert hotplate("publish", tmp_path / "out", "--store", store).returncode == 0


def test_mistakes_are_sentences(model: Path, tmp_path: Path) -> None:
    registry = ("--registry", f"{tmp_path}/models")
    failed(hotplate("models", "show", "shop", *registry), "There is no model shop", "it has no models")
    failed(hotplate("publish", "shop@production", *registry), "There is no model shop")
    failed(hotplate("models", "tag", "shop@1", *registry), "nothing to change", code=2)
    failed(hotplate("models", "tag", "shop@1", "checked", *registry), "KEY=VALUE", code=2)
    failed(hotplate("models", "register", model, "a/b", *registry), "'a/b' cannot be the name of a model", code=2)
    failed(hotplate("models", "list", "--registry", "nope://user:hidden@models"), "not a URL of a registry", code=2)
    assert hotplate("models", "list", *registry).stdout == "the registry holds no models\n"
