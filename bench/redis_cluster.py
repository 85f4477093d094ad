"""A Redis Cluster on this machine: what its nodes remember of each other, and three primaries for a measurement.

Nodes that find the cluster described in the files that they read when they start need not be introduced to each other,
as after a restart of all. A primary waits for two seconds then before it takes commands.
"""

import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.errors import BenchFailed
from bench.process import READY_WITHIN_S, RedisServer, free_port, redis_started

SLOTS = 16384

PRIMARIES = 3


class Member(NamedTuple):
    """A node as the others know it; *port* is that which they use themselves."""

    id: str
    port: int
    bus_port: int
    primary: str | None = None
    """The id of the node that it is a replica of."""


def described(members: Sequence[Member], myself: Member) -> str:
    """Return what *myself* remembers of a cluster whose primaries share the slots evenly: its `nodes.conf`."""
    primaries = [member for member in members if member.primary is None]
    lines = list[str]()
    for member in members:
        flags = ("myself," if member is myself else "") + ("master" if member.primary is None else "slave")
        slots, epoch = "", 0
        if member.primary is None:
            place = primaries.index(member)
            epoch = place + 1
            slots = f" {SLOTS * place // len(primaries)}-{SLOTS * (place + 1) // len(primaries) - 1}"
        where = f"127.0.0.1:{member.port}@{member.bus_port}"
        lines.append(f"{member.id} {where} {flags} {member.primary or '-'} 0 0 {epoch} connected{slots}")
    return "\n".join([*lines, f"vars currentEpoch {len(primaries)} lastVoteEpoch 0", ""])


def new_id() -> str:
    """Return an id for a node."""
    return secrets.token_hex(20)


@dataclass(frozen=True, slots=True)
class RedisCluster:
    """Running nodes, empty at first."""

    nodes: Sequence[RedisServer]

    def url(self, prefix: str = "bench") -> str:
        """Name a deployment in it."""
        listed = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://{listed}/?prefix={prefix}"

    def cpu_s(self) -> float:
        """Add up the CPU time of all nodes."""
        return sum(node.cpu_s() for node in self.nodes)


@contextmanager
def redis_cluster_serving() -> Iterator[RedisCluster]:
    """Run three primaries without replicas that write no data to disk, all on one core, until the block ends."""
    members = [Member(new_id(), free_port(), free_port()) for _ in range(PRIMARIES)]
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        nodes = list[RedisServer]()
        for member in members:
            folder = Path(made) / member.id
            folder.mkdir()
            (folder / "nodes.conf").write_text(described(members, member))
            settings = {"cluster-enabled": "yes", "cluster-port": str(member.bus_port)}
            nodes.append(stack.enter_context(redis_started(folder, member.port, settings)))
        _wait(nodes)
        yield RedisCluster(nodes)


def _wait(nodes: Sequence[RedisServer]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not all(b"cluster_state:ok" in node.execute("CLUSTER", "INFO") for node in nodes):
        if time.monotonic() > deadline:
            raise BenchFailed(f"the nodes of a cluster did not find each other in {READY_WITHIN_S:g} s")
        time.sleep(0.05)
