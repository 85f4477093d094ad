"""Backups of a `file://` store, made and restored while it is in use.

A backup is itself a readable store of the sealed releases, each checked after it was copied. Backups and restores
appear by a rename, complete or not at all.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from hotplate.stores.catalogue import Catalogue, Erased, ReleaseId, State, abort
from hotplate.stores.erasure import NOBODY, ErasedUsers, read_erased
from hotplate.stores.errors import (
    CatalogueUnreadable,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreFull,
    StoreMisused,
)
from hotplate.stores.file.release import check_whole, translated
from hotplate.stores.file.store import RESTORED, CatalogueFile, LmdbStore
from hotplate.stores.folders import LOCK, flush, scratch_folder, write_all
from hotplate.stores.users import find_records, write_record
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
    async with _held(store) as (found, files):
        with _scratch(target.parent, ".hotplate-backup-") as scratch:
            copied = await _copy_all(store.folder, files, {each: each for each in files}, scratch, on_progress)
            await _in_thread(CatalogueFile(scratch).replace, replace(found, token=secrets.token_hex(8)))
            with translated(target):
                scratch.rename(target)
                (target / LOCK).unlink(missing_ok=True)
                flush(target.parent)
    return BackupResult(found.live, tuple(entry.id for entry in found.releases), copied)


async def restore(
    source: Path,
    store: LmdbStore,
    on_progress: OnProgress = unreported,
    *,
    over: bool = False,
) -> BackupResult:
    """Restore a backup into an empty store or, with *over*, into one that may be in use.

    The backup's live release becomes live in a new generation of the catalogue; canaries end. Other releases are
    withdrawn, and pruned after their grace; drafts stay. Restored releases get new incarnations, unknown to erasers.

    Raises ReleaseConflict if the store is not empty, ReleaseCorrupt, StoreFull.
    """
    catalogue = CatalogueFile(store.folder)
    if _present(catalogue, store.clock()).generation and not over:
        raise ReleaseConflict(f"{store.folder} holds a store already; restore into an empty folder, or give --over")
    async with _held(backup := LmdbStore(source, store.clock)) as (found, files):
        present, missing = await _erased_of_both(store, backup, found)
        names = {entry.incarnation: secrets.token_hex(6) for entry in found.releases}
        # In `releases`: maybe a separate disk, and `prune` cleans up there after a killed restore.
        with _scratch(store.folder / "releases", RESTORED) as scratch:
            copied = await _copy_all(source, files, names, scratch, on_progress)
            erased = present if missing is None else await write_record(store, missing)
            entries = tuple(replace(entry, incarnation=names[entry.incarnation]) for entry in found.releases)
            restored = replace(found, releases=entries, erased=erased)
            if restored.canary is not None:  # it may have been aborted after the backup
                restored = abort(restored, restored.canary.release)
            await _in_thread(_put_in_place, catalogue, restored, present, scratch / "releases")
    return BackupResult(found.live, tuple(entry.id for entry in found.releases), copied)


def _check_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreMisused(f"{target} is there already; name a folder that is new, or empty")


async def _erased_of_both(
    store: LmdbStore, backup: LmdbStore, found: Catalogue
) -> tuple[Erased | None, ErasedUsers | None]:
    """Return the store's record of erased users, and its union with the backup's, if larger."""
    theirs = await read_erased(backup, found)
    await backup.close()
    try:
        current = await store.catalogue()
        present, ours = current.erased, await read_erased(store, current)
    except CatalogueUnreadable:
        present, ours = None, reduce(ErasedUsers.merged, (await find_records(store)).values(), NOBODY)
    if not theirs and (present is not None or not ours):
        return present, None
    return present, ours.merged(theirs)


def _is_pruned(folder: Path, present: Catalogue, record: Erased) -> bool:
    path = _release_path(folder, record.incarnation)
    return present.entry(record.incarnation) is not None or not path.exists()


def _put_in_place(catalogue: CatalogueFile, restored: Catalogue, erased: Erased | None, copied: Path) -> None:
    releases = catalogue.folder / "releases"
    with catalogue.locked(), translated(releases):
        present = _present(catalogue, restored.now)
        if present.erased != erased or (restored.erased and _is_pruned(catalogue.folder, present, restored.erased)):
            raise ReleaseConflict("users were erased, or the store was pruned, meanwhile; restore the backup again")
        releases.mkdir(exist_ok=True)
        for path in copied.iterdir():
            path.rename(releases / path.name)
        flush(releases)
        catalogue.replace(_merged(present, restored))


def _merged(present: Catalogue, restored: Catalogue) -> Catalogue:
    ids = {entry.id for entry in restored.releases}
    others = [
        replace(entry, state=State.WITHDRAWN, superseded_at=restored.now)
        if entry.state in (State.LIVE, State.SUPERSEDED) or (entry.state is State.READY and entry.id in ids)
        else entry
        for entry in present.releases
    ]
    return replace(
        restored,
        generation=max(present.generation, restored.generation) + 1,
        token=secrets.token_hex(8),
        releases=(*others, *restored.releases),
    )


def _present(catalogue: CatalogueFile, now: float) -> Catalogue:
    """Read the catalogue; an unreadable one counts as empty."""
    try:
        return catalogue.read(now)
    except CatalogueUnreadable:
        return Catalogue()


@asynccontextmanager
async def _held(store: LmdbStore) -> AsyncIterator[tuple[Catalogue, dict[str, int]]]:
    """Yield the catalogue and open files of its releases, which outlive a prune."""
    before = None
    while True:
        found = await store.catalogue()
        if not found.generation:
            raise ReleaseNotFound(f"{store.folder} holds no store; nothing was ever published there")
        complete = replace(found, releases=found.committed)
        with ExitStack() as opened:
            try:
                files = {name: _open(store.folder, name, opened) for name in sorted(complete.incarnations)}
            except ReleaseNotFound:
                if found == before:
                    raise  # it is missing, not pruned
                before = found
                continue
            yield complete, files
            return


def _open(folder: Path, incarnation: str, opened: ExitStack) -> int:
    path = _release_path(folder, incarnation)
    with translated(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


async def _copy_all(
    source: Path, files: Mapping[str, int], names: Mapping[str, str], scratch: Path, on_progress: OnProgress
) -> int:
    """Copy and check open *files* of *source* under new *names*; return the number of bytes."""
    total, done = sum(os.fstat(files[old]).st_size for old in names), 0
    with translated(scratch):
        free = shutil.disk_usage(scratch).free
        if total > free:
            raise StoreFull(
                f"the releases take {total / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free next to {scratch}; "
                f"free some space, or choose another disk"
            )
        (scratch / "releases").mkdir()
    for old, new in names.items():
        file, path = files[old], _release_path(scratch, new)
        with translated(path):
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                place = 0
                while copied := await _in_thread(_copy_piece, file, target, place):
                    place += copied
                    on_progress(done + place, total)
                await _in_thread(os.fsync, target)
            finally:
                os.close(target)
        done += place
        try:
            await check_whole(path)
        except ReleaseCorrupt as error:  # the copy is removed, so name the source
            raise ReleaseCorrupt(str(error).replace(str(path), str(_release_path(source, old)))) from error
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


@contextmanager
def _scratch(folder: Path, prefix: str) -> Iterator[Path]:
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder, prefix) as scratch:
            yield scratch


def _release_path(folder: Path, incarnation: str) -> Path:
    return folder / "releases" / f"{incarnation}.mdb"
