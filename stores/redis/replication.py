"""Replicas of one primary: how many follow it, and whether they have what was written before that counts as done."""

from dataclasses import dataclass
from typing import Any

from hotplate.stores.errors import StoreMisused
from hotplate.stores.redis.connection import Sender
from hotplate.stores.store import Finding, Level

# How long the end of a publish waits for all replicas, which may be behind by what it wrote last.
SEAL_WAIT_S = 3.0

# The same for a change of the catalogue, or of a release's state.
CONTROL_WAIT_S = 1.0

UNGUARDED = "it goes on writing if no replica follows, and a failover loses that; set min-replicas-to-write 1"


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


async def wait_for_replicas(
    connection: Sender, *, wanted: int | None = None, timeout_s: float = SEAL_WAIT_S
) -> Replication | None:
    """Wait until *wanted* replicas, or all that follow, have whatever its primary wrote up to now; say how many do.

    Nothing else on the connection is answered until then. None if the user may not ask for that. Raises StoreError.
    """
    try:
        found = _read(await connection.send_command(b"INFO", b"replication"))
        if not found.replicas:
            return found
        count = min(wanted or found.replicas, found.replicas)
        acknowledged = int(await connection.send_command(b"WAIT", count, int(timeout_s * 1000)))
    except StoreMisused:
        return None
    return Replication(found.replicas, found.guarded, acknowledged)


async def send_replicated(connection: Sender, *args: str | bytes | int, wanted: int | None = 1) -> Any:  # noqa: ANN401 -- a reply is whatever the command returns
    """Send a command, and wait a while for *wanted* replicas, or all, to have its effect; return its reply.

    StoreUnavailable if the primary is replaced: whether the next one has it, is for others to see.
    """
    reply = await connection.send_command(*args)
    await wait_for_replicas(connection, wanted=wanted, timeout_s=CONTROL_WAIT_S)
    return reply


async def examine(connection: Sender) -> list[Finding]:
    """Return what `store doctor` says of a primary that should have replicas; raises StoreError."""
    try:
        found = _read(await connection.send_command(b"INFO", b"replication"))
    except StoreMisused as error:
        return [Finding(Level.WARNING, "replicas", f"the server may not be asked about them: {error}")]
    if not found.replicas:
        return [Finding(Level.ERROR, "replicas", "none follows the primary, so nothing can take over; add one")]
    guard = Finding(Level.OK, "min-replicas", "the primary refuses writes that no replica would get")
    if not found.guarded:
        guard = Finding(Level.WARNING, "min-replicas", UNGUARDED)
    return [Finding(Level.OK, "replicas", f"{found.replicas} follow the primary"), guard]


def _read(info: bytes) -> Replication:
    fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    following = sum(
        "state=online" in stated.split(",") for name, stated in fields.items() if name.removeprefix("slave").isdigit()
    )
    return Replication(following, guarded="min_slaves_good_slaves" in fields)  # which is there if it is set
