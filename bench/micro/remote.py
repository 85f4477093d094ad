"""Cases of stores over a network: a GET from Redis compared with webdis, and our client of Cosmos DB with Azure's.

No time of the local emulator of Cosmos DB is Azure's, and no figure has its CPU.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import uvloop
from azure.cosmos import PartitionKey
from azure.cosmos.aio import CosmosClient
from redis import Redis

from hotplate.bench.cosmos_emulator.auth import WELL_KNOWN_KEY
from hotplate.bench.lists import Shape
from hotplate.bench.loadgen.load import Gets
from hotplate.bench.micro.harness import (
    BenchmarkSize,
    Candidates,
    Case,
    Line,
    RoundValues,
    Skipped,
    Stopwatch,
    at_least,
    at_most,
)
from hotplate.bench.micro.in_process import publish_to
from hotplate.bench.micro.peers import webdis_serving
from hotplate.bench.micro.servers import LIST_LENGTH, gets, hotplate_serving, keys_of, missing, saturated
from hotplate.bench.process import REDIS_MISSING, emulator_serving, on_core, redis_installed, redis_serving
from hotplate.stores.cosmos.rest import RestClient
from hotplate.stores.cosmos.url import parse
from hotplate.stores.encoding import OFFSET_BYTES
from hotplate.stores.keys import USER

# webdis's lists lie there: plain strings, without a release.
PLAIN = "plain:"
DATABASE = "d"
CONTAINER = "c"
# Makes items of 1,024 B as they are stored, with their system properties.
PAD_BYTES = 788
ITEMS = [f"user-{number:08d}" for number in range(200)]
IN_FLIGHT = 16
TIMEOUT_S = 5.0
# More than the emulator can serve, so nothing is throttled.
PLENTY_RU = 1_000_000


@contextmanager
def _webdis(size: BenchmarkSize) -> Iterator[Candidates]:
    """Serve a tenth of the size's users, and read the same values by webdis."""
    shape = Shape(max(size.users // 10, 1), LIST_LENGTH)
    if absent := missing("webdis") or (None if redis_installed() else REDIS_MISSING):
        raise Skipped(absent)
    with ExitStack() as stack:
        redis = stack.enter_context(redis_serving())
        publish_to(redis.url(), shape, values := shape.values())
        with Redis(port=redis.port) as client:
            for rows in shape.batches(values):
                client.mset({PLAIN + row.key: row.value[OFFSET_BYTES:] for row in rows})
        service = stack.enter_context(hotplate_serving(redis.url()))
        webdis = stack.enter_context(webdis_serving(redis))
        stack.enter_context(on_core(1))
        load = gets(keys_of(shape.users), size.round_s, {"Accept": "application/json"})
        plain = replace(load, requests=Gets(f"/GET/{PLAIN}{USER}{{key}}", keys_of(shape.users)))
        yield {"hotplate": saturated(service, load), "webdis": saturated(webdis, plain)}


# Cosmos DB


Read = Callable[[str], Awaitable[object]]


class ChargeSum:
    """An observer that does what serving does: it counts, and what failed was tried again."""

    def __init__(self) -> None:
        self.ru = 0.0
        self.failures = 0

    def charged(self, ru: float) -> None:
        """See `hotplate.stores.store.Observer`."""
        self.ru += ru

    def failed(self, kind: str) -> None:
        """See `hotplate.stores.store.Observer`."""
        del kind
        self.failures += 1


@contextmanager
def _cosmos_reads(size: BenchmarkSize) -> Iterator[Candidates]:
    """Read items of 1 KB by each client, 16 in flight."""
    with ExitStack() as stack:
        emulator = stack.enter_context(emulator_serving(core=0))
        asyncio.run(_fill(emulator.url))
        stack.enter_context(on_core(1))
        clients: dict[str, Callable[[], AbstractAsyncContextManager[Read]]] = {
            "azure-cosmos": partial(_as_it_comes, emulator.url),
            "hotplate": partial(_ours, f"cosmos+{emulator.url}/{DATABASE}"),
        }
        yield {name: partial(_read_by, client, size.round_s) for name, client in clients.items()}


async def _fill(endpoint: str) -> None:
    """Create ITEMS in a container without indexes, whose partition key is the id."""
    without_indexes: dict[str, Any] = {"indexingMode": "none", "automatic": False}
    async with CosmosClient(endpoint, WELL_KNOWN_KEY) as client:
        database = await client.create_database(DATABASE)
        items = await database.create_container(
            CONTAINER, PartitionKey("/id"), indexing_policy=without_indexes, offer_throughput=PLENTY_RU
        )
        for name in ITEMS:
            await items.create_item({"id": name, "pad": "x" * PAD_BYTES})


@asynccontextmanager
async def _ours(url: str) -> AsyncIterator[Read]:
    client = RestClient(parse(url, {}), ChargeSum())
    yield lambda name: client.read(CONTAINER, name, TIMEOUT_S)
    await client.close()


@asynccontextmanager
async def _as_it_comes(endpoint: str) -> AsyncIterator[Read]:
    async with CosmosClient(endpoint, WELL_KNOWN_KEY) as client:
        items = client.get_database_client(DATABASE).get_container_client(CONTAINER)
        yield lambda name: items.read_item(name, name)


def _read_by(client: Callable[[], AbstractAsyncContextManager[Read]], seconds: float) -> RoundValues:
    """Read for so many seconds, with everything open before they begin. RuntimeError if an item is missing."""
    done, watch = 0, Stopwatch()

    async def reader(read: Read, first: int, ends_at: float) -> None:
        nonlocal done
        for name in itertools.islice(itertools.cycle(ITEMS), first, None, IN_FLIGHT + 1):
            if await read(name) is None:
                raise RuntimeError(f"the item {name} is missing")
            if time.perf_counter() >= ends_at:
                return
            done += 1

    async def timed() -> None:
        async with client() as read:
            await asyncio.gather(*(read(name) for name in ITEMS[:IN_FLIGHT]))
            ends_at = time.perf_counter() + seconds
            with watch.running():
                await asyncio.gather(*(reader(read, first, ends_at) for first in range(IN_FLIGHT)))

    uvloop.run(timed())
    return watch.round(done)


CASES = (
    Case(
        "webdis",
        _webdis,
        {
            "hotplate / webdis: rate": Line(
                "a GET from Redis, compared with webdis on one thread: rate", at_least(1.3)
            ),
            "hotplate: CPU": Line("the same: CPU"),
        },
    ),
    Case(
        "cosmos_reads",
        _cosmos_reads,
        {
            "hotplate: CPU": Line("a point read from Cosmos DB (local emulator): CPU of our client", at_most(40)),
            "azure-cosmos: CPU": Line("the same: CPU of azure-cosmos as it comes"),
        },
    ),
)
