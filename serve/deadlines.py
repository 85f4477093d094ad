"""Deadlines for many short reads at once: one timer for all that are due in the same tick, rather than one a read.

A timer a request, as `asyncio.timeout` makes one, costs 3 µs: more than the whole of a batched lookup in Redis.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

TICK_S = 0.002
"""How much later than asked a read may be ended."""


class Deadlines:
    """Lives as long as its tier, on one event loop."""

    def __init__(self) -> None:
        self._due = dict[int, set[asyncio.Task[object]]]()
        self._ended = set[asyncio.Task[object]]()

    async def within(self, timeout_s: float, work: Awaitable[T]) -> T:
        """Await *work* in the current task; raises TimeoutError where it takes longer than *timeout_s* and a tick."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline ends a task, and there is none here")
        due = self._tick(timeout_s)
        due.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if task not in self._ended or task.uncancel() > 0:
                raise  # somebody else cancelled it, alone or as well
            raise TimeoutError from None
        finally:
            due.discard(task)
            self._ended.discard(task)

    def _tick(self, timeout_s: float) -> set[asyncio.Task[object]]:
        """Return the tasks that are due in the tick in which *timeout_s* ends."""
        loop = asyncio.get_running_loop()
        tick = int((loop.time() + timeout_s) / TICK_S) + 1
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            loop.call_at(tick * TICK_S, self._end, tick)
        return due

    def _end(self, tick: int) -> None:
        for task in self._due.pop(tick):
            self._ended.add(task)
            task.cancel()
