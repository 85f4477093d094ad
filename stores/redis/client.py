"""Connections of redis-py: their settings, sessions on one of them, and their errors in our words.

redis-py connects, authenticates, encrypts, and parses replies. It never repeats a command (`NO_RETRIES`): the caller
knows which ones may be sent again. A session keeps one connection, which is never reopened meanwhile, because WATCH,
WAIT and ASKING hold for a connection.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import hiredis
from redis import exceptions
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AskError, ReadOnlyError, RedisError, ResponseError

from hotplate.stores.errors import StoreError, StoreFull, StoreMisused, StoreUnavailable
from hotplate.stores.redis.url import RedisAddress

CONNECT_TIMEOUT_S = 1.0
NO_RETRIES = Retry(NoBackoff(), 0)
PROTOCOL = 2  # RESP; 3 brings pushed messages, which nothing here needs
CLIENT_NAME = "hotplate"

# Connections to a server that sessions of a store hold at most.
MAX_SESSIONS = 8

Command = Sequence[str | bytes | int]


# Errors of redis-py, most specific first, and ours; others are passed on as text.
MEANINGS: dict[type[Exception], tuple[type[StoreError], str]] = {
    TimeoutError: (StoreUnavailable, "{where} did not answer in time"),
    exceptions.TimeoutError: (StoreUnavailable, "{where} did not answer in time"),
    exceptions.OutOfMemoryError: (
        StoreFull,
        "{where} has reached its maxmemory; raise it, prune old releases, or publish shorter lists",
    ),
    exceptions.ReadOnlyError: (StoreUnavailable, "{where} is a read-only replica; give the URL of the primary"),
    exceptions.AuthenticationError: (
        StoreUnavailable,
        "{where} does not accept this user and password; check the URL or the secret",
    ),
    exceptions.NoPermissionError: (StoreMisused, "the Redis user of {where} lacks a permission: {error}"),
    exceptions.BusyLoadingError: (
        StoreUnavailable,
        "{where} is still loading its data; it answers once that is done",
    ),
    exceptions.ResponseError: (StoreUnavailable, "{where} refused: {error}"),
}


def translated(error: Exception, where: str) -> StoreError:
    """Translate an error of redis-py."""
    text, _, _ = str(error).partition(", with args beginning with")  # perhaps a password
    for known, (kind, sentence) in MEANINGS.items():
        if isinstance(error, known):
            return kind(sentence.format(where=where, error=text))
    return StoreUnavailable(f"{where} cannot be reached: {text}")


class CertifiedContext(ssl.SSLContext):
    """A TLS context that expects a certificate for another name than the host's.

    redis-py's `SSLConnection` has no such name.
    """

    certified_as: str | None = None

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:  # noqa: ANN401 -- those of `SSLContext`
        """See `SSLContext.wrap_bio`."""
        if self.certified_as is not None:
            options["server_hostname"] = self.certified_as
        return super().wrap_bio(*args, **options)


@lru_cache(maxsize=8)
def _ssl_context(ca: str | None, certified_as: str | None, _changed_at: int) -> CertifiedContext:
    """Cached, because creating a context takes 20 ms."""
    context = CertifiedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.certified_as = certified_as
    context.verify_flags = ssl.create_default_context().verify_flags
    context.load_default_certs()
    if ca is not None:
        context.load_verify_locations(ca)
    return context


class TLSConnection(SSLConnection):
    """A connection of redis-py over TLS, with a shared context."""

    def __init__(self, *, ca: str | None = None, certified_as: str | None = None, **settings: Any) -> None:  # noqa: ANN401 -- redis-py's own
        super().__init__(**settings)
        changed_at = Path(ca).stat().st_mtime_ns if ca else 0
        self.ssl_context.context = _ssl_context(ca, certified_as, changed_at)


def is_primary(greeting: object) -> bool:
    """Return whether a reply to HELLO, which ACLs cannot forbid, names a primary."""
    if isinstance(greeting, dict):
        return (b"role", b"master") in greeting.items()
    fields = greeting if isinstance(greeting, list) else []
    return (b"role", b"master") in zip(fields[::2], fields[1::2], strict=False)


async def connect_to_primary(connection: AbstractConnection) -> None:
    """Authenticate, and check the server's role, which redis-py does not read; for `redis_connect_func`."""
    await connection.on_connect()
    await connection.send_command("HELLO")
    if not is_primary(await connection.read_response()):
        raise exceptions.ConnectionError("it is not a primary, or no longer")


def settings_of(
    address: RedisAddress, timeout_s: float | None, credentials: CredentialProvider | None = None
) -> dict[str, Any]:
    """Return the settings of redis-py's connections to an address; *timeout_s* is that of a reply."""
    settings: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "db": address.db,
        "client_name": CLIENT_NAME,
        "protocol": PROTOCOL,
        "driver_info": None,
        "retry": NO_RETRIES,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "connection_class": Connection,
        "redis_connect_func": connect_to_primary if address.is_primary else None,
    }
    if credentials is not None:
        settings["credential_provider"] = credentials
    elif address.user is not None or address.password is not None:
        settings |= {"username": address.user or "default", "password": address.password or ""}
    if address.tls:
        settings |= {"connection_class": TLSConnection, "ca": address.ca, "certified_as": address.certified_as}
    return settings


class Session:
    """One connection to a server, for commands that belong together. `identity` differs after a reconnection."""

    def __init__(self, server: "Server", connection: Connection, identity: object, *, asking: bool) -> None:
        """With *asking*, each command is sent to a node that a slot is moving to."""
        self.node = server.address.host, server.address.port
        self.where = server.address.shown
        self.identity = identity
        self._server = server
        self._connection = connection
        self._prefix: tuple[Command, ...] = (("ASKING",),) if asking else ()

    async def execute(self, *command: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command; raises StoreError, or redis-py's AskError and MovedError."""
        (reply,) = await self.execute_all(command)
        return reply

    async def execute_all(self, *commands: Command) -> list[Any]:
        """Send commands at once; raises the first error after the replies to all."""
        replies = await self.replies(*commands)
        raise_first_error(replies)
        return replies

    async def replies(self, *commands: Command) -> list[Any]:
        """Send commands at once; return their replies, with errors in the place of refused commands."""
        connection = self._connection
        if not connection.is_connected:
            raise StoreUnavailable(f"{self.where} has closed the connection")
        packed = self._pack(commands)
        try:
            async with asyncio.timeout(self._server.timeout_s):
                await connection.send_packed_command(packed, check_health=False)
                return [await self._read(str(command[0])) for command in commands]
        except (RedisError, TimeoutError) as error:
            await connection.disconnect(nowait=True)
            raise translated(error, self.where) from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # of redis-py's parsers
            await connection.disconnect(nowait=True)
            raise StoreUnavailable(f"{self.where} replied in an unknown format; the connection was closed") from error

    def _pack(self, commands: Sequence[Command]) -> list[bytes]:
        """Pack commands; an asyncio connection of redis-py does it in ten times the time."""
        packed = list[bytes]()
        try:
            for name, *args in commands:
                for part in (*self._prefix, (*str(name).split(), *args)):
                    packed.append(hiredis.pack_command(part))  # type: ignore[arg-type]  # its stub says a tuple of one
        except (UnicodeEncodeError, TypeError) as error:
            raise StoreMisused(f"a command to {self.where} cannot be encoded: {error}") from error
        return packed

    async def _read(self, command: str) -> Any:  # noqa: ANN401 -- any reply
        reply: Any
        try:
            for _ in self._prefix:
                await self._connection.read_response()
            reply = await self._server.client.parse_response(self._connection, command)
        except AskError as error:
            reply = error
        except ResponseError as error:
            if isinstance(error, ReadOnlyError):
                raise  # a new connection may lead to the primary
            reply = translated(error, self.where)
        return reply


def raise_first_error(replies: Sequence[object]) -> None:
    """Raise the first error in the result of `Session.replies`, if any."""
    for reply in replies:
        if isinstance(reply, StoreError | AskError):
            raise reply


class Server:
    """A pool of connections to one server."""

    def __init__(self, address: RedisAddress, settings: Mapping[str, Any], timeout_s: float) -> None:
        """*timeout_s* is for the replies to all commands that are sent at once."""
        self.address = address
        self.timeout_s = timeout_s
        self._settings = settings
        self._identities = WeakKeyDictionary[AbstractConnection, object]()
        self.client = self._new_client()
        self._sessions = asyncio.Semaphore(MAX_SESSIONS)
        self._is_closed = False

    @asynccontextmanager
    async def session(self, *, asking: bool = False) -> AsyncIterator[Session]:
        """Hold a connection; raises StoreError."""
        pool = self.client.connection_pool
        async with self._sessions:
            if self._is_closed:
                raise StoreUnavailable(f"{self.address.shown} was closed")
            try:
                async with asyncio.timeout(self.timeout_s):
                    connection = await pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py types the rest
            except (RedisError, TimeoutError) as error:
                raise translated(error, self.address.shown) from error
            try:
                yield Session(self, connection, self._identities[connection], asking=asking)
            finally:
                if self._is_closed or pool is not self.client.connection_pool:
                    await connection.disconnect(nowait=True)  # opened while its pool was closed
                await pool.release(connection)

    async def execute(self, *command: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command; raises StoreError."""
        async with self.session() as session:
            return await session.execute(*command)

    async def renew(self) -> None:
        """Open connections with new credentials from now on; the former end after their sessions."""
        former = self.client.connection_pool
        self.client = self._new_client()
        await former.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]  # redis-py types the rest
        await former.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Close all connections; none is opened afterwards."""
        self._is_closed = True
        await self.client.connection_pool.disconnect()

    def _new_client(self) -> Redis:
        settings = {**self._settings, "redis_connect_func": self._connect}
        return Redis(connection_pool=ConnectionPool(**settings))

    async def _connect(self, connection: AbstractConnection) -> None:
        self._identities[connection] = object()
        connect = self._settings["redis_connect_func"] or AbstractConnection.on_connect
        await connect(connection)
