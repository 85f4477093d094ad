"""Whether a release is whole, and whether it can be served; and how two releases differ. Written once over any store.

Whether it can be served is one question with one answer, for everyone who is about to serve a release. What is read:
the manifest, the dictionary, the popular lists and the sample that was drawn when the release was published; of a store
that keeps files, their size, too. It shows that a release can be read, and takes a bounded time. It does not show that
the release is complete: `verify` does.
"""

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

# How many rows, and about how many bytes of values, are read and handled together.
CHUNK_ROWS = 1000
CHUNK_BYTES = 4 << 20

# How many damaged keys a sentence names, and how many are kept at most, however many there are.
NAMED = 3
KEPT = 1000

# How many items of each list are compared: as many as are served by default.
DEPTH = 10

POPULAR_ITEMS = (10, 100)

# After how many users it is looked whether a comparison is to stop.
STOP_EVERY = 100

# How long the reads before a release is served may take in all.
DEADLINE_S = 30.0

# Is called with (done, in all), for example rows.
OnProgress = Callable[[int, int], None]

_KeyAndIds = tuple[bytes, list[str]]


def unreported(_done: int, _total: int) -> None:
    """Report no progress."""


async def read_rows(
    store: Store,
    release: ReleaseRef,
    manifest: Manifest,
    on_progress: OnProgress = unreported,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> AsyncIterator[list[Row]]:
    """Yield all rows of a release, the manifest too, some at a time, each key once: a scan ascends, so a repeat shows.

    *on_progress* is called with (rows handled, rows in all).
    """
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
            await asyncio.sleep(0)  # leases are renewed in between
    yield chunk
    on_progress(done + len(chunk), manifest.rows + 1)


async def verify(
    store: Store, release: ReleaseRef, *, erased: ErasedUsers | None = None, on_progress: OnProgress = unreported
) -> Manifest:
    """Read every row of a sealed release and compare the sums with its manifest.

    *erased* is read by the catalogue, unless it is given because there is none.

    Raises ReleaseCorrupt if they differ, which says the same as a scrub; and for damage between the rows, where the
    store can find that.
    """
    if isinstance(store, Diagnosed):  # first, because a damaged release may not be fit to be walked through
        await store.check_integrity(release)
    manifest = await load_manifest(store, release)
    tally = Tally()
    async for rows in read_rows(store, release, manifest, on_progress):
        _count(tally, rows, release)
    try:
        compare(manifest, tally)
    except ReleaseCorrupt as error:
        found = await _inspect(store, release, manifest, erased_users=erased)
        if found.is_whole and found.erased:
            return manifest
        if found.is_whole:
            raise
        raise ReleaseCorrupt(f"of release {release.id}, {found.finding}") from error
    return manifest


@dataclass(frozen=True, slots=True)
class ScrubResult:
    """How many rows were read of how many, how many are missing and damaged, and keys of the first KEPT damaged ones.

    *rows* and *total* count the manifest, too.
    """

    rows: int
    total: int
    missing: int
    count: int
    damaged: list[str]
    erased: int = 0
    """How many rows were deleted because their users were erased; they are not missing."""

    @property
    def is_whole(self) -> bool:
        """Whether every row is there, as it was written."""
        return not self.missing and not self.count

    @property
    def finding(self) -> str:
        """Say what is missing or damaged."""
        lost = f"{self.missing:,} of {self.total:,} rows are missing" if self.missing else ""
        spoiled = f"{self.count:,} of {self.rows:,} rows are {_listed(self.damaged, self.count)}" if self.count else ""
        return f"{' and '.join(filter(None, (lost, spoiled)))}; {HEAL}"


async def scrub(
    store: Store,
    release: ReleaseRef,
    *,
    rows_per_s: float,
    on_progress: OnProgress = unreported,
) -> ScrubResult:
    """Read every row of a release at a steady rate, gentle to those who are served; check each value, and count rows.

    What is missing is known by the manifest. Raises ReleaseCorrupt if the manifest or the dictionary is damaged, or if
    values are whole and yet are not those that were written.
    """
    return await _inspect(store, release, await load_manifest(store, release), rows_per_s, on_progress)


async def _inspect(
    store: Store,
    release: ReleaseRef,
    manifest: Manifest,
    rows_per_s: float | None = None,
    on_progress: OnProgress = unreported,
    *,
    erased_users: ErasedUsers | None = None,
) -> ScrubResult:
    decode, check = await load_decode(store, release, manifest), Checksum(release.id).open
    loop, tally, damaged = asyncio.get_running_loop(), Tally(), list[str]()
    began, rows, count = loop.time(), 0, 0
    chunk_rows = CHUNK_ROWS if rows_per_s is None else max(1, min(CHUNK_ROWS, int(rows_per_s / 10)))
    async for chunk in read_rows(store, release, manifest, on_progress, chunk_rows=chunk_rows):
        found = [row.key for row in chunk if not _is_whole(row, decode, check)]
        count += len(found)
        damaged += found[: KEPT - len(damaged)]
        _count(tally, chunk, release)
        rows += len(chunk)
        if rows_per_s is not None:
            await asyncio.sleep(began + rows / rows_per_s - loop.time())
    absent = {kind: max(0, stated - tally.counts.get(kind, 0)) for kind, stated in manifest.counts.items()}
    erased = 0
    if lists := absent.get(USER.removesuffix(":"), 0):
        erased = min(
            lists, (await erased_from(store) if erased_users is None else erased_users).rows.get(release.id, 0)
        )
    missing = sum(absent.values()) - erased
    if not missing and not count and not erased:
        compare(manifest, tally)
    return ScrubResult(rows, manifest.rows + 1, missing, count, damaged, erased)


def _count(tally: Tally, rows: Sequence[Row], release: ReleaseRef) -> None:
    """Count stored rows in; ReleaseCorrupt for a key of no kind."""
    try:
        tally.add(rows)
    except StoreMisused as error:  # no caller misused anything: it was put with another key
        raise ReleaseCorrupt(f"release {release.id} holds a damaged key ({error}); {HEAL}") from error


def _is_whole(row: Row, decode: Decode, check: Decode) -> bool:
    """Return whether a row's value is what was stored under its key.

    *check* opens `meta` rows, which are not compressed.
    """
    if row.key == MANIFEST:
        return True  # read, and so checked, before any other
    try:
        (check if row.key.startswith(META) else decode)(row.key, row.value)
    except ReleaseCorrupt:
        return False
    return True


def named(keys: Sequence[str]) -> str:
    """Return a sentence that names damaged keys, a few of them."""
    return f"{_listed(keys, len(keys))}; {HEAL}"


def _listed(keys: Sequence[str], count: int) -> str:
    listed = ", ".join(repr(key) for key in keys[:NAMED])
    more = f" and {count - NAMED:,} more" if count > NAMED else ""
    return f"damaged: {listed}{more}"


async def load_manifest(reader: Reader, release: ReleaseRef) -> Manifest:
    """Read and check the manifest of a release."""
    return read_manifest(release.id, await read_one(reader, release, MANIFEST))


async def read_present(
    reader: Reader, release: ReleaseRef, keys: Sequence[str]
) -> AsyncIterator[tuple[str, bytes | ReleaseCorrupt]]:
    """Read *keys* of *release*, a batch at a time, in order; of one that is missing or damaged its error, not raised.

    Raises StoreError if a key cannot be read.
    """
    for start in range(0, len(keys), reader.batch):
        chunk = keys[start : start + reader.batch]
        for key, slot in zip(chunk, await reader.get_many(release, chunk), strict=True):
            if slot is None:
                yield key, ReleaseCorrupt(f"release {release.id} has lost its row {key!r}; {HEAL}")
            elif isinstance(slot, StoreError) and not isinstance(slot, ReleaseCorrupt):
                raise slot
            else:
                yield key, slot
        await asyncio.sleep(0)  # a store in this process never waits, and a service has requests to answer


@dataclass(frozen=True, slots=True)
class Servable:
    """What is read of a release before it is served; lives as long as it is served."""

    manifest: Manifest
    decode: Decode
    """Opens every value but those of `meta` rows, given its key."""

    popular: dict[str, bytes]
    """Popular lists by segment, as opened bodies; `OVERALL` is always there, and none is empty."""

    damaged: tuple[str, ...]
    """Keys of popular lists and of the sample that are missing or damaged: too few to refuse the release."""


async def read_servable(
    reader: Reader, release: ReleaseRef, *, erased: ErasedUsers | None = None, deadline_s: float = DEADLINE_S
) -> Servable:
    """Read what a release needs to be served; *erased* as for `verify`.

    Raises ReleaseNotFound if the data are gone, and StoreUnavailable if the store cannot be read in *deadline_s*
    (seconds). Raises ReleaseCorrupt if the file was cut, or if the manifest, the dictionary or the popular list for
    everybody is missing or damaged, or more than half of the sample, and more than one row.
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
    """Return the bodies of rows, and the keys of those that are missing or damaged.

    Raises ReleaseCorrupt if the popular list for everybody is one of them.
    """
    check, bodies, damaged = Checksum(release.id).open, dict[str, bytes](), list[str]()
    async for key, value in read_present(reader, release, keys):
        try:
            if isinstance(value, ReleaseCorrupt):
                raise value
            bodies[key] = (check if key.startswith(META) else decode)(key, value)
        except ReleaseCorrupt:
            if key == POPULAR + OVERALL:
                raise
            damaged.append(key)
    return bodies, damaged


@dataclass(frozen=True, slots=True)
class Difference:
    """Two releases compared over their users' first DEPTH items.

    compared        users that have a list in both
    only_first      users that have one in the first only; only_second in the second
    overlap         mean share of items, of a user's longer list, that both lists contain; None if no user has both
    unchanged       users whose lists name the same items in the same order
    popular_share   for each release, by number of items: the share of all recommendations that go to its top items
    complete        false where the comparison was stopped: all of the above is then of the first users, by their keys
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
    """Compare two sealed releases of one store in one pass over both; memory grows with items, not with users.

    *on_progress* is called with (rows of the first release read, its rows). Once *stop* says so, the answer is what was
    compared until then.
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
    """Yield the lists of each user, in order of key bytes; None if a release has none for the user."""
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
