"""Files that are loaded again when they change, without a restart: keys, certificates, and what else an operator keeps.

They are looked at once a second, by name: a file that is replaced, written over, or reached through a link that now
leads elsewhere, as Kubernetes swaps a mounted secret, is seen alike.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from serve.errors import ServiceMisused

log = logging.getLogger(__name__)

POLL_S = 1.0
Signature = tuple[tuple[int, int, int, int] | None, ...]


class WatchedFiles:
    """Files that together hold one thing, such as a certificate and its key; lives as long as its worker."""

    def __init__(self, paths: Sequence[Path], load: Callable[[], None]) -> None:
        """Load now; *load* puts into use what the files hold, or raises ServiceMisused and changes nothing."""
        self.warning: str | None = None
        """What is wrong with the version that is there now."""
        self.name = str(paths[0])
        self._paths = paths
        self._load = load
        self._failed: Signature | None = None
        self._loaded = self._signature()
        load()

    def poll(self) -> None:
        """Look at the files, and load them where they have changed.

        What fails once may be half written; it is logged when it still fails a poll later, and once only.
        """
        seen = self._signature()
        if seen == self._loaded:
            if self.warning is not None:
                log.info("%s is as it was when it was loaded", self.name)
            self.warning = self._failed = None
            return
        try:
            self._load()
        except ServiceMisused as error:
            if seen == self._failed and self.warning != str(error):
                self.warning = str(error)
                log.warning("%s; what was loaded before stays in use", error)
            self._failed = seen
        else:
            self._loaded, self.warning, self._failed = seen, None, None
            log.info("loaded %s again, for it has changed", self.name)

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
                each.poll()
            except Exception:  # a defect in one must not keep the others from being followed
                log.exception("%s was not loaded again", each.name)


def _signature_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
