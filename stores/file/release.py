"""Sealed files: block checksums, LMDB's header, and lookups in damaged files.

    LMDB's pages ‖ xxh3_64 of each block of them ‖ footer

LMDB does not read beyond its last page. The footer holds the size before the sums, which shows a truncated file.

LMDB follows damaged offsets, which may end the process; `PagedFile` reads only whole blocks (LMDB 0.9, native byte
order). Measured: requests for a list with a flipped byte ended 25 workers in 26 s without it, and one with it.

A sealed release: an LMDB file, mapped read-only and shared by all stores of a process.

Reading past the end of a truncated file kills the process (SIGBUS), as may a scan of a damaged page: the size is
checked before mapping, and all checksums before scanning. A damaged block fails only its keys. After a failed read LMDB
refuses others in the transaction, so a new one begins, and other threads read again. Page faults block the event loop,
so a release is read into memory before it is served.
"""

import asyncio
import errno
import logging
import os
import struct
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

import lmdb
from xxhash import xxh3_64_digest, xxh3_128_digest

from hotplate.stores.errors import HEAL, ReleaseCorrupt, ReleaseNotFound, StoreError, StoreFull, StoreUnavailable
from hotplate.stores.folders import release_map, room_bytes, write_all
from hotplate.stores.store import Row, Slot

BLOCK_BYTES = 1 << 16

# Bytes checked between points of cancellation.
STRIDE_BYTES = 64 * BLOCK_BYTES

# LMDB's two meta pages, at their smallest size.
HEAD_BYTES = 8192

_MAGIC = b"hotplate"

# Magic, size without sums, sum of the head; then the sum of all sums and of these.
_FOOTER = struct.Struct("<8sQ8s")
_SUM_BYTES = 8
_FOOTER_SUM_BYTES = 16
_END_BYTES = _FOOTER.size + _FOOTER_SUM_BYTES

LEAST_PAGE_BYTES = 4096

# Meta page: magic, page size, root, last page in use, transaction.
_META = struct.Struct("=16xI20xI84xQQQ")
_META_MAGIC = 0xBEEFC0DE

# Page head: kind, end of its list of nodes.
_HEADER = struct.Struct("=10xHH2x")
_BRANCH = 1

# Node: value length (on a branch, the page below it, with the flags as highest bits), flags, key length.
_NODE = struct.Struct("=HHHH")
_VALUE_ON_SEPARATE_PAGES = 1
_NO_PAGE = (1 << 64) - 1
log = logging.getLogger(__name__)

# Errors of a read from a damaged page or disk.
FAILURES = (lmdb.Error, MemoryError, OSError)

# Age of a check that suffices for a scan.
CHECK_HOLDS_S = 60.0

# Pause after each stride of warming while another release is served: four times its CPU time.
WARM_PAUSE_S = 0.004

# Bytes released at once, while no other thread can map memory.
MAP_CHUNK = 1 << 22

# A scan releases its pages, which count as this process's memory, after this many bytes.
SCANNED_BYTES = 16 << 20


class Sums(NamedTuple):
    """Checksums of a file, and its *size* without them."""

    size: int
    head: bytes
    blocks: bytes


def overhead(size: int) -> int:
    """Return the size of the sums for *size* bytes."""
    return -(-size // BLOCK_BYTES) * _SUM_BYTES + _END_BYTES


def append_sums(file: int, size: int) -> None:
    """Write sums after the first *size* bytes."""
    os.ftruncate(file, size)
    blocks = b"".join(_block_sum(file, number, size) for number in range(-(-size // BLOCK_BYTES)))
    head = xxh3_64_digest(os.pread(file, HEAD_BYTES, 0))
    tail = blocks + _FOOTER.pack(_MAGIC, size, head)
    write_all(file, tail + xxh3_128_digest(tail), size)


def read_sums(file: int) -> Sums | None:
    """Read the sums; None if they are missing, damaged, or of another size."""
    found = os.fstat(file).st_size
    end = os.pread(file, _END_BYTES, max(0, found - _END_BYTES))
    if len(end) < _END_BYTES:
        return None
    magic, size, head = _FOOTER.unpack_from(end)
    if magic != _MAGIC or size + overhead(size) != found:
        return None
    tail = os.pread(file, found - size, size)
    if xxh3_128_digest(tail[:-_FOOTER_SUM_BYTES]) != tail[-_FOOTER_SUM_BYTES:]:
        return None
    return Sums(size, head, tail[:-_END_BYTES])


def check_head(file: int, sums: Sums, name: str) -> None:
    """Raise ReleaseCorrupt if the first pages, which LMDB needs to find all others, changed."""
    if xxh3_64_digest(os.pread(file, HEAD_BYTES, 0)) != sums.head:
        raise ReleaseCorrupt(f"the first pages of {name} are damaged; repair it from another store or publish again")


def find_damage(file: int, sums: Sums, start: int, size: int = STRIDE_BYTES) -> list[int]:
    """Check *size* bytes from *start*; return the numbers of blocks that changed, or cannot be read."""
    numbers = range(start // BLOCK_BYTES, -(-min(start + size, sums.size) // BLOCK_BYTES))
    return [number for number in numbers if not _is_whole(file, number, sums)]


def _is_whole(file: int, number: int, sums: Sums) -> bool:
    try:
        found = _block_sum(file, number, sums.size)
    except OSError:
        return False
    return found == sums.blocks[number * _SUM_BYTES : (number + 1) * _SUM_BYTES]


def _block_sum(file: int, number: int, size: int) -> bytes:
    start = number * BLOCK_BYTES
    return xxh3_64_digest(os.pread(file, min(BLOCK_BYTES, size - start), start))


class Meta(NamedTuple):
    """The newer meta page; *size* is in bytes, up to the last page in use."""

    page_bytes: int
    root: int
    size: int


def read_meta(file: int) -> Meta | None:
    """Read the meta pages; None if one is invalid."""
    meta, newest, page_bytes = None, -1, 0
    for _ in range(2):
        page = os.pread(file, _META.size, page_bytes)
        if len(page) < _META.size:
            return None
        magic, page_bytes, root, last_page, transaction = _META.unpack(page)
        if magic != _META_MAGIC or page_bytes < LEAST_PAGE_BYTES:
            return None
        if transaction > newest:
            newest, meta = transaction, Meta(page_bytes, root, (last_page + 1) * page_bytes)
    return meta


@dataclass(frozen=True, slots=True)
class PagedFile:
    """Looks up keys page by page in an open, damaged file; each block that is read is compared with its sum."""

    file: int
    meta: Meta
    sums: Sums

    def get(self, key: bytes) -> bytes | None:
        """Read one key; lmdb.CorruptedError if its pages, or those that lead to them, are damaged."""
        number, page_bytes = self.meta.root, self.meta.page_bytes
        while number != _NO_PAGE:
            page = self._read(number * page_bytes, page_bytes)
            kind, end = _HEADER.unpack_from(page)
            nodes = range((end - _HEADER.size) // 2)
            first = kind & _BRANCH  # a branch's first node has no key
            index = bisect_right(nodes, key, lo=first, key=lambda index: _node(page, index)[0]) - 1
            if index < 0:
                return None
            found, value, flags, start = _node(page, index)
            if kind & _BRANCH:
                number = value | flags << 32
            elif found != key:
                return None
            elif flags & _VALUE_ON_SEPARATE_PAGES:
                number = int.from_bytes(page[start : start + 8], sys.byteorder)
                return self._read(number * page_bytes + _HEADER.size, value)
            else:
                return page[start : start + value]
        return None

    def _read(self, place: int, size: int) -> bytes:
        data = os.pread(self.file, size, place)
        if len(data) < size or find_damage(self.file, self.sums, place, size):
            raise lmdb.CorruptedError("a page is damaged")
        return data


def _node(page: bytes, index: int) -> tuple[bytes, int, int, int]:
    """Return a node's key, low half of its page below or length of its value, flags, and value start."""
    (place,) = struct.unpack_from("=H", page, _HEADER.size + 2 * index)
    low, high, flags, size = _NODE.unpack_from(page, place)
    start = place + _NODE.size
    return page[start : start + size], low | high << 16, flags, start + size


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
            return StoreError(f"the key {key[:64]!r} is empty or too long")
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

    async def check(self, max_age_s: float = 0.0) -> None:
        """Compare every block with its sum, unless done *max_age_s* ago; ReleaseCorrupt if one changed."""
        if time.monotonic() >= self._found_whole_at + max_age_s:
            await check_whole(self.path)
            self._found_whole_at = time.monotonic()

    async def warm(self, pause_s: float = 0.0) -> None:
        """Read as much of the file into memory as fits, with pauses.

        If the file is damaged, its pages are read without LMDB from then on.
        """
        room, damaged = room_bytes(), list[int]()
        try:
            await find_damaged_blocks(self.path, damaged, room, pause_s)
            if self._meta.size > room:
                size_mb, room_mb = self._meta.size / 1e6, room / 1e6
                log.warning("%s has %.0f MB, of which %.0f MB fit into memory", self.path, size_mb, room_mb)
        except ReleaseCorrupt as error:
            log.warning("%s; it may be served all the same", error)
        finally:  # also if the caller's time is up
            if damaged and not self._damaged and (sums := read_sums(self._file)):
                log.warning("%s is damaged in %d blocks of 64 KiB; some keys cannot be read", self.path, len(damaged))
                self._damaged, self.read = True, PagedFile(self._file, self._meta, sums).get

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
        release_map(self.path, self._identity[1], self._meta.size, MAP_CHUNK)
        self._txn.abort()
        if self._identity not in self._inherited:
            self._env.close()
        os.close(self._file)

    def rows(self) -> Iterator[Row]:
        """Yield all rows in order of key bytes; call `check` first."""
        last, new = b"", tuple.__new__  # faster than Row(key, value)
        scanned = 0
        try:
            with self._env.begin() as txn:
                for key, value in txn.cursor():
                    if key <= last:
                        raise lmdb.CorruptedError(f"{key!r} follows")
                    last = key
                    scanned += len(value)
                    if scanned > SCANNED_BYTES:
                        scanned = 0
                        release_map(self.path, self._identity[1], self._meta.size)
                    yield new(Row, (key.decode(), value))
        except (UnicodeDecodeError, *FAILURES) as error:
            raise ReleaseCorrupt(f"{self.path} is damaged after the key {last!r} ({error}); publish again") from error


os.register_at_fork(after_in_child=ReleaseFile.begin_in_child)


def check_size(path: Path) -> Meta:
    """Return the header of a sealed file, even with damaged sums; ReleaseCorrupt if it was cut or is another file."""
    with translated(path), path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno()).st_size
        if sums := read_sums(file.fileno()):
            check_head(file.fileno(), sums, str(path))
        meta = read_meta(file.fileno())
    if meta is None:
        raise ReleaseCorrupt(f"{path} is not a release file, or it was cut; publish again")
    whole = meta.size + overhead(meta.size)
    if found != whole:
        raise ReleaseCorrupt(f"{path} was cut: it has {found} of {whole} bytes; publish again")
    return meta


async def check_whole(path: Path) -> None:
    """Compare every block of a sealed file with its sum; ReleaseCorrupt, with the place, if one changed."""
    await find_damaged_blocks(path, damaged := list[int]())
    for number in damaged:
        start = number * BLOCK_BYTES
        raise ReleaseCorrupt(
            f"{path} is damaged between bytes {start} and {start + BLOCK_BYTES}; {HEAL}, and check the disk"
        )


async def find_damaged_blocks(path: Path, damaged: list[int], up_to: float = inf, pause_s: float = 0.0) -> None:
    """Read a file up to *up_to* in threads; add changed blocks to *damaged*. ReleaseCorrupt for damaged sums."""
    await asyncio.to_thread(check_size, path)
    with translated(path), path.open("rb", buffering=0) as file:
        sums = read_sums(file.fileno())
        if sums is None:
            raise ReleaseCorrupt(f"the checksums at the end of {path} are damaged or cut off; publish again")
        for start in range(0, int(min(sums.size, up_to)), STRIDE_BYTES):
            damaged += await asyncio.to_thread(find_damage, file.fileno(), sums, start)
            await asyncio.sleep(pause_s)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate errors of LMDB and the file system, with *path*."""
    try:
        yield
    except FileNotFoundError as error:
        raise ReleaseNotFound(f"{path} does not exist; was the release pruned?") from error
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
        raise ReleaseCorrupt(f"{path} is not a release file ({error}); publish again") from error
    except (OSError, lmdb.Error) as error:
        code = getattr(error, "errno", None)
        if isinstance(error, lmdb.DiskError | lmdb.MapFullError) or code in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space left to write {path}; free some and publish again") from error
        raise StoreUnavailable(f"{path} cannot be used: {error}") from error
