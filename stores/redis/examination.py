"""What Redis servers say of themselves, their memory above all, and what `hotplate store doctor` makes of it."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from hotplate.stores.errors import StoreError, StoreFull, StoreMisused, StoreUnavailable
from hotplate.stores.redis.connection import PipelinedConnection, Reconnector, connected
from hotplate.stores.redis.keys import Keys, ReleaseKeys
from hotplate.stores.redis.topology import Endpoint, Topology
from hotplate.stores.redis.url import Address
from hotplate.stores.store import Finding, Level, Plan
from hotplate.stores.urls import LOOPBACK

TIMEOUT_S = 5.0

# The oldest server that the tests run against.
OLDEST = (7, 0)

# From here on an operator should know that memory is short.
MUCH_USED = 0.9

# What a row takes besides its bytes, and what the allocator makes of it: within -10 and +13 % of `used_memory` for rows
# of 0 to 9,000 bytes on Redis 7; the allocator rounds up to its next size.
ROW_BYTES, ALLOCATED = 80, 1.08


@dataclass(frozen=True, slots=True)
class Memory:
    """A server's memory, in bytes: what it uses, its own limit (0: none), and what its machine has (0: unknown)."""

    used: int
    maxmemory: int
    machine: int
    policy: str

    @property
    def evicts(self) -> bool:
        """Whether lists vanish once memory is short. `volatile-*` cannot touch them, because they have no expiry."""
        return self.policy.startswith("allkeys-")

    def check(self, plan: Plan, keys: ReleaseKeys, where: str) -> None:
        """Raise StoreFull, with the numbers, where *plan* does not fit into what is left."""
        beside = len(keys.heads[-1]) + ROW_BYTES
        needed = int((plan.payload_bytes + (plan.rows + len(keys.heads)) * beside) * ALLOCATED)
        limit = self.maxmemory or self.machine
        if limit and self.used + needed > limit:
            raise StoreFull(
                f"the release needs about {needed / 1e6:,.1f} MB in {where}, which has a limit of "
                f"{limit / 1e6:,.1f} MB and uses {self.used / 1e6:,.1f} MB; raise maxmemory, prune old releases, "
                f"or publish shorter lists"
            )

    def warnings(self, where: str) -> list[str]:
        """Return a sentence where lists could vanish."""
        if not self.maxmemory or not self.evicts:
            return []
        sentence = f"{where} has the eviction policy {self.policy}, which drops lists in silence once memory is short"
        return [f"{sentence}; set maxmemory-policy to noeviction"]


async def measure(reconnector: Reconnector) -> Memory:
    """Read it from the server, in one command; raises StoreError."""
    return _memory(_fields(await reconnector.execute_command(b"INFO", b"memory")))


def _fields(info: bytes) -> dict[str, str]:
    """Understand the reply to INFO."""
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


def _memory(fields: Mapping[str, str]) -> Memory:
    return Memory(
        used=int(fields.get("used_memory", 0)),
        maxmemory=int(fields.get("maxmemory", 0)),
        machine=int(fields.get("total_system_memory", 0)),
        policy=fields.get("maxmemory_policy", "noeviction"),
    )


async def examine(address: Address, keys: Keys) -> list[Finding]:
    """Ask the server, on connections of its own; raises StoreError if it cannot be reached."""
    rights, found = await _rights(address, keys), await _examine_server(address)
    return [*found[:2], *rights, *found[2:]]


async def examine_cluster(topology: Topology, keys: Keys) -> list[Finding]:
    """Ask each primary of a cluster, and what it says of the others; raises StoreError if none can be reached."""
    await topology.load()
    home = topology.owner(key_slot(keys.catalogue.encode()))
    if home is None:
        sentence = "no node serves the slot of the catalogue; bring the node back, or give its slots to another"
        return [Finding(Level.ERROR, "slots", sentence)]
    found = [*await _cluster(topology), *await _rights(topology.resolver(home), keys)]
    each = list[tuple[Endpoint, Finding]]()
    for node in topology.primaries:
        try:
            each += [(node, finding) for finding in await _examine_server(topology.resolver(node))]
        except StoreError as error:
            each.append((node, Finding(Level.ERROR, "server", str(error))))
    return found + _summed(each)


def _summed(each: Sequence[tuple[Endpoint, Finding]]) -> list[Finding]:
    """Return what is not well, node by node, and of what is well everywhere one line."""
    found = list[Finding]()
    for subject in dict.fromkeys(finding.subject for _, finding in each):
        of = [(node, finding) for node, finding in each if finding.subject == subject]
        wrong = [(node, finding) for node, finding in of if finding.level != Level.OK]
        if wrong:
            found += [finding._replace(sentence=f"{node}: {finding.sentence}") for node, finding in wrong]
        else:
            found.append(of[0][1]._replace(sentence="; ".join(f"{node}: {finding.sentence}" for node, finding in of)))
    return found


async def _cluster(topology: Topology) -> list[Finding]:
    """Return what is wrong with the cluster as a whole, as its first primary that answers sees it."""
    error: StoreError | None = None
    for node in topology.primaries:
        try:
            async with connected(topology.resolver(node), TIMEOUT_S) as connection:
                fields = _fields(await connection.send_command(b"CLUSTER", b"INFO"))
                full = await _setting(connection, b"cluster-require-full-coverage")
                reads = await _setting(connection, b"cluster-allow-reads-when-down")
                break
        except StoreMisused as refused:
            return [Finding(Level.WARNING, "cluster", f"it may not be asked about itself: {refused}")]
        except StoreError as unreachable:
            error = unreachable
    else:
        return [Finding(Level.ERROR, "cluster", f"no primary answers: {error}")]
    return [_state(fields), _slots(fields), _replicas(topology), _coverage(full, reads)]


def _state(fields: Mapping[str, str]) -> Finding:
    sentence = f"{fields.get('cluster_size', '?')} primaries of {fields.get('cluster_known_nodes', '?')} nodes"
    if fields.get("cluster_state") == "ok":
        return Finding(Level.OK, "cluster", sentence)
    sentence += ", and its state is fail: nodes refuse to answer; see `redis-cli --cluster check` and their logs"
    return Finding(Level.ERROR, "cluster", sentence)


def _slots(fields: Mapping[str, str]) -> Finding:
    assigned, failed = (int(fields.get(f"cluster_slots_{which}", 0)) for which in ("assigned", "fail"))
    if assigned < SLOTS:
        sentence = f"{SLOTS - assigned:,} of {SLOTS:,} belong to no node; give them to nodes: redis-cli --cluster fix"
        return Finding(Level.ERROR, "slots", sentence)
    if failed:
        sentence = f"{failed:,} of {SLOTS:,} are of nodes that have failed, whose users get popular lists"
        return Finding(Level.ERROR, "slots", f"{sentence}; bring these back, or let replicas take over")
    return Finding(Level.OK, "slots", f"all {SLOTS:,} are served")


def _replicas(topology: Topology) -> Finding:
    alone = [str(node) for node in topology.primaries if not topology.replicas(node)]
    if alone:
        sentence = f"{', '.join(alone)} have none, so what is on them is lost with them; add a replica to each"
        return Finding(Level.WARNING, "replicas", sentence)
    return Finding(Level.OK, "replicas", "each primary has at least one")


def _coverage(full: str | None, reads: str | None) -> Finding:
    if full == "yes":
        sentence = (
            "cluster-require-full-coverage is yes, so all nodes refuse to answer when one is lost; set it to no "
            "on each, and only the users on that node get popular lists"
        )
        return Finding(Level.WARNING, "coverage", sentence)
    if reads == "no":
        sentence = (
            "cluster-allow-reads-when-down is no, so a node that does not hear most of the others for a moment "
            "answers no request; set it to yes on each, and its users keep their lists"
        )
        return Finding(Level.WARNING, "coverage", sentence)
    known = "it may not be asked whether a lost node takes the others along" if full is None else "a lost node is alone"
    return Finding(Level.OK, "coverage", known)


async def _rights(address: Address, keys: Keys) -> list[Finding]:
    async with connected(address, TIMEOUT_S) as connection:
        writing = await _writing(connection, keys)
    async with connected(address, TIMEOUT_S) as connection:
        return [await _reading(connection, keys), writing, _transport(address)]


async def _examine_server(address: Address) -> list[Finding]:
    async with connected(address, TIMEOUT_S) as connection:
        try:
            fields = _fields(await connection.send_command(b"INFO"))
        except StoreMisused as error:
            return [Finding(Level.WARNING, "server", f"it may not be asked about itself: {error}")]
        persistence = _persistence(fields, await _setting(connection, b"save"))
    memory = _memory(fields)
    return [_server(fields), _role(fields), _room(memory), _eviction(memory), persistence]


async def _reading(connection: PipelinedConnection, keys: Keys) -> Finding:
    try:
        await connection.send_command(b"MGET", keys.catalogue, keys.doctors)
        await connection.send_command(b"TIME")
    except StoreMisused as error:
        sentence = f"no: {error}; docs/redis.md has the rights of a user that serves"
        return Finding(Level.ERROR, "may read", sentence)
    return Finding(Level.OK, "may read", "yes")


async def _writing(connection: PipelinedConnection, keys: Keys) -> Finding:
    """Queue what a publish sends, and discard it: rights, role and memory are checked when it is queued."""
    row, catalogue = keys.doctors, keys.catalogue
    commands: dict[str, tuple[str | bytes | int, ...]] = {
        "SET": (catalogue, b""), "DEL": (row,), "UNLINK": (row,), "RPUSH": (row, b""), "LREM": (row, 1, b""),
        "HSET": (row, b"0", b""), "HINCRBY": (row, b"0", 1),
        "EVAL": (b"return 1", 1, row), "MSET": (row, b""), "PUBLISH": (keys.changes, b""),
    }  # fmt: skip
    try:
        await connection.send_command(b"WATCH", row)
        await connection.send_command(b"MULTI")
    except StoreMisused as error:  # then nothing more is sent: it would be done
        return Finding(Level.WARNING, "may publish", f"no, as is right for a service: {error}")
    sent = [connection.send_command(name, *arguments) for name, arguments in commands.items()]
    replies = await asyncio.gather(*sent, connection.send_command(b"DISCARD"), return_exceptions=True)
    refused = {name: reply for name, reply in zip(commands, replies, strict=False) if isinstance(reply, StoreError)}
    others = [str(error) for error in refused.values() if not isinstance(error, StoreMisused)]
    if others:  # a replica, or a server that is full or cannot save: not about rights
        return Finding(Level.WARNING, "may publish", f"no: {others[0]}")
    if refused.keys() - {"PUBLISH"}:
        return Finding(
            Level.WARNING,
            "may publish",
            f"no: this user may not {', '.join(refused)}, as is right for a service; docs/redis.md has the rights of "
            f"one that publishes",
        )
    if refused:
        sentence = f"yes, but services see a change after a second only; give this user +publish and &{keys.changes}"
        return Finding(Level.WARNING, "may publish", sentence)
    return Finding(Level.OK, "may publish", "yes")


async def _setting(connection: PipelinedConnection, name: bytes) -> str | None:
    """Return how the server is configured; None if that may not be asked."""
    try:
        found: list[bytes] = await connection.send_command(b"CONFIG", b"GET", name)
    except (StoreMisused, StoreUnavailable):  # managed services rename CONFIG
        return None
    return found[1].decode() if len(found) > 1 else None


def _server(fields: Mapping[str, str]) -> Finding:
    name = "Valkey" if "valkey_version" in fields else "Redis"
    stated = fields.get("valkey_version") or fields.get("redis_version", "of an unknown version")
    parts = tuple(int(part) for part in fields.get("redis_version", "").split(".")[:2] if part.isdigit())
    sentence = f"{name} {stated}, {fields.get('redis_mode', 'standalone')}"
    if parts and parts < OLDEST:
        return Finding(Level.WARNING, "server", f"{sentence}, older than what is tested; upgrade to 7")
    return Finding(Level.OK, "server", sentence)


def _role(fields: Mapping[str, str]) -> Finding:
    if fields.get("role", "master") == "master":
        return Finding(Level.OK, "role", f"primary, {fields.get('connected_slaves', '0')} replicas")
    if fields.get("master_link_status") != "up":
        sentence = "a replica that has lost its primary, so it shows what was; mend the replication"
        return Finding(Level.ERROR, "role", sentence)
    return Finding(Level.WARNING, "role", "a replica: serve from it, and publish to its primary")


def _room(memory: Memory) -> Finding:
    used = f"{memory.used / 1e6:,.1f} MB used"
    if memory.maxmemory == 0:
        of_machine = f" of the {memory.machine / 1e6:,.0f} MB of its machine" if memory.machine else ""
        return Finding(Level.OK, "memory", f"{used}{of_machine}; maxmemory is not set")
    sentence = f"{used} of {memory.maxmemory / 1e6:,.1f} MB"
    if memory.used >= memory.maxmemory * MUCH_USED:
        return Finding(Level.WARNING, "memory", f"{sentence}; raise maxmemory, or prune old releases")
    return Finding(Level.OK, "memory", sentence)


def _eviction(memory: Memory) -> Finding:
    if not memory.evicts:
        return Finding(Level.OK, "eviction", f"{memory.policy}: no list is ever dropped")
    sentence = f"{memory.policy} drops lists in silence once memory is short; set maxmemory-policy to noeviction"
    if memory.maxmemory:
        return Finding(Level.ERROR, "eviction", sentence)
    return Finding(Level.WARNING, "eviction", f"{sentence}, before maxmemory is set")


def _persistence(fields: Mapping[str, str], save_points: str | None) -> Finding:
    failed = [
        name
        for name in ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
        if fields.get(name, "ok") != "ok"
    ]
    if failed:
        sentence = (
            f"the last save failed ({', '.join(failed)}), and the server may refuse to write; see its log and disk"
        )
        return Finding(Level.ERROR, "persistence", sentence)
    if fields.get("aof_enabled") == "1":
        return Finding(Level.OK, "persistence", "appendonly: every change is on its disk within a second")
    if save_points == "":
        return Finding(
            Level.WARNING,
            "persistence",
            "none: a restart loses all releases, and services answer popular lists until the next publish; set "
            "appendonly yes, or save",
        )
    age_s = max(0.0, time.time() - int(fields.get("rdb_last_save_time", 0)))
    when = "" if save_points is None else f" by {save_points}"
    changes = int(fields.get("rdb_changes_since_last_save", 0))
    return Finding(
        Level.OK, "persistence", f"snapshots{when}; the last {age_s:,.0f} s ago, {changes:,} changes since then"
    )


def _transport(address: Address) -> Finding:
    if address.tls:
        return Finding(Level.OK, "transport", "TLS, with a certificate that is verified")
    if address.path:
        return Finding(Level.OK, "transport", "a socket on this machine")
    if address.host in LOOPBACK or address.host.startswith("127."):
        return Finding(Level.OK, "transport", "not encrypted, within this machine")
    if address.password is None:
        return Finding(
            Level.WARNING, "transport", "not encrypted and without a password; use rediss:// and an ACL user"
        )
    return Finding(Level.WARNING, "transport", "the password crosses the network unencrypted; use rediss://")
