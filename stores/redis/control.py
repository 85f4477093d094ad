"""What decides in Redis: the catalogue, and how far the parts of a draft are. Each lies in one slot."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hotplate.stores import catalogue as catalogue_record
from hotplate.stores.catalogue import Catalogue, DraftRef
from hotplate.stores.errors import ReleaseConflict, StoreError
from hotplate.stores.redis.connection import Sender, role_of
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.replication import send_replicated
from hotplate.stores.redis.states import check_owned
from hotplate.stores.redis.topology import Nodes
from hotplate.stores.redis.url import Role

# How often the catalogue is read if no message says that it changed.
POLL_S = 1.0

# SWAP takes the key of the catalogue; the expected version in three parts, the new record and the channel. A user who
# may not publish may swap. For why it deletes first see `hotplate.stores.redis.states`.
SWAP = """
local stored = redis.call('GET', KEYS[1])
local version = {store_id = '', generation = 0, token = ''}
if stored then version = cjson.decode(stored) end
if version.store_id ~= ARGV[1] or version.generation ~= tonumber(ARGV[2]) or version.token ~= ARGV[3] then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', ARGV[5], ARGV[2])
return 1
"""

# REPLACE_RECORD takes the key of the catalogue; the record that is expected, byte by byte, the new one, the channel and
# the message.
REPLACE_RECORD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
"""


class Control:
    """Reads and changes that; lives as long as its store."""

    def __init__(self, nodes: Nodes, keys: Keys) -> None:
        self._nodes = nodes
        self._keys = keys

    async def catalogue(self) -> Catalogue:
        """See the contract."""
        return await self._nodes.run(self._keys.catalogue, self._read_catalogue)

    async def _read_catalogue(self, connection: Sender) -> Catalogue:
        record, time_, greeting = await asyncio.gather(
            connection.send_command(b"GET", self._keys.catalogue),
            connection.send_command(b"TIME"),
            _optional(connection.send_command(b"HELLO", 2)),
        )
        try:
            seconds, micros = time_
            now, primary = int(seconds) + int(micros) / 1e6, role_of(greeting) == Role.PRIMARY
        except (TypeError, ValueError) as error:
            raise connection.lose("replied to a read of the catalogue with something else") from error
        if record is None:
            return Catalogue(now=now, primary=primary)
        return replace(catalogue_record.parse(record, now=now, where=self._nodes.topology.shown), primary=primary)

    async def changes(self, on_polled: Callable[[], None]) -> AsyncIterator[Catalogue]:
        """See the contract; a subscription, on a connection of its own, says when to read, and POLL_S at the latest.

        *on_polled* is called whenever the catalogue was read.
        """
        changed = asyncio.Event()
        subscription = self._nodes.listening(changed.set)
        subscribed: Sender | None = None
        seen: Catalogue | None = None

        async def subscribe(connection: Sender) -> None:
            nonlocal subscribed
            if connection is not subscribed:
                await connection.send_command(b"SUBSCRIBE", self._keys.changes)
                subscribed = connection

        try:
            while True:
                changed.clear()
                with suppress(StoreError):  # without a subscription polling is enough; the attempts back off
                    await subscription.run(self._keys.catalogue, subscribe)
                found = await self.catalogue()
                on_polled()
                if seen is None or found.version != seen.version:
                    seen = found
                    yield found
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await changed.wait()
        finally:
            await subscription.close()

    async def swap_by(self, connection: Sender, old: Catalogue, new: Catalogue) -> None:
        """Change the catalogue by a connection to the server that has it; see the contract."""
        args = (*old.version, catalogue_record.dump(new), self._keys.changes)
        if not await send_replicated(connection, b"EVAL", SWAP, 1, self._keys.catalogue, *args):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        """See the contract."""
        key, channel = self._keys.catalogue, self._keys.changes
        command = (b"EVAL", REPLACE_RECORD, 1, key, record, catalogue_record.dump(new), channel, new.generation)
        if not await self._nodes.run(key, lambda connection: send_replicated(connection, *command)):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """See the contract; the state of the first bucket is everybody's."""
        keys = self._keys.release(draft)

        async def read(connection: Sender) -> tuple[bytes | None, bytes | None]:
            sent = connection.send_command(b"HGET", keys.points, part), connection.send_command(b"GET", keys.state)
            return await sent[0], await sent[1]

        key, state = await self._nodes.run(keys.state, read)
        check_owned(draft, state)
        return None if key is None else key.decode()


async def _optional(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
    """Return a reply, or None for one that the server refuses."""
    try:
        return await reply
    except StoreError:
        return None
