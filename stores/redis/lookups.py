"""Lookups: rows, and the state of their release where a row is absent.

A release's *state* says whether all its rows are written (`hotplate.stores.redis.keys`). A server can lose rows, by a
restart or a failover, and then it has lost the state, too. So a row counts as absent only beside the state `sealed`. On
one server the state is read with the rows. In a cluster, the rows are in 256 *buckets* with a state each, and the state
of a bucket is read only if a row is absent in it.

Values are read over multiplexed connections.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.concurrency import all_done
from hotplate.stores.errors import PartLost, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.redis.cluster import late, part_of
from hotplate.stores.redis.deployment import RedisNode
from hotplate.stores.redis.errors import ReadElsewhere
from hotplate.stores.redis.footprint import BUCKETS
from hotplate.stores.redis.keys import SEALED, Keys, ReleaseKeys, unsealed
from hotplate.stores.redis.multiplexed import VALUES, Multiplexer, ReadConnections, Replies
from hotplate.stores.redis.routing import CommandRouter
from hotplate.stores.store import ReadResult, not_found
from hotplate.stores.timing import Deadlines


def rows_received(release: ReleaseRef, replies: list[ReadResult]) -> list[ReadResult]:
    """Return the rows of a release in *replies*, which begin with its state.

    The state `sealed` proves that an absent row does not exist. Raises ReleaseNotFound without a state, or if a row is
    absent beside another state.
    """
    state, *rows = replies
    if state is None or (state != SEALED and None in rows):  # rows missing from a draft may still arrive
        raise not_found(release)
    return rows


class Lookups(ABC):
    """Reads rows of releases."""

    @abstractmethod
    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[ReadResult]:
        """See `Reader.get_many`."""

    def send(self, release: ReleaseRef, keys: Sequence[str]) -> Replies | None:
        """See `SendingReader.send`; None if these lookups cannot."""
        del release, keys
        return None


class ServerLookups(Lookups):
    """Lookups at a deployment with one primary: the state and all rows by one MGET."""

    def __init__(self, keys: Keys, connections: ReadConnections) -> None:
        self._keys = keys
        self._connections = connections
        self._deployment = connections.deployment

    async def get(
        self,
        release: ReleaseRef,
        keys: Sequence[str],
        timeout_s: float | None = None,  # noqa: ARG002 -- the caller applies it
    ) -> list[ReadResult]:
        return rows_received(release, await self._read(self._names(release, keys)))

    def send(self, release: ReleaseRef, keys: Sequence[str]) -> Replies | None:
        if not self._deployment.is_loaded:
            return None
        connection = self._connections.at(self._deployment.primaries[0]).current
        return None if connection is None else connection.mget(self._names(release, keys))

    async def _read(self, names: Sequence[str | bytes]) -> list[ReadResult]:
        """Read the values of keys by one MGET, in the order of *names*.

        If the open connection is lost, the keys are read once more over a new one. Raises StoreUnavailable, after which
        the deployment looks for its primary again in the background.
        """
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


_UNSENT = ReadElsewhere("no node is known")  # value of a key that was not sent; never raised


class _NodeRead(NamedTuple):
    """The part of a read that was sent to one node."""

    positions: Sequence[int]
    """Of its values in the whole read."""

    connection: Multiplexer | None
    """None if it is still to be opened."""

    replies: Replies


class ClusterLookups(Lookups):
    """Lookups in a cluster, by a GET for each row; a row counts as absent only if its bucket is sealed.

    Rows are read at the nodes that have their slots. A node that fails fails only its own rows.
    """

    def __init__(self, keys: Keys, connections: ReadConnections, router: CommandRouter) -> None:
        """*router* reads redirected values, and values that were lost with a connection."""
        self._keys = keys
        self._connections = connections
        self._deployment = connections.deployment
        self._router = router
        self._deadlines = Deadlines[tuple[Replies, ...]](self._expire)

    async def get(self, release: ReleaseRef, keys: Sequence[str], timeout_s: float | None = None) -> list[ReadResult]:
        """Read rows of a release by key; return for each key its value, None if absent, or a StoreError.

        Rows are spread over buckets, and each bucket has a state that says whether all its rows are written. A node may
        have lost rows, so a missing row counts as absent only if the state of its bucket is `sealed`. States are read
        only for buckets in which a row is missing.

        *timeout_s* is for the whole call; late rows are errors. If all rows are errors, one of them is raised, a
        ReleaseNotFound if there is one. Without *keys*, only checks that the release exists.
        """
        until_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        names = self._keys.release(release)

        if not keys and await self._router.execute("GET", names.state) is None:
            raise not_found(release)

        rows = names.located(keys)
        values = await self._read(rows.names, [names.slots[bucket] for bucket in rows.buckets], until_s)

        if None in values:
            missing = [position for position, value in enumerate(values) if value is None]
            incomplete_buckets = sorted({rows.buckets[position] for position in missing})
            states = await self._read_bucket_states(names, incomplete_buckets, until_s)
            for position in missing:
                values[position] = _absence_or_error(release, states[rows.buckets[position]])

        # One readable row shows that the release exists; without any, the failure is that of the whole read.
        if values and all(isinstance(value, StoreError) for value in values):
            error = next((value for value in values if isinstance(value, ReleaseNotFound)), values[0])
            raise cast("StoreError", error)
        return values

    async def _read_bucket_states(
        self, names: ReleaseKeys, buckets: Sequence[int], until_s: float | None
    ) -> dict[int, ReadResult]:
        """Read the states of buckets, by bucket; the value of a state that cannot be read is an error."""
        state_names = [names.groups[bucket].first.encode() for bucket in buckets]
        states = await self._read(state_names, [names.slots[bucket] for bucket in buckets], until_s)
        return dict(zip(buckets, states, strict=True))

    async def _read(self, names: Sequence[bytes], slots: Sequence[int], until_s: float | None) -> list[ReadResult]:
        """Read the values of keys from the nodes of the cluster, in the order of *names*.

        *slots* are the hash slots of the names (0 to 16383), each served by one primary. *until_s* is a time of the
        event loop's clock; None for no limit. A value that is late or cannot be read is a StoreError. A key that
        another node has, whose node is unknown, or whose reply was lost with a connection, is first read once more.
        Raises StoreError if the nodes cannot be discovered.
        """
        if not self._deployment.is_loaded:
            await self._deployment.load()

        reads: list[_NodeRead] = []
        if len(slots) == 1:  # the lookup of one key, without grouping
            node = self._deployment.primary_of(slots[0])
            if node is not None:
                reads.append(self._send(node, (0,), names, until_s))
        else:
            for node, positions in self._deployment.positions_by_primary(slots).items():
                if node is not None:
                    node_names = [names[position] for position in positions]
                    reads.append(self._send(node, positions, node_names, until_s))

        # Reads of all nodes are under way here, so a lookup takes as long as the slowest of them.
        values = await self._receive(reads, len(names), until_s)

        has_errors = not VALUES.issuperset(map(type, values))
        if has_errors:
            return await self._read_again_elsewhere(values, names, until_s)
        return values

    def _send(
        self, node: RedisNode, positions: Sequence[int], names: Sequence[bytes], until_s: float | None
    ) -> _NodeRead:
        """Send a GET for each of *names* to a node, and return the read, whose replies are a future.

        *positions* say which keys of the whole read these are, so that their values can be put in order. If no
        connection to the node is open, the future is a task that opens one and then sends, until *until_s* (loop time).
        """
        reconnector = self._connections.at(node)
        if (connection := reconnector.current) is not None:
            return _NodeRead(positions, connection, connection.get_each(names))

        async def send_later() -> list[ReadResult]:
            try:
                async with asyncio.timeout_at(until_s):
                    return await (await reconnector.connection()).get_each(names)
            except TimeoutError:
                raise late(self._deployment) from None

        return _NodeRead(positions, None, asyncio.create_task(send_later()))

    def _expire(self, pending: tuple[Replies, ...]) -> None:
        for replies in pending:
            if not replies.done():
                replies.set_exception(late(self._deployment))

    async def _receive(self, reads: Sequence[_NodeRead], count: int, until_s: float | None) -> list[ReadResult]:
        """Wait for the replies to *reads*, one for each node, and put their *count* values in the order of the keys.

        A failure of a node is the value of each of its keys. A key that no read has, because no node is known for its
        slot, gets ReadElsewhere, an error that lets the caller try again. At *until_s* (loop time), replies that have
        not arrived fail.
        """
        expiring: set[tuple[Replies, ...]] | None = None
        pending = tuple([read.replies for read in reads if read.connection is not None])  # tasks have their own limit
        if until_s is not None:
            expiring = self._deadlines.add(pending, until_s)
        values = list[ReadResult]([_UNSENT]) * count
        try:
            # In reverse, because the last node mostly replies last: then the others need no wait.
            for read in reversed(reads):
                received = await self._values_or_errors(read)
                if len(received) == count:
                    return received  # the only read has all keys in order; faster than by positions
                for position, value in zip(read.positions, received, strict=True):
                    values[position] = value
        except BaseException:
            for read in reads:
                read.replies.cancel()
                if read.replies.done() and not read.replies.cancelled():
                    read.replies.exception()  # else asyncio logs that it was never retrieved
            raise
        finally:
            if expiring is not None:
                expiring.discard(pending)
        return values

    async def _values_or_errors(self, read: _NodeRead) -> list[ReadResult]:
        """Wait for the values of one node; return them, or one error for each of its keys.

        That is ReadElsewhere, after which the keys are read again, if the connection was lost.
        """
        try:
            return await read.replies
        except StoreError as error:
            failure = error
        was_lost = read.connection is not None and read.connection.error is not None
        if was_lost and isinstance(failure, StoreUnavailable):
            failure = ReadElsewhere(str(failure))
        return [failure] * len(read.positions)

    async def _read_again_elsewhere(
        self, values: Sequence[ReadResult], names: Sequence[bytes], until_s: float | None
    ) -> list[ReadResult]:
        """Read the keys again that have a ReadElsewhere in *values*; return all values in the order of *names*.

        ReadElsewhere means that another node or another connection may have the value. Each of these keys is read once
        more, until *until_s* (loop time). Other errors become PartUnavailable, an error of their keys alone, so that
        they do not count as a failure of the whole cluster.
        """
        positions = [position for position, value in enumerate(values) if isinstance(value, ReadElsewhere)]
        completed = [part_of(self._deployment, value) for value in values]
        values_elsewhere = await all_done(*(self._read_one(names[position], until_s) for position in positions))
        for position, value in zip(positions, values_elsewhere, strict=True):
            completed[position] = value
        return completed

    async def _read_one(self, name: bytes, until_s: float | None) -> ReadResult:
        """Read a value by the router, which follows redirections and opens connections."""
        value: ReadResult
        try:
            async with asyncio.timeout_at(until_s):
                value = await self._router.execute("GET", name)
        except TimeoutError:
            value = late(self._deployment)
        except StoreError as error:
            value = error
        return part_of(self._deployment, value)


def _absence_or_error(release: ReleaseRef, state: ReadResult) -> StoreError | None:
    """Return None for a row that a bucket in this *state* does not have, or the error if that is unknown."""
    if state == SEALED:
        return None
    if isinstance(state, StoreError):
        return state
    lost = not_found(release) if state is None else unsealed(release, 1, BUCKETS)
    return PartLost(str(lost))


async def get_from_replicas(
    keys: Keys, connections: ReadConnections, release: ReleaseRef, row_keys: Sequence[str]
) -> list[ReadResult]:
    """Read rows of a release from replicas of their nodes; return values in the order of *row_keys*.

    None means only that the replica lacks the row, because it may lag behind its primary. So the state of the release,
    which would prove that a row is absent, is not read. A value that its replica refuses is a StoreError. Raises
    StoreUnavailable if no replica of a row is known, or one cannot be reached. The caller applies the timeout; see
    `ReplicatedReader.get_many_elsewhere`.
    """
    deployment = connections.deployment
    if not deployment.has_replicas:
        raise StoreUnavailable(f"no replica of {deployment.shown} is known")
    release_keys = keys.release(release)
    rows = release_keys.located(row_keys)
    slots = [release_keys.slots[bucket] for bucket in rows.buckets]
    values = list[ReadResult]([None]) * len(row_keys)

    async def read(positions: Sequence[int]) -> None:
        slot = slots[positions[0]]
        replica = deployment.replica_of(slot)  # for all keys of the primary: each further server could delay the call
        if replica is None:
            raise StoreUnavailable(f"no replica of {deployment.shown} has slot {slot}")
        try:
            connection = await connections.at(replica).connection()
            received = await connection.get_each([rows.names[position] for position in positions])
        except StoreUnavailable:
            deployment.schedule_refresh()
            raise
        for position, value in zip(positions, received, strict=True):
            values[position] = value

    await all_done(*(read(positions) for positions in deployment.positions_by_primary(slots).values()))
    return values


def lookups_for(keys: Keys, connections: ReadConnections, router: CommandRouter) -> Lookups:
    """Return the lookups of a deployment, over *connections*."""
    if connections.deployment.is_clustered:
        return ClusterLookups(keys, connections, router)
    return ServerLookups(keys, connections)
