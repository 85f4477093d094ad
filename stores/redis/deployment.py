"""The servers of a deployment: which server has a key, and how to connect to it.

A deployment is one server, servers behind sentinels (`hotplate.stores.redis.sentinels`), or a cluster
(`hotplate.stores.redis.cluster`). Redis hashes each key to one of 16,384 *slots*. A cluster divides them among its
primaries; elsewhere one primary has them all. Primaries take writes, and replicas follow them.

Sentinels and the nodes of a cluster are asked over connections of redis-py: before the first command, and, with pauses,
after a failure or a redirection.
"""

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import MovedError

from hotplate.base.timing import Backoff
from hotplate.stores.concurrency import Lifetime, SharedCall, all_done
from hotplate.stores.errors import StoreClosed, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import Session, settings_of
from hotplate.stores.redis.credentials import Credentials
from hotplate.stores.redis.replication import wait_for_replicas, warn_unacknowledged
from hotplate.stores.redis.server import Server
from hotplate.stores.redis.url import RedisAddress, show
from hotplate.stores.store import Finding

if TYPE_CHECKING:
    from hotplate.stores.redis.multiplexed import Reconnector

log = logging.getLogger(__name__)

DISCOVERY_TIMEOUT_S = 1.0  # per node or sentinel
DISCOVERY_PAUSES_S = (0.1, 1.0)  # first and longest between discoveries
CALM_S = 5.0  # time without a new discovery that resets the pauses


class RedisNode(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return show(self.host, self.port)


class _Refresh(NamedTuple):
    """A discovery in the background, after a pause.

    *failure* is the error of the discovery before it, which callers get until this one has ended. It is None if the
    servers are known, and only asked for again.
    """

    task: asyncio.Task[None]
    failure: StoreError | None


class Deployment:
    """The servers of one URL, and all connections to them; for one event loop.

    This class is for one server, which the URL names; sentinels and clusters override how servers are found.

    It is asked for its servers; concurrent callers share one discovery. The servers are unknown until a discovery
    succeeds, and known from then on (`is_loaded`). In both states, a refresh may be scheduled.
    """

    is_clustered = False
    """Whether primaries share the keys by slot, so that only keys in one slot change atomically."""

    expects_replicas = False
    """Whether a replica is to take over from a primary that fails."""

    def __init__(self, common: RedisAddress, credentials: Credentials | None = None) -> None:
        """*common* has the settings of all servers; *credentials* replace its user and password."""
        self.common = common
        self.credentials = credentials
        self.shown = common.shown
        self.lifetime = Lifetime(common.shown)
        self.is_loaded = False
        """Whether `primaries` are known."""

        self.primaries: Sequence[RedisNode] = ()
        self.primary_reads: Reconnector | None = None
        """The connection for reads of the only primary, once it is known; None in a cluster."""

        self.has_replicas = False
        """Whether `replica_of` knows a replica now."""

        self._failed = set[RedisNode]()
        """Servers that did not answer since the last discovery, which are asked last."""

        self._servers = dict[RedisNode, Server]()
        self._closing = set[asyncio.Task[None]]()
        """Tasks that close connections that are no longer needed."""

        self._discovery = SharedCall(self._discover, partial(StoreClosed, common.shown))
        self._refresh: _Refresh | None = None
        self._refresh_asked_at = float("-inf")
        self._backoff = Backoff(*DISCOVERY_PAUSES_S)
        if credentials is not None:
            credentials.on_renewal(self.renew)

    async def ask(self) -> object:
        """Ask for the servers, and set `primaries` and `has_replicas`. Raises StoreError."""
        self.follow_primary(RedisNode(self.common.host, self.common.port))
        return self.primaries

    async def load(self) -> None:
        """Discover the servers if they are unknown; after a failure, raises its error until the next discovery."""
        self.lifetime.check()
        if self.is_loaded:
            return
        if self._refresh is not None and self._refresh.failure is not None:
            raise self._refresh.failure.with_traceback(None)
        await self.discover()

    async def discover(self) -> None:
        """Discover the servers now, or wait for the discovery in progress; raises StoreError."""
        await self._discovery.result()

    def schedule_refresh(self, failed: RedisNode | None = None) -> None:
        """Discover the servers again after a pause, which doubles until no discovery was asked for during CALM_S.

        *failed* is a server that did not answer. If it hangs, asking it first would delay the discovery.
        """
        if failed is not None:
            self._failed.add(failed)
        self._schedule(failure=None)

    def replica_of(self, slot: int) -> RedisNode | None:
        """Return a random replica of the primary of a slot; None if none is known."""
        del slot
        return None

    def address(self, node: RedisNode) -> RedisAddress:
        """Return the address of a server."""
        del node
        return self.common

    def follow_primary(self, node: RedisNode) -> None:
        """Take over the only primary."""
        self.primaries = (node,)
        self.primary_reads = self.server(node).reads

    def primary_of(self, slot: int) -> RedisNode | None:
        """Return the primary that has a slot; None if it is unknown, which schedules a discovery."""
        del slot
        return self.primaries[0]

    def knows(self, node: RedisNode) -> bool:
        """Return whether a server belongs to the deployment, as far as is known now."""
        return node in self.primaries

    def positions_by_primary(self, slots: Sequence[int]) -> dict[RedisNode | None, list[int]]:
        """Group the positions in *slots* by the primary that has the slot; None holds those of unknown primaries."""
        return {self.primaries[0]: list(range(len(slots)))}

    def settings(self, node: RedisNode, *, replica: bool = False) -> dict[str, Any]:
        """Return the arguments of redis-py's connections to a server.

        A *replica* is only read from, so that it need not be a primary.
        """
        address = self.address(node)
        if replica:
            address = replace(address, is_primary=False)
        return settings_of(address, self.credentials)

    def server(self, node: RedisNode) -> Server:
        """Return the connections to a server, which are created at the first call.

        They are retired once the server does not belong to the deployment any more. That is looked for before another
        server is added, and when credentials are renewed: each change of addresses would leave connections behind.
        """
        self.lifetime.check()
        server = self._servers.get(node)
        if server is None:
            if self.knows(node):  # nodes that import their first slots are unknown, but in use
                self._retire_removed()
            server = Server(self.address(node), self.settings(node), self.settings(node, replica=True))
            self._servers[node] = server
        return server

    def _retire_removed(self) -> None:
        removed = [node for node in self._servers if not self.knows(node)]
        for node in removed:
            self.close_later(self._servers.pop(node).retire())

    def close_later(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close connections in a task, because that waits for their last replies and for servers."""
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def primary_servers(self) -> list[Server]:
        """Return the pools of all primaries; raises StoreError."""
        await self.load()
        return [self.server(node) for node in self.primaries]

    async def follow_moved(self, moved: MovedError, sender: RedisNode) -> RedisNode:
        """Record *sender*'s reply that another node has a slot now; return that node."""
        del sender
        sentence = f"{self.shown} is a node of a cluster; write redis+cluster:// instead of redis://"
        raise StoreMisused(sentence) from moved

    async def confirm_primary(self) -> None:
        """Raise StoreUnavailable if the primary was replaced, or if that cannot be found out."""

    async def ensure_replicated(self, session: Session, done: str, wait_s: float) -> None:
        """Wait up to *wait_s* until all replicas have the writes of *session*.

        If some do not, warns that a failover could lose the writes; *done* says what was written, for example
        "release R is written". Raises StoreUnavailable if the primary was replaced meanwhile.
        """
        expected = await self.named_replicas(session.node)
        replication = await wait_for_replicas(session, expected=expected, timeout_s=wait_s)
        if replication is not None and replication.is_short:
            warn_unacknowledged(done, replication, session.where, wait_s)

    async def named_replicas(self, primary: tuple[str, int]) -> int:
        """Return how many replicas of a primary may take over, also while they are not linked to it; 0 if unknown."""
        del primary
        return 0

    async def examine(self) -> list[Finding]:
        """Return the findings of `hotplate store doctor` about the discovery of servers."""
        return []

    async def renew(self) -> None:
        """Replace all connections by ones with new credentials; raises StoreUnavailable if one cannot be opened."""
        self._retire_removed()  # a server may vanish without closing its connections
        try:
            await all_done(*(server.renew() for server in self._servers.values()))
        except StoreUnavailable:
            self.schedule_refresh()
            raise

    async def close(self) -> None:
        """Stop renewals of credentials, and close all connections, also if the provider of the credentials fails.

        StoreMisused, and nothing is closed, on another event loop than that of the connections.
        """
        self.lifetime.end()  # first: calls that fail while connections are closed schedule a discovery
        self.is_loaded = False
        try:
            if self.credentials is not None:
                await self.credentials.close()
        finally:
            await self.close_connections()

    async def close_connections(self) -> None:
        """Close all connections, and wait for those that are being closed; `close` does so once renewals have ended."""
        if self._refresh is not None:
            self._refresh.task.cancel()
            await asyncio.gather(self._refresh.task, return_exceptions=True)
        await self._discovery.close()
        await all_done(*(server.close() for server in self._servers.values()), *self._closing)

    async def _discover(self) -> None:
        try:
            await self.ask()
        except StoreError as error:
            self._schedule(failure=error)
            raise
        self._failed.clear()
        self.is_loaded = True

    def _schedule(self, failure: StoreError | None) -> None:
        """Schedule a discovery in the background, unless one is scheduled or the deployment is closed.

        *failure* is the error of the discovery before it, which `load` raises until this one has ended; None if the
        servers are known.
        """
        if self._refresh is not None or self.lifetime.is_over:
            return

        now = asyncio.get_running_loop().time()
        if now - self._refresh_asked_at > CALM_S:
            self._backoff.reset()
        self._refresh_asked_at = now

        task = asyncio.create_task(self._discover_later(self._backoff.next_s()))
        self._refresh = _Refresh(task, failure)

    async def _discover_later(self, pause_s: float) -> None:
        failure: StoreError | None = None
        try:
            await asyncio.sleep(pause_s)
            await self.discover()
        except StoreError as error:
            failure = error
        finally:
            self._refresh = None
        if failure is not None and not self.is_loaded:  # else the next failure of a server asks again
            self._schedule(failure)


def any_of(nodes: Sequence[RedisNode]) -> RedisNode | None:
    """Return a random node, to spread load; None without nodes."""
    return random.choice(nodes) if nodes else None  # noqa: S311 -- spreads load
