"""The command as people use it: each verb end to end, and each mistake with its sentence and exit code."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hotplate.stores.extras import install_command
from tests.support.command import failed, hotplate, hotplate_process, json_of
from tests.support.redis_server import running as redis_running
from tests.support.service import a_list, publish_lists, publish_to, until


def test_from_clicks_to_an_answer_in_three_verbs(model: Path, tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    published = json_of("publish", model, "--store", store)
    assert published["live"]
    assert published["release"]["counts"]["user"] == 120
    listed = json_of("releases", "list", HOTPLATE_STORE=store)
    assert listed["live"] == published["release"]["release"]
    answer = json_of("lookup", "u001", "-n", "3", HOTPLATE_STORE=store)
    assert (answer["source"], len(answer["items"])) == ("personal", 3)
    assert answer["items"][0]["title"]
    text = hotplate("lookup", "nobody", "-n", "3", HOTPLATE_STORE=store).stdout
    assert text.startswith("nobody: popular, release ")


def test_the_life_of_releases_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    first, second, third = (asyncio.run(publish_lists(folder, {"user:1": a_list(name)})) for name in "abc")
    environment: dict[str, Any] = {"HOTPLATE_STORE": f"file://{folder}"}
    assert f"{second} is live again in file://{folder}\n" == hotplate("releases", "rollback", **environment).stdout
    assert json_of("releases", "list", **environment)["live"] == second
    shown = hotplate("releases", "canary", third, "--percent", "2.5", **environment).stdout
    assert shown == f"2.5 % of the users see {third} in file://{folder}\n"
    assert "withdrawn, canary of 2.5 %" in hotplate("releases", "list", **environment).stdout
    assert f"{third} is not the canary any more" in hotplate("releases", "abort", **environment).stdout
    failed(hotplate("releases", "promote", **environment), "No release is the canary in this store")
    assert "is live" in hotplate("releases", "activate", third, **environment).stdout
    assert "1 user" in hotplate("releases", "show", third, **environment).stdout
    assert "is complete: 2 rows" in hotplate("releases", "verify", **environment).stdout
    erased = json_of("releases", "prune", "--grace", "0", **environment)["erased"]
    assert erased == [first]
    assert "erased nothing in" in hotplate("releases", "prune", **environment).stdout
    failed(hotplate("releases", "show", first, **environment), f"Release {first} is not in this store")
    failed(hotplate("releases", "activate", "nonsense", **environment), "is not in this store")


def test_a_damaged_release_is_found_by_verify(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    asyncio.run(publish_lists(folder, {f"user:{n}": a_list("x") for n in range(500)}))
    (path,) = folder.glob("releases/*.mdb")
    content = path.read_bytes()
    for before, after in ((b"Title x", b"Title y"), (b"user:250", b"user:\xff50")):
        path.write_bytes(content.replace(before, after))
        failed(hotplate("releases", "verify", "--store", f"file://{folder}"), "damaged between bytes", "publish again")
    path.write_bytes(content[: len(content) // 2])
    failed(hotplate("releases", "verify", "--store", f"file://{folder}"), "was cut", "publish again")


def test_a_scrub_of_a_redis_that_is_killed_ends_with_a_sentence(tmp_path: Path) -> None:
    with redis_running(tmp_path) as server:
        asyncio.run(publish_to(server.url(), {f"user:{n:04}": a_list("x") for n in range(5_000)}))
        command = [sys.executable, "-m", "hotplate", "releases", "scrub", "--rate", "500", "--store", server.url()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as scrub:
            before = server.calls("mget")
            while server.calls("mget") < before + 4:  # of the catalogue, and of some rows
                assert scrub.poll() is None
                time.sleep(0.01)
            server.kill()
            output, errors = scrub.communicate(timeout=60)
    failed(
        subprocess.CompletedProcess(command, scrub.returncode, output, errors),
        "redis://127.0.0.1:",
        "cannot be reached",
    )


def test_other_bad_input_is_one_sentence_too(clicks: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    failed(hotplate("train", tmp_path / "absent.csv", "--out", out), "absent.csv")
    failed(hotplate("train", clicks, "--user-column", "usr", "--out", out), "'usr'", "columns are: user")
    failed(hotplate("train", clicks, "--where", "nonsense", "--out", out), "nonsense", code=2)
    failed(hotplate("train", clicks, "--params", "factors=0", "--out", out), "is 0; it must be at least 1", code=2)
    failed(hotplate("train", clicks, "--event-weights", "view=x", "--out", out), "view", code=2)
    failed(hotplate("train", clicks, "--min-per-user", "100000", "--out", out), "left")
    failed(hotplate("publish", tmp_path / "absent", "--store", f"file://{tmp_path}/s"), "absent")
    failed(hotplate("publish", model, "--store", "redis//oops"), "'redis//oops' is not the URL of a store", code=2)
    failed(hotplate("publish", model, "--store", "file://relative"), "three slashes", code=2)
    failed(hotplate("publish", model, "--store", "file:///proc/nothing"), "/proc/nothing")
    failed(hotplate("lookup", "42", "--store", f"file://{tmp_path}/nothing"), f"{tmp_path}/nothing")
    assert not out.exists()


def test_an_empty_url_is_refused_and_is_not_the_default_store(model: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\nbo,b,0.5\n")
    for verb in (
        ["publish", model],
        ["publish", model, "--dry-run"],
        ["publish", model, "--encoding", "json"],
        ["publish", model, "--max-ru", "400"],
        ["import", lists],
        ["serve"],
        ["lookup", "u001"],
        ["releases", "list"],
        ["releases", "prune"],
    ):
        for given, environment in ((["--store", ""], {}), ([], {"HOTPLATE_STORE": ""})):
            done = hotplate(*verb, *given, XDG_DATA_HOME=str(tmp_path / "data"), **environment)
            failed(done, "The URL of the store is empty", "--store", code=2)
    for ends in (["--from", "", "--to", f"file://{tmp_path}/s"], ["--from", f"file://{tmp_path}/s", "--to", ""]):
        failed(hotplate("releases", "copy", *ends), "is empty", code=2)
    assert list(tmp_path.iterdir()) == [lists]


def test_misuse_of_options_exits_with_2_and_errors_can_be_json(tmp_path: Path) -> None:
    for arguments in (["lookup", "42", "-n", "0"], ["serve", "--port", "99999"], ["nosuchverb"], ["train"]):
        done = hotplate(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    done = hotplate("releases", "verify", "--json", "--store", f"file://{tmp_path}/nothing")
    assert done.returncode == 1
    assert json.loads(done.stderr)["kind"] == "ReleaseNotFound"
    done = hotplate("releases", "verify", "--json", "--concurrency", "x")
    assert (done.returncode, json.loads(done.stderr)["kind"]) == (2, "NoSuchOption")
    done = hotplate("import", tmp_path, "--max-bad-rows", "5")
    assert (done.returncode, "Expected `float` <= 1" in done.stderr) == (2, True)
    done = hotplate("publish", tmp_path, "--json", "--list-length", "x")
    assert (done.returncode, "Expected `int`" in json.loads(done.stderr)["error"]) == (2, True)


def test_an_option_of_one_url_is_refused_if_it_is_given_again(tmp_path: Path) -> None:
    stores = [f"file://{tmp_path}/{name}" for name in "ab"]
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\n1,a,2\n")
    done = hotplate("import", lists, "--store", stores[0], "--store", stores[1])
    assert (done.returncode, "is given 2 times" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == [lists]


def verbs_of(*group: str) -> list[list[str]]:
    names = re.findall(r"^│ ([a-z][a-z-]+) ", hotplate(*group, "--help").stdout, re.MULTILINE)
    return [[*group, name] for name in names]


def test_help_of_each_verb_fits_two_screens_with_an_example_and_a_variable() -> None:
    groups = {"evaluate", "releases", "users", "store", "keys", "events", "bench"}
    top = verbs_of()
    assert {"demo", "train", "publish", "run", "serve", "releases", "lookup"} <= {name for (name,) in top}
    for verb in [*(verb for (name,) in top if name in groups for verb in verbs_of(name)), *top]:
        shown = hotplate(*verb, "--help", COLUMNS="100").stdout
        assert "Example: hotplate" in shown, verb
        assert shown.count("\n") <= 92, verb
        assert "env var" not in shown, verb
        assert (verb[0] in groups and len(verb) == 1) or "HOTPLATE_" in shown, verb


@pytest.mark.parametrize(
    ("words", "sentence", "code"),
    [
        ("train nothere --out m", "hotplate: nothere does not exist; ", 1),
        ("keys list --keys=nothere", "hotplate: The keys in nothere cannot be read: ", 2),
        (
            "train nothere --out m -k x",
            "for '-k': 'x' cannot be read: Expected `int`",
            2,
        ),
        ("train nothere --out m --engine x", "it must be one of als, ease, ", 2),
        ("releases scrub --rate x", "for '--rate': 'x' cannot be read: Expected `", 2),
        ("releases scrub --rate 0", "'0' cannot be read: Expected `float` >= 1", 2),
        ("bench compare nothere.json b.json", "nothere.json does not exist; name the .json of a report, which `hot", 1),
        (
            "bench compare {broken} {broken}",
            "is not a report of hotplate bench http: its format is 2, and this version reads 3.",
            2,
        ),
    ],
)
def test_wrong_input_is_refused_in_plain_words_and_names_stay_as_they_are(
    words: str, sentence: str, code: int, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": 2}')
    done = hotplate(*words.format(broken=broken).split(), COLUMNS="300")
    assert done.returncode == code
    assert sentence in " ".join(done.stderr.split())


def test_a_missing_extra_is_named_with_its_install_command(clicks: Path, tmp_path: Path) -> None:
    (tmp_path / "polars").mkdir()
    (tmp_path / "polars" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'polars'\", name='polars')"
    )
    done = hotplate_process("train", clicks, "--out", tmp_path / "model", PYTHONPATH=str(tmp_path))
    failed(done, install_command("offline"))


def test_the_demo_serves_and_its_curls_work_as_printed(tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    with printed.open("wb") as stream:
        demo = subprocess.Popen(
            [sys.executable, "-m", "hotplate", "demo", "--port", "0"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        until(lambda: demo.poll() is not None or "Ctrl-C stops it" in printed.read_text(), "it does not serve")
        commands = [line.strip() for line in printed.read_text().splitlines() if line.startswith("  ")]
        curls = [command for command in commands if command.startswith("curl ")]
        assert len(curls) == 3
        for command, source in zip(curls, ("personal", "similar", "popular"), strict=True):
            answer = json.loads(subprocess.run([*shlex.split(command), "-s"], capture_output=True, check=True).stdout)
            assert (answer["source"], len(answer["items"])) == (source, 5)
            assert all(item["title"] for item in answer["items"])
        store = commands[-1].rpartition(" ")[2]
        assert "personal" in hotplate("lookup", "u0001", "--store", store).stdout
    finally:
        demo.send_signal(signal.SIGINT)
        code = demo.wait(timeout=60)
    assert code == 0
    assert not Path(store.removeprefix("file://")).exists()


def test_demo_accepts_custom_data_and_rejects_a_busy_port_before_training(clicks: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = hotplate("demo", "--data", clicks, "--port", str(taken.getsockname()[1]))
    failed(done, "cannot be listened on")
    assert done.stdout == ""
