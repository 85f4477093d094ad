"""A worker's side of the sharing of consumed items: it sends what an event hides.

That is done before the event is answered, unless Redis is away, so that a kill delays nothing.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING

from hotplate.serve.consumed.entries import encode_pairs, parts_of
from hotplate.serve.consumed.table import BUCKETS, HOUR_S, MAX_HOURS, WAYS, Consumed, ConsumedPairs
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import CONSUMED_PAIRS, DROPPED, SENT, STREAM, Metrics
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tier_metrics import StoreObserver
from hotplate.stores.connect import REDIS, open_stream
from hotplate.stores.errors import StoreError
from hotplate.stores.urls import scheme_of

if TYPE_CHECKING:
    from hotplate.stores.redis.stream import RedisStream

OFF = "off"
# Of the stream: as many as the table has places. With ids of 10 characters they take 48 MB, and 185 MB with MAX_PAIRS.
MAX_ENTRIES = BUCKETS * WAYS
# Entries that are sent at once.
BATCH = 500
# A worker sends while the sharing lags less than this, and waits at most this long for Redis.
HEALTHY_S = 2.0
SEND_S = 0.25
# How long a worker waits at its start for the first reading of the stream.
START_S = 10.0
POLL_S = 0.02


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


class _Cell(IntEnum):
    """The shared numbers of `SharingState`."""

    CURRENT_AT = 0
    """When everything was last read and sent, by the monotonic clock."""

    IS_STARTED = 1
    """1 once the stream was read, or could not be."""

    LONGEST_WINDOW_S = 2
    """The longest time for which another service hides items."""


class SharingState:
    """What the admin process tells workers about the sharing, in shared numbers."""

    CELLS = len(_Cell)

    def __init__(self, cells: "memoryview[float]") -> None:
        self._cells = cells
        self.note_current()

    @property
    def lag_s(self) -> float:
        """Seconds since everything in the stream was read and everything else was sent."""
        return max(0.0, time.monotonic() - self._cells[_Cell.CURRENT_AT])

    def note_current(self) -> None:
        """Note that everything was read and sent."""
        self._cells[_Cell.CURRENT_AT] = time.monotonic()

    def keep_s(self, window_s: float) -> int:
        """Return for how long entries are kept: the longest window of all services, of which this one's is *window_s*.

        Those that share a stream may hide items for different hours.
        """
        return int(max(window_s, self._cells[_Cell.LONGEST_WINDOW_S])) + 1

    def note_window(self, window_s: float) -> None:
        """Note for how many seconds another service hides items."""
        longest_s = max(self._cells[_Cell.LONGEST_WINDOW_S], window_s)
        self._cells[_Cell.LONGEST_WINDOW_S] = min(longest_s, MAX_HOURS * HOUR_S)

    def note_started(self) -> None:
        """Note that the stream was read, or cannot be read."""
        self._cells[_Cell.IS_STARTED] = 1.0

    async def wait_until_started(self) -> None:
        """Wait until the stream was read, or cannot be, for at most START_S."""
        deadline = time.monotonic() + START_S
        while not self._cells[_Cell.IS_STARTED] and time.monotonic() < deadline:  # noqa: ASYNC110 -- another process sets it
            await asyncio.sleep(POLL_S)


async def append(stream: "RedisStream", parts: Sequence[ConsumedPairs], *, keep_s: int, metrics: Metrics) -> None:
    """Append an entry to the stream for each of *parts*, and count them and the old entries that were removed.

    Entries are kept for *keep_s* seconds, and at most MAX_ENTRIES of them. Raises StoreError.
    """
    removed = await stream.append(list(map(encode_pairs, parts)), keep_s=keep_s, most=MAX_ENTRIES)
    metrics.count_in(CONSUMED_PAIRS, SENT, number=sum(len(part.pairs) for part in parts))
    metrics.count_in(CONSUMED_PAIRS, DROPPED, number=removed)


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
        """Append the items that events hide to the Redis stream that the services of a shop share.

        *hidden* has a user, and hashes of user and items, per event. Those of erased users are not sent. Nothing is
        sent if they are too many, if the admin process lags behind the stream, or if Redis does not answer in SEND_S:
        the admin process (`ConsumedSharing`) sends them later, from the events on disk.
        """
        parts = [part for pairs in hidden if not self._is_erased(pairs.user) for part in parts_of(pairs)]
        if not 0 < len(parts) <= BATCH or self._state.lag_s > HEALTHY_S:
            return

        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(SEND_S):
                await append(
                    self._stream, parts, keep_s=self._state.keep_s(self._consumed.window_s), metrics=self._metrics
                )

    async def close(self) -> None:
        """Close the connections."""
        await self._stream.close()
