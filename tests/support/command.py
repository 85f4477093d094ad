"""The command as people type it: in this process, or in a separate one."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from hotplate.cli import terminal
from hotplate.cli.main import main
from tests.support.processes import run_process

_WIDTH = "200"


def hotplate(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(*arguments, **environment)
    with ThreadPoolExecutor(1) as thread:  # a verb runs an event loop, and a thread has at most one
        return thread.submit(_run, *arguments, **environment).result()


def succeeded(*arguments: str | Path, **environment: str) -> str:
    """Run the command in this process and require success; return its output."""
    done = hotplate(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def json_of(*arguments: str | Path, code: int = 0, **environment: str) -> Any:  # noqa: ANN401 -- JSON is what it is
    """Run the command with --json in this process and require exit code *code*; return its output."""
    done = hotplate(*arguments, "--json", **environment)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def hotplate_process(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a separate process."""
    return run_process(
        sys.executable,
        "-m",
        "hotplate",
        *arguments,
        code=None,
        timeout=100,
        env=os.environ | {"COLUMNS": _WIDTH, "TERM": "dumb"} | environment,
    )


def failed(done: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    """Hold a failure to the promise: one sentence on standard error, no traceback, the right exit code."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def _run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ["hotplate", *map(str, arguments)]
    output = io.StringIO()
    errors = io.StringIO()
    with _environment(words, environment), redirect_stdout(output), redirect_stderr(errors):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


@contextmanager
def _environment(words: list[str], environment: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.setattr("tempfile.tempdir", None)  # it remembers the TMPDIR of its first use
        for console in (terminal.out, terminal.err):
            patch.setattr(console, "width", int(environment.get("COLUMNS", _WIDTH)))
        for name, value in ({"COLUMNS": _WIDTH, "TERM": "dumb"} | environment).items():
            patch.setenv(name, value)
        yield
