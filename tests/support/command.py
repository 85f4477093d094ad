"""The command run in this process: what it prints, and its exit code, without starting a Python for each call."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from hotplate.cli import main, terminal


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def hotplate(*arguments: str | Path) -> Done:
    """Run `hotplate` with *arguments*, on a terminal of 200 columns."""
    printed, errors = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["hotplate", *map(str, arguments)]),
        patch.object(terminal.out, "_width", 200),
        patch.object(terminal.err, "_width", 200),
        redirect_stdout(printed),
        redirect_stderr(errors),
    ):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, printed.getvalue(), errors.getvalue())
