"""The catalogue of an embedded store, and the records beside it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from hotplate.stores.catalogue import Catalogue
from hotplate.stores.catalogue_record import dump, parse
from hotplate.stores.errors import ReleaseNotFound, StoreMisused, StoreUnavailable, tracked_swap
from hotplate.stores.file.release import FULL, translating_errors
from hotplate.stores.folders import check_held, make_folder, replace_durably, take_lock
from hotplate.stores.store import RecordChange, catalogue_changed

LOCK_TIMEOUT_S = 5.0

# Allocated for the catalogue and its records, so that a full disk takes them: that of 10,000 erased users, too.
RESERVED_BYTES = 256 << 10
BLOCK_BYTES = 4096

NOT_A_FOLDER = "a part of the path {} is a file; a store is a folder"


class CatalogueFile:
    """The catalogue of one folder, swapped by a rename, also on a full disk. Calls block.

    catalogue.json     the record
    catalogue.lock     locked during a swap or an erase
    catalogue.reserve  allocated blocks, which a swap on a full disk takes, and a later one allocates again
    records/NAME.json  a record beside the catalogue, durable before the catalogue that counts on it
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "catalogue.json"
        self._reserve_file = folder / "catalogue.reserve"
        self._lock = folder / "catalogue.lock"
        self._last_read: tuple[bytes | None, Catalogue] = (None, Catalogue())
        """The last record that was read, and the catalogue in it: polls find the same record."""

    def record(self, name: str | None = None) -> bytes | None:
        """Return the stored bytes, unchecked, of the catalogue or of the record *name*; None if never written."""
        path = self.path if name is None else self._record_path(name)
        with translating_errors(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None
            except NotADirectoryError as error:
                raise StoreMisused(NOT_A_FOLDER.format(path.parent)) from error

    def read(self, now: float) -> Catalogue:
        """Return the catalogue, with *now* as its time; an empty one before the first swap."""
        record = self.record()
        last_record, catalogue = self._last_read
        if record != last_record:
            catalogue = self.parse(record, now)
            self._last_read = (record, catalogue)
        return replace(catalogue, now=now)

    def parse(self, record: bytes | None, now: float) -> Catalogue:
        """Decode a record read at *now*; None is that of an empty store."""
        return Catalogue(now=now) if record is None else parse(record, now=now, where=str(self.path))

    def swap(
        self,
        new: Catalogue,
        is_expected: Callable[[bytes | None], bool],
        records: Sequence[RecordChange] = (),
        move_files: Callable[[], None] = lambda: None,
    ) -> None:
        """Replace the catalogue by *new* under the lock, first the records beside it, each durable before the next.

        *is_expected* gets the stored bytes of the catalogue, None before the first swap. If it returns false, nothing
        is written, and ReleaseConflict is raised. *move_files* is called after the records are written, for releases
        that come with the catalogue. Raises NotSent if the lock cannot be taken, StoreUnavailable if its file was
        removed.
        """
        with tracked_swap() as progress, self.locked() as lock:
            if not is_expected(self.record()):
                raise catalogue_changed()
            progress.is_sent = True
            for change in records:
                self._write(self._record_path(change.name), change.after, lock)
            move_files()
            self._write(self.path, dump(new), lock)

    def _record_path(self, name: str) -> Path:
        return self.folder / "records" / f"{name}.json"

    def _write(self, path: Path, content: bytes, lock: int) -> None:
        """Replace a file durably; on a full disk in blocks of the reserve, which then gets those of the old file."""
        replace = partial(replace_durably, path, content, mode=0o644, before_rename=partial(self.check_locked, lock))
        with translating_errors(path):
            try:
                make_folder(path.parent)
                replace()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._reserve_file.unlink(missing_ok=True)  # it may be another user's, such as root's
                make_folder(path.parent)
                replace()
            finally:
                with suppress(OSError):  # a later write tries again
                    self._reserve()

    def _reserve(self) -> None:
        """Allocate the blocks of the reserve, as far as the disk has them; OSError on a full disk."""
        self._reserve_file.touch(0o644)
        with self._reserve_file.open("r+b", buffering=0) as file:
            allocated_bytes = os.fstat(file.fileno()).st_size
            for start in range(allocated_bytes, RESERVED_BYTES, BLOCK_BYTES):
                os.posix_fallocate(file.fileno(), start, BLOCK_BYTES)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the lock of the catalogue, and yield its descriptor."""
        with translating_errors(self.folder):
            try:
                make_folder(self.folder)
            except FileNotFoundError as error:  # below /proc, where folders cannot be made
                raise ReleaseNotFound(f"the folder {self.folder} cannot be made; name another") from error
        with translating_errors(self._lock):
            try:
                descriptor = take_lock(self._lock, 0o644, LOCK_TIMEOUT_S)
            except TimeoutError as error:
                raise StoreUnavailable(str(error)) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def check_locked(self, lock: int) -> None:
        """Raise StoreUnavailable if the file of a held lock was removed."""
        with translating_errors(self._lock):
            check_held(lock, self._lock)
