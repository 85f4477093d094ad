"""How rows of a draft are written: batch by batch, each tried again while a server is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from stores.catalogue import DraftRef
from stores.errors import StoreUnavailable
from stores.keys import META
from stores.redis.keys import Keys
from stores.store import Row

T = TypeVar("T")

# How much one server is sent at once; ten thousand rows are slower, and keep readers waiting for 10 ms.
MAX_ROWS, MAX_BYTES = 500, 1 << 20

# The share of time that writing may take. At 2,000 reads a second beside it on two cores: 200,000 rows a second and a
# p99 of 0.7 ms; with all of the time, 340,000 and 1 to 3 ms; without a publish, 0.14 ms.
WRITING_SHARE = 0.5

# How long a batch is tried again while the server restarts or another one takes over; what was written stays.
RETRY_FOR_S, RETRY_PAUSE_S = 10.0, 0.1

# Writes one batch of a draft: the list that is to have its keys, the rows, and the part that they are of, None for
# rows of no part. Returns how long to pause, in seconds; once tried again it changes nothing.
Write = Callable[[DraftRef, str, Sequence[Row], int | None], Awaitable[float]]


class RowsLost(StoreUnavailable):
    """Rows are gone that were acknowledged: to write them again, the publish must go on from its resume point."""


class Writer:
    """Puts batches, one at a time, at a rate that readers bear; lives as long as its store."""

    def __init__(
        self, write: Write, keys: Keys, *, servers: Callable[[], int] = lambda: 1, retry_for_s: float = RETRY_FOR_S
    ) -> None:
        """Take what writes a batch, and how many servers share it."""
        self._write = write
        self._keys = keys
        self._servers = servers
        self._retry_for_s = retry_for_s
        self._lock = asyncio.Lock()

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft, in order; raises as `Store.put` does."""
        meta = [row for row in rows if row.key.startswith(META)]
        others = [row for row in rows if not row.key.startswith(META)] if meta else rows
        for source, of, point in zip(self._keys.release(draft).lists, (others, meta), (part, None), strict=True):
            for batch in _bounded(of, self._servers()):
                async with self._lock:
                    write = partial(self._write, draft, source, batch, point)
                    await asyncio.sleep(await with_retries(write, self._retry_for_s))


async def with_retries(step: Callable[[], Awaitable[T]], for_s: float) -> T:
    """Take a step of a writer, which changes nothing once tried again, and try again while servers are away."""
    give_up_at = time.monotonic() + for_s
    while True:
        try:
            return await step()
        except StoreUnavailable as error:
            if time.monotonic() > give_up_at or isinstance(error, RowsLost):
                raise
            await asyncio.sleep(RETRY_PAUSE_S)


def _bounded(rows: Sequence[Row], servers: int) -> Iterator[Sequence[Row]]:
    max_rows, max_bytes = MAX_ROWS * servers, MAX_BYTES * servers
    start = size = 0
    for place, row in enumerate(rows):
        row_bytes = len(row.value)
        if place > start and (place - start == max_rows or size + row_bytes > max_bytes):
            yield rows[start:place]
            start, size = place, 0
        size += row_bytes
    if start < len(rows):
        yield rows[start:]
