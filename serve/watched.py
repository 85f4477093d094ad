"""Files that are loaded again when they change, without a restart: keys, certificates, a deny-list.

Their content is read twice a second and compared by a hash. So it does not matter how a file is replaced, whether its
rights change, or whether it could not be read for a while.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from xxhash import xxh3_128_digest

from hotplate.serve.errors import ServiceMisused

log = logging.getLogger(__name__)

POLL_S = 0.5
MAX_BYTES = 1 << 20
# Parses the content of the files, in a thread perhaps, and returns what puts it into use, on the event loop. Its
# exceptions are caught; only the text of a ServiceMisused is shown.
ParseFiles = Callable[[Sequence[bytes]], Callable[[], None]]


class WatchedFiles:
    """Files that together hold one thing, such as a certificate and its key; one instance per process."""

    def __init__(
        self, paths: Sequence[Path], parse: ParseFiles, *, max_bytes: int = MAX_BYTES, if_missing: str = ""
    ) -> None:
        """Load now, and put into use; raises ServiceMisused. *if_missing* says how to make the files."""
        self.warning: str | None = None
        """What is wrong with the version that is there now."""
        self.name = str(paths[0])
        self._paths = paths
        self._parse = parse
        self._max_bytes = max_bytes
        self._if_missing = if_missing
        contents = self._read()
        self._seen = self._tried = _hash_of(contents)
        self._parsed(contents)()

    def poll(self) -> None:
        """Read the files, and put them into use if they have changed."""
        self.read_if_changed()()

    def read_if_changed(self, *, quiet: bool = False) -> Callable[[], None]:
        """Parse the files if they have changed, once two looks in a row find the same: writing has ended.

        Returns what puts them into use. Neither this nor that raises: a version that cannot be used changes nothing.
        *quiet* logs at the level of debugging, for workers, whose parent logs the same.
        """
        info, warning = (logging.DEBUG, logging.DEBUG) if quiet else (logging.INFO, logging.WARNING)
        try:
            contents = self._read()
        except ServiceMisused as error:
            self._tried = b""  # whatever can be read after it is new, also what was in use before
            self._refuse(error, warning)
            return _nothing
        try:
            before, self._seen = self._seen, _hash_of(contents)
            if self._seen == self._tried or self._seen != before:
                return _nothing
            self._tried = self._seen
            return partial(self._use, self._parsed(contents), info, warning)
        except ServiceMisused as error:
            self._refuse(error, warning)
            return _nothing

    def _read(self) -> list[bytes]:
        """Return the content of each file; raises ServiceMisused, also for a pipe, which blocks its reader."""
        contents = list[bytes]()
        for path in self._paths:
            try:
                if path.exists() and not path.is_file():
                    raise ServiceMisused(f"{path} is not a regular file; give one, because it is read again and again")
                with path.open("rb") as file:
                    contents.append(file.read(self._max_bytes + 1))
            except OSError as error:
                hint = self._if_missing if isinstance(error, FileNotFoundError) else ""
                raise ServiceMisused(f"{path} cannot be read: {error.strerror}{hint}") from None
            if len(contents[-1]) > self._max_bytes:
                raise ServiceMisused(f"{path} has more than {self._max_bytes} bytes")
        return contents

    def _parsed(self, contents: Sequence[bytes]) -> Callable[[], None]:
        try:
            return self._parse(contents)
        except ServiceMisused:
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def _use(self, use: Callable[[], None], info: int, warning: int) -> None:
        try:
            use()
        except Exception as error:  # noqa: BLE001 -- what it raises must end neither the parent nor a worker
            self._refuse(self._unusable(error), warning)
            return
        self.warning = None
        log.log(info, "loaded %s again, because it has changed", self.name)

    def _refuse(self, error: ServiceMisused, warning: int) -> None:
        if self.warning != str(error):
            self.warning = str(error)
            log.log(warning, "%s; what was loaded before stays in use", error)

    def _unusable(self, error: Exception) -> ServiceMisused:
        """Return the error for an exception that no parser expected, without its text, which may quote the file."""
        return ServiceMisused(f"{self.name} cannot be used: its content leads to {type(error).__name__}")


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


def _hash_of(contents: Sequence[bytes]) -> bytes:
    return b"".join(map(xxh3_128_digest, contents))
