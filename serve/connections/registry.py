"""The registry of connections: it accepts them within the limits of all together, and a sweep checks each."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import cached_property
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from aiohttp import web

from hotplate.serve.access.tls import Certificate
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.connections.connection import Connection, create_aiohttp_server
from hotplate.serve.connections.listeners import room_for_connections
from hotplate.serve.settings import Limits
from hotplate.stores.folders import return_free_memory

if TYPE_CHECKING:
    from hotplate.serve.connections.lane import Lane

# Each tick of the sweep checks one of SLICES slices, so each connection about once a second: its slice changes when an
# older one closes.
SLICES = 10
TICK_S = 0.1
# Memory of more freed bodies and answers is returned to the system.
RETURNED_BYTES = 32 << 20


class ConnectionRegistry:
    """Accepts and checks the connections of a server, and has what they share."""

    _peak_bytes = 0
    """Of `bytes_in_flight`, since memory was returned."""
    _ticks = 0
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        limits: Limits,
        writer: AnswerWriter,
        lane: "Lane | None",
        answer: Callable[[web.BaseRequest, float], Awaitable[web.Response]],
    ) -> None:
        """*answer* is called with a request, and when it began by `time.monotonic`."""
        self.limits = limits
        self.metrics = writer.metrics
        self.writer = writer
        self.lane = lane
        self.answer = answer
        self.aiohttp_server = create_aiohttp_server()
        self.bytes_in_flight = 0
        """Of unanswered requests and unread answers."""
        self.open: dict[Connection, None] = {}
        """All connections, the oldest first."""

    def __len__(self) -> int:
        return len(self.open)

    @property
    def is_full(self) -> bool:
        """Whether bytes in flight exceed their limit."""
        return self.bytes_in_flight > self.limits.bytes_in_flight

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered or refused, or a last answer has not been read yet."""
        return any(connection.idle_since == inf for connection in self.open)

    @cached_property
    def _room(self) -> int:
        """How many connections may be open."""
        return min(self.limits.connections, room_for_connections())

    def start(self) -> None:
        """Start the sweep."""
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Stop the sweep."""
        if self._timer is not None:
            self._timer.cancel()

    def accept(self, certificate: Certificate | None, accepted: socket.socket) -> None:
        """Open a connection on an accepted socket, over TLS with a *certificate*; close it if there are too many.

        If the limits allow it, the longest idle connection closes instead.
        """
        if len(self) < self._room or (self.limits.idle_gives_way and self._close_longest_idle()):
            connection = Connection(self)
            self.open[connection] = None
            connection.start(accepted, certificate)
        else:
            self.metrics.count_shed("connections")
            accepted.close()

    def _close_longest_idle(self) -> bool:
        """Close the connection that is idle for longest; False if none is idle."""
        longest_idle = min(self.open, key=lambda connection: connection.idle_since, default=None)
        if longest_idle is None or longest_idle.idle_since == inf:
            return False
        del self.open[longest_idle]
        longest_idle.cut()
        return True

    def _tick(self) -> None:
        self.start()
        self._ticks += 1
        now = monotonic()
        for connection in list(self.open)[self._ticks % SLICES :: SLICES]:
            if connection.is_open:
                connection.check(now)
        self._return_memory()

    def _return_memory(self) -> None:
        self._peak_bytes = max(self._peak_bytes, self.bytes_in_flight)
        if self._ticks % SLICES == 0 and self._peak_bytes - self.bytes_in_flight > RETURNED_BYTES:
            self._peak_bytes = self.bytes_in_flight
            return_free_memory()
