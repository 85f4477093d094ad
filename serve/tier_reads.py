"""Reads rows in tier after tier: without I/O (`get_nowait`), or in a walk (`TierWalk`) within a deadline.

There are three walks. They differ in what a tier's answer settles:

    turn          Single rows of one turn of the event loop share a deadline and a store call; a lookup joins a read of
                  the same row. Each row falls through the tiers by itself (`TurnLookups`).
    batch         The rows of one request. The first tier that can be read answers all (`BatchRead`).
    release       Rows of pages, in one release by its id. The tiers that have the release are read until each row is
                  answered (`ReleaseRead`).

The time limits of a read from a remote store, in the order in which they are set:

    caller        0.9 of what is left of X-Request-Timeout-Ms, if sent (`read_within`). A GET stops waiting for
                  its row, and is answered without it; the read goes on for other requests. The read of a batch ends.
    budget        --budget, 50 ms, from the turn or the batch on; 0.5 ms more for each user of a batch.
    share         An equal part of the rest of the budget for this tier and each after it. At its end, `Tier` cancels
                  the read, the circuit breaker counts a failure, and the next tier is read.
    store share   0.9 of the share, passed to the store as `timeout_s`. Those that read key by key (Cosmos DB, Redis
                  Cluster) return the keys that they have by then; a single Redis server ignores it.
    hedge delay   1 to 100 ms, the running 95th percentile: then a replica is read, too (`hedging.Hedge`).
    connection    1 s without a reply: the multiplexed connection to Redis is closed (`multiplexed.Multiplexer`). Its
                  callers have given up by then, unless the budget is larger.

Other limits belong to the store, and reads fail at once in their pauses:

    connect       1 s to open a connection to Redis (CONNECT_TIMEOUT_S), then pauses of 0.05 to 2 s (`Reconnector`).
    discovery     1 s for each node or sentinel that is asked for the servers, then pauses of 0.1 to 1 s
                  (DISCOVERY_TIMEOUT_S, DISCOVERY_PAUSES_S).
    breaker       After 5 failed reads in a row, or 50 of parts of a store, the circuit opens; one read probes the
                  store after pauses of 0.1 to 1 s (`breaker.Breaker`).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import inf
from typing import Any

import msgspec

from hotplate.serve.errors import ReleaseMoved
from hotplate.serve.releases.follower import RowsOfRelease
from hotplate.serve.tiers import Origin, Tier, loop_time
from hotplate.stores.encoding import RowKey, is_empty
from hotplate.stores.errors import ReleaseCorrupt, StoreError, StoreUnavailable
from hotplate.stores.store import ReadResult

# Of a batch, per user: its callers prefer waiting to popular lists.
BUDGET_S_PER_USER = 0.0005

_read_by = ContextVar[float | None]("_read_by", default=None)


@contextmanager
def read_within(timeout_s: float) -> Iterator[None]:
    """Wait *timeout_s* at most for reads in this block; those of a turn go on for other callers, others end.

    An infinite *timeout_s* sets no deadline.
    """
    deadline = None if timeout_s == inf else loop_time() + timeout_s
    token = _read_by.set(deadline)
    try:
        yield
    finally:
        _read_by.reset(token)


def caller_deadline() -> float | None:
    """Return when the caller of this request stops waiting, by `loop_time`; None if it waits."""
    return _read_by.get()


class RowRead(msgspec.Struct, frozen=True):
    """Result of a read without I/O."""

    origin: Origin | None
    """None if no tier could be read."""

    body: bytes | None
    """The opened list; None if the row is absent."""


class RowsRead(msgspec.Struct, frozen=True):
    """Rows that one tier returned, with the result of each."""

    origin: Origin
    rows: Sequence[RowKey]
    results: Sequence[ReadResult]


def get_nowait(
    tiers: Sequence[Tier], row: RowKey, missed: Origin | None = None, *, late: bool = False
) -> RowRead | None:
    """Read *row*, the key of a list, in the first tier that has it, without I/O; None if a tier needs I/O.

    Tiers are stores in reading order. With *late*, those that need I/O are skipped. *missed* is the tier and the
    release in which the row is known to be absent: no tier is read again in this release. If the row is absent
    everywhere, the origin of the result is the first tier that lacks it, None if no tier could be read.
    """
    first_missed = missed
    lacking = [] if missed is None else [missed.release.id]
    """Ids of releases without the row."""

    for tier in tiers:
        release = tier.follower.release_for(row)
        if release is None or (lacking and release.id in lacking):
            continue

        result = tier.get(release, row.text)
        if isinstance(result, StoreError):  # also for a store that needs I/O
            if late:
                continue
            return None

        origin = Origin(tier, release)
        if result is not None and not is_empty(result):
            return RowRead(origin, result)
        lacking.append(release.id)
        if first_missed is None:
            first_missed = origin

    return RowRead(first_missed, None)


@dataclass(kw_only=True)
class TierWalk(ABC):
    """One walk of rows over tiers, within a deadline.

    Each tier gets an equal share of the time left for it and those after it. Rows are grouped by the release to read
    them in: the live one, or the canary for its users. If a release is gone, its rows are read in the one that is
    followed then.
    """

    tiers: Sequence[Tier]
    deadline: float
    """By `loop_time`."""

    caller_deadline: float | None = None
    """When the caller stops waiting. The tiers share that time, too; a read that it ends is no failure of a tier."""

    failure: StoreError | None = None
    """The last error of a tier, other than damage."""

    @abstractmethod
    def settle(self, read: RowsRead) -> Sequence[RowKey]:
        """Record the rows for which a tier's answer is final; return the others, to be read in the tiers after it."""

    def groups(self, tier: Tier, rows: Sequence[RowKey]) -> Sequence[RowsOfRelease]:
        """Return the releases of a tier to read *rows* in; none if it serves none."""
        return tier.follower.grouped(rows)

    async def read(self, rows: Sequence[RowKey]) -> None:
        """Read *rows* in tier after tier until all are settled."""
        for tier_index in range(len(self.tiers)):
            if not rows:
                return
            rows = await self.read_tier(tier_index, rows)

    async def read_tier(self, tier_index: int, rows: Sequence[RowKey]) -> Sequence[RowKey]:
        """Read *rows* in the tier at *tier_index*; return those that are to be read in the tiers after it.

        Rows are grouped by release: the live one and, for a share of the users, the canary. Groups are read at once.
        """
        groups = self.groups(self.tiers[tier_index], rows)
        if not groups:  # the tier serves no release
            return rows
        if len(groups) == 1:
            return await self.read_group(tier_index, groups[0])

        remaining_by_group = await asyncio.gather(*(self.read_group(tier_index, group) for group in groups))
        return [row for remaining in remaining_by_group for row in remaining]

    async def read_group(self, tier_index: int, group: RowsOfRelease) -> Sequence[RowKey]:
        """Read rows of one release like `read_tier`; all of them again if another release is followed since."""
        try:
            return await self.read_once(tier_index, group)
        except ReleaseMoved:
            return await self.read_tier(tier_index, group.rows)

    async def read_once(self, tier_index: int, group: RowsOfRelease) -> Sequence[RowKey]:
        """Read rows of one release in the tier at *tier_index*; return those to be read in the tiers after it.

        After an error of the store, these are all. Raises ReleaseMoved if the release is gone.
        """
        tier = self.tiers[tier_index]
        keys = [row.text for row in group.rows]

        # The tier counts it as a failure if its share of the time is over, but not if the caller's is.
        reading = tier.read(group.release, keys, self.share_s(self.deadline, tier_index))
        if self.caller_deadline is not None:
            reading = _within(self.share_s(self.caller_deadline, tier_index), reading)

        try:
            results = await reading
        except ReleaseMoved:
            raise
        except StoreError as error:
            if not isinstance(error, ReleaseCorrupt):  # damaged rows do not mean that the store cannot be read
                self.failure = error
            return group.rows

        return self.settle(RowsRead(Origin(tier, group.release), group.rows, results))

    def share_s(self, until: float, tier_index: int) -> float:
        """Return the time for the tier at *tier_index*: an equal share of the time until *until*."""
        return max(0.0, until - loop_time()) / (len(self.tiers) - tier_index)


@dataclass(kw_only=True)
class BatchRead(TierWalk):
    """The rows of one request. The first tier that can be read answers all.

    Rows that no tier could read are in no part.
    """

    parts: list[RowsRead] = field(default_factory=list)
    """A part for each release that was read."""

    def settle(self, read: RowsRead) -> Sequence[RowKey]:
        """Record all rows: none is read in another tier."""
        self.parts.append(read)
        return ()


@dataclass(kw_only=True)
class ReleaseRead(BatchRead):
    """Rows of one release. Only those whose result is an error are read in the next tier."""

    release: str
    """Its id."""

    def groups(self, tier: Tier, rows: Sequence[RowKey]) -> Sequence[RowsOfRelease]:
        """Return the release if the tier serves it, or has served it before the live one."""
        release = tier.follower.find(self.release)
        return [] if release is None else [RowsOfRelease(release, rows)]

    async def read_group(self, tier_index: int, group: RowsOfRelease) -> Sequence[RowKey]:
        """Read rows like `read_tier`; those of a release that is gone are to be read in the tiers after it."""
        try:
            return await self.read_once(tier_index, group)
        except ReleaseMoved:
            return group.rows

    def settle(self, read: RowsRead) -> Sequence[RowKey]:
        """Keep the rows that were read or are absent, as a part of the result; return those that failed.

        *read* has the results of one tier; the rows that failed are read in the next one.
        """
        failed = list[RowKey]()
        rows = list[RowKey]()
        results = list[ReadResult]()
        for row, result in zip(read.rows, read.results, strict=True):
            if isinstance(result, StoreError):
                failed.append(row)
            else:
                rows.append(row)
                results.append(result)

        self.parts.append(RowsRead(read.origin, rows, results))
        return failed


class BatchLookups:
    """Reads the rows of one request."""

    def __init__(self, tiers: Sequence[Tier], budget_s: float) -> None:
        """*budget_s* limits the reads of a batch of one user; see BUDGET_S_PER_USER."""
        self._tiers = tiers
        self._budget_s = budget_s

    async def read(self, rows: Sequence[RowKey], *, users: int = 0) -> BatchRead:
        """Read *rows* from the first tier that can be read; the budget is for *users*, at least as many as rows."""
        deadline = self._deadline(max(users, len(rows)))
        batch = BatchRead(tiers=self._tiers, deadline=deadline, caller_deadline=caller_deadline())
        await batch.read(rows)
        return batch

    async def read_release(self, release: str, rows: Sequence[RowKey], tiers: Sequence[Tier]) -> ReleaseRead:
        """Read *rows* in a release, by its id, from *tiers*, which have it."""
        read = ReleaseRead(
            tiers=tiers, deadline=self._deadline(len(rows)), caller_deadline=caller_deadline(), release=release
        )
        await read.read(rows)
        return read

    def _deadline(self, users: int) -> float:
        return loop_time() + self._budget_s + BUDGET_S_PER_USER * users

    def cached(self, rows: Sequence[RowKey]) -> list[RowsRead]:
        """Return the results of *rows* in the first tier with a release, without I/O; errors for those that need it."""
        for tier in self._tiers:
            groups = tier.follower.grouped(rows)
            if groups:
                return [read_nowait(tier, group) for group in groups]
        return []


def read_nowait(tier: Tier, group: RowsOfRelease) -> RowsRead:
    """Read rows of one release without I/O: the results of those that need it are errors."""
    results = [tier.get(group.release, row.text) for row in group.rows]
    return RowsRead(Origin(tier, group.release), group.rows, results)


async def _within(timeout_s: float, reading: Coroutine[Any, Any, list[ReadResult]]) -> list[ReadResult]:
    """Cancel a read whose caller stops waiting, which says nothing about the store."""
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError:
        raise StoreUnavailable("the caller could not wait") from None
