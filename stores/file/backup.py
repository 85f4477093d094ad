"""Backups of a `file://` store, made and restored while it is in use.

A backup is itself a readable store of the sealed releases, each checked after it was copied. Backups and restores
appear by a rename, complete or not at all.
"""

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from hotplate.stores import transitions
from hotplate.stores.catalogue import Catalogue, Erased, ReleaseId
from hotplate.stores.erasure import ErasedUsers
from hotplate.stores.erasure_log import NAMES, read_erased, read_log
from hotplate.stores.errors import (
    CatalogueUnreadable,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreMisused,
)
from hotplate.stores.file.catalogue_file import CatalogueFile
from hotplate.stores.file.draft import check_room
from hotplate.stores.file.release import check_whole, translating_errors
from hotplate.stores.file.store import RESTORED, LmdbStore
from hotplate.stores.folders import LOCK, flush, scratch_folder
from hotplate.stores.rebuild import find_releases
from hotplate.stores.release_log import changes_beside
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

    Raises StoreMisused if *target* is not empty or a mount point, ReleaseCorrupt, StoreFull. *on_progress* gets bytes
    copied and in all.
    """
    target = _resolve_new(target)
    async with _held_open(store) as (catalogue, files):
        parent = target.parent
        with translating_errors(parent), scratch_folder(parent, ".hotplate-backup-") as scratch:
            if target.exists():
                _check_replaceable_folder(target, scratch)
            copied = await _copy_all(files, scratch, on_progress)

            # Without the drafts, this is another catalogue than the store's, so it gets another token.
            stored_records = zip(NAMES, await store.records(NAMES), strict=True)
            new_records = [RecordChange(name, None, value) for name, value in stored_records if value is not None]
            saved = replace(catalogue, token=secrets.token_hex(8))
            await LmdbStore(scratch).swap(Catalogue(), saved, new_records)

            # Renamed, it is no scratch folder any more, so its lock is removed.
            with translating_errors(target):
                scratch.rename(target)
                (target / LOCK).unlink(missing_ok=True)
                flush(parent)
    return BackupResult(catalogue.live, tuple(entry.id for entry in catalogue.releases), copied_bytes=copied)


def _resolve_new(target: Path) -> Path:
    """Return *target* without symbolic links; StoreMisused unless it is new or empty."""
    with translating_errors(target):
        target = Path(os.path.realpath(target))
        is_taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if is_taken:
        raise StoreMisused(f"{target} is there already; name a folder that is new, or empty")
    return target


def _check_replaceable_folder(target: Path, scratch: Path) -> None:
    """Raise StoreMisused if an empty folder cannot be replaced by a rename, before all is copied for that.

    The folders that replace it, now and after the copy, get its mode.
    """
    empty = scratch / "empty"
    empty.mkdir()
    mode = stat.S_IMODE(target.stat().st_mode) | stat.S_IRWXU
    for folder in (scratch, empty):
        folder.chmod(mode)
    try:
        empty.rename(target)
    except OSError as error:
        raise StoreMisused(
            f"{target} cannot be replaced by the backup ({error.strerror}): if it is a mount point, name a folder in it"
        ) from error


async def restore(
    source: Path, store: LmdbStore, on_progress: OnProgress = unreported, *, over: bool = False
) -> BackupResult:
    """Restore the backup in the folder *source* into an empty store or, with *over*, into one that may be in use.

    Afterwards users are erased that were erased from either, and releases have the states of `transitions.restore`.
    Files are copied and checked in a scratch folder, then moved under the catalogue's lock. *on_progress* gets bytes
    copied and in all.

    Raises ReleaseConflict if the store is not empty, ReleaseCorrupt, StoreFull. A failed restore can be repeated.
    """
    catalogue_file = CatalogueFile(store.folder)
    saved_store = LmdbStore(source, store.clock)
    async with _held_open(saved_store) as (saved, files):
        if not over:
            await _check_replaceable(store, saved)
        erased_in_backup = await read_erased(saved_store, saved)
        await saved_store.close()

        # An incarnation is the unique name of one write of a release, and names its file. New ones are drawn here, so
        # that a process that is erasing an old one cannot delete the restored file.
        new_names = {entry.incarnation: secrets.token_hex(6) for entry in saved.releases}
        erased_in_backup = erased_in_backup.renamed(new_names)
        renamed_files = {new: files[old] for old, new in new_names.items()}

        # In `releases`, maybe a separate disk, so that files can be renamed; `prune` removes it after a killed restore.
        releases = store.folder / "releases"
        with translating_errors(releases), scratch_folder(releases, RESTORED) as scratch:
            copied = await _copy_all(renamed_files, scratch, on_progress)

            entries = tuple(replace(entry, incarnation=new_names[entry.incarnation]) for entry in saved.releases)
            restored = replace(saved, releases=entries)
            move_files = partial(_move_files, scratch / "releases", releases)
            while True:  # repeated if the catalogue was changed meanwhile, as by the renewal of a lease
                record = catalogue_file.record()
                if not over:
                    await _check_replaceable(store, saved)
                present = _parse_or_empty(catalogue_file, record, store.clock())
                merged, record_changes = await _merge(store, present, restored, erased_in_backup)
                with suppress(ReleaseConflict):
                    await _in_thread(catalogue_file.swap, merged, partial(eq, record), record_changes, move_files)
                    break
    return BackupResult(saved.live, tuple(entry.id for entry in saved.releases), copied_bytes=copied)


async def _merge(
    store: LmdbStore, present: Catalogue, restored: Catalogue, erased_in_backup: ErasedUsers
) -> tuple[Catalogue, list[RecordChange]]:
    """Return the catalogue after a restore, and the changes of the records beside it; writes nothing.

    *present* is the store's catalogue, of generation 0 if it has none.
    """
    erased, record_changes = await _join_erasures(store, present, erased_in_backup)
    merged = replace(
        transitions.restore(present, restored),
        # A higher generation and a new token make readers follow, and swaps of other processes fail.
        generation=max(present.generation, restored.generation) + 1,
        token=secrets.token_hex(8),
        erased=erased,
    )
    if not present.generation and await store.incarnations():
        # Lost with its generation, which may have been higher: readers follow another store at once.
        merged = replace(merged, store_id=secrets.token_hex(8))
    return merged, [*record_changes, *await changes_beside(store, present, merged)]


async def _join_erasures(
    store: LmdbStore, present: Catalogue, erased_in_backup: ErasedUsers
) -> tuple[Erased | None, list[RecordChange]]:
    """Compute the record of all users erased from *store* or from the backup; writes nothing.

    Returns the entry for the new catalogue, and the changes of the records beside it, which hold the users; None and no
    changes if no user is erased. *present* is the store's catalogue, of generation 0 if it has none. Users that either
    record has lost are still counted.
    """
    log = await read_log(store)  # also records that were left without a catalogue
    all_erased = log.users.union(erased_in_backup)
    if not all_erased and not present.erased:
        return None, []

    count_in_store = 0 if present.erased is None else present.erased.count
    count_in_backup = erased_in_backup.count + erased_in_backup.lost
    return log.changes_for(all_erased, min_count=max(count_in_store, count_in_backup))


async def _check_replaceable(store: LmdbStore, saved: Catalogue) -> None:
    """Raise ReleaseConflict if *store* has a catalogue, or without one releases that *saved* lacks."""
    catalogue_file = CatalogueFile(store.folder)
    record = catalogue_file.record()
    if _parse_or_empty(catalogue_file, record, saved.now).generation:
        raise ReleaseConflict(f"{store.folder} holds a store already; restore into an empty folder, or give --over")

    try:
        found = await find_releases(store, record, saved.now)
    except ReleaseNotFound:
        return
    saved_ids = {entry.id for entry in saved.releases}
    lost = [release for release in found.candidates if release not in saved_ids]
    if lost:
        raise ReleaseConflict(
            f"{store.folder} holds {', '.join(lost)}, which the backup lacks, but its catalogue is gone or damaged: "
            f"`hotplate store rebuild` writes a new one. After a restore with --over, `hotplate releases prune` erases "
            f"them"
        )


def _parse_or_empty(catalogue_file: CatalogueFile, record: bytes | None, now: float) -> Catalogue:
    """Parse the catalogue; a damaged one counts as empty, but not one of a newer format."""
    try:
        return catalogue_file.parse(record, now)
    except CatalogueUnreadable as error:
        if error.record is None:
            raise
        return Catalogue(now=now)


def _move_files(source: Path, target: Path) -> None:
    """Move the files in the folder *source*, durably.

    After the records of erased users, because a rebuild shows files without a catalogue.
    """
    for path in source.iterdir():
        path.rename(target / path.name)
    flush(target)


@asynccontextmanager
async def _held_open(store: LmdbStore) -> AsyncIterator[tuple[Catalogue, dict[str, BinaryIO]]]:
    """Open the files of all committed releases; yield the catalogue without drafts, and the files by incarnation.

    An open file can be read even if a prune deletes it meanwhile. If a file is missing, it may have been pruned after
    the catalogue was read, so the catalogue is read again. Raises ReleaseNotFound if it has not changed then, and for
    an empty store.
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
    with translating_errors(path):
        return opened.enter_context(path.open("rb", buffering=0))


async def _copy_all(files: Mapping[str, BinaryIO], scratch: Path, on_progress: OnProgress) -> int:
    """Copy open *files* of releases into *scratch*/releases, and check the copies; return the number of bytes.

    *files* are by the incarnations of the copies. *on_progress* gets bytes copied and in all. Raises StoreFull before
    anything is copied, ReleaseCorrupt.
    """
    total = sum(os.fstat(file.fileno()).st_size for file in files.values())
    copied = 0
    check_room(scratch, total)

    with translating_errors(scratch):
        (scratch / "releases").mkdir()

    for incarnation, file in files.items():
        path = _release_path(scratch, incarnation)
        with translating_errors(path), path.open("xb") as copy:
            while piece := await _in_thread(_read_piece, file, copy.tell()):
                await _in_thread(copy.write, piece)
                copied += len(piece)
                on_progress(copied, total)
            copy.flush()
            await _in_thread(os.fsync, copy.fileno())
        try:
            await check_whole(path)
        except ReleaseCorrupt as error:  # the copy is removed, so name the source
            raise ReleaseCorrupt(str(error).replace(str(path), str(file.name))) from error

    with translating_errors(scratch):
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


def _read_piece(file: BinaryIO, place: int) -> bytes:
    with translating_errors(Path(file.name)):
        return os.pread(file.fileno(), READ_CHUNK, place)


def _release_path(folder: Path, incarnation: str) -> Path:
    return folder / "releases" / f"{incarnation}.mdb"
