"""One pipelined connection per server, shared by all callers.

An `MGET` by redis-py's asyncio client takes 52, 7.7 and 2.7 µs of CPU a key at 1, 8 and 32 keys; a lookup here takes
12, 1.9 and 0.7 (uvloop, same run), and in a cluster of three nodes 1.4, 2.5 and 2.3 times as much.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import hiredis

from hotplate.stores.errors import StoreError, StoreFull, StoreMisused, StoreUnavailable
from hotplate.stores.redis.url import RedisAddress
from hotplate.stores.store import Slot
from hotplate.stores.timing import Backoff, SharedCall

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 1.0
PAUSES_S = (0.05, 2.0)  # first and longest between attempts to connect; callers fail immediately

_UNKNOWN_USER = (StoreUnavailable, "{where} does not accept this user and password; check the URL or the secret")
# Other errors are passed on as text.
MEANINGS: dict[str, tuple[type[StoreError], str]] = {
    "OOM": (StoreFull, "{where} has reached its maxmemory; raise it, prune old releases, or publish shorter lists"),
    "READONLY": (StoreUnavailable, "{where} is a read-only replica; give the URL of the primary"),
    "NOAUTH": _UNKNOWN_USER,
    "WRONGPASS": _UNKNOWN_USER,
    "NOPERM": (StoreMisused, "the Redis user of {where} lacks a permission: {text}"),
    "LOADING": (StoreUnavailable, "{where} is still loading its data; it answers once that is done"),
}
# Reconnect after these errors: the server or its role may have changed.
ENDING = ("READONLY", "NOAUTH", "WRONGPASS", "LOADING", "ERR max number of clients reached")

VALUES = frozenset({bytes, type(None)})

_MORE = object()  # the parser's result for an incomplete reply


class Redirected(StoreUnavailable):
    """Another node serves a slot (MOVED), or is about to (ASK)."""

    def __init__(self, message: str, slot: int, host: str, port: int, *, asking: bool) -> None:
        """*host* is empty for the replying node; *asking*: send only this command there."""
        super().__init__(message)
        self.slot = slot
        self.host = host
        self.port = port
        self.asking = asking


class Refusal(Exception):
    """A server's error reply."""


class PipelinedConnection(asyncio.Protocol):
    """A connection to one server; `error` is set once it breaks.

    Replies are matched to commands by order, so an unexpected reply closes it, as does a timeout. `has_replied` is
    whether a command after the handshake got a valid reply.
    """

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self.address = address
        self.error: str | None = None
        self.has_replied = False
        self.where = address.shown
        self._timeout_s = timeout_s
        self._waiting = deque[tuple[asyncio.Future[Any], float, int | None, list[Slot] | None]]()
        """Future, start, number of values, and the values of `get_each` so far."""
        self._is_array = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._parser = hiredis.Reader(replyError=Refusal, notEnoughData=_MORE)
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()

    async def open(self) -> None:
        """Connect, authenticate and check the role within CONNECT_TIMEOUT_S; raises StoreUnavailable."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._connect()
                await self._introduce()
        except BaseException as error:
            await self.close()
            if isinstance(error, Exception) and not isinstance(error, StoreUnavailable):
                raise StoreUnavailable(str(translated(error, self.where))) from error
            raise

    async def _connect(self) -> None:
        address, context = self.address, self.address.ssl_context()
        name = None if context is None else address.certified_as or address.host
        await self._loop.create_connection(lambda: self, address.host, address.port, ssl=context, server_hostname=name)

    async def _introduce(self) -> None:
        address, login = self.address, tuple[str, ...]()
        if address.user is not None or address.password is not None:
            login = ("AUTH", address.user or "default", address.password or "")
        sent = [self.send_command(b"HELLO", 2, *login, b"SETNAME", b"hotplate")]
        if address.db:
            sent.append(self.send_command(b"SELECT", address.db))
        if address.reads_replica:
            sent.append(self.send_command(b"READONLY"))
        greeting, *_ = await asyncio.gather(*sent)
        if address.is_primary and not is_primary(greeting):
            raise StoreUnavailable(f"{self.where} is not a primary, or no longer")
        self.has_replied = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send_command(self, *args: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; StoreMisused if it cannot be encoded."""
        return self._send(args, None)

    def mget(self, *names: str | bytes) -> asyncio.Future[list[Slot]]:
        """Read values by one MGET."""
        return self._send((b"MGET", *names), len(names))

    def get_each(self, names: Sequence[bytes]) -> asyncio.Future[list[Slot]]:
        """Read values by one GET each, 0.25 µs a key; a key's error replaces its value."""
        if self.error is None and not self._waiting and not self._parser.has_data():  # one array is parsed in a fifth
            self._parser.feed(b"*%d\r\n" % len(names))
            self._is_array = True
        packed = b"".join([b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names])
        return self._write(packed, len(names), [])

    def _send(self, args: tuple[str | bytes | int, ...], values: int | None) -> asyncio.Future[Any]:
        try:  # before a future is queued
            packed = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub says a tuple of one
        except (UnicodeEncodeError, TypeError) as error:
            future: asyncio.Future[Any] = self._loop.create_future()
            future.set_exception(StoreMisused(f"a command to {self.where} cannot be encoded: {error}"))
            return future
        return self._write(packed, values, None)

    def _write(self, packed: bytes, values: int | None, taken: list[Slot] | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
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
            self.lose(f"could not be understood ({error!r})")

    def connection_lost(self, error: Exception | None) -> None:
        """Fail pending commands."""
        self.end(str(translated(error or ConnectionError("it closed the connection"), self.where)))
        self._ended.set()

    async def close(self) -> None:
        """Close the connection and fail pending commands."""
        self.end(f"{self.where} was closed")
        if self._transport is not None:
            await self._ended.wait()

    def lose(self, reason: str) -> StoreUnavailable:
        """Close the connection after an invalid reply; return the error."""
        self.has_replied = False  # so reconnection backs off
        error = f"{self.where} {reason}; the connection was given up"
        if self.error is None:
            log.warning("%s", error)
        self.end(error)
        return StoreUnavailable(error)

    def _take(self, reply: Any) -> None:  # noqa: ANN401 -- any reply
        if isinstance(reply, Refusal):
            error = translated(reply, self.where)
            if str(reply).startswith(ENDING):
                self.end(str(error))
                return
            reply = error
        self.has_replied = True
        if not self._waiting:
            raise RuntimeError("a reply without a caller")
        future, _, values, taken = self._waiting[0]
        if taken is not None:
            if not self._take_values(taken, values, reply):
                return
            reply = taken
        elif not _fits(reply, values):
            self.lose(f"replied to {values} keys with something else than their values")
            return
        self._waiting.popleft()
        if future.done():
            return  # cancelled
        if isinstance(reply, StoreError):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _take_values(self, taken: list[Slot], values: int | None, reply: Any) -> bool:  # noqa: ANN401 -- as above
        """Return whether *taken* is complete."""
        replies = reply if self._is_array else [reply]
        self._is_array = False
        if not VALUES.issuperset(map(type, replies)):
            replies = [translated(each, self.where) if isinstance(each, Refusal) else each for each in replies]
            if not all(isinstance(each, StoreError) or type(each) in VALUES for each in replies):
                self.lose("replied to a key with something else than its value")
                return False
        taken += replies
        return len(taken) == values

    def _check_timeout(self) -> None:
        self._timer = None
        if self._waiting:
            left_s = self._waiting[0][1] + self._timeout_s - self._loop.time()
            if left_s > 0:
                self._timer = self._loop.call_later(left_s, self._check_timeout)
            else:
                self.end(f"{self.where} has not answered for {self._timeout_s:g} s")

    def end(self, error: str) -> None:
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


def _fits(reply: object, values: int | None) -> bool:
    return values is None or isinstance(reply, StoreError) or (isinstance(reply, list) and len(reply) == values)


class Asking:
    """Sends commands with ASKING, to a node that a slot is moving to."""

    def __init__(self, connection: PipelinedConnection) -> None:
        self._connection = connection
        self.where = connection.where
        self.lose = connection.lose

    def send_command(self, *args: str | bytes | int) -> asyncio.Future[Any]:
        """See `PipelinedConnection`."""
        self._connection.send_command(b"ASKING").add_done_callback(_retrieved)
        return self._connection.send_command(*args)


def _retrieved(reply: asyncio.Future[Any]) -> None:
    if not reply.cancelled():
        reply.exception()


Sender = PipelinedConnection | Asking


@asynccontextmanager
async def connected(address: RedisAddress, timeout_s: float) -> AsyncIterator[PipelinedConnection]:
    """Open a connection, and close it after the block."""
    connection = PipelinedConnection(address, timeout_s)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


class Reconnector:
    """Keeps one connection to a server; reconnects with backoff, while callers fail immediately."""

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self.where = address.shown
        self._address = address
        self._timeout_s = timeout_s
        self._connection: PipelinedConnection | None = None
        self._opening = SharedCall(self._open, lambda: StoreUnavailable(f"{self.where} was closed"))
        self._backoff = Backoff(*PAUSES_S)
        self._retry_at = 0.0
        self._error = ""
        self._is_closed = False

    @property
    def current(self) -> PipelinedConnection | None:
        """The open connection, if any."""
        return self._connection if self._connection is not None and self._connection.error is None else None

    async def execute_command(self, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command; raises StoreError."""
        return await (await self.connection()).send_command(*args)

    async def connection(self) -> PipelinedConnection:
        """Return the connection; concurrent callers share one attempt to open it."""
        if (current := self.current) is not None:
            return current
        if self._is_closed:
            raise StoreUnavailable(f"{self.where} was closed")
        if not self._opening.is_running:
            self._note_end()
            if asyncio.get_running_loop().time() < self._retry_at:
                raise StoreUnavailable(self._error)
        return await self._opening.result()

    async def close(self) -> None:
        """Close the connection, or stop opening it; none is opened afterwards."""
        self._is_closed = True
        await self._opening.close()
        if self._connection is not None:
            await self._connection.close()

    async def _open(self) -> PipelinedConnection:
        connection = PipelinedConnection(self._address, self._timeout_s)
        try:
            await connection.open()
        except StoreUnavailable as error:
            self._record_failure(str(error))
            raise
        self._connection = connection
        return connection

    def _note_end(self) -> None:
        """Count a server that accepts but never replies as failed."""
        if self._connection is not None and self._connection.has_replied:
            self._backoff.reset()
        elif self._connection is not None:
            self._record_failure(self._connection.error or "")
        self._connection = None

    def _record_failure(self, error: str) -> None:
        self._retry_at = asyncio.get_running_loop().time() + self._backoff.next_s()
        self._error = error


def fields_of(info: bytes) -> dict[str, str]:
    """Parse the reply to INFO."""
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


def is_primary(greeting: object) -> bool:
    """Return whether a reply to HELLO, which ACLs cannot forbid, names a primary."""
    fields = greeting if isinstance(greeting, list) else []
    return (b"role", b"master") in zip(fields[::2], fields[1::2], strict=False)


def translated(error: BaseException, where: str) -> StoreError:
    """Translate an error of a server or of asyncio."""
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"{where} did not answer in time")
    if not isinstance(error, Refusal):
        return StoreUnavailable(f"{where} cannot be reached: {error}")
    code, _, text = str(error).partition(" ")
    if code in ("MOVED", "ASK"):
        slot, _, place = text.partition(" ")
        host, _, port = place.rpartition(":")
        return Redirected(
            f"{where} does not serve slot {slot}: {code}", int(slot), host, int(port), asking=code == "ASK"
        )
    if code in MEANINGS:
        kind, sentence = MEANINGS[code]
        return kind(sentence.format(where=where, text=text))
    said, _, _ = (text if code == "ERR" else str(error)).partition(", with args beginning with")  # perhaps a password
    return StoreUnavailable(f"{where} refused: {said}")
