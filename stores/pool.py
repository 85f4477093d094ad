"""Connections to one server, kept and shared; requests to a server that is known to be away fail at once."""

import asyncio
import random
import ssl
from collections import deque

from stores.wire import Answer, Connection, Kind, WireFailed

CONNECT_S = 2.0
"""When an attempt to connect is given up, whoever waits for it; a handshake of TLS is part of it."""

PAUSE_S = (0.05, 2.0)
"""The first and the longest pause before a server that failed is tried again; callers meanwhile fail at once."""

IDLE_S = 60.0
"""A connection that was not needed for so long, or twice as long at most, is closed."""

STALE_S = 2.0
"""A connection that idled for so long may end for that reason only."""

LATE_S = 5.0
LATE_SHARE = 0.5
"""A connection whose answer came too late is kept for it, so long and for such a share of the size besides the others:
a slow server is not made slower by new connections, nor do its slow answers keep the quick ones waiting.
"""

TICK_S = 0.002
"""How much later than asked a request may be ended: one timer serves all that end in the same tick."""

Asked = asyncio.Future[Answer]


class Pool:
    """At most `size` connections to one server, and a few that are late; lives as long as its store, on one loop."""

    def __init__(self, host: str, port: int, *, size: int = 32, tls: ssl.SSLContext | None = None) -> None:
        self._host = host
        self._port = port
        self._size = size
        self._tls = tls
        self._idle = deque[Connection[Asked]]()
        self._open = set[Connection[Asked]]()
        self._late = dict[Connection[Asked], asyncio.TimerHandle]()
        self._waiting = deque[tuple[bytes, Asked]]()
        self._opening = set[asyncio.Task[None]]()
        self._due = dict[int, set[Asked]]()
        self._failures = 0
        self._retry_at = 0.0
        self._trouble: OSError | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Send the bytes of one request and wait for its answer; WireFailed where there is none in *timeout_s*.

        An answer that is not waited for any more is dropped when it comes. Nothing is sent twice: only the caller knows
        whether that would do harm.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        tick = int((now + timeout_s) / TICK_S) + 1
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            loop.call_at(tick * TICK_S, self._end, tick)
        asked: Asked = loop.create_future()
        due.add(asked)
        kept, idle_s = None, 0.0
        try:
            if self._idle:
                kept = self._idle.pop()
                idle_s, kept.sent_at = now - kept.sent_at, now
                kept.send(request, asked)
            else:
                self._waiting.append((request, asked))
                self._go_on(now)
            return await asked
        except WireFailed as failure:
            self._abandon(asked)
            if kept is not None and idle_s > STALE_S and failure.kind == "reset" and not kept.head:
                failure.stale = True
                self._drop_idle(now - STALE_S)  # these have probably ended, too
            raise
        except BaseException:
            self._abandon(asked)
            raise
        finally:
            due.discard(asked)

    async def close(self) -> None:
        """Close every connection; what is in flight fails as `reset`, and what comes after as `connect`."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for opening in self._opening:
            opening.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        self._fail_waiting("reset")
        for connection in [*self._open, *self._late]:
            connection.fail("reset")
        await asyncio.sleep(0)  # sockets are closed on the loop's next turn

    def _end(self, tick: int) -> None:
        """End what should have been answered by now."""
        for asked in self._due.pop(tick):
            if not asked.done():
                asked.set_exception(WireFailed("timeout", self._host))

    def _abandon(self, asked: Asked) -> None:
        """Let nobody else have the connection that a request is in flight on until its answer has come."""
        if not asked.cancel() and not asked.cancelled():
            asked.exception()  # seen, even where the caller was cancelled in the same turn
        connection = next((one for one in self._open if one.tag is asked), None)
        if connection is None:
            return
        if len(self._late) >= self._size * LATE_SHARE:
            connection.fail("timeout")
            return
        self._open.discard(connection)
        loop = asyncio.get_running_loop()
        self._late[connection] = loop.call_later(LATE_S, connection.fail, "timeout")
        self._go_on(loop.time())

    def _go_on(self, now: float) -> None:
        """Open another connection where requests wait for one, or fail them where the server is known to be away.

        After a failure there is one attempt at a time, whoever waits.
        """
        if not self._waiting:
            return
        most = 1 if self._failures else min(len(self._waiting), self._size - len(self._open))
        if len(self._opening) < most and len(self._open) < self._size and now >= self._retry_at and not self._closed:
            opening = asyncio.ensure_future(self._connect())
            self._opening.add(opening)
            opening.add_done_callback(self._opened)
        if not self._open and not self._opening:
            self._fail_waiting("connect", self._trouble)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(
                    lambda: Connection[Asked](self, headers=True), self._host, self._port, ssl=self._tls
                )
        except OSError as error:  # a timeout is one, too, and so is what TLS refuses
            self._trouble = error
            self._note_failure()
        else:
            if self._sweep is None:
                self._sweep = loop.call_later(IDLE_S, self._sweep_idle)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled():
            self._go_on(asyncio.get_running_loop().time())

    def _note_failure(self) -> None:
        """Leave a server in peace for a while that cannot be connected to, or lets us in only to hang up."""
        pause_s = min(PAUSE_S[0] * 2**self._failures, PAUSE_S[1])
        self._failures = min(self._failures + 1, 16)
        self._retry_at = asyncio.get_running_loop().time() + pause_s * random.uniform(0.5, 1.0)  # noqa: S311 -- spreads workers

    def _fail_waiting(self, kind: Kind, cause: BaseException | None = None) -> None:
        while self._waiting:
            asked = self._waiting.popleft()[1]
            if not asked.done():
                failure = WireFailed(kind, self._host)
                failure.__cause__ = cause
                asked.set_exception(failure)

    def _sweep_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._drop_idle(loop.time() - IDLE_S)
        self._sweep = loop.call_later(IDLE_S, self._sweep_idle) if self._open else None

    def _drop_idle(self, before: float) -> None:
        """Close connections that were last needed before a time of the loop's clock."""
        for connection in [one for one in self._idle if one.sent_at < before]:
            connection.close()

    def ready(self, connection: Connection[Asked]) -> None:
        """See `Owner`."""
        if self._late and (late := self._late.pop(connection, None)) is not None:
            late.cancel()
            if len(self._open) >= self._size:
                connection.close()
                return
        self._open.add(connection)
        while self._waiting:
            request, asked = self._waiting.popleft()
            if not asked.done():
                connection.sent_at = asyncio.get_running_loop().time()
                connection.send(request, asked)
                return
        self._idle.append(connection)

    def answered(self, connection: Connection[Asked], tag: Asked) -> None:
        """See `Owner`."""
        self._failures = 0
        if not tag.done():
            tag.set_result(Answer(connection.status, connection.head, connection.body))

    def failed(self, tag: Asked, kind: Kind) -> None:
        """See `Owner`."""
        if not tag.done():
            tag.set_exception(WireFailed(kind, self._host))

    def gone(self, connection: Connection[Asked], *, unasked: bool) -> None:
        """See `Owner`."""
        del unasked  # whatever it sent, it carries no request of ours
        self._open.discard(connection)
        if (late := self._late.pop(connection, None)) is not None:
            late.cancel()
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.lost == "reset" and not connection.answered:
            self._note_failure()
        if self._waiting:
            self._go_on(asyncio.get_running_loop().time())
