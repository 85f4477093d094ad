"""Rows of a release as items; a batch item with the packed keys acknowledges each batch.

A row's id and partition key is `KIND.` and the ID in base64url; ids of other items have no dot. A value is stored as
text if it is valid UTF-8 and shorter so, otherwise as base64.

Rows are created, never replaced, so a late write changes nothing. The item `state` names the draft's writer, which is
replaced by compare-and-set. Batch items are numbered without gaps, in a series per part and writer, so a few reads find
the last one. A writer that takes over records the last numbers of the former series, and starts new ones. Rows that the
former writer had in flight may still appear if the new rows lack their keys.
"""

import asyncio
import re
from base64 import urlsafe_b64encode
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import lru_cache, partial
from math import inf
from typing import Any, TypeVar

import orjson

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.cosmos.charges import SYSTEM_BYTES, Charges
from hotplate.stores.cosmos.errors import ContainerMissing
from hotplate.stores.cosmos.signed import CosmosItem, ItemWritten, SignedClient, VersionedItem
from hotplate.stores.encoding import META, KeySpan, bounds, check_kind, merged, pack
from hotplate.stores.errors import (
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreFull,
    StoreThrottled,
    StoreUnavailable,
)
from hotplate.stores.store import BATCH_ROWS, Row, not_found, sealed, taken_over
from hotplate.stores.timing import RETRY_PAUSES_S, Backoff, RateLimiter, Retrier

T = TypeVar("T")

# Of every container: items are read by id, so nothing is indexed.
DEFINITION: dict[str, Any] = {
    "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2},
    "indexingPolicy": {"indexingMode": "none", "automatic": False},
}

# Id of the item with a release's state.
STATE = "state"
DRAFT = "draft"
SEALED = "sealed"
# Of that item: the tokens of erasures, which a restored container lacks.
DROPPING = "dropping"
# Kinds of series: rows, by part, with the resume point; and `meta` rows.
ROWS = "rows"
METAS = "metas"

CONTAINER = "release-"
INCARNATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")

# https://learn.microsoft.com/azure/cosmos-db/concepts-limits
MAX_ITEM_BYTES = 2 << 20

# Time limits of retries while the service is unavailable, or answers 429.
UNAVAILABLE_S = 20.0
THROTTLED_S = 120.0
# Some replicas answer 404 for a new container.
CONTAINER_VISIBLE_S = 60.0
# Delays before a missing item is read again, in case a replica lags.
REPLICA_LAGS_S = (0.02, 0.1)
# Concurrent requests: 12,000 a second at 5 ms.
IN_FLIGHT = 64

AnyRef = ReleaseRef | DraftRef
# ReleaseConflict if the catalogue names another writer.
ConfirmWriter = Callable[[], Awaitable[None]]


@lru_cache(64)
def container_of(release: AnyRef) -> str:
    """Return the container of a release; ReleaseNotFound for an invalid incarnation."""
    if not INCARNATION.fullmatch(release.incarnation):
        raise ReleaseNotFound(f"release {release.id[:80]!r} is not in this store: no release has such an id")
    return CONTAINER + release.incarnation


def name_of(key: str) -> str:
    """Return the id of a row's item; StoreMisused for an unknown kind.

    A key with lone surrogates gets an id that no row has.
    """
    kind, colon, identifier = key.partition(":")
    encoded = urlsafe_b64encode(identifier.encode("utf-8", "surrogatepass")).decode()
    return f"{check_kind(kind if colon else '').replace('@', '.')}.{encoded.rstrip('=')}"


def to_item(name: str, value: bytes) -> CosmosItem:
    """Encode a value as an item."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and len(orjson.dumps(text)) - 2 <= (len(value) + 2) // 3 * 4:
        return {"id": name, "t": text}
    return {"id": name, "b": b2a_base64(value, newline=False).decode()}


def value_of(item: CosmosItem) -> bytes:
    """Decode an item; ReleaseCorrupt if `to_item` did not make it."""
    try:
        if (text := item.get("t")) is not None:
            return bytes(text.encode())
        return a2b_base64(item["b"], strict_mode=True)
    except (KeyError, AttributeError, TypeError, NotBase64, ValueError) as error:
        raise ReleaseCorrupt(f"the item {item.get('id')!r} was not written by hotplate; publish again") from error


def item_bytes(item: CosmosItem) -> int:
    """Return the stored size; StoreFull above the service's limit."""
    size = len(orjson.dumps(_ours(item) if "_rid" in item else item)) + SYSTEM_BYTES
    if size > MAX_ITEM_BYTES:
        raise StoreFull(
            f"the row {item['id']} takes {size:,} bytes as an item, and Cosmos DB stores {MAX_ITEM_BYTES:,} at most; "
            f"publish shorter lists"
        )
    return size


class Budget(Retrier):
    """Retries requests within a budget of request units."""

    def __init__(self, clock: Callable[[], float], rate_ru: float | None) -> None:
        """*rate_ru* is in RU/s; None for no limit."""
        super().__init__(clock, for_s=UNAVAILABLE_S, throttled_for_s=THROTTLED_S)
        self._clock = clock
        self._limiter = RateLimiter(clock, rate_ru)
        self._admission = asyncio.Lock()
        self._visible_at = dict[str, float]()

    def created(self, container: str) -> None:
        """Wait for a new container in `until_visible`."""
        self._visible_at[container] = self._clock() + CONTAINER_VISIBLE_S

    def erased(self, container: str) -> None:
        """Wait no more for a container."""
        self._visible_at.pop(container, None)

    async def until_visible(self, container: str, step: Callable[[], Awaitable[T]]) -> T:
        """Call *step* like `call`, also while its new container is not visible."""
        backoff = Backoff(*RETRY_PAUSES_S)
        while True:
            try:
                return await self.call(step)
            except ContainerMissing:
                if self._clock() > self._visible_at.get(container, -inf):
                    raise
            await asyncio.sleep(backoff.next_s())

    async def spend(
        self, container: str, expected_ru: float, request: Callable[[], Awaitable[T]], charge_ru: Callable[[T], float]
    ) -> T:
        """Send a request like `until_visible`, within the budget."""

        async def limited() -> T:
            async with self._admission:  # in order
                wait_s = self._limiter.wait_s()
                while wait_s > 0:
                    await asyncio.sleep(wait_s)
                    wait_s = self._limiter.wait_s()  # later after a 429
                self._limiter.take(expected_ru)
            try:
                done = await request()
            except StoreThrottled as error:
                self._limiter.correct(-expected_ru)
                self._limiter.pause(error.retry_after_s)
                raise
            self._limiter.correct(charge_ru(done) - expected_ru)
            return done

        return await self.until_visible(container, limited)


class ReleaseRows:
    """Rows of releases, within a budget."""

    def __init__(self, items: SignedClient, budget: Budget, charges: Charges) -> None:
        self._items = items
        self._budget = budget
        self._charges = charges
        self._last = dict[tuple[str, str], int]()
        """Last known batch number by container and series."""

    async def claim(self, draft: DraftRef, confirm: ConfirmWriter) -> None:
        """Become the writer of a draft, after *confirm* if it has another. Raises ReleaseConflict."""
        container = container_of(draft)
        for known in [key for key in self._last if key[0] == container]:
            del self._last[known]  # the draft may have been erased
        state = {"id": STATE, "state": DRAFT, "writer": draft.writer}
        if (await self._budget.until_visible(container, partial(self._items.create, container, state))).done:
            return

        async def take_over(item: CosmosItem) -> CosmosItem | None:
            if item["state"] != DRAFT:
                raise sealed(draft)
            if item.get("writer") == draft.writer:
                return None
            await confirm()
            claims = item.get("claims", 0) + 1
            former = await self._counted(container, item)
            return item | {"writer": draft.writer, "claims": claims, "former": former}

        await self._change_state(draft, take_over)

    async def has_state(self, container: str) -> bool:
        """Return whether a release or draft is in a container."""
        try:
            state = await self._read(container, STATE)
        except ContainerMissing:
            return False
        return state is not None and state.get("state") in (DRAFT, SEALED)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """See `Store.put`."""

        async def add_part(item: CosmosItem) -> CosmosItem:
            _check_writer(draft, item)
            return item | {"parts": sorted({*item.get("parts", ()), part})}

        if not rows:
            return
        state = await self.state(draft)
        if state["state"] != DRAFT:
            raise sealed(draft)
        _check_writer(draft, state)
        try:
            if part and part not in state.get("parts", ()):
                await self._change_state(draft, add_part)
            for kind, chunk in _chunks(rows, part):
                await self._write(draft, _series(kind, state), chunk)
        except ContainerMissing as error:
            raise not_found(draft) from error

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """See `Store.resume_point`."""
        state = await self.state(draft)
        _check_writer(draft, state)
        container = container_of(draft)
        kind = _rows_kind(part)
        own = _series(kind, state)
        counts = state.get("former", {}) | {own: await self._find_last(container, own)}
        for claim in range(state.get("claims", 0), -1, -1):
            series = _numbered(kind, claim)
            if last := counts.get(series, 0):
                return bounds(await self._packed(container, series, last))[1]
        return None

    async def erase(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        """See `RowEraser.erase_rows`."""
        container = container_of(release)
        deleted = 0

        async def erase(key: str) -> None:
            nonlocal deleted
            delete = partial(self._items.delete, container, name_of(key))
            done = (await self._budget.spend(container, self._charges.delete(0, 0), delete, _charge_of)).done
            deleted += done  # after the await, during which others count

        await self.state(release)
        await for_each(keys, erase)
        return deleted

    async def seal(self, draft: DraftRef) -> None:
        """See `Store.seal`."""

        async def change(item: CosmosItem) -> CosmosItem | None:
            if item["state"] == SEALED:
                return None
            _check_writer(draft, item)
            return item | {"state": SEALED}

        try:
            await self._change_state(draft, change)
        except ContainerMissing as error:
            raise not_found(draft) from error

    async def mark_dropping(self, release: ReleaseRef, token: str) -> bool:
        """Mark the state with the token of an erasure; return False if there is no state."""

        async def mark(item: CosmosItem) -> CosmosItem:
            return item | {DROPPING: [*item.get(DROPPING, ()), token]}

        try:
            await self._change_state(release, mark)
        except (ContainerMissing, ReleaseNotFound):
            return False
        return True

    async def check_dropping(self, release: ReleaseRef, token: str) -> None:
        """Raise ReleaseConflict unless the state bears the mark of an erasure, or is gone."""
        try:
            state = await self._read(container_of(release), STATE)
        except ContainerMissing:
            return
        if state is not None and token not in state.get(DROPPING, ()):
            raise ReleaseConflict(
                f"the container of release {release.id} was restored while it was being erased; see `hotplate releases "
                f"list`, and prune again"
            )

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        """See `Store.scan`."""
        container = container_of(release)
        state = await self.state(release)
        if state.get("state") != SEALED:
            raise not_found(release)
        try:
            spans = await self._spans(container, state)
            async for keys in merged(spans, partial(self._fetch, container)):
                values = dict[str, bytes]()
                await for_each(keys, partial(self._read_row, container, values))
                for key in keys:
                    if key in values:
                        yield Row(key, values[key])
        except ContainerMissing as error:
            raise not_found(release) from error

    async def _fetch(self, container: str, spans: Sequence[KeySpan]) -> list[bytes]:
        return [await self._packed(container, span.source, span.place) for span in spans]

    async def _spans(self, container: str, state: CosmosItem) -> list[KeySpan]:
        spans = list[KeySpan]()

        async def add(name: str, number: int) -> None:
            spans.append(KeySpan(*bounds(await self._packed(container, name, number)), name, number))

        for name, last in (await self._counted(container, state)).items():
            await for_each(range(1, last + 1), partial(add, name))
        return spans

    async def _counted(self, container: str, state: CosmosItem) -> dict[str, int]:
        """Return the last batch number of each series.

        `meta` comes last: it is acknowledged before other rows, so all of it is found while a writer continues.
        """
        counted: dict[str, int] = dict(state.get("former", {}))
        for kind in (*map(_rows_kind, (0, *state.get("parts", ()))), METAS):
            series = _series(kind, state)
            counted[series] = await self._find_last(container, series)
        return counted

    async def _read_row(self, container: str, values: dict[str, bytes], key: str) -> None:
        item = await self._read_surely(container, name_of(key))
        if item is not None:
            values[key] = value_of(item)

    async def _write(self, draft: DraftRef, series: str, batch: Sequence[Row]) -> None:
        container = container_of(draft)
        values = dict(batch)  # the last value of a key wins
        await for_each(list(values.items()), partial(self._create_row, draft, container))
        item = to_item(series, pack(list(values)))
        known = self._last.get((container, series))
        number = await self._find_last(container, series) if known is None else known
        done = False
        while not done:  # another task, or an attempt with a lost response, took it
            number += 1
            item["id"] = f"{series}-{number}"
            done = await self._create(container, item)
            self._last[container, series] = max(number, self._last.get((container, series), 0))

    async def _create_row(self, draft: DraftRef, container: str, row: tuple[str, bytes]) -> None:
        """Create a row, or compare it with an existing one."""
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
        create = partial(self._items.create, container, item)
        return (await self._budget.spend(container, self._charges.create(item_bytes(item), 0), create, _charge_of)).done

    async def state(self, release: AnyRef) -> CosmosItem:
        """Return the state of a release or draft. Raises ReleaseNotFound."""
        try:
            state = await self._read_surely(container_of(release), STATE)
        except ContainerMissing as error:
            raise not_found(release) from error
        if state is None:
            raise not_found(release)
        return state

    async def _change_state(self, draft: AnyRef, change: Callable[[CosmosItem], Awaitable[CosmosItem | None]]) -> None:
        """Compare and set the state, unless *change* returns None. Raises ReleaseNotFound."""
        container = container_of(draft)
        while True:
            read = partial(self._items.read_fresh, container, STATE)
            item, etag, _ = await self._budget.until_visible(container, read)
            if item is None:
                raise not_found(draft)
            changed = await change(_ours(item))
            if changed is None:
                return
            replace = partial(self._items.replace, container, changed, etag)
            if (await self._budget.until_visible(container, replace)).done:
                return

    async def _find_last(self, container: str, series: str) -> int:
        """Find the number of the last batch, or 0."""
        known = low = self._last.get((container, series), 0)
        step = 1
        high = None
        while high is None or high - low > 1:
            middle = low + step if high is None else (low + high) // 2
            if await self._read(container, f"{series}-{middle}") is None:
                high = middle
            else:
                low = middle
                step = step * 2
            if high == low + 1 and not known and await self._read_surely(container, f"{series}-{high}"):
                low = high
                step = 1
                high = None
        self._last[container, series] = low
        return low

    async def _packed(self, container: str, series: str, number: int) -> bytes:
        name = f"{series}-{number}"
        return value_of(await self._read_surely(container, name) or {"id": name})

    async def _read_surely(self, container: str, name: str) -> CosmosItem | None:
        """Read an item up to three times, because replicas may lag."""
        item = await self._read(container, name)
        for pause_s in REPLICA_LAGS_S if item is None else ():
            await asyncio.sleep(pause_s)
            if (item := await self._read(container, name)) is not None:
                break
        return item

    async def _read(self, container: str, name: str) -> CosmosItem | None:
        read = partial(self._items.read_fresh, container, name)
        return (await self._budget.spend(container, self._charges.read(0), read, self._read_charge)).item

    def _read_charge(self, versioned: VersionedItem) -> float:
        if versioned.item is None:
            return self._charges.not_found(strong=False)
        return self._charges.read(item_bytes(versioned.item))


async def for_each(values: Sequence[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Call *do* for all values, IN_FLIGHT at a time; raises the first failure."""
    left = iter(values)
    failures = list[Exception]()

    async def work() -> None:
        for value in left:
            if failures:
                return
            try:
                await do(value)
            except Exception as error:  # noqa: BLE001 -- raised below
                failures.append(error)

    await asyncio.gather(*(work() for _ in range(min(IN_FLIGHT, len(values)))))
    if failures:
        raise failures[0]


def _charge_of(written: ItemWritten) -> float:
    return written.charge_ru


def _ours(item: CosmosItem) -> CosmosItem:
    return {name: value for name, value in item.items() if name[0] != "_"}


def _check_writer(draft: DraftRef, state: CosmosItem) -> None:
    if state.get("writer") != draft.writer:
        raise taken_over(draft)


def _rows_kind(part: int) -> str:
    return f"{ROWS}-{part}" if part else ROWS


def _series(kind: str, state: CosmosItem) -> str:
    return _numbered(kind, state.get("claims", 0))


def _numbered(kind: str, claim: int) -> str:
    """Return a series; *claim* is 0 for the first writer."""
    return f"{kind}_{claim}" if claim else kind


def _chunks(rows: Sequence[Row], part: int) -> Iterator[tuple[str, Sequence[Row]]]:
    meta = [row for row in rows if row.key.startswith(META)]
    others = [row for row in rows if not row.key.startswith(META)] if meta else rows
    for kind, chosen in ((_rows_kind(part), others), (METAS, meta)):
        for start in range(0, len(chosen), BATCH_ROWS):
            yield kind, chosen[start : start + BATCH_ROWS]
