"""Events: written in a thread, and shipped and reported as segments.

Events that arrive during a commit share the next one, so a slow disk does not limit throughput.
"""

import asyncio
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from hotplate.serve.consumed import remove_segments
from hotplate.serve.errors import EventsFailed, ServiceMisused
from hotplate.serve.experiments import ArmEvents
from hotplate.serve.metrics import CLICK, COUNTED_POSITIONS, IMPRESSION, POSITIONS, ReleaseRole
from hotplate.stores.event_log import (
    LogSegment,
    SegmentReader,
    is_open_segment,
    is_segment,
    recover,
    segments,
)
from hotplate.stores.folders import flush
from hotplate.stores.urls import redacted, scheme_of

log = logging.getLogger(__name__)

# Per worker: about half a minute at full load.
MAX_QUEUED_BYTES = 16 << 20
# Time for the last commit of a stopping worker.
CLOSE_S = 3.0
# Segments that are removed together, after they were copied.
SHIPPED_AT_ONCE = 16
# For a 95 % interval.
Z = 1.96
ALL = "all"


class WrittenEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event as written in a segment."""

    id: str
    time: float
    type: str
    user: str
    items: tuple[str, ...]
    role: ReleaseRole
    """Of its release, when the event was received."""
    release: str = ""
    request_id: str = ""
    position: int | None = None
    value: float | None = None
    list: str = ""


class QueueFull(Exception):
    """Too many events are waiting."""


class DiskFailed(Exception):
    """The events could not be written; the log has the reason."""


class _Commit(NamedTuple):
    lines: bytes
    durable: asyncio.Future[None]


class EventWriter:
    """Appends events to segments in a folder; one per worker."""

    def __init__(self, folder: Path) -> None:
        """Start the thread, which first recovers segments of killed writers."""
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._queued_bytes = 0
        self._queue = SimpleQueue[_Commit | None]()
        self._segment: LogSegment | None = None
        self.warning: str | None = None
        """Why events are refused."""

        # A disk that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="event writer", daemon=True)
        self._thread.start()

    def append(self, lines: bytes) -> asyncio.Future[None]:
        """Write lines; the future is done once they are durable, or fails with DiskFailed. Raises QueueFull."""
        if self._queued_bytes and self._queued_bytes + len(lines) > MAX_QUEUED_BYTES:
            raise QueueFull
        commit = _Commit(lines, self._loop.create_future())
        self._queued_bytes += len(lines)
        self._queue.put(commit)
        return commit.durable

    async def close(self) -> None:
        """Write the waiting events and close the segment."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_S)
        if self._thread.is_alive():
            log.error("events could not be written within %.0f s of the stop; they were not acknowledged", CLOSE_S)

    def _run(self) -> None:
        self._recover()
        is_open = True
        while is_open:
            commits, is_open = self._next()
            if commits:
                self._write(commits)
            if self._segment is not None and (not self._segment.left_s or not is_open):
                self._close_segment()

    def _next(self) -> tuple[list[_Commit], bool]:
        """Wait for commits until the segment is too old.

        Returns those that are queued, and whether the writer is still open: None in the queue closes it.
        """
        commits = list[_Commit]()
        left_s = None if self._segment is None else self._segment.left_s
        with suppress(Empty):
            commit = self._queue.get(timeout=left_s)
            while commit is not None:
                commits.append(commit)
                commit = self._queue.get_nowait()
            return commits, False
        return commits, True

    def _write(self, commits: Sequence[_Commit]) -> None:
        """Append the lines of *commits*, the requests that wait, to the open segment, and settle them.

        After an error all get DiskFailed, and the next call begins a new segment. Only the first of a row of errors is
        logged, and the end of it.
        """
        try:
            if self._segment is None:
                self._segment = LogSegment(self._folder)
            self._segment.append([commit.lines for commit in commits])
        except Exception as error:  # noqa: BLE001 -- the thread must go on and answer its callers
            self._log_failure(error)
            self._settle(commits, DiskFailed())
            self._close_segment()
            return
        if self.warning is not None:
            self.warning = None
            log.info("events are written to %s again", self._folder)
        self._settle(commits, None)

    def _close_segment(self) -> None:
        """If this fails, the next writer recovers the segment."""
        segment, self._segment = self._segment, None
        if segment is not None:
            try:
                segment.close()
            except Exception as error:  # noqa: BLE001 -- as in `_write`
                self._log_failure(error)

    def _recover(self) -> None:
        try:
            for path in recover(self._folder):
                log.warning("the writer of %s was killed; its events are kept", path)
        except Exception as error:  # noqa: BLE001 -- as in `_write`
            self._log_failure(error)

    def _log_failure(self, error: Exception) -> None:
        if self.warning is None:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else repr(error)
            self.warning = f"events cannot be written to {self._folder}, and are refused: {reason}"
            log.error("%s", self.warning, exc_info=None if isinstance(error, OSError) else error)

    def _settle(self, commits: Sequence[_Commit], error: DiskFailed | None) -> None:
        with suppress(RuntimeError):  # the stop took too long, and the loop is closed
            self._loop.call_soon_threadsafe(self._report, commits, error)

    def _report(self, commits: Sequence[_Commit], error: DiskFailed | None) -> None:
        for commit in commits:
            self._queued_bytes -= len(commit.lines)
            if commit.durable.done():
                continue  # cancelled
            if error is None:
                commit.durable.set_result(None)
            else:
                commit.durable.set_exception(error)


@dataclass(frozen=True, slots=True)
class Shipped:
    """Result of a shipment."""

    segments: int
    bytes: int
    recovered: int
    """Segments of killed writers."""


class SegmentFolder:
    """A folder of segments at a URL of fsspec. Errors do not quote the URL, which may contain secrets."""

    def __init__(self, url: str) -> None:
        """Open the folder at *url*; raises ServiceMisused."""
        import fsspec  # noqa: PLC0415 -- an extra

        self.shown = redacted(url) if scheme_of(url) else url
        try:
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise ServiceMisused(f"{scheme_of(url)}:// needs a package that is not installed: {error}") from error
        except Exception as error:
            raise ServiceMisused(f"{self.shown} cannot be opened: {type(error).__name__}") from error
        self._root = root.rstrip("/")
        self._local = Path(self._root) if "file" in self._files.protocol else None

    def names(self) -> list[str]:
        """Return the names of all files in order; raises ServiceMisused."""
        with self._errors("its listing"):
            if self._files.isdir(self._root):
                return sorted(path.rpartition("/")[2] for path in self._files.find(self._root, maxdepth=1))
        raise ServiceMisused(f"the folder {self.shown} does not exist; name one with segments of events")

    def holds(self, name: str) -> bool:
        """Return whether a file of this name is here."""
        with self._errors(name):
            return bool(self._files.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        """Return the content of a segment."""
        with self._errors(name):
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def take(self, path: Path) -> int:
        """Copy the file at *path* to this folder, and return its size in bytes.

        The copy has a temporary name until it is complete. A file here of the same name and size counts as copied.
        Raises EventsFailed if the copy cannot be written, or lacks bytes afterwards.
        """
        draft = f"{self._root}/.{path.name}.part"
        full = f"{self._root}/{path.name}"
        size = path.stat().st_size
        with self._errors(path.name):
            if self._files.exists(full) and self._files.size(full) == size:
                return size
            self._files.makedirs(self._root, exist_ok=True)
            self._files.put_file(str(path), draft)
            if self._local is not None:
                flush(Path(draft))
            self._files.mv(draft, full)
            if self._local is not None:
                flush(self._local)
            is_whole = self._files.size(full) == size
        if not is_whole:
            raise EventsFailed(f"{path.name} is not whole in {self.shown}; it is kept here")
        return size

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Raise EventsFailed for any error, at *what*: fsspec's file systems have no common errors."""
        try:
            yield
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise EventsFailed(f"{self.shown} failed at {what}: {reason}; run the command again to go on") from error


def ship(folder: Path, url: str, on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> Shipped:
    """Move the closed segments in *folder* to *url*. Raises ServiceMisused and EventsFailed.

    Events that may still hide items (`serve --hide-consumed`) are kept in the folder, too. A killed shipment is
    resumed: a segment with the same name and size counts as copied.
    """
    if not folder.is_dir():
        raise ServiceMisused(f"there is no folder {folder}; name that of hotplate serve --events")
    place = SegmentFolder(url)
    copied = 0
    try:
        with NamedTemporaryFile(dir=folder, prefix=".ship-") as probe:
            if place.holds(Path(probe.name).name):  # the same folder by another name: segments would be deleted
                raise ServiceMisused(f"{place.shown} is {folder} itself; name another place with --to")
        recovered = len(recover(folder))
        paths = segments(folder)
        for start in range(0, len(paths), SHIPPED_AT_ONCE):
            batch = paths[start : start + SHIPPED_AT_ONCE]
            for number, path in enumerate(batch, start + 1):
                if path.exists():  # not shipped by another run since
                    copied += place.take(path)
                on_progress(number, len(paths))
            remove_segments(batch, folder)
    except OSError as error:
        raise EventsFailed(f"{folder} cannot be read: {error.strerror}; see who may write to it") from error
    return Shipped(len(paths), copied, recovered)


class PositionCounts(NamedTuple):
    """Impressions and clicks of a release in a role, at one position or `all`."""

    release: str
    role: str
    position: str
    impressions: int
    clicks: int

    @property
    def ctr(self) -> float | None:
        """The click-through rate; None without impressions."""
        return self.clicks / self.impressions if self.impressions else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the rate (Wilson, for independent items).

        None without impressions, or with more clicks than those.
        """
        shown = self.impressions
        if not 0 <= self.clicks <= shown or not shown:
            return None
        share = self.clicks / shown
        weight = Z * Z / shown
        half = Z * sqrt(share * (1 - share) / shown + weight / (4 * shown))
        return (share + weight / 2 - half) / (1 + weight), (share + weight / 2 + half) / (1 + weight)


@dataclass(frozen=True, slots=True)
class EventReport:
    """Counts of all closed segments at a URL."""

    segments: int
    open_segments: int
    """Not counted: being written, or left by a killed service."""
    events: int
    """Without duplicates."""
    duplicates: int
    damaged: int
    types: dict[str, int]
    rows: list[PositionCounts]


class _Place(NamedTuple):
    """What impressions and clicks are counted by; see `PositionCounts`."""

    release: str
    role: str
    position: str


@dataclass(slots=True)
class _Counts:
    impressions: int = 0
    clicks: int = 0


def report(
    url: str, on_progress: Callable[[int, int], None] = lambda _done, _total: None, *, arms: ArmEvents | None = None
) -> EventReport:
    """Count the events in the closed segments, log files of events, at *url*: a folder or a URL of fsspec.

    Events with the same id count once. *arms* counts them for the variants of an experiment, too. *on_progress* is
    called with the number of segments that were read, and of all. Takes about 100 bytes of memory per event. Raises
    ServiceMisused and EventsFailed.
    """
    folder = SegmentFolder(url)
    files = folder.names()
    names = [name for name in files if is_segment(name)]
    seen = set[int]()
    """Hashes of the ids of events."""

    types = Counter[str]()
    counts_at = defaultdict[_Place, _Counts](_Counts)
    duplicates = 0
    damaged = 0
    decode = msgspec.json.Decoder(WrittenEvent).decode
    for number, name in enumerate(names):
        reader = SegmentReader(folder.read(name))
        for line in reader:
            event = decode(line)
            identity = xxh3_64_intdigest(event.id.encode())
            if identity in seen:
                duplicates += 1
                continue
            seen.add(identity)
            types[event.type] += 1
            if arms is not None:
                arms.add(event.type, event.user, event.time, event.value)
            if event.type not in (IMPRESSION, CLICK):
                continue
            for place in _places_of_items(event):
                if event.type == CLICK:
                    counts_at[place].clicks += 1
                else:
                    counts_at[place].impressions += 1
        damaged += reader.damaged
        on_progress(number + 1, len(names))

    # A place is a release, its role, and a position in the list or ALL.
    order = (ALL, *POSITIONS)
    places = sorted(counts_at, key=lambda place: (place.release, place.role, order.index(place.position)))
    return EventReport(
        segments=len(names),
        open_segments=sum(map(is_open_segment, files)),
        events=len(seen),
        duplicates=duplicates,
        damaged=damaged,
        types=dict(types),
        rows=[
            PositionCounts(*place, impressions=counts_at[place].impressions, clicks=counts_at[place].clicks)
            for place in places
        ],
    )


def _places_of_items(event: WrittenEvent) -> Iterator[_Place]:
    """Yield the place of each item of an event, and for each also ALL; the first item is at the event's position."""
    unknown = POSITIONS[-1]
    for number in range(len(event.items)):
        position = unknown
        if event.position is not None:
            position = POSITIONS[min(event.position + number, COUNTED_POSITIONS + 1) - 1]
        yield _Place(event.release, event.role, ALL)
        yield _Place(event.release, event.role, position)
