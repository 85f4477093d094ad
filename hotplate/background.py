"""Asynchronous objects on event loops in daemon threads, for programs without a loop.

A process's loops hold one lock except while they wait for I/O. A caller that holds it may use an object's state
directly, in an eighth of the time of a hop to the loop and back.
"""

import asyncio
import concurrent.futures.thread
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from selectors import DefaultSelector, SelectorKey
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# How long calls wait beyond their deadline, and `close` for the thread.
LOOP_S = 10.0

# By process id: a forked child may inherit a lock that is held.
_locks = dict[int, threading.RLock]()


def _lock() -> threading.RLock:
    return _locks.setdefault(os.getpid(), threading.RLock())  # atomic


# A fork waits until the loops are idle; otherwise the child could inherit a held import lock. It takes the locks of
# executors and logging after ours, as the loops do: `before` hooks run in the reverse order of their registration.
os.register_at_fork(before=lambda: _lock().acquire(), after_in_parent=lambda: _lock().release())


class _Selector(DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        lock = _lock()
        lock.release()
        try:
            return super().select(timeout)
        finally:
            lock.acquire()


class _Entered(Generic[T]):
    """The object in one process; entering it halts the loop and gives the object."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]], closed: Callable[[], Exception]) -> None:
        self.ready = threading.Event()
        self.thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop
        self._make, self._closed, self._lock = make, closed, _lock()
        self._value: T | None = None
        self._stop = asyncio.Event()

    def start(self) -> None:
        with self._lock:
            if self.thread is None:
                made, self.loop = self._make(), asyncio.SelectorEventLoop(_Selector())
                thread = threading.Thread(target=self._run, args=(made,), name="hotplate", daemon=True)
                thread.start()
                self.thread = thread

    def _run(self, made: AbstractAsyncContextManager[T]) -> None:
        with self._lock, asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._hold(made))

    async def _hold(self, made: AbstractAsyncContextManager[T]) -> None:
        try:
            async with made as value:
                self._value = value
                self.ready.set()
                await self._stop.wait()
                self._value = None
        finally:
            self.ready.set()

    def stop(self) -> None:
        """End the thread, without a lock: garbage collection calls this in any thread."""
        if self.thread is not None:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._stop.set)

    def __enter__(self) -> T:
        self._lock.acquire()
        if self._value is None:
            self._lock.release()
            raise self._closed()
        return self._value

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Background(Generic[T]):
    """An object on a background loop, usable from any thread until it is closed or dropped.

    *make* returns an asynchronous context manager, entered by the first use in each process, also in a forked child.
    After `close`, uses raise the exception that *closed* returns.
    """

    def __init__(
        self, make: Callable[[], AbstractAsyncContextManager[T]], closed: Callable[[], Exception], enter_s: float = 0.0
    ) -> None:
        """*enter_s* is the maximum time for entering."""
        self._make, self._closed, self._enter_s = make, closed, enter_s
        self._is_closed = threading.Event()
        self._entered = dict[int, _Entered[T]]()
        weakref.finalize(self, _stop_here, self._entered).atexit = False

    def close(self) -> None:
        """Cancel the calls of other threads, and end the thread."""
        self._is_closed.set()
        entered = _stop_here(self._entered)
        if entered is not None and entered.thread not in (None, threading.current_thread()):
            entered.thread.join(LOOP_S)

    def halted(self) -> _Entered[T]:
        """Return a context manager that halts the loop and gives the object."""
        if self._is_closed.is_set():
            raise self._closed()
        entered = self._entered.get(os.getpid())
        if entered is None or not entered.ready.is_set():
            entered = self._entered.setdefault(os.getpid(), _Entered(self._make, self._closed))
            entered.start()
            if self._is_closed.is_set():  # by another thread
                entered.stop()
            entered.ready.wait(_with_the_loop(self._enter_s))
        return entered

    def run(self, call: Callable[[T], Coroutine[Any, Any, R]], timeout_s: float) -> R:
        """Run a call that ends within *timeout_s*; raises TimeoutError if the loop is 10 s late."""
        entered = self.halted()
        with entered as value:
            future = asyncio.run_coroutine_threadsafe(call(value), entered.loop)
        try:
            return future.result(_with_the_loop(timeout_s))
        except concurrent.futures.CancelledError:
            raise self._closed() from None
        finally:
            future.cancel()  # after KeyboardInterrupt or TimeoutError


def _stop_here(entered: dict[int, _Entered[T]]) -> _Entered[T] | None:
    if here := entered.get(os.getpid()):
        here.stop()
    return here


def _with_the_loop(seconds: float) -> float:
    return min(seconds + LOOP_S, threading.TIMEOUT_MAX)
