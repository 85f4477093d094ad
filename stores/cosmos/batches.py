"""Batch items, which acknowledge rows: each holds the packed keys of a batch, and its number in a series.

The batches of a series are numbered from 1 without gaps. Which series there are is
part of a release's state (`hotplate.stores.cosmos.release_state`).
"""

from collections.abc import Sequence

from hotplate.stores.cosmos.items import to_item, value_of
from hotplate.stores.cosmos.paced_items import PacedItems
from hotplate.stores.cosmos.release_state import ReleaseState
from hotplate.stores.encoding import pack
from hotplate.stores.errors import HEAL, ReleaseCorrupt


class Batches:
    """Reads and writes batch items; no request is repeated."""

    def __init__(self, items: PacedItems) -> None:
        self._items = items
        self._last = dict[tuple[str, str], int]()
        """Number of the last known batch, by container and series."""

    def forget(self, container: str) -> None:
        """Forget the known batches of a container, which may have been erased."""
        self._last = {key: number for key, number in self._last.items() if key[0] != container}

    async def read(self, container: str, series: str, number: int) -> bytes:
        """Return the packed keys of a batch; ReleaseCorrupt if it is absent."""
        name = _name(series, number)
        item = await self._items.read_surely(container, name)
        if item is None:
            raise ReleaseCorrupt(f"the item {name!r} of the container {container} is missing; {HEAL}")
        return value_of(item)

    async def append(self, container: str, series: str, keys: Sequence[str]) -> None:
        """Add a batch item with the packed *keys* to a series, by the first number that is free.

        A series is the batch items of one writer and part, numbered from 1 without gaps. Another task, or an earlier
        attempt whose response was lost, may have taken the number after the last known one.
        """
        item = to_item(series, pack(keys))
        number = self._last.get((container, series))
        if number is None:
            number = await self.find_last(container, series)

        is_created = False
        while not is_created:
            number += 1
            item["id"] = _name(series, number)
            is_created = await self._items.create(container, item)
            self._last[container, series] = max(number, self._last.get((container, series), 0))

    async def find_last_of_all(self, container: str, state: ReleaseState) -> dict[str, int]:
        """Return the numbers of the last batches of all writers, by series; 0 for a series without batches."""
        last_numbers = dict(state.former)
        for series in state.series_names:
            last_numbers[series] = await self.find_last(container, series)
        return last_numbers

    async def find_last(self, container: str, series: str) -> int:
        """Return the number of the last batch item of a series; 0 for an empty one."""
        known = self._last.get((container, series), 0)
        last = known
        while await self._has_more(container, series, last, is_sure=known > 0):
            last += 1
            self._last[container, series] = last  # where a repeated call continues
        return last

    async def _has_more(self, container: str, series: str, last: int, *, is_sure: bool) -> bool:
        """Return whether a series has items after the *last* one, of which one may be lost.

        A replica may lag, and not have the last items yet. So unless *is_sure*, the next item is read several times
        before it counts as absent.
        """
        for number in (last + 1, last + 2):
            if (await self._items.read(container, _name(series, number))).item is not None:
                return True
        return not is_sure and await self._items.read_surely(container, _name(series, last + 1)) is not None


def _name(series: str, number: int) -> str:
    return f"{series}-{number}"
