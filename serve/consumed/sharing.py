"""The admin process's side of the sharing of consumed items between the services of a shop, through a Redis stream.

It reads the stream: unlike the parent, it may open stores; a service has only one; and its restart delays no request.
It also reads the segments of events, and sends what the stream lacks: at the start, and after Redis lost entries, it
compares all segments with the whole stream, and later what workers append to them. So nothing that is durable is lost.
An entry may be in the stream twice, which changes nothing.

A service that learns of an erased user replaces the user's entries by ones without an id, by which other services
forget the items, and ignores the user's events in its segments.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from hotplate.base.timing import Backoff
from hotplate.serve.consumed.entries import FORGOTTEN, NOBODY_NAMED, decode_pairs, parts_of
from hotplate.serve.consumed.segment_tail import SegmentTail
from hotplate.serve.consumed.sender import BATCH, SharingState, append
from hotplate.serve.consumed.stored_events import ConsumedEvent
from hotplate.serve.consumed.table import BUCKETS, USERS, WAYS, Consumed, ConsumedPairs
from hotplate.serve.log_once import LogOnce
from hotplate.serve.metrics import CONSUMED_PAIRS, DROPPED, RECEIVED, STREAM, Metrics
from hotplate.serve.tier_metrics import StoreObserver
from hotplate.stores.connect import open_stream, opened
from hotplate.stores.erasure import NOBODY, ErasedUsers
from hotplate.stores.erasure_log import read_erased
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Reader
from hotplate.stores.timing import Outage

if TYPE_CHECKING:
    from hotplate.stores.redis.stream import Entry

log = logging.getLogger(__name__)

# How long a turn waits for entries before it looks for new events.
WAIT_MS = 200
PAUSES_S = (0.05, 0.5)
# After which an event that a worker did not send is sent by the admin process.
SETTLE_S = 0.3
# How long sending waits for the erased users of stores that do not answer, and pauses between attempts.
ERASED_S = 5.0
ERASED_PAUSES_S = (0.2, 10.0)
# For sending the last events at a stop.
FLUSH_S = 1.0


class SharingPhase(Enum):
    """Progress of `ConsumedSharing`, in this order; REWINDING may follow at any time."""

    REWINDING = "the stream is to be read again from its start"
    READING = "older entries of the stream are read"
    WAITING = "all entries were read; nothing is sent before the erased users of all stores are known"
    CATCHING_UP = "events are read and sent without a pause"
    FOLLOWING = "all events were read; new ones are looked for"


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
        self._phase = SharingPhase.READING
        self._unsent = list[ConsumedPairs]()
        self._unsent_due = 0.0
        """When they are sent, by the monotonic clock."""

        self._reading: asyncio.Future[list[ConsumedEvent]] | None = None
        self._failing = LogOnce()
        self._unread_stores = set(stores)
        """Stores whose erased users are unknown; sending waits for them."""

        self._wait_until = time.monotonic() + ERASED_S

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
        """Read the stream and send events, in turns, until cancelled; after an error, go on with a pause.

        Workers wait at their start until the stream was read once, but no longer after an error.
        """
        backoff = Backoff(*PAUSES_S)
        while True:
            try:
                await self._take_turn()
            except Exception as error:  # noqa: BLE001 -- a defect must not end this task
                self._report(error)
                self._state.note_started()
                await asyncio.sleep(backoff.next_s())
                continue

            backoff.reset()
            if self._failing.end():
                log.info("consumed items are shared through %s again", self._stream.shown)

    def _report(self, error: Exception) -> None:
        is_defect = not isinstance(error, StoreError | OSError)
        if self._failing.met(is_defect):
            sentence = "consumed items are not shared with other services: %s"
            log.warning(sentence, error, exc_info=error if is_defect else None)

    async def _take_turn(self) -> None:
        """Read some entries of the Redis stream that other services write, and send some events of this one.

        Called again and again. An entry has items that a user has consumed, such as bought, which all services hide.
        Entries that are older than this process are read first, a page in each turn, before any event is sent.
        """
        if self._phase in (SharingPhase.REWINDING, SharingPhase.READING):
            await self._read_older_page()
        if self._phase is SharingPhase.WAITING and self._may_send:
            self._enter(SharingPhase.CATCHING_UP)
        await self._read_newer()  # before sending: appending hides from the stream that Redis has lost entries
        if self._phase in (SharingPhase.CATCHING_UP, SharingPhase.FOLLOWING):
            has_more_events = await self._send_events()
            self._enter(SharingPhase.CATCHING_UP if has_more_events else SharingPhase.FOLLOWING)
            if not has_more_events and not self._stream.has_newer:
                self._state.note_current()

    def _enter(self, phase: SharingPhase) -> None:
        """Change the phase, unless the stream was found to need another reading meanwhile."""
        if self._phase is not SharingPhase.REWINDING:
            self._phase = phase

    async def _read_newer(self) -> None:
        """Read new entries of other services; if there is nothing else to do, wait up to WAIT_MS for them."""
        is_idle = self._phase in (SharingPhase.WAITING, SharingPhase.FOLLOWING)
        entries = await self._stream.newer(WAIT_MS if is_idle else 0)
        if entries is None:  # Redis has lost entries, which this service may have to send again
            self._phase = SharingPhase.REWINDING
        else:
            await self._apply_entries(entries)

    async def _read_older_page(self) -> None:
        if self._phase is SharingPhase.REWINDING:
            self._in_stream.clear()
            self._stream.rewind()
            self._phase = SharingPhase.READING
        await self._apply_entries(await self._stream.older())
        if not self._stream.has_older:
            self._state.note_started()
            self._tail.restart()
            self._enter(SharingPhase.WAITING)

    async def _apply_entries(self, entries: "Sequence[Entry]") -> None:
        """Hide the items of entries of the stream, or show them again if the time of an entry is FORGOTTEN.

        An entry is for one user, and has hashes of user and item, and the time until which the items are hidden.
        Entries of erased users are replaced by ones that show the items again; raises StoreError if that fails.
        """
        erased_entries = list["Entry"]()
        replacements = list[ConsumedPairs]()
        for entry in entries:
            pairs = None if entry.value is None else decode_pairs(entry.value)
            if pairs is None:  # damaged, or of another format
                self._metrics.count_in(CONSUMED_PAIRS, DROPPED)
            elif pairs.until == FORGOTTEN:
                self._forget(pairs)
            elif self._erased.covers_user(pairs.user):
                self._forget(pairs)
                erased_entries.append(entry)
                replacements.append(ConsumedPairs(NOBODY_NAMED, pairs.pairs, FORGOTTEN))
            else:
                self._consumed.hide(pairs)  # from users of this service
                self._in_stream.hide(pairs)  # known to be in the stream, so not sent again
                self._state.note_window(pairs.until - entry.added_at)  # the hours of the service that has sent it
                self._metrics.count_in(CONSUMED_PAIRS, RECEIVED, number=len(pairs.pairs))

        if erased_entries:
            await self._replace_entries(erased_entries, replacements)

    async def _replace_entries(self, erased: "Sequence[Entry]", forgotten: Sequence[ConsumedPairs]) -> None:
        """Append entries without the user, by which all services show the items again, and erase those of the user.

        After a StoreError the stream is read again from its start, because it is past these entries.
        """
        try:
            await self._append(forgotten)
            await self._stream.erase(erased)
        except StoreError:
            self._phase = SharingPhase.REWINDING
            raise

    async def _append(self, parts: Sequence[ConsumedPairs]) -> None:
        keep_s = self._state.keep_s(self._consumed.window_s)
        await append(self._stream, parts, keep_s=keep_s, metrics=self._metrics)

    def _forget(self, pairs: ConsumedPairs) -> None:
        for table in (self._consumed, self._in_stream):
            table.forget(pairs)

    @property
    def _may_send(self) -> bool:
        """Whether the erased users of all stores are known, or were waited for."""
        return not self._unread_stores or time.monotonic() > self._wait_until

    async def _send_events(self, *, at_once: bool = False) -> bool:
        """Send the events of `self._unsent`, and then read the next ones; return whether there may be more to read.

        Workers send events themselves, at once; this sends only what they failed to. So new events are first kept in
        `self._unsent` for SETTLE_S seconds, unless *at_once*.
        """
        if self._unsent and time.monotonic() < self._unsent_due and not at_once:
            return False
        await self._send_unsent()

        events = await self._next_events()
        has_more_events = len(events) == BATCH
        self._unsent = self._unsent_parts(events)
        self._unsent_due = time.monotonic()
        if not has_more_events:
            self._unsent_due += SETTLE_S
        return has_more_events

    async def _send_unsent(self) -> None:
        """Append the events of `self._unsent` to the stream, other than those that it has meanwhile."""
        while self._unsent:
            parts = [part for part in self._unsent[:BATCH] if not self._in_stream.hides(part)]
            if parts:
                await self._append(parts)
            for part in parts:
                self._in_stream.hide(part)
            del self._unsent[:BATCH]

    async def _next_events(self) -> list[ConsumedEvent]:
        """Read events in a thread, which a cancelled call leaves to the next one."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._tail.next_events, BATCH))
        try:
            events = await asyncio.shield(self._reading)
        except Exception:
            self._reading = None
            raise
        self._reading = None
        return events

    def _unsent_parts(self, events: Sequence[ConsumedEvent]) -> list[ConsumedPairs]:
        """Return what *events* hide and the stream lacks, in parts that fit into an entry of the stream.

        A part has a user, hashes of user and item, and a time. `self._in_stream` is a table of what the entries of the
        stream hide. Items that were consumed by erased users are shown again instead.
        """
        parts = list[ConsumedPairs]()
        for event in events:
            pairs = self._consumed.pairs_of(event.type, event.user, event.items, event.time)
            if pairs is None:  # it hides nothing, or nothing any more
                continue

            if self._erased.covers_user(event.user):
                self._consumed.forget(pairs)
            else:
                parts += [part for part in parts_of(pairs) if not self._in_stream.hides(part)]
        return parts

    async def _send_rest(self) -> None:
        if self._stream.has_older or not self._may_send:
            return
        has_more_events = True
        while has_more_events or self._unsent:
            has_more_events = await self._send_events(at_once=True)

    async def _follow_erased(self, url: str) -> None:
        """Learn of the users who are erased from a store, whose failures the workers report.

        After an outage that is not short, the store is opened again.
        """
        outage = Outage(*ERASED_PAUSES_S)
        defects = LogOnce()
        while True:
            try:
                async with opened(url) as store:
                    await self._learn_erased(store, url, outage)
            except StoreError:
                pass
            except Exception:
                if defects.met():
                    log.exception("the erased users of a store cannot be read")
            await asyncio.sleep(outage.next_pause_s())

    async def _learn_erased(self, store: Reader, url: str, outage: Outage) -> None:
        """Forget the consumed items of users who are erased from a store, now and after each change, until cancelled.

        *store* is open, and *url* names it. Raises StoreError if an outage is not short.
        """
        followed = None  # of the catalogue, which says whether there are further erased users
        while True:
            try:
                catalogue = await store.poll()
                if catalogue.erased != followed:
                    self._forget_erased(await read_erased(store, catalogue))
                    followed = catalogue.erased
            except StoreError as error:
                if not outage.tolerates(error):
                    raise
                await asyncio.sleep(outage.next_pause_s())
            else:
                self._unread_stores.discard(url)  # events may be sent once no store is left in it
                outage.end()
                await asyncio.sleep(store.poll_s)

    def _forget_erased(self, users: ErasedUsers) -> None:
        """Read the stream and all events again if more users are erased."""
        before = self._erased
        self._erased = before.union(users)
        if self._erased.hashes_by_salt != before.hashes_by_salt:
            self._phase = SharingPhase.REWINDING
            self._unsent = [part for part in self._unsent if not self._erased.covers_user(part.user)]
