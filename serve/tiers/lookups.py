"""Lookups: the walk of rows over tiers, in reading order, within a deadline (`TierWalk`), or without I/O.

A row that needs I/O takes this way, and its list the same way back:

    Lookups.add        The rows that are requested in one turn of the event loop are read together.
    TierWalk.read      They are divided into calls of a tier: by release, and by the size of a call.
    RemoteTier.read    Cache, circuit breaker, time limit, hedge; counts and decodes (`tiers`).
    Reader.get_many    One call of the store.

There are two policies. They differ in what a tier's answer settles:

    rows          A list settles its row. After an error, the row is read in the next tier; after an absence, in the
                  next tier with another release. So are single rows, and rows of pages, in one release by its id.
                  `get_nowait` is the same for one row, without I/O.
    batch         The rows of one request. The first tier that can be read settles all (`TierWalk.is_batch`).

The time limits of a read from a remote store, in the order in which they are set:

    caller        0.9 of what is left of X-Request-Timeout-Ms, if sent (`read_within`). A GET stops waiting for
                  its row, and is answered without it; the read goes on for other requests. The read of a batch ends.
    budget        --budget, 50 ms, from the turn or the batch on; 0.5 ms more for each user of a batch.
    share         An equal part of the rest of the budget for this tier and each after it. At its end, the read is
                  cancelled, the circuit breaker counts a failure, and the next tier is read.
    store share   0.9 of the share, passed to the store as `timeout_s`. Those that read key by key (Cosmos DB, Redis
                  Cluster) return the keys that they have by then; a single Redis server ignores it.
    hedge delay   1 to 100 ms, the running 95th percentile: then a replica is read, too (`hedging.Hedge`).
    connection    1 s without a reply, 5 s of a replica: the multiplexed connection to Redis is closed
                  (`multiplexed.Multiplexer`). Its callers have given up by then, unless the budget is larger.

Other limits belong to the store, and reads fail at once in their pauses:

    connect       1 s to open a connection to Redis (CONNECT_TIMEOUT_S), then pauses of 0.05 to 2 s
                  (RECONNECT_PAUSES_S).
    discovery     1 s for each node or sentinel that is asked for the servers, then pauses of 0.1 to 1 s
                  (DISCOVERY_TIMEOUT_S, DISCOVERY_PAUSES_S).
    breaker       After 5 failed reads in a row, or 50 of parts of a store, the circuit opens; one read probes the
                  store after pauses of 0.1 to 1 s (`breaker.Breaker`).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import msgspec

from hotplate.base.timing import loop_time
from hotplate.serve.errors import ReleaseMoved
from hotplate.serve.generation import POLICIES
from hotplate.serve.metrics import CACHE, CACHE_SHARED
from hotplate.serve.releases.served import RowsOfRelease, ServedRelease
from hotplate.serve.telemetry.spans import sampled_requests
from hotplate.serve.tiers.tier import Origin, Tier
from hotplate.stores.concurrency import all_done
from hotplate.stores.encoding import OFFSET_BYTES, RowKey
from hotplate.stores.errors import ReleaseCorrupt, StoreError, StoreUnavailable
from hotplate.stores.store import ReadResult, batches_of

if TYPE_CHECKING:
    from hotplate.serve.telemetry.tracing import RequestSpan

log = logging.getLogger(__name__)

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


class RowsRead(msgspec.Struct, frozen=True):
    """Rows that were read from one release, with the result of each; *origin* is None if no tier could be read."""

    origin: Origin | None
    rows: Sequence[RowKey]
    results: Sequence[ReadResult]


class RequestRead(NamedTuple):
    """What was read for one request."""

    parts: list[RowsRead]
    failure: StoreError | None
    """The last error of a tier, other than damage."""


Waiter = Callable[[Origin | None, RowKey, ReadResult], None]
"""A request that waits for a row, of the fast lane or a future. Takes its result once, and raises nothing.

The origin is where the list was read, or else the first tier that lacks it; None if no tier could be read.
"""


def is_list(result: ReadResult) -> TypeGuard[bytes]:
    """Return whether a read returned a list; an empty one counts as absent."""
    return isinstance(result, bytes) and len(result) > OFFSET_BYTES


def _is_missed(missed: Iterable[Origin], release: ServedRelease) -> bool:
    """Return whether a row is absent in a release, which any tier may have: then it is not read in it again."""
    for origin in missed:  # noqa: SIM110 -- `any` takes 0.3 µs more
        if origin.release.id == release.id:
            return True
    return False


def get_nowait(
    tiers: Sequence[Tier], row: RowKey, known: Origin | None = None, *, late: bool = False
) -> RowsRead | None:
    """Read *row*, the key of a list, in the first tier that has it, without I/O; None if a tier needs I/O.

    Without a list, the origin is the first tier that lacks it, if any could be read. With *late*, tiers that need I/O
    are skipped. *known* is where the row is known to be absent.
    """
    missed = [] if known is None else [known]
    for tier in tiers:
        release = tier.follower.release_for(row)
        if release is None or (missed and _is_missed(missed, release)):
            continue

        result = tier.get(release, row.text)
        if isinstance(result, StoreError):  # also for a store that needs I/O
            if late:
                continue
            return None

        origin = Origin(tier, release)
        if is_list(result):
            return RowsRead(origin, [row], [result])
        missed.append(origin)

    return RowsRead(missed[0] if missed else None, [row], [None])


@dataclass(kw_only=True)
class TierWalk:
    """One walk of rows over tiers, within a deadline.

    Each tier gets an equal share of the time left for it and those after it. Rows that are read by different calls go
    on to the next tier by themselves.
    """

    tiers: Sequence[Tier]
    """In reading order."""

    deadline: float
    """By `loop_time`."""

    deliver: Callable[[RowsRead], None]
    """Called with rows as soon as they are settled."""

    is_batch: bool = False
    """Whether the first tier that can be read settles all rows."""

    caller_deadline: float | None = None
    """When the caller stops waiting. The tiers share that time, too; a read that it ends is no failure of a tier."""

    release: str | None = None
    """Id of the only release to read; by default, the one that each tier serves to a user."""

    spans: "Mapping[RowKey, Sequence[RequestSpan]]" = field(default_factory=dict)
    """Of sampled requests, by the row that they wait for."""

    failure: StoreError | None = None
    """The last error of a tier, other than damage."""

    missed: dict[RowKey, list[Origin]] = field(default_factory=dict)
    """Where rows are absent that go on to the next tier."""

    def _settle(self, read: RowsRead) -> Sequence[RowKey]:
        """Deliver the rows for which a tier's answer is final; return the others, to be read in the tiers after it.

        Notes which of these are absent.
        """
        if self.is_batch:
            self.deliver(read)
            return ()

        lists: list[RowKey] = []  # three times for each turn, a call of `list[RowKey]` takes 0.4 µs more
        bodies: list[ReadResult] = []
        remaining: list[RowKey] = []
        for row, result in zip(read.rows, read.results, strict=True):
            if is_list(result):
                lists.append(row)
                bodies.append(result)
                continue
            remaining.append(row)
            if read.origin is not None and not isinstance(result, StoreError):
                self.missed.setdefault(row, []).append(read.origin)
        if lists:
            self.deliver(RowsRead(read.origin, lists, bodies))
        return remaining

    def end(self, rows: Sequence[RowKey]) -> None:
        """Deliver rows that no tier has, with the first tier that lacks them, if any was read.

        Of a batch, what the first tier with a release has in memory is delivered.
        """
        first_serving = [tier for tier in self.tiers if tier.follower.live is not None][:1]
        for row in rows:
            read = get_nowait(first_serving, row, late=True) if self.is_batch else None
            missed = self.missed.get(row, [None])
            self.deliver(read or RowsRead(missed[0], [row], [None]))

    def _calls(self, tier: Tier, rows: Sequence[RowKey]) -> tuple[Sequence[RowsOfRelease], Sequence[RowKey]]:
        """Return the calls that read *rows* in a tier, and the rows that are not read in it.

        There is a call for each release of a batch; the calls for other rows take at most `tier.keys_a_call`, and run
        at once. No row is read if the tier serves no release, or lacks `release`. While the circuit breaker is open,
        because the store fails, one row probes the store, and the others are read in the next store.
        """
        if self.release is None:
            calls = tier.follower.grouped(rows)
        else:
            release = tier.follower.find(self.release)
            calls = [] if release is None else [RowsOfRelease(release, rows)]
        skipped = () if calls else rows
        if self.is_batch or not calls:
            return calls, skipped

        if tier.breaker.is_open:
            probe = calls[0].rows[0]
            return [RowsOfRelease(calls[0].release, [probe])], [row for row in rows if row is not probe]

        size = tier.keys_a_call
        if len(rows) <= size:
            return calls, skipped
        return [RowsOfRelease(call.release, part) for call in calls for part in batches_of(call.rows, size)], skipped

    async def read(self, rows: Sequence[RowKey], first: int = 0) -> None:
        """Read *rows* in tier after tier, from the one at the index *first* on, until all are settled."""
        if not rows:
            return
        if first == len(self.tiers):
            self.end(rows)
            return

        calls, skipped = self._calls(self.tiers[first], rows)
        reads = [self._read_call(first, call) for call in calls]
        if skipped:
            reads.append(self.read(skipped, first + 1))
        if len(reads) == 1:
            await reads[0]
            return

        await all_done(*reads)

    async def _read_call(self, tier_index: int, call: RowsOfRelease) -> None:
        """Read rows of one release in the tier at *tier_index*, and those that it does not settle in the next tiers.

        If the release is gone, all are read in its successor.
        """
        remaining = call.rows
        next_tier = tier_index + 1
        unread = call.rows
        absent = frozenset[RowKey]()  # which are not read in this release again
        if self.missed:
            absent = frozenset(row for row in unread if _is_missed(self.missed.get(row, ()), call.release))
            unread = [row for row in unread if row not in absent]
        try:
            if unread:
                results = await self._results_of(tier_index, call.release, unread)
                origin = Origin(self.tiers[tier_index], call.release)
                remaining = [*absent, *self._settle(RowsRead(origin, unread, results))]
        except ReleaseMoved:
            if self.release is None:
                next_tier = tier_index
        except StoreError as error:
            if not isinstance(error, ReleaseCorrupt):  # damaged rows do not mean that the store cannot be read
                self.failure = error

        if remaining:
            await self.read(remaining, next_tier)

    async def _results_of(self, tier_index: int, release: ServedRelease, rows: Sequence[RowKey]) -> list[ReadResult]:
        """Return the results of a call, within the tier's share of the time; raises as `Tier.read`."""
        if self.spans:
            spans = [span for row in rows for span in self.spans.get(row, ())]
            sampled_requests.set(tuple(spans))  # a context variable: for the read by this task

        # The tier counts it as a failure if its share of the time is over, but not if the caller's is.
        keys = [row.text for row in rows]
        reading = self.tiers[tier_index].read(release, keys, self._share_s(self.deadline, tier_index))
        if self.caller_deadline is None:
            return await reading
        return await _within(self._share_s(self.caller_deadline, tier_index), reading)

    def _share_s(self, until: float, tier_index: int) -> float:
        """Return the time for the tier at *tier_index*: an equal share of the time until *until*."""
        return max(0.0, until - loop_time()) / (len(self.tiers) - tier_index)


class Lookups:
    """Reads rows from the tiers of a service: single ones for waiters, and those of one request. On one loop."""

    def __init__(self, tiers: Sequence[Tier], budget_s: float) -> None:
        """*budget_s* limits the reads of a turn, and those of a batch of one user; see BUDGET_S_PER_USER."""
        self._tiers = tiers
        self._budget_s = budget_s
        self._turn = dict[RowKey, list[Waiter]]()
        """Rows to read in this loop iteration, with their waiters."""

        self._turn_spans = dict[RowKey, list["RequestSpan"]]()
        self._waiting = dict[RowKey, list[Waiter]]()
        """Of all rows that are not delivered yet, also of other turns."""

        self._generation = POLICIES.number
        """Of the policies, among them the followed releases, of the reads in `_waiting`."""

        self._reads = set[asyncio.Task[None]]()

    # Single rows

    async def read_row(self, row: RowKey) -> RowsRead:
        """Read *row* together with the others of this iteration of the event loop.

        If the caller's deadline passes meanwhile, returns what needs no I/O, and the read goes on for other requests.
        """
        reading: asyncio.Future[RowsRead] = asyncio.get_running_loop().create_future()

        def take(origin: Origin | None, row: RowKey, result: ReadResult) -> None:
            if not reading.done():
                reading.set_result(RowsRead(origin, [row], [result]))

        self.add(row, take)
        try:
            async with asyncio.timeout_at(caller_deadline()):
                return await reading
        except TimeoutError:
            return get_nowait(self._tiers, row, late=True) or RowsRead(None, [row], [None])

    def add(self, row: RowKey, waiter: Waiter) -> None:
        """Read *row* together with the others of this iteration of the event loop, a turn; deliver it to *waiter*.

        `self._turn` has the rows of the turn, and `self._waiting` the waiters of each row that is being read. A waiter
        joins the read of an earlier turn if there is one for its row, unless another release went live since: that
        changes the number of POLICIES.
        """
        is_first_of_turn = not self._turn
        if is_first_of_turn and self._generation != POLICIES.number:
            self._generation = POLICIES.number
            self._waiting = {}  # earlier turns have the former dict, and deliver to its waiters

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

    async def close(self) -> None:
        """Wait for pending reads."""
        while self._turn or self._reads:
            await asyncio.sleep(0)
            if self._reads:
                await asyncio.wait(self._reads)

    async def _read_turn(self) -> None:
        """Read the rows that were added before this task began, and deliver all, even after an error."""
        rows = self._turn
        waiting = self._waiting
        walk = TierWalk(
            tiers=self._tiers,
            deadline=loop_time() + self._budget_s,
            spans=self._turn_spans,
            deliver=partial(_deliver, waiting),
        )
        self._turn = {}
        self._turn_spans = {}
        try:
            await walk.read(list(rows))
        except Exception:
            log.exception("a lookup failed")
        finally:
            # A row that was delivered may be in `waiting` again, for a later turn.
            walk.end([row for row, waiters in rows.items() if waiting.get(row) is waiters])

    # The rows of one request

    async def read(
        self,
        rows: Sequence[RowKey],
        *,
        users: int = 0,
        release: str | None = None,
        tiers: Sequence[Tier] | None = None,
    ) -> RequestRead:
        """Read *rows* from the first tier that can be read, or those of one *release*, by its id, from *tiers*.

        The budget is for *users*, at least as many as rows.
        """
        parts = list[RowsRead]()
        walk = TierWalk(
            tiers=self._tiers if tiers is None else tiers,
            deadline=loop_time() + self._budget_s + BUDGET_S_PER_USER * max(users, len(rows)),
            deliver=parts.append,
            is_batch=release is None,
            caller_deadline=caller_deadline(),
            release=release,
        )
        await walk.read(rows)
        return RequestRead(parts, walk.failure)


def _deliver(waiting: dict[RowKey, list[Waiter]], read: RowsRead) -> None:
    """Deliver the results of rows to all requests in *waiting* that wait for them."""
    origin = read.origin
    for row, result in zip(read.rows, read.results, strict=True):
        waiters = waiting.pop(row, ())
        if len(waiters) > 1 and origin is not None:  # all but one had no read of their own
            origin.tier.metrics.count_in(CACHE, origin.tier.name, CACHE_SHARED, number=len(waiters) - 1)
        for take in waiters:
            take(origin, row, result)


async def _within(timeout_s: float, reading: Coroutine[Any, Any, list[ReadResult]]) -> list[ReadResult]:
    """Cancel a read whose caller stops waiting, which says nothing about the store."""
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError:
        raise StoreUnavailable("the caller could not wait") from None
