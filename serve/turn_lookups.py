"""Reads single rows together: those that are requested in one turn of the event loop share a call of the store."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hotplate.serve.encoded_lists import EncodedList
from hotplate.serve.generation import POLICIES
from hotplate.serve.lookups import RowWalk
from hotplate.serve.releases.follower import RowsOfRelease
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.telemetry.spans import sampled_requests
from hotplate.serve.tiers import Origin, Tier, batches_of, loop_time
from hotplate.stores.encoding import RowKey
from hotplate.stores.store import ReadResult

if TYPE_CHECKING:
    from hotplate.serve.telemetry.tracing import RequestSpan

log = logging.getLogger(__name__)


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
class _Turn(RowWalk):
    """Single rows that are read together. Each is completed as soon as it is settled."""

    complete: Complete
    waiters: Mapping[RowKey, list[Waiter]]
    """Of its rows."""

    waiting: dict[RowKey, list[Waiter]]
    """The same of all incomplete rows, also of other turns."""

    spans: "dict[RowKey, list[RequestSpan]]"
    """Of sampled requests, by the row that they wait for."""

    def deliver(self, row: RowKey, origin: Origin | None, body: bytes | None) -> None:
        """Answer all requests that wait for a row."""
        self.complete(row, self.waiting.pop(row, ()), origin, body)

    def complete_unread(self) -> None:
        """Complete the rows that are incomplete."""
        # A row that was completed may be in `waiting` again, for a later turn.
        self.end([row for row, waiters in self.waiters.items() if self.waiting.get(row) is waiters])

    def calls(self, tier: Tier, rows: Sequence[RowKey]) -> tuple[Sequence[RowsOfRelease], Sequence[RowKey]]:
        """Return the calls that read *rows* in a tier, and the rows that are not read in it.

        A call takes at most `tier.keys_a_call` rows, and calls run at once. While the circuit breaker is open, because
        the store fails, rows in the cache are completed, one row probes the store, and the others are read in the next
        store.
        """
        calls, skipped = super().calls(tier, rows)
        if tier.breaker.is_open:
            uncached, absent = self.settle_nowait(tier, calls)
            points = [RowsOfRelease(call.release, [row]) for call in uncached for row in call.rows]
            others = [point.rows[0] for point in points[1:]]
            return points[:1], [*skipped, *absent, *others]

        size = tier.keys_a_call
        if len(rows) <= size:
            return calls, skipped
        return [RowsOfRelease(call.release, part) for call in calls for part in batches_of(call.rows, size)], skipped

    async def results_of(self, tier_index: int, release: ServedRelease, rows: Sequence[RowKey]) -> list[ReadResult]:
        """Read rows, traced for the sampled requests among those that wait for them."""
        if self.spans:
            spans = [span for row in rows for span in self.spans.get(row, ())]
            sampled_requests.set(tuple(spans))  # a context variable: for the read by this task
        return await super().results_of(tier_index, release, rows)


class TurnLookups:
    """Reads single rows for waiters, on one loop. Each falls through the tiers by itself.

    The first tier that returns a list in its share of the budget wins. After an error the next tier is read; after a
    missing list, only tiers with another release.
    """

    def __init__(self, tiers: Sequence[Tier], budget_s: float, complete: Complete) -> None:
        """*budget_s* limits the reads of a turn; *complete* is called once for each row."""
        self._tiers = tiers
        self._budget_s = budget_s
        self._complete = complete
        self._turn = dict[RowKey, list[Waiter]]()
        """Rows to read in this loop iteration, with their waiters."""

        self._turn_spans = dict[RowKey, list["RequestSpan"]]()
        self._waiting = dict[RowKey, list[Waiter]]()
        self._generation = POLICIES.number
        """Of the policies, among them the followed releases, of the reads in `_waiting`."""

        self._reads = set[asyncio.Task[None]]()

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
            self._waiting[row] = self._turn[row] = [waiter]
            if is_first_of_turn:
                task = asyncio.create_task(self._read_turn())
                self._reads.add(task)
                task.add_done_callback(self._reads.discard)
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

    async def _read_turn(self) -> None:
        """Read the rows that were added before this task began, and complete all, even after an error.

        The time of the reads is limited by `self._budget_s` from then on.
        """
        turn = _Turn(
            tiers=self._tiers,
            deadline=loop_time() + self._budget_s,
            complete=self._complete,
            waiters=self._turn,
            waiting=self._waiting,
            spans=self._turn_spans,
        )
        self._turn = {}
        self._turn_spans = {}
        try:
            await turn.read(list(turn.waiters))
        except Exception:
            log.exception("a lookup failed")
        finally:
            turn.complete_unread()
