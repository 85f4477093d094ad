"""The load generator and its process, where no other work delays the event loop."""

import asyncio
import contextlib
import ctypes
import gc
import math
import os
import random
import signal
import ssl
import subprocess
import sys
import time
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import msgspec
import numpy as np
import uvloop

from hotplate.base.http1 import ClientConnection, FailureKind
from hotplate.bench.errors import BenchFailed
from hotplate.bench.loadgen.load import OK, TLS, Load, Request, Target, decode_lists
from hotplate.bench.loadgen.result import AnsweredList, ResponseSample, Result, Second
from hotplate.bench.process import on_core, raised_priority, stop_process
from hotplate.stores.concurrency import end_tasks
from hotplate.stores.errors import reason_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Channel: TypeAlias = "Connection[Any, Any]"

SWEEP_S = 0.02  # between checks for timeouts
RETRY_S = 0.1  # after an error
# struct itimerspec: interval (s, ns), value (s, ns); TFD_TIMER_ABSTIME.
Itimerspec = ctypes.c_long * 4
TIMER_ABSTIME = 1
NAP_S = 50e-6  # shortest sleep worth its system calls
LOOP_TICK_S = 1e-3  # event loops round to milliseconds
WAKE_S = 0.1  # longest sleep, so that `stop` is noticed
AHEAD_S = 0.05  # before the first due request
STOP_WITHIN_S = 5.0
DIED = "the process of the load generator died, perhaps out of memory"
# Ends a run early.
STOP = "stop"
Clock = Callable[[], float]
Begin = Callable[[], Awaitable[float]]  # returns the start time by the generator's clock
Tick = Callable[[], float | None]  # returns its next time by `time.monotonic`, None at the end
Pacer = Callable[[Tick], Awaitable[None]]  # calls a tick until it returns None


class SentRequest(msgspec.Struct, frozen=True):
    """A request in flight, and when it was due by the generator's clock."""

    due_s: float
    request: Request


LoadConnection = ClientConnection[SentRequest]
Connect = Callable[[Callable[[], LoadConnection]], Awaitable[object]]  # takes a protocol factory


async def run_when_due(tick: Tick) -> None:
    """Call *tick* at once, and then at each time that it returned (seconds of `time.monotonic`), until it returns None.

    Raises what *tick* raises, and OSError without timerfd.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    timer = _TimerFile()

    def on_timer() -> None:
        timer.acknowledge()
        try:
            due_s = tick()
        except Exception as error:  # noqa: BLE001 -- raised by the await below
            done.set_exception(error)
            return
        if due_s is None:
            done.set_result(None)
        else:
            timer.set(due_s)

    loop.add_reader(timer, on_timer)
    try:
        timer.set(0.0)
        await done
    finally:
        loop.remove_reader(timer)
        timer.close()


class _TimerFile:
    """Linux's timerfd, a timer that is readable as a file at its time.

    It is ~50 µs late, where the event loop's timer is ~1 ms late. Raises OSError without timerfd.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        # os.timerfd_create needs Python 3.13.
        self._descriptor: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._descriptor

    def set(self, due_s: float) -> None:
        """Set the timer to a time of `time.monotonic`, or NAP_S from now if that is later.

        Requests due within NAP_S are sent together: a shorter sleep is not worth its system calls.
        """
        not_before_s = time.monotonic() + NAP_S
        seconds, nanoseconds = divmod(int(max(due_s, not_before_s) * 1e9), 10**9)
        self._libc.timerfd_settime(self._descriptor, TIMER_ABSTIME, Itimerspec(0, 0, seconds, nanoseconds), None)

    def acknowledge(self) -> None:
        """Read the timer that went off, which would stay readable."""
        os.read(self._descriptor, 8)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self._descriptor)


class Recorder:
    """Counts and times of one run, at 8 bytes a request.

    Requests belong to the second in which they were due, and their sending and answers to those in which they happened.
    """

    def __init__(self, samples: int = 0) -> None:
        """Draw at most *samples* responses at random."""
        self._most_samples = samples
        self._candidates = 0  # responses of which the sample is drawn
        # By second of the run.
        self.due: Counter[int] = Counter()
        self.sent: Counter[int] = Counter()
        self.latencies_s = defaultdict[int, "array[float]"](lambda: array("f"))  # of good responses
        self.lags_s = array("f")  # delays of due requests
        self.samples = list[ResponseSample]()
        self.errors: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.sources: Counter[str] = Counter()
        self.dropped = self.opened = self.unsolicited = 0

    def record_response(self, response: ResponseSample) -> None:
        """Count a response's status and the sources of its lists, and perhaps keep it as a sample.

        All responses are in the sample with the same probability (a reservoir): each n-th one would miss a server that
        errs periodically.
        """
        self.statuses[response.status] += 1
        for answered in response.lists or ():
            self.sources[answered.source or ""] += 1

        if self._most_samples:
            self._candidates += 1
            if self._candidates <= self._most_samples:
                self.samples.append(response)
            elif (place := int(random.random() * self._candidates)) < self._most_samples:  # noqa: S311 -- no secret
                self.samples[place] = response

    def seconds(self, count: int) -> tuple[Second, ...]:
        """Return counts and latencies of the first *count* seconds of the run."""
        return tuple(
            Second(
                due=self.due[number],
                sent=self.sent[number],
                latencies_s=np.array(self.latencies_s[number], dtype=np.float32),
            )
            for number in range(count)
        )


class LoadGenerator:
    """The connections and queue of one run; *clock*, *keep_pace* and *connect* can be virtual.

    A due request is *offered*: sent by an idle connection, or else it waits for one, or is dropped.
    """

    def __init__(
        self,
        load: Load,
        *,
        clock: Clock = time.monotonic,
        keep_pace: Pacer | None = None,
        connect: Connect | None = None,
    ) -> None:
        """Open nothing yet; all times are by *clock*, which *keep_pace* must share."""
        self._load = load
        self._clock = clock
        self._keep_pace = keep_pace or run_when_due
        self._open_one = connect or self._connect_by_tcp
        self._requests = load.rendered()
        self._dues = load.dues()
        self._next_s: float | None = next(self._dues, None)
        self._open: set[LoadConnection] = set()
        self._idle: deque[LoadConnection] = deque()
        self._waiting: deque[float] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._is_over = False  # no more requests are offered
        self._start_s = 0.0
        self._end_s = 0.0
        self._last_sent_s = 0.0
        self._last_read_s = 0.0
        # Of the run; it also has the responses that come late.
        self._last_second = max(0, math.ceil(load.duration_s - SWEEP_S) - 1)
        self._target = Target.of(load.url)
        self._recorder = Recorder(load.samples)

    async def run(self, begin: Begin | None = None) -> Result:
        """Connect, run the load, wait for requests in flight, close all connections, and return counts and times.

        *begin* is awaited once all connections were tried, and returns the start time of the run by the generator's
        clock. Without it, the run begins at once.
        """
        sweep = asyncio.ensure_future(self._sweep())  # checks for timeouts in the background
        try:
            for _ in range(self._load.connections):
                self._connect()
            await asyncio.wait(self._opening)

            self._start_s = self._clock() if begin is None else await begin()
            busy_s = _busy_s()
            await self._traffic()
            busy_s = _busy_s() - busy_s
        finally:
            await self._finish(sweep)

        elapsed_s = self._clock() - self._start_s
        return self._result(busy_s / elapsed_s if elapsed_s > 0 else 0.0)

    def stop(self) -> None:
        """End the run early, after requests in flight."""
        self._next_s = None
        self._is_over = True
        self._stopped.set()

    async def _traffic(self) -> None:
        """Send the requests of the run from its start time on, and wait for the answers to all of them.

        With a rate, each is sent when it is due. Without one, a closed loop, each connection begins with a request, and
        its answer triggers the next, until the duration is over or `stop` was called.

        A request is offered: an idle connection sends it, or it waits for one. A connection's tag is the request in
        flight on it, or None.
        """
        self._end_s = self._start_s + self._load.duration_s

        if self._load.rate is None:
            await asyncio.sleep(self._start_s - self._clock())
            for _ in range(self._load.connections):
                self._offer(self._start_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), self._load.duration_s)
        else:
            await self._keep_pace(self._offer_due)

        while self._waiting or any(connection.tag is not None for connection in self._open):  # noqa: ASYNC110 -- an event costs more
            await asyncio.sleep(LOOP_TICK_S)

    async def _finish(self, sweep: asyncio.Task[None]) -> None:
        """Close all connections, and cancel the task *sweep* and those that open connections."""
        self._is_over = True
        self._waiting.clear()  # or closing would open new connections
        for connection in list(self._open):
            connection.close()
        await end_tasks(sweep, *self._opening)

    def _offer_due(self) -> float | None:
        """Offer the requests that are due, and record their delay; return when to call it again, None at the end.

        That is at once after WAKE_S, if requests are due faster than they can be offered: responses are read, and
        `stop` is noticed.
        """
        began_s = self._clock()
        while self._next_s is not None:
            due_s = self._start_s + self._next_s
            now_s = self._clock()
            if due_s > now_s:
                return min(due_s, now_s + WAKE_S)
            if now_s > began_s + WAKE_S:
                return now_s
            self._next_s = next(self._dues, None)
            self._offer(due_s)
            # Sent at once, or only queued: the wait for a connection is the service's.
            handled_s = self._last_sent_s if self._last_sent_s > due_s else self._clock()
            self._recorder.lags_s.append(handled_s - due_s)
        return None

    def _offer(self, due_s: float) -> None:
        """Send the request due at *due_s*, or let it wait for a connection; drop it if too many wait."""
        self._recorder.due[self._second(due_s)] += 1
        if self._idle:
            self._send(self._idle.popleft(), due_s)
        elif len(self._waiting) < self._load.backlog:
            self._waiting.append(due_s)
            self._connect_if_short()
        else:
            self._recorder.dropped += 1

    def _send(self, connection: LoadConnection, due_s: float) -> None:
        request = next(self._requests)
        connection.send(request.data, SentRequest(due_s, request))
        self._last_sent_s = self._clock()
        self._recorder.sent[self._second(self._last_sent_s)] += 1

    def _second(self, at_s: float) -> int:
        """Return the second of the run that a time by the generator's clock is in."""
        return min(int(at_s - self._start_s), self._last_second)

    async def _sweep(self) -> None:
        """Every SWEEP_S, fail requests that have timed out, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            oldest_due_s = self._clock() - self._load.timeout_s
            self._expire_waiting(oldest_due_s)
            self._expire_in_flight(oldest_due_s)

    def _expire_waiting(self, oldest_due_s: float) -> None:
        """Fail requests that wait for a connection and were due before, the oldest first."""
        while self._waiting and self._waiting[0] < oldest_due_s:
            self._waiting.popleft()
            self._failed("timeout")

    def _expire_in_flight(self, oldest_due_s: float) -> None:
        """Fail requests in flight that were due before, and with them their connections."""
        for connection in list(self._open):
            if connection.tag is not None and connection.tag.due_s < oldest_due_s:
                connection.fail("timeout")

    def _connect_if_short(self) -> None:
        """Open a connection if more requests wait than connections are being opened, up to the load's limit."""
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
        """Open a connection; if that fails, so does the request that waits longest."""
        try:
            async with asyncio.timeout(self._load.timeout_s):
                await self._open_one(lambda: ClientConnection(self))
        except OSError as error:  # includes timeouts
            if self._waiting:
                self._waiting.popleft()
                self._failed(f"{TLS}: {reason_of(error)}" if isinstance(error, ssl.SSLError) else "connect")

    async def _connect_by_tcp(self, make: Callable[[], LoadConnection]) -> None:
        target = self._target
        await asyncio.get_running_loop().create_connection(make, target.host, target.port, ssl=target.tls)

    def on_ready(self, connection: LoadConnection) -> None:
        """Send the request that waits longest, or else keep the connection, as a `ConnectionListener`."""
        if connection not in self._open:
            self._open.add(connection)
            self._recorder.opened += 1
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def on_response(self, connection: LoadConnection, tag: SentRequest) -> None:
        """Record a response of *connection* and its latency, which counts from when its request was due.

        *tag* is the request with its due time. The load's check says why a response is not good; its latency is not
        recorded. In a closed loop, a load without a rate, a good response triggers the next request.
        """
        now_s = self._clock()
        self._last_read_s = now_s
        response = self._response(connection, tag.request)
        self._recorder.record_response(response)

        error = self._load.check(response)
        if error is None:
            self._recorder.latencies_s[self._second(now_s)].append(now_s - tag.due_s)
            if self._load.rate is None:
                self._offer_one()
        else:
            self._failed(error)

    def _response(self, connection: LoadConnection, request: Request) -> ResponseSample:
        lists: Sequence[AnsweredList] | None = ()
        if connection.status == OK:
            lists = decode_lists(connection.head, connection.body, self._load.requests.form)
        return ResponseSample(request.data, connection.status, connection.body, connection.head, request.keys, lists)

    def on_failure(self, tag: SentRequest, kind: FailureKind) -> None:
        """See `hotplate.base.http1.ConnectionListener`."""
        del tag  # errors have no latency
        self._failed(kind)

    def _failed(self, kind: str) -> None:
        self._recorder.errors[kind] += 1
        if self._load.rate is None:
            asyncio.get_running_loop().call_later(RETRY_S, self._offer_one)

    def on_closed(self, connection: LoadConnection, *, unsolicited: bool) -> None:
        """Forget a connection, and replace it if requests wait."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._recorder.unsolicited += unsolicited
        self._connect_if_short()

    def _offer_one(self) -> None:
        now_s = self._clock()
        if now_s < self._end_s and not self._is_over:
            self._offer(now_s)

    def _result(self, cpu_share: float) -> Result:
        """Return the run's counts and times, with the generator's *cpu_share*, see `Result`.

        The duration in seconds is that of the load, but longer if answers came after its end, and until the last
        request or answer if the run was stopped early: zero if it was stopped before its start.
        """
        load = self._load
        recorder = self._recorder
        end_s = max(self._start_s, self._last_sent_s, self._last_read_s)
        elapsed_s = end_s - self._start_s
        last_second = self._second(end_s) if self._stopped.is_set() else self._last_second
        return Result(
            url=load.url,
            requested_rate=load.rate,
            connections=load.connections,
            duration_s=elapsed_s if self._stopped.is_set() else max(load.duration_s, elapsed_s),
            interrupted=self._stopped.is_set(),
            sources=recorder.sources,
            dropped=recorder.dropped,
            errors=recorder.errors,
            statuses=recorder.statuses,
            opened=recorder.opened,
            unsolicited=recorder.unsolicited,
            cpu_share=cpu_share,
            samples=tuple(msgspec.structs.replace(response, lists=()) for response in recorder.samples),
            seconds=recorder.seconds(last_second + 1),
            lags_s=np.array(recorder.lags_s, dtype=np.float32),
        )


def _busy_s() -> float:
    """Return the CPU time of this process plus, on Linux, its time in the run queue."""
    waited_ns = 0
    with contextlib.suppress(OSError):
        _, waited_ns, _ = map(int, Path("/proc/self/schedstat").read_text().split())
    return time.process_time() + waited_ns / 1e9


class LoadWorker:
    """A process for the runs of one measurement; a context manager.

    With a *core* it is pinned. Runs have raised priority if allowed.
    """

    def __init__(self, core: int | None = None) -> None:
        self._channel, theirs = Pipe()
        # Not -m: pickled classes would be those of __main__.
        program = (
            f"import sys; from multiprocessing.connection import Connection; from {__name__} import work_until_closed; "
            "work_until_closed(Connection(int(sys.argv[1])))"
        )
        command = [sys.executable, "-P", "-c", program, str(theirs.fileno())]
        with contextlib.ExitStack() as stack:
            if core is not None:
                stack.enter_context(on_core(core))
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603 -- our own module
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        stop_process(self._process, STOP_WITHIN_S)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def run(self, load: Load) -> Result:
        """Make one run in the load generator's process, and return its result when it ends.

        The run begins once all connections were tried. Ctrl-C stops it, and gives an `interrupted` result. Raises
        BenchFailed if the process dies.
        """
        with raised_priority(self.pid):
            self._channel.send(load)
            try:
                return self._receive()
            except KeyboardInterrupt:
                self._channel.send(STOP)
                return self._receive()

    def _receive(self) -> Result:
        """Receive the result of a run, or raise its exception; BenchFailed if the process died."""
        try:
            outcome: Result | Exception = self._channel.recv()
        except (EOFError, ConnectionError) as error:
            raise BenchFailed(DIED) from error
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def make_run(channel: Channel, load: Load) -> Result:
    """Make one run of the load generator in its process, and return the result.

    Any message of the parent stops the run, and so does its end.
    """
    generator = LoadGenerator(load)
    loop = asyncio.get_running_loop()

    def on_message() -> None:
        with contextlib.suppress(EOFError, OSError):
            channel.recv()
        loop.remove_reader(channel.fileno())
        generator.stop()

    async def begin() -> float:
        gc.collect()
        gc.disable()  # pauses would count as latency
        return time.monotonic() + AHEAD_S

    loop.add_reader(channel.fileno(), on_message)
    try:
        return await generator.run(begin)
    finally:
        gc.enable()
        loop.remove_reader(channel.fileno())
        os.set_blocking(channel.fileno(), True)  # the loop made it non-blocking


def work_until_closed(channel: Channel) -> None:
    """Make a run for each `Load` that the parent process sends, until its end of the channel is closed.

    Answers each with a `Result`, or with the exception that the run raised.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches both processes; the parent ends this one
        signal.signal(number, signal.SIG_IGN)

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            load = channel.recv()
            if load == STOP:
                continue  # of a run that had ended
            try:
                outcome: Result | Exception = uvloop.run(make_run(channel, load))
            except Exception as error:  # noqa: BLE001 -- raised again by the parent
                outcome = error
            channel.send(outcome)
