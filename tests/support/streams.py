"""A server of streams in the event loop of a test, whose connections end with its block, and open sockets."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# Turns of the event loop between its acceptance of a connection and the call of the handler.
_TURNS_TO_ACCEPT = 3


async def stop_listening(server: asyncio.Server) -> None:
    """Accept no more connections, wait until the handlers have those that were accepted, and close the server.

    A connection that has no transport yet when its server is closed never gets one, and its socket stays open.
    """
    for listener in server.sockets:
        server.get_loop().remove_reader(listener)
    for _ in range(_TURNS_TO_ACCEPT):
        await asyncio.sleep(0)
    server.close()


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """Serve each connection to a free port of 127.0.0.1 with *handler*, then close it; yield the port.

    The end of the block aborts open connections, whose handlers read their end. Errors of handlers are raised by the
    block, except those of cut connections.
    """
    tasks = list[asyncio.Task[None]]()
    writers = list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.append(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await stop_listening(server)
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks)


def open_sockets() -> int:
    """Return how many TCP sockets this process has open."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        if path.is_socket():
            with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as copy:
                count += copy.family == socket.AF_INET and copy.type == socket.SOCK_STREAM
    return count


@asynccontextmanager
async def until_sockets_are_closed(limit_s: float) -> AsyncIterator[None]:
    """Wait at the end until the sockets that were opened in the block are closed; TimeoutError after *limit_s*.

    Asyncio closes a socket of TLS once the server has agreed, or after 30 s. If the loop ends before, the socket stays
    open, and the warning of that fails a later test.
    """
    before = open_sockets()
    yield
    async with asyncio.timeout(limit_s):
        while open_sockets() > before:
            await asyncio.sleep(0.02)
