"""Admission of batches by queueing delay, as in CoDel; each worker decides for itself.

A batch is refused when it arrives if those that wait, at the pace of the last ones, already take the time that it may
wait. If the pace falls, it is refused later.

The delay is the lateness of an event loop timer, and the waiting time of batches. Of the lateness only the loop's CPU
time counts: refusing does not shorten that of other processes.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic, thread_time
from typing import NamedTuple, TypeVar

from hotplate.base.timing import loop_time
from hotplate.serve.problems import ClientGone, Problem, overloaded

# Interval of the timer, which runs during batches; if it is later, at most one batch runs.
TICK_S = 0.005
# Shorter delays are bursts. After a longer one, batches may wait for TARGET_S, until none was refused for INTERVAL_S.
INTERVAL_S = 0.1
TARGET_S = 0.015
# Batches that run at once. Each tick adds one if batches wait and the loop worked for less than IDLE_SHARE.
MIN_RUNNING = 1
MAX_RUNNING = 64
IDLE_SHARE = 0.5
MAX_WAITING = 256
# Weight of the last batch in the mean time between the ends of two batches.
PACE_WEIGHT = 0.1

T = TypeVar("T")


class _WaitingBatch(NamedTuple):
    since: float
    admitted: asyncio.Future[None]


class Admission:
    """Admission of one worker, on its loop."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """*count* is called with the reason of each refusal."""
        self._count = count
        self._limit = MIN_RUNNING
        """How many batches may run at once."""

        self._running = 0
        self._waiting = deque[_WaitingBatch]()
        """The oldest first."""

        self._waiting_since = 0.0
        """Since when there have been waiting batches."""

        self._refused_at = -inf
        self._pace_s = 0.0
        """Mean time between the ends of two batches while others wait."""

        self._ended_at = -inf
        """The end of the last batch; -inf if none waited then."""

        self._timer: asyncio.TimerHandle | None = None
        """While batches run, measures how late the event loop is."""

        self._timer_due = 0.0
        self._cpu_at_start_s = 0.0
        """CPU time of the loop's thread when the timer started."""

        self._is_late = False
        """Whether the timer was late the last time, because the loop worked."""

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def refuse_late(self) -> Problem:
        """Count and return the refusal of a request that cannot be answered in its time."""
        return self._counted_refusal("deadline", "the time that X-Request-Timeout-Ms gives has passed")

    @property
    def is_full(self) -> bool:
        """Whether a batch that arrives now would wait too long."""
        waiting = len(self._waiting)
        return waiting >= MAX_WAITING or waiting * self._pace_s > self._allowed_s(monotonic())

    def refuse(self) -> Problem:
        """Count and return the refusal of a batch that would wait too long, or has."""
        self._refused_at = monotonic()
        return self._counted_refusal("batch_delay", "more batches come than can be answered in time")

    async def run(self, work: Callable[[], Awaitable[T]], *, deadline: float | None, is_gone: Callable[[], bool]) -> T:
        """Call *work*, that of a batch, when it may run.

        Raises ClientGone, and Problem if *deadline*, by the loop's time, has passed then.
        """
        await self._wait_until_admitted()
        try:
            if is_gone():
                self._count("gone")
                raise ClientGone
            if deadline is not None and loop_time() > deadline:
                raise self.refuse_late()
            return await work()
        finally:
            self._count_ended_batch()

    async def _wait_until_admitted(self) -> None:
        """Wait until this worker may start a batch, a POST for many lists, and count it as running.

        Batches wait in the order of their arrival. Raises Problem (503): at once if the queue is too long, or after
        the batch has waited for too long. A caller that returns from here calls `_count_ended_batch` at the end.
        """
        if self._has_room and not self._waiting:
            self._count_started_batch()
            return
        if self.is_full:
            raise self.refuse()

        now = monotonic()
        if not self._waiting:
            self._waiting_since = now
        # `_admit_waiting_batches` sets its result, and counts the batch as running, or sets the refusal.
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append(_WaitingBatch(now, admitted))
        try:
            await admitted
        except asyncio.CancelledError:
            # It may have been admitted and cancelled in the same iteration of the loop: then it is counted already.
            was_admitted = admitted.done() and not admitted.cancelled() and admitted.exception() is None
            if was_admitted:
                self._count_ended_batch()
            raise

    @property
    def _has_room(self) -> bool:
        # One batch may always run: refusals alone can make the loop late.
        return self._running < (MIN_RUNNING if self._is_late else self._limit)

    def _count_started_batch(self) -> None:
        self._running += 1
        if self._timer is None:
            self._start_timer()

    def _count_ended_batch(self) -> None:
        self._running -= 1
        now = monotonic()
        if self._ended_at > -inf:
            self._pace_s += PACE_WEIGHT * (now - self._ended_at - self._pace_s)
        self._ended_at = now if self._waiting else -inf
        self._admit_waiting_batches()

    def _allowed_s(self, now: float) -> float:
        """Return how long a batch may wait."""
        is_standing = self._waiting and now - self._waiting_since > INTERVAL_S
        if is_standing or now - self._refused_at < INTERVAL_S:
            return TARGET_S
        return INTERVAL_S

    def _admit_waiting_batches(self) -> None:
        """Start waiting batches while more may run, the oldest first, and refuse those that waited too long.

        Each waits for its future `admitted`: a result starts it, an exception refuses it.
        """
        now = monotonic()
        allowed_s = self._allowed_s(now)
        while self._waiting:
            oldest = self._waiting[0]
            is_late = now > oldest.since + allowed_s

            if oldest.admitted.done():
                pass  # its request was cancelled
            elif not self._running or (self._has_room and not is_late):  # if none runs, even a late one may
                self._count_started_batch()
                oldest.admitted.set_result(None)
            elif is_late:
                oldest.admitted.set_exception(self.refuse())
            else:
                return  # the oldest waits on, and so do all others

            self._waiting.popleft()

    def _counted_refusal(self, reason: str, detail: str) -> Problem:
        self._count(reason)
        return overloaded(detail)

    def _start_timer(self) -> None:
        self._timer_due = monotonic() + TICK_S
        self._cpu_at_start_s = thread_time()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        """Adapt `self._limit`, the number of batches that may run at once, to the load of the event loop.

        A timer calls this TICK_S after it started, or later if the loop was busy. If the loop worked for most of this
        time, the limit falls by a quarter; otherwise, if batches wait, it rises by one. The timer runs while a batch
        does.
        """
        late_s = monotonic() - self._timer_due
        worked_s = thread_time() - self._cpu_at_start_s  # CPU time of the loop's thread since the timer started
        self._is_late = min(late_s, worked_s) > TICK_S  # a loop that waited for the CPU is not overloaded by batches

        passed_s = TICK_S + late_s
        was_busy = worked_s > IDLE_SHARE * passed_s
        if was_busy:
            self._limit = max(MIN_RUNNING, self._limit * 3 // 4)
        elif self._waiting:
            self._limit = min(MAX_RUNNING, self._limit + 1)

        self._admit_waiting_batches()
        if self._running:
            self._start_timer()
        else:
            self._timer = None
            self._is_late = False
