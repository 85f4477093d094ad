"""The limits of a worker's connections: who is let in, how many bytes are held, and one sweep for all time-outs."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from math import inf
from time import monotonic

from hotplate.serve.connections.listeners import room_for_connections
from hotplate.serve.metrics import Metrics
from hotplate.serve.settings import Limits

# Each tick of the sweep looks over one of so many slices of the connections, each of them once a second.
SLICES = 10
TICK_S = 0.1
# How many connections beyond the limits are answered at once; others are closed without an answer.
REFUSED_AT_ONCE = 32
# For how long a refused client may send its request and read the answer: without that it would be reset.
LINGER_S = 1.0
# What a worker may hold for its clients, however little memory there is: one large body and its answer.
LEAST_IN_FLIGHT = 16 << 20


class CountedConnection(asyncio.Protocol):
    """What is counted of a connection."""

    __slots__ = ("_held", "_registry", "client", "is_open", "peers", "refusal", "transport")

    check: Callable[[float], None]
    """Closes the connection if, by `time.monotonic`, it has taken too long for what it is at."""
    idle_since: Callable[[], float]
    """Returns since when it has waited for a whole request, by `time.monotonic`; inf while there is one to answer."""
    give_way: Callable[[], None]
    """Closes the connection at once, also in its handshake."""
    close_if_idle: Callable[[], None]
    """Closes the connection if aiohttp has seen nothing of it."""

    def __init__(self, registry: "ConnectionRegistry", refusal: str) -> None:
        self.refusal = refusal
        """Why it is beyond a limit, so it is answered once and closed; "" for the others."""
        self.client = ""
        """The client of the newest request's key or token; "" before the first."""
        self.is_open = False
        """Whether its `transport` is there and not lost: with TLS once the handshake is done."""
        self.transport: asyncio.Transport
        self.peers: set[CountedConnection] = set()
        """The connections that are swept with it; empty if it is refused."""
        self._registry = registry
        self._held = 0

    def count_connection(self, client: str) -> bool:
        """Count this connection as the client's whose request it brought last; False if that has too many."""
        return self._registry.count_connection(self, client)

    def hold(self, count: int) -> None:
        """Count bytes that are kept until their request is answered, or with a minus fewer, as many as were counted."""
        if self.is_open:
            count = max(count, -self._held)
            self._held += count
            self._registry.bytes_in_flight += count


class ConnectionRegistry:
    """All connections of a server, each counted against the limits; lives on the server's loop."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.bytes_in_flight = 0
        """Bytes of bodies of unanswered requests, except small ones, and of answers that clients have not taken."""
        self._metrics = metrics
        self._room = min(limits.connections, room_for_connections())
        # Every connection that is let in, and until when the refused stay.
        self._slices: list[set[CountedConnection]] = [set() for _ in range(SLICES)]
        self._refused: dict[CountedConnection, float] = {}
        self._clients = Counter[str]()
        self._added = self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._slices))

    def __iter__(self) -> Iterator[CountedConnection]:
        return chain.from_iterable(self._slices)

    @property
    def is_full(self) -> bool:
        """Whether bytes in flight fill more than their room."""
        return self.bytes_in_flight > self.limits.bytes_in_flight

    @property
    def is_answering(self) -> bool:
        """Whether a request of some connection is to be answered, or an answer to be taken by its client."""
        return any(one.idle_since() == inf for one in self)

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
        oldest = min(self, key=lambda one: one.idle_since(), default=None)
        if oldest is None or oldest.idle_since() == inf:
            return False
        self.remove(oldest)
        oldest.give_way()
        return True

    def add(self, connection: CountedConnection) -> bool:
        """Count a connection that was accepted; False if as many that are refused are open as may be."""
        if not connection.refusal:
            connection.peers = self._slices[self._added % SLICES]
            connection.peers.add(connection)
            self._added += 1
        elif len(self._refused) >= REFUSED_AT_ONCE:
            return False
        else:
            self.linger(connection)
        return True

    def linger(self, connection: CountedConnection) -> None:
        """Close a connection a little later, so its client can read why."""
        self._refused.setdefault(connection, monotonic() + LINGER_S)

    def remove(self, connection: CountedConnection) -> None:
        """Forget a connection."""
        self._refused.pop(connection, None)
        if connection in connection.peers:
            connection.peers.discard(connection)
            self._disclaim(connection)

    def count_connection(self, connection: CountedConnection, client: str) -> bool:
        """Count a connection as a client's; False if that has too many."""
        if connection.client == client or connection not in connection.peers:
            return True
        if self._clients[client] >= self.limits.per_client:
            return False
        self._disclaim(connection)
        connection.client = client
        self._clients[client] += 1
        return True

    def _disclaim(self, connection: CountedConnection) -> None:
        if connection.client:
            self._clients[connection.client] -= 1
            if not self._clients[connection.client]:
                del self._clients[connection.client]
            connection.client = ""

    def _tick(self) -> None:
        self.start()
        self._ticks += 1
        now = monotonic()
        for connection in list(self._slices[self._ticks % SLICES]):
            if connection.is_open:
                connection.check(now)
        for connection, until in list(self._refused.items()):
            if now > until and connection.is_open:
                self._refused[connection] = inf
                connection.transport.abort()


def within_memory(limits: Limits, workers: int, room_bytes: float) -> Limits:
    """Return limits by which what all workers hold for clients takes a quarter of the memory that there is."""
    share = max(room_bytes / 4 / workers, LEAST_IN_FLIGHT)
    return replace(limits, bytes_in_flight=int(min(limits.bytes_in_flight, share)))
