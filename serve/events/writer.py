"""The writer of events: a thread that writes and flushes all waiting events at once (group commit).

A caller that reports events waits until they are on the disk. While one commit is written and flushed, new events wait
for the next. The more of them wait, the more share one flush. So a slow disk delays each answer, but does not limit how
many events are taken a second.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from hotplate.serve.metrics import ReleaseRole
from hotplate.stores.event_log import MAX_SEGMENT_AGE_S, LogSegment, recover

log = logging.getLogger(__name__)

# How many bytes of lines wait or are written at most, in each worker: half a minute of a core full of events is more
# than a disk that works ever lags behind.
MAX_QUEUED_BYTES = 16 << 20
# How long a stopping worker waits for its last commit.
CLOSE_S = 3.0


class WrittenEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event as its line in a segment has it."""

    id: str
    time: float
    type: str
    user: str
    items: tuple[str, ...]
    role: ReleaseRole
    """The role of its release in the service that took it: live, canary or other."""

    release: str = ""
    request_id: str = ""
    position: int | None = None


class QueueFull(Exception):
    """More events wait to be durable than there is room for."""


class DiskFailed(Exception):
    """The events are not durable, for the reason that the log says; nearly always the disk has not taken them."""


class _Commit:
    """Lines that somebody waits for to be durable."""

    __slots__ = ("durable", "lines", "size")

    def __init__(self, lines: bytes, durable: asyncio.Future[None]) -> None:
        self.lines = lines
        self.size = len(lines)
        self.durable = durable


class EventWriter:
    """Appends events to segments in one folder; lives as long as its worker, on whose loop it is used."""

    def __init__(self, folder: Path) -> None:
        """Start the thread, on a running loop; segments whose writers were killed are closed first."""
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._queued_bytes = 0
        self._queue = SimpleQueue[_Commit | None]()
        self._segment: LogSegment | None = None
        self.warning: str | None = None
        """Why events are refused, from the first that could not be written until one can be."""

        # A daemon: a disk that never answers must not keep the process from its end.
        self._thread = threading.Thread(target=self._run, name="event writer", daemon=True)
        self._thread.start()

    def append(self, lines: bytes) -> asyncio.Future[None]:
        """Write lines; what is returned is done once they are durable, with DiskFailed if they may not be.

        Raises QueueFull where too many wait already.
        """
        commit = _Commit(lines, self._loop.create_future())
        if self._queued_bytes and self._queued_bytes + commit.size > MAX_QUEUED_BYTES:
            raise QueueFull
        self._queued_bytes += commit.size
        self._queue.put(commit)
        return commit.durable

    async def close(self) -> None:
        """Write what waits, and close the segment; nothing may be appended any more."""
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
            if self._segment is not None and (self._segment.is_full or not is_open):
                self._close_segment()

    def _next(self) -> tuple[list[_Commit], bool]:
        """Wait for commits, while the segment may stay open; return all that wait, and whether more may come."""
        commits = list[_Commit]()
        left_s = None if self._segment is None else max(0.0, MAX_SEGMENT_AGE_S - self._segment.age_s)
        with suppress(Empty):
            commit = self._queue.get(timeout=left_s)
            while commit is not None:
                commits.append(commit)
                commit = self._queue.get_nowait()
            return commits, False
        return commits, True

    def _write(self, commits: Sequence[_Commit]) -> None:
        try:
            if self._segment is None:
                self._segment = LogSegment(self._folder)
            self._segment.append([commit.lines for commit in commits])
        except Exception as error:  # noqa: BLE001 -- whatever it is, who waits is answered, and the thread goes on
            self._log_failure(error)
            self._settle(commits, DiskFailed())
            self._close_segment()
            return
        if self.warning is not None:
            self.warning = None
            log.info("events are written to %s again", self._folder)
        self._settle(commits, None)

    def _close_segment(self) -> None:
        """Let readers have the segment; if that fails, the next writer that recovers segments does."""
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
        with suppress(RuntimeError):  # the loop is closed where the stop took too long
            self._loop.call_soon_threadsafe(self._report, commits, error)

    def _report(self, commits: Sequence[_Commit], error: DiskFailed | None) -> None:
        for commit in commits:
            self._queued_bytes -= commit.size
            if commit.durable.done():
                continue  # its caller has given up
            if error is None:
                commit.durable.set_result(None)
            else:
                commit.durable.set_exception(error)
