"""Reading: from users and items to encoded lists, from tiers of stores within a deadline.

All lists take one way: rows are looked up in the tiers (`lookups`, which names all time limits of a remote read), and
`TieredReader.lists_of` makes their lists, or puts popular lists in their place. `shaping` makes the items of an answer
of a list.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import chain
from operator import attrgetter
from types import TracebackType
from typing import Self

from hotplate.serve.errors import NotReady, UnknownList
from hotplate.serve.generation import POLICIES
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import OUTCOMES, SOURCES, EncodedList, unknown_list
from hotplate.serve.lists.fold_in import FoldIn
from hotplate.serve.lists.options import Status
from hotplate.serve.lists.paging import FIRST, Cursor
from hotplate.serve.metrics import HIT, Metrics
from hotplate.serve.releases.comparison import OwnComparisons, SharedComparisons
from hotplate.serve.releases.follower import Follower, PreviewFollower
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.tasks import log_defect
from hotplate.serve.tiers.lookups import Lookups, RowsRead, get_nowait, is_list
from hotplate.serve.tiers.tier import Origin, open_tiers
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.concurrency import end_tasks
from hotplate.stores.encoding import EVERYBODY, NO_OFFSET, OVERALL, POPULAR, USER, RowKey, is_empty
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.options import BUDGET_S
from hotplate.stores.store import Reader

# How long a start waits for silent stores.
FIRST_READ_S = 2.0
READY_POLL_S = 0.01
# The time for opening a preview, and the budget of a request in it.
PREVIEW_S = 10.0

_text_of = attrgetter("text")


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
        kept: Mapping[str, ServedRelease] | None = None,
        warm: bool = False,
        comparisons: SharedComparisons | None = None,
        followers: Mapping[str, Follower] | None = None,
    ) -> None:
        """*stores* or their URLs are by tier name, in reading order; remote ones get equal parts of *cache_bytes*.

        *fold_in* loads item factors. *kept*, a release by its tier, provides popular lists while no tier serves one.
        *warm* reads local releases into memory first. *comparisons* stop worse releases; without them, this judges
        them. *followers*, by tier name, are others than those of the live releases. Raises StoreMisused for an invalid
        URL, and for *fold_in* without numpy.
        """
        self.metrics = metrics or Metrics(1, list(stores))
        self.folding = FoldIn() if fold_in else None
        judge = comparisons or OwnComparisons(self.metrics)

        def follower_of(name: str, store: Reader) -> Follower:
            if followers is not None:
                return followers[name]
            return Follower(store, verdict=partial(judge.finding, name), fold_in=self.folding)

        self.tiers = open_tiers(stores, self.metrics, follower_of, cache_bytes)
        self.deny_list = deny_list or DenyListFile()
        self.following = list[asyncio.Task[None]]()
        """Tasks that follow the live releases, while this is entered."""
        self.kept = next((Origin(tier, kept[tier.name]) for tier in self.tiers if kept and tier.name in kept), None)
        self.warm = warm
        self.lookups = Lookups(self.tiers, budget_s)
        self._generation: int | None = None
        """Of the policies, of which `_hides_users` is."""
        self._hides_users = False

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

        It has separate metrics, caches and breakers. Stores that do not answer in PREVIEW_S are left out. Raises
        ReleaseNotFound if the release can be read in no store, and StoreUnavailable.
        """

        async def show(follower: PreviewFollower) -> StoreError | None:
            try:
                async with asyncio.timeout(PREVIEW_S):
                    return await follower.show(release)
            except TimeoutError:
                return StoreUnavailable(f"the stores could not be read in {PREVIEW_S:.0f} s")

        followers = {tier.name: PreviewFollower(tier.reader, tier.follower.erasures) for tier in self.tiers}
        problems = await asyncio.gather(*map(show, followers.values()))
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
            raise self._not_ready()

    def _not_ready(self) -> NotReady:
        errors = "; ".join(tier.error for tier in self.tiers if tier.error)
        return NotReady(errors or "the live release is being loaded; try again in a second")

    # Releases that are served

    @property
    def first_live(self) -> Origin | None:
        """The live release of the first tier with one."""
        return next(self._origins(EVERYBODY), None)

    def live_id(self) -> ReleaseId:
        """Return the id of the first release that is served, or the kept one; raises NotReady."""
        return self._first(EVERYBODY).release.id

    def _origins(self, row: RowKey) -> Iterator[Origin]:
        """Yield where a row is to be read, in reading order."""
        for tier in self.tiers:
            release = tier.follower.release_for(row)
            if release is not None:
                yield Origin(tier, release)

    def _first(self, row: RowKey) -> Origin:
        """Return where a row is to be read first; without any release, the kept one. Raises NotReady."""
        origin = next(self._origins(row), self.kept)
        if origin is None:
            raise self._not_ready()
        return origin

    def _all_releases(self) -> Iterator[Origin]:
        for tier in self.tiers:
            for release in tier.follower.releases:
                yield Origin(tier, release)

    def _with_release(self, release_id: str, name: str) -> list[Origin]:
        """Return where a release can be read, if it has the list *name*."""
        origins = list[Origin]()
        for tier in self.tiers:
            release = tier.follower.find(release_id)
            if release is not None and release.manifest.stored_name(name) is not None:
                origins.append(Origin(tier, release))
        return origins

    def row_of(self, kind: str, identifier: str, name: str = "") -> RowKey:
        """Return the key of a row in the list *name*, by default the default one; raises UnknownList and NotReady.

        The release that is served to a user decides which lists there are.
        """
        row = RowKey(kind, identifier)
        if not name:
            return row
        release = self._first(row).release
        stored = release.manifest.stored_name(name)
        if stored is None:
            raise unknown_list(name, release)
        return RowKey(kind, identifier, stored)

    # Users who are denied or erased: their lists are not shown

    @property
    def hides_users(self) -> bool:
        """Whether any user is hidden, because the deny-list names the user, or a tier has erased them."""
        if self._generation is not POLICIES.number:
            self._generation = POLICIES.number
            erased = any(tier.follower.erasures.erased for tier in self.tiers)
            self._hides_users = erased or bool(self.deny_list.current.users)
        return self._hides_users

    def is_erased(self, user: str) -> bool:
        """Return whether a user is erased from any tier, as others may be older."""
        return any(tier.follower.erasures.erased.covers_user(user) for tier in self.tiers)

    def hides(self, row: RowKey) -> bool:
        """Return whether a row is of a user who is denied or erased."""
        return row.kind == USER and (row.id in self.deny_list.current.users or self.is_erased(row.id))

    # Reading rows

    async def read(self, kind: str, identifier: str, segment: str = OVERALL, name: str = "") -> EncodedList:
        """Read the list of a user or an item or, if there is none, return the popular list of *segment*.

        A denied user has none. *name* is that of a named list. This and other methods with a *name* raise UnknownList.
        """
        row = self.row_of(kind, identifier, name)
        read = self.row_nowait(row)
        if read is None:
            read = await self.lookups.read_row(row)
        return self.lists_of(read, segment, name)[identifier]

    def row_nowait(self, row: RowKey, missed: Origin | None = None) -> RowsRead | None:
        """Return the result of reading a row; None if that needs I/O.

        Local stores, cached rows, and users who are denied or erased need no I/O. *missed* is the store and the release
        in which the row is known to be absent.
        """
        if self.hides_users and self.hides(row):
            return RowsRead(None, [row], [None])
        return get_nowait(self.tiers, row, missed)

    async def personal_many(
        self, users: Sequence[str], segment: str = OVERALL, name: str = "", *, must_read: bool = False
    ) -> list[EncodedList]:
        """Read the lists of many users, in the order of *users*, from the first store that can be read.

        They are of the release that is served to each user. *name* is that of a named list. If no store can be read,
        users whose lists are not cached get the popular list of *segment*; *must_read* raises StoreUnavailable instead.
        Users who are denied or erased get the popular list, too.
        """
        rows = [self._row_in_batch(user, name) for user in dict.fromkeys(users)]
        read = await self.lookups.read(rows, users=len(users))
        if must_read and any(part.origin is None for part in read.parts):
            self.live_id()  # raises NotReady
            if read.failure is not None or self.first_live is None:
                raise StoreUnavailable("no store can be read for now") from read.failure

        lists = dict[str, EncodedList]()
        for part in read.parts:
            lists |= self.lists_of(part, segment, name)
        return [lists[user] for user in users]

    def _row_in_batch(self, user: str, name: str) -> RowKey:
        """Return the key in the release that is served to the user; if that lacks the list, as in the live one."""
        try:
            return self.row_of(USER, user, name)
        except UnknownList:
            live = self.row_of(POPULAR, OVERALL, name)
            return RowKey(USER, user, live.list)

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

        stored = origins[0].release.manifest.stored_name(name) or ""
        stored_rows = [RowKey(row.kind, row.id, stored) for row in dict.fromkeys(rows)]
        read = await self.lookups.read(stored_rows, release=release, tiers=[origin.tier for origin in origins])
        lists = dict[str, EncodedList]()
        for part in read.parts:
            if part.origin is not None:
                lists |= self.lists_of(part, segment, name)
        return [lists.get(row.id) for row in rows]

    # Lists of rows, and popular lists in their place

    def popular(self, segment: str = OVERALL, name: str = "", after: Cursor = FIRST) -> EncodedList:
        """Return the popular list of a segment, or the overall one, from the first release that is served.

        With *after*, it is of the release of that cursor, if a store has that, and the cursor is of this list.
        """
        for origin in self._with_release(after.release, name):
            row = RowKey(POPULAR, segment, origin.release.manifest.stored_name(name) or "")
            encoded = self._popular(origin, row, "ok")
            if after.continues(encoded):
                break
        else:
            encoded = self._popular(self._first(EVERYBODY), self.row_of(POPULAR, segment, name), "ok")
        self.metrics.count_lookup("popular", "hit")
        return self._named(name, encoded)

    def lists_of(
        self, read: RowsRead, segment: str = OVERALL, name: str = "", source: str = ""
    ) -> dict[str, EncodedList]:
        """Return the lists of rows, all of users or all of items, by their id, and count them. Raises NotReady.

        A row gets the popular list of *segment* if it is absent or its list empty, if it could not be read, or if it is
        of a user who is denied or erased: for them, as for an unknown user. *name* is that of a named list. *source* is
        by default that of the kind of rows.
        """
        origin = read.origin
        kind = read.rows[0].kind
        source = source or SOURCES[kind]
        hides_users = self.hides_users
        fallback = EVERYBODY
        lists: dict[str, EncodedList] = {}  # for each row or batch, calls of `dict[…]` take 4 µs more
        missing: dict[tuple[RowKey, Status, bool], list[RowKey]] = {}
        for row, result in zip(read.rows, read.results):  # noqa: B905 -- a tier checks it; here it costs a row 0.25 µs
            if row.list != fallback.list or segment != fallback.id:
                fallback = row.popular(segment)
            is_hidden = hides_users and self.hides(row)
            if is_hidden or origin is None or not is_list(result):
                is_unread = origin is None or isinstance(result, StoreError)
                status: Status = "error" if is_unread and not is_hidden else "unknown"
                missing.setdefault((fallback, status, is_hidden), []).append(row)
            else:
                lists[row.id] = EncodedList(origin.tier.name, origin.release, source, result, fallback=fallback)

        if origin is not None and lists:
            origin.tier.count_lookup(origin.release, source, HIT, kind, len(lists))
        for (popular, status, is_hidden), rows in missing.items():
            encoded = self._missed(origin or self._first(rows[0]), popular, status, rows, is_hidden=is_hidden)
            for row in rows:
                lists[row.id] = encoded
        if not name:
            return lists
        return {identifier: self._named(name, encoded) for identifier, encoded in lists.items()}

    def _missed(
        self, origin: Origin, fallback: RowKey, status: Status, rows: Sequence[RowKey], *, is_hidden: bool
    ) -> EncodedList:
        """Return the popular list in the place of those of *rows*, and count the misses or errors.

        Lists of hidden users are not held against the release.
        """
        if is_hidden:
            self.metrics.count_lookup("popular", "miss", len(rows))
        else:
            origin.tier.count_lookup(origin.release, "popular", OUTCOMES[status], rows[0].kind, len(rows))
            if status == "unknown":
                origin.release.tally.missed.extend(map(_text_of, rows))  # examined by its probation
        return self._popular(origin, fallback, status)

    def _popular(self, origin: Origin, fallback: RowKey, status: Status) -> EncodedList:
        """Return a popular list of the release at *origin*.

        *fallback* is its key, of a segment (a group of users) and a list name. If the release lacks it, the result is
        the popular list for everybody; without that, one of any other served release, with the status `error`; an empty
        list if all lack it.
        """
        keys = (fallback,) if fallback.id == OVERALL else (fallback, fallback.popular())
        for other in chain((origin,), self._all_releases()):
            for key in keys:
                body = other.release.popular.get(key.text)
                if body is not None:
                    status = status if other.release is origin.release else "error"
                    return EncodedList(other.tier.name, other.release, "popular", body, status, key)
        return EncodedList(origin.tier.name, origin.release, "popular", NO_OFFSET, status, keys[-1])

    def _named(self, name: str, encoded: EncodedList) -> EncodedList:
        """Return a list that was requested by *name*, if any, and count it by that name; it may be empty.

        If the release that it was read from has another default list since, this is the popular list of *name*
        instead. Raises UnknownList if no release has the list.
        """
        if not name:
            return encoded
        if encoded.name != name or is_empty(encoded.body):
            encoded = self._popular_named(name, encoded)
        encoded.release.tally.lookups[name][OUTCOMES[encoded.status]] += 1
        return encoded

    def _popular_named(self, name: str, encoded: EncodedList) -> EncodedList:
        for origin in self._all_releases():
            stored = origin.release.manifest.stored_name(name)
            if stored is not None:
                return self._popular(origin, RowKey(POPULAR, encoded.segment, stored), "error")
        raise unknown_list(name, encoded.release)
