"""Reads of all callers over one connection to each server.

redis-py opens, authenticates and encrypts a connection; then `Multiplexer` takes its transport over. Callers send reads
without waiting for the replies to earlier ones, which arrive in the same order. Without it, a lookup by redis-py's
`MGET` takes 86, 11.1 and 4.12 µs of CPU a key at 1, 8 and 32 keys instead of 46.9, 5.5 and 2.17
(`tools/test_lookups.py`), and a GET of the service 21.9 µs instead of 19.1 at 32 connections (`hotplate bench stores`).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, cast

import hiredis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import AskError, ConnectionError, ReadOnlyError  # noqa: A004 -- redis-py's name

from hotplate.stores.concurrency import other_loop
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.redis.client import ServerConnection
from hotplate.stores.redis.errors import ReadElsewhere, translated
from hotplate.stores.store import ReadResult

log = logging.getLogger(__name__)

# Types of a value that was read; None is an absent one.
VALUES = frozenset({bytes, type(None)})

# Errors after which the connection is closed: a new one may lead to another server, or be accepted.
ENDING = (ConnectionError, ReadOnlyError)

Replies = asyncio.Future[list[ReadResult]]
"""The values of a read, in the order of its keys; it fails with a StoreError."""

_INCOMPLETE = object()  # the parser's result for a reply that has not arrived as a whole


@dataclass(slots=True, eq=False)
class _PendingRead:
    """A read that was sent, until its replies have arrived."""

    replies: Replies
    expires_at: float
    """Time of the loop's clock after which the connection is closed."""

    count: int
    """Number of keys."""

    replies_so_far: list[Any] | None
    """None if one reply completes the read (see `Multiplexer.get_each`)."""


class Multiplexer(asyncio.Protocol):
    """A connection to one server.

    Replies are matched to reads by their order, so an unexpected reply closes it, as does a timeout.
    """

    def __init__(self, connection: ServerConnection, where: str) -> None:
        """Take over the transport of an open connection; *where* names the server in errors."""
        self.where = where
        self.error: str | None = None
        """Why the connection was closed; None while it is open."""

        self.was_useful = False
        """Whether reads got replies, all of them valid. If not, the next connection is unlikely to do better."""

        self._connection = connection
        self._pending = deque[_PendingRead]()
        """In the order of their commands."""

        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._checks_at = inf
        """Time of the loop's clock at which the timer ends."""

        self._parser = hiredis.Reader(replyError=DefaultParser.parse_error, notEnoughData=_INCOMPLETE)
        self._transport = cast("asyncio.Transport", connection.transport)
        self._transport.set_protocol(self)

    def mget(self, names: Sequence[bytes], timeout_s: float) -> Replies:
        """Send an MGET for the values of *names*; if they have not arrived after *timeout_s*, close the connection."""
        packed = hiredis.pack_command((b"MGET", *names))  # type: ignore[arg-type]  # its stub says a tuple of one
        return self._send(packed, len(names), timeout_s, None)

    def get_each(self, names: Sequence[bytes], timeout_s: float) -> Replies:
        """Send a GET for each of *names*, at 0.25 µs a key; the error of a key takes the place of its value.

        If no other reply is expected, the parser is fed the header of an array of as many elements as there are names,
        as if the server had sent it. It then returns all replies as one list, which takes a fifth of the time.
        """
        replies_so_far: list[Any] | None = []
        if self.error is None and not self._pending and not self._parser.has_data():
            self._parser.feed(b"*%d\r\n" % len(names))
            replies_so_far = None
        packed = b"".join([b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names])
        return self._send(packed, len(names), timeout_s, replies_so_far)

    def _send(self, packed: bytes, count: int, timeout_s: float, replies_so_far: list[Any] | None) -> Replies:
        """Send the encoded commands of a read, and return the future of its values; StoreMisused on another loop."""
        if asyncio.get_running_loop() is not self._loop:
            raise other_loop(self.where)
        read = _PendingRead(self._loop.create_future(), self._loop.time() + timeout_s, count, replies_so_far)
        if self.error is not None:
            read.replies.set_exception(StoreUnavailable(self.error))
            return read.replies
        self._pending.append(read)
        self._transport.write(packed)
        if read.expires_at < self._checks_at:
            self._check_at(read.expires_at)
        return read.replies

    def data_received(self, data: bytes) -> None:
        """Parse replies, and complete the reads that they belong to."""
        try:
            self._parser.feed(data)
            while self.error is None and (reply := self._parser.gets()) is not _INCOMPLETE:
                self._match_reply(reply)
        except Exception as error:  # noqa: BLE001 -- later replies cannot be matched
            self._give_up(f"could not be understood ({error!r})")

    def connection_lost(self, error: Exception | None) -> None:
        """Fail pending commands."""
        self._end(f"{self.where} cannot be reached: {error or 'it closed the connection'}")

    @property
    def is_in_use(self) -> bool:
        """Whether replies are under way."""
        return bool(self._pending)

    def close(self) -> None:
        """Close the connection and fail pending commands."""
        self._end(f"{self.where} was closed")

    def _give_up(self, reason: str) -> None:
        """Close the connection after an invalid reply; *reason* continues a sentence about the server."""
        self.was_useful = False
        error = f"{self.where} {reason}; the connection was given up"
        if self.error is None:
            log.warning("%s", error)
        self._end(error)

    def _match_reply(self, reply: Any) -> None:  # noqa: ANN401 -- any reply
        """Match a parsed reply to the oldest pending read, since a server replies in the order of the commands.

        Raises RuntimeError for a reply without a pending read, after which the caller closes the connection.
        """
        if not self._pending:
            raise RuntimeError("a reply without a caller")

        read = self._pending[0]
        if read.replies_so_far is not None:
            read.replies_so_far.append(reply)
            if len(read.replies_so_far) < read.count:
                return
            reply = read.replies_so_far

        result = self._result(read, reply)
        if self.error is not None:  # the reply has closed the connection
            return

        self.was_useful = True
        self._pending.popleft()
        if read.replies.done():
            return  # cancelled
        if isinstance(result, StoreError):
            read.replies.set_exception(result)
        else:
            read.replies.set_result(result)

    def _result(self, read: _PendingRead, reply: Any) -> list[ReadResult] | StoreError:  # noqa: ANN401 -- as above
        """Return the values in the whole reply to a read, or its error; an invalid reply closes the connection."""
        if isinstance(reply, Exception):
            return self._translated(reply)
        if not isinstance(reply, list) or len(reply) != read.count:
            self._give_up(f"replied to {read.count} keys with something else than their values")
            return []
        if VALUES.issuperset(map(type, reply)):
            return reply
        return [self._value_or_error(value) for value in reply]

    def _value_or_error(self, reply: Any) -> ReadResult:  # noqa: ANN401 -- as above
        """Return the value or the error in the reply to a GET; any other reply closes the connection."""
        if isinstance(reply, Exception):
            return self._translated(reply)
        if type(reply) not in VALUES:
            self._give_up("replied to a key with something else than its value")
            return None
        return cast("ReadResult", reply)

    def _translated(self, error: Exception) -> StoreError:
        """Return the error of stores for that of a reply; one of ENDING closes the connection."""
        if isinstance(error, AskError):
            return ReadElsewhere(f"{self.where} does not serve slot {error.slot_id}")
        failure = translated(error, self.where)
        if isinstance(error, ENDING):
            self._end(str(failure))
        return failure

    def _check_timeout(self) -> None:
        """Close the connection if a pending read has expired, or else check again when the next one does."""
        self._checks_at = inf
        if self._pending:
            expires_at = min(read.expires_at for read in self._pending)  # time limits differ
            if expires_at > self._loop.time():
                self._check_at(expires_at)
            else:
                self._end(f"{self.where} has not answered in time")

    def _check_at(self, expires_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(expires_at, self._check_timeout)
        self._checks_at = expires_at

    def _end(self, error: str) -> None:
        """Close at once; all pending reads fail with *error*, or with that of an earlier call."""
        self.error = self.error or error

        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.abort()

        while self._pending:
            replies = self._pending.popleft().replies
            if not replies.done():
                replies.set_exception(StoreUnavailable(self.error))
