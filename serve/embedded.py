"""`hotplate.open` and `hotplate.open_sync`: lists of the live release inside another program."""

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from math import inf
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from hotplate.base.background import Background, blocking
from hotplate.base.recommendations import FilterOptions, ListOptions, Recommendations
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.lists.baskets import compute_list
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.options import DEFAULT_N, ID_OPTIONS, RECENCY, Selection
from hotplate.serve.lists.paging import parse_cursor
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.requests import (
    ListAnswer,
    ListRequest,
    answer_list,
    answer_nowait,
    answer_popular,
    read_lists,
    shape_lists,
)
from hotplate.serve.lists.shaping import Shaper
from hotplate.serve.processes.states import Reporter
from hotplate.serve.tasks import background
from hotplate.serve.tiers.tier import tiers_of
from hotplate.serve.watched import follow
from hotplate.stores.encoding import ITEM, POPULAR, USER, check_id, decode
from hotplate.stores.errors import StoreMisused
from hotplate.stores.options import BUDGET_S

# Maximum wait for the first read of each store.
ENTER_TIMEOUT_S = 1.0


class Lists:
    """The lists of the live release, as the service answers them.

    Entering waits until each store was tried once. After the block they may be entered again, also on another event
    loop. Methods raise NotReady while no release is served, UnknownList if the release lacks the named *list*, and
    StoreMisused for an invalid id, count or filter, outside the block, or on another event loop.
    """

    def __init__(self, open_reader: Callable[[], TieredReader], timeout_s: float = ENTER_TIMEOUT_S) -> None:
        """*open_reader* opens the stores, for the first block now."""
        self._open_reader = open_reader
        self._timeout_s = timeout_s
        self._open()
        self._entered = AsyncExitStack()
        self._was_entered = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        """Open the stores, follow their live releases, and wait until each was read once, or for the time limit.

        The first block, `async with lists`, uses the reader that the constructor opened; a later one opens another.
        Raises StoreMisused if the lists are in a block already, or if the deny-list cannot be read again.
        """
        if self._loop is not None and not self._loop.is_closed():
            raise StoreMisused("these lists are in use; leave their block first, or open others by hotplate.open(…)")

        if self._was_entered:
            self._open()
        self._was_entered = True
        self._loop = asyncio.get_running_loop()

        # After an error, this stack closes what was entered; otherwise `__aexit__` does, by `self._entered`.
        async with AsyncExitStack() as stack:
            stack.callback(setattr, self, "_loop", None)
            await stack.enter_async_context(self.reader)
            await stack.enter_async_context(background(follow(self.reader.deny_list.watched)))
            await self.reader.wait_until_attempted(self._timeout_s)
            self._entered = stack.pop_all()
        return self

    def _open(self) -> None:
        self.reader = self._open_reader()
        self._reporter = Reporter(self.reader.tiers)
        self._shaper = Shaper(self.reader.deny_list)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop not in (None, asyncio.get_running_loop()):
            raise StoreMisused("leave the block of these lists on the event loop that entered it")
        await self._entered.__aexit__(kind, error, trace)

    async def personal(
        self, user: str, n: int = DEFAULT_N, *, after: str = "", **options: Unpack[ListOptions]
    ) -> Recommendations:
        """Return a user's list, or for an unknown user the popular list of the segment.

        This, `similar` and `popular` return a page of *n* items with *after*: "0" for the first page, or the `next` of
        the page before. Pages stay in their release while that can be read.
        """
        return await self.answer(_list_request(USER, check_id(user), n, options=options, after=after))

    async def personal_many(
        self, users: Sequence[str] | Mapping[str, str], n: int = DEFAULT_N, **options: Unpack[ListOptions]
    ) -> list[Recommendations]:
        """Return the lists of many users in order, from one store: of the release that is served to each.

        From a mapping of users to cursors, the `after` of `personal`, returns a page of each user's list.
        """
        _check_ids("users", users)
        selection = _selection(n, options)
        if not users:
            self._here.row_of(POPULAR, selection.segment, selection.list)  # raises UnknownList, as with users

        requests = list[ListRequest]()
        for user in users:
            cursor = parse_cursor(users[user]) if isinstance(users, Mapping) else None
            requests.append(ListRequest(USER, check_id(user), selection=selection, after=cursor))

        lists = await read_lists(self._here, requests)
        return list(map(recommendations_of, shape_lists(self._shaper, requests, lists)))

    async def similar(
        self, item: str, n: int = DEFAULT_N, *, after: str = "", **options: Unpack[FilterOptions]
    ) -> Recommendations:
        """Return the items similar to *item*, or for an unknown item the popular list."""
        return await self.answer(_list_request(ITEM, check_id(item), n, options=options, after=after))

    async def fold_in(
        self,
        items: Iterable[str] | Mapping[str, float],
        n: int = DEFAULT_N,
        *,
        recency: float = RECENCY,
        **options: Unpack[ListOptions],
    ) -> Recommendations:
        """Return a list for a visitor with *items*, perhaps with weights, or the popular list if none is known.

        The newest item is the last. An item's weight is multiplied by *recency* (above 0, at most 1) for each newer
        item. If the release has no item factors, the list is made from the lists of similar items. Raises
        StoreThrottled if too many visitors wait.
        """
        selection = _selection(n, options)
        if not 0 < recency <= 1:
            raise StoreMisused(f"recency is a factor above 0 and at most 1, not {recency}")

        _check_ids("items", items)
        # Pairs of an item's id and its weight; None is the default weight.
        weights = items.items() if isinstance(items, Mapping) else ((item, None) for item in items)
        basket = [(check_id(item), None if weight is None else _check_weight(weight)) for item, weight in weights]

        result = await compute_list(self._here, basket, selection, recency=recency)

        # Filter and cut the list; items of the basket are not recommended.
        shown = self._shaper.shape(result.encoded, selection, beside=[item for item, _ in basket])
        return recommendations_of(ListAnswer(result.encoded, shown))

    def popular(self, n: int = DEFAULT_N, *, after: str = "", **options: Unpack[ListOptions]) -> Recommendations:
        """Return the popular list of the segment, or the overall one, from memory."""
        request = _list_request(POPULAR, "", n, options=options, after=after)
        return recommendations_of(answer_popular(self._here, self._shaper, request))

    async def answer(self, request: ListRequest) -> Recommendations:
        """Read a list."""
        return recommendations_of(await answer_list(self._here, self._shaper, request))

    def answer_nowait(self, request: ListRequest) -> Recommendations | None:
        """Return a list if that needs no I/O, else None; in any thread while the event loop is halted."""
        answer = answer_nowait(self.reader, self._shaper, request)
        return None if answer is None else recommendations_of(answer)

    def prometheus_text(self) -> bytes:
        """Return the `/metrics` of this process, for operators only."""
        from hotplate.serve.telemetry.exposition import Exposition  # noqa: PLC0415 -- loads prometheus_client

        return Exposition(self.reader.metrics, lambda: [self._reporter.state()]).text()

    @property
    def _here(self) -> TieredReader:
        with suppress(RuntimeError):  # no loop runs
            if asyncio.get_running_loop() is self._loop:
                return self.reader
        raise StoreMisused(
            "use these lists inside `async with hotplate.open(…) as lists:`, on the event loop that opened them, or "
            "those of hotplate.open_sync(…) in any thread"
        )


def recommendations_of(answer: ListAnswer) -> Recommendations:
    """Return the recommendations of an answer: its decoded items, and where they are from."""
    encoded = answer.encoded
    return Recommendations(
        items=decode(answer.items),
        source=encoded.source,
        release=encoded.release.id,
        tier=encoded.tier,
        canary=encoded.release.is_canary,
        segment=encoded.segment if encoded.source == "popular" else None,
        list=encoded.name,
        next=answer.next,
        restarted=answer.restarted,
    )


def _list_request(
    kind: str, identifier: str, n: int, *, options: ListOptions | FilterOptions, after: str
) -> ListRequest:
    """Return the request of a call; *after* is empty for the whole list. Raises StoreMisused and TypeError."""
    takes = FilterOptions.__optional_keys__ if kind == ITEM else ListOptions.__optional_keys__
    cursor = parse_cursor(after) if after else None
    return ListRequest(kind, identifier, selection=_selection(n, options, takes), after=cursor)


def _selection(
    n: int, options: ListOptions | FilterOptions, takes: frozenset[str] = ListOptions.__optional_keys__
) -> Selection:
    """Return the options of a call that takes those of these names; raises StoreMisused and TypeError."""
    if unknown := options.keys() - takes:
        raise TypeError(f"this list takes {', '.join(sorted(takes))}, not {unknown.pop()}")
    if n < 1:
        raise StoreMisused(f"n must be at least 1, not {n}")

    values: dict[str, Any] = {**options}
    for name in ID_OPTIONS:
        ids = values.get(name, ())
        _check_ids(name, ids)
        values[name] = tuple(map(check_id, ids))
    if "fields" in values:
        _check_ids("fields", values["fields"])
        values["fields"] = ",".join(values["fields"])
    return Selection(min(n, sys.maxsize), **values)


class SyncLists(Background[Lists]):
    """The lists of the live release, with the methods of `Lists`; safe in any thread, and after a fork.

    The first use in a process opens the stores, and waits until each was tried. After `close`, uses raise StoreMisused.
    """

    personal_many = blocking(Lists.personal_many)

    def personal(
        self, user: str, n: int = DEFAULT_N, *, after: str = "", **options: Unpack[ListOptions]
    ) -> Recommendations:
        """See `Lists.personal`."""
        return self._answer(_list_request(USER, check_id(user), n, options=options, after=after))

    def similar(
        self, item: str, n: int = DEFAULT_N, *, after: str = "", **options: Unpack[FilterOptions]
    ) -> Recommendations:
        """See `Lists.similar`."""
        return self._answer(_list_request(ITEM, check_id(item), n, options=options, after=after))

    def fold_in(
        self,
        items: Iterable[str] | Mapping[str, float],
        n: int = DEFAULT_N,
        *,
        recency: float = RECENCY,
        **options: Unpack[ListOptions],
    ) -> Recommendations:
        """See `Lists.fold_in`."""
        basket = items if isinstance(items, Mapping | str) else list(items)  # a lazy one is read in the caller's thread
        return self._run(lambda lists: lists.fold_in(basket, n, recency=recency, **options))

    def popular(self, n: int = DEFAULT_N, *, after: str = "", **options: Unpack[ListOptions]) -> Recommendations:
        """See `Lists.popular`."""
        return self._answer(_list_request(POPULAR, "", n, options=options, after=after))

    def prometheus_text(self) -> bytes:
        """See `Lists.prometheus_text`."""
        return self._halted(Lists.prometheus_text)

    def _answer(self, request: ListRequest) -> Recommendations:
        recommendations = self._halted(Lists.answer_nowait, request)
        return recommendations or self._run(lambda lists: lists.answer(request))


class Options(TypedDict, total=False):
    """Options of `open_lists`."""

    budget_s: float
    timeout_s: float
    deny_list: str | Path | None
    fold_in: bool


def open_lists(
    *urls: str,
    budget_s: float = BUDGET_S,
    timeout_s: float = ENTER_TIMEOUT_S,
    deny_list: str | Path | None = None,
    fold_in: bool = False,
) -> Lists:
    """Open lists in the stores at *urls*; each answers when those before it cannot.

    Use it as `async with hotplate.open(url) as lists:`, which waits *timeout_s* at most until each store was tried.
    *budget_s* limits the time of the reads of one call. *deny_list* is a file of items that are never shown and of
    users who are treated as unknown; it is read again when it changes. *fold_in* keeps item factors in memory, for
    lists for visitors. Raises StoreMisused for invalid arguments, and for *fold_in* without numpy.
    """
    if not urls:
        raise StoreMisused("no store is named; pass a URL such as file:///var/lib/hotplate")
    if not (_is_number(budget_s) and 0 < budget_s < inf):
        raise StoreMisused(f"budget_s is a number of seconds above 0, not {budget_s!r}")
    if not (_is_number(timeout_s) and timeout_s >= 0):  # also for nan
        raise StoreMisused(f"timeout_s is a number of seconds, not {timeout_s!r}")

    def open_reader() -> TieredReader:
        try:
            denied = DenyListFile(None if deny_list is None else Path(deny_list))
        except ServiceMisused as error:
            raise StoreMisused(str(error)) from error  # programs catch StoreError
        return TieredReader(tiers_of(urls), budget_s=budget_s, deny_list=denied, fold_in=fold_in)

    return Lists(open_reader, timeout_s)


def open_sync(*urls: str, **options: Unpack[Options]) -> SyncLists:
    """Open lists as `hotplate.open` does, with its options, for programs without an event loop."""
    open_them = partial(open_lists, *urls, **options)
    open_them()  # only checks the arguments
    return SyncLists(open_them, lambda: StoreMisused("these lists are closed; open others by hotplate.open_sync(…)"))


def _is_number(value: object) -> bool:
    return isinstance(value, Real)  # as the numbers of numpy, but not Decimal, which cannot be added to a float


def _check_ids(name: str, ids: object) -> None:
    """Raise StoreMisused for a string, which is a collection of characters."""
    if isinstance(ids, str):
        raise StoreMisused(f"{name} takes a collection, not the string {ids!r}")


def _check_weight(weight: float) -> float:
    """Return a weight; raises StoreMisused if it is invalid."""
    if not 0 < weight <= sys.float_info.max:
        raise StoreMisused(f"a weight is a number above 0, not {weight}")
    return weight
