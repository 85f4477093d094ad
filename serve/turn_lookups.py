"""Reads single rows together: those that are requested in one turn of the event loop share a call of the store.

A store that can send the call of a turn without a task does (`SendingReader`): a turn costs 29 instead of 38 µs,
because its reply runs no coroutines. After an error, a task reads the turn again.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from hotplate.serve.encoded_lists import EncodedList
from hotplate.serve.generation import POLICIES
from hotplate.serve.releases.follower import RowsOfRelease
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.remote_tier import RemoteTier, SentRead
from hotplate.serve.telemetry.spans import RequestSpan, sampled_requests
from hotplate.serve.tier_reads import RowsRead, TierWalk, read_nowait
from hotplate.serve.tiers import Origin, Tier, loop_time
from hotplate.stores.encoding import RowKey, is_empty
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.store import ReadResult

log = logging.getLogger(__name__)

Replies = asyncio.Future[list[ReadResult]]


class Waiter(Protocol):
    """A request that waits in `TurnLookups` for a list, which it takes once: of the fast lane, or a future."""

    @property
    def fallback(self) -> RowKey:
        """The popular list to take instead."""

    def take_row(self, origin: Origin, row: RowKey, body: bytes) -> None:
        """Take the list that was read."""

    def take(self, encoded: EncodedList) -> None:
        """Take the popular list."""

    def fail(self, error: Exception) -> None:
        """Answer that no list can be delivered: *error* is NotReady, UnknownList, or a defect."""


# Called with a row, its waiters, its origin (None if no tier could be read), and the opened list (None if absent).
Complete = Callable[[RowKey, Sequence[Waiter], Origin | None, bytes | None], None]


@dataclass(kw_only=True)
class _Turn(TierWalk):
    """Single rows that are read together, each of which falls through the tiers by itself."""

    complete: Complete
    waiting: dict[RowKey, list[Waiter]]
    """Waiters of incomplete rows, also of other turns."""

    spans: dict[RowKey, list[RequestSpan]]
    """Of sampled requests, by the row that they wait for."""

    missed: dict[RowKey, list[Origin]] = field(default_factory=dict)
    """Releases that lack a row, which is not read in them again."""

    def settle(self, read: RowsRead) -> Sequence[RowKey]:
        """Complete the rows of *read* that have a list, and return the others, to be read in the next tier.

        *read* has what a tier, a store, returned. Completing a row answers all requests that wait for it, its waiters
        in `self.waiting`. A row that is absent in the release, not one that could not be read, is added to
        `self.missed`.
        """
        complete = self.complete
        waiting = self.waiting
        origin = read.origin

        remaining: list[RowKey] = []  # twice for each turn, a call of `list[RowKey]` takes 0.4 µs more
        for row, result in zip(read.rows, read.results, strict=True):
            if isinstance(result, bytes) and not is_empty(result):
                complete(row, waiting.pop(row, ()), origin, result)
            else:
                remaining.append(row)
                if not isinstance(result, StoreError):
                    self.missed.setdefault(row, []).append(origin)
        return remaining

    def complete_unread(self, rows: Sequence[RowKey]) -> None:
        """Complete rows that no tier has, with the first release that lacks them, if any was read."""
        for row in rows:
            origins = self.missed.get(row)
            self.complete(row, self.waiting.pop(row, ()), origins[0] if origins else None, None)

    async def read_once(self, tier_index: int, group: RowsOfRelease) -> Sequence[RowKey]:
        """Read rows of one release in the tier at *tier_index*; return those to be read in the tiers after it.

        Tiers are stores in reading order. A row that is absent in the same release of an earlier tier is not read
        again. The read is traced for the sampled requests among those that wait for the rows. Raises ReleaseMoved if
        the release is gone.
        """
        absent = list[RowKey]()
        unread = group.rows
        if self.missed:
            absent = [row for row in group.rows if self._is_absent(row, group.release)]
            unread = [row for row in group.rows if not self._is_absent(row, group.release)]
        if not unread:
            return absent

        if self.spans:
            spans = [span for row in unread for span in self.spans.get(row, ())]
            sampled_requests.set(tuple(spans))  # a context variable: for the read by this task
        remaining = await super().read_once(tier_index, RowsOfRelease(group.release, unread))
        return [*absent, *remaining]

    def _is_absent(self, row: RowKey, release: ServedRelease) -> bool:
        """Return whether a tier has been read that lacks a row in this release."""
        return any(origin.release.id == release.id for origin in self.missed.get(row, ()))


class TurnLookups:
    """Reads single rows for waiters, on one loop. Each falls through the tiers by itself.

    The first tier that returns a list in its share of the budget wins. After an error the next tier is read; after a
    missing list, only tiers with another release.
    """

    def __init__(self, tiers: Sequence[Tier], budget_s: float, complete: Complete) -> None:
        """*budget_s* limits the reads of a turn; *complete* is called once for each row."""
        self._tiers = tiers
        self._sending_tier = tiers[0] if isinstance(tiers[0], RemoteTier) else None
        """The first tier, if reads may be sent to it without a task."""

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
        """Read *row* together with the others of this iteration of the event loop, a turn; complete *waiter* later.

        `self._turn` has the rows of the turn, and `self._waiting` the waiters of each row that is being read: requests
        that are answered when the row is read. A waiter joins the read of an earlier turn if there is one for its row,
        unless another release went live since: that changes the number of POLICIES.
        """
        is_first_of_turn = not self._turn
        if is_first_of_turn and self._generation != POLICIES.number:
            self._generation = POLICIES.number
            self._waiting = {}  # earlier turns have the former dict, and complete its waiters

        waiters = self._waiting.get(row)
        if waiters is None:
            self._waiting[row] = [waiter]
            self._turn.append(row)
            if is_first_of_turn:
                asyncio.get_running_loop().call_soon(self._read_turn)
        else:
            waiters.append(waiter)
            if is_first_of_turn:
                return  # an earlier turn has sent the read, without the span of this request

        spans = sampled_requests.get()  # of this request, if it is traced
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
        """Read the rows that were added in this iteration of the event loop: without a task, or else in one.

        The time of the reads is limited by `self._budget_s` from now on.
        """
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

    def _send(self, turn: _Turn, rows: Sequence[RowKey]) -> bool:
        """Send one read of *rows* to the first store without a task; return whether it was sent.

        `_receive` is called with the replies. Nothing is sent if the rows are of several releases, if a request is
        traced, or if the store does not support it now: then the caller reads the rows in a task.
        """
        tier = self._sending_tier
        if tier is None or turn.spans:
            return False
        groups = turn.groups(tier, rows)  # by release
        if len(groups) != 1:
            return False

        read = tier.send(groups[0].release, [row.text for row in rows], turn.share_s(turn.deadline, 0))
        if read is None:
            return False

        self._reads.add(read.replies)  # for `close`
        read.replies.add_done_callback(partial(self._receive, turn, rows, read))
        return True

    def _receive(self, turn: _Turn, rows: Sequence[RowKey], read: SentRead, replies: Replies) -> None:
        """Complete the rows that the read sent to the first store has returned; a task reads the others.

        Called when *replies* are done. The task begins with the second store if the first one lacks these rows or was
        late. If the read failed in another way, such as by a closed connection, the task reads all rows in the first
        store again.
        """
        self._reads.discard(replies)
        remaining = rows
        next_tier = 1
        try:
            results = read.tier.received(read)
            if results is None:  # failed
                next_tier = 0
            else:
                remaining = turn.settle(RowsRead(Origin(read.tier, read.release), rows, results))
        except StoreUnavailable:
            pass  # late, which the tier has reported
        except Exception:
            log.exception("a lookup failed")

        if remaining:
            self._spawn(self._read_rows(turn, remaining, next_tier))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)

    async def _read_rows(self, turn: _Turn, rows: Sequence[RowKey], first: int = 0) -> None:
        """Read rows from tier *first* on, and complete all, even after an error."""
        try:
            for tier_index in range(first, len(self._tiers)):
                rows = self._first_call(turn, rows, tier_index)
                if not rows:
                    break
                rows = await turn.read_tier(tier_index, rows)
        except Exception:
            log.exception("a lookup failed")
        finally:
            turn.complete_unread(rows)

    def _first_call(self, turn: _Turn, rows: Sequence[RowKey], tier_index: int) -> Sequence[RowKey]:
        """Return the rows that this task reads by one call of the store at *tier_index*; start tasks for the others.

        A call takes at most `tier.keys_a_call` rows, and calls run at once. While the circuit breaker is open, because
        the store fails, rows in the cache are completed, one row probes the store, and the others are read in the next
        store.
        """
        tier = self._tiers[tier_index]
        if tier.breaker.is_open:
            uncached = _settle_cached(turn, rows, tier)
            if len(uncached) > 1:
                self._spawn(self._read_rows(turn, uncached[1:], tier_index + 1))
            return uncached[:1]

        size = tier.keys_a_call
        for start in range(size, len(rows), size):
            self._spawn(self._read_rows(turn, rows[start : start + size], tier_index))
        return rows[:size]


def _settle_cached(turn: _Turn, rows: Sequence[RowKey], tier: Tier) -> Sequence[RowKey]:
    """Complete rows that a tier has in its cache, and return the others."""
    groups = turn.groups(tier, rows)
    if not groups:  # it serves no release
        return rows
    remaining = list[RowKey]()
    for group in groups:
        remaining += turn.settle(read_nowait(tier, group))
    return remaining
