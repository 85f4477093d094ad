"""The generating processes of a measurement: each takes an equal part of every run."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Self, TypeAlias

from bench.errors import BenchFailed
from bench.loadgen.load import Load
from bench.loadgen.recorder import Progress
from bench.loadgen.result import Result, merged
from bench.loadgen.worker import Begin, Ready, Stop

AHEAD_S = 0.05  # from when all are ready to the first due request
STOP_WITHIN_S = 5.0
START = "from bench.loadgen.worker import main; main()"  # not -m: its messages would be classes of another module

Tell = Callable[[Sequence[Progress]], None]
"""Hears how a run goes: the newest word of each process."""
Channel: TypeAlias = "Connection[object, object]"


class WorkerPool:
    """Processes that live for one measurement; a context manager, which ends them."""

    def __init__(self, processes: int = 1) -> None:
        self._workers = [_start() for _ in range(processes)]

    def __enter__(self) -> Self:
        """Hand out the processes that are already there."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for process, channel in self._workers:
            channel.close()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def pids(self) -> list[int]:
        """The processes, for whoever measures what they use."""
        return [process.pid for process, _ in self._workers]

    def run(self, load: Load, tell: Tell | None = None, *, on_the_second: bool = False) -> Result:
        """Make one run with all processes at the same time; blocks until it is over.

        It begins at once, or *on_the_second*: with a whole second of the clock, by which budgets of a second are kept.
        Ctrl-C ends the run early: the result says `interrupted`, and holds what was measured until then. Raises
        BenchFailed where a process dies, and what the load's `check` raised.
        """
        channels = [channel for _, channel in self._workers]
        for part, channel in enumerate(channels):
            channel.send(load.share(part, len(channels)) if len(channels) > 1 else load)
        try:
            for channel in channels:
                self._heard(channel, Ready)
            start_s = time.monotonic() + AHEAD_S
            if on_the_second:
                start_s += 1 - (time.time() + AHEAD_S) % 1
            for channel in channels:
                channel.send(Begin(start_s))
            return self._collect({}, tell)
        except KeyboardInterrupt:
            for channel in channels:
                channel.send(Stop())
            return self._collect({}, None)

    def _heard(self, channel: Channel, wanted: type) -> object:
        message = self._receive(channel)
        if isinstance(message, Exception):
            raise message
        if not isinstance(message, wanted):
            raise BenchFailed(f"a generating process said {message!r}")
        return message

    def _collect(self, results: dict[Channel, Result], tell: Tell | None) -> Result:
        channels = [channel for _, channel in self._workers]
        told = dict[Channel, Progress]()
        while len(results) < len(channels):
            for ready in wait([channel for channel in channels if channel not in results]):
                channel = next(each for each in channels if each is ready)
                message = self._receive(channel)
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, Result):
                    results[channel] = message
                elif isinstance(message, Progress):
                    told[channel] = message
            if tell is not None and told:
                tell(list(told.values()))
        return merged([results[channel] for channel in channels])

    def _receive(self, channel: Channel) -> object:
        try:
            return channel.recv()
        except (EOFError, ConnectionError) as error:
            raise BenchFailed("a process of the load generator died; look for what killed it (memory?)") from error


def _start() -> "tuple[subprocess.Popen[bytes], Channel]":
    ours, theirs = Pipe()
    number = theirs.fileno()
    process = subprocess.Popen(  # noqa: S603 -- our own module
        [sys.executable, "-P", "-c", START, str(number)], pass_fds=[number], stdin=subprocess.DEVNULL
    )
    theirs.close()
    return process, ours
