"""Deadlines of many short waits on one timer per tick; a timer per wait (`asyncio.timeout`) costs 3 µs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

TICK_S = 0.002  # the most that a deadline is late


class Deadlines(Generic[T]):
    """Calls *expire* with items at their deadline."""

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._due = dict[int, set[T]]()

    def add(self, item: T, at_s: float) -> set[T]:
        """Schedule *item* for *at_s* (loop time); discard it from the returned set to cancel."""
        tick = int(at_s / TICK_S) + 1
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            asyncio.get_running_loop().call_at(tick * TICK_S, self._end, tick)
        due.add(item)
        return due

    def _end(self, tick: int) -> None:
        due = self._due.pop(tick)
        while due:  # *expire* may discard items
            self._expire(due.pop())


class TaskDeadlines:
    """Time-outs of awaits in tasks."""

    def __init__(self) -> None:
        self._deadlines = Deadlines(self._cancel)
        self._cancelled = set[asyncio.Task[object]]()

    async def until(self, at_s: float, work: Awaitable[T]) -> T:
        """Await *work* in the current task; TimeoutError at *at_s* (loop time)."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a running task")
        due = self._deadlines.add(task, at_s)
        try:
            return await work
        except asyncio.CancelledError:
            if task not in self._cancelled or task.uncancel() > 0:
                raise  # cancelled from outside
            raise TimeoutError from None
        finally:
            due.discard(task)
            self._cancelled.discard(task)

    def _cancel(self, task: asyncio.Task[object]) -> None:
        self._cancelled.add(task)
        task.cancel()
