"""What lies in Redis beside the rows: the catalogue, the inventory, and of each release its points and lists of keys.

All of it is small, and each piece lies in one slot, so that a server and a cluster keep it alike.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from stores import catalogue as catalogue_record
from stores.catalogue import Catalogue, DraftRef, ReleaseRef
from stores.errors import ReleaseConflict, StoreError
from stores.keys import Span, bounds, merged, unpack
from stores.redis.connection import Sender, role_of
from stores.redis.keys import MOVED, Keys
from stores.redis.replication import send_replicated
from stores.redis.states import check_owned
from stores.redis.url import Role
from stores.store import not_found
from stores.throttle import AdaptiveThrottle

T = TypeVar("T")

# How often the catalogue is read where no message says that it changed.
POLL_S = 1.0

# How many keys of a release are read at once: about half a millisecond of a server's only thread.
MAX_KEYS = 1000

# How many packed batches are read at once, about 100 kB.
SPANS = 64

ERASING_SHARE = 0.5

# SWAP takes the keys of the catalogue, now and in format 1; the expected version in three parts, the new record, the
# channel, and what to leave in the place of a catalogue of format 1. A user who may not publish may swap. For why it
# deletes first see `stores.redis.states`.
SWAP = """
local stored = redis.call('GET', KEYS[1])
local moves = false
if not stored then
    stored = redis.call('GET', KEYS[2])
    moves = stored
end
local version = {store_id = '', generation = 0, token = ''}
if stored then version = cjson.decode(stored) end
if version.store_id ~= ARGV[1] or version.generation ~= tonumber(ARGV[2]) or version.token ~= ARGV[3] then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4])
if moves then redis.call('SET', KEYS[2], ARGV[6]) end
redis.pcall('PUBLISH', ARGV[5], ARGV[2])
return 1
"""


class Connector(Protocol):
    """Knows which connection serves a key: a server's only one, or that to a node of a cluster."""

    async def run(self, key: str, work: Callable[[Sender], Awaitable[T]]) -> T:
        """Call *work* with that connection; raises StoreError."""
        ...

    def listening(self, on_message: Callable[[], None]) -> "Connector":
        """Return other connections to the same place, which take messages."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class Control:
    """Reads and changes that; lives as long as its store."""

    def __init__(self, connector: Connector, keys: Keys, where: str) -> None:
        self._connector = connector
        self._keys = keys
        self._where = where

    async def execute_command(self, command: bytes, key: str, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        """Send one command with one key, and return its reply; raises StoreError."""
        return await self._connector.run(key, lambda connection: connection.send_command(command, key, *args))

    async def evaluate(self, script: str, names: tuple[str, ...], *args: str | bytes | int) -> Any:  # noqa: ANN401 -- as above
        """Run a script on keys of one slot, and return what it returns; raises StoreError."""
        return await self._connector.run(
            names[0], lambda connection: connection.send_command(b"EVAL", script, len(names), *names, *args)
        )

    async def catalogue(self) -> Catalogue:
        """See the contract."""
        return await self._connector.run(self._keys.catalogue, self._read_catalogue)

    async def _read_catalogue(self, connection: Sender) -> Catalogue:
        records, time_, greeting = await asyncio.gather(
            connection.send_command(b"MGET", *self._keys.catalogues),
            connection.send_command(b"TIME"),
            _optional(connection.send_command(b"HELLO", 2)),
        )
        try:
            (record, of_format_1), (seconds, micros) = records, time_
            now, primary = int(seconds) + int(micros) / 1e6, role_of(greeting) == Role.PRIMARY
        except (TypeError, ValueError) as error:
            raise connection.lose("replied to a read of the catalogue with something else") from error
        if record is None:
            record = of_format_1
        if record is None:
            return Catalogue(now=now, primary=primary)
        return replace(catalogue_record.parse(record, now=now, where=self._where), primary=primary)

    async def changes(self, on_polled: Callable[[], None]) -> AsyncIterator[Catalogue]:
        """See the contract; a subscription, on a connection of its own, says when to read, and POLL_S at the latest.

        *on_polled* is called whenever the catalogue was read.
        """
        changed = asyncio.Event()
        subscription = self._connector.listening(changed.set)
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

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        """See the contract."""
        await self._connector.run(self._keys.catalogue, lambda connection: self.swap_by(connection, old, new))

    async def swap_by(self, connection: Sender, old: Catalogue, new: Catalogue) -> None:
        """Do the same by a connection to the server that has the catalogue."""
        names = self._keys.catalogues
        args = (*old.version, catalogue_record.dump(new), self._keys.changes, MOVED)
        if not await send_replicated(connection, b"EVAL", SWAP, len(names), *names, *args):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def incarnations(self) -> list[str]:
        """See the contract."""
        found: list[bytes] = await self.execute_command(b"SMEMBERS", self._keys.incarnations)
        return sorted(incarnation.decode() for incarnation in found)

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """See the contract; the state of the first bucket is everybody's."""
        keys = self._keys.release(draft)

        async def read(connection: Sender) -> tuple[bytes | None, bytes | None]:
            sent = connection.send_command(b"HGET", keys.points, part), connection.send_command(b"GET", keys.state)
            return await sent[0], await sent[1]

        key, state = await self._connector.run(keys.state, read)
        check_owned(draft, state)
        return None if key is None else key.decode()

    async def check_exists(self, release: ReleaseRef | DraftRef) -> None:
        """Raise ReleaseNotFound where a release has no state."""
        if not await self.execute_command(b"EXISTS", self._keys.release(release).state):
            raise not_found(release)

    async def chunks(self, release: ReleaseRef) -> AsyncIterator[list[str]]:
        """Yield the keys of a release's rows in ascending order, once each, at most MAX_KEYS at a time."""
        async for keys in merged(await self._spans(release), self._packed):
            for start in range(0, len(keys), MAX_KEYS):
                yield keys[start : start + MAX_KEYS]

    async def erase_listed(self, release: ReleaseRef, unlink: Callable[[list[str]], Awaitable[object]]) -> None:
        """Have the rows that were written of a release unlinked, batch by batch, paced."""
        throttle = AdaptiveThrottle(time.monotonic, max_share=ERASING_SHARE)
        for source in self._keys.release(release).lists:
            while (packed := await self.execute_command(b"LINDEX", source, -1)) is not None:
                keys, started = unpack(packed), time.monotonic()
                await unlink(keys)
                # By value, not RPOP: of two who erase at once, none must take a batch off that was not unlinked.
                await self.execute_command(b"LREM", source, -1, packed)
                await asyncio.sleep(throttle.pause_s(time.monotonic() - started, len(keys)))

    async def _packed(self, span: Span) -> bytes | None:
        found: bytes | None = await self.execute_command(b"LINDEX", span.source, span.place)
        return found

    async def _spans(self, release: ReleaseRef) -> list[Span]:
        """Return which keys each acknowledged batch covers: about 300 bytes for 500 rows."""
        spans = list[Span]()
        for source in self._keys.release(release).lists:
            start = 0
            while found := await self.execute_command(b"LRANGE", source, start, start + SPANS - 1):
                spans += (Span(*bounds(packed), source, start + place) for place, packed in enumerate(found))
                start += len(found)
        return spans


async def _optional(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
    """Return a reply, or None for one that the server refuses."""
    try:
        return await reply
    except StoreError:
        return None
