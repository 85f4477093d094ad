"""Listening sockets: a port that is reserved before the workers are forked, and balanced between them.

Connections are accepted by ourselves, so no client is reset if a process cannot open another file: an event loop's own
server resets what it cannot accept. Here it waits in the kernel's queue until there is room again.
"""

import asyncio
import errno
import logging
import resource
import socket
import time
from collections.abc import Callable
from math import inf

log = logging.getLogger(__name__)

# How long a port is waited for that workers of a parent which was killed just now still hold.
PORT_WAIT_S = 1.5
PORT_POLL_S = 0.02
# How much of an answer the kernel takes beyond what it has sent. The rest of what a client does not read stays in this
# process, which counts and times it. Without this, each such client could hold 4 MB of the kernel's memory.
UNSENT_BYTES = 65_536
# How many connections are taken before requests get their turn.
AT_ONCE = 64
# How often, and for how long each time, a worker leaves connections to others that have fewer. If these have not taken
# them by then, they are busy or stuck, and nobody waits for them again before they accept.
YIELDS = 250
YIELD_S = 0.001
# How long nothing is accepted once descriptors have run out.
PAUSE_S = 0.1
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Descriptors that a worker needs besides its connections: its stores', its log's, its loop's.
RESERVED = 128
# A lack that comes and goes is logged no more often.
LOG_EVERY_S = 60.0


class CannotListen(OSError):
    """The address cannot be listened on; the text says why, and what to do."""


def reserve(host: str, port: int, options: str = "") -> socket.socket:
    """Bind a socket; it does not listen yet.

    *options* is what the options' names begin with in what an error says. Raises CannotListen, for a port in use once
    it has been for PORT_WAIT_S.
    """
    deadline = time.monotonic() + PORT_WAIT_S
    while True:
        try:
            return _bind(host, port)
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE or time.monotonic() > deadline:
                raise CannotListen(_why_not(error, host, port, options)) from error
        time.sleep(PORT_POLL_S)


def _why_not(error: OSError | UnicodeError, host: str, port: int, options: str = "") -> str:
    here = f"give --{options}host an address of this machine, as 127.0.0.1 or 0.0.0.0"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the host {host!r} cannot be resolved; {here}"
    start = f"{host} port {port} cannot be listened on: {error.strerror}"
    match error.errno:
        case errno.EADDRINUSE:
            variable = f"HOTPLATE_{options}PORT".upper().replace("-", "_")
            return f"{start}; choose another with --{options}port or {variable}"
        case errno.EADDRNOTAVAIL:
            return f"{start}; {here}"
        case errno.EACCES:
            return f"{start}; choose a port from 1024 on with --{options}port, or grant the right to bind this one"
    return f"{start}; check --{options}host and --{options}port"


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # and so each connection
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, open as many files as they are allowed to."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def room_for_connections() -> int:
    """Return how many connections this process has descriptors for, besides what else it opens."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(allowed // 2, allowed - RESERVED)


class Acceptor:
    """Accepts on one listening socket; lives on the running loop until it is closed."""

    def __init__(
        self,
        listening: socket.socket,
        take: Callable[[socket.socket], None],
        has_most: Callable[[bool], bool] = lambda _: False,
    ) -> None:
        """Call *take* with each accepted connection.

        *has_most* tells whether another process that accepts on the same socket has fewer connections; its argument
        says whether that process was given all its YIELDS.
        """
        listening.setblocking(False)
        self._socket = listening
        self._take = take
        self._has_most = has_most
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._logged_at = -inf
        has_most(False)  # the others leave connections to this process from now on
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Take what waits to be accepted, which the kernel would reset, and listen no more."""
        if self._socket.fileno() < 0:
            return
        while self._accept_one():
            pass
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _accept(self, yields: int = YIELDS) -> None:
        for _ in range(AT_ONCE):
            if self._has_most(yields == 0):
                self._resume_in(YIELD_S, yields - 1)
                return
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Take one connection; False if none waits, or if there is no descriptor for it."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            self._pause(error)
            return False
        self._take(connection)
        return True

    def _pause(self, error: OSError) -> None:
        """Accept nothing for a moment: new connections wait in the kernel's queue."""
        if time.monotonic() - self._logged_at > LOG_EVERY_S:
            self._logged_at = time.monotonic()
            log.warning("connections wait to be accepted: %s; raise `ulimit -n`", error.strerror)
        self._resume_in(PAUSE_S, YIELDS)

    def _resume_in(self, pause_s: float, yields: int) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._paused = self._loop.call_later(pause_s, self._resume, yields)

    def _resume(self, yields: int) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)
        self._accept(yields)
