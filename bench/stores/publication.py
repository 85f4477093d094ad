"""Trial releases: written and sealed like any other, then abandoned, so they leave no trace in a store.

A process of their own writes them on command, while reads go on.
"""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from hotplate.bench.errors import BenchFailed
from hotplate.bench.machine import environment
from hotplate.bench.process import Channel, on_core, receive, start_worker, stop_process
from hotplate.bench.stores.server import StoreServer, difference, opened, store_server
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.compression import EncodedRows
from hotplate.stores.keys import USER
from hotplate.stores.manifest import Manifest, Tally
from hotplate.stores.publication import begin, write
from hotplate.stores.store import Plan, Row, Store

# In production a publisher has a machine of its own; here it takes what the service leaves of the service's core.
NICENESS = 19

BATCH_ROWS = 1000

# A trial is of as many lists as take so long, so rounds are short whatever the store. How fast it is is measured by
# trials of more and more lists, until one takes half of that.
TRIAL_S = 0.5
FIRST_LISTS = 250
TIMES_MORE = 4
STOP_WITHIN_S = 30.0

# Commands to the process.
ONCE = "once"
START = "start"
STOP = "stop"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What writing the lists of one release took, from the first one until all are durable, and the space they have.

    What takes the same however many there are is left out, as making a container: a trial has few lists.
    """

    lists: int
    wall_s: float
    cpu_s: float
    server_cpu_s: float | None
    stored_bytes: float | None

    def per_list(self, total: float | None) -> float | None:
        """Return what one list took of it, if that is known."""
        return None if total is None else total / self.lists


class _AbandonedError(Exception):
    """Everything is written and durable, and the draft is to be dropped."""


async def write_trial(store: Store, server: StoreServer, rows: Sequence[Row]) -> TrialResult:
    """Write *rows* as a draft, seal it, measure that, and abandon it; readers never see it."""
    stored, results = server.stored_bytes(), list[TrialResult]()
    started = list[tuple[float, float, float | None]]()
    draft = await begin(store, ReleaseId(f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"))

    async def batches() -> AsyncIterator[list[Row]]:
        started.append((time.perf_counter(), time.process_time(), server.cpu_s()))
        for start in range(0, len(rows), BATCH_ROWS):
            yield list(rows[start : start + BATCH_ROWS])

    async def measure_and_abandon(_: Tally) -> Manifest:
        await store.seal(draft)
        wall_s, cpu_s, server_s = started[0]
        took_s, used_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        server_used_s, stored_more = difference(server.cpu_s(), server_s), difference(server.stored_bytes(), stored)
        results.append(TrialResult(len(rows), took_s, used_s, server_used_s, stored_more))
        raise _AbandonedError  # before the manifest and the commit: the draft is dropped like that of a failed publish

    async def encoded() -> EncodedRows:  # as they were read, so nothing but writing is measured
        return EncodedRows(Plan(len(rows), sum(len(row.key) + len(row.value) for row in rows)), batches())

    try:
        await write(store, draft, encoded, finish=measure_and_abandon)
    except _AbandonedError:
        return results[0]
    raise BenchFailed(f"the trial release {draft.id} was committed")


async def lists_a_second(store: Store, server: StoreServer, rows: Sequence[Row]) -> float:
    """Measure how many lists a second *store* takes, by trials of more and more of *rows*, up to all."""
    count = FIRST_LISTS
    while True:
        found = await write_trial(store, server, rows[:count])
        if found.wall_s >= TRIAL_S / 2 or count >= len(rows):
            return found.lists / found.wall_s
        count *= TIMES_MORE


async def first_user_rows(store: Store, release: ReleaseRef, most: int) -> list[Row]:
    """Read the first *most* users' rows of a release."""
    rows = list[Row]()
    async with aclosing(store.scan(release)) as scanned:  # type: ignore[type-var]  # an iterator by contract, a generator in all stores
        async for row in scanned:
            if row.key.startswith(USER):
                rows.append(row)
            if len(rows) == most:
                break
    return rows


@dataclass(frozen=True, slots=True)
class TrialPublisher:
    """The publishing process, from the side of whoever started it."""

    channel: Channel

    def write_one(self) -> TrialResult:
        """Let it write one release; blocks until that is done."""
        self.channel.send(ONCE)
        return self.receive(TrialResult)

    def start(self) -> None:
        """Let it write one release after the other."""
        self.channel.send(START)

    def stop(self) -> float:
        """Let it finish the current release; return how many lists a second it wrote, pauses for erasing included."""
        self.channel.send(STOP)
        return self.receive(float)

    def receive(self, kind: type[T]) -> T:
        """Wait for its next reply; BenchFailed if it has died."""
        reply = receive(self.channel, "the publishing process died; what it printed is above")
        if not isinstance(reply, kind):
            raise BenchFailed(f"the publishing process sent {reply!r}")
        return reply


@contextmanager
def trial_publisher(settings: dict[str, str], release: ReleaseId, lists: int) -> Iterator[TrialPublisher]:
    """Start a process that writes the first lists of *release*, at most *lists*, into its own store, once it could.

    *settings* name the store in HOTPLATE_STORE: not an argument, which others see, as it may hold a password.
    """
    with on_core(0):
        process, channel = start_worker(
            "hotplate.bench.stores.publication:publish_on_command", environment() | settings
        )
    try:
        channel.send((release, lists))
        publisher = TrialPublisher(channel)
        publisher.receive(str)
        yield publisher
    finally:
        channel.close()  # it finishes what it is writing, abandons it, and ends
        stop_process(process, STOP_WITHIN_S)


def publish_on_command(channel: Channel) -> None:
    """Be that process: follow commands until the other end of the channel is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    os.nice(NICENESS)
    with suppress(EOFError, ConnectionError):
        asyncio.run(_follow(channel))


async def _follow(channel: Channel) -> None:
    url = os.environ["HOTPLATE_STORE"]
    server = store_server(url)
    release, lists = channel.recv()
    async with opened(url) as store:
        rows = await first_user_rows(store, (await store.catalogue()).find(release).ref, lists)
        rows = rows[: max(1, int(TRIAL_S * await lists_a_second(store, server, rows)))]
        channel.send("ready")
        while command := await asyncio.to_thread(channel.recv):
            if command == ONCE:
                channel.send(await write_trial(store, server, rows))
            elif command == START:
                channel.send(await _write_until_stopped(channel, store, server, rows))


async def _write_until_stopped(channel: Channel, store: Store, server: StoreServer, rows: Sequence[Row]) -> float:
    started_s, written = time.perf_counter(), 0
    stopped = asyncio.create_task(asyncio.to_thread(channel.recv))
    while not stopped.done():
        written += (await write_trial(store, server, rows)).lists
    await stopped
    return written / (time.perf_counter() - started_s)
