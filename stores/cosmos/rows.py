"""Rows of a release as items; a batch item with the packed keys acknowledges each batch.

Rows are created, never replaced, so a late write changes nothing. The item `state` names the draft's writer, which is
replaced by compare-and-set (`hotplate.stores.cosmos.release_state`). Batch items are numbered in a series per part and
writer (`hotplate.stores.cosmos.batches`). A writer that takes over records the last numbers of the former series, and
starts new ones. Rows that the former writer had in flight may still appear if the new rows lack their keys.

Public methods repeat their steps. A step is a few requests of one attempt each: a row, a batch item, a change of state.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.cosmos.batches import Batches
from hotplate.stores.cosmos.items import container_of, name_of, to_item, value_of
from hotplate.stores.cosmos.paced_items import PacedItems
from hotplate.stores.cosmos.release_state import METAS, SEALED, ReleaseState, ReleaseStates, rows_kind
from hotplate.stores.encoding import META, KeySpan, bounds, merge_packed_keys
from hotplate.stores.errors import ReleaseConflict, StoreUnavailable
from hotplate.stores.store import BATCH_ROWS, Row, batches_of, not_found
from hotplate.stores.timing import Retrier

T = TypeVar("T")

# Concurrent requests: 12,000 a second at 5 ms.
IN_FLIGHT = 64

ConfirmWriter = Callable[[], Awaitable[None]]
"""Raises ReleaseConflict if the catalogue names another writer of the draft; one attempt."""


class ReleaseRows:
    """Rows of releases. Raises ContainerMissing if the container of a release is missing."""

    def __init__(self, items: PacedItems, retrier: Retrier) -> None:
        self._items = items
        self.states = ReleaseStates(items)
        self._batches = Batches(items)
        self._retrier = retrier

    async def claim(self, draft: DraftRef, confirm: ConfirmWriter) -> None:
        """Become the writer of a draft: create the item with its state, or replace the writer that it names.

        A writer is known by its token. If the draft has another one, *confirm* is called first, and raises
        ReleaseConflict if the catalogue names another writer than this one. Also raises ReleaseConflict if the release
        is sealed.
        """
        container = container_of(draft)
        self._batches.forget(container)  # the draft may have been erased

        async def take_over(state: ReleaseState) -> ReleaseState | None:
            state.check_unsealed(draft)
            if state.writer == draft.writer:
                return None  # claimed before: nothing to change

            await confirm()
            # This writer starts new series of batch items, so the state records where the former ones end.
            last_numbers = await self._batches.find_last_of_all(container, state)
            return state.taken_over_by(draft.writer, last_numbers)

        if not await self._retrier.call(self.states.create, draft):
            await self._retrier.call(self.states.change, draft, take_over)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of one part of a draft, and acknowledge each batch of them; see `Store.put`.

        A part is the rows that one process of a publish writes. The draft's state lists the parts other than 0 before
        they get rows, so that all their batches are found later. Raises ReleaseNotFound, and ReleaseConflict if the
        draft is sealed or has another writer.
        """

        async def add_part(state: ReleaseState) -> ReleaseState:
            state.check_writer(draft)
            return state.with_part(part)

        if not rows:
            return

        state = await self._retrier.call(self.states.read, draft)
        state.check_unsealed(draft)
        state.check_writer(draft)
        if part and part not in state.parts:
            await self._retrier.call(self.states.change, draft, add_part)

        # `meta` rows, such as the manifest, are in no order, so they have a separate series.
        meta_rows = [row for row in rows if row.key.startswith(META)]
        other_rows = [row for row in rows if not row.key.startswith(META)] if meta_rows else rows
        await self._write_batches(draft, state.series(rows_kind(part)), other_rows)
        await self._write_batches(draft, state.series(METAS), meta_rows)

    async def _write_batches(self, draft: DraftRef, series: str, rows: Sequence[Row]) -> None:
        """Write rows as items, in batches of at most BATCH_ROWS, each acknowledged by a batch item with its keys.

        The batch items of a *series*, which belongs to one writer and one part, are numbered; these are the next ones.
        Raises ReleaseConflict if a row exists with another value.
        """

        async def write_row(row: tuple[str, bytes]) -> None:
            await self._retrier.call(self._create_row, draft, *row)

        for batch in batches_of(rows, BATCH_ROWS):
            values = dict(batch)  # the last value of a key wins
            await for_each(list(values.items()), write_row)  # all, before they are acknowledged
            await self._retrier.call(self._batches.append, container_of(draft), series, list(values))

    async def _create_row(self, draft: DraftRef, key: str, value: bytes) -> None:
        """Create a row by one attempt; an existing row with the same value is accepted, as an earlier attempt made it.

        Raises ReleaseConflict if the existing row has another value.
        """
        container = container_of(draft)
        item = to_item(name_of(key), value)
        if await self._items.create(container, item):
            return

        stored = (await self._items.read(container, item["id"])).item
        if stored is None:  # a replica lags
            raise StoreUnavailable(f"the row {key!r} of release {draft.id} was written, but cannot be read")
        if value_of(stored) != value:
            raise ReleaseConflict(
                f"the draft {draft.id} holds another value for {key!r}: another writer, or other lists, wrote it; "
                f"publish again"
            )

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """Return the last acknowledged key of a part of a draft, after which its publish goes on; None if none is.

        Raises ReleaseNotFound, and ReleaseConflict if the draft has another writer.
        """
        return await self._retrier.call(self._resume_point, draft, part)

    async def _resume_point(self, draft: DraftRef, part: int) -> str | None:
        """Return the last key of the last batch, in the newest series of a part that has any batch.

        Each writer has acknowledged its rows by a series of batch items, numbered from 1. The draft's state records the
        last numbers of former writers; that of the current one is searched for.
        """
        state = await self.states.read(draft)
        state.check_writer(draft)
        container = container_of(draft)
        kind = rows_kind(part)

        current_series = state.series(kind)
        last_numbers = dict(state.former)
        last_numbers[current_series] = await self._batches.find_last(container, current_series)

        for series in state.series_of_all_writers(kind):  # the newest first
            last_number = last_numbers.get(series, 0)
            if last_number > 0:
                _, last_key = bounds(await self._batches.read(container, series, last_number))
                return last_key
        return None

    async def seal(self, draft: DraftRef) -> None:
        """See `Store.seal`."""

        async def seal(state: ReleaseState) -> ReleaseState | None:
            if state.is_sealed:
                return None
            state.check_writer(draft)
            return replace(state, state=SEALED)

        await self._retrier.call(self.states.change, draft, seal)

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        """Delete rows by key; return how many existed. Raises ReleaseNotFound if the release has no state."""
        container = container_of(release)
        deleted = 0

        async def erase(key: str) -> None:
            nonlocal deleted
            existed = await self._retrier.call(self._items.delete, container, name_of(key))
            deleted += existed  # after the await, during which others count

        await self._retrier.call(self.states.read, release)
        await for_each(keys, erase)
        return deleted

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        """Yield the rows of a sealed release in the order of their keys; raises ReleaseNotFound. See `Store.scan`.

        The keys are in batch items, those that acknowledged rows, and in order within each. Since batches of several
        parts and writers overlap, they are merged. Absent rows are left out.
        """
        container = container_of(release)
        state = await self._retrier.call(self.states.read, release)
        if not state.is_sealed:
            raise not_found(release)
        spans = await self._read_spans(container, state)
        async for keys in merge_packed_keys(spans, partial(self._read_batches, container)):
            values = await self._read_rows(container, keys)
            for key in keys:
                if key in values:
                    yield Row(key, values[key])

    async def _read_spans(self, container: str, state: ReleaseState) -> list[KeySpan]:
        """Return a span for each batch item of a release, by all its writers: its first and last key, and its place.

        With the spans, batches are merged in the order of their keys while few are in memory. A place is the series of
        the item, and its number in the series.
        """
        spans = list[KeySpan]()

        async def add_span(series: str, number: int) -> None:
            first_key, last_key = bounds(await self._read_batch(container, series, number))
            spans.append(KeySpan(first_key, last_key, source=series, place=number))

        last_numbers = await self._retrier.call(self._batches.find_last_of_all, container, state)
        for series, last_number in last_numbers.items():
            await for_each(range(1, last_number + 1), partial(add_span, series))
        return spans

    async def _read_batches(self, container: str, spans: Sequence[KeySpan]) -> list[bytes]:
        return [await self._read_batch(container, span.source, span.place) for span in spans]

    async def _read_batch(self, container: str, series: str, number: int) -> bytes:
        return await self._retrier.call(self._batches.read, container, series, number)

    async def _read_rows(self, container: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the values of rows, in any order, without those that are absent."""
        values = dict[str, bytes]()

        async def read_row(key: str) -> None:
            item = await self._retrier.call(self._items.read_surely, container, name_of(key))
            if item is not None:
                values[key] = value_of(item)

        await for_each(keys, read_row)
        return values


async def for_each(values: Sequence[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Call *do* for all values, IN_FLIGHT at a time; raises the first failure, after which no call begins.

    Calls that are under way at a failure are waited for.
    """
    remaining = iter(values)  # shared: each worker takes the next value
    failures = list[Exception]()

    async def work() -> None:
        for value in remaining:
            if failures:
                return
            try:
                await do(value)
            except Exception as error:  # noqa: BLE001 -- raised below
                failures.append(error)

    await asyncio.gather(*(work() for _ in range(min(IN_FLIGHT, len(values)))))
    if failures:
        raise failures[0]
