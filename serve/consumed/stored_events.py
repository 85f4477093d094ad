"""Events on disk that hide items: read at a start, and kept when their segments are shipped away.

A start restores the table of consumed items from the segments in the folder of events. Before `hotplate events ship`
removes segments, it keeps those of their events that may still hide items in KEPT, by the hours that services wrote to
HOURS.
"""

import errno
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import zstandard

from hotplate.base.timing import HOUR_S
from hotplate.serve.consumed.table import Consumed, ConsumedEvent
from hotplate.serve.errors import EventsFailed
from hotplate.stores.errors import WrittenByNewer
from hotplate.stores.event_log import (
    LEVEL,
    SegmentReader,
    decode_event,
    is_newer_segment,
    is_open_segment,
    is_segment,
    line_of,
)
from hotplate.stores.folders import replace_durably, take_lock

log = logging.getLogger(__name__)

# How long a start reads segments, the newest first.
RESTORE_S = 5.0
# Files in the folder of events, and the wait for the lock of both.
HOURS = ".hide-consumed.json"
KEPT = ".consumed.events.zst"
LOCK = ".hide-consumed.lock"
LOCK_S = 30.0


def restore(consumed: Consumed, folder: Path) -> int:
    """Hide the items of all events in *folder* at a start; return the number of pairs that had no room.

    Reading stops after RESTORE_S seconds, with a warning. The hours for which this service hides items are written to
    the folder, for `hotplate events ship`.
    """
    _keep_hours(folder, consumed.hours)
    forgotten = 0
    deadline = time.monotonic() + RESTORE_S
    for event in read_events(folder, consumed.hours, since=time.time() - consumed.window_s):
        if time.monotonic() > deadline:
            log.warning("not all events of %s were read in %.0f s: the oldest hide nothing", folder, RESTORE_S)
            break
        forgotten += sum(map(consumed.hide, consumed.hidden_by([event])))
    return forgotten


def read_events(folder: Path, kinds: Collection[str], since: float) -> Iterator[ConsumedEvent]:
    """Yield the events of the types *kinds* in *folder*, from the newest segment, a log file of events, to the oldest.

    Segments that did not change since a Unix time are left out, and so are unreadable ones, which are logged. KEPT,
    with events of segments that were shipped away, is read last. Raises OSError if the folder cannot be read.
    """
    names = {path.name for path in folder.iterdir()}
    for name in filter(is_newer_segment, names):
        log.warning("the events of %s were written by a newer hotplate, and hide nothing", folder / name)

    # The name of a segment begins with its time; that of an open one has a dot before it.
    segments = [name for name in names if is_segment(name) or is_open_segment(name)]
    segments.sort(key=lambda name: name.lstrip("."), reverse=True)

    for name in [*segments, KEPT]:
        path = folder / name
        try:
            for _, event in hiding_events(SegmentReader(_read_since(since, path)), kinds):
                yield event
        except OSError as error:
            log.warning("the events of %s cannot be read, and hide nothing: %s", path, error.strerror)
        except WrittenByNewer as error:
            log.warning("events of %s hide nothing: %s", path, error)


def remove_segments(paths: Sequence[Path], folder: Path) -> None:
    """Remove segments, log files of events, from *folder*, because they were shipped away; raises OSError.

    Those of their events that may still hide items are kept in the file KEPT. Raises EventsFailed, and removes nothing,
    if the hours are damaged.
    """
    with _locked(folder):
        hours = _read_hours(folder)
        if hours:
            kept = _kept_segment([folder / KEPT, *paths], hours)
            try:
                replace_durably(folder / KEPT, kept)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                _remove(paths)  # first, to make room on a full disk
                replace_durably(folder / KEPT, kept)
        _remove(paths)


def _kept_segment(paths: Sequence[Path], hours: Mapping[str, float]) -> bytes:
    """Return a segment, a compressed log file, of the events in other segments that may still hide items.

    *hours* has for how many hours events of each type hide their items. Missing files are skipped.
    """
    now = time.time()
    lines = list[bytes]()
    for path in paths:
        with suppress(FileNotFoundError):
            for line, event in hiding_events(SegmentReader(path.read_bytes()), hours):
                if event.time + HOUR_S * hours[event.type] > now:
                    lines.append(line_of(line))

    # After an interrupted removal, events are both in KEPT and in their segment.
    return zstandard.ZstdCompressor(level=LEVEL).compress(b"".join(dict.fromkeys(lines)))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _keep_hours(folder: Path, hours: Mapping[str, float]) -> None:
    """Add the hours of this service to those in *folder*: for how many hours events of each type hide items.

    Several services may use the folder: the file has the longest time of each type. A damaged file is replaced. A
    failure is logged.
    """
    try:
        with _locked(folder):
            try:
                stored = _read_hours(folder)
            except EventsFailed as error:
                log.warning("%s", error)
                stored = {}
            longest = {kind: max(stored.get(kind, 0.0), hours.get(kind, 0.0)) for kind in {*stored, *hours}}
            if longest != stored:
                replace_durably(folder / HOURS, msgspec.json.encode(longest))
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): after `hotplate events ship` and a restart, consumed items are shown again",
            folder / HOURS,
            error,
        )


def _read_hours(folder: Path) -> dict[str, float]:
    """Return the hours in *folder*, none without the file; raises EventsFailed for a damaged one."""
    path = folder / HOURS
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        advice = "restart the services that write events to this folder, each of which adds its hours, before you ship"
        raise EventsFailed(f"{path} is damaged ({error}): {advice}") from error


def hiding_events(lines: Iterable[bytes], kinds: Collection[str]) -> Iterator[tuple[bytes, ConsumedEvent]]:
    """Yield the events of the types *kinds*, each as a pair of its line, which is JSON, and the decoded event.

    Decoding takes most of the time of a start, so lines without the text of any such type are skipped undecoded.
    Raises WrittenByNewer.
    """
    markers = [f'"type":"{kind}"'.encode() for kind in kinds]
    decoder = msgspec.json.Decoder(ConsumedEvent)
    for line in lines:
        if any(marker in line for marker in markers):
            event = decode_event(decoder, line)
            if event.type in kinds:
                yield line, event


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = take_lock(folder / LOCK, 0o640, LOCK_S)
    try:
        yield
    finally:
        os.close(descriptor)


def _read_since(oldest: float, path: Path) -> bytes:
    """Read a segment that changed since *oldest*, a Unix time; empty if it did not, or is gone.

    Another process may close it meanwhile, which removes the dot from its name, or ship it.
    """
    closed = path.with_name(path.name.removeprefix("."))
    for candidate in (path, closed):
        with suppress(FileNotFoundError):
            if candidate.stat().st_mtime <= oldest:
                return b""
            return candidate.read_bytes()
    return b""
