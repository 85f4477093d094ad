"""The embedded store, `file://`: one LMDB file a release in a folder, shared by all processes of one machine.

DIR/catalogue.json              swapped by lock, write, fsync, rename, fsync of the folder
DIR/releases/INCARNATION.mdb    a sealed release; INCARNATION.draft (and its lock) while it is being written

A draft is sealed by a rename, and a sealed file is only ever mapped read-only or unlinked, so a reader that has it
mapped keeps it whole. LMDB holds no checksums, and reading past the end of a truncated file kills the process (SIGBUS):
the size is checked at every open, before any page but the first two is touched.
"""

import asyncio
import errno
import fcntl
import math
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import lmdb

from stores import catalogue as catalogue_record
from stores.catalogue import Catalogue, DraftRef, ReleaseRef
from stores.errors import (
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreFull,
    StoreMisused,
    StoreUnavailable,
)
from stores.keys import META
from stores.store import LocalReader, Plan, RoomChecked, Row, Slot, sealed

# How soon a changed catalogue is seen: a stat of one small file costs about a microsecond.
POLL_S = 0.1

LOCK_TIMEOUT_S = 5.0
WARM_CHUNK = 1 << 22

# LMDB's own limit; no id that passes `check_id` comes near it.
MAX_KEY_BYTES = 511

# LMDB's two meta pages, at its smallest page size.
MIN_FILE_BYTES = 8192

FIRST_MAP_BYTES = 1 << 30

# LMDB keeps at least two rows on a page; a larger value gets whole pages of its own.
PAGE_BYTES, PAGE_HEADER, NODE_HEADER = 4096, 16, 10
MAX_NODE_BYTES = (PAGE_BYTES - PAGE_HEADER) // 2 - 4

# Before the number of a part: where a draft keeps the part's resume point, ahead of all rows, until it is sealed.
POINT = b"\x00point:"


class LmdbStore(LocalReader, RoomChecked):
    """A folder of releases on a local disk; an instance lives as long as its process, and never crosses a fork."""

    batch = 64

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._record = folder / "catalogue.json"
        self._releases = folder / "releases"
        self._files = dict[str, _ReleaseFile]()
        self._drafts = dict[str, _DraftFile]()

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
        for incarnation in self._files.keys() - known:
            self._files.pop(incarnation).close()  # pruned: a map kept open would keep its disk space, too
        return found

    async def changes(self) -> AsyncIterator[Catalogue]:
        seen = None
        while True:
            version = self._file_version()
            if version != seen or seen is None:
                seen = version
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
        existing = next(folder for folder in (self._releases, *self._releases.parents) if folder.is_dir())
        self._check_room(plan, existing)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        with _translated(self._releases):
            self._releases.mkdir(parents=True, exist_ok=True)
        self._check_room(plan, self._releases)
        self._draft(draft, create=True)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        if draft.incarnation not in self._drafts and self._sealed_path(draft).exists():
            raise sealed(draft)
        self._draft(draft).put(rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return self._draft(draft).resume_point(part)

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
        with _translated(path), path.open("rb", buffering=0) as file:
            while file.read(WARM_CHUNK):  # noqa: ASYNC110 -- no poll: each pass reads on, into the page cache that workers share
                await asyncio.sleep(0)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        with _translated(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        async with self._lock():
            if self._read_catalogue().version != old.version:
                raise ReleaseConflict("the catalogue was changed by somebody else first")
            draft = self._record.with_suffix(".new")
            with _translated(draft):
                with draft.open("wb") as file:
                    file.write(catalogue_record.dump(new))
                    file.flush()
                    os.fsync(file.fileno())
                draft.rename(self._record)
                _flush_folder(self.folder)

    async def erase(self, release: ReleaseRef) -> None:
        if draft := self._drafts.pop(release.incarnation, None):
            draft.close()
        if file := self._files.pop(release.incarnation, None):
            file.close()
        path = self._draft_path(release)
        with _translated(path):
            for leftover in (path, _lock_path(path), self._sealed_path(release)):
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

    def _file_version(self) -> tuple[int, int] | None:
        """Return what differs between one catalogue file and the next, without reading it."""
        try:
            status = self._record.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    @asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        path = self.folder / "catalogue.lock"
        with _translated(path):
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

    def _draft(self, draft: DraftRef, *, create: bool = False) -> "_DraftFile":
        found = self._drafts.get(draft.incarnation)
        if found is None:
            found = self._drafts[draft.incarnation] = _DraftFile(self._draft_path(draft), create=create)
        return found

    def _check_room(self, plan: Plan, folder: Path) -> None:
        with _translated(folder):
            free = shutil.disk_usage(folder).free
        needed = file_bytes(plan.rows, plan.payload_bytes)
        if needed > free:
            raise StoreFull(
                f"the release needs about {_megabytes(needed)} in {self.folder} and {_megabytes(free)} are free; "
                f"free some space, prune old releases, or publish shorter lists"
            )

    def _open(self, release: ReleaseRef) -> "_ReleaseFile":
        file = self._files[release.incarnation] = _ReleaseFile.open(self._sealed_path(release))
        return file

    def _sealed_path(self, release: ReleaseRef | DraftRef) -> Path:
        return self._releases / f"{_checked(release.incarnation)}.mdb"

    def _draft_path(self, release: ReleaseRef | DraftRef) -> Path:
        return self._releases / f"{_checked(release.incarnation)}.draft"


class _DraftFile:
    """A release being written; one writer at a time, kept by LMDB's own lock. Lives until sealed or closed.

    Each `put` is a transaction, so a killed writer leaves a file that can be continued; the disk is flushed once, when
    the draft is sealed.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        if not create and not path.exists():
            raise ReleaseNotFound(f"{path} does not exist; the draft was never begun, or it was dropped")
        with _translated(path):
            self._env = lmdb.open(str(path), subdir=False, sync=False, map_size=FIRST_MAP_BYTES, max_dbs=0)

    def put(self, rows: Sequence[Row], part: int) -> None:
        """Write rows of a part in one transaction; in ascending order of key bytes it costs an append."""
        pairs = [(key.encode(), value) for key, value in rows]
        if not pairs:
            return
        point = max((key for key, _ in pairs if not key.startswith(META.encode())), default=None)
        with _translated(self.path):
            while True:
                try:
                    self._write(pairs, part, point)
                except lmdb.MapFullError:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2)
                else:
                    return

    def resume_point(self, part: int) -> str | None:
        """Return the last key of a part that is no `meta` row."""
        with _translated(self.path), self._env.begin() as txn:
            point = txn.get(POINT + b"%d" % part)
            return None if point is None else point.decode()

    def seal(self, path: Path) -> None:
        """Flush the draft to the disk and rename it to *path*."""
        with _translated(self.path):
            with self._env.begin(write=True) as txn, txn.cursor() as cursor:
                while cursor.set_range(POINT) and cursor.key().startswith(POINT):
                    cursor.delete()
            self._env.sync(True)
            # A page that was taken and given back last need not have been written: fill the file up to what it claims.
            size = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
            self._env.close()
            with self.path.open("r+b") as file:
                if os.fstat(file.fileno()).st_size < size:
                    file.truncate(size)
                os.fsync(file.fileno())
            self.path.rename(path)
            _flush_folder(path.parent)
            _lock_path(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, as it is."""
        self._env.close()

    def _write(self, pairs: list[tuple[bytes, bytes]], part: int, point: bytes | None) -> None:
        with self._env.begin(write=True) as txn:
            cursor = txn.cursor()
            last = cursor.key() if cursor.last() else b""
            ascending = pairs[0][0] > last
            _, added = cursor.putmulti(pairs, append=ascending)
            if ascending and added != len(pairs):
                cursor.putmulti(pairs)  # not in order after all: LMDB skips what it cannot append
            if point is not None:
                txn.put(POINT + b"%d" % part, point)


class _ReleaseFile:
    """A sealed release, mapped read-only; shared by all stores of a process, for LMDB maps a file once a process."""

    _open: dict[tuple[int, int], "_ReleaseFile"] = {}  # noqa: RUF012 -- by device and inode; the one map a process may have

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        """Map *path*; use `open`, which shares what is mapped already."""
        self.path = path
        self._identity = identity
        self._users = 0
        found = path.stat().st_size
        if found < MIN_FILE_BYTES:
            raise ReleaseCorrupt(f"{path} was cut: it has {found} bytes; publish again")
        with _translated(path):
            self._env = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0, max_spare_txns=2
            )
            claimed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        if found < claimed:
            self._env.close()
            raise ReleaseCorrupt(f"{path} was cut: it has {found} of {claimed} bytes; publish again")
        self._txn = self._env.begin()
        self.read = self._txn.get
        """Read one key: `read(key_bytes) -> bytes | None`, LMDB's own call, bound once."""

    @classmethod
    def open(cls, path: Path) -> "_ReleaseFile":
        """Map the file, or share the map that this process has of it; each open wants a `close`."""
        with _translated(path):
            status = path.stat()
        identity = status.st_dev, status.st_ino
        file = cls._open.get(identity)
        if file is None:
            file = cls._open[identity] = cls(path, identity)
        file._users += 1
        return file

    def rows(self) -> Iterator[Row]:
        """Yield all rows in ascending order of key bytes."""
        with _translated(self.path), self._env.begin() as txn:
            for key, value in txn.cursor():
                yield Row(key.decode(), value)

    def close(self) -> None:
        """Unmap the file when its last user in this process is done with it."""
        self._users -= 1
        if self._users == 0:
            del self._open[self._identity]
            self._txn.abort()
            self._env.close()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what LMDB and the file system raise into the errors of the contract, naming *path*."""
    try:
        yield
    except FileNotFoundError as error:
        raise ReleaseNotFound(f"{path} does not exist; was the release pruned?") from error
    except (lmdb.DiskError, lmdb.MapFullError) as error:
        raise StoreFull(f"no space left to write {path}; free some and publish again") from error
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
        raise ReleaseCorrupt(f"{path} is not a release file ({error}); publish again") from error
    except (lmdb.BadValsizeError, lmdb.BadTxnError) as error:
        raise StoreError(f"a key of {path} is empty or longer than {MAX_KEY_BYTES} bytes") from error
    except (OSError, lmdb.Error) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space left to write {path}; free some and publish again") from error
        raise StoreUnavailable(f"{path} cannot be used: {error}") from error


def file_bytes(rows: int, payload_bytes: int) -> int:
    """Estimate the size of a release file, from above: rows of the mean size, packed into LMDB's pages."""
    if rows == 0:
        return MIN_FILE_BYTES
    node = payload_bytes / rows + NODE_HEADER
    if node > MAX_NODE_BYTES:
        row_bytes = math.ceil((node + PAGE_HEADER) / PAGE_BYTES) * PAGE_BYTES + 64.0
    else:
        row_bytes = PAGE_BYTES / ((PAGE_BYTES - PAGE_HEADER) // node)
    branches = 1.03
    return 16 * PAGE_BYTES + int(rows * row_bytes * branches)


def _lock_path(draft: Path) -> Path:
    """Where LMDB keeps the lock of a draft's one writer."""
    return draft.with_name(draft.name + "-lock")


def _flush_folder(folder: Path) -> None:
    """Make renames inside *folder* survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
