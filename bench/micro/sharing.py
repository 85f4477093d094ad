"""What worker processes add that read one release at the same time: each opens the store, then reads every list."""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.lists import key_of
from bench.micro.rounds import Figure, at_most
from bench.report.machine import ROOT, environment
from stores.lmdb_store import LmdbStore

WORKERS = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process has in MB (10^6 bytes); `pss` counts a page that n processes share as 1/n of it."""

    anonymous: float
    private_dirty: float
    pss: float

    def __sub__(self, other: "Memory") -> "Memory":
        return Memory(self.anonymous - other.anonymous, self.private_dirty - other.private_dirty, self.pss - other.pss)


@dataclass(frozen=True, slots=True)
class Shared:
    """One round: how long each worker took to its first answer, and what each had more when all had read all."""

    open_ms: list[float]
    added: list[Memory]


class Worker:
    """A process that goes on by one step whenever it is told to; lives as long as one round."""

    def __init__(self, process: subprocess.Popen[str], asks: IO[str], tells: IO[str]) -> None:
        self._process = process
        self._asks = asks
        self._tells = tells

    def go_on(self) -> None:
        """Let it take its next step."""
        self._asks.write("\n")
        self._asks.flush()

    def told(self) -> float:
        """Wait for the end of its step, and return the milliseconds that it took; RuntimeError where it died."""
        line = self._tells.readline()
        if not line:
            raise RuntimeError(f"a reading process ended with {self._process.wait()}")
        return float(line)

    def memory(self) -> Memory:
        """Look at what it has now."""
        return parse_memory(Path(f"/proc/{self._process.pid}/smaps_rollup").read_text())


def parse_memory(rollup: str) -> Memory:
    """Read what /proc/PID/smaps_rollup says."""
    lines = (line.split() for line in rollup.splitlines()[1:])
    megabytes = {words[0].rstrip(":"): int(words[1]) * 1024 / 1e6 for words in lines}
    return Memory(megabytes["Anonymous"], megabytes["Private_Dirty"], megabytes["Pss"])


def share(folder: Path, users: int) -> Shared:
    """Let the workers open the store one after the other, then read all lists at the same time."""
    with ExitStack() as stack:
        workers = [stack.enter_context(_working(folder, users)) for _ in range(WORKERS)]
        for worker in workers:
            worker.told()
        before = [worker.memory() for worker in workers]
        open_ms = list[float]()
        for worker in workers:
            worker.go_on()
            open_ms.append(worker.told())
        for worker in workers:
            worker.go_on()
        for worker in workers:
            worker.told()
        return Shared(open_ms, [worker.memory() - first for worker, first in zip(workers, before, strict=True)])


def compare(folder: Path, users: int, rounds: int) -> list[Figure]:
    """Tell of the opening, and of the memory of the worker that added most in each round."""
    taken = [share(folder, users) for _ in range(rounds)]
    most = f"file://, {WORKERS} workers, most that one adds"
    return [
        Figure(
            "file://, open to first get, fresh process, file cached",
            "ms",
            [each for one in taken for each in one.open_ms],
            at_most(50),
        ),
        Figure(
            f"{most}: anonymous, file's cache not counted",
            "MB",
            [max(memory.anonymous for memory in one.added) for one in taken],
            at_most(50),
        ),
        Figure(
            f"{most}: private dirty, file's cache not counted",
            "MB",
            [max(memory.private_dirty for memory in one.added) for one in taken],
            at_most(50),
        ),
        Figure(
            f"{most}: Pss, with its share of the file's cache",
            "MB",
            [max(memory.pss for memory in one.added) for one in taken],
        ),
    ]


@contextmanager
def _working(folder: Path, users: int) -> Iterator[Worker]:
    command = [sys.executable, "-m", "bench.micro.sharing", "--folder", str(folder), "--users", str(users)]
    with subprocess.Popen(  # noqa: S603 -- our own module
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        try:
            yield Worker(process, process.stdin, process.stdout)
        finally:
            process.kill()


def main() -> None:
    """Be one worker: before each step wait for a line; after it say how many milliseconds it took."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.sharing", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--users", type=int, required=True)
    asked = parser.parse_args()
    with asyncio.Runner() as runner:
        runner.get_loop()
        print(0.0, flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        store = LmdbStore(asked.folder)
        live = runner.run(store.catalogue()).live
        if live is None or store.get(live, key_of(0)) is None:
            raise RuntimeError(f"{asked.folder} has no list to read")
        print((time.perf_counter() - started) * 1e3, flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        for user in range(asked.users):
            if store.get(live, key_of(user)) is None:
                raise RuntimeError(f"{asked.folder} lacks the list of user {user}")
        print((time.perf_counter() - started) * 1e3, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
