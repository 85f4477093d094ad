"""A running call that all of its callers share."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from hotplate.stores.errors import StoreUnavailable

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Runs *call* in a task, once at a time; cancelled callers do not cancel it, and `close` gives them *closed*()."""

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]], closed: Callable[[], StoreUnavailable]) -> None:
        self._call = call
        self._closed = closed
        self._task: asyncio.Task[T] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the call is in progress."""
        return self._task is not None

    def start(self) -> asyncio.Task[T]:
        """Start the call unless it is running."""
        if self._task is None:
            self._task = asyncio.create_task(self._call())
            self._task.add_done_callback(self._done)
        return self._task

    async def result(self) -> T:
        """Return the result of the running call, or of a new one."""
        task = self.start()
        await asyncio.wait([task])
        if task.cancelled():
            raise self._closed()
        return task.result()

    async def close(self) -> None:
        """Cancel the call and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _done(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # mark as retrieved
