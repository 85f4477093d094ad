"""The catalogue as a file: swapped by lock, write, fsync, rename and fsync of the folder, also on a full disk.

catalogue.json     the record, padded with newlines to its allocated size
catalogue.lock     locked while the catalogue is swapped
catalogue.spare    allocated blocks for the next record: written, then renamed to catalogue.json
catalogue.former   a second name of the previous record, until its file becomes the spare

The spare is twice as large as the record; only the holder of the lock uses it. After a swap the file of the previous
record becomes the spare, so no block is ever freed and a swap works on a full disk. A reader may still have that file
open, so it checks the name and the record's checksum.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hotplate.stores import catalogue as catalogue_record
from hotplate.stores.catalogue import Catalogue
from hotplate.stores.errors import CatalogueUnreadable, ReleaseConflict, StoreUnavailable
from hotplate.stores.file.release import translated
from hotplate.stores.folders import flush, take_lock, write_all

LOCK_TIMEOUT_S = 5.0

# Allocated size of the next record, as a multiple of the current one, in whole blocks.
ROOM = 2
BLOCK_BYTES = 4096


class CatalogueFile:
    """The catalogue of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "catalogue.json"
        self._spare = folder / "catalogue.spare"
        self._former = folder / "catalogue.former"

    def record(self) -> bytes | None:
        """Return the stored bytes, which only `parse` checks; None before the first swap."""
        try:
            while True:
                with self.path.open("rb", buffering=0) as file:
                    record = file.readall()
                    if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                        return record  # otherwise it is the spare now, perhaps with a record that was never committed
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be read: {error}") from error

    def read(self, now: float) -> Catalogue:
        """Return the catalogue; an empty one before the first swap."""
        return self.parse(self.record(), now)

    def parse(self, record: bytes | None, now: float) -> Catalogue:
        """Decode a record; if it was overwritten during the read, read it again."""
        while record is not None:
            try:
                return catalogue_record.parse(record, now=now, where=str(self.path))
            except CatalogueUnreadable:
                again = self.record()
                if again == record:
                    raise
                record = again
        return Catalogue(now=now)

    def swap(self, old: Catalogue, new: Catalogue) -> None:
        """Replace *old*, compared by `version`. Blocks on the lock and the disk, so call it in a thread."""
        with self.locked():
            if self.read(new.now).version != old.version:
                raise ReleaseConflict("another process changed the catalogue first")
            self.replace(new)

    def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        """Replace an unreadable record, compared by its bytes; blocks like `swap`."""
        with self.locked():
            if self.record() != record:
                raise ReleaseConflict("another process changed the catalogue first")
            self.replace(new)

    def replace(self, new: Catalogue) -> None:
        """Write a catalogue over any record; the caller holds the lock."""
        record = catalogue_record.dump(new)
        with translated(self._spare):
            if self._former.exists():  # its holder was killed
                flush(self.folder)
                self._settle()
            self._write(record)
            with suppress(OSError):  # no catalogue yet, or a file system without links
                os.link(self.path, self._former)
            self._spare.rename(self.path)
            flush(self.folder)
            self._settle()
        with suppress(OSError), self._open_spare() as spare:
            os.posix_fallocate(spare, 0, _room(record))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the catalogue."""
        path = self.folder / "catalogue.lock"
        with translated(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with translated(path):
            try:
                descriptor = take_lock(path, 0o644, LOCK_TIMEOUT_S)
            except TimeoutError as error:
                raise StoreUnavailable(str(error)) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def _settle(self) -> None:
        """Make the previous record's file the spare, once the rename that replaced it is durable."""
        with suppress(FileNotFoundError):
            if self._former.stat().st_nlink == 1:
                self._former.rename(self._spare)
            else:  # still the catalogue, because a holder was killed, or linked by a copy of the folder
                self._former.unlink()

    def _write(self, record: bytes) -> None:
        """Write a record into the blocks of the spare."""
        with self._open_spare() as spare:
            size = max(len(record), min(os.fstat(spare).st_size, _room(record)))
            write_all(spare, record.ljust(size, b"\n"), 0)
            os.ftruncate(spare, size)
            os.fsync(spare)

    @contextmanager
    def _open_spare(self) -> Iterator[int]:
        """Open the spare, made if necessary; a file with another name is not overwritten."""
        with suppress(FileNotFoundError):
            if self._spare.stat().st_nlink > 1:
                self._spare.unlink()
        descriptor = os.open(self._spare, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _room(record: bytes) -> int:
    return -(-ROOM * len(record) // BLOCK_BYTES) * BLOCK_BYTES
