"""The connections to one server: some for sessions, and one for reads."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from hotplate.stores.errors import StoreClosed, StoreUnavailable
from hotplate.stores.redis.client import COMMAND_TIMEOUT_S, ServerConnection, Session, new_connection
from hotplate.stores.redis.errors import translated
from hotplate.stores.redis.multiplexed import Reconnector
from hotplate.stores.redis.url import RedisAddress

# Connections to a server that sessions of a store hold at most.
MAX_SESSIONS = 8

# Pause between two looks at whether a retired server is in use. The second one is for callers that are about to use it.
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
        self.reads = Reconnector(address.shown, settings)
        self._settings = settings
        self._client = Redis(protocol=settings["protocol"])  # parses replies
        self._turns = asyncio.Semaphore(MAX_SESSIONS)
        self._callers = 0
        """Sessions, and calls that wait for one."""

        self._idle = list[ServerConnection]()
        self._in_use = set[ServerConnection]()
        self._is_closed = False

    @asynccontextmanager
    async def session(self, *, asking: bool = False) -> AsyncIterator[Session]:
        """Hold a connection during the block; see `Session` for *asking*.

        Waits up to COMMAND_TIMEOUT_S for one while MAX_SESSIONS are held. Raises StoreError.
        """
        async with self._turn():
            connection = self._idle.pop() if self._idle else new_connection(self._settings)
            self._in_use.add(connection)
            try:
                await self._open(connection)
                yield Session(self._client, self.address, connection, asking=asking)
            finally:
                self._in_use.discard(connection)
                self._idle.append(connection)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Be one of MAX_SESSIONS during the block; StoreUnavailable if others hold all of them for too long."""
        self._callers += 1
        try:
            await self._wait_for_turn()
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._callers -= 1

    async def _wait_for_turn(self) -> None:
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._turns.acquire()
        except TimeoutError as error:
            where = self.address.shown
            sentence = f"{where} did not answer in time: {MAX_SESSIONS} earlier calls still wait for it"
            raise StoreUnavailable(sentence) from error

    async def _open(self, connection: ServerConnection) -> None:
        """Open a connection unless it is open and has nothing to read; raises StoreError."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                if connection.is_connected and await connection.can_read():  # a reply without a command, or its end
                    connection.abort()
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py types the rest
        except (RedisError, TimeoutError) as error:
            raise translated(error, self.address.shown) from error
        if self._is_closed:
            connection.abort()
            raise StoreClosed(self.address.shown)

    async def execute(self, *command: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command; raises StoreError."""
        async with self.session() as session:
            return await session.execute(*command)

    async def retire(self) -> None:
        """Close all connections once no call uses them, or at once when this is cancelled."""
        unused_polls = 0
        try:
            while unused_polls < RETIRING_POLLS:
                await asyncio.sleep(RETIRING_POLL_S)
                is_in_use = self._callers or self.reads.is_in_use
                unused_polls = 0 if is_in_use else unused_polls + 1
        finally:
            await self.close()

    async def close(self) -> None:
        """Close all connections; calls in progress fail, and none is opened afterwards."""
        self._is_closed = True
        for connection in (*self._idle, *self._in_use):
            connection.abort()
        await self.reads.close()
