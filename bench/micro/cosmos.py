"""Cosmos DB on a local emulator: reads by its clients, the service, and publishing at a rate.

The emulator runs on the other core; its own time is in none of the figures, and no time here is Azure's.
"""

import asyncio
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import ClientSession, DummyCookieJar, TCPConnector
from azure.core.pipeline.transport import AioHttpTransport
from azure.cosmos import PartitionKey
from azure.cosmos._retry_options import RetryOptions  # private, and the only way to turn retries off
from azure.cosmos.aio import CosmosClient
from azure.cosmos.documents import ConnectionPolicy

from bench.cosmos_emulator.auth import WELL_KNOWN_KEY
from bench.micro.http_peer import PATHS, SERVED
from bench.micro.publishing import publish_to
from bench.micro.rounds import (
    HOTPLATE,
    Effort,
    Figure,
    Outcome,
    Reads,
    Sample,
    Stopwatch,
    Unmeasured,
    at_least,
    at_most,
    cpu_difference,
    figures,
    hotplate_serving,
    interleave,
    late_figures,
    ratio,
    read,
)
from bench.micro.spent import run
from bench.micro.training_data import RETAIL, RETAIL_OPTIONS
from bench.process import emulator_serving, on_core
from stores.cosmos.rest import RestClient
from stores.cosmos.url import parse

DATABASE, CONTAINER = "d", "c"
# Makes items of 1,024 B as they are stored, with their system properties.
PAD_BYTES = 788
ITEMS = 200
IN_FLIGHT = 16
# More than the emulator can serve, so that nothing is throttled.
PLENTY_RU = 1_000_000


def fill(endpoint: str, names: Sequence[str], ru: int = PLENTY_RU, ca: str | None = None) -> None:
    """Create items in a container without indexes, whose partition key is the id; made where it is not there yet."""
    verify: dict[str, Any] = {"connection_verify": ca} if ca else {}
    without_indexes: dict[str, Any] = {"indexingMode": "none", "automatic": False}

    async def create_all() -> None:
        async with CosmosClient(endpoint, WELL_KNOWN_KEY, **verify) as client:
            database = await client.create_database_if_not_exists(DATABASE)
            items = await database.create_container_if_not_exists(
                CONTAINER, PartitionKey("/id"), indexing_policy=without_indexes, offer_throughput=ru
            )
            for start in range(0, len(names), IN_FLIGHT):
                batch = names[start : start + IN_FLIGHT]
                await asyncio.gather(*(items.create_item({"id": name, "pad": "x" * PAD_BYTES}) for name in batch))

    asyncio.run(create_all())


def ids(count: int = ITEMS, prefix: str = "user") -> list[str]:
    """Name the items."""
    return [f"{prefix}-{number:08d}" for number in range(count)]


# Point reads by each client

SHARE_OF_SDK = 1 / 12
TIMEOUT_S = 5.0
AS_IT_COMES, TUNED, OURS, OURS_TLS = "azure-cosmos as it comes", "azure-cosmos tuned", "hotplate", "hotplate, TLS"
CPU_US = {OURS: 40, OURS_TLS: 55}

Read = Callable[[str], Awaitable[object]]
Client = Callable[[], AbstractAsyncContextManager[Read]]


class ChargeSum:
    """An observer that does what serving does: it counts, and what failed was tried again."""

    def __init__(self) -> None:
        self.ru = 0.0
        self.failures = 0

    def charged(self, ru: float) -> None:
        """See `stores.store.Observer`."""
        self.ru += ru

    def failed(self, kind: str) -> None:
        """See `stores.store.Observer`."""
        del kind
        self.failures += 1


def measure_reads(effort: Effort) -> list[Outcome]:
    """Read items of 1 KB by each client in turn, 16 in flight."""
    with tempfile.TemporaryDirectory() as folder:
        certificate = str(Path(folder) / "emulator.pem")
        tls = ("--tls", "--certificate", certificate)
        with emulator_serving(core=0) as plain, emulator_serving(*tls, core=0) as secure, on_core(1):
            for endpoint, ca in ((plain.url, None), (secure.url, certificate)):
                fill(endpoint, ids(), ca=ca)
            clients: dict[str, Client] = {
                AS_IT_COMES: partial(as_it_comes, plain.url),
                TUNED: partial(tuned, plain.url),
                OURS: partial(ours, f"cosmos+{plain.url}/{DATABASE}"),
                OURS_TLS: partial(ours, f"cosmos+{secure.url}/{DATABASE}?ca={certificate}"),
            }
            variants = {name: partial(read_by, client, effort.round_s) for name, client in clients.items()}
            taken = interleave(variants, effort.rounds)
    return list(reads_figures(taken))


def reads_figures(taken: Mapping[str, Sequence[Sample]]) -> Iterator[Figure]:
    """Name the figures of each client, and its CPU beside that of the SDK as it comes."""
    for name, samples in taken.items():
        goal = at_most(CPU_US[name]) if name in CPU_US else None
        yield from figures(f"cosmos reads, {name}", samples, each="read", cpu_goal=goal)
    sdk = [sample.cpu_us_per_op for sample in taken[AS_IT_COMES]]
    for name in (TUNED, OURS, OURS_TLS):
        cpu = [sample.cpu_us_per_op for sample in taken[name]]
        goal = at_most(SHARE_OF_SDK) if name == OURS else None
        yield ratio(f"cosmos reads, {name} / {AS_IT_COMES}: CPU", cpu, sdk, goal=goal)


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Read]:
    """Read by hotplate's own client."""
    client = RestClient(parse(url, {}), ChargeSum())
    yield lambda name: client.read(CONTAINER, name, TIMEOUT_S)
    await client.close()


@asynccontextmanager
async def as_it_comes(endpoint: str) -> AsyncIterator[Read]:
    """Read by the SDK with nothing set but where and who."""
    async with CosmosClient(endpoint, WELL_KNOWN_KEY) as client:
        yield reading(client)


@asynccontextmanager
async def tuned(endpoint: str) -> AsyncIterator[Read]:
    """Read by the SDK with connections of its own, no look at the environment and no retries."""
    policy = ConnectionPolicy()
    policy.RetryOptions = RetryOptions(max_retry_attempt_count=0)
    connector = TCPConnector(limit=0, keepalive_timeout=75)
    async with ClientSession(connector=connector, auto_decompress=False, cookie_jar=DummyCookieJar()) as session:
        transport = AioHttpTransport(session=session, session_owner=False, use_env_settings=False)
        async with CosmosClient(
            endpoint, WELL_KNOWN_KEY, consistency_level="Eventual", connection_policy=policy, transport=transport
        ) as client:
            yield reading(client)


def reading(client: CosmosClient) -> Read:
    """Return what reads one item by the SDK."""
    items = client.get_database_client(DATABASE).get_container_client(CONTAINER)

    async def read_item(name: str) -> object:
        return await items.read_item(name, name)

    return read_item


def read_by(client: Client, seconds: float) -> Sample:
    """Read for so many seconds, with everything open before they begin. RuntimeError where an item is missing."""

    async def timed() -> Sample:
        async with client() as read_item:
            await asyncio.gather(*(read_item(name) for name in ids(IN_FLIGHT)))
            done, ends_at = 0, time.perf_counter() + seconds

            async def reader(first: int) -> None:
                nonlocal done
                for name in itertools.islice(itertools.cycle(ids()), first, None, IN_FLIGHT + 1):
                    if await read_item(name) is None:
                        raise RuntimeError(f"the item {name} is missing")
                    if time.perf_counter() >= ends_at:
                        return
                    done += 1

            watch = Stopwatch()
            with watch.running():
                await asyncio.gather(*(reader(first) for first in range(IN_FLIGHT)))
        return watch.sample(done)

    return uvloop.run(timed())


# The service over Cosmos DB beside the same lists out of files

SERVICE_RU = 100_000
# What a request may take of the service's CPU, its read by plain HTTP included.
CPU_US_PER_GET = 30
# Few enough that responses are not late on a quiet machine.
CONNECTIONS = 32
FILES, PLAIN, SECURE = "file://", "cosmos+http://", "cosmos+https://"


def measure_service(effort: Effort) -> list[Outcome]:
    """Serve the same lists from each store, all services on one core, and saturate them in turn."""
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        certificate = str(Path(made) / "emulator.pem")
        tls = ("--tls", "--certificate", certificate)
        plain = stack.enter_context(emulator_serving())
        secure = stack.enter_context(emulator_serving(*tls))
        stores = {
            FILES: f"file://{made}/store",
            PLAIN: f"cosmos+{plain.url}/db?ru={SERVICE_RU}",
            SECURE: f"cosmos+{secure.url}/db?ru={SERVICE_RU}&ca={certificate}",
        }
        for url in stores.values():
            publish_to(url, SERVED, SERVED.values())
        services = {name: stack.enter_context(hotplate_serving(url)) for name, url in stores.items()}

        variants = {
            name: partial(read, service, PATHS, effort.round_s, connections=CONNECTIONS)
            for name, service in services.items()
        }
        with on_core(1):
            return list(service_figures(interleave(variants, effort.rounds)))


def service_figures(taken: Mapping[str, Sequence[Reads]]) -> Iterator[Figure]:
    """Name the figures of each store, and what Cosmos DB takes beyond files, round by round."""
    samples = {name: [one.sample for one in reads] for name, reads in taken.items()}
    for name, reads in taken.items():
        cpu_goal = at_most(CPU_US_PER_GET) if name == PLAIN else None
        yield from figures(f"GET, {name}", samples[name], each="request", cpu_goal=cpu_goal)
        yield from late_figures(f"GET, {name}", reads)
    for name in (PLAIN, SECURE):
        yield cpu_difference(f"GET, {name} - {FILES}", samples[name], samples[FILES])


# Publishing at a rate, beside its dry run

MAX_RU = 1_000
OFF_BY = 0.15
# Each takes three quarters of a minute.
MOST_PUBLISHES = 2


def measure_publishing(effort: Effort) -> list[Outcome]:
    """Train on Online Retail once, and publish it with and without --dry-run, each time into an empty database."""
    if not RETAIL.exists():
        return [Unmeasured("cosmos_publishing", f"the data set is not at {RETAIL}")]
    with tempfile.TemporaryDirectory() as folder, emulator_serving(core=0) as server:
        model = Path(folder) / "model"
        run([*HOTPLATE, "train", str(RETAIL), *RETAIL_OPTIONS, "--no-tune", "--out", str(model)])
        pairs = [
            publish_both(model, f"cosmos+{server.url}/round{number}", MAX_RU)
            for number in range(min(effort.rounds, MOST_PUBLISHES))
        ]
    return [*publishing_figures(pairs, MAX_RU)]


def publish_both(model: Path, url: str, max_ru: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the dry run estimates, and what the publish reports of itself."""

    def json_of(*options: str) -> dict[str, Any]:
        command = [*HOTPLATE, "publish", str(model), "--store", url, "--max-ru", str(max_ru), "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- our own command
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[3:])} failed: {done.stderr.strip()}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return json_of("--dry-run"), json_of()


def publishing_figures(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], max_ru: int) -> list[Figure]:
    """Put what was measured beside the estimate."""
    what = f"local emulator, not Azure, publish at {max_ru:,} RU/s"
    rows, estimated_s = [one["rows"] for one, _ in pairs], [one["seconds"] for one, _ in pairs]
    spent = [done["spent"] for _, done in pairs]
    took_s = [one["seconds"] for one in spent]
    within = [a / b for a, b in zip(took_s, estimated_s, strict=True)]
    charges = [a["request_units"] / b for a, b in zip(spent, rows, strict=True)]
    return [
        Figure(f"{what}: rows", "rows", rows),
        Figure(f"{what}: time by the dry run", "s", estimated_s),
        Figure(f"{what}: time", "s", took_s),
        Figure(f"{what}: time / dry run's", "ratio", within, at_most(1 + OFF_BY)),
        Figure(f"{what}: time / dry run's, not less", "ratio", within, at_least(1 - OFF_BY)),
        Figure(f"{what}: RU by the dry run", "RU/row", [one["request_units"] / one["rows"] for one, _ in pairs]),
        Figure(f"{what}: RU, written and read back", "RU/row", charges),
        Figure(f"{what}: 429s", "responses", [one["throttled"] for one in spent]),
    ]
