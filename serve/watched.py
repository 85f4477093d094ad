"""Files that are loaded again when they change, without a restart: keys, certificates, a deny-list.

They are looked at twice a second, by name: a file that is replaced, written over, or reached through a link that now
leads elsewhere, as Kubernetes swaps a mounted secret, is seen alike.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from hotplate.serve.errors import ServiceMisused

log = logging.getLogger(__name__)

POLL_S = 0.5
# Reads files, in a thread perhaps, and returns what puts them into use, on the event loop. What it raises is caught,
# and the text of a ServiceMisused is shown.
LoadFiles = Callable[[], Callable[[], None]]
Signature = tuple[tuple[int, int, int, int] | None, ...]


class WatchedFiles:
    """Files that together hold one thing, such as a certificate and its key; lives as long as its worker."""

    def __init__(self, paths: Sequence[Path], load: LoadFiles) -> None:
        """Load now, and put into use; raises ServiceMisused."""
        self.warning: str | None = None
        """What is wrong with the version that is there now."""
        self.name = str(paths[0])
        self._paths = paths
        self._load = load
        self._failed: Signature | None = None
        self._loaded = self._seen = self._signature()
        self._read()()

    def poll(self) -> None:
        """Look at the files, and put them into use if they have changed."""
        self.read_if_changed()()

    def read_if_changed(self, *, quiet: bool = False) -> Callable[[], None]:
        """Load the files if they have changed, once they are no longer being written to.

        Returns what puts them into use. Neither this nor that raises: a version that cannot be used changes nothing. A
        worker is *quiet* about it, as its parent logs the same.
        """
        info, warning = (logging.DEBUG, logging.DEBUG) if quiet else (logging.INFO, logging.WARNING)
        before, self._seen = self._seen, self._signature()
        if self._seen == self._loaded:
            if self.warning is not None:
                log.log(info, "%s is as it was when it was loaded", self.name)
            self.warning = self._failed = None
            return _nothing
        if self._seen != before or self._seen == self._failed:
            return _nothing
        try:
            return partial(self._use, self._read(), self._seen, info, warning)
        except ServiceMisused as error:
            self._refuse(error, self._seen, warning)
            return _nothing

    def _read(self) -> Callable[[], None]:
        """Load the files; raises ServiceMisused, whatever the reader raises, and for a pipe, which blocks a reader."""
        for path in self._paths:
            if path.exists() and not path.is_file():
                raise ServiceMisused(f"{path} is not a regular file; give one, because it is read again and again")
        try:
            return self._load()
        except ServiceMisused:
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def _use(self, use: Callable[[], None], version: Signature, info: int, warning: int) -> None:
        try:
            use()
        except Exception as error:  # noqa: BLE001 -- what it raises must end neither the parent nor a worker
            self._refuse(self._unusable(error), version, warning)
            return
        self._loaded, self.warning, self._failed = version, None, None
        log.log(info, "loaded %s again, because it has changed", self.name)

    def _refuse(self, error: ServiceMisused, version: Signature, warning: int) -> None:
        self._failed = version
        if self.warning != str(error):
            self.warning = str(error)
            log.log(warning, "%s; what was loaded before stays in use", error)

    def _unusable(self, error: Exception) -> ServiceMisused:
        """Return the error for what no reader expected; its own text may quote the file, so it is left out."""
        return ServiceMisused(f"{self.name} cannot be used: its content leads to {type(error).__name__}")

    def _signature(self) -> Signature:
        return tuple(map(_signature_of, self._paths))


@asynccontextmanager
async def following(watched: Sequence[WatchedFiles]) -> AsyncIterator[None]:
    """Take changes of files up until the block ends."""
    task = asyncio.create_task(_follow(watched))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(watched: Sequence[WatchedFiles]) -> None:
    while True:
        await asyncio.sleep(POLL_S)
        for each in watched:
            # In a thread, because a large file or a slow disk may hold up no request.
            use = await asyncio.to_thread(each.read_if_changed, quiet=True)
            use()


def _nothing() -> None:
    """Change nothing, as nothing has changed."""


def _signature_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
