"""A test instance: stores in a folder of its own with faults in front of them, and a service; gone at the end.

All of it listens on loopback, on free ports, and holds made-up lists, so a drill can harm no other data.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from hotplate.bench.drills.proxy import Proxy, through
from hotplate.bench.process import RedisServer, Server, emulator_serving, free_port, redis_serving, service_serving
from hotplate.bench.stores.server import opened
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.encoding import Item, encode
from hotplate.stores.keys import OVERALL, POPULAR, USER
from hotplate.stores.publication import publish
from hotplate.stores.store import Plan, Row
from hotplate.stores.transfer import copy

USERS = 100
LIST_LENGTH = 20
ITEM_BYTES = 100

# What the service may spend on the reads of a request: its default.
BUDGET_S = 0.05

# What the emulator may spend: drills are not about what reads cost.
EMULATED_RU = 6_000

FAULTS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class RedisTier:
    """A redis-server behind a proxy; it can be killed, and started again with what it had saved."""

    folder: Path
    server: RedisServer
    proxy: Proxy
    url: str
    """What the service reads: through the proxy."""

    store_url: str
    """What a publisher writes to: without it."""

    name: str = "redis"
    _running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        """Start the server with what is saved, and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        self._running.enter_context(redis_serving(self.folder, self.server.port))

    def kill(self) -> None:
        """Kill the server."""
        self._running.close()


@dataclass(frozen=True, slots=True)
class CosmosTier:
    """An emulator of Cosmos DB behind a proxy; it fails and throttles on request."""

    server: Server
    proxy: Proxy
    url: str
    store_url: str
    name: str = "cosmos+http"

    def inject_faults(self, *kinds: str) -> None:
        """Answer every request with these faults of the emulator; without any, as usual."""
        faults = json.dumps([{"kind": kind} for kind in kinds]).encode()
        url = f"{self.server.url}/__emulation/faults"
        request = urllib.request.Request(url, faults, method="PUT")  # noqa: S310 -- our own emulator, on loopback
        with urllib.request.urlopen(request, timeout=FAULTS_TIMEOUT_S):  # noqa: S310 -- as above
            pass


@dataclass(frozen=True, slots=True)
class FileTier:
    """A store in a folder, read in the service's own processes."""

    folder: Path
    url: str
    store_url: str
    name: str = "file"


DrillTier: TypeAlias = RedisTier | CosmosTier | FileTier


@asynccontextmanager
async def _redis_tier(folder: Path) -> AsyncIterator[RedisTier]:
    server = RedisServer(free_port())
    async with through(server.port) as proxy:
        url, store_url = (f"redis://127.0.0.1:{port}/0" for port in (proxy.port, server.port))
        tier = RedisTier(folder, server, proxy, url, store_url)
        try:
            tier.start()
            yield tier
        finally:
            tier.kill()


@asynccontextmanager
async def _cosmos_tier(_folder: Path) -> AsyncIterator[CosmosTier]:
    with emulator_serving() as server:
        port = int(server.url.rpartition(":")[2])
        async with through(port) as proxy:
            url, store_url = (
                f"cosmos+http://127.0.0.1:{each}/hotplate?ru={EMULATED_RU}" for each in (proxy.port, port)
            )
            yield CosmosTier(server, proxy, url, store_url)


@asynccontextmanager
async def _file_tier(folder: Path) -> AsyncIterator[FileTier]:
    yield FileTier(folder, f"file://{folder}", f"file://{folder}")


TIERS: dict[str, Callable[[Path], AbstractAsyncContextManager[DrillTier]]] = {
    "redis": _redis_tier,
    "cosmos": _cosmos_tier,
    "file": _file_tier,
}


@dataclass(frozen=True, slots=True)
class Instance:
    """A running service over tiers that all hold the same two releases, of which the newer one is live."""

    tiers: tuple[DrillTier, ...]
    service: Server
    published: str
    """A store that nobody serves, which has what was published."""

    older: ReleaseId
    """In the snapshot of the first tier, the one that is live."""

    newer: ReleaseId

    @property
    def first(self) -> DrillTier:
        """The tier that answers while all is well, and that a drill disturbs."""
        return self.tiers[0]


@asynccontextmanager
async def started(kinds: Sequence[str]) -> AsyncIterator[Instance]:
    """Start stores of these kinds, fill them, and serve them until the block ends; BenchFailed if that fails."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotplate-drill-")))
        tiers = [await stack.enter_async_context(TIERS[kind](folder / kind)) for kind in kinds]
        published = f"file://{folder}/published"
        older = await _publish(published, tiers, "older")
        _keep(tiers[0])
        newer = await _publish(published, tiers, "newer")
        # Without a cache, so every answer comes out of a store and every fault is felt.
        command = [sys.executable, "-m", "hotplate", "serve", "--cache-mb", "0", "--budget", f"{BUDGET_S:g}"]
        command += [part for tier in tiers for part in ("--store", tier.url)]
        # In a thread, because the service reads through proxies of this loop; if that is interrupted, the thread has
        # to end first, or nothing would stop what it started.
        starting = asyncio.create_task(asyncio.to_thread(stack.enter_context, service_serving(command, "/readyz")))
        try:
            service = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.gather(starting, return_exceptions=True)
            raise
        yield Instance(tuple(tiers), service, published, older, newer)


def _keep(tier: DrillTier) -> None:
    """Keep a copy of what a tier holds; not of Cosmos DB, whose accounts are restored into others with other URLs."""
    if not isinstance(tier, CosmosTier):
        if isinstance(tier, RedisTier):
            tier.server.execute("SAVE")
        shutil.copytree(tier.folder, _copy_of(tier.folder))


def put_back(folder: Path) -> None:
    """Replace what a tier has in its folder with the copy."""
    shutil.rmtree(folder)
    shutil.copytree(_copy_of(folder), folder)


def _copy_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.snapshot")


async def _publish(published: str, tiers: Sequence[DrillTier], mark: str) -> ReleaseId:
    """Publish a release once, and copy it into each tier, so all of them answer the same."""

    async def batches() -> AsyncIterator[list[Row]]:
        yield [Row(key, _made_up(f"{mark}-{key}")) for key in (POPULAR + OVERALL, *map(key_of, range(USERS)))]

    plan = Plan(USERS + 1, (USERS + 1) * LIST_LENGTH * ITEM_BYTES)
    async with opened(published) as store:
        release = (await publish(store, batches(), plan=plan, about={}, encoding="zstd")).manifest.release
        for tier in tiers:
            async with opened(tier.store_url) as target:
                await copy(store, target, release)
    return release


def key_of(number: int) -> str:
    """Name the key of a user's list; keys sort as their numbers do."""
    return f"{USER}{number:04d}"


def _made_up(name: str) -> bytes:
    """Encode a list that nobody else has: its items bear its name."""
    places = range(LIST_LENGTH)
    return encode(Item(id=f"{name}-{place}", score=1 - place / 100, title=f"Title {place}") for place in places)
