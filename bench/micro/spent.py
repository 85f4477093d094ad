"""Commands run to their end, with what they spent.

Linux lets a child's peak memory begin at what its parent had when it was started; so each command is started by a
small process of its own (this module's `main`, which must import little), not by the benchmark, which may be large.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.machine import ROOT, environment


@dataclass(frozen=True, slots=True)
class Spent:
    """What a command took: wall time, CPU time of all its threads and children, and the most memory that it had."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def run(command: Sequence[str]) -> Spent:
    """Run *command* in the repository; RuntimeError, with its output, unless it exits with 0."""
    starter = [sys.executable, "-m", "bench.micro.spent", *command]
    ended = subprocess.run(  # noqa: S603 -- our own commands
        starter, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return Spent(**json.loads(ended.stdout))


def main() -> int:
    """Run the command that the arguments are, what it prints sent to stderr, and print what it spent."""
    started = time.perf_counter()
    process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
    _, status, usage = os.wait4(process, 0)
    wall_s = time.perf_counter() - started
    print(
        json.dumps(
            {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss * 1024 / 1e6}
        )
    )
    return abs(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    sys.exit(main())
