"""Reads of all callers over one connection to each server.

redis-py opens, authenticates and encrypts a connection; then `Multiplexer` takes its transport over. Without
it, a lookup by redis-py's `MGET` takes 42, 7.3 and 3.1 µs of CPU a key at 1, 8 and 32 keys instead of 17, 3.2 and 1.4,
and a GET of the service 1.44, 1.48 and 1.16 times the CPU at 1, 8 and 32 connections (`bench/test_lookups.py`).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import AskError, ConnectionError, ReadOnlyError, RedisError  # noqa: A004 -- redis-py's name

from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.redis.client import CONNECT_TIMEOUT_S, translated
from hotplate.stores.redis.servers import RedisNode, Standalone
from hotplate.stores.store import Slot
from hotplate.stores.timing import Backoff, SharedCall, all_done

log = logging.getLogger(__name__)

RETIRING_POLL_S = 0.01
RECONNECT_PAUSES_S = (0.05, 2.0)  # first and longest between attempts to connect; callers fail immediately

VALUES = frozenset({bytes, type(None)})

# A new connection may lead to another server, or be accepted.
ENDING = (ConnectionError, ReadOnlyError)

Replies = asyncio.Future[list[Slot]]

_MORE = object()  # the parser's result for an incomplete reply


class Redirected(StoreUnavailable):
    """Another node has the slot of a key, or is about to."""


class Multiplexer(asyncio.Protocol):
    """A connection to one server; `error` is set once it breaks.

    Replies are matched to commands by order, so an unexpected reply closes it, as does a timeout. `has_replied` is
    whether a command got a valid reply.
    """

    def __init__(self, connection: AbstractConnection, where: str, timeout_s: float) -> None:
        """*connection* is not open yet."""
        self.where = where
        self.error: str | None = None
        self.has_replied = False
        self._connection = connection
        self._timeout_s = timeout_s
        self._waiting = deque[tuple[Replies, float, int, list[Slot] | None]]()
        """Future, start, number of values, and the values of `get_each` so far."""
        self._is_array = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._parser = hiredis.Reader(replyError=DefaultParser.parse_error, notEnoughData=_MORE)
        self._transport: asyncio.Transport | None = None
        self._former: asyncio.BaseProtocol | None = None

    async def open(self) -> None:
        """Connect within CONNECT_TIMEOUT_S; raises StoreUnavailable."""
        connection = self._connection
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py types the rest
                if await connection.can_read():
                    raise ConnectionError("it sent a reply without a command")  # noqa: TRY301 -- as redis-py's
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, RedisError | TimeoutError):
                raise StoreUnavailable(str(translated(error, self.where))) from error
            raise
        writer = cast("asyncio.StreamWriter", connection._writer)  # noqa: SLF001 -- there is no other way to it
        transport = cast("asyncio.Transport", writer.transport)
        self._former = transport.get_protocol()
        transport.set_protocol(self)
        self._transport = transport

    def mget(self, names: Sequence[str | bytes]) -> Replies:
        """Read values by one MGET."""
        packed = hiredis.pack_command((b"MGET", *names))  # type: ignore[arg-type]  # its stub says a tuple of one
        return self._write(packed, len(names), None)

    def get_each(self, names: Sequence[bytes]) -> Replies:
        """Read values by one GET each, 0.25 µs a key; a key's error replaces its value."""
        if self.error is None and not self._waiting and not self._parser.has_data():  # one array is parsed in a fifth
            self._parser.feed(b"*%d\r\n" % len(names))
            self._is_array = True
        packed = b"".join([b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names])
        return self._write(packed, len(names), [])

    def _write(self, packed: bytes, values: int, taken: list[Slot] | None) -> Replies:
        future: Replies = self._loop.create_future()
        if self.error is not None or self._transport is None:
            future.set_exception(StoreUnavailable(self.error or f"{self.where} is not connected"))
            return future
        self._waiting.append((future, self._loop.time(), values, taken))
        self._transport.write(packed)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._check_timeout)
        return future

    def data_received(self, data: bytes) -> None:
        """Parse replies and complete their futures."""
        try:
            self._parser.feed(data)
            while self.error is None and (reply := self._parser.gets()) is not _MORE:
                self._take(reply)
        except Exception as error:  # noqa: BLE001 -- later replies cannot be matched
            self._lose(f"could not be understood ({error!r})")

    def connection_lost(self, error: Exception | None) -> None:
        """Fail pending commands."""
        self._end(f"{self.where} cannot be reached: {error or 'it closed the connection'}")
        if self._former is not None:
            self._former.connection_lost(error)  # redis-py waits for it

    async def close(self) -> None:
        """Close the connection and fail pending commands."""
        self._end(f"{self.where} was closed")
        await self._connection.disconnect()

    async def retire(self) -> None:
        """Close the connection once pending commands have their replies."""
        try:
            while self._waiting:
                pending = [future for future, *_ in self._waiting if not future.done()]
                # The futures of cancelled commands are done before their replies are there.
                await (asyncio.wait(pending[-1:]) if pending else asyncio.sleep(RETIRING_POLL_S))
        finally:
            await self.close()

    def _lose(self, reason: str) -> None:
        """Close the connection after an invalid reply."""
        self.has_replied = False  # so reconnection backs off
        error = f"{self.where} {reason}; the connection was given up"
        if self.error is None:
            log.warning("%s", error)
        self._end(error)

    def _take(self, reply: Any) -> None:  # noqa: ANN401 -- any reply
        if isinstance(reply, ENDING):
            self._end(str(translated(reply, self.where)))
            return
        self.has_replied = True
        if not self._waiting:
            raise RuntimeError("a reply without a caller")
        future, _, values, taken = self._waiting[0]
        if taken is not None:
            if not self._take_values(taken, values, reply):
                return
            reply = taken
        elif isinstance(reply, Exception):
            reply = self._translated(reply)
        elif not isinstance(reply, list) or len(reply) != values:
            self._lose(f"replied to {values} keys with something else than their values")
            return
        self._waiting.popleft()
        if future.done():
            return  # cancelled
        if isinstance(reply, StoreError):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _take_values(self, taken: list[Slot], values: int, reply: Any) -> bool:  # noqa: ANN401 -- as above
        """Return whether *taken* is complete."""
        replies = reply if self._is_array else [reply]
        self._is_array = False
        if not VALUES.issuperset(map(type, replies)):
            replies = [self._translated(value) if isinstance(value, Exception) else value for value in replies]
            if not all(isinstance(value, StoreError) or type(value) in VALUES for value in replies):
                self._lose("replied to a key with something else than its value")
                return False
        taken += replies
        return len(taken) == values

    def _translated(self, error: Exception) -> StoreError:
        if isinstance(error, AskError):
            return Redirected(f"{self.where} does not serve slot {error.slot_id}")
        return translated(error, self.where)

    def _check_timeout(self) -> None:
        self._timer = None
        if self._waiting:
            left_s = self._waiting[0][1] + self._timeout_s - self._loop.time()
            if left_s > 0:
                self._timer = self._loop.call_later(left_s, self._check_timeout)
            else:
                self._end(f"{self.where} has not answered for {self._timeout_s:g} s")

    def _end(self, error: str) -> None:
        """Close at once; pending commands fail with *error*."""
        self.error = self.error or error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            future, *_ = self._waiting.popleft()
            if not future.done():
                future.set_exception(StoreUnavailable(self.error))


Connect = Callable[[], Multiplexer]


class Reconnector:
    """Keeps one connection to a server; reconnects with backoff, while callers fail immediately."""

    def __init__(self, where: str, connect: Connect) -> None:
        self._where = where
        self._connect = connect
        self._connection: Multiplexer | None = None
        self._opening = SharedCall(self._open, lambda: StoreUnavailable(f"{where} was closed"))
        self._backoff = Backoff(*RECONNECT_PAUSES_S)
        self._retry_at = 0.0
        self._error = ""
        self._is_closed = False

    @property
    def current(self) -> Multiplexer | None:
        """The open connection, if any."""
        return self._connection if self._connection is not None and self._connection.error is None else None

    async def connection(self) -> Multiplexer:
        """Return the connection; concurrent callers share one attempt to open it."""
        if (current := self.current) is not None:
            return current
        if self._is_closed:
            raise StoreUnavailable(f"{self._where} was closed")
        if not self._opening.is_running:
            await self._note_end()
            if asyncio.get_running_loop().time() < self._retry_at:
                raise StoreUnavailable(self._error)
        return await self._opening.result()

    async def renew(self) -> None:
        """Open a connection with new credentials in the place of the current one; raises StoreUnavailable."""
        if self.current is None or self._is_closed:
            return
        connection = self._connect()
        await connection.open()
        await self._replace(connection)

    async def close(self) -> None:
        """Close the connection, or stop opening it; none is opened afterwards."""
        self._is_closed = True
        await self._opening.close()
        if self._connection is not None:
            await self._connection.close()

    async def _open(self) -> Multiplexer:
        connection = self._connect()
        try:
            await connection.open()
        except StoreUnavailable as error:
            self._record_failure(str(error))
            raise
        await self._replace(connection)
        return connection

    async def _replace(self, connection: Multiplexer) -> None:
        former = self._connection
        self._connection = connection
        if former is not None:
            await former.retire()

    async def _note_end(self) -> None:
        """Count a server that accepts but never replies as failed."""
        ended, self._connection = self._connection, None
        if ended is None:
            return
        if ended.has_replied:
            self._backoff.reset()
        else:
            self._record_failure(ended.error or "")
        await ended.close()

    def _record_failure(self, error: str) -> None:
        self._retry_at = asyncio.get_running_loop().time() + self._backoff.next_s()
        self._error = error


class Readers:
    """One connection to each server of a deployment, or to each of its *replicas*."""

    def __init__(self, servers: Standalone, timeout_s: float, *, replicas: bool = False) -> None:
        self.servers = servers
        self._replicas = replicas
        self._timeout_s = timeout_s
        self._by_node = dict[RedisNode, Reconnector]()

    def at(self, node: RedisNode) -> Reconnector:
        """Return the connection to a server."""
        self.servers.loop.check()
        reconnector = self._by_node.get(node)
        if reconnector is None:
            connect = partial(self._connection, node)
            reconnector = Reconnector(self.servers.address(node).shown, connect)
            self._by_node[node] = reconnector
        return reconnector

    def _connection(self, node: RedisNode) -> Multiplexer:
        settings = self.servers.settings(node, self._timeout_s, replica=self._replicas)
        connection = settings.pop("connection_class")(**settings)
        return Multiplexer(connection, self.servers.address(node).shown, self._timeout_s)

    async def renew(self) -> None:
        """Replace all connections by ones with new credentials; raises StoreUnavailable if one cannot be opened."""
        await all_done(*(reconnector.renew() for reconnector in self._by_node.values()))

    async def close(self) -> None:
        """Close all connections."""
        for reconnector in self._by_node.values():
            await reconnector.close()
