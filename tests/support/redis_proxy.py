"""A proxy before a Redis server that counts commands, and shows a fault at one of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum

import hiredis

from tests.support.tcp_proxy import Proxy, listening

# Sent by each new connection, and not counted.
GREETINGS = {b"HELLO", b"CLIENT", b"AUTH", b"SELECT", b"READONLY"}


class Cut(Enum):
    """When all connections are cut: before a command, before its reply, or after it."""

    BEFORE = "before the command"
    REPLY = "before its reply"
    AFTER = "after its reply"


class RedisProxy(Proxy):
    """Relays commands one by one, and cuts all connections at one of them."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.commands = list[str]()
        """The names of the commands that were sent, without greetings."""
        self._fault_at: int | None = None
        self._cut = Cut.BEFORE
        self._on_fault: Callable[[], None] = lambda: None

    def arm(
        self, fault_at: int | None = None, on_fault: Callable[[], None] = lambda: None, cut: Cut = Cut.BEFORE
    ) -> None:
        """Count from 0 again, and cut all connections at one command; then call *on_fault*."""
        self.commands.clear()
        self._fault_at = fault_at
        self._on_fault = on_fault
        self._cut = cut

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await self._open_connection(writer)
        except OSError:
            return
        replies = _Replies(server_reader, writer)
        self._start(replies.relay())
        parser = hiredis.Reader()
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                parser.feed(data)
                while command := parser.gets():
                    is_faulty = self._is_faulty(command)
                    if not is_faulty or self._cut is not Cut.BEFORE:
                        replies.outstanding += 1
                        replies.are_lost = is_faulty and self._cut is Cut.REPLY
                        replies.are_held = is_faulty and self._cut is Cut.AFTER
                        server_writer.write(hiredis.pack_command(tuple(command)))
                    if is_faulty:
                        await replies.until_complete()
                        if self._cut is Cut.AFTER:  # at once: the client must not continue before the fault
                            writer.write(replies.held)
                            writer.close()
                            self._writers.discard(writer)
                        self.reset()
                        self._on_fault()
                        return
        server_writer.close()
        self._writers.discard(server_writer)

    def _is_faulty(self, command: list[bytes]) -> bool:
        name = command[0].upper()
        if name in GREETINGS:
            return False
        self.commands.append(name.decode())
        return len(self.commands) - 1 == self._fault_at


class _Replies:
    """Relays replies, unless they are lost or held, and counts those that are outstanding."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.outstanding = 0
        self.are_lost = False
        self.are_held = False
        self.held = b""
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader(notEnoughData=self)
        self._has_ended = False

    async def relay(self) -> None:
        with suppress(OSError):
            while data := await self._reader.read(1 << 16):
                if self.are_held:
                    self.held += data
                elif not self.are_lost:
                    self._writer.write(data)
                self._parser.feed(data)
                while self._parser.gets() is not self:
                    self.outstanding -= 1
        self._has_ended = True
        self._writer.close()

    async def until_complete(self) -> None:
        while self.outstanding and not self._has_ended:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def counting(target: int) -> AsyncIterator[RedisProxy]:
    """Run a proxy to *target* on loopback until the block ends."""
    proxy = RedisProxy(target)
    async with listening(proxy):
        yield proxy
