"""Files that are loaded again when they change, without a restart: keys, certificates, a deny-list.

They are looked at twice a second, by name: a file that is replaced, written over, or reached through a link that now
leads elsewhere, as Kubernetes swaps a mounted secret, is seen alike.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from serve.errors import ServiceMisused

log = logging.getLogger(__name__)

POLL_S = 0.5
# Reads files, in a thread perhaps, and returns what puts them into use, on the event loop; raises ServiceMisused.
Load = Callable[[], Callable[[], None]]
Signature = tuple[tuple[int, int, int, int] | None, ...]


class WatchedFiles:
    """Files that together hold one thing, such as a certificate and its key; lives as long as its worker."""

    def __init__(self, paths: Sequence[Path], load: Load) -> None:
        """Load now, and put into use; raises ServiceMisused."""
        self.warning: str | None = None
        """What is wrong with the version that is there now."""
        self.name = str(paths[0])
        self._paths = paths
        self._load = load
        self._failed: Signature | None = None
        self._loaded = self._seen = self._signature()
        load()()

    def poll(self) -> None:
        """Look at the files, and put them into use where they have changed."""
        self.look()()

    def look(self, *, quiet: bool = False) -> Callable[[], None]:
        """Load the files where they have changed, once they are no longer being written to.

        Returns what puts them into use. A worker is *quiet* about it, as its parent logs the same.
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
            use = self._load()
        except ServiceMisused as error:
            self._failed = self._seen
            if self.warning != str(error):
                self.warning = str(error)
                log.log(warning, "%s; what was loaded before stays in use", error)
            return _nothing
        self._loaded, self.warning, self._failed = self._seen, None, None
        log.log(info, "loaded %s again, for it has changed", self.name)
        return use

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
            try:
                use = await asyncio.to_thread(each.look, quiet=True)  # a large one, or a slow disk, holds up no request
                use()
            except Exception:  # a defect in one must not keep the others from being followed
                log.exception("%s was not loaded again", each.name)


def _nothing() -> None:
    """Change nothing, as nothing has changed."""


def _signature_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
