"""Admission of batches by queueing delay, as in CoDel; each worker decides for itself.

The delay is the lateness of an event loop timer, and the waiting time of batches. Of the lateness only the loop's CPU
time counts: while other processes have the core, refusing shortens nothing.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from time import monotonic, thread_time
from typing import NamedTuple, TypeVar

from hotplate.serve.problems import ClientGone, Problem, overloaded

T = TypeVar("T")

# Interval of the timer, and how late it may be for a batch to begin.
TICK_S = 0.005
# Interval without batches, to save CPU.
IDLE_TICK_S = 0.05
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
        self._begun = deque[asyncio.Future[None]]()
        self._waiting_since = 0.0
        self._refused_at = -inf
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = TICK_S
        self._due = -inf
        self._cpu_s = 0.0
        self._is_late = False

    def start(self) -> None:
        """Start to measure."""
        self._measure_again(monotonic(), thread_time(), TICK_S)

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()
            self._pause_s = TICK_S
        self._is_late = False

    def check_deadline(self, deadline: float) -> None:
        """Raise a Problem if *deadline*, by `time.monotonic`, has passed."""
        if monotonic() > deadline:
            raise self._refused("deadline", "the time that X-Request-Timeout-Ms gives has passed")

    async def batch(self, work: Callable[[], Awaitable[T]], *, deadline: float, is_gone: Callable[[], bool]) -> T:
        """Do the work of a batch in its turn; raises Problem if that is too late, and ClientGone."""
        await self._begin()
        try:
            if is_gone():
                self._count("gone")
                raise ClientGone
            self.check_deadline(deadline)
            return await work()
        finally:
            self._end()

    @asynccontextmanager
    async def resumed(self) -> AsyncIterator[None]:
        """Continue a batch, before those that have not begun; never refused."""
        if self._running < self._limit:
            self._run()
        else:
            turn = asyncio.get_running_loop().create_future()
            self._begun.append(turn)
            await self._take(turn)
        try:
            yield
        finally:
            self._end()

    def _run(self) -> None:
        self._running += 1
        self._measure_soon()

    def _end(self) -> None:
        self._running -= 1
        self._wake_waiters()

    async def _begin(self) -> None:
        if self._running < self._limit and not self._waiting and not self._is_late:
            self._run()
            return
        now = monotonic()
        if not self._waiting:
            self._waiting_since = now
        if len(self._waiting) >= MAX_WAITING:
            raise self._late()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(now, turn))
        self._measure_soon()
        await self._take(turn)

    async def _take(self, turn: asyncio.Future[None]) -> None:
        """Wait for a turn, and return it on cancellation."""
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._end()
            raise

    def _wake_waiters(self) -> None:
        while self._begun and self._running < self._limit:
            self._give(self._begun.popleft())
        now = monotonic()
        allowed_s = self._allowed_s(now)
        while self._waiting:
            since, turn = self._waiting[0]
            if since + allowed_s < now:
                if not turn.done():
                    turn.set_exception(self._late())
            elif self._running < self._limit and not self._is_late:
                self._give(turn)
            else:
                break
            self._waiting.popleft()

    def _give(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            self._run()
            turn.set_result(None)

    def _allowed_s(self, now: float) -> float:
        stands = self._waiting and now - self._waiting_since > INTERVAL_S
        return TARGET_S if stands or now - self._refused_at < INTERVAL_S else INTERVAL_S

    def _late(self) -> Problem:
        self._refused_at = monotonic()
        return self._refused("batch_delay", "more batches come than can be answered in time")

    def _refused(self, reason: str, detail: str) -> Problem:
        self._count(reason)
        return overloaded(detail)

    def _tick(self) -> None:
        now, cpu_s = monotonic(), thread_time()
        late_s, worked_s = now - self._due, cpu_s - self._cpu_s
        self._is_late = min(late_s, worked_s) > TICK_S
        if worked_s > IDLE_SHARE * (self._pause_s + late_s):
            self._limit = max(MIN_RUNNING, self._limit * 3 // 4)
        elif self._waiting:
            self._limit = min(MAX_RUNNING, self._limit + 1)
        self._measure_again(now, cpu_s, TICK_S if self._running or self._waiting else IDLE_TICK_S)
        self._wake_waiters()

    def _measure_soon(self) -> None:
        if self._pause_s > TICK_S and self._timer is not None:
            self._timer.cancel()
            self._measure_again(monotonic(), thread_time(), TICK_S)

    def _measure_again(self, now: float, cpu_s: float, pause_s: float) -> None:
        self._due, self._cpu_s, self._pause_s = now + pause_s, cpu_s, pause_s
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._tick)
