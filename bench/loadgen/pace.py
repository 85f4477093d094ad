"""Three ways to wake up when the next request is due, from exact and costly to coarse and portable."""

import asyncio
import ctypes
import os
import time
from collections.abc import Awaitable, Callable

Itimerspec = ctypes.c_long * 4  # struct itimerspec: interval (s, ns), value (s, ns)
TIMER_ABSTIME = 1  # TFD_TIMER_ABSTIME of <sys/timerfd.h>
NAP_S = 50e-6  # the shortest sleep that is worth its system calls
LOOP_TICK_S = 1e-3  # event loops round their timers to milliseconds

Tick = Callable[[], float | None]
"""Does what is due and says when to come again, by `time.monotonic`; None: never."""
Pace = Callable[[Tick], Awaitable[None]]
"""Calls a tick whenever it wants to be called, until never."""


async def spin(tick: Tick) -> None:
    """Look at the clock on every turn of the loop: late by microseconds, and takes a whole core."""
    while tick() is not None:  # noqa: ASYNC110 -- polling is the point
        await asyncio.sleep(0)


async def sleep(tick: Tick) -> None:
    """Sleep until each due time: by the kernel's timer (~50 µs late), or where there is none by the loop's (~1 ms)."""
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
        except Exception as error:  # noqa: BLE001 -- handed to whoever awaits; in a callback it would only be logged
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
