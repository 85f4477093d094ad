"""Probes, which the parent of the workers answers in plain HTTP and without a key.

So they do not depend on any single child, nor on how many clients a worker has. The parent has no event loop, because
it forks: it looks at these connections whenever it waits. They are few, and each has one small request.
"""

import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from math import inf

import orjson

from hotplate.serve.states import ANSWERING, SILENT_S, SharedStates, service_status

# How many connections are open at once; the oldest gives way. How many wait to be accepted.
CONNECTIONS = 16
BACKLOG = 64
# How long a client may take over its request, and how large that is at most.
REQUEST_S = 5.0
REQUEST_BYTES = 4096
# For how long the first worker may say nothing after the service has started.
START_S = 30.0
# How much silence one look can add, however long ago the last one was: while this process was paused, it heard nothing.
LOOK_S = 2.0

# Returns the HTTP status and the word that a probe is answered with.
ProbeAnswer = Callable[[], tuple[int, str]]


class Health:
    """Knows for how long each process has reported nothing, and answers probes; one for the parent.

    Silence is counted from look to look, and not by the clock: while the parent was paused, it heard nothing.
    """

    def __init__(self, states: SharedStates, clock: Callable[[], float] = time.monotonic) -> None:
        self.draining = False
        """Whether the service is stopping: then it is alive, and not ready."""
        processes = states.workers + 1  # the last is the admin process
        self.silent_s = [0.0] * processes
        """For how long each process has reported nothing, as of the last look."""
        self._heard = [0.0] * processes
        self._states = states
        self._clock = clock
        self._looked_at = clock()
        self._all_silent_s, self._allowed_s = 0.0, START_S

    @property
    def routes(self) -> dict[str, ProbeAnswer]:
        """The answers by path."""
        return {"/livez": self.live, "/readyz": self.ready, "/health/live": self.live, "/health/ready": self.ready}

    def look(self) -> None:
        """See which processes have reported since the last look."""
        now = self._clock()
        passed_s, self._looked_at = min(now - self._looked_at, LOOK_S), now
        self._all_silent_s += passed_s
        for number in range(len(self._heard)):
            self.silent_s[number] += passed_s
            state = self._states.read(number)
            if state is not None and state.reported_at != self._heard[number]:
                self._heard[number] = state.reported_at
                self.silent_s[number] = 0.0
                if number < self._states.workers:
                    self._all_silent_s, self._allowed_s = 0.0, SILENT_S

    def started(self, number: int) -> None:
        """Count the silence of a new process from now on."""
        self._heard[number] = self.silent_s[number] = 0.0

    def has_reported(self, number: int) -> bool:
        """Return whether a process has reported since it started."""
        return self._heard[number] > 0

    def live(self) -> tuple[int, str]:
        """Say whether any worker lives, or the service has only just started."""
        self.look()
        return (200, "alive") if self.draining or self._all_silent_s <= self._allowed_s else (503, "silent")

    def ready(self) -> tuple[int, str]:
        """Say whether the workers together can answer."""
        status = "draining" if self.draining else service_status(self._states.all())
        return 200 if status in ANSWERING else 503, status


@dataclass(eq=False, slots=True)
class _ProbeConnection:
    socket: socket.socket
    until: float
    received: bytearray = field(default_factory=bytearray)


class HealthListener:
    """Answers probes whenever its process waits on *selector*; lives as long as the parent."""

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        routes: Mapping[str, ProbeAnswer],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen on a bound socket."""
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listener = listener
        self._selector = selector
        self._routes = routes
        self._clock = clock
        self._open = dict[_ProbeConnection, None]()  # the oldest first
        selector.register(listener, selectors.EVENT_READ, self._accept)

    @property
    def next_deadline(self) -> float:
        """When the next connection is to be closed, by the clock."""
        return next((connection.until for connection in self._open), inf)

    def close_late(self) -> None:
        """Close what has taken too long over its request."""
        now = self._clock()
        while self._open and self.next_deadline <= now:
            self._close(next(iter(self._open)))

    def leave(self) -> None:
        """Close everything in a child, to which it does not belong; the parent keeps it open."""
        self._listener.close()
        for connection in self._open:
            connection.socket.close()

    def _accept(self) -> None:
        for _ in range(CONNECTIONS):
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # none waits any more, or it has gone, or there is no descriptor for now
                return
            if len(self._open) >= CONNECTIONS:
                self._close(next(iter(self._open)))
            accepted.setblocking(False)
            connection = _ProbeConnection(accepted, self._clock() + REQUEST_S)
            self._open[connection] = None
            self._selector.register(accepted, selectors.EVENT_READ, partial(self._read, connection))

    def _read(self, connection: _ProbeConnection) -> None:
        if connection not in self._open:
            return  # it gave way to another that came in the same wait
        try:
            data = connection.socket.recv(REQUEST_BYTES)
            connection.received += data
            if b"\r\n\r\n" in connection.received:
                connection.socket.send(self._answer(bytes(connection.received)))  # so little always fits
                connection.socket.shutdown(socket.SHUT_WR)
            elif len(connection.received) >= REQUEST_BYTES:
                connection.socket.send(_written(431, "request too large"))
            elif data:
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # it has gone
        self._close(connection)

    def _answer(self, request: bytes) -> bytes:
        line, _, _ = request.partition(b"\r\n")
        words = line.decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _written(400, "bad request")
        method, target, _ = words
        answer = self._routes.get(target.partition("?")[0])
        if answer is None:
            return _written(404, "no such route")
        if method not in {"GET", "HEAD"}:
            return _written(405, "no such method", "Allow: GET, HEAD\r\n")
        written = _written(*answer())
        return written if method == "GET" else written.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def _close(self, connection: _ProbeConnection) -> None:
        del self._open[connection]
        self._selector.unregister(connection.socket)
        connection.socket.close()


def _written(code: int, status: str, more: str = "") -> bytes:
    body = orjson.dumps({"status": status})
    head = (
        f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body
