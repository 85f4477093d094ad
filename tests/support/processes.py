"""Programs that a test runs to their end."""

import subprocess
from pathlib import Path
from typing import Any


def run_process(
    *command: str | Path | float,
    code: int | None = 0,
    **options: Any,  # noqa: ANN401 -- of `subprocess.run`
) -> subprocess.CompletedProcess[str]:
    """Run a program and require exit code *code*, unless that is None; return its exit code and what it printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert code in (None, done.returncode), (done.stdout + done.stderr)[-4000:]
    return done
