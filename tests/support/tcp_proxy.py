"""A TCP proxy that delays, cuts, resets and refuses on demand, to stand between a store and its server."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

from tests.support.streams import stop_listening


class Proxy:
    """A proxy before one server, with its present faults; it exists until its block ends."""

    def __init__(self, target: int) -> None:
        """Lead to a port of this machine."""
        self.delay_s = 0.0
        """The delay of each request in seconds."""
        self.refusing = False
        """Whether new connections are closed at once."""
        self.losing: bytes | None = None
        """Part of requests whose reply is lost: the connection is cut once the reply has arrived here."""
        self.accepted = 0
        """The number of connections since the start."""
        self.port = 0
        self.target = target
        """The port that new connections lead to."""
        self._writers = set[asyncio.StreamWriter]()
        self._transports = list[asyncio.WriteTransport]()
        self._tasks = set[asyncio.Task[None]]()

    @property
    def is_connected(self) -> bool:
        """Whether a connection is open."""
        return bool(self._writers)

    def reset(self) -> None:
        """Cut every connection, without a goodbye."""
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        """Cut every connection, and wait until none is left; for one that no longer listens."""
        while self._tasks:
            self.reset()
            await asyncio.gather(*self._tasks)
        for transport in self._transports:  # one that still has data to send stays open otherwise
            transport.abort()
        await asyncio.sleep(0)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one connection."""
        self.accepted += 1
        if self.refusing:
            writer.transport.abort()
            return
        self._writers.add(writer)
        self._transports.append(writer.transport)
        self._start(self._connect(reader, writer))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await self._open_connection(writer)
        except OSError:
            return
        lost = asyncio.Event()
        self._start(self._pump(reader, server_writer, lost, is_request=True))
        self._start(self._pump(server_reader, writer, lost, is_request=False))

    async def _open_connection(self, client: asyncio.StreamWriter) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the target; raises OSError if that fails, after it has cut the connection of *client*."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self._writers.discard(client)
            client.transport.abort()
            raise
        self._writers.add(writer)
        self._transports.append(writer.transport)
        return reader, writer

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, lost: asyncio.Event, *, is_request: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        with suppress(OSError):
            while data := await source.read(1 << 16):
                if is_request and self.losing is not None and self.losing in data:
                    lost.set()
                elif lost.is_set() and not is_request:
                    sink.transport.abort()
                    break
                # Later than what came before, if only just: of timers that are due at once the order is not defined.
                due = max(due + 1e-6, loop.time() + (self.delay_s if is_request else 0.0))
                loop.call_at(due, sink.write, data)
        sink.close()
        self._writers.discard(sink)


@asynccontextmanager
async def through(target: int) -> AsyncIterator[Proxy]:
    """Run a proxy to *target* on loopback until the block ends."""
    proxy = Proxy(target)
    async with listening(proxy):
        yield proxy


@asynccontextmanager
async def listening(proxy: Proxy) -> AsyncIterator[None]:
    """Take connections on loopback until the block ends."""
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        await stop_listening(server)
        await proxy.close()
        await server.wait_closed()
