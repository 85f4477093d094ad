"""A worker's side of the sharing of consumed items: it sends what an event hides.

That is done before the event is answered, unless Redis is away, so that a kill delays nothing.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hotplate.serve.consumed.entries import encode_pairs, parts_of
from hotplate.serve.consumed.table import CAPACITY, ConsumedPairs
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metric import CONSUMED_ITEMS
from hotplate.serve.metrics import CONSUMED_PAIRS, SENT, Metrics
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.shared_memory import shared_floats
from hotplate.serve.tiers.observer import StoreObserver
from hotplate.stores.connect import REDIS, open_entry_log
from hotplate.stores.errors import StoreError
from hotplate.stores.store import batches_of
from hotplate.stores.urls import scheme_of

if TYPE_CHECKING:
    from hotplate.stores.redis.entry_log import EntryLog

OFF = "off"
# Of the log in Redis, which makes its key.
LOG_NAME = "consumed-items"
# Most entries of the log. With ids of 10 characters, a million takes 140 MB, and 270 MB with MAX_PAIRS.
MAX_ENTRIES = CAPACITY
# Entries that are sent at once.
BATCH = 500
# How long a worker waits for Redis, and for how long it does not try again after a failure, if the sharing lags by more
# than this.
SEND_S = 0.25
RETRY_S = 2.0
# How long a worker waits at its start for the first reading of all entries.
START_S = 10.0
POLL_S = 0.02


def sharing_url(settings: ServiceSettings) -> str | None:
    """Return the URL of the Redis through which consumed items are shared, if any; raises ServiceMisused."""
    chosen = settings.share_consumed
    if not settings.hide_consumed:
        if chosen is not None:
            raise ServiceMisused("--share-consumed shares what --hide-consumed hides; give both")
        return None
    if chosen == OFF:
        return None
    return chosen or next((url for url in settings.stores if scheme_of(url) in REDIS), None)


# Shared numbers of the processes of a service: when everything was last read and sent, by the monotonic clock; 1 once
# all entries were read, or could not be; and how often workers could not send events.
_CURRENT_AT, _IS_STARTED, _SEND_FAILURES = range(3)


class SharingState:
    """What the processes of a service know of the sharing: where the log is and, in shared numbers, how far it is."""

    def __init__(self, url: str) -> None:
        """Created before the processes. *url* is that of the log's Redis."""
        self._url = url
        self._cells = shared_floats(3)
        self.note_current()

    def open(self, metrics: Metrics) -> "EntryLog":
        """Open the log of consumed items, without I/O."""
        return open_entry_log(self._url, LOG_NAME, StoreObserver(CONSUMED_ITEMS, metrics))

    @property
    def lag_s(self) -> float:
        """Seconds since everything in Redis was read and everything else was sent."""
        return max(0.0, time.monotonic() - self._cells[_CURRENT_AT])

    def note_current(self) -> None:
        """Note that everything was read and sent."""
        self._cells[_CURRENT_AT] = time.monotonic()

    @property
    def send_failures(self) -> float:
        """How often workers could not send events."""
        return self._cells[_SEND_FAILURES]

    def count_send_failure(self) -> None:
        """Count that events on disk were not sent; of several workers at once, one may not be counted."""
        self._cells[_SEND_FAILURES] += 1

    def note_started(self) -> None:
        """Note that all entries were read, or cannot be read."""
        self._cells[_IS_STARTED] = 1.0

    async def wait_until_started(self) -> None:
        """Wait until all entries were read, or cannot be, for at most START_S."""
        deadline = time.monotonic() + START_S
        while not self._cells[_IS_STARTED] and time.monotonic() < deadline:  # noqa: ASYNC110 -- another process sets it
            await asyncio.sleep(POLL_S)


async def send_pairs(entries: "EntryLog", hidden: Iterable[ConsumedPairs], metrics: Metrics) -> None:
    """Append entries with the items that events hide, and count the pairs that are new there; raises StoreError."""
    parts = [part for pairs in hidden for part in parts_of(pairs)]
    for batch in batches_of(parts, BATCH):
        appended = await entries.append(list(map(encode_pairs, batch)))
        sent = sum(len(part.pairs) for part, is_new in zip(batch, appended, strict=True) if is_new)
        metrics.count_in(CONSUMED_PAIRS, SENT, number=sent)


class ConsumedSender:
    """Sends what events hide, for one worker; what it fails to send is left to `ConsumedSharing`."""

    def __init__(self, state: SharingState, metrics: Metrics) -> None:
        self._entries = state.open(metrics)
        self._state = state
        self._metrics = metrics
        self._retry_at = 0.0
        self._state.count_send_failure()  # a killed worker that this one replaces may have left some

    async def send(self, hidden: Sequence[ConsumedPairs]) -> None:
        """Append the items that events hide to the log in Redis through which the services of a shop share them.

        *hidden* has the items per event. If Redis does not answer in SEND_S or is known to be away, the admin process
        (`ConsumedSharing`) sends them later, from the events on disk.
        """
        if not hidden:
            return

        is_sent = False
        try:
            is_away = time.monotonic() < self._retry_at and self._state.lag_s > RETRY_S
            if not is_away:
                async with asyncio.timeout(SEND_S):
                    await send_pairs(self._entries, hidden, self._metrics)
                is_sent = True
        except (StoreError, TimeoutError):
            self._retry_at = time.monotonic() + RETRY_S
        finally:
            if not is_sent:
                self._state.count_send_failure()

    async def close(self) -> None:
        """Close the connections."""
        await self._entries.close()
