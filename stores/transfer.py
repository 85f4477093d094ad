"""Copying a release from one store to another, written once over any two: row for row, under the same id."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

from stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef, State
from stores.errors import ReleaseConflict, StoreUnavailable
from stores.estimate import Estimate, ReaderOfLoop, estimate
from stores.keys import MANIFEST, META
from stores.lifecycle import WriteResult, activate, begin, scale_down, take_over, write
from stores.manifest import Manifest, Tally, compare
from stores.store import Plan, Row, Store
from stores.verification import load_manifest

BATCH_ROWS = 1000
BATCH_BYTES = 4 << 20


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
        written = await _write(source, found, target, draft, manifest=manifest, on_progress=on_progress)
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


async def _write(
    source: Store,
    release: ReleaseRef,
    target: Store,
    draft: DraftRef,
    *,
    manifest: Manifest,
    on_progress: Callable[[int, int], None],
) -> WriteResult:
    async def finish(tally: Tally) -> Manifest:
        compare(manifest, tally)
        return manifest

    return await write(
        target,
        draft,
        _batches(source, release, manifest, on_progress),
        plan=Plan(manifest.rows, manifest.bytes),
        finish=finish,
    )


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
        if batch and (meta or len(batch) == BATCH_ROWS or size >= BATCH_BYTES):
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
