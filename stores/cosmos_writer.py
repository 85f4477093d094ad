"""Writing a draft: each row an item, many in flight; then the keys of the batch as one item, which acknowledges it.

Those items are numbered without gaps and never changed, for each is created, not put in the place of another: so the
last is found by reading a few, and two writers one after the other, or at once, lose nothing of each other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from stores.catalogue import ReleaseId
from stores.cosmos_charges import Charges
from stores.cosmos_driver import DEADLINE_S, Item, Items, Wrote
from stores.cosmos_errors import ContainerMissing
from stores.cosmos_items import STATE, container_of, item_bytes, keys_name, name_of, to_item, value_of
from stores.cosmos_patience import Patience, for_each
from stores.errors import ReleaseConflict, ReleaseNotFound
from stores.keylist import bounds, pack
from stores.keys import META
from stores.store import Row

ROWS, METAS = "rows", "metas"
"""The two series of batches: only the first tells where to resume."""

MOST_ROWS = 1000
"""How many keys one item acknowledges: 2 kB for ids of eight letters, 0.1 % of what the rows cost."""

LAGS_S = (0.02, 0.1)
"""How long a replica that is behind is given to catch up, before what it does not have counts as absent."""

DRAFT: Item = {"id": STATE, "state": "draft"}
SEALED: Item = {"id": STATE, "state": "sealed"}


class Writer:
    """Puts batches and finds what was put; lives as long as its store."""

    def __init__(self, items: Items, patience: Patience, charges: Charges) -> None:
        self._items = items
        self._patience = patience
        self._charges = charges
        self._numbers = dict[tuple[str, str], int]()

    async def begin(self, container: str) -> None:
        """Say of a container that it holds a draft, unless it says something of itself."""
        for series in (ROWS, METAS):
            self._numbers.pop((container, series), None)  # somebody else may have erased it meanwhile
        await self._patience.insist(partial(self._items.create, container, DRAFT))

    async def state(self, release: ReleaseId) -> str:
        """Return `draft` or `sealed`; ReleaseNotFound where the release is not there, or not yet."""
        try:
            found = await self.read(container_of(release), STATE)
        except ContainerMissing as error:
            raise not_found(release) from error
        if found is None:
            raise not_found(release)
        return str(found["state"])

    async def seal(self, release: ReleaseId) -> None:
        """Turn a draft into a release that takes no more rows."""
        container = container_of(release)
        try:
            while True:
                item, etag, _ = await self._patience.insist(partial(self._items.look, container, STATE))
                if item is None:
                    raise not_found(release)
                if item["state"] == SEALED["state"]:
                    return
                await self._patience.insist(partial(self._items.replace, container, SEALED, etag))
        except ContainerMissing as error:
            raise not_found(release) from error

    async def put(self, release: ReleaseId, rows: Sequence[Row]) -> None:
        """Write rows of a draft, in order; raises as `Store.put` does."""
        if not rows:
            return
        if await self.state(release) != DRAFT["state"]:
            raise ReleaseConflict(f"release {release} is sealed; publish a new one")
        meta = [row for row in rows if row.key.startswith(META)]
        others = [row for row in rows if not row.key.startswith(META)] if meta else rows
        container = container_of(release)
        try:
            for series, part in ((ROWS, others), (METAS, meta)):
                for start in range(0, len(part), MOST_ROWS):
                    await self._write(container, series, part[start : start + MOST_ROWS])
        except ContainerMissing as error:
            raise not_found(release) from error

    async def resume_point(self, release: ReleaseId) -> str | None:
        """Return the last key of the last batch of rows that was acknowledged."""
        await self.state(release)
        container = container_of(release)
        last = await self.last_number(container, ROWS)
        return bounds(await self.packed(container, ROWS, last))[1] if last else None

    async def last_number(self, container: str, series: str) -> int:
        """Find the number of the last acknowledged batch by some reads: twice the logarithm of their number."""
        known = low = self._numbers.get((container, series), 0)
        step, high = 1, None
        while high is None or high - low > 1:
            middle = low + step if high is None else (low + high) // 2
            if await self.read(container, keys_name(series, middle)) is None:
                high = middle
            else:
                low, step = middle, step * 2
            if high == low + 1 and not known and await self.read_again(container, keys_name(series, high)):
                low, step, high = high, 1, None
        self._numbers[container, series] = low
        return low

    async def packed(self, container: str, series: str, number: int) -> bytes:
        """Return the packed keys of one batch; ReleaseCorrupt where they were lost."""
        name = keys_name(series, number)
        found = await self.read(container, name) or await self.read_again(container, name)
        return value_of(found or {"id": name})

    async def read(self, container: str, name: str) -> Item | None:
        """Read an item as a publisher does, out of the budget."""
        return await self._patience.spend(
            self._charges.read(0), lambda: self._items.read(container, name, DEADLINE_S, fresh=True), self._read_ru
        )

    async def read_again(self, container: str, name: str) -> Item | None:
        """Look once more, and once more, for what should be there: the replica that answered may be behind others."""
        for pause_s in LAGS_S:
            await asyncio.sleep(pause_s)
            if (found := await self.read(container, name)) is not None:
                return found
        return None

    async def _write(self, container: str, series: str, batch: Sequence[Row]) -> None:
        await for_each(batch, partial(self._upsert, container))
        item = to_item(series, pack([row.key for row in batch]))
        if (container, series) not in self._numbers:
            await self.last_number(container, series)
        done = False
        while not done:
            number = self._numbers[container, series] + 1
            item["id"] = keys_name(series, number)
            done = await self._send(item, partial(self._items.create, container))
            self._numbers[container, series] = number  # not done: another writer has it, so it is taken all the same

    async def _upsert(self, container: str, row: Row) -> None:
        await self._send(to_item(name_of(row.key), row.value), partial(self._items.upsert, container))

    async def _send(self, item: Item, how: Callable[[Item], Awaitable[Wrote]]) -> bool:
        expected_ru = self._charges.create(item_bytes(item), 0)
        return (await self._patience.spend(expected_ru, lambda: how(item), _charge_ru)).done

    def _read_ru(self, found: Item | None) -> float:
        if found is None:
            return self._charges.not_found(strong=False)
        return self._charges.read(item_bytes(found))


def _charge_ru(wrote: Wrote) -> float:
    return wrote.charge_ru


def not_found(release: ReleaseId) -> ReleaseNotFound:
    """Say that a release has no container, or one without a word of what it is."""
    return ReleaseNotFound(f"release {release} is not in this store")
