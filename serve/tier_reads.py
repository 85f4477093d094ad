"""Reads rows in tier after tier: without I/O (`get_nowait`), or in a walk (`TierWalk`) within a deadline.

There are three walks. They differ in what a tier's answer settles:

    turn          Single rows of one turn of the event loop share a deadline and a store call; a lookup joins a read of
                  the same row. Each row falls through the tiers by itself (`TurnLookups`).
    batch         The rows of one request. The first tier that can be read answers all (`BatchRead`).
    release       Rows of pages, in one release by its id. The tiers that have the release are read until each row is
                  answered (`ReleaseRead`).

A store that can send the call of a turn without a task does (`SendingReader`): a turn costs 29 instead of 38 µs,
because its reply runs no coroutines. After an error, a task reads the turn again.

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
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from hotplate.serve.generation import POLICIES
from hotplate.serve.releases.follower import RowsOfRelease
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.telemetry.spans import RequestSpan, sampled_requests
from hotplate.serve.tiers import Origin, ReleaseMoved, SentRead, Tier, loop_time
from hotplate.stores.encoding import RowKey, is_empty
from hotplate.stores.errors import ReleaseCorrupt, StoreError, StoreUnavailable
from hotplate.stores.store import ReadResult

log = logging.getLogger(__name__)

Waiter = TypeVar("Waiter")
Replies = asyncio.Future[list[ReadResult]]

# Of a batch, per user: its callers prefer waiting to popular lists.
BUDGET_S_PER_USER = 0.0005

_read_by = ContextVar[float | None]("_read_by", default=None)


@contextmanager
def read_within(timeout_s: float) -> Iterator[None]:
    """Wait *timeout_s* at most for reads in this block; those of a turn go on for other callers, others end."""
    token = _read_by.set(loop_time() + timeout_s)
    try:
        yield
    finally:
        _read_by.reset(token)


def caller_deadline() -> float | None:
    """Return when the caller of this request stops waiting, by `loop_time`; None if it waits."""
    return _read_by.get()


# Called with a row, its waiters, its origin (None if no tier could be read), and the opened list (None if absent).
Complete = Callable[[RowKey, Sequence[Waiter], Origin | None, bytes | None], None]


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
    """Read *row* in the first tier that has it, without I/O; None if a tier needs I/O.

    With *late*, tiers that need it are skipped. *missed* is where the row is known to be absent: no tier is read again
    in its release. If the row is absent everywhere, the origin of the result is the first tier that lacks it.
    """
    first_missed = missed
    lacking = [] if missed is None else [missed.served.id]
    """Ids of releases without the row."""

    for tier in tiers:
        served = tier.follower.served_for(row)
        if served is None or (lacking and served.id in lacking):
            continue
        result = tier.get(served, row.text)
        if isinstance(result, StoreError):
            if late:
                continue
            return None
        origin = Origin(tier, served)
        if result is not None and not is_empty(result):
            return RowRead(origin, result)
        lacking.append(served.id)
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
        """Read *rows* in the tier at *tier_index*; return those that are to be read in the tiers after it."""
        groups = self.groups(self.tiers[tier_index], rows)
        if not groups:
            return rows
        if len(groups) == 1:
            return await self.read_group(tier_index, groups[0])
        unsettled = await asyncio.gather(*(self.read_group(tier_index, group) for group in groups))
        return [row for rows in unsettled for row in rows]

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
        reading = tier.read(group.served, keys, self.share_s(tier_index))
        if self.caller_deadline is not None:
            caller_share_s = _share_s(self.caller_deadline, len(self.tiers) - tier_index)
            reading = _within(caller_share_s, reading)
        try:
            results = await reading
        except ReleaseMoved:
            raise
        except StoreError as error:
            if not isinstance(error, ReleaseCorrupt):  # damaged rows do not mean that the store cannot be read
                self.failure = error
            return group.rows
        return self.settle(RowsRead(Origin(tier, group.served), group.rows, results))

    def share_s(self, tier_index: int) -> float:
        """Return the time for the tier at *tier_index*."""
        return _share_s(self.deadline, len(self.tiers) - tier_index)


@dataclass(kw_only=True)
class _Turn(TierWalk, Generic[Waiter]):
    """Single rows that are read together, each of which falls through the tiers by itself."""

    complete: Complete[Waiter]
    waiting: dict[RowKey, list[Waiter]]
    """Waiters of incomplete rows, also of other turns."""

    spans: dict[RowKey, list[RequestSpan]]
    """Of sampled requests, by the row that they wait for."""

    missed: dict[RowKey, list[Origin]] = field(default_factory=dict)
    """Releases that lack a row, which is not read in them again."""

    def settle(self, read: RowsRead) -> Sequence[RowKey]:
        """Complete the rows that have a list, and return the others, to be read in the next tier.

        Completing a row answers all requests that wait for it, its waiters in `self.waiting`. A row that is absent in
        the release, other than one that could not be read, is noted in `self.missed`.
        """
        complete = self.complete
        waiting = self.waiting
        origin = read.origin
        unsettled: list[RowKey] = []  # twice for each turn, a call of `list[RowKey]` takes 0.4 µs more
        for row, result in zip(read.rows, read.results, strict=True):
            if isinstance(result, bytes) and not is_empty(result):
                complete(row, waiting.pop(row, ()), origin, result)
            else:
                unsettled.append(row)
                if not isinstance(result, StoreError):
                    self.missed.setdefault(row, []).append(origin)
        return unsettled

    def complete_unread(self, rows: Sequence[RowKey]) -> None:
        """Complete rows that no tier has, with the first release that lacks them, if any was read."""
        for row in rows:
            origins = self.missed.get(row)
            self.complete(row, self.waiting.pop(row, ()), origins[0] if origins else None, None)

    async def read_once(self, tier_index: int, group: RowsOfRelease) -> Sequence[RowKey]:
        """Read rows of one release in the tier at *tier_index*; return those to be read in the tiers after it.

        A row that is absent in the same release of an earlier tier is not read again. The read is traced for the
        sampled requests among those that wait for the rows. Raises ReleaseMoved if the release is gone.
        """
        absent = list[RowKey]()
        unread = group.rows
        if self.missed:
            absent = [row for row in group.rows if self._is_absent(row, group.served)]
            unread = [row for row in group.rows if not self._is_absent(row, group.served)]
        if not unread:
            return absent

        if self.spans:
            spans = [span for row in unread for span in self.spans.get(row, ())]
            sampled_requests.set(tuple(spans))  # of this task only
        unsettled = await super().read_once(tier_index, RowsOfRelease(group.served, unread))
        return [*absent, *unsettled]

    def _is_absent(self, row: RowKey, served: ServedRelease) -> bool:
        """Return whether a tier has been read that lacks a row in this release."""
        return any(origin.served.id == served.id for origin in self.missed.get(row, ()))


class TurnLookups(Generic[Waiter]):
    """Reads single rows for waiters, on one loop. Each falls through the tiers by itself.

    The first tier that returns a list in its share of the budget wins. After an error the next tier is read; after a
    missing list, only tiers with another release.
    """

    def __init__(self, tiers: Sequence[Tier], budget_s: float, complete: Complete[Waiter]) -> None:
        """*budget_s* limits the reads of a turn; *complete* is called once for each row."""
        self._tiers = tiers
        self._budget_s = budget_s
        self._complete = complete
        self._turn = list[RowKey]()
        """Rows to read in this loop iteration."""

        self._turn_spans = dict[RowKey, list[RequestSpan]]()
        self._waiting = dict[RowKey, list[Waiter]]()
        self._generation = POLICIES.number
        """Of the policies, among them the followed releases, of the reads in `_waiting`."""

        self._reads = set[asyncio.Future[Any]]()

    def add(self, row: RowKey, waiter: Waiter) -> None:
        """Read *row* together with the others of this iteration of the event loop, a turn; completes *waiter* later.

        `self._turn` has the rows of the turn, and `self._waiting` the waiters of each row that is being read. A waiter
        joins the read of an earlier turn if there is one for its row, unless another release went live since: that
        changes the number of POLICIES. Its span, if its request is traced, joins a read that has not been sent.
        """
        is_first_of_turn = not self._turn
        if is_first_of_turn and self._generation != POLICIES.number:
            self._generation = POLICIES.number
            self._waiting = {}

        waiters = self._waiting.get(row)
        if waiters is None:
            self._waiting[row] = [waiter]
            self._turn.append(row)
            if is_first_of_turn:
                asyncio.get_running_loop().call_soon(self._read_turn)
        else:
            waiters.append(waiter)
            if is_first_of_turn:
                return  # an earlier turn has sent the read

        spans = sampled_requests.get()
        if spans:
            self._turn_spans.setdefault(row, []).extend(spans)

    def leave(self, row: RowKey, waiter: Waiter) -> None:
        """Do not complete *waiter*, unless it waits for a release that was live before."""
        waiters = self._waiting.get(row, [])
        if waiter in waiters:
            waiters.remove(waiter)

    async def close(self) -> None:
        """Wait for pending reads."""
        while self._turn or self._reads:
            await asyncio.sleep(0)
            if self._reads:
                await asyncio.wait(self._reads)

    def _read_turn(self) -> None:
        """Send the rows of this loop iteration, or read them in a task."""
        turn = _Turn(
            tiers=self._tiers,
            deadline=loop_time() + self._budget_s,
            complete=self._complete,
            waiting=self._waiting,
            spans=self._turn_spans,
        )
        rows = self._turn
        self._turn = []
        self._turn_spans = {}
        try:
            is_sent = self._send(turn, rows)
        except Exception:
            log.debug("a turn could not be sent, and is read by a task", exc_info=True)
            is_sent = False
        if not is_sent:
            self._spawn(self._read_rows(turn, rows))

    def _send(self, turn: _Turn[Waiter], rows: Sequence[RowKey]) -> bool:
        """Send one read of *rows* to the first tier without a task; return whether it was sent.

        `_receive` is called with the replies. Nothing is sent if the rows are of several releases, if a request is
        traced, or if the store does not support it now: then the caller reads the rows in a task.
        """
        tier = self._tiers[0]
        groups = turn.groups(tier, rows)
        if len(groups) != 1 or turn.spans:
            return False
        read = tier.send(groups[0].served, [row.text for row in rows], turn.share_s(0))
        if read is None:
            return False
        self._reads.add(read.replies)
        read.replies.add_done_callback(partial(self._receive, turn, rows, read))
        return True

    def _receive(self, turn: _Turn[Waiter], rows: Sequence[RowKey], read: SentRead, replies: Replies) -> None:
        """Complete the rows that a read sent to the first tier has returned; a task reads the others.

        The task begins with the second tier if the first one lacks these rows or was late. If the read failed in
        another way, the task reads all rows in the first tier again.
        """
        self._reads.discard(replies)
        tier = self._tiers[0]
        unsettled = rows
        next_tier = 1
        try:
            results = tier.received(read)
            if results is None:  # failed
                next_tier = 0
            else:
                unsettled = turn.settle(RowsRead(Origin(tier, read.served), rows, results))
        except StoreUnavailable:
            pass  # late, which the tier has reported
        except Exception:
            log.exception("a lookup failed")
        if unsettled:
            self._spawn(self._read_rows(turn, unsettled, next_tier))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)

    async def _read_rows(self, turn: _Turn[Waiter], rows: Sequence[RowKey], first: int = 0) -> None:
        """Read rows from tier *first* on, and complete all, even after an error."""
        try:
            for tier_index in range(first, len(self._tiers)):
                rows = self._spawn_all_but_one_call(turn, rows, tier_index)
                if not rows:
                    break
                rows = await turn.read_tier(tier_index, rows)
        except Exception:
            log.exception("a lookup failed")
        finally:
            turn.complete_unread(rows)

    def _spawn_all_but_one_call(self, turn: _Turn[Waiter], rows: Sequence[RowKey], tier_index: int) -> Sequence[RowKey]:
        """Return the rows that this task reads by one call of the tier at *tier_index*; start tasks for the rest.

        A call takes `tier.keys_a_call` rows. While the circuit breaker is open, because the store fails, rows in the
        cache are completed, and a call is one row that probes the store; the next tier is read for the others.
        """
        tier = self._tiers[tier_index]
        uncached = _settle_cached(turn, rows, tier) if tier.breaker.is_open else rows

        size = tier.keys_a_call
        for start in range(size, len(uncached), size):
            self._spawn(self._read_rows(turn, uncached[start : start + size], tier_index))

        first_call = uncached[:size]
        if len(first_call) > 1 and tier.breaker.is_open:
            self._spawn(self._read_rows(turn, first_call[1:], tier_index + 1))
            return first_call[:1]
        return first_call


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
        served = tier.follower.find(self.release)
        return [] if served is None else [RowsOfRelease(served, rows)]

    async def read_group(self, tier_index: int, group: RowsOfRelease) -> Sequence[RowKey]:
        """Read rows like `read_tier`; those of a release that is gone are to be read in the tiers after it."""
        try:
            return await self.read_once(tier_index, group)
        except ReleaseMoved:
            return group.rows

    def settle(self, read: RowsRead) -> Sequence[RowKey]:
        """Keep the rows of a tier that were read or are absent; return those that failed, for the next tier."""
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
                return [_read_nowait(tier, group) for group in groups]
        return []


def _settle_cached(turn: _Turn[Waiter], rows: Sequence[RowKey], tier: Tier) -> Sequence[RowKey]:
    """Complete rows that a tier has in its cache, and return the others."""
    groups = turn.groups(tier, rows)
    if not groups:
        return rows
    unsettled = list[RowKey]()
    for group in groups:
        unsettled += turn.settle(_read_nowait(tier, group))
    return unsettled


def _share_s(until: float, tiers: int) -> float:
    """Return an equal share of the time until *until* for each of the *tiers* that may be read yet."""
    return max(0.0, until - loop_time()) / tiers


def _read_nowait(tier: Tier, group: RowsOfRelease) -> RowsRead:
    results = [tier.get(group.served, row.text) for row in group.rows]
    return RowsRead(Origin(tier, group.served), group.rows, results)


async def _within(timeout_s: float, reading: Coroutine[Any, Any, list[ReadResult]]) -> list[ReadResult]:
    """Cancel a read whose caller stops waiting, which says nothing about the store."""
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError:
        raise StoreUnavailable("the caller could not wait") from None
