"""Starting processes for a measurement: services, redis-server and the emulator, each on a core, with what they use."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchFailed
from bench.report.machine import ROOT, environment

READY_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0
GROUP, USER_TICKS, SYSTEM_TICKS = 2, 11, 12  # fields of /proc/PID/stat, counted from the one after the name


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `group` is the process group of it and of whatever it started."""

    url: str
    group: int

    def cpu_s(self) -> float:
        """Add up the CPU time, user and system, of all its processes; in steps of 10 ms."""
        ticks = sum(int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS]) for _, fields in self._processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Add up the memory that is its processes' own; pages of files that they map can be dropped at any time."""
        return sum(own_memory_bytes(pid) for pid, _ in self._processes())

    def _processes(self) -> Iterator[tuple[int, list[str]]]:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # a process that has just ended
            if int(fields[GROUP]) == self.group:
                yield int(stat.parent.name), fields


def own_memory_bytes(pid: int) -> int:
    """Tell the resident memory of a process without pages of files; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on its *number*-th core, where there are two or more."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1:
        os.sched_setaffinity(0, {sorted(allowed)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def serving(
    command: Sequence[str], port: int, path: str, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run *command* on the first core until the block ends; it starts once *path* is answered with 200.

    *settings* are added to its environment. Raises BenchFailed, with what the server said, when that does not happen.
    """
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as said:
        with on_core(0):
            process = subprocess.Popen(  # noqa: S603 -- our own commands
                command, cwd=ROOT, env=environment() | dict(settings or {}), stdout=said, stderr=said, process_group=0
            )
        try:
            if not _answers(process, url + path):
                said.seek(0)
                raise BenchFailed(f"{' '.join(command)} does not serve {path}: {said.read().decode()[-2000:]}")
            yield Server(url, process.pid)
        finally:
            _stop(process)


def free_port() -> int:
    """Find a port on loopback that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    until = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=1.0) as answer:  # noqa: S310 -- http on loopback
                return bool(answer.status == 200)
        except OSError:  # refused for now, or an error status for now
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


CORE = 1
"""Where the server runs; what asks it runs on core 0."""

BINARY = "redis-server"
MISSING = f"no {BINARY} on the PATH; on Debian or Ubuntu: apt-get install {BINARY}"
READY_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server, empty at first."""

    port: int

    def url(self, prefix: str = "bench") -> str:
        """Name a deployment in it."""
        return f"redis://127.0.0.1:{self.port}/0?prefix={prefix}"

    def cpu_s(self) -> float:
        """Add up the CPU time, user and system, of all its threads; to the microsecond."""
        spent = self._execute("INFO", "cpu")
        return float(spent["used_cpu_user"]) + float(spent["used_cpu_sys"])

    def used_bytes(self) -> int:
        """Return its `used_memory`, which is what it asked its allocator for."""
        return int(self._execute("INFO", "memory")["used_memory"])

    def clear(self) -> None:
        """Drop all that it holds."""
        self._execute("FLUSHALL", "SYNC")

    def answers(self) -> bool:
        """Tell whether it does yet."""
        from redis import RedisError  # noqa: PLC0415 -- an extra: only who measures Redis needs it

        try:
            return bool(self._execute("PING"))
        except RedisError:
            return False

    def _execute(self, *command: str) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        from redis import Redis  # noqa: PLC0415 -- as above
        from redis.backoff import NoBackoff  # noqa: PLC0415 -- as above
        from redis.retry import Retry  # noqa: PLC0415 -- as above

        with Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as client:
            return client.execute_command(*command)


def installed() -> bool:
    """Tell whether this machine has a server to start."""
    return shutil.which(BINARY) is not None


@contextmanager
def redis_serving() -> Iterator[RedisServer]:
    """Run a server until the block ends; BenchFailed, with what it said, where it does not start."""
    server = RedisServer(free_port())
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        settings = {"bind": "127.0.0.1", "port": str(server.port), "dir": folder, "save": "", "appendonly": "no"}
        command = [BINARY, *(text for name, value in settings.items() for text in (f"--{name}", value))]
        with on_core(CORE):
            process = subprocess.Popen(  # noqa: S603 -- a constant, but for port and folder
                command, stdout=said, stderr=said, process_group=0
            )
        try:
            until = time.monotonic() + READY_WITHIN_S
            while not server.answers():
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    raise BenchFailed(f"{BINARY} does not start: {said.read().decode()[-2000:]}")
                time.sleep(0.01)
            yield server
        finally:
            process.kill()  # it has nothing to lose
            process.wait()
