"""An event loop whose time passes only when nothing is left to do, and a server simulated in it."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from bench.loadgen.generator import Generator, LoadConnection
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from stores.estimate import VirtualLoop as VirtualLoop  # noqa: PLC0414 -- tests take it from here

T = TypeVar("T")
P = ParamSpec("P")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def in_virtual_time(work: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time; its fixtures are plain ones, for they are made outside of its loop."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        in_virtual_time(lambda _: test(*args, **kwargs))

    return run


Service = Callable[[float], float]
"""When a request that arrives at a time is answered."""


class SimulatedTransport(asyncio.Transport):
    """One connection to a server that is only a formula."""

    def __init__(self, loop: VirtualLoop, protocol: LoadConnection, service: Service) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.service = service
        self.closed = False

    def write(self, data: object) -> None:
        del data
        self.loop.call_at(self.service(self.loop.time()), self.answer)

    def answer(self) -> None:
        if not self.closed:
            self.protocol.data_received(ANSWER)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def simulate(load: Load, service: Service, *, thief: Callable[[VirtualLoop], None] | None = None) -> Result:
    """Run the generator as it is against *service*; *thief* may take time away from it."""

    async def work(loop: VirtualLoop) -> Result:
        async def keep_pace(tick: Callable[[], float | None]) -> None:
            while (due_s := tick()) is not None:
                await asyncio.sleep(due_s - loop.time())

        async def connect(make: Callable[[], LoadConnection]) -> None:
            protocol = make()
            protocol.connection_made(SimulatedTransport(loop, protocol, service))

        generator = Generator(load, clock=loop.time, keep_pace=keep_pace, connect=connect)
        if thief is not None:
            thief(loop)
        return await generator.run()

    return in_virtual_time(work)
