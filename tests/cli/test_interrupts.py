"""Ctrl-C and SIGTERM: the command ends with 130, and leaves nothing half made."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hotplate.cli.terminal import run_interruptibly
from hotplate.offline.search import trials
from hotplate.stores.folders import scratch_folder
from tests.support.command import hotplate, succeeded
from tests.support.forked import Forked
from tests.support.processes import run_process
from tests.support.service import a_list, published, until


def test_interrupted_work_cleans_up_without_waiting_for_c_calls(tmp_path: Path) -> None:
    held = threading.Lock()
    held.acquire()

    def work(go_on: Callable[[], object]) -> None:
        with scratch_folder(tmp_path, "work-"):
            os.kill(os.getpid(), signal.SIGINT)
            go_on()

    def in_python() -> None:
        while True:
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(lambda: work(in_python))
    until(lambda: not list(tmp_path.iterdir()))  # as a rule at once, but a busy machine may be slower than that
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(lambda: work(held.acquire))
    held.release()


def interrupted(
    folder: Path, *words: str | Path, stage: str, number: signal.Signals = signal.SIGINT
) -> tuple[int, str]:
    """Run the command, which gets a signal once the first rows or bytes of *stage* are done; return what it left.

    That are its exit code and what it printed.
    """
    before = f"""
import os
from contextlib import contextmanager
from hotplate.cli import terminal

@contextmanager
def interrupting_bars(*_):
    signals = [{int(number)}]

    def report(stage, done, total):
        if stage == {stage!r} and 0 < done < total and signals:
            os.kill(os.getpid(), signals.pop())

    yield report

terminal.progress_bars = interrupting_bars
"""
    printed = folder / "printed"
    code = Forked(*words, output=printed, before=before).wait(60)
    return code, printed.read_text()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several batches of rows."""
    folder = tmp_path_factory.mktemp("source") / "store"
    published(folder, {f"user:{n:05}": a_list("x" * 4_000) for n in range(8_000)})
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", [["store", "restore"], ["releases", "repair", "--from"]], ids=["restore", "repair"])
def test_an_interrupted_restore_or_repair_leaves_nothing_half_made(
    verb: list[str], number: signal.Signals, source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    if verb[0] == "releases":
        shutil.copytree(source, store)
        verb = [*verb, f"file://{source}"]
    else:
        verb = [*verb, str(source)]
    before = listed(store)
    words = (*verb, "--store", f"file://{store}")
    assert interrupted(tmp_path, *words, stage=verb[1], number=number) == (130, "")
    assert listed(store) == before
    succeeded(*words)


def test_interrupted_training_says_what_the_next_one_continues_from(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_trial = trials._store_trial

    def store_and_stop(path: Path, trial: trials.Trial) -> None:
        store_trial(path, trial)
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "_store_trial", store_and_stop)
    command = ("train", clicks, "--tune", "5s", "--out", tmp_path / "model")
    for kept in ("1 trial", "2 trials"):
        done = hotplate(*command)
        assert done.returncode == 130
        folder = tmp_path / ".model.kept"
        sentence = (
            f"stopped; the folder {folder} keeps {kept}, from which a search of the same data and settings continues"
        )
        assert done.stderr.splitlines()[-1] == f"hotplate: {sentence}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_import_leaves_nothing(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = tmp_path / "lists.csv"
    store = tmp_path / "store"
    scratch = tmp_path / "scratch"
    lists.write_text("user,item,score\n" + "".join(f"u{n},i{n % 97},1\n" for n in range(200_000)))
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    words = ("import", lists, "--store", f"file://{store}")
    code, printed = interrupted(tmp_path, *words, stage="publish", number=number)
    assert (code, "Traceback" in printed) == (130, False), printed
    assert list(scratch.iterdir()) == []
    assert list(store.glob("releases/*")) == []


# Is stopped when the verb is done, and the process ends.
DONE = """
import os, signal, sys
from hotplate import __main__
from hotplate.cli import main

def publish():
    sys.exit(0)

main.main = publish
try:
    __main__.main()
finally:
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_sigterm_after_the_verb_ends_the_process_without_a_traceback() -> None:
    done = run_process(sys.executable, "-c", DONE, "publish", code=None)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


PRINTS = """
from hotplate import __main__
from hotplate.cli import main

def lookup():
    print("half of the text")
    raise KeyboardInterrupt

main.main = lookup
__main__.main()
"""


@pytest.mark.parametrize("has_output", [True, False], ids=["a pipe without a reader", "no output"])
def test_ctrl_c_without_a_reader_of_the_output_exits_with_130(*, has_output: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = 'exec "$0" -c "$1"' + ("" if has_output else " >&-")
    command = ["sh", "-c", script, sys.executable, PRINTS]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (130, "")


def listed(store: Path) -> set[str]:
    """Return what lies in a store, but for what any writer leaves to the next."""
    files = {str(path.relative_to(store)) for path in store.rglob("*")}
    return files - {"releases", "catalogue.lock", "catalogue.reserve", "catalogue.former"}
