"""Accepting connections by ourselves, so that nobody is reset where a process cannot open another file.

An event loop's own server resets what it cannot accept. Here a descriptor is kept, with which probes are answered and
others refused, one by one, until connections can be accepted again.
"""

import asyncio
import errno
import logging
import os
import resource
import socket
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Protocol

log = logging.getLogger(__name__)

# How many connections are taken before requests get their turn.
AT_ONCE = 64
# How long nothing is accepted once descriptors have run out.
PAUSE_S = 0.1
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Descriptors that a worker needs beside its connections: its stores', its log's, its loop's.
RESERVED = 64

# How many descriptors are kept for probes: several, for what reads the store's files needs one now and then, too.
SPARE = 8
# A lack that comes and goes is logged no more often.
LOG_EVERY_S = 60.0


class Take(Protocol):
    """Who serves what is accepted."""

    def __call__(self, accepted: socket.socket, address: str, *, is_last: bool) -> bool:
        """Take a connection and the address of its other end; *is_last*: it has one of the last descriptors.

        Returns whether another can be taken before the loop turns.
        """


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, open as many files as they are allowed to."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def room_for_connections() -> int:
    """Return how many connections this process has descriptors for, beside what else it opens."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(allowed // 2, allowed - RESERVED)


class Acceptor:
    """Accepts on one listening socket; lives on the running loop until it is closed."""

    def __init__(self, listening: socket.socket, take: Take) -> None:
        listening.setblocking(False)
        self._socket = listening
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._spare = list[int]()
        self._open_spare()
        self._logged_at = -inf
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Take what waits to be accepted, which the kernel would reset, and listen no more."""
        if self._socket.fileno() < 0:
            return
        if self._paused is not None:
            self._paused.cancel()
        while self._accept_one():
            pass
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._close_spare()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if not self._accept_one():
                return

    def _accept_one(self, *, is_last: bool = False) -> bool:
        """Take one connection; False where that was the last for now, for want of one, of room or of a descriptor."""
        try:
            connection, address = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            if not is_last:
                self._exhausted(error)
            return False
        return self._take(connection, address[0], is_last=is_last)

    def _exhausted(self, error: OSError) -> None:
        """Have what waits answered with the descriptor that is kept for this, and accept nothing else for a moment."""
        if monotonic() - self._logged_at > LOG_EVERY_S:
            self._logged_at = monotonic()
            log.warning("connections are refused, but for probes: %s; raise `ulimit -n`", error.strerror)
        self._close_spare()
        for _ in range(AT_ONCE):
            if not self._accept_one(is_last=True):
                break
        self._loop.remove_reader(self._socket.fileno())
        self._resume_later()

    def _resume_later(self) -> None:
        self._paused = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        """Accept again, once there is a descriptor to keep; a probe that is being answered may have it."""
        self._paused = None
        self._open_spare()
        if self._spare:
            self._loop.add_reader(self._socket.fileno(), self._accept)
        else:
            self._resume_later()

    def _open_spare(self) -> None:
        """Keep as many descriptors as are to be kept, or as there are."""
        with suppress(OSError):
            while len(self._spare) < SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _close_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())
