"""Two servers over one reader, one with the fast lane and one without, and what each answers to the same bytes."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from hotplate.serve.access.auth import Guard
from hotplate.serve.api.app import Dispatcher
from hotplate.serve.connections.connection import Connection
from hotplate.serve.connections.fast_lane import is_compiled
from hotplate.serve.connections.server import HttpServer, server_of
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.settings import Limits
from hotplate.serve.telemetry.access_log import AccessLog
from hotplate.serve.telemetry.tracing import Tracer
from tests.support.waiting import until_true

LAST = b"GET /livez HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n"
needs_lane = pytest.mark.skipif(not is_compiled(), reason="the fast lane is not compiled")
# Headers that differ from one answer to the next by no choice of the server.
VARYING = re.compile(rb"(?m)^(?:Date: |Server-Timing: app;dur=)[^\r]*|^X-Request-Id: [0-9a-f]{20}(?=\r)")
# The start of an answer that is not interim.
FINAL = re.compile(rb"HTTP/1\.[01] [2-5]")
# In how many turns of the loop a piece is read, and all is answered.
TURNS, LAST_TURNS = 6, 60


class MemoryTransport(asyncio.Transport):
    """A connection's other end in memory: it stores written bytes, and feeds bytes to a reader."""

    def __init__(self, connection: Connection) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = bytearray()
        self.closed = False
        self.connection = connection
        self._reading = True
        self._unread = bytearray()

    def feed(self, data: bytes) -> None:
        """Let the server read *data*, as soon as it reads."""
        self._unread += data
        if self._reading and self._unread and not self.closed:
            came = bytes(self._unread)
            self._unread = bytearray()
            self.connection.data_received(came)

    async def answers(self, count: int = 1) -> bytes:
        """Wait for this many answers; return all that was written."""
        await until_true(lambda: len(FINAL.findall(self.written)) >= count)
        return bytes(self.written)

    async def until_closed(self) -> bytes:
        """Wait until the connection is closed; return all that was written."""
        await until_true(lambda: self.closed)
        return bytes(self.written)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closed:
            self.written += data

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        asyncio.get_running_loop().call_soon(self.feed, b"")

    def is_reading(self) -> bool:
        return self._reading

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.close()  # as the client does, then

    def get_write_buffer_size(self) -> int:
        return 0


@dataclass(kw_only=True)
class Pair:
    """A context manager: *lane* and *plain* are servers, alike but for the lane, over a reader that it enters."""

    reader: TieredReader = field(kw_only=False)
    keys: Path | None = None
    origins: Sequence[str] = ()
    access_log: AccessLog | None = None
    tracer: Tracer | None = None
    limits: Limits | None = None
    dispatchers: list[Dispatcher] = field(default_factory=list, init=False)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack, init=False)
    lane: HttpServer = field(init=False)
    plain: HttpServer = field(init=False)

    async def __aenter__(self) -> Self:
        await self.stack.enter_async_context(self.reader)
        await self.reader.wait_until_ready(30)
        self.plain = self._server(fast=False)
        self.lane = self._server(fast=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    def _server(self, *, fast: bool) -> HttpServer:
        anonymous = frozenset[str]() if self.keys else frozenset({"read"})
        guard = Guard(self.keys, anonymous=anonymous)  # a separate one, with separate rates
        dispatcher = Dispatcher(
            self.reader, guard, cors_origins=self.origins, access_log=self.access_log, tracer=self.tracer
        )
        self.dispatchers.append(dispatcher)
        server = server_of(dispatcher, self.limits, fast_lane=fast)
        self.stack.push_async_callback(server.close)
        return server

    async def check(self, *pieces: bytes, turns: int = TURNS) -> None:
        """Send the same pieces to both servers, and after them a request that ends it; fail if the answers differ."""
        for pause_s in (0.0, 0.01):  # again with time, for a thread or a batch's turn
            with_lane = await exchange(self.lane, pieces, pause_s, turns)
            without = await exchange(self.plain, pieces, pause_s, turns)
            if with_lane == without:
                return
        raise AssertionError(_difference(pieces, with_lane, without))


def connected(server: HttpServer) -> tuple[Connection, MemoryTransport]:
    """Connect to a server in memory; return its end and the client's."""
    connection = Connection(server)
    transport = MemoryTransport(connection)
    connection.connection_made(transport)
    return connection, transport


def sent_to(server: HttpServer, data: bytes) -> MemoryTransport:
    """Connect to a server in memory, send *data*, and return the client's end."""
    _, transport = connected(server)
    transport.feed(data)
    return transport


async def exchange(server: HttpServer, pieces: Sequence[bytes], pause_s: float = 0.0, turns: int = TURNS) -> bytes:
    """Send *pieces* one by one, each when the one before it was read; all that comes back, but for what varies.

    *turns* is how many turns of the loop come between two of them, and *pause_s* how long each turn takes in which an
    answer is waited for.
    """
    _, transport = connected(server)
    for piece in (*pieces, LAST):
        transport.feed(piece)
        for _ in range(turns):
            await asyncio.sleep(0)
    for _ in range(LAST_TURNS):
        if transport.closed:
            break
        await asyncio.sleep(pause_s)
    end = b"" if transport.closed else b"(waits)"
    transport.close()
    await asyncio.sleep(0)
    return VARYING.sub(b"", bytes(transport.written)) + end


def _difference(pieces: Sequence[bytes], with_lane: bytes, without: bytes) -> str:
    return f"{pieces!r}\nwith the lane: {with_lane!r}\nwithout:       {without!r}"
