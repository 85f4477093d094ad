"""Reload files when their content changes: keys, certificates, a deny-list.

The content is read every POLL_S and compared by hash, so any way to replace a file works. Each process that uses a file
follows it in a thread; the parent, which answers probes, reads files at the start only. The admin process keeps the
last valid content in shared memory, for processes that are started while the file is invalid.
"""

import asyncio
import codecs
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from xxhash import xxh3_128_digest

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.shared_memory import Records
from hotplate.serve.tasks import repeat

log = logging.getLogger(__name__)

POLL_S = 0.5
MAX_BYTES = 1 << 20
# Of msgpack, per file and for their list.
HEAD_BYTES = 16
# Parses the files and applies them by one assignment, because it may run in a thread; returns why a part of them is
# not in use, if so. Of errors, only the text of ServiceMisused is shown, because others may quote the file.
LoadFiles = Callable[..., str | None]


class WatchedFiles:
    """Files loaded together, such as a certificate and its key."""

    def __init__(
        self,
        paths: Sequence[Path],
        load: LoadFiles,
        *,
        context: Callable[[], tuple[object, ...]] = tuple,
        max_bytes: int = MAX_BYTES,
        if_missing: str = "",
    ) -> None:
        """Load the files; raises ServiceMisused. *if_missing* says how to create them.

        *load* is called with the contents, and after that with new contents and what *context* returns: again for the
        same contents when that changes.
        """
        self.warning: str | None = None
        """Why the current content, or a part of it, is not in use."""
        self.name = str(paths[0])
        self._paths = paths
        self._load = load
        self._context = context
        self._max_bytes = max_bytes
        self._if_missing = if_missing
        self._shared = Records(self.name, len(paths) * (max_bytes + HEAD_BYTES))
        """The last valid content that was loaded after the start; created before the processes."""
        contents = self._read()
        self._seen: tuple[object, ...] = (_hash_of(contents),)
        """Hash of the content at the last poll, and its context."""
        self._tried: tuple[object, ...] = self._seen
        """Those that were loaded last, or could not be loaded; empty if the files could not be read."""
        self._apply(contents)

    def catch_up(self) -> None:
        """Load the last valid content since the files were first loaded, in a process that was forked."""
        payload = self._shared.read(0)
        if payload is not None:
            contents = msgspec.msgpack.decode(payload, type=list[bytes])
            self._seen = (_hash_of(contents),)
            self._tried = self._seen
            self._apply(contents)

    def poll(self, *, leads: bool = True) -> None:
        """Read the files, and load their content if it is new; errors do not propagate.

        New content is loaded when it was the same in two polls, because a file may be read while it is being written.
        If it cannot be loaded, the reason becomes `self.warning`, and the same content is not tried again in the same
        context. One process *leads*: it shares valid content with processes that are started later, and logs; others
        log at debug level.
        """
        try:
            contents = self._read()
            context = self._context()
            version = (_hash_of(contents), *context)
            has_changed_since_poll = version != self._seen
            self._seen = version
            if has_changed_since_poll or version == self._tried:
                return

            self._tried = version
            warning = self._apply(contents, *context)
            if leads:
                self._shared.write(0, msgspec.msgpack.encode(contents))
            log.log(logging.INFO if leads else logging.DEBUG, "loaded %s again", self.name)
        except ServiceMisused as error:
            warning = f"{error}; the previous version stays in use"

        if warning is not None and warning != self.warning:
            log.log(logging.WARNING if leads else logging.DEBUG, "%s", warning)
        self.warning = warning

    def _read(self) -> list[bytes]:
        """Return the content of each file; raises ServiceMisused if one cannot be read, is no file, or is too large."""
        try:
            return [self._read_file(path) for path in self._paths]
        except ServiceMisused:
            self._tried = ()  # once the files can be read again, their content is loaded, even if it is the same
            raise

    def _read_file(self, path: Path) -> bytes:
        """Return the content of one file; raises ServiceMisused if it cannot be read, is too large or not a file."""
        try:
            if path.exists() and not path.is_file():  # a pipe would block
                raise ServiceMisused(f"{path} is not a regular file; give one, because it is read again and again")
            with path.open("rb") as file:
                content = file.read(self._max_bytes + 1)
        except OSError as error:
            hint = self._if_missing if isinstance(error, FileNotFoundError) else ""
            raise ServiceMisused(f"{path} cannot be read: {error.strerror}{hint}") from None
        if len(content) > self._max_bytes:
            raise ServiceMisused(f"{path} has more than {self._max_bytes} bytes")
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
            raise ServiceMisused(f"{path} is UTF-16; save it as UTF-8")
        return content.removeprefix(codecs.BOM_UTF8)

    def _apply(self, contents: Sequence[bytes], *context: object) -> str | None:
        try:
            return self._load(contents, *context)
        except ServiceMisused:
            raise
        except Exception as error:
            raise ServiceMisused(f"{self.name} cannot be used: its content leads to {type(error).__name__}") from error


async def catch_up(watched: Sequence[WatchedFiles]) -> None:
    """Load the last valid content, in a process that was forked."""
    for files in watched:
        await asyncio.to_thread(files.catch_up)


async def follow(watched: Sequence[WatchedFiles], *, leads: bool = False) -> None:
    """Apply changes of files, until cancelled; *leads* as for `WatchedFiles.poll`."""

    async def poll() -> None:
        for files in watched:
            # A large file or a slow disk must not delay requests.
            await asyncio.to_thread(files.poll, leads=leads)

    await repeat(poll, POLL_S, "looking for changes of files")


def _hash_of(contents: Sequence[bytes]) -> bytes:
    return b"".join(map(xxh3_128_digest, contents))
