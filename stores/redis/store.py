"""The Redis store, of one server, behind sentinels or in a cluster: every row a plain string, releases side by side.

A single server is a cluster of one node. A release lies in buckets, each in one slot of a cluster and with a state of
its own. All that belongs to the whole release lies in the first bucket's slot. What one server does in one step has an
order in a cluster, if nothing changes two slots at once:

create    the inventory names the incarnation; the first step is claimed, which decides who writes; then the others,
          each from the state that was read of it before the first was seen to be still ours. A writer that was
          replaced before it had claimed all cannot claim one more.
put       see `hotplate.stores.redis.writer`.
seal      the first step is sealed, after which nothing can be claimed; then the others, each after the last of its
          rows, and the replicas are waited for. A node that lost the end of what it was sent has lost this, too.

The catalogue lies in one slot, and a script is one step on the server. If there may be something to replace, a script
deletes before it sets: one that has written is not stopped by `maxmemory`, and deleting counts as writing. A full
server must still be able to give a draft up, or nothing would free its memory.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hotplate.stores import catalogue as catalogue_record
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef, newly_committed
from hotplate.stores.errors import ReleaseConflict, StoreError
from hotplate.stores.redis import examination
from hotplate.stores.redis.connection import PipelinedConnection, Reconnector, Sender, role_of
from hotplate.stores.redis.keys import SEALED, Keys, check_owned, state_of, unsealed
from hotplate.stores.redis.lookups import ClusterLookups, RedisLookups, ServerLookups
from hotplate.stores.redis.topology import (
    CONTROL_WAIT_S,
    ONLY,
    Nodes,
    OnlyServer,
    Sentinels,
    Servers,
    Topology,
    wait_for_replicas,
)
from hotplate.stores.redis.url import (
    ClusterAddress,
    RedisAddress,
    SentinelAddress,
    ServerRole,
    parse,
    parse_cluster,
    parse_sentinel,
)
from hotplate.stores.redis.writer import Inventory, RowsLost, Writer, with_retries
from hotplate.stores.store import (
    Diagnosed,
    Finding,
    Level,
    Plan,
    Row,
    RowEraser,
    Slot,
    not_found,
    sealed,
    traced_call,
)
from hotplate.stores.urls import scheme_of

log = logging.getLogger(__name__)

# When a server that does not answer lookups is given up; callers bring shorter timeouts of their own.
READ_TIMEOUT_S = 1.0

# The same for everything else, the largest batches included.
TIMEOUT_S = 5.0

# For how long a batch is tried again while a server restarts or another one takes over. It is longer in a cluster,
# which elects a replica after cluster-node-timeout, 15 s; create and seal are tried again there as well.
RETRY_FOR_S = 10.0
CLUSTER_RETRY_FOR_S = 30.0


# How often the catalogue is read if no message says that it changed.
POLL_S = 1.0

# SWAP takes the key of the catalogue; the expected version in three parts, the new record and the channel. A user who
# may not publish may swap.
SWAP = """
local stored = redis.call('GET', KEYS[1])
local version = {store_id = '', generation = 0, token = ''}
if stored then version = cjson.decode(stored) end
if version.store_id ~= ARGV[1] or version.generation ~= tonumber(ARGV[2]) or version.token ~= ARGV[3] then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', ARGV[5], ARGV[2])
return 1
"""

# REPLACE_RECORD takes the key of the catalogue; the record that is expected, byte by byte, the new one, the channel and
# the message.
REPLACE_RECORD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
"""

# CLAIM takes the keys of the states of a release's first step, and the state to set. It returns the state before; one
# that is sealed stays.
CLAIM = """
local state = redis.call('GET', KEYS[1])
if state == 'sealed' then return state end
if state then redis.call('DEL', unpack(KEYS)) end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1]) end
return state
"""

# REPLACE takes the keys of a step's states, the state that is expected of the first, empty for none, and the state
# to set. It returns the state before.
REPLACE = """
local state = redis.call('GET', KEYS[1])
if (state or '') ~= ARGV[1] then return state end
if state then redis.call('DEL', unpack(KEYS)) end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[2]) end
return state
"""


async def send_replicated(connection: Sender, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
    """Send a command, and wait a while for a replica to have its effect; return its reply.

    StoreUnavailable if the primary is replaced: whether the next one has it, is for others to see.
    """
    reply = await connection.send_command(*args)
    await wait_for_replicas(connection, wanted=1, timeout_s=CONTROL_WAIT_S)
    return reply


class Control:
    """Reads and changes the catalogue, and reads how far drafts are; lives as long as its store."""

    def __init__(self, nodes: Nodes, keys: Keys) -> None:
        self._nodes = nodes
        self._keys = keys

    async def catalogue(self) -> Catalogue:
        """See the contract."""
        return await self._nodes.run(self._keys.catalogue, self._read_catalogue)

    async def _read_catalogue(self, connection: Sender) -> Catalogue:
        record, time_, greeting = await asyncio.gather(
            connection.send_command(b"GET", self._keys.catalogue),
            connection.send_command(b"TIME"),
            _optional(connection.send_command(b"HELLO", 2)),
        )
        try:
            seconds, micros = time_
            now, primary = int(seconds) + int(micros) / 1e6, role_of(greeting) == ServerRole.PRIMARY
        except (TypeError, ValueError) as error:
            raise connection.lose("replied to a read of the catalogue with something else") from error
        if record is None:
            return Catalogue(now=now, primary=primary)
        return replace(catalogue_record.parse(record, now=now, where=self._nodes.topology.shown), primary=primary)

    async def changes(self, on_polled: Callable[[], None]) -> AsyncIterator[Catalogue]:
        """See the contract; a subscription, on a connection of its own, says when to read, and POLL_S at the latest.

        *on_polled* is called whenever the catalogue was read.
        """
        changed = asyncio.Event()
        subscription = self._nodes.listening(changed.set)
        subscribed: Sender | None = None
        seen: Catalogue | None = None

        async def subscribe(connection: Sender) -> None:
            nonlocal subscribed
            if connection is not subscribed:
                await connection.send_command(b"SUBSCRIBE", self._keys.changes)
                subscribed = connection

        try:
            while True:
                changed.clear()
                with suppress(StoreError):  # without a subscription polling is enough; the attempts back off
                    await subscription.run(self._keys.catalogue, subscribe)
                found = await self.catalogue()
                on_polled()
                if seen is None or found.version != seen.version:
                    seen = found
                    yield found
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await changed.wait()
        finally:
            await subscription.close()

    async def swap_by(self, connection: Sender, old: Catalogue, new: Catalogue) -> None:
        """Change the catalogue by a connection to the server that has it; see the contract."""
        args = (*old.version, catalogue_record.dump(new), self._keys.changes)
        if not await send_replicated(connection, b"EVAL", SWAP, 1, self._keys.catalogue, *args):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        """See the contract."""
        key, channel = self._keys.catalogue, self._keys.changes
        command = (b"EVAL", REPLACE_RECORD, 1, key, record, catalogue_record.dump(new), channel, new.generation)
        if not await self._nodes.run(key, lambda connection: send_replicated(connection, *command)):
            raise ReleaseConflict("the catalogue was changed by somebody else first")

    async def resume_point(self, draft: DraftRef, part: int) -> str | None:
        """See the contract; the state of the first bucket is everybody's."""
        keys = self._keys.release(draft)

        async def read(connection: Sender) -> tuple[bytes | None, bytes | None]:
            sent = connection.send_command(b"HGET", keys.points, part), connection.send_command(b"GET", keys.state)
            return await sent[0], await sent[1]

        key, state = await self._nodes.run(keys.state, read)
        check_owned(draft, state)
        return None if key is None else key.decode()


async def _optional(reply: asyncio.Future[Any]) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
    """Return a reply, or None for one that the server refuses."""
    try:
        return await reply
    except StoreError:
        return None


class RedisStore(Diagnosed, RowEraser):
    """One deployment in one database of a server, or in a cluster; an instance belongs to one event loop and process.

    Lookups, control and writing have a connection each to every server, so none waits behind another, opened when
    it is needed. All are to primaries; lookups of a server behind sentinels may have another one, to a replica.
    """

    batch = coalesce = 256
    """A key costs the client 0.4 µs and the server 1.1 µs (at 64: 0.9 and 1.6), and others wait for 0.3 ms at most.

    In a cluster it costs the client twice as much, and each node has only its part of them.
    """

    def __init__(self, address: RedisAddress | SentinelAddress | ClusterAddress) -> None:
        self._address = address
        self._sentinels: Sentinels | None = None
        self._servers: Servers
        match address:
            case ClusterAddress():
                self._common, self._servers = address.node, Topology(address)
            case SentinelAddress():
                self._common, self._sentinels = address.server, Sentinels(address)
                self._servers = OnlyServer(self._sentinels, address.server.shown)
            case RedisAddress():
                self._common, self._servers = address, OnlyServer(address, address.shown)
        self._clustered = isinstance(address, ClusterAddress)
        self._keys = keys = Keys(self._common.prefix, self._clustered)
        self._reads = Nodes(self._servers, READ_TIMEOUT_S)
        self._nodes = Nodes(self._servers, TIMEOUT_S)
        self._writes = Nodes(self._servers, TIMEOUT_S)
        self._control = Control(self._nodes, keys)
        self._lookups: RedisLookups
        self._scans: RedisLookups
        if self._clustered:
            self._lookups, self._scans = ClusterLookups(keys, self._reads), ClusterLookups(keys, self._nodes)
        else:
            replicas = None if self._sentinels is None else self._sentinels.replicas
            replica = None if replicas is None else Reconnector(replicas, READ_TIMEOUT_S)
            self._lookups = ServerLookups(keys, self._reads.at(ONLY), replica)
            self._scans = ServerLookups(keys, self._nodes.at(ONLY))
        retry_for_s = CLUSTER_RETRY_FOR_S if self._clustered else RETRY_FOR_S
        self._writer = Writer(self._writes, keys, retry_for_s)
        self._step_retry_for_s = CLUSTER_RETRY_FOR_S if self._clustered else 0.0
        self._inventory = Inventory(self._nodes, keys, self._step_retry_for_s)

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        if (call := traced_call.get()) is not None:
            if self._clustered:
                self._common.describe(call, "GET", len(keys))
            else:
                self._common.describe(call, "MGET")
        return await self._lookups.get(release, keys, timeout_s)

    async def catalogue(self) -> Catalogue:
        return await self._control.catalogue()

    def changes(self) -> AsyncIterator[Catalogue]:
        return self._control.changes(self._note_poll)

    def _note_poll(self) -> None:
        self.polled_at = time.monotonic()

    async def close(self) -> None:
        await self._servers.close()
        for opened in (self._lookups, self._reads, self._nodes, self._writes):
            await opened.close()
        if self._sentinels is not None:
            await self._sentinels.close()

    async def warnings(self) -> list[str]:
        found = list[str]()
        for server in await self._nodes.primaries():
            found += (await examination.measure(server)).warnings(await self._where(server))
        return found

    async def _where(self, server: Reconnector) -> str:
        return (await server.connection()).where if self._clustered else self._servers.shown

    async def examine(self) -> list[Finding]:
        if isinstance(self._servers, Topology):
            return await examination.examine_cluster(self._servers, self._keys)
        if self._sentinels is None:
            return await examination.examine(self._common, self._keys)
        findings = await self._sentinels.examine()
        try:
            primary = await self._sentinels.resolve()
            findings += await examination.examine(primary, self._keys)
            return findings + await examination.examine_replicas(primary)
        except StoreError as error:
            return [*findings, Finding(Level.ERROR, "primary", str(error))]

    async def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        await self._control.replace_unreadable(record, new)

    async def incarnations(self) -> list[str]:
        return await self._inventory.incarnations()

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        keys = self._keys.release(draft)
        await self._servers.load()
        for node in self._servers.primaries:
            share = sum(self._servers.owner(slot) == node for slot in keys.slots) / len(keys.slots)
            part = Plan(int(plan.rows * share), int(plan.payload_bytes * share))
            server = self._nodes.at(node)
            (await examination.measure(server)).check(part, keys, await self._where(server))

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        await with_retries(lambda: self._create(draft, plan), self._step_retry_for_s)

    async def _create(self, draft: DraftRef, plan: Plan) -> None:
        keys = self._keys.release(draft)
        if not await self._nodes.execute_command(b"EXISTS", keys.state):  # one that exists has written some of *plan*
            await self.check_room(draft, plan)
        await self._inventory.add(draft)
        names = keys.steps[0]

        async def claim(connection: Sender) -> bytes | None:
            sent = send_replicated(connection, b"EVAL", CLAIM, len(names), *names, state_of(draft))
            before: bytes | None = await sent
            return before

        before = await self._nodes.run(keys.state, claim)
        if before == SEALED:
            raise sealed(draft)
        await self._claim_others(draft)
        await self._inventory.add(draft)  # once more: an erase of the incarnation may have taken it off in between
        if before is None:
            self._writer.forget(draft)

    async def _claim_others(self, draft: DraftRef) -> None:
        """Claim all steps but the first, which is ours."""
        mine, keys = state_of(draft), self._keys.release(draft)
        while len(keys.steps) > 1:
            states = await self._states(draft)  # before we see that the first is still ours: if another writer claims
            check_owned(draft, await self._nodes.execute_command(b"GET", keys.state))  # it now, ours fail after these
            claimed = list(zip(keys.steps, states, strict=True))[1:]
            others = [(step, state) for step, state in claimed if state not in (mine, SEALED)]
            if not others:
                return
            await asyncio.gather(*(self._nodes.evaluate(REPLACE, step, state or b"", mine) for step, state in others))

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        point = await self._control.resume_point(draft, part)
        self._writer.forget(draft)
        return point

    async def seal(self, draft: DraftRef) -> None:
        """See the contract; replicas that follow are waited for, and what a failover could lose is logged."""
        await with_retries(lambda: self._seal(draft), self._step_retry_for_s)

    async def _seal(self, draft: DraftRef) -> None:
        keys = self._keys.release(draft)
        first, *others = keys.steps

        async def seal_first(connection: Sender) -> Sender:
            await self._writer.check_kept(draft, connection)
            before = await connection.send_command(b"EVAL", REPLACE, len(first), *first, state_of(draft), SEALED)
            if before != SEALED:
                check_owned(draft, before)
            return connection

        sealed_by = await self._nodes.run(keys.state, seal_first)
        used = list({sealed_by, *await asyncio.gather(*(self._seal_other(draft, step) for step in others))})
        is_replicated = self._clustered or self._sentinels is not None
        waits = (wait_for_replicas(connection) for connection in used)
        for connection, found in zip(used, await asyncio.gather(*waits), strict=True):
            if found is not None and (is_replicated or found.acknowledged < found.replicas):
                for sentence in found.shortfalls(connection.where):
                    log.warning("release %s is written; %s", draft.id, sentence)

    async def _seal_other(self, draft: DraftRef, step: Sequence[str]) -> Sender:
        """Seal a step but the first; if another writer's run had come as far as here, it may be that writer's."""

        async def seal(connection: Sender) -> Sender:
            expected = state_of(draft)
            while True:
                before = await connection.send_command(b"EVAL", REPLACE, len(step), *step, expected, SEALED)
                if before is None:
                    raise not_found(draft)
                if before in (SEALED, expected):
                    return connection
                expected = before

        return await self._nodes.run(step[0], seal)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        await self.prepare(release)
        async for keys in self._inventory.chunks(release):
            for key, slot in zip(keys, await self._scans.get(release, keys), strict=True):
                if isinstance(slot, StoreError):
                    raise slot
                if slot is not None:
                    yield Row(key, slot)

    async def prepare(self, release: ReleaseRef) -> None:
        states = await self._states(release)
        if not any(states):
            raise not_found(release)
        if missing := sum(state != SEALED for state in states):
            raise unsealed(release, missing, len(states))

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        """See the contract; what a release gains by it outlives a failover that is under way, or it is not made.

        Raises RowsLost if the server does not have all of the release, because it took the place of one that had.
        """
        releases = newly_committed(old, new)

        async def change(connection: Sender) -> None:
            for release in () if self._clustered else releases:
                state = await connection.send_command(b"GET", self._keys.release(release).state)
                if state not in (None, SEALED):
                    raise RowsLost(f"{self._servers.shown}: {unsealed(release, 1, 1)}")
            await self._control.swap_by(connection, old, new)
            if releases and self._sentinels is not None:
                assert isinstance(connection, PipelinedConnection)  # noqa: S101 -- only a cluster has others
                await self._sentinels.wait_replicated(connection)

        if releases and self._sentinels is not None:
            await self._sentinels.state(of_all=True)
        await self._nodes.run(self._keys.catalogue, change)

    async def erase(self, release: ReleaseRef) -> None:
        await self._inventory.erase(release)

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        await self.prepare(release)
        names = self._keys.release(release).rows(keys)
        return sum(await asyncio.gather(*(self._nodes.execute_command(b"DEL", name) for name in names)))

    async def _states(self, release: ReleaseRef | DraftRef) -> list[bytes | None]:
        """Return the state of each step; raises StoreError."""
        steps = self._keys.release(release).steps
        found: list[bytes | None] = await asyncio.gather(
            *(self._nodes.execute_command(b"GET", step[0]) for step in steps)
        )
        return found


def open_url(url: str) -> RedisStore:
    """Open `redis://[USER:PASSWORD@]HOST:PORT/DB?prefix=NAME`, `rediss://…&ca=FILE` or `unix:///SOCKET?db=0`.

    Or `redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB?read=replica`, or `redis+cluster://SEED[:PORT],SEED…/`, or the same
    over TLS, `rediss+sentinel://…` and `rediss+cluster://…`.
    """
    scheme = scheme_of(url)
    if scheme.endswith("+cluster"):
        return RedisStore(parse_cluster(url))
    return RedisStore(parse_sentinel(url) if scheme.endswith("+sentinel") else parse(url))
