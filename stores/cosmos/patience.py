"""Trying again: which failures of one attempt another may mend, how long to wait for it, and when to give up."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import TypeVar

from stores.cosmos.errors import ContainerMissing, CosmosThrottled, CosmosUnavailable
from stores.cosmos.pace import Pace

T = TypeVar("T")

PATIENCE_S = 20.0
"""How long one operation is tried again while the service is away; what was written stays."""

THROTTLED_S = 120.0
"""How long 429s are borne without a single success: the service is there, and says when to come back."""

APPEARS_S = 60.0
"""How long a container that was made may stay unseen: the service answers 404 for some while, here and there."""

BACKOFF_S = (0.05, 2.0)
"""The first and the longest pause after a failure that names none; each is shortened by chance, to spread writers."""

IN_FLIGHT = 64
"""Requests at a time: at 5 ms each, some 12,000 a second."""


class Patience:
    """Tries operations until they are done, within a pace; lives as long as its store."""

    def __init__(self, clock: Callable[[], float], pace: Pace) -> None:
        self._clock = clock
        self._pace = pace
        self._done_at = clock()
        self._turn = asyncio.Lock()

    async def insist(self, attempt: Callable[[], Awaitable[T]], *, at_most_s: float = inf) -> T:
        """Do what costs no budget, again and again within reason; raises what the last attempt raised.

        Reason is PATIENCE_S, or THROTTLED_S, or less where that is asked for by *at_most_s*.
        """
        began_at, failing_since, pause_s = self._clock(), None, BACKOFF_S[0]
        while True:
            try:
                done = await attempt()
            except CosmosThrottled as error:
                if self._clock() - max(began_at, self._done_at) > min(THROTTLED_S, at_most_s):
                    raise
                failing_since, wait_s = None, error.retry_after_s
            except CosmosUnavailable as error:
                failing_since = self._clock() if failing_since is None else failing_since
                if error.lasting or self._clock() - failing_since > min(PATIENCE_S, at_most_s):
                    raise
                wait_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311 -- spreads writers, guards nothing
                pause_s = min(pause_s * 2, BACKOFF_S[1])
            else:
                self._done_at = self._clock()
                return done
            await asyncio.sleep(wait_s)

    async def settle(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do, as `insist` does, what comes right after its container was made, and so may come too early."""
        began_at, pause_s = self._clock(), BACKOFF_S[0]
        while True:
            try:
                return await self.insist(attempt)
            except ContainerMissing:
                if self._clock() - began_at > APPEARS_S:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, BACKOFF_S[1])

    async def spend(
        self, expected_ru: float, attempt: Callable[[], Awaitable[T]], charge_ru: Callable[[T], float]
    ) -> T:
        """Do, as `insist` does, what spends of the budget: not before there is room for what it is expected to cost.

        *charge_ru* tells of what was done what it did cost.
        """

        async def paced() -> T:
            await self._admit(expected_ru)
            try:
                done = await attempt()
            except CosmosThrottled as error:
                self._pace.correct(-expected_ru)
                self._pace.hold(error.retry_after_s)
                raise
            self._pace.correct(charge_ru(done) - expected_ru)
            return done

        return await self.insist(paced)

    async def _admit(self, expected_ru: float) -> None:
        async with self._turn:  # in turn, so that whoever asked first goes first
            wait_s = self._pace.wait_s()
            while wait_s > 0:
                await asyncio.sleep(wait_s)
                wait_s = self._pace.wait_s()  # a 429 may have come meanwhile
            self._pace.take(expected_ru)


async def for_each(items: Sequence[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Do the same to many, IN_FLIGHT at a time, begun in order; the first failure ends it and is raised."""
    left = iter(items)
    failed = False

    async def work() -> None:
        nonlocal failed
        for item in left:
            if failed:
                return
            try:
                await do(item)
            except BaseException:
                failed = True
                raise

    outcomes = await asyncio.gather(*(work() for _ in range(min(IN_FLIGHT, len(items)))), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
