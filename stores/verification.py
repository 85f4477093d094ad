"""Checks of releases in any store: whether one is complete, and whether it can be served."""

import asyncio
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf

from hotplate.base.timing import loop_time
from hotplate.stores.attributes import ItemAttributes, piece_keys
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.compression import load_decode
from hotplate.stores.encoding import (
    MANIFEST,
    META,
    OFFSET_BYTES,
    OVERALL,
    POPULAR,
    USER,
    Checksum,
    Decode,
    RowKey,
    is_empty,
)
from hotplate.stores.erasure import ErasedUsers, MissingRows
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest, Tally, compare, count_of, read_manifest
from hotplate.stores.store import Reader, Row, Store, batches_of, read_one

# Scans of a release, as erasures may change it meanwhile.
SCANS = 3

# Limits of a chunk of scanned rows; bytes are of values, and approximate.
CHUNK_ROWS = 1000
CHUNK_BYTES = 4 << 20

# Damaged keys that a sentence names.
NAMED = 3

# Pieces of 64 KiB in a read, so that lookups on the same connection do not wait for long.
PIECES_AT_ONCE = 16

# For all reads before a release is served.
DEADLINE_S = 30.0

# Called with (done, in all), for example rows.
OnProgress = Callable[[int, int], None]


def unreported(_done: int, _total: int) -> None:
    """Ignore progress."""


async def read_rows(
    store: Store,
    release: ReleaseRef,
    manifest: Manifest,
    on_progress: OnProgress = unreported,
    *,
    rows_per_s: float = inf,
) -> AsyncIterator[list[Row]]:
    """Yield all rows of a release, the manifest too, in chunks; keys repeated by the scan are skipped.

    With *rows_per_s*, chunks are smaller, and pauses keep to that rate. *on_progress* gets rows read and in all.
    """
    done = 0
    began = loop_time()

    async for chunk in _chunks(store.scan(release), max(1, int(min(CHUNK_ROWS, rows_per_s / 10)))):
        yield chunk

        done += len(chunk)
        on_progress(done, manifest.rows + 1)
        await asyncio.sleep(began + done / rows_per_s - loop_time())  # in any case, let leases be renewed


async def _chunks(rows: AsyncIterator[Row], chunk_rows: int) -> AsyncIterator[list[Row]]:
    """Collect scanned rows in chunks of at most *chunk_rows*, the last one maybe empty, without repeated keys."""
    chunk = list[Row]()
    size = 0
    last = ""
    async for row in rows:
        if row.key <= last:
            continue
        last = row.key
        chunk.append(row)
        size += len(row.value)
        if len(chunk) == chunk_rows or size >= CHUNK_BYTES:
            yield chunk
            chunk = []
            size = 0
    yield chunk


async def verify(
    store: Store,
    release: ReleaseRef,
    *,
    rows_per_s: float = inf,
    erased: ErasedUsers | None = None,
    on_progress: OnProgress = unreported,
) -> Manifest:
    """Compare all rows of a sealed release with its manifest, at most *rows_per_s* of them, and return it.

    Raises ReleaseCorrupt, which counts missing and damaged rows, unless only rows of erased users are missing. *erased*
    is needed if the catalogue cannot be read. The rows are scanned again if a user was erased meanwhile.
    """
    await store.check_integrity(release)  # first, because a damaged release may not survive a scan

    with _as_damage(release):
        manifest = await load_manifest(store, release)
        rows = partial(read_rows, store, release, manifest, on_progress, rows_per_s=rows_per_s)
        for scan in range(SCANS):
            known = await erased_from(store) if erased is None else erased
            tally = await _tally(rows(), known, release)

            try:
                compare(manifest, tally)
            except ReleaseCorrupt as error:
                if scan < SCANS - 1 and erased is None and await _is_outdated(store, release, known):
                    continue  # a user was erased during the scan
                await _check_loss(store, release, manifest, tally, known, rows_per_s=rows_per_s, mismatch=error)
            break
    return manifest


async def _check_loss(
    store: Store,
    release: ReleaseRef,
    manifest: Manifest,
    tally: Tally,
    erased: ErasedUsers,
    *,
    rows_per_s: float,
    mismatch: ReleaseCorrupt,
) -> None:
    """Raise ReleaseCorrupt unless the *mismatch* of *manifest* and *tally* is due to rows of erased users alone.

    *tally* has the rows in the store and those that *erased* has sums of. The error says how many rows are missing or
    damaged, for which all are read again. If none is, but none was deleted either, or there are more rows of a kind
    than *manifest* counts, *mismatch* itself is raised.
    """
    missing = {kind: max(0, count - tally.counts.get(kind, 0)) for kind, count in manifest.counts.items()}
    max_deleted = erased.missing_from(release).unsummed_rows + erased.max_rows_of_lost(manifest)
    deleted = min(count_of(missing, "user"), max_deleted)
    lost = sum(missing.values()) - deleted

    flaws = list[str]()
    if lost:
        rows = manifest.rows + 1  # with the manifest itself
        flaws.append(f"{lost:,} of {rows:,} rows are missing")
    damage = await _describe_damaged_rows(store, release, manifest, rows_per_s)
    if damage:
        flaws.append(damage)
    if flaws:
        raise ReleaseCorrupt(f"of release {release.id}, {' and '.join(flaws)}; {HEAL}") from mismatch
    has_surplus = any(count > manifest.counts.get(kind, 0) for kind, count in tally.counts.items())
    if has_surplus or not deleted:
        raise mismatch


async def _tally(chunks: AsyncIterator[list[Row]], erased: ErasedUsers, release: ReleaseRef) -> Tally:
    """Sum up rows; those of erased users as they were when they were recorded, present or not."""
    missing = erased.missing_from(release)
    tally = Tally()
    async for rows in chunks:
        if missing.key_hashes:
            tally.add([row for row in rows if not _is_missing(row, erased, missing)])
        else:
            tally.add(rows)
    tally.merge(missing.sums)
    return tally


def _is_missing(row: Row, erased: ErasedUsers, missing: MissingRows) -> bool:
    """Return whether the row of an erased user is counted as missing."""
    return RowKey.parse(row.key).kind == USER and erased.has_counted(row.key, missing)


async def _is_outdated(store: Store, release: ReleaseRef, known: ErasedUsers) -> bool:
    """Return whether an erasure has changed the missing rows of a release since *known* was read."""
    return (await erased_from(store)).missing_from(release) != known.missing_from(release)


async def _describe_damaged_rows(store: Store, release: ReleaseRef, manifest: Manifest, rows_per_s: float) -> str:
    """Read all rows, and count those that cannot be opened, as their checksum differs.

    Returns a sentence with the number and up to NAMED of their keys; an empty text if none is damaged. Reads at most
    *rows_per_s* rows a second.
    """
    decode = await load_decode(store, release, manifest)
    open_meta = Checksum(release.id).open
    rows = 0
    damaged = 0
    named = list[str]()
    async for chunk in read_rows(store, release, manifest, rows_per_s=rows_per_s):
        rows += len(chunk)
        for key, value in chunk:
            open_value = open_meta if key.startswith(META) else decode
            try:
                open_value(key, value)
            except ReleaseCorrupt:
                damaged += 1
                if len(named) < NAMED:
                    named.append(repr(key))

    if not damaged:
        return ""

    more = f" and {damaged - NAMED:,} more" if damaged > NAMED else ""
    return f"{damaged:,} of {rows:,} rows are damaged: {', '.join(named)}{more}"


@contextmanager
def _as_damage(release: ReleaseRef) -> Iterator[None]:
    """Raise ReleaseCorrupt for errors of counting and decoding damaged keys and rows."""
    try:
        yield
    except (StoreMisused, ValueError, LookupError, zlib.error, struct.error) as error:
        reason = f"{error.object[:80]!r} is not text" if isinstance(error, UnicodeDecodeError) else error
        raise ReleaseCorrupt(f"release {release.id} is damaged and cannot be decoded ({reason}); {HEAL}") from error


def counted(keys: Sequence[str]) -> str:
    """Return a sentence with the number of damaged keys, which are not named, as they may identify users."""
    rows = f"{len(keys)} of its popular lists and sampled rows"
    return f"damaged: {rows}; `hotplate releases verify` names them; {HEAL}"


async def load_manifest(reader: Reader, release: ReleaseRef) -> Manifest:
    """Read and check the manifest of a release."""
    return read_manifest(release.id, await read_one(reader, release, MANIFEST))


async def read_results(
    reader: Reader, release: ReleaseRef, keys: Sequence[str]
) -> AsyncIterator[tuple[str, bytes | ReleaseCorrupt | None]]:
    """Yield (key, result) for *keys* in order, read in batches: the stored value, an error for a damaged row, or None.

    Raises any other StoreError.
    """
    for chunk in batches_of(keys, reader.batch):
        for key, result in zip(chunk, await reader.get_many(release, chunk), strict=True):
            if isinstance(result, StoreError) and not isinstance(result, ReleaseCorrupt):
                raise result
            yield key, result
        await asyncio.sleep(0)  # a local store never waits


async def read_present(
    reader: Reader, release: ReleaseRef, keys: Sequence[str]
) -> AsyncIterator[tuple[str, bytes | ReleaseCorrupt]]:
    """Read *keys* as `read_results`; the result of a missing row is an error, too."""
    async for key, result in read_results(reader, release, keys):
        if result is None:
            result = ReleaseCorrupt(f"release {release.id} has lost its row {key!r}; {HEAL}")  # noqa: PLW2901
        yield key, result


async def read_pieces(reader: Reader, release: ReleaseRef, keys: Sequence[str]) -> AsyncIterator[bytes]:
    """Yield the bodies of `meta` rows of up to 64 KiB, few read at a time; raises ReleaseCorrupt for a missing one."""
    check = Checksum(release.id).open
    for batch in batches_of(keys, PIECES_AT_ONCE):
        async for key, value in read_present(reader, release, batch):
            if isinstance(value, ReleaseCorrupt):
                raise value
            yield check(key, value)[OFFSET_BYTES:]


@dataclass(frozen=True, slots=True)
class Servable:
    """The parts of a release that are read before it is served.

    *decode* opens values, except of `meta` rows. *popular* has opened, nonempty bodies by key, one for everybody in
    each list. *damaged* are keys of popular lists and the sample, too few to refuse the release.
    """

    manifest: Manifest
    decode: Decode
    popular: dict[str, bytes]
    damaged: tuple[str, ...]
    attributes: ItemAttributes | None = None


async def read_servable(reader: Reader, release: ReleaseRef, *, erased: ErasedUsers | None = None) -> Servable:
    """Read the parts of a release that serving it needs, within DEADLINE_S; *erased* is as of `verify`.

    Raises ReleaseNotFound if the data are gone; StoreUnavailable after DEADLINE_S; ReleaseCorrupt if a file was cut,
    or the manifest, dictionary, overall popular list, item attributes or most of the sample is missing or damaged.
    """
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await _read_servable(reader, release, erased)
    except TimeoutError as error:
        raise StoreUnavailable(
            f"release {release.id} could not be read within {DEADLINE_S:g} s; try again once the store is faster"
        ) from error


async def _read_servable(reader: Reader, release: ReleaseRef, erased: ErasedUsers | None) -> Servable:
    """Read the manifest, the decoder of values, the popular lists and the item attributes; see `read_servable`.

    The rows of the sample are read as a check. Rows of erased users do not count as damaged; if *erased* is None, these
    users are read from the store. Popular lists for everybody are essential: without one, the release cannot be served.
    """
    await reader.check_size(release)
    manifest = await load_manifest(reader, release)
    decode = await load_decode(reader, release, manifest)
    essential = [RowKey(POPULAR, OVERALL, name).text for name in ("", *manifest.named)]
    bodies = await _open_rows(reader, release, [*manifest.popular_keys, *manifest.sample], decode, essential=essential)

    damaged = [key for key, body in bodies.items() if body is None]
    lost_ids = 0
    if damaged:
        if erased is None:
            erased = await erased_from(reader)
        damaged = [key for key in damaged if not erased.covers(key)]
        lost_ids = erased.lost
    _check_sample(manifest, damaged, lost_ids)

    popular = _popular_lists(manifest, bodies, essential)
    attributes = await _read_attributes(reader, release, manifest)
    return Servable(manifest=manifest, decode=decode, popular=popular, damaged=tuple(damaged), attributes=attributes)


def _popular_lists(
    manifest: Manifest, bodies: Mapping[str, bytes | None], essential: Sequence[str]
) -> dict[str, bytes]:
    """Return the popular lists that are not empty, by key; ReleaseCorrupt without an *essential* one, or if too large.

    *bodies* are opened rows by key, None if missing or damaged; these lists are left out.
    """
    popular = dict[str, bytes]()
    for key in manifest.popular_keys:
        body = bodies.get(key)
        if body is not None and not is_empty(body):
            popular[key] = body

    release = manifest.release
    if sum(map(len, popular.values())) > MAX_POPULAR_BYTES:
        raise ReleaseCorrupt(f"release {release} has popular lists of over {MAX_POPULAR_BYTES} bytes; publish again")
    for key in essential:
        if key not in popular:
            raise ReleaseCorrupt(f"release {release} has an empty popular list for everybody, {key!r}; publish again")
    return popular


def _check_sample(manifest: Manifest, damaged: Sequence[str], lost_ids: int) -> None:
    """Raise ReleaseCorrupt if at least two sampled rows of a list, and more than half of its sample, are *damaged*.

    A release has a default list and may have named lists, each with rows in the sample of the manifest. *damaged* are
    keys of missing or damaged rows. Up to *lost_ids* of them may be rows of erased users that the record has lost.
    """
    sampled = Counter(RowKey.parse(key).list for key in manifest.sample)
    unreadable = Counter(RowKey.parse(key).list for key in set(manifest.sample) & {*damaged})
    for name, count in unreadable.items():
        if count > max(1, lost_ids) and 2 * count > sampled[name]:
            of_list = f" of the list {name!r}" if name else ""
            raise ReleaseCorrupt(
                f"release {manifest.release} cannot be read: {count} of the {sampled[name]} rows of its sample"
                f"{of_list} are missing or damaged; {HEAL}"
            )


async def _read_attributes(reader: Reader, release: ReleaseRef, manifest: Manifest) -> ItemAttributes | None:
    keys = piece_keys(manifest.origin.item_attributes.pieces)
    pieces = [piece async for piece in read_pieces(reader, release, keys)]
    return ItemAttributes(b"".join(pieces)) if pieces else None


async def _open_rows(
    reader: Reader, release: ReleaseRef, keys: Sequence[str], decode: Decode, *, essential: Container[str]
) -> dict[str, bytes | None]:
    """Read and open rows: the body by key, None if missing or damaged; ReleaseCorrupt for an *essential* one."""
    bodies = dict[str, bytes | None]()
    async for key, value in read_present(reader, release, keys):
        try:
            if isinstance(value, ReleaseCorrupt):
                raise value
            bodies[key] = decode(key, value)
        except ReleaseCorrupt:
            if key in essential:
                raise
            bodies[key] = None
    return bodies
