"""Discovery of servers (one server, Sentinel, Cluster), and connections to them.

A cluster node redirects to the node that serves a slot (MOVED) or will (ASK). After a MOVED or a failure, CLUSTER SLOTS
is sent to one node after the other. During a Sentinel failover the former primary acknowledges writes for some seconds,
which are lost.
"""

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from redis.cluster import parse_cluster_slots
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from hotplate.stores.errors import PartUnavailable, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.connection import (
    Asking,
    Reconnector,
    Redirected,
    Sender,
    connected,
    fields_of,
)
from hotplate.stores.redis.url import ClusterAddress, RedisAddress, SentinelAddress, show
from hotplate.stores.store import Finding, Level
from hotplate.stores.timing import Backoff, SharedCall

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_S = 1.0  # of discovery, per node or sentinel
PAUSES_S = (0.1, 1.0)  # first and longest between discoveries
CALM_S = 5.0  # resets the pauses
REDIRECTIONS = 8

SEAL_WAIT_S = 3.0  # for replicas
CONTROL_WAIT_S = 1.0  # the same for changes of the catalogue or a state
SETTLE_S = 5.0  # for replicas that sentinels name and the primary lacks
SETTLE_PAUSE_S = 0.1

UNUSABLE = {"s_down", "o_down", "disconnected"}  # flags of replicas


class RedisNode(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return show(self.host, self.port)


class Slots(NamedTuple):
    """The primary of each slot, all nodes, and the replicas of each primary."""

    owners: list[RedisNode | None]
    nodes: set[RedisNode]
    replicas: dict[RedisNode, list[RedisNode]]


class OnlyServer:
    """Discovery of one server, which serves every slot; `primaries` take writes."""

    def __init__(self, address: RedisAddress) -> None:
        self.shown = address.shown
        self.loaded = True
        self.primaries: Sequence[RedisNode] = (RedisNode(address.host, address.port),)
        self.has_replicas = False
        self._address = address

    async def load(self) -> None:
        """Wait until the servers are known; raises StoreError."""

    def owners(self, slots: Sequence[int]) -> Sequence[RedisNode | None]:
        """Return the servers of slots; None for an unknown one."""
        return [self.primaries[0]] * len(slots)

    def owner(self, slot: int) -> RedisNode | None:
        """Return the server of one slot."""
        return self.owners((slot,))[0]

    def address(self, node: RedisNode) -> RedisAddress:
        """Return the address of a server, with credentials."""
        del node
        return self._address

    def replica_of(self, slot: int) -> RedisNode | None:
        """Return a random replica of the server of a slot; None if none is known."""
        del slot
        return None

    def replica_address(self, node: RedisNode) -> RedisAddress:
        """Return the address of a replica."""
        return replace(self.address(node), is_primary=False)

    def apply_redirect(self, redirected: Redirected, said_by: RedisNode) -> RedisNode:
        """Record a redirection by *said_by*; return its target."""
        del said_by
        raise StoreMisused(f"{redirected}; write redis+cluster:// instead of redis://") from redirected

    def schedule_refresh(self) -> None:
        """Rediscover the servers in the background."""

    async def confirm(self) -> None:
        """Check that the primary was not replaced, if others can say so; raises StoreUnavailable."""

    async def wait_replicated(self, connection: Sender, done: str, wait_s: float = CONTROL_WAIT_S) -> None:
        """Wait until all replicas have the writes of *connection*, or log that a failover could lose what *done* names.

        StoreUnavailable if the primary was replaced.
        """
        found = await wait_for_replicas(connection, timeout_s=wait_s)
        if found is not None and found.acknowledged < found.replicas:
            _warn_unacknowledged(done, found, connection.where, wait_s)

    async def examine(self) -> list[Finding]:
        """Return the findings of `store doctor` about the discovery."""
        return []

    async def close(self) -> None:
        """Stop discovery."""


class _Discovered(OnlyServer, ABC):
    def __init__(self, server: RedisAddress) -> None:
        super().__init__(server)
        self.loaded = False
        self.primaries = ()
        self._asking = SharedCall(self._discover, lambda: StoreUnavailable(f"{self.shown} was closed"))
        self._failure: StoreError | None = None
        self._later: asyncio.Task[None] | None = None
        self._backoff = Backoff(*PAUSES_S)
        self._scheduled_at = float("-inf")

    async def load(self) -> None:
        if self.loaded:
            return
        if self._failure is not None and self._later is not None:
            raise self._failure.with_traceback(None)
        await self.refresh()

    async def refresh(self) -> None:
        """Discover the servers; concurrent callers share one attempt."""
        await self._asking.result()

    def schedule_refresh(self) -> None:
        if self._later is None:
            now = asyncio.get_running_loop().time()
            if now - self._scheduled_at > CALM_S:
                self._backoff.reset()
            self._scheduled_at = now
            self._later = asyncio.create_task(self._refresh_later(self._backoff.next_s()))

    async def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
            await asyncio.gather(self._later, return_exceptions=True)
        await self._asking.close()

    @abstractmethod
    async def _ask(self) -> object: ...

    async def _discover(self) -> None:
        try:
            await self._ask()
        except StoreError as error:
            self._failure = error
            self.schedule_refresh()
            raise
        self.loaded = True

    async def _refresh_later(self, pause_s: float) -> None:
        try:
            await asyncio.sleep(pause_s)
            with suppress(StoreError):
                await self.refresh()
        finally:
            self._later = None


class Topology(_Discovered):
    """The nodes of a cluster and their slots, as last discovered."""

    def __init__(self, cluster: ClusterAddress) -> None:
        super().__init__(cluster.node)
        self._cluster = cluster
        self._slots = Slots([None] * SLOTS, set(), {})

    def owners(self, slots: Sequence[int]) -> Sequence[RedisNode | None]:
        owners = self._slots.owners
        found = [owners[slot] for slot in slots]
        if None in found:
            self.schedule_refresh()
        return found

    def address(self, node: RedisNode) -> RedisAddress:
        return self._cluster.at(*node)

    def replica_of(self, slot: int) -> RedisNode | None:
        owner = self._slots.owners[slot]
        return _any_of(self._slots.replicas.get(owner, ()) if owner else ())

    def replica_address(self, node: RedisNode) -> RedisAddress:
        return replace(self.address(node), reads_replica=True)

    def apply_redirect(self, redirected: Redirected, said_by: RedisNode) -> RedisNode:
        target = RedisNode(redirected.host or said_by.host, redirected.port)
        if not redirected.asking and self._slots.owners[redirected.slot] != target:
            self._slots.owners[redirected.slot] = target
            self.primaries = sorted({target, *self.primaries})
            self.schedule_refresh()
        return target

    async def _ask(self) -> None:
        known, seeds = [*self._slots.nodes], [RedisNode(*seed) for seed in self._cluster.seeds]
        random.shuffle(known)  # spreads load
        found = list[Slots]()
        error: StoreError = StoreUnavailable(f"no node of {self.shown} has answered")
        for node in dict.fromkeys([*known, *seeds]):
            try:
                found.append(await self._ask_one(node))
                if None not in found[-1].owners:
                    break
            except StoreError as failure:
                error = failure
        if not found:
            raise error
        best = min(found, key=lambda slots: slots.owners.count(None))
        if self.loaded and best != self._slots:
            log.info("the nodes of %s serve other slots than before", self.shown)
        self._slots = best
        self.primaries = sorted({owner for owner in best.owners if owner is not None})
        self.has_replicas = any(best.replicas.values())

    async def _ask_one(self, node: RedisNode) -> Slots:
        address = self.address(node)
        async with connected(address, TIMEOUT_S) as connection:
            try:
                reply = await connection.send_command(b"CLUSTER", b"SLOTS")
            except StoreUnavailable as error:
                if "cluster support disabled" not in str(error):
                    raise
                sentence = f"{address.shown} is not a node of a cluster; write redis:// instead"
                raise StoreMisused(sentence) from error
            try:
                return _slots_of(reply, node)
            except (TypeError, ValueError, LookupError) as error:
                raise connection.lose("replied to CLUSTER SLOTS in an unknown format") from error


def _slots_of(reply: object, said_by: RedisNode) -> Slots:
    found = Slots([None] * SLOTS, set(), {})
    for (start, end), servers in parse_cluster_slots(reply, current_host=said_by.host).items():
        nodes = [RedisNode(str(host), int(port)) for host, port in (servers["primary"], *servers["replicas"])]
        if not 0 <= start <= end < SLOTS:
            raise ValueError(f"slots {start} to {end} do not exist")
        found.owners[start : end + 1] = [nodes[0]] * (end + 1 - start)
        found.nodes.update(nodes)
        found.replicas[nodes[0]] = sorted(nodes[1:])
    return found


def _any_of(nodes: Sequence[RedisNode]) -> RedisNode | None:
    return random.choice(nodes) if nodes else None  # noqa: S311 -- spreads load


class Nodes:
    """One connection to each server; those of *replicas* only read."""

    def __init__(self, topology: OnlyServer, timeout_s: float, *, replicas: bool = False) -> None:
        self.topology = topology
        self._address = topology.replica_address if replicas else topology.address
        self._timeout_s = timeout_s
        self._reconnectors = dict[RedisNode, Reconnector]()

    def at(self, node: RedisNode) -> Reconnector:
        """Return the connection to a node."""
        if (known := self._reconnectors.get(node)) is None:
            known = self._reconnectors[node] = Reconnector(self._address(node), self._timeout_s)
        return known

    async def primaries(self) -> list[Reconnector]:
        """Return the connections to all primaries; raises StoreError."""
        await self.topology.load()
        return [self.at(node) for node in self.topology.primaries]

    async def execute_command(self, command: bytes, key: str | bytes, *args: str | bytes | int) -> Any:  # noqa: ANN401 -- any reply
        """Send a command with one key; raises StoreError."""
        return await self.run(key, lambda connection: connection.send_command(command, key, *args))

    async def evaluate(self, script: str, names: Sequence[str | bytes], *args: str | bytes | int) -> Any:  # noqa: ANN401 -- as above
        """Run a script on keys of one slot; raises StoreError."""
        evaluated = (b"EVAL", script, len(names), *names, *args)
        return await self.run(names[0], lambda connection: connection.send_command(*evaluated))

    async def run(self, key: str | bytes, work: Callable[[Sender], Awaitable[T]]) -> T:
        """Call *work* with the connection for *key*, following redirections."""
        await self.topology.load()
        slot, ask = key_slot(key.encode() if isinstance(key, str) else key), None
        for _ in range(REDIRECTIONS):
            node = ask or self.topology.owner(slot)
            if node is None:
                raise PartUnavailable(f"no node of {self.topology.shown} serves slot {slot}; see hotplate store doctor")
            try:
                return await self.run_at(node, work, asking=ask is not None)
            except Redirected as redirected:
                target = self.topology.apply_redirect(redirected, node)
                ask = target if redirected.asking else None
        raise PartUnavailable(f"the nodes of {self.topology.shown} disagree about slot {slot}")

    async def run_at(self, node: RedisNode, work: Callable[[Sender], Awaitable[T]], *, asking: bool = False) -> T:
        """Call *work* with the connection to *node*; a failure triggers discovery."""
        try:
            connection = await self.at(node).connection()
            return await work(Asking(connection) if asking else connection)
        except StoreUnavailable as error:
            if not isinstance(error, Redirected):
                self.topology.schedule_refresh()
            raise

    async def close(self) -> None:
        """Close all connections."""
        for reconnector in self._reconnectors.values():
            await reconnector.close()


class Replication(NamedTuple):
    """The replicas that follow a primary, and those that have all its writes."""

    replicas: int
    acknowledged: int = 0


def _warn_unacknowledged(done: str, found: Replication, where: str, wait_s: float) -> None:
    sentence = "%s; %d of the %d replicas of %s have acknowledged that in %g s, and a failover to another would lose it"
    log.warning(sentence, done, found.acknowledged, found.replicas, where, wait_s)


def replicas_in(fields: Mapping[str, str]) -> int:
    """Return the replicas that follow the primary of an INFO."""
    return sum(
        "state=online" in stated.split(",") for name, stated in fields.items() if name.removeprefix("slave").isdigit()
    )


async def wait_for_replicas(
    connection: Sender, *, wanted: int | None = None, timeout_s: float = SEAL_WAIT_S
) -> Replication | None:
    """Wait until *wanted* replicas (all by default) have all writes; None without rights. Blocks the connection."""
    try:
        replicas = replicas_in(fields_of(await connection.send_command(b"INFO", b"replication")))
        if not replicas:
            return Replication(0)
        count = min(wanted or replicas, replicas)
        return Replication(replicas, int(await connection.send_command(b"WAIT", count, int(timeout_s * 1000))))
    except StoreMisused:
        return None


class SentinelState(NamedTuple):
    """One sentinel's view; the highest epoch has seen the latest failover."""

    epoch: int
    primary: RedisNode
    replicas: tuple[RedisNode, ...]


class Sentinels(_Discovered):
    """The primary and replicas named by sentinels: of their answers, the highest epoch counts."""

    def __init__(self, address: SentinelAddress) -> None:
        super().__init__(address.server)
        self._server = address
        self._sentinels = [Reconnector(sentinel, TIMEOUT_S) for sentinel in address.sentinels]
        self._replicas: tuple[RedisNode, ...] = ()

    def address(self, node: RedisNode) -> RedisAddress:
        shown = f"{self.shown} ({node})"
        return replace(self._server.server, shown=shown, host=node.host, port=node.port, is_primary=True)

    def replica_of(self, slot: int) -> RedisNode | None:
        del slot
        return _any_of(self._replicas)

    async def confirm(self) -> None:
        states, errors = await self._ask()
        if len(errors) >= len(states):
            sentence = f"most sentinels of {self.shown} do not say where its primary is, so it may be another"
            raise StoreUnavailable(f"{sentence}: {'; '.join(errors)}")

    async def wait_replicated(self, connection: Sender, done: str, wait_s: float = CONTROL_WAIT_S) -> None:
        # A replica that is being promoted follows no more, some seconds before the sentinels say so.
        give_up_at, where = time.monotonic() + SETTLE_S, connection.where
        while True:
            found = await wait_for_replicas(connection, timeout_s=wait_s)
            await self.confirm()
            if self.address(self.primaries[0]).shown != where:
                raise StoreUnavailable(f"{where} was replaced by {self.primaries[0]} while it was written to")
            known = Replication(len(self._replicas), 0 if found is None else found.acknowledged)
            if known.acknowledged >= known.replicas:
                return
            if found is None or time.monotonic() > give_up_at:
                break
            await asyncio.sleep(SETTLE_PAUSE_S)
        _warn_unacknowledged(done, known, where, wait_s)

    async def close(self) -> None:
        await super().close()
        for sentinel in self._sentinels:
            await sentinel.close()

    async def examine(self) -> list[Finding]:
        findings, said = list[Finding](), set[RedisNode]()
        for sentinel in self._sentinels:
            try:
                said.add((await self._ask_one(sentinel)).primary)
                quorum: bytes = await sentinel.execute_command(b"SENTINEL", b"CKQUORUM", self._server.name)
                findings.append(Finding(Level.OK, "sentinel", f"{sentinel.where}: {quorum.decode()}"))
            except StoreError as error:
                level = Level.ERROR if "NOQUORUM" in str(error) else Level.WARNING  # others may form a quorum
                findings.append(Finding(level, "sentinel", f"{sentinel.where}: {error}"))
        sentence = f"they say that the primary is {' or '.join(map(str, said)) or 'unknown'}"
        return [*findings, Finding(Level.OK if len(said) == 1 else Level.ERROR, "sentinels", sentence)]

    async def _ask(self) -> tuple[list[SentinelState], list[str]]:
        answers = await asyncio.gather(*map(self._ask_one, self._sentinels), return_exceptions=True)
        states = [answer for answer in answers if isinstance(answer, SentinelState)]
        errors = [str(answer) for answer in answers if isinstance(answer, BaseException)]
        if not states:
            raise StoreUnavailable(f"no sentinel of {self.shown} says where its primary is: {'; '.join(errors)}")
        _, primary, self._replicas = max(states)
        before, self.primaries = self.primaries, (primary,)
        self.has_replicas = bool(self._replicas)
        if before not in ((), self.primaries):
            log.warning("the primary of %s is at %s now", self.shown, self.primaries[0])
        return states, errors

    async def _ask_one(self, sentinel: Reconnector) -> SentinelState:
        connection = await sentinel.connection()
        commands = (b"GET-MASTER-ADDR-BY-NAME", b"MASTER", b"REPLICAS")
        sent = [connection.send_command(b"SENTINEL", command, self._server.name) for command in commands]
        place, primary, replicas = await asyncio.gather(*sent)
        try:
            host, port = place
            usable = [each for each in map(_fields, replicas) if UNUSABLE.isdisjoint(each["flags"].split(","))]
            # If the primary has died, none is linked.
            linked = [each for each in usable if each.get("master-link-status") == "ok"] or usable
            replicas_at = tuple(RedisNode(each["ip"], int(each["port"])) for each in linked)
            return SentinelState(
                int(_fields(primary)["config-epoch"]), RedisNode(host.decode(), int(port)), replicas_at
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StoreUnavailable(f"{connection.where} replied in an unknown format") from error


def _fields(reply: Sequence[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
