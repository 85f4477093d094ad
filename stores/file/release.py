"""A sealed release: an LMDB file, mapped read-only and shared by all stores of a process.

Reading past the end of a truncated file kills the process (SIGBUS), as may a scan of a damaged page: the size is
checked before mapping, and all checksums before scanning.

Page faults block the event loop, so a release is read into memory and checked before it is served (`warm`), as far as
memory and time suffice. Damaged blocks that were found then fail only their keys. The other blocks are read by LMDB
without a check. After a failed read, LMDB refuses further ones in the same transaction, so a new one begins, and other
threads read again.

A read gives up the GIL, so the file may be closed during it. `close` replaces `read`, so none begins later, and closing
the environment waits for running ones since py-lmdb 2.1.1; ending their transaction would not.
"""

import asyncio
import errno
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path

import lmdb

from hotplate.stores.errors import (
    HEAL,
    AccessDenied,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from hotplate.stores.file.checksums import (
    BLOCK_BYTES,
    STRIDE_BYTES,
    check_head,
    damaged_blocks,
    overhead,
    read_checksums,
)
from hotplate.stores.file.pages import Meta, PagedFile, read_meta
from hotplate.stores.folders import release_map, room_bytes
from hotplate.stores.store import ReadResult, Row

log = logging.getLogger(__name__)

# Errors of a read from a damaged page or disk.
FAILURES = (lmdb.Error, MemoryError, OSError)

# Numbers of the errors of a full disk, or quota.
FULL = (errno.ENOSPC, errno.EDQUOT)

# Pause after each stride of warming while another release is served: four times its CPU time.
WARM_PAUSE_S = 0.004

# Bytes released at once, while no other thread can map memory.
MAP_CHUNK = 1 << 22

# A scan releases its pages, which count as this process's memory, after this many bytes.
SCANNED_BYTES = 16 << 20


class ReleaseFile:
    """A mapped release, shared because LMDB maps a file once per process.

    A forked process reads in a new transaction of the inherited map; closing that would wait for reads of the parent.
    """

    _open: dict[tuple[int, int], "ReleaseFile"] = {}  # noqa: RUF012 -- by device and inode
    _closing: dict[tuple[int, int], Future[None]] = {}  # noqa: RUF012 -- being unmapped
    _inherited: dict[tuple[int, int], lmdb.Environment] = {}  # noqa: RUF012 -- the parent's maps
    _lock = threading.Lock()
    _process = os.getpid()

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        """Map *path*; *identity* is its device and inode. Use `open` instead."""
        self.path = path
        self._identity = identity
        self._users = 0
        self._meta = check_size(path)
        with translating_errors(path):
            self._env = self._inherited.get(identity) or _map(path)
            self._txn = self._env.begin()
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._thread = ThreadPoolExecutor(1, "release")
        self._damaged = False
        self.read: Callable[[bytes], bytes | None] = self._txn.get
        """LMDB's lookup of one key; `read_or_error` handles its errors. ReleaseNotFound once the file is closed."""

    @classmethod
    def open(cls, path: Path) -> "ReleaseFile":
        """Open a release's file in memory, or share it if this process has it open; each call needs a `close`.

        Files are known by device and inode. One that is being closed is waited for. Raises ReleaseNotFound,
        ReleaseCorrupt.
        """
        identity = _identity(path)
        if cls._process != os.getpid():
            cls.begin_in_child()  # uWSGI forks without Python's hooks

        while True:
            with cls._lock:
                closing = cls._closing.get(identity)
                if closing is None or closing.done():
                    file = cls._open.get(identity)
                    if file is None:
                        file = cls._open[identity] = cls(path, identity)
                    file._users += 1
                    return file
            closing.result()  # without the lock, which other files need

    @classmethod
    async def unmapped(cls, path: Path) -> None:
        """Wait until *path* is not being unmapped, which `open` would wait for on the event loop."""
        if closing := cls._closing.get(_identity(path)):
            await asyncio.shield(asyncio.wrap_future(closing))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the file mapped during the block, whatever handle closes it meanwhile."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            self.close()

    def read_or_error(self, key: str) -> ReadResult:
        """Return the stored value of a key, None if it is absent, or the error, which is not raised.

        The error is ReleaseCorrupt for a damaged row, StoreError for a key that LMDB does not accept. Raises
        ReleaseNotFound if the file is closed.

        All threads read in one transaction, `self._txn`, which a failed read makes unusable. So a failed read opens a
        new one for later reads; not in a file known as damaged (`self._damaged`), which is read without LMDB. If the
        read of another key had failed (BadTxnError), this key is read again in a separate transaction.
        """
        raw = key.encode("utf-8", "surrogatepass")  # with surrogates, bytes that no row has
        try:
            return self.read(raw)
        except lmdb.BadValsizeError:
            return StoreError(f"the key {key[:64]!r} is empty or too long")
        except FAILURES as error:
            failure = error

        try:
            if not self._damaged:
                self._txn = self._env.begin()  # the old one ends with its last read
                self.read = self._txn.get
            if isinstance(failure, lmdb.BadTxnError):  # not this key's failure
                with self._env.begin() as txn:
                    return txn.get(raw)
        except FAILURES as second_failure:
            failure = second_failure

        return ReleaseCorrupt(
            f"{key!r} cannot be read from {self.path} ({failure}); `hotplate releases verify` checks all of it; {HEAL}"
        )

    async def warm(self, pause_s: float = 0.0) -> None:
        """Read as much of the file into memory as fits, with a pause of *pause_s* after each stride.

        If the file is damaged, its pages are read without LMDB from then on.
        """
        room = room_bytes()
        damaged_count = 0
        try:
            async for _ in find_damaged_blocks(self.path, up_to=room, pause_s=pause_s):
                damaged_count += 1
            if self._meta.size > room:
                size_mb = self._meta.size / 1e6
                log.warning("%s has %.0f MB, of which %.0f MB fit into memory", self.path, size_mb, room / 1e6)
        except ReleaseCorrupt as error:
            log.warning("%s; it may be served all the same", error)
        finally:  # also if the caller's time is up and it cancels: the blocks that were found so far count
            if damaged_count and not self._damaged:
                self._read_by_pages(damaged_count)

    def _read_by_pages(self, damaged_count: int) -> None:
        """Read a damaged file without LMDB from now on, if its checksums are intact."""
        checksums = read_checksums(self._file)
        if checksums is not None:
            log.warning("%s is damaged in %d blocks of 64 KiB; some keys cannot be read", self.path, damaged_count)
            self._damaged = True
            self.read = PagedFile(self._file, self._meta, checksums).get

    @classmethod
    def begin_in_child(cls) -> None:
        """Reset the state in a forked process; its parent may have held the lock."""
        for identity, file in cls._open.items():
            cls._inherited[identity] = file._env  # noqa: SLF001 -- its own
        cls._open = {}
        cls._closing = {}
        cls._lock = threading.Lock()
        cls._process = os.getpid()

    def close(self) -> None:
        """End one use of a shared file; with the last one, unmap the file in the background.

        Each call of `open` is a use. `closed` waits for the unmapping, and `open` does before it maps the file again.
        """
        with self._lock:
            self._users -= 1
            if self._users or self._open.get(self._identity) is not self:
                return  # used further, or mapped by the parent process: its thread is not here

            del self._open[self._identity]
            self.read = partial(_refuse_closed, self.path)
            closed = [identity for identity, closing in self._closing.items() if closing.done()]
            for identity in closed:
                del self._closing[identity]

            self._closing[self._identity] = self._thread.submit(self._unmap)
            self._thread.shutdown(wait=False)

    async def closed(self) -> None:
        """Wait until a closed file is unmapped."""
        if closing := self._closing.get(self._identity):
            await asyncio.shield(asyncio.wrap_future(closing))

    def _unmap(self) -> None:
        # In pieces, because other threads cannot map memory during a call.
        release_map(self.path, self._identity[1], self._meta.size, MAP_CHUNK)
        if self._identity not in self._inherited:
            self._env.close()
        os.close(self._file)

    def rows(self) -> Iterator[Row]:
        """Yield all rows in order of key bytes; call `check_whole` first, because a damaged page may end the process.

        Raises ReleaseCorrupt if a key is out of order or a page cannot be read. The scan's pages of the map are given
        back to the system every SCANNED_BYTES.
        """
        last_key = b""
        new = tuple.__new__  # faster than Row(key, value)
        scanned_bytes = 0
        try:
            with self._env.begin() as txn:
                for key, value in txn.cursor():
                    if key <= last_key:
                        raise lmdb.CorruptedError(f"{key!r} follows")
                    last_key = key

                    scanned_bytes += len(value)
                    if scanned_bytes > SCANNED_BYTES:
                        scanned_bytes = 0
                        release_map(self.path, self._identity[1], self._meta.size)

                    yield new(Row, (key.decode(), value))
        except (UnicodeDecodeError, *FAILURES) as error:
            raise ReleaseCorrupt(
                f"{self.path} is damaged after the key {last_key!r} ({error}); publish again"
            ) from error


os.register_at_fork(after_in_child=ReleaseFile.begin_in_child)


def _identity(path: Path) -> tuple[int, int]:
    """Return the device and the inode of a file."""
    with translating_errors(path):
        status = path.stat()
    return status.st_dev, status.st_ino


def _refuse_closed(path: Path, key: bytes) -> None:
    raise ReleaseNotFound(f"{path} is closed, so {key[:64]!r} cannot be read; was the release pruned?")


def _map(path: Path) -> lmdb.Environment:
    try:
        return lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0, max_spare_txns=2
        )
    except lmdb.Error:
        path.stat()  # raises FileNotFoundError if it was pruned meanwhile, for which LMDB has no class
        raise


def check_size(path: Path) -> Meta:
    """Check the size and the first pages of a sealed file; return its newer meta page.

    The meta page holds the size of the data. Damaged checksums are ignored, as they do not prevent reads. Raises
    ReleaseCorrupt if the file was truncated, is another file, or has damaged first pages.
    """
    with translating_errors(path), path.open("rb", buffering=0) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        if checksums := read_checksums(file.fileno()):
            check_head(file.fileno(), checksums, str(path))
        meta = read_meta(file.fileno())

    if meta is None:
        raise ReleaseCorrupt(f"{path} is not a release file, or it was cut; publish again")

    sealed_bytes = meta.size + overhead(meta.size)
    if file_bytes != sealed_bytes:
        raise ReleaseCorrupt(f"{path} was cut: it has {file_bytes} of {sealed_bytes} bytes; publish again")
    return meta


async def check_whole(path: Path) -> None:
    """Compare every block of a sealed file with its checksum; ReleaseCorrupt, with the place, if one changed."""
    damaged = [number async for number in find_damaged_blocks(path)]
    if damaged:
        start = damaged[0] * BLOCK_BYTES
        raise ReleaseCorrupt(
            f"{path} is damaged between bytes {start} and {start + BLOCK_BYTES}; {HEAL}, and check the disk"
        )


async def find_damaged_blocks(path: Path, *, up_to: float = inf, pause_s: float = 0.0) -> AsyncIterator[int]:
    """Read the first *up_to* bytes of a file in threads, and yield the numbers of changed blocks.

    *pause_s* is the pause after each stride. Raises ReleaseCorrupt if the checksums are damaged.
    """
    await asyncio.to_thread(check_size, path)
    with translating_errors(path), path.open("rb", buffering=0) as file:
        checksums = read_checksums(file.fileno())
        if checksums is None:
            raise ReleaseCorrupt(f"the checksums at the end of {path} are damaged or cut off; publish again")
        end = int(min(checksums.size, up_to))
        for start in range(0, end, STRIDE_BYTES):
            for number in await asyncio.to_thread(damaged_blocks, file.fileno(), checksums, start):
                yield number
            await asyncio.sleep(pause_s)


@contextmanager
def translating_errors(path: Path) -> Iterator[None]:
    """Translate errors of LMDB and the file system to those of stores, which name *path*."""
    try:
        yield
    except FileNotFoundError as error:
        raise ReleaseNotFound(f"{path} does not exist; was the release pruned?") from error
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
        raise ReleaseCorrupt(f"{path} is not a release file ({error}); publish again") from error
    except (OSError, lmdb.Error) as error:
        code = getattr(error, "errno", None)
        if isinstance(error, lmdb.DiskError | lmdb.MapFullError) or code in FULL:
            raise StoreFull(f"no space left to write {path}; free some and try again") from error
        if isinstance(error, PermissionError | lmdb.ReadonlyError):  # LMDB's name for EACCES
            sentence = f"{path} cannot be used by user {os.geteuid()}: {error}; change its owner or its mode"
            raise AccessDenied(sentence) from error
        raise StoreUnavailable(f"{path} cannot be used: {error}") from error
