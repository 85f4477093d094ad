"""A proxy before a Redis server that counts commands, and shows a fault at one of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import hiredis

from tests.support.tcp_proxy import Proxy, listening

# Sent by each new connection, and not counted.
GREETINGS = {b"HELLO", b"CLIENT", b"AUTH", b"SELECT", b"READONLY"}

# The reply to ECHO of this, or QUEUED, follows that to the command before.
MARKER = b"executed"
ECHO = b"*2\r\n$4\r\nECHO\r\n$8\r\nexecuted\r\n"


class RedisProxy(Proxy):
    """Relays commands one by one, and cuts all connections at the command numbered `fault_at`, from 0."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.commands = list[str]()
        """The names of the commands that were sent, without greetings."""
        self._fault_at: int | None = None
        self._is_executed = False
        self._on_fault: Callable[[], None] = lambda: None

    def arm(
        self, fault_at: int | None = None, on_fault: Callable[[], None] = lambda: None, *, is_executed: bool = False
    ) -> None:
        """Count from 0 again, and show a fault at one command.

        *on_fault* is called once all connections are cut. With *is_executed*, the server executes the command before,
        so only its reply is lost.
        """
        self.commands.clear()
        self._fault_at, self._on_fault, self._is_executed = fault_at, on_fault, is_executed

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._writers.add(server_writer)
        replies = self._start(self._pump(server_reader, writer, asyncio.Event(), is_request=False))
        parser = hiredis.Reader()
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                parser.feed(data)
                while command := parser.gets():
                    if not self._is_faulty(command):
                        server_writer.write(hiredis.pack_command(tuple(command)))
                        continue
                    if self._is_executed:
                        replies.cancel()
                        await asyncio.gather(replies, return_exceptions=True)
                        server_writer.write(hiredis.pack_command(tuple(command)))
                        await _executed(server_reader, server_writer)
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


async def _executed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the server has executed what was sent."""
    writer.write(ECHO)
    received = b""
    while MARKER not in received and b"QUEUED" not in received:
        data = await reader.read(1 << 16)
        if not data:
            return
        received += data


@asynccontextmanager
async def counting(target: int) -> AsyncIterator[RedisProxy]:
    """Run a proxy to *target* on loopback until the block ends."""
    proxy = RedisProxy(target)
    async with listening(proxy):
        yield proxy
