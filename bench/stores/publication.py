"""Trial releases: written and sealed like any other, then abandoned, so that they leave no trace in a store.

`python -m bench.stores.publication` is a process that writes them on command, while reads go on.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import IO

from bench.errors import BenchFailed
from bench.process import on_core, stop_process
from bench.report.machine import ROOT, environment
from bench.stores.setup import StoreServer, first_user_rows, opened, store_server
from stores.catalogue import ReleaseId
from stores.lifecycle import begin, write
from stores.manifest import Manifest, Tally
from stores.store import Plan, Row, Store

# In production a publisher has a machine of its own; here it takes what the service leaves of the service's core.
NICENESS = 19

BATCH_ROWS = 1000
STOP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What writing one release took: CPU of this process and of the server, and the space that it had then."""

    lists: int
    wall_s: float
    cpu_s: float
    server_cpu_s: float | None
    stored_bytes: int | None


class _AbandonedError(Exception):
    """Everything is written and durable, and the draft is to be dropped."""


async def write_trial(store: Store, server: StoreServer, rows: Sequence[Row]) -> TrialResult:
    """Write *rows* as a draft, seal it, measure that, and abandon it; readers never see it."""
    stored, server_s = server.stored_bytes(), server.cpu_s()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    results = list[TrialResult]()
    draft = await begin(store, ReleaseId(f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"))

    async def batches() -> AsyncIterator[Sequence[Row]]:
        for start in range(0, len(rows), BATCH_ROWS):
            yield rows[start : start + BATCH_ROWS]

    async def measure_and_abandon(_: Tally) -> Manifest:
        await store.seal(draft)
        took_s, used_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        server_after_s, stored_after = server.cpu_s(), server.stored_bytes()
        results.append(
            TrialResult(
                lists=len(rows),
                wall_s=took_s,
                cpu_s=used_s,
                server_cpu_s=None if server_after_s is None or server_s is None else server_after_s - server_s,
                stored_bytes=None if stored_after is None or stored is None else stored_after - stored,
            )
        )
        raise _AbandonedError  # before the manifest and the commit: the draft is dropped like that of a failed publish

    plan = Plan(len(rows), sum(len(row.key) + len(row.value) for row in rows))
    try:
        await write(store, draft, batches(), plan=plan, finish=measure_and_abandon)
    except _AbandonedError:
        return results[0]
    raise BenchFailed(f"the trial release {draft.id} was committed")


@dataclass(frozen=True, slots=True)
class TrialPublisher:
    """The publishing process, from the side of whoever started it."""

    commands: IO[str]
    replies: IO[str]

    def write_one(self) -> TrialResult:
        """Let it write one release; blocks until that is done."""
        self._send("once")
        return TrialResult(**json.loads(self.receive()))

    def start(self) -> None:
        """Let it write one release after the other."""
        self._send("start")

    def stop(self) -> float:
        """Let it finish the current release; return how many lists a second it wrote, pauses for erasing included."""
        self._send("stop")
        return float(json.loads(self.receive()))

    def receive(self) -> str:
        """Read its next reply; BenchFailed where it has died."""
        line = self.replies.readline()
        if not line:
            raise BenchFailed("the publishing process died; what it printed is above")
        return line

    def _send(self, command: str) -> None:
        self.commands.write(f"{command}\n")
        self.commands.flush()


@contextmanager
def trial_publisher(settings: dict[str, str], release: ReleaseId, lists: int) -> Iterator[TrialPublisher]:
    """Start a process that writes the first *lists* lists of *release* into its own store, and wait until it could.

    *settings* name the store in HOTPLATE_STORE: not an argument, which others see, as it may hold a password.
    """
    command = [sys.executable, "-m", "bench.stores.publication", "--release", release, "--lists", str(lists)]
    with on_core(0):
        process = subprocess.Popen(  # noqa: S603 -- our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment() | settings
        )
    with process:
        if process.stdin is None or process.stdout is None:
            raise BenchFailed("the publishing process has no pipes")
        try:
            publisher = TrialPublisher(process.stdin, process.stdout)
            publisher.receive()
            yield publisher
        finally:
            process.stdin.close()  # it finishes what it is writing, abandons it, and ends
            stop_process(process, STOP_WITHIN_S)


async def publish_on_command(url: str, release: ReleaseId, lists: int) -> None:
    """Read the rows to write, report that, and follow the commands on standard input until they end."""
    server = store_server(url)
    async with opened(url) as store:
        rows = await first_user_rows(store, (await store.catalogue()).find(release).ref, lists)
        print("ready", flush=True)
        while command := await asyncio.to_thread(sys.stdin.readline):
            if command == "once\n":
                print(json.dumps(asdict(await write_trial(store, server, rows))), flush=True)
            elif command == "start\n":
                print(await _write_until_stopped(store, server, rows), flush=True)


async def _write_until_stopped(store: Store, server: StoreServer, rows: Sequence[Row]) -> float:
    started_s, written = time.perf_counter(), 0
    stopped = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    while not stopped.done():
        written += (await write_trial(store, server, rows)).lists
    return written / (time.perf_counter() - started_s)


def main() -> None:
    """Run the process."""
    parser = argparse.ArgumentParser(prog="python -m bench.stores.publication", description=__doc__)
    parser.add_argument("--release", required=True)
    parser.add_argument("--lists", type=int, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    os.nice(NICENESS)
    asyncio.run(publish_on_command(os.environ["HOTPLATE_STORE"], ReleaseId(arguments.release), arguments.lists))


if __name__ == "__main__":
    main()
