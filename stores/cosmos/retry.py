"""Retries of operations within a budget of request units: what is tried again, for how long, and how fast."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import TypeVar

from hotplate.stores.cosmos.errors import ContainerMissing, CosmosThrottled, CosmosUnavailable
from hotplate.stores.throttle import Backoff

T = TypeVar("T")

# When any operation but a lookup is given up; the service itself ends operations then.
DEADLINE_S = 5.0

# Budget that was not spent in time may be caught up with, up to this much time's worth; never more at once.
BURST_S = 0.1

# How long one operation is tried again while the service is away; what was written stays.
UNAVAILABLE_S = 20.0

# How long 429s are retried without a single success: the service is there, and says when to come back.
THROTTLED_S = 120.0

# How long a new container may stay invisible: the service answers 404 for a while, here and there.
CONTAINER_VISIBLE_S = 60.0

# The first and the longest pause after a failure that names none; each is shortened by chance, to spread writers.
BACKOFF_S = (0.05, 2.0)

# Requests at a time: at 5 ms each, some 12,000 a second.
IN_FLIGHT = 64


class RateLimiter:
    """Says when the next request may go out; pure, on an injected clock (seconds), and lives as long as its store.

    A request is taken at what it will probably cost, before it is sent, and corrected when its charge is known: so
    requests in flight never spend more than the rate. After a 429 nothing goes out until the time that it named. That
    alone finds a container's throughput, whatever the rate: what it admits in a second is spent, and the refusals are
    those few that were in flight when it was used up.
    """

    def __init__(self, clock: Callable[[], float], rate_ru: float | None) -> None:
        """Take RU/s; None where only the service limits."""
        self._clock = clock
        self._rate_ru = rate_ru
        self._paid_at = clock()

    def wait_s(self) -> float:
        """Return how long nothing may go out; 0 where the next request may go now."""
        return max(0.0, self._paid_at - self._clock())

    def take(self, charge_ru: float) -> None:
        """Count a request in that goes out now; the next waits until this one is paid for."""
        if self._rate_ru is not None:
            self._paid_at = max(self._paid_at, self._clock() - BURST_S) + charge_ru / self._rate_ru

    def correct(self, more_ru: float) -> None:
        """Correct the charge of a request that was taken, by what it cost more, or less."""
        if self._rate_ru is not None:
            self._paid_at += more_ru / self._rate_ru

    def pause(self, seconds: float) -> None:
        """Let nothing out for so long: the service said so."""
        self._paid_at = max(self._paid_at, self._clock() + seconds)  # and no budget is saved up until then


class Retrier:
    """Tries operations until they are done, within a rate; lives as long as its store."""

    def __init__(self, clock: Callable[[], float], limiter: RateLimiter) -> None:
        self._clock = clock
        self._limiter = limiter
        self._succeeded_at = clock()
        self._admission = asyncio.Lock()

    async def call(self, attempt: Callable[[], Awaitable[T]], *, at_most_s: float = inf) -> T:
        """Call what costs no budget until it succeeds; raises what the last attempt raised.

        Gives up after UNAVAILABLE_S of failures or THROTTLED_S of 429s, or after *at_most_s* if that is less.
        """
        began_at, failing_since, backoff = self._clock(), None, Backoff(*BACKOFF_S)
        while True:
            try:
                done = await attempt()
            except CosmosThrottled as error:
                if self._clock() - max(began_at, self._succeeded_at) > min(THROTTLED_S, at_most_s):
                    raise
                failing_since, wait_s = None, error.retry_after_s
            except CosmosUnavailable as error:
                failing_since = self._clock() if failing_since is None else failing_since
                if error.permanent or self._clock() - failing_since > min(UNAVAILABLE_S, at_most_s):
                    raise
                wait_s = backoff.next_s()
            else:
                self._succeeded_at = self._clock()
                return done
            await asyncio.sleep(wait_s)

    async def until_visible(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call, as `call` does, what comes right after its container was made, and so may come too early."""
        began_at, backoff = self._clock(), Backoff(*BACKOFF_S)
        while True:
            try:
                return await self.call(attempt)
            except ContainerMissing:
                if self._clock() - began_at > CONTAINER_VISIBLE_S:
                    raise
            await asyncio.sleep(backoff.next_s())

    async def with_budget(
        self, expected_ru: float, attempt: Callable[[], Awaitable[T]], charge_ru: Callable[[T], float]
    ) -> T:
        """Call, as `call` does, what spends of the budget: not before there is room for what it is expected to cost.

        *charge_ru* returns what the result of an attempt did cost.
        """

        async def limited() -> T:
            await self._admit(expected_ru)
            try:
                done = await attempt()
            except CosmosThrottled as error:
                self._limiter.correct(-expected_ru)
                self._limiter.pause(error.retry_after_s)
                raise
            self._limiter.correct(charge_ru(done) - expected_ru)
            return done

        return await self.call(limited)

    async def _admit(self, expected_ru: float) -> None:
        async with self._admission:  # first come, first served
            wait_s = self._limiter.wait_s()
            while wait_s > 0:
                await asyncio.sleep(wait_s)
                wait_s = self._limiter.wait_s()  # a 429 may have come in between
            self._limiter.take(expected_ru)


async def for_each(values: Sequence[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Do the same to many, IN_FLIGHT at a time, begun in order; the first failure ends it and is raised."""
    left = iter(values)
    failed = False

    async def work() -> None:
        nonlocal failed
        for value in left:
            if failed:
                return
            try:
                await do(value)
            except BaseException:
                failed = True
                raise

    outcomes = await asyncio.gather(*(work() for _ in range(min(IN_FLIGHT, len(values)))), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
