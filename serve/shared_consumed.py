"""Consumed items that the services of a shop share through a Redis stream, so that each of them hides an item.

A worker sends what an event hides before it answers the event, unless Redis is away, so that a kill delays nothing.
The admin process reads the stream: unlike the parent, it may open stores; a service has only one; and its restart
delays no request. It also reads the segments of events, and sends what the stream lacks: at the start, and after Redis
lost entries, it compares all segments with the whole stream, and later what workers append to them. So nothing that is
durable is lost. An entry may be in the stream twice, which changes nothing.

An entry is for one user, and has at most MAX_PAIRS items: their hashes, the user's id, which an erasure must find, and
the time until which the items are hidden. A service that learns of an erased user replaces the user's entries by ones
without an id, by which other services forget the items, and ignores the user's events in its segments.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from hotplate.serve.consumed import (
    BUCKETS,
    HOUR_S,
    KEPT,
    MAX_HOURS,
    USERS,
    WAYS,
    Consumed,
    ConsumedEvent,
    ConsumedPairs,
    hiding_events,
)
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import CONSUMED_PAIRS, DROPPED, RECEIVED, SENT, STREAM, Metrics
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tiers import StoreObserver
from hotplate.stores.connect import REDIS, open_stream, opened
from hotplate.stores.erasure import NOBODY, ErasedUsers
from hotplate.stores.erasure_log import read_erased
from hotplate.stores.errors import StoreError, WrittenByNewer
from hotplate.stores.event_log import SegmentReader, is_local, is_open_segment, is_segment
from hotplate.stores.timing import Backoff
from hotplate.stores.urls import scheme_of

if TYPE_CHECKING:
    from hotplate.stores.redis.stream import Entry, RedisStream

log = logging.getLogger(__name__)

OFF = "off"
# Of the stream: as many as the table has places. With ids of 10 characters they take 48 MB, and 185 MB with MAX_PAIRS.
MAX_ENTRIES = BUCKETS * WAYS
MAX_PAIRS = 16
# The time and the user of an entry whose items are shown again.
FORGOTTEN = 0
NOBODY_NAMED = ""
PAIR_BYTES = 8
# Events that are read, compared and sent at once.
BATCH = 500
# How long a turn waits for entries before it looks for new events.
WAIT_MS = 200
PAUSES_S = (0.05, 0.5)
# A worker sends while the sharing lags less than this, and waits at most this long for Redis.
HEALTHY_S = 2.0
SEND_S = 0.25
# After which an event that a worker did not send is sent by the admin process.
SETTLE_S = 0.3
# How long a worker waits at its start for the first reading of the stream.
START_S = 10.0
POLL_S = 0.02
# How long sending waits for the erased users of stores that do not answer, and pauses between attempts.
ERASED_S = 5.0
ERASED_PAUSES_S = (0.2, 10.0)
# For sending the last events at a stop.
FLUSH_S = 1.0
# A change of a folder within this time of another may not show in its time of modification.
RECENT_NS = 1_000_000_000


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    until: Annotated[int, Meta(ge=0, lt=1 << 32)]
    user: str
    pairs: bytes


_decode = msgspec.msgpack.Decoder(_Entry).decode


def parts_of(pairs: ConsumedPairs) -> Iterator[ConsumedPairs]:
    """Divide *pairs* among entries."""
    for start in range(0, len(pairs.pairs), MAX_PAIRS):
        yield replace(pairs, pairs=pairs.pairs[start : start + MAX_PAIRS])


def encode_pairs(pairs: ConsumedPairs) -> bytes:
    """Return the value of an entry."""
    hashes = b"".join(pair.to_bytes(PAIR_BYTES, "little") for pair in pairs.pairs)
    return msgspec.msgpack.encode(_Entry(pairs.until, pairs.user, hashes))


def decode_pairs(value: bytes) -> ConsumedPairs | None:
    """Return the pairs of an entry; None if it is damaged."""
    try:
        entry = _decode(value)
    except (ValueError, RecursionError):  # ValueError: of msgspec, or text that is not UTF-8
        return None
    if len(entry.pairs) % PAIR_BYTES:
        return None
    starts = range(0, len(entry.pairs), PAIR_BYTES)
    pairs = (int.from_bytes(entry.pairs[start : start + PAIR_BYTES], "little") for start in starts)
    return ConsumedPairs(entry.user, tuple(pairs), entry.until)


def stream_url(settings: ServiceSettings) -> str | None:
    """Return the URL of the Redis through which consumed items are shared, if any; raises ServiceMisused."""
    chosen = settings.share_consumed
    if not settings.hide_consumed:
        if chosen is not None:
            raise ServiceMisused("--share-consumed shares what --hide-consumed hides; give both")
        return None
    if chosen == OFF:
        return None
    return chosen or next((url for url in settings.stores if scheme_of(url) in REDIS), None)


class SharingState:
    """What the admin process tells workers about the sharing, in three shared numbers."""

    CELLS = 3

    def __init__(self, cells: "memoryview[float]") -> None:
        self._cells = cells
        self.note_current()

    @property
    def lag_s(self) -> float:
        """Seconds since everything in the stream was read and everything else was sent."""
        return max(0.0, time.monotonic() - self._cells[0])

    def note_current(self) -> None:
        """Note that everything was read and sent."""
        self._cells[0] = time.monotonic()

    def keep_s(self, window_s: float) -> int:
        """Return for how long entries are kept: the longest window of all services, of which this one's is *window_s*.

        Those that share a stream may hide items for different hours.
        """
        return int(max(window_s, self._cells[2])) + 1

    def note_window(self, window_s: float) -> None:
        """Note for how many seconds another service hides items."""
        self._cells[2] = max(self._cells[2], min(window_s, MAX_HOURS * HOUR_S))

    def note_started(self) -> None:
        """Note that the stream was read, or cannot be read."""
        self._cells[1] = 1.0

    async def wait_until_started(self) -> None:
        """Wait until the stream was read, or cannot be, for at most START_S."""
        deadline = time.monotonic() + START_S
        while not self._cells[1] and time.monotonic() < deadline:  # noqa: ASYNC110 -- another process sets it
            await asyncio.sleep(POLL_S)


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
        self._finished = set[str]()
        self._events: Iterator[ConsumedEvent] = iter(())
        self._changed_at = 0
        self._wants_all = True

    def restart(self) -> None:
        """Read all events again."""
        self._wants_all = True

    def next_events(self, most: int) -> list[ConsumedEvent]:
        """Return up to *most* events of types that hide items; none if all are read. Raises OSError."""
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
        """List the folder, if it may have changed, and note which of its segments, log files of events, to read.

        Segments to read are in `self._unfinished`, by the name that they have once closed. New ones are added if they
        are written on this machine; other machines share their own. If a segment was removed before it was read, its
        events are in KEPT: then all are to be read again, the newest first.
        """
        changed_at = self._folder.stat().st_mtime_ns
        is_recent = time.time_ns() - changed_at < RECENT_NS
        if not (self._wants_all or is_recent or changed_at != self._changed_at):
            return
        self._changed_at = changed_at

        listed = {path.name for path in self._folder.iterdir()}
        names = {name.removeprefix(".") for name in listed if is_segment(name) or is_open_segment(name)}
        self._finished &= names
        removed = self._unfinished.keys() - {KEPT} - names
        if self._wants_all or removed:
            self._wants_all = False
            self._events = iter(())
            self._finished.clear()
            self._unfinished = {name: _Segment(name) for name in sorted(names, reverse=True)}
            if KEPT in listed:
                self._unfinished[KEPT] = _Segment(KEPT)
            return

        for name in names - self._finished - self._unfinished.keys():
            if is_local(name):
                self._unfinished[name] = _Segment(name)
            else:
                self._finished.add(name)

    def _is_changed(self, segment: _Segment) -> bool:
        with suppress(FileNotFoundError):
            return (self._folder / f".{segment.name}").stat().st_size != segment.size
        return True  # closed

    def _read_segment(self, segment: _Segment) -> Iterator[ConsumedEvent]:
        """Yield the events that were appended to a segment since the last call.

        An open segment, whose name begins with a dot, is read again later if it is of this machine. Another process may
        close the segment, which renames it, or ship it away, meanwhile. An unreadable one is logged and skipped.
        """
        path = self._folder / f".{segment.name}"
        is_open = path.exists()
        if not is_open:
            path = self._folder / segment.name
        try:
            data = self._new_bytes(segment, path)
        except FileNotFoundError:
            if not is_open:  # shipped, and its events are kept elsewhere
                self._unfinished.pop(segment.name, None)
                self._wants_all = True
            return
        except OSError as error:
            log.warning("the events of %s cannot be read, and are not shared: %s", path, error.strerror)
            self._finish(segment)
            return

        reader = SegmentReader(data)
        try:
            for _, event in hiding_events(reader, self._consumed.kinds):
                yield event
        except WrittenByNewer as error:
            log.warning("events of %s are not shared: %s", path, error)
            self._finish(segment)
            return

        segment.position += reader.whole_bytes
        if not is_open or not is_local(segment.name):
            self._finish(segment)

    def _new_bytes(self, segment: _Segment, path: Path) -> bytes:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            segment.size = status.st_size
            segment.position = min(segment.position, segment.size)  # a torn end was cut off
            if status.st_mtime < time.time() - self._consumed.window_s:
                segment.position = segment.size
                return b""
            file.seek(segment.position)
            return file.read()

    def _finish(self, segment: _Segment) -> None:
        self._unfinished.pop(segment.name, None)
        self._finished.add(segment.name)


class ConsumedSender:
    """Sends what events hide, for one worker; what it fails to send is left to `ConsumedSharing`."""

    def __init__(
        self, url: str, *, consumed: Consumed, state: SharingState, metrics: Metrics, is_erased: Callable[[str], bool]
    ) -> None:
        """*is_erased* says whether a user is erased, whose pairs are not sent."""
        self._stream = open_stream(url, STREAM, StoreObserver(STREAM, metrics))
        self._consumed = consumed
        self._state = state
        self._metrics = metrics
        self._is_erased = is_erased

    async def send(self, hidden: Sequence[ConsumedPairs]) -> None:
        """Send pairs, unless Redis does not answer or they are too many: then `ConsumedSharing` sends them later."""
        parts = [part for pairs in hidden if not self._is_erased(pairs.user) for part in parts_of(pairs)]
        if not 0 < len(parts) <= BATCH or self._state.lag_s > HEALTHY_S:
            return
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(SEND_S):
                await _append(
                    self._stream, parts, keep_s=self._state.keep_s(self._consumed.window_s), metrics=self._metrics
                )

    async def close(self) -> None:
        """Close the connections."""
        await self._stream.close()


async def _append(stream: "RedisStream", parts: Sequence[ConsumedPairs], *, keep_s: int, metrics: Metrics) -> None:
    """Append entries, which are kept for *keep_s*, and count them and those that were removed."""
    trimmed = await stream.append(list(map(encode_pairs, parts)), keep_s=keep_s, most=MAX_ENTRIES)
    metrics.count_in(CONSUMED_PAIRS, SENT, number=sum(len(part.pairs) for part in parts))
    metrics.count_in(CONSUMED_PAIRS, DROPPED, number=trimmed)


class ConsumedSharing:
    """Sends the consumed items of a service to the stream, and hides those that other services sent."""

    def __init__(
        self,
        url: str,
        *,
        stores: Sequence[str],
        folder: Path,
        consumed: Consumed,
        state: SharingState,
        metrics: Metrics,
    ) -> None:
        """*url* is that of the stream's Redis; users erased from any of *stores* are forgotten.

        *consumed* is the table of the service, which learns from the events in *folder*.
        """
        self._stream = open_stream(url, STREAM, StoreObserver(STREAM, metrics))
        self._tail = SegmentTail(folder, consumed)
        self._consumed = consumed
        self._in_stream = Consumed(
            (),
            users=memoryview(bytearray(4 * USERS)).cast("I"),
            pairs=memoryview(bytearray(8 * BUCKETS * WAYS)).cast("Q"),
        )
        self._state = state
        self._metrics = metrics
        self._stores = stores
        self._erased: ErasedUsers = NOBODY
        self._unsent = list[ConsumedPairs]()
        self._due = 0.0  # when they are sent, by the monotonic clock
        self._has_more_events = True
        self._reading: asyncio.Future[list[ConsumedEvent]] | None = None
        self._wants_rewind = False
        self._failure: str | None = None
        # Stores whose erased users are unknown, and until when sending waits for them.
        self._unasked = set(stores)
        self._asked_until = time.monotonic() + ERASED_S

    async def run(self) -> None:
        """Share until cancelled, then send the last events."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._share())
                for url in self._stores:
                    tasks.create_task(self._follow_erased(url))
        finally:
            try:
                with suppress(StoreError, OSError, TimeoutError):
                    async with asyncio.timeout(FLUSH_S):
                        await self._send_rest()
            finally:
                await self._stream.close()

    async def _share(self) -> None:
        """Read and send until cancelled; workers that wait for the first reading go on after a failure."""
        backoff = Backoff(*PAUSES_S)
        while True:
            try:
                await self._take_turn()
            except (StoreError, OSError) as error:
                self._report(error)
                self._state.note_started()
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            if self._failure is not None:
                self._failure = None
                log.info("consumed items are shared through %s again", self._stream.shown)

    def _report(self, error: StoreError | OSError) -> None:
        if self._failure is None:
            self._failure = str(error)
            log.warning("consumed items are not shared with other services: %s", error)

    async def _take_turn(self) -> None:
        """Read entries of the stream that other services write, and send the events of this one.

        One page of older entries is read, while any are left, then the new ones, for which this waits WAIT_MS if there
        is nothing else to do. Events are sent after all older entries were read. If the stream has lost entries,
        `newer` returns None, and the next turn begins to read again what is left.
        """
        if self._wants_rewind:
            self._wants_rewind = False
            self._in_stream.clear()
            self._stream.rewind()
        if self._stream.has_older:
            await self._take_older()

        can_send = self._may_send and not self._stream.has_older
        is_busy = self._stream.has_older or (can_send and self._has_more_events)
        entries = await self._stream.newer(0 if is_busy else WAIT_MS)
        if entries is None:
            self._wants_rewind = True
            return
        await self._apply_entries(entries)

        if can_send:
            await self._send_events()
            if not self._stream.has_newer and not self._has_more_events:
                self._state.note_current()

    async def _take_older(self) -> None:
        await self._apply_entries(await self._stream.older())
        if not self._stream.has_older:
            self._state.note_started()
            self._tail.restart()
            self._has_more_events = True

    async def _apply_entries(self, entries: "Sequence[Entry]") -> None:
        """Hide the items of entries of the stream, or show them again if an entry says so (`until` is FORGOTTEN).

        Entries of users who were erased from a store must not stay: entries without the user are appended, by which
        all services show these items again, and then those are erased. Raises StoreError; then the stream is read again
        from its start.
        """
        erased = list["Entry"]()
        forgotten = list[ConsumedPairs]()
        for entry in entries:
            pairs = None if entry.value is None else decode_pairs(entry.value)
            if pairs is None:
                self._metrics.count_in(CONSUMED_PAIRS, DROPPED)
            elif pairs.until == FORGOTTEN:
                self._forget(pairs)
            elif self._erased.covers_user(pairs.user):
                self._forget(pairs)
                erased.append(entry)
                forgotten.append(ConsumedPairs(NOBODY_NAMED, pairs.pairs, FORGOTTEN))
            else:
                self._consumed.hide(pairs)
                self._in_stream.hide(pairs)
                self._state.note_window(pairs.until - entry.added_at)
                self._metrics.count_in(CONSUMED_PAIRS, RECEIVED, number=len(pairs.pairs))

        if not erased:
            return
        try:
            await self._append(forgotten)
            await self._stream.erase(erased)
        except StoreError:
            self._wants_rewind = True  # the stream is past these entries
            raise

    async def _append(self, parts: Sequence[ConsumedPairs]) -> None:
        await _append(self._stream, parts, keep_s=self._keep_s, metrics=self._metrics)

    @property
    def _keep_s(self) -> int:
        return self._state.keep_s(self._consumed.window_s)

    def _forget(self, pairs: ConsumedPairs) -> None:
        for table in (self._consumed, self._in_stream):
            table.forget(pairs)

    @property
    def _may_send(self) -> bool:
        return not self._unasked or time.monotonic() > self._asked_until

    async def _send_events(self, *, at_once: bool = False) -> None:
        """Append the events of `self._unsent` to the stream, but for those in it, and then read the next ones.

        Workers send events themselves, at once; this sends only what they failed to. So the newest events wait for
        SETTLE_S seconds, unless *at_once*.
        """
        if self._unsent and time.monotonic() < self._due and not at_once:
            return
        while self._unsent:
            parts = [part for part in self._unsent[:BATCH] if not self._in_stream.hides(part)]
            if parts:
                await self._append(parts)
            for part in parts:
                self._in_stream.hide(part)
            del self._unsent[:BATCH]

        events = await self._next_events()
        self._has_more_events = len(events) == BATCH
        self._unsent = self._unsent_parts(events)
        self._due = time.monotonic() + (0.0 if self._has_more_events else SETTLE_S)

    async def _next_events(self) -> list[ConsumedEvent]:
        """Read events in a thread, which a cancelled call leaves to the next one."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._tail.next_events, BATCH))
        try:
            events = await asyncio.shield(self._reading)
        except OSError:
            self._reading = None
            raise
        self._reading = None
        return events

    def _unsent_parts(self, events: Sequence[ConsumedEvent]) -> list[ConsumedPairs]:
        """Return what *events* hide and the stream lacks, in parts of the size of an entry.

        Items that were consumed by erased users are shown again instead. `self._in_stream` is a table of what the
        entries of the stream hide.
        """
        parts = list[ConsumedPairs]()
        for event in events:
            pairs = self._consumed.pairs_of(event.type, event.user, event.items, event.time)
            if pairs is None:
                continue
            if self._erased.covers_user(event.user):
                self._consumed.forget(pairs)
            else:
                parts += [part for part in parts_of(pairs) if not self._in_stream.hides(part)]
        return parts

    async def _send_rest(self) -> None:
        if self._stream.has_older or not self._may_send:
            return
        await self._send_events(at_once=True)
        while self._unsent or self._has_more_events:
            await self._send_events(at_once=True)

    async def _follow_erased(self, url: str) -> None:
        """Learn of the users who are erased from a store, whose failures the workers report."""
        backoff = Backoff(*ERASED_PAUSES_S)
        while True:
            with suppress(StoreError):
                async with opened(url) as store:
                    seen = None
                    async for catalogue in store.changes():
                        if catalogue.erased != seen:
                            self._forget_erased(await read_erased(store, catalogue))
                            seen = catalogue.erased
                        self._unasked.discard(url)
                        backoff.reset()
            await asyncio.sleep(backoff.next_s())

    def _forget_erased(self, users: ErasedUsers) -> None:
        """Read the stream and all events again, in which more users may be erased."""
        before = self._erased
        self._erased = before.merged(users)
        if self._erased.groups != before.groups:
            self._wants_rewind = True
