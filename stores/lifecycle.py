"""The life of releases, written once over any store: begin, write, commit, activate, roll back, prune, copy.

A step is a pure function of `stores.catalogue`, applied by compare-and-set until no rival comes first. A copy is row
for row, under the same id.
"""

import asyncio
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

from stores import catalogue as changes
from stores.catalogue import GRACE_S, LEASE_S, Catalogue, DraftRef, ReleaseId, ReleaseRef, State
from stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreError, StoreUnavailable
from stores.estimate import ReaderOfLoop, estimate
from stores.keys import MANIFEST, META
from stores.manifest import Manifest, Tally, compare, describe
from stores.store import Estimate, Plan, ProvisionedStore, Row, Store
from stores.throttle import Backoff
from stores.verification import load_manifest, verify

SWAP_ATTEMPTS = 50

# The first and the longest pause before a lost race for the catalogue is tried again, in seconds.
SWAP_PAUSES_S = (0.001, 0.1)

# How much of a release is copied at once.
COPY_ROWS, COPY_BYTES = 1000, 4 << 20

# Makes the manifest of a release from the sums over all of its rows.
Finish = Callable[[Tally], Awaitable[Manifest]]


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What one run of a writer wrote: *rows* by this run, *skipped* that an earlier run was acknowledged for."""

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
    resume: ReleaseId | None = None,
) -> WriteResult:
    """Write a whole release, check that it adds up, commit it and, unless *live* is false, make it live.

    Readers see nothing before the last step. A failure or an interrupt gives the draft up at once; a killed process, or
    a store that is away, leaves a draft that *resume* continues, given the same rows anew, until the next `prune` after
    its lease has lapsed: what was acknowledged is not put again. *about* goes into the manifest.

    Raises ReleaseConflict where *resume* is no draft, ReleaseCorrupt where the rows are not those that it began with.
    """

    async def finish(tally: Tally) -> Manifest:
        created_at = (await store.catalogue()).now
        return describe(draft.id, tally, created_at=created_at, encoding=encoding, about=about)

    draft = await _begin_under_new_id(store) if resume is None else await take_over(store, resume)
    result = await write(store, draft, batches, plan=plan, finish=finish)
    if live:
        await activate(store, draft.id)
    else:
        await scale_down(store, draft.release)
    return result


async def begin(store: Store, release: ReleaseId) -> DraftRef:
    """Begin a draft under an id that was given elsewhere; ReleaseConflict where the store has that id already."""
    return _draft_ref(await change(store, partial(changes.begin, release=release)), release)


async def take_over(store: Store, release: ReleaseId) -> DraftRef:
    """Become a draft's writer; ReleaseConflict where it is none any more, ReleaseNotFound where it was dropped."""
    return _draft_ref(await change(store, partial(changes.renew, release=release)), release)


async def write(
    store: Store, draft: DraftRef, batches: AsyncIterable[Sequence[Row]], *, plan: Plan, finish: Finish
) -> WriteResult:
    """Write or continue a draft, under a lease, up to its commit."""
    try:
        async with _lease(store, draft) as check_lease:
            result = await _already_written(store, draft)
            if result is None:
                await store.create(draft, plan)
                result = await _put_all(store, draft, batches, check_lease, finish)
            await store.seal(draft)
            await verify(store, draft.release)
            check_lease()
            await change(store, lambda found: changes.commit(found, draft.id))
    except StoreUnavailable as error:  # what was acknowledged stays
        raise StoreUnavailable(f"{error}; once that is corrected, continue with --resume {draft.id}") from error
    except BaseException:
        await _abandon(store, draft)
        raise
    return result


async def activate(store: Store, release: ReleaseId) -> None:
    """Make a committed release live, once the store has prepared it."""
    ref = (await store.catalogue()).find(release).ref
    await store.prepare(ref)
    await change(store, lambda found: changes.activate(found, release))
    await _scale_up_again(store, ref)


async def rollback(store: Store) -> ReleaseId:
    """Make the release that was live before the live one live again, and return it. No data moves."""
    seen = await store.catalogue()
    if seen.live is None:
        raise ReleaseNotFound("nothing is live in this store, so there is nothing to roll back")
    expected = seen.live
    target = changes.rollback(seen, expected).live_ref
    if target is not None:
        await store.prepare(target)
    restored = (await change(store, lambda found: changes.rollback(found, expected))).releases[-1].ref
    await _scale_up_again(store, restored)
    return restored.id


async def prune(store: Store, *, keep: int = 1, grace_s: float = GRACE_S) -> list[ReleaseId]:
    """Erase what is no longer needed, including what an earlier prune left unfinished; return what was erased.

    What is kept but no longer read, its grace having passed, is scaled down.
    """
    marked = await change(store, lambda found: changes.prune(found, keep, grace_s))
    dropped = [entry.ref for entry in marked.releases if entry.state is State.DROPPING]
    for release in dropped:
        await _drop(store, release)
    for entry in marked.releases:
        if entry.state in (State.SUPERSEDED, State.WITHDRAWN) and (entry.superseded_at or 0.0) + grace_s <= marked.now:
            await scale_down(store, entry.ref)
    return [release.id for release in dropped]


async def scale_down(store: Store, release: ReleaseRef) -> None:
    """Let a release that is not live cost as little as it can, where that makes a difference to the store."""
    if not isinstance(store, ProvisionedStore):
        return
    if (await store.catalogue()).live != release.id:
        with suppress(ReleaseNotFound):  # nothing costs less
            await store.scale_down(release)
    if (await store.catalogue()).live == release.id:  # somebody made it live meanwhile
        await store.prepare(release)


async def change(store: Store, step: Callable[[Catalogue], Catalogue]) -> Catalogue:
    """Apply a pure function to the catalogue by compare-and-set; a lost race is tried again on what won it."""
    backoff = Backoff(*SWAP_PAUSES_S, min_jitter=0.0)
    for _ in range(SWAP_ATTEMPTS):
        old = await store.catalogue()
        new = step(old)
        if new == old:
            return old
        new = changes.succeed(old, new, token=secrets.token_hex(8), store_id=secrets.token_hex(8))
        try:
            await store.swap(old, new)
        except ReleaseConflict:
            await asyncio.sleep(backoff.next_s())
            continue
        return new
    raise ReleaseConflict(f"the catalogue was changed by others {SWAP_ATTEMPTS} times; try again when it is quieter")


async def _begin_under_new_id(store: Store) -> DraftRef:
    for _ in range(SWAP_ATTEMPTS):
        started = datetime.fromtimestamp((await store.catalogue()).now, UTC)
        try:
            return await begin(store, ReleaseId(f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"))
        except ReleaseConflict:
            continue  # the same second and the same four digits: draw again
    raise ReleaseConflict("no free release id was found; does the store's clock stand still?")


def _draft_ref(catalogue: Catalogue, release: ReleaseId) -> DraftRef:
    ref = catalogue.find(release).ref
    return DraftRef(ref.id, ref.incarnation, secrets.token_hex(8))


async def _scale_up_again(store: Store, release: ReleaseRef) -> None:
    """Prepare a release once more, now that it is live: a prune may have scaled it down just before the swap."""
    if isinstance(store, ProvisionedStore):
        await store.prepare(release)


async def _already_written(store: Store, draft: DraftRef) -> WriteResult | None:
    """Return the result where an earlier run came as far as the manifest, the row that is written last."""
    try:
        manifest = await load_manifest(store, draft.release)
    except (ReleaseNotFound, ReleaseCorrupt):
        return None
    return WriteResult(manifest, 0, manifest.rows)


async def _put_all(
    store: Store,
    draft: DraftRef,
    batches: AsyncIterable[Sequence[Row]],
    check_lease: Callable[[], None],
    finish: Finish,
) -> WriteResult:
    point = await store.resume_point(draft)
    tally = Tally()
    rows = skipped = 0
    async for batch in batches:
        check_lease()
        fresh, point = _after(point, batch)
        if fresh:
            await store.put(draft, fresh)
        tally.add(batch)
        rows += len(fresh)
        skipped += len(batch) - len(fresh)
        await asyncio.sleep(0)  # the lease is renewed even if neither rows nor store ever wait
    manifest = await finish(tally)
    await store.put(draft, [manifest.key_row])
    return WriteResult(manifest, rows, skipped)


def _after(point: str | None, rows: Sequence[Row]) -> tuple[Sequence[Row], str | None]:
    """Return the rows that come after the resume point, and the point as long as it lies further on.

    Puts are acknowledged in the order of the rows, so that what comes before the point, `meta` rows too, is written.
    """
    if point is None:
        return rows, None
    last = point.encode()
    for index, (key, _) in enumerate(rows):
        if not key.startswith(META) and (raw := key.encode()) >= last:
            return rows[index + (raw == last) :], None
    return (), point


@asynccontextmanager
async def _lease(store: Store, draft: DraftRef) -> AsyncIterator[Callable[[], None]]:
    """Renew a draft's lease in the background; the yielded function raises once the draft is gone or taken over."""

    async def renew() -> None:
        lapses_in = LEASE_S
        while True:
            await asyncio.sleep(min(LEASE_S, lapses_in) / 3)
            try:
                await change(store, lambda found: changes.renew(found, draft.id))
                lapses_in = LEASE_S
            except StoreUnavailable:
                lapses_in *= 2 / 3
                if lapses_in < 1.0:
                    raise

    renewal = asyncio.create_task(renew())

    def check() -> None:
        if renewal.done():
            renewal.result()

    try:
        yield check
    finally:
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)  # `check` raised what it raised


async def _abandon(store: Store, draft: DraftRef) -> None:
    """Give up a draft as well as can be; the cause of the failure is what the caller should see."""
    try:
        await change(store, lambda found: changes.abandon(found, draft.id))
        await _drop(store, draft.release)
    except StoreError:
        return  # unreachable, committed, or dropped already: the lease decides


async def _drop(store: Store, release: ReleaseRef) -> None:
    """Erase a release that the catalogue calls `dropping`, and take it out of the record."""
    await store.erase(release)
    await change(store, lambda found: changes.forget(found, release.id))


async def copy(
    source: Store,
    target: Store,
    release: ReleaseId,
    *,
    live: bool = True,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> WriteResult:
    """Copy *release*, check it against the source's manifest, commit it and, unless *live* is false, make it live.

    A copy that was killed is continued where it was acknowledged, and one that is complete is left as it is: the answer
    counts what was written and what existed. *on_progress* is called with (rows, rows in all). Raises ReleaseConflict
    where *target* holds other rows under that id, ReleaseCorrupt where the source does not add up.
    """
    found = await _committed(source, release)
    manifest = await load_manifest(source, found)
    state = _state(await target.catalogue(), release)
    if state is State.DROPPING:
        raise ReleaseConflict(f"release {release} is being erased in the target; prune the target and copy again")
    if state in (None, State.DRAFT):
        draft = await (begin if state is None else take_over)(target, release)

        async def finish(tally: Tally) -> Manifest:
            compare(manifest, tally)
            return manifest

        rows = _batches(source, found, manifest, on_progress)
        written = await write(target, draft, rows, plan=Plan(manifest.rows, manifest.bytes), finish=finish)
    elif await load_manifest(target, (await target.catalogue()).find(release).ref) == manifest:
        written = WriteResult(manifest, 0, manifest.rows)
    else:
        raise ReleaseConflict(f"the target has another release {release}, of other rows; nothing was copied")
    if live:
        await activate(target, release)
    elif written.rows:
        await scale_down(target, (await target.catalogue()).find(release).ref)
    return written


async def estimate_copy(
    source: Store, target: Store, release: ReleaseId, *, live: bool, on_progress: Callable[[int, int], None]
) -> Estimate:
    """Estimate `copy`; nothing is written. Raises ReleaseConflict where *target* has *release* already."""
    try:
        if _state(await target.catalogue(), release) not in (None, State.DRAFT):
            raise ReleaseConflict(f"the target has release {release} already, so that a copy would write nothing")
    except StoreUnavailable:
        pass  # the estimate says so
    here = cast("Store", ReaderOfLoop(source, asyncio.get_running_loop()))  # a copy only reads its source

    async def run(simulated: Store) -> Manifest:
        return (await copy(here, simulated, release, live=live, on_progress=on_progress)).manifest

    return await estimate(target, run, live=live)


async def _committed(source: Store, release: ReleaseId) -> ReleaseRef:
    entry = (await source.catalogue()).find(release)
    if entry.state is State.DRAFT:
        raise ReleaseConflict(f"release {release} is still being written; copy it once it is committed")
    return entry.ref


async def _batches(
    source: Store, release: ReleaseRef, manifest: Manifest, on_progress: Callable[[int, int], None]
) -> AsyncIterator[list[Row]]:
    """Yield the rows in the order of a scan; `meta` rows, which have batches of their own, where they stand."""
    done, total = 0, manifest.rows
    batch, size = list[Row](), 0
    async for row in source.scan(release):
        if row.key == MANIFEST:
            continue
        meta = row.key.startswith(META)
        if batch and (meta or len(batch) == COPY_ROWS or size >= COPY_BYTES):
            yield batch
            done += len(batch)
            on_progress(done, total)
            batch, size = [], 0
        if meta:
            yield [row]
            done += 1
        else:
            batch.append(row)
            size += len(row.value)
    yield batch
    on_progress(total, total)


def _state(catalogue: Catalogue, release: ReleaseId) -> State | None:
    return next((entry.state for entry in catalogue.releases if entry.id == release), None)
