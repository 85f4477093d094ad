"""The traffic of one run: hands each due request to a free connection and records what becomes of it."""

import asyncio
import contextlib
import gc
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvloop

from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.recorder import LoadProgress, Recorder
from hotplate.bench.loadgen.result import COUNTED, SUMMED, ProcessUsage, Result, measure_usage
from hotplate.bench.loadgen.schedule import LOOP_TICK_S, Pacer, sleep_until_due
from hotplate.stores.http1 import ClientConnection, FailureKind

# How often requests are checked for those out of time.
SWEEP_S = 0.02

# How long a closed loop waits after an error: callers that are refused do not ask again at once.
RETRY_S = 0.1


# When a request was due, by the generator's clock, and its bytes.
Sent = tuple[float, bytes]

LoadConnection = ClientConnection[Sent]
Clock = Callable[[], float]

# Awaited once the connections are open; returns when the run begins, by the generator's clock.
Begin = Callable[[], Awaitable[float]]

# Opens one connection whose protocol the given function makes. Raises OSError.
Connect = Callable[[Callable[[], LoadConnection]], Awaitable[object]]


class LoadGenerator:
    """The connections and the queue of one run; lives for that run.

    Time comes from *clock*, is waited for by *keep_pace*, and connections are made by *connect*, so a run can also
    be made in virtual time.
    """

    def __init__(
        self,
        load: Load,
        *,
        clock: Clock = time.monotonic,
        keep_pace: Pacer | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._load = load
        self._clock = clock
        self._keep_pace = keep_pace or sleep_until_due
        self._open_one = connect or self._connect_by_tcp
        self._requests = load.rendered()
        self._dues = load.dues()
        self._next_s: float | None = next(self._dues, None)
        self._open: set[LoadConnection] = set()
        self._idle: deque[LoadConnection] = deque()
        self._waiting: deque[float] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._error: Exception | None = None
        self._start_s = self._end_s = self._last_sent_s = self._last_read_s = 0.0
        self._next_mark_s = float("inf")
        self._rng = random.Random(1)  # noqa: S311 -- pauses that are the same in every run, nothing secret
        self._tls = load.tls()
        self._recorder = Recorder(load.observe, load.sample_every, load.tally)

    async def run(self, begin: Begin | None = None) -> Result:
        """Connect, run the load, and wait for what is in flight. Raises what the load's `check` raised."""
        sweep = asyncio.ensure_future(self._sweep())
        try:
            for _ in range(self._load.connections):
                self._connect()
            await asyncio.wait(self._opening)
            with collector_off():
                self._start_s = self._clock() if begin is None else await begin()
                self._next_mark_s = self._start_s + 1
                end = measure_usage(self._clock)
                await self._traffic()
                usage = end()
        finally:
            await self._finish(sweep)
        if self._error:
            raise self._error
        return self._result(usage)

    def stop(self) -> None:
        """End the run early: nothing more falls due, and what is in flight is waited for."""
        self._next_s = None
        self._end_s = 0.0
        self._stopped.set()

    def progress(self) -> LoadProgress:
        """Return the progress of the run."""
        in_flight = len(self._open) - len(self._idle)
        return self._recorder.progress(self._clock() - self._start_s, in_flight, len(self._waiting))

    async def _traffic(self) -> None:
        self._end_s = self._start_s + self._load.duration_s
        if self._load.rate is None:
            await asyncio.sleep(self._start_s - self._clock())
            for _ in range(self._load.connections):
                self._offer_after(self._rng.random() * self._load.think_s if self._load.think_spread else 0.0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), self._load.duration_s)
        else:
            await self._keep_pace(self._offer_due)
        # An event would cost something on every response
        while self._waiting or any(each.tag is not None for each in self._open):  # noqa: ASYNC110 -- as above
            await asyncio.sleep(LOOP_TICK_S)

    async def _finish(self, sweep: asyncio.Task[None]) -> None:
        self._end_s = 0.0  # nothing is sent again,
        self._waiting.clear()  # and nothing opened
        for connection in list(self._open):
            connection.close()
        tasks = [sweep, *self._opening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _offer_due(self) -> float | None:
        """Offer all requests that are due by now; return when the next one is."""
        while self._next_s is not None and not self._error:
            due_s, now_s = self._start_s + self._next_s, self._clock()
            if due_s > now_s:
                return due_s
            self._next_s = next(self._dues, None)
            self._offer(due_s)
            self._recorder.late((self._last_sent_s if self._last_sent_s > due_s else self._clock()) - due_s)
        return None

    def _offer(self, due_s: float) -> None:
        self._recorder.due += 1
        if self._idle:
            self._send(self._idle.popleft(), due_s)
        elif len(self._waiting) < self._load.backlog:
            self._waiting.append(due_s)
            self._connect_if_short()
        else:
            self._recorder.dropped += 1

    def _send(self, connection: LoadConnection, due_s: float) -> None:
        self._recorder.sent += 1
        request = next(self._requests)
        connection.send(request, (due_s, request))
        self._last_sent_s = self._clock()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self._clock()
            if now_s >= self._next_mark_s:
                self._next_mark_s += 1
                self._recorder.mark()
            oldest_s = now_s - self._load.timeout_s
            while self._waiting and self._waiting[0] < oldest_s:
                self._waiting.popleft()
                self._failed("timeout")
            for connection in list(self._open):
                if connection.tag is not None and connection.tag[0] < oldest_s:
                    connection.fail("timeout")

    def _connect_if_short(self) -> None:
        """Connections are opened again only when a request needs one, so a server that hangs up meets no storm."""
        if len(self._opening) < len(self._waiting) and len(self._open) + len(self._opening) < self._load.connections:
            self._connect()

    def _connect(self) -> None:
        task = asyncio.ensure_future(self._establish())
        self._opening.add(task)

        def on_done(_: asyncio.Task[None]) -> None:
            self._opening.discard(task)
            if not task.cancelled():
                self._connect_if_short()

        task.add_done_callback(on_done)

    async def _establish(self) -> None:
        try:
            async with asyncio.timeout(self._load.timeout_s):
                await self._open_one(lambda: ClientConnection(self))
        except OSError:  # a timeout is one, too
            self._recorder.refused += 1
            if self._waiting:
                self._waiting.popleft()
                self._failed("connect")

    async def _connect_by_tcp(self, make: Callable[[], LoadConnection]) -> None:
        await asyncio.get_running_loop().create_connection(make, self._load.host, self._load.port, ssl=self._tls)

    def on_ready(self, connection: LoadConnection) -> None:
        """See `hotplate.stores.http1.ConnectionListener`."""
        if connection not in self._open:
            self._open.add(connection)
            self._recorder.opened += 1
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def on_response(self, connection: LoadConnection, tag: Sent) -> None:
        """See `hotplate.stores.http1.ConnectionListener`."""
        due_s, request = tag
        now_s = self._clock()
        self._last_read_s = now_s
        status, body = connection.status, connection.body
        self._recorder.seen(request, status, body)
        if self._load.tally:
            self._recorder.tally(status, connection.head)
        try:
            kind = self._load.check(status, body)
        except Exception as error:  # noqa: BLE001 -- kept, to end the run with it; the event loop would only log it
            self._error = error
            kind = "check"
        if kind is None:
            self._recorder.good(now_s - due_s)
            self._again()
        else:
            self._failed(kind)

    def on_failure(self, tag: Sent, kind: FailureKind) -> None:
        """See `hotplate.stores.http1.ConnectionListener`."""
        del tag  # an error has no latency
        self._failed(kind)

    def _failed(self, kind: str) -> None:
        self._recorder.errors[kind] += 1
        self._again(RETRY_S)

    def on_closed(self, connection: LoadConnection, *, unsolicited: bool) -> None:
        """See `hotplate.stores.http1.ConnectionListener`."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._recorder.unsolicited += unsolicited
        self._connect_if_short()

    def _again(self, pause_s: float = 0.0) -> None:
        """In a closed loop each end of a request makes the next one due, at once or after a pause for thought."""
        if self._load.rate is not None:
            return
        think_s, spread = self._load.think_s, self._load.think_spread
        self._offer_after(max(pause_s, think_s * self._rng.uniform(1 - spread, 1 + spread) if spread else think_s))

    def _offer_after(self, pause_s: float) -> None:
        if pause_s:
            asyncio.get_running_loop().call_later(pause_s, self._offer_one)
        else:
            self._offer_one()

    def _offer_one(self) -> None:
        if not self._error and (now_s := self._clock()) < self._end_s:
            self._offer(now_s)

    def _result(self, usage: ProcessUsage) -> Result:
        load, recorder = self._load, self._recorder
        elapsed_s = max(self._last_sent_s, self._last_read_s) - self._start_s
        counts: dict[str, Any] = {name: getattr(recorder, name) for name in (*SUMMED, *COUNTED)}
        return Result(
            **counts,
            url=load.url,
            requested_rate=load.rate and load.rate / load.parts,
            think_s=load.think_s,
            connections=load.connections,
            duration_s=elapsed_s if self._stopped.is_set() else max(load.duration_s, elapsed_s),
            interrupted=self._stopped.is_set(),
            seen=recorder.values,
            usage=(usage,),
            samples=tuple(recorder.samples),
            seconds=recorder.seconds(),
            lags_s=recorder.lags_s,
        )


async def drive(load: Load) -> Result:
    """Run *load* from the running event loop, which should have little else to do."""
    return await LoadGenerator(load).run()


def run(load: Load) -> Result:
    """Run *load* on an event loop of its own; blocks until it is over."""
    return uvloop.run(drive(load))


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from adding its pauses to the latencies."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
