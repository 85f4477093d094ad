"""Reads of a store alone, without a service: `get_many` of so many keys, one call after the other."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import uvloop

from bench.backing import Backing
from bench.errors import BenchFailed
from stores.catalogue import ReleaseRef
from stores.connect import connect
from stores.errors import StoreError, StoreThrottled
from stores.store import Store

WARM_CALLS = 50


@dataclass(frozen=True, slots=True)
class Lookups:
    """What reading came to: microseconds of a call (median), and per key the CPU of this process and of the server."""

    call_us: float
    keys_per_s: float
    cpu_us: float
    server_cpu_us: float | None


def look_up(url: str, behind: Backing, release: ReleaseRef, batches: Sequence[Sequence[str]], for_s: float) -> Lookups:
    """Read *batches* of keys, over and over, for a while. Raises BenchFailed where a list is missing."""
    return uvloop.run(_look_up(url, behind, release, batches, for_s))


async def _look_up(
    url: str, behind: Backing, release: ReleaseRef, batches: Sequence[Sequence[str]], for_s: float
) -> Lookups:
    store = connect(url)
    asked = itertools.cycle(batches)
    try:
        for batch in itertools.islice(asked, WARM_CALLS):
            await _found(store, release, batch)
        server_s, cpu_s, begun_s = behind.cpu_s(), time.process_time(), time.perf_counter()
        ends_s = list[float]()
        keys = 0
        until_s = begun_s + for_s
        while not ends_s or ends_s[-1] < until_s:
            batch = next(asked)
            keys += await _found(store, release, batch)
            ends_s.append(time.perf_counter())
        if not keys:
            raise BenchFailed(
                "the store refused every read, as its throughput was spent; give it more for a comparison"
            )
        cpu_s, took_s = time.process_time() - cpu_s, ends_s[-1] - begun_s
        after_s = await asyncio.to_thread(behind.cpu_s)
    finally:
        await store.close()
    return Lookups(
        call_us=float(np.median(np.diff([begun_s, *ends_s]))) * 1e6,
        keys_per_s=keys / took_s,
        cpu_us=cpu_s * 1e6 / keys,
        server_cpu_us=None if server_s is None or after_s is None else (after_s - server_s) * 1e6 / keys,
    )


async def _found(store: Store, release: ReleaseRef, batch: Sequence[str]) -> int:
    """Read a batch; return how many lists came, as a store may refuse what its throughput does not carry."""
    try:
        slots = await store.get_many(release, batch)
    except StoreThrottled:
        return 0
    for slot in slots:
        if slot is None:
            raise BenchFailed(f"a list is missing among {', '.join(batch[:8])}")
        if isinstance(slot, StoreError) and not isinstance(slot, StoreThrottled):
            raise slot
    return sum(isinstance(slot, bytes) for slot in slots)
