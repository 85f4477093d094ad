"""The lists of what is live in a program without an event loop: what `hotplate.open_sync` gives.

A thread runs the loop that follows the live release. The loop holds a lock while it works, and releases it only while
it waits. So nothing changes while a caller holds the lock: it reads a list at hand in its own thread, in microseconds.
The loop does all that has to wait.
"""

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from selectors import DefaultSelector, SelectorKey
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from hotplate.serve.embedded import READY_S, Lists, Recommendations, open_lists
from hotplate.serve.reader import BUDGET_S_PER_USER, DEFAULT_N, NotReady
from hotplate.serve.settings import BUDGET_S
from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.keys import ITEM, OVERALL, USER, check_id

T = TypeVar("T")

# How much longer than its budget a call waits for the loop, and how long `close` waits for the stores.
LOOP_S = 10.0

# The longest that a thread waits, in seconds: 30 years, as none can wait for ever with a limit.
LONGEST_S = 1e9

# How long a fork waits for the loops of this process to wait for something.
FORK_S = 5.0

# What the loop is to do for a caller.
ListsCall = Callable[[Lists], Coroutine[Any, Any, T]]


class SyncLists:
    """The lists of the live release, as `Lists` has them, for programs without an event loop; safe from any thread.

    The first use in a process starts a thread and opens the stores, so a process that was forked has its own, and does
    not touch those of its parent. The first use waits until a release is served. If none is, each call raises NotReady
    until one is. As a context manager it is used first when the block begins, and closed when the block ends.
    """

    this_process: ClassVar = object()
    """With its id, stands for this process and for no other.

    An id alone may once be given to a grandchild; and uWSGI forks without a word to Python, which leaves only the id.
    """

    def __init__(self, open_them: Callable[[], Lists], budget_s: float, timeout_s: float) -> None:
        """Take what makes lists that are not open, and may be called once in each process."""
        self._open_them = open_them
        self._budget_s, self._timeout_s = min(budget_s, LONGEST_S), min(timeout_s, LONGEST_S)
        self._processes = dict[tuple[int, object], _Process]()
        """By process. What a parent has opened is kept, because the end of an object would close it."""
        self._closed = False

    def __enter__(self) -> Self:
        try:
            with (process := self._process()).lock:
                process.lists.reader.release()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, and close the stores; every later call raises StoreMisused."""
        self._closed = True
        if process := self._processes.get((os.getpid(), self.this_process)):
            process.close()

    def personal(self, user: str, n: int = DEFAULT_N, *, segment: str = OVERALL) -> Recommendations:
        """See `Lists.personal`."""
        return self._one(
            USER + check_id(user), "personal", n, segment, lambda lists: lists.personal(user, n, segment=segment)
        )

    def personal_many(
        self, users: Sequence[str], n: int = DEFAULT_N, *, segment: str = OVERALL
    ) -> list[Recommendations]:
        """See `Lists.personal_many`."""
        more_s = BUDGET_S_PER_USER * len(users)
        return self._on_loop(lambda lists: lists.personal_many(users, n, segment=segment), more_s)

    def similar(self, item: str, n: int = DEFAULT_N) -> Recommendations:
        """See `Lists.similar`."""
        return self._one(ITEM + check_id(item), "similar", n, OVERALL, lambda lists: lists.similar(item, n))

    def fold_in(
        self, items: Iterable[str] | Mapping[str, float], n: int = DEFAULT_N, *, segment: str = OVERALL
    ) -> Recommendations:
        """See `Lists.fold_in`."""
        basket = items if isinstance(items, Mapping) else list(items)  # what makes them is the caller's to run
        return self._on_loop(lambda lists: lists.fold_in(basket, n, segment=segment))

    def popular(self, n: int = DEFAULT_N, *, segment: str = OVERALL) -> Recommendations:
        """See `Lists.popular`."""
        process = self._process()
        with process.lock:
            lists = process.lists
            found = lists.reader.popular(segment)
        return lists.decoded(found, n)

    def prometheus_text(self) -> bytes:
        """See `Lists.prometheus_text`."""

        async def text(lists: Lists) -> bytes:
            return lists.prometheus_text()

        return self._on_loop(text)

    def _one(self, key: str, source: str, n: int, segment: str, read: ListsCall[Recommendations]) -> Recommendations:
        """Return a list that is at hand, or what *read* gives."""
        process = self._process()
        with process.lock:
            lists = process.lists
            found = lists.reader.get_nowait(key, source, segment)
        if found is None:
            return self._on_loop(read)
        return lists.decoded(found, n)

    def _on_loop(self, read: ListsCall[T], more_s: float = 0.0) -> T:
        return self._process().run(read, self._budget_s + more_s + LOOP_S)

    def _process(self) -> "_Process":
        """Return what this process has opened, and open it first if it is not."""
        here = os.getpid(), self.this_process
        process = self._processes.get(here)
        if process is None or not process.attempted.is_set():
            process = self._processes.setdefault(here, _Process())  # one, whichever thread comes first
            with process.lock:
                if self._closed:
                    raise _closed()
                process.start(self._open_them, self._timeout_s)
            process.attempted.wait(self._timeout_s + LOOP_S)
        return process


class _Process:
    """Lists, and the thread whose loop follows them, of one process; lives until it is closed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held by the loop while it works, and by those who use `lists`."""
        self.attempted = threading.Event()
        """Set once a release is served, or has been waited for in vain."""
        self._lists: Lists | None = None
        self._thread: threading.Thread | None = None

    def start(self, open_them: Callable[[], Lists], timeout_s: float) -> None:
        """Start the thread, unless that was done; the caller holds the lock. Raises what *open_them* does."""
        if self._thread is None:
            lists = open_them()
            runner = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_Selector(self.lock)))
            self._loop = runner.get_loop()
            of_nobody = Context()  # what is followed belongs to no request, as the first caller does
            self._following = self._loop.create_task(self._follow(lists, timeout_s), context=of_nobody)
            thread = threading.Thread(target=self._run, args=(runner,), name="hotplate", daemon=True)
            thread.start()
            self._lists, self._thread = lists, thread
            _started.add(weakref.ref(self, _started.discard))

    @property
    def lists(self) -> Lists:
        """The lists, for who holds the lock; raises StoreMisused once they are closed."""
        if self._lists is None:
            raise _closed()
        return self._lists

    def run(self, read: ListsCall[T], timeout_s: float) -> T:
        """Let the loop do what *read* says, and wait for it; StoreUnavailable if that takes longer than *timeout_s*."""
        with self.lock:
            future = asyncio.run_coroutine_threadsafe(read(self.lists), self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise _closed() from None
        except TimeoutError:
            future.cancel()
            raise StoreUnavailable(
                f"the thread of these lists has not answered in {timeout_s:g} s; something in this process keeps it "
                "from running"
            ) from None

    def close(self) -> None:
        """End the thread, and wait for it, LOOP_S at most."""
        with self.lock:
            if self._lists is not None:
                self._lists = None
                self._loop.call_soon_threadsafe(self._following.cancel)
        if self._thread is not None:
            self._thread.join(LOOP_S)

    def _run(self, runner: asyncio.Runner) -> None:
        with self.lock, runner:
            try:
                with suppress(asyncio.CancelledError):
                    self._loop.run_until_complete(self._following)
            finally:
                self._lists = None  # nothing is followed any more
                self.attempted.set()

    async def _follow(self, lists: Lists, timeout_s: float) -> None:
        async with lists.followed():
            with suppress(NotReady):  # each call raises it
                await lists.reader.wait_until_ready(timeout_s)
            self.attempted.set()
            await asyncio.Event().wait()  # until `close` cancels it


# A fork waits until these loops of the process wait. In the child, nobody would release what a loop held amid its work,
# such as the lock of a module that it imported.
#
# A plain set is copied in one step, whatever threads that start others do; a WeakSet is not.
_started = set[weakref.ref[_Process]]()

# Their locks while they are held, by the thread that forks.
_held = dict[int, list[threading.RLock]]()


def _hold_for_fork() -> None:
    locks = [process.lock for one in list(_started) if (process := one()) is not None]
    _held[threading.get_ident()] = [lock for lock in locks if lock.acquire(timeout=FORK_S)]


def _release_after_fork() -> None:
    for lock in _held.pop(threading.get_ident(), ()):
        lock.release()


def _begin_in_child() -> None:
    SyncLists.this_process = object()
    _release_after_fork()
    _started.clear()  # their threads are the parent's


os.register_at_fork(before=_hold_for_fork, after_in_parent=_release_after_fork, after_in_child=_begin_in_child)


class _Selector(DefaultSelector):
    """Waits for what a loop waits for, and releases a lock as long."""

    def __init__(self, lock: threading.RLock) -> None:
        super().__init__()
        self._lock = lock

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        self._lock.release()
        try:
            return super().select(timeout)
        finally:
            self._lock.acquire()


def open_sync(
    *urls: str,
    budget_s: float = BUDGET_S,
    timeout_s: float = READY_S,
    deny_list: str | Path | None = None,
    fold_in: bool = False,
) -> SyncLists:
    """As `hotplate.open`, for programs without an event loop: nothing is awaited, and any thread may use the lists.

    Use it as `with hotplate.open_sync(url) as lists:`, which raises NotReady as `hotplate.open` does. Or keep it for as
    long as the program runs: then the first use waits for a release, *timeout_s* at most, in each process.
    """
    open_them = partial(open_lists, *urls, budget_s=budget_s, timeout_s=timeout_s, deny_list=deny_list, fold_in=fold_in)
    open_them()  # raises what is wrong with the arguments now; it opens nothing
    return SyncLists(open_them, budget_s, timeout_s)


def _closed() -> StoreMisused:
    return StoreMisused("these lists are closed; open others by hotplate.open_sync(…)")
