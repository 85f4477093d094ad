"""Reload files when their content changes: keys, certificates, a deny-list.

The content is read every POLL_S and compared by hash, so any way to replace a file works.
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
# Parses the files, perhaps in a thread; the returned callback applies them on the event loop. Errors are caught; only
# the text of ServiceMisused is shown, because others may quote the file.
ParseFiles = Callable[[Sequence[bytes]], Callable[[], None]]


class WatchedFiles:
    """Files loaded together, such as a certificate and its key; one instance per process."""

    def __init__(
        self, paths: Sequence[Path], parse: ParseFiles, *, max_bytes: int = MAX_BYTES, if_missing: str = ""
    ) -> None:
        """Load and apply the files; raises ServiceMisused. *if_missing* says how to create them."""
        self.warning: str | None = None
        """Why the current content is not in use."""
        self.name = str(paths[0])
        self._paths = paths
        self._parse = parse
        self._max_bytes = max_bytes
        self._if_missing = if_missing
        contents = self._read()
        self._seen = self._tried = _hash_of(contents)
        self._parsed(contents)()

    def poll(self) -> None:
        """Read the files and apply them if they have changed."""
        self.read_if_changed()()

    def read_if_changed(self, *, quiet: bool = False) -> Callable[[], None]:
        """Parse new content after two equal reads; return a callback that applies it. Neither raises.

        *quiet* logs at debug level, for workers, because their parent logs too.
        """
        info, warning = (logging.DEBUG, logging.DEBUG) if quiet else (logging.INFO, logging.WARNING)
        try:
            contents = self._read()
        except ServiceMisused as error:
            self._tried = b""  # load any content that is readable again
            self._refuse(error, warning)
            return _nothing
        before, self._seen = self._seen, _hash_of(contents)
        if self._seen == self._tried or self._seen != before:
            return _nothing
        self._tried = self._seen
        try:
            return partial(self._use, self._parsed(contents), info, warning)
        except ServiceMisused as error:
            self._refuse(error, warning)
            return _nothing

    def _read(self) -> list[bytes]:
        contents = list[bytes]()
        for path in self._paths:
            try:
                if path.exists() and not path.is_file():  # a pipe would block
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
        except Exception as error:  # noqa: BLE001 -- must not end the process
            self._refuse(self._unusable(error), warning)
            return
        self.warning = None
        log.log(info, "loaded %s again, because it has changed", self.name)

    def _refuse(self, error: ServiceMisused, warning: int) -> None:
        if self.warning != str(error):
            self.warning = str(error)
            log.log(warning, "%s; the previous version stays in use", error)

    def _unusable(self, error: Exception) -> ServiceMisused:
        return ServiceMisused(f"{self.name} cannot be used: its content leads to {type(error).__name__}")


@asynccontextmanager
async def following(watched: Sequence[WatchedFiles]) -> AsyncIterator[None]:
    """Apply changes of files until the block ends."""
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
            # A large file or a slow disk must not delay requests.
            use = await asyncio.to_thread(each.read_if_changed, quiet=True)
            use()


def _nothing() -> None:
    pass


def _hash_of(contents: Sequence[bytes]) -> bytes:
    return b"".join(map(xxh3_128_digest, contents))
