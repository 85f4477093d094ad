"""Files that are not in memory: callers of warm keys beside callers of cold ones, and what opening and warming give.

The service is one whose time to warm was over at once, so that most of its map is on the disk; cold users are requested
once each, and of every page of the file only one.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np

from bench.lists import Shape, key_of
from bench.loadgen.load import Load
from bench.loadgen.workers import WorkerPool
from bench.micro.memory import parse_memory
from bench.micro.publishing import ROOM, publish_to
from bench.micro.rounds import HEADERS, Effort, Figure, Outcome, Unmeasured, at_most, interleave, path_of, ratio, read
from bench.process import Server, on_core, service_serving
from bench.report.machine import ROOT, environment
from stores.catalogue import ReleaseRef
from stores.file.store import LmdbStore

# How many times as many users the release has that is only opened, warmed and read through.
LARGER = 10
# Users that are requested again and again; the others are cold.
WARM_USERS = 10_000
# Over how many users the next one is on another page.
APART = 8
# What is offered, as a share of what the service can answer to callers of warm keys: half of it, cold ones included.
WARM_LOAD, OTHER_LOAD = 0.45, 0.05
P99_RATIO, OPEN_MS, STALL_MS, ADDED_MB = 2, 10, 2, 60
# Reads that are timed together: a stall shows, and the clock costs nothing.
READS = 100
# A service that warms nothing before it serves.
UNWARMED = "from serve.releases import follower; follower.WARM_S = 0.0; from hotplate.__main__ import main; main()"


@dataclass(frozen=True, slots=True)
class Beside:
    """Warm keys and others at the same time: latencies of both, and the CPU of a request of either."""

    warm_p99_ms: float
    other_p50_ms: float
    other_p99_ms: float
    cpu_us: float
    popular: float


def measure(effort: Effort) -> list[Outcome]:
    """Measure a service on a cold file, then a release of LARGER times as many users."""
    shape = Shape(effort.users, 20)
    with tempfile.TemporaryDirectory() as folder:
        publish_to(f"file://{folder}", shape, shape.values())
        outcomes = measure_beside(Path(folder), effort)
    return [*outcomes, *measure_larger(effort)]


def measure_beside(folder: Path, effort: Effort) -> list[Outcome]:
    """Compare callers of warm keys beside callers of other warm ones with those beside callers of cold ones."""
    warm = [path_of(user) for user in range(min(WARM_USERS, effort.users // 10))]
    unseen = iter(range(effort.users // 10, effort.users, APART))
    evict(folder)
    command = [sys.executable, "-c", UNWARMED, "serve", "--store", f"file://{folder}"]
    with service_serving(command, path_of(0)) as server, on_core(1), WorkerPool() as first, WorkerPool() as second:
        for _ in range(2):
            read(server, warm, effort.round_s)
        capacity = median(read(server, warm, effort.round_s).sample.rate_per_s for _ in range(3))
        load = Load(url=server.url, paths=warm, rate=capacity, duration_s=effort.round_s, headers=HEADERS,
                    observe=("source",))  # fmt: skip

        def beside(others: Sequence[str]) -> Beside:
            return read_beside(server, (first, second), load, warm, others)

        def cold() -> list[str]:
            count = int(capacity * OTHER_LOAD * effort.round_s) + 100
            return [path_of(user) for user in islice(unseen, count)]

        found = interleave({"warm": lambda: beside(warm), "cold": lambda: beside(cold() or warm)}, effort.rounds)
    without, along = found["warm"], found["cold"]
    name = "cold file, half load"
    return [
        ratio(f"{name}: p99 of warm keys beside cold ones / beside warm ones", [one.warm_p99_ms for one in along],
              [one.warm_p99_ms for one in without], goal=at_most(P99_RATIO)),
        Figure(f"{name}: p99 of warm keys beside cold ones", "ms", [one.warm_p99_ms for one in along]),
        Figure(f"{name}: p99 of warm keys beside warm ones", "ms", [one.warm_p99_ms for one in without]),
        Figure(f"{name}: p50 of cold keys", "ms", [one.other_p50_ms for one in along]),
        Figure(f"{name}: p99 of cold keys", "ms", [one.other_p99_ms for one in along]),
        Figure(f"{name}: popular list instead, of cold keys", "share", [one.popular for one in along]),
        Figure(f"{name}: CPU, one request of ten cold", "µs/request", [one.cpu_us for one in along]),
        Figure(f"{name}: CPU, none cold", "µs/request", [one.cpu_us for one in without]),
    ]  # fmt: skip


def read_beside(
    server: Server, pools: tuple[WorkerPool, WorkerPool], load: Load, warm: Sequence[str], others: Sequence[str]
) -> Beside:
    """Request *warm* and *others* at the same time, at their shares of the rate of *load*."""
    shares = (warm, WARM_LOAD, 56), (others, OTHER_LOAD, 8)
    loads = [
        replace(load, paths=paths, rate=(load.rate or 0.0) * share, connections=connections)
        for paths, share, connections in shares
    ]
    before_s = server.cpu_s()
    with ThreadPoolExecutor(len(pools)) as threads:
        results = list(threads.map(WorkerPool.run, pools, loads))
    if any(result.errors for result in results):
        raise RuntimeError(f"errors: {[dict(result.errors) for result in results]}")
    (_, warm_p99_ms), (p50_ms, p99_ms) = (np.percentile(np.asarray(one.latencies_s) * 1e3, (50, 99)) for one in results)
    cpu_us = (server.cpu_s() - before_s) * 1e6 / sum(result.ok for result in results)
    popular = results[1].seen["source"].get("popular", 0) / results[1].ok
    return Beside(float(warm_p99_ms), float(p50_ms), float(p99_ms), cpu_us, popular)


def measure_larger(effort: Effort) -> list[Outcome]:
    """Open, warm and read through a larger release in fresh processes; skipped where the disk lacks the room."""
    shape = Shape(effort.users * LARGER, 20)
    name = f"file:// of {shape.users:,} users"
    with tempfile.TemporaryDirectory() as folder:
        free, needed = shutil.disk_usage(folder).free, int(shape.plan.payload_bytes * ROOM)
        if free < needed:
            return [Unmeasured(name, f"{needed / 1e9:.0f} GB of disk are needed, and {free / 1e9:.0f} GB are free")]
        publish_to(f"file://{folder}", shape, shape.values())
        cached = [opened(Path(folder), 0)["open_ms"] for _ in range(effort.rounds)]
        evict(Path(folder))
        through = opened(Path(folder), shape.users)
    return [
        Figure(f"{name}: open to first answer, file cached", "ms", cached, at_most(OPEN_MS)),
        Figure(f"{name}: open to first answer, nothing cached", "ms", [through["open_ms"]]),
        Figure(f"{name}: warm-up from the disk", "s", [through["warm_s"]]),
        Figure(f"{name}: major page faults when all is read after it", "faults", [through["faults"]], at_most(0)),
        Figure(f"{name}: CPU of the longest {READS} reads after it", "ms", [through["longest_ms"]], at_most(STALL_MS)),
        Figure(f"{name}: memory of the process's own when all was read", "MB", [through["own_mb"]], at_most(ADDED_MB)),
        Figure(f"{name}: closing it stops the loop for", "ms", [through["close_ms"]], at_most(STALL_MS)),
    ]


def opened(folder: Path, users: int) -> dict[str, float]:
    """Open a store in a fresh process, and warm and read all of it where it is to be read."""
    command = [sys.executable, "-m", "bench.micro.cold", "--folder", str(folder), "--users", str(users)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)  # noqa: S603 -- our own module
    if done.returncode:
        raise RuntimeError(f"a reading process ended with {done.returncode}: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def evict(folder: Path) -> None:
    """Have the files of a store read from the disk when they are read next, where they are on one."""
    for path in folder.glob("releases/*.mdb"):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


async def go_through(folder: Path, users: int) -> dict[str, float]:
    """Open, and where there are *users*, warm, read each of them once, and close; return what that took."""
    started = time.perf_counter()
    store = LmdbStore(folder)
    live = (await store.catalogue()).live_ref
    if live is None or store.get(live, key_of(0)) is None:
        raise RuntimeError(f"{folder} has no list to read")
    figures = {"open_ms": (time.perf_counter() - started) * 1e3}
    if not users:
        return figures
    before_mb, started = own_mb(), time.perf_counter()
    await store.warm(live)
    figures["warm_s"] = time.perf_counter() - started
    before = resource.getrusage(resource.RUSAGE_THREAD)
    figures["longest_ms"] = max(timed_reads(store, live, users))
    figures["faults"] = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt - before.ru_majflt
    figures["own_mb"] = own_mb() - before_mb
    started, longest_s = time.perf_counter(), 0.0
    closing = asyncio.create_task(store.close())
    while not closing.done():
        await asyncio.sleep(0)
        longest_s, started = max(longest_s, time.perf_counter() - started), time.perf_counter()
    return figures | {"close_ms": longest_s * 1e3}


def timed_reads(store: LmdbStore, live: ReleaseRef, users: int) -> Iterator[float]:
    """Read all lists in an order that jumps, and yield the milliseconds of CPU of each READS of them.

    That is what entering pages into the page table would cost; reads from the disk are counted as major faults.
    """
    for start in range(0, users, READS):
        # 7,919 is a prime that divides no number of users here, so that each is read once.
        keys = [key_of(user * 7_919 % users) for user in range(start, min(start + READS, users))]
        started = time.thread_time()
        for key in keys:
            store.get(live, key)
        yield (time.thread_time() - started) * 1e3


def own_mb() -> float:
    """Return the memory that is this process's own, page table included."""
    tables = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmPTE"))
    return parse_memory(Path("/proc/self/smaps_rollup").read_text())["Anonymous"] + int(tables.split()[1]) * 1024 / 1e6


def main() -> None:
    """Be the process that opens a store; print what it took, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.cold", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--users", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(go_through(options.folder, options.users))))


if __name__ == "__main__":
    main()
