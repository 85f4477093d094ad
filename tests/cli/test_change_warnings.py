"""Changes that took place, although a later step failed: exit code 0, and warnings in text and JSON."""

import json
from pathlib import Path

import pytest

from tests.support.command import hotplate, json_of
from tests.support.service import a_list, published
from tests.support.throttled_store import open_url


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two releases of the store `store`, the second of which is live; its throughput cannot be changed."""
    ids = [published(tmp_path / "store", {"user:1": a_list(mark)}) for mark in "ab"]
    monkeypatch.setattr("hotplate.stores.file.store.open_url", open_url)
    return ids


@pytest.fixture
def store(releases: list[str], tmp_path: Path) -> str:
    assert releases
    return f"file://{tmp_path}/store"


def test_each_change_has_the_warnings_in_text_and_in_json(releases: list[str], store: str) -> None:
    first, second = releases
    unconfirmed = "its throughput is not confirmed: it was changed too often"
    changes = [
        (("rollback",), f"release {first} is live; {unconfirmed}"),
        (("activate", second), f"release {second} is live; {unconfirmed}"),
        (("canary", first), f"release {second} is live; {unconfirmed}"),
        (("abort",), f"release {first} was to be scaled down unless it is served; {unconfirmed}"),
    ]
    for verb, warning in changes:
        done = hotplate("releases", *verb, "--json", "--store", store)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["warnings"][0] == warning
        assert f"hotplate: {warning}\n" in done.stderr
    done = hotplate("releases", "activate", second, "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert "warnings" not in json_of("releases", "activate", second, "--store", store)


def test_publish_that_cannot_prune_is_live_with_a_warning(store: str, tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\n1,a,1.0\n")
    printed = json_of("import", lists, "--force", "--store", store)
    release = printed["release"]["release"]
    assert (printed["live"], printed["erased"]) == (True, [])
    assert printed["warnings"] == [
        f"release {release} is live; its throughput is not confirmed: it was changed too often",
        f"release {release} is written, but pruning failed: it was changed too often",
    ]
    assert json_of("releases", "list", "--store", store)["live"] == release


def test_rebuilt_catalogue_whose_release_is_not_prepared_is_written(
    releases: list[str], store: str, tmp_path: Path
) -> None:
    _, second = releases
    (tmp_path / "store" / "catalogue.json").unlink()
    printed = json_of("store", "rebuild", "--live", second, "--store", store)
    assert printed["live"] == second
    assert printed["warnings"] == [
        f"release {second} is live in the new catalogue; that it can be served is not sure: it was changed too often"
    ]
