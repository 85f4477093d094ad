"""The admin process's side of the sharing of consumed items between the services of a shop, through a log in Redis.

It reads the log: unlike the parent, it may open stores; a service has only one; and its restart delays no request. It
also sends what workers could not, from the segments of events: all that may hide items at the start, and after Redis
lost entries, and later what has changed since. So nothing that is durable is lost. An entry is in the log once.
"""

import asyncio
import logging
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hotplate.base.timing import HOUR_S, Backoff
from hotplate.serve.consumed.entries import decode_pairs, encode_pairs
from hotplate.serve.consumed.sender import BATCH, MAX_ENTRIES, SharingState, send_pairs
from hotplate.serve.consumed.stored_events import read_events
from hotplate.serve.consumed.table import MAX_HOURS, Consumed, ConsumedPairs
from hotplate.serve.log_once import LogOnce
from hotplate.serve.metrics import CONSUMED_PAIRS, DROPPED, RECEIVED, Metrics
from hotplate.stores.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplate.stores.redis.entry_log import Entry

log = logging.getLogger(__name__)

# Between two reads of the log.
WAIT_S = 0.2
PAUSES_S = (0.05, 0.5)
# For sending the last events at a stop.
FLUSH_S = 1.0
# By how much the clock of a file system may lag behind.
SKEW_S = 60.0
# An entry that hides nothing. It is in an otherwise empty log, whose loss would not show.
FIRST_ENTRY = encode_pairs(ConsumedPairs(slot=0, pairs=(), until=0))


class ConsumedSharing:
    """Sends the consumed items of a service to the log, and hides those that other services sent."""

    def __init__(
        self,
        state: SharingState,
        *,
        folder: Path,
        consumed: Consumed,
        metrics: Metrics,
    ) -> None:
        """*consumed* is the table of the service, which learns from the events in *folder*."""
        self._entries = state.open(metrics)
        self._folder = folder
        self._consumed = consumed
        self._state = state
        self._metrics = metrics
        self._failing = LogOnce()
        self._must_read_all = True
        """Whether all entries are to be read, and then all events to be sent."""

        self._newest = 0
        """Position of the newest entry that was read."""

        self._trimmed_at = 0
        """Position of the newest entry when the log was last trimmed."""

        self._keep_s = consumed.window_s
        """The longest time for which a service hides items: those that share a log may differ."""

        self._sent_until = 0.0
        """Unix time: earlier events were sent."""

        self._failures_made_good = -1.0
        """`send_failures` of the state at that time; -1 before all events were sent."""

    async def run(self) -> None:
        """Share until cancelled, then send the last events."""
        try:
            await self._share()
        finally:
            try:
                with suppress(StoreError, OSError, TimeoutError):
                    async with asyncio.timeout(FLUSH_S):
                        await self._take_turn()
            finally:
                await self._entries.close()

    async def _share(self) -> None:
        """Read the log and send events until cancelled; after an error, go on with a pause.

        Workers wait at their start until the log was read once, but no longer after an error.
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
                log.info("consumed items are shared through %s again", self._entries.shown)
            await asyncio.sleep(WAIT_S)

    def _report(self, error: Exception) -> None:
        is_defect = not isinstance(error, StoreError | OSError)
        if self._failing.met(is_defect):
            sentence = "consumed items are not shared with other services: %s"
            log.warning(sentence, error, exc_info=error if is_defect else None)

    async def _take_turn(self) -> None:
        """Read the entries that are in Redis, and then send the events that workers did not.

        An entry has items that a user has consumed, such as bought, which all services hide.
        """
        if self._must_read_all:
            await self._read_all()
        await self._read_newer()
        await self._trim()
        if self._failures_made_good != self._state.send_failures:
            await self._send_events()
        if not self._must_read_all:
            self._state.note_current()

    async def _read_all(self) -> None:
        """Read all entries, the newest first, and new ones between them."""
        self._must_read_all = False
        self._sent_until = 0.0
        self._failures_made_good = -1.0
        try:
            page = await self._entries.before(None)
            if not page:
                await self._entries.append([FIRST_ENTRY])
            self._newest = page[0].position if page else 0
            while page:
                self._apply_entries(page)
                await self._read_newer()
                page = await self._entries.before(page[-1].position)
        except BaseException:
            self._must_read_all = True
            raise
        self._state.note_started()

    async def _read_newer(self) -> None:
        """Read new entries, also those of this service, until there are none."""
        entries = await self._entries.after(self._newest)
        while entries:
            self._apply_entries(entries)
            self._newest = entries[-1].position
            entries = await self._entries.after(self._newest)
        if entries is None:  # Redis has lost entries, which this service may have to send again
            self._must_read_all = True

    async def _trim(self) -> None:
        """Remove what is too old or too much; all entries were read, which tell the hours of all services."""
        if self._newest == self._trimmed_at or self._must_read_all:
            return
        removed = await self._entries.trim(self._newest, keep_s=int(self._keep_s) + 1, most=MAX_ENTRIES)
        self._metrics.count_in(CONSUMED_PAIRS, DROPPED, number=removed)
        self._trimmed_at = self._newest

    def _apply_entries(self, entries: "Sequence[Entry]") -> None:
        """Hide the items of entries of the log, each until its time."""
        for entry in entries:
            pairs = decode_pairs(entry.value)
            if pairs is None:  # damaged, or of another format
                self._metrics.count_in(CONSUMED_PAIRS, DROPPED)
                continue
            forgotten = self._consumed.hide(pairs)
            self._metrics.count_in(CONSUMED_PAIRS, RECEIVED, number=len(pairs.pairs))
            self._metrics.count_in(CONSUMED_PAIRS, DROPPED, number=forgotten)
            window_s = pairs.until - entry.added_at  # of the service that has sent it
            self._keep_s = max(self._keep_s, min(window_s, MAX_HOURS * HOUR_S))

    async def _send_events(self) -> None:
        """Send the events of segments that changed since the last time; of these, workers have sent most."""
        until = time.time()
        failures = self._state.send_failures
        since = max(self._sent_until - SKEW_S, time.time() - self._consumed.window_s)
        events = read_events(self._folder, self._consumed.hours, since)

        while batch := await asyncio.to_thread(list, islice(events, BATCH)):
            await send_pairs(self._entries, self._consumed.hidden_by(batch), self._metrics)
            await self._read_newer()
            if self._must_read_all:
                return
        self._sent_until = until
        self._failures_made_good = failures
