"""Real clusters on loopback for the tests that need one: three primaries, a replica of each, plain and TLS at once."""

import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis.crc import key_slot

from hotplate.bench.process import free_port
from tests.support.redis_server import RedisServer, certify, find_binary

SLOTS, PRIMARIES = 16384, 3

# Long enough for whatever a machine that stands still for seconds does to elections.
SETTLED_WITHIN_S = 60.0

# The time after which a silent node is replaced. It is long, because a machine may stand still for a while, and short
# while a cluster starts, because nodes wait for it.
NODE_TIMEOUT_MS, BEGINNING_NODE_TIMEOUT_MS = 60_000, 1000

# How often, and for how long, a cluster may try to begin; it takes 2 s.
ATTEMPTS, BEGUN_WITHIN_S = 3, 20.0


@dataclass(slots=True, eq=False)
class ClusterNode:
    server: RedisServer
    bus_port: int
    primary: "ClusterNode | None" = None
    """The node that it is a replica of at the start."""
    id: str = field(default_factory=lambda: secrets.token_hex(20))

    @property
    def port(self) -> int:
        return self.server.port


def described(nodes: Sequence[ClusterNode], myself: ClusterNode) -> str:
    """Return the `nodes.conf` of *myself* in a cluster with evenly shared slots."""
    lines = list[str]()
    for place, node in enumerate(nodes):
        flags, of, slots, epoch = "slave", "-", "", 0
        if node.primary is None:
            flags = "master"
            epoch = place + 1
            slots = f" {SLOTS * place // PRIMARIES}-{SLOTS * (place + 1) // PRIMARIES - 1}"
        else:
            of = node.primary.id
        flags = f"myself,{flags}" if node is myself else flags
        where = f"127.0.0.1:{node.server.tls_port}@{node.bus_port}"
        lines.append(f"{node.id} {where} {flags} {of} 0 0 {epoch} connected{slots}")
    return "\n".join([*lines, f"vars currentEpoch {PRIMARIES} lastVoteEpoch 0", ""])


@dataclass(slots=True)
class RedisCluster:
    nodes: list[ClusterNode]
    """The primaries first, then the replica of each in the same order, as they were at the start."""

    def url(self, scheme: str = "redis+cluster", prefix: str = "test", user: str = "", seeds: int = PRIMARIES) -> str:
        tls = scheme.startswith("rediss")
        ports = [node.server.tls_port if tls else node.port for node in self.nodes[:seeds]]
        listed = ",".join(f"127.0.0.1:{port}" for port in ports)
        ca = f"&ca={self.nodes[0].server.folder / 'ca.pem'}" if tls else ""
        return f"{scheme}://{user}{listed}/?prefix={prefix}{ca}"

    def execute_everywhere(self, *command: str) -> list[object]:
        return [node.server.execute_command(*command) for node in self.alive]

    @property
    def alive(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.server.process is not None]

    @property
    def primaries(self) -> list[ClusterNode]:
        """Those that say so of themselves now."""
        return [node for node in self.alive if node.server.execute_command("ROLE")[0] == "master"]

    def owner(self, key: str) -> ClusterNode:
        """The primary that serves a key."""
        return self.owners([key])[0]

    def owners(self, keys: Sequence[str]) -> list[ClusterNode]:
        """The primaries that serve keys, in order."""
        by_port = {node.port: node for node in self.nodes}
        ranges = self.alive[0].server.execute_command("CLUSTER", "SLOTS")
        slots = [key_slot(key.encode()) for key in keys]
        return [
            by_port[next(primary[1] for start, end, primary, *_ in ranges if start <= slot <= end)] for slot in slots
        ]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Suspend all nodes until the block ends."""
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node.server.stopped())
            yield

    @contextmanager
    def announced(self, node: ClusterNode, port: int) -> Iterator[None]:
        """Let a node name *port* as its own; every node knows the port in the block, and the real one after it."""

        def announce(own_tls_port: int, own_port: int) -> None:
            node.server.execute_command("CONFIG", "SET", "cluster-announce-tls-port", str(own_tls_port))
            node.server.execute_command("CONFIG", "SET", "cluster-announce-port", str(own_port))
            # A handshake with a node that is known updates its ports at once; the next ping may take 10 s.
            for other in self.alive:
                if other is not node:
                    meeting = ("MEET", "127.0.0.1", str(node.server.tls_port), str(node.bus_port))
                    other.server.execute_command("CLUSTER", *meeting)

        def is_known(shown: int) -> bool:
            tables = [node.server.execute_command("CLUSTER", "SLOTS") for node in self.alive]
            return all(any(primary[1] == shown for _, _, primary, *_ in table) for table in tables)

        announce(node.server.tls_port, port)
        try:
            self.wait_until(lambda: is_known(port))
            yield
        finally:
            announce(0, 0)  # the real ones
            self.wait_until(lambda: is_known(node.port))

    def slots(self, node: ClusterNode) -> set[int]:
        """The slots that a primary serves."""
        ranges = self.alive[0].server.execute_command("CLUSTER", "SLOTS")
        of_node = (range(start, end + 1) for start, end, primary, *_ in ranges if primary[1] == node.port)
        return {slot for slots in of_node for slot in slots}

    def is_named(self, node: ClusterNode) -> bool:
        """Whether any node that is alive says that *node* serves slots."""
        ranges = [ranges for node in self.alive for ranges in node.server.execute_command("CLUSTER", "SLOTS")]
        return any(primary[1] == node.port for _, _, primary, *_ in ranges)

    def take_over(self, node: ClusterNode) -> None:
        """Let the first replica of a primary that was killed serve its slots, and wait until all nodes know that.

        A short time-out, after which nodes elect it themselves, would also replace a primary that only stood still.
        """
        replica = next(other for other in self.alive if other.primary is node)
        replica.server.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
        self.wait_until(lambda: not self.is_named(node))

    def keys(self, pattern: str) -> list[str]:
        return sorted(key for node in self.primaries for key in node.server.execute_command("KEYS", pattern))

    def calls(self, command: str) -> int:
        """How often all nodes together ran a command since they started."""
        return sum(node.server.calls(command) for node in self.alive)

    def wait_until(self, settled: Callable[[], bool], within_s: float = SETTLED_WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while not settled():
            assert time.monotonic() < deadline, [
                (n.port, n.server.execute_command("CLUSTER", "NODES")) for n in self.alive
            ]
            time.sleep(0.05)

    def is_whole(self) -> bool:
        """Whether every node that is alive sees all slots served, and every replica has its primary's data."""
        for node in self.alive:
            info = node.server.execute_command("CLUSTER INFO")
            if info["cluster_state"] != "ok" or info["cluster_slots_ok"] != str(SLOTS):
                return False
            role = node.server.execute_command("ROLE")
            if role[0] == "slave" and role[3] != "connected":
                return False
            shown = node.server.execute_command("CLUSTER", "SLOTS")
            if any(server[1] == 0 for _, _, *servers in shown for server in servers):
                return False
        return True

    def every_primary_has_a_replica(self) -> bool:
        return self.is_whole() and all(
            len(servers) > 1
            for node in self.alive
            for _, _, *servers in node.server.execute_command("CLUSTER", "SLOTS")
        )

    def migrate(self, key: str, target: ClusterNode, *, between: Callable[[], None] = lambda: None) -> None:
        """Move a key's slot to another node, as `redis-cli --cluster reshard` does; call *between* after each key."""
        slot = key_slot(key.encode())
        source = self.owner(key)
        target.server.execute_command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source.id)
        source.server.execute_command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target.id)
        while keys := source.server.execute_command("CLUSTER", "GETKEYSINSLOT", str(slot), "5"):
            for name in keys:
                source.server.execute_command("MIGRATE", "127.0.0.1", str(target.server.tls_port), name, "0", "5000")
                between()
        for node in (target, source, *(primary for primary in self.primaries if primary not in (source, target))):
            node.server.execute_command("CLUSTER", "SETSLOT", str(slot), "NODE", target.id)


@contextmanager
def running_cluster(folder: Path, *options: str) -> Iterator[RedisCluster]:
    """Run a cluster with its files in *folder* until the block ends, which begins once all of it is well.

    A cluster has 18 ports; if another test was faster with one of them, it begins once more with others. So it does if
    a primary was silent for so long that its replica was elected.
    """
    binary = find_binary()
    certify(folder)
    for attempt in range(ATTEMPTS):
        place = folder / f"attempt-{attempt}"
        place.mkdir()
        cluster = RedisCluster(_nodes(binary, folder, place, *options))
        with ExitStack() as stack:
            try:
                for node in cluster.nodes:
                    stack.callback(node.server.kill)
                    node.server.start()
                cluster.wait_until(cluster.every_primary_has_a_replica, BEGUN_WITHIN_S)
                cluster.execute_everywhere("CONFIG", "SET", "cluster-node-timeout", str(NODE_TIMEOUT_MS))
                assert cluster.primaries == cluster.nodes[:PRIMARIES], "a replica was elected"
            except AssertionError:
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            for node in cluster.nodes:  # also for restarts; the last of equal options counts
                node.server.options += ("--cluster-node-timeout", str(NODE_TIMEOUT_MS))
            yield cluster
            return


def _nodes(binary: str, certified: Path, folder: Path, *options: str) -> list[ClusterNode]:
    """Return servers that know each other from the start, each with a separate folder."""
    nodes = list[ClusterNode]()
    for number in range(2 * PRIMARIES):
        place = folder / str(number)
        place.mkdir()
        for name in ("ca.pem", "server.pem", "server.key"):
            shutil.copy(certified / name, place)
        bus_port = free_port()
        settings = (
            "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(bus_port),
            "--cluster-node-timeout", str(BEGINNING_NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no",
            "--cluster-allow-reads-when-down", "yes",
            "--tls-cluster", "yes", "--tls-replication", "yes", "--repl-diskless-sync-delay", "0",
            "--repl-ping-replica-period", "1",  # a replica to which nothing was written yet is not shown
        )  # fmt: skip
        primary = nodes[number - PRIMARIES] if number >= PRIMARIES else None
        nodes.append(ClusterNode(RedisServer(binary, place, (*settings, *options)), bus_port, primary))
    for node in nodes:
        (node.server.folder / "nodes.conf").write_text(described(nodes, node))
    return nodes
