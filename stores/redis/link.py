"""A way to the server that mends itself: one wire at a time, opened when it is needed, never in a storm."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from stores.errors import StoreUnavailable
from stores.redis.url import Address
from stores.redis.wire import Wire

PAUSE_S = (0.05, 2.0)
"""The first and the longest pause before a server that failed is tried again; callers meanwhile fail at once."""


class Link:
    """Lives as long as its store; `ask` fails with StoreUnavailable at once while the server is known to be away."""

    def __init__(self, address: Address, deadline_s: float, unasked: Callable[[], None] | None = None) -> None:
        self._address = address
        self._deadline_s = deadline_s
        self._unasked = unasked
        self._wire: Wire | None = None
        self._opening: asyncio.Task[Wire] | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._trouble = ""

    @property
    def live(self) -> Wire | None:
        """The wire, where it is up."""
        return self._wire if self._wire is not None and self._wire.lost is None else None

    async def ask(self, *parts: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        """Send one command and return its reply; raises StoreError."""
        return await (await self.wire()).ask(*parts)

    async def wire(self) -> Wire:
        """Return the wire, opened anew where it was lost; callers at the same time share one attempt."""
        if live := self.live:
            return live
        if self._opening is None:
            now = asyncio.get_running_loop().time()
            if self._wire is not None:
                if self._wire.answered:
                    self._failures = 0
                else:
                    self._note(now, self._wire.lost or "")  # it let us in, only to say nothing: no reason to hurry
                self._wire = None
            if now < self._retry_at:
                raise StoreUnavailable(self._trouble)
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    async def close(self) -> None:
        """Close the wire, or stop opening it."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._wire is not None:
            await self._wire.close()

    async def _open(self) -> Wire:
        wire = Wire(self._address, self._deadline_s, self._unasked)
        try:
            await wire.open()
        except StoreUnavailable as error:
            self._note(asyncio.get_running_loop().time(), str(error))
            raise
        self._wire = wire
        return wire

    def _opened(self, opening: asyncio.Task[Wire]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # seen, even where every caller has gone

    def _note(self, now: float, trouble: str) -> None:
        pause_s = min(PAUSE_S[0] * 2**self._failures, PAUSE_S[1])
        self._failures = min(self._failures + 1, 16)
        self._retry_at = now + pause_s * random.uniform(0.5, 1.0)  # noqa: S311 -- spreads workers, guards nothing
        self._trouble = trouble
