"""The generating processes of a measurement: each takes an equal part of every run and sends back its result.

They are processes of their own, because watching, drawing and adding up would delay their event loops, and delays
would count as latencies.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import wait
from typing import Self

import uvloop

from hotplate.bench.errors import BenchFailed
from hotplate.bench.loadgen.generator import LoadGenerator
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import LoadProgress, Result, merged
from hotplate.bench.process import Channel, on_core, raised_priority, receive, start_worker, stop_process

# From when all are ready to the first due request.
AHEAD_S = 0.05

STOP_WITHIN_S = 5.0
PROGRESS_S = 0.5

DIED = "a process of the load generator died; look for what killed it (memory?)"

# Called with the newest progress of each process.
OnLoadProgress = Callable[[Sequence[LoadProgress]], None]


# A worker sends the first once its connections are open; the second ends its run early. A number begins the run: the
# time, by CLOCK_MONOTONIC, which all processes share.
READY = "ready"
STOP = "stop"


class WorkerPool:
    """Processes that live for one measurement; a context manager, which ends them.

    With a *core* they have that one, and run before others while a run lasts, as far as the system allows.
    """

    def __init__(self, processes: int = 1, *, core: int | None = None) -> None:
        with ExitStack() as stack:
            self._core = None if core is None else stack.enter_context(on_core(core))
            self._workers = [start_worker("hotplate.bench.loadgen.workers:work_until_closed") for _ in range(processes)]

    def __enter__(self) -> Self:
        """Return the pool; its processes are running already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for process, channel in self._workers:
            channel.close()
            stop_process(process, STOP_WITHIN_S)

    @property
    def pids(self) -> list[int]:
        """The processes, to measure what they use."""
        return [process.pid for process, _ in self._workers]

    def run(self, load: Load, on_progress: OnLoadProgress | None = None, *, on_the_second: bool = False) -> Result:
        """Make one run with all processes at the same time; blocks until it is over.

        It begins at once, or *on_the_second*: with a whole second of the clock, by which budgets of a second are kept.
        Ctrl-C ends the run early: the result is `interrupted`, and holds what was measured until then. Raises
        BenchFailed if a process dies, and what the load's `check` raised.
        """
        with raised_priority(() if self._core is None else self.pids):
            return self._run(load, on_progress, on_the_second=on_the_second)

    def _run(self, load: Load, on_progress: OnLoadProgress | None, *, on_the_second: bool) -> Result:
        channels = [channel for _, channel in self._workers]
        for part, channel in enumerate(channels):
            channel.send(load.share(part, len(channels)) if len(channels) > 1 else load)
        try:
            for channel in channels:
                if (message := receive(channel, DIED)) != READY:
                    raise BenchFailed(f"a process of the load generator sent {message!r}")
            start_s = time.monotonic() + AHEAD_S
            if on_the_second:
                start_s += 1 - (time.time() + AHEAD_S) % 1
            for channel in channels:
                channel.send(start_s)
            return _collect(channels, on_progress)
        except KeyboardInterrupt:
            for channel in channels:
                channel.send(STOP)
            return _collect(channels, None)


def _collect(channels: Sequence[Channel], on_progress: OnLoadProgress | None) -> Result:
    results, progress = dict[Channel, Result](), dict[Channel, LoadProgress]()
    while len(results) < len(channels):
        for ready in wait([channel for channel in channels if channel not in results]):
            channel = next(each for each in channels if each is ready)
            message = receive(channel, DIED)
            if isinstance(message, Result):
                results[channel] = message
            elif isinstance(message, LoadProgress):
                progress[channel] = message
        if on_progress is not None and progress:
            on_progress(list(progress.values()))
    return merged([results[channel] for channel in channels])


async def make_run(channel: Channel, load: Load) -> Result:
    """Make one run in a worker: connect, report that, begin on command, report progress, and stop early on command."""
    generator = LoadGenerator(load)
    loop = asyncio.get_running_loop()
    begun: asyncio.Future[float] = loop.create_future()

    def on_message() -> None:
        try:
            message = channel.recv()
        except (EOFError, OSError):
            message = STOP
            loop.remove_reader(channel.fileno())
        if message == STOP:
            generator.stop()
        if not begun.done():
            begun.set_result(message if isinstance(message, float) else time.monotonic())

    async def begin() -> float:
        channel.send(READY)
        return await begun

    async def report_progress() -> None:
        await begun
        while True:
            await asyncio.sleep(PROGRESS_S)
            channel.send(generator.progress())

    loop.add_reader(channel.fileno(), on_message)
    reporting = asyncio.create_task(report_progress())
    try:
        return await generator.run(begin)
    finally:
        reporting.cancel()
        loop.remove_reader(channel.fileno())
        os.set_blocking(channel.fileno(), True)  # the loop made it otherwise


def work_until_closed(channel: Channel) -> None:
    """Be a worker: make runs until the other end of the channel is closed."""
    for each in (signal.SIGINT, signal.SIGTERM):  # the parent handles them, and ends its workers
        signal.signal(each, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        while True:
            load = channel.recv()
            if not isinstance(load, Load):
                continue  # a stop that came after the end of the run
            try:
                outcome: Result | Exception = uvloop.run(make_run(channel, load))
            except Exception as error:  # noqa: BLE001 -- raised again by the parent, where somebody sees it
                outcome = error
            channel.send(outcome)
