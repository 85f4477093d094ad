"""Repeats requests to Cosmos DB, and keeps them within a number of request units (RU) a second."""

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

from hotplate.stores.cosmos.errors import ContainerMissing
from hotplate.stores.errors import StoreThrottled
from hotplate.stores.timing import RETRY_PAUSES_S, Backoff, RateLimiter, Retrier

T = TypeVar("T")

# Time limits of retries while the service is unavailable, or answers 429.
UNAVAILABLE_S = 20.0
THROTTLED_S = 120.0
# Some replicas answer 404 for a new container.
CONTAINER_VISIBLE_S = 60.0


class Budget(Retrier):
    """Retries requests, and keeps them within a number of request units (RU) a second."""

    def __init__(self, clock: Callable[[], float], rate_ru: float | None) -> None:
        """*rate_ru* is in RU/s; None for no limit."""
        super().__init__(clock, for_s=UNAVAILABLE_S, throttled_for_s=THROTTLED_S)
        self._limiter = RateLimiter(clock, rate_ru)
        self._admission = asyncio.Lock()
        self._new_until = dict[str, float]()
        """Time until which a replica may not know a new container, by its name."""

    def add_new_container(self, container: str) -> None:
        """Let `call_until_visible` wait for a container that was just created."""
        self._new_until[container] = self._clock() + CONTAINER_VISIBLE_S

    def forget_container(self, container: str) -> None:
        """Let `call_until_visible` wait no more for a container, because it is being deleted."""
        self._new_until.pop(container, None)

    async def call_until_visible(self, container: str, step: Callable[[], Awaitable[T]]) -> T:
        """Call *step*, which uses a *container*, until it succeeds, and return its result.

        It is repeated as by `call`. It is also repeated while it raises ContainerMissing for a container that is so new
        that some replicas do not know it.
        """
        backoff = Backoff(*RETRY_PAUSES_S)
        while True:
            try:
                return await self.call(step)
            except ContainerMissing:
                if self._clock() > self._new_until.get(container, -inf):
                    raise
            await asyncio.sleep(backoff.next_s())

    async def spend(
        self,
        container: str,
        request: Callable[[], Awaitable[T]],
        *,
        expected_ru: float,
        charge_ru: Callable[[T], float],
    ) -> T:
        """Send a request once its request units (RU) fit into the budget of RU a second; return its result.

        Each attempt is charged *expected_ru* in advance, corrected by *charge_ru* of its result. A 429 costs nothing,
        and pauses all requests as long as it says. The request is repeated while the service is unavailable or answers
        429, and while its *container* is so new that some replicas do not know it.
        """

        async def attempt() -> T:
            await self._admit(expected_ru)
            try:
                result = await request()
            except StoreThrottled as error:
                self._limiter.correct(-expected_ru)
                self._limiter.pause(error.retry_after_s)
                raise
            self._limiter.correct(charge_ru(result) - expected_ru)
            return result

        return await self.call_until_visible(container, attempt)

    async def _admit(self, expected_ru: float) -> None:
        """Wait until a request fits into the budget, after the requests that came before, and charge it."""
        async with self._admission:
            wait_s = self._limiter.wait_s()
            while wait_s > 0:
                await asyncio.sleep(wait_s)
                wait_s = self._limiter.wait_s()  # a 429 may have come meanwhile, which prolongs the wait
            self._limiter.take(expected_ru)
