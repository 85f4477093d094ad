"""The event writer: events are appended to segments in a thread.

Events that arrive during a commit share the next one, so a slow disk does not limit throughput.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec

from hotplate.serve.metrics import ReleaseRole
from hotplate.stores.event_log import LogSegment, recover

log = logging.getLogger(__name__)

# Per worker: about half a minute at full load.
MAX_QUEUED_BYTES = 16 << 20
# Time for the last commit of a stopping worker.
CLOSE_S = 3.0


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
        """Append the lines of *commits*, one per waiting request, to the open segment, a log file, and settle them.

        To settle a request is to end its wait. After an error, all get DiskFailed, and the next call begins a new
        segment. Of consecutive errors only the first is logged, and then that events are written again.
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
        """Close the open segment, if any; the next commit opens another one."""
        segment = self._segment
        self._segment = None
        if segment is None:
            return
        try:
            segment.close()
        except Exception as error:  # noqa: BLE001 -- as in `_write`; the next writer recovers the segment
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
            self._loop.call_soon_threadsafe(self._settle_futures, commits, error)

    def _settle_futures(self, commits: Sequence[_Commit], error: DiskFailed | None) -> None:
        for commit in commits:
            self._queued_bytes -= len(commit.lines)
            if commit.durable.done():
                continue  # cancelled
            if error is None:
                commit.durable.set_result(None)
            else:
                commit.durable.set_exception(error)
