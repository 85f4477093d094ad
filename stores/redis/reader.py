"""The Redis store as services read it: rows, and the state of their release where a row is absent.

A release's *state* says whether all its rows are written (`hotplate.stores.redis.keys`). A server can lose rows, by a
restart or a failover, and then it has lost the state, too. So a row counts as absent only beside the state `sealed`. On
one server the state is read with the rows. In a cluster, the rows are in 256 *buckets* with a state each, and the state
of a bucket is read only if a row is absent in it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, cast

from hotplate.base.timing import loop_time
from hotplate.stores import catalogue_record
from hotplate.stores.catalogue import Catalogue, ReleaseRef
from hotplate.stores.concurrency import all_done
from hotplate.stores.errors import (
    AccessDenied,
    PartLost,
    PartUnavailable,
    ReleaseNotFound,
    StoreError,
    StoreUnavailable,
)
from hotplate.stores.redis import examination
from hotplate.stores.redis.client import COMMAND_TIMEOUT_S, Session, is_primary, raise_first_error
from hotplate.stores.redis.deployment import Deployment, RedisNode
from hotplate.stores.redis.errors import PartDenied, ReadElsewhere
from hotplate.stores.redis.footprint import BUCKETS
from hotplate.stores.redis.keys import SEALED, Keys, LocatedRows, unsealed
from hotplate.stores.redis.multiplexed import VALUES, Multiplexer
from hotplate.stores.redis.server import Server
from hotplate.stores.store import Level, Reader, ReadResult, not_found, traced_call

LOOKUP_TIMEOUT_S = 1.0  # without a reply, after which a connection is closed; callers pass shorter ones


class StoredCatalogue(NamedTuple):
    """The catalogue, and its record as stored; None before the first swap."""

    record: bytes | None
    catalogue: Catalogue


class RedisReader(Reader):
    """Reads rows over the connection to each server that all callers share.

    In a cluster, rows are read by a GET each at the nodes that have their slots, and a node that fails fails only its
    own rows; elsewhere, by one MGET.
    """

    batch = coalesce = 256
    """A key takes 0.4 µs in the client and 1.1 in the server (at 64: 0.9 and 1.6); others wait at most 0.3 ms."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._is_clustered = deployment.is_clustered
        self._keys = Keys(deployment.common.prefix, clustered=self._is_clustered)

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        """Read rows of a release by key; see `Reader.get_many`.

        *timeout_s* is for the whole call in a cluster, in which late rows are errors; elsewhere, the caller applies it.
        Without it, servers have COMMAND_TIMEOUT_S. If all rows are errors, one of them is raised, a ReleaseNotFound if
        there is one. Without *keys*, only checks that the release exists.
        """
        if (call := traced_call.get()) is not None:
            command, count = ("GET", len(keys)) if self._is_clustered else ("MGET", 1)
            self._deployment.common.describe(call, command, count)

        names = self._keys.release(release)
        rows = names.located(keys)
        until_s = None if timeout_s is None else loop_time() + timeout_s

        if self._is_clustered and keys:
            return await self._get_from_nodes(release, rows, until_s)

        state, *values = await self._read([names.state.encode(), *rows.names], names.slots[:1], until_s)
        if isinstance(state, StoreError):
            raise state
        if state is None or (state != SEALED and None in values):  # rows missing from a draft may still arrive
            raise not_found(release)
        return values

    async def _get_from_nodes(self, release: ReleaseRef, rows: LocatedRows, until_s: float | None) -> list[ReadResult]:
        """Read rows of a release in a cluster, as `get_many` does."""
        slot_of_bucket = self._keys.release(release).slots
        slots = [slot_of_bucket[bucket] for bucket in rows.buckets]
        values = await self._read(rows.names, slots, until_s)
        if None in values:
            await self._prove_absences(release, rows.buckets, values, until_s)

        # One readable row shows that the release exists; without any, the failure is that of the whole read.
        if all(isinstance(value, StoreError) for value in values):
            error = next((value for value in values if isinstance(value, ReleaseNotFound)), values[0])
            raise cast("StoreError", error)
        return values

    @property
    def has_replicas(self) -> bool:
        return self._deployment.has_replicas

    async def get_many_elsewhere(
        self,
        release: ReleaseRef,
        keys: Sequence[str],
        *,
        timeout_s: float,  # noqa: ARG002 -- the caller applies it
    ) -> list[ReadResult]:
        """Read rows of a release from replicas of their nodes; see `Reader.get_many_elsewhere`.

        None means only that the replica lacks the row, because it may lag behind its primary. So the state of the
        release, which would prove that a row is absent, is not read. A value that its replica refuses is a StoreError.
        Raises StoreUnavailable if no replica of a row is known, or one cannot be reached.
        """
        deployment = self._deployment
        if not deployment.has_replicas:
            raise StoreUnavailable(f"no replica of {deployment.shown} is known")
        names = self._keys.release(release)
        rows = names.located(keys)
        slots = [names.slots[bucket] for bucket in rows.buckets]

        async def read(primary: RedisNode | None, positions: Sequence[int]) -> list[ReadResult]:
            del primary
            slot = slots[positions[0]]
            replica = deployment.replica_of(slot)  # for all keys of the primary: each further server could delay it
            if replica is None:
                raise StoreUnavailable(f"no replica of {deployment.shown} has slot {slot}")
            server = deployment.server(replica, replica=True)
            return await self._read_at(server, [rows.names[position] for position in positions], None)

        return await self._read_parts(slots, read)

    async def _prove_absences(
        self, release: ReleaseRef, buckets: Sequence[int], values: list[ReadResult], until_s: float | None
    ) -> None:
        """Replace None in *values* by an error, unless the state of the row's bucket proves that the row is absent."""
        names = self._keys.release(release)
        missing = [position for position, value in enumerate(values) if value is None]
        incomplete_buckets = sorted({buckets[position] for position in missing})
        state_names = [names.groups[bucket].first.encode() for bucket in incomplete_buckets]
        states = await self._read(state_names, [names.slots[bucket] for bucket in incomplete_buckets], until_s)
        state_of = dict(zip(incomplete_buckets, states, strict=True))
        for position in missing:
            values[position] = _absence_or_error(release, state_of[buckets[position]])

    async def _read(self, names: Sequence[bytes], slots: Sequence[int], until_s: float | None) -> list[ReadResult]:
        """Read the values of keys, in the order of *names*, from the primaries of their *slots*.

        *until_s* is a time of the event loop's clock; None for no limit. In a cluster, which alone needs *slots*, the
        failure of a node is the value of each of its keys, and a key that another node has, or whose node is unknown,
        is read once more. Raises StoreError if the servers cannot be discovered, or the only one fails.
        """
        deployment = self._deployment
        if loop_time() >= deployment.refresh_at:
            await deployment.load()
        if deployment.only_primary is not None:
            return await self._read_at(deployment.only_primary, names, until_s)

        async def read(node: RedisNode | None, positions: Sequence[int]) -> list[ReadResult]:
            return await self._read_part(node, [names[position] for position in positions], until_s)

        values = await self._read_parts(slots, read)
        if VALUES.issuperset(map(type, values)):
            return values
        elsewhere = [position for position, value in enumerate(values) if isinstance(value, ReadElsewhere)]
        read_again = await all_done(*(self._read_again(names[position], until_s) for position in elsewhere))
        for position, (value,) in zip(elsewhere, read_again, strict=True):
            values[position] = value
        return [self._part_of(value) for value in values]

    async def _read_parts(
        self, slots: Sequence[int], read: Callable[[RedisNode | None, Sequence[int]], Awaitable[list[ReadResult]]]
    ) -> list[ReadResult]:
        """Call *read* with each primary and the positions of its keys in *slots*; return values by position."""
        groups = self._deployment.positions_by_primary(slots)
        if len(groups) == 1:  # as for one key
            ((node, positions),) = groups.items()
            return await read(node, positions)
        values = list[ReadResult]([None]) * len(slots)
        parts = await all_done(*(read(node, positions) for node, positions in groups.items()))
        for positions, part in zip(groups.values(), parts, strict=True):
            for position, value in zip(positions, part, strict=True):
                values[position] = value
        return values

    async def _read_part(
        self, node: RedisNode | None, names: Sequence[bytes], until_s: float | None
    ) -> list[ReadResult]:
        """Read keys at a node of a cluster; its failure is the value of each of them."""
        if node is None:
            return [ReadElsewhere("no node is known")] * len(names)
        server = self._deployment.server(node)
        try:
            async with asyncio.timeout_at(until_s):
                return await self._read_at(server, names, until_s)
        except TimeoutError:
            failure = self._late()
        except StoreUnavailable as error:
            failure = error
        self._deployment.schedule_refresh(node)
        return [failure] * len(names)

    async def _read_at(self, server: Server, names: Sequence[bytes], until_s: float | None) -> list[ReadResult]:
        """Read keys at a server, once more over another connection if the open one is lost.

        Raises StoreUnavailable, after which the deployment looks for its servers again in the background.
        """
        read = Multiplexer.get_each if self._is_clustered else Multiplexer.mget
        timeout_s = COMMAND_TIMEOUT_S if until_s is None else LOOKUP_TIMEOUT_S
        try:
            connection = server.reads
            if connection is None:
                self._deployment.lifetime.check()  # an open connection refuses calls on another loop itself
                connection = await server.open_reads()
            try:
                return await read(connection, names, timeout_s)
            except StoreUnavailable:
                if connection.error is None:  # refused by the server, which would refuse again
                    raise
                return await read(await server.open_reads(), names, timeout_s)
        except StoreUnavailable:
            self._deployment.schedule_refresh()
            raise

    async def _read_again(self, name: bytes, until_s: float | None) -> list[ReadResult]:
        """Read a key where another node has it; return its value or error."""
        try:
            async with asyncio.timeout_at(until_s):
                return [await self._deployment.execute("GET", name)]
        except TimeoutError:
            return [self._late()]
        except StoreError as error:
            return [error]

    async def missing(self, release: ReleaseRef, keys: Sequence[str]) -> list[str]:
        names = self._keys.release(release).located(keys).names
        try:
            replies = await self._deployment.execute_each([("EXISTS", name) for name in names])
        except AccessDenied:  # GET and MGET are granted, but keep rows from an eviction by `allkeys-lru`
            replies = await self.get_many(release, keys)
        return [key for key, reply in zip(keys, replies, strict=True) if not reply]

    async def catalogue(self) -> Catalogue:
        return (await self._deployment.run(self._keys.catalogue, self._read_catalogue)).catalogue

    async def _read_catalogue(self, session: Session) -> StoredCatalogue:
        """Read the catalogue, the server's clock and its role over one connection.

        `now` of the catalogue is the server's time, `primary` whether the server said that it is one. Raises
        StoreError.
        """
        record, clock, greeting = await session.replies(("GET", self._keys.catalogue), ("TIME",), ("HELLO",))
        raise_first_error([record, clock])  # a refused HELLO counts as a replica

        seconds, micros = clock
        now = seconds + micros / 1e6
        catalogue = Catalogue(now=now)
        if record is not None:
            catalogue = catalogue_record.parse(record, now=now, where=self._deployment.shown)
        return StoredCatalogue(record, replace(catalogue, primary=is_primary(greeting)))

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        commands = [("GET", self._keys.record(name)) for name in names]
        return await self._deployment.execute_all(self._keys.catalogue, *commands)

    async def poll(self) -> Catalogue:
        if self._deployment.is_loaded:  # else the read asks for the primary
            with suppress(StoreError):  # a primary that was replaced may still answer
                await self._deployment.confirm_primary()
        return await self.catalogue()

    async def close(self) -> None:
        await self._deployment.close()

    async def warnings(self) -> list[str]:
        """Return a sentence per primary that may drop lists once its memory is full."""
        sentences = list[str]()
        for server in await self._deployment.primary_servers():
            eviction = (await examination.measure(server)).eviction()
            if eviction.level == Level.ERROR:
                sentences.append(f"{server.address.shown}: {eviction.sentence}")
        return sentences

    def _late(self) -> StoreUnavailable:
        """Return the error of a value that did not arrive in time."""
        return StoreUnavailable(f"a node of {self._deployment.shown} did not answer in time")

    def _part_of(self, value: ReadResult) -> ReadResult:
        """Return a value, or the failure of its node as PartUnavailable, since other nodes may answer.

        A failure schedules a discovery.
        """
        if not isinstance(value, StoreUnavailable):
            return value
        self._deployment.schedule_refresh()
        failure = PartDenied if isinstance(value, AccessDenied) else PartUnavailable
        return failure(str(value))


def _absence_or_error(release: ReleaseRef, state: ReadResult) -> StoreError | None:
    """Return None for a row that a bucket in this *state* does not have, or the error if that is unknown."""
    if state == SEALED:
        return None
    if isinstance(state, StoreError):
        return state
    lost = not_found(release) if state is None else unsealed(release, 1, BUCKETS)
    return PartLost(str(lost))
