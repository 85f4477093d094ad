"""A cluster: its nodes, and which of them have a slot, as a node says by CLUSTER SLOTS.

Reads by redis-py's cluster client take 2.2 times the CPU of a GET of the service, so it is not used.
"""

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import MovedError

from hotplate.stores.errors import StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import connect_to_reader
from hotplate.stores.redis.deployment import Deployment, RedisNode, Shard
from hotplate.stores.redis.url import RedisAddress

NO_CLUSTER = "cluster support disabled"  # how a single server refuses CLUSTER SLOTS


class Cluster(Deployment):
    """The nodes of a cluster and their slots."""

    is_clustered = True
    expects_replicas = True
    set_up_replica = staticmethod(connect_to_reader)

    async def named_replicas(self, primary: tuple[str, int]) -> int:
        with suppress(StoreError):  # then the slots of the last discovery are used
            await self.discover()
        return await super().named_replicas(primary)

    def address(self, node: RedisNode) -> RedisAddress:
        """Return the address of a node.

        Nodes of managed services announce IP addresses, but their certificates hold only the first seed's name.
        """
        seeds = self.common.seeds
        certified_as = None
        if _is_ip(node.host) and node not in seeds:
            certified_as = next((host for host, _ in seeds if not _is_ip(host)), None)
        shown = f"the node {node} of {self.shown}"
        return replace(self.common, shown=shown, host=node.host, port=node.port, certified_as=certified_as)

    def follow_moved(self, moved: MovedError, sender: RedisNode) -> RedisNode:
        """Record that another node has a slot now, and return it; without a host, it is another port of *sender*.

        A replica that has a slot of its primary has taken over all of them.
        """
        node = RedisNode(moved.host or sender.host, moved.port)
        former = self.shards[moved.slot_id]
        if node in former[1:]:
            successor = (node, *(other for other in former if other != node))
            self.shards = [successor if shard == former else shard for shard in self.shards]
        else:
            self.shards[moved.slot_id] = (node,)
        self.note_nodes({*self.nodes, node}, {*self.primaries, node})
        self.schedule_refresh()
        return node

    async def ask(self) -> None:
        """Ask the nodes for the slots, one after the other until one answers; last those that failed.

        Raises StoreError.
        """
        known_nodes = random.sample(sorted(self.nodes), len(self.nodes))
        nodes = dict.fromkeys([*known_nodes, *(RedisNode(host, port) for host, port in self.common.seeds)])
        for node in sorted(nodes, key=self._failed.__contains__):
            try:
                (described,) = await self.server(node).ask(("CLUSTER SLOTS",))
            except StoreError as error:
                failure = error
            else:
                self._follow(described, node)
                return
        if NO_CLUSTER in str(failure):
            shown = self.address(node).shown
            raise StoreMisused(f"{shown} is not a node of a cluster; write redis:// instead") from failure
        raise failure

    def _follow(self, described: Sequence[Any], sender: RedisNode) -> None:
        """Take over the slots as *sender* describes them. Raises StoreUnavailable."""
        shards: list[Shard] = [()] * REDIS_CLUSTER_HASH_SLOTS
        nodes = set[RedisNode]()
        primaries = set[RedisNode]()
        try:
            for first, last, *servers in described:
                shard = tuple(RedisNode((host or b"").decode() or sender.host, int(port)) for host, port, *_ in servers)
                shards[first : last + 1] = [shard] * (last + 1 - first)
                nodes.update(shard)
                primaries.add(shard[0])
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            shown = self.address(sender).shown
            raise StoreUnavailable(f"{shown} described its slots in an unknown format") from error
        self.shards = shards
        self.note_nodes(nodes, primaries)


def _is_ip(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False
