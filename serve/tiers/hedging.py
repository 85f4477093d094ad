"""Hedged reads: a late read is sent once more, to a replica or another region, and the first answer wins.

As by Dean and Barroso, "The Tail at Scale" (2013), and the long-tail retries of Venice: after the running 95th
percentile, and for at most a tenth of the reads.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from hotplate.serve.metrics import HEDGE_LOST, HEDGE_WON, HEDGES, Metrics
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import Decode
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


@dataclass(slots=True, eq=False)
class _Race:
    """One hedged read: the first read runs in the task *first*, and the other one, if it is sent, in *second*."""

    first: asyncio.Task[object] | None
    release: ReleaseRef
    keys: Sequence[str]
    timeout_s: float
    decode: Decode
    is_late: bool = False
    is_over: bool = False
    second: asyncio.Task[None] | None = None
    results: list[ReadResult] | None = None
    """Of the second read, once it has won."""


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

        Returns the first answer; the slower read is cancelled. A read is late after `self._delay_s`, which adapts to
        the 95th percentile of their times. Each read adds HEDGED of a token, and a second read costs one, so that at
        most a tenth of the reads are sent twice. A replica may lag, so a second read wins only if *decode* accepts a
        value for each key.
        """
        race = _Race(first=asyncio.current_task(), release=release, keys=keys, timeout_s=timeout_s, decode=decode)
        timer = asyncio.get_running_loop().call_later(self._delay_s, self._start_second_read, race)
        self._tokens = min(BURST, self._tokens + HEDGED)

        try:
            results = await self._store.get_many(release, keys, timeout_s=timeout_s)
        except asyncio.CancelledError:
            # `_read_elsewhere` has won if it has set `race.results`: then it has cancelled this task once, which
            # `uncancel` takes back. Any other cancellation is the caller's, and goes on.
            if race.results is None or race.first is None or race.first.uncancel() > 0:
                raise
            return race.results
        finally:
            timer.cancel()
            self._end(race)

        if not race.is_late:
            self._shorten_delay()
        return results

    def _end(self, race: _Race) -> None:
        """Cancel the second read if it still runs, and count whether it has won."""
        race.is_over = True
        if race.second is not None:
            race.second.cancel()
            self._metrics.count_in(HEDGES, self._tier, HEDGE_LOST if race.results is None else HEDGE_WON)

    def _start_second_read(self, race: _Race) -> None:
        race.is_late = True
        self._lengthen_delay()
        if self._tokens >= 1:
            self._tokens -= 1
            race.second = asyncio.create_task(self._read_elsewhere(race))

    # Both steps cancel out while a share LATE of the reads is late.

    def _lengthen_delay(self) -> None:
        """Lengthen the delay after a late read."""
        self._delay_s = min(LONGEST_S, self._delay_s * (1 + STEP * (1 - LATE)))

    def _shorten_delay(self) -> None:
        """Shorten the delay after a read that was not late."""
        self._delay_s = max(SHORTEST_S, self._delay_s * (1 - STEP * LATE))

    async def _read_elsewhere(self, race: _Race) -> None:
        """Read the keys of *race*, a read that is late, from a replica as well: the first answer wins.

        If all values are intact, they become `race.results`, and the first read, another task, is cancelled. An absent
        or damaged value, or an error, ends this read without an effect: the first read goes on.
        """
        try:
            results = await self._store.get_many_elsewhere(race.release, race.keys, timeout_s=race.timeout_s)
            for key, result in zip(race.keys, results, strict=True):
                if not isinstance(result, bytes):
                    return
                race.decode(key, result)  # checks key and release
        except Exception:  # noqa: BLE001 -- the first read will tell
            return

        if not race.is_over and race.first is not None:
            race.results = results
            race.first.cancel()
