"""The drills: what each does to the first tier of a test instance, who notices, and what is promised during it."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from hotplate.bench.drills.instance import (
    BUDGET_S,
    TIERS,
    USERS,
    CosmosTier,
    FileTier,
    Instance,
    RedisTier,
    key_of,
    put_back,
)
from hotplate.bench.drills.proxy import Proxy
from hotplate.bench.errors import BenchMisused
from hotplate.bench.process import redis_installed
from hotplate.bench.stores.server import opened
from hotplate.stores.transfer import copy, repair

# An answer of a store that is delayed comes after so many times the budget of a request.
LATE = 4

# Where the answers of a store are cut: within the reply of Redis, and within the head of HTTP.
CUT_AT_BYTES = 3

# One of so many users has a list that is damaged.
DAMAGED_EVERY = 10

# The share of answers that stay users' own lists if a second tier has them.
OWN_SHARE = 0.99

# For how long a store is away while it is restored: longer than two reports of a worker, so operators see it.
AWAY_S = 2.5

# A fault lasts as long as its block. At its end it does what the runbook says to do.
FaultInjection = Callable[[Instance], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that has to rise while a fault lasts, so an alert can be made of it; summed over all workers."""

    says: str
    """What its rise says, in a word or two."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Some of them; `{tier}` stands for the disturbed tier, `{older}` for the release in its snapshot."""

    by: float = 0.0
    """By more than how much it rises."""

    alone: bool = False
    """Whether it rises only if no other tier has the lists."""


OF_TIER = {"store": "{tier}"}
DEGRADED = Metric("degraded", "hotplate_degraded")
CIRCUIT_OPEN = Metric("circuit open", "hotplate_breaker_open", OF_TIER)
FAILED_READS = Metric("failed reads", "hotplate_store_operation_duration_seconds_count", OF_TIER | {"outcome": "error"})
# What callers did not get; another tier makes up for it.
UNREAD_LISTS = Metric("unread lists", "hotplate_lookups_total", {"outcome": "error"}, alone=True)
OUTAGE = (FAILED_READS, UNREAD_LISTS, CIRCUIT_OPEN, DEGRADED)


@dataclass(frozen=True, slots=True)
class Drill:
    """One kind of fault, and what it may cost."""

    name: str
    what: str
    """What is done, in a sentence's words."""

    kinds: tuple[str, ...]
    """The kinds of stores that it can be done to; the first that this machine has is what it is done to by default."""

    fault: FaultInjection
    metrics: tuple[Metric, ...]
    own_alone: float = 0.0
    """The share of answers that stay users' own lists if no other tier has them; the others are popular ones."""

    def tiers(self, requested: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the *requested* tiers, or the drill's own; none if it cannot be done to the first requested one."""
        if requested:
            return tuple(requested) if requested[0] in self.kinds else ()
        first = next(kind for kind in self.kinds if kind != "redis" or redis_installed())
        return (first,) if first == "file" else (first, "file")

    def own_share(self, tiers: Sequence[str]) -> float:
        """Return the share of answers that stay users' own lists: most if another tier has them."""
        return OWN_SHARE if len(tiers) > 1 else self.own_alone

    def metrics_in(self, instance: Instance) -> list[Metric]:
        """Return the metrics that have to rise in an instance, with their labels as it has them."""
        names = {"tier": instance.first.name, "older": instance.older}
        return [
            replace(metric, labels={label: value.format(**names) for label, value in metric.labels.items()})
            for metric in self.metrics
            if not (metric.alone and len(instance.tiers) > 1)
        ]


def _check_tiers(requested: Sequence[str]) -> None:
    if unknown := [kind for kind in requested if kind not in TIERS]:
        raise BenchMisused(f"--tiers takes {', '.join(TIERS)}, separated by commas, and not {unknown[0]!r}")
    if len(set(requested)) < len(requested):
        raise BenchMisused("--tiers names a kind of store twice; a drill has one of each at most")
    if "redis" in requested and not redis_installed():
        raise BenchMisused(
            "--tiers names redis, and no redis-server is on the PATH; on Debian or Ubuntu: apt-get install redis-server"
        )


def choose(names: Sequence[str], tiers: Sequence[str]) -> list[Drill]:
    """Return the drills of these names, or all that fit the *tiers*; raises BenchMisused for what makes no sense."""
    _check_tiers(tiers)
    known = {drill.name: drill for drill in DRILLS}
    if unknown := [name for name in names if name not in known]:
        raise BenchMisused(f"there is no drill {unknown[0]!r}; there are {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names)] or [drill for drill in DRILLS if drill.tiers(tiers)]
    for drill in chosen:
        if not drill.tiers(tiers):
            raise BenchMisused(
                f"{drill.name} cannot be done to {tiers[0]}; put {' or '.join(drill.kinds)} first in --tiers"
            )
    return chosen


def _proxy(instance: Instance) -> Proxy:
    if isinstance(instance.first, FileTier):
        raise BenchMisused("a store in files has no connection to disturb")
    return instance.first.proxy


@asynccontextmanager
async def _late(instance: Instance) -> AsyncIterator[None]:
    proxy = _proxy(instance)
    proxy.delay_s = LATE * BUDGET_S
    yield
    proxy.delay_s = 0.0


@asynccontextmanager
async def _cut(instance: Instance) -> AsyncIterator[None]:
    proxy = _proxy(instance)
    proxy.cut_at = CUT_AT_BYTES
    yield
    proxy.cut_at = None


@asynccontextmanager
async def _misbehaving(instance: Instance, kind: str) -> AsyncIterator[None]:
    """Have Redis refuse reads, or the emulator of Cosmos DB answer with a *kind* of fault."""
    tier = instance.first
    if isinstance(tier, RedisTier):
        tier.server.execute("ACL", "SETUSER", "default", "-@read")
        yield
        tier.server.execute("ACL", "SETUSER", "default", "+@all")
    elif isinstance(tier, CosmosTier):
        await asyncio.to_thread(tier.inject_faults, kind)  # the proxy goes on
        yield
        await asyncio.to_thread(tier.inject_faults)


@asynccontextmanager
async def _lost(instance: Instance) -> AsyncIterator[None]:
    """Kill a Redis, which has saved what it holds, and start it again; refuse all connections to an emulator."""
    tier = instance.first
    if isinstance(tier, RedisTier):
        tier.server.execute("SAVE")
        tier.kill()
        yield
        tier.start()
    else:
        proxy = _proxy(instance)
        proxy.refusing = True
        proxy.reset()
        yield
        proxy.refusing = False


@asynccontextmanager
async def _damaged(instance: Instance) -> AsyncIterator[None]:
    """Flip a byte of some lists, and write the release again out of what was published at the end."""
    tier = instance.first
    keys = [key_of(number) for number in range(0, USERS, DAMAGED_EVERY)]
    async with opened(tier.store_url) as store:
        live = (await store.catalogue()).find(instance.newer).ref
        values = [value for value in await store.get_many(live, keys) if isinstance(value, bytes)]
    damaged = [value[:-1] + bytes([value[-1] ^ 0xFF]) for value in values]
    if isinstance(tier, RedisTier):
        for key, value in zip(keys, damaged, strict=True):
            [name] = tier.server.execute("KEYS", f"*{live.incarnation}*:{key}")
            tier.server.execute("SET", name, value)
    elif isinstance(tier, FileTier):
        _overwrite(tier.folder / "releases" / f"{live.incarnation}.mdb", values, damaged)
    yield
    async with opened(instance.published) as source, opened(tier.store_url) as store:
        await repair(store, source, instance.newer)


def _overwrite(path: Path, values: Sequence[bytes], others: Sequence[bytes]) -> None:
    """Change values in a release's file in place, while others have it mapped."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        for old, new in zip(values, others, strict=True):
            for found in re.finditer(re.escape(old), content):
                file.seek(found.start())
                file.write(new)


@asynccontextmanager
async def _restored(instance: Instance) -> AsyncIterator[None]:
    """Put the snapshot back, after a while without the store, and at the end copy the newer release into it again."""
    tier = instance.first
    if isinstance(tier, RedisTier):
        tier.kill()
        await asyncio.sleep(AWAY_S)
        put_back(tier.folder)
        tier.start()
    elif isinstance(tier, FileTier):
        put_back(tier.folder)
    yield
    async with opened(instance.published) as source, opened(tier.store_url) as store:
        await copy(source, store, instance.newer)


REMOTE = "redis", "cosmos"
LOCAL = "redis", "file"
DAMAGED = Metric("damaged lists", "hotplate_store_corrupt_total", OF_TIER)
STALE = Metric("catalogue not read", "hotplate_catalogue_age_seconds", OF_TIER, by=2.0)
OLDER = Metric("older release", "hotplate_release_info", OF_TIER | {"release": "{older}"})
THROTTLED = Metric("429s", "hotplate_store_throttled_total", OF_TIER)
CUT = "every answer of the store is cut, and its connection closed"
DAMAGE = f"every {DAMAGED_EVERY}th user's list is damaged in the store; then the release is repaired"
SNAPSHOT = "an older snapshot of the store is put back; then the newer release is copied into it again"

DRILLS = (
    Drill("latency", f"the store answers {LATE} budgets late", REMOTE, _late, OUTAGE),
    Drill("errors", "the store refuses every read", REMOTE, partial(_misbehaving, kind="unavailable"), OUTAGE),
    Drill("disconnects", CUT, REMOTE, _cut, OUTAGE),
    Drill("lost-tier", "the store is killed, and started again", REMOTE, _lost, (*OUTAGE, STALE)),
    Drill("corruption", DAMAGE, LOCAL, _damaged, (DAMAGED, UNREAD_LISTS, DEGRADED), own_alone=1 - 2 / DAMAGED_EVERY),
    Drill("old-snapshot", SNAPSHOT, LOCAL, _restored, (OLDER,)),
    Drill(
        "throttling", "the store answers 429 to every request", ("cosmos",), partial(_misbehaving, kind="throttle"),
        (THROTTLED, UNREAD_LISTS, CIRCUIT_OPEN, DEGRADED),
    ),
)  # fmt: skip
