"""What an operator types to look after releases, and what it refuses."""

import asyncio
import secrets
from pathlib import Path

import pytest

from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.redis_server import RedisServer
from tests.support.service import a_list, publish_lists

LISTS = {f"user:{n:04}": a_list(str(n), "x") for n in range(300)}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    path = tmp_path / "lists.csv"
    path.write_text("user,item,score\n" + "".join(f"{n},a,1\n{n},b,0.5\n" for n in range(20)))
    return path


def releases(store: Path, *, live: bool = True) -> str:
    return asyncio.run(publish_lists(store, LISTS, live=live))


def catalogue_of(url: str) -> dict[str, object]:
    found: dict[str, object] = json_of("releases", "list", "--store", url)
    return found


def file_of(store: Path, url: str, release: str) -> Path:
    (entry,) = (one for one in catalogue_of(url)["releases"] if one["id"] == release)  # type: ignore[attr-defined]  # JSON
    return store / "releases" / f"{entry['incarnation']}.mdb"


def test_a_rollback_onto_a_file_that_was_cut_is_refused_unless_forced(tmp_path: Path, url: str) -> None:
    target, live = releases(tmp_path / "store"), releases(tmp_path / "store")
    path = file_of(tmp_path / "store", url, target)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for verb in (["rollback"], ["activate", target], ["canary", target]):
        failed(hotplate("releases", *verb, "--store", url), f"Release {target} cannot be served", "was cut", "--force")
        assert (catalogue_of(url)["live"], catalogue_of(url)["canary"]) == (live, None)
    assert hotplate("releases", "rollback", "--force", "--store", url).returncode == 0
    assert catalogue_of(url)["live"] == target


def test_an_import_leaves_a_running_canary_alone_and_exits_with_3(tmp_path: Path, url: str, lists: Path) -> None:
    live, canary = releases(tmp_path / "store"), releases(tmp_path / "store", live=False)
    assert hotplate("releases", "canary", canary, "--store", url).returncode == 0
    done = hotplate("import", lists, "--store", url)
    assert (done.returncode, "is ready" in done.stdout) == (3, True)
    assert f"Release {canary} is the canary" in done.stderr
    found = catalogue_of(url)
    assert (found["live"], found["canary"]) == (live, {"release": canary, "percent": 5.0, "salt": canary})
    new = found["releases"][-1]["id"]  # type: ignore[index]  # JSON
    failed(hotplate("releases", "activate", new, "--store", url), "promote or abort the canary first", code=3)
    succeeded("releases", "copy", "--from", url, "--to", f"file://{tmp_path}/other", new)
    assert hotplate("import", lists, "--end-canary", "--store", url).returncode == 0
    assert catalogue_of(url)["canary"] is None


def test_a_promotion_names_the_canary_that_was_seen(tmp_path: Path, url: str) -> None:
    live = releases(tmp_path / "store")
    seen, other = (releases(tmp_path / "store", live=False) for _ in range(2))
    assert hotplate("releases", "canary", other, "--store", url).returncode == 0
    for verb in ("promote", "abort"):
        failed(hotplate("releases", verb, seen, "--store", url), f"Release {seen} is not the canary any more")
    assert catalogue_of(url)["live"] == live
    assert hotplate("releases", "promote", other, "--store", url).returncode == 0
    assert catalogue_of(url)["live"] == other


def test_a_scrub_finds_rows_that_redis_has_lost_and_a_copy_brings_them_back(
    redis_server: RedisServer, tmp_path: Path, url: str
) -> None:
    release, target = releases(tmp_path / "store"), redis_server.url(prefix=(prefix := secrets.token_hex(4)))
    assert hotplate("releases", "copy", "--from", url, "--to", target).returncode == 0
    assert "is complete: 301 rows" in hotplate("releases", "scrub", "--rate", "100000", "--store", target).stdout
    lost = redis_server.execute_command("KEYS", f"{prefix}:*:user:00*")
    redis_server.execute_command("DEL", *lost)
    failed(
        hotplate("releases", "scrub", "--rate", "100000", "--store", target),
        f"Of release {release}, 100 of 302 rows are missing",
    )
    done = hotplate("releases", "copy", "--from", url, "--to", target)
    assert (
        done.stdout
        == f"{release} is live, repaired, in {target.partition('?')[0]}: 301 rows written, 0 had been written before\n"
    )
    assert hotplate("releases", "scrub", "--rate", "100000", "--store", target).returncode == 0
