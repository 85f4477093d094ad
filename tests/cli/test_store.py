"""Commands that look after stores, releases and users, and their refusals."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

import hotplate as hotplate_library
from hotplate.cli.releases import prune
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.event_log import LogSegment
from hotplate.stores.file.store import open_url
from hotplate.stores.lifecycle import rollback
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.redis_server import RedisServer
from tests.support.redis_server import running as redis_running
from tests.support.service import a_list, published, running


def test_the_doctor_prints_a_line_for_each_finding_and_exits_by_the_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotplate.stores.doctor.BUDGET_S", 60.0)  # a slower read is a warning
    folder = tmp_path / "store"
    release = published(folder, {"user:1": a_list("a")})
    done = hotplate("store", "doctor", "--store", f"file://{folder}")
    assert (done.returncode, done.stderr) == (0, "")
    answer, *lines = done.stdout.splitlines()
    assert answer == f"file://{folder} can be served from and published to: 0 errors, 0 warnings"
    assert all(line.startswith("ok ") for line in lines)
    assert any(release in line for line in lines)
    (folder / "catalogue.json").write_text("{")
    done = hotplate("store", "doctor", "--json", "--store", f"file://{folder}")
    assert (done.returncode, done.stderr) == (1, "")
    printed = json.loads(done.stdout)
    assert (printed["store"], printed["fit"]) == (f"file://{folder}", False)
    assert [finding["subject"] for finding in printed["findings"] if finding["level"] == "error"] == ["catalogue"]


def test_doctor_says_first_that_a_full_store_takes_no_publish(tmp_path: Path) -> None:
    with redis_running(tmp_path) as server:
        url = server.url()
        published(url, {"user:1": a_list("a")})
        server.execute_command("CONFIG", "SET", "maxmemory", "1mb")
        answer = succeeded("store", "doctor", "--store", url).splitlines()[0]
    assert " can be served from, but not published to: 0 errors, " in answer


def test_doctor_reports_unreachable_store_without_traceback_or_password(tmp_path: Path) -> None:
    done = hotplate("store", "doctor", "--store", "redis://user:secret@127.0.0.1:1/0")
    assert done.returncode == 1
    assert "error" in done.stdout
    assert done.stdout.startswith("redis://127.0.0.1:1/0 can be neither served from nor published to: 1 error")
    assert "redis://127.0.0.1:1/0 cannot be reached" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    failed(hotplate("store", "doctor", "--store", "nowhere://"), "is not the URL of a store", code=2)
    assert "warning" in hotplate("store", "doctor", "--store", f"file://{tmp_path}/none").stdout


def test_every_changing_verb_names_the_store(tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    folder = f"file://{tmp_path}/data/hotplate"
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
    succeeded("import", lists, "--store", folder)
    kept = succeeded("releases", "prune", "--keep", "0", "--store", folder)
    assert f"erased nothing in {folder}" in kept
    assert "not erased before " in kept
    assert ": 2 releases that left service less than 600 s ago (--grace)" in kept
    too_long = hotplate("releases", "prune", "--grace", "3651d", "--store", folder)
    failed(too_long, "is not a number of seconds from 0 to 315,360,000", code=2)
    assert "is complete: 3 rows" in succeeded("releases", "scrub", "--rate", "100000", "--store", folder)
    failed(hotplate("releases", "promote", "--store", folder), "No release is the canary in this store")
    failed(hotplate("releases", "show", "nonsense", "--store", folder), "is not in this store")
    assert f"1 user of 1 erased from {folder}" in succeeded("users", "erase", "1", "--store", folder)
    other = f"file://{tmp_path}/other"
    assert f" in {other}\n" in succeeded("releases", "copy", "--from", folder, "--to", other)
    assert f" in {other}" in succeeded("releases", "repair", "--from", folder, "--store", other)


def test_prune_reports_what_it_erased_even_if_the_store_fails_afterwards(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\n1,a,1.0\n")
    folder = f"file://{tmp_path}/store"
    first, _ = [json_of("import", lists, "--store", folder)["release"]["release"] for _ in range(2)]

    def unavailable(*_: object) -> None:
        raise StoreUnavailable("this store is away")

    monkeypatch.setattr("hotplate.cli.releases.run_on_store", unavailable)
    prune(store=folder, keep=0, grace=0)
    assert f"erased {first} in {folder}" in capsys.readouterr().out
    assert "this store is away" in caplog.text


@pytest.mark.parametrize(
    "verb",
    [
        ("releases", "list"), ("releases", "show", "x"), ("releases", "activate", "x"), ("releases", "rollback"),
        ("releases", "canary", "x"), ("releases", "promote"), ("releases", "abort"), ("releases", "prune"),
        ("releases", "verify"), ("releases", "scrub"), ("lookup", "42"),
        ("users", "find", "1"), ("users", "erase", "1"), ("store", "rebuild"),
    ],
)  # fmt: skip
def test_missing_store_is_reported(verb: tuple[str, ...], tmp_path: Path) -> None:
    url = f"file://{tmp_path}/typo"
    failed(hotplate(*verb, "--store", url), f"Nothing was ever published to {url}, and the folder does not exist")
    assert not (tmp_path / "typo").exists()


def test_folder_with_an_odd_name_is_no_missing_store(tmp_path: Path) -> None:
    folder = tmp_path / "a@b?c#d"
    folder.mkdir()
    done = hotplate("releases", "list", "--store", f"file://{folder}")
    failed(done, "Nothing was ever published to file://b; publish to it")


def test_impossible_folder_of_a_store_is_reported(tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\n1,a,1.0\n")
    failed(hotplate("import", lists, "--store", f"file://{lists}"), f"{lists} is a file; a store is a folder", code=2)
    failed(hotplate("import", lists, "--store", "file:///proc/none"), "/proc/none cannot be made; name another")


def test_missing_database_of_redis_is_reported(redis_server: RedisServer) -> None:
    url = f"redis://127.0.0.1:{redis_server.port}/99"
    failed(
        hotplate("releases", "list", "--store", url),
        "DB index is out of range; end the URL with the number of a database",
    )
    for database in ("abc", "-1"):
        url = f"redis://127.0.0.1:{redis_server.port}/{database}"
        failed(hotplate("releases", "list", "--store", url), f"'{database}'", "write one, as /0", code=2)


def test_service_of_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with running(tmp_path / "typo") as service:
        assert service.get("/v1/popular").status == 503
        log = service.log.read_text()
    assert f"nothing was ever published to file://{tmp_path}/typo, and the folder does not exist; publish to it" in log


@pytest.mark.parametrize("separator", [",", ", ", ";"])
@pytest.mark.parametrize("verb", [("serve", "--port", "0"), ("lookup", "1"), ("releases", "list")])
def test_several_stores_in_one_url_are_refused(verb: tuple[str, ...], separator: str, tmp_path: Path) -> None:
    both = separator.join(f"file://{tmp_path}/{name}" for name in ("a", "b"))
    failed(hotplate(*verb, "--store", both), "several URLs; give each store its own --store", code=2)


def test_copy_or_repair_from_a_missing_store_names_it(tmp_path: Path) -> None:
    there = f"file://{tmp_path}/store"
    absent = f"file://{tmp_path}/typo"
    published(tmp_path / "store", {"user:1": a_list("a")})
    failed(hotplate("releases", "copy", "--from", absent, "--to", there), f"was ever published to {absent}")
    failed(hotplate("releases", "repair", "--from", absent, "--store", there), f"was ever published to {absent}")


def test_store_is_backed_up_and_restored(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    copied = tmp_path / "copied"
    first = published(tmp_path / "store", {"user:1": a_list("a")})
    done = json_of("store", "backup", copied, "--store", store)
    assert (done["live"], done["releases"]) == (first, [first])
    assert "is complete" in hotplate("releases", "verify", "--store", f"file://{copied}").stdout
    second = published(tmp_path / "store", {"user:1": a_list("b")})
    failed(hotplate("store", "restore", copied, "--store", store), "holds a store already")
    printed = hotplate("store", "restore", copied, "--over", "--store", store).stdout
    assert f"{store} is restored from {copied}" in printed
    listed = json_of("releases", "list", "--store", store)
    assert (listed["live"], second in {entry["id"] for entry in listed["releases"]}) == (first, True)
    done = json_of("store", "restore", copied, "--store", f"file://{tmp_path}/other")
    assert done["live"] == first


def test_backup_of_another_store_or_over_existing_files_is_refused(tmp_path: Path) -> None:
    published(tmp_path / "store", {"user:1": a_list("a")})
    store = f"file://{tmp_path}/store"
    (tmp_path / "mine").write_text("mine")
    failed(hotplate("store", "backup", tmp_path, "--store", store), "is there already", code=2)
    failed(hotplate("store", "backup", tmp_path / "new", "--store", "redis://localhost:1/0"), "file:// stores", code=2)
    failed(hotplate("store", "backup", tmp_path / "new", "--store", f"file://{tmp_path}/none"), "nothing was ever")
    failed(hotplate("store", "restore", tmp_path / "none", "--store", f"file://{tmp_path}/new"), "nothing was ever")


def test_a_lost_catalogue_is_rebuilt_from_the_releases_that_the_store_holds(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = f"file://{tmp_path}/store"
    first, second = [published(folder, {"user:1": a_list(text)}) for text in ("a", "b")]
    (folder / "catalogue.json").write_bytes(bytes(65_536))
    failed(hotplate("releases", "list", "--store", store), "`hotplate store rebuild` writes a new one")
    listed = hotplate("store", "rebuild", "--store", store)
    assert listed.returncode == 2, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["release", first, second]
    assert "say with --live ID which one is to be live" in listed.stderr
    failed(hotplate("store", "rebuild", "--store", store, "--live", "none"), f"it holds {first}, {second}")
    printed = json_of("store", "rebuild", "--store", store, "--live", first)
    assert (printed["live"], printed["not_taken_up"]) == (first, {})
    assert [
        (release["id"], release["state"], release["rows"], release["damage"]) for release in printed["releases"]
    ] == [
        (first, "live", 2, None),
        (second, "ready", 2, None),
    ]
    failed(hotplate("store", "rebuild", "--store", store), "there is nothing to rebuild")
    assert "is complete" in hotplate("releases", "verify", second, "--store", store).stdout


@pytest.fixture
def people(tmp_path: Path) -> tuple[str, str]:
    """The option of a store whose release has lists of the users u7 and u8."""
    published(tmp_path / "store", {"user:u7": a_list("a"), "user:u8": a_list("b")})
    return "--store", f"file://{tmp_path}/store"


def source_of(user: str, *store: str) -> object:
    return json_of("lookup", user, "--json", *store)["source"]


def test_erased_user_is_answered_as_unknown_also_after_a_restore(people: tuple[str, str], tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    release = json_of("releases", "list", *people)["live"]
    assert succeeded("store", "backup", backup, *people)
    assert source_of("u7", *people) == "personal"
    printed = succeeded("users", "erase", "u7", *people, "--backup", backup)
    assert f"1 user of 1 erased from {people[1]}" in printed
    assert f"release {release} holds 'u7' until it is pruned" in printed
    assert f"{backup} holds 'u7'" in printed
    assert "not searched: other stores, model folders, events" in printed
    assert source_of("u7", *people) == "popular"
    assert succeeded("store", "restore", backup, *people, "--over")
    assert source_of("u7", *people) == "popular"
    assert succeeded("releases", "verify", *people)
    output = json_of("users", "find", "u7", "u8", "--json", *people)
    assert (output["erased"], output["store"]) == (["u7"], people[1])


def test_ids_without_any_list_are_named_as_perhaps_misspelt(people: tuple[str, str], tmp_path: Path) -> None:
    misspelt = "no release holds a list of an id given: check the ids"
    assert misspelt in succeeded("users", "find", "u77", *people)
    assert misspelt not in succeeded("users", "find", "u77", "u8", *people)
    failed(hotplate("users", "erase", "u7", "--store", f"file://{tmp_path}/none"), "Nothing was ever published")


def test_lost_record_of_erased_users_is_accepted_with_its_number(people: tuple[str, str], tmp_path: Path) -> None:
    succeeded("users", "erase", "u7", *people)
    shutil.rmtree(tmp_path / "store" / "records")
    assert "has lost 1 of them" in succeeded("users", "find", "u7", *people)
    for wrong in ([], ["--lost", "2"]):
        refused = hotplate("users", "accept-loss", *wrong, *people)
        failed(refused, "has lost the record of 1", "give --lost 1", code=2)
    accepted = json_of("users", "accept-loss", "--lost", "1", *people)
    assert accepted == {"store": people[1], "accepted": 1}
    assert "has lost no erased user" in succeeded("users", "accept-loss", *people)
    failed(hotplate("users", "accept-loss", "--lost", "1", *people), "has lost no erased user, instead of 1", code=2)


@pytest.mark.parametrize("verb", ["erase", "find"])
@pytest.mark.parametrize("user", ["", "u" * 257])
def test_impossible_user_is_refused(verb: str, user: str, tmp_path: Path) -> None:
    store = ("--store", f"file://{tmp_path}/store")
    published(tmp_path / "store", {"user:u7": a_list("a")})
    failed(hotplate("users", verb, "u7", user, *store), "An id has 1 to 256 bytes", code=2)
    assert json_of("users", "find", "u7", "--json", *store)["erased"] == []


def test_folders_without_events_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    events = tmp_path / "events"
    store = ("--store", f"file://{folder}")
    published(folder, {"user:u7": a_list("a")})
    for option in ("--backup", "--model", "--events"):
        failed(hotplate("users", "erase", "u7", *store, option, tmp_path / "none"), "does not exist", code=2)
    events.mkdir()
    for option in ("--backup", "--model"):  # before anything is erased: it was erased without a report
        failed(hotplate("users", "erase", "u7", *store, option, events))
    assert json_of("users", "find", "u7", "--json", *store)["erased"] == []
    failed(hotplate("users", "find", "u7", *store, "--backup", events), "ever published to")
    segment = LogSegment(events)
    segment.append([b"{}"])
    printed = succeeded("users", "find", "u7", *store, "--events", events)
    segment.close()
    assert "open segments of events" in printed
    (events / "20260101T000000Z-00000000-00000000.events2.zst").touch()
    failed(hotplate("users", "erase", "u7", *store, "--events", events), "upgrade hotplate", code=1)
    assert json_of("users", "find", "u7", "--json", *store)["erased"] == []


LISTS = {f"user:{n:04}": a_list(str(n), "x") for n in range(300)}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    path = tmp_path / "lists.csv"
    path.write_text("user,item,score\n" + "".join(f"{n},a,1\n{n},b,0.5\n" for n in range(20)))
    return path


def releases(store: Path, *, live: bool = True) -> str:
    return published(store, LISTS, live=live)


def catalogue_of(url: str) -> dict[str, object]:
    output: dict[str, object] = json_of("releases", "list", "--store", url)
    return output


def file_of(store: Path, url: str, release: str) -> Path:
    (entry,) = (candidate for candidate in catalogue_of(url)["releases"] if candidate["id"] == release)  # type: ignore[attr-defined]  # JSON
    return store / "releases" / f"{entry['incarnation']}.mdb"


def test_a_rollback_onto_a_file_that_was_cut_is_refused_unless_forced(tmp_path: Path, url: str) -> None:
    target = releases(tmp_path / "store")
    live = releases(tmp_path / "store")
    path = file_of(tmp_path / "store", url, target)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for verb in (["rollback"], ["activate", target], ["canary", target]):
        failed(hotplate("releases", *verb, "--store", url), f"Release {target} cannot be served", "was cut", "--force")
        assert (catalogue_of(url)["live"], catalogue_of(url)["canary"]) == (live, None)
    succeeded("releases", "rollback", "--force", "--store", url)
    assert catalogue_of(url)["live"] == target


def test_a_rebuild_lists_what_services_refused(tmp_path: Path, url: str) -> None:
    releases(tmp_path / "store")
    refused = releases(tmp_path / "store")
    asyncio.run(rollback(open_url(url), reason="more errors than before"))
    (tmp_path / "store" / "catalogue.json").unlink()
    listed = hotplate("store", "rebuild", "--store", url)
    (line,) = (line for line in listed.stdout.splitlines() if line.lstrip().startswith(refused))
    assert (listed.returncode, "more errors" in line) == (2, True)


def test_an_import_leaves_a_running_canary_alone_and_exits_with_3(tmp_path: Path, url: str, lists: Path) -> None:
    live = releases(tmp_path / "store")
    canary = releases(tmp_path / "store", live=False)
    succeeded("releases", "canary", canary, "--store", url)
    done = hotplate("import", lists, "--store", url, "--force")  # of other users
    assert (done.returncode, "is ready" in done.stdout) == (3, True)
    assert f"Release {canary} is the canary" in done.stderr
    catalogue = catalogue_of(url)
    assert (catalogue["live"], catalogue["canary"]) == (live, {"release": canary, "percent": 5.0, "salt": canary})
    new = catalogue["releases"][-1]["id"]  # type: ignore[index]  # JSON
    failed(hotplate("releases", "activate", new, "--store", url), "promote or abort the canary first", code=3)
    other = f"file://{tmp_path}/other"
    succeeded("releases", "copy", "--from", url, "--to", other, new)
    there = releases(tmp_path / "other")
    copied = hotplate("releases", "copy", "--from", other, "--to", url, there)
    failed(copied, f"end it with `hotplate releases activate {there} --end-canary`", code=3)
    succeeded("import", lists, "--end-canary", "--force", "--store", url)
    assert catalogue_of(url)["canary"] is None


def test_promotion_requires_the_canary_the_operator_saw(tmp_path: Path, url: str) -> None:
    live = releases(tmp_path / "store")
    seen, other = (releases(tmp_path / "store", live=False) for _ in range(2))
    succeeded("releases", "canary", other, "--store", url)
    for verb in ("promote", "abort"):
        failed(hotplate("releases", verb, seen, "--store", url), f"Release {seen} is not the canary any more")
    assert catalogue_of(url)["live"] == live
    succeeded("releases", "promote", other, "--store", url)
    assert catalogue_of(url)["live"] == other


def test_log_says_what_went_live_by_whom_and_why(tmp_path: Path, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    store = ("--store", f"file://{tmp_path}/store")
    first = json_of("import", lists, *store, "--json", "--reason", "the first")["release"]["release"]
    second = json_of("import", lists, *store, "--json", HOTPLATE_REASON="nightly")["release"]["release"]
    succeeded("releases", "rollback", *store, "--reason", "too few shoes")
    succeeded("releases", "canary", second, *store, "--percent", "5", "--force", "--reason", "with shoes")
    succeeded("releases", "abort", *store)
    folder = tmp_path / "backup"
    succeeded("store", "backup", folder, *store)
    succeeded("releases", "activate", second, *store, "--reason", "now")
    succeeded("store", "restore", folder, *store, "--over", "--reason", "yesterday's")

    changes = json_of("releases", "log", *store, "--json")["changes"]
    assert [(change["live"], change["canary"], change["reason"]) for change in changes] == [
        (first, None, "yesterday's"),
        (second, None, "now"),
        (first, None, ""),
        (first, second, "with shoes"),
        (first, None, "too few shoes"),
        (second, None, "nightly"),
        (first, None, "the first"),
    ]
    assert {change["by"].partition("@")[0] for change in changes} == {"alice"}
    text = succeeded("releases", "log", *store)
    assert text.startswith("7 changes of served releases in file://")
    assert "canary " + second in text
    assert "too few shoes" in text
    library = hotplate_library.release_log(f"file://{tmp_path}/store")
    assert [change.reason for change in reversed(library)] == [change["reason"] for change in changes]
    hotplate_library.activate(f"file://{tmp_path}/store", second, reason="from Python")
    assert hotplate_library.release_log(f"file://{tmp_path}/store")[-1].reason == "from Python"
