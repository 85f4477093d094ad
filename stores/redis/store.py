"""The Redis store, `redis://`, `rediss://` and `unix://`: every row a plain string, one release beside the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from stores import catalogue as catalogue_record
from stores.catalogue import Catalogue, DraftRef, ReleaseRef
from stores.errors import ReleaseConflict, StoreError, StoreFull, StoreUnavailable
from stores.keys import META, Span, bounds, merged, pack, unpack
from stores.redis.batcher import MAX_KEYS, Batcher
from stores.redis.connection import PipelinedConnection, Reconnector
from stores.redis.keys import Keys
from stores.redis.url import Address, parse
from stores.store import Advised, Plan, RoomChecked, Row, Slot, not_found, sealed
from stores.throttle import AdaptiveThrottle

# When a server that does not answer lookups is given up; callers bring shorter timeouts of their own.
READ_TIMEOUT_S = 1.0

# The same for everything else, the largest batches included.
TIMEOUT_S = 5.0

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

# What a row takes beside its bytes, and what the allocator makes of it: within -3 and +13 % of `used_memory` for rows
# of 0 to 9,000 bytes on Redis 7.
ROW_BYTES, ALLOCATED = 80, 1.08

# The two steps that must be atomic on the server; rows are not written by a script (see `_Writer`). Each deletes before
# it sets: a script that has written is not stopped by `maxmemory`, and deleting counts as writing. A full server must
# still be able to give a draft up, or nothing would ever free its memory.
#
# SWAP takes the keys of catalogue and channel; the expected version in three parts, and the new record. A user who may
# not publish may swap.
SWAP = """
local stored = redis.call('GET', KEYS[1])
local version = {store_id = '', generation = 0, token = ''}
if stored then version = cjson.decode(stored) end
if version.store_id ~= ARGV[1] or version.generation ~= tonumber(ARGV[2]) or version.token ~= ARGV[3] then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', KEYS[2], ARGV[2])
return 1
"""

# SEAL takes the key of a release's state.
SEAL = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], 'sealed')
return 1
"""


class RedisStore(Advised, RoomChecked):
    """One deployment in one database of a Redis server; an instance belongs to one event loop and process.

    Lookups, control and writing have a connection each, so that none waits behind another.
    """

    batch = 256
    """A key costs the client 0.4 µs and the server 1.1 µs (at 64: 0.9 and 1.6), and others wait for 0.3 ms at most."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._keys = Keys(address.prefix)
        self._lookups = Reconnector(address, READ_TIMEOUT_S)
        self._control = Reconnector(address, TIMEOUT_S)
        self._writes = Reconnector(address, TIMEOUT_S)
        self._batcher = Batcher(self._lookups, self._keys)
        self._writer = _Writer(self._writes, self._keys)

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        del timeout_s  # all keys of a command are answered at once; the caller's own timeout ends the wait
        if len(keys) <= MAX_KEYS:
            return await self._batcher.read(release, keys)
        chunks = (keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS))
        replies = await asyncio.gather(*(self._batcher.read(release, chunk) for chunk in chunks))
        return [slot for slots in replies for slot in slots]

    async def catalogue(self) -> Catalogue:
        connection = await self._control.connection()
        record, (seconds, micros) = await asyncio.gather(
            connection.send_command(b"GET", self._keys.catalogue), connection.send_command(b"TIME")
        )
        now = int(seconds) + int(micros) / 1e6
        if record is None:
            return Catalogue(now=now)
        return catalogue_record.parse(record, now=now, where=self._address.shown)

    async def changes(self) -> AsyncIterator[Catalogue]:
        """See the contract; a subscription, on a connection of its own, says when to read, and POLL_S at the latest."""
        changed = asyncio.Event()
        subscription = Reconnector(self._address, TIMEOUT_S, on_message=changed.set)
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
                if seen is None or found.version != seen.version:
                    seen = found
                    yield found
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await changed.wait()
        finally:
            await subscription.close()

    async def close(self) -> None:
        for reconnector in (self._lookups, self._control, self._writes):
            await reconnector.close()
        await self._batcher.close()

    async def warnings(self) -> list[str]:
        return (await measure(self._control)).warnings(self._address.shown)

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        (await measure(self._control)).check(plan, self._keys.head(draft.incarnation), self._address.shown)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        state = self._keys.state(draft.incarnation)
        if not await self._control.execute_command(b"EXISTS", state):  # a draft that exists has written some of *plan*
            await self.check_room(draft, plan)
            await self._control.execute_command(b"SET", state, b"draft", b"NX")

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        await self._check_exists(draft.release)
        key = await self._control.execute_command(b"HGET", self._keys.points(draft.incarnation), part)
        return None if key is None else key.decode()

    async def seal(self, draft: DraftRef) -> None:
        if not await self._control.execute_command(b"EVAL", SEAL, 1, self._keys.state(draft.incarnation)):
            raise not_found(draft)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self._check_exists(release)
        head, state = self._keys.head(release.incarnation), self._keys.state(release.incarnation)
        async for keys in merged(await self._spans(release), self._packed):
            for start in range(0, len(keys), MAX_KEYS):
                chunk = keys[start : start + MAX_KEYS]
                exists, *values = await self._control.execute_command(b"MGET", state, *[head + key for key in chunk])
                if exists is None:
                    raise not_found(release)
                for key, value in zip(chunk, values, strict=True):
                    if value is not None:
                        yield Row(key, value)

    async def prepare(self, release: ReleaseRef) -> None:
        await self._check_exists(release)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        names, record = (self._keys.catalogue, self._keys.changes), catalogue_record.dump(new)
        if not await self._control.execute_command(b"EVAL", SWAP, 2, *names, *old.version, record):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def erase(self, release: ReleaseRef) -> None:
        head, throttle = self._keys.head(release.incarnation), AdaptiveThrottle(time.monotonic, max_share=ERASING_SHARE)
        names = self._keys.state(release.incarnation), self._keys.points(release.incarnation)
        await self._control.execute_command(b"DEL", *names)  # first: nobody reads or writes it from here on
        for source in self._keys.lists(release.incarnation):
            while (packed := await self._control.execute_command(b"LINDEX", source, -1)) is not None:
                keys, connection, started = unpack(packed), await self._control.connection(), time.monotonic()
                unlinked = connection.send_command(b"UNLINK", *[head + key for key in keys])
                # By value, not RPOP: of two who erase at once, none must take a batch off that was not unlinked.
                await asyncio.gather(unlinked, connection.send_command(b"LREM", source, -1, packed))
                await asyncio.sleep(throttle.pause_s(time.monotonic() - started, len(keys)))

    async def _check_exists(self, release: ReleaseRef) -> None:
        if not await self._control.execute_command(b"EXISTS", self._keys.state(release.incarnation)):
            raise not_found(release)

    async def _packed(self, span: Span) -> bytes | None:
        found: bytes | None = await self._control.execute_command(b"LINDEX", span.source, span.place)
        return found

    async def _spans(self, release: ReleaseRef) -> list[Span]:
        """Return which keys each acknowledged batch covers: about 300 bytes for 500 rows."""
        spans = list[Span]()
        for source in self._keys.lists(release.incarnation):
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

    def __init__(self, reconnector: Reconnector, keys: Keys) -> None:
        self._reconnector = reconnector
        self._keys = keys
        self._lock = asyncio.Lock()  # a connection has one WATCH
        self._throttle = AdaptiveThrottle(time.monotonic, max_share=WRITING_SHARE)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft, in order; raises as `Store.put` does."""
        meta = [row for row in rows if row.key.startswith(META)]
        others = [row for row in rows if not row.key.startswith(META)] if meta else rows
        for source, of, point in zip(self._keys.lists(draft.incarnation), (others, meta), (part, None), strict=True):
            for batch in _bounded(of):
                async with self._lock:
                    await asyncio.sleep(await self._write_with_retries(draft, source, batch, point))

    async def _write_with_retries(self, draft: DraftRef, source: str, batch: Sequence[Row], part: int | None) -> float:
        give_up_at = time.monotonic() + RETRY_FOR_S
        while True:
            try:
                return await self._write(draft, source, batch, part)
            except StoreUnavailable:
                if time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _write(self, draft: DraftRef, source: str, batch: Sequence[Row], part: int | None) -> float:
        """Write one batch and return the pause after it, in seconds; tried again where the state changed meanwhile."""
        head, state = self._keys.head(draft.incarnation), self._keys.state(draft.incarnation)
        pairs = list[str | bytes]()
        for key, value in batch:
            pairs += (head + key, value)
        commands: list[tuple[str | bytes | int, ...]] = [
            (b"MULTI",),
            (b"MSET", *pairs),
            (b"RPUSH", source, pack([row.key for row in batch])),
        ]
        if part is not None:
            commands.append((b"HSET", self._keys.points(draft.incarnation), part, max(row.key for row in batch)))
        while True:
            connection = await self._reconnector.connection()
            _, found = await asyncio.gather(
                connection.send_command(b"WATCH", state), connection.send_command(b"GET", state)
            )
            if found is None:
                raise not_found(draft)
            if found != b"draft":
                raise sealed(draft)
            started = time.monotonic()
            sent = [connection.send_command(*command) for command in (*commands, (b"EXEC",))]
            *_, outcome = await asyncio.gather(*sent)
            if outcome is not None:
                return self._throttle.pause_s(time.monotonic() - started, sum(len(row.value) for row in batch))


@dataclass(frozen=True, slots=True)
class Memory:
    """A server's memory, in bytes: what it uses, its own limit (0: none), and what its machine has (0: unknown)."""

    used: int
    maxmemory: int
    machine: int
    policy: str

    def check(self, plan: Plan, head: str, where: str) -> None:
        """Raise StoreFull, with the numbers, where *plan* does not fit into what is left."""
        needed = int((plan.payload_bytes + plan.rows * (len(head) + ROW_BYTES)) * ALLOCATED)
        limit = self.maxmemory or self.machine
        if limit and self.used + needed > limit:
            raise StoreFull(
                f"the release needs about {needed / 1e6:,.1f} MB in {where}, which has a limit of "
                f"{limit / 1e6:,.1f} MB and uses {self.used / 1e6:,.1f} MB; raise maxmemory, prune old releases, "
                f"or publish shorter lists"
            )

    def warnings(self, where: str) -> list[str]:
        """Return a sentence where lists could vanish. `volatile-*` cannot touch them, for they have no expiry."""
        if not self.maxmemory or not self.policy.startswith("allkeys-"):
            return []
        sentence = f"{where} has the eviction policy {self.policy}, which drops lists in silence once memory is short"
        return [f"{sentence}; set maxmemory-policy to noeviction"]


async def measure(reconnector: Reconnector) -> Memory:
    """Read it from the server, in one command; raises StoreError."""
    found: bytes = await reconnector.execute_command(b"INFO", b"memory")
    fields = dict(line.split(":", 1) for line in found.decode().splitlines() if ":" in line)
    return Memory(
        used=int(fields["used_memory"]),
        maxmemory=int(fields.get("maxmemory", 0)),
        machine=int(fields.get("total_system_memory", 0)),
        policy=fields.get("maxmemory_policy", "noeviction"),
    )


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
    """Open `redis://[USER:PASSWORD@]HOST:PORT/DB?prefix=NAME`, `rediss://…&ca=FILE` or `unix:///SOCKET?db=0`."""
    return RedisStore(parse(url))
