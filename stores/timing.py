"""Outages and retries."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from hotplate.base.timing import Backoff, loop_time
from hotplate.stores.errors import StoreThrottled, StoreUnavailable

T = TypeVar("T")
P = ParamSpec("P")

RETRY_PAUSES_S = (0.05, 2.0)
TOLERATED_S = 2.0  # outages that services need not know of


class Outage:
    """Consecutive failures of a call that is repeated with pauses; those of the first TOLERATED_S are tolerated."""

    def __init__(self, first_pause_s: float, max_pause_s: float) -> None:
        self._backoff = Backoff(first_pause_s, max_pause_s)
        self._began_at: float | None = None
        """By the loop's clock; None while calls succeed."""

    def tolerates(self, error: Exception) -> bool:
        """Note a failure; return whether the outage is short so far, and may end by itself."""
        now = loop_time()
        if self._began_at is None:
            self._began_at = now
        is_transient = isinstance(error, StoreUnavailable) and not error.permanent
        return is_transient and now - self._began_at < TOLERATED_S

    def next_pause_s(self) -> float:
        """Return the next pause before a retry."""
        return self._backoff.next_s()

    def end(self) -> None:
        """Note a success."""
        self._backoff.reset()
        self._began_at = None


class Retrier:
    """Repeats steps while their store is unavailable, for *for_s*, or throttled, for *throttled_for_s* (0: the same).

    0 s is one attempt. Steps on parts that are throttled separately, such as containers, need a Retrier each.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        for_s: float,
        throttled_for_s: float = 0.0,
        unavailable: type[StoreUnavailable] = StoreUnavailable,
    ) -> None:
        """*unavailable* is the class of errors that are repeated for *for_s*; others are raised at once."""
        self._clock = clock
        self._unavailable = unavailable
        self._for_s = for_s
        self._throttled_for_s = throttled_for_s or for_s
        self._succeeded_at = clock()

    async def call(self, step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an idempotent step until it succeeds, and return its result.

        The step makes one attempt: it must not repeat others, whose time limits would multiply. Throttling is timed
        from the start of this call, or from a later success of any step of this Retrier, as a throttled store lets some
        through. Raises the last error.
        """
        began_at = self._clock()
        failing_since = None
        backoff = Backoff(*RETRY_PAUSES_S)

        while True:
            try:
                result = await step(*args, **kwargs)
            except StoreThrottled as error:
                if self._clock() - max(began_at, self._succeeded_at) > self._throttled_for_s:
                    raise
                failing_since = None  # it is available
                wait_s = error.retry_after_s or backoff.next_s()
            except self._unavailable as error:
                failing_since = self._clock() if failing_since is None else failing_since
                if error.permanent or self._clock() - failing_since >= self._for_s:
                    raise
                wait_s = backoff.next_s()
            else:
                self._succeeded_at = self._clock()
                return result

            await asyncio.sleep(wait_s)
