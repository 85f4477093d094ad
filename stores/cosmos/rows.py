"""The rows of a release: an item each, written many at a time; then the packed keys of the batch, which acknowledge it.

Those batch items are numbered without gaps in a series for each part of the release, and are created, never replaced:
so the last is found by reading a few, and two writers, one after the other or at once, lose nothing of each other.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial

from stores.catalogue import DraftRef, ReleaseRef
from stores.cosmos.charges import Charges
from stores.cosmos.errors import ContainerMissing
from stores.cosmos.items import (
    STATE,
    Item,
    Items,
    ItemWritten,
    batch_name,
    container_of,
    item_bytes,
    name_of,
    to_item,
    value_of,
)
from stores.cosmos.requests import DEADLINE_S
from stores.cosmos.retry import Retrier, for_each
from stores.keys import META, Span, bounds, merged, pack
from stores.store import Row, not_found, sealed

# The two kinds of series of batches: only the first, which each part has of its own, tells where to resume.
ROWS, METAS = "rows", "metas"

# How many keys one item acknowledges: 2 kB for ids of eight letters, 0.1 % of what the rows cost.
BATCH_ROWS = 1000

# How long a replica that is behind is given to catch up, before what it does not have counts as absent.
REPLICA_LAGS_S = (0.02, 0.1)

DRAFT, SEALED = "draft", "sealed"

AnyRef = ReleaseRef | DraftRef


class ReleaseRows:
    """Writes, acknowledges and scans rows within a budget of request units; lives as long as its store."""

    def __init__(self, items: Items, retrier: Retrier, charges: Charges) -> None:
        self._items = items
        self._retrier = retrier
        self._charges = charges
        self._last = dict[tuple[str, str], int]()
        """The number of the last batch known, by container and series."""

    async def begin(self, draft: DraftRef) -> None:
        """Mark a new container as a draft, unless it is marked already."""
        container = container_of(draft)
        for known in [key for key in self._last if key[0] == container]:
            del self._last[known]  # somebody else may have erased what was there
        await self._retrier.until_visible(partial(self._items.create, container, {"id": STATE, "state": DRAFT}))

    async def check(self, release: AnyRef) -> None:
        """Raise ReleaseNotFound where a release is not there, or not yet."""
        await self._state(release)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft, in order; raises as `Store.put` does."""
        if not rows:
            return
        state = await self._state(draft)
        if state["state"] != DRAFT:
            raise sealed(draft)
        try:
            if part and part not in state.get("parts", ()):
                await self._change_state(draft, lambda old: old | {"parts": sorted({*old.get("parts", ()), part})})
            for series, chunk in _chunks(rows, part):
                await self._write(container_of(draft), series, chunk)
        except ContainerMissing as error:
            raise not_found(draft) from error

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """Return the last key of the last acknowledged batch of *part*."""
        await self._state(draft)
        container, series = container_of(draft), _series(part)
        last = await self._find_last(container, series)
        return bounds(await self._packed(container, series, last))[1] if last else None

    async def seal(self, draft: DraftRef) -> None:
        """Turn a draft into a release that takes no more rows."""
        try:
            await self._change_state(draft, lambda found: found | {"state": SEALED})
        except ContainerMissing as error:
            raise not_found(draft) from error

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        """Yield every row, in ascending order of key bytes: the keys of each batch, and a fresh read of each row."""
        container = container_of(release)
        parts = (await self._state(release)).get("parts", ())
        try:
            spans = await self._spans(container, [_series(0), *map(_series, parts), METAS])
            async for keys in merged(spans, lambda span: self._packed(container, span.source, span.place)):
                values = dict[str, bytes]()
                await for_each(keys, partial(self._read_row, container, values))
                for key in keys:
                    if key in values:
                        yield Row(key, values[key])
        except ContainerMissing as error:
            raise not_found(release) from error

    async def _spans(self, container: str, series: Iterable[str]) -> list[Span]:
        """Return which keys each acknowledged batch reaches over: one read a batch."""
        spans = list[Span]()

        async def add(name: str, number: int) -> None:
            spans.append(Span(*bounds(await self._packed(container, name, number)), name, number))

        for name in series:
            last = await self._find_last(container, name)
            await for_each(range(1, last + 1), partial(add, name))
        return spans

    async def _read_row(self, container: str, values: dict[str, bytes], key: str) -> None:
        found = await self._read(container, name_of(key)) or await self._read_again(container, name_of(key))
        if found is not None:
            values[key] = value_of(found)

    async def _write(self, container: str, series: str, batch: Sequence[Row]) -> None:
        values = dict(batch)  # of a key given twice, the last value counts, and rows are not written in order
        await for_each(list(values.items()), partial(self._upsert, container))
        item = to_item(series, pack(list(values)))
        known = self._last.get((container, series))
        number = await self._find_last(container, series) if known is None else known
        done = False
        while not done:  # not done: another writer has that number
            number += 1
            item["id"] = batch_name(series, number)
            done = await self._send(item, partial(self._items.create, container))
            self._last[container, series] = max(number, self._last.get((container, series), 0))

    async def _upsert(self, container: str, row: tuple[str, bytes]) -> None:
        key, value = row
        await self._send(to_item(name_of(key), value), partial(self._items.upsert, container))

    async def _send(self, item: Item, write: Callable[[Item], Awaitable[ItemWritten]]) -> bool:
        expected_ru = self._charges.create(item_bytes(item), 0)
        return (await self._retrier.with_budget(expected_ru, lambda: write(item), lambda done: done.charge_ru)).done

    async def _state(self, release: AnyRef) -> Item:
        """Return the item that says whether a release is a draft, and its parts; ReleaseNotFound without one."""
        try:
            container = container_of(release)
            found = await self._read(container, STATE) or await self._read_again(container, STATE)
        except ContainerMissing as error:
            raise not_found(release) from error
        if found is None:
            raise not_found(release)
        return found

    async def _change_state(self, draft: DraftRef, change: Callable[[Item], Item]) -> None:
        """Replace the state by what *change* makes of it, by compare-and-set; ReleaseNotFound where there is none."""
        container = container_of(draft)
        done = False
        while not done:  # not done: somebody else changed it first
            item, etag, _ = await self._retrier.call(partial(self._items.read_versioned, container, STATE))
            if item is None:
                raise not_found(draft)
            ours = {name: value for name, value in item.items() if name[0] != "_"}
            changed = change(ours)
            if changed == ours:
                return
            done = (await self._retrier.call(partial(self._items.replace, container, changed, etag))).done

    async def _find_last(self, container: str, series: str) -> int:
        """Find the number of the last batch by some reads: twice the logarithm of how many are news; 0 for none."""
        known = low = self._last.get((container, series), 0)
        step, high = 1, None
        while high is None or high - low > 1:
            middle = low + step if high is None else (low + high) // 2
            if await self._read(container, batch_name(series, middle)) is None:
                high = middle
            else:
                low, step = middle, step * 2
            if high == low + 1 and not known and await self._read_again(container, batch_name(series, high)):
                low, step, high = high, 1, None
        self._last[container, series] = low
        return low

    async def _packed(self, container: str, series: str, number: int) -> bytes:
        """Return the packed keys of one batch; ReleaseCorrupt where they were lost."""
        name = batch_name(series, number)
        found = await self._read(container, name) or await self._read_again(container, name)
        return value_of(found or {"id": name})

    async def _read(self, container: str, name: str) -> Item | None:
        """Read an item as a publisher does, out of the budget."""
        return await self._retrier.with_budget(
            self._charges.read(0), lambda: self._items.read(container, name, DEADLINE_S, fresh=True), self._read_charge
        )

    async def _read_again(self, container: str, name: str) -> Item | None:
        """Read twice more what should be there: the replica that responded may be behind others."""
        for pause_s in REPLICA_LAGS_S:
            await asyncio.sleep(pause_s)
            if (found := await self._read(container, name)) is not None:
                return found
        return None

    def _read_charge(self, found: Item | None) -> float:
        if found is None:
            return self._charges.not_found(strong=False)
        return self._charges.read(item_bytes(found))


def _series(part: int) -> str:
    return f"{ROWS}-{part}" if part else ROWS


def _chunks(rows: Sequence[Row], part: int) -> Iterator[tuple[str, Sequence[Row]]]:
    """Yield the rows of one put as they are acknowledged together, each time with its series."""
    meta = [row for row in rows if row.key.startswith(META)]
    others = [row for row in rows if not row.key.startswith(META)] if meta else rows
    for series, chosen in ((_series(part), others), (METAS, meta)):
        for start in range(0, len(chosen), BATCH_ROWS):
            yield series, chosen[start : start + BATCH_ROWS]
