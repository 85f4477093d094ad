"""Ctrl-C, however early: the command ends without a word, with 130, or with 0 where it was done or serves already."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offline.input.sample import sample
from tests.support.command import hotplate
from tests.support.paths import ROOT
from tests.support.soak import SEED, scaled

LATEST_S = 0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupts")
    sample(users=50, items=20).write_csv(folder / "clicks.csv")
    done = hotplate("train", folder / "clicks.csv", "--out", folder / "model", "--factors", "4", "--iterations", "1")
    assert done.returncode == 0, done.stderr
    return folder / "model"


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
        ["serve", "--port", "0", "--admin-port", "0", "--store", store],
        ["releases", "list", "--store", store],
    ]


@pytest.mark.parametrize("verb", range(4), ids=["help", "publish", "serve", "list"])
def test_an_interrupt_is_quiet_however_early(verb: int, model: Path, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    for moment in range(8):
        check_interrupt(verbs(model, tmp_path)[verb], (moment + draw.random()) / 8 * LATEST_S)


@pytest.mark.soak
@pytest.mark.parametrize("verb", range(4), ids=["help", "publish", "serve", "list"])
def test_interrupts_at_many_instants_are_quiet(verb: int, model: Path, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    for _ in range(scaled(60)):
        check_interrupt(verbs(model, tmp_path)[verb], draw.uniform(0, LATEST_S))
