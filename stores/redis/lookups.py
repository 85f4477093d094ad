"""Lookups: rows, and the state of their release where a row is absent.

A release's *state* says whether all its rows are written (`hotplate.stores.redis.keys`). A server can lose rows, by a
restart or a failover, and then it has lost the state, too. So a row counts as absent only beside the state `sealed`. On
one server the state is read with the rows. In a cluster, the rows are in 256 *buckets* with a state each, and the state
of a bucket is read only if a row is absent in it.

Values are read over multiplexed connections, or with `?client=redis-py` by redis-py alone.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import PartUnavailable, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.redis.cluster import late, part_of
from hotplate.stores.redis.deployment import RedisNode
from hotplate.stores.redis.keys import BUCKETS, SEALED, Keys, ReleaseKeys, unsealed
from hotplate.stores.redis.multiplexed import VALUES, Multiplexer, ReadConnections, ReadElsewhere, Replies
from hotplate.stores.redis.routing import CommandRouter
from hotplate.stores.store import Slot, not_found
from hotplate.stores.timing import Deadlines


def rows_received(release: ReleaseRef, replies: list[Slot]) -> list[Slot]:
    """Return the rows of a release in *replies*, which begin with its state; raises ReleaseNotFound."""
    state, *rows = replies
    if state is None or (state != SEALED and None in rows):  # rows missing from a draft may still arrive
        raise not_found(release)
    return rows


class Lookups(ABC):
    """Reads rows of releases."""

    @abstractmethod
    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[Slot]:
        """See `Reader.get_many`."""

    def send(self, release: ReleaseRef, keys: Sequence[str]) -> Replies | None:
        """See `SendingReader.send`; None if these lookups cannot."""
        del release, keys
        return None


class ServerLookups(Lookups):
    """Lookups at a deployment with one primary: the state and all rows by one MGET."""

    def __init__(self, keys: Keys, connections: ReadConnections, *, by_redis_py: bool) -> None:
        self._keys = keys
        self._connections = connections
        self._deployment = connections.deployment
        self._by_redis_py = by_redis_py

    async def get(
        self,
        release: ReleaseRef,
        keys: Sequence[str],
        timeout_s: float | None = None,  # noqa: ARG002 -- the caller applies it
    ) -> list[Slot]:
        names = self._names(release, keys)
        if self._by_redis_py:
            return rows_received(release, await self._deployment.read_by_redis_py(names, None))
        return rows_received(release, await self._read(names))

    def send(self, release: ReleaseRef, keys: Sequence[str]) -> Replies | None:
        if self._by_redis_py or not self._deployment.is_loaded:
            return None
        connection = self._connections.at(self._deployment.primaries[0]).current
        return None if connection is None else connection.mget(self._names(release, keys))

    async def _read(self, names: Sequence[str | bytes]) -> list[Slot]:
        """Read values over the open connection; once more over a new one if that connection was lost."""
        if not self._deployment.is_loaded:
            await self._deployment.load()
        reconnector = self._connections.at(self._deployment.primaries[0])
        try:
            connection = reconnector.current or await reconnector.connection()
            try:
                return await connection.mget(names)
            except StoreUnavailable:
                if connection.error is None:  # refused by the server, which would refuse again
                    raise
                return await (await reconnector.connection()).mget(names)
        except StoreUnavailable:
            self._deployment.schedule_refresh()
            raise

    def _names(self, release: ReleaseRef, keys: Sequence[str]) -> Sequence[str | bytes]:
        """Return the names of the release's state and of its rows."""
        names = self._keys.release(release)
        try:
            return [names.state, *names.rows(keys)]
        except UnicodeEncodeError:
            return [names.state, *names.located(keys).names]


_UNSENT = ReadElsewhere("no node is known")  # never raised


class _NodeRead(NamedTuple):
    """The part of a read that was sent to one node."""

    positions: Sequence[int]
    """Of its values in the whole read."""

    connection: Multiplexer | None
    """None if it is still to be opened."""

    replies: Replies


def _cancel(pending: tuple[Replies, ...]) -> None:
    for replies in pending:
        replies.cancel()


class BucketLost(ReleaseNotFound, PartUnavailable):
    """A bucket is missing or not sealed; others may be whole, so no circuit opens."""

    permanent = True


class ClusterLookups(Lookups):
    """Lookups in a cluster, by a GET for each row; a row counts as absent only if its bucket is sealed.

    Rows are read at the nodes that have their slots. A node that fails fails only its own rows.
    """

    def __init__(self, keys: Keys, connections: ReadConnections, router: CommandRouter, *, by_redis_py: bool) -> None:
        """*router* reads redirected values, and values that were lost with a connection."""
        self._keys = keys
        self._connections = connections
        self._deployment = connections.deployment
        self._router = router
        self._by_redis_py = by_redis_py
        self._deadlines = Deadlines[tuple[Replies, ...]](_cancel)

    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[Slot]:
        """Read rows, and the states of buckets in which a row is absent.

        A row that cannot be read is an error in its slot. If all are, raises one of them, ReleaseNotFound first.
        """
        until_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        names = self._keys.release(release)
        if not keys and await self._router.execute("GET", names.state) is None:
            raise not_found(release)
        rows = names.located(keys)
        slots = await self._read(rows.names, [names.slots[bucket] for bucket in rows.buckets], until_s)
        if None in slots:
            absent = {bucket for bucket, slot in zip(rows.buckets, slots, strict=True) if slot is None}
            states = await self._states(names, sorted(absent), until_s)
            for position, bucket in enumerate(rows.buckets):
                if slots[position] is None:
                    slots[position] = _absence(release, states[bucket])
        if slots and all(isinstance(slot, StoreError) for slot in slots):
            error = next((slot for slot in slots if isinstance(slot, ReleaseNotFound)), slots[0])
            raise cast("StoreError", error)
        return slots

    async def _states(self, names: ReleaseKeys, buckets: Sequence[int], until_s: float | None) -> dict[int, Slot]:
        """Read the states of buckets, by bucket; an error is in the place of a state that cannot be read."""
        state_names = [names.raw_heads[bucket] + b"@state" for bucket in buckets]
        states = await self._read(state_names, [names.slots[bucket] for bucket in buckets], until_s)
        return dict(zip(buckets, states, strict=True))

    async def _read(self, names: Sequence[bytes], slots: Sequence[int], until_s: float | None) -> list[Slot]:
        """Read values by name and slot until a time of the loop's clock; a failed or late value is an error.

        Raises StoreError if the nodes are unknown.
        """
        if self._by_redis_py:
            return await self._deployment.read_by_redis_py(names, until_s)
        if not self._deployment.is_loaded:
            await self._deployment.load()
        if len(slots) == 1 and (node := self._deployment.primary_of(slots[0])) is not None:
            reads = [self._send(node, (0,), names)]  # in less time than below
        else:
            reads = [
                self._send(node, positions, [names[position] for position in positions])
                for node, positions in self._deployment.positions_by_primary(slots).items()
                if node is not None
            ]
        values = await self._receive(reads, len(names), until_s)
        if VALUES.issuperset(map(type, values)):
            return values
        return await self._completed(values, names, until_s)

    def _send(self, node: RedisNode, positions: Sequence[int], names: Sequence[bytes]) -> _NodeRead:
        """Send GETs for *names* to a node, over its open connection or as soon as it is open."""
        reconnector = self._connections.at(node)
        if (connection := reconnector.current) is not None:
            return _NodeRead(positions, connection, connection.get_each(names))

        async def send_later() -> list[Slot]:
            return await (await reconnector.connection()).get_each(names)

        return _NodeRead(positions, None, asyncio.create_task(send_later()))

    async def _receive(self, reads: Sequence[_NodeRead], count: int, until_s: float | None) -> list[Slot]:
        """Return the *count* values of *reads* by position, or the errors of their nodes.

        A value that no read has, because no node is known for its slot, is ReadElsewhere.
        """
        pending = tuple([read.replies for read in reads])
        scheduled = None if until_s is None else self._deadlines.add(pending, until_s)
        values = list[Slot]([_UNSENT]) * count
        try:
            for read in reversed(reads):  # the last mostly replies last
                received = await self._values(read)
                if len(received) == count:
                    return received  # the only read: in three quarters of the time
                for position, value in zip(read.positions, received, strict=True):
                    values[position] = value
        except BaseException:
            for replies in pending:
                if not replies.cancel() and not replies.cancelled():
                    replies.exception()  # mark as retrieved
            raise
        finally:
            if scheduled is not None:
                scheduled.discard(pending)
        return values

    async def _values(self, read: _NodeRead) -> list[Slot]:
        """Return the values of one node, or its error for each: ReadElsewhere if its connection was lost."""
        try:
            return await read.replies
        except StoreError as error:
            failure = error
            was_lost = read.connection is not None and read.connection.error is not None
            if was_lost and isinstance(error, StoreUnavailable):
                failure = ReadElsewhere(str(error))
            return [failure] * len(read.positions)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not read.replies.cancelled() or task is None or task.cancelling():
                raise  # the caller was cancelled
            return [late(self._deployment)] * len(read.positions)

    async def _completed(self, values: Sequence[Slot], names: Sequence[bytes], until_s: float | None) -> list[Slot]:
        """Return *values* with those that may be read elsewhere, and other failures as errors of single keys."""
        positions = [position for position, value in enumerate(values) if isinstance(value, ReadElsewhere)]
        completed = [part_of(self._deployment, value) for value in values]
        read = await asyncio.gather(*(self._read_one(names[position], until_s) for position in positions))
        for position, value in zip(positions, read, strict=True):
            completed[position] = value
        return completed

    async def _read_one(self, name: bytes, until_s: float | None) -> Slot:
        """Read a value by the router, which follows redirections and opens connections."""
        value: Slot
        try:
            async with asyncio.timeout_at(until_s):
                value = await self._router.execute("GET", name)
        except TimeoutError:
            value = late(self._deployment)
        except StoreError as error:
            value = error
        return part_of(self._deployment, value)


def _absence(release: ReleaseRef, state: Slot) -> StoreError | None:
    """Return None for a row that a bucket in this *state* does not have, or the error if that is unknown."""
    if state == SEALED:
        return None
    if isinstance(state, StoreError):
        return state
    lost = not_found(release) if state is None else unsealed(release, 1, BUCKETS)
    return BucketLost(str(lost))


async def get_from_replicas(
    keys: Keys, connections: ReadConnections, release: ReleaseRef, row_keys: Sequence[str]
) -> list[Slot]:
    """Read rows from replicas: see `ReplicatedReader.get_many_elsewhere`; the caller applies the timeout.

    The state of the release is not read: a replica does not prove that a row is absent.
    """
    deployment = connections.deployment
    names = keys.release(release)
    rows = names.located(row_keys)
    by_replica = dict[RedisNode, list[int]]()
    for position, bucket in enumerate(rows.buckets):
        slot = names.slots[bucket]
        replica = deployment.replica_of(slot)
        if replica is None:
            raise StoreUnavailable(f"no replica of {deployment.shown} has slot {slot}")
        by_replica.setdefault(replica, []).append(position)
    values = list[Slot]([None]) * len(row_keys)

    async def read(node: RedisNode, positions: list[int]) -> None:
        connection = await connections.at(node).connection()
        replies = await connection.get_each([rows.names[position] for position in positions])
        for position, value in zip(positions, replies, strict=True):
            values[position] = value

    await asyncio.gather(*(read(node, positions) for node, positions in by_replica.items()))
    return values


def lookups_for(keys: Keys, connections: ReadConnections, router: CommandRouter, *, by_redis_py: bool) -> Lookups:
    """Return the lookups of a deployment: over *connections*, or by redis-py alone."""
    if connections.deployment.is_clustered:
        return ClusterLookups(keys, connections, router, by_redis_py=by_redis_py)
    return ServerLookups(keys, connections, by_redis_py=by_redis_py)
