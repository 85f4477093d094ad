"""Connections of redis-py: their settings, and sessions.

redis-py connects, authenticates, encrypts, and parses replies. It never repeats a command (`NO_RETRIES`): the caller
knows which ones may be sent again. A session keeps one connection, which is never reopened meanwhile, because WATCH,
WAIT and ASKING hold for a connection.
"""

import asyncio
import ssl
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import hiredis
from redis import exceptions
from redis.asyncio import Connection, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AskError, ReadOnlyError, RedisError, ResponseError

from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.redis.credentials import PasswordFile
from hotplate.stores.redis.errors import translated
from hotplate.stores.redis.url import RedisAddress

CONNECT_TIMEOUT_S = 1.0
COMMAND_TIMEOUT_S = 5.0  # for the replies to all commands that are sent at once
NO_RETRIES = Retry(NoBackoff(), 0)
PROTOCOL = 2  # RESP; 3 brings pushed messages, which nothing here needs
CLIENT_NAME = "hotplate"

Command = Sequence[str | bytes | int]
"""The name of a command and its arguments."""


@lru_cache(maxsize=8)
def _ssl_context(ca: str | None, _changed_at: int) -> ssl.SSLContext:
    """Return a context that trusts the system's certificates and those in the file *ca*.

    Cached, because creating a context takes 20 ms; *_changed_at* is when the file changed, which calls for another one.
    """
    context = ssl.create_default_context()
    if ca is not None:
        context.load_verify_locations(ca)
    return context


class ServerConnection(Connection):
    """A connection of redis-py that is closed at once, also if it is cancelled while it is opened.

    asyncio closes a connection after it has sent everything, and one of TLS after the server has agreed, or after 30 s.
    Until then, its socket is open, also after redis-py's `disconnect`.
    """

    def __init__(self, *, tls: bool, ca: str | None, certified_as: str | None, **settings: Any) -> None:  # noqa: ANN401 -- redis-py's own
        """*ca* is a file of certificates to trust, *certified_as* the name in the server's, by default its host."""
        super().__init__(**settings)
        self._tls = tls
        self._ca = ca
        self._certified_as = certified_as

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport; None unless it is connected."""
        return None if self._writer is None else cast("asyncio.Transport", self._writer.transport)

    def abort(self) -> None:
        """Close the transport, if any, in the next turn of the event loop."""
        if self.transport is not None:
            self.transport.abort()
        self._reader = None
        self._writer = None

    async def disconnect(self, *args: Any, **details: Any) -> None:  # noqa: ANN401 -- redis-py's own
        """See `AbstractConnection.disconnect`, which has nothing to wait for then."""
        self.abort()
        await super().disconnect(*args, **details)

    async def _connect(self) -> None:
        """Connect as redis-py does, but keep the streams from the first, to close them after a cancellation."""

        def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._reader = reader
            self._writer = writer

        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), keep, loop)
        context = self._context() if self._tls else None
        name = self._certified_as if self._tls else None  # asyncio refuses one without TLS
        try:
            async with asyncio.timeout(self.socket_connect_timeout):
                await loop.create_connection(lambda: stream, self.host, self.port, ssl=context, server_hostname=name)
        except BaseException:
            self.abort()
            raise

    def _context(self) -> ssl.SSLContext:
        """Return a context with the certificates that the file has now; raises redis-py's ConnectionError."""
        ca = self._ca
        try:
            changed_at = Path(ca).stat().st_mtime_ns if ca else 0
            return _ssl_context(ca, changed_at)
        except OSError as error:
            raise exceptions.ConnectionError(f"the certificates in {ca} cannot be read: {error}") from error


def is_primary(greeting: object) -> bool:
    """Return whether *greeting*, a reply to HELLO, names a primary. ACLs cannot forbid HELLO.

    The reply is a list of names and values; an error or anything else names none.
    """
    fields = greeting if isinstance(greeting, list) else []
    return (b"role", b"master") in zip(fields[::2], fields[1::2], strict=False)


async def connect_to_any(connection: AbstractConnection) -> None:
    """Set a new connection up; redis-py calls it as `redis_connect_func`.

    A connection whose setup fails or is cancelled is closed: redis-py would keep it, as if it was logged in.
    """
    try:
        await connection.on_connect()
    except BaseException:
        await connection.disconnect()
        raise


async def connect_to_primary(connection: AbstractConnection) -> None:
    """Set a new connection up, and check the server's role; redis-py calls it as `redis_connect_func`.

    Raises redis-py's ConnectionError for a replica.
    """
    await connect_to_any(connection)
    await connection.send_command("HELLO")
    if not is_primary(await connection.read_response()):
        raise exceptions.ConnectionError("it is not a primary, or no longer")


async def connect_to_reader(connection: AbstractConnection) -> None:
    """Set a new connection up, and let a replica in a cluster read; redis-py calls it as `redis_connect_func`."""
    await connect_to_any(connection)
    await connection.send_command("READONLY")
    await connection.read_response()


def settings_of(address: RedisAddress, credentials: CredentialProvider | None = None) -> dict[str, Any]:
    """Return the arguments of connections to an address.

    *credentials* replace the address's user and password.
    """
    settings: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "db": address.db,
        "client_name": CLIENT_NAME,
        "protocol": PROTOCOL,
        "driver_info": None,
        "retry": NO_RETRIES,
        "socket_timeout": None,  # callers have time limits
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "tls": address.tls,
        "ca": address.ca,
        "certified_as": address.certified_as,
        "redis_connect_func": connect_to_any,
    }

    if credentials is not None:
        settings["credential_provider"] = credentials
    else:
        settings |= login_of(address)
    return settings


def login_of(address: RedisAddress) -> dict[str, Any]:
    """Return the arguments of redis-py's connections for the user and password of an address."""
    user = address.user or "default"
    if address.password_from is not None:
        return {"credential_provider": PasswordFile(user, address.password_from)}
    if address.user is not None or address.password is not None:
        return {"username": user, "password": address.password or ""}
    return {}


class Session:
    """One connection to a server, for commands that belong together.

    `node` is the server's host and port, `where` its name in errors.
    """

    def __init__(self, client: Redis, address: RedisAddress, connection: ServerConnection, *, asking: bool) -> None:
        """*client* parses replies.

        With *asking*, ASKING precedes each command, as a node expects for a slot that is moving to it.
        """
        self.node = address.host, address.port
        self.where = address.shown
        self._client = client
        self._connection = connection
        self._is_asking = asking

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
        """Send commands at once, and return their replies in order; a refused command has an error as its reply.

        The error is a StoreError, or redis-py's AskError or MovedError if another node has the key. Raises
        StoreUnavailable, after which the connection is closed.
        """
        connection = self._connection
        if not connection.is_connected:
            raise StoreUnavailable(f"{self.where} has closed the connection")

        sent = commands
        if self._is_asking:
            sent = tuple(chain.from_iterable((("ASKING",), command) for command in commands))
        # An asyncio connection of redis-py packs in ten times the time.
        packed = [hiredis.pack_command((*str(name).split(), *args)) for name, *args in sent]  # type: ignore[arg-type]  # its stub says a tuple of one

        # After any failure below, replies that are still under way would be taken for those of later commands.
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await connection.send_packed_command(packed, check_health=False)
                replies = [await self._read(str(name)) for name, *_ in sent]
        except (RedisError, TimeoutError) as error:
            connection.abort()
            raise translated(error, self.where) from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # of redis-py's parsers
            connection.abort()
            raise StoreUnavailable(f"{self.where} replied in an unknown format; the connection was closed") from error

        if not self._is_asking:
            return replies
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return [refusal if isinstance(refusal, StoreError) else reply for refusal, reply in pairs]

    async def _read(self, command: str) -> Any:  # noqa: ANN401 -- any reply
        """Read the reply to a command; an error is its reply, unless it ends the connection."""
        try:
            return await self._client.parse_response(self._connection, command)
        except AskError as error:
            return error
        except ResponseError as error:
            if isinstance(error, ReadOnlyError):
                raise  # a new connection may lead to the primary
            return translated(error, self.where)


def evaluation(script: str, names: Sequence[str | bytes], *args: str | bytes | int) -> Command:
    """Return the command that runs a script on keys of one slot."""
    return ("EVAL", script, len(names), *names, *args)


def raise_first_error(replies: Sequence[object]) -> None:
    """Raise the first error in the result of `Session.replies`, if any."""
    for reply in replies:
        if isinstance(reply, StoreError | AskError):
            raise reply
