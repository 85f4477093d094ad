"""Accepting connections by ourselves, so no client is reset if a process cannot open another file.

An event loop's own server resets what it cannot accept. Here it waits in the kernel's queue until there is room again.
"""

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Callable
from math import inf
from time import monotonic

log = logging.getLogger(__name__)

# How many connections are taken before requests get their turn.
AT_ONCE = 64
# How long nothing is accepted once descriptors have run out.
PAUSE_S = 0.1
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Descriptors that a worker needs besides its connections: its stores', its log's, its loop's.
RESERVED = 128
# A lack that comes and goes is logged no more often.
LOG_EVERY_S = 60.0


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

    def __init__(self, listening: socket.socket, take: Callable[[socket.socket, str], None]) -> None:
        """Take what serves an accepted connection from the address of its other end."""
        listening.setblocking(False)
        self._socket = listening
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._logged_at = -inf
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

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Take one connection; False if none waits, or if there is no descriptor for it."""
        try:
            connection, address = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            self._pause(error)
            return False
        self._take(connection, address[0].partition("%")[0])
        return True

    def _pause(self, error: OSError) -> None:
        """Accept nothing for a moment: new connections wait in the kernel's queue."""
        if monotonic() - self._logged_at > LOG_EVERY_S:
            self._logged_at = monotonic()
            log.warning("connections wait to be accepted: %s; raise `ulimit -n`", error.strerror)
        self._loop.remove_reader(self._socket.fileno())
        self._paused = self._loop.call_later(PAUSE_S, self._loop.add_reader, self._socket.fileno(), self._accept)
