"""Checks of releases in any store: whether one is complete, whether it can be served, how two differ."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.compression import load_decode, read_ids
from hotplate.stores.encoding import Checksum, Decode, is_empty
from hotplate.stores.erasure import ErasedUsers, erased_from
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.keys import MANIFEST, META, OVERALL, POPULAR, USER
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest, Tally, compare, read_manifest
from hotplate.stores.store import Diagnosed, Reader, Row, Store, read_one

# Limits of a chunk; bytes are of values, and approximate.
CHUNK_ROWS = 1000
CHUNK_BYTES = 4 << 20

# Damaged keys in a sentence, and in a result.
NAMED = 3
KEPT = 1000

# Compared items of each list: the number served by default.
DEPTH = 10

POPULAR_ITEMS = (10, 100)

# Users between two checks for a stop.
STOP_EVERY = 100

# For all reads before a release is served.
DEADLINE_S = 30.0

# Called with (done, in all), for example rows.
OnProgress = Callable[[int, int], None]

_KeyAndIds = tuple[bytes, list[str]]


def unreported(_done: int, _total: int) -> None:
    """Ignore progress."""


async def read_rows(
    store: Store,
    release: ReleaseRef,
    manifest: Manifest,
    on_progress: OnProgress = unreported,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> AsyncIterator[list[Row]]:
    """Yield all rows of a release, the manifest too, in chunks; keys repeated by the scan are skipped."""
    chunk, last = list[Row](), ""
    size = done = 0
    async for row in store.scan(release):
        if row.key <= last:
            continue
        last = row.key
        chunk.append(row)
        size += len(row.value)
        if len(chunk) == chunk_rows or size >= CHUNK_BYTES:
            yield chunk
            done += len(chunk)
            on_progress(done, manifest.rows + 1)
            chunk, size = [], 0
            await asyncio.sleep(0)  # let leases be renewed
    yield chunk
    on_progress(done + len(chunk), manifest.rows + 1)


async def verify(
    store: Store, release: ReleaseRef, *, erased: ErasedUsers | None = None, on_progress: OnProgress = unreported
) -> Manifest:
    """Compare all rows of a sealed release with its manifest; ReleaseCorrupt, with the findings of a scrub.

    *erased* is needed if the catalogue cannot be read.
    """
    if isinstance(store, Diagnosed):  # first, because a damaged release may not survive a scan
        await store.check_integrity(release)
    manifest = await load_manifest(store, release)
    tally = Tally()
    async for rows in read_rows(store, release, manifest, on_progress):
        _count(tally, rows, release)
    try:
        compare(manifest, tally)
    except ReleaseCorrupt as error:
        found = await _inspect(store, release, manifest, erased=erased)
        if not found.is_whole:
            raise ReleaseCorrupt(f"of release {release.id}, {found.finding}") from error
        if not found.erased:
            raise
    return manifest


@dataclass(frozen=True, slots=True)
class ScrubResult:
    """Rows read and in all, both with the manifest, and missing ones.

    *damaged* holds the first KEPT keys of *count* damaged rows.
    """

    rows: int
    total: int
    missing: int
    count: int
    damaged: list[str]
    erased: int = 0
    """Missing rows of erased users; not part of *missing*."""

    @property
    def is_whole(self) -> bool:
        """Whether no rows are missing or damaged."""
        return not self.missing and not self.count

    @property
    def finding(self) -> str:
        """A sentence about missing and damaged rows."""
        lost = f"{self.missing:,} of {self.total:,} rows are missing" if self.missing else ""
        spoiled = f"{self.count:,} of {self.rows:,} rows are {_listed(self.damaged, self.count)}" if self.count else ""
        return f"{' and '.join(filter(None, (lost, spoiled)))}; {HEAL}"


async def scrub(
    store: Store, release: ReleaseRef, *, rows_per_s: float, on_progress: OnProgress = unreported
) -> ScrubResult:
    """Read and check every row of a release at a steady rate, and count missing ones.

    Raises ReleaseCorrupt if the manifest or dictionary is damaged, or undamaged values are not the written ones.
    """
    return await _inspect(store, release, await load_manifest(store, release), rows_per_s, on_progress)


async def _inspect(
    store: Store,
    release: ReleaseRef,
    manifest: Manifest,
    rows_per_s: float | None = None,
    on_progress: OnProgress = unreported,
    *,
    erased: ErasedUsers | None = None,
) -> ScrubResult:
    decode = _of_all_rows(release, await load_decode(store, release, manifest))
    loop, tally, damaged = asyncio.get_running_loop(), Tally(), list[str]()
    began, rows, count = loop.time(), 0, 0
    chunk_rows = CHUNK_ROWS if rows_per_s is None else max(1, min(CHUNK_ROWS, int(rows_per_s / 10)))
    async for chunk in read_rows(store, release, manifest, on_progress, chunk_rows=chunk_rows):
        found = [row.key for row in chunk if not _is_whole(row, decode)]
        count += len(found)
        damaged += found[: KEPT - len(damaged)]
        _count(tally, chunk, release)
        rows += len(chunk)
        if rows_per_s is not None:
            await asyncio.sleep(began + rows / rows_per_s - loop.time())
    absent = {kind: max(0, stated - tally.counts.get(kind, 0)) for kind, stated in manifest.counts.items()}
    deleted = 0
    if lists := absent.get(USER.removesuffix(":"), 0):
        erased = await erased_from(store) if erased is None else erased
        deleted = min(lists, erased.rows.get(release.id, 0))
    missing = sum(absent.values()) - deleted
    if not missing and not count and not deleted:
        compare(manifest, tally)
    return ScrubResult(rows, manifest.rows + 1, missing, count, damaged, deleted)


def _count(tally: Tally, rows: Sequence[Row], release: ReleaseRef) -> None:
    try:
        tally.add(rows)
    except StoreMisused as error:
        raise ReleaseCorrupt(f"release {release.id} holds a damaged key ({error}); {HEAL}") from error


def _is_whole(row: Row, decode: Decode) -> bool:
    if row.key == MANIFEST:
        return True  # checked before
    try:
        decode(row.key, row.value)
    except ReleaseCorrupt:
        return False
    return True


def _of_all_rows(release: ReleaseRef, decode: Decode) -> Decode:
    check = Checksum(release.id).open
    return lambda key, value: (check if key.startswith(META) else decode)(key, value)


def named(keys: Sequence[str]) -> str:
    """Return a sentence with the first damaged keys."""
    return f"{_listed(keys, len(keys))}; {HEAL}"


def _listed(keys: Sequence[str], count: int) -> str:
    listed = ", ".join(repr(key) for key in keys[:NAMED])
    more = f" and {count - NAMED:,} more" if count > NAMED else ""
    return f"damaged: {listed}{more}"


async def load_manifest(reader: Reader, release: ReleaseRef) -> Manifest:
    """Read and check the manifest of a release."""
    return read_manifest(release.id, await read_one(reader, release, MANIFEST))


async def read_slots(
    reader: Reader, release: ReleaseRef, keys: Sequence[str]
) -> AsyncIterator[tuple[str, bytes | ReleaseCorrupt | None]]:
    """Read *keys* in order, in batches; raises any StoreError but ReleaseCorrupt."""
    for start in range(0, len(keys), reader.batch):
        chunk = keys[start : start + reader.batch]
        for key, slot in zip(chunk, await reader.get_many(release, chunk), strict=True):
            if isinstance(slot, StoreError) and not isinstance(slot, ReleaseCorrupt):
                raise slot
            yield key, slot
        await asyncio.sleep(0)  # a local store never waits


async def read_present(
    reader: Reader, release: ReleaseRef, keys: Sequence[str]
) -> AsyncIterator[tuple[str, bytes | ReleaseCorrupt]]:
    """Read *keys* as `read_slots`, with an error for a missing row."""
    async for key, slot in read_slots(reader, release, keys):
        if slot is None:
            slot = ReleaseCorrupt(f"release {release.id} has lost its row {key!r}; {HEAL}")  # noqa: PLW2901
        yield key, slot


@dataclass(frozen=True, slots=True)
class Servable:
    """The parts of a release that are read before it is served.

    *decode* opens values, except of `meta` rows. *popular* has opened, nonempty bodies by segment, one for OVERALL.
    *damaged* are keys of popular lists and the sample, too few to refuse the release.
    """

    manifest: Manifest
    decode: Decode
    popular: dict[str, bytes]
    damaged: tuple[str, ...]


async def read_servable(
    reader: Reader, release: ReleaseRef, *, erased: ErasedUsers | None = None, deadline_s: float = DEADLINE_S
) -> Servable:
    """Read the parts of a release that serving it needs; *erased* as for `verify`.

    Raises ReleaseNotFound if the data are gone; StoreUnavailable after *deadline_s*; ReleaseCorrupt if a file was cut,
    or the manifest, dictionary, overall popular list or most of the sample is missing or damaged.
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await _read_servable(reader, release, erased)
    except TimeoutError as error:
        raise StoreUnavailable(
            f"release {release.id} could not be read within {deadline_s:g} s; try again once the store is faster"
        ) from error


async def _read_servable(reader: Reader, release: ReleaseRef, erased: ErasedUsers | None) -> Servable:
    if isinstance(reader, Diagnosed):
        await reader.check_size(release)
    manifest = await load_manifest(reader, release)
    decode = await load_decode(reader, release, manifest)
    keys = [POPULAR + segment for segment in (OVERALL, *manifest.segments)]
    bodies, damaged = await _open(reader, release, [*keys, *manifest.sample], decode)
    if damaged:
        erased = await erased_from(reader) if erased is None else erased
        damaged = [key for key in damaged if not erased.covers(key)]
    unreadable = len(set(manifest.sample).intersection(damaged))
    if unreadable > 1 and 2 * unreadable > len(manifest.sample):
        raise ReleaseCorrupt(
            f"release {release.id} cannot be read: {unreadable} of the {len(manifest.sample)} rows of its sample are "
            f"missing or damaged; {HEAL}"
        )
    popular = {key.removeprefix(POPULAR): bodies[key] for key in keys if key in bodies and not is_empty(bodies[key])}
    if sum(map(len, popular.values())) > MAX_POPULAR_BYTES:
        raise ReleaseCorrupt(f"release {release.id} has popular lists of over {MAX_POPULAR_BYTES} bytes; publish again")
    if OVERALL not in popular:
        raise ReleaseCorrupt(f"release {release.id} has an empty popular list for everybody; publish again")
    return Servable(manifest, decode, popular, tuple(damaged))


async def _open(
    reader: Reader, release: ReleaseRef, keys: Sequence[str], decode: Decode
) -> tuple[dict[str, bytes], list[str]]:
    decode, bodies, damaged = _of_all_rows(release, decode), dict[str, bytes](), list[str]()
    async for key, value in read_present(reader, release, keys):
        try:
            if isinstance(value, ReleaseCorrupt):
                raise value
            bodies[key] = decode(key, value)
        except ReleaseCorrupt:
            if key == POPULAR + OVERALL:
                raise
            damaged.append(key)
    return bodies, damaged


@dataclass(frozen=True, slots=True)
class Difference:
    """Two releases compared by the first DEPTH items of their users' lists.

    compared        users with a list in both
    overlap         mean share of the longer list's items that are in both lists; None if no user has both
    unchanged       users with the same items in the same order
    popular_share   for each release, by number of top items: their share of all recommendations
    complete        false if the comparison was stopped; the figures are then of the first users by key
    """

    compared: int
    only_first: int
    only_second: int
    overlap: float | None
    unchanged: int
    popular_share: tuple[dict[int, float], dict[int, float]]
    complete: bool = True


async def diff(
    store: Store,
    first: ReleaseRef,
    second: ReleaseRef,
    *,
    on_progress: OnProgress = unreported,
    stop: Callable[[], bool] = lambda: False,
) -> Difference:
    """Compare two sealed releases in one pass; memory grows with the items, not the users.

    *on_progress* is called with (rows of the first release read, its rows).
    """
    items = Counter[str](), Counter[str]()
    compared = only_first = only_second = unchanged = 0
    shared = 0.0
    complete = True
    async with aclosing(_merged(_lists(store, first, on_progress), _lists(store, second))) as users:
        async for left, right in users:
            items[0].update(left or ())
            items[1].update(right or ())
            if right is None:
                only_first += 1
            elif left is None:
                only_second += 1
            else:
                compared += 1
                unchanged += left == right
                shared += len(set(left) & set(right)) / (max(len(left), len(right)) or 1)
            if (compared + only_first + only_second) % STOP_EVERY == 0 and stop():
                complete = False
                break
    overlap = shared / compared if compared else None
    shares = _shares(items[0]), _shares(items[1])
    return Difference(compared, only_first, only_second, overlap, unchanged, shares, complete)


async def _merged(
    one: AsyncIterator[_KeyAndIds], other: AsyncIterator[_KeyAndIds]
) -> AsyncGenerator[tuple[list[str] | None, list[str] | None], None]:
    left, right = await anext(one, None), await anext(other, None)
    while left is not None or right is not None:
        if left is not None and (right is None or left[0] < right[0]):
            yield left[1], None
            left = await anext(one, None)
        elif right is not None and (left is None or right[0] < left[0]):
            yield None, right[1]
            right = await anext(other, None)
        elif left is not None and right is not None:
            yield left[1], right[1]
            left, right = await anext(one, None), await anext(other, None)


async def _lists(store: Store, release: ReleaseRef, on_progress: OnProgress = unreported) -> AsyncIterator[_KeyAndIds]:
    manifest = await load_manifest(store, release)
    decode = await load_decode(store, release, manifest)
    async for rows in read_rows(store, release, manifest, on_progress):
        for row in rows:
            if row.key.startswith(USER):
                yield row.key.encode(), read_ids(row, decode)[:DEPTH]


def _shares(items: Counter[str]) -> dict[int, float]:
    total = items.total() or 1
    return {count: sum(times for _, times in items.most_common(count)) / total for count in POPULAR_ITEMS}
