"""The Redis store, of one server or behind sentinels: every row a plain string, one release beside the other."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from stores import catalogue as catalogue_record
from stores.catalogue import Catalogue, DraftRef, ReleaseRef
from stores.errors import ReleaseConflict, StoreError, StoreMisused, StoreUnavailable
from stores.keys import META, Span, bounds, merged, pack, unpack
from stores.redis import examination, replication
from stores.redis.connection import PipelinedConnection, Reconnector, Resolver, connected, role_of, translated
from stores.redis.keys import MOVED, Keys
from stores.redis.sentinel import Sentinels
from stores.redis.url import Address, Role, parse, parse_sentinel
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
    taken_over,
)
from stores.throttle import AdaptiveThrottle
from stores.urls import scheme_of

log = logging.getLogger(__name__)

# When a server that does not answer lookups is given up; callers bring shorter timeouts of their own.
READ_TIMEOUT_S = 1.0

# The same for everything else, the largest batches included.
TIMEOUT_S = 5.0

# How many keys one command carries: about half a millisecond of the server's only thread.
MAX_KEYS = 1000

# How often the catalogue is read where no message says that it changed.
POLL_S = 1.0

# How much one command writes; ten thousand rows are slower, and keep readers waiting for 10 ms.
MAX_ROWS, MAX_BYTES = 500, 1 << 20

# The share of time that writing may take. At 2,000 reads a second beside it on two cores: 200,000 rows a second and a
# p99 of 0.7 ms; with all of the time, 340,000 and 1 to 3 ms; without a publish, 0.14 ms.
WRITING_SHARE = 0.5
ERASING_SHARE = 0.5

# How long a batch is tried again while the server restarts or another one takes over; what was written stays.
RETRY_FOR_S, RETRY_PAUSE_S = 10.0, 0.1

# How many packed batches are read at once, about 100 kB.
SPANS = 64

# The state of a release that takes no more rows; that of a draft is `draft:WRITER`.
SEALED = b"sealed"

# The steps that must be atomic on the server; rows are not written by a script (see `_Writer`). Where there may be
# something to replace, each deletes before it sets: a script that has written is not stopped by `maxmemory`, and
# deleting counts as writing. A full server must still be able to give a draft up, or nothing would free its memory.
#
# SWAP takes the keys of the catalogue, now and in format 1; the expected version in three parts, the new record, the
# channel, and what to leave in the place of a catalogue of format 1. A user who may not publish may swap.
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

# CLAIM takes the set of incarnations and the keys of a release's states; the state to set, and the incarnation. It
# returns the state before; one that is sealed stays.
CLAIM = """
local state = redis.call('GET', KEYS[2])
if state == 'sealed' then return state end
local pairs = {}
for place = 2, #KEYS do
    pairs[2 * place - 3] = KEYS[place]
    pairs[2 * place - 2] = ARGV[1]
end
if state then redis.call('DEL', unpack(KEYS, 2)) end
redis.call('MSET', unpack(pairs))
redis.call('SADD', KEYS[1], ARGV[2])
return state
"""

# SEAL takes the keys of a release's states, and the state that is expected. It returns the state before.
SEAL = """
local state = redis.call('GET', KEYS[1])
if state ~= ARGV[1] then return state end
local pairs = {}
for place = 1, #KEYS do
    pairs[2 * place - 1] = KEYS[place]
    pairs[2 * place] = 'sealed'
end
redis.call('DEL', unpack(KEYS))
redis.call('MSET', unpack(pairs))
return state
"""

# FORGET takes the set of incarnations, and the first of a release's states; the incarnation. A late writer may have
# claimed again what was erased, and must be found by the next prune.
FORGET = """
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SREM', KEYS[1], ARGV[1]) end
return 1
"""


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
        self._primary: Resolver = sentinels or address
        replicas = None if sentinels is None else sentinels.replicas
        self._keys = Keys(address.prefix)
        self._replica = None if replicas is None else Reconnector(replicas, READ_TIMEOUT_S)
        self._lookups = Reconnector(self._primary, READ_TIMEOUT_S)
        self._control = Reconnector(self._primary, TIMEOUT_S)
        self._writes = Reconnector(self._primary, TIMEOUT_S)
        self._writer = _Writer(self._writes, self._keys, address.shown)

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
        connection = await self._control.connection()
        names = self._keys.catalogue, self._keys.catalogue_of_format_1
        records, time_, greeting = await asyncio.gather(
            connection.send_command(b"MGET", *names),
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
        return replace(catalogue_record.parse(record, now=now, where=self._address.shown), primary=primary)

    async def changes(self) -> AsyncIterator[Catalogue]:
        """See the contract; a subscription, on a connection of its own, says when to read, and POLL_S at the latest."""
        changed = asyncio.Event()
        subscription = Reconnector(self._primary, TIMEOUT_S, on_message=changed.set)
        subscribed: PipelinedConnection | None = None
        seen: Catalogue | None = None
        try:
            while True:
                changed.clear()
                with suppress(StoreError):  # without a subscription polling is enough; the attempts back off
                    connection = await subscription.connection()
                    if connection is not subscribed:
                        await connection.send_command(b"SUBSCRIBE", self._keys.changes)
                        subscribed = connection
                found = await self.catalogue()
                self.polled_at = time.monotonic()
                if seen is None or found.version != seen.version:
                    seen = found
                    yield found
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await changed.wait()
        finally:
            await subscription.close()

    async def close(self) -> None:
        for reconnector in (self._replica, self._lookups, self._control, self._writes):
            if reconnector is not None:
                await reconnector.close()
        if self._sentinels is not None:
            await self._sentinels.close()

    async def warnings(self) -> list[str]:
        return (await examination.measure(self._control)).warnings(self._address.shown)

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
        found: list[bytes] = await self._control.execute_command(b"SMEMBERS", self._keys.incarnations)
        return sorted(incarnation.decode() for incarnation in found)

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        (await examination.measure(self._control)).check(plan, self._keys.release(draft), self._address.shown)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        keys = self._keys.release(draft)
        if not await self._control.execute_command(b"EXISTS", keys.state):  # one that exists has written some of *plan*
            await self.check_room(draft, plan)
        names, args = (self._keys.incarnations, *keys.states), (_state(draft), draft.incarnation)
        before = await self._control_replicated(b"EVAL", CLAIM, len(names), *names, *args)
        if before == SEALED:
            raise sealed(draft)
        if before is None:
            self._writer.forget(draft)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        keys, connection = self._keys.release(draft), await self._control.connection()
        key, state = await asyncio.gather(
            connection.send_command(b"HGET", keys.points, part), connection.send_command(b"GET", keys.state)
        )
        _check_owned(draft, state)
        self._writer.forget(draft)
        return None if key is None else key.decode()

    async def seal(self, draft: DraftRef) -> None:
        """See the contract; replicas that follow are waited for, and what a failover could lose is logged."""
        names, connection = self._keys.release(draft).states, await self._control.connection()
        await self._writer.check_kept(draft, connection)
        before = await connection.send_command(b"EVAL", SEAL, len(names), *names, _state(draft))
        if before != SEALED:
            _check_owned(draft, before)
        found = await replication.wait_for_replicas(connection)
        if found is not None and (self._sentinels is not None or found.acknowledged < found.replicas):
            for sentence in found.shortfalls(self._address.shown):
                log.warning("release %s is written; %s", draft.id, sentence)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self._check_exists(release)
        names = self._keys.release(release)
        async for keys in merged(await self._spans(release), self._packed):
            for start in range(0, len(keys), MAX_KEYS):
                chunk = keys[start : start + MAX_KEYS]
                state, *values = await self._control.execute_command(b"MGET", names.state, *names.rows(chunk))
                if state != SEALED:
                    raise not_found(release)
                for key, value in zip(chunk, values, strict=True):
                    if value is not None:
                        yield Row(key, value)

    async def prepare(self, release: ReleaseRef) -> None:
        await self._check_exists(release)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        names = self._keys.catalogue, self._keys.catalogue_of_format_1
        args = (*old.version, catalogue_record.dump(new), self._keys.changes, MOVED)
        if not await self._control_replicated(b"EVAL", SWAP, len(names), *names, *args):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def erase(self, release: ReleaseRef) -> None:
        names, throttle = self._keys.release(release), AdaptiveThrottle(time.monotonic, max_share=ERASING_SHARE)
        # First: nobody reads or writes it from here on, and where replicas are read, not there either.
        await self._control_replicated(b"DEL", *names.states, names.points, wanted=None)
        for source in names.lists:
            while (packed := await self._control.execute_command(b"LINDEX", source, -1)) is not None:
                keys, connection, started = unpack(packed), await self._control.connection(), time.monotonic()
                unlinked = connection.send_command(b"UNLINK", *names.rows(keys))
                # By value, not RPOP: of two who erase at once, none must take a batch off that was not unlinked.
                await asyncio.gather(unlinked, connection.send_command(b"LREM", source, -1, packed))
                await asyncio.sleep(throttle.pause_s(time.monotonic() - started, len(keys)))
        index = self._keys.incarnations
        await self._control.execute_command(b"EVAL", FORGET, 2, index, names.state, release.incarnation)

    async def _control_replicated(self, *args: str | bytes | int, wanted: int | None = 1) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        """Send a command, and wait a while for *wanted* replicas, or all, to have its effect; return its reply.

        StoreUnavailable where the primary is replaced meanwhile: whether the next one has it, is for others to see.
        """
        connection = await self._control.connection()
        reply = await connection.send_command(*args)
        await replication.wait_for_replicas(connection, wanted=wanted, timeout_s=replication.CONTROL_WAIT_S)
        return reply

    async def _check_exists(self, release: ReleaseRef) -> None:
        if not await self._control.execute_command(b"EXISTS", self._keys.release(release).state):
            raise not_found(release)

    async def _packed(self, span: Span) -> bytes | None:
        found: bytes | None = await self._control.execute_command(b"LINDEX", span.source, span.place)
        return found

    async def _spans(self, release: ReleaseRef) -> list[Span]:
        """Return which keys each acknowledged batch covers: about 300 bytes for 500 rows."""
        spans = list[Span]()
        for source in self._keys.release(release).lists:
            start = 0
            while found := await self._control.execute_command(b"LRANGE", source, start, start + SPANS - 1):
                spans += (Span(*bounds(packed), source, start + place) for place, packed in enumerate(found))
                start += len(found)
        return spans


class _Writer:
    """Puts batches, one at a time, at a rate that readers bear; lives as long as its store, on its own connection.

    Each batch is one transaction on the server, or nothing: WATCH, MULTI, MSET, RPUSH, HSET, EXEC rather than a script
    with the same effect: 1.2 against 2.1 µs of the server's only thread a row of 587 bytes, for Lua copies every value
    once more. The client pays 1.2 µs a row, all included.
    """

    def __init__(self, reconnector: Reconnector, keys: Keys, where: str) -> None:
        self._reconnector = reconnector
        self._keys = keys
        self._where = where
        self._lock = asyncio.Lock()  # a connection has one WATCH
        self._throttle = AdaptiveThrottle(time.monotonic, max_share=WRITING_SHARE)
        self._checked: PipelinedConnection | None = None
        self._points = dict[str, dict[int, str]]()
        """Of each draft by its incarnation, the last key of each part that was acknowledged here."""

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft, in order; raises as `Store.put` does."""
        meta = [row for row in rows if row.key.startswith(META)]
        others = [row for row in rows if not row.key.startswith(META)] if meta else rows
        for source, of, point in zip(self._keys.release(draft).lists, (others, meta), (part, None), strict=True):
            for batch in _bounded(of):
                async with self._lock:
                    await asyncio.sleep(await self._write_with_retries(draft, source, batch, point))

    async def _write_with_retries(self, draft: DraftRef, source: str, batch: Sequence[Row], part: int | None) -> float:
        give_up_at = time.monotonic() + RETRY_FOR_S
        while True:
            try:
                return await self._write(draft, source, batch, part)
            except StoreUnavailable as error:
                if time.monotonic() > give_up_at or isinstance(error, _RowsLost):
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

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
        if state == _state(draft) and not kept:
            raise _RowsLost(f"{self._where} has lost rows of release {draft.id} that it had acknowledged")

    def forget(self, draft: DraftRef) -> None:
        """Write a draft on from where the server says, whatever it acknowledged before."""
        self._points.pop(draft.incarnation, None)

    async def _write(self, draft: DraftRef, source: str, batch: Sequence[Row], part: int | None) -> float:
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
            _check_owned(draft, state)
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


class _RowsLost(StoreUnavailable):
    """Rows are gone that were acknowledged: to write them again, the publish must go on from its resume point."""


def _state(draft: DraftRef) -> bytes:
    """Return the state of a draft that is its writer's."""
    return b"draft:" + draft.writer.encode()


def _check_owned(draft: DraftRef, state: bytes | None) -> None:
    """Raise what *state* says, unless that the draft is its writer's."""
    if state is None:
        raise not_found(draft)
    if state == SEALED:
        raise sealed(draft)
    if state != _state(draft):
        raise taken_over(draft)


async def _optional(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
    """Return a reply, or None for one that the server refuses."""
    try:
        return await reply
    except StoreError:
        return None


def _bounded(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    start = size = 0
    for place, row in enumerate(rows):
        row_bytes = len(row.value)
        if place > start and (place - start == MAX_ROWS or size + row_bytes > MAX_BYTES):
            yield rows[start:place]
            start, size = place, 0
        size += row_bytes
    if start < len(rows):
        yield rows[start:]


def open_url(url: str) -> RedisStore:
    """Open `redis://[USER:PASSWORD@]HOST:PORT/DB?prefix=NAME`, `rediss://…&ca=FILE` or `unix:///SOCKET?db=0`.

    Or `redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB?read=replica`, and `rediss+sentinel://…`.
    """
    if scheme_of(url).endswith("+sentinel"):
        behind = parse_sentinel(url)
        return RedisStore(behind.server, Sentinels(behind))
    return RedisStore(parse(url))
