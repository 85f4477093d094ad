"""Tiers: several stores behind one service, each with its own live release and its own breaker."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, perf_counter
from typing import NamedTuple

from serve.breaker import FAILURES, FAILURES_OF_PARTS, Breaker
from serve.deadlines import Deadlines
from serve.following import Follower, View
from serve.metrics import REQUEST_UNITS, Metrics
from stores.errors import PartUnavailable, ReleaseNotFound, StoreError, StoreUnavailable
from stores.store import LocalReader, Reader, Slot

log = logging.getLogger(__name__)

AT_ONCE = 256
"""How many keys of a store in this process are read before others have their turn: half a millisecond."""

ASKED_FOR = 0.9
"""The share of its time after which a patient reader gives up what is missing, so that the rest is still in time."""

TOLD_EVERY_S = 60.0
"""A store that is spared time and again, as one with too little throughput is, tells so no more often."""

_ELSEWHERE = StoreError("the store is not in this process")


class Reading(NamedTuple):
    """What came of a read: the release it was made in, and one decoded slot a key."""

    view: View
    slots: list[Slot]


class StoreObserver:
    """Counts what the attempts of one tier's store come to, in the shared counters."""

    def __init__(self, tier: str, metrics: Metrics) -> None:
        self._tier = tier
        self._metrics = metrics

    def charged(self, ru: float) -> None:
        """See `stores.store.Observer`."""
        self._metrics.count_attempt(self._tier, REQUEST_UNITS, ru)

    def failed(self, kind: str) -> None:
        """See `stores.store.Observer`."""
        self._metrics.count_attempt(self._tier, kind)


class Tier:
    """One store of a service, by the name that answers give; lives as long as its worker."""

    def __init__(self, name: str, reader: Reader, metrics: Metrics) -> None:
        self.name = name
        self.follower = Follower(reader)
        self.breaker = Breaker(monotonic)
        self._reader = reader
        self._local = reader if isinstance(reader, LocalReader) else None
        self._metrics = metrics
        self._deadlines = Deadlines()
        self._spared = ""
        """Why the store was spared last."""
        self._told_at = float("-inf")
        self._told = False
        """Whether the log says that the store is being spared."""

    @property
    def trouble(self) -> str | None:
        """What is wrong with this tier, in a sentence; None while all is well."""
        if self.breaker.is_open:
            return self.follower.trouble or self._spared
        return self.follower.trouble

    async def close(self) -> None:
        """Close the store."""
        await self._reader.close()

    def get(self, view: View, key: str) -> Slot:
        """Read one key at once where the store is in this process; a StoreError where it takes a `read`."""
        if self._local is None:
            return _ELSEWHERE
        started = perf_counter()
        try:
            value = self._local.get(view.ref, key)
        except StoreError as error:
            return error
        self._metrics.observe_store(self.name, "get", "ok", perf_counter() - started)
        return value if value is None else _decoded(view, value)

    async def read(self, view: View, keys: Sequence[str], timeout_s: float) -> Reading:
        """Read *keys* in *view*, or, where its release is gone, in what is live now.

        Raises StoreError when nothing could be read in time, or when the store is being spared. A store in this
        process is not late but busy with us, so it has no deadline.
        """
        if self._local is not None:
            with suppress(ReleaseNotFound):
                return await self._read_here(self._local, view, keys)
        if not self.breaker.allows():
            raise StoreUnavailable(f"{self.name} is spared until it answers again")
        try:
            reading = await self._deadlines.within(timeout_s, self._read_live(view, keys, monotonic() + timeout_s))
        except TimeoutError:
            late = StoreUnavailable(f"{self.name} did not answer in {timeout_s * 1000:.0f} ms")
            self._failed(late)
            raise late from None
        except BaseException as error:
            self._failed(error)
            raise
        if self._told:
            self._told = False
            log.warning("%s answers again", self.name)
        self.breaker.succeeded()
        return reading

    def _failed(self, error: BaseException) -> None:
        """Tell the breaker; a store that reads key by key may have failed this one only."""
        was_open = self.breaker.is_open
        of_a_part = isinstance(error, PartUnavailable)
        self.breaker.failed(FAILURES_OF_PARTS if of_a_part else FAILURES)
        if self.breaker.is_open and not was_open:
            self._spared = f"it fails, and is spared until it answers again: {error}"
            if monotonic() >= self._told_at + TOLD_EVERY_S:
                self._told_at, self._told = monotonic(), True
                log.warning("%s: %s", self.name, self._spared)

    async def _read_here(self, reader: LocalReader, view: View, keys: Sequence[str]) -> Reading:
        slots = list[Slot]()
        for start in range(0, len(keys), AT_ONCE):
            started = perf_counter()
            slots += [_decoded(view, reader.get(view.ref, key)) for key in keys[start : start + AT_ONCE]]
            self._metrics.observe_store(self.name, "get_many", "ok", perf_counter() - started)
            if start + AT_ONCE < len(keys):
                await asyncio.sleep(0)  # others are served in between
        return Reading(view, slots)

    async def _read_live(self, view: View, keys: Sequence[str], deadline: float) -> Reading:
        read = self._read_batch if len(keys) <= self._reader.batch else self._read_batches
        try:
            return Reading(view, await read(view, keys, deadline))
        except ReleaseNotFound:
            view = await self.follower.refresh() or view
            return Reading(view, await read(view, keys, deadline))

    async def _read_batches(self, view: View, keys: Sequence[str], deadline: float) -> list[Slot]:
        size = self._reader.batch
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        read = await asyncio.gather(*(self._read_batch_alone(view, batch, deadline) for batch in batches))
        first = read[0][0]
        if isinstance(first, StoreError) and all(isinstance(slot, StoreError) for slots in read for slot in slots):
            raise first
        return [slot for slots in read for slot in slots]

    async def _read_batch_alone(self, view: View, keys: Sequence[str], deadline: float) -> list[Slot]:
        """Read one batch of several: where nothing of it can be read, the others need not suffer."""
        try:
            return await self._read_batch(view, keys, deadline)
        except ReleaseNotFound:
            raise
        except StoreError as error:
            return [error] * len(keys)

    async def _read_batch(self, view: View, keys: Sequence[str], deadline: float) -> list[Slot]:
        started, outcome = perf_counter(), "error"
        try:
            timeout_s = max(0.0, deadline - monotonic()) * ASKED_FOR
            slots = await self._reader.get_many(view.ref, keys, timeout_s=timeout_s)
            outcome = "ok"
        except ReleaseNotFound:
            outcome = "gone"
            raise
        finally:
            self._metrics.observe_store(self.name, "get_many", outcome, perf_counter() - started)
        return [_decoded(view, slot) for slot in slots]


def _decoded(view: View, slot: Slot) -> Slot:
    if not isinstance(slot, bytes):
        return slot
    try:
        return view.decode(slot)
    except StoreError as error:
        return error
