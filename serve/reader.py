"""Lists as bytes, from tiers of stores within a deadline."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

from hotplate.serve.consumed import Consumed
from hotplate.serve.deny_list import DenyListFile
from hotplate.serve.filters import NO_FILTER, NO_FILTERS, ItemFilter, ReleaseFilters
from hotplate.serve.fold_in import RECENCY, FoldIn, from_similar, summed_weights
from hotplate.serve.lookups import Lookups, Origin
from hotplate.serve.metrics import CACHE_SHARED, CANARY, ERROR, HIT, LIVE, LOOKUP_OUTCOMES, MISS, Metrics, ReleaseRole
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.settings import BUDGET_S
from hotplate.serve.tiers import StoreObserver, Tier, loop_time, tier_names
from hotplate.stores.attributes import ABOUT
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.encoding import (
    ITEM,
    NO_OFFSET,
    OVERALL,
    POPULAR,
    SEPARATOR,
    USER,
    IdSet,
    cut,
    cut_without,
    encode,
    encode_id,
    ids_of,
    is_empty,
    length_of,
    list_of,
    overall_of,
    prefix_of,
    user_of,
)
from hotplate.stores.errors import StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.store import LocalReader, Reader, Slot

log = logging.getLogger(__name__)

# Per user of a batch: its callers prefer waiting to popular lists.
BUDGET_S_PER_USER = 0.0005
# How long a start waits for silent stores.
FIRST_READ_S = 2.0
DEFAULT_N = 10
# Items of a list to which `where` is applied: of a computed one, and as estimated of stored ones.
FILTERED = 200
# Key of a computed list.
NO_KEY = ""
# Key of the popular list for everybody, in the default list.
EVERYBODY = POPULAR + OVERALL

# Found, absent, or unreadable.
Status = Literal["ok", "unknown", "error"]


_OUTCOMES: dict[Status, int] = {"ok": HIT, "unknown": MISS, "error": ERROR}

# Deadline of the request's caller, by `loop_time`.
_read_by = ContextVar[float | None]("_read_by", default=None)


@contextmanager
def read_within(timeout_s: float) -> Iterator[None]:
    """Wait *timeout_s* at most for reads in this block; they go on for other callers."""
    token = _read_by.set(loop_time() + timeout_s)
    try:
        yield
    finally:
        _read_by.reset(token)


class NotReady(StoreError):
    """No tier serves a release yet."""


class UnknownList(StoreMisused):
    """No served release has a list of this name."""


class EncodedList(NamedTuple):
    """A list as bytes, with its tier, release and source."""

    tier: str
    served: ServedRelease
    source: str
    body: bytes
    """An opened value, as `TieredReader.cut` takes it."""

    status: Status = "ok"
    fallback: str = EVERYBODY
    """Key of this popular list (that for everybody if the requested segment has none), or of the one to fill it up."""

    hidden: IdSet | None = None
    """Items not to show: those that the user consumed, or that a list which may be filled is for."""

    @property
    def segment(self) -> str:
        """The segment of `fallback`."""
        return self.fallback.partition(":")[2]

    @property
    def name(self) -> str:
        """The name of the list in its release; empty for a default list without one."""
        stored = list_of(self.fallback) if "@" in self.fallback else ""
        return stored or self.served.manifest.default_list


class FoldedIn(NamedTuple):
    """A list for a basket, and the numbers of known and unknown items in it."""

    found: EncodedList
    known: int
    unknown: int


class Waiter(Protocol):
    """A request that waits for a list."""

    @property
    def fallback(self) -> str:
        """The key of the popular list to get instead."""

    def take_row(self, origin: Origin, key: str, body: bytes) -> None:
        """Take the list that was read."""

    def take(self, encoded: EncodedList) -> None:
        """Take the popular list."""


@dataclass(frozen=True, slots=True, eq=False)
class _FutureWaiter:
    reader: "TieredReader"
    source: str
    fallback: str
    future: asyncio.Future[EncodedList]

    def take_row(self, origin: Origin, key: str, body: bytes) -> None:
        self.take(self.reader.hit(origin, self.source, key, body, self.fallback))

    def take(self, encoded: EncodedList) -> None:
        if not self.future.done():
            self.future.set_result(encoded)


class TieredReader:
    """Reads lists from tiers, in the order of `Lookups`, within a time budget. One per worker, on one loop.

    As a context manager it follows the live releases, and closes the stores at the end.
    """

    def __init__(
        self,
        stores: Mapping[str, Reader] | Sequence[str],
        *,
        budget_s: float = BUDGET_S,
        metrics: Metrics | None = None,
        deny_list: DenyListFile | None = None,
        consumed: Consumed | None = None,
        cache_bytes: int = 0,
        fold_in: bool = False,
        kept: tuple[str, ServedRelease] | None = None,
        warm: bool = False,
    ) -> None:
        """*stores* are URLs in reading order, or stores by tier name; remote ones get equal parts of *cache_bytes*.

        *fold_in* loads item factors. *kept* provides popular lists while no tier serves a release. *warm* reads local
        releases into memory first. Raises StoreMisused for an invalid URL, and for *fold_in* without numpy.
        """
        names = list(stores) if isinstance(stores, Mapping) else tier_names(stores)
        self.metrics = metrics or Metrics(1, names)
        if not isinstance(stores, Mapping):
            observers = [StoreObserver(name, self.metrics) for name in names]
            stores = dict(zip(names, map(connect, stores, observers), strict=True))
        self.deny_list = deny_list or DenyListFile()
        self.consumed = consumed
        remote = sum(not isinstance(store, LocalReader) for store in stores.values())
        part = cache_bytes // max(1, remote)
        self._fold_in = FoldIn() if fold_in else None
        self.tiers = [
            Tier(name, store, self.metrics, cache_bytes=part, fold_in=self._fold_in) for name, store in stores.items()
        ]
        self.following = list[asyncio.Task[None]]()
        self.kept = kept
        self.warm = warm
        self._budget_s = budget_s
        self._lookups = Lookups[Waiter](self.tiers, budget_s, self._complete)

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
        await self._lookups.close()
        if self._fold_in is not None:
            self._fold_in.close()
        for tier in self.tiers:
            await tier.close()

    async def wait_until_attempted(self, timeout_s: float = FIRST_READ_S) -> None:
        """Wait *timeout_s* at most until each store was read or failed."""
        await _wait([tier.follower.attempted for tier in self.tiers], timeout_s, asyncio.ALL_COMPLETED)

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until a tier serves a release; raises NotReady after *timeout_s*."""
        deadline = loop_time() + timeout_s
        await self.wait_until_attempted(min(FIRST_READ_S, timeout_s))
        ready = [tier.follower.ready for tier in self.tiers]
        await _wait(ready, max(0.0, deadline - loop_time()), asyncio.FIRST_COMPLETED)
        if self.first_served is None:
            raise self._not_ready()

    @property
    def first_served(self) -> tuple[str, ServedRelease] | None:
        """The first tier with a release, and that release."""
        return next(((tier.name, tier.follower.served) for tier in self.tiers if tier.follower.served), None)

    def release(self) -> ReleaseId:
        """Return the first release that is served, or the kept one; raises NotReady."""
        return self._first().served.id

    def placed(self, kind: str, identifier: str, segment: str = OVERALL, name: str = "") -> tuple[str, str]:
        """Return the keys of a row in the list *name*, and of its popular list; raises UnknownList and NotReady.

        The release that is served to a user decides which lists there are.
        """
        if not name:
            return kind + identifier, POPULAR + segment
        served = self._first(key=kind + identifier).served
        stored = served.manifest.stored_name(name)
        if stored is None:
            raise _unknown(name, served)
        return prefix_of(kind, stored) + identifier, prefix_of(POPULAR, stored) + segment

    def get_nowait(self, key: str, source: str, fallback: str = EVERYBODY, *, late: bool = False) -> EncodedList | None:
        """Return the list of *key*, called *source*, or None (not counted) if that needs I/O; raises NotReady.

        Local stores, cached rows and hidden users need no I/O. *late* passes over tiers that need it.
        """
        if self._is_hidden(key):
            self.metrics.count_lookup("popular", "miss")
            return self._first(fallback, "unknown", key)
        return self._walk(key, source, fallback, late=late)

    def after_miss(self, key: str, source: str, fallback: str, missed: Origin) -> EncodedList | None:
        """Go on like `get_nowait` after the first tier, whose release has no list of *key*, which is not hidden."""
        return self._walk(key, source, fallback, missed)

    def _walk(
        self, key: str, source: str, fallback: str, missed: Origin | None = None, *, late: bool = False
    ) -> EncodedList | None:
        tried: tuple[ReleaseId, ...] = () if missed is None else (missed[1].id,)
        for tier in self.tiers if missed is None else self.tiers[1:]:
            served, canary = tier.follower.served, tier.follower.canary
            if canary is not None and canary.includes(key):
                served = canary.served
            if served is None or (tried and served.id in tried):
                continue
            slot = tier.get(served, key)
            if isinstance(slot, StoreError):
                if late:
                    continue
                return None
            if slot is not None and not is_empty(slot):
                return self.hit((tier, served), source, key, slot, fallback)
            tried = (*tried, served.id)
            missed = missed or (tier, served)
        if missed is None:
            return self._unread(fallback, key)
        return self._fallback(*missed, key, None, fallback)

    def _is_hidden(self, key: str) -> bool:
        """Whether a user is denied, or erased from any tier, as others may be older."""
        denied = self.deny_list.current.users
        if denied and user_of(key) in denied:
            return True
        for tier in self.tiers:
            erased = tier.follower.erased
            if erased and erased.covers(key):
                return True
        return False

    def submit(self, key: str, waiter: Waiter) -> None:
        """Read *key* after `get_nowait`, with all others of this loop iteration; *waiter* takes a list once, later.

        If the read fails, that is the popular list with the key of its fallback, with status `error`.
        """
        self._lookups.add(key, waiter)

    async def personal(self, user: str, segment: str = OVERALL, name: str = "") -> EncodedList:
        """Read a user's list, or the popular list of *segment* for an unknown or denied user.

        *name* is that of a named list. This and other methods with a *name* raise UnknownList.
        """
        key, fallback = self.placed(USER, user, segment, name)
        return self.hiding(user, self.as_named(await self._read_one(key, "personal", fallback), name))

    async def similar(self, item: str, name: str = "") -> EncodedList:
        """Read the items similar to *item*; without any, the popular list."""
        key, fallback = self.placed(ITEM, item, OVERALL, name)
        return self.as_named(await self._read_one(key, "similar", fallback), name)

    def popular(self, segment: str = OVERALL, name: str = "") -> EncodedList:
        """Return the popular list of a segment, or the overall one."""
        found = self._first(self.placed(POPULAR, segment, segment, name)[1])
        self.metrics.count_lookup("popular", "hit")
        return self.as_named(found, name)

    def as_named(self, found: EncodedList, name: str) -> EncodedList:
        """Return a list that was requested by *name*, which may be empty, and count it by that name.

        If the release that it was read from has another default list, this is the popular list of *name* instead.
        Raises UnknownList if no release has the list.
        """
        if name:
            if found.name != name or is_empty(found.body):  # perhaps the default list since the request began
                found = self._popular_named(name, found)
            counts = found.served.by_list.setdefault(name, [0] * len(LOOKUP_OUTCOMES))
            counts[_OUTCOMES[found.status]] += 1
        return found

    def _popular_named(self, name: str, read: EncodedList) -> EncodedList:
        for tier in self.tiers:
            for served in tier.follower.all_served:
                if (stored := served.manifest.stored_name(name)) is not None:
                    return self._popular(tier.name, served, prefix_of(POPULAR, stored) + read.segment, "error")
        raise _unknown(name, read.served)

    async def fold_in(
        self,
        items: Sequence[tuple[str, float | None]],
        n: int,
        only: ItemFilter = NO_FILTER,
        segment: str = OVERALL,
        recency: float = RECENCY,
        *,
        name: str = "",
    ) -> FoldedIn:
        """Compute *n* items from a visitor's *items* and their weights (None for the usual one), the newest last.

        A weight counts times *recency* for each newer item, and those of a repeated item are added up. The visitor's,
        denied and excluded items are left out; for `where`, which `cut` applies, at least FILTERED are computed.
        Without item factors, which only the default list has, sums up the lists of similar items. If nothing is left,
        returns the popular list of *segment*. Raises NotReady, and StoreThrottled if too many visitors wait.
        """
        if not items:
            return FoldedIn(self.popular(segment, name), 0, 0)
        prefix, fallback = self.placed(ITEM, "", segment, name)
        denied = self.deny_list.current.items
        excluded, n = only.exclude, max(n, FILTERED) if only.where else n
        origin: Origin | None
        failed: Slot = None
        for tier in self.tiers:
            served = tier.follower.served
            if self._fold_in is not None and prefix == ITEM and served is not None and served.factors is not None:
                weights = summed_weights(items, served.factors.description.weight, recency)
                basket = served.factors.known(weights)
                found = await self._fold_in.recommend(served.factors, basket, n, denied, excluded) if basket else []
                origin, known = (tier, served), len(basket)
                break
        else:
            weights = summed_weights(items, 1.0, recency)
            origin, slots = await self._similar_many(weights, prefix)
            lists = {item: slot for item, slot in slots.items() if isinstance(slot, bytes) and not is_empty(slot)}
            found, known = await from_similar(lists, weights, n, denied, excluded), len(lists)
            failed = next((slot for slot in slots.values() if isinstance(slot, StoreError)), None)
        if origin is None:
            encoded = self._unread(fallback, NO_KEY)
        elif found:
            encoded = self.hit(origin, "fold-in", NO_KEY, encode(found), fallback)
        else:
            encoded = self._fallback(*origin, NO_KEY, failed, fallback)
        return FoldedIn(self.as_named(encoded, name), known, len(weights) - known)

    async def _similar_many(self, items: Collection[str], prefix: str) -> tuple[Origin | None, dict[str, Slot]]:
        """Read lists of similar items of one release; its origin is None if no tier could be read."""
        read = list[tuple[Origin, Sequence[str], Sequence[Slot]]]()
        deadline = loop_time() + self._budget_s + BUDGET_S_PER_USER * len(items)
        keys = [prefix + item for item in items]
        await self._lookups.read_many(keys, deadline, lambda *group: read.append(group), _read_by.get())
        if not read:
            return None, {}
        origin, read_keys, slots = read[0]  # one tier and, as canaries are of users, one release
        return origin, {key.removeprefix(prefix): slot for key, slot in zip(read_keys, slots, strict=True)}

    def cut(
        self,
        encoded: EncodedList,
        n: int,
        only: ItemFilter = NO_FILTER,
        shorten: Callable[[bytes], bytes] | None = None,
    ) -> bytes:
        """Return the first *n* items of a list that are not denied and pass a filter.

        Popular items, marked by their source, fill a list that lost items up to *n*, and any list under a filter.
        *shorten* removes fields. Raises StoreMisused for an invalid `where`, and StoreUnavailable if the attributes of
        the items cannot be read.
        """
        denied, served, body = self.deny_list.current.items, encoded.served, encoded.body
        if only is NO_FILTER and encoded.hidden is None:
            items = cut(body, n)
            if not denied or denied.isdisjoint(ids_of(items)):
                return items if shorten is None else shorten(items)
        left_out = [ids for ids in (denied, only.exclude, encoded.hidden) if ids]
        if encoded.source == "popular":
            items = cut_without(self._popular_under(served, encoded.fallback, only.where), n, *left_out)
        else:
            rejected = (
                [self._filters_of(served).rejected(only.where, self.deny_list.current.overrides)] if only.where else []
            )
            items = cut_without(body, n, *left_out, *rejected)
        wanted = n if only.exclude or only.where else min(n, length_of(body))
        if length_of(items) >= wanted:
            return items if shorten is None else shorten(items)
        kept, more = frozenset(ids_of(items)), b""
        for fallback in dict.fromkeys((encoded.fallback, overall_of(encoded.fallback))):
            found = cut_without(self._popular_under(served, fallback, only.where), n - len(kept), kept, *left_out)
            more = SEPARATOR.join(filter(None, [more, found]))
            kept = kept.union(ids_of(found))
        if shorten is not None:
            items, more = shorten(items), shorten(more)
        marked = (line[:-1] + b',"source":"popular"}' for line in more.split(SEPARATOR) if line)
        return SEPARATOR.join([*filter(None, [items]), *marked])

    def _popular_under(self, served: ServedRelease, fallback: str, where: str) -> bytes:
        body = served.popular.get(fallback, NO_OFFSET)
        if not where:
            return body
        return self._filters_of(served).popular(fallback, body, where, self.deny_list.current.overrides)

    def _filters_of(self, served: ServedRelease) -> ReleaseFilters:
        if served.filters is NO_FILTERS and ABOUT in served.manifest.about:
            raise StoreUnavailable(f"the item attributes of release {served.id} cannot be read for now")
        return served.filters

    def hiding(self, user: str, encoded: EncodedList) -> EncodedList:
        """Return the list of *user* without items that the user consumed."""
        hidden = None if self.consumed is None else self.consumed.hidden_from(user)
        return encoded if hidden is None else encoded._replace(hidden=hidden)

    def beside(self, items: Collection[str], encoded: EncodedList, only: ItemFilter = NO_FILTER) -> EncodedList:
        """Return a list for *items* without them if it has popular items or may be filled with them."""
        has_popular = encoded.source == "popular" or only is not NO_FILTER or self.deny_list.current.items
        return encoded._replace(hidden=frozenset(map(encode_id, items))) if items and has_popular else encoded

    async def personal_many(
        self, users: Sequence[str], segment: str = OVERALL, name: str = "", *, must_read: bool = False
    ) -> list[EncodedList]:
        """Read the lists of many users, in order, from one tier, in its live release or canary.

        If no tier can be read, those that are not cached get the popular list of *segment*; *must_read* raises
        StoreUnavailable instead.
        """
        _, live = self.placed(POPULAR, segment, segment, name)

        def placed(user: str) -> tuple[str, str]:
            """Return the keys in the release that is served to the user; if that lacks the list, as in the live one."""
            try:
                return self.placed(USER, user, segment, name)
            except UnknownList:
                return prefix_of(USER, list_of(live)) + user, live

        wanted = [user for user in dict.fromkeys(users) if not self._is_hidden(USER + user)]
        fallbacks = dict(map(placed, wanted)) if name else dict.fromkeys([USER + user for user in wanted], live)
        deadline = loop_time() + self._budget_s + BUDGET_S_PER_USER * len(users)
        found = await self._read_many(fallbacks, deadline, must_read=must_read)
        if name:
            found = [self.as_named(one, name) for one in found]
        if len(wanted) == len(users) and self.consumed is None:
            return found
        by_user = dict(zip(wanted, found, strict=True))
        of_role = {one.served.is_canary: one for one in reversed(found)}

        def unknown(user: str) -> EncodedList:
            _, fallback = placed(user)
            first = self._first(fallback, "unknown", USER + user)
            read = of_role.get(first.served.is_canary)
            self.metrics.count_lookup("popular", "miss")
            return first if read is None else self._popular(read.tier, read.served, fallback, "unknown")

        hidden = [user for user in dict.fromkeys(users) if user not in by_user]
        by_user |= {user: self.as_named(unknown(user), name) for user in hidden}
        return [self.hiding(user, by_user[user]) for user in users]

    async def _read_many(self, fallbacks: Mapping[str, str], deadline: float, *, must_read: bool) -> list[EncodedList]:
        """Read keys, each with that of its fallback."""
        found = dict[str, EncodedList]()

        def take_all(origin: Origin, group: Sequence[str], slots: Sequence[Slot]) -> None:
            found.update(zip(group, self._lists(origin, group, slots, fallbacks), strict=True))

        _, failure = await self._lookups.read_many([*fallbacks], deadline, take_all, _read_by.get())
        if len(found) < len(fallbacks):
            self._first()  # raises NotReady
            if must_read and (failure is not None or self.first_served is None):
                raise StoreUnavailable("no store can be read for now") from failure
            unread = [key for key in fallbacks if key not in found]
            for tier in [tier for tier in self.tiers if tier.follower.served is not None][:1]:  # some may be cached
                for served, group in tier.follower.grouped(unread):
                    take_all((tier, served), group, [tier.get(served, key) for key in group])
        return [found.get(key) or self._unread(fallback, key) for key, fallback in fallbacks.items()]

    def _lists(
        self, origin: Origin, keys: Sequence[str], slots: Sequence[Slot], fallbacks: Mapping[str, str]
    ) -> list[EncodedList]:
        tier, served = origin
        lists = [
            EncodedList(tier.name, served, "personal", slot, "ok", fallbacks[key])
            if isinstance(slot, bytes) and not is_empty(slot)
            else self._fallback(tier, served, key, slot, fallbacks[key])
            for key, slot in zip(keys, slots, strict=True)
        ]
        self._count(origin, "personal", HIT, USER, sum(one.status == "ok" for one in lists))
        return lists

    async def _read_one(self, key: str, source: str, fallback: str) -> EncodedList:
        found = self.get_nowait(key, source, fallback)
        if found is not None:
            return found
        future: asyncio.Future[EncodedList] = asyncio.get_running_loop().create_future()
        waiter = _FutureWaiter(self, source, fallback, future)
        self._lookups.add(key, waiter)
        if (deadline := _read_by.get()) is None:
            return await future
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            self._lookups.leave(key, waiter)
            return self.get_nowait(key, source, fallback, late=True) or self._unread(fallback, key)

    def _complete(self, key: str, waiters: Sequence[Waiter], origin: Origin | None, body: bytes | None) -> None:
        if len(waiters) > 1 and origin is not None:
            self.metrics.count(self.metrics.cached[origin[0].name, CACHE_SHARED], len(waiters) - 1)
        for waiter in waiters:
            try:
                if origin is None:
                    waiter.take(self._unread(waiter.fallback, key))
                elif body is None:
                    waiter.take(self._fallback(*origin, key, None, waiter.fallback))
                else:
                    waiter.take_row(origin, key, body)
            except Exception:  # others still wait
                log.exception("a list cannot be delivered")

    def _count(self, origin: Origin, source: str, outcome: int, key: str, lists: int = 1) -> None:
        tier, served = origin
        self.metrics.count_lookup(source, LOOKUP_OUTCOMES[outcome], lists)
        served.lookups[outcome] += lists
        if tier.follower.canary is not None and user_of(key) is not None:
            role: ReleaseRole = CANARY if served.is_canary else LIVE
            self.metrics.count(self.metrics.canary[tier.name, role, LOOKUP_OUTCOMES[outcome]], lists)

    def hit(self, origin: Origin, source: str, key: str, body: bytes, fallback: str) -> EncodedList:
        """Return a list that was read, and count it."""
        tier, served = origin
        self._count(origin, source, HIT, key)
        return EncodedList(tier.name, served, source, body, "ok", fallback)

    def _fallback(self, tier: Tier, served: ServedRelease, key: str, slot: Slot, fallback: str) -> EncodedList:
        status: Status = "error" if isinstance(slot, StoreError) else "unknown"
        self._count((tier, served), "popular", ERROR if status == "error" else MISS, key)
        return self._popular(tier.name, served, fallback, status)

    def _unread(self, fallback: str, key: str) -> EncodedList:
        """Return the popular list after all tiers failed; raises NotReady."""
        found = self._first(fallback, "error", key)
        tier = next(tier for tier in self.tiers if tier.name == found.tier)
        self._count((tier, found.served), "popular", ERROR, key)
        return found

    def _first(self, fallback: str = EVERYBODY, status: Status = "ok", key: str = "") -> EncodedList:
        """Return the popular list of the first tier with a release for *key*."""
        for tier in self.tiers:
            served = tier.follower.served_for(key)
            if served is not None:
                return self._popular(tier.name, served, fallback, status)
        if self.kept is not None:
            return self._popular(*self.kept, fallback, status)
        raise self._not_ready()

    def _popular(self, tier: str, served: ServedRelease, fallback: str, status: Status) -> EncodedList:
        """Return a popular list of *served*, or, if that lacks the list, of another release; empty if all lack it."""
        if fallback not in served.popular:
            overall = overall_of(fallback)
            if overall not in served.popular:
                others = ((each.name, other) for each in self.tiers for other in each.follower.all_served)
                found = next(((name, other) for name, other in others if overall in other.popular), None)
                if found is None:
                    return EncodedList(tier, served, "popular", NO_OFFSET, status, overall)
                (tier, served), status = found, "error"
            fallback = fallback if fallback in served.popular else overall
        return EncodedList(tier, served, "popular", served.popular[fallback], status, fallback)

    def _not_ready(self) -> NotReady:
        errors = "; ".join(tier.error for tier in self.tiers if tier.error)
        return NotReady(errors or "the live release is being loaded; try again in a second")


def _unknown(name: str, served: ServedRelease) -> UnknownList:
    has = ", ".join(filter(None, [served.manifest.default_list, *served.manifest.named])) or "no named lists"
    return UnknownList(f"release {served.id} has no list {name!r}; it has {has}")


async def _wait(events: Sequence[asyncio.Event], timeout_s: float, return_when: str) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=return_when)
    finally:
        for task in waiting:
            task.cancel()


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine until the block ends."""
    task = asyncio.create_task(work)
    task.add_done_callback(partial(log_defect, "work in the background has ended"))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def log_defect(what: str, task: asyncio.Task[None]) -> None:
    """Log the error of a task that should not end."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error(what, exc_info=error)
