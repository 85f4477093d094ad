"""How fast to write while others read, and when to try again: on an injected clock."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

from hotplate.stores.errors import StoreThrottled, StoreUnavailable

T = TypeVar("T")

# The share of its time that a writer keeps, however slow the server: a publish that crawls still ends.
MIN_SHARE = 1 / 16

# Latency has grown when it is more than GROWTH times what is usual, and the slack, which is noise of schedulers.
GROWTH = 2.0
SLACK_S = 0.002

# By how much the share grows again with each batch of usual latency.
RECOVERY = 1.25

# How long it takes until a latency that stays is the usual one: a slow network must not slow writing down for ever.
ADAPT_S = 30.0

# Budget that was not spent in time may be caught up with, up to this much time's worth.
BURST_S = 0.1

# The first and the longest pause before a step is repeated.
RETRY_PAUSES_S = (0.05, 2.0)

# Shorter pauses are saved up: event loops sleep by the millisecond, or not at all.
MIN_PAUSE_S = 0.002


class AdaptiveThrottle:
    """Decides how long to pause after each batch, from the latency of the batches; lives as long as a writer.

    The share of time that is spent in batches is halved by each batch that took longer than is usual for its size and
    grows again, by a quarter, with each that did not.
    """

    def __init__(self, clock: Callable[[], float], *, max_share: float = 1.0) -> None:
        """Take the clock (seconds), and the share of time that may be spent at most, between MIN_SHARE and 1."""
        self.share = max_share
        self._max_share = max_share
        self._clock = clock
        self._last_batch_at = clock()
        self._usual_s = dict[int, float]()
        self._owed_s = 0.0

    def pause_s(self, latency_s: float, size: int) -> float:
        """Note that a batch of *size* (bytes, or what else grows with the work) took *latency_s*; return the pause."""
        now = self._clock()
        elapsed_s, self._last_batch_at = now - self._last_batch_at, now
        magnitude = size.bit_length()  # batches are only compared with others of their own size
        usual_s = self._usual_s.setdefault(magnitude, latency_s)
        if latency_s > GROWTH * usual_s + SLACK_S:
            self.share = max(MIN_SHARE, self.share / 2)
        else:
            self.share = min(self._max_share, self.share * RECOVERY)
        if latency_s < usual_s:
            self._usual_s[magnitude] = latency_s
        else:
            self._usual_s[magnitude] = usual_s + (latency_s - usual_s) * min(1.0, elapsed_s / ADAPT_S)
        self._owed_s += latency_s * (1 / self.share - 1)
        if self._owed_s < MIN_PAUSE_S:
            return 0.0
        pause_s, self._owed_s = self._owed_s, 0.0
        return pause_s


class Backoff:
    """Exponential back-off with jitter, so many clients do not come back at once; lives as long as its retries."""

    def __init__(self, first_s: float, max_s: float, *, min_jitter: float = 0.5) -> None:
        """Take the first and the longest pause; each is drawn between *min_jitter* of itself and all of it."""
        self._first_s = first_s
        self._max_s = max_s
        self._min_jitter = min_jitter
        self._pause_s = first_s

    def next_s(self) -> float:
        """Return how long to wait before the next attempt; the one after waits for twice as long."""
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, self._max_s)
        return pause_s * random.uniform(self._min_jitter, 1.0)  # noqa: S311 -- spreads clients, guards nothing

    def reset(self) -> None:
        """Begin with the first pause again: an attempt has succeeded."""
        self._pause_s = self._first_s


class RateLimiter:
    """Says when the next request may be sent, by what requests cost; pure, on an injected clock (seconds).

    A request is counted at its expected cost before it is sent, and corrected when its cost is known, so requests in
    flight never spend more than the rate. After a refusal nothing is sent until the time that it named. That finds the
    rate of the service: what it admits in a second is spent, and only the few requests in flight are refused.
    """

    def __init__(self, clock: Callable[[], float], rate: float | None) -> None:
        """Take the cost per second; None if only the service limits it."""
        self._clock = clock
        self._rate = rate
        self._paid_at = clock()

    def wait_s(self) -> float:
        """Return how long to wait before the next request."""
        return max(0.0, self._paid_at - self._clock())

    def take(self, cost: float) -> None:
        """Count a request that is sent now."""
        if self._rate is not None:
            self._paid_at = max(self._paid_at, self._clock() - BURST_S) + cost / self._rate

    def correct(self, more: float) -> None:
        """Correct the cost of a request that was counted."""
        if self._rate is not None:
            self._paid_at += more / self._rate

    def pause(self, seconds: float) -> None:
        """Send nothing for *seconds*; no budget is saved up meanwhile."""
        self._paid_at = max(self._paid_at, self._clock() + seconds)


class Retrier:
    """Repeats the steps of writers and operators while their store is unavailable; one for each store or budget."""

    def __init__(self, clock: Callable[[], float], *, for_s: float, throttled_for_s: float = 0.0) -> None:
        """Take how long one step is repeated, and how long if the store says when to come back."""
        self._clock = clock
        self._for_s = for_s
        self._throttled_for_s = throttled_for_s or for_s
        self._succeeded_at = clock()

    async def call(self, step: Callable[[], Awaitable[T]], *, at_most_s: float = inf) -> T:
        """Take a step that changes nothing if repeated, until it succeeds; raises what the last attempt raised.

        Refusals count from the last success of any step: a store that admits others is not away.
        """
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
                if error.permanent or self._clock() - failing_since > min(self._for_s, at_most_s):
                    raise
                wait_s = backoff.next_s()
            else:
                self._succeeded_at = self._clock()
                return done
            await asyncio.sleep(wait_s)
