"""Recording the latencies of a store, for `hotplate.bench.cosmos_emulator.latency_trace`."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import cycle, islice

from hotplate.bench.cosmos_emulator.latency_trace import FORMAT, LatencyTrace
from hotplate.bench.errors import BenchFailed
from hotplate.bench.lists import live_in
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import opened
from hotplate.stores.encoding import USER
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Store, read_one
from hotplate.stores.urls import redacted

READS = 10_000  # ten beyond p99.9
WITHIN_S = 60.0
IN_FLIGHT = 8
TIMEOUT_S = 5.0


async def record(url: str, users: Sequence[str], reads: int = READS) -> LatencyTrace:
    """Read the lists of *users* in turn from the store at *url*, and return the latencies of its answers.

    IN_FLIGHT reads are made at a time, *reads* in all, but for WITHIN_S seconds at most. Raises BenchFailed if no read
    was answered.
    """
    counts = Counter[int]()
    async with opened(url) as store:
        release = await live_in(store)
        keys = iter(islice(cycle(USER + user for user in users), reads))
        with suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
                for _ in range(IN_FLIGHT):
                    tasks.create_task(_count_latencies(store, release, counts, keys))

    if not counts:
        raise BenchFailed(f"{redacted(url)} answered no read, so there are no latencies to record")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return LatencyTrace(FORMAT, redacted(url), date, tuple(sorted(counts.items())))


async def _count_latencies(store: Store, release: ReleaseRef, counts: Counter[int], keys: Iterator[str]) -> None:
    """Read *keys* one by one, and add their latencies in µs to *counts*, unless a read failed."""
    for key in keys:
        began_s = time.monotonic()
        with suppress(StoreError):  # a 429 or a failure is not a latency
            await read_one(store, release, key, timeout_s=TIMEOUT_S)
            counts[round((time.monotonic() - began_s) * 1e6)] += 1
