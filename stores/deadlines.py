"""Deadlines for many short waits at once: one timer for all that end in the same tick, rather than one for each.

A timer for each wait, as `asyncio.timeout` makes one, costs 3 µs: more than the whole of a batched lookup in Redis.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# How much later than requested a wait may be ended.
TICK_S = 0.002


class Deadlines(Generic[T]):
    """Hands each item that is still there when its tick ends to *expire*; lives as long as its owner, on one loop."""

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._due = dict[int, set[T]]()

    def add(self, item: T, at_s: float) -> set[T]:
        """Let *item* expire at a time of the loop's clock; who is done sooner discards it from the returned set."""
        tick = int(at_s / TICK_S) + 1
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            asyncio.get_running_loop().call_at(tick * TICK_S, self._end, tick)
        due.add(item)
        return due

    def _end(self, tick: int) -> None:
        due = self._due.pop(tick)
        while due:  # *expire* may discard others, and the item itself
            self._expire(due.pop())


class TaskDeadlines:
    """Cancels what tasks await when its time is over; lives as long as its owner, on one loop."""

    def __init__(self) -> None:
        self._deadlines = Deadlines(self._cancel)
        self._cancelled = set[asyncio.Task[object]]()

    async def until(self, at_s: float, work: Awaitable[T]) -> T:
        """Await *work* in the current task; raises TimeoutError if it is not done by *at_s* of the loop's clock."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline cancels a task, and there is none here")
        due = self._deadlines.add(task, at_s)
        try:
            return await work
        except asyncio.CancelledError:
            if task not in self._cancelled or task.uncancel() > 0:
                raise  # somebody else cancelled it, alone or as well
            raise TimeoutError from None
        finally:
            due.discard(task)
            self._cancelled.discard(task)

    def _cancel(self, task: asyncio.Task[object]) -> None:
        self._cancelled.add(task)
        task.cancel()
