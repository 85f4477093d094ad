"""The connections to one server: a pool of redis-py for sessions, and one for reads."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from hotplate.stores.concurrency import all_done
from hotplate.stores.errors import StoreClosed, StoreUnavailable
from hotplate.stores.redis.client import COMMAND_TIMEOUT_S, Session
from hotplate.stores.redis.errors import translated
from hotplate.stores.redis.multiplexed import Reconnector
from hotplate.stores.redis.url import RedisAddress

# Connections to a server that sessions of a store hold at most.
MAX_SESSIONS = 8


class Pool(ConnectionPool):
    """A pool of redis-py that can be retired: from then on, a connection is closed when it is released.

    `ConnectionPool.disconnect` alone leaves a connection open that is just being opened.
    """

    is_retired = False

    async def retire(self, *, in_use: bool) -> None:
        """Close idle connections, and also those *in_use*, which are otherwise closed when they are released."""
        self.is_retired = True
        await self.disconnect(inuse_connections=in_use)

    async def release(self, connection: AbstractConnection) -> None:
        """See `ConnectionPool.release`."""
        if self.is_retired:
            await connection.disconnect()
        await super().release(connection)


class Server:
    """The connections to one server: a pool for sessions, and one for the reads of all callers.

    They are opened when they are first used. Sessions use at most MAX_SESSIONS connections of the pool.
    """

    def __init__(
        self, address: RedisAddress, settings: Mapping[str, Any], reading: Mapping[str, Any] | None = None
    ) -> None:
        """*settings* are those of `settings_of`, *reading* those to read from a replica, by default the same."""
        self.address = address
        self.node = address.host, address.port
        self.reads = Reconnector(address.shown, settings)
        self.reads_of_replica = Reconnector(address.shown, settings if reading is None else reading)
        self._settings = settings
        self._pool = Pool(**settings)
        self._client = Redis(connection_pool=self._pool)  # parses replies
        self._sessions = asyncio.Semaphore(MAX_SESSIONS)
        self._is_closed = False

    @asynccontextmanager
    async def session(self, *, asking: bool = False) -> AsyncIterator[Session]:
        """Hold a connection during the block; see `Session` for *asking*.

        Waits up to COMMAND_TIMEOUT_S for one while MAX_SESSIONS are held. Raises StoreError.
        """
        async with self._turn():
            if self._is_closed:
                raise StoreClosed(self.address.shown)

            pool = self._pool  # `renew` replaces it
            connection = await self._take_from(pool)
            try:
                yield Session(self._client, self.address, connection, asking=asking)
            finally:
                await pool.release(connection)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Be one of MAX_SESSIONS during the block; StoreUnavailable if others hold all of them for too long."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._sessions.acquire()
        except TimeoutError as error:
            where = self.address.shown
            sentence = f"{where} did not answer in time: {MAX_SESSIONS} earlier calls still wait for it"
            raise StoreUnavailable(sentence) from error
        try:
            yield
        finally:
            self._sessions.release()

    async def _take_from(self, pool: ConnectionPool) -> Connection:
        """Take an open connection from a pool; raises StoreError."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                connection: Connection = await pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py types the rest
        except (RedisError, TimeoutError) as error:
            raise translated(error, self.address.shown) from error
        return connection

    async def execute(self, *command: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command; raises StoreError."""
        async with self.session() as session:
            return await session.execute(*command)

    async def renew(self) -> None:
        """Replace open connections by ones with new credentials, those in use after their calls.

        Raises StoreUnavailable if one for reads cannot be opened; then the former stays open.
        """
        replacing = self._replace_pool(Pool(**self._settings))
        await all_done(replacing, self.reads.renew(), self.reads_of_replica.renew())

    async def retire(self) -> None:
        """Close all connections, those in use after their calls; callers that wait get a session before."""
        last_pool = Pool(**self._settings)
        last_pool.is_retired = True
        await all_done(self._replace_pool(last_pool), self.reads.retire(), self.reads_of_replica.retire())

    async def close(self) -> None:
        """Close all connections; calls in progress fail, and none is opened afterwards."""
        self._is_closed = True
        await all_done(self._pool.retire(in_use=True), self.reads.close(), self.reads_of_replica.close())

    async def _replace_pool(self, pool: Pool) -> None:
        """Use another pool from now on, and close the connections of the former one.

        Nobody may take a connection from a pool that closes it: redis-py calls it connected until it is closed.
        """
        former = self._pool
        self._pool = pool
        await former.retire(in_use=False)
