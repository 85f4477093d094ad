"""Reads the events of a folder of segments while writers append to it."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hotplate.serve.consumed.stored_events import KEPT, ConsumedEvent, hiding_events
from hotplate.serve.consumed.table import Consumed
from hotplate.stores.errors import WrittenByNewer
from hotplate.stores.event_log import SegmentReader, is_local, is_open_segment, is_segment

log = logging.getLogger(__name__)

# A change of a folder within this time of an earlier one may not show in its time of modification.
RECENT_NS = 1_000_000_000


@dataclass(slots=True)
class _Segment:
    name: str
    """Once it is closed."""
    position: int = 0
    """Behind the last whole frame that was read."""
    size: int = -1
    """When it was last read."""


class SegmentTail:
    """Reads the events in a folder of segments, then those that the writers of this machine append. Blocks."""

    def __init__(self, folder: Path, consumed: Consumed) -> None:
        self._folder = folder
        self._consumed = consumed
        self._unfinished = dict[str, _Segment]()
        """Segments to be read, or to which a writer still appends, by name."""

        self._finished = set[str]()
        """Names of segments that are not read any more."""

        self._events: Iterator[ConsumedEvent] = iter(())
        """The rest of the segment that is being read."""

        self._settled_at: int | None = None
        """When the listed folder had changed, in ns since 1970; None if a later change may have the same time."""

        self._wants_all = True

    def restart(self) -> None:
        """Read all events again."""
        self._wants_all = True

    def next_events(self, most: int) -> list[ConsumedEvent]:
        """Return up to *most* further events of types that hide items; fewer if all are read. Raises OSError.

        They are read from segments, log files of events, one after the other: `self._events` is the rest of the last.
        """
        self._list_segments()
        events = list(islice(self._events, most))
        while len(events) < most:
            changed = next(filter(self._is_changed, self._unfinished.values()), None)
            if changed is None:
                break
            self._events = self._read_segment(changed)
            events += islice(self._events, most - len(events))
        return events

    def _list_segments(self) -> None:
        """Add new segments, log files of events, to those that are to be read, `self._unfinished`.

        An open segment has a dot before its name, and loses it when its writer closes it; here both have the name
        without the dot. A segment that was removed before it was read to its end was shipped away, and its events
        are in the file KEPT: then all segments are to be read again.
        """
        changed_at = self._folder.stat().st_mtime_ns
        if changed_at == self._settled_at and not self._wants_all:
            return

        is_recent = time.time_ns() - changed_at < RECENT_NS
        files = {path.name for path in self._folder.iterdir()}
        self._settled_at = None if is_recent else changed_at
        names = {name.removeprefix(".") for name in files if is_segment(name) or is_open_segment(name)}
        shipped = self._unfinished.keys() - {KEPT} - names
        if self._wants_all or shipped:  # begin again
            self._wants_all = False
            self._events = iter(())
            self._finished.clear()
            self._unfinished = {name: _Segment(name) for name in sorted(names, reverse=True)}  # the newest first
            if KEPT in files:
                self._unfinished[KEPT] = _Segment(KEPT)
            return

        # Add new ones. A finished segment was read to its end, or needs not be read.
        self._finished &= names
        for name in names - self._finished - self._unfinished.keys():
            if is_local(name):
                self._unfinished[name] = _Segment(name)
            else:
                self._finished.add(name)  # another machine shares its own events

    def _is_changed(self, segment: _Segment) -> bool:
        with suppress(FileNotFoundError):
            return (self._folder / f".{segment.name}").stat().st_size != segment.size
        return True  # closed

    def _read_segment(self, segment: _Segment) -> Iterator[ConsumedEvent]:
        """Yield the events that were appended to a segment, a log file of events, since the last call.

        An open segment, which a writer may append to, has a dot before its name; one of this machine stays unfinished,
        to be read again. Another process may close it meanwhile, or ship it away (copy it to another place and remove
        it). An unreadable one is logged and skipped.
        """
        path = self._folder / f".{segment.name}"
        is_open = path.exists()
        if not is_open:
            path = self._folder / segment.name

        try:
            data = self._new_bytes(segment, path)
        except FileNotFoundError:
            if is_open:  # closed meanwhile: the next call reads it by its other name
                return
            # Shipped: its events are in KEPT.
            self._unfinished.pop(segment.name, None)
            self._wants_all = True
            return
        except OSError as error:
            log.warning("the events of %s cannot be read, and are not shared: %s", path, error.strerror)
            self._finish(segment)
            return

        reader = SegmentReader(data)
        try:
            for _, event in hiding_events(reader, self._consumed.hours):
                yield event
        except WrittenByNewer as error:
            log.warning("events of %s are not shared: %s", path, error)
            self._finish(segment)
            return

        # Bytes after the last whole frame are of one that is being written: the next call reads it from its start.
        segment.position += reader.whole_bytes
        if not is_open or not is_local(segment.name):
            self._finish(segment)

    def _new_bytes(self, segment: _Segment, path: Path) -> bytes:
        """Return what was appended to a segment, a log file of events, since the last call, and note its size.

        Empty if the segment is too old to hide anything: then its position becomes its end. Raises OSError.
        """
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            segment.size = status.st_size
            segment.position = min(segment.position, segment.size)  # an incomplete frame at its end was cut off

            if status.st_mtime < time.time() - self._consumed.window_s:
                segment.position = segment.size
                return b""
            file.seek(segment.position)
            return file.read()

    def _finish(self, segment: _Segment) -> None:
        self._unfinished.pop(segment.name, None)
        self._finished.add(segment.name)
