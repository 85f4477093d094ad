"""Trial releases: written and made durable as any other, then given up, so that they leave no trace in a store.

`python -m bench.trial` is a process that writes them when told to, so that it can be told while reads go on.
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
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import IO

from bench.backing import Backing, backing
from bench.errors import BenchFailed
from bench.launch import on_core
from bench.report.machine import ROOT, environment
from stores.catalogue import ReleaseId, ReleaseRef
from stores.connect import connect
from stores.keys import USER
from stores.lifecycle import begin, write
from stores.manifest import Manifest, Tally
from stores.store import Plan, Row, Store

NICENESS = 19
"""A publisher has a machine of its own in real life; here it has what the service leaves of the service's core."""

BATCH_ROWS = 1000
STOP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What writing one release took: of this process and of the server, and the room that it had then."""

    lists: int
    wall_s: float
    cpu_s: float
    server_cpu_s: float | None
    stored_bytes: int | None


class _OverError(Exception):
    """All is written and durable, and nothing of it is wanted."""


async def trial(store: Store, behind: Backing, rows: Sequence[Row]) -> Trial:
    """Write *rows* as a draft, seal it, look at what that took, and give it up; readers never see it."""
    stored, server_s = behind.stored_bytes(), behind.cpu_s()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = list[Trial]()
    release = ReleaseId(f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")

    async def batches() -> AsyncIterator[Sequence[Row]]:
        for start in range(0, len(rows), BATCH_ROWS):
            yield rows[start : start + BATCH_ROWS]

    async def finish(_: Tally) -> Manifest:
        await store.seal(draft)
        took_s, spent_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        server_after_s, stored_after = behind.cpu_s(), behind.stored_bytes()
        found.append(
            Trial(
                lists=len(rows),
                wall_s=took_s,
                cpu_s=spent_s,
                server_cpu_s=None if server_after_s is None or server_s is None else server_after_s - server_s,
                stored_bytes=None if stored_after is None or stored is None else stored_after - stored,
            )
        )
        raise _OverError  # before the manifest and the commit: the draft is dropped, as that of any failed publish

    draft = await begin(store, release)
    plan = Plan(len(rows), sum(len(row.key) + len(row.value) for row in rows))
    try:
        await write(store, draft, batches(), plan=plan, finish=finish)
    except _OverError:
        return found[0]
    raise BenchFailed(f"the trial release {release} was committed")


@dataclass(frozen=True, slots=True)
class Trials:
    """The process, from the side of whoever started it."""

    asks: IO[str]
    tells: IO[str]

    def once(self) -> Trial:
        """Let it write one release; blocks until that is done."""
        self._ask("once")
        return Trial(**json.loads(self.told()))

    def begin(self) -> None:
        """Let it write one release after the other."""
        self._ask("begin")

    def end(self) -> float:
        """Let it finish the release at hand; return how many lists a second it wrote, pauses for erasing included."""
        self._ask("end")
        return float(json.loads(self.told()))

    def told(self) -> str:
        """Read what it says next; BenchFailed where it has died."""
        line = self.tells.readline()
        if not line:
            raise BenchFailed("the publishing process died; what it said is above")
        return line

    def _ask(self, word: str) -> None:
        self.asks.write(f"{word}\n")
        self.asks.flush()


@contextmanager
def trials(settings: dict[str, str], release: ReleaseId, lists: int) -> Iterator[Trials]:
    """Start a process that writes the first *lists* lists of *release* into its own store, and wait until it could.

    *settings* name the store in HOTPLATE_STORE: not an argument, which others see, as it may hold a password.
    """
    command = [sys.executable, "-m", "bench.trial", "--release", release, "--lists", str(lists)]
    with on_core(0):
        process = subprocess.Popen(  # noqa: S603 -- our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment() | settings
        )
    with process:
        if process.stdin is None or process.stdout is None:
            raise BenchFailed("pipes were asked for")
        try:
            started = Trials(process.stdin, process.stdout)
            started.told()
            yield started
        finally:
            process.stdin.close()  # it finishes what it is writing, gives it up, and ends
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()


async def obey(url: str, release: ReleaseId, lists: int) -> None:
    """Read the rows to write, say so, and do as the lines on standard input say until they end."""
    store, behind = connect(url), backing(url)
    try:
        rows = await _rows(store, (await store.catalogue()).find(release).ref, lists)
        print("ready", flush=True)
        while word := await asyncio.to_thread(sys.stdin.readline):
            if word == "once\n":
                print(json.dumps(asdict(await trial(store, behind, rows))), flush=True)
            elif word == "begin\n":
                print(await _until_told(store, behind, rows), flush=True)
    finally:
        await store.close()


async def _until_told(store: Store, behind: Backing, rows: Sequence[Row]) -> float:
    begun_s, written = time.perf_counter(), 0
    told = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    while not told.done():
        written += (await trial(store, behind, rows)).lists
    return written / (time.perf_counter() - begun_s)


async def _rows(store: Store, release: ReleaseRef, lists: int) -> list[Row]:
    found = list[Row]()
    async with aclosing(store.scan(release)) as scanned:  # type: ignore[type-var]  # an iterator by contract, a generator in all stores
        async for row in scanned:
            if row.key.startswith(USER):
                found.append(row)
            if len(found) == lists:
                break
    return found


def main() -> None:
    """Be the process."""
    parser = argparse.ArgumentParser(prog="python -m bench.trial", description=__doc__)
    parser.add_argument("--release", required=True)
    parser.add_argument("--lists", type=int, required=True)
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    os.nice(NICENESS)
    asyncio.run(obey(os.environ["HOTPLATE_STORE"], ReleaseId(asked.release), asked.lists))


if __name__ == "__main__":
    main()
