"""Reads keys in tier after tier, batched by event-loop iteration or by request.

All single keys of one iteration share a task, a deadline and a store call. A lookup joins a read of the same key.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hotplate.serve.releases.served import ServedCanary, ServedRelease
from hotplate.serve.telemetry.spans import RequestSpan, sampled_requests
from hotplate.serve.tiers import ReleaseMoved, Tier, loop_time
from hotplate.stores.encoding import is_empty
from hotplate.stores.errors import ReleaseCorrupt, StoreError, StoreUnavailable
from hotplate.stores.store import Slot

log = logging.getLogger(__name__)

Waiter = TypeVar("Waiter")

Origin = tuple[Tier, ServedRelease]
# Called with a key, its waiters, the origin (None if no tier could be read), and the list (None if absent).
Complete = Callable[[str, Sequence[Waiter], Origin | None, bytes | None], None]
# Called with the keys and slots of a request with many keys.
TakeAll = Callable[[Origin, Sequence[str], Sequence[Slot]], None]


@dataclass(slots=True)
class _Batch(Generic[Waiter]):
    deadline: float
    """By `loop_time`."""

    waiting: dict[str, list[Waiter]]
    """Waiters of incomplete keys; unused with `take_all`."""

    take_all: TakeAll | None = None
    """For one request with many keys, from the first tier that can be read."""

    read_by: float | None = None
    """When the caller of that request stops waiting."""

    spans: dict[str, list[RequestSpan]] | None = None
    missed: dict[str, list[Origin]] = field(default_factory=dict)
    failure: StoreError | None = None
    """The last transient error."""

    def has_missed(self, key: str, served: ServedRelease) -> bool:
        return any(other.id == served.id for _, other in self.missed.get(key, ()))


class Lookups(Generic[Waiter]):
    """Reads keys for waiters, on one loop.

    The first tier that returns a list in its share of the budget wins. After an error the next tier is read; after a
    missing list, only tiers with another release.
    """

    def __init__(self, tiers: Sequence[Tier], budget_s: float, complete: Complete[Waiter]) -> None:
        self._tiers = tiers
        self._budget_s = budget_s
        self._complete = complete
        self._turn = list[str]()
        self._turn_spans: dict[str, list[RequestSpan]] | None = None
        self._waiting = dict[str, list[Waiter]]()
        self._served = list[ServedRelease | ServedCanary | None]()
        """Releases of the reads in `_waiting`."""

        self._reads = set[asyncio.Task[None]]()

    def add(self, key: str, waiter: Waiter) -> None:
        """Read *key* in this loop iteration, or join a read of it; completes *waiter* later."""
        if not self._turn:
            followers = [tier.follower for tier in self._tiers]
            served = [each for one in followers for each in (one.served, one.canary)]
            if served != self._served:
                self._served, self._waiting = served, {}  # never join a read from before a flip
        if (waiters := self._waiting.get(key)) is not None:
            waiters.append(waiter)
            if not self._turn:
                return
        else:
            self._waiting[key] = [waiter]
            if not self._turn:
                self._spawn(self._read_turn())
            self._turn.append(key)
        if spans := sampled_requests.get():
            self._turn_spans = self._turn_spans or {}
            self._turn_spans.setdefault(key, []).extend(spans)

    def leave(self, key: str, waiter: Waiter) -> None:
        """Do not complete *waiter*, unless it waits for a release from before a flip."""
        if waiter in (waiters := self._waiting.get(key, [])):
            waiters.remove(waiter)

    async def read_many(
        self, keys: Sequence[str], deadline: float, take_all: TakeAll, read_by: float | None = None
    ) -> tuple[Sequence[str], StoreError | None]:
        """Read the keys of one request; return those that no tier could read, and a transient error.

        Tiers also share the time until *read_by*, when its caller stops waiting; a late one has not failed.
        """
        batch = _Batch[Waiter](deadline, {}, take_all, read_by)
        return await self._walk(batch, keys, 0, set()), batch.failure

    async def close(self) -> None:
        """Wait for pending reads."""
        while self._reads:
            await asyncio.wait(self._reads)

    async def _read_turn(self) -> None:
        keys, self._turn = self._turn, []
        spans, self._turn_spans = self._turn_spans, None
        await self._read(_Batch(loop_time() + self._budget_s, self._waiting, spans=spans), keys)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)

    async def _read(self, batch: _Batch[Waiter], keys: Sequence[str], first: int = 0) -> None:
        """Read keys from tier *first* on, and complete all, even after an error."""
        handed_on = set[str]()
        try:
            keys = await self._walk(batch, keys, first, handed_on)
        except Exception:
            log.exception("a lookup failed")
        finally:
            for key in keys:
                if key not in handed_on and (waiters := batch.waiting.pop(key, None)):
                    missed = batch.missed.get(key)
                    self._complete(key, waiters, missed[0] if missed else None, None)

    async def _walk(self, batch: _Batch[Waiter], keys: Sequence[str], first: int, handed_on: set[str]) -> Sequence[str]:
        """Return keys without a list that were not *handed_on* to another task."""
        for place in range(first, len(self._tiers)):
            tier = self._tiers[place]
            if batch.take_all is None:
                if tier.breaker.is_open:
                    keys = self._take_at_hand(batch, keys, tier)
                size = tier.keys_a_call
                handed_on.update(keys[size:])
                for start in range(size, len(keys), size):
                    self._spawn(self._read(batch, keys[start : start + size], place))
                keys = keys[:size]
                if len(keys) > 1 and tier.breaker.is_open:  # one key probes the store
                    handed_on.update(keys[1:])
                    self._spawn(self._read(batch, keys[1:], place + 1))
                    keys = keys[:1]
            if not keys:
                break
            keys = await self._read_tier(batch, keys, place)
        return keys

    def _take_at_hand(self, batch: _Batch[Waiter], keys: Sequence[str], tier: Tier) -> Sequence[str]:
        rest = list[str]()
        for served, group in (groups := tier.follower.grouped(keys)):
            rest += self._take(batch, (tier, served), group, [tier.get(served, key) for key in group])
        return rest if groups else keys

    async def _read_tier(
        self, batch: _Batch[Waiter], keys: Sequence[str], place: int, served: ServedRelease | None = None
    ) -> Sequence[str]:
        tier = self._tiers[place]
        if served is None:
            groups = tier.follower.grouped(keys)
            if len(groups) != 1:
                rests = await asyncio.gather(*(self._read_tier(batch, group, place, one) for one, group in groups))
                return [key for rest in rests for key in rest] if groups else keys
            served = groups[0][0]
        missed = {key for key in keys if batch.has_missed(key, served)} if batch.missed else set[str]()
        wanted = [key for key in keys if key not in missed] if missed else keys
        if not wanted:
            return keys
        timeout_s = self._share_s(batch.deadline, place)
        if batch.spans is not None:
            sampled_requests.set(tuple(span for key in wanted for span in batch.spans.get(key, ())))
        try:
            reading = tier.read_through(served, wanted, timeout_s)
            slots = await (reading if batch.read_by is None else _within(self._share_s(batch.read_by, place), reading))
        except ReleaseMoved:
            return await self._read_tier(batch, keys, place)
        except StoreError as error:
            if batch.take_all is not None and not isinstance(error, ReleaseCorrupt):
                batch.failure = error
            return keys
        if batch.take_all is not None:
            batch.take_all((tier, served), wanted, slots)
            return ()
        return [*missed, *self._take(batch, (tier, served), wanted, slots)]

    def _share_s(self, until: float, place: int) -> float:
        """Return an equal share of the time left for the tiers from *place* on."""
        return max(0.0, until - loop_time()) / (len(self._tiers) - place)

    def _take(self, batch: _Batch[Waiter], origin: Origin, keys: Sequence[str], slots: Sequence[Slot]) -> Sequence[str]:
        waiting, complete, rest = batch.waiting, self._complete, list[str]()
        for key, slot in zip(keys, slots, strict=True):
            if isinstance(slot, bytes) and not is_empty(slot):
                complete(key, waiting.pop(key, ()), origin, slot)
            else:
                rest.append(key)
                if not isinstance(slot, StoreError):
                    batch.missed.setdefault(key, []).append(origin)
        return rest


async def _within(timeout_s: float, reading: Coroutine[Any, Any, list[Slot]]) -> list[Slot]:
    """Cancel a read whose caller stops waiting, which says nothing about the store."""
    try:
        async with asyncio.timeout(timeout_s):
            return await reading
    except TimeoutError:
        raise StoreUnavailable("the caller could not wait") from None
