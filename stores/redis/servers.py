"""The servers of a deployment: one server, those behind sentinels, or the nodes of a cluster.

redis-py asks sentinels and nodes, and holds a cluster's slots. When it is asked is decided here: after a MOVED or a
failure, with pauses. During a Sentinel failover the former primary acknowledges writes for some seconds, which are
lost; so all sentinels are asked, and the highest epoch counts, while redis-py believes the first that answers.
"""

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, cast

from redis.asyncio import Connection, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel
from redis.credentials import CredentialProvider
from redis.exceptions import MovedError, RedisClusterException, RedisError, ResponseError

from hotplate.stores.errors import StoreError, StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import (
    CLIENT_NAME,
    CONNECT_TIMEOUT_S,
    NO_RETRIES,
    PROTOCOL,
    Session,
    settings_of,
    translated,
)
from hotplate.stores.redis.url import ClusterAddress, RedisAddress, SentinelAddress, show
from hotplate.stores.store import Finding, Level
from hotplate.stores.timing import Backoff, OneLoop, SharedCall

log = logging.getLogger(__name__)

DISCOVERY_TIMEOUT_S = 1.0  # per node or sentinel
DISCOVERY_PAUSES_S = (0.1, 1.0)  # first and longest between discoveries
CALM_S = 5.0  # resets the pauses

SEAL_WAIT_S = 3.0  # for replicas
CONTROL_WAIT_S = 1.0  # the same for changes of the catalogue or a state
SETTLE_S = 5.0  # for replicas that sentinels name and the primary lacks
SETTLE_PAUSE_S = 0.1

UNUSABLE = ("is_sdown", "is_odown", "is_disconnected")  # of replicas, as redis-py calls a sentinel's flags


class RedisNode(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return show(self.host, self.port)


class Standalone:
    """One server, which serves every slot; `primaries` take writes."""

    def __init__(self, address: RedisAddress, credentials: CredentialProvider | None = None) -> None:
        self.shown = address.shown
        self.loop = OneLoop(address.shown)
        self.loaded = True
        self.primaries: Sequence[RedisNode] = (RedisNode(address.host, address.port),)
        self.has_replicas = False
        self._address = address
        self._credentials = credentials

    async def load(self) -> None:
        """Wait until the servers are known; raises StoreError."""

    def owner(self, slot: int) -> RedisNode | None:
        """Return the server of a slot; None for an unknown one."""
        del slot
        return self.primaries[0]

    def places_by_node(self, slots: Sequence[int]) -> dict[RedisNode | None, list[int]]:
        """Group the positions of *slots* by the server that has the slot; None: no known one."""
        return {self.primaries[0]: list(range(len(slots)))}

    def address(self, node: RedisNode) -> RedisAddress:
        """Return the address of a server."""
        del node
        return self._address

    def settings(self, node: RedisNode, timeout_s: float | None, *, replica: bool = False) -> dict[str, Any]:
        """Return the settings of redis-py's connections to a server, or to a *replica*, for reads."""
        address = self.address(node)
        if replica:
            address = replace(address, is_primary=False)
        return settings_of(address, timeout_s, self._credentials)

    def replica_of(self, slot: int) -> RedisNode | None:
        """Return a random replica of the server of a slot; None if none is known."""
        del slot
        return None

    async def move(self, moved: MovedError, said_by: RedisNode) -> RedisNode:
        """Record that another server has a slot; return it."""
        del said_by
        sentence = f"{self.shown} is a node of a cluster; write redis+cluster:// instead of redis://"
        raise StoreMisused(sentence) from moved

    def schedule_refresh(self) -> None:
        """Rediscover the servers in the background."""

    async def confirm(self) -> None:
        """Check that the primary was not replaced, if others can say so; raises StoreUnavailable."""

    async def wait_replicated(self, session: Session, done: str, wait_s: float = CONTROL_WAIT_S) -> None:
        """Wait until all replicas have the writes of *session*, or log that a failover could lose what *done* names.

        StoreUnavailable if the primary was replaced.
        """
        replication = await wait_for_replicas(session, timeout_s=wait_s)
        if replication is not None and replication.acknowledged < replication.replicas:
            _warn_unacknowledged(done, replication, session.where, wait_s)

    async def renew(self) -> None:
        """Replace the connections of discovery by ones with new credentials."""

    async def examine(self) -> list[Finding]:
        """Return the findings of `store doctor` about the discovery."""
        return []

    async def close(self) -> None:
        """Stop discovery."""


class _Discovered(Standalone, ABC):
    def __init__(self, server: RedisAddress, credentials: CredentialProvider | None) -> None:
        super().__init__(server, credentials)
        self.loaded = False
        self.primaries = ()
        self._asking = SharedCall(self._discover, lambda: StoreUnavailable(f"{self.shown} was closed"))
        self._failure: StoreError | None = None
        self._later: asyncio.Task[None] | None = None
        self._backoff = Backoff(*DISCOVERY_PAUSES_S)
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


class Cluster(_Discovered):
    """The nodes of a cluster and their slots, which redis-py's `RedisCluster` holds."""

    def __init__(self, cluster: ClusterAddress, credentials: CredentialProvider | None = None) -> None:
        super().__init__(cluster.node, credentials)
        self._cluster = cluster
        self.client = self._new_client()

    def owner(self, slot: int) -> RedisNode | None:
        nodes = self.client.nodes_manager.slots_cache.get(slot)
        if not nodes:
            self.schedule_refresh()
            return None
        return _node_of(nodes[0])

    def places_by_node(self, slots: Sequence[int]) -> dict[RedisNode | None, list[int]]:
        nodes_of = self.client.nodes_manager.slots_cache
        by_name = dict[str | None, list[int]]()
        nodes = dict[str, ClusterNode]()
        for place, slot in enumerate(slots):
            name = None
            if of_slot := nodes_of.get(slot):
                name = of_slot[0].name
                nodes[name] = of_slot[0]
            places = by_name.get(name)
            if places is None:
                by_name[name] = [place]
            else:
                places.append(place)
        if None in by_name:
            self.schedule_refresh()
        return {None if name is None else _node_of(nodes[name]): places for name, places in by_name.items()}

    def address(self, node: RedisNode) -> RedisAddress:
        return self._cluster.at(*node)

    def replica_of(self, slot: int) -> RedisNode | None:
        nodes = self.client.nodes_manager.slots_cache.get(slot, ())
        return _any_of([_node_of(node) for node in nodes[1:]])

    def settings(self, node: RedisNode, timeout_s: float | None, *, replica: bool = False) -> dict[str, Any]:
        settings = super().settings(node, timeout_s)
        if replica:
            settings["redis_connect_func"] = self.client.on_connect
        return settings

    async def move(self, moved: MovedError, said_by: RedisNode) -> RedisNode:
        moved.host = moved.host or said_by.host
        if moved.slot_id in self.client.nodes_manager.slots_cache:  # else redis-py raises KeyError
            await self.client.nodes_manager.move_slot(moved)
            self._note_nodes()
        self.schedule_refresh()
        return RedisNode(moved.host, moved.port)

    async def renew(self) -> None:
        """Replace the client: its nodes would close connections that a command may take at the same time."""
        client = await self._loaded_client()
        while client is None:
            await asyncio.sleep(DISCOVERY_TIMEOUT_S)
            client = await self._loaded_client()
        former = self.client
        self.client = client
        try:
            await asyncio.sleep(DISCOVERY_TIMEOUT_S)  # in which the calls of the former client end
        finally:
            await _close_client(former)

    async def _loaded_client(self) -> RedisCluster | None:
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
                await _close_client(client)
        return client if is_loaded else None

    async def close(self) -> None:
        await super().close()
        await _close_client(self.client)

    def _new_client(self) -> RedisCluster:
        client = RedisCluster(
            startup_nodes=list(self._seeds().values()),
            require_full_coverage=False,
            reinitialize_steps=0,
            retry=NO_RETRIES,
            protocol=PROTOCOL,
        )
        # The constructor takes no class of connections; ours expect another name than the host's in certificates.
        client.connection_kwargs["connection_class"] = self._new_connection
        client.nodes_manager.startup_nodes = self._seeds()
        return client

    def _seeds(self) -> dict[str, ClusterNode]:
        connect = cast("type[Connection]", self._new_connection)  # it is only called
        nodes = [ClusterNode(host, port, connection_class=connect) for host, port in self._cluster.seeds]
        return {node.name: node for node in nodes}

    def _new_connection(self, *, host: str, port: int, **_: object) -> AbstractConnection:
        settings = self.settings(RedisNode(host, port), DISCOVERY_TIMEOUT_S)
        connection: AbstractConnection = settings.pop("connection_class")(**settings)
        return connection

    async def _ask(self) -> None:
        manager = self.client.nodes_manager
        try:
            await _load_slots(self.client)
        except RedisClusterException as error:
            manager.startup_nodes = self._seeds() | manager.startup_nodes  # for the next attempt
            raise self._unreachable(error) from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise StoreUnavailable(f"a node of {self.shown} described its slots in an unknown format") from error
        self._note_nodes()

    def _note_nodes(self) -> None:
        primaries = sorted(map(_node_of, self.client.get_primaries()))
        if self.loaded and primaries != self.primaries:
            log.info("the primaries of %s are now %s", self.shown, ", ".join(map(str, primaries)))
        self.primaries = primaries
        self.has_replicas = bool(self.client.get_replicas())

    def _unreachable(self, error: RedisClusterException) -> StoreError:
        """Translate the error of the node that was asked last; redis-py calls each refusal a missing cluster mode."""
        cause: BaseException | None = error.__cause__
        if isinstance(cause, RedisClusterException):
            cause = cause.__context__
        nodes = self.client.nodes_manager.startup_nodes.values()
        where = f"the node {' or '.join(str(_node_of(node)) for node in nodes)} of {self.shown}"
        if isinstance(cause, ResponseError) and "cluster support disabled" in str(cause):
            return StoreMisused(f"{where} is not a node of a cluster; write redis:// instead")
        return translated(cause if isinstance(cause, RedisError) else error, where)


def _node_of(node: ClusterNode) -> RedisNode:
    return RedisNode(str(node.host), int(node.port))


def _any_of(nodes: Sequence[RedisNode]) -> RedisNode | None:
    return random.choice(nodes) if nodes else None  # noqa: S311 -- spreads load


async def _load_slots(client: RedisCluster) -> None:
    manager = client.nodes_manager
    try:
        await manager.initialize()
    except IndexError:
        if manager.slots_cache:
            raise
        # No slot has a node, which redis-py does not expect.


async def _close_client(client: RedisCluster) -> None:
    await client.aclose()
    await client.nodes_manager.aclose()
    await client.nodes_manager.aclose("startup_nodes")


class Replication(NamedTuple):
    """The replicas that follow a primary, and those that have all its writes."""

    replicas: int
    acknowledged: int = 0


def _warn_unacknowledged(done: str, replication: Replication, where: str, wait_s: float) -> None:
    sentence = "%s; %d of the %d replicas of %s have acknowledged that in %g s, and a failover to another would lose it"
    log.warning(sentence, done, replication.acknowledged, replication.replicas, where, wait_s)


def replicas_in(info: Mapping[str, Any]) -> int:
    """Return the replicas that follow the primary of an INFO."""
    return sum(
        isinstance(value, dict) and value.get("state") == "online"
        for name, value in info.items()
        if name.removeprefix("slave").isdigit()
    )


async def wait_for_replicas(
    session: Session, *, wanted: int | None = None, timeout_s: float = SEAL_WAIT_S
) -> Replication | None:
    """Wait until *wanted* replicas (all by default) have all writes; None without rights. Blocks the connection."""
    try:
        replicas = replicas_in(await session.execute("INFO", "replication"))
        if not replicas:
            return Replication(0)
        count = min(wanted or replicas, replicas)
        return Replication(replicas, int(await session.execute("WAIT", count, int(timeout_s * 1000))))
    except StoreMisused:
        return None


def _usable(replicas: Sequence[Mapping[str, Any]]) -> tuple[RedisNode, ...]:
    """Return the replicas that can be read, of a sentinel's; those that are linked, unless the primary has died."""
    usable = [replica for replica in replicas if not any(replica[flag] for flag in UNUSABLE)]
    linked = [replica for replica in usable if replica.get("master-link-status") == "ok"]
    return tuple(RedisNode(replica["ip"], int(replica["port"])) for replica in linked or usable)


class SentinelState(NamedTuple):
    """One sentinel's view; the highest epoch has seen the latest failover."""

    epoch: int
    primary: RedisNode
    replicas: tuple[RedisNode, ...]


class Sentinels(_Discovered):
    """The primary and replicas named by sentinels: of their answers, the highest epoch counts."""

    def __init__(self, address: SentinelAddress, credentials: CredentialProvider | None = None) -> None:
        super().__init__(address.server, credentials)
        self._server = address
        login = address.sentinels[0]
        deployment = Sentinel(  # type: ignore[no-untyped-call]  # redis-py types the rest
            [(sentinel.host, sentinel.port) for sentinel in address.sentinels],
            sentinel_kwargs={
                "username": login.user,
                "password": login.password,
                "ssl": login.tls,
                "ssl_ca_certs": login.ca,
                "socket_timeout": DISCOVERY_TIMEOUT_S,
                "socket_connect_timeout": CONNECT_TIMEOUT_S,
                "retry": NO_RETRIES,
                "protocol": PROTOCOL,
                "client_name": CLIENT_NAME,
                "driver_info": None,
                "decode_responses": True,
            },
        )
        names = [sentinel.shown for sentinel in address.sentinels]
        self._clients: dict[str, Redis] = dict(zip(names, deployment.sentinels, strict=True))
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

    async def wait_replicated(self, session: Session, done: str, wait_s: float = CONTROL_WAIT_S) -> None:
        # A replica that is being promoted follows no more, some seconds before the sentinels say so.
        give_up_at = time.monotonic() + SETTLE_S
        where = session.where
        while True:
            replication = await wait_for_replicas(session, timeout_s=wait_s)
            await self.confirm()
            if self.address(self.primaries[0]).shown != where:
                raise StoreUnavailable(f"{where} was replaced by {self.primaries[0]} while it was written to")
            acknowledged = 0 if replication is None else replication.acknowledged
            if acknowledged >= len(self._replicas):
                return
            if replication is None or time.monotonic() > give_up_at:
                break
            await asyncio.sleep(SETTLE_PAUSE_S)
        _warn_unacknowledged(done, Replication(len(self._replicas), acknowledged), where, wait_s)

    async def close(self) -> None:
        await super().close()
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def examine(self) -> list[Finding]:
        findings = list[Finding]()
        primaries = set[RedisNode]()
        for where, client in self._clients.items():
            try:
                primaries.add((await self._ask_one(where, client)).primary)
                await client.sentinel_ckquorum(self._server.name)
                findings.append(Finding(Level.OK, "sentinel", f"{where}: a quorum of sentinels can be reached"))
            except (StoreError, RedisError) as error:
                level = Level.ERROR if "NOQUORUM" in str(error) else Level.WARNING  # others may form a quorum
                findings.append(Finding(level, "sentinel", f"{where}: {error}"))
        level = Level.OK if len(primaries) == 1 else Level.ERROR
        sentence = f"they say that the primary is {' or '.join(map(str, primaries)) or 'unknown'}"
        return [*findings, Finding(level, "sentinels", sentence)]

    async def _ask(self) -> tuple[list[SentinelState], list[str]]:
        questions = [self._ask_one(where, client) for where, client in self._clients.items()]
        answers = await asyncio.gather(*questions, return_exceptions=True)
        states = [answer for answer in answers if isinstance(answer, SentinelState)]
        errors = [str(answer) for answer in answers if isinstance(answer, BaseException)]
        if not states:
            raise StoreUnavailable(f"no sentinel of {self.shown} says where its primary is: {'; '.join(errors)}")
        self._follow(max(states))
        return states, errors

    def _follow(self, state: SentinelState) -> None:
        if self.primaries and state.primary != self.primaries[0]:
            log.warning("the primary of %s is at %s now", self.shown, state.primary)
        self.primaries = (state.primary,)
        self._replicas = state.replicas
        self.has_replicas = bool(state.replicas)

    async def _ask_one(self, where: str, client: Redis) -> SentinelState:
        name = self._server.name
        try:
            async with client.pipeline(transaction=False) as pipeline:  # answered at one instant
                pipeline.sentinel_get_master_addr_by_name(name)
                pipeline.sentinel_master(name)
                pipeline.sentinel_slaves(name)
                (host, port), primary, replicas = await pipeline.execute()
            return SentinelState(int(primary["config-epoch"]), RedisNode(str(host), int(port)), _usable(replicas))
        except RedisError as error:
            raise translated(error, where) from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StoreUnavailable(f"{where} replied in an unknown format") from error
