"""One connection that many callers share: commands go out in order, and replies come back in the same order.

Reads of keys that are wanted in the same turn of the event loop are one command. On uvloop and in one run, an `MGET` by
redis-py's asyncio client takes 52, 7.7 and 2.7 µs of CPU a key at 1, 8 and 32 keys, and a lookup over this 12, 1.9 and
0.7. A cluster of three nodes costs 1.3, 1.9 and 1.9 times as much as one server: a lookup is sent to each node that has
some of its keys, so there are three times as many packets.

redis-py's own connection is not used, because it hands its socket over by private attributes only; what is used of
redis-py is the computation of slots and the form of CLUSTER SLOTS. A caller that gives up disturbs no other.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import hiredis

from hotplate.stores.errors import StoreError, StoreFull, StoreMisused, StoreUnavailable
from hotplate.stores.redis.url import RedisAddress
from hotplate.stores.store import Slot
from hotplate.stores.throttle import Backoff

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 1.0

# The first and the longest pause before a server that failed is tried again; until then callers fail at once.
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0

_UNKNOWN_USER = (
    StoreUnavailable,
    "{where} does not accept this user and password; check the URL or the secret",
)
# What errors mean that begin with a code; of others the text is shown.
MEANINGS: dict[str, tuple[type[StoreError], str]] = {
    "OOM": (StoreFull, "{where} has reached its maxmemory; raise it, prune old releases, or publish shorter lists"),
    "READONLY": (StoreUnavailable, "{where} is a read-only replica; give the URL of the primary"),
    "NOAUTH": _UNKNOWN_USER,
    "WRONGPASS": _UNKNOWN_USER,
    "NOPERM": (StoreMisused, "the Redis user of {where} lacks a permission: {text}"),
    "LOADING": (StoreUnavailable, "{where} is still loading its data; it answers once that is done"),
}
# After these a server may be another, or of another role: the connection ends, and the next one may go elsewhere.
ENDING = ("READONLY", "NOAUTH", "WRONGPASS", "LOADING", "ERR max number of clients reached")

# What the parser makes of values, and of those that are absent.
VALUES = frozenset({bytes, type(None)})

# What the parser returns if there is no whole reply.
_MORE = object()


class Redirected(StoreUnavailable):
    """A node of a cluster does not serve a key's slot: another one does, or is about to."""

    def __init__(self, message: str, slot: int, host: str, port: int, *, asking: bool) -> None:
        """Take where the slot is; a *host* without a name is that of the node that says so.

        *asking*: the slot is on its way there, and only this key's command is to be sent there, after ASKING.
        """
        super().__init__(message)
        self.slot = slot
        self.host = host
        self.port = port
        self.asking = asking


class Refusal(Exception):
    """An error that a server replied, word by word."""


class PipelinedConnection(asyncio.Protocol):
    """An open connection, until it breaks: from then on `error` says why, and every command fails with that.

    A reply belongs to the oldest command that has none. Only the order says so, so whatever could shift it ends the
    connection. The server is given up when the oldest command has waited for *timeout_s*.
    """

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self.address = address
        self.error: str | None = None
        self.has_replied = False
        """Whether the server has replied to anything but the handshake, and nothing that it should not have."""
        self.where = address.shown
        """The server, for sentences."""
        self._timeout_s = timeout_s
        self._waiting = deque[tuple[asyncio.Future[Any], float, int | None, list[Slot] | None]]()
        """The futures of replies, since when they wait, of how many values each must be, and, if each value is a reply,
        those that have come."""
        self._is_array = False
        """Whether the replies that come first are read as one."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._parser = hiredis.Reader(replyError=Refusal, notEnoughData=_MORE)
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()

    async def open(self) -> None:
        """Connect, authenticate and check the role within CONNECT_TIMEOUT_S; StoreUnavailable if that fails."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._connect()
                await self._introduce()
        except BaseException as error:
            await self.close()
            if isinstance(error, Exception) and not isinstance(error, StoreUnavailable):
                raise StoreUnavailable(str(translated(error, self.where))) from error  # callers wait for this
            raise

    async def _connect(self) -> None:
        address = self.address
        if address.path:
            await self._loop.create_unix_connection(lambda: self, address.path)
            return
        context = address.ssl_context()
        name = None if context is None else address.certified_as or address.host
        await self._loop.create_connection(lambda: self, address.host, address.port, ssl=context, server_hostname=name)

    async def _introduce(self) -> None:
        """Authenticate, choose the database and check the role, in one round trip."""
        address, commands = self.address, dict[bytes, tuple[str | bytes | int, ...]]()
        if address.user is not None or address.password is not None:
            commands[b"AUTH"] = (*filter(None, (address.user,)), address.password or "")
        commands[b"CLIENT"] = (b"SETNAME", b"hotplate")
        if address.db:
            commands[b"SELECT"] = (address.db,)
        if address.role is not None:
            commands[b"HELLO"] = (2,)
        sent = [self.send_command(name, *args) for name, args in commands.items()]
        replies = dict(zip(commands, await asyncio.gather(*sent, return_exceptions=True), strict=True))
        if self.error is not None:
            raise StoreUnavailable(self.error)
        if isinstance(replies.get(b"AUTH"), StoreError):
            kind, sentence = _UNKNOWN_USER
            raise kind(sentence.format(where=self.where))
        if isinstance(refused := replies.get(b"SELECT"), StoreError):
            raise refused
        if address.role is not None and role_of(replies[b"HELLO"]) != address.role:
            raise StoreUnavailable(f"{self.where} is not a {address.role.name.lower()}, or no longer")
        self.has_replied = False  # to nothing that was asked of it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # of uvloop's, which are no subclass
        if not self.address.path:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send_command(self, *args: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; the future is its reply, or a StoreError: StoreMisused for what cannot be encoded."""
        return self._send(args, None)

    def mget(self, *names: str | bytes) -> asyncio.Future[list[Slot]]:
        """Read values, as `send_command` does; a reply of another form ends the connection and reaches no caller."""
        return self._send((b"MGET", *names), len(names))

    def get_each(self, names: Sequence[bytes]) -> asyncio.Future[list[Slot]]:
        """Read values by a command each, as keys of several slots must be; 0.15 µs a key to send, and 0.1 to receive.

        An error is the slot of its own key. A reply of another form ends the connection, as for `mget`.
        """
        if self.error is None and not self._waiting and not self._parser.has_data():
            # So many replies after the head of an array are one reply to the parser, which takes a fifth of the time.
            self._parser.feed(b"*%d\r\n" % len(names))
            self._is_array = True
        packed = b"".join([b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names])
        return self._write(packed, len(names), [])

    def _send(self, args: tuple[str | bytes | int, ...], values: int | None) -> asyncio.Future[Any]:
        try:  # before anything waits for a reply: that of the next command would be taken for it
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
        """Hand each reply to its caller."""
        try:
            self._parser.feed(data)
            while self.error is None and (reply := self._parser.gets()) is not _MORE:
                self._take(reply)
        except Exception as error:  # noqa: BLE001 -- whatever it is, what comes next cannot be trusted
            self.lose(f"could not be understood ({error!r})")

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is still waiting."""
        self._fail(
            f"{self.where} cannot be reached: it closed the connection"
            if error is None
            else str(translated(error, self.where))
        )
        self._ended.set()

    async def close(self) -> None:
        """Close, and fail what is still waiting."""
        self.end(f"{self.where} was closed")
        if self._transport is not None:
            await self._ended.wait()

    def lose(self, reason: str) -> StoreUnavailable:
        """Give the connection up, as its replies cannot be trusted; return the error, which the log has, too.

        *reason* goes on a sentence that begins with the server.
        """
        self.has_replied = False  # a server that goes on like this must not be tried again all the time
        error = f"{self.where} {reason}; the connection was given up"
        if self.error is None:
            log.warning("%s", error)
        self.end(error)
        return StoreUnavailable(error)

    def _take(self, reply: Any) -> None:  # noqa: ANN401 -- a reply is whatever the command returns
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
            return  # its caller was cancelled
        if isinstance(reply, StoreError):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _take_values(self, taken: list[Slot], values: int | None, reply: Any) -> bool:  # noqa: ANN401 -- as above
        """Add one reply of several, or all of them, and return whether that was the last."""
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
        """Close at once, with a sentence for those who still wait."""
        self._fail(error)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: str) -> None:
        if self.error is None:
            self.error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            future, *_ = self._waiting.popleft()
            if not future.done():
                future.set_exception(StoreUnavailable(self.error))


def _fits(reply: object, values: int | None) -> bool:
    return values is None or isinstance(reply, StoreError) or (isinstance(reply, list) and len(reply) == values)


class Asking:
    """A connection to a node that a slot is on its way to: it serves a key of that only to who says so."""

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


# What commands are sent by.
Sender = PipelinedConnection | Asking


@asynccontextmanager
async def connected(address: RedisAddress, timeout_s: float) -> AsyncIterator[PipelinedConnection]:
    """Open a connection for as long as the block runs; raises StoreUnavailable."""
    connection = PipelinedConnection(address, timeout_s)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


class Reconnector:
    """Keeps one connection, opened when it is needed and again when it broke; lives as long as its store.

    While the server is known to be away, callers fail with StoreUnavailable at once, and attempts back off.
    """

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        """Take what each `PipelinedConnection` takes."""
        self.where = address.shown
        """The server, for sentences."""
        self._address = address
        self._timeout_s = timeout_s
        self._connection: PipelinedConnection | None = None
        self._opening: asyncio.Task[PipelinedConnection] | None = None
        self._backoff = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
        self._retry_at = 0.0
        self._error = ""

    @property
    def current(self) -> PipelinedConnection | None:
        """The connection, if it is open."""
        return self._connection if self._connection is not None and self._connection.error is None else None

    async def execute_command(self, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        """Send one command and return its reply; raises StoreError."""
        return await (await self.connection()).send_command(*args)

    async def connection(self) -> PipelinedConnection:
        """Return the connection, opened again if it broke; callers at the same time share one attempt."""
        if (current := self.current) is not None:
            return current
        if self._opening is None:
            self._note_end()
            if asyncio.get_running_loop().time() < self._retry_at:
                raise StoreUnavailable(self._error)
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        await asyncio.wait([opening])  # which a caller that is cancelled does not cancel
        if opening.cancelled():  # nor does `close` cancel a caller
            raise StoreUnavailable("the connection was closed before it was open")
        return opening.result()

    async def close(self) -> None:
        """Close the connection, or stop opening it."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
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

    def _opened(self, opening: asyncio.Task[PipelinedConnection]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # retrieved, even where every caller was cancelled

    def _note_end(self) -> None:
        """Try a server again at once if it has replied; one that let us connect and never replied has failed."""
        if self._connection is not None and self._connection.has_replied:
            self._backoff.reset()
        elif self._connection is not None:
            self._record_failure(self._connection.error or "")
        self._connection = None

    def _record_failure(self, error: str) -> None:
        self._retry_at = asyncio.get_running_loop().time() + self._backoff.next_s()
        self._error = error


def fields_of(info: bytes) -> dict[str, str]:
    """Understand the reply to INFO."""
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


def role_of(greeting: object) -> str | None:
    """Return the role that a reply to HELLO, names and values by turns, states; None if there is none.

    No user can be forbidden HELLO, unlike INFO and ROLE.
    """
    if not isinstance(greeting, list):
        return None
    for name, value in zip(greeting[::2], greeting[1::2], strict=False):
        if name == b"role" and isinstance(value, bytes):
            return value.decode(errors="replace")
    return None


def translated(error: BaseException, where: str) -> StoreError:
    """Return our error for a foreign one; *where* is the store's URL without secrets. Free of secrets itself."""
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
    return StoreUnavailable(f"{where} refused: {text if code == 'ERR' else error}")
