"""The lists of what is live in a program of one's own: what `hotplate.open` gives."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Self

from hotplate.serve.deny_list import DenyListFile
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.reader import DEFAULT_N, EncodedList, TieredReader, open_reader
from hotplate.serve.settings import BUDGET_S
from hotplate.serve.states import Reporter
from hotplate.serve.watched import following
from hotplate.stores.encoding import Item, decode
from hotplate.stores.errors import StoreMisused
from hotplate.stores.keys import OVERALL, check_id

# How long lists that are being opened wait until each store was tried.
FIRST_READ_S = 1.0


@dataclass(frozen=True, slots=True)
class Recommendations:
    """One list, decoded, and where it came from."""

    items: list[Item]
    source: str
    """`personal`, `similar`, `fold-in`, or `popular` if the user or item has no list of its own."""

    release: str
    tier: str
    canary: bool = False
    """Whether the release is the canary, which a share of the users see in the place of the live one."""

    segment: str | None = None
    """The segment of a popular list, empty for the list of everybody; None for any other list."""


class Lists:
    """The lists of the live release, for use in another program: what the service answers, without HTTP.

    As a context manager it waits until each store was tried once, follows the live release and the deny-list until the
    block ends, and closes the stores. As long as no release is served, every method raises NotReady, which says why.
    It raises StoreMisused for an id or a count that cannot be, and if it is called before the block, after it, or on
    another event loop, because nothing is followed there.
    """

    def __init__(self, reader: TieredReader, timeout_s: float = FIRST_READ_S) -> None:
        self.reader = reader
        self._timeout_s = timeout_s
        self._reporter = Reporter(reader.tiers)
        self._entered = AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.reader)
            await stack.enter_async_context(following(self.reader.deny_list.watched))
            self._loop = asyncio.get_running_loop()
            await self.reader.wait_until_attempted(self._timeout_s)
            self._entered = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop = None
        await self._entered.__aexit__(kind, error, trace)

    async def personal(self, user: str, n: int = DEFAULT_N, *, segment: str = OVERALL) -> Recommendations:
        """Return a user's list; without one, the popular list of *segment*, or the one for everybody."""
        self._check_loop()
        return self.decoded(await self.reader.personal(check_id(user), segment), n)

    async def personal_many(
        self, users: Sequence[str], n: int = DEFAULT_N, *, segment: str = OVERALL
    ) -> list[Recommendations]:
        """Return the lists of many users, in order, all of one release but for the canary's; as `personal` for each."""
        self._check_loop()
        found = await self.reader.personal_many([check_id(user) for user in users], segment)
        return [self.decoded(one, n) for one in found]

    async def similar(self, item: str, n: int = DEFAULT_N) -> Recommendations:
        """Return the items that are like *item*; for an item that is not known, the popular list."""
        self._check_loop()
        return self.decoded(await self.reader.similar(check_id(item)), n)

    async def fold_in(
        self, items: Iterable[str] | Mapping[str, float], n: int = DEFAULT_N, *, segment: str = OVERALL
    ) -> Recommendations:
        """Return a list for a visitor who has *items*, given with their weights or without, as training knows these.

        If none of them is known, the popular list. Takes some milliseconds in a thread. Raises FoldInUnavailable
        unless lists were opened with `fold_in=True` and the release has item factors, and StoreThrottled if too many
        wait for the thread.
        """
        self._check_loop()
        _check_n(n)
        weights = items.items() if isinstance(items, Mapping) else ((item, None) for item in items)
        basket = [(check_id(item), None if weight is None else _check_weight(weight)) for item, weight in weights]
        return self.decoded((await self.reader.fold_in(basket, n, segment=segment)).found, n)

    def popular(self, n: int = DEFAULT_N, *, segment: str = OVERALL) -> Recommendations:
        """Return the popular list of *segment*, or the one for everybody; from memory, so nothing is awaited."""
        self._check_loop()
        return self.decoded(self.reader.popular(segment), n)

    def decoded(self, encoded: EncodedList, n: int) -> Recommendations:
        """Return the first *n* items of a list that was read."""
        _check_n(n)
        items = decode(self.reader.cut(encoded, n))
        segment = encoded.segment if encoded.source == "popular" else None
        return Recommendations(
            items, encoded.source, encoded.served.id, encoded.tier, encoded.served.is_canary, segment
        )

    def prometheus_text(self) -> bytes:
        """Return what the service has on `/metrics`, of this process; serve it where only operators read."""
        from hotplate.serve.telemetry.exposition import Exposition  # noqa: PLC0415 -- loads prometheus_client, which not everybody needs

        return Exposition(self.reader.metrics, lambda: [self._reporter.state()]).text()

    def _check_loop(self) -> None:
        """Raise StoreMisused unless this is the loop that follows the live release: any other would get old lists."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is None:
            raise StoreMisused(
                "these lists are not open; use them inside of `async with hotplate.open(…) as lists:`, or call "
                "hotplate.open_sync(…) in a program without an event loop"
            )
        if running is not self._loop:
            raise StoreMisused(
                "these lists follow the live release on the event loop that opened them, and this is not that loop; "
                "use them there, or call hotplate.open_sync(…), whose lists any thread may use"
            )


def open_lists(
    *urls: str,
    budget_s: float = BUDGET_S,
    timeout_s: float = FIRST_READ_S,
    deny_list: str | Path | None = None,
    fold_in: bool = False,
) -> Lists:
    """Open the lists in the stores at *urls*; each further store answers when those before it cannot.

    *budget_s* is what one call may spend on reads. *deny_list* is the file of the items that no list shows, and of the
    users who are answered as unknown; it is read now, and again when it changes. *fold_in* keeps the item factors of
    what is live in memory. Use it as `async with hotplate.open(url) as lists:`, which waits until each store was tried
    once, *timeout_s* at most. Raises StoreMisused for what is not the URL of a store, a number of seconds or a
    deny-list, and to *fold_in* where numpy is not installed.
    """
    if not urls:
        raise StoreMisused("no store is named; give its URL, as file:///var/lib/hotplate")
    for name, seconds in (("budget_s", budget_s), ("timeout_s", timeout_s)):
        if not seconds >= 0:  # as nan is not, either
            raise StoreMisused(f"{name} is a number of seconds, not {seconds}")
    try:
        denied = DenyListFile(None if deny_list is None else Path(deny_list))
    except ServiceMisused as error:
        raise StoreMisused(str(error)) from error  # what a program catches is a StoreError
    return Lists(open_reader(urls, budget_s=budget_s, deny_list=denied, fold_in=fold_in), timeout_s)


def _check_n(n: int) -> None:
    if n < 1:
        raise StoreMisused(f"n is how many items to return, at least 1, not {n}")


def _check_weight(weight: float) -> float:
    if not 0 < weight < inf:
        raise StoreMisused(f"a weight is a number above 0, not {weight}")
    return weight
