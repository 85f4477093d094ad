"""A redis-server of one's own for a measurement: on loopback, nothing on disk, on the core of the load generator."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.errors import BenchFailed
from bench.launch import free_port, on_core

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
        spent = self._ask("INFO", "cpu")
        return float(spent["used_cpu_user"]) + float(spent["used_cpu_sys"])

    def used_bytes(self) -> int:
        """Return its `used_memory`, which is what it asked its allocator for."""
        return int(self._ask("INFO", "memory")["used_memory"])

    def clear(self) -> None:
        """Drop all that it holds."""
        self._ask("FLUSHALL", "SYNC")

    def answers(self) -> bool:
        """Tell whether it does yet."""
        try:
            return bool(self._ask("PING"))
        except redis.RedisError:
            return False

    def _ask(self, *command: str) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        with redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as client:
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
