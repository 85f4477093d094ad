"""Admission by queueing delay: what a worker takes on, and what it refuses while refusing still helps.

Delays are measured, by each worker for itself: how late a timer of its event loop comes, which is how long what is
ready has to wait, and how long batches wait for their turn. Of the lateness counts what the loop worked meanwhile, by
its CPU time: where others had the core, no queue of ours stood, and refusing would not have shortened anything.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from time import monotonic, thread_time
from typing import NamedTuple, TypeVar

from serve.api.problems import Problem, overloaded

T = TypeVar("T")

# How often the loop is measured, and how late it may be where a batch is to begin.
TICK_S = 0.005
# How late it may be before single reads are refused, and how much work it then takes on from one tick to the next: what
# the reads of a request may take. Less would refuse callers who each wait for one answer before they send the next: a
# thousand of them are 13 ms of work, and to refuse one takes two thirds of what it takes to answer.
READ_LATE_S = 0.05
# How often it is measured while nothing comes, so that what does nothing takes no time of others on its core.
IDLE_TICK_S = 0.05
# What part of the newest measurement goes into what a read is thought to cost.
NEWEST = 0.25
# What a read costs at the least, as long as nothing is known.
LEAST_READ_S = 1e-5
# A delay that passes within INTERVAL_S is a burst, and is answered; one that stands for longer only adds to every
# latency (as by CoDel). Then batches may wait for TARGET_S, until none was refused for as long.
INTERVAL_S = 0.1
TARGET_S = 0.015
# How many batches run at once: one where they keep the loop busy, and one more at each tick in which it worked for less
# than half of the time although batches wait, as where those that run wait for a store.
FEWEST, MOST, IDLE_SHARE = 1, 64, 0.5
# The most batches that wait, whatever their time.
MOST_WAITING = 256


class ClientGone(Exception):
    """The caller hung up before its request was whole, or before its turn came; nobody is to be answered."""


class _Waiting(NamedTuple):
    since: float
    turn: asyncio.Future[None]


class Admission:
    """Decides for one worker; lives as long as it, on its loop."""

    def __init__(
        self,
        count: Callable[[str], None],
        count_requests: Callable[[], int],
        count_connections: Callable[[], int],
    ) -> None:
        """Take what is called with the reason of each refusal, and what says how many requests have begun so far.

        *count_connections* gives how many connections there are.
        """
        self.reads_left = inf
        """How many single reads may begin before the next tick: what fits into it, by what they cost, where a queue
        stands; inf where none does."""
        self.ticks = 0
        """How often the loop was measured."""
        self._count = count
        self._count_requests = count_requests
        self._count_connections = count_connections
        self._requests = 0
        self._refused_reads = 0
        self._read_s = 0.0
        self._has_batches = False
        self._limit = FEWEST
        self._running = 0
        self._waiting = deque[_Waiting]()
        self._begun = deque[asyncio.Future[None]]()
        self._waiting_since = 0.0
        self._refused_at = -inf
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = TICK_S
        self._due = self._on_time_at = self._read_refused_at = -inf
        self._cpu_s = 0.0
        self._is_late = False

    def start(self) -> None:
        """Measure from now on."""
        self._on_time_at = monotonic()
        self._measure_again(self._on_time_at, thread_time(), TICK_S)

    def stop(self) -> None:
        """Measure no more; nothing is shed any more for its delay."""
        if self._timer is not None:
            self._timer.cancel()
            self._pause_s = TICK_S
        self.reads_left, self._is_late = inf, False

    def admits_read(self, now: float) -> bool:
        """Take on one more single read, or count it as refused; worth calling while `reads_left` is less than inf."""
        if self.reads_left >= 1:
            self.reads_left -= 1
            return True
        self._read_refused_at = now
        self._refused_reads += 1
        self._count("read_delay")
        return False

    def check_deadline(self, deadline: float) -> None:
        """Refuse what its caller waits for no longer, by `time.monotonic`."""
        if monotonic() > deadline:
            raise self._refused("deadline", "the time that X-Request-Timeout-Ms gives has passed")

    async def batch(self, work: Callable[[], Awaitable[T]], *, deadline: float, is_gone: Callable[[], bool]) -> T:
        """Do the work of a batch when its turn comes.

        Raises Problem where it would wait for too long or past its *deadline*, and ClientGone.
        """
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
        """Do more of a batch that has begun: it waits for a turn, before all that have not, and is never refused."""
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
        self._has_batches = True
        if self._pause_s > TICK_S and self._timer is not None:
            self._timer.cancel()  # of a tick that is far, as nothing came until now
            self._measure_again(monotonic(), thread_time(), TICK_S)

    def _end(self) -> None:
        self._running -= 1
        self._hand_on()

    async def _begin(self) -> None:
        """Wait until one more batch may run, and count it as running."""
        stands = self.reads_left < inf
        if self._running < self._limit and not self._waiting and not self._is_late and not stands:
            self._run()
            return
        now = monotonic()
        if not self._waiting:
            self._waiting_since = now
        if len(self._waiting) >= MOST_WAITING or stands:
            raise self._late()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(now, turn))
        await self._take(turn)

    async def _take(self, turn: asyncio.Future[None]) -> None:
        """Wait for a turn; one that is given to a task that is cancelled goes back."""
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._end()
            raise

    def _hand_on(self) -> None:
        """Give free turns to those that wait, the oldest first, and refuse those that have waited for too long."""
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
        if not turn.done():  # as where its caller's task was cancelled
            self._run()
            turn.set_result(None)

    def _allowed_s(self, now: float) -> float:
        """Return how long a batch may wait."""
        stands = self._waiting and now - self._waiting_since > INTERVAL_S
        return TARGET_S if stands or now - self._refused_at < INTERVAL_S else INTERVAL_S

    def _late(self) -> Problem:
        self._refused_at = monotonic()
        return self._refused("batch_delay", "more batches come than can be answered in time")

    def _refused(self, reason: str, detail: str) -> Problem:
        self._count(reason)
        return overloaded(detail)

    def _tick(self) -> None:
        """Look how late the loop is and how much it worked, and adapt to it."""
        now, cpu_s = monotonic(), thread_time()
        late_s, worked_s = now - self._due, cpu_s - self._cpu_s
        own_s = min(late_s, worked_s)
        self._is_late = own_s > TICK_S
        begun = self._learn_cost(worked_s)
        # Where all of a thousand connections are ready, libuv looks for more dozens of times before it sees its timers:
        # whoever waits for one answer at a time then waited for one round of the connections only.
        rounds = (begun + self._refused_reads) / max(1, self._count_connections())
        self._refused_reads = 0
        if own_s / max(1.0, rounds) <= READ_LATE_S:
            self._on_time_at = now
        elif self._pause_s > TICK_S:
            self._on_time_at = self._due - TICK_S  # nothing was late as long as nothing came
        if worked_s > IDLE_SHARE * (self._pause_s + late_s):
            self._limit = max(FEWEST, self._limit * 3 // 4)
        elif self._waiting:
            self._limit = min(MOST, self._limit + 1)
        self.ticks += 1
        is_idle = not begun and not self._running and not self._waiting
        stands = now - self._on_time_at > INTERVAL_S or now - self._read_refused_at < INTERVAL_S
        self.reads_left = max(1.0, READ_LATE_S / max(self._read_s, LEAST_READ_S)) if stands else inf
        self._measure_again(now, cpu_s, IDLE_TICK_S if is_idle and not stands else TICK_S)
        self._hand_on()

    def _learn_cost(self, worked_s: float) -> int:
        """Adapt what a read costs to a tick without batches; what refusals took is a part of that.

        Returns how many requests began in the tick.
        """
        requests = self._count_requests()
        begun, self._requests = requests - self._requests, requests
        if begun and not self._has_batches:
            self._read_s += (worked_s / begun - self._read_s) * (NEWEST if self._read_s else 1.0)
        self._has_batches = self._running > 0
        return begun

    def _measure_again(self, now: float, cpu_s: float, pause_s: float) -> None:
        self._due, self._cpu_s, self._pause_s = now + pause_s, cpu_s, pause_s
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._tick)
