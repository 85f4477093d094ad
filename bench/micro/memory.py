"""What worker processes add that read one release at the same time: each opens the store, then reads every list."""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.lists import key_of
from bench.micro.rounds import Figure, at_most
from bench.report.machine import ROOT, environment
from stores.file.store import LmdbStore

WORKERS = 4
# What a worker may take to its first list, and what it may add to reach every list.
OPEN_MS, ADDED_MB = 50, 50
# Pss counts a page that n processes share as 1/n of it.
KINDS = ("Anonymous", "Private_Dirty", "Pss")

Process = subprocess.Popen[str]
Memory = dict[str, float]


def compare(folder: Path, users: int, rounds: int) -> list[Figure]:
    """Return how long opening takes, and the memory of the worker that added most in each round."""
    taken = [share(folder, users) for _ in range(rounds)]
    anonymous, private_dirty, pss = ([max(memory[kind] for memory in added) for _, added in taken] for kind in KINDS)
    opened = [each for open_ms, _ in taken for each in open_ms]
    what, goal = f"file://, {WORKERS} workers, most that one adds", at_most(ADDED_MB)
    return [
        Figure("file://, open to first get, fresh process, file cached", "ms", opened, at_most(OPEN_MS)),
        Figure(f"{what}: anonymous, file's cache not counted", "MB", anonymous, goal),
        Figure(f"{what}: private dirty, file's cache not counted", "MB", private_dirty, goal),
        Figure(f"{what}: Pss, with its share of the file's cache", "MB", pss),
    ]


def share(folder: Path, users: int) -> tuple[list[float], list[Memory]]:
    """Let the workers open the store one after the other, then read all lists at the same time.

    Returns the milliseconds that each took to its first list, and what each had more when all had read all.
    """
    command = [sys.executable, "-m", "bench.micro.memory", "--folder", str(folder), "--users", str(users)]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(  # noqa: S603 -- our own module
                    command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(WORKERS)
        ]
        for worker in workers:
            stack.callback(worker.kill)
            step_ms(worker)
        before = [memory_of(worker.pid) for worker in workers]
        open_ms = [step_ms(start(worker)) for worker in workers]
        for worker in [start(worker) for worker in workers]:
            step_ms(worker)
        after = [memory_of(worker.pid) for worker in workers]
    return open_ms, [{kind: a[kind] - b[kind] for kind in KINDS} for a, b in zip(after, before, strict=True)]


def start(worker: Process) -> Process:
    """Let a worker take its next step."""
    if worker.stdin is not None:
        worker.stdin.write("\n")
        worker.stdin.flush()
    return worker


def step_ms(worker: Process) -> float:
    """Wait for the end of a worker's step, and return the milliseconds that it took; RuntimeError where it died."""
    line = worker.stdout.readline() if worker.stdout is not None else ""
    if not line:
        raise RuntimeError(f"a reading process ended with {worker.wait()}")
    return float(line)


def memory_of(pid: int) -> Memory:
    """Return what a process has now, in MB (10^6 bytes)."""
    return parse_memory(Path(f"/proc/{pid}/smaps_rollup").read_text())


def parse_memory(rollup: str) -> Memory:
    """Parse /proc/PID/smaps_rollup."""
    lines = (line.split() for line in rollup.splitlines()[1:])
    megabytes = {words[0].rstrip(":"): int(words[1]) * 1024 / 1e6 for words in lines}
    return {kind: megabytes[kind] for kind in KINDS}


def main() -> None:
    """Be one worker: print how many milliseconds each step took, and wait for a line before the next."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.memory", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--users", type=int, required=True)
    options = parser.parse_args()

    def timed(step: Callable[[], object]) -> None:
        started = time.perf_counter()
        step()
        print((time.perf_counter() - started) * 1e3, flush=True)
        sys.stdin.readline()

    with asyncio.Runner() as runner:
        timed(runner.get_loop)

        def read(users: int) -> None:
            store = LmdbStore(options.folder)
            live = runner.run(store.catalogue()).live_ref
            for user in range(users):
                if live is None or store.get(live, key_of(user)) is None:
                    raise RuntimeError(f"{options.folder} has no list to read for user {user}")

        timed(lambda: read(1))
        timed(lambda: read(options.users))


if __name__ == "__main__":
    main()
