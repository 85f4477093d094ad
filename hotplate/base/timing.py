"""Units, the loop's clock, deadlines, pacing, backoff and rate limits.

Many short waits share one timer per tick: a timer per wait (`asyncio.timeout`) costs 3 µs.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

HOUR_S = 3600
DAY_S = 24 * HOUR_S

TICK_S = 0.002  # the most that a deadline is late

BURST_S = 0.1
MIN_PAUSE_S = 0.002  # shorter ones accumulate: event loops sleep with millisecond resolution


def loop_time() -> float:
    """Return the time of the running loop."""
    return asyncio.get_running_loop().time()


class Deadlines(Generic[T]):
    """Calls *expire* with items at their deadline, up to a tick late."""

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._items = dict[int, set[T]]()  # by the number of their tick

    def add(self, item: T, at_s: float) -> set[T]:
        """Schedule *item* for *at_s* (loop time); discard it from the returned set to cancel."""
        tick = int(at_s / TICK_S) + 1
        items = self._items.get(tick)
        if items is None:
            items = self._items[tick] = set()
            asyncio.get_running_loop().call_at(tick * TICK_S, self._end, tick)
        items.add(item)
        return items

    def _end(self, tick: int) -> None:
        items = self._items.pop(tick)
        while items:  # *expire* may discard items
            self._expire(items.pop())


class Pacer:
    """Pauses that keep a writer to a share of the time."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._owed_s = 0.0

    def pause_s(self, latency_s: float) -> float:
        """Return the pause after a batch that took *latency_s*.

        For a share of one half, it is as long as the batch. A pause that is too short for the event loop's clock is 0,
        and is added to the next one.
        """
        self._owed_s += latency_s * (1 / self._share - 1)
        if self._owed_s < MIN_PAUSE_S:
            return 0.0
        pause_s = self._owed_s
        self._owed_s = 0.0
        return pause_s


class Backoff:
    """Exponential backoff with jitter from *min_jitter* to 1."""

    def __init__(self, first_s: float, max_s: float, *, min_jitter: float = 0.5) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._min_jitter = min_jitter
        self._pause_s = first_s

    def next_s(self) -> float:
        """Return the next pause."""
        pause_s = self._pause_s
        self._pause_s = min(self._pause_s * 2, self._max_s)
        return pause_s * random.uniform(self._min_jitter, 1.0)  # noqa: S311 -- spreads clients, guards nothing

    def reset(self) -> None:
        """Restart with the first pause."""
        self._pause_s = self._first_s


class RateLimiter:
    """Limits the cost per second; charged in advance, and corrected once known.

    Kept as the time up to which all costs are paid, each at its rate. Unused time counts up to BURST_S.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paid_at = clock()

    def wait_s(self) -> float:
        """Return the time until the next request."""
        return max(0.0, self._paid_at - self._clock())

    def take(self, cost: float, rate: float) -> None:
        """Charge a request that is sent now, at *rate* a second, infinite for no limit."""
        self._paid_at = max(self._paid_at, self._clock() - BURST_S) + cost / rate

    def correct(self, more: float, rate: float) -> None:
        """Adjust the charge of a request."""
        self._paid_at += more / rate

    def pause(self, seconds: float) -> None:
        """Send nothing for *seconds*, without saving up budget."""
        self._paid_at = max(self._paid_at, self._clock() + seconds)
