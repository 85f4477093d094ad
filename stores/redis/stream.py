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
from hotplate.stores.redis.deployment import Deployment
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.routing import CommandRouter, evaluation
from hotplate.stores.redis.store import deployment_of
from hotplate.stores.store import Observer

FORMAT = b"1"
BEGIN = b"0-0"
END = b"+"
# Entries read at once.
PAGE = 1000
# Most entries of a stream's node in the server, by its option `stream-node-max-entries`.
NODE = 100
# How often the primary is confirmed: one that was replaced may still answer.
CONFIRM_S = 1.0
# Fills the last node of a stream with deleted entries, unless the stream is missing: later entries get other nodes. The
# first command deletes nothing; after it, a full server does not refuse the others.
FILL = f"""
redis.call('XDEL', KEYS[1], '0-1')
for _ = 1, {NODE} do
  local filler = redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', '{FORMAT.decode()}', '')
  if not filler then return end
  redis.call('XDEL', KEYS[1], filler)
end
"""
# Moves entries, each with its id and its value, to the end of a stream; returns the last new id, if any. Entries that
# are gone were trimmed, or moved by another service that erases at the same time: they get no copy.
MOVE = f"""
local last = false
for at = 1, #ARGV, 2 do
  if redis.call('XDEL', KEYS[1], ARGV[at]) == 1 then
    last = redis.call('XADD', KEYS[1], '*', '{FORMAT.decode()}', ARGV[at + 1])
  end
end
return last
"""


class Entry(NamedTuple):
    """An entry; the value is None if it has another format."""

    id: bytes
    value: bytes | None

    @property
    def added_at(self) -> float:
        """When it was appended, by the clock of the server: Unix time in seconds."""
        milliseconds, _ = _order(self.id)
        return milliseconds / 1000


class RedisStream:
    """A reader of one stream, which may also append to it; for one event loop. Its methods raise StoreError."""

    def __init__(self, name: str, deployment: Deployment) -> None:
        self.shown = deployment.shown
        self._key = Keys(deployment.common.prefix).record(name)
        self._deployment = deployment
        self._router = CommandRouter(deployment)
        self._confirmed_at = time.monotonic()
        self._last_read = BEGIN
        """Id of the newest entry that was read, after which `newer` goes on."""

        self._last_known = BEGIN
        """Id of the newest entry that was read or appended; if the server lacks it, it has lost entries."""

        self._older_end: bytes | None = END
        """Id before which `older` goes on; None once it has read all entries."""

        self.has_newer = False
        """Whether `newer` left entries for its next call."""

    @property
    def has_older(self) -> bool:
        """Whether `older` has entries to read."""
        return self._older_end is not None

    def rewind(self) -> None:
        """Read all entries again."""
        self._older_end = END

    async def older(self) -> list[Entry]:
        """Return the next page of the entries that the stream had at the start or at `rewind`, the newest first.

        `has_older` says whether a further call has any. The first call sets where `newer` begins.
        """
        end = END if self._older_end is None else self._older_end
        until = end if end == END else b"(" + end  # an exclusive bound
        (raw,) = await self._execute_all(("XREVRANGE", self._key, until, "-", "COUNT", PAGE))
        entries = _entries(raw)

        if end == END:
            newest = entries[0].id if entries else BEGIN
            self._last_read = newest
            self._last_known = newest
        self._older_end = entries[-1].id if len(entries) == PAGE else None
        return entries

    async def newer(self, wait_ms: int) -> list[Entry] | None:
        """Return the next entries, oldest first, after those that were read; waits up to *wait_ms* for one.

        Returns None if the newest known entry is gone: the server has lost entries, as after a failover, or they were
        deleted. Then `rewind` makes `older` read what is left. After a full page, `has_newer` is true.
        """
        if time.monotonic() > self._confirmed_at + CONFIRM_S:
            self._confirmed_at = time.monotonic()
            with suppress(StoreError):
                await self._deployment.confirm_primary()

        waiting = ("BLOCK", wait_ms) if wait_ms else ()  # BLOCK 0 would wait forever
        known_entry, streams = await self._execute_all(
            ("XRANGE", self._key, self._last_known, self._last_known),
            ("XREAD", "COUNT", PAGE, *waiting, "STREAMS", self._key, self._last_read),
        )
        if not known_entry and self._last_known != BEGIN:
            return None

        entries = _entries(streams[0][1]) if streams else []  # XREAD returns pairs of a stream and its entries
        self.has_newer = len(entries) == PAGE
        if entries:
            self._last_read = entries[-1].id
            self._last_known = max(self._last_known, self._last_read, key=_order)
        return entries

    async def append(self, values: Sequence[bytes], *, keep_s: int, most: int) -> int:
        """Append entries; return how many of the oldest were removed, because there are more than *most*.

        Entries older than *keep_s* seconds before the newest known one are removed, too. Some hundred entries beyond
        both bounds may stay, which is cheaper for the server. The stream expires after *keep_s* without an append.
        """
        # An id begins with the server's time, so the age of entries is counted by its clock.
        newest_ms, _ = _order(self._last_known)
        oldest_ms = max(0, newest_ms - keep_s * 1000)
        additions: list[Command] = [
            ("XADD", self._key, "MINID", "~", oldest_ms, "*", FORMAT, value) for value in values
        ]

        *ids, trimmed, _ = await self._execute_all(
            *additions, ("XTRIM", self._key, "MAXLEN", "~", most), ("EXPIRE", self._key, keep_s)
        )
        self._last_known = max(self._last_known, ids[-1], key=_order)
        return int(trimmed)

    async def erase(self, entries: Sequence[Entry]) -> None:
        """Delete entries, also from the memory and the snapshots of the server.

        Redis stores a stream in nodes of at most NODE entries. XDEL only marks an entry as deleted; its bytes stay
        until all entries of its node are deleted. So the other entries of its node are moved: copied to the end of the
        stream, where readers see them again, and deleted.
        """
        await self._execute_all(evaluation(FILL, [self._key]))  # so that the copies are in other nodes
        neighbours = await self._neighbours(entries)

        moves = list[Command]()
        for start in range(0, len(neighbours), NODE):
            ids_and_values = list[bytes]()
            for neighbour_id, value in neighbours[start : start + NODE]:
                ids_and_values += (neighbour_id, value)
            moves.append(evaluation(MOVE, [self._key], *ids_and_values))

        deletion: Command = ("XDEL", self._key, *(entry.id for entry in entries))
        *copied_ids, _ = await self._execute_all(*moves, deletion)
        for last_id in copied_ids:
            if last_id is not None:
                self._last_known = max(self._last_known, last_id, key=_order)

    async def _neighbours(self, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
        """Return ids and values of the entries that may share a node with one of *entries*, in order of their ids.

        A node, the unit in which the server stores a stream, has at most NODE entries. So these are up to NODE entries
        before and after each of *entries*, which are left out themselves, as are entries in another format.
        """
        ids = {entry.id for entry in entries}
        values = dict[bytes, bytes]()
        for entry in entries:
            until_entry, from_entry = await self._execute_all(
                ("XREVRANGE", self._key, entry.id, "-", "COUNT", NODE),
                ("XRANGE", self._key, entry.id, "+", "COUNT", NODE),
            )
            if not from_entry or from_entry[0][0] != entry.id:
                continue  # another service has erased it
            for neighbour in _entries([*until_entry, *from_entry]):
                if neighbour.id not in ids and neighbour.value is not None:
                    values[neighbour.id] = neighbour.value
        return sorted(values.items(), key=lambda id_and_value: _order(id_and_value[0]))

    async def close(self) -> None:
        """Close all connections."""
        await self._deployment.close()

    async def _execute_all(self, *commands: Command) -> list[Any]:
        return await self._router.execute_all(self._key, *commands)


def open_stream(url: str, name: str, observer: Observer | None = None) -> RedisStream:
    """Open a stream in the Redis at a URL, without I/O; StoreMisused if it is invalid.

    *observer* counts failures to get or renew tokens.
    """
    return RedisStream(name, deployment_of(url, observer))


def _entries(raw: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    """Return the entries in a server's reply, pairs of an id and fields."""
    return [Entry(entry_id, fields.get(FORMAT)) for entry_id, fields in raw]


def _order(entry_id: bytes) -> tuple[int, int]:
    """Return an id, such as `1795202475000-0`, as milliseconds of the server's clock and a number, to compare it."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
