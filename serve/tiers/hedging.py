"""Hedged reads: a late read is sent once more, to a replica or another region, and the first answer wins.

As by Dean and Barroso, "The Tail at Scale" (2013), and the long-tail retries of Venice: after the running 95th
percentile, and for at most a tenth of the reads.
"""

import asyncio
from collections.abc import Sequence

from hotplate.serve.metrics import HEDGE_LOST, HEDGE_WON, HEDGES, Metrics
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.concurrency import end_tasks
from hotplate.stores.encoding import Decode
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.store import Reader, ReadResult

# Share of reads that take longer than the delay, its relative change by a late read, its first value and bounds.
LATE = 0.05
STEP = 0.02
FIRST_S = 0.005
SHORTEST_S = 0.001  # uvloop counts milliseconds
LONGEST_S = 0.1
# Share of reads that may be sent once more, and how many of them in a row.
HEDGED = 0.1
BURST = 10.0


class Hedge:
    """Reads of one store, in one worker, on one loop."""

    def __init__(self, store: Reader, tier: str, metrics: Metrics) -> None:
        """Second reads are counted in *metrics* for *tier*."""
        self._store = store
        self._tier = tier
        self._metrics = metrics
        self._delay_s = FIRST_S
        self._tokens = BURST

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], decode: Decode, *, timeout_s: float
    ) -> list[ReadResult]:
        """Read the values of *keys* like `Reader.get_many`; if the reply is late, also from a replica.

        Returns the first answer; the slower read is cancelled. If the first read fails after the second was sent, the
        second one answers. A read is late after `self._delay_s`, which adapts to the 95th percentile of their times.
        Each read adds HEDGED of a token, and a second read costs one, so that at most a tenth of the reads are sent
        twice. A replica may lag, so a second read wins only if *decode* accepts a value for each key.
        """
        self._tokens = min(BURST, self._tokens + HEDGED)
        first = asyncio.create_task(self._store.get_many(release, keys, timeout_s=timeout_s))
        second: asyncio.Task[list[ReadResult] | None] | None = None
        outcome = HEDGE_LOST
        try:
            await asyncio.wait([first], timeout=self._delay_s)
            if first.done():
                answer = first.result()  # an error raises, and does not count as an early read
                self._adapt_delay(is_late=False)
                return answer
            self._adapt_delay(is_late=True)
            if self._tokens >= 1:
                self._tokens -= 1
                second = asyncio.create_task(self._read_elsewhere(release, keys, decode, timeout_s))
                await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
                has_failed = first.done() and isinstance(first.exception(), StoreUnavailable)
                results = await second if has_failed or second.done() else None
                if results is not None and (has_failed or not first.done()):
                    outcome = HEDGE_WON
                    return results
            return await first
        finally:
            if second is not None:
                self._metrics.count_in(HEDGES, self._tier, outcome)
            unfinished = [read for read in (first, second) if read is not None and not read.done()]
            if unfinished:
                await end_tasks(*unfinished)

    def _adapt_delay(self, *, is_late: bool) -> None:
        """Lengthen the delay after a late read, or shorten it; both cancel out while a share LATE of them is late."""
        change = STEP * (1 - LATE) if is_late else -STEP * LATE
        self._delay_s = min(LONGEST_S, max(SHORTEST_S, self._delay_s * (1 + change)))

    async def _read_elsewhere(
        self, release: ReleaseRef, keys: Sequence[str], decode: Decode, timeout_s: float
    ) -> list[ReadResult] | None:
        """Return the values of *keys* in a replica; None if one is absent or damaged, or after an error."""
        try:
            results = await self._store.get_many_elsewhere(release, keys, timeout_s=timeout_s)
            for key, result in zip(keys, results, strict=True):
                if not isinstance(result, bytes):
                    return None
                decode(key, result)  # checks key and release
        except Exception:  # noqa: BLE001 -- the first read will tell
            return None
        return results
