"""Admission of batches by queueing delay, as in CoDel; each worker decides for itself.

The delay is the lateness of an event loop timer, and the waiting time of batches. Of the lateness only the loop's CPU
time counts: refusing does not shorten that of other processes.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic, thread_time
from typing import NamedTuple, TypeVar

from hotplate.serve.problems import ClientGone, Problem, overloaded

T = TypeVar("T")

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


class _Waiting(NamedTuple):
    since: float
    turn: asyncio.Future[None]


class Admission:
    """Admission of one worker, on its loop."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """*count* is called with the reason of each refusal."""
        self._count = count
        self._limit = MIN_RUNNING
        self._running = 0
        self._waiting = deque[_Waiting]()
        self._waiting_since = 0.0
        self._refused_at = -inf
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._cpu_s = 0.0
        self._is_late = False

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def check_deadline(self, deadline: float) -> None:
        """Raise a Problem if *deadline*, by `time.monotonic`, has passed."""
        if monotonic() > deadline:
            raise self._refused("deadline", "the time that X-Request-Timeout-Ms gives has passed")

    async def batch(self, work: Callable[[], Awaitable[T]], *, deadline: float, is_gone: Callable[[], bool]) -> T:
        """Do the work of a batch in its turn; raises Problem if too late, and ClientGone."""
        await self._begin()
        try:
            if is_gone():
                self._count("gone")
                raise ClientGone
            self.check_deadline(deadline)
            return await work()
        finally:
            self._end()

    async def _begin(self) -> None:
        if self._has_room and not self._waiting:
            self._run()
            return
        now = monotonic()
        if not self._waiting:
            self._waiting_since = now
        if len(self._waiting) >= MAX_WAITING:
            raise self._late()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(now, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._end()
            raise

    @property
    def _has_room(self) -> bool:
        # One batch may always run: refusals alone can make the loop late.
        return self._running < (MIN_RUNNING if self._is_late else self._limit)

    def _run(self) -> None:
        self._running += 1
        if self._timer is None:
            self._measure()

    def _end(self) -> None:
        self._running -= 1
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        now = monotonic()
        stands = now - self._waiting_since > INTERVAL_S or now - self._refused_at < INTERVAL_S
        allowed_s = TARGET_S if stands else INTERVAL_S
        while self._waiting:
            since, turn = self._waiting[0]
            if not turn.done():
                if not self._running or (self._has_room and now <= since + allowed_s):
                    self._run()
                    turn.set_result(None)
                elif now > since + allowed_s:
                    turn.set_exception(self._late())
                else:
                    break
            self._waiting.popleft()

    def _late(self) -> Problem:
        self._refused_at = monotonic()
        return self._refused("batch_delay", "more batches come than can be answered in time")

    def _refused(self, reason: str, detail: str) -> Problem:
        self._count(reason)
        return overloaded(detail)

    def _measure(self) -> None:
        self._due, self._cpu_s = monotonic() + TICK_S, thread_time()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        late_s, worked_s = monotonic() - self._due, thread_time() - self._cpu_s
        self._is_late = min(late_s, worked_s) > TICK_S
        if worked_s > IDLE_SHARE * (TICK_S + late_s):
            self._limit = max(MIN_RUNNING, self._limit * 3 // 4)
        elif self._waiting:
            self._limit = min(MAX_RUNNING, self._limit + 1)
        self._wake_waiters()
        if self._running:
            self._measure()
        else:
            self._timer, self._is_late = None, False
