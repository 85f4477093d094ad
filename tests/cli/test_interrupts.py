"""Ctrl-C, however early: the command ends without a word, with 130, or with 0 where it was done or serves already."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hotplate.cli.terminal import interruptible
from hotplate.offline.input.sample import sample
from hotplate.stores.folders import scratch_folder
from tests.support.command import hotplate
from tests.support.paths import ROOT
from tests.support.service import a_list, publish_lists, until
from tests.support.soak import SEED

LATEST_S = 0.5


def check_interrupt(arguments: list[str], after_s: float) -> None:
    """Start the command, interrupt it *after_s*, and hold how it ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "hotplate", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(after_s)  # no condition can be waited for: it is the moments before there are any
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    if "KeyboardInterrupt" in errors and f'File "{ROOT}{os.sep}hotplate' not in errors:
        return  # Python itself had not started: none of our lines had run
    assert "Traceback" not in errors, (after_s, errors)
    assert process.returncode in (0, 130, -signal.SIGINT), (after_s, errors)  # the last: Python had ended
    assert not [line for line in errors.splitlines() if not line.startswith(("{", "serving "))], (after_s, errors)


def verbs(model: Path, folder: Path) -> list[list[str]]:
    store = f"file://{folder}/store"
    return [
        ["--help"],
        ["publish", str(model), "--store", store],
        ["serve", "--port", "0", "--admin-port", "0", "--health-port", "0", "--store", store],
        ["releases", "list", "--store", store],
    ]


@pytest.mark.soak
@pytest.mark.parametrize("verb", range(4), ids=["help", "publish", "serve", "list"])
def test_an_interrupt_is_quiet_however_early(verb: int, model: Path, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    asyncio.run(publish_lists(tmp_path / "store", {"user:1": a_list("a")}))
    for moment in range(5):
        check_interrupt(verbs(model, tmp_path)[verb], (moment + draw.random()) / 5 * LATEST_S)


@pytest.mark.soak
def test_an_interrupted_training_ends_while_the_solver_runs(tmp_path: Path) -> None:
    data = tmp_path / "clicks.csv"
    sample(users=300, items=300).write_csv(data)
    # So many factors that each half of an iteration is one call of C that takes half a minute.
    arguments = ["train", str(data), "--out", str(tmp_path / "model"), "--params", "factors=8192", "--split", "none"]
    with subprocess.Popen([sys.executable, "-m", "hotplate", *arguments], stderr=subprocess.PIPE) as process:
        of_process = Path(f"/proc/{process.pid}")
        while "/implicit/cpu/_als" not in (of_process / "maps").read_text():
            time.sleep(0.01)
        loaded_s = cpu_s(of_process)
        while cpu_s(of_process) < loaded_s + 1:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith(b"a fit takes about ")  # an estimate, and nothing else
    assert errors.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == [data]


def cpu_s(of_process: Path) -> float:
    fields = (of_process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_interrupted_work_cleans_up_and_a_call_of_c_is_left_behind(tmp_path: Path) -> None:
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
        interruptible(lambda: work(in_python))
    until(lambda: not list(tmp_path.iterdir()))  # as a rule at once, but a busy machine may be slower than that
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: work(held.acquire))
    held.release()


@pytest.mark.parametrize(
    ("verb", "begun"),
    [(["store", "restore"], ".restored.new-*/releases/*.mdb"), (["releases", "repair", "--from"], "releases/*.draft")],
    ids=["restore", "repair"],
)
def test_an_interrupted_restore_or_repair_leaves_nothing_half_made(verb: list[str], begun: str, tmp_path: Path) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    asyncio.run(publish_lists(source, {f"user:{n:05}": a_list("x" * 4_000) for n in range(8_000)}))
    if verb[0] == "releases":
        shutil.copytree(source, store)
        verb = [*verb, f"file://{source}"]
    else:
        verb = [*verb, str(source)]
    before = listed(store)
    with subprocess.Popen(
        [sys.executable, "-m", "hotplate", *verb, "--store", f"file://{store}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not list(store.glob(begun)):
            time.sleep(0.001)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    if process.returncode == 0:
        return  # it was done just then
    assert (process.returncode, said) == (130, b"")
    assert listed(store) == before
    assert hotplate(*verb, "--store", f"file://{store}").returncode == 0


def test_an_import_that_a_scheduler_stops_leaves_nothing_behind(tmp_path: Path) -> None:
    lists, store, scratch = tmp_path / "lists.csv", tmp_path / "store", tmp_path / "scratch"
    lists.write_text("user,item,score\n" + "".join(f"u{n},i{n % 97},1\n" for n in range(300_000)))
    scratch.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "hotplate", "import", str(lists), "--store", f"file://{store}"],
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(scratch)},
    ) as process:
        while process.poll() is None and not list(store.glob("releases/*.draft")):
            time.sleep(0.001)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")
    assert list(scratch.iterdir()) == []
    assert list(store.glob("releases/*")) == []


def listed(store: Path) -> set[str]:
    """Return what lies in a store, but for what any writer leaves to the next."""
    files = {str(path.relative_to(store)) for path in store.rglob("*")}
    return files - {"catalogue.lock", "catalogue.spare", "catalogue.former"}
