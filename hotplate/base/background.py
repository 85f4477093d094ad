"""Blocking wrappers of asynchronous objects; their event loops run in daemon threads.

Each wrapper has a lock, which works like the GIL: the wrapper's loop holds it while it runs callbacks, and releases it
only in `select`, where it waits for I/O. So a caller that holds the lock knows that the loop is between two callbacks,
and may call synchronous methods of the object as if it were on the loop. A list in memory, which needs no I/O, then
takes 16.8 µs of CPU instead of the 62 µs of `run_coroutine_threadsafe`, which wakes two threads
(`tools/test_lookups.py`: test_list_of_library and test_list_by_way_of_a_loop).

For example: a thread that calls `SyncLists.personal` gets the lock at once if the loop waits for I/O. While the thread
reads the list, a loop whose socket gets readable waits in `_Selector.select` for the lock. A loop that runs a callback
holds the lock, so the thread waits for the end of the callback, as it would in the loop's queue.

What follows from it:

- A caller waits for the lock as long as the loop's callbacks take, and holds up the loop as long as its own call takes:
  `_halted` is for what returns at once; what waits is a coroutine, for `_run`. Other wrappers are not held up.
- A callback must not wait for another thread that may need the lock. Threads of executors do not take it.
- A fork takes all locks first, so that a child begins with no loop inside a callback. So a callback must not fork: it
  would wait for the other loops' callbacks, and if one of those forks at the same time, both wait forever. Threads of
  executors may fork.
"""

import asyncio
import concurrent.futures.thread
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from functools import wraps
from selectors import DefaultSelector, SelectorKey
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


class _Process:
    """The locks of the wrappers in one process."""

    def __init__(self) -> None:
        self._locks = weakref.WeakSet[threading.RLock]()
        self._adding = threading.RLock()  # also held during a fork
        self._halted = list[threading.RLock]()

    def new_lock(self) -> threading.RLock:
        lock = threading.RLock()
        with self._adding:
            self._locks.add(lock)
        return lock

    def halt_loops(self) -> None:
        """Wait until each loop waits for I/O, and halt it until `resume_loops`."""
        self._adding.acquire()
        for lock in list(self._locks):
            lock.acquire()
            self._halted.append(lock)

    def resume_loops(self) -> None:
        while self._halted:
            self._halted.pop().release()
        self._adding.release()


# By process id: a forked child may inherit locks that are held, and takes none of them.
_processes = dict[int, _Process]()


def _this_process() -> _Process:
    process = os.getpid()
    if process not in _processes:
        _processes.setdefault(process, _Process())  # atomic
    return _processes[process]


# A fork waits until the loops are idle; otherwise the child could inherit a held import lock. It takes the locks of
# executors and logging, whose modules are loaded first, after ours, as the loops do.
os.register_at_fork(
    before=lambda: _this_process().halt_loops(),
    after_in_parent=lambda: _this_process().resume_loops(),
)


class _Selector(DefaultSelector):
    """Releases *lock* while its loop waits; asyncio calls `select` once between two runs of callbacks."""

    def __init__(self, lock: threading.RLock) -> None:
        super().__init__()
        self._lock = lock

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        self._lock.release()
        try:
            return super().select(timeout)
        finally:
            self._lock.acquire()


class _Running(Generic[T]):
    """An asynchronous object in use: its loop and thread in this process.

    entered   the object, None until the thread has entered *manager*
    entering  done then, or with the exception of entering
    failed    whether entering raised; the thread then ends
    stopped   set on the loop to leave *manager* and end the thread
    """

    def __init__(self, manager: AbstractAsyncContextManager[T], lock: threading.RLock) -> None:
        self.loop = asyncio.SelectorEventLoop(_Selector(lock))
        self.entered: T | None = None
        self.failed = False
        self.entering = asyncio.run_coroutine_threadsafe(self._enter(manager), self.loop)
        self.stopped = asyncio.Event()
        self.thread = threading.Thread(target=self._run, args=(manager, lock), name="hotplate", daemon=True)
        self.thread.start()

    async def _enter(self, manager: AbstractAsyncContextManager[T]) -> None:
        try:
            self.entered = await manager.__aenter__()
        except Exception:
            self.failed = True
            self.stopped.set()
            raise

    def _run(self, manager: AbstractAsyncContextManager[T], lock: threading.RLock) -> None:
        """Run the loop until it is stopped. The thread holds the lock, except in `_Selector.select`."""
        with lock, asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self.stopped.wait())
            if self.entered is not None:
                runner.run(manager.__aexit__(None, None, None))


class Background(Generic[T]):
    """Base of a blocking wrapper of a `T`, usable from any thread until it is closed or dropped.

    *make* returns an asynchronous context manager, entered by the first use in each process, also in a forked child,
    and again by the use after an entry that raised.
    After `close`, uses raise the exception that *closed* returns.
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]], closed: Callable[[], Exception]) -> None:
        self._make = make
        self._closed = closed
        self._is_closed = False
        # By process id.
        self._locks = dict[int, threading.RLock]()
        self._running = dict[int, _Running[T]]()
        weakref.finalize(self, _stop, self._running).atexit = False

    def __enter__(self) -> Self:
        self._halted(lambda _: None)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the calls of other threads, and end the thread; later uses fail."""
        with self._lock():
            self._is_closed = True
        running = _stop(self._running)
        if running is not None and running.thread is not threading.current_thread():  # of a finalizer
            running.thread.join(timeout=10.0)

    def _lock(self) -> threading.RLock:
        """Return the lock in this process; that of a forked child is a new one."""
        process = os.getpid()
        lock = self._locks.get(process)
        if lock is None:
            lock = self._locks.setdefault(process, _this_process().new_lock())  # atomic
        return lock

    def _of_this_process(self) -> _Running[T]:
        """Return the object's loop in this process, begun if none is or its entry failed; the caller holds the lock."""
        if self._is_closed:
            raise self._closed()
        running = self._running.get(os.getpid())
        if running is None or running.failed:
            running = self._running[os.getpid()] = _Running(self._make(), self._lock())
        return running

    def _halted(self, use: Callable[Concatenate[T, P], R], *arguments: P.args, **options: P.kwargs) -> R:
        """Call *use* with the wrapped object while the event loop, in another thread, is halted; return the result.

        The object is an async context manager that this wrapper enters. Waits until it is entered, and raises what
        entering raised.
        """
        with self._lock():
            running = self._of_this_process()
            if running.entered is not None:
                return use(running.entered, *arguments, **options)

        with suppress(concurrent.futures.CancelledError):  # closed since, which the next call raises
            running.entering.result()
        return self._halted(use, *arguments, **options)

    def _run(self, call: Callable[[T], Coroutine[Any, Any, R]]) -> R:
        """Run *call* on the loop, and return its result. It has a deadline of its own: this waits for its end."""
        future = self._halted(lambda value: asyncio.run_coroutine_threadsafe(call(value), self._of_this_process().loop))
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise self._closed() from None


def blocking(method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Background[T], P], R]:
    """Return a method for `Background[T]`, a blocking wrapper of T, that runs the coroutine *method* of T.

    It takes the same arguments, runs the coroutine on the wrapper's event loop, and waits for the result.
    """

    @wraps(method)
    def call(self: Background[T], /, *arguments: P.args, **options: P.kwargs) -> R:
        return self._run(lambda value: method(value, *arguments, **options))

    return call


def _stop(running: dict[int, _Running[T]]) -> _Running[T] | None:
    """Tell the thread of this process to end, and return it, None without one; *running* is by process id.

    It takes no lock, because garbage collection calls it in any thread.
    """
    stopping = running.get(os.getpid())
    if stopping is not None:
        with suppress(RuntimeError):  # the loop has ended
            stopping.loop.call_soon_threadsafe(stopping.stopped.set)
    return stopping
