"""Writing a draft: each row an item, many in flight; then the keys of the batch as one item, which acknowledges it."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

from stores.catalogue import ReleaseId
from stores.cosmos.batches import METAS, ROWS, Batches, not_found
from stores.cosmos.charges import Charges
from stores.cosmos.driver import Item, Items, Wrote
from stores.cosmos.errors import ContainerMissing
from stores.cosmos.items import STATE, container_of, item_bytes, keys_name, name_of, to_item
from stores.cosmos.patience import Patience, for_each
from stores.errors import ReleaseConflict
from stores.keys import META, pack
from stores.store import Row

MOST_ROWS = 1000
"""How many keys one item acknowledges: 2 kB for ids of eight letters, 0.1 % of what the rows cost."""

DRAFT: Item = {"id": STATE, "state": "draft"}
SEALED: Item = {"id": STATE, "state": "sealed"}


class Writer:
    """Puts batches and seals drafts; lives as long as its store."""

    def __init__(self, items: Items, patience: Patience, charges: Charges, batches: Batches) -> None:
        self._items = items
        self._patience = patience
        self._charges = charges
        self._batches = batches

    async def begin(self, container: str) -> None:
        """Say of a container that it holds a draft, unless it says something of itself."""
        self._batches.forget(container)  # somebody else may have erased what was there
        await self._patience.settle(partial(self._items.create, container, DRAFT))

    async def seal(self, release: ReleaseId) -> None:
        """Turn a draft into a release that takes no more rows."""
        container = container_of(release)
        try:
            done = False
            while not done:  # not done: somebody else is at it, too
                item, etag, _ = await self._patience.insist(partial(self._items.look, container, STATE))
                if item is None:
                    raise not_found(release)
                if item["state"] == SEALED["state"]:
                    return
                done = (await self._patience.insist(partial(self._items.replace, container, SEALED, etag))).done
        except ContainerMissing as error:
            raise not_found(release) from error

    async def put(self, release: ReleaseId, rows: Sequence[Row]) -> None:
        """Write rows of a draft, in order; raises as `Store.put` does."""
        if not rows:
            return
        if await self._batches.state(release) != DRAFT["state"]:
            raise ReleaseConflict(f"release {release} is sealed; publish a new one")
        container = container_of(release)
        try:
            for series, chunk in chunks(rows):
                await self._write(container, series, chunk)
        except ContainerMissing as error:
            raise not_found(release) from error

    async def _write(self, container: str, series: str, batch: Sequence[Row]) -> None:
        values = dict(batch)  # of a key given twice, the last value counts, and rows are not written in order
        await for_each(list(values.items()), partial(self._upsert, container))
        item = to_item(series, pack(list(values)))
        number = await self._batches.last(container, series)
        done = False
        while not done:  # not done: another writer has that number
            number += 1
            item["id"] = keys_name(series, number)
            done = await self._send(item, partial(self._items.create, container))
            self._batches.learn(container, series, number)

    async def _upsert(self, container: str, row: tuple[str, bytes]) -> None:
        key, value = row
        await self._send(to_item(name_of(key), value), partial(self._items.upsert, container))

    async def _send(self, item: Item, how: Callable[[Item], Awaitable[Wrote]]) -> bool:
        expected_ru = self._charges.create(item_bytes(item), 0)
        return (await self._patience.spend(expected_ru, lambda: how(item), _charge_ru)).done


def chunks(rows: Sequence[Row]) -> Iterator[tuple[str, Sequence[Row]]]:
    """Yield the rows of one put as they are acknowledged together, each time with its series."""
    meta = [row for row in rows if row.key.startswith(META)]
    others = [row for row in rows if not row.key.startswith(META)] if meta else rows
    for series, part in ((ROWS, others), (METAS, meta)):
        for start in range(0, len(part), MOST_ROWS):
            yield series, part[start : start + MOST_ROWS]


def _charge_ru(wrote: Wrote) -> float:
    return wrote.charge_ru
