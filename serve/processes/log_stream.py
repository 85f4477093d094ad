"""Standard error, as a service writes its log to it: it never waits for those who read it.

A pipe that is full would otherwise stop whatever logs: a worker with all of its requests, and the parent, which then
replaces none. Lines wait in memory, up to a bound; beyond it they are dropped and counted.
"""

import io
import logging
import os
import select
import socket
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import RLock

log = logging.getLogger(__name__)

# How many bytes wait in each process until they can be written.
MOST_WAITING_BYTES = 256 << 10


class LogStream(io.TextIOBase):
    """Writes lines to a descriptor without waiting; made before the first fork, as long as its process."""

    def __init__(self, descriptor: int) -> None:
        self._write, self._close = _writer(descriptor)
        self._waiting = deque[bytes]()
        self._waiting_bytes = 0
        self._lock = RLock()
        self._dropped = 0
        self._unreported = 0

    def take_over(self, logger: logging.Logger, instead: io.TextIOBase | object) -> None:
        """Have those handlers of a logger that write to the stream *instead* write here."""
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is instead:
                handler.setStream(self)

    def write(self, text: str) -> int:
        """Write a line, or have it wait, or drop it."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._waiting_bytes + len(data) <= MOST_WAITING_BYTES:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
            else:
                self._dropped += 1
            self._write_waiting()
        return len(text)

    def flush(self) -> None:
        """Write what can be written of the lines that wait."""
        with self._lock:
            self._write_waiting()

    def close(self) -> None:
        """Write what can be written, and let go of the descriptor."""
        if not self.closed:
            super().close()  # which flushes
            self._close()

    def forget(self) -> None:
        """Forget in a child what its parent has not written yet."""
        self._waiting.clear()
        self._waiting_bytes = 0
        self._dropped = self._unreported = 0

    def report_dropped(self) -> int:
        """Return how many lines were dropped since the last call, and log it once lines can be written again."""
        with self._lock:
            self._write_waiting()
            dropped, self._dropped = self._dropped, 0
            self._unreported += dropped
            is_over = self._unreported > 0 and not self._waiting
        if is_over:
            lines, self._unreported = self._unreported, 0
            log.warning("%d lines of the log were dropped, because they were written faster than they were read", lines)
        return dropped

    def _write_waiting(self) -> None:
        """Write line by line, so a line that fits into PIPE_BUF bytes is written as a whole or not at all."""
        with suppress(OSError):  # it would wait, or has no reader any more
            while self._waiting and (written := self._write(self._waiting[0])):
                line = self._waiting.popleft()
                self._waiting_bytes -= written
                if written < len(line):
                    self._waiting.appendleft(line[written:])


def _writer(descriptor: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """Return what writes to a descriptor without waiting, and what lets go of it.

    That is not made so by a flag of its own, which it shares with other programs, as the shell that started this one.
    """
    with suppress(OSError):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            connected = socket.socket(fileno=os.dup(descriptor))
            return lambda data: connected.send(data, socket.MSG_DONTWAIT), connected.close
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            with suppress(OSError):  # another user may have made it
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                own = os.open(f"/proc/self/fd/{descriptor}", flags)
                return partial(os.write, own), partial(os.close, own)
            return partial(_write_if_ready, descriptor), _nothing
    return partial(os.write, descriptor), _nothing


def _nothing() -> None:
    """Keep a descriptor that belongs to others."""


def _write_if_ready(descriptor: int, data: bytes) -> int:
    """Write as much as a descriptor takes that says it is ready."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    return os.write(descriptor, data[: select.PIPE_BUF]) if waiting.poll(0) else 0
