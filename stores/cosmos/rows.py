"""Rows of a release as items; a batch item with the packed keys acknowledges each batch.

Rows are created, never replaced, so a late write changes nothing. The item `state` names the draft's writer, which is
replaced by compare-and-set (`hotplate.stores.cosmos.release_state`). Batch items are numbered without gaps, in a series
per part and writer, so a few reads find the last one. A writer that takes over records the last numbers of the former
series, and starts new ones. Rows that the former writer had in flight may still appear if the new rows lack their keys.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.cosmos.budget import Budget
from hotplate.stores.cosmos.charges import Charges
from hotplate.stores.cosmos.errors import ContainerMissing
from hotplate.stores.cosmos.items import (
    AnyRef,
    CosmosItem,
    container_of,
    item_bytes,
    name_of,
    to_item,
    value_of,
    without_system_properties,
)
from hotplate.stores.cosmos.release_state import DRAFT, METAS, SEALED, STATE, ReleaseState, rows_kind
from hotplate.stores.cosmos.signed import SignedClient, VersionedItem, WriteResult
from hotplate.stores.encoding import META, KeySpan, bounds, merge_packed_keys, pack
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreUnavailable
from hotplate.stores.store import BATCH_ROWS, Row, not_found
from hotplate.stores.timing import RETRY_PAUSES_S, Backoff

T = TypeVar("T")

# Delays before a missing item is read again, in case a replica lags.
REPLICA_LAGS_S = (0.02, 0.1)
# Attempts to change a state that other processes change, too: for half a minute.
MAX_STATE_CHANGES = 20
# Concurrent requests: 12,000 a second at 5 ms.
IN_FLIGHT = 64

ConfirmWriter = Callable[[], Awaitable[None]]
"""Raises ReleaseConflict if the catalogue names another writer of the draft."""

ChangeState = Callable[[ReleaseState], Awaitable[ReleaseState | None]]
"""Returns the state that replaces a stored one; None if that is to stay."""


class ReleaseRows:
    """Rows of releases, read and written within a budget."""

    def __init__(self, items: SignedClient, budget: Budget, charges: Charges) -> None:
        self._items = items
        self._budget = budget
        self._charges = charges
        self._last = dict[tuple[str, str], int]()
        """Number of the last known batch, by container and series."""

    async def claim(self, draft: DraftRef, confirm: ConfirmWriter) -> None:
        """Become the writer of a draft: create the item with its state, or replace the writer that it names.

        If the draft has another writer, *confirm* is called first, and raises ReleaseConflict if the catalogue does not
        name this writer. Also raises ReleaseConflict if the release is sealed.
        """
        container = container_of(draft)
        for known in [known for known in self._last if known[0] == container]:
            del self._last[known]  # the draft may have been erased

        state_of_new_draft = ReleaseState(DRAFT, draft.writer)
        create = partial(self._items.create, container, state_of_new_draft.item())
        creation = await self._budget.call_until_visible(container, create)
        if creation.applied:
            return

        async def take_over(state: ReleaseState) -> ReleaseState | None:
            state.check_unsealed(draft)
            if state.writer == draft.writer:
                return None
            await confirm()
            last_numbers = await self._find_last_numbers(container, state)
            return state.taken_over_by(draft.writer, last_numbers)

        await self._change_state(draft, take_over)

    async def has_state(self, container: str) -> bool:
        """Return whether a release or draft is in a container."""
        try:
            item = await self._read(container, STATE)
        except ContainerMissing:
            return False
        return item is not None and item.get("state") in (DRAFT, SEALED)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of one part of a draft, and acknowledge each batch of them; see `Store.put`.

        A publish may have several parts, written at the same time; the draft's state lists those other than 0 before
        they get rows. Raises ReleaseNotFound, and ReleaseConflict if the draft is sealed or has another writer.
        """

        async def add_part(state: ReleaseState) -> ReleaseState:
            state.check_writer(draft)
            return state.with_part(part)

        if not rows:
            return
        state = await self.state(draft)
        state.check_unsealed(draft)
        state.check_writer(draft)
        try:
            if part and part not in state.parts:
                await self._change_state(draft, add_part)
            for batch in _batches(rows, part):
                await self._write_batch(draft, state.series(batch.kind), batch.rows)
        except ContainerMissing as error:
            raise not_found(draft) from error

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """Return the last acknowledged key of a part of a draft, after which its publish goes on; None if none is.

        Each writer of a part acknowledges batches of rows in a series of items, numbered from 1. When another writer
        takes over, the state records the last number of each series in `former`, and a new series begins. So the key is
        the last one of the last batch, in the newest series that has any. Raises ReleaseNotFound, and ReleaseConflict
        if the draft has another writer.
        """
        state = await self.state(draft)
        state.check_writer(draft)
        container = container_of(draft)
        kind = rows_kind(part)

        current_series = state.series(kind)
        last_numbers = dict(state.former)
        last_numbers[current_series] = await self._find_last_number(container, current_series)

        for series in state.series_of_all_writers(kind):  # the newest first
            last_number = last_numbers.get(series, 0)
            if last_number > 0:
                _, last_key = bounds(await self._read_packed_keys(container, series, last_number))
                return last_key
        return None

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        """Delete rows by key, within the budget of request units; return how many existed.

        Raises ReleaseNotFound if the release has no state. See `RowEraser.erase_rows`.
        """
        container = container_of(release)
        expected_ru = self._charges.delete(0, 0)
        deleted = 0

        async def erase(key: str) -> None:
            nonlocal deleted
            delete = partial(self._items.delete, container, name_of(key))
            written = await self._budget.spend(container, delete, expected_ru=expected_ru, charge_ru=_charge_of)
            deleted += written.applied  # after the await, during which others count

        await self.state(release)
        await for_each(keys, erase)
        return deleted

    async def seal(self, draft: DraftRef) -> None:
        """See `Store.seal`."""

        async def seal(state: ReleaseState) -> ReleaseState | None:
            if state.is_sealed:
                return None
            state.check_writer(draft)
            return replace(state, state=SEALED)

        try:
            await self._change_state(draft, seal)
        except ContainerMissing as error:
            raise not_found(draft) from error

    async def mark_dropping(self, release: ReleaseRef, token: str) -> bool:
        """Mark the state with the token of an erasure; return False if there is no state."""

        async def mark(state: ReleaseState) -> ReleaseState:
            return state.marked(token)

        try:
            await self._change_state(release, mark)
        except (ContainerMissing, ReleaseNotFound):
            return False
        return True

    async def check_dropping(self, release: ReleaseRef, token: str) -> None:
        """Raise ReleaseConflict unless the state bears the mark of an erasure, or is gone."""
        try:
            item = await self._read(container_of(release), STATE)
        except ContainerMissing:
            return
        if item is not None and token not in ReleaseState.of(item).dropping:
            raise ReleaseConflict(
                f"the container of release {release.id} was restored while it was being erased; see `hotplate releases "
                f"list`, and prune again"
            )

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        """Yield the rows of a sealed release in the order of their keys; raises ReleaseNotFound. See `Store.scan`.

        The keys are in batch items, those that acknowledged rows, and in order within each. Since batches of several
        parts and writers overlap, they are merged. Absent rows are left out.
        """
        container = container_of(release)
        state = await self.state(release)
        if not state.is_sealed:
            raise not_found(release)
        try:
            spans = await self._read_spans(container, state)
            async for keys in merge_packed_keys(spans, partial(self._fetch, container)):
                values = await self._read_rows(container, keys)
                for key in keys:
                    if key in values:
                        yield Row(key, values[key])
        except ContainerMissing as error:
            raise not_found(release) from error

    async def state(self, release: AnyRef) -> ReleaseState:
        """Return the state of a release or draft. Raises ReleaseNotFound."""
        try:
            item = await self._read_surely(container_of(release), STATE)
        except ContainerMissing as error:
            raise not_found(release) from error
        if item is None:
            raise not_found(release)
        return ReleaseState.of(item)

    async def _change_state(self, release: AnyRef, change: ChangeState) -> None:
        """Read the item with the state of a release, and replace it by the result of *change*, None for no change.

        If another process has changed the item in the meantime, which its etag tells, it is read and changed again,
        after a pause. Raises ReleaseNotFound if there is no state, what *change* raises, and StoreUnavailable after
        MAX_STATE_CHANGES attempts.
        """
        container = container_of(release)
        backoff = Backoff(*RETRY_PAUSES_S)
        for _ in range(MAX_STATE_CHANGES):
            read = partial(self._items.read_fresh, container, STATE)
            stored = await self._budget.call_until_visible(container, read)
            if stored.item is None:
                raise not_found(release)
            changed = await change(ReleaseState.of(stored.item))
            if changed is None:
                return
            item = changed.item(without_system_properties(stored.item))
            replace_item = partial(self._items.replace, container, item, stored.etag)
            if (await self._budget.call_until_visible(container, replace_item)).applied:
                return
            await asyncio.sleep(backoff.next_s())
        raise StoreUnavailable(f"other processes keep changing the state of release {release.id}; try again later")

    async def _fetch(self, container: str, spans: Sequence[KeySpan]) -> list[bytes]:
        return [await self._read_packed_keys(container, span.source, span.place) for span in spans]

    async def _read_spans(self, container: str, state: ReleaseState) -> list[KeySpan]:
        """Return a span for each batch of all writers: its first and last key, its series and its number in it."""
        spans = list[KeySpan]()

        async def add_span(series: str, number: int) -> None:
            first_key, last_key = bounds(await self._read_packed_keys(container, series, number))
            spans.append(KeySpan(first_key, last_key, source=series, place=number))

        last_numbers = await self._find_last_numbers(container, state)
        for series, last_number in last_numbers.items():
            await for_each(range(1, last_number + 1), partial(add_span, series))
        return spans

    async def _find_last_numbers(self, container: str, state: ReleaseState) -> dict[str, int]:
        """Return the numbers of the last batches of all writers, by series; 0 for a series without batches."""
        last_numbers = dict(state.former)
        for series in state.series_names:
            last_numbers[series] = await self._find_last_number(container, series)
        return last_numbers

    async def _find_last_number(self, container: str, series: str) -> int:
        """Return the number of the last batch of a series; 0 if there is none.

        A replica may lag. So if none of the batches was known before, the one after the last is looked for with care.
        """
        known = self._last.get((container, series), 0)
        last = await self._search_last(container, series, known)
        while not known and await self._read_surely(container, f"{series}-{last + 1}"):
            last = await self._search_last(container, series, last + 1)
        self._last[container, series] = last
        return last

    async def _search_last(self, container: str, series: str, known: int) -> int:
        """Search for the last batch from a *known* one, by steps that double, and then between present and absent."""
        present = known
        step = 1
        while await self._read(container, f"{series}-{present + step}") is not None:
            present += step
            step *= 2
        absent = present + step
        while absent - present > 1:
            middle = (present + absent) // 2
            if await self._read(container, f"{series}-{middle}") is None:
                absent = middle
            else:
                present = middle
        return present

    async def _read_rows(self, container: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the values of rows, in any order, without those that are absent."""
        values = dict[str, bytes]()

        async def read_row(key: str) -> None:
            item = await self._read_surely(container, name_of(key))
            if item is not None:
                values[key] = value_of(item)

        await for_each(keys, read_row)
        return values

    async def _write_batch(self, draft: DraftRef, series: str, rows: Sequence[Row]) -> None:
        """Write rows as items, then acknowledge them by one more item, the next batch of a *series*.

        The batch item holds the packed keys of the rows. Batches of a series are numbered from 1 without gaps, so the
        item gets the first number for which none exists: another task, or an earlier attempt whose response was lost,
        may have taken the next one. Raises ReleaseConflict if a row exists with another value.
        """
        container = container_of(draft)
        values = dict(rows)  # the last value of a key wins
        await for_each(list(values.items()), partial(self._create_row, draft, container))

        batch_item = to_item(series, pack(list(values)))
        number = self._last.get((container, series))
        if number is None:
            number = await self._find_last_number(container, series)
        is_created = False
        while not is_created:
            number += 1
            batch_item["id"] = f"{series}-{number}"
            is_created = await self._create(container, batch_item)
            self._last[container, series] = max(number, self._last.get((container, series), 0))

    async def _create_row(self, draft: DraftRef, container: str, row: tuple[str, bytes]) -> None:
        """Create a row, or compare it with an existing one; ReleaseConflict if that has another value."""
        key, value = row
        item = to_item(name_of(key), value)
        if await self._create(container, item):
            return
        stored = await self._read_surely(container, item["id"])
        if stored is None:
            raise StoreUnavailable(f"the row {key!r} of release {draft.id} was written, but cannot be read")
        if value_of(stored) != value:
            raise ReleaseConflict(
                f"the draft {draft.id} holds another value for {key!r}: another writer, or other lists, wrote it; "
                f"publish again"
            )

    async def _create(self, container: str, item: CosmosItem) -> bool:
        """Create an item; return whether it was absent."""
        create = partial(self._items.create, container, item)
        expected_ru = self._charges.create(item_bytes(item), 0)
        return (await self._budget.spend(container, create, expected_ru=expected_ru, charge_ru=_charge_of)).applied

    async def _read_packed_keys(self, container: str, series: str, number: int) -> bytes:
        """Return the packed keys of a batch; ReleaseCorrupt if it is absent."""
        name = f"{series}-{number}"
        return value_of(await self._read_surely(container, name) or {"id": name})

    async def _read_surely(self, container: str, name: str) -> CosmosItem | None:
        """Read an item up to three times, because replicas may lag; None if it is absent."""
        item = await self._read(container, name)
        for pause_s in REPLICA_LAGS_S:
            if item is not None:
                break
            await asyncio.sleep(pause_s)
            item = await self._read(container, name)
        return item

    async def _read(self, container: str, name: str) -> CosmosItem | None:
        """Read an item once; None if the replica that answers does not have it."""
        read = partial(self._items.read_fresh, container, name)
        expected_ru = self._charges.read(0)
        versioned = await self._budget.spend(container, read, expected_ru=expected_ru, charge_ru=self._read_charge)
        return versioned.item

    def _read_charge(self, versioned: VersionedItem) -> float:
        if versioned.item is None:
            return self._charges.not_found(strong=False)
        return self._charges.read(item_bytes(versioned.item))


async def for_each(values: Sequence[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Call *do* for all values, IN_FLIGHT at a time; raises the first failure, after which no call begins."""
    remaining = iter(values)
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


def _charge_of(written: WriteResult) -> float:
    return written.charge_ru


class _Batch(NamedTuple):
    """Rows that one batch item acknowledges, and the kind of its series."""

    kind: str
    rows: Sequence[Row]


def _batches(rows: Sequence[Row], part: int) -> Iterator[_Batch]:
    """Yield rows in batches of at most BATCH_ROWS: first those of a part, then `meta` rows, which have a series."""
    meta_rows = [row for row in rows if row.key.startswith(META)]
    other_rows = [row for row in rows if not row.key.startswith(META)] if meta_rows else rows
    for kind, rows_of_kind in ((rows_kind(part), other_rows), (METAS, meta_rows)):
        for start in range(0, len(rows_of_kind), BATCH_ROWS):
            yield _Batch(kind, rows_of_kind[start : start + BATCH_ROWS])
