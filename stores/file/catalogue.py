"""The catalogue as a file: swapped by lock, write, fsync, rename, fsync of the folder; also where the disk is full.

catalogue.json     the record
catalogue.lock     locked while it is swapped
catalogue.spare    the next one's place on the disk, taken in advance: written over, then renamed to catalogue.json
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stores import catalogue as catalogue_record
from stores.catalogue import Catalogue
from stores.errors import ReleaseConflict, StoreUnavailable
from stores.file.release import translated
from stores.folders import flush

LOCK_TIMEOUT_S = 5.0

# Room for some hundreds of releases.
SPARE_BYTES = 1 << 16
_LEAST_SPARE_BYTES = 1 << 12


class CatalogueFile:
    """The catalogue of one folder; lives as long as its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "catalogue.json"
        self._spare = folder / "catalogue.spare"

    def record(self) -> bytes | None:
        """Return the record as it stands; None before the first swap."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be read: {error}") from error

    def read(self, now: float) -> Catalogue:
        """Return the catalogue, an empty one before the first swap."""
        return self.parse(self.record(), now)

    def parse(self, record: bytes | None, now: float) -> Catalogue:
        """Understand a record that was read here."""
        if record is None:
            return Catalogue(now=now)
        return catalogue_record.parse(record, now=now, where=str(self.path))

    def swap(self, old: Catalogue, new: Catalogue) -> None:
        """Replace *old*, compared by `version`; waits for the lock and for the disk, so call it in a thread."""
        with self.locked():
            if self.read(new.now).version != old.version:
                raise ReleaseConflict("the catalogue was changed by somebody else first")
            self.replace(new)

    def replace(self, new: Catalogue) -> None:
        """Write a catalogue over whatever there is; for whoever holds the lock."""
        record = catalogue_record.dump(new)
        with translated(self._spare):
            try:
                self._write(record)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._spare.unlink(missing_ok=True)  # a file system that writes nothing in place
                self._write(record)
            self._spare.rename(self.path)
            flush(self.folder)
        self.make_spare()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the catalogue."""
        path = self.folder / "catalogue.lock"
        with translated(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with translated(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
                    time.sleep(0.002)
            yield
        finally:
            os.close(descriptor)

    def _write(self, record: bytes) -> None:
        """Write into the spare, over the blocks that it has."""
        descriptor = os.open(self._spare, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 -- of a descriptor: `Path.open` would truncate
            written = 0
            while written < len(record):
                written += file.write(record[written:])
            file.truncate()
            os.fsync(descriptor)

    def make_spare(self) -> None:
        """Take the room for the next catalogue, or as much of it as there is, unless it is taken."""
        if self._spare.exists():
            return
        size = SPARE_BYTES
        while size >= _LEAST_SPARE_BYTES:
            with suppress(OSError):
                with self._spare.open("ab") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
                return
            size //= 2
