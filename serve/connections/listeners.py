"""Listening sockets: reserved before workers are forked, and balanced between them.

When descriptors run out, clients wait in the kernel's queue; an event loop's server would reset them.
"""

import asyncio
import errno
import logging
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from hotplate.serve.log_once import LOG_EVERY_S, LogOnce
from hotplate.serve.settings import Limits
from hotplate.serve.shared_memory import shared_integers

log = logging.getLogger(__name__)

# How long workers of a killed parent may still hold a port.
PORT_WAIT_S = 1.5
PORT_POLL_S = 0.02
# Unsent data in the kernel, where a client that does not read could hold 4 MB; this process counts and times the rest.
UNSENT_BYTES = 65_536
# Accepted before other work.
AT_ONCE = 64
# How often and how long a worker leaves connections to workers with fewer.
YIELDS = 250
YIELD_S = 0.001
# When descriptors have run out.
PAUSE_S = 0.1
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Descriptors that are not for connections.
RESERVED = 128
# Per worker: one large body and its answer.
LEAST_IN_FLIGHT = 16 << 20
# Allowed difference of connections, in addition to an eighth.
SPREAD = 4
_NOT_ACCEPTING = (1 << 32) - 1


class CannotListen(OSError):
    """The address cannot be listened on."""


def reserve(host: str, port: int, options: str = "") -> socket.socket:
    """Bind a socket that does not listen yet; *options* prefixes options in error texts.

    Raises CannotListen, for a port in use after PORT_WAIT_S.
    """
    deadline = time.monotonic() + PORT_WAIT_S
    while True:
        try:
            return _bind(host, port)
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE or time.monotonic() > deadline:
                raise CannotListen(_why_not(error, host, port, options)) from error
        time.sleep(PORT_POLL_S)


def _why_not(error: OSError | UnicodeError, host: str, port: int, options: str) -> str:
    is_unknown = isinstance(error, socket.gaierror | UnicodeError)
    reason = "the host cannot be resolved" if is_unknown else getattr(error, "strerror", "")
    variable = f"HOTPLATE_{options}PORT".upper().replace("-", "_")
    return (
        f"{host} port {port} cannot be listened on: {reason}; choose another with --{options}port or {variable}, or "
        f"give --{options}host an address of this machine"
    )


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # inherited by connections
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def room_for_connections() -> int:
    """Return the number of descriptors left for connections."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(allowed // 2, allowed - RESERVED)


def within_memory(limits: Limits, workers: int, room_bytes: float) -> Limits:
    """Return limits that let all workers hold a quarter of *room_bytes*."""
    share = max(room_bytes / 4 / workers, LEAST_IN_FLIGHT)
    return replace(limits, bytes_in_flight=int(min(limits.bytes_in_flight, share)))


class ConnectionBalance:
    """The connections of each worker on the shared socket, in shared memory."""

    def __init__(self, workers: int) -> None:
        """Created before the workers, none of which accepts yet."""
        self._counts = shared_integers(workers)
        for worker in range(workers):
            self.leave(worker)

    def has_most(self, worker: int, count: int, *, waited: bool) -> bool:
        """Set a worker's connections; return whether to leave the next one to others.

        If it has *waited*, the others are ignored until they accept again.
        """
        self._counts[worker] = count
        fewer = [number for number, other in enumerate(self._counts) if count > other + SPREAD + other // 8]
        if waited:
            for number in fewer:
                self.leave(number)
        return bool(fewer) and not waited

    def update(self, worker: int, count: int) -> None:
        """Set a worker's connections, if it accepts."""
        if self._counts[worker] != _NOT_ACCEPTING:
            self._counts[worker] = count

    def leave(self, worker: int) -> None:
        """Exclude a worker until it calls `has_most` again."""
        self._counts[worker] = _NOT_ACCEPTING


class Acceptor:
    """Accepts on one listening socket, on the running loop."""

    def __init__(
        self,
        listening: socket.socket,
        take: Callable[[socket.socket], None],
        has_most: Callable[[bool], bool] = lambda _: False,
    ) -> None:
        """Call *take* with each accepted connection.

        *has_most* returns whether another process on the socket has fewer connections; its argument is True after all
        YIELDS.
        """
        listening.setblocking(False)
        self._socket = listening
        self._take = take
        self._has_most = has_most
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._exhausted = LogOnce(again_s=LOG_EVERY_S)
        has_most(False)  # registers this process
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept pending connections, which the kernel would reset, and stop listening."""
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
        """Return False if no connection is pending, or no descriptor is free."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            if self._exhausted.met():
                log.warning("connections wait to be accepted: %s; raise `ulimit -n`", error.strerror)
            self._resume_in(PAUSE_S, YIELDS)
            return False
        self._take(connection)
        return True

    def _resume_in(self, pause_s: float, yields: int) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._paused = self._loop.call_later(pause_s, self._resume, yields)

    def _resume(self, yields: int) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)
        self._accept(yields)
