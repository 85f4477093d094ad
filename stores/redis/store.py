"""The Redis store, `redis://`, `rediss://` and `unix://`: every row a plain string, one release beside the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from stores import catalogue as catalogue_record
from stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef
from stores.errors import ReleaseConflict, ReleaseNotFound
from stores.keylist import Span, bounds, overlapping, unpack
from stores.pacing import Pace
from stores.redis import watch
from stores.redis.keys import Keys
from stores.redis.link import Link
from stores.redis.memory import measure
from stores.redis.scripts import SEAL, SWAP
from stores.redis.turn import MOST_KEYS, Turn
from stores.redis.url import Address, parse
from stores.redis.writer import Writer
from stores.store import Plan, RoomChecked, Row, Slot

READ_DEADLINE_S = 1.0
"""When a server that does not answer lookups is given up; callers bring shorter ones of their own."""

DEADLINE_S = 5.0
"""The same for everything else, the largest batches included."""

ERASING = 0.5
"""The share of time that erasing may take."""

SPANS = 64
"""How many packed batches are looked at together, about 100 kB."""


class RedisStore(RoomChecked):
    """One deployment in one database of a Redis server; an instance belongs to one event loop and process.

    Lookups, control and writing have a connection each, so that none waits behind another.
    """

    batch = 256
    """A key costs the client 0.4 µs and the server 1.1 µs (at 64: 0.9 and 1.6), and others wait for 0.3 ms at most."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._keys = Keys(address.prefix)
        self._lookups = Link(address, READ_DEADLINE_S)
        self._control = Link(address, DEADLINE_S)
        self._writes = Link(address, DEADLINE_S)
        self._turn = Turn(self._lookups, self._keys)
        self._writer = Writer(self._writes, self._keys)

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        if len(keys) <= MOST_KEYS:
            return await self._turn.read(ReleaseId(release.incarnation), keys)
        parts = (keys[start : start + MOST_KEYS] for start in range(0, len(keys), MOST_KEYS))
        return [
            slot
            for slots in await asyncio.gather(
                *(self._turn.read(ReleaseId(release.incarnation), part) for part in parts)
            )
            for slot in slots
        ]

    async def catalogue(self) -> Catalogue:
        wire = await self._control.wire()
        record, (seconds, micros) = await asyncio.gather(wire.ask(b"GET", self._keys.catalogue), wire.ask(b"TIME"))
        now = int(seconds) + int(micros) / 1e6
        if record is None:
            return Catalogue(now=now)
        return catalogue_record.parse(record, now=now, where=self._address.shown)

    def changes(self) -> AsyncIterator[Catalogue]:
        return watch.changes(self._address, self._keys.changes, self.catalogue, DEADLINE_S)

    async def close(self) -> None:
        for link in (self._lookups, self._control, self._writes):
            await link.close()
        await self._turn.close()

    async def warnings(self) -> list[str]:
        return (await measure(self._control)).warnings(self._address.shown)

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        memory = await measure(self._control)
        memory.check(plan, self._keys.head(ReleaseId(draft.incarnation)), self._address.shown)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        state = self._keys.state(ReleaseId(draft.incarnation))
        if not await self._control.ask(b"EXISTS", state):  # what was let in before has part of its rows in already
            await self.check_room(draft, plan)
            await self._control.ask(b"SET", state, b"draft", b"NX")

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(ReleaseId(draft.incarnation), rows)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        await self._present(ReleaseId(draft.incarnation))
        packed = await self._control.ask(b"LINDEX", self._keys.lists(ReleaseId(draft.incarnation))[0], -1)
        return None if packed is None else bounds(packed)[1]

    async def seal(self, draft: DraftRef) -> None:
        if not await self._control.ask(b"EVAL", SEAL, 1, self._keys.state(ReleaseId(draft.incarnation))):
            raise _not_found(ReleaseId(draft.incarnation))

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self._present(ReleaseId(release.incarnation))
        head, state = self._keys.head(ReleaseId(release.incarnation)), self._keys.state(ReleaseId(release.incarnation))
        for group in overlapping(await self._spans(ReleaseId(release.incarnation))):
            packed = [await self._control.ask(b"LINDEX", span.source, span.place) for span in group]
            keys = sorted({key for batch in packed if batch is not None for key in unpack(batch)})
            for start in range(0, len(keys), MOST_KEYS):
                part = keys[start : start + MOST_KEYS]
                present, *values = await self._control.ask(b"MGET", state, *[head + key for key in part])
                if present is None:
                    raise _not_found(ReleaseId(release.incarnation))
                for key, value in zip(part, values, strict=True):
                    if value is not None:
                        yield Row(key, value)

    async def prepare(self, release: ReleaseRef) -> None:
        await self._present(ReleaseId(release.incarnation))

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        names, record = (self._keys.catalogue, self._keys.changes), catalogue_record.dump(new)
        if not await self._control.ask(b"EVAL", SWAP, 2, *names, old.store_id, old.generation, old.token, record):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def erase(self, release: ReleaseRef) -> None:
        head, pace = self._keys.head(ReleaseId(release.incarnation)), Pace(time.monotonic, most=ERASING)
        await self._control.ask(
            b"DEL", self._keys.state(ReleaseId(release.incarnation))
        )  # first: nobody reads or writes it from here on
        for source in self._keys.lists(ReleaseId(release.incarnation)):
            while (packed := await self._control.ask(b"LINDEX", source, -1)) is not None:
                keys, wire, started = unpack(packed), await self._control.wire(), time.monotonic()
                unlinked = wire.ask(b"UNLINK", *[head + key for key in keys])
                # By value, not RPOP: of two who erase at once, none must take a batch off that was not unlinked.
                await asyncio.gather(unlinked, wire.ask(b"LREM", source, -1, packed))
                await asyncio.sleep(pace.rest_s(time.monotonic() - started, len(keys)))

    async def _present(self, release: ReleaseId) -> None:
        if not await self._control.ask(b"EXISTS", self._keys.state(release)):
            raise _not_found(release)

    async def _spans(self, release: ReleaseId) -> list[Span]:
        """Return which keys each acknowledged batch reaches over: about 300 bytes for 500 rows."""
        spans = list[Span]()
        for source in self._keys.lists(release):
            start = 0
            while found := await self._control.ask(b"LRANGE", source, start, start + SPANS - 1):
                spans += (Span(*bounds(packed), source, start + place) for place, packed in enumerate(found))
                start += len(found)
        return spans


def _not_found(release: ReleaseId) -> ReleaseNotFound:
    return ReleaseNotFound(f"release {release} is not in this store")


def open_url(url: str) -> RedisStore:
    """Open `redis://[USER:PASSWORD@]HOST:PORT/DB?prefix=NAME`, `rediss://…&ca=FILE` or `unix:///SOCKET?db=0`."""
    return RedisStore(parse(url))
