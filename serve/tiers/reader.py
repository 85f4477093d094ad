"""Reading: from a user or an item to an encoded list, from tiers of stores within a deadline.

All lists take one way: the rows that may be read (`hidden_users`) are looked up in the tiers (`lookups`, which names
all time limits of a remote read), and the results become lists, or popular lists in their place (`encoded_lists`).
`shaping` makes the items of an answer of a list.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, TypedDict, Unpack, cast

from hotplate.serve.errors import UnknownList
from hotplate.serve.lists.baskets import Basket, BasketItem, compute_list
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import EncodedList, EncodedLists, unknown_list
from hotplate.serve.lists.fold_in import FoldIn
from hotplate.serve.lists.hidden_users import HiddenUsers
from hotplate.serve.lists.options import FILTERED, RECENCY, Selection
from hotplate.serve.metrics import Metrics
from hotplate.serve.releases.comparison import OwnComparisons, SharedComparisons
from hotplate.serve.releases.follower import Follower
from hotplate.serve.releases.served import ServedRelease, TierRelease
from hotplate.serve.tasks import log_defect
from hotplate.serve.tiers.lookups import BatchWalk, Lookups, caller_deadline
from hotplate.serve.tiers.observer import StoreObserver
from hotplate.serve.tiers.tier import LocalTier, Origin, RemoteTier, Tier, loop_time, tiers_of
from hotplate.stores.catalogue import Catalogue, ReleaseId, ReleaseRef, State
from hotplate.stores.connect import connect
from hotplate.stores.encoding import EVERYBODY, ITEM, OVERALL, POPULAR, USER, RowKey
from hotplate.stores.errors import ReleaseNotFound, StoreUnavailable
from hotplate.stores.options import BUDGET_S
from hotplate.stores.store import Reader

# How long a start waits for silent stores.
FIRST_READ_S = 2.0
# The budget of a request in a preview.
PREVIEW_S = 10.0


class FoldedIn(NamedTuple):
    """A list for a basket, and the numbers of known and unknown items in the basket."""

    encoded: EncodedList
    known: int
    unknown: int


@dataclass(frozen=True, slots=True, eq=False)
class _FutureWaiter:
    lists: EncodedLists
    fallback: RowKey
    future: asyncio.Future[EncodedList]

    def take(self, origin: Origin | None, row: RowKey, body: bytes | None) -> None:
        encoded = self.lists.of_row(origin, row, body, self.fallback)
        if not self.future.done():
            self.future.set_result(encoded)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _PreviewedStore:
    """An open store in whose catalogue one release is live, whatever its state."""

    def __init__(self, reader: Reader, catalogue: Catalogue, release: ReleaseId) -> None:
        self._reader = reader
        entry = catalogue.get(release)
        releases = () if entry is None else (replace(entry, state=State.LIVE),)
        self._catalogue = replace(catalogue, releases=releases, canary=None, experiment=None)

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)

    async def catalogue(self) -> Catalogue:
        return self._catalogue

    def keep_open(self, releases: Sequence[ReleaseRef]) -> None:
        """Leave those open that the service serves."""

    async def close(self) -> None:
        """Leave the store open."""


class ReaderOptions(TypedDict, total=False):
    """Options of `TieredReader`, which describes them."""

    budget_s: float
    deny_list: DenyListFile | None
    cache_bytes: int
    fold_in: bool
    kept: TierRelease | None
    warm: bool
    comparisons: SharedComparisons | None


class TieredReader:
    """Reads lists from tiers, as `lookups` describes, within a time budget. One per worker, on one loop.

    As a context manager it follows the live releases, and closes the stores at the end.
    """

    def __init__(
        self,
        stores: Mapping[str, Reader],
        *,
        budget_s: float = BUDGET_S,
        metrics: Metrics | None = None,
        deny_list: DenyListFile | None = None,
        cache_bytes: int = 0,
        fold_in: bool = False,
        kept: TierRelease | None = None,
        warm: bool = False,
        comparisons: SharedComparisons | None = None,
    ) -> None:
        """*stores* are by tier name, in reading order; remote ones get equal parts of *cache_bytes*.

        *fold_in* loads item factors. *kept* provides popular lists while no tier serves a release. *warm* reads local
        releases into memory first. *comparisons* stop worse releases; without them, this judges them. Raises
        StoreMisused for *fold_in* without numpy.
        """
        self.metrics = metrics or Metrics(1, list(stores))
        self._fold_in = FoldIn() if fold_in else None
        judge = comparisons or OwnComparisons(self.metrics)
        remote = sum(not store.is_local for store in stores.values())
        self.tiers = list[Tier]()
        for name, store in stores.items():
            follower = Follower(store, verdict=partial(judge.finding, name), fold_in=self._fold_in)
            if store.is_local:
                self.tiers.append(LocalTier(name, store, self.metrics, follower))
            else:
                self.tiers.append(RemoteTier(name, store, self.metrics, follower, cache_bytes // remote))
        self.deny_list = deny_list or DenyListFile()
        self.following = list[asyncio.Task[None]]()
        """Tasks that follow the live releases, while this is entered."""
        self.kept = kept
        self.warm = warm
        self.lookups = Lookups(self.tiers, budget_s)
        self.lists = EncodedLists(self.tiers, kept)
        self.hidden_users = HiddenUsers(self.tiers, self.deny_list, self.lists, self.metrics)

    @classmethod
    def from_urls(
        cls, urls: Sequence[str], *, metrics: Metrics | None = None, **options: Unpack[ReaderOptions]
    ) -> Self:
        """Return a reader of the stores at *urls*, in reading order, which is not connected yet.

        Each store gets a name, and counts its calls in *metrics*. *options* are those of the constructor. Raises
        StoreMisused, for an invalid URL, too.
        """
        tiers = tiers_of(urls)
        if metrics is None:
            metrics = Metrics(1, [*tiers])
        stores = {name: connect(url, StoreObserver(name, metrics)) for name, url in tiers.items()}
        return cls(stores, metrics=metrics, **options)

    async def __aenter__(self) -> Self:
        if self.following:
            raise RuntimeError("these stores are already open; close them before they are entered again")
        for tier in self.tiers:
            task = asyncio.create_task(tier.follower.run(warm=self.warm))
            task.add_done_callback(partial(log_defect, "a live release is no longer followed"))
            self.following.append(task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self.following:
            task.cancel()
        await asyncio.gather(*self.following, return_exceptions=True)
        self.following.clear()
        await self.close()

    async def close(self) -> None:
        """Close the stores; reads that were begun end first."""
        await self.lookups.close()
        if self._fold_in is not None:
            self._fold_in.close()
        for tier in self.tiers:
            await tier.close()

    @asynccontextmanager
    async def preview(self, release: ReleaseId) -> AsyncIterator[Self]:
        """Yield a reader of the same stores in which only *release* is served, in whatever state it is.

        It has separate metrics, caches and breakers. Raises ReleaseNotFound if the release can be read in no store, and
        StoreUnavailable.
        """
        catalogues = await asyncio.gather(*(tier.reader.catalogue() for tier in self.tiers))
        if not any(catalogue.get(release) for catalogue in catalogues):
            catalogues[0].find(release)  # raises ReleaseNotFound
        stores = {
            tier.name: _PreviewedStore(tier.reader, catalogue, release)
            for tier, catalogue in zip(self.tiers, catalogues, strict=True)
        }
        reader = type(self)(cast("Mapping[str, Reader]", stores), budget_s=PREVIEW_S, deny_list=self.deny_list)
        try:
            await asyncio.gather(*(tier.follower.refresh() for tier in reader.tiers))
            if reader.first_live is None:
                reason = reader.lists.not_ready()
                raise ReleaseNotFound(f"release {release} cannot be read, maybe as its draft is not sealed: {reason}")
            yield reader
        finally:
            await reader.close()

    async def wait_until_attempted(self, timeout_s: float) -> None:
        """Wait *timeout_s* at most until each store was read or failed."""
        await _wait([tier.follower.attempted for tier in self.tiers], timeout_s, asyncio.ALL_COMPLETED)

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until a tier serves a release; raises NotReady after *timeout_s*."""
        deadline = loop_time() + timeout_s
        await self.wait_until_attempted(min(FIRST_READ_S, timeout_s))
        ready = [tier.follower.ready for tier in self.tiers]
        await _wait(ready, max(0.0, deadline - loop_time()), asyncio.FIRST_COMPLETED)
        if self.first_live is None:
            raise self.lists.not_ready()

    @property
    def first_live(self) -> TierRelease | None:
        """The live release of the first tier with one."""
        for tier in self.tiers:
            release = tier.follower.live
            if release is not None:
                return TierRelease(tier.name, release)
        return None

    def live_id(self) -> ReleaseId:
        """Return the id of the first release that is served, or the kept one; raises NotReady."""
        return self.lists.first(EVERYBODY).release.id

    def row_of(self, kind: str, identifier: str, name: str = "") -> RowKey:
        """Return the key of a row in the list *name*, by default the default one; raises UnknownList and NotReady.

        The release that is served to a user decides which lists there are.
        """
        row = RowKey(kind, identifier)
        if not name:
            return row
        release = self.lists.first(EVERYBODY, row).release
        stored = release.manifest.stored_name(name)
        if stored is None:
            raise unknown_list(name, release)
        return RowKey(kind, identifier, stored)

    # One list

    async def personal(self, user: str, segment: str = OVERALL, name: str = "") -> EncodedList:
        """Read a user's list, or the popular list of *segment* for an unknown or denied user.

        *name* is that of a named list. This and other methods with a *name* raise UnknownList.
        """
        row = self.row_of(USER, user, name)
        return self.named(name, await self._read(row, row.popular(segment)))

    async def similar(self, item: str, name: str = "") -> EncodedList:
        """Read the items similar to *item*; without any, the popular list."""
        row = self.row_of(ITEM, item, name)
        return self.named(name, await self._read(row, row.popular()))

    def popular(self, segment: str = OVERALL, name: str = "") -> EncodedList:
        """Return the popular list of a segment, or the overall one."""
        encoded = self.lists.first(self.row_of(POPULAR, segment, name))
        self.metrics.count_lookup("popular", "hit")
        return self.named(name, encoded)

    async def in_release(
        self, release: str, rows: Sequence[RowKey], segment: str = OVERALL, name: str = ""
    ) -> list[EncodedList | None]:
        """Read lists, in the order of *rows*, in the release with the id *release*, for further pages of lists.

        It is served, or was live before; a tier (a store that the service reads) may lack it.
        *rows* are all of users or all of items; *name* is that of their lists, and those of *rows* are ignored. A list
        that cannot be read in this release is None; an absent one is the popular list of *segment*. So is the list of a
        hidden user, who is denied or erased.
        """
        origins = self._with_release(release, name)
        if not origins:
            return [None] * len(rows)

        first = origins[0]
        fallback = _popular_row(first.release, segment, name)
        stored_rows = [RowKey(row.kind, row.id, fallback.list) for row in dict.fromkeys(rows)]
        shown, hidden = self.hidden_users.split(stored_rows)

        lists = dict[str, EncodedList]()  # by the id of the user or the item

        def deliver(row: RowKey, origin: Origin | None, body: bytes | None) -> None:
            if origin is not None:
                lists[row.id] = self.lists.of_row(origin, row, body, fallback)

        await self.lookups.read_release(release, shown, [origin.tier for origin in origins], deliver)
        for row in hidden:
            lists[row.id] = self.hidden_users.answer(row, fallback, first)

        if name:
            lists = {identifier: self.named(name, encoded) for identifier, encoded in lists.items()}
        return [lists.get(row.id) for row in rows]

    def popular_in_release(self, release: str, segment: str = OVERALL, name: str = "") -> EncodedList | None:
        """Return the popular list of *segment* in the release with the id *release*, for further pages of the list.

        It is served, or was live before. *name* is that of a named list. Returns None if no
        store has the release, or if the release lacks the list.
        """
        origins = self._with_release(release, name)
        if not origins:
            return None

        origin = origins[0]
        row = _popular_row(origin.release, segment, name)
        self.metrics.count_lookup("popular", "hit")
        encoded = self.lists.of_release(origin.tier.name, origin.release, row, "ok")
        return self.named(name, encoded)

    def _with_release(self, release_id: str, name: str) -> list[Origin]:
        """Return where a release can be read, if it has the list *name*."""
        origins = list[Origin]()
        for tier in self.tiers:
            release = tier.follower.find(release_id)
            if release is not None and release.manifest.stored_name(name) is not None:
                origins.append(Origin(tier, release))
        return origins

    def named(self, name: str, encoded: EncodedList) -> EncodedList:
        """Return a list that was requested by *name*, if any: see `EncodedLists.named`."""
        return self.lists.named(name, encoded) if name else encoded

    def get_nowait(
        self, row: RowKey, fallback: RowKey = EVERYBODY, *, missed: Origin | None = None, late: bool = False
    ) -> EncodedList | None:
        """Return the list of *row* or, if it is absent, the popular list *fallback*; None if that needs I/O.

        Local stores, cached rows, and users who are denied or erased need no I/O. *missed* is the store and the release
        in which the row is known to be absent. With *late*, stores that need I/O are skipped. Counts the list. Raises
        NotReady.
        """
        if self.hidden_users.includes(row):
            return self.hidden_users.answer(row, fallback)

        read = self.lookups.get_nowait(row, missed, late=late)
        return None if read is None else self.lists.of_row(read.origin, row, read.body, fallback)

    async def _read(self, row: RowKey, fallback: RowKey) -> EncodedList:
        """Return the list with the key *row*, from memory or read from the stores.

        Rows that are requested in one iteration of the event loop are read together. *fallback* is the key of the
        popular list that is returned if no store has the list. If the caller's deadline passes meanwhile, returns what
        needs no I/O: the list in a later store, or the popular list.
        """
        encoded = self.get_nowait(row, fallback)
        if encoded is not None:
            return encoded

        future: asyncio.Future[EncodedList] = asyncio.get_running_loop().create_future()
        waiter = _FutureWaiter(self.lists, fallback, future)
        self.lookups.add(row, waiter)

        deadline = caller_deadline()
        if deadline is None:
            return await future
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            self.lookups.leave(row, waiter)  # the read goes on for other requests

        encoded = self.get_nowait(row, fallback, late=True)
        if encoded is None:
            encoded = self.lists.unread(row, fallback)
        return encoded

    # Lists of many users

    async def personal_many(
        self, users: Sequence[str], segment: str = OVERALL, name: str = "", *, must_read: bool = False
    ) -> list[EncodedList]:
        """Read the lists of many users, in the order of *users*, from the first store that can be read.

        They are of the release that is served to each user. *name* is that of a named list. If no
        store can be read, users whose lists are not cached get the popular list of *segment*; *must_read* raises
        StoreUnavailable instead. Users who are denied or erased get the popular list, too.
        """
        rows = [self._row_in_batch(user, name) for user in dict.fromkeys(users)]

        # Keys of the popular lists, by the name of the list in keys: releases may store it under other names.
        stored_names = {row.list for row in rows}
        fallbacks = {stored: RowKey(POPULAR, segment, stored) for stored in stored_names}
        shown, hidden = self.hidden_users.split(rows)

        batch = await self.lookups.read_batch(shown, users=len(users))
        if must_read:
            self._check_read(batch)
        lists = self.lists.of_batch(batch, fallbacks)
        for row in hidden:
            lists[row.id] = self.hidden_users.answer(row, fallbacks[row.list], batch.origin_for(row))

        if name:
            lists = {user: self.named(name, encoded) for user, encoded in lists.items()}
        return [lists[user] for user in users]

    def _row_in_batch(self, user: str, name: str) -> RowKey:
        """Return the key in the release that is served to the user; if that lacks the list, as in the live one."""
        try:
            return self.row_of(USER, user, name)
        except UnknownList:
            live = self.row_of(POPULAR, OVERALL, name)
            return RowKey(USER, user, live.list)

    def _check_read(self, batch: BatchWalk) -> None:
        """Raise StoreUnavailable if lists of a batch are missing because no store can be read, or NotReady."""
        if not batch.unread:
            return
        self.live_id()  # raises NotReady
        if batch.failure is not None or self.first_live is None:
            raise StoreUnavailable("no store can be read for now") from batch.failure

    # Lists for baskets

    async def fold_in(
        self,
        items: Sequence[BasketItem],
        selection: Selection,
        *,
        recency: float = RECENCY,
    ) -> FoldedIn:
        """Compute a list for a visitor with a basket of *items*, pairs of an id and a weight, newest last.

        An item's weight (None for the default one) is multiplied by *recency* for each newer item, and the weights of a
        repeated item are added up. The list lacks the items of the basket, and denied and excluded ones. It is computed
        from item factors, or without them, as for a named list, from the lists of similar items. The caller applies the
        other options of *selection*, for which the list has as many items as they examine. If nothing is left, or no
        store could be read, it is the popular list of the segment. Raises NotReady, and FoldInFull if too many visitors
        wait.
        """
        if not items:
            return FoldedIn(self.popular(selection.segment, selection.list), 0, 0)

        row = self.row_of(ITEM, "", selection.list)  # for the name under which the release stores the list
        fallback = row.popular(selection.segment)
        examined = selection.examined
        if any(release.filters.has_expiries for tier in self.tiers for release in tier.follower.releases):
            examined = max(examined, FILTERED)
        basket = Basket(
            items=items,
            recency=recency,
            list=row.list,
            n=examined,
            denied=self.deny_list.current.items,
            excluded=selection.excluded,
        )
        computed = await compute_list(basket, self.tiers, self.lookups, self._fold_in)
        encoded = self.lists.of_row(computed.origin, row, computed.result, fallback, "fold-in")
        return FoldedIn(self.named(selection.list, encoded), computed.known, computed.unknown)


def _popular_row(release: ServedRelease, segment: str, name: str) -> RowKey:
    """Return the key of a popular list, with the name under which the release stores it; its default list has none."""
    return RowKey(POPULAR, segment, release.manifest.stored_name(name) or "")


async def _wait(events: Sequence[asyncio.Event], timeout_s: float, return_when: str) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=return_when)
    finally:
        for task in waiting:
            task.cancel()
