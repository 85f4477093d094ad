"""Lists as bytes, from tiers of stores within a deadline: what the service answers from."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from hotplate.serve.deny_list import DenyListFile
from hotplate.serve.fold_in import FoldIn
from hotplate.serve.lookups import Deadline, Lookups, Origin
from hotplate.serve.metrics import CACHE_SHARED, CANARY, ERROR, HIT, LIVE, LOOKUP_OUTCOMES, MISS, Metrics, ReleaseRole
from hotplate.serve.releases.release import ServedRelease
from hotplate.serve.settings import BUDGET_S
from hotplate.serve.tiers import ReadResult, StoreObserver, Tier, loop_time, tier_names
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.encoding import SEPARATOR, Item, cut, cut_without, encode, ids_of, is_empty
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.keys import ITEM, OVERALL, USER
from hotplate.stores.store import LocalReader, Reader, Slot

if TYPE_CHECKING:
    from hotplate.serve.item_factors import ItemFactors

log = logging.getLogger(__name__)

# What each user of a batch adds to its budget: who requests thousands would rather wait than get popular lists.
BUDGET_S_PER_USER = 0.0005
# How long a start waits for stores that do not answer, although others do.
FIRST_READ_S = 2.0
# How many items a list is cut to.
DEFAULT_N = 10
# Stands for the key of a list that no store has, as it was computed.
NO_KEY = ""

# What came of looking a list up: it was there, there is none, or it could not be read.
Status = Literal["ok", "unknown", "error"]


# Until when the caller of the current request has its lists read, by `loop_time`. Few callers say it, and those who do
# not shall pay nothing for it, as they would for an argument of every call down to here.
_read_by = ContextVar("_read_by", default=inf)


@contextmanager
def read_within(timeout_s: float) -> Iterator[None]:
    """Have reads of this block end in *timeout_s*, where their budget is not less."""
    token = _read_by.set(loop_time() + timeout_s)
    try:
        yield
    finally:
        _read_by.reset(token)


class NotReady(StoreError):
    """No tier has served a release yet; the text says what is wrong."""


class FoldInUnavailable(StoreError):
    """Visitors cannot be folded in: that is off, or the live release has no item factors; the text says which."""


class EncodedList(NamedTuple):
    """A list as bytes and where it came from: the tier, its release, and its source, as answers name it."""

    tier: str
    served: ServedRelease
    source: str
    body: bytes
    """Opened, as `TieredReader.cut` takes it."""

    status: Status = "ok"
    segment: str = OVERALL
    """The segment that a popular list is of, OVERALL where the requested one has none; else that of the request."""


class FoldedIn(NamedTuple):
    """A list for a basket, and how many different items of that the release knows, and does not know."""

    found: EncodedList
    known: int
    unknown: int


# Takes the list that was requested, or what there is in its place.
Deliver = Callable[[EncodedList], None]


# Who waits for a list: what it is to be called, whose popular one is in its place, and where it goes. As there is one
# for each lookup, it is a plain tuple.
_ListWaiter = tuple[str, str, Deliver]


class TieredReader:
    """Reads lists from tiers, in their order, inside a budget of time; lives as long as its worker, on one loop.

    The first tier to return a list in its share of the budget wins. A tier that fails is passed over; after one that
    has no such list, only tiers with another release are read. As a context manager it follows the live release of
    each tier, and closes the stores at the end.
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
        kept: tuple[str, ServedRelease] | None = None,
    ) -> None:
        """Take the stores by the names of their tiers, the counters that all workers share, and what is denied.

        The stores that are not in this process have a cache of *cache_bytes*, in equal parts. To *fold_in* visitors,
        item factors are loaded with each release; raises StoreMisused where numpy is not installed. *kept* is a
        tier and a release whose popular lists answer while no tier serves a release.
        """
        self.metrics = metrics or Metrics(1, list(stores))
        self.deny_list = deny_list or DenyListFile()
        remote = sum(not isinstance(store, LocalReader) for store in stores.values())
        part = cache_bytes // max(1, remote)
        self._fold_in = FoldIn() if fold_in else None
        self.tiers = [
            Tier(name, store, self.metrics, cache_bytes=part, fold_in=self._fold_in) for name, store in stores.items()
        ]
        self.following = list[asyncio.Task[None]]()
        """The tasks that follow the live releases; one of them ends only by a defect."""
        self.warm = False
        """Whether releases of stores in this process are brought into memory before they are served; a service, which
        has many requests to hold up, sets it before the stores are entered."""
        self.kept = kept
        self._budget_s = budget_s
        self._lookups = Lookups[_ListWaiter](self.tiers, budget_s, self._complete)

    async def __aenter__(self) -> Self:
        if self.following:
            raise RuntimeError("these stores are open already, as when lists are both mounted and entered")
        for tier in self.tiers:
            task = asyncio.create_task(tier.follower.run(warm=self.warm))
            task.add_done_callback(partial(log_defect, "a live release is not followed any more"))
            self.following.append(task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self.following:
            task.cancel()
        await asyncio.gather(*self.following, return_exceptions=True)
        self.following.clear()
        await self._lookups.close()
        if self._fold_in is not None:
            self._fold_in.close()
        for tier in self.tiers:
            await tier.close()

    async def wait_until_attempted(self, timeout_s: float = FIRST_READ_S) -> None:
        """Wait until each store has been read once, with whatever outcome; *timeout_s* at most."""
        await _wait([tier.follower.attempted for tier in self.tiers], timeout_s, asyncio.ALL_COMPLETED)

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until each store had a chance and one serves a release; raises NotReady if none does in *timeout_s*."""
        deadline = loop_time() + timeout_s
        await self.wait_until_attempted(min(FIRST_READ_S, timeout_s))
        ready = [tier.follower.ready for tier in self.tiers]
        await _wait(ready, max(0.0, deadline - loop_time()), asyncio.FIRST_COMPLETED)
        if self.first_served is None:
            raise self._not_ready()

    @property
    def first_served(self) -> tuple[str, ServedRelease] | None:
        """The first tier that serves a release, and that; None if none does."""
        return next(((tier.name, tier.follower.served) for tier in self.tiers if tier.follower.served), None)

    def release(self) -> ReleaseId:
        """Return the release of the first tier that serves one; raises NotReady if none does, and no lists are kept."""
        return self._first().served.id

    def get_nowait(self, key: str, source: str, segment: str = OVERALL) -> EncodedList | None:
        """Return the list of a row's *key* if that takes no wait, or the popular list if there surely is none.

        That is so if the store is in this process, and for a user who is denied. None if it takes a `submit`;
        then nothing is counted. *source* is what the list is to be called. Raises NotReady if no tier serves a
        release yet.
        """
        if self._is_hidden(key):
            self.metrics.count_lookup("popular", "miss")
            return self._first(segment, "unknown", key)
        missed: Origin | None = None
        tried: tuple[ReleaseId, ...] = ()
        for tier in self.tiers:
            served, canary = tier.follower.served, tier.follower.canary
            if canary is not None and canary.includes(key):
                served = canary.served
            if served is None or (tried and served.id in tried):
                continue
            slot = tier.get(served, key)
            if isinstance(slot, StoreError):
                return None
            if slot is not None and not is_empty(slot):
                return self._hit((tier, served), source, key, slot, segment)
            tried = (*tried, served.id)
            missed = missed or (tier, served)
        if missed is None:
            kept = self._first(segment, "error", key)  # which raises if there is none
            self._count_error(kept, key)
            return kept
        return self._fallback(*missed, key, None, segment)

    def _is_hidden(self, key: str) -> bool:
        """Return whether a user is denied, or was erased from any tier: what another one holds may be older."""
        denied = self.deny_list.current.users
        if denied and key.startswith(USER) and key[len(USER) :] in denied:
            return True
        for tier in self.tiers:
            erased = tier.follower.erased
            if erased and erased.covers(key):
                return True
        return False

    def submit(self, key: str, source: str, segment: str, deliver: Deliver) -> None:
        """Read a row's *key* with all others of this turn of the loop, and call *deliver* once, in a later turn.

        For what is not `get_nowait`, which raises if nothing can be. What cannot be read is the popular list of
        *segment*, with the status `error`.
        """
        self._lookups.add(key, (source, segment, deliver))

    async def personal(self, user: str, segment: str = OVERALL) -> EncodedList:
        """Read one user's list; if there is none, or the user is denied, the popular list of *segment*."""
        return await self._read_one(USER + user, "personal", segment)

    async def similar(self, item: str) -> EncodedList:
        """Read the items that are like *item*; if there are none, the popular list."""
        return await self._read_one(ITEM + item, "similar", OVERALL)

    def popular(self, segment: str = OVERALL) -> EncodedList:
        """Return the popular list of a segment, or the one for everybody where the segment has none."""
        self.metrics.count_lookup("popular", "hit")
        return self._first(segment)

    async def fold_in(
        self,
        items: Sequence[tuple[str, float | None]],
        n: int,
        excluded: frozenset[bytes] = frozenset(),
        segment: str = OVERALL,
    ) -> FoldedIn:
        """Compute a list of *n* items for a visitor by their *items* and the weights of these, None for the usual one.

        The weights of an item that is named twice are added up. The visitor's own items are left out, as are denied and
        *excluded* ones. If no item is known, or nothing is left, the popular list of *segment* is in its place.
        Raises NotReady, FoldInUnavailable, and StoreThrottled if too many others are being folded in.
        """
        tier, served, factors = self._factors()
        different = len({item for item, _ in items})
        basket = factors.known(items)
        found = list[Item]()
        if basket and self._fold_in is not None:
            found = await self._fold_in.recommend(factors, basket, n, self.deny_list.current.items, excluded)
        if found:
            encoded = self._hit((tier, served), "fold-in", NO_KEY, encode(found), segment)
        else:
            encoded = self._fallback(tier, served, NO_KEY, None, segment)
        return FoldedIn(encoded, len(basket), different - len(basket))

    def _factors(self) -> tuple[Tier, ServedRelease, "ItemFactors"]:
        """Return the first tier whose release has item factors, with these."""
        if self._fold_in is None:
            raise FoldInUnavailable("this service does not fold in; start it with --fold-in")
        for tier in self.tiers:
            served = tier.follower.served
            if served is not None and served.factors is not None:
                return tier, served, served.factors
        raise FoldInUnavailable(
            f"release {self.release()} has no item factors that could be loaded; publish it with --fold-in"
        )

    def cut(
        self,
        encoded: EncodedList,
        n: int,
        excluded: frozenset[bytes] = frozenset(),
        shorten: Callable[[bytes], bytes] | None = None,
    ) -> bytes:
        """Return the first *n* items of a list that are neither denied nor *excluded*, by ids of `encode_id`.

        If that leaves fewer than *n*, popular items fill the list up, each marked by its source. *shorten* leaves out
        fields of the items.
        """
        denied = self.deny_list.current.items
        items = cut(encoded.body, n)
        if not excluded and (not denied or denied.isdisjoint(ids_of(items))):
            return items if shorten is None else shorten(items)
        items = cut_without(encoded.body, n, denied, excluded)
        more = _popular_to_fill(encoded, items, n, denied, excluded)
        if shorten is not None:
            items, more = shorten(items), shorten(more)
        marked = (line[:-1] + b',"source":"popular"}' for line in more.split(SEPARATOR) if line)
        return SEPARATOR.join([*filter(None, [items]), *marked])

    async def personal_many(
        self, users: Sequence[str], segment: str = OVERALL, *, must_read: bool = False
    ) -> list[EncodedList]:
        """Read the lists of many users, in order: the first tier that can be read answers for all, in one release.

        While that tier has a canary, there are two: each user's is the one of a single request. A user who is named
        twice is read once, and one who is denied is not read. If no tier can be read, all get the popular list of
        *segment*, or, with *must_read*, StoreUnavailable is raised: for callers that would rather come again.
        """
        wanted = [user for user in dict.fromkeys(users) if not self._is_hidden(USER + user)]
        deadline = self._deadline(BUDGET_S_PER_USER * len(users))
        found = await self._read_many([USER + user for user in wanted], segment, deadline, must_read=must_read)
        if len(wanted) == len(users):
            return found
        by_user = dict(zip(wanted, found, strict=True))
        of_role = {one.served.is_canary: one for one in reversed(found)}

        def unknown(user: str) -> EncodedList:
            """Return a denied user's list: the popular one, of what others got of the same release."""
            first = self._first(segment, "unknown", USER + user)
            read = of_role.get(first.served.is_canary)
            return first if read is None else _popular(read.tier, read.served, segment, "unknown")

        return [by_user.get(user) or unknown(user) for user in users]

    async def _read_many(
        self, keys: Sequence[str], segment: str, deadline: Deadline, *, must_read: bool
    ) -> list[EncodedList]:
        """Return users' lists, in order; those whose release a tier cannot read are read in the next tier."""
        parts = list[tuple[Sequence[str], list[EncodedList]]]()

        def take_all(tier: Tier, group: Sequence[str], read: ReadResult) -> None:
            parts.append((group, self._lists(tier, read, group, segment)))

        unread, failure = await self._lookups.read_many(keys, deadline, take_all)
        if unread:
            lists = [self._first(segment, "error", key) for key in unread]
            if must_read and (failure is not None or self.first_served is None):
                raise StoreUnavailable("no store can be read for now") from failure
            for key, one in zip(unread, lists, strict=True):
                self._count_error(one, key)
            parts.append((unread, lists))
        if len(parts) == 1 and parts[0][0] is keys:
            return parts[0][1]
        found = {key: one for group, lists in parts for key, one in zip(group, lists, strict=True)}
        return [found[key] for key in keys]

    def _lists(self, tier: Tier, read: ReadResult, keys: Sequence[str], segment: str) -> list[EncodedList]:
        lists = [
            EncodedList(tier.name, read.served, "personal", slot, "ok", segment)
            if isinstance(slot, bytes) and not is_empty(slot)
            else self._fallback(tier, read.served, key, slot, segment)
            for key, slot in zip(keys, read.slots, strict=True)
        ]
        hits = sum(one.status == "ok" for one in lists)
        self.metrics.count_lookup("personal", "hit", hits)
        read.served.lookups[HIT] += hits
        self._count_canary(tier, read.served, HIT, hits)
        return lists

    async def _read_one(self, key: str, source: str, segment: str) -> EncodedList:
        found = self.get_nowait(key, source, segment)
        if found is not None:
            return found
        future: asyncio.Future[EncodedList] = asyncio.get_running_loop().create_future()
        waiter = source, segment, partial(_resolve, future)
        deadline = self._deadline()
        if deadline.hurried:
            await self._lookups.read(key, waiter, deadline)
        else:
            self._lookups.add(key, waiter)
        return await future

    def _complete(self, key: str, waiters: Sequence[_ListWaiter], origin: Origin | None, body: bytes | None) -> None:
        """Hand a list to those who wait for it; see `Lookups`."""
        if len(waiters) > 1 and origin is not None:
            self.metrics.count(self.metrics.cached[origin[0].name, CACHE_SHARED], len(waiters) - 1)
        for source, segment, deliver in waiters:
            if origin is None:
                found = self._first(segment, "error", key)
                self._count_error(found, key)
            elif body is None:
                found = self._fallback(*origin, key, None, segment)
            else:
                found = self._hit(origin, source, key, body, segment)
            try:
                deliver(found)
            except Exception:  # others wait, too
                log.exception("a list cannot be delivered")

    def _deadline(self, more_s: float = 0.0) -> Deadline:
        at, caller = loop_time() + self._budget_s + more_s, _read_by.get()
        return Deadline(min(at, caller), hurried=caller < at)

    def _hit(self, origin: Origin, source: str, key: str, body: bytes, segment: str) -> EncodedList:
        tier, served = origin
        self.metrics.count_lookup(source, "hit")
        served.lookups[HIT] += 1
        if tier.follower.canary is not None and key.startswith(USER):
            self._count_canary(tier, served, HIT)
        return EncodedList(tier.name, served, source, body, "ok", segment)

    def _fallback(self, tier: Tier, served: ServedRelease, key: str, slot: Slot, segment: str) -> EncodedList:
        status: Status = "error" if isinstance(slot, StoreError) else "unknown"
        outcome = ERROR if status == "error" else MISS
        self.metrics.count_lookup("popular", LOOKUP_OUTCOMES[outcome])
        served.lookups[outcome] += 1
        if key.startswith(USER):
            self._count_canary(tier, served, outcome)
        return _popular(tier.name, served, segment, status)

    def _count_error(self, found: EncodedList, key: str) -> None:
        """Count a list that no tier could be read for, as one of the release whose popular list is in its place."""
        self.metrics.count_lookup("popular", "error")
        found.served.lookups[ERROR] += 1
        if key.startswith(USER):
            tier = next(tier for tier in self.tiers if tier.name == found.tier)
            self._count_canary(tier, found.served, ERROR)

    def _count_canary(self, tier: Tier, served: ServedRelease, outcome: int, lists: int = 1) -> None:
        if tier.follower.canary is not None:
            role: ReleaseRole = CANARY if served.is_canary else LIVE
            self.metrics.count(self.metrics.canary[tier.name, role, LOOKUP_OUTCOMES[outcome]], lists)

    def _first(self, segment: str = OVERALL, status: Status = "ok", key: str = "") -> EncodedList:
        """Return the popular list of the first tier that serves a release, from memory; the one that *key* is of."""
        for tier in self.tiers:
            served = tier.follower.served_for(key)
            if served is not None:
                return _popular(tier.name, served, segment, status)
        if self.kept is not None:
            return _popular(*self.kept, segment, status)
        raise self._not_ready()

    def _not_ready(self) -> NotReady:
        errors = "; ".join(tier.error for tier in self.tiers if tier.error)
        return NotReady(errors or "the live release is being loaded; try again in a second")


def open_reader(
    urls: Sequence[str],
    *,
    budget_s: float = BUDGET_S,
    metrics: Metrics | None = None,
    deny_list: DenyListFile | None = None,
    cache_bytes: int = 0,
    fold_in: bool = False,
    kept: tuple[str, ServedRelease] | None = None,
) -> TieredReader:
    """Connect to the stores at *urls*, the first to be read first; nothing is read before the reader is entered.

    Raises StoreMisused for what is not the URL of a store, and as `TieredReader` does.
    """
    names = tier_names(urls)
    metrics = metrics or Metrics(1, names)
    stores = {name: connect(url, StoreObserver(name, metrics)) for name, url in zip(names, urls, strict=True)}
    return TieredReader(
        stores,
        budget_s=budget_s,
        metrics=metrics,
        deny_list=deny_list,
        cache_bytes=cache_bytes,
        fold_in=fold_in,
        kept=kept,
    )


def _resolve(future: asyncio.Future[EncodedList], found: EncodedList) -> None:
    if not future.done():  # if it is, the caller has given up
        future.set_result(found)


def _popular(tier: str, served: ServedRelease, segment: str, status: Status) -> EncodedList:
    if segment not in served.popular:
        segment = OVERALL
    return EncodedList(tier, served, "popular", served.popular[segment], status, segment)


def _popular_to_fill(encoded: EncodedList, items: bytes, n: int, *left_out: frozenset[bytes]) -> bytes:
    """Return popular items for a list of which only *items* are left; none if it has no others to begin with."""
    kept, more = frozenset(ids_of(items)), b""
    if len(kept) < min(n, len(ids_of(encoded.body))):
        for segment in dict.fromkeys((encoded.segment, OVERALL)):
            if popular := encoded.served.popular.get(segment):
                found = cut_without(popular, n - len(kept), kept, *left_out)
                more = SEPARATOR.join(filter(None, [more, found]))
                kept = kept.union(ids_of(found))
    return more


async def _wait(events: Sequence[asyncio.Event], timeout_s: float, return_when: str) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=return_when)
    finally:
        for task in waiting:
            task.cancel()


def log_defect(what: str, task: asyncio.Task[None]) -> None:
    """Log *what* follows from the error of a task that should have no end of its own; nothing if it was cancelled."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error(what, exc_info=error)
