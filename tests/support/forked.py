"""The command in a process forked from one with loaded modules, because loading takes a second of a core."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, suppress
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import cast

from hotplate.__main__ import main
from tests.support.paths import ROOT

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.preloaded"])


@cache
def _start_server() -> None:
    """Start the process that forks the others."""
    with chdir(ROOT):  # it finds `tests` in its working folder
        forkserver.ensure_running()


def forked_process(target: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """Start *target* in a process with loaded modules."""
    process = _context.Process(target=target, args=arguments)
    _start_server()
    process.start()
    return cast("multiprocessing.Process", process)


class Forked:
    """Runs `hotplate` with *words*, with its output in *output*; used like `subprocess.Popen`.

    *before* is Python source that the process executes before the command, as to replace a function.
    """

    def __init__(self, *words: str | Path, output: Path, before: str = "") -> None:
        arguments = (list(map(str, words)), str(output), dict(os.environ), Path.cwd(), before)
        self._process = forked_process(_run, *arguments)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("hotplate", timeout or 0.0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(words: list[str], output: str, environment: dict[str, str], folder: Path, before: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.argv = ["hotplate", *words]
    exec(before, {})
    main()
