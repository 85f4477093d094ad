"""The lists of the live release for programs without an event loop."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from hotplate.background import Background
from hotplate.serve.embedded import FIRST_READ_S, Lists, Recommendations, open_lists
from hotplate.serve.reader import DEFAULT_N
from hotplate.serve.settings import BUDGET_S
from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.keys import ITEM, OVERALL, USER, check_id

T = TypeVar("T")


class SyncLists:
    """The lists of the live release, with the methods of `Lists`; safe to use from any thread, and after a fork.

    The first use in a process opens the stores on a background thread, and waits until each was tried once. While no
    release is served, each call raises NotReady.
    """

    def __init__(self, open_them: Callable[[], Lists], budget_s: float, timeout_s: float) -> None:
        """Take a function that returns lists which are not open yet; it is called once in each process."""
        self._background = Background(open_them, _closed, timeout_s)
        self._budget_s = budget_s

    def __enter__(self) -> Self:
        self._background.halted()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the stores; later calls raise StoreMisused."""
        self._background.close()

    def personal(self, user: str, n: int = DEFAULT_N, *, segment: str = OVERALL) -> Recommendations:
        """See `Lists.personal`."""
        key = USER + check_id(user)
        return self._one(key, "personal", n, segment, lambda lists: lists.personal(user, n, segment=segment))

    def personal_many(
        self, users: Sequence[str], n: int = DEFAULT_N, *, segment: str = OVERALL
    ) -> list[Recommendations]:
        """See `Lists.personal_many`."""
        return self._run(lambda lists: lists.personal_many(users, n, segment=segment))

    def similar(self, item: str, n: int = DEFAULT_N) -> Recommendations:
        """See `Lists.similar`."""
        return self._one(ITEM + check_id(item), "similar", n, OVERALL, lambda lists: lists.similar(item, n))

    def fold_in(
        self, items: Iterable[str] | Mapping[str, float], n: int = DEFAULT_N, *, segment: str = OVERALL
    ) -> Recommendations:
        """See `Lists.fold_in`."""
        basket = items if isinstance(items, Mapping) else list(items)  # a generator runs in the caller's thread
        return self._run(lambda lists: lists.fold_in(basket, n, segment=segment))

    def popular(self, n: int = DEFAULT_N, *, segment: str = OVERALL) -> Recommendations:
        """See `Lists.popular`."""
        with self._background.halted() as lists:
            return lists.decoded(lists.reader.popular(segment), n)

    def prometheus_text(self) -> bytes:
        """See `Lists.prometheus_text`."""
        with self._background.halted() as lists:
            return lists.prometheus_text()

    def _one(
        self, key: str, source: str, n: int, segment: str, read: Callable[[Lists], Coroutine[Any, Any, Recommendations]]
    ) -> Recommendations:
        with self._background.halted() as lists:
            if (found := lists.reader.get_nowait(key, source, segment)) is not None:
                return lists.decoded(found, n)
        return self._run(read)

    def _run(self, read: Callable[[Lists], Coroutine[Any, Any, T]]) -> T:
        try:
            return self._background.run(read, self._budget_s)
        except TimeoutError:
            raise StoreUnavailable("the thread that reads the stores does not answer") from None


def open_sync(
    *urls: str,
    budget_s: float = BUDGET_S,
    timeout_s: float = FIRST_READ_S,
    deny_list: str | Path | None = None,
    fold_in: bool = False,
) -> SyncLists:
    """Open lists as `hotplate.open` does, for programs without an event loop.

    Use them as `with hotplate.open_sync(url) as lists:`, or keep them until the program ends. The first use in each
    process waits until each store was tried once, *timeout_s* at most.
    """
    open_them = partial(open_lists, *urls, budget_s=budget_s, timeout_s=timeout_s, deny_list=deny_list, fold_in=fold_in)
    open_them()  # checks the arguments, and opens nothing
    return SyncLists(open_them, budget_s, timeout_s)


def _closed() -> StoreMisused:
    return StoreMisused("these lists are closed; open others by hotplate.open_sync(…)")
