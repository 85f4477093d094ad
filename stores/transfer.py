"""Copying a release between stores under the same id, and repairing one by such a copy."""

import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

from hotplate.stores.catalogue import DraftRef, Release, ReleaseId, ReleaseRef, State
from hotplate.stores.compression import EncodedRows
from hotplate.stores.encoding import MANIFEST, META
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, ReleaseWithdrawn
from hotplate.stores.lifecycle import Override, scale_down
from hotplate.stores.manifest import Manifest, Tally
from hotplate.stores.publication import (
    Activation,
    Writer,
    WriterKind,
    WrittenRelease,
    begin,
    go_live,
    take_over,
    write_draft,
)
from hotplate.stores.release_log import was_withdrawn
from hotplate.stores.store import Plan, Row, Store
from hotplate.stores.users import check_copied, take_over_erasures
from hotplate.stores.verification import OnProgress, load_manifest, read_rows, unreported, verify

log = logging.getLogger(__name__)


async def copy(
    source: Store, target: Store, release: ReleaseId, *, live: bool = True, on_progress: OnProgress = unreported
) -> WrittenRelease:
    """Copy *release*, verify it, commit it and, unless *live* is false, activate it.

    A killed copy is continued once its lease has lapsed. A release that the target has is verified and, if damaged,
    repaired. If it cannot be activated, it stays ready, and the result's `held_back` is the reason: the target tries
    another one, gates refused the release, or it was withdrawn in the target, by a rollback or on probation. Such a
    release that was pruned since is not written again, unless *live* is false.

    Raises ReleaseConflict if *target* has other rows under that id, or another process copies it; ReleaseCorrupt if the
    source is damaged.
    """
    entry = await _find_committed(source, release)
    manifest = await load_manifest(source, entry.ref)

    in_target = (await target.catalogue()).get(release)
    withdrawal = await _withdrawal(target, release, in_target) if live else None
    if withdrawal is not None and in_target is None:
        return WrittenRelease(manifest, rows=0, skipped=0, held_back=withdrawal)

    draft = await _begin_copy(target, release)
    if draft is not None:
        written = await _write_copy(source, entry.ref, manifest, target, draft, on_progress=on_progress)
    elif await _is_complete(target, release, manifest, on_progress):
        await take_over_erasures(target, await erased_from(source))
        written = WrittenRelease(manifest, rows=0, skipped=manifest.rows)
    else:
        log.warning("release %s is in the target with missing or damaged rows; it is repaired", release)
        written = replace(await repair(target, source, release, on_progress=on_progress), repaired=True)

    if not live:
        if written.rows:
            await scale_down(target, (await target.catalogue()).find(release).ref)
        return written

    in_target = (await target.catalogue()).find(release)
    if withdrawal is not None and not in_target.refused_by:  # activation says by what it was refused
        await scale_down(target, in_target.ref)
        return replace(written, held_back=withdrawal)
    return await go_live(target, written, Activation(override=_override_for(entry, in_target)))


async def _withdrawal(target: Store, release: ReleaseId, in_target: Release | None) -> ReleaseWithdrawn | None:
    """Return why a release may not go live if it was withdrawn in *target*; else None.

    The log tells of releases that were pruned since, and perhaps copied again. A rollback by an earlier version is not
    marked in it.
    """
    if in_target is None or in_target.state in (State.DRAFT, State.READY):
        is_withdrawn = await was_withdrawn(target, release)
    else:
        is_withdrawn = in_target.state is State.WITHDRAWN
    if not is_withdrawn:
        return None
    again = f"`hotplate releases activate {release}` serves it again"
    if in_target is None:
        again += ", after `hotplate releases copy --no-activate`"
    return ReleaseWithdrawn(f"release {release} was withdrawn in the target, and is not served there; {again}")


def _override_for(in_source: Release, in_target: Release) -> Override:
    """Return whether a copy may go live although its gates, checks at its publish, refused it.

    It may if the source serves it, or has served it: it was accepted there, whatever its gates found when it was
    published. A withdrawal in the target is not overridden.
    """
    is_accepted_in_source = in_source.state is not State.READY and not in_source.refused_by
    is_withdrawn_in_target = in_target.state is State.WITHDRAWN
    return Override.REFUSAL if is_accepted_in_source and not is_withdrawn_in_target else Override.NOTHING


async def _is_complete(target: Store, release: ReleaseId, manifest: Manifest, on_progress: OnProgress) -> bool:
    """Return whether *target* has all rows of a release; ReleaseConflict if it has others under that id."""
    try:
        verified = await verify(target, (await target.catalogue()).find(release).ref, on_progress=on_progress)
    except (ReleaseCorrupt, ReleaseNotFound):
        return False
    if verified != manifest:
        raise ReleaseConflict(f"the target has another release {release}, of other rows; nothing was copied")
    return True


async def repair(
    store: Store, source: Store, release: ReleaseId, *, on_progress: OnProgress = unreported
) -> WrittenRelease:
    """Rewrite a damaged release, which stays served, from another store that has it.

    Raises ReleaseConflict if *source* has other rows under that id.
    """
    damaged = (await _find_committed(store, release)).ref
    intact = (await _find_committed(source, release)).ref
    manifest = await load_manifest(source, intact)

    try:
        has_same_rows = await load_manifest(store, damaged) == manifest
    except (ReleaseNotFound, ReleaseCorrupt):
        has_same_rows = True  # the damaged manifest cannot tell
    if not has_same_rows:
        raise ReleaseConflict(f"the source has another release {release}, of other rows; nothing was repaired")

    draft = await begin(store, release, repairs=damaged.incarnation, writer=Writer.new(WriterKind.COPY))
    written = await _write_copy(source, intact, manifest, store, draft, on_progress=on_progress, prepare=True)
    await scale_down(store, draft.release)
    return written


async def _begin_copy(target: Store, release: ReleaseId) -> DraftRef | None:
    """Begin a copy of a release in *target*, or continue that of a killed process once its lease has lapsed.

    Returns the draft, the release that is being written, or None if *target* has the release already. Raises
    ReleaseConflict if another process writes the draft.
    """
    while True:
        entry = (await target.catalogue()).get(release)
        if entry is not None and entry.state is not State.DRAFT:
            return None
        if entry is None:
            with suppress(ReleaseConflict):  # another process has begun a copy since: try to take that over
                return await begin(target, release, writer=Writer.new(WriterKind.COPY))
        try:
            return await take_over(target, release, writer=Writer.new(WriterKind.COPY))
        except (ReleaseConflict, ReleaseNotFound):
            entry = (await target.catalogue()).get(release)
            if entry is not None and entry.state is State.DRAFT:
                raise  # the other process is still writing it


async def _write_copy(
    source: Store,
    release: ReleaseRef,
    manifest: Manifest,
    target: Store,
    draft: DraftRef,
    *,
    on_progress: OnProgress,
    prepare: bool = False,
) -> WrittenRelease:
    """Write the rows of *release* of *source* into *draft* of *target*, without users erased from either store.

    *manifest*, that of the release, becomes the copy's unchanged; the sums over rows that the copy lacks are recorded
    in *target*. *prepare* is as of `write_draft`. Raises ReleaseCorrupt if rows of other users are missing.
    """
    await take_over_erasures(target, await erased_from(source))

    async def finish(tally: Tally, _begun: Manifest | None) -> Manifest:
        """Check the sums over the written rows, and return the manifest to be written last."""
        erased = await erased_from(source)  # again, for users erased since the copy began
        await take_over_erasures(target, erased)
        max_deleted = erased.missing_from(release).max_rows + erased.max_rows_of_lost(manifest)
        await check_copied(target, draft, manifest, tally, max_deleted=max_deleted)
        return manifest

    async def read() -> EncodedRows:
        return EncodedRows(Plan(manifest.rows, manifest.bytes), _batches(source, release, manifest, on_progress))

    return await write_draft(target, draft, read, finish=finish, prepare=prepare)


async def _find_committed(store: Store, release: ReleaseId) -> Release:
    """Return the entry of a committed release; ReleaseConflict for a draft, ReleaseNotFound if it is unknown."""
    entry = (await store.catalogue()).find(release)
    if entry.state is State.DRAFT:
        raise ReleaseConflict(f"release {release} is still being written; copy it once it is committed")
    return entry


async def _batches(
    source: Store, release: ReleaseRef, manifest: Manifest, on_progress: OnProgress
) -> AsyncIterator[list[Row]]:
    """Yield the rows of a release for its copy, in order of their keys, but for the manifest, which is written last.

    Each `meta` row is a separate batch. *on_progress* gets rows read and in all.
    """
    total = manifest.rows
    async for rows in read_rows(source, release, manifest, lambda done, _: on_progress(min(done, total), total)):
        for row in rows:
            if row.key.startswith(META) and row.key != MANIFEST:
                yield [row]
        yield [row for row in rows if not row.key.startswith(META)]
