"""The latest lines that each process of a service logged, in memory that all share; standard error has them all.

Each process writes a ring of its own, as long as the service, and the process that replaces it goes on in the same one.
So processes have nothing to pass on, and what a process said before it died is still there.
"""

import logging
import mmap
import re
from collections.abc import Sequence
from struct import Struct

import msgspec
from xxhash import xxh3_64_intdigest

# How many lines of each process are kept, and what of each. Memory that was never written to is not taken.
LINES, LINE_BYTES = 64, 4096
MESSAGE_CHARS, ERROR_CHARS, NAME_CHARS = 600, 200, 64

_COUNT = Struct("<Q")
_HEAD = Struct("<QIQ")  # the line's number, from 1 on; its bytes; their checksum
_RING_BYTES = LINE_BYTES * (LINES + 1)

# What must not be shown though a library may have written it: keys of ours, credentials in URLs, and named secrets.
_SECRETS = (
    (re.compile(r"\bhp_[A-Za-z0-9_-]{8,}"), "hp_[redacted]"),
    (re.compile(r"://[^/\s]*@"), "://[redacted]@"),
    (re.compile(r"(?i)\b(bearer\s+)[^\s,;]+"), r"\1[redacted]"),
    (re.compile(r"(?i)\b((?:account_?key|api[-_]?key|password|passwd|secret|token|sig)\s*[=:]\s*)[^\s,;&]+"),
     r"\1[redacted]"),
)  # fmt: skip


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
    """The rings of all processes; made before they are, as long as the service."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._map = mmap.mmap(-1, processes * _RING_BYTES)
        self.use_slot(processes - 1)

    def use_slot(self, process: int) -> None:
        """Write as process number *process* from now on."""
        self._own = process * _RING_BYTES

    def write(self, line: LogLine) -> None:
        """Add a line to the ring of this process."""
        payload = msgspec.msgpack.encode(line)[: LINE_BYTES - _HEAD.size]
        (count,) = _COUNT.unpack_from(self._map, self._own)
        start = self._own + LINE_BYTES * (1 + count % LINES)
        cell = _HEAD.pack(count + 1, len(payload), xxh3_64_intdigest(payload)) + payload
        self._map[start : start + len(cell)] = cell
        _COUNT.pack_into(self._map, self._own, count + 1)

    def since(self, counts: Sequence[int]) -> tuple[list[LogLine], list[int]]:
        """Return the lines after so many of each process, by time, and how many there are of each now."""
        lines, now = list[LogLine](), list[int]()
        for process, known in enumerate(counts):
            (count,) = _COUNT.unpack_from(self._map, process * _RING_BYTES)
            now.append(count)
            for number in range(max(known, count - LINES), count):
                line = self._read(process, number)
                if line is not None:
                    lines.append(line)
        return sorted(lines, key=lambda line: line.at), now

    def _read(self, process: int, number: int) -> LogLine | None:
        """Return a line; None for one that is being written over."""
        start = process * _RING_BYTES + LINE_BYTES * (1 + number % LINES)
        cell = self._map[start : start + LINE_BYTES]
        written, length, checksum = _HEAD.unpack_from(cell)
        payload = cell[_HEAD.size : _HEAD.size + length]
        if written != number + 1 or xxh3_64_intdigest(payload) != checksum:
            return None
        return msgspec.msgpack.decode(payload, type=LogLine)


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
