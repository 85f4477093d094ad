"""Lookups: rows, and the state of their release where a list is absent.

Values are read over multiplexed connections, or with `?client=redis-py` by redis-py alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import cast

from redis.exceptions import RedisClusterException, RedisError

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import PartUnavailable, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.redis.client import translated
from hotplate.stores.redis.keys import BUCKETS, SEALED, Keys, ReleaseKeys, unsealed
from hotplate.stores.redis.multiplexed import VALUES, Multiplexer, Readers, Redirected, Replies
from hotplate.stores.redis.servers import Cluster, RedisNode
from hotplate.stores.redis.sessions import Sessions
from hotplate.stores.store import Slot, not_found
from hotplate.stores.timing import Deadlines

ReadServer = Callable[[Sequence[str | bytes]], Awaitable[list[Slot]]]
"""Reads values by name; raises StoreError."""

ReadCluster = Callable[[Sequence[bytes], Sequence[int], float | None], Awaitable[list[Slot]]]
"""Reads values by name and slot until a time of the loop's clock; a failed or late value is an error.

Raises StoreError if the nodes are unknown.
"""


async def read_multiplexed(readers: Readers, names: Sequence[str | bytes]) -> list[Slot]:
    """Read values of one server by one MGET, over a new connection if the current one is lost."""
    servers = readers.servers
    if not servers.loaded:
        await servers.load()
    reader = readers.at(servers.primaries[0])
    try:
        connection = reader.current or await reader.connection()
        try:
            return await connection.mget(names)
        except StoreUnavailable:
            if connection.error is None:
                raise
            return await (await reader.connection()).mget(names)
    except StoreUnavailable:
        servers.schedule_refresh()
        raise


async def read_by_redis_py(sessions: Sessions, names: Sequence[str | bytes]) -> list[Slot]:
    """Read values of one server by redis-py's MGET."""
    (server,) = await sessions.primaries()
    try:
        return cast("list[Slot]", await server.client.mget(names))
    except RedisError as error:
        sessions.servers.schedule_refresh()
        raise translated(error, server.address.shown) from error


async def read_cluster_by_redis_py(
    servers: Cluster, names: Sequence[bytes], slots: Sequence[int], until_s: float | None
) -> list[Slot]:
    """Read values of a cluster by redis-py's pipeline."""
    del slots
    servers.loop.check()
    await servers.load()
    pipeline = servers.client.pipeline()
    for name in names:
        pipeline.get(name)
    values: list[Slot]
    try:
        async with asyncio.timeout_at(until_s):
            values = await pipeline.execute(raise_on_error=False)
    except TimeoutError:
        values = [_late(servers)] * len(names)
    except (RedisError, RedisClusterException) as error:
        values = [translated(error, servers.shown)] * len(names)
    values = [translated(value, servers.shown) if isinstance(value, RedisError) else value for value in values]
    return [_part(servers, value) for value in values]


def received(release: ReleaseRef, replies: list[Slot]) -> list[Slot]:
    """Return the rows of a release from its state and them; raises ReleaseNotFound."""
    state, *values = replies
    if state is None or (state != SEALED and None in values):  # rows missing from a draft may still arrive
        raise not_found(release)
    return values


class ServerLookups:
    """Reads rows and the release's state together."""

    def __init__(self, keys: Keys, read: ReadServer, readers: Readers | None = None) -> None:
        """*readers* have the multiplexed connections, if *read* uses them."""
        self._keys = keys
        self._read = read
        self._readers = readers

    async def get(
        self,
        release: ReleaseRef,
        keys: Sequence[str],
        timeout_s: float | None = None,  # noqa: ARG002 -- the caller applies it
    ) -> list[Slot]:
        """See `Reader.get_many`."""
        return received(release, await self._read(self._names(release, keys)))

    def send(self, release: ReleaseRef, keys: Sequence[str]) -> Replies | None:
        """See `SendingReader`."""
        if self._readers is None or not self._readers.servers.loaded:
            return None
        connection = self._readers.at(self._readers.servers.primaries[0]).current
        return None if connection is None else connection.mget(self._names(release, keys))

    def _names(self, release: ReleaseRef, keys: Sequence[str]) -> Sequence[str | bytes]:
        """Return the names of the release's state and of rows."""
        names = self._keys.release(release)
        try:
            return [names.state, *names.rows(keys)]
        except UnicodeEncodeError:
            return [names.state, *names.located(keys)[0]]


class MultiplexedCluster:
    """Reads values from the nodes that have their slots; a failing node fails only its keys."""

    def __init__(self, servers: Cluster, readers: Readers, sessions: Sessions) -> None:
        self._servers = servers
        self._readers = readers
        self._sessions = sessions
        self._deadlines = Deadlines[tuple[Replies, ...]](_cancel)

    async def read(self, names: Sequence[bytes], slots: Sequence[int], until_s: float | None) -> list[Slot]:
        """See `ReadCluster`."""
        if not self._servers.loaded:
            await self._servers.load()
        by_node = self._servers.places_by_node(slots)
        others = list[int]()
        if len(by_node) == 1 and None not in by_node:  # in two thirds of the time of the general way
            (node,) = by_node
            values = await self._receive_from_one(cast("RedisNode", node), names, until_s, others)
        else:
            others += by_node.pop(None, ())
            values = await self._receive_from_many(by_node, names, until_s, others)
        if others:
            read = await asyncio.gather(*(self._read_one(names[place], until_s) for place in others))
            for place, value in zip(others, read, strict=True):
                values[place] = value
        return values

    def _send(self, node: RedisNode, names: Sequence[bytes]) -> tuple[Multiplexer | None, Replies]:
        reader = self._readers.at(node)
        if (connection := reader.current) is not None:
            return connection, connection.get_each(names)

        async def send_later() -> list[Slot]:
            return await (await reader.connection()).get_each(names)

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
        self,
        by_node: dict[RedisNode | None, list[int]],
        names: Sequence[bytes],
        until_s: float | None,
        others: list[int],
    ) -> list[Slot]:
        """Read values by position; add the positions to *others* that were redirected or lost."""
        sent = [
            (places, *self._send(node, [names[place] for place in places])) for node, places in by_node.items() if node
        ]
        pending = tuple([replies for _, _, replies in sent])
        slots = list[Slot]([None]) * len(names)
        due = None if until_s is None else self._deadlines.add(pending, until_s)
        try:
            for places, connection, replies in reversed(sent):  # the last mostly replies last
                values = await self._values(replies, len(places))
                if not VALUES.issuperset(map(type, values)):
                    values = self._failed(values, connection, places, others)
                for place, value in zip(places, values, strict=True):
                    slots[place] = value
        finally:
            if due is not None:
                due.discard(pending)
            for replies in pending:
                if not replies.cancel() and not replies.cancelled():
                    replies.exception()  # mark as retrieved
        return slots

    async def _values(self, replies: Replies, count: int) -> list[Slot]:
        """Return the values of one node, or its error for each."""
        try:
            return await replies
        except StoreError as error:
            return [error] * count
        except asyncio.CancelledError:
            if not replies.cancelled() or (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return [_late(self._servers)] * count

    def _failed(
        self, values: list[Slot], connection: Multiplexer | None, places: Sequence[int], others: list[int]
    ) -> list[Slot]:
        """Return *values* as errors of their keys; add the positions to *others* that were redirected or lost."""
        lost = Redirected if connection is None or connection.error is None else StoreUnavailable
        others += [place for place, value in zip(places, values, strict=True) if isinstance(value, lost)]
        return [_part(self._servers, value) for value in values]

    async def _read_one(self, name: bytes, until_s: float | None) -> Slot:
        """Read a value on a new connection, or following redirections."""
        value: Slot
        try:
            async with asyncio.timeout_at(until_s):
                value = await self._sessions.execute("GET", name)
        except TimeoutError:
            value = _part(self._servers, _late(self._servers))
        except StoreError as error:
            value = _part(self._servers, error)
        return value


def _late(servers: Cluster) -> StoreUnavailable:
    return StoreUnavailable(f"a node of {servers.shown} did not answer in time")


def _part(servers: Cluster, value: Slot) -> Slot:
    """Return the failure of a node as an error of one key: other keys may be readable."""
    if not isinstance(value, StoreUnavailable):
        return value
    servers.schedule_refresh()
    return PartUnavailable(str(value))


def _cancel(pending: tuple[Replies, ...]) -> None:
    for replies in pending:
        replies.cancel()


class BucketLost(ReleaseNotFound, PartUnavailable):
    """A bucket is missing or not sealed; others may be whole, so no circuit opens."""

    permanent = True


class ClusterLookups:
    """Reads rows of a cluster; a list counts as absent only if its bucket is sealed."""

    def __init__(self, keys: Keys, read: ReadCluster, sessions: Sessions) -> None:
        self._keys = keys
        self._read = read
        self._sessions = sessions

    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[Slot]:
        """See `Reader.get_many`."""
        until_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        names = self._keys.release(release)
        if not keys and await self._sessions.execute("GET", names.state) is None:
            raise not_found(release)
        rows, buckets = names.located(keys)
        slots = await self._read(rows, [names.slots[bucket] for bucket in buckets], until_s)
        if None in slots:
            absent = sorted({bucket for bucket, slot in zip(buckets, slots, strict=True) if slot is None})
            states = await self._states(names, absent, until_s)
            for place, bucket in enumerate(buckets):
                if slots[place] is None:
                    slots[place] = _absence(release, states[bucket])
        if slots and all(isinstance(slot, StoreError) for slot in slots):
            gone = next((slot for slot in slots if isinstance(slot, ReleaseNotFound)), slots[0])
            raise cast("StoreError", gone)
        return slots

    async def _states(self, names: ReleaseKeys, buckets: Sequence[int], until_s: float | None) -> dict[int, Slot]:
        """Read the states of buckets."""
        raw_states = [names.raw_heads[bucket] + b"@state" for bucket in buckets]
        states = await self._read(raw_states, [names.slots[bucket] for bucket in buckets], until_s)
        return dict(zip(buckets, states, strict=True))


def _absence(release: ReleaseRef, state: Slot) -> StoreError | None:
    """Return None for a list that a bucket in this *state* does not have, or why that is unknown."""
    if state == SEALED:
        return None
    if isinstance(state, StoreError):
        return state
    lost = not_found(release) if state is None else unsealed(release, 1, BUCKETS)
    return BucketLost(str(lost))


async def get_from_replicas(keys: Keys, readers: Readers, release: ReleaseRef, names: Sequence[str]) -> list[Slot]:
    """See `ReplicatedReader.get_many_elsewhere`; the caller applies the timeout.

    The state of the release is not read: a replica does not prove that a key is absent.
    """
    servers = readers.servers
    release_keys = keys.release(release)
    rows, buckets = release_keys.located(names)
    by_node = dict[RedisNode, list[int]]()
    for place, bucket in enumerate(buckets):
        slot = release_keys.slots[bucket]
        replica = servers.replica_of(slot)
        if replica is None:
            raise StoreUnavailable(f"no replica of {servers.shown} has slot {slot}")
        by_node.setdefault(replica, []).append(place)
    values = list[Slot]([None]) * len(names)

    async def read(node: RedisNode, places: list[int]) -> None:
        connection = await readers.at(node).connection()
        replies = await connection.get_each([rows[place] for place in places])
        for place, value in zip(places, replies, strict=True):
            values[place] = value

    await asyncio.gather(*(read(node, places) for node, places in by_node.items()))
    return values


def lookups_for(
    keys: Keys, readers: Readers, sessions: Sessions, *, by_redis_py: bool = False
) -> ServerLookups | ClusterLookups:
    """Return the lookups of a deployment."""
    servers = readers.servers
    if not isinstance(servers, Cluster):
        if by_redis_py:
            return ServerLookups(keys, partial(read_by_redis_py, sessions))
        return ServerLookups(keys, partial(read_multiplexed, readers), readers)
    if by_redis_py:
        return ClusterLookups(keys, partial(read_cluster_by_redis_py, servers), sessions)
    return ClusterLookups(keys, MultiplexedCluster(servers, readers, sessions).read, sessions)
