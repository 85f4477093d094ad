"""A release being written: an LMDB file, and the lock of its writer.

    INCARNATION.draft    the rows so far
    INCARNATION.lock     locked (flock) while the writer lives; contains its process id and the machine's boot id

An eraser unlinks both files without the lock; the writer notices on its next call.
"""

import errno
import fcntl
import math
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

from hotplate.stores.catalogue import DraftRef
from hotplate.stores.encoding import MANIFEST, META
from hotplate.stores.errors import ReleaseConflict, StoreError, StoreFull
from hotplate.stores.file.checksums import append_checksums, overhead
from hotplate.stores.file.release import FULL, translating_errors
from hotplate.stores.folders import check_held, flush, release_map, take_lock
from hotplate.stores.store import Row, batches_of, not_found, sealed

# Address space reserved for a draft: at least, under a limit of it (`ulimit -v`), and as a multiple of its size.
MAP_BYTES = 1 << 36
LEAST_MAP_BYTES = 1 << 28
MAP_FACTOR = 4

# A page holds at least two rows; larger values get separate pages.
PAGE_BYTES = 4096
PAGE_HEADER_BYTES = 16
NODE_HEADER_BYTES = 10
MAX_NODE_BYTES = (PAGE_BYTES - PAGE_HEADER_BYTES) // 2 - 4

# Of an estimate: pages of an empty file, and the share of pages that lead to those with rows.
FIRST_PAGES = 16
BRANCH_FACTOR = 1.03

# Of LMDB 0.9, which `pages` reads. From py-lmdb 3 on, LMDB_DEFAULT_LIB_VERSION may choose another one.
_FORMAT: Final[dict[str, Any]] = {"lib_version": 0} if hasattr(lmdb.Environment, "lib_version") else {}

# With more rows, writing takes twice the time: their pages leave the processor's cache.
TRANSACTION_ROWS = 1000

# A draft releases the pages of its map after this many bytes.
WRITTEN_BYTES = 16 << 20

# Key prefix of resume points; sorts before all rows, removed at sealing.
POINT = b"\x00point:"

# Free space beyond a failed write that rules out a full disk.
PROBE_BYTES = 1 << 20


class DraftFile:
    """A draft locked by this process; flushed only at sealing.

    Calls are serialized, because `seal` and `close` may run in a thread.
    """

    def __init__(self, path: Path, draft: DraftRef, lock: int, *, needed: int) -> None:
        """Open a draft of about *needed* bytes; *lock* is the descriptor of its lock. Use `open_draft`."""
        self.path = path
        self.writer = draft.writer
        self._draft = draft
        self._lock = lock
        self._needed = needed
        self._busy = threading.Lock()
        try:
            self._env = _open(path, max(MAP_BYTES, MAP_FACTOR * needed))
        except lmdb.MemoryError:  # under a limit of address space
            self._env = _open(path, max(LEAST_MAP_BYTES, MAP_FACTOR * needed))
        self._inode = path.stat().st_ino
        self._mapped_bytes = 0
        self.closed = False

    def put(self, rows: Sequence[Row], part: int) -> None:
        """Write rows of a part of the draft, in transactions of at most TRANSACTION_ROWS; see `Store.put`.

        A part is the rows that one process of a publish writes. Rows in ascending order of key bytes, after all before
        them, are written fastest. On return they are acknowledged: `resume_point` is past them, but a reboot may lose
        them.
        """
        pairs = [(key.encode(), value) for key, value in rows]
        with self._claimed(sum(len(key) + len(value) for key, value in pairs)):
            for batch in batches_of(pairs, TRANSACTION_ROWS):
                self._write(batch, part)
            self._release_pages(sum(len(value) for _, value in pairs))

    def resume_point(self, part: int) -> str | None:
        """Return the last acknowledged key of a part, after which its publish goes on; None if there is none.

        `meta` rows do not count. A writer that was killed in `seal` may have removed the resume points. All parts are
        complete then, so the last key of the draft is returned: no part has rows after it.
        """
        with self._claimed(), self._env.begin() as txn:
            point = txn.get(POINT + b"%d" % part)
            if point is None and txn.get(MANIFEST.encode()) is not None:  # the last row of a publish
                keys = txn.cursor().iterprev(values=False)
                point = next((key for key in keys if not key.startswith(META.encode())), None)
            return None if point is None else point.decode()

    def seal(self, path: Path) -> None:
        """Remove the resume points, append the checksums, flush the file, and rename it to *path*; blocks for long."""
        with self._claimed(overhead(self._needed), last=True):
            self._remove_resume_points()
            size = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
            self._env.close()
            self._finish(size, path)

    def close(self) -> None:
        """Close the file and free the lock."""
        with self._busy:
            self._close_and_unlock()

    def _finish(self, size: int, path: Path) -> None:
        """Append the checksums of the first *size* bytes, flush the file, and rename it to *path*, a sealed release.

        Raises ReleaseNotFound if the draft was removed meanwhile, and StoreError, without the draft, if its pages could
        not be flushed.
        """
        with self.path.open("r+b", buffering=0) as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                raise not_found(self._draft)

            append_checksums(file.fileno(), size)
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._remove()  # a second flush would succeed, although the pages are lost
                raise StoreError(f"{self.path} could not be flushed; check the disk, and publish again") from error

        check_held(self._lock, lock_path(self.path))
        self.path.rename(path)
        flush(path.parent)
        lock_path(self.path).unlink(missing_ok=True)

    def _close_and_unlock(self) -> None:
        """Close the file and free the lock, once."""
        if not self.closed:
            self.closed = True
            self._env.close()
            _unlock(self._lock)

    def _remove(self) -> None:
        self.path.unlink(missing_ok=True)
        lock_path(self.path).unlink(missing_ok=True)

    @contextmanager
    def _claimed(self, more: int = 0, *, last: bool = False) -> Iterator[None]:
        """Serialize a call during the block, and check that the draft still exists and is locked by this process.

        *more* is the number of bytes that the call may write; *last* closes the draft after it. Raises ReleaseNotFound
        if the draft was erased, and then closes it, and other StoreErrors for failures of the call.
        """
        with self._busy:
            with translating_errors(self.path):
                is_gone = self.closed or not self._is_there()
            if is_gone:
                self._close_and_unlock()
                raise not_found(self._draft)
            try:
                check_held(self._lock, lock_path(self.path))
                yield
            except (OSError, lmdb.Error) as error:
                with translating_errors(self.path):
                    self._check_full(error, more)
                    raise  # as a StoreError
            finally:
                if last:
                    self._close_and_unlock()

    def _is_there(self) -> bool:
        with suppress(FileNotFoundError):
            return self.path.stat().st_ino == self._inode
        return False

    def _write(self, pairs: Sequence[tuple[bytes, bytes]], part: int) -> None:
        """Write rows, pairs of a key and a value, and the resume point of their part in one transaction.

        The resume point is the greatest key of the rows. Appending is faster than inserting, but works only for
        keys in ascending order after all others.
        """
        first_key = pairs[0][0]
        with self._env.begin(write=True) as txn:
            cursor = txn.cursor()
            last_key = cursor.key() if cursor.last() else b""
            is_appended = first_key > last_key
            _, added = cursor.putmulti(pairs, append=is_appended)
            if is_appended and added == len(pairs):
                resume_point = pairs[-1][0]
            else:
                if is_appended:
                    cursor.putmulti(pairs)  # not in order: LMDB skips rows that it cannot append
                resume_point = max(key for key, _ in pairs)
            if not first_key.startswith(META.encode()):  # `meta` rows have separate calls
                txn.put(POINT + b"%d" % part, resume_point)

    def _release_pages(self, written: int) -> None:
        """Release the pages of the map after *written* more bytes: they count as this process's memory."""
        self._mapped_bytes += written
        if self._mapped_bytes > WRITTEN_BYTES:
            self._mapped_bytes = 0
            release_map(self.path, self._inode, self._env.info()["map_size"])

    def _remove_resume_points(self) -> None:
        with self._env.begin(write=True) as txn, txn.cursor() as cursor:
            while cursor.set_range(POINT) and cursor.key().startswith(POINT):
                cursor.delete()

    def _check_full(self, error: OSError | lmdb.Error, more: int) -> None:
        """Remove the draft and raise StoreFull, if *error* of LMDB or of the file system means that the disk is full.

        *more* is the number of bytes that the call would have written, 0 if it only reads. LMDB calls a full disk an
        I/O error, so a write also counts as failed for that if less than *more* bytes are free.
        """
        is_full = isinstance(error, lmdb.DiskError) or getattr(error, "errno", None) in FULL
        folder = self.path.parent
        if more and (is_full or shutil.disk_usage(folder).free < more + PROBE_BYTES):
            written = self.path.stat().st_size if self.path.exists() else 0
            self._remove()
            self._close_and_unlock()

            free = shutil.disk_usage(folder).free  # with the space of the draft
            needed = max(self._needed, written + more)
            raise _no_room(folder, needed, written, free) from error


def open_draft(path: Path, sealed_path: Path, draft: DraftRef, *, needed: int) -> DraftFile:
    """Lock a draft and open its file, or create it for *needed* bytes.

    A draft from before a reboot is replaced, as it was never flushed. Raises ReleaseConflict if another process has it,
    or it was sealed; StoreFull if it does not fit.
    """
    with translating_errors(path):
        check_room(path.parent, needed, path.stat().st_size if path.exists() else 0)

        # A lock that this process gets is free: its writer has ended, or there was none.
        lock_file = lock_path(path)
        try:
            lock = take_lock(lock_file, 0o644, 0.0)
        except TimeoutError as error:
            raise ReleaseConflict(
                f"release {draft.id} is being written by process {_signature(lock_file).process}, running or stopped, "
                f"which holds {lock_file}; wait for it, or end it"
            ) from error

        has_rows = False
        try:
            check_unsealed(sealed_path, draft)

            boot_of_writer = _signature(lock_file).boot  # empty in a new lock file
            if boot_of_writer and boot_of_writer != _boot_id():
                path.unlink(missing_ok=True)
            has_rows = path.exists()

            # Sign the lock file with the process and the boot, for messages and for the check above: durably, before
            # there is a draft, of which a power failure may lose pages.
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} {_boot_id()}\n".encode(), 0)
            os.fsync(lock)
            flush(path.parent)
            return DraftFile(path, draft, lock, needed=needed)
        except BaseException:
            if not has_rows:  # otherwise another attempt can continue the draft
                path.unlink(missing_ok=True)
                lock_file.unlink(missing_ok=True)
            _unlock(lock)
            raise


def _open(path: Path, map_size: int) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=False, sync=False, lock=False, map_size=map_size, max_dbs=0, **_FORMAT)


def check_unsealed(sealed_path: Path, draft: DraftRef) -> None:
    """Raise ReleaseConflict if a draft was sealed."""
    with translating_errors(sealed_path):
        is_sealed = sealed_path.exists()
    if is_sealed:
        raise sealed(draft)


def check_room(folder: Path, needed: int, written: int = 0) -> None:
    """Raise StoreFull if a release of *needed* bytes, of which *written* exist, does not fit."""
    with translating_errors(folder):
        existing = next(place for place in (folder, *folder.parents) if place.is_dir())
        free = shutil.disk_usage(existing).free
    if needed - written > free:
        raise _no_room(folder, needed, written, free)


def file_bytes(rows: int, payload_bytes: int) -> int:
    """Return an upper estimate of the size of a release file with checksums, assuming rows of equal size.

    *payload_bytes* is the sum over keys and values. Rows fill whole pages of 4 KiB: as many as fit share one. A row
    larger than MAX_NODE_BYTES has pages for its value alone, and takes some 64 bytes for its key on another one.
    """
    row_bytes = payload_bytes / max(rows, 1) + NODE_HEADER_BYTES
    if row_bytes > MAX_NODE_BYTES:
        bytes_on_disk = math.ceil((row_bytes + PAGE_HEADER_BYTES) / PAGE_BYTES) * PAGE_BYTES + 64.0
    else:
        rows_in_page = (PAGE_BYTES - PAGE_HEADER_BYTES) // row_bytes
        bytes_on_disk = PAGE_BYTES / rows_in_page

    size = FIRST_PAGES * PAGE_BYTES + int(rows * bytes_on_disk * BRANCH_FACTOR)
    return size + overhead(size)


def lock_path(draft: Path) -> Path:
    """Return the path of a draft's lock."""
    return draft.with_suffix(".lock")


def _unlock(descriptor: int) -> None:
    # A child may hold the descriptor, so closing is not enough.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class _Signature(NamedTuple):
    """The writer's process id and the machine's boot id in a lock file; empty if it was never signed."""

    process: str
    boot: str


def _signature(lock_file: Path) -> _Signature:
    with suppress(FileNotFoundError):
        process, _, boot = lock_file.read_text(errors="replace").strip().partition(" ")
        return _Signature(process, boot)
    return _Signature("", "")


def _boot_id() -> str:
    """Return an id that changes at each boot of the machine; empty if unknown."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _no_room(folder: Path, needed: int, written: int, free: int) -> StoreFull:
    return StoreFull(
        f"the release needs about {needed / 1e6:,.0f} MB in {folder}, of which {written / 1e6:,.0f} MB were written, "
        f"and {free / 1e6:,.0f} MB are free, or fewer by a quota; free some space there"
    )
