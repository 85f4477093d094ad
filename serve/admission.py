"""Admission by queueing delay: what a worker takes on, and what it refuses while refusing still helps.

Delays are measured, by each worker for itself: how late a timer of the event loop comes, which is how long what is
ready has to wait; and how long requests wait inside the process, for their handler and, as batches, for their turn.
"""

import asyncio
import random
import resource
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import NamedTuple, TypeVar

from serve.problems import Problem, overloaded

T = TypeVar("T")

TICK_S = 0.02
# A batch may wait INTERVAL_S for its turn; TARGET_S where batches have waited for that long without a pause, or one was
# refused since. So a burst is answered, and a queue that only adds to every latency is not kept (as by CoDel).
INTERVAL_S = 0.1
TARGET_S = 0.02
# How late the loop may be before fewer batches run at once, and how many do: one where they keep the loop busy, and one
# more at each tick that finds the loop on time and batches waiting, as where these wait for a store.
BATCH_LATE_S = 0.004
FEWEST, MOST = 1, 64
# The most batches that wait, whatever their time.
MOST_WAITING = 256
# How much delay there may be, on average over some ticks, and how the pressure to shed changes at each tick: by so much
# for each second over that, and for each second that the delay grew by (the controller of PIE).
LATE_S = 0.03
GAIN, GROWTH_GAIN = 2.0, 4.0
# The pressure from which on no batch begins; that from which on single reads are shed, too, by what it is above this;
# and the most that it can be.
NO_BATCHES, SOME_READS, MOST_PRESSURE = 0.1, 0.2, 1.15
# Where fewer reads came since the last tick, it is not they that make the loop late.
MANY = 16


def _sleeps() -> int:
    """Return how often this thread has gone to sleep; where a busy loop does, no queue stands, however late it was."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class ClientGone(Exception):
    """The caller hung up before its request was whole, or before its turn came; nobody is to be answered."""


class _Waiting(NamedTuple):
    since: float
    turn: asyncio.Future[None]


class Admission:
    """Decides for one worker; lives as long as it, on its loop. *count* is called with the reason of each refusal."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self.shed_share = 0.0
        """The part of single reads that is refused now."""
        self.least_wait_s = 0.0
        """The least time from a read's arrival to its handler, of the reads since the last tick."""
        self.reads = 0
        """How many reads came since the last tick."""
        self._delay_s = 0.0
        self._pressure = 0.0
        self._count = count
        self._sleeps = 0
        self._limit = FEWEST
        self._running = 0
        self._waiting = deque[_Waiting]()
        self._waiting_since = 0.0
        self._late_at = -inf
        self._timer: asyncio.TimerHandle | None = None
        self._ticked = monotonic()

    def start(self) -> None:
        """Measure from now on."""
        self._ticked = monotonic()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Measure no more; nothing is shed any more for its delay."""
        if self._timer is not None:
            self._timer.cancel()
        self._pressure = self.shed_share = 0.0

    def sheds_read(self) -> bool:
        """Return whether a single read is to be refused; worth calling while `shed_share` is above zero."""
        if random.random() >= self.shed_share:  # noqa: S311 -- to spread refusals, nothing secret
            return False
        self.reads += 1
        self._count("read_delay")
        return True

    def check_deadline(self, deadline: float) -> None:
        """Refuse what its caller waits for no longer, by `time.monotonic`."""
        if monotonic() > deadline:
            raise self._refused("deadline", "the time that X-Request-Timeout-Ms gives has passed")

    async def batch(self, work: Callable[[], Awaitable[T]], *, deadline: float, is_gone: Callable[[], bool]) -> T:
        """Do the work of a batch when its turn comes.

        Raises Problem where it would wait for too long or past its *deadline*, and ClientGone.
        """
        await self._turn()
        try:
            if is_gone():
                self._count("gone")
                raise ClientGone
            self.check_deadline(deadline)
            return await work()
        finally:
            self._running -= 1
            self._hand_on()

    async def _turn(self) -> None:
        """Wait until one more batch may run, and count it as running."""
        if self._running < self._limit and not self._waiting and self._pressure < NO_BATCHES:
            self._running += 1
            return
        now = monotonic()
        if not self._waiting:
            self._waiting_since = now
        if len(self._waiting) >= MOST_WAITING or self._pressure >= NO_BATCHES:
            raise self._late()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(now, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._running -= 1
            raise

    def _hand_on(self) -> None:
        """Give free turns to those that wait, the oldest first, and refuse those that have waited for too long."""
        now = monotonic()
        allowed_s = self._allowed_s(now)
        while self._waiting and (self._waiting[0].since + allowed_s < now or self._running < self._limit):
            since, turn = self._waiting.popleft()
            if turn.done():
                continue  # its caller's task was cancelled
            if since + allowed_s < now:
                turn.set_exception(self._late())
            else:
                self._running += 1
                turn.set_result(None)

    def _allowed_s(self, now: float) -> float:
        """Return how long a batch may wait."""
        stands = self._waiting and now - self._waiting_since > INTERVAL_S
        return TARGET_S if stands or now - self._late_at < INTERVAL_S else INTERVAL_S

    def _late(self) -> Problem:
        self._late_at = monotonic()
        return self._refused("batch_delay", "more batches come than can be answered in time")

    def _refused(self, reason: str, detail: str) -> Problem:
        self._count(reason)
        return overloaded(detail)

    def _tick(self) -> None:
        """Look how late the loop is, and adapt to it."""
        now, sleeps = monotonic(), _sleeps()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        late_s = max(0.0, now - self._ticked - TICK_S)
        stands = sleeps == self._sleeps and self.reads >= MANY
        delay_s = max(late_s, self.least_wait_s if self.least_wait_s < inf else 0.0) if stands else 0.0
        self._ticked, self._sleeps, self.reads, self.least_wait_s = now, sleeps, 0, inf
        before_s = self._delay_s
        self._delay_s += (delay_s - before_s) / 4
        change = GAIN * (self._delay_s - LATE_S) + GROWTH_GAIN * (self._delay_s - before_s)
        self._pressure = min(MOST_PRESSURE, max(0.0, self._pressure + change))
        self.shed_share = max(0.0, self._pressure - SOME_READS)
        if late_s > BATCH_LATE_S:
            self._limit = max(FEWEST, self._limit * 3 // 4)
        elif self._waiting:
            self._limit = min(MOST, self._limit + 1)
        self._hand_on()
