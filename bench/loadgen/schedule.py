"""When each request of an open loop is due, and how the generator waits for that moment."""

import asyncio
import ctypes
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotplate.bench.errors import BenchMisused

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


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of time in which the rate goes in a straight line from `first` to `last` requests/s."""

    duration_s: float
    first: float
    last: float

    def __post_init__(self) -> None:
        """Refuse what is not a stretch."""
        if not (self.duration_s > 0 and self.first >= 0 and self.last >= 0 and self.first + self.last > 0):
            raise BenchMisused(
                f"a rate and its duration must be above zero, not {self.first:g} to {self.last:g} "
                f"requests/s for {self.duration_s:g} s"
            )

    @property
    def requests(self) -> float:
        """How many requests are due in it."""
        return self.duration_s * (self.first + self.last) / 2

    def when(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the seconds after which *counts* requests were due: the integral of the rate, inverted."""
        slope = (self.last - self.first) / self.duration_s
        root = np.sqrt(np.maximum(self.first**2 + 2 * slope * counts, 0.0))
        speed = self.first + root  # zero only if nothing was due yet
        return np.divide(2 * counts, speed, out=np.zeros_like(counts), where=speed > 0)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The due times of one run; the same for each call of `dues`.

    Evenly spaced, or with a `seed` by a Poisson process, as independent users arrive: more than the mean in some
    moments, which is what queues are made of. Of several processes each takes its `part` of all `parts`.
    """

    pieces: tuple[Piece, ...]
    seed: int | None = None
    part: int = 0
    parts: int = 1

    @property
    def duration_s(self) -> float:
        """How long it takes, in seconds."""
        return sum(piece.duration_s for piece in self.pieces)

    @property
    def rate(self) -> float:
        """Its mean, in requests/s, of this part."""
        return sum(piece.requests for piece in self.pieces) / self.duration_s / self.parts

    def share(self, part: int, parts: int) -> "Arrivals":
        """Return one of *parts* equal parts, which interleave."""
        return replace(self, part=part, parts=parts)

    def dues(self) -> Iterator[float]:
        """Yield the seconds from the start at which a request is due, in order."""
        ends = np.cumsum([piece.requests for piece in self.pieces])
        starts_s = np.cumsum([0.0, *(piece.duration_s for piece in self.pieces)])
        for counts in self._counts():
            within = counts[counts < ends[-1] - ROUNDING]
            indexes = np.searchsorted(ends, within, side="right")
            due_s = np.empty_like(within)
            for index in np.unique(indexes):
                chosen = indexes == index
                before = ends[index - 1] if index else 0.0
                due_s[chosen] = starts_s[index] + self.pieces[index].when(within[chosen] - before)
            yield from due_s.tolist()
            if len(within) < len(counts):
                return

    def _counts(self) -> Iterator[NDArray[np.float64]]:
        """Yield, by blocks, how many requests of all parts are due before each one of this part."""
        rng = None if self.seed is None else np.random.default_rng((self.seed, self.part))
        passed = 0.0
        for block in itertools.count():
            if rng is None:
                yield np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.float64) * self.parts + self.part
            else:
                counts = passed + np.cumsum(rng.exponential(self.parts, BLOCK))
                passed = counts[-1]
                yield counts


def constant(rate: float, duration_s: float, seed: int | None = None) -> Arrivals:
    """Keep one rate, in requests/s."""
    return Arrivals((Piece(duration_s, rate, rate),), seed)


def ramp(first: float, last: float, duration_s: float, seed: int | None = None) -> Arrivals:
    """Go from one rate to another in a straight line."""
    return Arrivals((Piece(duration_s, first, last),), seed)


def steps(rates: Sequence[float], duration_s: float, seed: int | None = None) -> Arrivals:
    """Keep each of *rates* for an equal part of the time."""
    return Arrivals(tuple(Piece(duration_s / len(rates), rate, rate) for rate in rates), seed)


# Does what is due, and returns when to be called again, by `time.monotonic`; None: never.
Tick = Callable[[], float | None]

# Calls a tick whenever it is due, until never.
Pacer = Callable[[Tick], Awaitable[None]]


async def spin_until_due(tick: Tick) -> None:
    """Look at the clock on every turn of the loop: late by microseconds, and takes a whole core."""
    while tick() is not None:  # noqa: ASYNC110 -- polling is the point
        await asyncio.sleep(0)


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
