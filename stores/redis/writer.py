"""Writing the rows of a draft.

A batch of rows is acknowledged by adding its packed keys to a list, and advancing the *resume point* of its part: the
last key written, from which a publish goes on after a crash. On one server a batch is a transaction; scripts take twice
the server's time. In a cluster a script writes the rows of each bucket while its state names the draft; once a replica
has them, their keys are listed and the resume point advances. The names of keys are in `hotplate.stores.redis.keys`.
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
from hotplate.stores.redis.deployment import CONTROL_WAIT_S, wait_for_replicas
from hotplate.stores.redis.keys import SEALED, Keys, state_of
from hotplate.stores.redis.routing import CommandRouter, evaluation
from hotplate.stores.store import Row, not_found, sealed, taken_over
from hotplate.stores.timing import Pacer, Retrier

META_POINT = "meta"  # the part of `meta` rows, which have a resume point of their own

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
    """Raise ReleaseNotFound or ReleaseConflict unless *state*, as stored, is that of the draft and its writer."""
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
    """Rows that are written and acknowledged together."""

    rows: Sequence[Row]
    list_name: str
    """Of the list that their packed keys are added to."""

    part: int | str
    """The part whose resume point advances; META_POINT for `meta` rows."""

    last_key: str
    packed_keys: bytes

    @classmethod
    def of(cls, rows: Sequence[Row], list_name: str, part: int | str) -> "Batch":
        """Pack the keys of rows; StoreMisused for invalid Unicode."""
        keys = [row.key for row in rows]
        try:
            return cls(rows, list_name, part, last_key=max(keys), packed_keys=pack(keys))
        except (UnicodeEncodeError, TypeError) as error:  # TypeError is orjson's
            raise StoreMisused("a key is not valid Unicode text") from error


class Writer:
    """Puts batches one at a time, paced to spare readers."""

    def __init__(self, router: CommandRouter, keys: Keys, retrier: Retrier) -> None:
        self._router = router
        self._keys = keys
        self._retrier = retrier
        self._lock = asyncio.Lock()
        self._pacer = Pacer(BUSY_SHARE)
        self._lagging = set[tuple[str, int]]()
        """Nodes whose replicas do not keep up; not waited for before the seal."""

        self._points = dict[DraftRef, dict[int | str, str]]()
        """Last acknowledged key by draft and part."""

        self._checked: object = None
        """The identity of the session over which `check_kept` last compared them."""

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a draft in order; raises as `Store.put`."""
        names = self._keys.release(draft)
        meta_rows = [row for row in rows if row.key.startswith(META)]
        if meta_rows:
            rows = [row for row in rows if not row.key.startswith(META)]
        for batch in self._batches(rows, names.row_list, part):
            await self._put(draft, batch)
        for batch in self._batches(meta_rows, names.meta_list, META_POINT):
            await self._put(draft, batch)

    async def _put(self, draft: DraftRef, batch: Batch) -> None:
        write = self._write_by_bucket if self._keys.clustered else self._write_in_transaction
        async with self._lock:
            pause_s = await self._retrier.call(partial(write, draft, batch))
            self._points.setdefault(draft, {})[batch.part] = batch.last_key
            await asyncio.sleep(pause_s)

    def _batches(self, rows: Sequence[Row], list_name: str, part: int | str) -> Iterator[Batch]:
        """Yield batches of equally many rows, which keep the limits if they are spread evenly over the servers."""
        servers = len(self._router.deployment.primaries) or 1
        batches_per_server = max(1.0, len(rows) / MAX_ROWS, sum(len(row.value) for row in rows) / MAX_BYTES)
        size = max(1, int(len(rows) / batches_per_server * servers))
        for start in range(0, len(rows), size):
            yield Batch.of(rows[start : start + size], list_name, part)

    def forget(self, draft: DraftRef) -> None:
        """Forget the resume points of a draft."""
        self._points.pop(draft, None)

    async def check_kept(self, draft: DraftRef, session: Session, *sent: str, watched: bool = False) -> bytes | None:
        """Return the draft's state, which is *watched* from then on; RowsLost if acknowledged rows are gone.

        Rows are gone if a stored resume point is not the one that was acknowledged. *sent* is the last key of a batch
        that may have been written without acknowledgement. With it, rows are checked on new connections only: on the
        same one another writer may have advanced the resume point.
        """
        keys = self._keys.release(draft)
        points = self._points.get(draft, {})
        if sent and session.identity is self._checked:
            points = {}
        state: bytes | None
        stored: list[bytes | None]
        watch = [("WATCH", keys.state)] if watched else []
        read_points = ("HMGET", keys.points, "", *points)  # HMGET needs a field, so "" comes first
        *_, state, stored = await session.execute_all(*watch, ("GET", keys.state), read_points)
        kept = all(
            point is not None and point.decode() in (last_key, *sent)
            for last_key, point in zip(points.values(), stored[1:], strict=True)
        )
        if state == state_of(draft) and not kept:
            raise RowsLost(f"{session.where} has lost rows of release {draft.id} that it had acknowledged")
        self._checked = session.identity
        return state

    async def _write_in_transaction(self, draft: DraftRef, batch: Batch) -> float:
        """Write and acknowledge a batch by one transaction; return the pause that the writing calls for."""
        keys = self._keys.release(draft)
        names = keys.rows([row.key for row in batch.rows])
        pairs = list[str | bytes]()
        for name, row in zip(names, batch.rows, strict=True):
            pairs += (name, row.value)

        async def transact(session: Session) -> float:
            outcome = None
            while outcome is None:  # again after a change of the watched state
                check_owned(draft, await self.check_kept(draft, session, batch.last_key, watched=True))
                started = time.monotonic()
                *_, outcome = await session.execute_all(
                    ("MULTI",),
                    ("MSET", *pairs),
                    ("RPUSH", batch.list_name, batch.packed_keys),
                    ("HSET", keys.points, batch.part, batch.last_key),
                    ("EXEC",),
                )
            for reply in outcome:
                if isinstance(reply, RedisError):
                    raise translated(reply, session.where)
            return self._pacer.pause_s(time.monotonic() - started)

        return await self._router.run(keys.state, transact)

    async def _write_by_bucket(self, draft: DraftRef, batch: Batch) -> float:
        """Write the rows of each bucket, then acknowledge the batch; return the pause that the writing calls for."""
        pause_s = await self._put_by_bucket(draft, batch.rows)
        await self._router.run(self._keys.release(draft).state, partial(self._acknowledge, draft, batch))
        return pause_s

    async def _put_by_bucket(self, draft: DraftRef, rows: Sequence[Row]) -> float:
        """Write rows to the nodes and a replica of each; return the pause that the writing calls for."""
        keys = self._keys.release(draft)
        started = time.monotonic()
        writing_s = 0.0
        names = keys.located([row.key for row in rows]).names
        values = dict(zip(names, (row.value for row in rows), strict=True))

        def put(state: str, bucket: list[bytes]) -> Command:
            return evaluation(PUT, (state, *bucket), state_of(draft), *(values[name] for name in bucket))

        async def replicate(session: Session) -> None:
            nonlocal writing_s
            writing_s = time.monotonic() - started  # without the wait for replicas
            await self._wait_for_a_replica(session)

        commands = [put(state, bucket) for state, bucket in keys.by_first_state(values).items()]
        for state in await self._router.execute_each(commands, after=replicate):
            check_owned(draft, state)
        return self._pacer.pause_s(writing_s)

    async def _acknowledge(self, draft: DraftRef, batch: Batch, session: Session) -> None:
        """List the keys of a batch, and advance the resume point of its part."""
        keys = self._keys.release(draft)
        names = (keys.state, batch.list_name, keys.points)
        check_owned(draft, await self.check_kept(draft, session, batch.last_key))
        command = evaluation(NOTE, names, state_of(draft), batch.packed_keys, batch.part, batch.last_key)
        check_owned(draft, await session.execute(*command))

    async def _wait_for_a_replica(self, session: Session) -> None:
        """Wait until one replica has the writes of *session*, unless those of its node do not keep up."""
        if session.node in self._lagging:
            return
        replication = await wait_for_replicas(session, wanted=1, timeout_s=CONTROL_WAIT_S)
        if replication is None or not replication.acknowledged:
            self._lagging.add(session.node)
