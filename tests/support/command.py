"""The command `hotplate`, run in this process."""

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from hotplate.cli import main
from hotplate.cli.terminal import err, out

WIDTH = 200


@dataclass(frozen=True, slots=True)
class Completed:
    returncode: int
    stdout: str
    stderr: str


def hotplate(*arguments: str | Path, settings: Mapping[str, str] | None = None, answer: str = "") -> Completed:
    """Run `hotplate` with these arguments, *settings* in its environment, and an *answer* on its standard input."""
    printed, errors = StringIO(), StringIO()
    argv = ["hotplate", *map(str, arguments)]
    with (
        patch.object(sys, "argv", argv),
        patch.object(sys, "stdin", StringIO(answer)),
        patch.dict(os.environ, settings or {}),
        patch.object(out, "_width", WIDTH),
        patch.object(err, "_width", WIDTH),
        redirect_stdout(printed),
        redirect_stderr(errors),
    ):
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
    assert isinstance(code, int)
    return Completed(code, printed.getvalue(), errors.getvalue())
