"""The command in a process forked from one with loaded modules, because loading takes a second of a core."""

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hotplate.__main__ import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "hotplate.bench.cosmos_emulator.server",
        "hotplate.cli.main",
        "hotplate.offline.job",
        "hotplate.offline.publish",
        "hotplate.serve.processes.supervisor",
        "hotplate.stores.file.store",
        "hotplate.stores.redis.store",
    ]
)


class Forked:
    """Runs `hotplate` with *words*, with its output in *output*; used like `subprocess.Popen`."""

    def __init__(self, *words: str | Path, output: Path) -> None:
        arguments = (list(map(str, words)), str(output), dict(os.environ), Path.cwd())
        self._process = _context.Process(target=_run, args=arguments)
        self._process.start()
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


def _run(words: list[str], output: str, environment: dict[str, str], folder: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.argv = ["hotplate", *words]
    main()
