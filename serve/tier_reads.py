"""Reads rows in tier after tier: at once where that needs no I/O, else by event-loop turn or by batch.

All single rows of one turn of the event loop share a deadline and a store call. A lookup joins a read of the same row.
A store that can send the call without a task does (`SendingReader`): a turn costs 29 instead of 38 µs, because its
reply runs no coroutines. After an error, a task reads the turn again.

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
                  store after pauses of 0.1 to 1 s (`tiers.Breaker`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
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
from hotplate.stores.store import Slot

log = logging.getLogger(__name__)

Waiter = TypeVar("Waiter")
Replies = asyncio.Future[list[Slot]]

# Of a batch, per user: its callers prefer waiting to popular lists.
BUDGET_S_PER_USER = 0.0005

_read_by = ContextVar[float | None]("_read_by", default=None)


@contextmanager
def read_within(timeout_s: float) -> Iterator[None]:
    """Wait *timeout_s* at most for reads in this block; they go on for other callers."""
    token = _read_by.set(loop_time() + timeout_s)
    try:
        yield
    finally:
        _read_by.reset(token)


def caller_deadline() -> float | None:
    """Return when the caller of this request stops waiting, by `loop_time`."""
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
    """Rows that one tier returned."""

    origin: Origin
    rows: Sequence[RowKey]
    slots: Sequence[Slot]


def get_nowait(
    tiers: Sequence[Tier], row: RowKey, missed: Origin | None = None, *, late: bool = False
) -> RowRead | None:
    """Read *row* without I/O, or return None if a tier needs it; *late* passes over such tiers.

    *missed* is a release before these tiers that lacks the row.
    """
    lacking = [] if missed is None else [missed.served.id]
    for tier in tiers:
        served = tier.follower.served_for(row)
        if served is None or (lacking and served.id in lacking):
            continue
        slot = tier.get(served, row.text)
        if isinstance(slot, StoreError):
            if late:
                continue
            return None
        origin = Origin(tier, served)
        if slot is not None and not is_empty(slot):
            return RowRead(origin, slot)
        lacking.append(served.id)
        missed = missed or origin
    return RowRead(missed, None)


@dataclass(slots=True)
class _Turn(Generic[Waiter]):
    """Single rows that are read together."""

    deadline: float
    """By `loop_time`."""

    waiting: dict[RowKey, list[Waiter]]
    """Waiters of incomplete rows, also of other turns."""

    spans: dict[RowKey, list[RequestSpan]]
    missed: dict[RowKey, list[Origin]] = field(default_factory=dict)
    """Releases that lack a row."""

    def has_missed(self, row: RowKey, served: ServedRelease) -> bool:
        return any(origin.served.id == served.id for origin in self.missed.get(row, ()))

    def first_missed(self, row: RowKey) -> Origin | None:
        origins = self.missed.get(row)
        return origins[0] if origins else None


class TurnLookups(Generic[Waiter]):
    """Reads single rows for waiters, on one loop. Each falls through the tiers by itself.

    The first tier that returns a list in its share of the budget wins. After an error the next tier is read; after a
    missing list, only tiers with another release.
    """

    def __init__(self, tiers: Sequence[Tier], budget_s: float, complete: Complete[Waiter]) -> None:
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
        """Read *row* in this loop iteration, or join a read of it; completes *waiter* later."""
        if not self._turn and self._generation != POLICIES.number:  # join no read of a release that was live before
            self._generation = POLICIES.number
            self._waiting = {}
        waiters = self._waiting.get(row)
        if waiters is not None:
            waiters.append(waiter)
            if not self._turn:
                return
        else:
            self._waiting[row] = [waiter]
            if not self._turn:
                asyncio.get_running_loop().call_soon(self._read_turn)
            self._turn.append(row)
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
        turn = _Turn(loop_time() + self._budget_s, self._waiting, self._turn_spans)
        rows = self._turn
        self._turn = []
        self._turn_spans = {}
        try:
            is_sent = self._send(turn, rows)
        except Exception:  # noqa: BLE001 -- the read by a task meets it, too, and reports it
            is_sent = False
        if not is_sent:
            self._spawn(self._read_rows(turn, rows))

    def _send(self, turn: _Turn[Waiter], rows: Sequence[RowKey]) -> bool:
        """Send a read of *rows* to the first tier, if that needs no task; return whether it is sent."""
        tier = self._tiers[0]
        groups = tier.follower.grouped(rows)
        if len(groups) != 1 or turn.spans:
            return False
        served = groups[0].served
        read = tier.send(served, [row.text for row in rows], _share_s(turn.deadline, len(self._tiers)))
        if read is None:
            return False
        self._reads.add(read.replies)
        read.replies.add_done_callback(partial(self._receive, turn, rows, read))
        return True

    def _receive(self, turn: _Turn[Waiter], rows: Sequence[RowKey], read: SentRead, replies: Replies) -> None:
        """Complete the rows of a sent read; a task reads the others in the tiers that are left."""
        self._reads.discard(replies)
        tier = self._tiers[0]
        following = 1
        try:
            slots = tier.received(read)
            if slots is None:
                following = 0
            else:
                rows = self._take(turn, RowsRead(Origin(tier, read.served), rows, slots))
        except StoreUnavailable:
            pass  # reported by the tier
        except Exception:
            log.exception("a lookup failed")
        if rows:
            self._spawn(self._read_rows(turn, rows, following))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)

    async def _read_rows(self, turn: _Turn[Waiter], rows: Sequence[RowKey], first: int = 0) -> None:
        """Read rows from tier *first* on, and complete all, even after an error."""
        try:
            for place in range(first, len(self._tiers)):
                rows = self._split(turn, rows, place)
                if not rows:
                    break
                rows = await self._complete_from_tier(turn, rows, place)
        except Exception:
            log.exception("a lookup failed")
        finally:
            for row in rows:
                self._complete(row, turn.waiting.pop(row, ()), turn.first_missed(row), None)

    def _split(self, turn: _Turn[Waiter], rows: Sequence[RowKey], place: int) -> Sequence[RowKey]:
        """Return the rows that this task reads in one call of a tier; other tasks read the rest.

        While the circuit is open, one row probes the store, and the next tier is read for others.
        """
        tier = self._tiers[place]
        if tier.breaker.is_open:
            rows = self._take_cached(turn, rows, tier)
        size = tier.keys_a_call
        for start in range(size, len(rows), size):
            self._spawn(self._read_rows(turn, rows[start : start + size], place))
        rows = rows[:size]
        if len(rows) > 1 and tier.breaker.is_open:
            self._spawn(self._read_rows(turn, rows[1:], place + 1))
            rows = rows[:1]
        return rows

    def _take_cached(self, turn: _Turn[Waiter], rows: Sequence[RowKey], tier: Tier) -> Sequence[RowKey]:
        groups = tier.follower.grouped(rows)
        if not groups:
            return rows
        rest = list[RowKey]()
        for group in groups:
            rest += self._take(turn, _read_nowait(tier, group))
        return rest

    async def _complete_from_tier(self, turn: _Turn[Waiter], rows: Sequence[RowKey], place: int) -> Sequence[RowKey]:
        """Read rows, complete those that the tier has, and return the others."""
        return await _by_release(self._tiers[place], rows, partial(self._complete_from_release, turn, place))

    async def _complete_from_release(self, turn: _Turn[Waiter], place: int, group: RowsOfRelease) -> Sequence[RowKey]:
        served = group.served
        rows = group.rows
        wanted = rows
        missed = list[RowKey]()
        if turn.missed:
            wanted = [row for row in rows if not turn.has_missed(row, served)]
            missed = [row for row in rows if turn.has_missed(row, served)]
        if not wanted:
            return rows
        if turn.spans:
            spans = [span for row in wanted for span in turn.spans.get(row, ())]
            sampled_requests.set(tuple(spans))
        tier = self._tiers[place]
        try:
            slots = await tier.read(
                served, [row.text for row in wanted], _share_s(turn.deadline, len(self._tiers) - place)
            )
        except ReleaseMoved:
            return await self._complete_from_tier(turn, rows, place)
        except StoreError:
            return rows
        return [*missed, *self._take(turn, RowsRead(Origin(tier, served), wanted, slots))]

    def _take(self, turn: _Turn[Waiter], read: RowsRead) -> Sequence[RowKey]:
        """Complete the rows that were found, and return the others."""
        complete = self._complete
        waiting = turn.waiting
        origin = read.origin
        rest: list[RowKey] = []  # twice for each turn, a call of `list[RowKey]` takes 0.4 µs more
        for row, slot in zip(read.rows, read.slots, strict=True):
            if isinstance(slot, bytes) and not is_empty(slot):
                complete(row, waiting.pop(row, ()), origin, slot)
            else:
                rest.append(row)
                if not isinstance(slot, StoreError):
                    turn.missed.setdefault(row, []).append(origin)
        return rest


@dataclass(slots=True)
class BatchRead:
    """The rows of one request that were read; those that no tier could read are missing."""

    deadline: float
    """By `loop_time`."""

    read_by: float | None
    """When the caller stops waiting."""

    parts: list[RowsRead] = field(default_factory=list)
    failure: StoreError | None = None
    """The last transient error."""

    async def read_from(self, origin: Origin, keys: Sequence[str], tiers: int) -> list[Slot]:
        """Read from one of the *tiers* that may be read yet, in an equal share of the time left."""
        reading = origin.tier.read(origin.served, keys, _share_s(self.deadline, tiers))
        if self.read_by is not None:
            reading = _within(_share_s(self.read_by, tiers), reading)
        return await reading


class BatchLookups:
    """Reads the rows of one request, which one tier answers all."""

    def __init__(self, tiers: Sequence[Tier], budget_s: float) -> None:
        self._tiers = tiers
        self._budget_s = budget_s

    async def read(self, rows: Sequence[RowKey], *, users: int = 0) -> BatchRead:
        """Read *rows* from the first tier that can be read; the budget is for *users*, or for the rows.

        Tiers also share the time until the caller stops waiting; a late one has not failed.
        """
        budget_s = self._budget_s + BUDGET_S_PER_USER * max(users, len(rows))
        batch = BatchRead(loop_time() + budget_s, caller_deadline())
        for place in range(len(self._tiers)):
            if not rows:
                break
            rows = await self._add_from_tier(batch, rows, place)
        return batch

    async def _add_from_tier(self, batch: BatchRead, rows: Sequence[RowKey], place: int) -> Sequence[RowKey]:
        """Add rows of one tier to *batch*, and return those that it could not read."""
        return await _by_release(self._tiers[place], rows, partial(self._add_from_release, batch, place))

    async def _add_from_release(self, batch: BatchRead, place: int, group: RowsOfRelease) -> Sequence[RowKey]:
        tier = self._tiers[place]
        origin = Origin(tier, group.served)
        keys = [row.text for row in group.rows]
        try:
            slots = await batch.read_from(origin, keys, len(self._tiers) - place)
        except ReleaseMoved:
            return await self._add_from_tier(batch, group.rows, place)
        except StoreError as error:
            if not isinstance(error, ReleaseCorrupt):
                batch.failure = error
            return group.rows
        batch.parts.append(RowsRead(origin, group.rows, slots))
        return ()

    def cached(self, rows: Sequence[RowKey]) -> list[RowsRead]:
        """Return slots of *rows* of the first tier with a release, read without I/O."""
        for tier in self._tiers:
            groups = tier.follower.grouped(rows)
            if groups:
                return [_read_nowait(tier, group) for group in groups]
        return []


async def _by_release(
    tier: Tier, rows: Sequence[RowKey], read: Callable[[RowsOfRelease], Awaitable[Sequence[RowKey]]]
) -> Sequence[RowKey]:
    """Call *read* with the rows of each release of a tier; return the rows that remain to be read."""
    groups = tier.follower.grouped(rows)
    if not groups:
        return rows
    if len(groups) == 1:
        return await read(groups[0])
    rests = await asyncio.gather(*map(read, groups))
    return [row for rest in rests for row in rest]


def _share_s(until: float, tiers: int) -> float:
    """Return an equal share of the time left for each of the *tiers* that may be read yet."""
    return max(0.0, until - loop_time()) / tiers


def _read_nowait(tier: Tier, group: RowsOfRelease) -> RowsRead:
    slots = [tier.get(group.served, row.text) for row in group.rows]
    return RowsRead(Origin(tier, group.served), group.rows, slots)


async def _within(timeout_s: float, reading: Coroutine[Any, Any, list[Slot]]) -> list[Slot]:
    """Cancel a read whose caller stops waiting, which says nothing about the store."""
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError:
        raise StoreUnavailable("the caller could not wait") from None
