"""A folder of segments at a URL of fsspec."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hotplate.serve.errors import EventsFailed, ServiceMisused
from hotplate.stores.folders import flush
from hotplate.stores.urls import redacted, scheme_of


class SegmentFolder:
    """A folder of segments at a URL of fsspec. Errors do not quote the URL, which may contain secrets."""

    def __init__(self, url: str) -> None:
        """Open the folder at *url*; raises ServiceMisused."""
        import fsspec  # noqa: PLC0415 -- an extra

        self.shown = redacted(url) if scheme_of(url) else url
        try:
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise ServiceMisused(f"{scheme_of(url)}:// needs a package that is not installed: {error}") from error
        except Exception as error:
            raise ServiceMisused(f"{self.shown} cannot be opened: {type(error).__name__}") from error
        self._root = root.rstrip("/")
        self._local = Path(self._root) if "file" in self._files.protocol else None

    def names(self) -> list[str]:
        """Return the names of all files in order; raises ServiceMisused."""
        with self._errors("its listing"):
            if self._files.isdir(self._root):
                return sorted(path.rpartition("/")[2] for path in self._files.find(self._root, maxdepth=1))
            is_file = self._files.isfile(self._root)
        if is_file:
            raise ServiceMisused(f"{self.shown} is a file; name the folder of its segments of events")
        raise ServiceMisused(f"the folder {self.shown} does not exist; name one with segments of events")

    def holds(self, name: str) -> bool:
        """Return whether a file of this name is here."""
        with self._errors(name):
            return bool(self._files.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        """Return the content of a segment."""
        with self._errors(name):
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def take(self, path: Path) -> int:
        """Copy the local file at *path* to this folder, which may be remote, and return its size in bytes.

        The copy has a temporary name until it is complete. A file of the same name and size in the folder counts as
        copied. Raises EventsFailed if the copy cannot be written, or lacks bytes afterwards.
        """
        temporary_path = f"{self._root}/.{path.name}.part"
        final_path = f"{self._root}/{path.name}"
        size = path.stat().st_size

        with self._errors(path.name):
            if self._files.exists(final_path) and self._files.size(final_path) == size:
                return size

            self._files.makedirs(self._root, exist_ok=True)
            self._files.put_file(str(path), temporary_path)
            if self._local is not None:  # the folder, if it is on this machine
                flush(Path(temporary_path))
            self._files.mv(temporary_path, final_path)
            if self._local is not None:
                flush(self._local)

            is_whole = self._files.size(final_path) == size
        if not is_whole:
            raise EventsFailed(f"{path.name} is not whole in {self.shown}; it is kept here")
        return size

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Raise EventsFailed for any error, at *what*: fsspec's file systems have no common errors."""
        try:
            yield
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise EventsFailed(f"{self.shown} failed at {what}: {reason}; run the command again to go on") from error
