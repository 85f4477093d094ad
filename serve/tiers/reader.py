"""Reading: from a user or an item to an encoded list, from tiers of stores within a deadline.

All lists take one way: rows are looked up in the tiers (`lookups`, which names all time limits of a remote read), and
the results become lists, or popular lists in their place (`encoded_lists`). `shaping` makes the items of an answer of a
list.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from copy import copy
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from hotplate.serve.errors import UnknownList
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import SOURCES, EncodedList, EncodedLists, unknown_list
from hotplate.serve.lists.fold_in import FoldIn
from hotplate.serve.metrics import HIT, Metrics
from hotplate.serve.releases.comparison import OwnComparisons, SharedComparisons
from hotplate.serve.releases.erasures import KnownErasures
from hotplate.serve.releases.follower import Follower
from hotplate.serve.releases.served import ServedRelease, TierRelease, load
from hotplate.serve.tasks import log_defect
from hotplate.serve.tiers.lookups import Lookups, RequestRead, RowsRead, caller_deadline, get_nowait, is_list
from hotplate.serve.tiers.observer import StoreObserver
from hotplate.serve.tiers.tier import LocalTier, Origin, RemoteTier, Tier
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.concurrency import end_tasks
from hotplate.stores.connect import connect
from hotplate.stores.encoding import EVERYBODY, OVERALL, POPULAR, USER, RowKey
from hotplate.stores.errors import ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.options import BUDGET_S
from hotplate.stores.store import Reader, ReadResult

T = TypeVar("T")

# How long a start waits for silent stores.
FIRST_READ_S = 2.0
READY_POLL_S = 0.01
# The time for opening a preview, and the budget of a request in it.
PREVIEW_S = 10.0


class _PreviewFollower(Follower):
    """Follows nothing, and shows one release of a store, whatever its state."""

    def __init__(self, reader: Reader, erasures: KnownErasures) -> None:
        """*erasures* are those that the service knows, even if the store has lost them."""
        super().__init__(reader)
        self.erasures = copy(erasures)

    async def show(self, release: ReleaseId) -> StoreError | None:
        """Load a release; return why it cannot be shown, if so."""
        try:
            catalogue = await self._reader.catalogue()
            await self.erasures.update(self._reader, catalogue)
            entry = catalogue.find(release)
        except StoreError as error:
            return error
        try:
            self.live = await load(self._reader, entry, None)
        except StoreError as error:
            return ReleaseNotFound(f"release {release} cannot be read, maybe as its draft is not sealed: {error}")
        return None

    async def refresh(self) -> None:
        """Follow no other release, if this one is gone."""


class TieredReader:
    """Reads lists from tiers, as `lookups` describes, within a time budget. One per worker, on one loop.

    As a context manager it follows the live releases, and closes the stores at the end.
    """

    def __init__(
        self,
        stores: Mapping[str, Reader | str],
        *,
        budget_s: float = BUDGET_S,
        metrics: Metrics | None = None,
        deny_list: DenyListFile | None = None,
        cache_bytes: int = 0,
        fold_in: bool = False,
        kept: TierRelease | None = None,
        warm: bool = False,
        comparisons: SharedComparisons | None = None,
        followers: Mapping[str, Follower] | None = None,
    ) -> None:
        """*stores* or their URLs are by tier name, in reading order; remote ones get equal parts of *cache_bytes*.

        *fold_in* loads item factors. *kept* provides popular lists while no tier serves a release. *warm* reads local
        releases into memory first. *comparisons* stop worse releases; without them, this judges them. *followers*, by
        tier name, are others than those of the live releases. Raises StoreMisused for an invalid URL, and for
        *fold_in* without numpy.
        """
        self.metrics = metrics or Metrics(1, list(stores))
        self.folding = FoldIn() if fold_in else None
        judge = comparisons or OwnComparisons(self.metrics)
        readers = {
            name: connect(store, StoreObserver(name, self.metrics)) if isinstance(store, str) else store
            for name, store in stores.items()
        }
        remote = sum(not store.is_local for store in readers.values())
        self.tiers = list[Tier]()
        for name, store in readers.items():
            if followers is None:
                follower = Follower(store, verdict=partial(judge.finding, name), fold_in=self.folding)
            else:
                follower = followers[name]
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
        self.lists = EncodedLists(self.tiers, kept, self.metrics)

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
        await end_tasks(*self.following)
        self.following.clear()
        await self.close()

    async def close(self) -> None:
        """Close the stores; reads that were begun end first."""
        await self.lookups.close()
        if self.folding is not None:
            self.folding.close()
        for tier in self.tiers:
            await tier.close()

    @asynccontextmanager
    async def preview(self, release: ReleaseId) -> AsyncIterator[Self]:
        """Yield a reader of the same stores in which only *release* is served, in whatever state it is.

        It has separate metrics, caches and breakers. Raises ReleaseNotFound if the release can be read in no store, and
        StoreUnavailable, also after PREVIEW_S.
        """
        followers = {tier.name: _PreviewFollower(tier.reader, tier.follower.erasures) for tier in self.tiers}
        try:
            async with asyncio.timeout(PREVIEW_S):
                problems = await asyncio.gather(*(follower.show(release) for follower in followers.values()))
        except TimeoutError:
            raise StoreUnavailable(f"the stores could not be read in {PREVIEW_S:.0f} s") from None
        if None not in problems:
            raise next(filter(None, problems))

        stores = {tier.name: tier.reader for tier in self.tiers}
        reader = type(self)(stores, budget_s=PREVIEW_S, deny_list=self.deny_list, followers=followers)
        try:
            yield reader
        finally:
            await reader.lookups.close()

    async def wait_until_attempted(self, timeout_s: float) -> None:
        """Wait *timeout_s* at most until each store was read or failed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for tier in self.tiers:
                    await tier.follower.attempted.wait()

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until a tier serves a release; raises NotReady after *timeout_s*."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.wait_until_attempted(FIRST_READ_S)
                while self.first_live is None:  # noqa: ASYNC110 -- any of several stores ends it
                    await asyncio.sleep(READY_POLL_S)
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

    # Users who are denied or erased: their lists are not shown

    @property
    def hides_users(self) -> bool:
        """Whether any user is hidden, because the deny-list names the user, or a tier has erased them."""
        return bool(self.deny_list.current.users) or any(tier.follower.erasures.erased for tier in self.tiers)

    def is_erased(self, user: str) -> bool:
        """Return whether a user is erased from any tier, as others may be older."""
        return any(tier.follower.erasures.erased.covers_user(user) for tier in self.tiers)

    def _hides(self, row: RowKey) -> bool:
        return row.kind == USER and (row.id in self.deny_list.current.users or self.is_erased(row.id))

    # One list

    async def read(self, kind: str, identifier: str, segment: str = OVERALL, name: str = "") -> EncodedList:
        """Read the list of a user or an item or, if there is none, return the popular list of *segment*.

        A denied user has none. *name* is that of a named list. This and other methods with a *name* raise UnknownList.
        """
        row = self.row_of(kind, identifier, name)
        fallback = row.popular(segment)
        encoded = self.get_nowait(row, fallback)
        if encoded is None:
            encoded = await self._read(row, fallback)
        return self.lists.named(name, encoded)

    def popular(self, segment: str = OVERALL, name: str = "", release: str = "") -> EncodedList:
        """Return the popular list of a segment, or the overall one.

        It is of the release with the id *release*, for further pages of the list, if a store has that and it has the
        list; otherwise of the first one that is served.
        """
        origins = self._with_release(release, name) if release else ()
        if origins:
            origin = origins[0]
            row = _popular_row(origin.release, segment, name)
            encoded = self.lists.of_release(origin.tier.name, origin.release, row, "ok")
        else:
            encoded = self.lists.first(self.row_of(POPULAR, segment, name))
        self.metrics.count_lookup("popular", "hit")
        return self.lists.named(name, encoded)

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

        fallback = _popular_row(origins[0].release, segment, name)
        stored_rows = [RowKey(row.kind, row.id, fallback.list) for row in dict.fromkeys(rows)]
        read = await self.lookups.read(stored_rows, release=release, tiers=[origin.tier for origin in origins])
        parts = [part for part in read.parts if part.origin is not None]
        lists = self._lists_of(parts, {fallback.list: fallback}, name)
        return [lists.get(row.id) for row in rows]

    def _with_release(self, release_id: str, name: str) -> list[Origin]:
        """Return where a release can be read, if it has the list *name*."""
        origins = list[Origin]()
        for tier in self.tiers:
            release = tier.follower.find(release_id)
            if release is not None and release.manifest.stored_name(name) is not None:
                origins.append(Origin(tier, release))
        return origins

    def get_nowait(
        self, row: RowKey, fallback: RowKey = EVERYBODY, *, missed: Origin | None = None, late: bool = False
    ) -> EncodedList | None:
        """Return the list of *row* or, if it is absent, the popular list *fallback*; None if that needs I/O.

        Local stores, cached rows, and users who are denied or erased need no I/O. *missed* is the store and the release
        in which the row is known to be absent. With *late*, stores that need I/O are skipped. Counts the list. Raises
        NotReady.
        """
        if self._hides(row):
            return self.lists.hidden(row, fallback)

        read = get_nowait(self.tiers, row, missed, late=late)
        if read is None:
            return None
        origin, body = read
        return self.lists.of_row(origin, row, body, fallback)

    async def _read(self, row: RowKey, fallback: RowKey) -> EncodedList:
        """Read the list with the key *row* from the stores.

        Rows that are requested in one iteration of the event loop are read together. *fallback* is the key of the
        popular list that is returned if no store has the list. If the caller's deadline passes meanwhile, returns what
        needs no I/O: the list in a later store, or the popular list.
        """
        result: asyncio.Future[tuple[Origin | None, ReadResult]] = asyncio.get_running_loop().create_future()

        def take(origin: Origin | None, _: RowKey, body: ReadResult) -> None:
            if not result.done():
                result.set_result((origin, body))

        self.lookups.add(row, take)
        try:
            async with asyncio.timeout_at(caller_deadline()):
                origin, body = await result
        except TimeoutError:  # the read goes on for other requests
            return self.get_nowait(row, fallback, late=True) or self.lists.unread(row, fallback)
        return self.lists.of_row(origin, row, body, fallback)

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
        fallbacks = {row.list: row.popular(segment) for row in rows}
        read = await self.lookups.read(rows, users=len(users))
        if must_read:
            self._check_read(read)
        lists = self._lists_of(read.parts, fallbacks, name)
        return [lists[user] for user in users]

    def _lists_of(
        self, parts: Sequence[RowsRead], fallbacks: Mapping[str, RowKey], name: str
    ) -> dict[str, EncodedList]:
        """Return the lists of a request's rows, all of users or all of items, by their id.

        *fallbacks* are the keys of the popular lists, by the name of the list. Hidden users get them, too, whatever was
        read.
        """
        hides_users = self.hides_users
        lists = dict[str, EncodedList]()
        for part in parts:
            origin = part.origin
            hits = 0
            source = SOURCES[part.rows[0].kind]
            for row, result in zip(part.rows, part.results, strict=True):
                fallback = fallbacks[row.list]
                if hides_users and self._hides(row):
                    encoded = self.lists.hidden(row, fallback, origin)
                elif origin is not None and is_list(result):
                    encoded = EncodedList(origin.tier.name, origin.release, source, result, fallback=fallback)
                    hits += 1
                else:
                    encoded = self.lists.of_row(origin, row, result, fallback)  # counted there
                lists[row.id] = self.lists.named(name, encoded) if name else encoded
            if origin is not None:  # counted at once, as there may be thousands
                origin.tier.count_lookup(origin.release, source, HIT, part.rows[0].kind, hits)
        return lists

    def _row_in_batch(self, user: str, name: str) -> RowKey:
        """Return the key in the release that is served to the user; if that lacks the list, as in the live one."""
        try:
            return self.row_of(USER, user, name)
        except UnknownList:
            live = self.row_of(POPULAR, OVERALL, name)
            return RowKey(USER, user, live.list)

    def _check_read(self, read: RequestRead) -> None:
        """Raise StoreUnavailable if lists of a batch are missing because no store can be read, or NotReady."""
        if all(part.origin is not None for part in read.parts):
            return
        self.live_id()  # raises NotReady
        if read.failure is not None or self.first_live is None:
            raise StoreUnavailable("no store can be read for now") from read.failure


def _popular_row(release: ServedRelease, segment: str, name: str) -> RowKey:
    """Return the key of a popular list, with the name under which the release stores it; its default list has none."""
    return RowKey(POPULAR, segment, release.manifest.stored_name(name) or "")
