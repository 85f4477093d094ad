"""Segments shipped: copied to any place that fsspec knows, whole or not at all, and removed here once they are."""

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

# Held in the folder by the one shipment that runs.
LOCK = ".ship.lock"


@dataclass(frozen=True, slots=True)
class Shipped:
    """What one shipment did."""

    segments: int
    bytes: int
    recovered: int
    """How many were of writers that had been killed."""


class SegmentFolder:
    """A folder at any URL that fsspec knows, with segments in it; lives as long as a command."""

    def __init__(self, url: str) -> None:
        """Open the folder at *url*; raises ServiceMisused for one that cannot be opened, or needs a package more."""
        import fsspec  # noqa: PLC0415 -- an extra, which the service itself does not need

        self.shown = redacted(url)
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ServiceMisused(
                f"{scheme_of(url)}:// needs a package that is not installed ({error}); install it with pip"
            ) from error
        except Exception as error:  # each file system has its own, which may hold secrets of the URL
            raise ServiceMisused(f"{self.shown} cannot be opened: {type(error).__name__}") from error
        self._root = root.rstrip("/")
        protocols = self._files.protocol
        self._is_local = "file" in ((protocols,) if isinstance(protocols, str) else protocols)

    def names(self) -> list[str]:
        """Return the names of the segments that are there, the oldest first; ServiceMisused for no folder."""
        with self._errors("its listing"):
            self._files.invalidate_cache()
            is_there = self._files.exists(self._root) and not self._files.isfile(self._root)
            found = self._files.find(self._root, maxdepth=1) if is_there else []
        if not is_there:
            raise ServiceMisused(f"there is no folder {self.shown}; name one with segments of events")
        return sorted(name for path in found if is_segment(name := path.rpartition("/")[2]))

    def open_segments(self) -> int:
        """Number of segments that services still write, or that killed ones left."""
        with self._errors("its listing"):
            return sum(is_open_segment(path.rpartition("/")[2]) for path in self._files.find(self._root, maxdepth=1))

    def size(self, name: str) -> int | None:
        """Return the bytes of a segment that is there; None if it is not."""
        with self._errors(name):
            self._files.invalidate_cache()
            try:
                return int(self._files.info(f"{self._root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes:
        """Return a segment's bytes."""
        with self._errors(name):
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def holds(self, name: str, content: bytes) -> bool:
        """Return whether a small file is there with just these bytes."""
        with self._errors(name):
            self._files.invalidate_cache()
            try:
                return bool(self._files.cat_file(f"{self._root}/{name}") == content)
            except FileNotFoundError:
                return False

    def put(self, path: Path) -> None:
        """Copy a file here, under its name once it is whole; a draft that a killed one left is written over."""
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
        """Name what a file system, anybody's, could not do; its own words may hold the secrets of its URL."""
        try:
            yield
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise EventsFailed(f"{self.shown} failed at {what}: {reason}; run the command again to go on") from error


def ship(folder: Path, url: str, on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> Shipped:
    """Copy the closed segments in *folder* to *url*, and remove each one here once it is there.

    Killed anywhere it loses nothing, and the next shipment goes on where it was: a segment has its name once in the
    world, and counts as there if that has its size. Raises ServiceMisused and EventsFailed.
    """
    if not folder.is_dir():
        raise ServiceMisused(f"there is no folder {folder}; name that of hotplate serve --events")
    place = SegmentFolder(url)
    with _alone(folder) as token:
        if place.holds(LOCK, token):  # by whatever name: what is there already would be removed here
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
    """Hold the lock of *folder*; yields its file, which no other process has then."""
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
