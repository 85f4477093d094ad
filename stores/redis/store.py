"""The Redis store, `redis://`, `rediss://` and `unix://`: every row a plain string, one release beside the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from stores.catalogue import Catalogue, DraftRef, ReleaseRef
from stores.errors import StoreMisused
from stores.keys import pack
from stores.redis import examination
from stores.redis.connection import Reconnector, translated
from stores.redis.control import MAX_KEYS, Control
from stores.redis.keys import Keys
from stores.redis.states import CLAIM, FORGET, REPLACE, SEALED, check_owned, state_of
from stores.redis.url import Address, parse
from stores.redis.writer import WRITING_SHARE, Writer
from stores.store import (
    Advised,
    Examined,
    Finding,
    Inventoried,
    Plan,
    Polled,
    RoomChecked,
    Row,
    Slot,
    not_found,
    sealed,
)
from stores.throttle import AdaptiveThrottle

# When a server that does not answer lookups is given up; callers bring shorter timeouts of their own.
READ_TIMEOUT_S = 1.0

# The same for everything else, the largest batches included.
TIMEOUT_S = 5.0


class RedisStore(Advised, Examined, Inventoried, Polled, RoomChecked):
    """One deployment in one database of a Redis server; an instance belongs to one event loop and process.

    Lookups, control and writing have a connection each, so that none waits behind another.
    """

    batch = 256
    """A key costs the client 0.4 µs and the server 1.1 µs (at 64: 0.9 and 1.6), and others wait for 0.3 ms at most."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._keys = Keys(address.prefix)
        self._lookups = Reconnector(address, READ_TIMEOUT_S)
        self._server = Reconnector(address, TIMEOUT_S)
        self._control = Control(self._server, self._keys, address.shown)
        self._writes = Reconnector(address, TIMEOUT_S)
        self._writer = Writer(_Transactions(self._writes, self._keys, address.shown).write, self._keys)

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        del timeout_s  # all keys of a command are answered at once; the caller's own timeout ends the wait
        if len(keys) > MAX_KEYS:
            chunks = (keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS))
            return [
                slot
                for slots in await asyncio.gather(*(self._read(release, some) for some in chunks))
                for slot in slots
            ]
        return await self._read(release, keys)

    async def _read(self, release: ReleaseRef, keys: Sequence[str]) -> list[Slot]:
        """Read at most MAX_KEYS keys, and the release's state, so that a release and a list that lack differ."""
        names = self._keys.release(release)
        try:
            rows = names.rows(keys)
        except StoreMisused:
            if len(keys) == 1:
                raise
            return await asyncio.gather(*(self._try_read(release, key) for key in keys))
        connection = self._lookups.current or await self._lookups.connection()
        values = await connection.mget(names.state, *rows)
        if values[0] is None:
            raise not_found(release)
        return values[1:]

    async def _try_read(self, release: ReleaseRef, key: str) -> Slot:
        try:
            (slot,) = await self._read(release, [key])
        except StoreMisused as error:  # the others are read all the same
            return error
        return slot

    async def catalogue(self) -> Catalogue:
        return await self._control.catalogue()

    def changes(self) -> AsyncIterator[Catalogue]:
        return self._control.changes(self._note_poll)

    def _note_poll(self) -> None:
        self.polled_at = time.monotonic()

    async def close(self) -> None:
        for reconnector in (self._lookups, self._server, self._writes):
            await reconnector.close()

    async def warnings(self) -> list[str]:
        return (await examination.measure(self._server)).warnings(self._address.shown)

    async def examine(self) -> list[Finding]:
        return await examination.examine(self._address, self._keys)

    async def incarnations(self) -> list[str]:
        return await self._control.incarnations()

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        (await examination.measure(self._server)).check(plan, self._keys.release(draft), self._address.shown)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        keys = self._keys.release(draft)
        if not await self._server.execute_command(b"EXISTS", keys.state):  # one that exists has written some of *plan*
            await self.check_room(draft, plan)
        names = self._keys.incarnations, *keys.states
        before = await self._control.evaluate(CLAIM, names, state_of(draft), draft.incarnation)
        if before == SEALED:
            raise sealed(draft)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return await self._control.resume_point(draft, part)

    async def seal(self, draft: DraftRef) -> None:
        before = await self._control.evaluate(REPLACE, self._keys.release(draft).states, state_of(draft), SEALED)
        if before != SEALED:
            check_owned(draft, before)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self._control.check_exists(release)
        names = self._keys.release(release)
        async for keys in self._control.chunks(release):
            state, *values = await self._server.execute_command(b"MGET", names.state, *names.rows(keys))
            if state is None:
                raise not_found(release)
            for key, value in zip(keys, values, strict=True):
                if value is not None:
                    yield Row(key, value)

    async def prepare(self, release: ReleaseRef) -> None:
        await self._control.check_exists(release)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        await self._control.swap(old, new)

    async def erase(self, release: ReleaseRef) -> None:
        names = self._keys.release(release)
        # First: nobody reads or writes it from here on.
        await self._server.execute_command(b"DEL", *names.states, names.points)
        await self._control.erase_listed(
            release, lambda keys: self._server.execute_command(b"UNLINK", *names.rows(keys))
        )
        await self._control.evaluate(FORGET, (self._keys.incarnations, names.state), release.incarnation)


class _Transactions:
    """Writes a batch as one transaction on the server, or nothing; lives as long as its store, on its own connection.

    That is WATCH, MULTI, MSET, RPUSH, HSET, EXEC rather than a script with the same effect: 1.2 against 2.1 µs of the
    server's only thread a row of 587 bytes, for Lua copies every value once more. The client pays 1.2 µs a row, all
    included. One is sent at a time, as a connection has one WATCH.
    """

    def __init__(self, reconnector: Reconnector, keys: Keys, where: str) -> None:
        self._reconnector = reconnector
        self._keys = keys
        self._where = where
        self._throttle = AdaptiveThrottle(time.monotonic, max_share=WRITING_SHARE)

    async def write(self, draft: DraftRef, source: str, batch: Sequence[Row], part: int | None) -> float:
        """Write one batch and return the pause after it, in seconds; tried again where the state changed meanwhile."""
        keys = self._keys.release(draft)
        pairs = list[str | bytes]()
        for name, row in zip(keys.rows([row.key for row in batch]), batch, strict=True):
            pairs += (name, row.value)
        commands: list[tuple[str | bytes | int, ...]] = [
            (b"MULTI",),
            (b"MSET", *pairs),
            (b"RPUSH", source, pack([row.key for row in batch])),
        ]
        if part is not None:
            commands.append((b"HSET", keys.points, part, max(row.key for row in batch)))
        while True:
            connection = await self._reconnector.connection()
            _, state = await asyncio.gather(
                connection.send_command(b"WATCH", keys.state), connection.send_command(b"GET", keys.state)
            )
            check_owned(draft, state)
            started = time.monotonic()
            sent = [connection.send_command(*command) for command in (*commands, (b"EXEC",))]
            *_, outcome = await asyncio.gather(*sent)
            if outcome is not None:
                for reply in outcome:
                    if isinstance(reply, Exception):
                        raise translated(reply, self._where)
                return self._throttle.pause_s(time.monotonic() - started, sum(len(row.value) for row in batch))


def open_url(url: str) -> RedisStore:
    """Open `redis://[USER:PASSWORD@]HOST:PORT/DB?prefix=NAME`, `rediss://…&ca=FILE` or `unix:///SOCKET?db=0`."""
    return RedisStore(parse(url))
