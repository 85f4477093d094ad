"""A bounded stream of entries beside the catalogue, in its slot.

{PREFIX}:NAME    stream: entries with one field, the number of their format

An append may be sent twice, so readers must accept repeated entries. The stream expires as a whole when nothing was
appended for the time that its entries are kept.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from hotplate.stores.errors import StoreError
from hotplate.stores.redis.client import Command
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.sessions import Sessions
from hotplate.stores.redis.store import COMMAND_TIMEOUT_S, Deployment, deployment_of

FORMAT = b"1"
BEGIN = b"0-0"
END = b"+"
# Entries read at once.
PAGE = 1000
# How often the primary is confirmed: one that was replaced may still answer.
CONFIRM_S = 1.0


class Entry(NamedTuple):
    """An entry; the value is None if it has another format."""

    id: bytes
    value: bytes | None


class RedisStream:
    """A reader of one stream, which may also append to it; for one event loop. Its methods raise StoreError."""

    def __init__(self, name: str, deployment: Deployment) -> None:
        self.shown = deployment.servers.shown
        self._key = Keys(deployment.common.prefix).record(name)
        self._servers = deployment.servers
        self._credentials = deployment.credentials
        self._sessions = Sessions(deployment.servers, COMMAND_TIMEOUT_S)
        self._confirmed_at = time.monotonic()
        self._last = BEGIN  # of the newer entries that were read
        self._known = BEGIN  # the latest that was read or appended
        self._end: bytes | None = END  # of the older entries that are not read yet
        self.has_newer = False
        """Whether `newer` left entries for its next call."""
        if self._credentials is not None:
            self._credentials.on_renewal(self._renew)

    @property
    def has_older(self) -> bool:
        """Whether `older` has entries to read."""
        return self._end is not None

    def rewind(self) -> None:
        """Read all entries again."""
        self._end = END

    async def older(self) -> list[Entry]:
        """Return the next of the entries from before the start or `rewind`, newest first."""
        end = END if self._end is None else self._end
        until = end if end == END else b"(" + end
        (raw,) = await self._execute_all(("XREVRANGE", self._key, until, "-", "COUNT", PAGE))
        entries = _entries(raw)
        if end == END:
            self._last = self._known = entries[0].id if entries else BEGIN
        self._end = entries[-1].id if len(entries) == PAGE else None
        return entries

    async def newer(self, wait_ms: int) -> list[Entry] | None:
        """Return the next entries, oldest first, after those that were read; waits up to *wait_ms* for one.

        None if the server has lost entries, or they were deleted: `rewind` reads what is left.
        """
        if time.monotonic() > self._confirmed_at + CONFIRM_S:
            self._confirmed_at = time.monotonic()
            with suppress(StoreError):
                await self._servers.confirm()
        waiting = ("BLOCK", wait_ms) if wait_ms else ()
        known, streams = await self._execute_all(
            ("XRANGE", self._key, self._known, self._known),
            ("XREAD", "COUNT", PAGE, *waiting, "STREAMS", self._key, self._last),
        )
        if not known and self._known != BEGIN:
            return None
        entries = _entries(streams[0][1]) if streams else []
        self.has_newer = len(entries) == PAGE
        if entries:
            self._last = entries[-1].id
            self._known = max(self._known, self._last, key=_order)
        return entries

    async def append(self, values: Sequence[bytes], *, keep_s: int, most: int) -> int:
        """Append entries; return how many of the oldest were removed, because there are more than *most*.

        Entries older than *keep_s* are removed, too, as the clock of the server says. Some hundred entries beyond both
        bounds may stay, which is cheaper for the server.
        """
        oldest_ms = max(0, int(self._known.partition(b"-")[0]) - keep_s * 1000)
        added: list[Command] = [("XADD", self._key, "MINID", "~", oldest_ms, "*", FORMAT, value) for value in values]
        *ids, trimmed, _ = await self._execute_all(
            *added, ("XTRIM", self._key, "MAXLEN", "~", most), ("EXPIRE", self._key, keep_s)
        )
        self._known = max(self._known, ids[-1], key=_order)
        return int(trimmed)

    async def delete(self, entries: Sequence[Entry]) -> None:
        """Delete entries."""
        await self._execute_all(("XDEL", self._key, *(entry.id for entry in entries)))

    async def close(self) -> None:
        """Close all connections."""
        if self._credentials is not None:
            await self._credentials.close()
        await self._sessions.close()
        await self._servers.close()

    async def _execute_all(self, *commands: Command) -> list[Any]:
        return await self._sessions.run(self._key, lambda session: session.execute_all(*commands))

    async def _renew(self) -> None:
        await self._servers.renew()
        await self._sessions.renew()


def open_stream(url: str, name: str) -> RedisStream:
    """Open a stream in the Redis at a URL, without I/O; StoreMisused if it is invalid."""
    return RedisStream(name, deployment_of(url))


def _entries(raw: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    return [Entry(entry_id, fields.get(FORMAT)) for entry_id, fields in raw]


def _order(entry_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split(b"-")))
