"""The store in a Redis Cluster, `redis+cluster://` and `rediss+cluster://`: the layout of one server over its slots.

A bucket's rows lie in one slot, beside a state of their own; all that belongs to the whole release lies in the first
bucket's. Nothing changes two slots at once, so that what is one step on a server has an order here:

create    the inventory names the incarnation; the first bucket is claimed, which decides who writes; then the others,
          each from the state that was read of it before the first was seen to be still ours. A writer that was
          replaced before it had claimed all cannot claim one more.
put       the keys of a batch are listed, so that whoever erases finds them; its rows are written, bucket by bucket,
          where that has our state; once a replica has them, the part's resume point moves on.
seal      the first bucket is sealed, and nobody can claim any more; then the others, each behind the last of its rows,
          and the replicas are waited for. A node that lost the end of what it was sent has lost this, too.
erase     the states go first, then what the lists name. Where these are lost, with the node of the first bucket, the
          nodes are searched for the rows, and the states go last: they say that there is something to search for.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, cast

from redis.crc import key_slot
from xxhash import xxh3_64_intdigest

from stores.catalogue import Catalogue, DraftRef, ReleaseRef
from stores.errors import PartUnavailable, ReleaseNotFound, StoreError, StoreMisused, StoreUnavailable
from stores.keys import pack
from stores.redis import examination
from stores.redis.connection import Redirected
from stores.redis.control import ERASING_SHARE, MAX_KEYS, Control
from stores.redis.keys import BUCKETS, KEPT, Keys
from stores.redis.lookups import Lookups
from stores.redis.replication import CONTROL_WAIT_S, wait_for_replicas
from stores.redis.states import REPLACE, SEALED, check_owned, state_of
from stores.redis.store import READ_TIMEOUT_S, TIMEOUT_S
from stores.redis.topology import Endpoint, Nodes, Topology, uncovered
from stores.redis.url import ClusterAddress, parse_cluster
from stores.redis.writer import WRITING_SHARE, Writer, with_retries
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
from stores.traces import traced_call

log = logging.getLogger(__name__)

# How long a step of a publish is tried again: a replica is elected after cluster-node-timeout, which is 15 s, and some.
RETRY_FOR_S = 30.0

# PUT takes a bucket's state and the names of rows; the state that is expected, and the values. NOTE takes the first
# bucket's state, a list of keys and the hash of points; the state that is expected; a packed batch, or nothing; a part,
# or nothing, and its point. Both return the state.
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
if ARGV[2] ~= '' then redis.call('RPUSH', KEYS[2], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[3], ARGV[3], ARGV[4]) end
return state
"""


class BucketLost(ReleaseNotFound, PartUnavailable):
    """A bucket of a release is not there, or its end is not; others may well be, so that no circuit opens for it."""


class Buckets(NamedTuple):
    """Where a release's rows are, by bucket: what stands before them, the keys of their states, and their slots."""

    heads: tuple[bytes, ...]
    states: tuple[bytes, ...]
    slots: tuple[int, ...]

    def of(self, key: str) -> int:
        """Return a row's bucket."""
        return xxh3_64_intdigest(key.encode()) & (BUCKETS - 1)

    def located(self, keys: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """Return the names and the buckets of rows; StoreMisused for a key that UTF-8 cannot express."""
        heads, names, buckets = self.heads, list[bytes](), list[int]()
        try:
            for key in keys:
                raw = key.encode()
                bucket = xxh3_64_intdigest(raw) & (BUCKETS - 1)
                names.append(heads[bucket] + raw)
                buckets.append(bucket)
        except UnicodeEncodeError as error:
            raise StoreMisused("a key is not valid Unicode text; see where it comes from") from error
        return names, buckets


class ClusterStore(Advised, Examined, Inventoried, Polled, RoomChecked):
    """One deployment in a cluster; an instance belongs to one event loop and process.

    Lookups, control and writing have a connection each to every node, opened when it is needed.
    """

    batch = 256
    """A key costs the client twice what it does with one server, and each node has but its part of them."""

    def __init__(self, cluster: ClusterAddress) -> None:
        self._cluster = cluster
        self._keys = Keys(cluster.node.prefix, clustered=True)
        self._topology = Topology(cluster)
        self._reads = Nodes(self._topology, READ_TIMEOUT_S)
        self._nodes = Nodes(self._topology, TIMEOUT_S)
        self._writes = Nodes(self._topology, TIMEOUT_S)
        self._lookups = Lookups(self._reads)
        self._scans = Lookups(self._nodes)
        self._control = Control(self._nodes, self._keys, self._topology.shown)
        self._known = dict[str, Buckets]()
        self._batches = _Batches(self._writes, self._keys, self._buckets)
        self._writer = Writer(
            self._batches.write, self._keys, servers=lambda: len(self._topology.primaries) or 1, retry_for_s=RETRY_FOR_S
        )

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        if (call := traced_call.get()) is not None:
            self._cluster.node.describe(call, "GET", len(keys))
        until_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        buckets = self._buckets(release)
        if not keys:
            await self._control.check_exists(release)
        try:
            names, places = buckets.located(keys)
        except StoreMisused:
            if len(keys) == 1:
                raise
            return await asyncio.gather(*(self._try_read(release, key, timeout_s) for key in keys))
        slots = await self._lookups.get(names, [buckets.slots[bucket] for bucket in places], until_s)
        if None in slots:
            await self._check_absent(release, buckets, places, slots, until_s)
        if slots and all(isinstance(slot, StoreError) for slot in slots):
            gone = next((slot for slot in slots if isinstance(slot, ReleaseNotFound)), slots[0])
            raise cast("StoreError", gone)
        return slots

    async def _try_read(self, release: ReleaseRef, key: str, timeout_s: float | None) -> Slot:
        try:
            (slot,) = await self.get_many(release, [key], timeout_s=timeout_s)
        except StoreError as error:
            return error
        return slot

    async def _check_absent(
        self,
        release: ReleaseRef,
        buckets: Buckets,
        places: Sequence[int],
        slots: list[Slot],
        until_s: float | None,
    ) -> None:
        """Let a list be absent only where its bucket is sealed; else its node has lost something, or all."""
        absent = sorted({bucket for bucket, slot in zip(places, slots, strict=True) if slot is None})
        names = [buckets.states[bucket] for bucket in absent]
        found = await self._lookups.get(names, [buckets.slots[bucket] for bucket in absent], until_s)
        states = dict(zip(absent, found, strict=True))
        for place, bucket in enumerate(places):
            if slots[place] is None and (state := states[bucket]) != SEALED:
                lost = BucketLost(str(_unsealed(release, 1 if state else BUCKETS)))
                slots[place] = state if isinstance(state, StoreError) else lost

    async def catalogue(self) -> Catalogue:
        return await self._control.catalogue()

    def changes(self) -> AsyncIterator[Catalogue]:
        return self._control.changes(self._note_poll)

    def _note_poll(self) -> None:
        self.polled_at = time.monotonic()

    async def close(self) -> None:
        await self._topology.close()
        for nodes in (self._reads, self._nodes, self._writes):
            await nodes.close()

    async def warnings(self) -> list[str]:
        return [
            sentence
            for node in await self._primaries()
            for sentence in (await examination.measure(self._nodes.at(node))).warnings(
                self._topology.address(node).shown
            )
        ]

    async def examine(self) -> list[Finding]:
        return await examination.examine_cluster(self._topology, self._keys)

    async def incarnations(self) -> list[str]:
        return await self._control.incarnations()

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        primaries, slots = await self._primaries(), self._buckets(draft).slots
        for node in primaries:
            share = sum(self._topology.owner(slot) == node for slot in slots) / len(slots)
            part = Plan(int(plan.rows * share), int(plan.payload_bytes * share))
            memory = await examination.measure(self._nodes.at(node))
            memory.check(part, self._keys.release(draft), self._topology.address(node).shown)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        await with_retries(lambda: self._create(draft, plan), RETRY_FOR_S)

    async def _create(self, draft: DraftRef, plan: Plan) -> None:
        keys = self._keys.release(draft)
        if not await self._control.execute_command(b"EXISTS", keys.state):  # one that exists has written some of *plan*
            await self.check_room(draft, plan)
        # Named before and after: whoever erased the incarnation meanwhile has taken it off.
        await self._control.execute_command(b"SADD", self._keys.incarnations, draft.incarnation)
        first = await self._replace(keys.state, state_of(draft))
        if first == SEALED:
            raise sealed(draft)
        await self._claim_others(draft)
        await self._control.execute_command(b"SADD", self._keys.incarnations, draft.incarnation)

    async def _claim_others(self, draft: DraftRef) -> None:
        """Claim all buckets but the first, which is ours."""
        mine, names = state_of(draft), self._keys.release(draft).states
        while True:
            states = await self._states(draft)  # before we see that the first is still ours: whoever claims it replaces
            check_owned(draft, await self._control.execute_command(b"GET", names[0]))  # these, and ours then fails
            pairs = list(zip(names, states, strict=True))[1:]
            others = [(name, state) for name, state in pairs if state not in (mine, SEALED)]
            if not others:
                return
            claims = (self._control.evaluate(REPLACE, (name,), state or b"", mine) for name, state in others)
            await asyncio.gather(*claims)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return await self._control.resume_point(draft, part)

    async def seal(self, draft: DraftRef) -> None:
        await with_retries(lambda: self._seal(draft), RETRY_FOR_S)

    async def _seal(self, draft: DraftRef) -> None:
        names = self._keys.release(draft).states
        before = await self._batches.evaluate(REPLACE, names[:1], state_of(draft), SEALED)
        if before != SEALED:
            check_owned(draft, before)
        await asyncio.gather(*(self._seal_bucket(draft, name) for name in names[1:]))
        for shortfalls in await asyncio.gather(*map(self._batches.shortfalls, self._topology.primaries)):
            for sentence in shortfalls:
                log.warning("release %s is written; %s", draft.id, sentence)

    async def _seal_bucket(self, draft: DraftRef, name: str) -> None:
        """Seal a bucket but the first; where another writer's run had come as far as here, it may be that writer's."""
        expected = state_of(draft)
        while (before := await self._batches.evaluate(REPLACE, (name,), expected, SEALED)) != SEALED:
            if before is None:
                raise not_found(draft)
            if before == expected:
                return
            expected = before

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self.prepare(release)
        buckets = self._buckets(release)
        async for keys in self._control.chunks(release):
            names, places = buckets.located(keys)
            for key, slot in zip(keys, await self._read_all(names, places, buckets), strict=True):
                if slot is not None:
                    yield Row(key, slot)

    async def prepare(self, release: ReleaseRef) -> None:
        unsealed = sum(state != SEALED for state in await self._states(release))
        if unsealed:
            raise _unsealed(release, unsealed)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        await self._control.swap(old, new)

    async def erase(self, release: ReleaseRef) -> None:
        keys, buckets = self._keys.release(release), self._buckets(release)
        states = await self._states(release)
        if states[0] is None and any(states) and not await self._control.execute_command(b"EXISTS", *keys.lists):
            await self._erase_unlisted(release)
        # First: nobody reads or writes it from here on.
        await asyncio.gather(*(self._control.execute_command(b"DEL", state) for state in keys.states))
        await self._control.execute_command(b"DEL", keys.points)

        async def unlink(listed: list[str]) -> None:
            by_bucket = dict[int, list[str]]()
            for name, bucket in zip(keys.rows(listed), map(buckets.of, listed), strict=True):
                by_bucket.setdefault(bucket, []).append(name)
            await asyncio.gather(*(self._control.execute_command(b"UNLINK", *names) for names in by_bucket.values()))

        await self._control.erase_listed(release, unlink)
        index, incarnation = self._keys.incarnations, release.incarnation
        await self._control.execute_command(b"SREM", index, incarnation)
        claimed = [state for state in await self._states(release) if state is not None]
        if claimed:  # by a late writer, anew; the next prune must find it
            await self._control.execute_command(b"SADD", index, incarnation)

    async def _erase_unlisted(self, release: ReleaseRef) -> None:
        """Erase what has the name of a release, but for its states, on all nodes, paced; all of their keys are seen."""
        pattern = f"{self._keys.prefix}:{{{release.incarnation}.*}}:[^@]*"
        log.warning("release %s has lost the lists of its keys; its rows are searched for on all nodes", release.id)
        for node in await self._primaries():
            throttle, cursor = AdaptiveThrottle(time.monotonic, max_share=ERASING_SHARE), b""
            while cursor != b"0":
                started = time.monotonic()
                scan = (b"SCAN", cursor or b"0", b"MATCH", pattern, b"COUNT", MAX_KEYS)
                cursor, found = await self._nodes.at(node).execute_command(*scan)
                await asyncio.gather(*(self._control.execute_command(b"UNLINK", name.decode()) for name in found))
                await asyncio.sleep(throttle.pause_s(time.monotonic() - started, MAX_KEYS))

    async def _primaries(self) -> list[Endpoint]:
        await self._topology.load()
        return self._topology.primaries

    async def _replace(self, name: str, new: bytes) -> bytes | None:
        """Set a state, unless it is sealed, and return what it was before."""
        while True:
            before: bytes | None = await self._control.execute_command(b"GET", name)
            if before == SEALED or await self._control.evaluate(REPLACE, (name,), before or b"", new) == before:
                return before

    async def _states(self, release: ReleaseRef | DraftRef) -> list[bytes | None]:
        """Return the states of all buckets; raises StoreError."""
        buckets = self._buckets(release)
        return await self._read_all(list(buckets.states), range(BUCKETS), buckets)

    async def _read_all(self, names: Sequence[bytes], places: Sequence[int], buckets: Buckets) -> list[bytes | None]:
        """Read values, all of them, or raise StoreError."""
        values = list[bytes | None]()
        for slot in await self._scans.get(names, [buckets.slots[place] for place in places]):
            if isinstance(slot, StoreError):
                raise slot
            values.append(slot)
        return values

    def _buckets(self, release: ReleaseRef | DraftRef) -> Buckets:
        """Return where a release's rows are; those of a few releases are kept, and none is of format 1."""
        if (known := self._known.get(release.incarnation)) is not None:
            return known
        keys = self._keys.release(release)
        if len(keys.heads) != BUCKETS:
            raise not_found(release)
        if len(self._known) >= KEPT:
            del self._known[next(iter(self._known))]
        heads, states = (tuple(name.encode() for name in names) for names in (keys.heads, keys.states))
        found = Buckets(heads, states, tuple(key_slot(state) for state in states))
        self._known[release.incarnation] = found
        return found


class _Batches:
    """Writes a batch of rows, bucket by bucket, to all nodes at once; lives as long as its store.

    The slowest node sets the pace.
    """

    def __init__(self, nodes: Nodes, keys: Keys, buckets: Callable[[DraftRef], Buckets]) -> None:
        self._nodes = nodes
        self._keys = keys
        self._buckets = buckets
        self._throttles = dict[Endpoint, AdaptiveThrottle]()
        self._alone = set[Endpoint]()
        """Nodes whose replicas did not keep up with a batch, and are not waited for before the end."""

    async def write(self, draft: DraftRef, source: str, batch: Sequence[Row], part: int | None) -> float:
        """Write one batch; see `stores.redis.writer.Write`."""
        listed = [row.key for row in batch]
        await self._note(draft, source, pack(listed), b"", b"")
        by_node = dict[Endpoint, dict[int, list[Row]]]()
        buckets = self._buckets(draft)
        await self._nodes.topology.load()
        for row in batch:
            bucket = buckets.of(row.key)
            node = self._nodes.topology.owner(buckets.slots[bucket])
            if node is None:
                raise uncovered(self._nodes.topology.shown, buckets.slots[bucket])
            by_node.setdefault(node, {}).setdefault(bucket, []).append(row)
        pauses = await asyncio.gather(*(self._write_to(node, draft, parts) for node, parts in by_node.items()))
        if part is not None:
            await self._note(draft, source, b"", b"%d" % part, max(listed).encode())
        return max(pauses)

    async def _write_to(self, node: Endpoint, draft: DraftRef, parts: dict[int, list[Row]]) -> float:
        """Write one node's rows, and return how long to pause."""
        keys, mine, started = self._keys.release(draft), state_of(draft), time.monotonic()
        puts = list[tuple[tuple[str, ...], tuple[bytes, ...]]]()
        for bucket, rows in parts.items():
            head = keys.heads[bucket]
            names = head + "@state", *(head + row.key for row in rows)
            puts.append((names, (mine, *(row.value for row in rows))))
        for state in await self._evaluate_each(node, PUT, puts):
            check_owned(draft, state)
        latency_s = time.monotonic() - started
        await self._replicate(node)
        throttle = self._throttles.get(node)
        if throttle is None:
            throttle = self._throttles[node] = AdaptiveThrottle(time.monotonic, max_share=WRITING_SHARE)
        return throttle.pause_s(latency_s, sum(len(row.value) for rows in parts.values() for row in rows))

    async def _note(self, draft: DraftRef, source: str, packed: bytes, part: bytes, point: bytes) -> None:
        keys = self._keys.release(draft)
        check_owned(
            draft, await self.evaluate(NOTE, (keys.state, source, keys.points), state_of(draft), packed, part, point)
        )

    async def _evaluate_each(
        self, node: Endpoint, script: str, calls: Sequence[tuple[tuple[str, ...], tuple[bytes, ...]]]
    ) -> list[Any]:
        """Run a script for several slots of a node, all at once, and where one has moved, there; raises StoreError."""
        try:
            connection = await self._nodes.at(node).connection()
            sent = [connection.send_command(b"EVAL", script, len(names), *names, *args) for names, args in calls]
            replies = await asyncio.gather(*sent, return_exceptions=True)
            for place, reply in enumerate(replies):
                if isinstance(reply, Redirected):
                    names, args = calls[place]
                    replies[place] = await self.evaluate(script, names, *args)
                elif isinstance(reply, BaseException):
                    raise reply
        except StoreUnavailable:
            self._nodes.topology.suspect()
            raise
        return replies

    async def evaluate(self, script: str, names: tuple[str, ...], *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply is whatever the script returns
        """Run a script on keys of one slot, and return what it returns; raises StoreError."""
        return await self._nodes.run(
            names[0], lambda connection: connection.send_command(b"EVAL", script, len(names), *names, *args)
        )

    async def _replicate(self, node: Endpoint) -> None:
        """Wait until a replica has what this store wrote to a node, where it has any that keeps up."""
        if node in self._alone:
            return
        connection = await self._nodes.at(node).connection()
        found = await wait_for_replicas(connection, wanted=1, timeout_s=CONTROL_WAIT_S)
        if found is not None and found.replicas and not found.acknowledged:
            self._alone.add(node)

    async def shortfalls(self, node: Endpoint) -> list[str]:
        """Wait for all replicas of a node; return what a failover could lose, a sentence each."""
        connection = await self._nodes.at(node).connection()
        found = await wait_for_replicas(connection)
        return [] if found is None else found.shortfalls(self._nodes.topology.address(node).shown)


def _unsealed(release: ReleaseRef, buckets: int) -> ReleaseNotFound:
    if buckets == BUCKETS:
        return not_found(release)
    return ReleaseNotFound(
        f"release {release.id} is not whole in this cluster, of whose parts {buckets} are not sealed, as where a node "
        f"has lost what it was sent last; publish it again"
    )


def open_url(url: str) -> ClusterStore:
    """Open `redis+cluster://[USER:PASSWORD@]SEED[:PORT],SEED…/?prefix=NAME`, or `rediss+cluster://…&ca=FILE`."""
    return ClusterStore(parse_cluster(url))
