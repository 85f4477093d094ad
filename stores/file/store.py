"""The embedded store, `file://`: one LMDB file per release, shared by all processes of a machine.

DIR/catalogue.json              the catalogue (`catalogue_file.py`)
DIR/records/NAME.json           a record beside it
DIR/releases/INCARNATION.mdb    a sealed release (`release.py`)
DIR/releases/INCARNATION.draft  a draft, with its writer's lock, INCARNATION.lock (`draft.py`)

A draft is a release being written; it is sealed, and immutable from then on, by a rename. A sealed file is never
written to, so its map can always be read. Sealing, swapping, erasing and checking run in threads, because leases must
be renewed meanwhile; `get`, `get_many`, `create` and `put`, which take milliseconds, do not.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseNotFound, StoreError, StoreMisused
from hotplate.stores.file.catalogue_file import NOT_A_FOLDER, CatalogueFile
from hotplate.stores.file.draft import DraftFile, check_room, check_unsealed, file_bytes, lock_path, open_draft
from hotplate.stores.file.release import (
    FAILURES,
    WARM_PAUSE_S,
    ReleaseFile,
    check_size,
    check_whole,
    translating_errors,
)
from hotplate.stores.folders import (
    flush,
    is_abandoned,
    make_folder,
    marked,
    remove_abandoned,
)
from hotplate.stores.store import (
    MAY_PUBLISH,
    CheckCatalogue,
    Finding,
    Level,
    Plan,
    ReadResult,
    RecordChange,
    Row,
    Store,
    not_found,
    taken_over,
)
from hotplate.stores.urls import redacted

# Prefix of a restore's folder; if the restore is killed, it is listed as an incarnation, and pruned.
RESTORED = "restored-"

# Network file systems have unreliable locks, renames and memory maps.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs")

# Rows of a scan between two turns of the event loop: about 0.2 ms.
SCANNED_AT_ONCE = 256

# Open files of releases that are not served, such as those that a publish reads back.
MAX_OTHER_FILES = 8

_REMEDY = "change its owner or its mode"
_SUFFIXES = {".mdb", ".draft", ".lock"}
_INCARNATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class LmdbStore(Store):
    """A folder of releases on a local disk; not to be used after a fork."""

    batch = coalesce = 64
    is_local = True
    poll_s = 0.1

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.clock = clock
        self._catalogue = CatalogueFile(folder)
        self._releases = folder / "releases"
        self._files = dict[str, ReleaseFile]()
        self._kept_open = set[str]()
        self._present = set[str]()  # in the last catalogue
        self._drafts = dict[str, DraftFile]()

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        """Read one key from the map; see `Reader`. Opens the release if it is not open."""
        file = self._files.get(release.incarnation) or self._open(release)
        try:
            return file.read(key.encode())
        except (UnicodeEncodeError, *FAILURES):
            result = file.read_or_error(key)
            if isinstance(result, StoreError):
                raise result from None
            return result

    def rows_of(self, release: ReleaseRef) -> ReleaseFile:
        return self._files.get(release.incarnation) or self._open(release)

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        """Read keys from the map, without waiting; see `Reader`."""
        del timeout_s  # a read of a map cannot be cancelled
        file = self._files.get(release.incarnation) or await self._opened(release)
        read = file.read
        try:
            return [read(key.encode()) for key in keys]
        except (UnicodeEncodeError, *FAILURES):
            # A key is not text or unreadable; `read_or_error` decides for each.
            return [file.read_or_error(key) for key in keys]

    async def catalogue(self) -> Catalogue:
        """Read the catalogue, and unmap releases that are gone and not served: their maps would keep the disk space."""
        catalogue = self._catalogue.read(self.clock())
        if catalogue.generation:  # an empty catalogue takes no release away from readers
            self._present = catalogue.incarnations
            self._close_gone()
        return catalogue

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._catalogue.record(name) for name in names]

    async def poll(self) -> Catalogue:
        """Read the catalogue; ReleaseNotFound if the file of the live release was removed while it is mapped."""
        catalogue = await self.catalogue()
        live_removed = self._removed_live(catalogue)
        if live_removed is None:
            return catalogue
        latest = await self.catalogue()
        if latest.version == catalogue.version:
            raise live_removed
        return latest  # pruned after a swap

    async def close(self) -> None:
        """Free the locks of drafts, and unmap all releases."""
        for draft in [*self._drafts.values()]:
            await asyncio.to_thread(draft.close)
        files = list(self._files.values())
        self._drafts.clear()
        self._files.clear()
        for file in files:
            file.close()
        for file in files:
            await file.closed()

    async def examine(self) -> list[Finding]:
        """Check this user's rights in the folder, and the file system under it."""
        with translating_errors(self.folder):
            return self._findings(self.folder)

    def _findings(self, folder: Path) -> list[Finding]:
        releases = self._releases
        if folder.is_dir():
            existing = folder
            files = sorted(releases.glob("*.mdb"))
            readable = _access_finding(os.R_OK, [folder, folder / "catalogue.json", releases, *files])
            writable = _access_finding(os.W_OK, [folder, releases, folder / "catalogue.lock"])
        else:
            existing = next(path for path in (folder, *folder.parents) if path.exists())
            if not existing.is_dir():
                raise StoreMisused(NOT_A_FOLDER.format(folder))
            readable = Finding(Level.OK, "may read", f"{folder} does not exist yet; the first publish makes it")
            writable = _access_finding(os.W_OK, [existing])
        return [readable, writable, _file_system_finding(existing)]

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        del draft
        check_room(self._releases, file_bytes(plan.rows, plan.payload_bytes))

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        """Create or continue a draft's file, and lock it for its writer; see `Store`."""
        if former := self._drafts.pop(draft.incarnation, None):
            former.close()
        path = self._draft_path(draft)
        with translating_errors(self._releases):
            make_folder(self._releases)
        needed = file_bytes(plan.rows, plan.payload_bytes)
        self._drafts[draft.incarnation] = open_draft(path, self._sealed_path(draft), draft, needed=needed)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        self._claimed(draft).put(rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return self._claimed(draft).resume_point(part)

    async def seal(self, draft: DraftRef) -> None:
        """Seal a draft in a thread; see `Store`. Sealed by an earlier attempt, it stays as it is."""
        path = self._sealed_path(draft)
        if _exists(path):  # sealed but not committed; the attempt may have failed before its rename was durable
            with translating_errors(path):
                await asyncio.to_thread(flush, path.parent)
            return
        await asyncio.to_thread(self._claimed(draft).seal, path)
        self._drafts.pop(draft.incarnation, None)

    async def is_sealed(self, release: ReleaseRef) -> bool:
        try:
            path = self._sealed_path(release)
        except ReleaseNotFound:
            return False
        return _exists(path)

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        file = await self._opened(release)
        with file.held():
            await check_whole(file.path)
            for number, row in enumerate(file.rows(), start=1):
                yield row
                if number % SCANNED_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def check_size(self, release: ReleaseRef) -> None:
        await asyncio.to_thread(check_size, self._sealed_path(release))

    async def check_integrity(self, release: ReleaseRef) -> None:
        await check_whole(self._sealed_path(release))

    async def prepare(self, release: ReleaseRef) -> None:
        if not _exists(self._sealed_path(release)):  # `warm` reads it into memory
            raise not_found(release)

    async def warm(self, release: ReleaseRef) -> None:
        """Read a release into memory, paced while another one is served; see `Reader`."""
        file = await self._opened(release)
        with file.held():
            await file.warm(WARM_PAUSE_S if len(self._files) > 1 else 0.0)

    def keep_open(self, releases: Sequence[ReleaseRef]) -> None:
        self._kept_open = {release.incarnation for release in releases}
        self._close_gone()

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        """Replace the catalogue under its lock, in a thread; see `Store`."""

        def is_expected(current: bytes | None) -> bool:
            if isinstance(old, bytes):
                return current == old
            return self._catalogue.parse(current, new.now).version == old.version

        await asyncio.to_thread(self._catalogue.swap, new, is_expected, records)

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        """Unlink the files of a release under the catalogue's lock, and close them; see `Store`."""
        await asyncio.to_thread(self._remove, release, check)
        if draft := self._drafts.pop(release.incarnation, None):
            await asyncio.to_thread(draft.close)
        if file := self._files.pop(release.incarnation, None):
            file.close()

    async def incarnations(self) -> list[str]:
        """Return the incarnations with files, sorted; an incarnation is the unique name of one write of a release.

        Folders that a killed restore left count as incarnations, too, so that `prune` erases them.
        """
        with translating_errors(self._releases):
            paths = list(self._releases.iterdir()) if self._releases.is_dir() else []
            names = {path.stem for path in paths if path.suffix in _SUFFIXES and path.is_file()}
            names |= {path.name for path in marked(self._releases, RESTORED) if is_abandoned(path)}
        return sorted(name for name in names if _INCARNATION.fullmatch(name))

    def _close_gone(self) -> None:
        for incarnation in self._files.keys() - self._present - self._kept_open:
            self._files.pop(incarnation).close()

    def _removed_live(self, catalogue: Catalogue) -> ReleaseNotFound | None:
        """Return an error if the file of the live release was removed while it is mapped, else None.

        If that of another release was removed, it is unmapped, and its users get the live one.
        """
        for release in catalogue.served:
            path = self._sealed_path(release)
            if release.incarnation not in self._files or _exists(path):
                continue
            if release == catalogue.live_ref:
                return ReleaseNotFound(
                    f"{path} was removed while release {release.id} is served from it; restore it, or publish again"
                )
            self._files.pop(release.incarnation).close()
        return None

    def _claimed(self, draft: DraftRef) -> DraftFile:
        """Return the open file of a draft that `create` claimed for its writer.

        Raises ReleaseConflict if it was sealed or has another writer, ReleaseNotFound if it was erased.
        """
        draft_file = self._drafts.get(draft.incarnation)
        if draft_file is not None and not draft_file.closed and draft_file.writer == draft.writer:
            return draft_file
        check_unsealed(self._sealed_path(draft), draft)
        if not _exists(self._draft_path(draft)):
            raise not_found(draft)
        raise taken_over(draft)  # or never created by this handle

    def _remove(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        """Unlink the files of a release, draft or killed restore; the draft first, to fail a concurrent `seal`.

        *check* gets the catalogue under its lock, and raises ReleaseConflict if the release must not be erased.
        """
        draft = self._draft_path(release)
        with self._catalogue.locked() as lock:  # no swap or restore in between
            check(self._catalogue.read(self.clock()))
            self._catalogue.check_locked(lock)
            with translating_errors(draft):
                for path in (draft, self._sealed_path(release), lock_path(draft)):
                    path.unlink(missing_ok=True)
        if release.incarnation.startswith(RESTORED):
            remove_abandoned(self._releases / release.incarnation)

    async def _opened(self, release: ReleaseRef) -> ReleaseFile:
        """Return the file of a release; opens it if necessary, without waiting for its unmapping on the event loop."""
        if release.incarnation not in self._files:
            await ReleaseFile.unmapped(self._sealed_path(release))
        return self.rows_of(release)

    def _open(self, release: ReleaseRef) -> ReleaseFile:
        """Open the file of a release, and close the one that was opened first if many that are not served are open."""
        file = ReleaseFile.open(self._sealed_path(release))
        others = [name for name in self._files if name not in self._kept_open]
        if len(others) >= MAX_OTHER_FILES:
            self._files.pop(others[0]).close()
        self._files[release.incarnation] = file
        return file

    def _sealed_path(self, release: ReleaseRef | DraftRef) -> Path:
        return self._releases / f"{_checked(release.incarnation)}.mdb"

    def _draft_path(self, release: ReleaseRef | DraftRef) -> Path:
        return self._releases / f"{_checked(release.incarnation)}.draft"


def _checked(incarnation: str) -> str:
    if not _INCARNATION.fullmatch(incarnation):
        raise ReleaseNotFound(f"{incarnation!r} is not a release id; they look like 20261120T064200Z-7f3a")
    return incarnation


def _exists(path: Path) -> bool:
    with translating_errors(path):
        return path.exists()


def open_url(url: str) -> LmdbStore:
    """Open `file:///FOLDER`; the first publish makes the folder."""
    folder = url.removeprefix("file://")
    if not folder.startswith("/"):
        raise StoreMisused(f"{redacted(url)} has no absolute folder; write file:///FOLDER, as in file:///var/hotplate")
    return LmdbStore(Path(folder))


def _access_finding(mode: int, paths: Sequence[Path]) -> Finding:
    """Check whether this user may use those of *paths* that exist; return a finding on the first that is refused.

    *mode* is os.R_OK or os.W_OK; a folder must also be enterable. A refused read is an error, but a refused write only
    a warning: a service needs no right to publish.
    """
    subject = "may read" if mode == os.R_OK else MAY_PUBLISH
    for path in paths:
        try:
            folder_mode = os.X_OK if path.is_dir() else 0
            is_refused = path.exists() and not os.access(path, mode | folder_mode, effective_ids=True)
            is_read_only = is_refused and bool(os.statvfs(path).f_flag & os.ST_RDONLY)
        except OSError:  # a folder above it cannot be entered
            is_refused = True
            is_read_only = False

        if is_refused:
            refused = f"no: user {os.geteuid()} may not use {path}"
            if mode == os.R_OK:
                return Finding(Level.ERROR, subject, f"{refused}; to read, {_REMEDY}")
            remedy = "mount its file system for writing" if is_read_only else _REMEDY
            sentence = f"{refused}, which is right for a service; to publish, {remedy}"
            return Finding(Level.WARNING, subject, sentence)
    return Finding(Level.OK, subject, "yes")


def _file_system_finding(folder: Path) -> Finding:
    """Warn of a file system that is mounted over a network."""
    file_system = _file_system_of(folder.resolve())
    if file_system in NETWORK:
        sentence = f"{file_system}, over a network, where locks and memory maps are not reliable; use a local disk"
        return Finding(Level.WARNING, "file system", sentence)
    return Finding(Level.OK, "file system", file_system or "of an unknown kind")


def _file_system_of(path: Path) -> str:
    """Return the type of the file system of *path*, such as ext4; empty if unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""

    types = dict[Path, str]()
    for mount in mounts:
        _, mount_point, file_system, *_ = mount.split(" ")
        types[Path(mount_point.replace("\\040", " "))] = file_system  # the last mount covers earlier ones

    return next((types[folder] for folder in (path, *path.parents) if folder in types), "")
