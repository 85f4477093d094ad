"""The connections to one server: some for sessions, and one for reads."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError, RedisError  # noqa: A004 -- redis-py's name

from hotplate.stores.concurrency import SharedCall
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.redis.client import (
    COMMAND_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    Command,
    ServerConnection,
    Session,
)
from hotplate.stores.redis.errors import translated
from hotplate.stores.redis.multiplexed import Multiplexer
from hotplate.stores.redis.url import RedisAddress

# Connections to a server that sessions of a store hold at most.
MAX_SESSIONS = 8

RECONNECT_PAUSES_S = (0.05, 2.0)  # first and longest between attempts to connect; callers fail immediately
DISCOVERY_TIMEOUT_S = 1.0  # of a node or a sentinel

# Pause between two looks at whether a retired server is in use. The second is for calls that are about to begin.
RETIRING_POLL_S = 0.01
RETIRING_POLLS = 2


class Server:
    """The connections to one server: at most MAX_SESSIONS for sessions, and one for the reads of all callers.

    They are opened when they are first used.
    """

    def __init__(self, address: RedisAddress, settings: Mapping[str, Any]) -> None:
        """*settings* are those of `settings_of`."""
        self.address = address
        self.node = address.host, address.port
        self._settings = settings
        self._reads: Multiplexer | None = None
        self._opening_reads = SharedCall(self._open_reads, self._closed, RECONNECT_PAUSES_S)
        self._client = Redis(protocol=settings["protocol"])  # parses replies
        self._turns = asyncio.Semaphore(MAX_SESSIONS)
        self._idle = list[ServerConnection]()
        self._in_use = set[ServerConnection]()
        self._is_closed = False

    @asynccontextmanager
    async def session(self, *, asking: bool = False) -> AsyncIterator[Session]:
        """Hold a connection during the block; see `Session` for *asking*.

        Waits up to COMMAND_TIMEOUT_S for one while MAX_SESSIONS are held. Raises StoreError.
        """
        async with self._turn():
            connection = self._idle.pop() if self._idle else ServerConnection(**self._settings)
            self._in_use.add(connection)
            try:
                await self._open(connection, COMMAND_TIMEOUT_S)
                yield Session(self._client, self.address, connection, asking=asking)
            finally:
                self._in_use.discard(connection)
                self._idle.append(connection)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Be one of MAX_SESSIONS during the block; StoreUnavailable if others hold all of them for too long."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._turns.acquire()
        except TimeoutError as error:
            where = self.address.shown
            sentence = f"{where} did not answer in time: {MAX_SESSIONS} earlier calls still wait for it"
            raise StoreUnavailable(sentence) from error
        try:
            yield
        finally:
            self._turns.release()

    async def _open(self, connection: ServerConnection, timeout_s: float) -> None:
        """Open a connection unless it is open and has nothing to read; raises StoreError."""
        try:
            async with asyncio.timeout(timeout_s):
                if connection.is_connected and await connection.can_read():  # a reply without a command, or its end
                    connection.abort()
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py types the rest
                if await connection.can_read():
                    raise ConnectionError("it sent a reply without a command")
        except (RedisError, TimeoutError) as error:
            connection.abort()
            raise translated(error, self.address.shown) from error
        if self._is_closed:
            connection.abort()
            raise self._closed()

    @property
    def reads(self) -> Multiplexer | None:
        """The open connection for reads, if any."""
        return self._reads if self._reads is not None and self._reads.error is None else None

    async def open_reads(self) -> Multiplexer:
        """Return the open connection for reads; concurrent callers share one attempt to open it.

        Raises StoreUnavailable if that fails, and at once during the pause after a failure.
        """
        if self.reads is not None:
            return self.reads
        if self._is_closed:
            raise self._closed()
        return await self._opening_reads.result()

    async def _open_reads(self) -> Multiplexer:
        ended = self._reads
        self._reads = None
        if ended is not None:
            if not ended.was_useful:  # as if it could not be opened
                raise StoreUnavailable(ended.error or "")
            self._opening_reads.pauses.reset()

        connection = ServerConnection(**self._settings)
        await self._open(connection, CONNECT_TIMEOUT_S)
        self._reads = Multiplexer(connection, self.address.shown)
        return self._reads

    def _closed(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self.address.shown} was closed")

    @property
    def is_in_use(self) -> bool:
        """Whether a call has a session, or waits for the reply to a read."""
        is_read_from = self.reads is not None and self.reads.is_in_use
        return bool(self._in_use) or self._opening_reads.is_running or is_read_from

    async def execute(self, *command: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command; raises StoreError."""
        async with self.session() as session:
            return await session.execute(*command)

    async def ask(self, *commands: Command) -> list[Any]:
        """Send commands at once, and return their replies within DISCOVERY_TIMEOUT_S; raises StoreError."""
        try:
            async with asyncio.timeout(DISCOVERY_TIMEOUT_S), self.session() as session:
                return await session.execute_all(*commands)
        except TimeoutError as error:
            raise translated(error, self.address.shown) from error

    async def retire(self) -> None:
        """Close all connections once no call uses them, or at once when this is cancelled."""
        unused_polls = 0
        try:
            while unused_polls < RETIRING_POLLS:
                await asyncio.sleep(RETIRING_POLL_S)
                unused_polls = 0 if self.is_in_use else unused_polls + 1
        finally:
            await self.close()

    async def close(self) -> None:
        """Close all connections; calls in progress fail, and none is opened afterwards."""
        self._is_closed = True
        for connection in (*self._idle, *self._in_use):
            connection.abort()
        await self._opening_reads.close()
        if self._reads is not None:
            self._reads.close()
