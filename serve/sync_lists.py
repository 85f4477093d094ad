"""The lists of what is live in a program without an event loop: what `hotplate.open_sync` gives.

A thread runs the loop that follows the live release, and holds a lock except while it waits for I/O. So a caller that
holds the lock may read a list of a file directly, in an eighth of the time of a hop to the loop and back.
"""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from selectors import DefaultSelector, SelectorKey
from typing import Any, Self, TypeVar

from hotplate.serve.embedded import FIRST_READ_S, Lists, Recommendations, open_lists
from hotplate.serve.reader import DEFAULT_N
from hotplate.serve.settings import BUDGET_S
from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.keys import ITEM, OVERALL, USER, check_id

T = TypeVar("T")

# How much longer than its budget a call waits for the loop, and how long `close` waits for the stores.
LOOP_S = 10.0


class SyncLists:
    """The lists of the live release, as `Lists` has them, for programs without an event loop; safe from any thread.

    The first use in a process starts a thread, opens the stores, and waits until each was tried once. So a process that
    was forked has its own, and does not touch those of its parent. As long as no release is served, each call raises
    NotReady.
    """

    def __init__(self, open_them: Callable[[], Lists], budget_s: float, timeout_s: float) -> None:
        """Take what makes lists that are not open; it is called once in each process."""
        self._open_them, self._budget_s, self._timeout_s = open_them, budget_s, timeout_s
        self._opened = dict[int, _Opened]()
        """By process. What a parent has opened is kept, because the end of an object would close it."""
        self._closed = False

    def __enter__(self) -> Self:
        self._here()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, and close the stores; every later call raises StoreMisused."""
        self._closed = True
        if opened := self._opened.get(os.getpid()):
            opened.close()

    def personal(self, user: str, n: int = DEFAULT_N, *, segment: str = OVERALL) -> Recommendations:
        """See `Lists.personal`."""
        key = USER + check_id(user)
        return self._one(key, "personal", n, segment, lambda lists: lists.personal(user, n, segment=segment))

    def personal_many(
        self, users: Sequence[str], n: int = DEFAULT_N, *, segment: str = OVERALL
    ) -> list[Recommendations]:
        """See `Lists.personal_many`."""
        return self._on_loop(lambda lists: lists.personal_many(users, n, segment=segment))

    def similar(self, item: str, n: int = DEFAULT_N) -> Recommendations:
        """See `Lists.similar`."""
        return self._one(ITEM + check_id(item), "similar", n, OVERALL, lambda lists: lists.similar(item, n))

    def fold_in(
        self, items: Iterable[str] | Mapping[str, float], n: int = DEFAULT_N, *, segment: str = OVERALL
    ) -> Recommendations:
        """See `Lists.fold_in`."""
        basket = items if isinstance(items, Mapping) else list(items)  # an iterator of the caller runs in its thread
        return self._on_loop(lambda lists: lists.fold_in(basket, n, segment=segment))

    def popular(self, n: int = DEFAULT_N, *, segment: str = OVERALL) -> Recommendations:
        """See `Lists.popular`."""
        with self._here() as lists:
            return lists.decoded(lists.reader.popular(segment), n)

    def prometheus_text(self) -> bytes:
        """See `Lists.prometheus_text`."""
        with self._here() as lists:
            return lists.prometheus_text()

    def _one(
        self, key: str, source: str, n: int, segment: str, read: Callable[[Lists], Coroutine[Any, Any, Recommendations]]
    ) -> Recommendations:
        with self._here() as lists:
            if (found := lists.reader.get_nowait(key, source, segment)) is not None:
                return lists.decoded(found, n)
        return self._on_loop(read)

    def _on_loop(self, read: Callable[[Lists], Coroutine[Any, Any, T]]) -> T:
        opened = self._here()
        with opened as lists:
            future = asyncio.run_coroutine_threadsafe(read(lists), opened.loop)
        try:
            return future.result(_with_the_loop(self._budget_s))
        except concurrent.futures.CancelledError:
            raise _closed() from None
        except TimeoutError:
            future.cancel()
            raise StoreUnavailable("the thread that reads the stores does not answer") from None

    def _here(self) -> "_Opened":
        """Return what this process has opened, and open it first if it is not."""
        if self._closed:
            raise _closed()
        opened = self._opened.get(os.getpid())
        if opened is None or not opened.tried.is_set():
            opened = self._opened.setdefault(os.getpid(), _Opened())  # the same one in all threads
            opened.start(self._open_them)
            opened.tried.wait(_with_the_loop(self._timeout_s))
        return opened


class _Opened:
    """The lists of one process, and the thread whose loop follows them; as a context manager, the loop is held up."""

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.tried = threading.Event()
        self._lock = threading.RLock()
        """Held by the loop while it works, and by callers while they use the lists."""
        self._lists: Lists | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    def start(self, open_them: Callable[[], Lists]) -> None:
        """Start the thread, unless that was done."""
        with self._lock:
            if self._thread is not None:
                return
            self._lists, self.loop = open_them(), asyncio.SelectorEventLoop(_Selector(self._lock))
            self._thread = threading.Thread(target=self._run, args=(self._lists,), name="hotplate", daemon=True)
            self._thread.start()
        # A fork waits until the loop waits: in the child, nothing would release a lock of a module that it held.
        release = self._lock.release
        os.register_at_fork(before=self._lock.acquire, after_in_parent=release, after_in_child=release)

    def __enter__(self) -> Lists:
        self._lock.acquire()
        if self._lists is None:
            self._lock.release()
            raise _closed()
        return self._lists

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close(self) -> None:
        with self._lock:
            if self._lists is not None:
                self._lists = None
                self.loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(LOOP_S)

    def _run(self, lists: Lists) -> None:
        with self._lock, asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            try:
                runner.run(self._follow(lists))
            finally:
                self._lists = None
                self.tried.set()

    async def _follow(self, lists: Lists) -> None:
        async with lists:
            self.tried.set()
            await self._stop.wait()


class _Selector(DefaultSelector):
    """Releases a lock while its loop waits."""

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
    timeout_s: float = FIRST_READ_S,
    deny_list: str | Path | None = None,
    fold_in: bool = False,
) -> SyncLists:
    """As `hotplate.open`, for programs without an event loop: nothing is awaited, and any thread may use the lists.

    Use it as `with hotplate.open_sync(url) as lists:`, or keep it for as long as the program runs. The first use in
    each process waits until each store was tried once, *timeout_s* at most.
    """
    open_them = partial(open_lists, *urls, budget_s=budget_s, timeout_s=timeout_s, deny_list=deny_list, fold_in=fold_in)
    open_them()  # raises what is wrong with the arguments now; it opens nothing
    return SyncLists(open_them, budget_s, timeout_s)


def _with_the_loop(seconds: float) -> float:
    return min(seconds + LOOP_S, threading.TIMEOUT_MAX)


def _closed() -> StoreMisused:
    return StoreMisused("these lists are closed; open others by hotplate.open_sync(…)")
