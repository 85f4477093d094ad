"""Concurrent calls, calls that callers share, and the lifetime of connections on an event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from math import inf
from typing import Any, Generic, TypeVar

from hotplate.base.timing import Backoff
from hotplate.stores.errors import StoreClosed, StoreMisused

T = TypeVar("T")


async def all_done(*calls: Awaitable[T]) -> list[T]:
    """Await all calls to their end, and return their results in order, or raise the first error.

    `asyncio.gather` raises at the first error, while other calls go on.
    """
    results = list[T]()
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


class SharedCall(Generic[T]):
    """Runs *call* in a task, once at a time; its callers share the result.

    A cancelled caller does not cancel it. Callers at its `close` get the error that *closed* returns.
    """

    def __init__(
        self,
        call: Callable[[], Coroutine[Any, Any, T]],
        closed: Callable[[], Exception],
        pauses_s: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """*pauses_s* are the first and the longest pause after a failure, in which callers get its error at once."""
        self._call = call
        self._closed = closed
        self.pauses = Backoff(*pauses_s)
        self._task: asyncio.Task[T] | None = None
        self._failure: BaseException | None = None
        """The error of the last call that failed."""

        self._retry_at = -inf
        """Time of the loop's clock at which the pause after it ends."""

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
        """Return the result of the running call, or of a new one; raises the error of the last one in the pause."""
        if self._failure is not None and asyncio.get_running_loop().time() < self._retry_at and not self.is_running:
            raise self._failure.with_traceback(None)
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
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._retry_at = task.get_loop().time() + self.pauses.next_s()


def other_loop(shown: str) -> StoreMisused:
    """Return the error of a call on another event loop than that of the connections."""
    return StoreMisused(f"the connections to {shown} belong to another event loop; connect to it on each loop")


class Lifetime:
    """The time in which connections may be used: from the first use, on its event loop, until they are closed."""

    def __init__(self, shown: str) -> None:
        """*shown* names what is connected to."""
        self._shown = shown
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_over = False
        self._uses = set[asyncio.Timeout]()
        self._unused = asyncio.Event()
        self._unused.set()

    def check(self) -> None:
        """Raise StoreClosed after `end`, StoreMisused on another event loop than that of the first use."""
        if self.is_over:
            raise StoreClosed(self._shown)
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif loop is not self._loop:
            raise other_loop(self._shown)

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Check, then run the block; `end` ends it, and turns any error of it into StoreClosed.

        For SDKs, which raise any type then; not for a swap, which may have taken place.
        """
        self.check()
        try:
            async with asyncio.timeout(None) as until_end:
                self._uses.add(until_end)
                self._unused.clear()
                try:
                    yield
                finally:
                    self._uses.discard(until_end)
                    if not self._uses:
                        self._unused.set()
        except Exception as error:
            if self.is_over:
                raise StoreClosed(self._shown) from error
            raise

    def end(self) -> None:
        """Refuse later uses, and end those of `in_use`. Idempotent; StoreMisused on another event loop."""
        if self.is_over:
            return
        self.check()
        self.is_over = True
        for until_end in self._uses:
            until_end.reschedule(0.0)

    async def wait_unused(self) -> None:
        """Wait until the blocks of `in_use` have ended."""
        await self._unused.wait()
