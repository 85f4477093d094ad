"""Probes, answered by the parent over plain HTTP, without keys."""

import selectors
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import NamedTuple

import orjson

from hotplate.base.timing import Backoff
from hotplate.serve.processes.readiness import Status
from hotplate.serve.processes.states import SILENT_S, SharedStates, service_status

# Open connections, and length of the accept queue.
CONNECTIONS = 16
BACKLOG = 64
REQUEST_BYTES = 4096
# Time until the first report of a worker.
START_S = 30.0
# Maximum silence per look: a paused parent hears no reports.
LOOK_S = 2.0
# First and longest pause before replacing a worker that failed at its start.
RESTART_S = (0.1, 5.0)


class ProbeResult(NamedTuple):
    """HTTP status, and `status` of the body."""

    code: int
    status: str


Probe = Callable[[], ProbeResult]


@dataclass(eq=False, slots=True)
class Child:
    """A child process of the parent: a worker, or the admin process, whose number follows those of the workers."""

    number: int
    name: str
    pid: int = 0
    """0 while it does not run."""

    due: float = 0.0
    started: float = 0.0
    is_aborted: bool = False
    """Whether it was sent SIGABRT."""

    backoff: Backoff = field(default_factory=lambda: Backoff(*RESTART_S))
    reported_at: float = 0.0
    """Time of its last report; 0 before the first one."""

    silent_s: float = 0.0
    """Since its last report or its start, at the last look."""

    @property
    def is_starting(self) -> bool:
        """Whether it runs and has not reported yet."""
        return bool(self.pid) and not self.reported_at

    def begin(self, pid: int) -> None:
        """Note the start of the process."""
        self.pid = pid
        self.started = time.monotonic()
        self.is_aborted = False
        self.reported_at = 0.0
        self.silent_s = 0.0


class Health:
    """Measures how long each process has been silent, and answers probes."""

    def __init__(
        self,
        states: SharedStates,
        workers: Sequence[Child],
        admin: Child,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_draining = False
        self._states = states
        self._workers = workers
        self._admin = admin
        self._clock = clock
        self._looked_at = clock()
        self._workers_silent_s = 0.0  # since the last report of any worker
        self._allowed_s = START_S  # shorter after the first report

    @property
    def routes(self) -> dict[str, Probe]:
        """The answers by path."""
        return {"/livez": self.live, "/readyz": self.ready, "/health/live": self.live, "/health/ready": self.ready}

    def drain(self) -> None:
        """Report not ready, but alive, until the process ends."""
        self._is_draining = True

    def look(self) -> None:
        """Update for how many seconds each process has not reported its state; called in each tick of the parent.

        At most LOOK_S count since the last call: if more time has passed, this process itself was suspended, and the
        others perhaps with it. While a worker starts, for START_S at most, it may hold up the other workers, and their
        silence does not grow. A process reports by writing the time to its record in shared memory.
        """
        now = self._clock()
        passed_s = min(now - self._looked_at, LOOK_S)
        self._looked_at = now
        self._workers_silent_s += passed_s
        are_held_up = any(worker.is_starting and worker.silent_s <= START_S for worker in self._workers)

        for worker in self._workers:
            if worker.is_starting or not are_held_up:
                worker.silent_s += passed_s
            if self._has_reported(worker):
                self._workers_silent_s = 0.0
                self._allowed_s = SILENT_S  # until now START_S, for the start of the first worker

        self._admin.silent_s += passed_s
        self._has_reported(self._admin)

    def _has_reported(self, child: Child) -> bool:
        """Return whether a process has reported since the last call; if so, its silence ends."""
        state = self._states.read(child.number)
        if state is None or state.reported_at == child.reported_at:
            return False
        child.reported_at = state.reported_at
        child.silent_s = 0.0
        return True

    def live(self) -> ProbeResult:
        """Answer 200 if a worker has reported recently, or just started."""
        self.look()
        if self._is_draining or self._workers_silent_s <= self._allowed_s:
            return ProbeResult(200, "alive")
        return ProbeResult(503, "silent")

    def ready(self) -> ProbeResult:
        """Answer 200 if the workers together can answer."""
        status = Status.DRAINING if self._is_draining else service_status(self._states.all())
        return ProbeResult(status.probe_code, status)


class HealthListener:
    """Answers probes when its process waits on *selector*.

    Connections have no timeout: a new one replaces the oldest of CONNECTIONS.
    """

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector, routes: Mapping[str, Probe]) -> None:
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listener = listener
        self._selector = selector
        self._routes = routes
        self._open = dict[socket.socket, bytearray]()  # what was received; the oldest first
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def leave(self) -> None:
        """Close all descriptors, in a child."""
        for opened in (self._listener, *self._open):
            opened.close()

    def _accept(self) -> None:
        """Accept the connections that are waiting; if there are too many, the oldest one is closed."""
        for _ in range(CONNECTIONS):
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # none is waiting, it was aborted, or no descriptor is free
                return

            if len(self._open) >= CONNECTIONS:
                self._close(next(iter(self._open)))
            accepted.setblocking(False)
            self._open[accepted] = bytearray()
            self._selector.register(accepted, selectors.EVENT_READ, partial(self._read, accepted))

    def _read(self, connection: socket.socket) -> None:
        """Receive a part of a probe's request; once its header is complete or too large, answer it and close.

        Called when *connection*, which does not block, can be read. `self._open` has the bytes that were received so
        far, a bytearray per connection.
        """
        if connection not in self._open:
            return  # closed to make room for a new connection, after the selector had returned both

        try:
            data = connection.recv(REQUEST_BYTES)
            received = self._open[connection]
            received += data  # in place
            is_complete = b"\r\n\r\n" in received or len(received) >= REQUEST_BYTES
            if data and not is_complete:
                return
            if is_complete:
                connection.send(self._answer(bytes(received)))  # fits into the socket's buffer
                connection.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            pass  # the client is gone
        self._close(connection)

    def _answer(self, request: bytes) -> bytes:
        """Return the whole HTTP answer to the bytes of a probe's request: GET or HEAD of one of the routes."""
        words = request.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1.") or b"\r\n\r\n" not in request:
            return _http_response(400, "bad request")

        method, target, _ = words
        probe = self._routes.get(target.partition("?")[0])
        if probe is None:
            return _http_response(404, "no such route")
        if method not in {"GET", "HEAD"}:
            return _http_response(405, "no such method", "Allow: GET, HEAD\r\n")

        result = probe()
        response = _http_response(result.code, result.status)
        if method == "GET":
            return response
        header, separator, _ = response.partition(b"\r\n\r\n")  # without the body
        return header + separator

    def _close(self, connection: socket.socket) -> None:
        del self._open[connection]
        self._selector.unregister(connection)
        connection.close()


def _http_response(code: int, status: str, more: str = "") -> bytes:
    body = orjson.dumps({"status": status})
    head = (
        f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body
