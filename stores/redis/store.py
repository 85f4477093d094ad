"""The Redis store, of one server or behind sentinels: every row a plain string, one release beside the other."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from stores.catalogue import Catalogue, DraftRef, ReleaseRef, gained
from stores.errors import ReleaseNotFound, StoreError, StoreMisused, StoreUnavailable
from stores.keys import pack
from stores.redis import examination, replication
from stores.redis.connection import PipelinedConnection, Reconnector, Resolver, connected, translated
from stores.redis.control import MAX_KEYS, Control
from stores.redis.keys import Keys
from stores.redis.sentinel import Sentinels
from stores.redis.states import CLAIM, FORGET, REPLACE, SEALED, check_owned, state_of
from stores.redis.url import Address, parse, parse_sentinel
from stores.redis.writer import WRITING_SHARE, RowsLost, Writer
from stores.store import (
    Advised,
    Examined,
    Finding,
    Inventoried,
    Level,
    Plan,
    Polled,
    RoomChecked,
    Row,
    Slot,
    not_found,
    sealed,
)
from stores.throttle import AdaptiveThrottle
from stores.traces import traced_call
from stores.urls import scheme_of

log = logging.getLogger(__name__)

# When a server that does not answer lookups is given up; callers bring shorter timeouts of their own.
READ_TIMEOUT_S = 1.0

# The same for everything else, the largest batches included.
TIMEOUT_S = 5.0


class RedisStore(Advised, Examined, Inventoried, Polled, RoomChecked):
    """One deployment in one database of a Redis server; an instance belongs to one event loop and process.

    Lookups, control and writing have a connection each, so that none waits behind another. All are to the primary,
    but lookups may have another, to a replica: what that cannot answer for sure, the primary is asked.
    """

    batch = 256
    """A key costs the client 0.4 µs and the server 1.1 µs (at 64: 0.9 and 1.6), and others wait for 0.3 ms at most."""

    def __init__(self, address: Address, sentinels: Sentinels | None = None) -> None:
        """Take the address of the server; without host and port where *sentinels* know those."""
        self._address = address
        self._sentinels = sentinels
        primary: Resolver = sentinels or address
        replicas = None if sentinels is None else sentinels.replicas
        self._keys = Keys(address.prefix)
        self._replica = None if replicas is None else Reconnector(replicas, READ_TIMEOUT_S)
        self._lookups = Reconnector(primary, READ_TIMEOUT_S)
        self._server = Reconnector(primary, TIMEOUT_S)
        self._control = Control(self._server, self._keys, address.shown)
        self._writes = Reconnector(primary, TIMEOUT_S)
        self._transactions = _Transactions(self._writes, self._keys, address.shown)
        self._writer = Writer(self._transactions.write, self._keys)

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        del timeout_s  # all keys of a command are answered at once; the caller's own timeout ends the wait
        if (call := traced_call.get()) is not None:
            self._address.describe(call, "MGET")
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
        if self._replica is not None and (replica := self._replica.try_current()) is not None:
            with suppress(StoreUnavailable):
                state, *values = await replica.mget(names.state, *rows)
                if state == SEALED:  # which it received after all rows
                    return values
        connection = self._lookups.current or await self._lookups.connection()
        state, *values = await connection.mget(names.state, *rows)
        if state is None or (state != SEALED and None in values):  # what a draft lacks may yet come, or come back
            raise not_found(release)
        return values

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
        for reconnector in (self._replica, self._lookups, self._server, self._writes):
            if reconnector is not None:
                await reconnector.close()
        if self._sentinels is not None:
            await self._sentinels.close()

    async def warnings(self) -> list[str]:
        return (await examination.measure(self._server)).warnings(self._address.shown)

    async def examine(self) -> list[Finding]:
        if self._sentinels is None:
            return await examination.examine(self._address, self._keys)
        findings = await self._sentinels.examine()
        try:
            primary = await self._sentinels.resolve()
            findings += await examination.examine(primary, self._keys)
            async with connected(primary, TIMEOUT_S) as connection:
                return findings + await replication.examine(connection)
        except StoreError as error:
            return [*findings, Finding(Level.ERROR, "primary", str(error))]

    async def incarnations(self) -> list[str]:
        return await self._control.incarnations()

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        (await examination.measure(self._server)).check(plan, self._keys.release(draft), self._address.shown)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        keys = self._keys.release(draft)
        if not await self._server.execute_command(b"EXISTS", keys.state):  # one that exists has written some of *plan*
            await self.check_room(draft, plan)
        names, args = (self._keys.incarnations, *keys.states), (state_of(draft), draft.incarnation)
        connection = await self._server.connection()
        before = await replication.send_replicated(connection, b"EVAL", CLAIM, len(names), *names, *args)
        if before == SEALED:
            raise sealed(draft)
        if before is None:
            self._transactions.forget(draft)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        point = await self._control.resume_point(draft, part)
        self._transactions.forget(draft)
        return point

    async def seal(self, draft: DraftRef) -> None:
        """See the contract; replicas that follow are waited for, and what a failover could lose is logged."""
        names, connection = self._keys.release(draft).states, await self._server.connection()
        await self._transactions.check_kept(draft, connection)
        before = await connection.send_command(b"EVAL", REPLACE, len(names), *names, state_of(draft), SEALED)
        if before != SEALED:
            check_owned(draft, before)
        found = await replication.wait_for_replicas(connection)
        if found is not None and (self._sentinels is not None or found.acknowledged < found.replicas):
            for sentence in found.shortfalls(self._address.shown):
                log.warning("release %s is written; %s", draft.id, sentence)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self._control.check_exists(release)
        names = self._keys.release(release)
        async for keys in self._control.chunks(release):
            state, *values = await self._server.execute_command(b"MGET", names.state, *names.rows(keys))
            if state != SEALED:
                raise not_found(release)
            for key, value in zip(keys, values, strict=True):
                if value is not None:
                    yield Row(key, value)

    async def prepare(self, release: ReleaseRef) -> None:
        state = await self._server.execute_command(b"GET", self._keys.release(release).state)
        if state is None:
            raise not_found(release)
        if state != SEALED:
            raise ReleaseNotFound(f"{self._torn(release)}; publish it again")

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        """See the contract; what a release gains by it outlives a failover that is under way, or it is not made.

        Raises RowsLost where the server has not all of the release, as it took the place of one that had.
        """
        releases = gained(old, new)
        if releases and self._sentinels is not None:
            await self._sentinels.state(of_all=True)
        connection = await self._server.connection()
        for release in releases:
            state = await connection.send_command(b"GET", self._keys.release(release).state)
            if state not in (None, SEALED):
                raise RowsLost(self._torn(release))
        await self._control.swap_by(connection, old, new)
        if releases and self._sentinels is not None:
            await self._sentinels.settle(connection)

    def _torn(self, release: ReleaseRef) -> str:
        return f"{self._address.shown} has lost the end of release {release.id}, as a failover may lose what came last"

    async def erase(self, release: ReleaseRef) -> None:
        names, connection = self._keys.release(release), await self._server.connection()
        # First: nobody reads or writes it from here on, and where replicas are read, not there either.
        await replication.send_replicated(connection, b"DEL", *names.states, names.points, wanted=None)
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
        self._checked: PipelinedConnection | None = None
        self._points = dict[str, dict[int, str]]()
        """Of each draft by its incarnation, the last key of each part that was acknowledged here."""

    async def check_kept(self, draft: DraftRef, connection: PipelinedConnection, *sent: str) -> None:
        """Raise StoreUnavailable where rows are gone that were acknowledged, as after a failover.

        *sent* is the last key of a batch whose acknowledgement may have been lost.
        """
        if not (points := self._points.get(draft.incarnation)):
            return
        keys = self._keys.release(draft)
        state, found = await asyncio.gather(
            connection.send_command(b"GET", keys.state), connection.send_command(b"HMGET", keys.points, *points)
        )
        kept = all(
            point is not None and point.decode() in (last, *sent)
            for last, point in zip(points.values(), found, strict=True)
        )
        if state == state_of(draft) and not kept:
            raise RowsLost(f"{self._where} has lost rows of release {draft.id} that it had acknowledged")

    def forget(self, draft: DraftRef) -> None:
        """Write a draft on from where the server says, whatever it acknowledged before."""
        self._points.pop(draft.incarnation, None)

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
        last = max(row.key for row in batch)
        if part is not None:
            commands.append((b"HSET", keys.points, part, last))
        while True:
            connection = await self._reconnector.connection()
            if connection is not self._checked:  # perhaps to a server that took the place of another
                await self.check_kept(draft, connection, last)
                self._checked = connection
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
                if part is not None:
                    self._points.setdefault(draft.incarnation, {})[part] = last
                return self._throttle.pause_s(time.monotonic() - started, sum(len(row.value) for row in batch))


def open_url(url: str) -> RedisStore:
    """Open `redis://[USER:PASSWORD@]HOST:PORT/DB?prefix=NAME`, `rediss://…&ca=FILE` or `unix:///SOCKET?db=0`.

    Or `redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB?read=replica`, and `rediss+sentinel://…`.
    """
    if scheme_of(url).endswith("+sentinel"):
        behind = parse_sentinel(url)
        return RedisStore(behind.server, Sentinels(behind))
    return RedisStore(parse(url))
