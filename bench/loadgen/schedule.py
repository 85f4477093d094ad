"""When each request of an open loop is due, and how the generator waits for that moment."""

import asyncio
import ctypes
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator

import numpy as np

# Due times made at a time: far cheaper than one by one, and not so many that the next request is late for it.
BLOCK = 256

ROUNDING = 1e-9

# struct itimerspec: interval (s, ns), value (s, ns), and TFD_TIMER_ABSTIME of <sys/timerfd.h>.
Itimerspec = ctypes.c_long * 4
TIMER_ABSTIME = 1

# The shortest sleep that is worth its system calls.
NAP_S = 50e-6

# Event loops round their timers to milliseconds.
LOOP_TICK_S = 1e-3


def dues(rate: float, duration_s: float, seed: int | None = None, part: int = 0, parts: int = 1) -> Iterator[float]:
    """Yield the seconds from the start at which a request is due, in order; the same ones for the same arguments.

    Evenly spaced, or with a *seed* by a Poisson process, as independent users arrive: more than the mean in some
    moments, which is what queues are made of. Of several processes each takes its *part* of all *parts*.
    """
    rng = None if seed is None else np.random.default_rng((seed, part))
    passed = 0.0
    for block in itertools.count():
        if rng is None:
            counts = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.float64) * parts + part
        else:
            counts = passed + np.cumsum(rng.exponential(parts, BLOCK))
            passed = counts[-1]
        within = counts[counts < rate * duration_s - ROUNDING]
        yield from (within / rate).tolist()
        if len(within) < len(counts):
            return


# Does what is due, and returns when to be called again, by `time.monotonic`; None: never.
Tick = Callable[[], float | None]

# Calls a tick whenever it is due, until never.
Pacer = Callable[[Tick], Awaitable[None]]


async def sleep_until_due(tick: Tick) -> None:
    """Sleep until each due time: by the kernel's timer (~50 µs late), or without one by the loop's (~1 ms)."""
    if hasattr(ctypes.CDLL(None), "timerfd_create"):
        await _sleep_by_kernel(tick)
    else:
        while tick() is not None:  # noqa: ASYNC110 -- what is waited for is the clock
            await asyncio.sleep(LOOP_TICK_S)


async def _sleep_by_kernel(tick: Tick) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # Python has os.timerfd_create from 3.13 on. time.monotonic is CLOCK_MONOTONIC on Linux.
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def arm(due_s: float) -> None:
        seconds, nanoseconds = divmod(int(max(due_s, time.monotonic() + NAP_S) * 1e9), 10**9)
        libc.timerfd_settime(timer, TIMER_ABSTIME, Itimerspec(0, 0, seconds, nanoseconds), None)

    def fire() -> None:
        os.read(timer, 8)
        try:
            due_s = tick()
        except Exception as error:  # noqa: BLE001 -- handed to the one that awaits; in a callback it would only be logged
            done.set_exception(error)
            return
        if due_s is None:
            done.set_result(None)
        else:
            arm(due_s)

    loop.add_reader(timer, fire)
    try:
        arm(0.0)
        await done
    finally:
        loop.remove_reader(timer)
        os.close(timer)
