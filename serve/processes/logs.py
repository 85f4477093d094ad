"""Where the processes of a service log to: standard error, without waiting, and memory that all of them share.

A pipe that is full would otherwise stop whatever logs: a worker with all of its requests, and the parent, which then
replaces none. So lines wait in memory, up to a bound; beyond it they are dropped and counted.

The latest lines are also in shared memory. Each process writes cells of its own, and the process that replaces it goes
on in the same ones. So processes have nothing to pass on, and what a process said before it died is still there.
"""

import io
import logging
import os
import re
import select
import socket
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import RLock

import msgspec

from hotplate.serve.cells import SharedCells

log = logging.getLogger(__name__)

# How many bytes wait in each process until they can be written.
MOST_WAITING_BYTES = 256 << 10
# How many lines of each process are kept, and what of each.
LINES = 64
LINE_BYTES = 4096
MESSAGE_CHARS = 600
ERROR_CHARS = 200
NAME_CHARS = 64

# What must not be shown though a library may have written it: keys of ours, credentials in URLs, and named secrets.
_SECRETS = (
    (re.compile(r"\bhp_[A-Za-z0-9_-]{8,}"), "hp_[redacted]"),
    (re.compile(r"://[^/\s]*@"), "://[redacted]@"),
    (re.compile(r"(?i)\b(bearer\s+)[^\s,;]+"), r"\1[redacted]"),
    (re.compile(r"(?i)\b((?:account_?key|api[-_]?key|password|passwd|secret|token|sig)\s*[=:]\s*)[^\s,;&]+"),
     r"\1[redacted]"),
)  # fmt: skip


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
            return partial(_write_if_ready, descriptor), lambda: None
    return partial(os.write, descriptor), lambda: None  # the descriptor belongs to others, and stays open


def _write_if_ready(descriptor: int, data: bytes) -> int:
    """Write as much as a descriptor takes that says it is ready."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    return os.write(descriptor, data[: select.PIPE_BUF]) if waiting.poll(0) else 0


class LogLine(msgspec.Struct, frozen=True):
    """One line."""

    at: float
    """As Unix time."""
    level: str
    process: int
    logger: str
    message: str
    error: str = ""
    """Of an exception its last line."""


def without_secrets(text: str) -> str:
    """Return *text* without what looks like a secret."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class SharedLog:
    """The latest lines of all processes; made before they are, as long as the service."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._cells = SharedCells(processes * LINES, LINE_BYTES)
        self.use_slot(processes - 1)

    def use_slot(self, process: int) -> None:
        """Write as process number *process* from now on, after what was written by one before it."""
        self._first = process * LINES
        written = [(line.at, n) for n in range(LINES) if (line := self._read(self._first + n)) is not None]
        self._next = max(written)[1] + 1 if written else 0

    def write(self, line: LogLine) -> None:
        """Add a line, in the place of the oldest of this process."""
        self._cells.write(self._first + self._next % LINES, msgspec.msgpack.encode(line))
        self._next += 1

    def lines(self, after: float = 0.0) -> list[LogLine]:
        """Return the lines after a Unix time, by time."""
        read = (self._read(cell) for cell in range(self._processes * LINES))
        return sorted((line for line in read if line is not None and line.at > after), key=lambda line: line.at)

    def _read(self, cell: int) -> LogLine | None:
        payload = self._cells.read(cell)
        return None if payload is None else msgspec.msgpack.decode(payload, type=LogLine)


class SharedLogHandler(logging.Handler):
    """Writes what is logged into the ring of its process, without what looks like a secret."""

    def __init__(self, shared: SharedLog) -> None:
        super().__init__(logging.INFO)
        self._shared = shared

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            error = record.exc_info[1] if record.exc_info else None
            line = LogLine(
                record.created,
                record.levelname.lower(),
                record.process or 0,
                record.name[:NAME_CHARS],
                _shown(record.getMessage(), MESSAGE_CHARS),
                "" if error is None else _shown(f"{type(error).__name__}: {error}", ERROR_CHARS),
            )
            self._shared.write(line)
        except Exception:  # noqa: BLE001 -- as every handler: what cannot be logged must not end what was to be done
            self.handleError(record)


def _shown(text: str, chars: int) -> str:
    """Return what is kept of a text: before it is cut it is free of secrets, and surrogates cannot be encoded."""
    cut = without_secrets(text[: 8 * chars])[:chars]
    return cut.encode("utf-8", "replace").decode()
