"""What a Redis server has room for, and whether it might drop what it was given."""

from dataclasses import dataclass

from stores.errors import StoreFull
from stores.redis.connection import Reconnector
from stores.store import Plan

# What a row takes beside its bytes, and what the allocator makes of it: within -3 and +13 % of `used_memory` for rows
# of 0 to 9,000 bytes on Redis 7.
ROW_BYTES, ALLOCATED = 80, 1.08


@dataclass(frozen=True, slots=True)
class Memory:
    """A server's memory, in bytes: what it uses, its own limit (0: none), and what its machine has (0: unknown)."""

    used: int
    maxmemory: int
    machine: int
    policy: str

    def check(self, plan: Plan, head: str, where: str) -> None:
        """Raise StoreFull, with the numbers, where *plan* does not fit into what is left."""
        needed = int((plan.payload_bytes + plan.rows * (len(head) + ROW_BYTES)) * ALLOCATED)
        limit = self.maxmemory or self.machine
        if limit and self.used + needed > limit:
            raise StoreFull(
                f"the release needs about {needed / 1e6:,.1f} MB in {where}, which has a limit of "
                f"{limit / 1e6:,.1f} MB and uses {self.used / 1e6:,.1f} MB; raise maxmemory, prune old releases, "
                f"or publish shorter lists"
            )

    def warnings(self, where: str) -> list[str]:
        """Return a sentence where lists could vanish. `volatile-*` cannot touch them, for they have no expiry."""
        if not self.maxmemory or not self.policy.startswith("allkeys-"):
            return []
        sentence = f"{where} has the eviction policy {self.policy}, which drops lists in silence once memory is short"
        return [f"{sentence}; set maxmemory-policy to noeviction"]


async def measure(reconnector: Reconnector) -> Memory:
    """Read it from the server, in one command; raises StoreError."""
    found: bytes = await reconnector.execute_command(b"INFO", b"memory")
    fields = dict(line.split(":", 1) for line in found.decode().splitlines() if ":" in line)
    return Memory(
        used=int(fields["used_memory"]),
        maxmemory=int(fields.get("maxmemory", 0)),
        machine=int(fields.get("total_system_memory", 0)),
        policy=fields.get("maxmemory_policy", "noeviction"),
    )
