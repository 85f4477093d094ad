"""Which server serves which slot, and a connection to each of them: the nodes of a cluster, or the only server.

In a cluster, a key's slot is redis-py's CRC16 of the text in its braces, and CLUSTER SLOTS says which node serves it. A
node that does not serve a slot any more names the one that does (MOVED) or will (ASK). After a MOVED, or if a node does
not answer, CLUSTER SLOTS is sent again: to one node after the other, by one task, and after the pauses below.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from redis.cluster import parse_cluster_slots
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from hotplate.stores.errors import PartUnavailable, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.connection import Asking, Reconnector, Redirected, Resolver, Sender, connected
from hotplate.stores.redis.url import ClusterAddress, RedisAddress, show
from hotplate.stores.throttle import Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")

# When a node that does not say who serves what is given up.
TIMEOUT_S = 1.0

# The first and the longest pause before the nodes are asked again who serves what, jitter included, so the workers
# of a site do not ask all at once; and after how long without a reason to ask the first pause is that again.
PAUSES_S = (0.1, 1.0)
CALM_S = 5.0

# How often a command is sent on from node to node.
REDIRECTIONS = 8


class RedisNode(NamedTuple):
    """Where a node is."""

    host: str
    port: int

    def __str__(self) -> str:
        return show(self.host, self.port)


# The only server, wherever it is.
ONLY = RedisNode("", 0)


class OnlyServer:
    """One server, or the one of several that takes writes: a cluster of one node; see `Topology`."""

    version = 1
    primaries = (ONLY,)

    def __init__(self, resolver: Resolver, shown: str) -> None:
        self.shown = shown
        self._resolver = resolver

    async def load(self) -> None:
        """Nothing is to be asked for."""

    def owner(self, slot: int) -> RedisNode:
        """Return the server, which serves every slot."""
        del slot
        return ONLY

    def resolver(self, node: RedisNode) -> Resolver:
        """See `Topology`."""
        del node
        return self._resolver

    def apply_redirect(self, redirected: Redirected, said_by: RedisNode) -> RedisNode:
        """Raise StoreMisused: only a node of a cluster says that."""
        del said_by
        raise StoreMisused(
            f"{redirected}; it is a node of a cluster; write redis+cluster:// in the place of redis://"
        ) from redirected

    def schedule_refresh(self) -> None:
        """Nothing can be anywhere else."""

    async def close(self) -> None:
        """Nothing was begun."""


class Layout(NamedTuple):
    """What one node says of all: who serves each slot, and the replicas of each primary."""

    owners: list[RedisNode | None]
    replicas: Mapping[RedisNode, frozenset[RedisNode]]


class Topology:
    """Who serves which slot, as was last heard; lives as long as its store, on one loop."""

    def __init__(self, cluster: ClusterAddress) -> None:
        self.version = 0
        """Grows with each change; 0 until a node has answered."""

        self.shown = cluster.node.shown
        self._cluster = cluster
        self._layout = Layout([None] * SLOTS, {})
        self._primaries = 0, list[RedisNode]()
        """The nodes that serve slots, as of a version."""
        self._refreshing: asyncio.Task[None] | None = None
        self._backoff = Backoff(*PAUSES_S)
        self._asked_at = float("-inf")
        self._retry_at = float("-inf")
        self._error: StoreError = StoreUnavailable(f"no node of {self.shown} has answered yet")

    @property
    def primaries(self) -> list[RedisNode]:
        """The nodes that serve slots, in the order of their addresses."""
        if self._primaries[0] != self.version:
            self._primaries = self.version, sorted({owner for owner in self._layout.owners if owner is not None})
        return self._primaries[1]

    def replicas(self, primary: RedisNode) -> frozenset[RedisNode]:
        """Return the replicas of a node that are known to follow it."""
        return self._layout.replicas.get(primary, frozenset())

    def owner(self, slot: int) -> RedisNode | None:
        """Return which node serves a slot; None if none is known, which is looked into."""
        owner = self._layout.owners[slot]
        if owner is None:
            self.schedule_refresh()
        return owner

    def resolver(self, node: RedisNode) -> RedisAddress:
        """Return the address of a node, with the credentials of all."""
        return self._cluster.at(*node)

    async def load(self) -> None:
        """Wait until who serves what is known, as on the first call; raises StoreError if no node says it."""
        if self.version:
            return
        if self._refreshing is None:
            if asyncio.get_running_loop().time() < self._retry_at:
                raise type(self._error)(str(self._error))
            self._begin(0.0)
        assert self._refreshing is not None  # noqa: S101 -- it was just begun
        await asyncio.shield(self._refreshing)
        if not self.version:
            raise type(self._error)(str(self._error))

    def apply_redirect(self, redirected: Redirected, said_by: RedisNode) -> RedisNode:
        """Take note of what a node said in the place of a reply, and return who should be sent the command instead."""
        target = RedisNode(redirected.host or said_by.host, redirected.port)
        if not redirected.asking and self._layout.owners[redirected.slot] != target:
            self._layout.owners[redirected.slot] = target
            self.version += 1
            self.schedule_refresh()
        return target

    def schedule_refresh(self) -> None:
        """Ask the nodes again, soon, and in the background: something is not where it should be."""
        if self._refreshing is None:
            now = asyncio.get_running_loop().time()
            if now - self._asked_at > CALM_S:
                self._backoff.reset()
            self._begin(self._backoff.next_s())

    async def close(self) -> None:
        """Stop asking."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    def _begin(self, pause_s: float) -> None:
        self._refreshing = asyncio.create_task(self._refresh(pause_s))
        self._refreshing.add_done_callback(self._refreshed)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the nodes of %s cannot be asked who serves what", self.shown, exc_info=error)

    async def _refresh(self, pause_s: float) -> None:
        """Ask one node after the other, the known ones before the seeds, until one knows who serves every slot."""
        await asyncio.sleep(pause_s)
        best: Layout | None = None
        for node in self._candidates():
            try:
                found = await self._ask(node)
            except StoreError as error:
                self._error = error
                continue
            if best is None or found.owners.count(None) < best.owners.count(None):
                best = found
            if None not in found.owners:
                break
        now = asyncio.get_running_loop().time()
        self._asked_at = now
        if best is None:
            self._retry_at = now + self._backoff.next_s()
        elif best != self._layout:
            if self.version:
                log.info("the nodes of %s serve other slots than before", self.shown)
            self._layout = best
            self.version += 1

    def _candidates(self) -> list[RedisNode]:
        known = [*self._layout.replicas, *(one for replicas in self._layout.replicas.values() for one in replicas)]
        seeds = [RedisNode(*seed) for seed in self._cluster.seeds]
        random.shuffle(known)  # spreads the questions of many workers
        random.shuffle(seeds)
        return list(dict.fromkeys([*known, *seeds]))

    async def _ask(self, node: RedisNode) -> Layout:
        address = self.resolver(node)
        async with connected(address, TIMEOUT_S) as connection:
            try:
                reply = await connection.send_command(b"CLUSTER", b"SLOTS")
            except StoreUnavailable as error:
                if "cluster support disabled" not in str(error):
                    raise
                sentence = f"{address.shown} is not a node of a cluster; write redis:// in the place of its scheme"
                raise StoreMisused(sentence) from error
            try:
                return _layout(reply, node)
            except (TypeError, ValueError, IndexError, KeyError) as error:
                raise connection.lose("does not say who serves which slot") from error


Servers = OnlyServer | Topology


class Nodes:
    """A connection to each server, for one purpose; lives as long as its store, on one loop."""

    def __init__(self, topology: Servers, timeout_s: float, on_message: Callable[[], None] | None = None) -> None:
        """Take who serves what, and what each `Reconnector` takes as well."""
        self.topology = topology
        self._timeout_s = timeout_s
        self._on_message = on_message
        self._reconnectors = dict[RedisNode, Reconnector]()
        self._version = 0
        self._closing = set[asyncio.Task[None]]()

    def at(self, node: RedisNode) -> Reconnector:
        """Return the connection to a node."""
        if self._version != self.topology.version:
            self._leave_strangers()
        if (known := self._reconnectors.get(node)) is None:
            known = Reconnector(self.topology.resolver(node), self._timeout_s, self._on_message)
            self._reconnectors[node] = known
        return known

    async def primaries(self) -> list[Reconnector]:
        """Return the connections to all servers that serve slots; raises StoreError if those are not known."""
        await self.topology.load()
        return [self.at(node) for node in self.topology.primaries]

    async def execute_command(self, command: bytes, key: str, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
        """Send one command with one key, and return its reply; raises StoreError."""
        return await self.run(key, lambda connection: connection.send_command(command, key, *args))

    async def evaluate(self, script: str, names: Sequence[str], *args: str | bytes | int) -> Any:  # noqa: ANN401 -- as above
        """Run a script on keys of one step, and return what it returns; raises StoreError."""
        return await self.run(
            names[0], lambda connection: connection.send_command(b"EVAL", script, len(names), *names, *args)
        )

    async def run(self, key: str, work: Callable[[Sender], Awaitable[T]]) -> T:
        """Call *work* with the connection that serves *key*, and again with the next if that has moved elsewhere."""
        return await self.run_in(key_slot(key.encode()), work)

    async def run_in(self, slot: int, work: Callable[[Sender], Awaitable[T]], ask: RedisNode | None = None) -> T:
        """Do the same for a slot, of which *ask* is about to serve what the owner does not; raises StoreError."""
        await self.topology.load()
        for _ in range(REDIRECTIONS):
            node = ask or self.topology.owner(slot)
            if node is None:
                raise uncovered(self.topology.shown, slot)
            try:
                connection = await self.at(node).connection()
                return await work(Asking(connection) if ask else connection)
            except Redirected as redirected:
                target = self.topology.apply_redirect(redirected, node)
                ask = target if redirected.asking else None
            except StoreUnavailable:
                self.topology.schedule_refresh()
                raise
        raise PartUnavailable(f"the nodes of {self.topology.shown} do not agree on who serves slot {slot}")

    def listening(self, on_message: Callable[[], None]) -> "Nodes":
        """Return other connections to the same nodes, which take messages."""
        return Nodes(self.topology, self._timeout_s, on_message)

    async def close(self) -> None:
        """Close all connections; what they asked of the nodes ends with the topology."""
        for reconnector in self._reconnectors.values():
            await reconnector.close()
        await asyncio.gather(*self._closing)

    def _leave_strangers(self) -> None:
        """Close connections to nodes that have left the cluster, or became replicas."""
        self._version, primaries = self.topology.version, set(self.topology.primaries)
        for node in self._reconnectors.keys() - primaries:
            task = asyncio.create_task(self._reconnectors.pop(node).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def uncovered(shown: str, slot: int) -> PartUnavailable:
    """Return the error of a slot that no node serves."""
    return PartUnavailable(f"no node of {shown} serves slot {slot}; `hotplate store doctor` says more")


def _layout(reply: Any, node: RedisNode) -> Layout:  # noqa: ANN401 -- a reply is whatever the command returns
    owners, replicas = list[RedisNode | None]([None] * SLOTS), dict[RedisNode, frozenset[RedisNode]]()
    for (start, end), servers in parse_cluster_slots(reply, current_host=node.host).items():
        primary = RedisNode(*servers["primary"])
        replicas[primary] = replicas.get(primary, frozenset()) | {RedisNode(*one) for one in servers["replicas"]}
        owners[start : end + 1] = [primary] * (end + 1 - start)
    return Layout(owners, replicas)
