"""The generating process itself: what it spends, and what is kept from disturbing it."""

import contextlib
import gc
import time
from collections.abc import Iterator
from pathlib import Path

SCHEDSTAT = Path("/proc/self/schedstat")  # ns on a core, ns waited for one, by the thread that runs the loop


def spent_s() -> tuple[float, float]:
    """Tell the CPU time of this process so far, and how long its main thread waited for a core (0 where unknown)."""
    waited_s = int(SCHEDSTAT.read_text().split()[1]) / 1e9 if SCHEDSTAT.exists() else 0.0
    return time.process_time(), waited_s


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from adding its pauses to the latencies."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()
