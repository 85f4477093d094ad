"""A bounded log of entries beside the catalogue, in its slot.

{PREFIX}:NAME    sorted set: entries, with their positions as scores

A position is the time of the append in microseconds since 1970, by the clock of the server; each is larger than those
before it. An entry is in the log once, so appending it again changes nothing. The log expires as a whole when it is not
trimmed for the time that its entries are kept.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from hotplate.stores.errors import StoreError
from hotplate.stores.redis.client import Command, evaluation
from hotplate.stores.redis.deployment import Deployment
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.store import deployment_of
from hotplate.stores.store import Observer

# Before the first entry.
BEGIN = 0
SECOND_US = 1_000_000
# Entries read at once.
PAGE = 1000
# How often the primary is confirmed: one that was replaced may still answer.
CONFIRM_S = 1.0
# Returns 1 for each appended entry, 0 for one that the log has already.
APPEND = """
local newest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
local now = redis.call('TIME')
local position = math.max(now[1] * 1000000 + now[2], tonumber(newest[2] or 0))
local appended = {}
for at = 1, #ARGV do
  position = position + 1
  appended[#appended + 1] = redis.call('ZADD', KEYS[1], 'NX', string.format('%.0f', position), ARGV[at])
end
return appended
"""


class Entry(NamedTuple):
    """An entry and its position."""

    value: bytes
    position: int

    @property
    def added_at(self) -> float:
        """When it was appended, by the clock of the server: Unix time in seconds."""
        return self.position / SECOND_US


class EntryLog:
    """A log of entries; for one event loop. Its methods raise StoreError."""

    def __init__(self, name: str, deployment: Deployment) -> None:
        self.shown = deployment.shown
        self._key = Keys(deployment.common.prefix).record(name)
        self._deployment = deployment
        self._confirmed_at = time.monotonic()

    async def before(self, position: int | None) -> list[Entry]:
        """Return up to PAGE entries before *position*, or the newest ones for None, the newest first."""
        start = "+inf" if position is None else f"({position}"
        (page,) = await self._execute_all(self._page(start, "-inf", "REV"))
        return _entries(page)

    async def after(self, position: int) -> list[Entry] | None:
        """Return up to PAGE entries after *position*, that of an entry or BEGIN, the oldest first.

        Returns None if the entry at *position* is gone: the server has lost entries, as after a failover, or it was
        removed.
        """
        if time.monotonic() > self._confirmed_at + CONFIRM_S:
            self._confirmed_at = time.monotonic()
            with suppress(StoreError):
                await self._deployment.confirm_primary()

        # The count comes last: if the entry is there after the read, the server had lost nothing before it.
        page, count = await self._execute_all(
            self._page(f"({position}", "+inf"), ("ZCOUNT", self._key, position, position)
        )
        if position != BEGIN and not count:
            return None
        return _entries(page)

    async def append(self, values: Sequence[bytes]) -> list[int]:
        """Append entries in one step; return 1 for each entry, 0 if the log had it already."""
        appended: list[int]
        (appended,) = await self._execute_all(evaluation(APPEND, [self._key], *values))
        return appended

    async def trim(self, newest: int, *, keep_s: int, most: int) -> int:
        """Remove entries that are *keep_s* seconds older than the position *newest*, and the oldest above *most*.

        Returns the number of the latter. The log expires after *keep_s*.
        """
        oldest = newest - keep_s * SECOND_US
        _, removed, _ = await self._execute_all(
            ("ZREMRANGEBYSCORE", self._key, "-inf", f"({oldest}"),
            ("ZREMRANGEBYRANK", self._key, 0, -most - 1),
            ("EXPIRE", self._key, keep_s),
        )
        return int(removed)

    async def close(self) -> None:
        """Close all connections."""
        await self._deployment.close()

    def _page(self, start: str, stop: str, *order: str) -> Command:
        return ("ZRANGE", self._key, start, stop, "BYSCORE", *order, "LIMIT", 0, PAGE, "WITHSCORES")

    async def _execute_all(self, *commands: Command) -> list[Any]:
        return await self._deployment.execute_all(self._key, *commands)


def open_entry_log(url: str, name: str, observer: Observer | None = None) -> EntryLog:
    """Open a log in the Redis at a URL, without I/O; StoreMisused if it is invalid.

    *observer* counts failures to get or renew tokens.
    """
    return EntryLog(name, deployment_of(url, observer))


def _entries(page: Sequence[bytes]) -> list[Entry]:
    """Return the entries in a server's reply, in which a score follows each value."""
    return [Entry(value, int(score)) for value, score in zip(page[::2], page[1::2], strict=True)]
