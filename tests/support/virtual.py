"""An event loop with time that passes only when nothing is left to do, and a server simulated in it."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np

from hotplate.bench.loadgen.generator import LoadConnection, LoadGenerator
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import Result

T = TypeVar("T")
P = ParamSpec("P")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with time that passes only when nothing is left to do, and stands still while threads work."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # noqa: ANN401 -- the base class says so
        """Run *func* in a thread; no time passes until it is done."""
        self._virtual.threads += 1
        working: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        working.add_done_callback(self._thread_done)
        return working

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109 -- see below
        """Wait for the threads without a limit: that of Python 3.12 and later would pass at once, as time does here."""
        await super().shutdown_default_executor()

    def _thread_done(self, _working: asyncio.Future[Any]) -> None:
        self._virtual.threads -= 1

    def advance(self, seconds: float) -> None:
        """Let time pass at once, as for a process that did not run."""
        self._virtual.now_s += seconds


class _VirtualSelector(selectors.SelectSelector):
    """Waits for threads only: the time that a loop would have waited has passed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> Any:  # noqa: ANN401 -- what the base class gives is private
        if self.threads and (timeout is None or timeout > 0):
            return super().select(None)
        if timeout:
            self.now_s += timeout
        return super().select(0)


def in_virtual_time(work: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time; its fixtures are synchronous, because they run outside of its loop."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        in_virtual_time(lambda _: test(*args, **kwargs))

    return run


# When a request that arrives at a time is answered.
Service = Callable[[float], float]
# What a request of these bytes, which arrives at a time, is answered with.
Respond = Callable[[float, bytes], bytes]


class SimulatedTransport(asyncio.Transport):
    """One connection to a server that is only a formula."""

    def __init__(self, loop: VirtualLoop, protocol: LoadConnection, service: Service, respond: Respond) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.service = service
        self.respond = respond
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        now = self.loop.time()
        self.loop.call_at(self.service(now), self.answer, self.respond(now, bytes(data)))

    def answer(self, response: bytes) -> None:
        if not self.closed:
            self.protocol.data_received(response)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def simulate(
    load: Load,
    service: Service,
    *,
    respond: Respond = lambda _now, _request: ANSWER,
    at_start: Callable[[VirtualLoop], None] = lambda _loop: None,
) -> Result:
    """Run the generator as it is against *service*; *at_start* gets the loop, and may take time away from it."""

    async def work(loop: VirtualLoop) -> Result:
        async def keep_pace(tick: Callable[[], float | None]) -> None:
            while (due_s := tick()) is not None:
                await asyncio.sleep(due_s - loop.time())

        async def connect(make: Callable[[], LoadConnection]) -> None:
            protocol = make()
            protocol.connection_made(SimulatedTransport(loop, protocol, service, respond))

        generator = LoadGenerator(load, clock=loop.time, keep_pace=keep_pace, connect=connect)
        at_start(loop)
        return await generator.run()

    simulated = in_virtual_time(work)  # independent of the load of the machine
    return replace(simulated, cpu_share=0.0)


def delayed(result: Result, late_s: float = 0.03) -> Result:
    """Return *result* as of a generator that sent each request *late_s* late."""
    late = np.float32(late_s)
    seconds = tuple(replace(second, latencies_s=second.latencies_s + late) for second in result.seconds)
    return replace(result, seconds=seconds, lags_s=result.lags_s + late)


class EndingWorker:
    """A `LoadWorker` with runs by *make_run*, of which number *last* is interrupted or, with an *error*, fails."""

    def __init__(self, last: int, make_run: Callable[[Load], Result], error: Exception | None = None) -> None:
        self.last = last
        self.make_run = make_run
        self.error = error
        self.runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was started."""

    def run(self, load: Load) -> Result:
        self.runs += 1
        is_last = self.runs == self.last
        if is_last and self.error is not None:
            raise self.error
        return replace(self.make_run(load), interrupted=is_last)
