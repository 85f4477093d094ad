"""Writing the rows of a draft.

On one server a batch is a transaction; scripts take twice the server's time. In a cluster a script writes the rows of
each bucket while its state names the draft; once a replica has them, their keys are listed and the resume point
advances. The names of keys are in `hotplate.stores.redis.keys`.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from redis.exceptions import RedisError

from hotplate.stores.catalogue import DraftRef
from hotplate.stores.encoding import META, pack
from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import Command, Session, translated
from hotplate.stores.redis.keys import SEALED, Keys, state_of
from hotplate.stores.redis.servers import CONTROL_WAIT_S, wait_for_replicas
from hotplate.stores.redis.sessions import Sessions, evaluation
from hotplate.stores.store import Row, not_found, sealed, taken_over
from hotplate.stores.timing import Pacer, Retrier

META_POINT = "meta"

# Batch limits per server: 10,000 rows would delay readers by 10 ms.
MAX_ROWS = 500
MAX_BYTES = 1 << 20

# Largest share of time for writing. With 2,000 reads/s on two cores: 200,000 rows/s and a read p99 of 0.7 ms; without
# it, 340,000 and 1 to 3 ms.
BUSY_SHARE = 0.5

# PUT: KEYS state, rows; ARGV expected state, values. NOTE: KEYS first state, list of keys, points; ARGV expected state,
# packed batch, part, point. Both return the state.
PUT = """
local state = redis.call('GET', KEYS[1])
if state ~= ARGV[1] then return state end
local pairs = {}
for place = 2, #KEYS do
    pairs[2 * place - 3] = KEYS[place]
    pairs[2 * place - 2] = ARGV[place]
end
redis.call('MSET', unpack(pairs))
return state
"""
NOTE = """
local state = redis.call('GET', KEYS[1])
if state ~= ARGV[1] then return state end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
return state
"""


def check_owned(draft: DraftRef, state: bytes | None) -> None:
    """Raise if *state* is not that of the draft and its writer."""
    if state is None:
        raise not_found(draft)
    if state == SEALED:
        raise sealed(draft)
    if state != state_of(draft):
        raise taken_over(draft)


class RowsLost(StoreUnavailable):
    """Acknowledged rows are gone; resume the publish."""

    permanent = True


class Batch(NamedTuple):
    """Rows written together, their list of keys, and their resume point."""

    rows: Sequence[Row]
    source: str
    point: int | str
    last: str
    packed: bytes

    @classmethod
    def of(cls, rows: Sequence[Row], source: str, point: int | str) -> "Batch":
        """Pack the keys of rows; StoreMisused for invalid Unicode."""
        keys = [row.key for row in rows]
        try:
            return cls(rows, source, point, max(keys), pack(keys))
        except (UnicodeEncodeError, TypeError) as error:  # TypeError is orjson's
            raise StoreMisused("a key is not valid Unicode text") from error


class Writer:
    """Puts batches one at a time, paced to spare readers."""

    def __init__(self, sessions: Sessions, keys: Keys, retrier: Retrier) -> None:
        self._sessions = sessions
        self._keys = keys
        self._retrier = retrier
        self._lock = asyncio.Lock()
        self._pacer = Pacer(BUSY_SHARE)
        self._alone = set[tuple[str, int]]()
        """Nodes whose replicas do not keep up; not waited for before the seal."""
        self._points = dict[DraftRef, dict[int | str, str]]()
        """Last acknowledged key by draft and part."""
        self._checked: object = None

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft in order; raises as `Store.put`."""
        keys, meta_keys = self._keys.release(draft).lists
        meta = [row for row in rows if row.key.startswith(META)]
        if meta:
            rows = [row for row in rows if not row.key.startswith(META)]
        for batch in self._batches(rows, keys, part):
            await self._put(draft, batch)
        for batch in self._batches(meta, meta_keys, META_POINT):
            await self._put(draft, batch)

    async def _put(self, draft: DraftRef, batch: Batch) -> None:
        write = self._write_by_step if self._keys.clustered else self._write_at_once
        async with self._lock:
            pause_s = await self._retrier.call(partial(write, draft, batch))
            self._points.setdefault(draft, {})[batch.point] = batch.last
            await asyncio.sleep(pause_s)

    def _batches(self, rows: Sequence[Row], source: str, point: int | str) -> Iterator[Batch]:
        """Yield batches of equally many rows, within the limits of a server each."""
        servers = len(self._sessions.servers.primaries) or 1
        batches = max(1.0, len(rows) / MAX_ROWS, sum(len(row.value) for row in rows) / MAX_BYTES)
        step = max(1, int(len(rows) / batches * servers))
        for start in range(0, len(rows), step):
            yield Batch.of(rows[start : start + step], source, point)

    def forget(self, draft: DraftRef) -> None:
        """Forget the resume points of a draft."""
        self._points.pop(draft, None)

    async def check_kept(self, draft: DraftRef, session: Session, *sent: str, watched: bool = False) -> bytes | None:
        """Return the draft's state, which is *watched* from then on; RowsLost if acknowledged rows are gone.

        *sent*: last key of a batch that may have been written without acknowledgement. With it, rows are checked on new
        connections only: on the same one another writer may have advanced the resume point.
        """
        keys, points = self._keys.release(draft), self._points.get(draft, {})
        if sent and session.identity is self._checked:
            points = {}
        state: bytes | None
        stored: list[bytes | None]
        watch = [("WATCH", keys.state)] if watched else []
        *_, state, stored = await session.execute_all(*watch, ("GET", keys.state), ("HMGET", keys.points, "", *points))
        kept = all(
            point is not None and point.decode() in (last, *sent)
            for last, point in zip(points.values(), stored[1:], strict=True)
        )
        if state == state_of(draft) and not kept:
            raise RowsLost(f"{session.where} has lost rows of release {draft.id} that it had acknowledged")
        self._checked = session.identity
        return state

    async def _write_at_once(self, draft: DraftRef, batch: Batch) -> float:
        keys = self._keys.release(draft)
        names, pairs = keys.rows([row.key for row in batch.rows]), list[str | bytes]()
        for name, row in zip(names, batch.rows, strict=True):
            pairs += (name, row.value)

        async def transact(session: Session) -> float:
            outcome = None
            while outcome is None:
                check_owned(draft, await self.check_kept(draft, session, batch.last, watched=True))
                started = time.monotonic()
                *_, outcome = await session.execute_all(
                    ("MULTI",),
                    ("MSET", *pairs),
                    ("RPUSH", batch.source, batch.packed),
                    ("HSET", keys.points, batch.point, batch.last),
                    ("EXEC",),
                )
            for reply in outcome:
                if isinstance(reply, RedisError):
                    raise translated(reply, session.where)
            return self._pacer.pause_s(time.monotonic() - started)

        return await self._sessions.run(keys.state, transact)

    async def _write_by_step(self, draft: DraftRef, batch: Batch) -> float:
        """Write the rows of each bucket, then list their keys and advance the resume point."""
        pause_s = await self._put_by_step(draft, batch.rows)
        await self._sessions.run(self._keys.release(draft).state, partial(self._note, draft, batch))
        return pause_s

    async def _put_by_step(self, draft: DraftRef, rows: Sequence[Row]) -> float:
        """Write rows to the nodes and a replica of each; return the pause that the writing calls for."""
        keys = self._keys.release(draft)
        started = time.monotonic()
        writing_s = 0.0
        names, _ = keys.located([row.key for row in rows])
        values = dict(zip(names, (row.value for row in rows), strict=True))

        def put(state: str, of_step: list[bytes]) -> Command:
            return evaluation(PUT, (state, *of_step), state_of(draft), *(values[name] for name in of_step))

        async def replicate(session: Session) -> None:
            nonlocal writing_s
            writing_s = time.monotonic() - started
            await self._replicate(session)

        commands = [put(state, of_step) for state, of_step in keys.by_step(values).items()]
        for state in await self._sessions.execute_each(commands, then=replicate):
            check_owned(draft, state)
        return self._pacer.pause_s(writing_s)

    async def _note(self, draft: DraftRef, batch: Batch, session: Session) -> None:
        keys = self._keys.release(draft)
        names = keys.state, batch.source, keys.points
        check_owned(draft, await self.check_kept(draft, session, batch.last))
        command = evaluation(NOTE, names, state_of(draft), batch.packed, batch.point, batch.last)
        check_owned(draft, await session.execute(*command))

    async def _replicate(self, session: Session) -> None:
        if session.node in self._alone:
            return
        replication = await wait_for_replicas(session, wanted=1, timeout_s=CONTROL_WAIT_S)
        if replication is None or not replication.acknowledged:
            self._alone.add(session.node)
