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
from typing import TypeAlias, TypeVar

from bench.drills.proxy import Proxy, through
from bench.process import RedisServer, Server, emulator_serving, free_port, redis_serving, service_serving
from bench.stores.server import opened
from stores.catalogue import ReleaseId
from stores.encoding import Item, encode
from stores.keys import OVERALL, POPULAR, USER
from stores.lifecycle import publish
from stores.store import Plan, Row
from stores.transfer import copy

T = TypeVar("T")

USERS, LIST_LENGTH, BYTES_PER_ITEM = 100, 20, 100

# What the emulator may spend: drills are not about what reads cost.
EMULATED_RU = 6_000

FAULTS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class RedisTier:
    """A redis-server with a proxy before it; it can be killed, and started again with what it had saved."""

    folder: Path
    server: RedisServer
    proxy: Proxy
    name: str = "redis"
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        """What the service reads."""
        return f"redis://127.0.0.1:{self.proxy.port}/0"

    @property
    def store_url(self) -> str:
        """What a publisher writes to, past the proxy."""
        return f"redis://127.0.0.1:{self.server.port}/0"

    async def start(self) -> None:
        """Start the server with what is saved, and wait until it answers."""
        await _in_thread(self._start)

    async def kill(self) -> None:
        """Kill the server."""
        await asyncio.to_thread(self._running.close)

    def _start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._running.enter_context(redis_serving(self.folder, self.server.port))

    def snapshot(self) -> None:
        """Keep a copy of what it holds."""
        self.server.execute("SAVE")
        shutil.copy(self.folder / "dump.rdb", self.folder / "snapshot.rdb")

    def put_back(self) -> None:
        """Let it start with the copy the next time."""
        shutil.copy(self.folder / "snapshot.rdb", self.folder / "dump.rdb")


@dataclass(frozen=True, slots=True)
class CosmosTier:
    """An emulator of Cosmos DB with a proxy before it; it fails and throttles on request."""

    server: Server
    proxy: Proxy
    name: str = "cosmos+http"

    @property
    def url(self) -> str:
        """What the service reads."""
        return f"cosmos+http://127.0.0.1:{self.proxy.port}/hotplate?ru={EMULATED_RU}"

    @property
    def store_url(self) -> str:
        """What a publisher writes to, past the proxy."""
        return f"cosmos+{self.server.url}/hotplate?ru={EMULATED_RU}"

    def misbehave(self, *kinds: str) -> None:
        """Answer every request with these faults of the emulator; with none, well again."""
        faults = json.dumps([{"kind": kind} for kind in kinds]).encode()
        url = f"{self.server.url}/__emulation/faults"
        request = urllib.request.Request(url, faults, method="PUT")  # noqa: S310 -- our own emulator, on loopback
        with urllib.request.urlopen(request, timeout=FAULTS_TIMEOUT_S):  # noqa: S310 -- as above
            pass

    def snapshot(self) -> None:
        """Keep nothing: an account is restored into another one, which has another URL."""


@dataclass(frozen=True, slots=True)
class FileTier:
    """A store in a folder, read in the service's own processes."""

    folder: Path
    name: str = "file"

    @property
    def url(self) -> str:
        """What the service reads."""
        return f"file://{self.folder}"

    @property
    def store_url(self) -> str:
        """What a publisher writes to: the same."""
        return self.url

    def snapshot(self) -> None:
        """Keep a copy of what it holds."""
        shutil.copytree(self.folder, self._copy)

    def put_back(self) -> None:
        """Replace what it holds with the copy."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._copy, self.folder)

    @property
    def _copy(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.snapshot")


async def _in_thread(start: Callable[[], T]) -> T:
    """Start a process in a thread, and see that through where the caller is interrupted: then it is stopped again."""
    starting = asyncio.ensure_future(asyncio.to_thread(start))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.gather(starting, return_exceptions=True)
        raise


Tier: TypeAlias = RedisTier | CosmosTier | FileTier


@asynccontextmanager
async def _redis_tier(folder: Path) -> AsyncIterator[RedisTier]:
    server = RedisServer(free_port())
    async with through(server.port) as proxy:
        tier = RedisTier(folder, server, proxy)
        try:
            await tier.start()
            yield tier
        finally:
            await tier.kill()


@asynccontextmanager
async def _cosmos_tier(folder: Path) -> AsyncIterator[CosmosTier]:
    del folder  # it keeps everything in memory
    with ExitStack() as stack:
        server = await _in_thread(lambda: stack.enter_context(emulator_serving()))
        async with through(int(server.url.rpartition(":")[2])) as proxy:
            yield CosmosTier(server, proxy)


@asynccontextmanager
async def _file_tier(folder: Path) -> AsyncIterator[FileTier]:
    yield FileTier(folder)


TIERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Tier]]] = {
    "redis": _redis_tier,
    "cosmos": _cosmos_tier,
    "file": _file_tier,
}


@dataclass(frozen=True, slots=True)
class Instance:
    """A running service over tiers that all hold the same two releases, of which the newer one is live."""

    tiers: tuple[Tier, ...]
    service: Server
    budget_s: float
    published: str
    """A store that nobody serves, which has what was published."""

    older: ReleaseId
    """In the snapshot of the first tier, the one that is live."""

    newer: ReleaseId

    @property
    def first(self) -> Tier:
        """The tier that answers while all is well, and that a drill disturbs."""
        return self.tiers[0]


@asynccontextmanager
async def started(kinds: Sequence[str], budget_s: float) -> AsyncIterator[Instance]:
    """Start stores of these kinds, fill them, and serve them until the block ends; BenchFailed if that fails."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotplate-drill-")))
        tiers = [await stack.enter_async_context(TIERS[kind](folder / kind)) for kind in kinds]
        published = f"file://{folder}/published"
        older = await _publish(published, tiers, "older")
        await asyncio.to_thread(tiers[0].snapshot)
        newer = await _publish(published, tiers, "newer")
        # Without a cache, so every answer comes out of a store and every fault is felt.
        command = [sys.executable, "-m", "hotplate", "serve", "--cache-mb", "0", "--budget", f"{budget_s:g}"]
        command += [part for tier in tiers for part in ("--store", tier.url)]
        service = await _in_thread(lambda: stack.enter_context(service_serving(command, "/readyz")))
        yield Instance(tuple(tiers), service, budget_s, published, older, newer)


async def _publish(published: str, tiers: Sequence[Tier], mark: str) -> ReleaseId:
    """Publish a release once, and copy it into each tier, so all of them answer the same."""

    async def batches() -> AsyncIterator[list[Row]]:
        yield [Row(key, _made_up(f"{mark}-{key}")) for key in (POPULAR + OVERALL, *map(key_of, range(USERS)))]

    plan = Plan(USERS + 1, (USERS + 1) * LIST_LENGTH * BYTES_PER_ITEM)
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
