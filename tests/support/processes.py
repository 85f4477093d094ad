"""Programs that a test runs to their end, and those that are not here."""

import os
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest


def skip_without(tool: str, reason: str) -> NoReturn:
    """Skip a test because a tool is missing; fail it if HOTPLATE_REQUIRE names the tool."""
    if tool in os.environ.get("HOTPLATE_REQUIRE", "").split(","):
        pytest.fail(f"HOTPLATE_REQUIRE says {tool}: {reason}")
    pytest.skip(reason)


def run_process(
    *command: str | Path | float,
    code: int | None = 0,
    **options: Any,  # noqa: ANN401 -- of `subprocess.run`
) -> subprocess.CompletedProcess[str]:
    """Run a program and require exit code *code*, unless that is None; return its exit code and what it printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert code in (None, done.returncode), (done.stdout + done.stderr)[-4000:]
    return done
