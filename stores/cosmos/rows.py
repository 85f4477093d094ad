"""The rows of a release: an item each, written many at a time; then the packed keys of the batch, which acknowledge it.

A row's id, which is its partition key, is `KIND.` and its ID in base64url: letters that need no escaping anywhere. All
else in a container has a name without a dot. A value is text if it is valid UTF-8 and shorter so, else base64.

Rows are created, never replaced: a write that comes late changes nothing. The item `state` names the draft's writer,
who is replaced by compare-and-set. Batch items, created too, are numbered without gaps in a series for each part of the
release and each of its writers, so the last is found by reading a few. A writer who takes a draft over records how far
the series of the former writer count, and goes on in its own: what the former writer acknowledges later does not count.
A row that it had under way may still appear; readers can see it only if the new rows lack its key.
"""

import asyncio
import re
from base64 import urlsafe_b64encode
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import orjson

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.cosmos.charges import SYSTEM_BYTES, Charges
from hotplate.stores.cosmos.errors import ContainerMissing, Retrier, for_each
from hotplate.stores.cosmos.signed import CosmosItem, ItemWritten, SignedClient, VersionedItem
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreFull, StoreUnavailable
from hotplate.stores.keys import META, KeySpan, bounds, check_kind, merged, pack
from hotplate.stores.store import BATCH_ROWS, Row, not_found, sealed, taken_over

# Of every container of ours: read by id only, so nothing is indexed. The service refuses a time to live with that.
DEFINITION: dict[str, Any] = {
    "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2},
    "indexingPolicy": {"indexingMode": "none", "automatic": False},
}

# The container of the catalogue.
CONTROL = "hotplate"
CATALOGUE = "catalogue"

# The item that says of a release's container whether it is a draft, or sealed.
STATE = "state"

CONTAINER = "release-"
INCARNATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
# What is drawn for a release.
DRAWN = re.compile(r"[0-9a-f]{12}")

# Of an item, by https://learn.microsoft.com/azure/cosmos-db/concepts-limits.
MAX_ITEM_BYTES = 2 << 20


@lru_cache(64)
def container_of(release: ReleaseRef | DraftRef) -> str:
    """Return the container of a release, named by its incarnation; ReleaseNotFound if no release has such a name."""
    if not INCARNATION.fullmatch(release.incarnation):
        raise ReleaseNotFound(f"release {release.id[:80]!r} is not in this store: no release has such an id")
    return CONTAINER + release.incarnation


def name_of(key: str) -> str:
    """Return the id of a row's item; StoreMisused for a key of no known kind.

    A key that UTF-8 cannot express has the id of no row, so it is read as absent.
    """
    kind, colon, identifier = key.partition(":")
    encoded = urlsafe_b64encode(identifier.encode("utf-8", "surrogatepass")).decode()
    return f"{check_kind(kind if colon else '')}.{encoded.rstrip('=')}"


def to_item(name: str, value: bytes) -> CosmosItem:
    """Return the item of a value, in the shorter of two forms."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and len(orjson.dumps(text)) - 2 <= (len(value) + 2) // 3 * 4:
        return {"id": name, "t": text}
    return {"id": name, "b": b2a_base64(value, newline=False).decode()}


def value_of(item: CosmosItem) -> bytes:
    """Return the value of an item; ReleaseCorrupt for an item that `to_item` did not make."""
    try:
        if (text := item.get("t")) is not None:
            return bytes(text.encode())
        return a2b_base64(item["b"], strict_mode=True)
    except (KeyError, AttributeError, TypeError, NotBase64, ValueError) as error:
        raise ReleaseCorrupt(f"the item {item.get('id')!r} was not written by hotplate; publish again") from error


def item_bytes(item: CosmosItem) -> int:
    """Return the size that is stored and charged for; StoreFull if it is more than an item may have."""
    # What was read has the service's own properties among ours.
    ours = {name: value for name, value in item.items() if name[0] != "_"} if "_rid" in item else item
    size = len(orjson.dumps(ours)) + SYSTEM_BYTES
    if size > MAX_ITEM_BYTES:
        raise StoreFull(
            f"the row {item['id']} takes {size:,} bytes as an item, and Cosmos DB stores {MAX_ITEM_BYTES:,} at most; "
            f"publish shorter lists"
        )
    return size


def batch_name(series: str, number: int) -> str:
    """Return the id of the item with the keys of an acknowledged batch, the *number*-th, from 1, of its series."""
    return f"{series}-{number}"


# The two kinds of series of batches: only the first, which each part has of its own, says where to resume.
ROWS = "rows"
METAS = "metas"

# How long a replica that is behind is given to catch up, before what it does not have counts as absent.
REPLICA_LAGS_S = (0.02, 0.1)

DRAFT = "draft"
SEALED = "sealed"

AnyRef = ReleaseRef | DraftRef

# Raises ReleaseConflict if the catalogue names another writer of a draft.
ConfirmWriter = Callable[[], Awaitable[None]]


class ReleaseRows:
    """Writes, acknowledges and scans rows within a budget of request units; lives as long as its store."""

    def __init__(self, items: SignedClient, retrier: Retrier, charges: Charges) -> None:
        self._items = items
        self._retrier = retrier
        self._charges = charges
        self._last = dict[tuple[str, str], int]()
        """The number of the last batch known, by container and series."""

    async def claim(self, draft: DraftRef, confirm: ConfirmWriter) -> None:
        """Become the writer of a draft: of a new container, or in the place of the writer before.

        *confirm* is called before somebody else is replaced. Raises ReleaseConflict if that must not be.
        """
        container = container_of(draft)
        for known in [key for key in self._last if key[0] == container]:
            del self._last[known]  # somebody else may have erased what was there
        state = {"id": STATE, "state": DRAFT, "writer": draft.writer}
        done = (await self._retrier.until_visible(partial(self._items.create, container, state))).done
        while not done:  # not done: there is one already, or somebody else changed it first
            item, etag, _ = await self._retrier.call(partial(self._items.read_fresh, container, STATE))
            if item is None:
                raise not_found(draft)
            if item["state"] != DRAFT:
                raise sealed(draft)
            if item.get("writer") == draft.writer:
                return
            if "writer" not in item:
                raise ReleaseConflict(
                    f"release {draft.id} was begun by an older hotplate, which alone could continue it; publish again"
                )
            await confirm()
            taken_over = _ours(item) | {
                "writer": draft.writer,
                "claims": item.get("claims", 0) + 1,
                "former": await self._counted(container, item),
            }
            done = (await self._retrier.call(partial(self._items.replace, container, taken_over, etag))).done

    async def check(self, release: AnyRef) -> None:
        """Raise ReleaseNotFound if a release is not there, or not yet."""
        await self._state(release)

    async def has_state(self, container: str) -> bool:
        """Return whether a container holds a release, or a draft."""
        try:
            found = await self._read(container, STATE)
        except ContainerMissing:
            return False
        return found is not None and found.get("state") in (DRAFT, SEALED)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft, in order; raises as `Store.put` does."""
        if not rows:
            return
        state = await self._state(draft)
        if state["state"] != DRAFT:
            raise sealed(draft)
        _check_writer(draft, state)
        try:
            if part and part not in state.get("parts", ()):
                await self._change_state(draft, lambda old: old | {"parts": sorted({*old.get("parts", ()), part})})
            for kind, chunk in _chunks(rows, part):
                await self._write(draft, _series(kind, state), chunk)
        except ContainerMissing as error:
            raise not_found(draft) from error

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """Return the last key of the last acknowledged batch of *part*, of any writer."""
        state = await self._state(draft)
        _check_writer(draft, state)
        container, kind = container_of(draft), _rows_kind(part)
        own = _series(kind, state)
        counts = state.get("former", {}) | {own: await self._find_last(container, own)}
        for claim in range(state.get("claims", 0), -1, -1):
            series = _numbered(kind, claim)
            if last := counts.get(series, 0):
                return bounds(await self._packed(container, series, last))[1]
        return None

    async def erase(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        """Delete rows of a release, and return how many there were."""
        container, deleted = container_of(release), 0

        async def erase(key: str) -> None:
            nonlocal deleted
            delete = partial(self._items.delete, container, name_of(key))
            written = await self._retrier.with_budget(self._charges.delete(0, 0), delete, lambda done: done.charge_ru)
            deleted += written.done

        await self.check(release)
        await for_each(keys, erase)
        return deleted

    async def seal(self, draft: DraftRef) -> None:
        """Turn a draft into a release that takes no more rows."""
        try:
            await self._change_state(draft, lambda found: found | {"state": SEALED}, unless=SEALED)
        except ContainerMissing as error:
            raise not_found(draft) from error

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        """Yield every row, in ascending order of key bytes: the keys of each batch, and a fresh read of each row."""
        container = container_of(release)
        state = await self._state(release)
        if state.get("state") != SEALED:
            raise not_found(release)
        try:
            spans = await self._spans(container, state)
            async for keys in merged(spans, lambda span: self._packed(container, span.source, span.place)):
                values = dict[str, bytes]()
                await for_each(keys, partial(self._read_row, container, values))
                for key in keys:
                    if key in values:
                        yield Row(key, values[key])
        except ContainerMissing as error:
            raise not_found(release) from error

    async def _spans(self, container: str, state: CosmosItem) -> list[KeySpan]:
        """Return which keys each acknowledged batch that counts reaches over: one read a batch."""
        spans = list[KeySpan]()

        async def add(name: str, number: int) -> None:
            spans.append(KeySpan(*bounds(await self._packed(container, name, number)), name, number))

        for name, last in (await self._counted(container, state)).items():
            await for_each(range(1, last + 1), partial(add, name))
        return spans

    async def _counted(self, container: str, state: CosmosItem) -> dict[str, int]:
        """Return the number of the last batch that counts of each series.

        `meta` comes last: it was acknowledged before the rows that follow it, so none of it is missed if a
        writer goes on at the same time.
        """
        counted: dict[str, int] = dict(state.get("former", {}))
        for kind in (*map(_rows_kind, (0, *state.get("parts", ()))), METAS):
            series = _series(kind, state)
            counted[series] = await self._find_last(container, series)
        return counted

    async def _read_row(self, container: str, values: dict[str, bytes], key: str) -> None:
        found = await self._read(container, name_of(key)) or await self._read_again(container, name_of(key))
        if found is not None:
            values[key] = value_of(found)

    async def _write(self, draft: DraftRef, series: str, batch: Sequence[Row]) -> None:
        container = container_of(draft)
        values = dict(batch)  # of a key given twice, the last value counts, and rows are not written in order
        await for_each(list(values.items()), partial(self._create_row, draft, container))
        item = to_item(series, pack(list(values)))
        known = self._last.get((container, series))
        number = await self._find_last(container, series) if known is None else known
        done = False
        while not done:  # not done: another task of this writer has that number, or an attempt whose response was lost
            number += 1
            item["id"] = batch_name(series, number)
            done = await self._send(item, partial(self._items.create, container))
            self._last[container, series] = max(number, self._last.get((container, series), 0))

    async def _create_row(self, draft: DraftRef, container: str, row: tuple[str, bytes]) -> None:
        """Write one row; nothing is ever replaced, so what is there already is read and compared."""
        key, value = row
        item = to_item(name_of(key), value)
        if await self._send(item, partial(self._items.create, container)):
            return
        found = await self._read(container, item["id"]) or await self._read_again(container, item["id"])
        if found is None:
            raise StoreUnavailable(f"the row {key!r} of release {draft.id} was written, but cannot be read")
        if value_of(found) != value:
            raise ReleaseConflict(
                f"the draft {draft.id} holds another value for {key!r}: another writer, or other lists, wrote it; "
                f"publish again"
            )

    async def _send(self, item: CosmosItem, write: Callable[[CosmosItem], Awaitable[ItemWritten]]) -> bool:
        expected_ru = self._charges.create(item_bytes(item), 0)
        return (await self._retrier.with_budget(expected_ru, lambda: write(item), lambda done: done.charge_ru)).done

    async def _state(self, release: AnyRef) -> CosmosItem:
        """Return the item that says whether a release is a draft, and its parts; ReleaseNotFound without one."""
        try:
            container = container_of(release)
            found = await self._read(container, STATE) or await self._read_again(container, STATE)
        except ContainerMissing as error:
            raise not_found(release) from error
        if found is None:
            raise not_found(release)
        return found

    async def _change_state(
        self, draft: DraftRef, change: Callable[[CosmosItem], CosmosItem], *, unless: str = ""
    ) -> None:
        """Replace the state by what *change* makes of it, by compare-and-set.

        Nothing happens if it is *unless* already. Raises ReleaseNotFound if there is none, ReleaseConflict if
        the draft is another's.
        """
        container = container_of(draft)
        done = False
        while not done:  # not done: somebody else changed it first
            item, etag, _ = await self._retrier.call(partial(self._items.read_fresh, container, STATE))
            if item is None:
                raise not_found(draft)
            if item["state"] == unless:
                return
            _check_writer(draft, item)
            changed = change(_ours(item))
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
        """Return the packed keys of one batch; ReleaseCorrupt if they were lost."""
        name = batch_name(series, number)
        found = await self._read(container, name) or await self._read_again(container, name)
        return value_of(found or {"id": name})

    async def _read(self, container: str, name: str) -> CosmosItem | None:
        """Read an item as a publisher does, out of the budget."""
        read = partial(self._items.read_fresh, container, name)
        return (await self._retrier.with_budget(self._charges.read(0), read, self._read_charge)).item

    async def _read_again(self, container: str, name: str) -> CosmosItem | None:
        """Read twice more what should be there: the replica that responded may be behind others."""
        for pause_s in REPLICA_LAGS_S:
            await asyncio.sleep(pause_s)
            if (found := await self._read(container, name)) is not None:
                return found
        return None

    def _read_charge(self, found: VersionedItem) -> float:
        if found.item is None:
            return self._charges.not_found(strong=False)
        return self._charges.read(item_bytes(found.item))


def _ours(item: CosmosItem) -> CosmosItem:
    """Return an item without the properties of the service."""
    return {name: value for name, value in item.items() if name[0] != "_"}


def _check_writer(draft: DraftRef, state: CosmosItem) -> None:
    if state.get("writer") != draft.writer:
        raise taken_over(draft)


def _rows_kind(part: int) -> str:
    return f"{ROWS}-{part}" if part else ROWS


def _series(kind: str, state: CosmosItem) -> str:
    """Return the series of the writer that the state names."""
    return _numbered(kind, state.get("claims", 0))


def _numbered(kind: str, claim: int) -> str:
    """Return a series of the first writer of a draft, or of the one that took it over as the *claim*-th."""
    return f"{kind}_{claim}" if claim else kind


def _chunks(rows: Sequence[Row], part: int) -> Iterator[tuple[str, Sequence[Row]]]:
    """Yield the rows of one put as they are acknowledged together, each time with the kind of its series."""
    meta = [row for row in rows if row.key.startswith(META)]
    others = [row for row in rows if not row.key.startswith(META)] if meta else rows
    for kind, chosen in ((_rows_kind(part), others), (METAS, meta)):
        for start in range(0, len(chosen), BATCH_ROWS):
            yield kind, chosen[start : start + BATCH_ROWS]
