"""A cluster: its nodes and their slots, which redis-py's `RedisCluster` holds."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

from redis.asyncio import Connection, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import MovedError, RedisClusterException, RedisError, ResponseError

from hotplate.stores.concurrency import all_done
from hotplate.stores.errors import AccessDenied, PartUnavailable, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import NO_RETRIES, PROTOCOL, finish_closing
from hotplate.stores.redis.credentials import Credentials
from hotplate.stores.redis.deployment import (
    DISCOVERY_TIMEOUT_S,
    Deployment,
    DiscoveredDeployment,
    RedisNode,
    any_of,
)
from hotplate.stores.redis.errors import PartDenied, translated
from hotplate.stores.redis.url import ClusterAddress, RedisAddress
from hotplate.stores.store import ReadResult

log = logging.getLogger(__name__)


class Cluster(DiscoveredDeployment):
    """The nodes of a cluster and their slots."""

    is_clustered = True

    def __init__(self, cluster: ClusterAddress, credentials: Credentials | None = None) -> None:
        super().__init__(cluster.node, credentials)
        self._cluster = cluster
        self._client = self._new_client()
        self._calls = Counter[RedisCluster]()
        """Number of calls in progress of each client."""

    def primary_of(self, slot: int) -> RedisNode | None:
        nodes = self._client.nodes_manager.slots_cache.get(slot)
        if not nodes:
            self.schedule_refresh()
            return None
        return _node_of(nodes[0])

    def knows(self, node: RedisNode) -> bool:
        return node in map(_node_of, self._client.get_nodes())

    def positions_by_primary(self, slots: Sequence[int]) -> dict[RedisNode | None, list[int]]:
        """Group the positions in *slots* by the primary that has the slot; None holds those of unknown primaries."""
        slots_cache = self._client.nodes_manager.slots_cache
        by_name = dict[str, list[int]]()
        """By redis-py's name of the primary, a string whose hash is cached; empty if the primary is unknown."""

        for position, slot in enumerate(slots):
            nodes = slots_cache.get(slot)
            by_name.setdefault(nodes[0].name if nodes else "", []).append(position)

        by_primary = dict[RedisNode | None, list[int]]()
        for positions in by_name.values():
            any_slot = slots[positions[0]]
            by_primary[self.primary_of(any_slot)] = positions
        return by_primary

    def replica_of(self, slot: int) -> RedisNode | None:
        nodes = self._client.nodes_manager.slots_cache.get(slot, ())
        return any_of([_node_of(node) for node in nodes[1:]])

    async def named_replicas(self, primary: tuple[str, int]) -> int:
        with suppress(StoreError):  # then the slots of the last discovery are used
            await self.discover()
        primary_node = self._client.get_node(*primary)
        if primary_node is None:
            return 0

        for nodes in self._client.nodes_manager.slots_cache.values():  # of a slot: its primary, then the replicas
            if nodes and nodes[0] == primary_node:
                return len(nodes) - 1
        return 0

    def address(self, node: RedisNode) -> RedisAddress:
        return self._cluster.at(node.host, node.port)

    def settings(self, node: RedisNode, timeout_s: float | None, *, replica: bool = False) -> dict[str, Any]:
        settings = super().settings(node, timeout_s)
        if replica:
            settings["redis_connect_func"] = self._client.on_connect  # sends READONLY
        return settings

    async def follow_moved(self, moved: MovedError, sender: RedisNode) -> RedisNode:
        """Record that another node has a slot now, and return it; without a host, it is another port of *sender*."""
        moved.host = moved.host or sender.host
        if moved.slot_id in self._client.nodes_manager.slots_cache:  # else redis-py raises KeyError
            await self._client.nodes_manager.move_slot(moved)
            self._note_nodes()
        self.schedule_refresh()
        return RedisNode(moved.host, moved.port)

    async def ask(self) -> None:
        """Ask the nodes, one after the other until one answers, for the slots. Raises StoreError."""
        with self._client_in_use() as client:
            manager = client.nodes_manager
            try:
                await _load_slots(client)
            except RedisClusterException as error:
                manager.startup_nodes = self._seeds() | manager.startup_nodes  # for the next attempt
                raise self._unreachable(error) from error
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                raise StoreUnavailable(f"a node of {self.shown} described its slots in an unknown format") from error
        self._note_nodes()

    async def renew(self) -> None:
        await all_done(super().renew(), self._renew_client())

    async def close_connections(self) -> None:
        await super().close_connections()
        clients = {self._client, *self._calls}
        self._calls.clear()  # calls in progress close nothing again
        await all_done(*(_close_client(client, self.shown) for client in clients))

    async def _renew_client(self) -> None:
        """Replace the client, as its nodes would close connections that a command may take at the same time."""
        client = await self._new_loaded_client()
        while client is None:
            await asyncio.sleep(DISCOVERY_TIMEOUT_S)
            client = await self._new_loaded_client()
        former = self._client
        self._client = client
        self._close_if_unused(former)

    @contextmanager
    def _client_in_use(self) -> Iterator[RedisCluster]:
        """Use the client for a call; if it is replaced meanwhile, the end of its last call closes it."""
        client = self._client
        self._calls[client] += 1
        try:
            yield client
        finally:
            self._calls[client] -= 1
            if client is not self._client:
                self._close_if_unused(client)

    def _close_if_unused(self, former: RedisCluster) -> None:
        """Close a client that was replaced, unless a call still uses it, which may also open connections."""
        if not self._calls[former]:
            del self._calls[former]
            self.close_later(_close_client(former, self.shown))

    async def _new_loaded_client(self) -> RedisCluster | None:
        """Return a new client that knows the slots; None if no node answers."""
        client = self._new_client()
        is_loaded = False
        try:
            await _load_slots(client)
            is_loaded = True
        except RedisClusterException as error:
            log.warning("%s", self._unreachable(error))
        finally:
            if not is_loaded:
                await _close_client(client, self.shown)
        return client if is_loaded else None

    def _new_client(self) -> RedisCluster:
        """Return a client that connects as the URL says, and does not know the slots yet."""
        client = RedisCluster(
            startup_nodes=list(self._seeds().values()),
            require_full_coverage=False,
            reinitialize_steps=0,
            retry=NO_RETRIES,
            protocol=PROTOCOL,
        )
        # The constructor takes no class of connections; ours expect another name than the host's in certificates.
        client.connection_kwargs["connection_class"] = self._connection_for_discovery
        client.nodes_manager.startup_nodes = self._seeds()
        return client

    def _seeds(self) -> dict[str, ClusterNode]:
        """Return the nodes in the URL by redis-py's name of a node."""
        connect = cast("type[Connection]", self._connection_for_discovery)  # it is only called
        nodes = [ClusterNode(host, port, connection_class=connect) for host, port in self._cluster.seeds]
        return {node.name: node for node in nodes}

    def _connection_for_discovery(self, *, host: str, port: int, **_: object) -> AbstractConnection:
        return self.new_connection(RedisNode(host, port), DISCOVERY_TIMEOUT_S)

    def _note_nodes(self) -> None:
        """Take over the primaries and replicas that the client knows; log a change."""
        primaries = sorted(map(_node_of, self._client.get_primaries()))
        if self.is_loaded and primaries != self.primaries:
            log.info("the primaries of %s are now %s", self.shown, ", ".join(map(str, primaries)))
        self.primaries = primaries
        self.has_replicas = bool(self._client.get_replicas())

    def _unreachable(self, error: RedisClusterException) -> StoreError:
        """Translate the error of the node that was asked last; redis-py calls each refusal a missing cluster mode."""
        cause: BaseException | None = error.__cause__
        if isinstance(cause, RedisClusterException):
            cause = cause.__context__
        nodes = self._client.nodes_manager.startup_nodes.values()
        where = f"the node {' or '.join(str(_node_of(node)) for node in nodes)} of {self.shown}"
        if isinstance(cause, ResponseError) and "cluster support disabled" in str(cause):
            return StoreMisused(f"{where} is not a node of a cluster; write redis:// instead")
        return translated(cause if isinstance(cause, RedisError) else error, where)


def late(deployment: Deployment) -> StoreUnavailable:
    """Return the error of a value that did not arrive in time."""
    return StoreUnavailable(f"a node of {deployment.shown} did not answer in time")


def part_of(deployment: Deployment, value: ReadResult) -> ReadResult:
    """Return a value, or the failure of its node as PartUnavailable, since other nodes may answer.

    A failure schedules a discovery.
    """
    if not isinstance(value, StoreUnavailable):
        return value
    deployment.schedule_refresh()
    failure = PartDenied if isinstance(value, AccessDenied) else PartUnavailable
    return failure(str(value))


def _node_of(node: ClusterNode) -> RedisNode:
    return RedisNode(str(node.host), int(node.port))


async def _load_slots(client: RedisCluster) -> None:
    """Ask the nodes for the slots."""
    manager = client.nodes_manager
    try:
        await manager.initialize()
    except IndexError:
        if manager.slots_cache:
            raise
        # No slot has a node, which redis-py does not expect.


async def _close_client(client: RedisCluster, where: str) -> None:
    """Close all connections of a client to the nodes *where*."""
    await finish_closing(client.aclose(), where)
    await finish_closing(client.nodes_manager.aclose(), where)
    await finish_closing(client.nodes_manager.aclose("startup_nodes"), where)
