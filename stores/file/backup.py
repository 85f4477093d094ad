"""Backups of a `file://` store, made and restored while it is in use.

A backup is itself a readable store of the sealed releases, each checked after it was copied. Backups and restores
appear by a rename, complete or not at all.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from hotplate.stores.catalogue import Catalogue, Erased, Release, ReleaseId, State, abort
from hotplate.stores.erasure import ErasedUsers
from hotplate.stores.erasure_log import NAMES, find_erased, read_erased, read_log
from hotplate.stores.errors import (
    CatalogueUnreadable,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreMisused,
)
from hotplate.stores.file.draft import check_room
from hotplate.stores.file.release import check_whole, translated
from hotplate.stores.file.store import RESTORED, CatalogueFile, LmdbStore
from hotplate.stores.folders import LOCK, flush, scratch_folder, write_all
from hotplate.stores.store import RecordChange
from hotplate.stores.verification import OnProgress, unreported

T = TypeVar("T")

READ_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class BackupResult:
    """Releases of a backup or a restore, and the number of copied bytes."""

    live: ReleaseId | None
    releases: tuple[ReleaseId, ...]
    copied_bytes: int


async def backup(store: LmdbStore, target: Path, on_progress: OnProgress = unreported) -> BackupResult:
    """Copy all committed releases and the catalogue into a new folder.

    Raises StoreMisused if *target* is not empty, ReleaseCorrupt, StoreFull. *on_progress* gets bytes copied and in all.
    """
    _check_new(target)
    async with _held_open(store) as (catalogue, files):
        parent = target.parent
        with translated(parent), scratch_folder(parent, ".hotplate-backup-") as scratch:
            same_names = {incarnation: incarnation for incarnation in files}
            copied = await _copy_all(files, same_names, scratch, on_progress)
            values = zip(NAMES, await store.records(NAMES), strict=True)
            records = [RecordChange(name, None, value) for name, value in values if value is not None]
            saved = replace(catalogue, token=secrets.token_hex(8))
            await _in_thread(CatalogueFile(scratch).replace, saved, records)
            with translated(target):
                scratch.rename(target)
                (target / LOCK).unlink(missing_ok=True)
                flush(parent)
    return BackupResult(catalogue.live, tuple(entry.id for entry in catalogue.releases), copied_bytes=copied)


def _check_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreMisused(f"{target} is there already; name a folder that is new, or empty")


async def restore(
    source: Path, store: LmdbStore, on_progress: OnProgress = unreported, *, over: bool = False
) -> BackupResult:
    """Restore the backup in the folder *source* into an empty store or, with *over*, into one that may be in use.

    The backup's live release becomes live in a new generation of the catalogue; canaries end. The store's live and
    superseded releases are withdrawn, and pruned after their grace, as are ready ones whose ids the backup has; other
    ready releases and drafts stay. Users erased from either are erased afterwards.

    Files are copied and checked in a scratch folder, then moved under the catalogue's lock. Each release gets a new
    incarnation, the name of its file, so that a process that is still erasing the old one cannot delete it.
    *on_progress* gets bytes copied and in all.

    Raises ReleaseConflict if the store is not empty, ReleaseCorrupt, StoreFull.
    """
    catalogue_file = CatalogueFile(store.folder)
    if _read_present(catalogue_file, store.clock()).generation and not over:
        raise ReleaseConflict(f"{store.folder} holds a store already; restore into an empty folder, or give --over")
    backup = LmdbStore(source, store.clock)
    async with _held_open(backup) as (saved, files):
        erased_there = await read_erased(backup, saved)
        await backup.close()
        new_names = {entry.incarnation: secrets.token_hex(6) for entry in saved.releases}
        # In `releases`, maybe a separate disk, so that files can be renamed; `prune` removes it after a killed restore.
        releases = store.folder / "releases"
        with translated(releases), scratch_folder(releases, RESTORED) as scratch:
            copied = await _copy_all(files, new_names, scratch, on_progress)
            rows = {new_names.get(name, name): missing for name, missing in erased_there.missing_by_release.items()}
            entries = [replace(entry, incarnation=new_names[entry.incarnation]) for entry in saved.releases]
            with catalogue_file.locked() as lock:  # no erasure or prune in between
                present = _read_present(catalogue_file, saved.now)
                erased, records = await _record_both(store, present, replace(erased_there, missing_by_release=rows))
                restored = replace(saved, releases=tuple(entries), erased=erased)
                for path in (scratch / "releases").iterdir():
                    path.rename(releases / path.name)
                flush(releases)
                catalogue_file.replace(_merge_catalogues(present, restored), records, lock)
    return BackupResult(saved.live, tuple(entry.id for entry in saved.releases), copied_bytes=copied)


async def _record_both(
    store: LmdbStore, present: Catalogue, theirs: ErasedUsers
) -> tuple[Erased | None, list[RecordChange]]:
    """Return what records the users erased from the store or from the backup; writes nothing.

    *present* is the store's catalogue, of generation 0 if it has none; *theirs* are the users erased from the backup.
    Returns the entry of erased users for the new catalogue, and the changes of the records beside it; None and no
    changes if no user is erased. Users that either record has lost are still counted.
    """
    ours = await (read_erased(store, present) if present.generation else find_erased(store))
    both = ours.union(theirs)
    if not both and not present.erased:
        return None, []
    log = replace(await read_log(store), is_whole=False)  # so that a new base is written
    return log.changes_for(both, min_count=max(ours.count + ours.lost, theirs.count + theirs.lost))


def _merge_catalogues(present: Catalogue, restored: Catalogue) -> Catalogue:
    """Return a catalogue with the entries of a store's *present* catalogue and of a *restored* one.

    Only the live release of *restored* stays live. The canary of the backup, which may have been aborted since, ends.
    """
    if restored.canary is not None:
        restored = abort(restored, restored.canary.release)
    restored_ids = {entry.id for entry in restored.releases}
    others = list[Release]()
    for entry in present.releases:
        is_replaced = entry.state is State.READY and entry.id in restored_ids
        if is_replaced or entry.state in (State.LIVE, State.SUPERSEDED):
            others.append(replace(entry, state=State.WITHDRAWN, superseded_at=restored.now))
        else:
            others.append(entry)
    return replace(
        restored,
        generation=max(present.generation, restored.generation) + 1,
        token=secrets.token_hex(8),
        releases=(*others, *restored.releases),
    )


def _read_present(catalogue: CatalogueFile, now: float) -> Catalogue:
    """Read the catalogue; a damaged one counts as empty, but not one of a newer format."""
    try:
        return catalogue.read(now)
    except CatalogueUnreadable as error:
        if error.record is None:
            raise
        return Catalogue()


@asynccontextmanager
async def _held_open(store: LmdbStore) -> AsyncIterator[tuple[Catalogue, dict[str, BinaryIO]]]:
    """Yield the catalogue of committed releases and, by incarnation, their open files, which outlive a prune.

    Raises ReleaseNotFound for an empty store, and if a file is missing.
    """
    previous = None
    while True:
        catalogue = await store.catalogue()
        if not catalogue.generation:
            raise ReleaseNotFound(f"{store.folder} holds no store; nothing was ever published there")
        complete = replace(catalogue, releases=catalogue.committed)
        with ExitStack() as opened:
            try:
                files = {name: _open(store.folder, name, opened) for name in sorted(complete.incarnations)}
            except ReleaseNotFound:
                if catalogue == previous:
                    raise  # it is missing, not pruned
                previous = catalogue
                continue
            yield complete, files
            return


def _open(folder: Path, incarnation: str, opened: ExitStack) -> BinaryIO:
    path = _release_path(folder, incarnation)
    with translated(path):
        return opened.enter_context(path.open("rb", buffering=0))


async def _copy_all(
    files: Mapping[str, BinaryIO], names: Mapping[str, str], scratch: Path, on_progress: OnProgress
) -> int:
    """Copy open *files* of releases into *scratch*/releases, and check the copies; return the number of bytes.

    *files* are by incarnation, and *names* has the new name of each incarnation. *on_progress* gets bytes copied and in
    all. Raises StoreFull before anything is copied, ReleaseCorrupt.
    """
    total = sum(os.fstat(files[old].fileno()).st_size for old in names)
    done = 0
    check_room(scratch, total)
    with translated(scratch):
        (scratch / "releases").mkdir()
    for old, new in names.items():
        path = _release_path(scratch, new)
        with translated(path), path.open("xb", buffering=0) as target:
            position = 0
            while copied := await _in_thread(_copy_piece, files[old].fileno(), target.fileno(), position):
                position += copied
                on_progress(done + position, total)
            await _in_thread(os.fsync, target.fileno())
        done += position
        try:
            await check_whole(path)
        except ReleaseCorrupt as error:  # the copy is removed, so name the source
            raise ReleaseCorrupt(str(error).replace(str(path), str(files[old].name))) from error
    with translated(scratch):
        flush(scratch / "releases")
    return total


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 -- those of *work*
    """Run *work* in a thread; if cancelled, wait for its end before its file is removed."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.gather(working, return_exceptions=True)
        raise


def _copy_piece(source: int, target: int, place: int) -> int:
    piece = os.pread(source, READ_CHUNK, place)
    write_all(target, piece, place)
    return len(piece)


def _release_path(folder: Path, incarnation: str) -> Path:
    return folder / "releases" / f"{incarnation}.mdb"
