"""Accepting connections by ourselves, so that nobody is reset where a process cannot open another file.

An event loop's own server closes what it cannot accept. Here it stays in the kernel's queue for a moment, one
connection at a time is answered with a descriptor that is kept for that, and all is well once others have closed.
"""

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

# How many connections are taken before requests get their turn.
AT_ONCE = 64
# How long nothing is accepted once descriptors have run out.
PAUSE_S = 0.1
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Descriptors that a worker needs beside its connections: its stores', its log's, its loop's.
RESERVED = 64

# Takes an accepted connection and the address of its other end; the reason why it is to be refused, or "" for none.
Take = Callable[[socket.socket, str, str], None]


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, open as many files as they are allowed to."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def room_for_connections() -> int:
    """Return how many connections this process has descriptors for, beside what else it opens."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(allowed // 2, allowed - RESERVED)


class Listener:
    """Accepts on one listening socket; lives on the running loop until it is closed."""

    def __init__(self, listening: socket.socket, take: Take) -> None:
        listening.setblocking(False)
        self._socket = listening
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._spare = _open_spare()
        self._logged = False
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

    def _accept_one(self, refusal: str = "") -> bool:
        """Take one connection; False where there is none, or no descriptor for it."""
        try:
            connection, address = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            if not refusal:
                self._exhausted(error)
            return False
        self._take(connection, address[0], refusal)
        return True

    def _exhausted(self, error: OSError) -> None:
        """Answer one connection with the descriptor that is kept for this, and accept no others for a moment."""
        if not self._logged:
            self._logged = True
            log.warning("connections cannot be accepted: %s; they wait, and health is still answered", error.strerror)
        self._close_spare()
        self._accept_one("descriptors")
        self._pause()

    def _pause(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._paused = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        """Accept again, once there is a descriptor to keep; one that is answered meanwhile has it."""
        self._paused = None
        if self._spare is None:
            self._spare = _open_spare()
        if self._spare is None:
            self._pause()
            return
        if self._logged and self._accept_one():
            self._logged = False
            log.info("connections are accepted again")
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _close_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
