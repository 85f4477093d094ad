"""Recording the latencies of a store, for `hotplate.bench.cosmos_emulator.latency_trace`."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import cycle, islice

from hotplate.bench.cosmos_emulator.latency_trace import FORMAT, Latencies, LatencyTrace
from hotplate.bench.errors import BenchFailed
from hotplate.bench.lists import live_in
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import opened
from hotplate.stores.encoding import USER
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Store, TracedCall, traced_call
from hotplate.stores.urls import redacted

READS = 10_000  # ten beyond p99.9
WITHIN_S = 60.0
IN_FLIGHT = 8
TIMEOUT_S = 5.0
OPERATION = "db.operation.name"
REGIONS = "azure.cosmosdb.operation.contacted_regions"
# By operation, region and hour.
Counts = dict[tuple[str, str, int], Counter[int]]


async def record(url: str, users: Sequence[str], reads: int = READS) -> LatencyTrace:
    """Read the lists of *users* in turn from the store at *url*, and return the latencies of its answers.

    IN_FLIGHT reads are made at a time, *reads* in all, but for WITHIN_S seconds at most. Latencies are counted in µs,
    by operation, region and hour of the day. Raises BenchFailed if no read was answered.
    """
    counted: Counts = {}
    async with opened(url) as store:
        release = await live_in(store)
        keys = iter(islice(cycle(USER + user for user in users), reads))
        with suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
                for _ in range(IN_FLIGHT):
                    tasks.create_task(_read_all(store, release, counted, keys))

    latencies = tuple(
        Latencies(operation, region, hour, tuple(sorted(counts.items())))
        for (operation, region, hour), counts in sorted(counted.items())
    )
    if not latencies:
        raise BenchFailed(f"{redacted(url)} answered no read, so there are no latencies to record")

    return LatencyTrace(FORMAT, redacted(url), datetime.now(UTC).isoformat(timespec="seconds"), latencies)


async def _read_all(store: Store, release: ReleaseRef, counted: Counts, keys: Iterator[str]) -> None:
    for key in keys:
        await _count_read_latency(store, release, counted, key)


async def _count_read_latency(store: Store, release: ReleaseRef, counted: Counts, key: str) -> None:
    """Read one list, and add its latency in µs to *counted*, by operation, region and hour, unless the read failed.

    The operation and the region, the first that was contacted, are attributes of the store's traced call.
    """
    loop = asyncio.get_running_loop()
    call = TracedCall()
    token = traced_call.set(call)
    began_s = loop.time()
    try:
        (slot,) = await store.get_many(release, [key], timeout_s=TIMEOUT_S)
    except StoreError:  # a 429 or a failure is not a latency
        return
    finally:
        traced_call.reset(token)
    if isinstance(slot, StoreError):
        return

    latency_us = round((loop.time() - began_s) * 1e6)
    regions = call.attributes.get(REGIONS)
    region = str(regions[0]) if isinstance(regions, tuple) and regions else "unknown"
    operation = str(call.attributes.get(OPERATION, "read_item"))
    counted.setdefault((operation, region, datetime.now(UTC).hour), Counter())[latency_us] += 1
