"""The limits of a server's connections: how many there are, how many bytes are held, and a sweep for time-outs."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from time import monotonic
from typing import Protocol

from hotplate.serve.connections.listeners import room_for_connections
from hotplate.serve.metrics import Metrics
from hotplate.serve.settings import Limits

# Each tick of the sweep looks over one of so many slices of the connections, each of them once a second.
SLICES = 10
TICK_S = 0.1
# How many connections beyond the limits are answered at once; others are closed without an answer.
REFUSED_AT_ONCE = 32
# For how long a client may read the last answer: a connection with unread bytes would be reset.
LINGER_S = 1.0
# What a worker may hold for its clients, however little memory there is: one large body and its answer.
LEAST_IN_FLIGHT = 16 << 20


class SweptConnection(Protocol):
    """What the registry knows of a connection."""

    refusal: str

    @property
    def is_open(self) -> bool:
        """Whether it can be written to."""

    @property
    def is_taken(self) -> bool:
        """Whether all that was written has left this process."""

    @property
    def idle_since(self) -> float:
        """Since when it has waited for a whole request; inf while there is one to answer."""

    def check(self, now: float) -> None:
        """Close it if it has taken too long for what it is at."""

    def close_if_idle(self) -> None:
        """Close it if no request has begun."""

    def cut(self) -> None:
        """Close it at once."""

    def give_up(self) -> None:
        """Close it at once, and end what is being done for its client."""


class ConnectionRegistry:
    """All connections of a server, counted against the limits; used on the server's loop."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.bytes_in_flight = 0
        """Bytes of requests that are not answered, and of answers that clients have not taken."""
        self._metrics = metrics
        self._room = min(limits.connections, room_for_connections())
        self._open: dict[SweptConnection, None] = {}
        self._closing: dict[SweptConnection, float] = {}  # until when
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[SweptConnection]:
        return iter(list(self._open))

    @property
    def is_full(self) -> bool:
        """Whether bytes in flight fill more than their room."""
        return self.bytes_in_flight > self.limits.bytes_in_flight

    @property
    def is_answering(self) -> bool:
        """Whether a request of some connection is to be answered, or an answer to be taken by its client."""
        return any(one.idle_since == inf for one in self._open)

    def start(self) -> None:
        """Sweep from now on."""
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()

    def refusal(self) -> str:
        """Return why a new connection is refused, and count that; "" if it is let in."""
        if len(self) < self._room or (self.limits.idle_gives_way and self._has_made_room()):
            return ""
        self._metrics.count_shed("connections")
        return "connections"

    def _has_made_room(self) -> bool:
        """Close the connection that has been idle for longest; False if none is."""
        oldest = min(self._open, key=lambda one: one.idle_since, default=None)
        if oldest is None or oldest.idle_since == inf:
            return False
        self.remove(oldest)
        oldest.cut()
        return True

    def add(self, connection: SweptConnection) -> bool:
        """Count a connection that was accepted; False if as many that are refused are open as may be."""
        if not connection.refusal:
            self._open[connection] = None
        elif sum(bool(one.refusal) for one in self._closing) >= REFUSED_AT_ONCE:
            return False
        else:
            self.linger(connection)
        return True

    def linger(self, connection: SweptConnection) -> None:
        """Close a connection a little later, so its client can read the answer."""
        self._closing.setdefault(connection, monotonic() + LINGER_S)

    def remove(self, connection: SweptConnection) -> None:
        """Forget a connection."""
        self._open.pop(connection, None)
        self._closing.pop(connection, None)

    def _tick(self) -> None:
        self.start()
        self._ticks += 1
        now = monotonic()
        for connection in list(self._open)[self._ticks % SLICES :: SLICES]:
            if connection.is_open:
                connection.check(now)
        for connection in [one for one, until in self._closing.items() if now > until]:
            if connection.refusal or connection.is_taken:
                del self._closing[connection]
                connection.cut()


def within_memory(limits: Limits, workers: int, room_bytes: float) -> Limits:
    """Return limits by which what all workers hold for clients takes a quarter of the memory that there is."""
    share = max(room_bytes / 4 / workers, LEAST_IN_FLIGHT)
    return replace(limits, bytes_in_flight=int(min(limits.bytes_in_flight, share)))
