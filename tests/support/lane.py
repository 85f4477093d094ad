"""Two servers over one reader, one with the fast lane and one without, and what each answers to the same bytes."""

import asyncio
import re
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from serve.access.auth import Guard
from serve.api.app import Dispatcher
from serve.connections.lane import Lane
from serve.connections.protocol import Server
from serve.deny_list import DenyListFile
from serve.reader import open_reader

LAST = b"GET /livez HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n"
# What differs from one answer to the next, and is no server's choice.
VARYING = re.compile(rb"(?m)^(?:Date: |Server-Timing: app;dur=)[^\r]*|^X-Request-Id: [0-9a-f]{20}(?=\r)")
# How long nothing comes before a server is taken to wait for more; and to be sure of that, on a busy machine.
QUIET_S, SURELY_QUIET_S = 0.02, 1.0


class Pair:
    """A context manager: *lane* and *plain* are servers on loopback, alike but for the lane."""

    def __init__(
        self, store: Path, *, keys: Path | None = None, deny_list: Path | None = None, origins: Sequence[str] = ()
    ) -> None:
        self.reader = open_reader([f"file://{store}"], deny_list=DenyListFile(deny_list))
        self._guard = Guard(keys, anonymous=frozenset() if keys else frozenset({"read"}))
        self._origins = origins
        self._stack = AsyncExitStack()
        self.dispatchers = list[Dispatcher]()
        self.lane_port = self.plain_port = 0

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.reader)
        await self.reader.wait_until_ready(30)
        self.plain_port = self._serve(fast=False)
        self.lane_port = self._serve(fast=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _serve(self, *, fast: bool) -> int:
        dispatcher = Dispatcher(self.reader, self._guard, cors_origins=self._origins)
        self.dispatchers.append(dispatcher)
        server = Server(dispatcher)
        dispatcher.gate = server.admit
        dispatcher.claim = server.claim if self._guard.knows_clients else None
        if fast:
            server.lane = Lane(dispatcher)
        listening = socket.create_server(("127.0.0.1", 0))
        self._stack.push_async_callback(server.shutdown, 1)
        self._stack.callback(server.listen(listening, 128).close)
        port: int = listening.getsockname()[1]
        return port

    async def differ(self, *pieces: bytes) -> str | None:
        """Send the same pieces to both servers, and after them a request that ends it; say how the answers differ."""
        for quiet_s in (QUIET_S, SURELY_QUIET_S):
            with_lane, without = await asyncio.gather(
                exchange(self.lane_port, pieces, quiet_s), exchange(self.plain_port, pieces, quiet_s)
            )
            if with_lane == without:
                return None
        return f"{pieces!r}\nwith the lane: {with_lane!r}\nwithout:       {without!r}"


async def exchange(port: int, pieces: Sequence[bytes], quiet_s: float = QUIET_S) -> bytes:
    """Send *pieces* one by one, each when the one before it was read; all that comes back, but for what varies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        for piece in (*pieces, LAST):
            writer.write(piece)
            for _ in range(8):  # turns of the loop, on which the servers are, too
                await asyncio.sleep(0)
        while True:
            try:
                async with asyncio.timeout(quiet_s):
                    came = await reader.read(1 << 16)
            except TimeoutError:
                break  # it waits for more
            if not came:
                break
            received += came
    except ConnectionError:
        received += b"(reset)"
    finally:
        writer.close()
    return VARYING.sub(b"", received)
