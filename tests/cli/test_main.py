"""The command as people use it: each verb end to end, and each mistake with its sentence and exit code."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotplate import __main__ as entry
from hotplate.base.extras import install_command
from hotplate.cli.flags import settings_of
from hotplate.cli.options import ImportFlags, ListFlags, TrainFlags
from hotplate.serve.settings import ServiceSettings
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import until


def test_bad_input_is_explained_in_one_sentence(clicks: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    failed(hotplate("train", tmp_path / "absent.csv", "--out", out), "absent.csv")
    failed(hotplate("train", clicks, "--user-column", "usr", "--out", out), "'usr'", "columns are: user")
    failed(hotplate("train", clicks, "--where", "nonsense", "--out", out), "nonsense", code=2)
    failed(hotplate("train", clicks, "--params", "factors=0", "--out", out), "is 0; it must be at least 1", code=2)
    failed(hotplate("train", clicks, "--event-weights", "view=x", "--out", out), "view", code=2)
    failed(hotplate("train", clicks, "--min-per-user", "100000", "--out", out), "left")
    failed(hotplate("publish", tmp_path / "absent", "--store", f"file://{tmp_path}/s"), "absent")
    failed(hotplate("publish", model, "--store", "redis//oops"), "'redis//oops' is not the URL of a store", code=2)
    failed(hotplate("publish", model, "--store", "file://relative"), "has no absolute folder", code=2)
    failed(hotplate("publish", model, "--store", "file:///proc/nothing"), "/proc/nothing")
    failed(hotplate("lookup", "42", "--store", f"file://{tmp_path}/nothing"), f"{tmp_path}/nothing")
    assert not out.exists()


def test_an_empty_url_is_refused_and_is_not_the_default_store(model: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\nbo,b,0.5\n")
    for verb in (
        ["publish", model],
        ["publish", model, "--dry-run"],
        ["import", lists],
        ["serve"],
        ["lookup", "u001"],
        ["releases", "list"],
    ):
        for options, environment in ((["--store", ""], {}), ([], {"HOTPLATE_STORE": ""})):
            done = hotplate(*verb, *options, XDG_DATA_HOME=str(tmp_path / "data"), **environment)
            failed(done, "The URL of the store is empty", "--store", code=2)
    for ends in (["--from", "", "--to", f"file://{tmp_path}/s"], ["--from", f"file://{tmp_path}/s", "--to", ""]):
        failed(hotplate("releases", "copy", *ends), "is empty", code=2)
    assert list(tmp_path.iterdir()) == [lists]


@pytest.mark.parametrize("arguments", ["lookup 42 -n 0", "serve --budget inf", "nosuchverb", "train"])
def test_misuse_of_options_exits_with_2(arguments: str) -> None:
    done = hotplate(*arguments.split())
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("releases scrub", "--rate", "inf"),
        ("releases canary x", "--percent", "nan"),
        ("events report events", "--min-effect", "1" + 400 * "0"),
        ("train clicks.csv --out model", "--tune", "٣"),
        ("train clicks.csv --out model", "--tune", "1" + 400 * "0"),
    ],
)
def test_number_that_an_option_does_not_take_is_named(verb: str, option: str, value: str) -> None:
    failed(hotplate(*verb.split(), option, value), f"'{option}': '{value}' is not a", code=2)


def test_errors_are_json_on_request(tmp_path: Path) -> None:
    done = hotplate("releases", "verify", "--json", "--store", f"file://{tmp_path}/nothing")
    assert done.returncode == 1
    assert json.loads(done.stderr)["kind"] == "ReleaseNotFound"
    for value, is_json in (("0", False), ("off", False), ("1", True)):
        done = hotplate("releases", "verify", "--store", "x", HOTPLATE_JSON=value)
        assert done.stderr.startswith("{") == is_json, value
    done = hotplate("releases", "verify", "--json", "--concurrency", "x")
    assert (done.returncode, json.loads(done.stderr)["kind"]) == (2, "NoSuchOption")


def test_arguments_that_cannot_be_used_are_refused_with_the_reason(tmp_path: Path) -> None:
    for verb in (["train", "\udcff.csv", "--out", "model"], ["store", "doctor", "--store", "file:///tmp/\udcff"]):
        done = hotplate(*verb, "--json")
        assert (done.returncode, "has bytes that are not UTF-8" in json.loads(done.stderr)["error"]) == (2, True)
    failed(hotplate("import", tmp_path, "--max-bad-rows", "5"), "is not a number from 0 to 1", code=2)
    failed(hotplate("publish", tmp_path, "--list-length", "x"), "is not a whole number", code=2)
    for option in ("--max-per-category", "--min-history"):
        too_many = hotplate("publish", tmp_path, option, "99999999999999999999")
        failed(too_many, f"'{option}'", "is not a whole number from 1 to 1,000,000,000", code=2)


@pytest.mark.parametrize(
    "words",
    [
        ["train", ""],
        ["train", "clicks.csv", "--titles", ""],
        ["publish", "model", "--available", ""],
        ["import", ""],
        ["users", "find", "bo", "--events", ""],
        ["events", "report", ""],
        ["users", "find", "bo", "--backup", ""],
        ["store", "backup", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_refused_and_is_not_the_working_folder(words: list[str]) -> None:
    failed(hotplate(*words), "an empty text names no file; leave it out", code=2)


@pytest.mark.parametrize(("flags", "has_times"), [(TrainFlags, True), (ImportFlags, False), (ListFlags, True)])
def test_only_files_with_times_have_an_option_of_their_format(flags: type, *, has_times: bool) -> None:
    names = {setting.name for setting in settings_of(flags)}
    assert ("time_format" in names) == has_times
    assert {"delimiter", "header", "max_bad_rows"} <= names


def test_all_times_have_units_and_a_bare_number_is_in_seconds() -> None:
    times = [setting for setting in settings_of(ServiceSettings) if setting.is_time]
    names = {setting.flag for setting in times}
    assert names == {"--budget", "--probation", "--drain", "--drain-delay", "--idle-timeout"}
    assert {setting.read(text) for setting in times for text in ("1.5m", "90", "90s", 90)} == {90.0}

    assert "a number without a unit is in seconds" in hotplate("serve", "--help").stdout
    failed(hotplate("serve", "--drain", "5x"), "'--drain'", "'5x' is not a time such as", code=2)
    failed(hotplate("serve", "--budget", "2h"), "'2h' is not a number of seconds from 0.001 to 3,600", code=2)
    failed(hotplate("bench", "http", "http://127.0.0.1:1", "--timeout", "5x"), "'--timeout'", "'5x'", code=2)


def test_single_url_option_given_twice_is_refused(tmp_path: Path) -> None:
    stores = [f"file://{tmp_path}/{name}" for name in "ab"]
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\n1,a,2\n")
    done = hotplate("import", lists, "--store", stores[0], "--store", stores[1])
    assert (done.returncode, "is given 2 times" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == [lists]


def verbs_of(*group: str) -> list[list[str]]:
    listed = hotplate(*group, "--help").stdout.partition("Verbs:\n")[2]
    names = re.findall(r"^  ([a-z][a-z-]+) ", listed, re.MULTILINE)
    return [[*group, name] for name in names]


def test_rare_options_are_last_in_the_help() -> None:
    shown = hotplate("serve", "--help", COLUMNS="100").stdout
    usual, _, rare = shown.partition("Rarely needed")
    assert "--store" in usual
    for option in ("--no-fast-lane", "--drain-delay", "--health-host", "--max-connections"):
        assert option in rare
        assert option not in usual


def test_help_of_each_verb_fits_two_screens_with_an_example_and_a_variable() -> None:
    groups = {"evaluate", "releases", "users", "store", "keys", "events", "bench"}
    top = verbs_of()
    assert {"demo", "train", "publish", "run", "serve", "releases", "lookup"} <= {name for (name,) in top}
    for verb in [*(verb for (name,) in top if name in groups for verb in verbs_of(name)), *top]:
        shown = hotplate(*verb, "--help", COLUMNS="100").stdout
        assert re.search(r"Example:\s+hotplate", shown), verb
        assert shown.count("\n") <= 92, verb
        assert "env var" not in shown, verb
        assert (verb[0] in groups and len(verb) == 1) or "HOTPLATE_" in shown, verb


def test_help_on_a_very_narrow_terminal_keeps_its_words_whole() -> None:
    for columns in ("1", "30"):
        shown = hotplate("users", "accept-loss", "--help", COLUMNS=columns).stdout
        assert "default files in" in shown, "not a letter on each line"


def test_help_of_run_names_the_table_of_a_variable() -> None:
    shown = " ".join(hotplate("run", "--help", COLUMNS="100").stdout.split())
    assert "HOTPLATE_RUN_WAIT is wait of the table run." in shown


@pytest.mark.parametrize(("verb", "code"), [("--version --json >&-", 0), ("nosuchverb --json 2>&-", 2)])
def test_json_without_a_standard_stream_is_left_out(verb: str, code: int) -> None:
    command = f"{shlex.quote(sys.executable)} -m hotplate {verb}"
    done = run_process("sh", "-c", command, code=None)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader has ended, as that of `| true`."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("as_json", [["--json"], []], ids=["json", "text"])
def test_a_verb_keeps_its_exit_code_without_a_reader(tmp_path: Path, unread: int, as_json: list[str]) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\n1,a,1\n2,b,1\n")
    store = ["--store", f"file://{tmp_path}/store"]
    verbs: list[tuple[list[str | Path], int]] = [
        (["import", tmp_path / "lists.csv", *store], 0),
        (["nosuchverb"], 2),
        (["lookup", "--help"], 0),
        (["releases"], 2),
    ]
    for arguments, code in verbs:
        command = [sys.executable, "-m", "hotplate", *arguments, *as_json]
        assert subprocess.run(command, stdout=unread, stderr=unread, check=False).returncode == code
    assert json_of("releases", "list", *store)["live"]


@pytest.mark.parametrize("more", ["--json", ">/dev/full", ">&-"])
def test_a_key_that_cannot_be_printed_is_not_stored(tmp_path: Path, unread: int, more: str) -> None:
    keys = tmp_path / "keys.json"
    create = f"{shlex.quote(sys.executable)} -m hotplate keys create web --scope read --keys {keys} {more}"
    done = subprocess.run(["sh", "-c", create], stdout=unread, stderr=subprocess.PIPE, text=True, check=False)
    failed(done, "The key cannot be printed, and is not stored: ", code=2)
    assert not keys.exists()


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
            if source == "personal":
                readme = (ROOT / "README.md").read_text()
                shown = json.loads(readme.partition("```json\n")[2].partition("```")[0])["items"]
                assert [item["title"] for item in answer["items"][:3]] == [item["title"] for item in shown]
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


def test_a_misspelt_variable_is_reported_with_the_nearest_one(tmp_path: Path) -> None:
    done = hotplate("serve", "--store", f"file://{tmp_path}", "--keys", tmp_path / "none", HOTPLATE_WORKRES="3")
    assert "HOTPLATE_WORKRES" in done.stderr
    assert "HOTPLATE_WORKERS" in done.stderr


def test_invalid_variable_is_named_instead_of_its_option(tmp_path: Path) -> None:
    store = ("--store", f"file://{tmp_path}/store")
    links = hotplate("serve", *store, HOTPLATE_PORT="tcp://10.0.0.1:80")
    failed(links, "HOTPLATE_PORT", "'tcp://10.0.0.1:80'", "enableServiceLinks: false", code=2)
    assert "--port" not in links.stderr
    switch = hotplate("serve", *store, HOTPLATE_ANONYMOUS="maybe")
    failed(switch, "the variable HOTPLATE_ANONYMOUS: 'maybe' is neither true nor false", code=2)
    failed(hotplate("serve", *store, "--port", "many", HOTPLATE_PORT="80"), "--port", "'many'", code=2)
    pipeline = tmp_path / "nightly.toml"
    pipeline.write_text('[train]\ndata = "x.csv"\n')
    failed(hotplate("run", pipeline, HOTPLATE_RUN_WAIT="long"), "HOTPLATE_RUN_WAIT: 'long'", code=2)


@pytest.fixture
def bare_installation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only the client is installed."""
    monkeypatch.delitem(sys.modules, "hotplate.cli.main", raising=False)
    monkeypatch.setitem(sys.modules, "click", None)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)  # the command ends its process with another one


@pytest.mark.usefixtures("bare_installation")
@pytest.mark.parametrize(("verb", "extra"), [("train", "offline"), ("bench", "bench"), ("serve", "server")])
def test_a_bare_installation_names_the_extra_of_the_verb(
    verb: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hotplate", verb])
    with pytest.raises(SystemExit) as exiting:
        entry.main()
    assert exiting.value.code == 2
    assert install_command(extra) in capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", ["hotplate", verb, "--json"])
    with pytest.raises(SystemExit) as exiting:
        entry.main()
    error = json.loads(capsys.readouterr().err)
    assert exiting.value.code == 2
    assert (install_command(extra) in error["error"], error["kind"]) == (True, "ModuleNotFoundError")


@pytest.mark.usefixtures("bare_installation")
def test_a_bare_installation_without_a_standard_error_exits_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hotplate", "serve"])
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as exiting:
        entry.main()
    assert exiting.value.code == 2


def test_written_texts_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    """A program with an ASCII locale writes and reads names and texts beyond ASCII."""
    program = """
import sys
from pathlib import Path
import hotplate
from hotplate.cli.main import main
from hotplate.offline.errors import read_toml

Path("clicks.csv").write_text("user,item\\n" + "".join(f"u{n % 5},i{n % 3}\\n" for n in range(15)))
settings = hotplate.TrainSettings("clicks.csv", params=hotplate.EASEParams(), where=["user!=\\u00e9"])
hotplate.train(settings, "model")
assert hotplate.load_model("model").data.where == ["user!=\\u00e9"]
Path("gates.toml").write_bytes('"\\u00e9" = 1'.encode())
assert read_toml(Path("gates.toml")) == {"\\u00e9": 1}
sys.argv = "hotplate plan --have-ru 4000 --save plan.toml --out plan".split()
main()
"""
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=os.environ | ascii_locale, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert not (tmp_path / "plan.html").read_bytes().decode().isascii()
    (tmp_path / "link.toml").symlink_to("plan.toml")
    before = (tmp_path / "plan.toml").read_bytes()
    succeeded("plan", "--users", "2000", "--peak-rps", "10", "--save", tmp_path / "link.toml")
    assert (tmp_path / "link.toml").is_symlink()
    assert (tmp_path / "plan.toml").read_bytes() != before
