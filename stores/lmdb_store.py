"""The embedded store, `file://`: one LMDB file a release in a folder, shared by all processes of one machine.

DIR/catalogue.json      swapped by lock, write, fsync, rename, fsync of the folder
DIR/releases/ID.mdb     a sealed release; ID.draft (and its lock) while it is being written
"""

import asyncio
import fcntl
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from stores import catalogue as catalogue_record
from stores.catalogue import Catalogue, DraftRef, ReleaseRef
from stores.errors import (
    ReleaseConflict,
    ReleaseNotFound,
    StoreFull,
    StoreMisused,
    StoreUnavailable,
)
from stores.lmdb_file import Draft, ReleaseFile, file_bytes, flush_folder, lock_path, translated
from stores.store import Plan, RoomChecked, Row, Slot

POLL_S = 0.1
"""How soon a flip is seen: a stat of one small file costs about a microsecond."""

LOCK_TIMEOUT_S = 5.0
WARM_CHUNK = 1 << 22


class LmdbStore(RoomChecked):
    """A folder of releases on a local disk; an instance lives as long as its process, and never crosses a fork."""

    batch = 64

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._record = folder / "catalogue.json"
        self._releases = folder / "releases"
        self._files = dict[str, ReleaseFile]()
        self._drafts = dict[str, Draft]()

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        file = self._files.get(release.incarnation) or self._open(release)
        return file.read(key.encode())

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        del timeout_s  # a map is never late
        read = (self._files.get(release.incarnation) or self._open(release)).read
        return [read(key.encode()) for key in keys]

    async def catalogue(self) -> Catalogue:
        found = self._read_catalogue()
        known = {entry.ref.incarnation for entry in found.releases}
        for incarnation in [one for one in self._files if one not in known]:
            self._files.pop(incarnation).close()  # pruned: a map kept open would keep its disk space, too
        return found

    async def changes(self) -> AsyncIterator[Catalogue]:
        seen = None
        while True:
            mark = self._mark()
            if mark != seen or seen is None:
                seen = mark
                yield await self.catalogue()
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        for draft in self._drafts.values():
            draft.close()
        for file in self._files.values():
            file.close()
        self._drafts.clear()
        self._files.clear()

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        del draft
        there = next(folder for folder in (self._releases, *self._releases.parents) if folder.is_dir())
        self._check_room(plan, there)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        with translated(self._releases):
            self._releases.mkdir(parents=True, exist_ok=True)
        self._check_room(plan, self._releases)
        self._draft(draft, create=True)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        if draft.incarnation not in self._drafts and self._sealed_path(draft).exists():
            raise ReleaseConflict(f"release {draft.id} is sealed; publish a new one")
        self._draft(draft).put(rows)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return self._draft(draft).resume_point()

    async def seal(self, draft: DraftRef) -> None:
        sealed = self._sealed_path(draft)
        if sealed.exists():
            return
        self._draft(draft).seal(sealed)
        del self._drafts[draft.incarnation]

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        for row in (self._files.get(release.incarnation) or self._open(release)).rows():
            yield row

    async def prepare(self, release: ReleaseRef) -> None:
        path = self._sealed_path(release)
        with translated(path), path.open("rb", buffering=0) as file:
            while file.read(WARM_CHUNK):  # noqa: ASYNC110 -- no poll: each turn reads on, into the cache that workers share
                await asyncio.sleep(0)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        with translated(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        async with self._lock():
            if self._read_catalogue().version != old.version:
                raise ReleaseConflict("the catalogue was changed by somebody else first")
            draft = self._record.with_suffix(".new")
            with translated(draft):
                with draft.open("wb") as file:
                    file.write(catalogue_record.dump(new))
                    file.flush()
                    os.fsync(file.fileno())
                draft.rename(self._record)
                flush_folder(self.folder)

    async def erase(self, release: ReleaseRef) -> None:
        if draft := self._drafts.pop(release.incarnation, None):
            draft.close()
        if file := self._files.pop(release.incarnation, None):
            file.close()
        path = self._draft_path(release)
        with translated(path):
            for leftover in (path, lock_path(path), self._sealed_path(release)):
                leftover.unlink(missing_ok=True)

    def _read_catalogue(self) -> Catalogue:
        now = self._clock()
        try:
            record = self._record.read_bytes()
        except FileNotFoundError:
            return Catalogue(now=now)
        except OSError as error:
            raise StoreUnavailable(f"{self._record} cannot be read: {error}") from error
        return catalogue_record.parse(record, now=now, where=str(self._record))

    def _mark(self) -> tuple[int, int] | None:
        """What tells one catalogue file from the next, without reading it."""
        try:
            status = self._record.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    @asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        path = self.folder / "catalogue.lock"
        with translated(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise StoreUnavailable(
                            f"{path} was held for {LOCK_TIMEOUT_S:g} s; is a process stuck?"
                        ) from error
                    await asyncio.sleep(0.002)
            yield
        finally:
            os.close(descriptor)

    def _draft(self, draft: DraftRef, *, create: bool = False) -> Draft:
        found = self._drafts.get(draft.incarnation)
        if found is None:
            found = self._drafts[draft.incarnation] = Draft(self._draft_path(draft), create=create)
        return found

    def _check_room(self, plan: Plan, there: Path) -> None:
        with translated(there):
            free = shutil.disk_usage(there).free
        needed = file_bytes(plan.rows, plan.payload_bytes)
        if needed > free:
            raise StoreFull(
                f"the release needs about {_megabytes(needed)} in {self.folder} and {_megabytes(free)} are free; "
                f"free some space, prune old releases, or publish shorter lists"
            )

    def _open(self, release: ReleaseRef) -> ReleaseFile:
        file = self._files[release.incarnation] = ReleaseFile.open(self._sealed_path(release))
        return file

    def _sealed_path(self, release: ReleaseRef | DraftRef) -> Path:
        return self._releases / f"{_checked(release.incarnation)}.mdb"

    def _draft_path(self, release: ReleaseRef | DraftRef) -> Path:
        return self._releases / f"{_checked(release.incarnation)}.draft"


def _checked(release: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", release):
        raise ReleaseNotFound(f"{release!r} is not a release id; they look like 20261120T064200Z-7f3a")
    return release


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def open_url(url: str) -> LmdbStore:
    """Open `file:///FOLDER`; the folder is made by the first publish."""
    folder = url.removeprefix("file://")
    if not folder.startswith("/"):
        raise StoreMisused(f"{url!r} names no absolute folder; write three slashes, as in file:///var/lib/hotplate")
    return LmdbStore(Path(folder))
