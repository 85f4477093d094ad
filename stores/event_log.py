"""The event log: a folder of segments, files of events that a service appends to. A closed segment never changes.

    TIME-HOST-RANDOM.events.zst     a segment that is closed: to be shipped, reported on and learnt from
    .TIME-HOST-RANDOM.events.zst    one that is being written, or whose writer was killed

A segment is a sequence of zstd frames, one for each commit, so a kill leaves at most its last frame torn. A frame
holds lines: 16 hex digits, the xxh3_64 of the event's JSON, a space, the JSON. The writer holds the lock of its segment
(flock). A process that gets the lock of another's knows that its writer is dead, cuts off what is torn, and closes it.

It is here, and not with the service, because what trains a model reads it, too, and neither knows the other.
"""

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname

import zstandard
from xxhash import xxh3_64_hexdigest, xxh32_hexdigest

from hotplate.stores.folders import flush, is_at

SUFFIX = ".events.zst"
# A segment is closed once it has so many bytes, or its first event is so old.
MAX_SEGMENT_BYTES = 8 << 20
MAX_SEGMENT_AGE_S = 300.0
# If a folder is shared by several machines, a lock may hold on one of them only. A segment of another machine is
# taken for that of a dead writer only once every living one would long have closed it.
ORPHAN_S = 6 * MAX_SEGMENT_AGE_S
# Of the levels that keep up with a core full of events; 3 saves 4 % more bytes for twice the time.
LEVEL = 1
CHECKSUM_CHARS = 16

_NAME = re.compile(r"(\d{8}T\d{6}Z)-([0-9a-f]{8})-[0-9a-f]{8}" + re.escape(SUFFIX))
_TIME = "%Y%m%dT%H%M%SZ"
_FRAME_BEGINS = zstandard.FRAME_HEADER
# How many bytes are given to a decoder at once: what it does not need is copied.
_CHUNK_BYTES = 16 << 10

# Linux can leave out the times of a file, which are not needed after a power cut.
_sync = getattr(os, "fdatasync", os.fsync)


def line_of(event: bytes) -> bytes:
    """Return the line of an event, its JSON, which has no line breaks; 0.3 µs."""
    return b"%b %b\n" % (xxh3_64_hexdigest(event).encode(), event)


class LogSegment:
    """A segment as its writer has it: appended to by one thread until it is closed."""

    def __init__(self, folder: Path) -> None:
        """Make an empty one in *folder*, locked; raises OSError."""
        self.started_s = time.monotonic()
        self.bytes = 0
        """How many are durable."""
        self._folder = folder
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        while True:
            host = xxh32_hexdigest(gethostname().encode())
            name = f"{time.strftime(_TIME, time.gmtime())}-{host}-{secrets.token_hex(4)}{SUFFIX}"
            self._path = folder / f".{name}"
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
            try:
                # An empty file without a lock may be taken for a dead writer's, and removed.
                if _locked(self._descriptor) and is_at(self._descriptor, self._path):
                    flush(folder)
                    return
            except OSError:
                self.close()
                raise
            os.close(self._descriptor)

    @property
    def is_full(self) -> bool:
        """Whether it should be closed."""
        return self.bytes >= MAX_SEGMENT_BYTES or self.age_s >= MAX_SEGMENT_AGE_S

    @property
    def age_s(self) -> float:
        """For how long it has been open."""
        return time.monotonic() - self.started_s

    def append(self, lines: Sequence[bytes]) -> None:
        """Make lines durable, all in one frame; raises OSError, after which the segment has to be closed."""
        left = memoryview(self._compressor.compress(b"".join(lines)))
        count = len(left)
        while left:
            left = left[os.write(self._descriptor, left) :]
        _sync(self._descriptor)
        if not is_at(self._descriptor, self._path):
            raise OSError(errno.ESTALE, "somebody else has closed the segment", str(self._path))
        self.bytes += count

    def close(self) -> None:
        """Cut off what is not durable, and let readers have the rest; raises OSError."""
        try:
            _close(self._descriptor, self._path, self.bytes)
        finally:
            os.close(self._descriptor)


class SegmentReader:
    """The events of one segment, as JSON, in the order in which they came; can be read once.

    What is damaged is left out and counted, and what is torn at the end was never acknowledged.
    """

    def __init__(self, data: bytes) -> None:
        self.damaged = 0
        """How many lines, and pieces between whole frames, could not be read."""
        self.whole_bytes = 0
        """Where the last whole frame ends."""
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        for frame in self._frames():
            for line in frame.split(b"\n"):
                event = line[CHECKSUM_CHARS + 1 :]
                if xxh3_64_hexdigest(event).encode() == line[:CHECKSUM_CHARS]:
                    yield event
                elif line:
                    self.damaged += 1

    def _frames(self) -> Iterator[bytes]:
        start, is_damaged = 0, False
        while start >= 0:
            content, end = _frame(self._data, start)
            if content is None:  # torn, or damaged where another frame follows
                is_damaged = True
                start = self._data.find(_FRAME_BEGINS, start + 1)
                continue
            self.damaged += is_damaged
            is_damaged = False
            self.whole_bytes = start = end
            yield content
            if start == len(self._data):
                return


def segments(folder: Path) -> list[Path]:
    """Return the closed segments in *folder*, the oldest first; raises OSError."""
    return sorted(path for path in folder.iterdir() if is_segment(path.name))


def is_segment(name: str) -> bool:
    """Return whether a file of this name is a closed segment."""
    return _NAME.fullmatch(name) is not None


def is_open_segment(name: str) -> bool:
    """Return whether a file of this name is a segment that was not closed yet."""
    return name.startswith(".") and is_segment(name[1:])


def recover(folder: Path) -> list[Path]:
    """Close the segments in *folder* whose writers are dead, and return them; raises OSError.

    What is torn at the end of one is cut off; one without a whole frame is removed.
    """
    host, closed = xxh32_hexdigest(gethostname().encode()), list[Path]()
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name[1:]) if path.name.startswith(".") else None
        if match is None or (match[2] != host and not _is_orphaned(match[1])):
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # its writer has just closed it
        try:
            if _locked(descriptor) and is_at(descriptor, path):
                reader = SegmentReader(path.read_bytes())
                for _ in reader:
                    pass
                closed += _close(descriptor, path, reader.whole_bytes)
        finally:
            os.close(descriptor)
    return closed


def _close(descriptor: int, path: Path, whole_bytes: int) -> list[Path]:
    """Give a segment the name of a closed one, or remove it if it has nothing; return what there is now."""
    if not is_at(descriptor, path):
        return []  # somebody else has closed it
    if whole_bytes == 0:
        path.unlink()
        return []
    if os.fstat(descriptor).st_size != whole_bytes:
        os.ftruncate(descriptor, whole_bytes)
        os.fsync(descriptor)
    closed = path.rename(path.with_name(path.name[1:]))
    flush(path.parent)
    return [closed]


def _frame(data: bytes, start: int) -> tuple[bytes | None, int]:
    """Return what the frame at *start* holds, and where it ends; None if it is not whole."""
    decoder, pieces, view = zstandard.ZstdDecompressor().decompressobj(), list[bytes](), memoryview(data)
    for position in range(start, len(data), _CHUNK_BYTES):
        try:
            pieces.append(decoder.decompress(view[position : position + _CHUNK_BYTES]))
        except zstandard.ZstdError:
            break
        if decoder.eof:
            return b"".join(pieces), min(position + _CHUNK_BYTES, len(data)) - len(decoder.unused_data)
    return None, start


def _is_orphaned(begun: str) -> bool:
    """Return whether a living writer would have closed a segment of this time long ago; never if it is not a time."""
    try:
        return time.time() - datetime.strptime(begun, _TIME).replace(tzinfo=UTC).timestamp() >= ORPHAN_S
    except ValueError:
        return False


def _locked(descriptor: int) -> bool:
    """Take the lock of a file, which ends with the descriptor; return whether it was free."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
