"""The servers of a deployment: which server has a key, and how to connect to it.

A deployment is one server, servers behind sentinels (`hotplate.stores.redis.sentinels`), or a cluster
(`hotplate.stores.redis.cluster`). Redis hashes each key to one of 16,384 *slots*. A cluster divides them among its
primaries; elsewhere one primary has them all. Primaries take writes, and replicas follow them.

Commands are sent to the server that has their key. A cluster's redirections are followed here, because a session keeps
its connection: redis-py sends ASKING as a separate command of a pool, and so perhaps over another connection than the
command that it is for. A redirected command was refused, so it may be sent again.

Sentinels and the nodes of a cluster are asked over connections of redis-py: before the first command, and, with pauses,
when a command follows a failure or a redirection.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import starmap
from math import inf
from typing import Any, NamedTuple, TypeVar

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError

from hotplate.base.timing import loop_time
from hotplate.stores.concurrency import Lifetime, SharedCall, all_done, end_tasks
from hotplate.stores.errors import PartUnavailable, StoreClosed, StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import Command, Session, connect_to_any, raise_first_error, settings_of
from hotplate.stores.redis.credentials import Credentials
from hotplate.stores.redis.replication import Replication, wait_for_replicas, warn_unacknowledged
from hotplate.stores.redis.server import Server
from hotplate.stores.redis.url import RedisAddress, show
from hotplate.stores.store import Finding

log = logging.getLogger(__name__)

T = TypeVar("T")

DISCOVERY_PAUSES_S = (0.1, 1.0)  # first and longest between discoveries
SETTLE_PAUSE_S = 0.1  # between waits for replicas
CALM_S = 5.0  # time without a new discovery that resets the pauses
MAX_REDIRECTIONS = 8


class RedisNode(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return show(self.host, self.port)


Shard = tuple[RedisNode, ...]
"""A primary, then its replicas."""

AfterCommands = Callable[[Session], Awaitable[object]]
"""Called with the session of a server after the commands to it."""


class _Target(NamedTuple):
    """A server to send commands to; with *is_asking*, each after ASKING."""

    node: RedisNode
    is_asking: bool = False


_ServerKey = tuple[RedisNode, bool]
"""A server, and whether it is only read from, over other connections than as a primary."""


class Deployment:
    """The servers of one URL, and all connections to them; for one event loop.

    This class is for one server, which the URL names; sentinels and clusters override how servers are found.

    It is asked for its servers; concurrent callers share one discovery. The servers are unknown until a discovery
    succeeds, and known from then on (`is_loaded`).
    """

    is_clustered = False
    """Whether primaries share the keys by slot, so that only keys in one slot change atomically."""

    expects_replicas = False
    """Whether a replica is to take over from a primary that fails."""

    set_up_primary = staticmethod(connect_to_any)
    set_up_replica = staticmethod(connect_to_any)
    """What redis-py calls with a new connection to a server."""

    settle_s = 0.0
    """How long to wait for replicas that the primary lacks for a moment."""

    def __init__(self, common: RedisAddress, credentials: Credentials | None = None) -> None:
        """*common* has the settings of all servers; *credentials* replace its user and password."""
        self.common = common
        self.credentials = credentials
        self.shown = common.shown
        self.lifetime = Lifetime(common.shown)
        self.is_loaded = False
        """Whether the servers are known."""

        self.shards: list[Shard] = [()] * REDIS_CLUSTER_HASH_SLOTS
        """By slot; empty if no node is known to have it."""

        self.nodes = set[RedisNode]()
        self.primaries: Sequence[RedisNode] = ()
        self.only_primary: Server | None = None
        """The connections to the only primary, once it is known; None in a cluster."""

        self.has_replicas = False
        """Whether a replica is known now."""

        self._failed = set[RedisNode]()
        """Servers that did not answer since the last discovery, which are asked last."""

        self._servers = dict[_ServerKey, Server]()
        self._retiring = set[asyncio.Task[None]]()
        """Tasks that close servers which are replaced or removed."""

        self._discovery = SharedCall(self._discover, partial(StoreClosed, common.shown), DISCOVERY_PAUSES_S)
        self.refresh_at = -inf
        """Time of the loop's clock from which `load` asks for the servers (again)."""

        self._refresh_asked_at = -inf
        if credentials is not None:
            credentials.on_renewal(self.renew)

    async def ask(self) -> object:
        """Ask for the servers, and take them over by `follow`. Raises StoreError."""
        self.follow((RedisNode(self.common.host, self.common.port),))
        return self.primaries

    async def load(self) -> None:
        """Discover the servers: now if they are unknown, or in the background if a refresh is due.

        After a failure, raises its error until the pause before the next discovery is over.
        """
        self.lifetime.check()
        if not self.is_loaded:
            await self.discover()
        elif loop_time() >= self.refresh_at:
            self.refresh_at = inf
            self._discovery.start()

    async def discover(self) -> None:
        """Discover the servers, or wait for the discovery in progress; raises StoreError."""
        await self._discovery.result()

    def schedule_refresh(self, failed: RedisNode | None = None) -> None:
        """Let a later call discover the servers again, after a pause that doubles while refreshes are asked for.

        *failed* is a server that did not answer. If it hangs, asking it first would delay the discovery.
        """
        if failed is not None:
            self._failed.add(failed)
        if self.refresh_at < inf or self._discovery.is_running:
            return
        now = loop_time()
        if now - self._refresh_asked_at > CALM_S:
            self._discovery.pauses.reset()
        self._refresh_asked_at = now
        self.refresh_at = now + self._discovery.pauses.next_s()

    def follow(self, shard: Shard) -> None:
        """Take over the servers of a deployment with one primary."""
        self.shards = [shard] * REDIS_CLUSTER_HASH_SLOTS
        self.note_nodes(set(shard), {shard[0]})
        self.only_primary = self.server(shard[0])

    def note_nodes(self, nodes: set[RedisNode], primaries: set[RedisNode]) -> None:
        """Take over the nodes; log a change of the primaries."""
        if self.primaries and sorted(primaries) != self.primaries:
            log.warning("the primaries of %s are now %s", self.shown, ", ".join(map(str, sorted(primaries))))
        self.primaries = sorted(primaries)
        self.has_replicas = nodes > primaries
        self.nodes = nodes

    def primary_of(self, slot: int) -> RedisNode | None:
        """Return the primary that has a slot; None if it is unknown, which schedules a discovery."""
        shard = self.shards[slot]
        if not shard:
            self.schedule_refresh()
            return None
        return shard[0]

    def replica_of(self, slot: int) -> RedisNode | None:
        """Return a random replica of the primary of a slot, to spread load; None if none is known."""
        replicas = self.shards[slot][1:]
        return random.choice(replicas) if replicas else None  # noqa: S311 -- spreads load

    def positions_by_primary(self, slots: Sequence[int]) -> dict[RedisNode | None, list[int]]:
        """Group the positions in *slots* by the primary that has the slot; None holds those of unknown primaries."""
        by_primary = dict[RedisNode | None, list[int]]()
        for position, slot in enumerate(slots):
            by_primary.setdefault(self.primary_of(slot), []).append(position)
        return by_primary

    def address(self, node: RedisNode) -> RedisAddress:
        """Return the address of a server."""
        del node
        return self.common

    def server(self, node: RedisNode, *, replica: bool = False) -> Server:
        """Return the connections to a server, which are created at the first call.

        A *replica* is only read from, over other connections than as a primary.

        They are retired once the server does not belong to the deployment any more. That is looked for before another
        server is added, and when credentials are renewed: each change of addresses would leave connections behind.
        """
        self.lifetime.check()
        key = (node, replica)
        server = self._servers.get(key)
        if server is None:
            if node in self.nodes:  # nodes that import their first slots are unknown, but in use
                self._retire_removed()
            server = self._new_server(key)
            self._servers[key] = server
        return server

    def _new_server(self, key: _ServerKey) -> Server:
        node, is_replica = key
        address = self.address(node)
        set_up = self.set_up_replica if is_replica else self.set_up_primary
        return Server(address, {**settings_of(address, self.credentials), "redis_connect_func": set_up})

    def _retire_removed(self) -> None:
        removed = [key for key in self._servers if key[0] not in self.nodes]
        for key in removed:
            self._retire(self._servers.pop(key))

    def _retire(self, server: Server) -> None:
        task = asyncio.create_task(server.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def primary_servers(self) -> list[Server]:
        """Return the servers of all primaries; raises StoreError."""
        await self.load()
        return [self.server(node) for node in self.primaries]

    def follow_moved(self, moved: MovedError, sender: RedisNode) -> RedisNode:
        """Record *sender*'s reply that another node has a slot now; return that node."""
        del sender
        sentence = f"{self.shown} is a node of a cluster; write redis+cluster:// instead of redis://"
        raise StoreMisused(sentence) from moved

    async def confirm_primary(self) -> None:
        """Raise StoreUnavailable if the primary was replaced, or if that cannot be found out."""

    async def ensure_replicated(self, session: Session, done: str, wait_s: float) -> None:
        """Wait up to *wait_s* until all replicas have the writes of *session*, repeatedly during `settle_s`.

        If some do not, warns that a failover could lose the writes; *done* says what was written, for example
        "release R is written". Raises StoreUnavailable if the primary was replaced meanwhile.
        """
        give_up_at = time.monotonic() + self.settle_s
        while True:
            replication = await wait_for_replicas(session, timeout_s=wait_s)
            named = await self.named_replicas(session.node)
            if replication is None:  # this user may not wait for replicas
                give_up_at = -inf
                replication = Replication(0)
            replication = replication._replace(replicas=max(replication.replicas, named))
            if not replication.is_short:
                return
            if time.monotonic() >= give_up_at:
                warn_unacknowledged(done, replication, session.where, wait_s)
                return
            await asyncio.sleep(SETTLE_PAUSE_S)

    async def named_replicas(self, primary: tuple[str, int]) -> int:
        """Return how many replicas of a primary may take over, also while they are not linked to it; 0 if unknown.

        Raises StoreUnavailable if the primary was replaced.
        """
        return next((len(shard) - 1 for shard in self.shards if shard and shard[0] == primary), 0)

    async def execute(self, command: str, key: str | bytes, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command with one key, and return its reply; raises StoreError."""
        return await self.run(key, lambda session: session.execute(command, key, *args))

    async def execute_all(self, key: str | bytes, *commands: Command) -> list[Any]:
        """Send commands at once to the primary that has *key*, and return their replies in order; raises StoreError."""
        return await self.run(key, lambda session: session.execute_all(*commands))

    async def run(self, key: str | bytes, work: Callable[[Session], Awaitable[T]]) -> T:
        """Call *work* with a session, a connection to the primary that has *key*, and return its result.

        In a cluster, a node may answer that another one has the key, for good (MovedError) or while the key is being
        moved (AskError). Then *work* is called again with a session there. Raises PartUnavailable, after which other
        keys may still be served, if no node has the key's slot, or after MAX_REDIRECTIONS calls.
        """
        await self.load()
        slot = _slot_of(key)
        target = self._target_of(slot)
        for _ in range(MAX_REDIRECTIONS):
            try:
                async with self._session_at(target) as session:
                    return await work(session)
            except AskError as error:
                target = self._redirected(error, target.node)
        raise self._disagreement(slot)

    async def execute_each(self, commands: Sequence[Command], after: AfterCommands | None = None) -> list[Any]:
        """Send commands, each to the primary that has its key; return their replies in order.

        All nodes are asked at once, each for all its commands. A node that does not have a key, or is moving it,
        refuses the command with AskError (MovedError is one). Such commands are sent to the nodes that these errors
        name, again to all at once. *after* is called with the session of a node after the commands to it, for example
        to wait for its replicas. Raises the first StoreError among the replies, or that of a node, once no node works
        on a command any more: the caller may send them all again. Raises PartUnavailable as `run` does.
        """
        await self.load()
        slots = [_slot_of(_key_of(command)) for command in commands]
        targets = [self._target_of(slot) for slot in slots]
        replies: list[Any] = [None] * len(commands)
        unsent = list(range(len(commands)))

        # Each turn sends what was redirected in the turn before.
        for _ in range(MAX_REDIRECTIONS):
            batches = dict[_Target, list[int]]()
            for position in unsent:
                batches.setdefault(targets[position], []).append(position)

            parts = await all_done(
                *(
                    self._send(target, [commands[position] for position in positions], after)
                    for target, positions in batches.items()
                )
            )
            for positions, part in zip(batches.values(), parts, strict=True):
                for position, reply in zip(positions, part, strict=True):
                    replies[position] = reply

            unsent = [position for position in unsent if isinstance(replies[position], AskError)]
            if not unsent:
                raise_first_error(replies)
                return replies
            for position in unsent:
                targets[position] = self._redirected(replies[position], targets[position].node)

        raise self._disagreement(slots[unsent[0]])

    async def _send(self, target: _Target, commands: Sequence[Command], after: AfterCommands | None) -> list[Any]:
        """Send commands to a server at once, and call *after* with its session; return their replies."""
        async with self._session_at(target) as session:
            replies = await session.replies(*commands)
            if after is not None:
                await after(session)
            return replies

    def _target_of(self, slot: int) -> _Target:
        """Return the primary that has a slot; raises PartUnavailable if it is unknown."""
        node = self.primary_of(slot)
        if node is None:
            shown = self.shown
            raise PartUnavailable(f"no node of {shown} serves slot {slot}; see hotplate store doctor")
        return _Target(node)

    def _redirected(self, error: AskError, sender: RedisNode) -> _Target:
        """Return the server that *sender* names in a redirection."""
        if isinstance(error, MovedError):
            return _Target(self.follow_moved(error, sender))
        return _Target(RedisNode(error.host or sender.host, error.port), is_asking=True)

    def _disagreement(self, slot: int) -> PartUnavailable:
        """Return the error of a command that was redirected too often."""
        return PartUnavailable(f"the nodes of {self.shown} disagree about slot {slot}")

    @asynccontextmanager
    async def _session_at(self, target: _Target) -> AsyncIterator[Session]:
        """Hold a session at *target* during the block; a failure schedules a discovery."""
        server = self.server(target.node)
        try:
            async with server.session(asking=target.is_asking) as session:
                yield session
        except StoreUnavailable:
            self.schedule_refresh(target.node)
            raise

    async def examine(self) -> list[Finding]:
        """Return the findings of `hotplate store doctor` about the discovery of servers."""
        return []

    async def renew(self) -> None:
        """Replace all connections by ones with new credentials; raises StoreUnavailable if one cannot be opened."""
        self._retire_removed()  # a server may vanish without closing its connections
        try:
            await all_done(*starmap(self._renew, list(self._servers.items())))
        except StoreUnavailable:
            self.schedule_refresh()
            raise

    async def _renew(self, key: _ServerKey, former: Server) -> None:
        """Replace the connections to a server; if those for reads cannot be opened, the former ones stay open."""
        server = self._new_server(key)
        try:
            if former.reads is not None or former.is_in_use:
                await server.open_reads()
        except BaseException:
            await server.close()
            raise
        if self._servers.get(key) is not former:  # it was retired meanwhile
            await server.close()
            return
        self._servers[key] = server
        if self.only_primary is former:
            self.only_primary = server
        self._retire(former)

    async def close(self) -> None:
        """Stop renewals of credentials, and close all connections, also if the provider of the credentials fails.

        StoreMisused, and nothing is closed, on another event loop than that of the connections.
        """
        self.lifetime.end()
        self.refresh_at = -inf  # so that reads ask `load`, which refuses them
        try:
            if self.credentials is not None:
                await self.credentials.close()
        finally:
            await self.close_connections()

    async def close_connections(self) -> None:
        """Close all connections, and wait for those that are being closed; `close` does so once renewals have ended."""
        await self._discovery.close()
        await end_tasks(*self._retiring)
        await all_done(*(server.close() for server in self._servers.values()))

    async def _discover(self) -> None:
        await self.ask()
        self._failed.clear()
        self.is_loaded = True
        self.refresh_at = inf


def _key_of(command: Command) -> str | bytes:
    """Return the first key of a command."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return str(key) if isinstance(key, int) else key


def _slot_of(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)
