"""Pacing of writers, backoff, rate limits and retries."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

from hotplate.stores.errors import StoreThrottled, StoreUnavailable

T = TypeVar("T")

BURST_S = 0.1
RETRY_PAUSES_S = (0.05, 2.0)
MIN_PAUSE_S = 0.002  # shorter ones accumulate: event loops sleep with millisecond resolution


class Pacer:
    """Pauses that keep a writer to a share of the time."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._owed_s = 0.0

    def pause_s(self, latency_s: float) -> float:
        """Return the pause after a batch."""
        self._owed_s += latency_s * (1 / self._share - 1)
        if self._owed_s < MIN_PAUSE_S:
            return 0.0
        pause_s, self._owed_s = self._owed_s, 0.0
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
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, self._max_s)
        return pause_s * random.uniform(self._min_jitter, 1.0)  # noqa: S311 -- spreads clients, guards nothing

    def reset(self) -> None:
        """Restart with the first pause."""
        self._pause_s = self._first_s


class RateLimiter:
    """Limits the cost per second, charged in advance and corrected once known; *rate* None: unlimited."""

    def __init__(self, clock: Callable[[], float], rate: float | None) -> None:
        self._clock = clock
        self._rate = rate
        self._paid_at = clock()

    def wait_s(self) -> float:
        """Return the time until the next request."""
        return max(0.0, self._paid_at - self._clock())

    def take(self, cost: float) -> None:
        """Charge a request that is sent now."""
        if self._rate is not None:
            self._paid_at = max(self._paid_at, self._clock() - BURST_S) + cost / self._rate

    def correct(self, more: float) -> None:
        """Adjust the charge of a request."""
        if self._rate is not None:
            self._paid_at += more / self._rate

    def pause(self, seconds: float) -> None:
        """Send nothing for *seconds*, without saving up budget."""
        self._paid_at = max(self._paid_at, self._clock() + seconds)


class Retrier:
    """Repeats steps, within time limits, while their store is unavailable or throttled; 0 s is one attempt."""

    def __init__(self, clock: Callable[[], float], *, for_s: float, throttled_for_s: float = 0.0) -> None:
        self._clock = clock
        self._for_s = for_s
        self._throttled_for_s = throttled_for_s or for_s
        self._succeeded_at = clock()

    async def call(self, step: Callable[[], Awaitable[T]], *, at_most_s: float = inf) -> T:
        """Run an idempotent step until it succeeds; throttling is timed from the last success of any step."""
        began_at, failing_since, backoff = self._clock(), None, Backoff(*RETRY_PAUSES_S)
        while True:
            try:
                done = await step()
            except StoreThrottled as error:
                if self._clock() - max(began_at, self._succeeded_at) > min(self._throttled_for_s, at_most_s):
                    raise
                failing_since, wait_s = None, error.retry_after_s
            except StoreUnavailable as error:
                failing_since = self._clock() if failing_since is None else failing_since
                if error.permanent or self._clock() - failing_since >= min(self._for_s, at_most_s):
                    raise
                wait_s = backoff.next_s()
            else:
                self._succeeded_at = self._clock()
                return done
            await asyncio.sleep(wait_s)
