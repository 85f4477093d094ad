"""The verbs of `hotplate store`, end to end, and the recipe of the docs by which a copy of Redis is kept."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.redis_server import running
from tests.support.service import a_list, publish_lists, publish_to


def test_the_doctor_prints_a_line_for_each_finding_and_exits_by_the_errors(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    release = asyncio.run(publish_lists(folder, {"user:1": a_list("a")}))
    done = hotplate("store", "doctor", "--store", f"file://{folder}")
    assert (done.returncode, done.stderr) == (0, "")
    where, *lines, summary = done.stdout.splitlines()
    assert (where, summary) == (f"file://{folder}", "0 errors, 0 warnings")
    assert all(line.startswith("ok ") for line in lines)
    assert any(release in line for line in lines)
    (folder / "catalogue.json").write_text("{")
    done = hotplate("store", "doctor", "--json", "--store", f"file://{folder}")
    assert (done.returncode, done.stderr) == (1, "")
    printed = json.loads(done.stdout)
    assert (printed["store"], printed["fit"]) == (f"file://{folder}", False)
    assert [each["subject"] for each in printed["findings"] if each["level"] == "error"] == ["catalogue"]


def test_doctor_reports_unreachable_store_without_traceback_or_password(tmp_path: Path) -> None:
    done = hotplate("store", "doctor", "--store", "redis://user:secret@127.0.0.1:1/0")
    assert done.returncode == 1
    assert "error" in done.stdout
    assert "redis://127.0.0.1:1/0 cannot be reached" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    failed(hotplate("store", "doctor", "--store", "nowhere://"), "is not the URL of a store", code=2)
    assert "warning" in hotplate("store", "doctor", "--store", f"file://{tmp_path}/none").stdout


def test_each_verb_that_changes_a_store_names_it(tmp_path: Path) -> None:
    lists, folder = tmp_path / "lists.csv", f"file://{tmp_path}/data/hotplate"
    lists.write_text("user,item,score\n1,a,1.0\n2,a,0.9\n")
    data = {"XDG_DATA_HOME": str(tmp_path / "data")}
    printed = succeeded("import", lists, **data)
    assert f"is live in {folder} (the default, as no --store was given)" in printed
    succeeded("import", lists, HOTPLATE_STORE=folder)
    release = json_of("import", lists, "--no-activate", "--store", folder)["release"]["release"]
    verbs = [
        ("canary", release), ("abort",), ("canary", release), ("promote",), ("rollback",), ("activate", release),
        ("prune", "--grace", "0"),
    ]  # fmt: skip
    for verb in verbs:
        assert f" in {folder}" in succeeded("releases", *verb, "--store", folder), verb
    assert json_of("releases", "prune", "--store", folder)["store"] == folder
    assert f"1 user of 1 are erased from {folder}" in succeeded("users", "erase", "1", "--store", folder)
    other = f"file://{tmp_path}/other"
    assert f" in {other}: " in succeeded("releases", "copy", "--from", folder, "--to", other)
    assert f" in {other}" in succeeded("releases", "repair", "--from", folder, "--store", other)


@pytest.mark.parametrize(
    "verb",
    [
        ("releases", "list"), ("releases", "show", "x"), ("releases", "activate", "x"), ("releases", "rollback"),
        ("releases", "canary", "x"), ("releases", "promote"), ("releases", "abort"), ("releases", "prune"),
        ("releases", "verify"), ("releases", "scrub"), ("lookup", "42"),
        ("users", "find", "1"), ("users", "erase", "1"), ("store", "rebuild"),
    ],
)  # fmt: skip
def test_a_store_that_does_not_exist_is_said_not_to_exist(verb: tuple[str, ...], tmp_path: Path) -> None:
    url = f"file://{tmp_path}/typo"
    failed(hotplate(*verb, "--store", url), f"Nothing was ever published to {url}, and the folder does not exist")
    assert not (tmp_path / "typo").exists()


def test_a_copy_or_a_repair_from_a_store_that_does_not_exist_names_it(tmp_path: Path) -> None:
    there, absent = f"file://{tmp_path}/store", f"file://{tmp_path}/typo"
    asyncio.run(publish_lists(tmp_path / "store", {"user:1": a_list("a")}))
    failed(hotplate("releases", "copy", "--from", absent, "--to", there), f"was ever published to {absent}")
    failed(hotplate("releases", "repair", "--from", absent, "--store", there), f"was ever published to {absent}")


def test_a_store_is_backed_up_and_put_back(tmp_path: Path) -> None:
    store, copied = f"file://{tmp_path}/store", tmp_path / "copied"
    first = asyncio.run(publish_lists(tmp_path / "store", {"user:1": a_list("a")}))
    done = json_of("store", "backup", copied, "--store", store)
    assert (done["live"], done["releases"]) == (first, [first])
    assert "is complete" in hotplate("releases", "verify", "--store", f"file://{copied}").stdout
    second = asyncio.run(publish_lists(tmp_path / "store", {"user:1": a_list("b")}))
    failed(hotplate("store", "restore", copied, "--store", store), "holds a store already")
    printed = hotplate("store", "restore", copied, "--over", "--store", store).stdout
    assert f"{store} is restored from {copied}" in printed
    listed = json_of("releases", "list", "--store", store)
    assert (listed["live"], second in {entry["id"] for entry in listed["releases"]}) == (first, True)
    done = json_of("store", "restore", copied, "--store", f"file://{tmp_path}/other")
    assert done["live"] == first


def test_a_backup_of_another_store_or_into_what_is_there_is_refused(tmp_path: Path) -> None:
    asyncio.run(publish_lists(tmp_path / "store", {"user:1": a_list("a")}))
    store = f"file://{tmp_path}/store"
    (tmp_path / "mine").write_text("mine")
    failed(hotplate("store", "backup", tmp_path, "--store", store), "is there already", code=2)
    failed(hotplate("store", "backup", tmp_path / "new", "--store", "redis://localhost:1/0"), "file:// stores", code=2)
    failed(hotplate("store", "backup", tmp_path / "new", "--store", f"file://{tmp_path}/none"), "nothing was ever")
    failed(hotplate("store", "restore", tmp_path / "none", "--store", f"file://{tmp_path}/new"), "nothing was ever")


def test_a_lost_catalogue_is_rebuilt_from_the_releases_that_the_store_holds(tmp_path: Path) -> None:
    folder, store = tmp_path / "store", f"file://{tmp_path}/store"
    first, second = [asyncio.run(publish_lists(folder, {"user:1": a_list(text)})) for text in ("a", "b")]
    (folder / "catalogue.json").write_bytes(bytes(65_536))
    failed(hotplate("releases", "list", "--store", store), "`hotplate store rebuild` writes a new one")
    listed = hotplate("store", "rebuild", "--store", store)
    assert listed.returncode == 2, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["release", first, second]
    assert "say with --live ID which one is to be live" in listed.stderr
    failed(hotplate("store", "rebuild", "--store", store, "--live", "none"), f"it holds {first}, {second}")
    printed = json_of("store", "rebuild", "--store", store, "--live", first)
    assert (printed["live"], printed["not_taken_up"]) == (first, {})
    assert [(one["id"], one["state"], one["rows"], one["damage"]) for one in printed["releases"]] == [
        (first, "live", 2, None),
        (second, "ready", 2, None),
    ]
    failed(hotplate("store", "rebuild", "--store", store), "there is nothing to rebuild")
    assert "is complete" in hotplate("releases", "verify", second, "--store", store).stdout


def test_the_only_release_becomes_live(tmp_path: Path) -> None:
    lists, store = tmp_path / "lists.csv", f"file://{tmp_path}/store"
    lists.write_text("user,item,score\n1,a,1.0\n1,b,0.5\n2,a,0.9\n")
    succeeded("import", lists, "--store", store, "--gate", "shortest_list=2", "--force", "--json")
    (tmp_path / "store" / "catalogue.json").unlink()
    rebuilt = succeeded("store", "rebuild", "--store", store)
    assert f"is live in {store}, by a new catalogue of 1 release" in rebuilt
    assert "is complete" in hotplate("releases", "verify", "--store", store).stdout


LISTS = {f"user:{n:03}": a_list(str(n), "x") for n in range(300)}


def published(url: str, lists: dict[str, bytes]) -> str:
    return asyncio.run(publish_to(url, lists))


def looked_up(url: str, user: str) -> tuple[str, str, str]:
    found = json_of("lookup", user, "--store", url)
    return found["release"], found["source"], found["items"][0]["id"]


def test_a_dump_of_redis_brings_it_back(tmp_path: Path) -> None:
    redis_cli = shutil.which("redis-cli")
    if redis_cli is None:
        pytest.skip("no redis-cli on the PATH; on Debian or Ubuntu: apt-get install redis-tools")
    with running(tmp_path) as server:
        first = published(server.url(), LISTS)
        dump = tmp_path / "backup.rdb"
        subprocess.run([redis_cli, "-p", str(server.port), "--rdb", str(dump)], check=True, capture_output=True)
        second = published(server.url(), {"user:007": a_list("z")})
        assert looked_up(server.url(), "007") == (second, "personal", "z")
        server.kill()
        shutil.copy(dump, tmp_path / "dump.rdb")
        server.start()
        assert looked_up(server.url(), "007") == (first, "personal", "7")
        assert hotplate("releases", "verify", "--store", server.url()).returncode == 0
        third = published(server.url(), LISTS)
        assert looked_up(server.url(), "008") == (third, "personal", "8")
