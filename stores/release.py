"""The life of releases, written once over any store: publish, activate, roll back, prune, verify."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from stores import catalogue as changes
from stores.catalogue import GRACE_S, LEASE_S, Catalogue, ReleaseId, State
from stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreError, StoreUnavailable
from stores.keys import MANIFEST, META
from stores.manifest import Manifest, Tally, compare, describe, read_manifest
from stores.store import Plan, Reader, Row, Store

SWAP_ATTEMPTS = 50
VERIFY_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Written:
    """What one run of a writer came to: rows that it wrote, and rows that an earlier run was acknowledged for."""

    manifest: Manifest
    rows: int
    skipped: int


async def publish(
    store: Store,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    about: dict[str, Any],
    encoding: str = "json",
    live: bool = True,
) -> Manifest:
    """Write a whole release, check that it adds up, commit it and, unless told otherwise, make it live.

    Readers see nothing before the last step. A failure or an interrupt gives the draft up at once; a killed process, or
    a store that is away, leaves a draft that `resume` continues, until the next `prune` after its lease has lapsed.
    *about* goes into the manifest.
    """
    release = await _begin(store)
    written = await write(store, release, batches, plan=plan, finish=_described(store, release, encoding, about))
    if live:
        await activate(store, release)
    return written.manifest


async def resume(
    store: Store,
    release: ReleaseId,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    about: dict[str, Any],
    encoding: str = "json",
    live: bool = True,
) -> Written:
    """Go on with a draft whose publisher is gone, given the same rows anew; what was acknowledged is not put again.

    Raises ReleaseConflict where *release* is no draft, ReleaseCorrupt where the rows are not those that it began with.
    """
    await renew(store, release)
    written = await write(store, release, batches, plan=plan, finish=_described(store, release, encoding, about))
    if live:
        await activate(store, release)
    return written


async def write(
    store: Store,
    release: ReleaseId,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    finish: Callable[[Tally], Awaitable[Manifest]],
) -> Written:
    """Write or continue a draft, under a lease, up to its commit; *finish* turns the sums into its manifest."""
    try:
        async with _lease(store, release) as still_ours:
            written = await _complete(store, release)
            if written is None:
                await store.create(release, plan)
                written = await _put_all(store, release, batches, still_ours, finish)
            await store.seal(release)
            await verify(store, release)
            still_ours()
            await _change(store, lambda found: changes.commit(found, release))
    except StoreUnavailable as error:  # what was acknowledged stays
        raise StoreUnavailable(f"{error}; once that is mended, go on with --resume {release}") from error
    except BaseException:
        await _abandon(store, release)
        raise
    return written


async def begin(store: Store, release: ReleaseId) -> None:
    """Begin a draft under an id that was given elsewhere; ReleaseConflict where the store has that id already."""
    await _change(store, partial(changes.begin, release=release))


async def renew(store: Store, release: ReleaseId) -> None:
    """Take a draft over; ReleaseConflict where it is none any more, ReleaseNotFound where it was dropped."""
    await _change(store, lambda found: changes.renew(found, release))


async def activate(store: Store, release: ReleaseId) -> None:
    """Make a committed release live, once the store says that it is fit to be."""
    (await store.catalogue()).find(release)
    await store.prepare(release)
    await _change(store, lambda found: changes.activate(found, release))


async def rollback(store: Store) -> ReleaseId:
    """Make the release that was live before the live one live again, and return it. No data moves."""
    seen = await store.catalogue()
    if seen.live is None:
        raise ReleaseNotFound("nothing is live in this store, so there is nothing to roll back")
    expected = seen.live
    target = changes.rollback(seen, expected).live
    if target is not None:
        await store.prepare(target)
    swapped = await _change(store, lambda found: changes.rollback(found, expected))
    return swapped.releases[-1].id


async def prune(store: Store, *, keep: int = 1, grace_s: float = GRACE_S) -> list[ReleaseId]:
    """Erase what nobody needs any more, what an earlier prune left unfinished included; return what was erased."""
    marked = await _change(store, lambda found: changes.prune(found, keep, grace_s))
    dropped = [entry.id for entry in marked.releases if entry.state is State.DROPPING]
    for release in dropped:
        await _drop(store, release)
    return dropped


async def verify(store: Store, release: ReleaseId) -> Manifest:
    """Read every row of a sealed release and hold the sums against its manifest; ReleaseCorrupt where they differ."""
    manifest = await load_manifest(store, release)
    tally = Tally()
    chunk = list[Row]()
    async for row in store.scan(release):
        chunk.append(row)
        if len(chunk) == VERIFY_CHUNK:
            tally.add(chunk)
            chunk.clear()
            await asyncio.sleep(0)  # leases are renewed meanwhile
    tally.add(chunk)
    compare(manifest, tally)
    return manifest


async def load_manifest(reader: Reader, release: ReleaseId) -> Manifest:
    """Read and check the manifest of a release."""
    (slot,) = await reader.get_many(release, [MANIFEST])
    if isinstance(slot, StoreError):
        raise slot
    return read_manifest(release, slot)


def _described(
    store: Store, release: ReleaseId, encoding: str, about: dict[str, Any]
) -> Callable[[Tally], Awaitable[Manifest]]:
    async def finish(tally: Tally) -> Manifest:
        created_at = (await store.catalogue()).now
        return describe(release, tally, created_at=created_at, encoding=encoding, about=about)

    return finish


async def _complete(store: Store, release: ReleaseId) -> Written | None:
    """Tell whether an earlier run came as far as the manifest, the row that is written last."""
    try:
        manifest = await load_manifest(store, release)
    except (ReleaseNotFound, ReleaseCorrupt):
        return None
    return Written(manifest, 0, sum(manifest.counts.values()))


async def _put_all(
    store: Store,
    release: ReleaseId,
    batches: AsyncIterable[Sequence[Row]],
    still_ours: Callable[[], None],
    finish: Callable[[Tally], Awaitable[Manifest]],
) -> Written:
    point = await store.resume_point(release)
    tally = Tally()
    rows = skipped = 0
    async for batch in batches:
        still_ours()
        fresh, point = _after(point, batch)
        if fresh:
            await store.put(release, fresh)
        tally.add(batch)
        rows += len(fresh)
        skipped += len(batch) - len(fresh)
        await asyncio.sleep(0)  # the lease is renewed even if neither rows nor store ever wait
    manifest = await finish(tally)
    await store.put(release, [manifest.key_row])
    return Written(manifest, rows, skipped)


def _after(point: str | None, rows: Sequence[Row]) -> tuple[Sequence[Row], str | None]:
    """Return the rows that come after the resume point, and the point as long as it lies further on.

    Puts are acknowledged in the order of the rows, so that what comes before the point, `meta` rows too, is written.
    """
    if point is None:
        return rows, None
    last = point.encode()
    for place, (key, _) in enumerate(rows):
        if not key.startswith(META) and (raw := key.encode()) >= last:
            return rows[place + (raw == last) :], None
    return (), point


async def _begin(store: Store) -> ReleaseId:
    for _ in range(SWAP_ATTEMPTS):
        started = datetime.fromtimestamp((await store.catalogue()).now, UTC)
        release = ReleaseId(f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
        try:
            await begin(store, release)
        except ReleaseConflict:
            continue  # the same second and the same four digits: draw again
        return release
    raise ReleaseConflict("no free release id was found; is the store's clock standing still?")


async def _change(store: Store, change: Callable[[Catalogue], Catalogue]) -> Catalogue:
    """Apply a pure function to the catalogue by compare-and-set; a lost race is tried again on what won it."""
    for attempt in range(SWAP_ATTEMPTS):
        old = await store.catalogue()
        new = change(old)
        if new == old:
            return old
        new = changes.succeed(old, new, token=secrets.token_hex(8), store_id=secrets.token_hex(8))
        try:
            await store.swap(old, new)
        except ReleaseConflict:
            await asyncio.sleep(random.uniform(0, min(0.001 * 2**attempt, 0.1)))  # noqa: S311 -- spreads rivals, guards nothing
            continue
        return new
    raise ReleaseConflict(f"the catalogue changed {SWAP_ATTEMPTS} times under our hands; try again when it is quieter")


@asynccontextmanager
async def _lease(store: Store, release: ReleaseId) -> AsyncIterator[Callable[[], None]]:
    """Renew a draft's lease in the background; the yielded function raises once the draft is no longer ours."""

    async def keep() -> None:
        lapses_in = LEASE_S
        while True:
            await asyncio.sleep(min(LEASE_S, lapses_in) / 3)
            try:
                await renew(store, release)
                lapses_in = LEASE_S
            except StoreUnavailable:
                lapses_in *= 2 / 3
                if lapses_in < 1.0:
                    raise

    keeper = asyncio.create_task(keep())

    def still_ours() -> None:
        if keeper.done():
            keeper.result()

    try:
        yield still_ours
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)  # what it raised was told by still_ours


async def _abandon(store: Store, release: ReleaseId) -> None:
    """Give up a draft as well as can be; the cause of the failure is what the caller should see."""
    try:
        await _change(store, lambda found: changes.abandon(found, release))
        await _drop(store, release)
    except StoreError:
        return  # unreachable, committed, or dropped already: the lease decides


async def _drop(store: Store, release: ReleaseId) -> None:
    await store.erase(release)
    await _change(store, lambda found: changes.forget(found, release))
