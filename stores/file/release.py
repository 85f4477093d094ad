"""A sealed release: an LMDB file, mapped read-only and shared by all stores of a process.

Reading past the end of a truncated file kills the process (SIGBUS), as may a scan of a damaged page: the size is
checked before mapping, and all checksums before scanning. A damaged page fails only its keys. After a failed read LMDB
refuses others in the transaction, so a new one begins, and other threads read again.

Page faults block the event loop, so a release is read into memory before it is served.
"""

import asyncio
import errno
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import ParamSpec, TypeVar

import lmdb

from hotplate.stores.errors import (
    HEAL,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from hotplate.stores.file import file_format, memory
from hotplate.stores.file.file_format import Meta, PagedFile, read_meta
from hotplate.stores.store import Row, Slot

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

# Errors of a read from a damaged page or disk.
FAILURES = (lmdb.Error, MemoryError, OSError)

# LMDB's limit.
MAX_KEY_BYTES = 511

# Age of a check that suffices for a scan.
CHECK_HOLDS_S = 60.0

# Pause of warming, as a multiple of its CPU time, while another release is served, to spare workers on the same core.
WARM_REST = 4.0

# Bytes released at once, while no other thread can map memory.
MAP_CHUNK = 1 << 22

# A scan releases its pages, which count as this process's memory, after this many bytes.
SCANNED_BYTES = 16 << 20


class ReleaseFile:
    """A mapped release, shared because LMDB maps a file once per process.

    A forked process reads in a new transaction of the inherited map, and never closes it, because that would wait for
    reads that the parent had begun.
    """

    _open: dict[tuple[int, int], "ReleaseFile"] = {}  # noqa: RUF012 -- by device and inode
    _closing: dict[tuple[int, int], Future[None]] = {}  # noqa: RUF012 -- being unmapped
    _inherited: dict[tuple[int, int], lmdb.Environment] = {}  # noqa: RUF012 -- the parent's maps
    _lock = threading.Lock()
    _process = os.getpid()

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        """Map *path*; use `open` instead."""
        self.path = path
        self._identity = identity
        self._users = 0
        self._found_whole_at = float("-inf")
        self._meta = check_size(path)
        with translated(path):
            self._env = self._inherited.get(identity) or lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0, max_spare_txns=2
            )
            self._txn = self._env.begin()
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._thread = ThreadPoolExecutor(1, "release")
        self._damaged = False
        self.read: Callable[[bytes], bytes | None] = self._txn.get
        """LMDB's lookup of one key; `slot` handles its errors."""

    @classmethod
    def open(cls, path: Path) -> "ReleaseFile":
        """Map the file, or share its map; each call needs a `close`."""
        with translated(path):
            status = path.stat()
        identity = status.st_dev, status.st_ino
        if cls._process != os.getpid():
            cls.begin_in_child()  # uWSGI forks without Python's hooks
        with cls._lock:
            if closing := cls._closing.get(identity):
                closing.result()
            file = cls._open.get(identity)
            if file is None:
                file = cls._open[identity] = cls(path, identity)
            file._users += 1
        return file

    def slot(self, key: str) -> Slot:
        """Return the slot of a key after a failed read, and begin a new transaction.

        Reads the key again if another read, in any thread, had failed in the same transaction.
        """
        raw = key.encode("utf-8", "surrogatepass")  # with surrogates, bytes that no row has
        try:
            return self.read(raw)
        except lmdb.BadValsizeError:
            return StoreError(f"the key {key[:64]!r} is empty or longer than {MAX_KEY_BYTES} bytes")
        except FAILURES as error:
            failure = error
        try:
            if not self._damaged:
                self._txn = self._env.begin()  # the old one ends with its last read
                self.read = self._txn.get
            if isinstance(failure, lmdb.BadTxnError):
                with self._env.begin() as txn:
                    return txn.get(raw)
        except FAILURES as again:
            failure = again
        return ReleaseCorrupt(
            f"{key!r} cannot be read from {self.path} ({failure}); `hotplate releases verify` checks all of it; {HEAL}"
        )

    async def check(self) -> None:
        """Compare every block with its sum; ReleaseCorrupt if one changed."""
        await check_whole(self.path)
        self._found_whole_at = time.monotonic()

    async def warm(self, rest: float = 1.0) -> None:
        """Read as much of the file into memory as fits; pauses *rest* times its CPU time.

        If the file is damaged, its pages are read without LMDB from then on.
        """
        room, damaged = memory.room_bytes(), list[int]()
        try:
            with opened(self.path) as file:
                async for number in damaged_blocks(self.path, file, room, rest):
                    damaged.append(number)
            if self._meta.size > room:
                log.warning(
                    "%s has %.0f MB, and of files, %.0f MB fit into memory: the rest is read from the disk when it is "
                    "requested", self.path, self._meta.size / 1e6, room / 1e6
                )  # fmt: skip
        except ReleaseCorrupt as error:
            log.warning("%s; it may be served all the same", error)
        finally:
            if damaged and not self._damaged:
                log.warning("%s is damaged in %d blocks of 64 KiB; some keys cannot be read", self.path, len(damaged))
                self._damaged, self.read = True, PagedFile(self._file, self._meta, damaged).get

    async def check_before_scan(self) -> None:
        """Call `check`, unless that succeeded less than CHECK_HOLDS_S ago."""
        if time.monotonic() > self._found_whole_at + CHECK_HOLDS_S:
            await self.check()

    @classmethod
    def begin_in_child(cls) -> None:
        """Reset the state in a forked process; its parent may have held the lock."""
        cls._inherited = cls._inherited | {of: file._env for of, file in cls._open.items()}  # noqa: SLF001 -- its own
        cls._open, cls._closing, cls._lock, cls._process = {}, {}, threading.Lock(), os.getpid()

    def close(self) -> None:
        """Unmap the file, in its thread, at the last user's call."""
        with self._lock:
            self._users -= 1
            if self._users or self._open.get(self._identity) is not self:
                return  # the parent's file stays: its thread is not here
            del self._open[self._identity]
            for done in [identity for identity, closing in self._closing.items() if closing.done()]:
                del self._closing[done]
            self._closing[self._identity] = self._thread.submit(self._unmap)
            self._thread.shutdown(wait=False)

    async def closed(self) -> None:
        """Wait until a closed file is unmapped."""
        if closing := self._closing.get(self._identity):
            await asyncio.shield(asyncio.wrap_future(closing))

    def _unmap(self) -> None:
        with suppress(OSError):
            address = memory.mapped_at(self.path, self._identity[1])
            for start in range(0, self._meta.size, MAP_CHUNK):
                memory.release(address + start, min(MAP_CHUNK, self._meta.size - start))
        self._txn.abort()
        if self._identity not in self._inherited:
            self._env.close()
        os.close(self._file)

    def rows(self) -> Iterator[Row]:
        """Yield all rows in order of key bytes; call `check_before_scan` first."""
        last, new = b"", tuple.__new__  # faster than Row(key, value)
        scanned = 0
        try:
            with self._env.begin() as txn:
                for key, value in txn.cursor():
                    if key <= last:
                        raise ReleaseCorrupt(f"{self.path} is damaged: {key!r} stands after {last!r}; publish again")
                    last = key
                    scanned += len(value)
                    if scanned > SCANNED_BYTES:
                        scanned = 0
                        self._let_go()
                    yield new(Row, (key.decode(), value))
        except UnicodeDecodeError as error:
            raise ReleaseCorrupt(f"{self.path} is damaged: its key {last!r} is not text; publish again") from error
        except FAILURES as error:
            raise ReleaseCorrupt(f"{self.path} is damaged after the key {last!r} ({error}); publish again") from error

    def _let_go(self) -> None:
        with suppress(OSError):
            memory.release(memory.mapped_at(self.path, self._identity[1]), self._meta.size)


os.register_at_fork(after_in_child=ReleaseFile.begin_in_child)


def check_size(path: Path) -> Meta:
    """Return the header of a sealed file; ReleaseCorrupt if it was cut or is of another kind.

    Accepts damaged sums, because the rows may be whole.
    """
    with translated(path), path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno()).st_size
        if sums := file_format.read_sums(file.fileno()):
            file_format.check_head(file.fileno(), sums, str(path))
        meta = read_meta(file.fileno())
    if meta is None:
        raise ReleaseCorrupt(f"{path} is not a release file, or it was cut; publish again")
    whole = meta.size + file_format.overhead(meta.size)
    if found != whole:
        raise ReleaseCorrupt(f"{path} was cut: it has {found} of {whole} bytes; publish again")
    return meta


async def check_whole(path: Path) -> None:
    """Compare every block of a sealed file with its sum; ReleaseCorrupt, with the place, if one changed."""
    with opened(path) as file:
        async for number in damaged_blocks(path, file):
            start = number * file_format.BLOCK_BYTES
            raise ReleaseCorrupt(
                f"{path} is damaged between bytes {start} and {start + file_format.BLOCK_BYTES}; {HEAL}, and check the "
                f"disk"
            )


async def damaged_blocks(path: Path, file: int, up_to: float = inf, rest: float = 1.0) -> AsyncIterator[int]:
    """Read an open file up to *up_to* in threads; yield the numbers of changed blocks.

    Pauses *rest* times its CPU time. Raises ReleaseCorrupt for damaged sums.
    """
    await asyncio.to_thread(check_size, path)
    sums = file_format.read_sums(file)
    if sums is None:
        raise ReleaseCorrupt(f"the checksums at the end of {path} are damaged or cut off; publish again")
    for start in range(0, int(min(sums.size, up_to)), file_format.STRIDE_BYTES):
        with translated(path):
            damaged, cpu_s = await asyncio.to_thread(_timed, file_format.find_damage, file, sums, start)
        for number in damaged:
            yield number
        await asyncio.sleep(rest * cpu_s)


def _timed(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> tuple[T, float]:
    """Return the result of *work*, and its CPU time in seconds."""
    began = time.thread_time()
    result = work(*given, **named)
    return result, time.thread_time() - began


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file for reading; yield its descriptor."""
    with translated(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate errors of LMDB and the file system, with *path*."""
    try:
        yield
    except FileNotFoundError as error:
        raise ReleaseNotFound(f"{path} does not exist; was the release pruned?") from error
    except (lmdb.DiskError, lmdb.MapFullError) as error:
        raise StoreFull(f"no space left to write {path}; free some and publish again") from error
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
        raise ReleaseCorrupt(f"{path} is not a release file ({error}); publish again") from error
    except (lmdb.BadValsizeError, lmdb.BadTxnError) as error:
        raise StoreError(f"a key of {path} is empty or longer than {MAX_KEY_BYTES} bytes") from error
    except (OSError, lmdb.Error) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space left to write {path}; free some and publish again") from error
        is_refused = getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM)
        advice = "; give a folder that can be written, as --store file:///FOLDER" if is_refused else ""
        raise StoreUnavailable(f"{path} cannot be used: {error}{advice}") from error
