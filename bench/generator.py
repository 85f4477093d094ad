"""The traffic of one run: hands each due request to a free connection and writes down what becomes of it."""

import asyncio
import contextlib
import gc
import re
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator

import numpy as np

from bench import pace
from bench.connection import Connection
from bench.result import Result
from bench.schedule import Load

SWEEP_S = 0.02  # how often requests are looked through for those out of time


class Generator:
    """The connections, the queue and the counts of one run; lives for that run."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = load.requests()
        self._fields = {name: re.compile(rb'"%b":"([^"]*)"' % re.escape(name).encode()) for name in load.observe}
        self._open: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._fault: Exception | None = None
        self._interval_s = 1 / load.rate if load.rate else 0.0
        self._total = max(1, round(load.duration_s * load.rate)) if load.rate else 0
        self._start_s = self._end_s = self._last_sent_s = 0.0
        self._latencies_s = array("d")
        self._lags_s = array("d")
        self._due = self._sent = self._dropped = self._opened = self._refused = self._unasked = 0
        self._errors: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._seen: dict[str, Counter[str]] = {name: Counter() for name in load.observe}

    async def run(self) -> Result:
        """Connect, run the load, wait for what is in flight, and tell. Raises what the load's `check` raised."""
        sweep = asyncio.ensure_future(self._sweep())
        try:
            for _ in range(self._load.connections):
                self._connect()
            await asyncio.wait(self._opening)
            with collector_off():
                before_s = time.process_time()
                await self._traffic()
                cpu_s = time.process_time() - before_s
        finally:
            await self._stop(sweep)
        if self._fault:
            raise self._fault
        return self._result(cpu_s)

    async def _traffic(self) -> None:
        self._start_s = time.monotonic()
        self._end_s = self._start_s + self._load.duration_s
        if self._load.rate is None:
            for _ in range(self._load.connections):
                self._offer(self._start_s)
            await asyncio.sleep(self._load.duration_s)
        else:
            await (pace.spin if self._load.spin else pace.sleep)(self._offer_due)
        while self._unfinished():  # noqa: ASYNC110 -- an event would have to be looked after on every answer
            await asyncio.sleep(pace.LOOP_TICK_S)

    async def _stop(self, sweep: asyncio.Task[None]) -> None:
        self._end_s = 0.0  # nothing is sent again,
        self._waiting.clear()  # and nothing opened
        for connection in list(self._open):
            connection.close()
        tasks = [sweep, *self._opening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _unfinished(self) -> bool:
        return bool(self._waiting) or any(connection.due_s is not None for connection in self._open)

    def _offer_due(self) -> float | None:
        """Offer all requests that are due by now; return when the next one is."""
        now_s = time.monotonic()
        while (due_s := self._start_s + self._due * self._interval_s) <= now_s:
            self._offer(due_s)
            if self._due >= self._total or self._fault:
                return None
        return due_s

    def _offer(self, due_s: float) -> None:
        self._due += 1
        if self._idle:
            self._send(self._idle.popleft(), due_s)
            self._lags_s.append(self._last_sent_s - due_s)
        elif len(self._waiting) < self._load.backlog:
            self._waiting.append(due_s)
            self._connect_if_short()
        else:
            self._dropped += 1

    def _send(self, connection: Connection, due_s: float) -> None:
        self._sent += 1
        connection.send(next(self._requests), due_s)
        self._last_sent_s = time.monotonic()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            oldest_s = time.monotonic() - self._load.timeout_s
            while self._waiting and self._waiting[0] < oldest_s:
                self._waiting.popleft()
                self.failed("timeout")
            for connection in list(self._open):
                if connection.due_s is not None and connection.due_s < oldest_s:
                    connection.fail("timeout")

    def _connect_if_short(self) -> None:
        """Connections are opened anew only when a request wants one, so a server that hangs up meets no storm."""
        if len(self._opening) < len(self._waiting) and len(self._open) + len(self._opening) < self._load.connections:
            self._connect()

    def _connect(self) -> None:
        task = asyncio.ensure_future(self._establish())
        self._opening.add(task)

        def settle(_: asyncio.Task[None]) -> None:
            self._opening.discard(task)
            if not task.cancelled():
                self._connect_if_short()

        task.add_done_callback(settle)

    async def _establish(self) -> None:
        try:
            async with asyncio.timeout(self._load.timeout_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self), self._load.host, self._load.port
                )
        except OSError:  # a timeout is one, too
            self._refused += 1
            if self._waiting:
                self._waiting.popleft()
                self.failed("connect")

    def ready(self, connection: Connection) -> None:
        """See `bench.connection.Owner`."""
        if connection not in self._open:
            self._open.add(connection)
            self._opened += 1
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, due_s: float, status: int, body: bytes) -> None:
        """See `bench.connection.Owner`."""
        latency_s = time.monotonic() - due_s
        self._statuses[status] += 1
        for name, pattern in self._fields.items():
            found = pattern.search(body)
            self._seen[name][found[1].decode(errors="replace") if found else ""] += 1
        try:
            kind = self._load.check(status, body)
        except Exception as error:  # noqa: BLE001 -- kept, to end the run with it; the event loop would only log it
            self._fault = error
            kind = "check"
        if kind is None:
            self._latencies_s.append(latency_s)
            self._again()
        else:
            self.failed(kind)

    def failed(self, kind: str) -> None:
        """See `bench.connection.Owner`."""
        self._errors[kind] += 1
        self._again()

    def gone(self, connection: Connection, *, unasked: bool) -> None:
        """See `bench.connection.Owner`."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._unasked += unasked
        self._connect_if_short()

    def _again(self) -> None:
        """In a closed loop each end of a request makes the next one due."""
        if self._load.rate is None and not self._fault and (now_s := time.monotonic()) < self._end_s:
            self._offer(now_s)

    def _result(self, cpu_s: float) -> Result:
        load = self._load
        return Result(
            url=load.url,
            asked_rate=load.rate,
            spin=load.spin,
            connections=load.connections,
            duration_s=max(load.duration_s, self._last_sent_s - self._start_s),
            due=self._due,
            sent=self._sent,
            ok=len(self._latencies_s),
            dropped=self._dropped,
            errors=dict(self._errors),
            statuses=dict(self._statuses),
            opened=self._opened,
            refused=self._refused,
            unasked=self._unasked,
            seen={name: dict(values) for name, values in self._seen.items()},
            cpu_us_per_request=round(cpu_s * 1e6 / max(1, self._sent), 2),
            latencies_s=np.array(self._latencies_s),
            lags_s=np.array(self._lags_s),
        )


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from adding its pauses to the latencies."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()
