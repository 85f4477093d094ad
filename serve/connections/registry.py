"""The registry of connections: it accepts them within the limits of all together, and a sweep checks each."""

import asyncio
import socket
from functools import cached_property
from math import inf
from time import monotonic

from hotplate.serve.access.tls import Certificate
from hotplate.serve.connections.connection import Connection, OpenConnections
from hotplate.serve.connections.listeners import room_for_connections
from hotplate.stores.folders import return_free_memory

# Each tick of the sweep checks one of SLICES slices, so each connection about once a second: its slice changes when an
# older one closes.
SLICES = 10
TICK_S = 0.1
# Memory of more freed bodies and answers is returned to the system.
RETURNED_BYTES = 32 << 20


class ConnectionRegistry(OpenConnections):
    """Accepts and checks the connections of a server."""

    _peak_bytes = 0
    """Of `bytes_in_flight`, since memory was returned."""
    _ticks = 0
    _timer: asyncio.TimerHandle | None = None

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
