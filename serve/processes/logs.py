"""Logging of the processes of a service: to standard error without blocking, and to the console.

A full pipe must not block the parent, which replaces workers: lines are dropped and counted.
"""

import io
import logging
import os
import re
import select
import socket
import stat
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from functools import partial
from threading import RLock

import msgspec

from hotplate.serve.log_lines import printable

log = logging.getLogger(__name__)

# Of the log's pipe.
PIPE_BYTES = 1 << 20
# Bounds of the lines that the console keeps.
LINES = 300
LINE_BYTES = 8192
MESSAGE_CHARS = 600
ERROR_CHARS = 200
NAME_CHARS = 64

# Our keys, credentials in URLs and named secrets.
_SECRETS = (
    (re.compile(r"\bhp_[A-Za-z0-9_-]{8,}"), "hp_[redacted]"),
    (re.compile(r"://[^/\s]*@"), "://[redacted]@"),
    (re.compile(r"(?i)\b(bearer\s+)[^\s,;]+"), r"\1[redacted]"),
    (re.compile(r"(?i)\b((?:account_?key|api[-_]?key|password|passwd|secret|token|sig)\s*[=:]\s*)[^\s,;&]+"),
     r"\1[redacted]"),
)  # fmt: skip


class LogStream(io.TextIOBase):
    """Writes lines to a file descriptor without blocking; created before the first fork.

    A line that does not fit into the pipe is dropped and counted. If only part of a line fits, its rest is written
    before any other line.
    """

    def __init__(self, descriptor: int) -> None:
        with suppress(OSError):  # not a pipe, or above the limit of this user
            fcntl(descriptor, F_SETPIPE_SZ, PIPE_BYTES)
        self._write = _writer(descriptor)
        self._rest = b""
        self._lock = RLock()
        self._dropped = 0

    def replace_stderr(self) -> None:
        """Redirect the root logger's handlers of standard error to this stream."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(self)

    def write(self, text: str) -> int:
        """Write or drop a line."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            self.flush()
            rest = data if self._rest else self._left_of(data)
            if rest == data:
                self._dropped += 1
            else:
                self._rest = rest
        return len(text)

    def flush(self) -> None:
        """Write the rest of a line, if possible."""
        with self._lock:
            self._rest = self._left_of(self._rest)

    def forget(self) -> None:
        """Leave the rest of a line to the parent, in a child."""
        self._rest = b""
        self._dropped = 0

    def take_dropped(self) -> int:
        """Return the number of lines dropped since the last call."""
        with self._lock:
            self.flush()
            dropped = self._dropped
            self._dropped = 0
        return dropped

    def _left_of(self, data: bytes) -> bytes:
        # One write per line: a pipe takes up to PIPE_BUF bytes as a whole or not at all.
        with suppress(OSError):  # it would block, or has no reader
            return data[self._write(data) :] if data else data
        return data


def _writer(descriptor: int) -> Callable[[bytes], int]:
    """Return a function that writes bytes to *descriptor* without blocking.

    Like `os.write`, the function returns how many bytes it has written. The descriptor itself stays blocking:
    O_NONBLOCK would also affect programs that share it, such as the shell.
    """
    with suppress(OSError):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            return partial(_send, descriptor)
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):  # a pipe or a terminal
            # Reopened, it has flags that other programs do not share. It may belong to another user, and then cannot
            # be opened.
            with suppress(OSError):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                return partial(os.write, os.open(f"/proc/self/fd/{descriptor}", flags))
            return partial(_write_if_ready, descriptor)

    return partial(os.write, descriptor)  # a file


def _send(descriptor: int, data: bytes) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as connected:
        return connected.send(data, socket.MSG_DONTWAIT)


def _write_if_ready(descriptor: int, data: bytes) -> int:
    """Write as much of *data* as a pipe takes at once without blocking; return the number of bytes, 0 if it is full."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    return os.write(descriptor, data[: select.PIPE_BUF]) if waiting.poll(0) else 0


class LogLine(msgspec.Struct, frozen=True):
    """A line of the console."""

    at: float
    """As Unix time."""
    level: str
    process: int
    logger: str
    message: str
    error: str = ""


def without_secrets(text: str) -> str:
    """Replace text that looks like a secret."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class SharedLog(logging.Handler):
    """The latest lines of all processes, without secrets; created before the first fork."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.reading, self._writing = (end.detach() for end in ends)
        os.set_blocking(self.reading, False)
        os.set_blocking(self._writing, False)
        self._lines = deque[LogLine](maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record to the admin process, whose console shows it; drop it if the socket is full.

        Messages and errors are shortened, and text in them that looks like a secret is replaced.
        """
        try:
            error = record.exc_info[1] if record.exc_info else None
            line = LogLine(
                at=record.created,
                level=record.levelname.lower(),
                process=record.process or 0,
                logger=record.name[:NAME_CHARS],
                message=_shown(record.getMessage(), MESSAGE_CHARS),
                error="" if error is None else _shown(f"{type(error).__name__}: {error}", ERROR_CHARS),
            )
            with suppress(BlockingIOError):
                os.write(self._writing, msgspec.msgpack.encode(line))
        except Exception:  # noqa: BLE001 -- handlers must not raise
            self.handleError(record)

    def read(self) -> None:
        """Receive the lines sent since the last call."""
        with suppress(BlockingIOError):
            while True:
                payload = os.read(self.reading, LINE_BYTES)
                self._lines.append(msgspec.msgpack.decode(payload, type=LogLine))

    def lines(self, after: float = 0.0) -> list[LogLine]:
        """Return the lines after a Unix time, in order."""
        return sorted((line for line in self._lines if line.at > after), key=lambda line: line.at)


def _shown(text: str, chars: int) -> str:
    """Redact and shorten a text, without surrogates."""
    return printable(without_secrets(text[: 8 * chars])[:chars])
