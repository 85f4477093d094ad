"""Writing a draft under a lease, from its first row or from where a dead writer left it, up to its commit."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from stores import catalogue as changes
from stores.catalogue import LEASE_S, ReleaseId
from stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreError, StoreUnavailable
from stores.keys import META
from stores.manifest import Manifest, Tally
from stores.store import Plan, Row, Store
from stores.swapping import change, drop
from stores.verifying import load_manifest, verify


@dataclass(frozen=True, slots=True)
class Written:
    """What one run of a writer came to: rows that it wrote, and rows that an earlier run was acknowledged for."""

    manifest: Manifest
    rows: int
    skipped: int


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
            await change(store, lambda found: changes.commit(found, release))
    except StoreUnavailable as error:  # what was acknowledged stays
        raise StoreUnavailable(f"{error}; once that is mended, go on with --resume {release}") from error
    except BaseException:
        await _abandon(store, release)
        raise
    return written


async def begin(store: Store, release: ReleaseId) -> None:
    """Begin a draft under an id that was given elsewhere; ReleaseConflict where the store has that id already."""
    await change(store, partial(changes.begin, release=release))


async def renew(store: Store, release: ReleaseId) -> None:
    """Take a draft over; ReleaseConflict where it is none any more, ReleaseNotFound where it was dropped."""
    await change(store, lambda found: changes.renew(found, release))


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
        await change(store, lambda found: changes.abandon(found, release))
        await drop(store, release)
    except StoreError:
        return  # unreachable, committed, or dropped already: the lease decides
