"""The Redis store, on one server, behind Sentinel or in a cluster.

A release has 256 buckets, each in one slot with its own state. Changes that are atomic on one server are ordered steps
in a cluster:

create    The first state decides the writer. The others are replaced by compare-and-set, each read before the first is
          checked again, so a replaced writer cannot claim them.
put       See `hotplate.stores.redis.writer`.
seal      The first state is sealed, which ends claims, then the others, each after its rows: a node that lost rows has
          lost its state, too.

Scripts delete before they set, because `maxmemory` does not stop a script after a write, even a delete, and a full
server must still be able to abandon a draft.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

from hotplate.stores import catalogue as catalogue_record
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef, newly_committed
from hotplate.stores.errors import PartUnavailable, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.redis import examination
from hotplate.stores.redis.connection import VALUES, PipelinedConnection, Redirected, Sender, is_primary
from hotplate.stores.redis.topology import (
    CONTROL_WAIT_S,
    SEAL_WAIT_S,
    Nodes,
    OnlyServer,
    RedisNode,
    Sentinels,
    Topology,
    wait_for_replicas,
)
from hotplate.stores.redis.url import RedisAddress, parse, parse_cluster, parse_sentinel
from hotplate.stores.redis.writer import BUCKETS, SEALED, Keys, RowsLost, Writer, check_owned, state_of, unsealed
from hotplate.stores.store import (
    Diagnosed,
    Finding,
    Level,
    Plan,
    ReplicatedReader,
    Row,
    RowEraser,
    Slot,
    catalogue_changed,
    not_found,
    sealed,
    traced_call,
)
from hotplate.stores.timing import Deadlines, Retrier
from hotplate.stores.urls import scheme_of

READ_TIMEOUT_S = 1.0  # callers pass shorter ones for lookups
TIMEOUT_S = 5.0

# Time limits of retries of batches; in a cluster, which elects replicas after 15 s, also of create, seal and erase.
RETRY_FOR_S = 10.0
CLUSTER_RETRY_FOR_S = 30.0
POLL_S = 1.0

# REPLACE: KEYS in one slot; ARGV new value of all, `if` or `unless`, values of the first key (empty: absent) that allow
# or forbid it. Returns the previous value.
REPLACE = """
local state, is_listed = redis.call('GET', KEYS[1]), false
for place = 3, #ARGV do is_listed = is_listed or (state or '') == ARGV[place] end
if is_listed ~= (ARGV[2] == 'if') then return state end
if state then redis.call('DEL', unpack(KEYS)) end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1]) end
return state
"""

_Replies = asyncio.Future[list[Slot]]


class ServerLookups:
    """Reads rows and the release's state by one MGET."""

    def __init__(self, keys: Keys, nodes: Nodes) -> None:
        self._keys = keys
        self._nodes = nodes

    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[Slot]:
        """See `Reader.get_many`; the caller applies *timeout_s*."""
        del timeout_s
        names = self._keys.release(release)
        rows: Sequence[str | bytes]
        try:
            rows = names.rows(keys)
        except UnicodeEncodeError:
            rows, _ = names.located(keys)
        servers = self._nodes.topology
        if not servers.loaded:
            await servers.load()
        server = self._nodes.at(servers.primaries[0])
        try:
            connection = server.current or await server.connection()
            try:
                state, *values = await connection.mget(names.state, *rows)
            except StoreUnavailable:
                if connection.error is None:
                    raise
                state, *values = await (await server.connection()).mget(names.state, *rows)
        except StoreUnavailable:
            servers.schedule_refresh()
            raise
        if state is None or (state != SEALED and None in values):  # rows missing from a draft may still arrive
            raise not_found(release)
        return values


class BucketLost(ReleaseNotFound, PartUnavailable):
    """A bucket is missing or not sealed; others may be whole, so no circuit opens."""

    permanent = True


class ClusterLookups:
    """Reads from the nodes that own the keys; a failing node fails only its keys."""

    def __init__(self, keys: Keys, nodes: Nodes) -> None:
        self._keys = keys
        self._nodes = nodes
        self._deadlines = Deadlines[tuple[_Replies, ...]](_cancel)

    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[Slot]:
        """See `Reader.get_many`; a list counts as absent only if its bucket is sealed."""
        until_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        names = self._keys.release(release)
        if not keys and await self._nodes.execute_command(b"GET", names.state) is None:
            raise not_found(release)
        rows, buckets = names.located(keys)
        slots = await self._read(rows, [names.slots[bucket] for bucket in buckets], until_s)
        if None in slots:
            absent = sorted({bucket for bucket, slot in zip(buckets, slots, strict=True) if slot is None})
            states = [names.raw_heads[bucket] + b"@state" for bucket in absent]
            found = await self._read(states, [names.slots[bucket] for bucket in absent], until_s)
            by_bucket = dict(zip(absent, found, strict=True))
            for place, bucket in enumerate(buckets):
                if slots[place] is None and (state := by_bucket[bucket]) != SEALED:
                    lost = not_found(release) if state is None else unsealed(release, 1, BUCKETS)
                    slots[place] = state if isinstance(state, StoreError) else BucketLost(str(lost))
        if slots and all(isinstance(slot, StoreError) for slot in slots):
            gone = next((slot for slot in slots if isinstance(slot, ReleaseNotFound)), slots[0])
            raise cast("StoreError", gone)
        return slots

    async def _read(self, names: Sequence[bytes], slots: Sequence[int], until_s: float | None) -> list[Slot]:
        """Read values by name and slot until *until_s* (loop clock); a failed or late one is an error.

        Raises StoreError if the topology is unknown.
        """
        topology = self._nodes.topology
        if not topology.loaded:
            await topology.load()
        owners, others = topology.owners(slots), list[int]()
        if len(owners) == 1 and owners[0] is not None:  # in two thirds of the time of the general way
            found = await self._receive_from_one(owners[0], names, until_s, others)
        else:
            found = await self._receive_from_many(owners, names, until_s, others)
        if others:
            values = await asyncio.gather(*(self._read_one(names[place], until_s) for place in others))
            for place, value in zip(others, values, strict=True):
                found[place] = value
        return found

    def _send(self, node: RedisNode, names: Sequence[bytes]) -> tuple[PipelinedConnection | None, _Replies]:
        server = self._nodes.at(node)
        if (connection := server.current) is not None:
            return connection, connection.get_each(names)

        async def send_later() -> list[Slot]:
            return await (await server.connection()).get_each(names)

        return None, asyncio.create_task(send_later())

    async def _receive_from_one(
        self, node: RedisNode, names: Sequence[bytes], until_s: float | None, others: list[int]
    ) -> list[Slot]:
        connection, replies = self._send(node, names)
        pending = (replies,)
        due = None if until_s is None else self._deadlines.add(pending, until_s)
        try:
            values = await self._values(replies, len(names))
        finally:
            if due is not None:
                due.discard(pending)
        if VALUES.issuperset(map(type, values)):
            return values
        return self._failed(values, connection, range(len(names)), others)

    async def _receive_from_many(
        self, owners: Sequence[RedisNode | None], names: Sequence[bytes], until_s: float | None, others: list[int]
    ) -> list[Slot]:
        """Read values from their *owners*; add the positions to *others* that have none, or were redirected or lost."""
        by_node = dict[RedisNode | None, list[int]]()
        for place, node in enumerate(owners):
            if (places := by_node.get(node)) is not None:
                places.append(place)
            else:
                by_node[node] = [place]
        others += by_node.pop(None, ())
        sent = [
            (places, *self._send(node, [names[place] for place in places])) for node, places in by_node.items() if node
        ]
        pending = tuple([replies for _, _, replies in sent])
        found = list[Slot]([None]) * len(names)
        due = None if until_s is None else self._deadlines.add(pending, until_s)
        try:
            for places, connection, replies in reversed(sent):  # the last mostly replies last
                values = await self._values(replies, len(places))
                if not VALUES.issuperset(map(type, values)):
                    values = self._failed(values, connection, places, others)
                for place, value in zip(places, values, strict=True):
                    found[place] = value
        finally:
            if due is not None:
                due.discard(pending)
            for replies in pending:
                if not replies.cancel() and not replies.cancelled():
                    replies.exception()  # mark as retrieved
        return found

    async def _values(self, replies: _Replies, count: int) -> list[Slot]:
        """Return the values of one node, or its error for each."""
        try:
            return await replies
        except StoreError as error:
            return [error] * count
        except asyncio.CancelledError:
            if not replies.cancelled() or (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return [self._late()] * count

    def _failed(
        self, values: list[Slot], connection: PipelinedConnection | None, places: Sequence[int], others: list[int]
    ) -> list[Slot]:
        """Return *values* as errors of their keys; add the positions to *others* that were redirected or lost."""
        lost = Redirected if connection is None or connection.error is None else StoreUnavailable
        others += [place for place, value in zip(places, values, strict=True) if isinstance(value, lost)]
        return [self._part(value) if isinstance(value, StoreUnavailable) else value for value in values]

    async def _read_one(self, name: bytes, until_s: float | None) -> Slot:
        """Read a value on a new connection, or following redirections."""
        found: Slot
        try:
            async with asyncio.timeout_at(until_s):
                found = await self._nodes.execute_command(b"GET", name)
        except TimeoutError:
            found = self._part(self._late())
        except StoreError as error:
            found = self._part(error) if isinstance(error, StoreUnavailable) else error
        return found

    def _late(self) -> StoreUnavailable:
        return StoreUnavailable(f"a node of {self._nodes.topology.shown} did not answer in time")

    def _part(self, error: StoreUnavailable) -> PartUnavailable:
        """Return the error of one key: other keys may be readable."""
        self._nodes.topology.schedule_refresh()
        return PartUnavailable(str(error))


class ReplicaLookups:
    """Reads values from replicas, without the state of the release, as none of them proves that a key is absent."""

    def __init__(self, keys: Keys, nodes: Nodes) -> None:
        self._keys = keys
        self._nodes = nodes

    async def get(self, release: ReleaseRef, keys: Sequence[str]) -> list[Slot]:
        """See `ReplicatedReader.get_many_elsewhere`; the caller applies the timeout."""
        names, topology = self._keys.release(release), self._nodes.topology
        rows, buckets = names.located(keys)
        by_node = dict[RedisNode, list[int]]()
        for place, bucket in enumerate(buckets):
            if (node := topology.replica_of(names.slots[bucket])) is None:
                raise StoreUnavailable(f"no replica of {topology.shown} has slot {names.slots[bucket]}")
            by_node.setdefault(node, []).append(place)
        found = list[Slot]([None]) * len(keys)

        async def read(node: RedisNode, places: list[int]) -> None:
            connection = await self._nodes.at(node).connection()
            values = await connection.get_each([rows[place] for place in places])
            for place, value in zip(places, values, strict=True):
                found[place] = value

        await asyncio.gather(*(read(*each) for each in by_node.items()))
        return found


def _cancel(pending: tuple[_Replies, ...]) -> None:
    for replies in pending:
        replies.cancel()


async def _optional(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 -- any reply
    try:
        return await reply
    except StoreError:
        return None


class RedisStore(Diagnosed, RowEraser, ReplicatedReader):
    """A Redis store with separate connections for lookups, control and writing."""

    batch = coalesce = 256
    """A key takes 0.4 µs in the client and 1.1 in the server (at 64: 0.9 and 1.6); others wait at most 0.3 ms."""

    def __init__(self, common: RedisAddress, servers: OnlyServer) -> None:
        """*common* has the settings of all *servers*."""
        self._common = common
        self._servers = servers
        self._clustered = isinstance(servers, Topology)
        self._keys = keys = Keys(common.prefix, clustered=self._clustered)
        self._reads = Nodes(self._servers, READ_TIMEOUT_S)
        self._nodes = Nodes(self._servers, TIMEOUT_S)
        self._writes = Nodes(self._servers, TIMEOUT_S)
        lookups = ClusterLookups if self._clustered else ServerLookups
        self._lookups, self._scans = lookups(keys, self._reads), lookups(keys, self._nodes)
        for_s = CLUSTER_RETRY_FOR_S if self._clustered else 0.0
        self._retrier = Retrier(time.monotonic, for_s=for_s)
        self._replicas = Nodes(self._servers, READ_TIMEOUT_S, replicas=True)
        self._replica_lookups = ReplicaLookups(keys, self._replicas)
        self._writer = Writer(self._writes, keys, Retrier(time.monotonic, for_s=for_s or RETRY_FOR_S))

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        if (call := traced_call.get()) is not None:
            self._common.describe(call, *(("GET", len(keys)) if self._clustered else ("MGET",)))
        return await self._lookups.get(release, keys, timeout_s)

    @property
    def has_replicas(self) -> bool:
        return self._servers.has_replicas

    async def get_many_elsewhere(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float) -> list[Slot]:
        del timeout_s  # applied by the caller
        return await self._replica_lookups.get(release, keys)

    async def catalogue(self) -> Catalogue:
        record, now, primary = await self._nodes.run(self._keys.catalogue, self._read_catalogue)
        if record is None:
            return Catalogue(now=now, primary=primary)
        return replace(catalogue_record.parse(record, now=now, where=self._servers.shown), primary=primary)

    async def _read_catalogue(self, connection: Sender) -> tuple[bytes | None, float, bool]:
        record, time_, greeting = await asyncio.gather(
            connection.send_command(b"GET", self._keys.catalogue),
            connection.send_command(b"TIME"),
            _optional(connection.send_command(b"HELLO", 2)),
        )
        try:
            seconds, micros = time_
            return record, int(seconds) + int(micros) / 1e6, is_primary(greeting)
        except (TypeError, ValueError) as error:
            raise connection.lose("replied to a read of the catalogue in an unknown format") from error

    async def changes(self) -> AsyncIterator[Catalogue]:
        seen: Catalogue | None = None
        while True:
            found = await self.catalogue()
            self.polled_at = time.monotonic()
            if seen is None or found.version != seen.version:
                seen = found
                yield found
            await asyncio.sleep(POLL_S)
            with suppress(StoreError):  # a primary that was replaced may still answer
                await self._servers.confirm()

    async def close(self) -> None:
        for opened in (self._reads, self._nodes, self._writes, self._replicas):
            await opened.close()
        await self._servers.close()  # last: calls that fail schedule a discovery

    async def warnings(self) -> list[str]:
        found = [(server, (await examination.measure(server)).eviction()) for server in await self._nodes.primaries()]
        return [f"{server.where}: {sentence}" for server, (level, _, sentence) in found if level == Level.ERROR]

    async def examine(self) -> list[Finding]:
        return [*await self._servers.examine(), *await examination.examine(self._servers, self._keys)]

    async def incarnations(self) -> list[str]:
        return await self._writer.incarnations()

    async def erase(self, release: ReleaseRef) -> None:
        await self._writer.erase(release)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        del draft
        servers = await self._nodes.primaries()
        for server in servers:
            (await examination.measure(server)).check(plan, len(servers), server.where)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        await self._retrier.call(lambda: self._create(draft, plan))

    async def _create(self, draft: DraftRef, plan: Plan) -> None:
        keys, mine = self._keys.release(draft), state_of(draft)
        if not await self._nodes.execute_command(b"EXISTS", keys.state):  # an existing draft holds part of *plan*
            await self.check_room(draft, plan)
        await self._writer.add(draft.incarnation)
        before, connection = await self._replace_state(keys.steps[0], mine, "unless", SEALED)
        if before == SEALED:
            raise sealed(draft)
        await wait_for_replicas(connection, wanted=1, timeout_s=CONTROL_WAIT_S)
        await self._claim_others(draft)
        await self._writer.add(draft.incarnation)  # an erase may have removed it
        if before is None:
            self._writer.forget(draft)

    async def _claim_others(self, draft: DraftRef) -> None:
        mine, keys = state_of(draft), self._keys.release(draft)
        while len(keys.steps) > 1:
            states = await self._states(draft)  # before the check, so REPLACE fails after another claim
            check_owned(draft, await self._nodes.execute_command(b"GET", keys.state))
            claimed = list(zip(keys.steps, states, strict=True))[1:]
            others = [(step, state) for step, state in claimed if state not in (mine, SEALED)]
            if not others:
                return
            await asyncio.gather(*(self._replace_state(step, mine, "if", state or b"") for step, state in others))

    async def _replace_state(
        self, step: Sequence[str], state: bytes, when: str, *states: bytes
    ) -> tuple[bytes | None, Sender]:
        """Return the previous state and the connection."""

        async def replace_state(connection: Sender) -> tuple[bytes | None, Sender]:
            return await connection.send_command(b"EVAL", REPLACE, len(step), *step, state, when, *states), connection

        return await self._nodes.run(step[0], replace_state)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        keys = self._keys.release(draft)

        def read(connection: Sender) -> asyncio.Future[list[bytes | None]]:
            get = connection.send_command
            return asyncio.gather(get(b"HGET", keys.points, part), get(b"GET", keys.state))

        point, state = await self._nodes.run(keys.state, read)
        check_owned(draft, state)
        self._writer.forget(draft)
        return None if point is None else point.decode()

    async def seal(self, draft: DraftRef) -> None:
        """See the contract; logs what a failover could lose. StoreUnavailable if one replaced the primary."""
        await self._retrier.call(lambda: self._seal(draft))

    async def _seal(self, draft: DraftRef) -> None:
        keys, mine = self._keys.release(draft), state_of(draft)
        first, *others = keys.steps

        async def seal_first(connection: Sender) -> Sender:
            await self._writer.check_kept(draft, connection)
            before = await connection.send_command(b"EVAL", REPLACE, len(first), *first, SEALED, "if", mine)
            if before != SEALED:
                check_owned(draft, before)
            return connection

        used = {await self._nodes.run(keys.state, seal_first)}
        # Of any writer: another may have started to seal.
        sealing = (self._replace_state(step, SEALED, "unless", SEALED, b"") for step in others)
        for before, connection in await asyncio.gather(*sealing):
            if before is None:
                raise not_found(draft)
            used.add(connection)
        done = f"release {draft.id} is written"
        await asyncio.gather(*(self._servers.wait_replicated(connection, done, SEAL_WAIT_S) for connection in used))

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self._retrier.call(partial(self.prepare, release))
        async for keys in self._writer.chunks(release):
            for row in await self._retrier.call(partial(self._read_rows, release, keys)):
                yield row

    async def _read_rows(self, release: ReleaseRef, keys: Sequence[str]) -> list[Row]:
        rows = list[Row]()
        for key, slot in zip(keys, await self._scans.get(release, keys), strict=True):
            if isinstance(slot, StoreError):
                raise slot
            if slot is not None:
                rows.append(Row(key, slot))
        return rows

    async def prepare(self, release: ReleaseRef) -> None:
        states = await self._states(release)
        if not any(states):
            raise not_found(release)
        if missing := sum(state != SEALED for state in states):
            raise unsealed(release, missing, len(states))

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        """See the contract; a commit waits for replicas. RowsLost if the release is incomplete."""
        releases = newly_committed(old, new)

        async def change(connection: Sender) -> None:
            for release in () if self._clustered else releases:
                state = await connection.send_command(b"GET", self._keys.release(release).state)
                if state not in (None, SEALED):
                    raise RowsLost(f"{self._servers.shown}: {unsealed(release, 1, 1)}")
            record, now, _ = await self._read_catalogue(connection)
            found = Catalogue() if record is None else catalogue_record.parse(record, now=now, where=connection.where)
            if found.version != old.version:
                raise catalogue_changed()
            await self._replace(connection, record, new)
            if releases:
                await self._servers.wait_replicated(connection, "the catalogue was changed")

        if releases:
            await self._servers.confirm()
        await self._nodes.run(self._keys.catalogue, change)

    async def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        await self._nodes.run(self._keys.catalogue, lambda connection: self._replace(connection, record, new))

    async def _replace(self, connection: Sender, record: bytes | None, new: Catalogue) -> None:
        old, args = record or b"", (self._keys.catalogue, catalogue_record.dump(new))
        if (await connection.send_command(b"EVAL", REPLACE, 1, *args, "if", old) or b"") != old:
            raise catalogue_changed()
        await wait_for_replicas(connection, wanted=1, timeout_s=CONTROL_WAIT_S)

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        await self.prepare(release)
        names, _ = self._keys.release(release).located(keys)
        return sum(await asyncio.gather(*(self._nodes.execute_command(b"DEL", name) for name in names)))

    async def _states(self, release: ReleaseRef | DraftRef) -> list[bytes | None]:
        steps = self._keys.release(release).steps
        found: list[bytes | None] = await asyncio.gather(
            *(self._nodes.execute_command(b"GET", step[0]) for step in steps)
        )
        return found


def open_url(url: str) -> RedisStore:
    """Open the store at a URL; StoreMisused if it is invalid."""
    scheme = scheme_of(url)
    if scheme.endswith("+cluster"):
        cluster = parse_cluster(url)
        return RedisStore(cluster.node, Topology(cluster))
    if scheme.endswith("+sentinel"):
        behind = parse_sentinel(url)
        return RedisStore(behind.server, Sentinels(behind))
    address = parse(url)
    return RedisStore(address, OnlyServer(address))
