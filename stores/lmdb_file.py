"""One release as one LMDB file: built aside as a draft, sealed by a rename, then mapped read-only and never changed.

A sealed file is only ever renamed into place or unlinked, so a reader that has it mapped keeps it whole. LMDB holds no
checksums, and reading past the end of a truncated file kills the process (SIGBUS): the size is checked at every open,
before any page but the first two is touched.
"""

import errno
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreError, StoreFull, StoreUnavailable
from stores.store import Row

MAX_KEY_BYTES = 511
"""LMDB's own limit; no id that passes `check_id` comes near it."""

MIN_FILE_BYTES = 8192
"""LMDB's two meta pages, at its smallest page size."""

FIRST_MAP_BYTES = 1 << 30

PAGE_BYTES, PAGE_HEADER, NODE_HEADER = 4096, 16, 10
MAX_NODE_BYTES = (PAGE_BYTES - PAGE_HEADER) // 2 - 4
"""LMDB keeps at least two rows on a page; a larger value gets whole pages of its own."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what LMDB and the file system raise into the errors of the contract, naming *path*."""
    try:
        yield
    except FileNotFoundError as error:
        raise ReleaseNotFound(f"{path} is not there; was the release pruned?") from error
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


class Draft:
    """A release being written; one writer at a time, kept by LMDB's own lock. Lives until sealed or closed.

    Each `put` is a transaction, so a killed writer leaves a file that can be continued; the disk is flushed once, when
    the draft is sealed.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        if not create and not path.exists():
            raise ReleaseNotFound(f"{path} is not there; the draft was never begun, or it was dropped")
        with translated(path):
            self._env = lmdb.open(str(path), subdir=False, sync=False, map_size=FIRST_MAP_BYTES, max_dbs=0)
        self._last = b""

    def put(self, rows: Sequence[Row]) -> None:
        """Write rows in one transaction; in ascending order of key bytes it costs an append."""
        pairs = [(key.encode(), value) for key, value in rows]
        if not pairs:
            return
        with translated(self.path):
            while True:
                try:
                    self._write(pairs)
                except lmdb.MapFullError:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2)
                else:
                    return

    def resume_point(self) -> str | None:
        """Return the last key that is no `meta` row."""
        with translated(self.path), self._env.begin() as txn:
            cursor = txn.cursor()
            found = cursor.last()
            while found and cursor.key().startswith(b"meta:"):
                found = cursor.prev()
            return cursor.key().decode() if found else None

    def seal(self, path: Path) -> None:
        """Flush the draft to the disk and rename it to *path*."""
        with translated(self.path):
            self._env.sync(True)
            # A page that was taken and given back last need not have been written: fill the file up to what it claims.
            size = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
            self._env.close()
            with self.path.open("r+b") as file:
                if os.fstat(file.fileno()).st_size < size:
                    file.truncate(size)
                os.fsync(file.fileno())
            self.path.rename(path)
            flush_folder(path.parent)
            lock_path(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, as it is."""
        self._env.close()

    def _write(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self._env.begin(write=True) as txn:
            cursor = txn.cursor()
            last = cursor.key() if cursor.last() else b""
            ascending = pairs[0][0] > last
            _, added = cursor.putmulti(pairs, append=ascending)
            if ascending and added != len(pairs):
                cursor.putmulti(pairs)  # not in order after all: LMDB skips what it cannot append


class ReleaseFile:
    """A sealed release, mapped read-only; shared by all stores of a process, for LMDB maps a file once a process."""

    _open: dict[tuple[int, int], "ReleaseFile"] = {}  # noqa: RUF012 -- by device and inode; the one map a process may have

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        """Map *path*; use `ReleaseFile.open`, which shares what is mapped already."""
        self.path = path
        self._identity = identity
        self._users = 0
        found = path.stat().st_size
        if found < MIN_FILE_BYTES:
            raise ReleaseCorrupt(f"{path} was cut: it has {found} bytes; publish again")
        with translated(path):
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
    def open(cls, path: Path) -> "ReleaseFile":
        """Map the file, or share the map that this process has of it; each open wants a `close`."""
        with translated(path):
            status = path.stat()
        identity = status.st_dev, status.st_ino
        file = cls._open.get(identity)
        if file is None:
            file = cls._open[identity] = cls(path, identity)
        file._users += 1
        return file

    def rows(self) -> Iterator[Row]:
        """Yield all rows in ascending order of key bytes."""
        with translated(self.path), self._env.begin() as txn:
            for key, value in txn.cursor():
                yield Row(key.decode(), value)

    def close(self) -> None:
        """Unmap the file when its last user in this process is done with it."""
        self._users -= 1
        if self._users == 0:
            del self._open[self._identity]
            self._txn.abort()
            self._env.close()


def lock_path(draft: Path) -> Path:
    """Where LMDB keeps the lock of a draft's one writer."""
    return draft.with_name(draft.name + "-lock")


def flush_folder(folder: Path) -> None:
    """Make renames inside *folder* survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
