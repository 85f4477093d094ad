"""The event log: a folder of append-only segments, immutable once closed.

    TIME-HOST-RANDOM.events.zst     closed
    .TIME-HOST-RANDOM.events.zst    open, or left by a killed writer

The suffix names the format: `.events.zst` is the first, another one would be `.events2.zst`.
A segment has one zstd frame per commit, so a kill tears at most the last. A line is 16 hex digits (xxh3_64 of the
event's JSON), a space, the JSON. A writer holds an flock on its segment; whichever process acquires it closes the
segment.
"""

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import NamedTuple, TypeVar

import msgspec
import zstandard
from xxhash import xxh3_64_hexdigest, xxh32_hexdigest

from hotplate.stores.errors import WrittenByNewer
from hotplate.stores.folders import flush, is_at

SUFFIX = ".events.zst"
MAX_SEGMENT_BYTES = 8 << 20
MAX_SEGMENT_AGE_S = 300.0
ORPHAN_S = 6 * MAX_SEGMENT_AGE_S  # since the last write; other machines may not share locks
LEVEL = 1  # 3 saves 4 % for twice the time
CHECKSUM_CHARS = 16

_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}-[0-9a-f]{8}" + re.escape(SUFFIX))
_NEWER = re.compile(r".+\.events\d+\.zst")
_TIME = "%Y%m%dT%H%M%SZ"
_FRAME_BEGINS = zstandard.FRAME_HEADER
_CHUNK_BYTES = 16 << 10  # per call of the decoder, which copies unused input

Event = TypeVar("Event")

_sync = getattr(os, "fdatasync", os.fsync)


def line_of(event: bytes) -> bytes:
    """Return the line of an event's JSON, which has no line breaks; 0.3 µs."""
    return b"%b %b\n" % (xxh3_64_hexdigest(event).encode(), event)


def decode_event(decoder: msgspec.json.Decoder[Event], event: bytes) -> Event:
    """Return an event from its JSON; raises WrittenByNewer for values that this version does not know."""
    try:
        return decoder.decode(event)
    except msgspec.DecodeError as error:
        raise WrittenByNewer(f"an event was written by a newer hotplate ({error}); upgrade hotplate") from error


class LogSegment:
    """An open segment in *folder*; used by one thread. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        """Create and lock a segment."""
        self._started_s = time.monotonic()
        self.bytes = 0  # durable
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        while True:
            name = f"{time.strftime(_TIME, time.gmtime())}-{_host()}-{secrets.token_hex(4)}{SUFFIX}"
            self._path = folder / f".{name}"
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
            try:
                # Another process may have taken it for a dead writer's, and removed it, before the flock.
                if _locked(self._descriptor) and is_at(self._descriptor, self._path):
                    flush(folder)
                    return
            except OSError:
                self.close()
                raise
            os.close(self._descriptor)

    @property
    def left_s(self) -> float:
        """Seconds until the segment is to be closed."""
        is_full = self.bytes >= MAX_SEGMENT_BYTES
        return 0.0 if is_full else max(0.0, self._started_s + MAX_SEGMENT_AGE_S - time.monotonic())

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines durably as one zstd frame; raises OSError, after which the caller closes the segment.

        One is another process that took the writer for dead, and has closed the segment.
        """
        frame = self._compressor.compress(b"".join(lines))
        unwritten = memoryview(frame)
        while unwritten:
            unwritten = unwritten[os.write(self._descriptor, unwritten) :]
        _sync(self._descriptor)

        if not is_at(self._descriptor, self._path):
            raise OSError(errno.ESTALE, "another process has closed the segment", str(self._path))
        self.bytes += len(frame)

    def close(self) -> None:
        """Truncate partial frames and publish the segment; raises OSError."""
        try:
            _close(self._descriptor, self._path, self.bytes)
        finally:
            os.close(self._descriptor)


class SegmentReader:
    """Iterates once over the events (JSON) of a segment, skipping damage.

    Then `damaged` counts unreadable lines, gaps between whole frames, and a torn end; `whole_bytes` is all but that.
    """

    def __init__(self, data: bytes) -> None:
        self.damaged = 0
        self.whole_bytes = 0
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
        """Yield the contents of whole zstd frames; after a damaged one, continue at the next that can be read.

        `damaged` counts each gap between whole frames, and a torn end, once.
        """
        start = 0
        is_gap_open = False
        while start >= 0:
            frame = _frame_at(start, self._data)
            if frame is None:
                is_gap_open = True
                start = self._data.find(_FRAME_BEGINS, start + 1)  # -1 without another frame
                continue
            if is_gap_open:
                self.damaged += 1
                is_gap_open = False
            self.whole_bytes = frame.end
            yield frame.content
            if frame.end == len(self._data):
                return
            start = frame.end
        self.damaged += 1


def segments(folder: Path) -> list[Path]:
    """Return the closed segments in *folder*, oldest first; raises OSError and WrittenByNewer."""
    return [folder / name for name in segment_names(path.name for path in folder.iterdir())]


def segment_names(names: Iterable[str]) -> list[str]:
    """Return those of a folder's file *names* that are closed segments, oldest first.

    Raises WrittenByNewer if there is a segment of a newer format.
    """
    ordered = sorted(names)
    for name in ordered:
        if is_newer_segment(name):
            raise WrittenByNewer(f"the events {name} were written by a newer hotplate; upgrade hotplate")
    return [name for name in ordered if is_segment(name)]


def is_newer_segment(name: str) -> bool:
    """Return whether a segment of a newer format has this name."""
    return _NEWER.fullmatch(name) is not None


def is_segment(name: str) -> bool:
    """Return whether a closed segment has this name."""
    return _NAME.fullmatch(name) is not None


def is_open_segment(name: str) -> bool:
    """Return whether an open segment has this name."""
    return name.startswith(".") and is_segment(name[1:])


def is_local(name: str) -> bool:
    """Return whether a writer on this machine wrote the segment of this name."""
    return f"-{_host()}-" in name


def recover(folder: Path) -> list[Path]:
    """Close the segments, files of events, in *folder* with dead writers, and return them; raises OSError.

    The lock shows whether a writer on this machine lives; those of others are given ORPHAN_S since their last write.
    """
    closed = list[Path]()
    for path in sorted(path for path in folder.iterdir() if is_open_segment(path.name)):
        try:
            if not is_local(path.name) and time.time() - path.stat().st_mtime < ORPHAN_S:
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # closed meanwhile

        try:
            if _locked(descriptor) and is_at(descriptor, path):
                reader = SegmentReader(path.read_bytes())
                for _ in reader:  # which finds `whole_bytes`
                    pass
                closed_path = _close(descriptor, path, reader.whole_bytes)
                if closed_path is not None:
                    closed.append(closed_path)
        finally:
            os.close(descriptor)
    return closed


def _host() -> str:
    """Return a hash of this machine's name, as in names of segments."""
    return xxh32_hexdigest(gethostname().encode())


def _close(descriptor: int, path: Path, whole_bytes: int) -> Path | None:
    """Cut a locked segment after its whole frames, and give it the name of a closed one; an empty one is removed.

    Returns the closed segment; None if it was empty, or another process has closed it.
    """
    if not is_at(descriptor, path):
        return None  # closed by another process
    if whole_bytes == 0:
        path.unlink()
        return None
    if os.fstat(descriptor).st_size != whole_bytes:
        os.ftruncate(descriptor, whole_bytes)
        os.fsync(descriptor)
    closed = path.rename(path.with_name(path.name[1:]))
    flush(path.parent)
    return closed


class _Frame(NamedTuple):
    """The content of a zstd frame, and the position after its end."""

    content: bytes
    end: int


def _frame_at(start: int, data: bytes) -> _Frame | None:
    """Decompress the zstd frame that begins at *start* in *data*; None if it is damaged or torn.

    It is decompressed in chunks, as its size is not known before.
    """
    decoder = zstandard.ZstdDecompressor().decompressobj()
    pieces = list[bytes]()
    view = memoryview(data)
    for position in range(start, len(data), _CHUNK_BYTES):
        try:
            pieces.append(decoder.decompress(view[position : position + _CHUNK_BYTES]))
        except zstandard.ZstdError:
            break
        if decoder.eof:
            end = min(position + _CHUNK_BYTES, len(data)) - len(decoder.unused_data)
            return _Frame(b"".join(pieces), end)
    return None


def _locked(descriptor: int) -> bool:
    """Take the flock of a segment; return whether no other process holds it."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
