"""A sealed release: one LMDB file, mapped read-only, and shared by all stores of a process.

Reading past the end of a truncated file kills the process (SIGBUS), and so may a scan over a damaged page. Therefore
the size is checked before a file is mapped, and all its checksums are checked before it is scanned. If a single read
meets a damaged page, only that key fails. LMDB reads nothing more in a transaction in which a read failed, so the one
transaction of the file is begun again. If other threads were reading in it, their keys are read again.

If a page is not in memory, a read stops the thread and its event loop until the disk has answered. So a release is
brought into memory before it is served.
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
from hotplate.stores.file import block_sums, memory
from hotplate.stores.file.pages import Meta, PagedFile, read_meta
from hotplate.stores.store import Row, Slot

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

# How a read fails, if a page is damaged or the disk is.
FAILURES = (lmdb.Error, MemoryError, OSError)

# LMDB's own limit; no id that passes `check_id` comes near it.
MAX_KEY_BYTES = 511

# How long a file that was found whole may be scanned without another look at all of it.
CHECK_HOLDS_S = 60.0

READ_CHUNK = 1 << 22

# How much longer than it works a release rests that is brought into memory while another is served: workers at half of
# what they can take have to go on as before on the same core. Waiting for the disk is not work.
WARM_REST = 4.0

# How much of a map is populated, locked or released in one go, during which no other thread can map anything.
MAP_CHUNK = 1 << 22
# After how many bytes a scan lets go of the pages that it has read: they would count as memory of this process.
SCANNED_BYTES = 16 << 20


class ReleaseFile:
    """A sealed release, mapped; lives until its last user closes it, for LMDB maps a file once a process.

    A process that was forked while a file was mapped has that map, too, and LMDB refuses it another. It reads by that
    map, in a transaction of its own, and keeps it: its parent may have been amid a read, for which closing would wait.
    """

    _open: dict[tuple[int, int], "ReleaseFile"] = {}  # noqa: RUF012 -- by device and inode; the one map a process may have
    _closing: dict[tuple[int, int], Future[None]] = {}  # noqa: RUF012 -- those that their threads are to unmap
    _inherited: dict[tuple[int, int], lmdb.Environment] = {}  # noqa: RUF012 -- the maps that this process was forked with
    _lock = threading.Lock()
    _process = os.getpid()

    def __init__(self, path: Path, identity: tuple[int, int]) -> None:
        """Map *path*; use `open`, which shares what is mapped already."""
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
        self._damaged = self._warmed = False
        self.read: Callable[[bytes], bytes | None] = self._txn.get
        """Read one key, by LMDB's own call, bound once; its errors are `slot`'s to judge."""

    @classmethod
    def open(cls, path: Path) -> "ReleaseFile":
        """Map the file, or share the map that this process has of it; each open wants a `close`."""
        with translated(path):
            status = path.stat()
        identity = status.st_dev, status.st_ino
        if cls._process != os.getpid():
            cls.begin_in_child()  # uWSGI forks without a word to Python
        with cls._lock:
            if closing := cls._closing.get(identity):
                closing.result()
            file = cls._open.get(identity)
            if file is None:
                file = cls._open[identity] = cls(path, identity)
            file._users += 1
        return file

    def slot(self, key: str) -> Slot:
        """Read one key, as the slot of a batch; after a read that failed, which makes the next read possible.

        If another read had failed in the same transaction, of another thread or of the same batch, read the key again.
        """
        raw = key.encode("utf-8", "surrogatepass")  # of a key that is not text, bytes that no row has
        try:
            return self.read(raw)
        except lmdb.BadValsizeError:
            return StoreError(f"the key {key[:64]!r} is empty or longer than {MAX_KEY_BYTES} bytes")
        except FAILURES as error:
            failure = error
        try:
            if not self._damaged:
                self._txn = self._env.begin()  # the old one ends with the last read in it, in whichever thread
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
        """Compare every block with its sum, in a thread; ReleaseCorrupt, saying where, for one that was changed."""
        await check_whole(self.path)
        self._found_whole_at = time.monotonic()

    async def warm(self, rest: float = 1.0) -> None:
        """Read the file into memory, as much of it as can stay there; from then on a damaged one is read with care.

        It rests *rest* times as long as it works, by its CPU time. What LMDB makes of a damaged page may end the
        process, so pages are read without it then. Said once in the log, for its keys may fail.
        """
        self._warmed = True
        room, damaged = memory.room_bytes(), list[int]()
        try:
            with opened(self.path) as file:
                async for number in damaged_blocks(self.path, file, room, rest):
                    damaged.append(number)
            if self._meta.size <= room:
                with suppress(OSError):
                    await self._each_chunk(memory.populate, rest)
            else:
                log.warning(
                    "%s has %.0f MB, and of files, %.0f MB fit into memory: the rest is read from the disk when it is "
                    "requested", self.path, self._meta.size / 1e6, room / 1e6
                )  # fmt: skip
        except ReleaseCorrupt as error:
            log.warning("%s; what it serves may be whole", error)
        finally:
            if damaged and not self._damaged:
                log.warning("%s is damaged in %d blocks of 64 KiB; some keys cannot be read", self.path, len(damaged))
                self._damaged, self.read = True, PagedFile(self._file, self._meta, damaged).get

    async def _each_chunk(self, work: Callable[[int, int], None], rest: float = 0.0) -> None:
        """Do something to all of the map, part by part in the file's thread; OSError if that raises it."""
        address = await self._in_thread(memory.mapped_at, self.path, self._identity[1])
        for start in range(0, self._meta.size, MAP_CHUNK):
            _, cpu_s = await self._in_thread(_timed, work, address + start, min(MAP_CHUNK, self._meta.size - start))
            await asyncio.sleep(rest * cpu_s)

    async def _in_thread(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Run *work* in the file's thread, after what was requested of that before."""
        if not self._users:
            raise ReleaseNotFound(f"{self.path} was closed; was the release pruned?")
        return await asyncio.wrap_future(self._thread.submit(work, *given, **named))

    async def check_before_scan(self) -> None:
        """As `check`, unless the file was found whole a moment ago."""
        if time.monotonic() > self._found_whole_at + CHECK_HOLDS_S:
            await self.check()

    @classmethod
    def begin_in_child(cls) -> None:
        """In a process that was just forked, begin without files of its own; its parent may have held the lock."""
        cls._inherited = cls._inherited | {of: file._env for of, file in cls._open.items()}  # noqa: SLF001 -- its own
        cls._open, cls._closing, cls._lock, cls._process = {}, {}, threading.Lock(), os.getpid()

    def close(self) -> None:
        """Unmap the file when its last user in this process is done with it, in its thread: a large one takes long."""
        with self._lock:
            self._users -= 1
            if self._users or self._open.get(self._identity) is not self:
                return  # one of a parent's files stays, because its thread is not in this process
            del self._open[self._identity]
            for done in [identity for identity, closing in self._closing.items() if closing.done()]:
                del self._closing[done]
            self._closing[self._identity] = self._thread.submit(self._unmap)
            self._thread.shutdown(wait=False)

    async def closed(self) -> None:
        """Wait until a file that was closed is unmapped."""
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
        """Yield all rows in ascending order of key bytes; only after `check_before_scan`."""
        last, new = b"", tuple.__new__  # as Row(key, value), which is a call of Python for each
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
        """Let go of what a scan has read, unless the file was brought into memory to be served from there."""
        if not self._warmed:
            with suppress(OSError):
                memory.release(memory.mapped_at(self.path, self._identity[1]), self._meta.size)


os.register_at_fork(after_in_child=ReleaseFile.begin_in_child)


def check_size(path: Path) -> Meta:
    """Return what a sealed file that may be mapped says of itself; ReleaseCorrupt for one that was cut or is another.

    Reads its sums and first pages. Damaged sums alone are not held against it: what it serves may well be whole.
    """
    with translated(path), path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno()).st_size
        if sums := block_sums.read(file.fileno()):
            block_sums.check_head(file.fileno(), sums, str(path))
        meta = read_meta(file.fileno())
    if meta is None:
        raise ReleaseCorrupt(f"{path} is not a release file, or it was cut; publish again")
    whole = meta.size + block_sums.overhead(meta.size)
    if found != whole:
        raise ReleaseCorrupt(f"{path} was cut: it has {found} of {whole} bytes; publish again")
    return meta


async def check_whole(path: Path) -> None:
    """Compare every block of a sealed file with its sum; ReleaseCorrupt, saying where, for one that was changed."""
    with opened(path) as file:
        async for number in damaged_blocks(path, file):
            start = number * block_sums.BLOCK_BYTES
            raise ReleaseCorrupt(
                f"{path} is damaged between bytes {start} and {start + block_sums.BLOCK_BYTES}; {HEAL}, and look at "
                f"the disk"
            )


async def damaged_blocks(path: Path, file: int, up_to: float = inf, rest: float = 1.0) -> AsyncIterator[int]:
    """Read an open file, and yield the number of each block that was changed since it was sealed; maps nothing.

    It is read in threads, *up_to* a place, with *rest* times as long a pause after each piece as that took of CPU:
    requests go first. Raises ReleaseCorrupt for a file whose sums are damaged.
    """
    await asyncio.to_thread(check_size, path)
    sums = block_sums.read(file)
    if sums is None:
        raise ReleaseCorrupt(f"the checksums at the end of {path} are damaged or cut off; publish again")
    for start in range(0, int(min(sums.size, up_to)), block_sums.STRIDE_BYTES):
        with translated(path):
            damaged, cpu_s = await asyncio.to_thread(_timed, block_sums.find_damage, file, sums, start)
        for number in damaged:
            yield number
        await asyncio.sleep(rest * cpu_s)


def _timed(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> tuple[T, float]:
    """Return what *work* returns, and the CPU that it took of this thread, in seconds."""
    began = time.thread_time()
    result = work(*given, **named)
    return result, time.thread_time() - began


async def read_through(path: Path) -> None:
    """Read a file, in threads and at half speed, into the page cache that all processes share."""
    with opened(path) as file:
        place, buffer = 0, bytearray(READ_CHUNK)
        while True:
            with translated(path):
                piece, cpu_s = await asyncio.to_thread(_timed, os.preadv, file, [buffer], place)
            if not piece:
                return
            place += piece
            await asyncio.sleep(cpu_s)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file to read it; yield its descriptor."""
    with translated(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what LMDB and the file system raise into the errors of the contract, naming *path*."""
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
