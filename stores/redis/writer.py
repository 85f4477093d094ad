"""Writing the rows of a draft.

A batch of rows is acknowledged by adding its packed keys to a list, and advancing the *resume point* of its part: the
last key written, from which a publish goes on after a crash. On one server a batch is a transaction; scripts take twice
the server's time. In a cluster a script writes the rows of each bucket while its state names the draft; once a replica
has them, their keys are listed and the resume point advances. The names of keys are in `hotplate.stores.redis.keys`.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import NamedTuple

from redis.exceptions import RedisError

from hotplate.base.timing import Pacer
from hotplate.stores.catalogue import DraftRef
from hotplate.stores.encoding import META, pack
from hotplate.stores.errors import ReleaseNotFound, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import Command, Session, evaluation
from hotplate.stores.redis.deployment import Deployment
from hotplate.stores.redis.errors import RowsLost, translated
from hotplate.stores.redis.keys import SEALED, Keys, state_of
from hotplate.stores.redis.replication import CONTROL_WAIT_S, wait_for_replicas
from hotplate.stores.store import Row, batches_of, sealed, taken_over
from hotplate.stores.timing import Retrier

META_POINT = "meta"  # the part of `meta` rows, which have a separate resume point

# Batch limits per server: 10,000 rows would delay readers by 10 ms.
MAX_ROWS = 500
MAX_BYTES = 1 << 20

# Largest share of time for writing. With 2,000 reads/s on two cores: 200,000 rows/s and a read p99 of 0.7 ms; without
# it, 340,000 and 1 to 3 ms.
BUSY_SHARE = 0.5

# PUT: KEYS state, rows; ARGV expected state, values. ACKNOWLEDGE: KEYS first state, list of keys, points; ARGV expected
# state, packed batch, and the resume points as fields and values. Both return the former state.
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
ACKNOWLEDGE = """
local state = redis.call('GET', KEYS[1])
if state ~= ARGV[1] then return state end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[3], unpack(ARGV, 3))
return state
"""


def check_owned(draft: DraftRef, state: bytes | None) -> None:
    """Raise ReleaseNotFound or ReleaseConflict unless *state*, as stored, is that of the draft and its writer."""
    if state is None:
        reason = "the server has lost its data, as in a restart, or another process has erased it; publish again"
        raise ReleaseNotFound(f"the draft of release {draft.id} is not in this store any more: {reason}")
    if state == SEALED:
        raise sealed(draft)
    if state != state_of(draft):
        raise taken_over(draft)


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

    def __init__(self, deployment: Deployment, keys: Keys, retrier: Retrier) -> None:
        self._deployment = deployment
        self._keys = keys
        self._retrier = retrier
        self._lock = asyncio.Lock()
        self._pacer = Pacer(BUSY_SHARE)
        self._lagging = set[tuple[str, int]]()
        """Nodes whose replicas do not keep up; not waited for before the seal."""

        self._last_acknowledged = dict[DraftRef, str]()
        """The last key that the server has acknowledged to this writer."""

        self._field = f"writer:{secrets.token_hex(4)}"
        """Where the server keeps that key; two processes may write one part, each with its own progress."""

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int) -> None:
        """Write rows of a *part* of a draft in batches, each acknowledged before the next; raises as `Store.put`.

        A part is the rows that one process of a publish writes, in ascending order of keys. The keys of each batch
        are appended to a list, and the last one is stored as the resume point of the part. `meta` rows are in no order:
        they are written last, and have a separate list of keys and a separate resume point.
        """
        names = self._keys.release(draft)
        other_rows = [row for row in rows if not row.key.startswith(META)]
        meta_rows = [row for row in rows if row.key.startswith(META)]
        batches = self._batches(other_rows, names.row_list, part)
        for batch in chain(batches, self._batches(meta_rows, names.meta_list, META_POINT)):
            await self._put(draft, batch)

    async def _put(self, draft: DraftRef, batch: Batch) -> None:
        write = self._write_by_bucket if self._keys.clustered else self._write_in_transaction
        async with self._lock:
            pause_s = await self._retrier.call(write, draft, batch)
            self._last_acknowledged[draft] = batch.last_key
            await asyncio.sleep(pause_s)

    def _batches(self, rows: Sequence[Row], list_name: str, part: int | str) -> Iterator[Batch]:
        """Yield *rows* in batches of equal size; only the last one may be smaller.

        The rows of a batch are spread over all primaries of a cluster. So a batch may be as many times larger as there
        are primaries, and still send at most MAX_ROWS rows and MAX_BYTES of values to each. *list_name* and *part* are
        those of `Batch`.
        """
        servers = len(self._deployment.primaries) or 1
        value_bytes = sum(len(row.value) for row in rows)
        batches_for_one_server = max(1.0, len(rows) / MAX_ROWS, value_bytes / MAX_BYTES)
        size = max(1, int(len(rows) / batches_for_one_server * servers))

        for batch in batches_of(rows, size):
            yield Batch.of(batch, list_name, part)

    def _points(self, batch: Batch) -> tuple[int | str, ...]:
        """Return what is stored with a batch, as fields and values: the resume point of its part and this writer's."""
        return (batch.part, batch.last_key, self._field, batch.last_key)

    def forget(self, draft: DraftRef) -> None:
        """Forget the last acknowledged key of a draft, which `check_kept` compares with that of the server."""
        self._last_acknowledged.pop(draft, None)

    async def check_kept(
        self, draft: DraftRef, session: Session, *, sending: str | None = None, watched: bool = False
    ) -> bytes | None:
        """Check that the server still has the acknowledged rows of a draft; return the draft's state.

        A server that restarted, or a replica that became primary, may have lost rows. It has then lost what it stored
        with them, too: the last key that it acknowledged to this writer. RowsLost is raised if the stored key is not
        the one that this writer remembers.

        *sending* is the last key of a batch that is being written, if any. An earlier attempt may have written it, and
        its response may have been lost, so this key is also accepted.

        If *watched*, the next transaction of the session fails if the state changes before it. The state is
        `draft:WRITER` or `sealed`, or None if it is absent; whether it is this writer's is left to the caller.
        """
        keys = self._keys.release(draft)
        commands: list[Command] = [("GET", keys.state), ("HGET", keys.points, self._field)]
        if watched:
            commands.insert(0, ("WATCH", keys.state))
        replies = await session.execute_all(*commands)
        state: bytes | None = replies[-2]
        stored_key: bytes | None = replies[-1]

        last_key = self._last_acknowledged.get(draft)
        rows_kept = last_key is None or (stored_key is not None and stored_key.decode() in (last_key, sending))
        if state == state_of(draft) and not rows_kept:
            raise RowsLost(f"{session.where} has lost rows of release {draft.id} that it had acknowledged")
        return state

    async def _write_in_transaction(self, draft: DraftRef, batch: Batch) -> float:
        """Write and acknowledge a batch by one transaction; used on a single server.

        The transaction stores the rows, appends their packed keys to the list of batches, and stores the batch's last
        key as the resume point of its part, and for `check_kept`. Nothing is stored, and StoreUnavailable is raised, if
        the draft's state changes after it was checked. Returns how many seconds to pause, so that readers are not
        delayed.
        """
        keys = self._keys.release(draft)
        row_names = keys.located([row.key for row in batch.rows]).names
        names_and_values = list[bytes]()
        for row_name, row in zip(row_names, batch.rows, strict=True):
            names_and_values += (row_name, row.value)

        async def transact(session: Session) -> float:
            # WATCH precedes the check, so EXEC stores nothing if another writer claims the draft afterwards.
            try:
                state = await self.check_kept(draft, session, sending=batch.last_key, watched=True)
                check_owned(draft, state)
            except StoreError:
                with suppress(StoreError):  # the connection may be lost
                    await session.execute("UNWATCH")  # else the next EXEC over it may fail
                raise

            started = time.monotonic()
            *_, replies = await session.execute_all(
                ("MULTI",),
                ("MSET", *names_and_values),
                ("RPUSH", batch.list_name, batch.packed_keys),
                ("HSET", keys.points, *self._points(batch)),
                ("EXEC",),
            )
            if replies is None:  # the watched state has changed
                raise StoreUnavailable(f"the state of the draft {draft.id} changed while a batch was written")
            for reply in replies:
                if isinstance(reply, RedisError):
                    raise translated(reply, session.where)

            return self._pacer.pause_s(time.monotonic() - started)

        return await self._deployment.run(keys.state, transact)

    async def _write_by_bucket(self, draft: DraftRef, batch: Batch) -> float:
        """Write the rows of each bucket, then acknowledge the batch; return how many seconds to pause."""
        pause_s = await self._write_rows_by_bucket(draft, batch.rows)
        await self._deployment.run(self._keys.release(draft).state, partial(self._acknowledge, draft, batch))
        return pause_s

    async def _write_rows_by_bucket(self, draft: DraftRef, rows: Sequence[Row]) -> float:
        """Write rows to the nodes of a cluster, and wait until a replica of each node has them.

        The rows of a release are spread over buckets, which the cluster spreads over its nodes. Each bucket has a key
        with the state of the release, and one script a bucket stores rows only while that state names the draft's
        writer; otherwise check_owned raises. Returns how many seconds to pause, so that readers are not delayed.
        """
        keys = self._keys.release(draft)
        started = time.monotonic()
        writing_s = 0.0

        row_names = keys.located([row.key for row in rows]).names
        values = dict(zip(row_names, (row.value for row in rows), strict=True))

        commands = list[Command]()
        for state_name, bucket_names in keys.by_first_state(values).items():
            bucket_values = [values[row_name] for row_name in bucket_names]
            commands.append(evaluation(PUT, (state_name, *bucket_names), state_of(draft), *bucket_values))

        async def wait_for_replica(session: Session) -> None:
            nonlocal writing_s
            writing_s = time.monotonic() - started  # of the last node, without the wait for its replica
            await self._wait_for_a_replica(session)

        for state in await self._deployment.execute_each(commands, after=wait_for_replica):
            check_owned(draft, state)  # a script replies with the state that it found, and stored nothing for another

        return self._pacer.pause_s(writing_s)

    async def _acknowledge(self, draft: DraftRef, batch: Batch, session: Session) -> None:
        """Record that a batch, whose rows a cluster has stored, is complete.

        Appends its packed keys to the list of batches, and stores its last key as the resume point of its part, by a
        script that does so only while the state names this writer. Raises ReleaseNotFound or ReleaseConflict if it does
        not, RowsLost if the server has lost rows that it acknowledged.
        """
        keys = self._keys.release(draft)
        state_before = await self.check_kept(draft, session, sending=batch.last_key)
        check_owned(draft, state_before)

        key_names = (keys.state, batch.list_name, keys.points)
        acknowledge = evaluation(ACKNOWLEDGE, key_names, state_of(draft), batch.packed_keys, *self._points(batch))
        state = await session.execute(*acknowledge)  # another writer may have claimed the draft since the check
        check_owned(draft, state)

    async def _wait_for_a_replica(self, session: Session) -> None:
        """Wait until one replica has the writes of *session*, unless those of its node do not keep up."""
        if session.node in self._lagging:
            return
        replication = await wait_for_replicas(session, wanted=1, timeout_s=CONTROL_WAIT_S)
        if replication is None or not replication.acknowledged:
            self._lagging.add(session.node)
