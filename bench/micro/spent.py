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

from hotplate.bench.report.machine import ROOT, environment


def run(command: Sequence[str]) -> dict[str, float]:
    """Run *command* in the repository; RuntimeError, with its output, unless it exits with 0.

    Returns its wall time, the CPU time of all its threads and children, and the most memory that it had.
    """
    starter = [sys.executable, "-m", "hotplate.bench.micro.spent", *command]
    ended = subprocess.run(  # noqa: S603 -- our own commands
        starter, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def main() -> int:
    """Run the command that the arguments are, what it prints sent to stderr, and print what it spent."""
    started = time.perf_counter()
    process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
    _, status, usage = os.wait4(process, 0)
    wall_s = time.perf_counter() - started
    cpu_s, peak_mb = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6
    print(json.dumps({"time": wall_s, "CPU time": cpu_s, "peak memory": peak_mb}))
    return abs(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    sys.exit(main())
