"""One generating process: makes the runs that it receives, one after the other, and sends back the results."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop

from bench.loadgen.generator import Generator
from bench.loadgen.load import Load
from bench.loadgen.result import Result

TELL_S = 0.5


@dataclass(frozen=True, slots=True)
class Ready:
    """From the worker: the connections are open."""


@dataclass(frozen=True, slots=True)
class Begin:
    """To the worker: the run begins at this time of CLOCK_MONOTONIC, which all processes share."""

    start_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """To the worker: end the run now."""


async def work(channel: "Connection[object, object]", load: Load) -> Result:
    """Make one run: connect, say so, begin when told, tell how it goes, and stop early when told."""
    generator = Generator(load)
    loop = asyncio.get_running_loop()
    begun: asyncio.Future[float] = loop.create_future()

    def hear() -> None:
        try:
            message = channel.recv()
        except (EOFError, OSError):
            message = Stop()
            loop.remove_reader(channel.fileno())
        if isinstance(message, Stop):
            generator.stop()
        if not begun.done():
            begun.set_result(message.start_s if isinstance(message, Begin) else time.monotonic())

    async def begin() -> float:
        channel.send(Ready())
        return await begun

    async def tell() -> None:
        await begun
        while True:
            await asyncio.sleep(TELL_S)
            channel.send(generator.progress())

    loop.add_reader(channel.fileno(), hear)
    telling = asyncio.create_task(tell())
    try:
        return await generator.run(begin)
    finally:
        telling.cancel()
        loop.remove_reader(channel.fileno())
        os.set_blocking(channel.fileno(), True)  # the loop made it otherwise


def main() -> None:
    """Make runs until the other end of the socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    channel: Connection[object, object] = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            load = channel.recv()
            if not isinstance(load, Load):
                continue  # a stop that came after the run had ended by itself
            try:
                outcome: Result | Exception = uvloop.run(work(channel, load))
            except Exception as error:  # noqa: BLE001 -- raised again by the parent, where somebody sees it
                outcome = error
            channel.send(outcome)
