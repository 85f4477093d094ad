"""Shipping of event segments: each is copied atomically to a URL that fsspec supports, then removed here."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotplate.serve.errors import EventsFailed, ServiceMisused
from hotplate.stores.event_log import is_open_segment, is_segment, recover, segments
from hotplate.stores.folders import flush, take_lock
from hotplate.stores.urls import redacted, scheme_of

# Held in the folder while a shipment runs.
LOCK = ".ship.lock"


@dataclass(frozen=True, slots=True)
class Shipped:
    """Result of a shipment."""

    segments: int
    bytes: int
    recovered: int
    """Segments of writers that had been killed."""


class SegmentFolder:
    """A folder of segments at a URL that fsspec supports."""

    def __init__(self, url: str) -> None:
        """Open the folder at *url*; raises ServiceMisused."""
        import fsspec  # noqa: PLC0415 -- an extra

        self.shown = redacted(url)
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ServiceMisused(
                f"{scheme_of(url)}:// needs a package that is not installed ({error}); install it with pip"
            ) from error
        except Exception as error:  # any type, and the text may contain secrets of the URL
            raise ServiceMisused(f"{self.shown} cannot be opened: {type(error).__name__}") from error
        self._root = root.rstrip("/")
        protocols = self._files.protocol
        self._is_local = "file" in ((protocols,) if isinstance(protocols, str) else protocols)

    def names(self) -> list[str]:
        """Return the names of the segments, the oldest first; raises ServiceMisused without a folder."""
        with self._errors("its listing"):
            self._files.invalidate_cache()
            is_there = self._files.exists(self._root) and not self._files.isfile(self._root)
            found = self._files.find(self._root, maxdepth=1) if is_there else []
        if not is_there:
            raise ServiceMisused(f"there is no folder {self.shown}; name one with segments of events")
        return sorted(name for path in found if is_segment(name := path.rpartition("/")[2]))

    def open_segments(self) -> int:
        """Return the number of segments that are being written or were left by a killed service."""
        with self._errors("its listing"):
            return sum(is_open_segment(path.rpartition("/")[2]) for path in self._files.find(self._root, maxdepth=1))

    def size(self, name: str) -> int | None:
        """Return the size of a segment in bytes; None if it does not exist."""
        with self._errors(name):
            self._files.invalidate_cache()
            try:
                return int(self._files.info(f"{self._root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes:
        """Return the content of a segment."""
        with self._errors(name):
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def holds(self, name: str, content: bytes) -> bool:
        """Return whether a file exists with this content."""
        with self._errors(name):
            self._files.invalidate_cache()
            try:
                return bool(self._files.cat_file(f"{self._root}/{name}") == content)
            except FileNotFoundError:
                return False

    def put(self, path: Path) -> None:
        """Copy a file here, under a temporary name until it is complete."""
        draft, full = f"{self._root}/.{path.name}.part", f"{self._root}/{path.name}"
        with self._errors(path.name):
            self._files.makedirs(self._root, exist_ok=True)
            self._files.put_file(str(path), draft)
            if self._is_local:
                flush(Path(draft))
            self._files.mv(draft, full)
            if self._is_local:
                flush(Path(self._root))

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Translate errors of a file system, without its message, which may contain secrets of the URL."""
        try:
            yield
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise EventsFailed(f"{self.shown} failed at {what}: {reason}; run the command again to go on") from error


def ship(folder: Path, url: str, on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> Shipped:
    """Copy the closed segments in *folder* to *url*, and remove each one here once it is copied.

    A shipment that was killed is resumed: names are unique, and a segment of the same size counts as copied. Raises
    ServiceMisused and EventsFailed.
    """
    if not folder.is_dir():
        raise ServiceMisused(f"there is no folder {folder}; name that of hotplate serve --events")
    place = SegmentFolder(url)
    with _alone(folder) as token:
        if place.holds(LOCK, token):  # the same folder by another name: its segments would be deleted
            raise ServiceMisused(f"{place.shown} is {folder} itself; name another place with --to")
        try:
            recovered = len(recover(folder))
            paths = segments(folder)
            copied = 0
            for number, path in enumerate(paths):
                size = path.stat().st_size
                if place.size(path.name) != size:
                    place.put(path)
                    if place.size(path.name) != size:
                        raise EventsFailed(f"{path.name} is not whole in {place.shown}; it is kept here")
                path.unlink()
                copied += size
                on_progress(number + 1, len(paths))
        except OSError as error:
            raise EventsFailed(f"{folder} cannot be read: {error.strerror}; see who may write to it") from error
    return Shipped(len(paths), copied, recovered)


@contextmanager
def _alone(folder: Path) -> Iterator[bytes]:
    """Hold the lock of *folder*; yields the unique content of the lock file."""
    try:
        descriptor = take_lock(folder / LOCK, 0o640, 0.0)
    except TimeoutError:
        raise EventsFailed(f"another shipment of {folder} is running; wait for its end") from None
    try:
        token = secrets.token_hex(16).encode()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, token)
        yield token
    finally:
        os.close(descriptor)
