"""Memory of a server, and the findings of `hotplate store doctor`.

*fields* are those of a server's reply to INFO, by name, as redis-py parses it. A user may lack the right to send a
command; then the finding says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from hotplate.stores.errors import AccessDenied, StoreError, StoreFull, StoreUnavailable
from hotplate.stores.redis.client import Command, Session
from hotplate.stores.redis.deployment import Deployment, RedisNode
from hotplate.stores.redis.footprint import ALLOCATED, HEAD_BYTES, ROW_BYTES
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.replication import replicas_in
from hotplate.stores.redis.server import Server
from hotplate.stores.redis.url import RedisAddress
from hotplate.stores.store import MAY_PUBLISH, Finding, Level, Plan, StoreUse
from hotplate.stores.urls import LOOPBACK

_ok = partial(Finding, Level.OK)
_warning = partial(Finding, Level.WARNING)
_error = partial(Finding, Level.ERROR)
# Whether such a server takes writes, the finding MAY_PUBLISH says.
_risk = partial(Finding, Level.ERROR, prevents=())

MUCH_USED = 0.9  # share of `maxmemory`

# Settings of a cluster's nodes, their wrong values, and the consequences.
COVERAGE = (
    ("cluster-require-full-coverage", "yes", "all nodes refuse to answer when one is lost; set no on each"),
    ("cluster-allow-reads-when-down", "no", "a node cut off from the others answers nothing; set yes on each"),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """A server's memory in bytes: used, its limit (0: none), and its machine's (0: unknown).

    *evicted* are the keys that it has dropped to make room.
    """

    used: int
    maxmemory: int
    machine: int
    policy: str
    evicted: int

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Memory":
        """Read the fields of INFO."""
        return cls(
            used=int(fields.get("used_memory", 0)),
            maxmemory=int(fields.get("maxmemory", 0)),
            machine=int(fields.get("total_system_memory", 0)),
            policy=fields.get("maxmemory_policy", "noeviction"),
            evicted=int(fields.get("evicted_keys", 0)),
        )

    def check(self, plan: Plan, servers: int, where: str) -> None:
        """Raise StoreFull if this server's share of a release does not fit into its memory.

        *plan* says how large the release will be, and *servers* share it equally. *where* names the server in errors.
        """
        needed = int((plan.payload_bytes + plan.rows * (ROW_BYTES + HEAD_BYTES)) * ALLOCATED) // servers
        limit = self.maxmemory or self.machine
        remedy = "raise maxmemory" if self.maxmemory else "take a machine with more memory"
        if limit and self.used + needed > limit:
            raise StoreFull(
                f"the release needs about {needed / 1e6:,.1f} MB in {where}, which has a limit of "
                f"{limit / 1e6:,.1f} MB and uses {self.used / 1e6:,.1f} MB; {remedy}, prune old releases, "
                f"continue a killed publish with --resume or erase its draft by `prune --grace 0`, or publish shorter "
                f"lists"
            )

    def eviction(self) -> Finding:
        """Return whether lists can be evicted; they have no expiry, so `volatile-*` spares them."""
        if not self.policy.startswith("allkeys-"):
            return _ok("eviction", f"{self.policy}: no list is ever dropped")
        sentence = f"{self.policy} drops lists once memory is short; set maxmemory-policy to noeviction"
        if self.evicted:
            sentence += f" ({self.evicted:,} keys were dropped since the server started)"
        return (_risk if self.maxmemory else _warning)("eviction", sentence)

    def room(self) -> Finding:
        """Return whether memory is short."""
        limit = f"{self.maxmemory / 1e6:,.1f} MB" if self.maxmemory else "its machine; maxmemory is not set"
        used = f"{self.used / 1e6:,.1f} MB used of {limit}"
        if self.maxmemory and self.used >= self.maxmemory * MUCH_USED:
            return _warning("memory", f"{used}; raise maxmemory, or prune old releases")
        return _ok("memory", used)


async def measure(server: Server) -> Memory:
    """Read a server's memory; raises StoreError."""
    return Memory.of(await server.execute("INFO"))


async def logs_changes(server: Server) -> bool:
    """Return whether a server has an append-only file, or does not say; raises StoreUnavailable."""
    try:
        fields = await server.execute("INFO", "persistence")
    except AccessDenied:
        return True
    return str(fields.get("aof_enabled", "1")) == "1"


async def examine(deployment: Deployment, keys: Keys) -> list[Finding]:
    """Examine each primary of a deployment; return one finding per subject, or more if something is wrong.

    The rights to read and write are checked only on the primary that has the slot of the catalogue.
    """
    try:
        await deployment.load()
    except StoreError as error:
        return [_error("servers", str(error))]
    if not deployment.primaries:
        return [_error("slots", "no node serves any; see redis-cli --cluster check")]

    home = deployment.primary_of(key_slot(keys.catalogue.encode()))
    findings = list[Finding]()
    for node in deployment.primaries:
        name = f"{node}: " if len(deployment.primaries) > 1 else ""
        for finding in await _examine_node(deployment, node, keys if node == home else None):
            findings.append(finding._replace(sentence=name + finding.sentence))
    return _merged(findings)


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """Merge the findings of all servers by subject, such as "memory".

    A subject keeps its warnings and errors. If there are none, its findings become one, with all their sentences.
    """
    by_subject = dict[str, list[Finding]]()
    for finding in findings:
        by_subject.setdefault(finding.subject, []).append(finding)
    merged = list[Finding]()
    for same_subject in by_subject.values():
        flaws = [finding for finding in same_subject if finding.level != Level.OK]
        sentences = "; ".join(finding.sentence for finding in same_subject)
        merged += flaws or [same_subject[0]._replace(sentence=sentences)]
    return merged


async def _examine_node(deployment: Deployment, node: RedisNode, keys: Keys | None) -> list[Finding]:
    """Examine a primary.

    *keys* are given for the primary that has the catalogue: there, the rights to read and to write are checked, too.
    """
    try:
        async with deployment.server(node).session() as session:
            findings = await _server(session, is_replicated=deployment.expects_replicas)
            if deployment.is_clustered:
                findings += [await _slots(session), *await _coverage(session)]
            if keys is not None:
                findings += [_transport(deployment.address(node)), await _reading(session, keys)]
                findings.append(await _writing(session, keys))  # last: a replica ends the connection at a write
    except StoreError as error:
        return [_error("server", str(error))]
    return findings


async def _server(session: Session, *, is_replicated: bool) -> list[Finding]:
    """Return the findings about one server; if it *is_replicated*, it should have replicas."""
    try:
        fields = await session.execute("INFO")
    except AccessDenied as error:
        return [_warning("server", f"this user may not send INFO: {error}")]
    memory = Memory.of(fields)
    persistence = _persistence(fields, await _setting(session, "save"))
    findings = [_version(fields), _role(fields), memory.room(), memory.eviction(), persistence]
    if is_replicated:
        findings += _replication(fields)
    return findings


async def _slots(session: Session) -> Finding:
    """Return whether all slots of the cluster have a working node, as this node sees it."""
    try:
        fields = await session.execute("CLUSTER INFO")
    except AccessDenied as error:
        return _warning("cluster", f"this user may not send CLUSTER INFO: {error}")
    unserved = SLOTS - int(fields.get("cluster_slots_ok", 0))
    if unserved or fields.get("cluster_state") != "ok":
        sentence = f"it is not well, and {unserved:,} of {SLOTS:,} slots have no node, or one that has failed"
        return _error("cluster", f"{sentence}; see redis-cli --cluster check", (StoreUse.PUBLISHING,))
    size = fields.get("cluster_size", "?")
    return _ok("cluster", f"{size} primaries of {fields.get('cluster_known_nodes', '?')} nodes")


async def _coverage(session: Session) -> list[Finding]:
    """Return warnings about settings that make a node refuse reads that it could answer."""
    findings = list[Finding]()
    for setting, wrong, sentence in COVERAGE:
        value = await _setting(session, setting)
        if value == wrong:
            findings.append(_warning("coverage", f"{setting} is {wrong}: {sentence}"))
        elif value is None:
            findings.append(_ok("coverage", f"{setting} is unknown: CONFIG GET is not allowed"))
    return findings


async def _reading(session: Session, keys: Keys) -> Finding:
    """Return whether the user may send the commands of lookups."""
    try:
        await session.execute("MGET", keys.catalogue, keys.doctors)
        await session.execute("TIME")
    except AccessDenied as error:
        return _error("may read", f"no: {error}")
    return _ok("may read", "yes")


async def _writing(session: Session, keys: Keys) -> Finding:
    """Return whether the user may publish: queue the commands of a publish in a transaction, and discard it.

    The server checks a user's rights when a command is queued, and a discarded command changes nothing.
    """
    row = keys.doctors
    commands: tuple[Command, ...] = (
        ("SET", keys.catalogue, b""), ("DEL", row), ("UNLINK", row), ("PERSIST", row), ("RPUSH", row, b""),
        ("LREM", row, 1, b""), ("HSET", row, "0", b""), ("SADD", row, b""), ("SREM", row, b""),
        ("EVAL", "return 1", 1, row), ("MSET", row, b""), ("DISCARD",),
    )  # fmt: skip
    try:
        await session.execute("WATCH", row)
        await session.execute("MULTI")
    except AccessDenied as error:  # without MULTI, commands would be executed
        return _warning(MAY_PUBLISH, f"no, as is right for a service: {error}")

    try:
        replies = await session.replies(*commands)
    except StoreError as error:  # of a replica
        replies = [error]

    errors = [str(reply) for reply in replies if isinstance(reply, StoreError)]
    return _warning(MAY_PUBLISH, f"no: {errors[0]}") if errors else _ok(MAY_PUBLISH, "yes")


async def _setting(session: Session, name: str) -> str | None:
    """Return a setting of the server; None if the user may not read it."""
    try:
        settings: dict[str, str] = await session.execute("CONFIG GET", name)
    except StoreUnavailable:  # managed services rename CONFIG
        return None
    return settings.get(name)


def _version(fields: Mapping[str, Any]) -> Finding:
    name = "Valkey" if "valkey_version" in fields else "Redis"
    version = fields.get("valkey_version") or fields.get("redis_version", "of an unknown version")
    return _ok("server", f"{name} {version}, {fields.get('redis_mode', 'standalone')}")


def _role(fields: Mapping[str, Any]) -> Finding:
    if fields.get("role", "master") == "master":
        return _ok("role", f"primary, {fields.get('connected_slaves', '0')} replicas")
    if fields.get("master_link_status") != "up":
        return _risk("role", "a replica without its primary, so its data are old; mend the replication")
    return _warning("role", "a replica: serve from it, and publish to its primary")


def _replication(fields: Mapping[str, Any]) -> list[Finding]:
    """Return whether a replica could take over, and whether it would have all acknowledged writes."""
    replicas = replicas_in(fields)
    if not replicas:
        return [_risk("replicas", "none follows the primary, so nothing can take over; add one")]
    guard = _ok("min-replicas", "the primary refuses writes that no replica would get")
    if "min_slaves_good_slaves" not in fields:  # present only if it is set
        guard = _warning("min-replicas", "a failover may lose acknowledged writes; set min-replicas-to-write 1")
    return [_ok("replicas", f"{len(replicas)} follow the primary"), guard]


def _persistence(fields: Mapping[str, Any], save_points: str | None) -> Finding:
    """Return a finding on what a restart would keep.

    *fields* are the server's reply to INFO, *save_points* its setting `save`, None if it is unknown.
    """
    statuses = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
    if failed := [name for name in statuses if fields.get(name, "ok") != "ok"]:
        return _risk("persistence", f"the last save failed ({', '.join(failed)}); see the server's log and disk")
    if fields.get("aof_enabled") == 1:
        return _ok("persistence", "appendonly: every change is on its disk within a second")
    if save_points is None:
        sentence = "unknown: no append-only file, and CONFIG GET is not allowed; without snapshots (save), a restart"
        return _ok("persistence", f"{sentence} loses all releases")
    if save_points == "":
        return _warning("persistence", "none: a restart loses all releases; set appendonly yes, or save")
    return _ok("persistence", f"snapshots by {save_points}")


def _transport(address: RedisAddress) -> Finding:
    """Return whether lists and the password can be read on their way."""
    if address.tls:
        return _ok("transport", "TLS, with a certificate that is verified")
    if address.host in LOOPBACK or address.host.startswith("127."):
        return _ok("transport", "not encrypted, within this machine")
    if address.password is None:
        return _warning("transport", "not encrypted and without a password; use rediss:// and an ACL user")
    return _warning("transport", "the password crosses the network unencrypted; use rediss://")
