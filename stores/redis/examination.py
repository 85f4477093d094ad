"""Memory of a server, and the findings of `hotplate store doctor`."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from hotplate.stores.errors import StoreError, StoreFull, StoreMisused, StoreUnavailable
from hotplate.stores.redis.connection import PipelinedConnection, Reconnector, connected, fields_of
from hotplate.stores.redis.layout import Keys, ReleaseKeys
from hotplate.stores.redis.topology import OnlyServer, RedisNode, Topology, replicas_in
from hotplate.stores.redis.url import RedisAddress
from hotplate.stores.store import Finding, Level, Plan
from hotplate.stores.urls import LOOPBACK

_ok = partial(Finding, Level.OK)
_warning = partial(Finding, Level.WARNING)
_error = partial(Finding, Level.ERROR)

TIMEOUT_S = 5.0

OLDEST = 7

MUCH_USED = 0.9

# Overhead of a row, and of the allocator: within -10 and +13 % of `used_memory` for rows of 0 to 9,000 bytes (Redis 7).
ROW_BYTES = 80
ALLOCATED = 1.08

# Settings of a cluster's nodes, their wrong values, and the consequences.
COVERAGE = (
    (b"cluster-require-full-coverage", "yes", "all nodes refuse to answer when one is lost; set no on each"),
    (b"cluster-allow-reads-when-down", "no", "a node cut off from the others answers nothing; set yes on each"),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """A server's memory in bytes: used, its limit (0: none), and its machine's (0: unknown)."""

    used: int
    maxmemory: int
    machine: int
    policy: str

    @property
    def evicts(self) -> bool:
        """Whether lists can be evicted; they have no expiry, so `volatile-*` spares them."""
        return self.policy.startswith("allkeys-")

    def check(self, plan: Plan, keys: ReleaseKeys, where: str) -> None:
        """Raise StoreFull if *plan* does not fit."""
        beside = len(keys.heads[-1]) + ROW_BYTES
        needed = int((plan.payload_bytes + (plan.rows + len(keys.heads)) * beside) * ALLOCATED)
        limit, remedy = self.maxmemory, "raise maxmemory"
        if not limit:
            limit, remedy = self.machine, "take a machine with more memory"
        if limit and self.used + needed > limit:
            raise StoreFull(
                f"the release needs about {needed / 1e6:,.1f} MB in {where}, which has a limit of "
                f"{limit / 1e6:,.1f} MB and uses {self.used / 1e6:,.1f} MB; {remedy}, prune old releases, or "
                f"publish shorter lists"
            )

    def warnings(self, where: str) -> list[str]:
        """Return one sentence if lists could be evicted."""
        if not self.maxmemory or not self.evicts:
            return []
        sentence = f"{where} has the eviction policy {self.policy}, which drops lists once memory is short"
        return [f"{sentence}; set maxmemory-policy to noeviction"]


async def measure(reconnector: Reconnector) -> Memory:
    """Read a server's memory; raises StoreError."""
    return _memory(fields_of(await reconnector.execute_command(b"INFO", b"memory")))


def _memory(fields: Mapping[str, str]) -> Memory:
    return Memory(
        used=int(fields.get("used_memory", 0)),
        maxmemory=int(fields.get("maxmemory", 0)),
        machine=int(fields.get("total_system_memory", 0)),
        policy=fields.get("maxmemory_policy", "noeviction"),
    )


async def examine(servers: OnlyServer, keys: Keys) -> list[Finding]:
    """Examine each primary; raises StoreError if none is known."""
    await servers.load()
    if not servers.primaries:
        return [_error("slots", "no node serves any; see redis-cli --cluster check")]
    home = servers.owner(key_slot(keys.catalogue.encode()))
    each = list[tuple[RedisNode, Finding]]()
    for node in servers.primaries:
        try:
            found = await _examine_server(servers, node, keys if node == home else None)
        except StoreError as error:
            found = [_error("server", str(error))]
        each += [(node, finding) for finding in found]
    if len(servers.primaries) == 1:
        return [finding for _, finding in each]
    merged = list[Finding]()
    for subject in dict.fromkeys(finding.subject for _, finding in each):
        of = [finding._replace(sentence=f"{node}: {finding.sentence}") for node, finding in each
              if finding.subject == subject]  # fmt: skip
        well = of[0]._replace(sentence="; ".join(finding.sentence for finding in of))
        merged += [finding for finding in of if finding.level != Level.OK] or [well]
    return merged


async def _examine_server(servers: OnlyServer, node: RedisNode, keys: Keys | None) -> list[Finding]:
    address = servers.address(node)
    async with connected(address, TIMEOUT_S) as connection:
        try:
            fields = fields_of(await connection.send_command(b"INFO"))
        except StoreMisused as error:
            found = [_warning("server", f"this user may not send INFO: {error}")]
        else:
            persistence = _persistence(fields, await _setting(connection, b"save"))
            found = [_server(fields), _role(fields), *_memory_findings(_memory(fields)), persistence]
            if servers.is_replicated:
                found += _replication(fields)
        if isinstance(servers, Topology):
            found += await _cluster(connection)
        if keys is not None:
            # A replica ends the connection at the first write, so that comes last.
            found += [_transport(address), await _reading(connection, keys), await _writing(connection, keys)]
    return found


async def _cluster(connection: PipelinedConnection) -> list[Finding]:
    try:
        fields = fields_of(await connection.send_command(b"CLUSTER", b"INFO"))
    except StoreMisused as error:
        return [_warning("cluster", f"this user may not send CLUSTER INFO: {error}")]
    sentence = f"{fields.get('cluster_size', '?')} primaries of {fields.get('cluster_known_nodes', '?')} nodes"
    found = [_ok("cluster", sentence)]
    if fields.get("cluster_state") != "ok":
        found = [_error("cluster", f"{sentence}, and its state is fail: nodes refuse to answer; see their logs")]
    if unserved := SLOTS - int(fields.get("cluster_slots_ok", 0)):
        advice = "belong to no node or to one that has failed; see redis-cli --cluster check"
        found.append(_error("slots", f"{unserved:,} of {SLOTS:,} {advice}"))
    for setting, wrong, sentence in COVERAGE:
        if (value := await _setting(connection, setting)) == wrong:
            found.append(_warning("coverage", f"{setting.decode()} is {wrong}: {sentence}"))
        elif value is None:
            found.append(_ok("coverage", f"{setting.decode()} is unknown: CONFIG GET is not allowed"))
    return found


async def _reading(connection: PipelinedConnection, keys: Keys) -> Finding:
    try:
        await connection.send_command(b"MGET", keys.catalogue, keys.doctors)
        await connection.send_command(b"TIME")
    except StoreMisused as error:
        return _error("may read", f"no: {error}; docs/redis.md has the rights of a user that serves")
    return _ok("may read", "yes")


async def _writing(connection: PipelinedConnection, keys: Keys) -> Finding:
    """Queue and discard the commands of a publish; the server checks them when queued."""
    row, catalogue = keys.doctors, keys.catalogue
    commands: dict[str, tuple[str | bytes | int, ...]] = {
        "SET": (catalogue, b""), "DEL": (row,), "UNLINK": (row,), "RPUSH": (row, b""), "HSET": (row, b"0", b""),
        "EVAL": (b"return 1", 1, row), "MSET": (row, b""),
    }  # fmt: skip
    try:
        await connection.send_command(b"WATCH", row)
        await connection.send_command(b"MULTI")
    except StoreMisused as error:  # without MULTI, commands would be executed
        return _warning("may publish", f"no, as is right for a service: {error}")
    sent = [connection.send_command(name, *arguments) for name, arguments in commands.items()]
    replies = await asyncio.gather(*sent, connection.send_command(b"DISCARD"), return_exceptions=True)
    refused = {name: reply for name, reply in zip(commands, replies, strict=False) if isinstance(reply, StoreError)}
    others = [str(error) for error in refused.values() if not isinstance(error, StoreMisused)]
    if others:  # a replica, or a server that is full or cannot save
        return _warning("may publish", f"no: {others[0]}")
    if refused:
        sentence = f"no: this user may not {', '.join(refused)}, as is right for a service"
        return _warning("may publish", f"{sentence}; docs/redis.md has the rights of one that publishes")
    return _ok("may publish", "yes")


async def _setting(connection: PipelinedConnection, name: bytes) -> str | None:
    try:
        found: list[bytes] = await connection.send_command(b"CONFIG", b"GET", name)
    except (StoreMisused, StoreUnavailable):  # managed services rename CONFIG
        return None
    return found[1].decode() if len(found) > 1 else None


def _server(fields: Mapping[str, str]) -> Finding:
    name = "Valkey" if "valkey_version" in fields else "Redis"
    stated = fields.get("valkey_version") or fields.get("redis_version", "of an unknown version")
    sentence = f"{name} {stated}, {fields.get('redis_mode', 'standalone')}"
    major = fields.get("redis_version", "").partition(".")[0]
    if major.isdigit() and int(major) < OLDEST:
        return _warning("server", f"{sentence}, older than the tested versions; upgrade to {OLDEST}")
    return _ok("server", sentence)


def _role(fields: Mapping[str, str]) -> Finding:
    if fields.get("role", "master") == "master":
        return _ok("role", f"primary, {fields.get('connected_slaves', '0')} replicas")
    if fields.get("master_link_status") != "up":
        return _error("role", "a replica without its primary, so its data are old; mend the replication")
    return _warning("role", "a replica: serve from it, and publish to its primary")


def _replication(fields: Mapping[str, str]) -> list[Finding]:
    replicas = replicas_in(fields)
    if not replicas:
        return [_error("replicas", "none follows the primary, so nothing can take over; add one")]
    guard = _ok("min-replicas", "the primary refuses writes that no replica would get")
    if "min_slaves_good_slaves" not in fields:  # present only if it is set
        sentence = "it goes on writing if no replica follows, and a failover loses that; set min-replicas-to-write 1"
        guard = _warning("min-replicas", sentence)
    return [_ok("replicas", f"{replicas} follow the primary"), guard]


def _memory_findings(memory: Memory) -> list[Finding]:
    limit = f"{memory.maxmemory / 1e6:,.1f} MB" if memory.maxmemory else "its machine; maxmemory is not set"
    used = f"{memory.used / 1e6:,.1f} MB used of {limit}"
    room = _ok("memory", used)
    if memory.maxmemory and memory.used >= memory.maxmemory * MUCH_USED:
        room = _warning("memory", f"{used}; raise maxmemory, or prune old releases")
    if not memory.evicts:
        return [room, _ok("eviction", f"{memory.policy}: no list is ever dropped")]
    sentence = f"{memory.policy} drops lists once memory is short; set maxmemory-policy to noeviction"
    return [room, (_error if memory.maxmemory else _warning)("eviction", sentence)]


def _persistence(fields: Mapping[str, str], save_points: str | None) -> Finding:
    saves = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
    failed = [name for name in saves if fields.get(name, "ok") != "ok"]
    if failed:
        sentence = f"the last save failed ({', '.join(failed)}), and the server may refuse to write"
        return _error("persistence", f"{sentence}; see its log and disk")
    if fields.get("aof_enabled") == "1":
        return _ok("persistence", "appendonly: every change is on its disk within a second")
    if save_points == "":
        sentence = "none: a restart loses all releases, and services answer popular lists until the next publish"
        return _warning("persistence", f"{sentence}; set appendonly yes, or save")
    return _ok("persistence", f"snapshots by {save_points or 'an unknown schedule'}")


def _transport(address: RedisAddress) -> Finding:
    if address.tls:
        return _ok("transport", "TLS, with a certificate that is verified")
    if address.path or address.host in LOOPBACK or address.host.startswith("127."):
        return _ok("transport", "a socket on this machine" if address.path else "not encrypted, within this machine")
    if address.password is None:
        return _warning("transport", "not encrypted and without a password; use rediss:// and an ACL user")
    return _warning("transport", "the password crosses the network unencrypted; use rediss://")
