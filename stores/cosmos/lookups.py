"""Lookups: every key is a point read of its own, with a deadline of its own, so that one holds up or fails no other."""

import asyncio
from collections.abc import Callable, Sequence

from stores.catalogue import ReleaseId
from stores.cosmos.driver import Items
from stores.cosmos.errors import PASSING, ContainerMissing, CosmosThrottled, CosmosUnavailable
from stores.cosmos.items import container_of, name_of, value_of
from stores.errors import ReleaseNotFound, StoreError
from stores.store import Slot

LEAST_S = 0.001
"""With less time left, trying again is no use."""


class Lookups:
    """Reads keys of releases; lives as long as its store."""

    def __init__(self, items: Items, clock: Callable[[], float]) -> None:
        self._items = items
        self._clock = clock

    async def read(self, release: ReleaseId, keys: Sequence[str], timeout_s: float) -> list[Slot]:
        """Read as `Reader.get_many` does."""
        container = container_of(release)
        if len(keys) == 1:  # a task costs as much as a third of the read
            slots = [await self._slot(container, keys[0], timeout_s)]
        else:
            slots = await asyncio.gather(*(self._slot(container, key, timeout_s) for key in keys))
        failed = 0
        for slot in slots:
            if isinstance(slot, StoreError):
                if isinstance(slot, ContainerMissing):
                    raise ReleaseNotFound(f"release {release} is not in this store") from slot
                failed += 1
        if failed and failed == len(slots) and isinstance(slots[0], StoreError):
            raise slots[0]
        return slots

    async def _slot(self, container: str, key: str, timeout_s: float) -> Slot:
        give_up_at = self._clock() + timeout_s
        name = name_of(key)
        try:
            try:
                item = await self._items.read(container, name, timeout_s)
            except (CosmosThrottled, CosmosUnavailable) as error:
                pause_s = _pause_s(error)
                if pause_s is None or self._clock() + pause_s + LEAST_S > give_up_at:
                    return error
                await asyncio.sleep(pause_s)
                item = await self._items.read(container, name, give_up_at - self._clock())
            return None if item is None else value_of(item)
        except StoreError as error:
            return error


def _pause_s(error: CosmosThrottled | CosmosUnavailable) -> float | None:
    """Return how long to wait before trying again; None where that is no use."""
    if isinstance(error, CosmosThrottled):
        return error.retry_after_s
    return 0.0 if error.kind in PASSING else None
