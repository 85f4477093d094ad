"""Replicas: how many follow a primary, and how many have what was written to it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from hotplate.stores.change_warnings import warn
from hotplate.stores.errors import AccessDenied
from hotplate.stores.redis.client import Session
from hotplate.stores.redis.server import Server

SEAL_WAIT_S = 3.0  # for replicas
CONTROL_WAIT_S = 1.0  # the same for changes of the catalogue or a release's state
OFFSETS_WAIT_S = 3.0  # for offsets, which replicas report once a second
OFFSETS_POLL_S = 0.1


class Replication(NamedTuple):
    """The number of replicas that a primary has or should have, and of those that have all its writes."""

    replicas: int
    acknowledged: int = 0

    @property
    def is_short(self) -> bool:
        """Whether a failover could lose writes."""
        return self.acknowledged < self.replicas


def replicas_in(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the replicas in a primary's reply to INFO, whose fields "slave0" and so on describe them."""
    return [
        value
        for name, value in info.items()
        if name.removeprefix("slave").isdigit() and isinstance(value, dict) and value.get("state") == "online"
    ]


async def wait_for_replicas(session: Session, *, wanted: int | None = None, timeout_s: float) -> Replication | None:
    """Wait until *wanted* replicas, by default all, have the writes of *session*, which is blocked meanwhile.

    Only replicas that are linked to the primary are waited for. Returns their number, and that of those that have
    acknowledged within *timeout_s*; None if the user may not send INFO or WAIT.
    """
    try:
        linked = len(replicas_in(await session.execute("INFO", "replication")))
        if not linked:
            return Replication(0)
        count = min(wanted or linked, linked)
        return Replication(linked, int(await session.execute("WAIT", count, int(timeout_s * 1000))))
    except AccessDenied:
        return None


def warn_unacknowledged(done: str, replication: Replication, where: str, wait_s: float) -> None:
    """Warn that a failover could lose what was *done* at the server *where*."""
    replicas = f"{replication.acknowledged} of the {replication.replicas} replicas of {where}"
    warn(f"{done}; {replicas} have acknowledged that in {wait_s:g} s, and a failover to another would lose it")


async def wait_for_offsets(server: Server, *, expected: int) -> Replication | None:
    """Wait until all linked replicas, and at least *expected*, have all writes that the primary has now.

    An offset counts the bytes of the replication stream. WAIT covers the writes of its own connection only, so the
    offsets that the replicas report are compared with the primary's at the first reading. Returns what was reached
    within OFFSETS_WAIT_S; None if the user may not send INFO.
    """
    give_up_at = time.monotonic() + OFFSETS_WAIT_S
    written: int | None = None
    while True:
        try:
            info = await server.execute("INFO", "replication")
        except AccessDenied:
            return None

        if written is None:
            written = int(info.get("master_repl_offset", 0))  # later writes need not be waited for
        offsets = [int(replica.get("offset", 0)) for replica in replicas_in(info)]
        acknowledged = sum(offset >= written for offset in offsets)
        replication = Replication(max(len(offsets), expected), acknowledged)
        if not replication.is_short or time.monotonic() > give_up_at:
            return replication
        await asyncio.sleep(OFFSETS_POLL_S)
