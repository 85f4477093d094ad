"""Which server is the primary or serves a slot, and connections: to one, one of several behind sentinels, or a cluster.

In a cluster, a key's slot is redis-py's CRC16 of the text in its braces, and CLUSTER SLOTS says which node serves it. A
node that does not serve a slot any more names the one that does (MOVED) or will (ASK). After a MOVED, or if a node does
not answer, CLUSTER SLOTS is sent again: to one node after the other, by one task, and after the pauses below.

Behind sentinels, a failover begins with a replica that is made a primary. The sentinel that made it names it once it
has seen that, and the others when they have heard of it. For some seconds there are two, and the former one goes on
acknowledging what will be lost.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

from redis.cluster import parse_cluster_slots
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from hotplate.stores.errors import PartUnavailable, StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.connection import (
    Asking,
    PipelinedConnection,
    Reconnector,
    Redirected,
    Resolver,
    Sender,
    connected,
    fields_of,
    role_of,
)
from hotplate.stores.redis.url import ClusterAddress, ReadFrom, RedisAddress, SentinelAddress, ServerRole, show
from hotplate.stores.store import Finding, Level
from hotplate.stores.throttle import Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")

# When a node or a sentinel that does not answer is given up; the others have answered long before.
TIMEOUT_S = 1.0

# The first and the longest pause before the nodes are asked again who serves what, jitter included, so the workers
# of a site do not ask all at once; and after how long without a reason to ask the first pause is that again.
PAUSES_S = (0.1, 1.0)
CALM_S = 5.0

# How often a command is sent on from node to node.
REDIRECTIONS = 8

# How long the end of a publish waits for all replicas, which may be behind by what it wrote last.
SEAL_WAIT_S = 3.0

# The same for a change of the catalogue, or of a release's state.
CONTROL_WAIT_S = 1.0

UNGUARDED = "it goes on writing if no replica follows, and a failover loses that; set min-replicas-to-write 1"

# How often a sentinel that says nothing is asked whether it is still there, and one that was lost is tried again.
PING_S = 1.0

# On which channels a sentinel says that another primary, a new replica, or one that was away can be used.
CHANNELS = (b"+switch-master", b"+slave", b"-sdown")
# What a sentinel says of a replica that is not to be read.
UNUSABLE = {"s_down", "o_down", "disconnected"}

# For how long a replica may say that it is a primary before the sentinels do, and the pause before they are asked
# again. If they never do, the sentinel that had begun a failover is gone, and the others make it a replica again.
SETTLE_S = 10.0
SETTLE_PAUSE_S = 0.1

# Of how many replies the quickest is taken for the latency of a server.
PINGS = 3


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


@dataclass(frozen=True, slots=True)
class Replication:
    """Of one primary: the replicas that follow it, and how many of them have acknowledged what was written."""

    replicas: int
    guarded: bool
    """Whether it refuses to write while fewer replicas than `min-replicas-to-write` follow closely."""

    acknowledged: int = 0

    def shortfalls(self, where: str) -> list[str]:
        """Return a sentence for each way in which a failover could lose what was written; free of secrets."""
        if not self.replicas:
            return [f"{where} has no replica, so its loss would be the loss of all releases; add one"]
        found = [] if self.guarded else [f"{where}: {UNGUARDED}"]
        if self.acknowledged < self.replicas:
            found.append(
                f"{self.acknowledged} of the {self.replicas} replicas of {where} have acknowledged what was written "
                f"in {SEAL_WAIT_S:g} s; a failover to another before it has caught up would lose that"
            )
        return found


def replication_in(fields: Mapping[str, str]) -> Replication:
    """Return what a primary says of its replicas in INFO."""
    following = sum(
        "state=online" in stated.split(",") for name, stated in fields.items() if name.removeprefix("slave").isdigit()
    )
    return Replication(following, guarded="min_slaves_good_slaves" in fields)  # which is there if it is set


async def wait_for_replicas(
    connection: Sender, *, wanted: int | None = None, timeout_s: float = SEAL_WAIT_S
) -> Replication | None:
    """Wait until *wanted* replicas, or all that follow, have whatever its primary wrote up to now; say how many do.

    Nothing else on the connection is answered until then. None if the user may not ask for that. Raises StoreError.
    """
    try:
        found = replication_in(fields_of(await connection.send_command(b"INFO", b"replication")))
        if not found.replicas:
            return found
        count = min(wanted or found.replicas, found.replicas)
        acknowledged = int(await connection.send_command(b"WAIT", count, int(timeout_s * 1000)))
    except StoreMisused:
        return None
    return Replication(found.replicas, found.guarded, acknowledged)


class SentinelState(NamedTuple):
    """What one sentinel knows of a deployment; of two, the one of the higher epoch knows the later failover."""

    epoch: int
    primary: tuple[str, int]
    replicas: tuple[tuple[str, int], ...]
    """Those that can be used, as far as the sentinel sees."""


class Sentinels:
    """Knows where the primary is, and closes connections to one that is not the primary any more.

    It lives as long as its store. Before a connection is opened, all sentinels are queried, at most once at a time.
    Once most have answered, the answer of the latest failover counts. Their announcements are followed as well.
    """

    def __init__(self, address: SentinelAddress) -> None:
        read = address.read
        self.replicas = None if read is ReadFrom.PRIMARY else Replicas(self, nearest=read is ReadFrom.NEAREST)
        """Where lookups may be sent, other than to the primary."""
        self._address = address
        self._shown = address.server.shown
        self._reconnectors = WeakSet[Reconnector]()
        self._state: SentinelState | None = None
        self._asking: asyncio.Task[SentinelState] | None = None
        self._following: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()

    def add(self, reconnector: Reconnector) -> None:
        """See `Resolver`."""
        self._reconnectors.add(reconnector)

    async def resolve(self) -> RedisAddress:
        """Return where the primary is now; StoreUnavailable if no sentinel says."""
        return self._primary(await self.state())

    async def state(self, *, of_all: bool = False) -> SentinelState:
        """Ask the sentinels; callers at the same time share the answer. Raises StoreUnavailable.

        *of_all*: wait for each of them, as one alone may know of a failover; it raises, too, where most do not answer.
        """
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        while of_all and self._asking is not None:
            await asyncio.wait([self._asking])
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(of_all=of_all))
            self._asking.add_done_callback(self._query_done)
        return await asyncio.shield(self._asking)

    async def wait_replicated(self, connection: PipelinedConnection) -> None:
        """Return once all replicas have what was written by *connection*, or no failover is seen that would lose it.

        Raises StoreUnavailable if another server is the primary by now: it may lack that.
        """
        shown, give_up_at = connection.address.shown, time.monotonic() + SETTLE_S
        while True:
            state = await self.state(of_all=True)
            if self._primary(state) != connection.address:
                raise StoreUnavailable(f"{shown} was replaced by {show(*state.primary)} while it was written to")
            found = await wait_for_replicas(connection, timeout_s=CONTROL_WAIT_S)
            acknowledged = 0 if found is None else found.acknowledged
            if acknowledged >= len(state.replicas):
                return
            roles = await asyncio.gather(*(_role(self.server(place)) for place in state.replicas))
            if ServerRole.PRIMARY not in roles or time.monotonic() > give_up_at:
                break
            await asyncio.sleep(SETTLE_PAUSE_S)
        log.warning(
            "the catalogue was changed; %d of the %d replicas of %s have acknowledged that, and a failover to another "
            "before it has caught up would lose it", acknowledged, len(state.replicas), shown
        )  # fmt: skip

    def server(self, place: tuple[str, int]) -> RedisAddress:
        """Return the address of one of the deployment's servers."""
        host, port = place
        return replace(self._address.server, shown=f"{self._shown} ({show(host, port)})", host=host, port=port)

    async def close(self) -> None:
        """Stop listening and asking."""
        tasks = [task for task in (self._asking, self._following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def examine(self) -> list[Finding]:
        """Return what `store doctor` says of the sentinels themselves; never raises StoreError."""
        findings, said = list[Finding](), dict[str, str]()
        sentinels = self._address.sentinels
        found = await asyncio.gather(*map(self._examine_one, sentinels), return_exceptions=True)
        for sentinel, one in zip(sentinels, found, strict=True):
            if isinstance(one, BaseException):
                findings.append(Finding(Level.WARNING, "sentinel", f"{one}; start it, or take it out of the URL"))
            else:
                state, quorum = one
                said[sentinel.shown] = show(*state.primary)
                findings.append(quorum)
        if len(set(said.values())) > 1:
            sentence = "; ".join(f"{sentinel} says {primary}" for sentinel, primary in said.items())
            advice = "a failover is under way, or they are cut off from each other"
            findings.append(Finding(Level.ERROR, "sentinels", f"they disagree about the primary: {sentence}; {advice}"))
        elif said:
            answering = f"{len(said)} of {len(self._address.sentinels)} answer"
            primary = next(iter(said.values()))
            findings.append(Finding(Level.OK, "sentinels", f"{answering}, and say that the primary is {primary}"))
        return findings

    def _primary(self, state: SentinelState) -> RedisAddress:
        return replace(self.server(state.primary), role=ServerRole.PRIMARY)

    def _query_done(self, asking: asyncio.Task[SentinelState]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # retrieved, even where every caller was cancelled

    async def _ask(self, *, of_all: bool) -> SentinelState:
        """Ask all; where the primary has moved, have everybody leave the one before."""
        sentinels, before = self._address.sentinels, self._state
        asked = [asyncio.create_task(self._ask_one(sentinel)) for sentinel in sentinels]
        states, errors = list[SentinelState](), list[str]()
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    states.append(await answer)
                except StoreError as error:
                    errors.append(str(error))
                    continue
                most = len(states) > len(sentinels) // 2
                if most and not of_all and (before is None or max(states).epoch >= before.epoch):
                    break
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not states:
            raise StoreUnavailable(f"no sentinel of {self._shown} says where its primary is: {'; '.join(errors)}")
        if of_all and len(errors) >= len(states):
            sentence = f"most sentinels of {self._shown} do not say where its primary is, so it may be another"
            raise StoreUnavailable(f"{sentence}: {'; '.join(errors)}")
        self._state = max(states)
        if before is not None and before.primary != self._state.primary:
            log.warning("the primary of %s is at %s now", self._shown, show(*self._state.primary))
            for reconnector in tuple(self._reconnectors):
                reconnector.leave(f"{self.server(before.primary).shown} is not the primary any more")
        return self._state

    async def _ask_one(self, sentinel: RedisAddress) -> SentinelState:
        commands = (b"GET-MASTER-ADDR-BY-NAME", b"MASTER", b"REPLICAS")
        async with connected(sentinel, TIMEOUT_S) as connection:
            sent = [connection.send_command(b"SENTINEL", command, self._address.name) for command in commands]
            place, primary, replicas = await asyncio.gather(*sent)
        try:
            host, port = place
            usable = [each for each in map(_fields, replicas) if UNUSABLE.isdisjoint(each["flags"].split(","))]
            # None is connected to a primary that has died.
            linked = [each for each in usable if each.get("master-link-status") == "ok"] or usable
            places = tuple((each["ip"], int(each["port"])) for each in linked)
            return SentinelState(int(_fields(primary)["config-epoch"]), (host.decode(), int(port)), places)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StoreUnavailable(f"{sentinel.shown} replied with something else than it was asked for") from error

    async def _examine_one(self, sentinel: RedisAddress) -> tuple[SentinelState, Finding]:
        state = await self._ask_one(sentinel)
        try:
            async with connected(sentinel, TIMEOUT_S) as connection:
                said: bytes = await connection.send_command(b"SENTINEL", b"CKQUORUM", self._address.name)
        except StoreMisused as error:
            return state, Finding(Level.WARNING, "quorum", f"it may not be asked for: {error}")
        except StoreError as error:
            sentence = f"no failover can be made: {error}; mend the other sentinels"
            return state, Finding(Level.ERROR, "quorum", sentence)
        return state, Finding(Level.OK, "quorum", f"{sentinel.shown}: {said.decode()}")

    async def _follow(self) -> None:
        """Ask again whenever a sentinel says that something has changed, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for sentinel in self._address.sentinels:
                group.create_task(self._listen(sentinel))
            while True:
                await self._heard.wait()
                self._heard.clear()
                if self._asking is not None:  # it may have been answered before
                    await asyncio.wait([self._asking])
                with suppress(StoreUnavailable):
                    state = await self.state()
                    if self.replicas is not None:
                        self.replicas.consider(state)

    async def _listen(self, sentinel: RedisAddress) -> None:
        subscription = Reconnector(sentinel, TIMEOUT_S, on_message=self._heard.set)
        subscribed = None
        try:
            while True:
                with suppress(StoreError):  # the others are listened to, too; the attempts back off
                    connection = await subscription.connection()
                    if connection is subscribed:
                        await connection.send_command(b"PING")
                    else:
                        await asyncio.gather(*(connection.send_command(b"SUBSCRIBE", channel) for channel in CHANNELS))
                        subscribed = connection
                        self._heard.set()  # or something was said before
                await asyncio.sleep(PING_S)
        finally:
            await subscription.close()


class Replicas:
    """Knows a replica to read from, drawn again for each connection, or the server that is nearest; see `Resolver`."""

    def __init__(self, sentinels: Sentinels, *, nearest: bool) -> None:
        """Take whether the *nearest* server is wanted, the primary included, rather than any replica."""
        self._sentinels = sentinels
        self._nearest = nearest
        self._reconnectors = WeakSet[Reconnector]()
        self._measured = frozenset[tuple[str, int]]()

    def add(self, reconnector: Reconnector) -> None:
        """See `Resolver`."""
        self._reconnectors.add(reconnector)

    async def resolve(self) -> RedisAddress:
        """Measure all that can be used, and return one; StoreUnavailable if there is none."""
        self._measured = self._places(await self._sentinels.state())
        servers = [self._sentinels.server(place) for place in self._measured]
        measured = await asyncio.gather(*(_latency_s(server) for server in servers))
        answering = [one for one in zip(measured, servers, strict=True) if one[0] is not None]
        if not answering:
            raise StoreUnavailable("no replica can be used; lookups go to the primary")
        if self._nearest:
            return min(answering, key=itemgetter(0))[1]
        return random.choice(answering)[1]  # noqa: S311 -- spreads readers, guards nothing

    def consider(self, state: SentinelState) -> None:
        """Have one chosen again if there are more to choose from; reads under way go to the primary."""
        if not self._places(state) <= self._measured:
            for reconnector in tuple(self._reconnectors):
                reconnector.leave("there are other replicas to choose from")

    def _places(self, state: SentinelState) -> frozenset[tuple[str, int]]:
        return frozenset(state.replicas) | (frozenset([state.primary]) if self._nearest else frozenset())


async def _latency_s(server: RedisAddress) -> float | None:
    """Return how long a server takes to reply; None if it does not, or not with what it holds."""
    taken = list[float]()
    try:
        async with connected(server, TIMEOUT_S) as connection:
            for _ in range(PINGS):
                started = time.perf_counter()
                await connection.send_command(b"PING")
                taken.append(time.perf_counter() - started)
    except StoreError:
        return None
    return min(taken)


async def _role(server: RedisAddress) -> str | None:
    """Return what a server says that it is; None if it does not answer."""
    try:
        async with connected(server, TIMEOUT_S) as connection:
            return role_of(await connection.send_command(b"HELLO", 2))
    except StoreError:
        return None


def _fields(reply: Sequence[bytes]) -> dict[str, str]:
    """Understand names and values by turns."""
    return {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
