import os
import subprocess
import sys
from pathlib import Path

_TESTS = """
import time
from pathlib import Path

import pytest

RUNNING = Path(__file__).parent / "running"


def run(number):
    mine = RUNNING / str(number)
    mine.touch()
    time.sleep(0.02)
    others = sorted(path.name for path in RUNNING.iterdir() if path != mine)
    mine.unlink()
    return others


@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    others = run(f"alone {number}")
    assert not others, f"beside {others}"


@pytest.mark.parametrize("number", range(9))
def test_beside_others(number):
    run(number)
"""


def test_tests_marked_alone_run_while_no_other_test_does_and_are_counted_with_them(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone\n")
    (tmp_path / "running").mkdir()
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "xdist",
                "-p",
                "tests.support.alone",
            ),
            *("-n", "2", "--dist", "worksteal", "--basetemp", tmp_path / "base", tmp_path),
        ],
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "12 passed" in done.stdout, done.stdout + done.stderr
