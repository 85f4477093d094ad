"""Figures of Cosmos DB's clients: what a point read of 1 KB takes of this process, with 16 in flight.

The emulator answers, on the other core; its own time is none of the figure, and no latency here is Azure's.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import orjson
import uvloop
from aiohttp import ClientSession, DummyCookieJar, TCPConnector
from azure.core.pipeline.transport import AioHttpTransport
from azure.cosmos._retry_options import RetryOptions  # private, and the only way to turn retries off
from azure.cosmos.aio import CosmosClient
from azure.cosmos.documents import ConnectionPolicy

from bench.micro.rounds import Effort, Figure, Outcome, Sample, at_most, figures, interleave, ratio
from bench.process import on_core
from bench.report.machine import ROOT, environment
from stores.cosmos.driver import Driver
from stores.cosmos.rest.driver import RestDriver
from stores.cosmos.sdk.driver import SdkDriver
from stores.cosmos.throughput import MAX_RU, Throughput
from stores.cosmos.url import EMULATORS_KEY, Address, parse
from stores.store import Observer

CPU_US = {"driver=rest": 40, "driver=rest, TLS": 55}
SHARE_OF_SDK = 1 / 12
IN_FLIGHT = 16
ITEMS = 1000
PAD_BYTES = 788
"""Makes items of 1,024 B as they are stored, with their system properties."""

TIMEOUT_S = 5.0
DATABASE, CONTAINER = "d", "c"

Read = Callable[[str], Awaitable[object]]
Client = Callable[[], AbstractAsyncContextManager[Read]]


class Unmetered:
    """A meter that counts what serving counts: the sum of charges."""

    def __init__(self) -> None:
        self.ru = 0.0

    def charged(self, ru: float) -> None:
        """See `Observer`."""
        self.ru += ru

    def failed(self, kind: str) -> None:
        """See `Observer`."""
        raise RuntimeError(f"an attempt failed: {kind}")


def measure(effort: Effort) -> list[Outcome]:
    """Read by each client in turn, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder) / "emulator.pem"
        with emulating() as plain, emulating("--tls", "--certificate", str(certificate)) as secure, on_core(1):
            url, secure_url = f"cosmos+{plain}{DATABASE}", f"cosmos+{secure}{DATABASE}?ca={certificate}"
            for each in (url, secure_url):
                uvloop.run(_fill(each))
            clients: dict[str, Client] = {
                "azure-cosmos as it comes": partial(_as_it_comes, plain),
                "azure-cosmos tuned": partial(_tuned, plain),
                "driver=sdk": partial(_driven, SdkDriver, url),
                "driver=rest": partial(_driven, RestDriver, url),
                "driver=rest, TLS": partial(_driven, RestDriver, secure_url),
            }
            variants = {name: partial(_sample, client, effort.round_s) for name, client in clients.items()}
            taken = interleave(variants, effort.rounds)
    return [*_each(taken), *_beside(taken)]


def _each(taken: dict[str, list[Sample]]) -> Iterator[Figure]:
    for name, samples in taken.items():
        goal = at_most(CPU_US[name]) if name in CPU_US else None
        yield from figures(f"cosmos reads, {name}", samples, each="read", cpu_goal=goal)


def _beside(taken: dict[str, list[Sample]]) -> Iterator[Figure]:
    sdk = [sample.cpu_us_per_op for sample in taken["azure-cosmos as it comes"]]
    for name in ("azure-cosmos tuned", "driver=sdk", "driver=rest", "driver=rest, TLS"):
        ours = [sample.cpu_us_per_op for sample in taken[name]]
        goal = at_most(SHARE_OF_SDK) if name == "driver=rest" else None
        yield ratio(f"cosmos reads, {name} / azure-cosmos as it comes: CPU", ours, sdk, goal=goal)


@contextmanager
def emulating(*options: str) -> Iterator[str]:
    """Run an emulator on the first core, and yield its URL; RuntimeError where it does not start."""
    command = [sys.executable, "-m", "hotplate", "cosmos-emulator", "--port", "0", "--json", *options]
    with on_core(0):
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE)  # noqa: S603 -- our own
    with process:
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise RuntimeError("the emulator does not start")
            yield orjson.loads(line)["endpoint"]
        finally:
            process.terminate()


async def _fill(url: str) -> None:
    """Make the container and its items."""
    driver = RestDriver(parse(url, {}), Unmetered())
    await driver.create_database()
    await driver.create_container(CONTAINER, Throughput(MAX_RU))
    for name in _names():
        await driver.upsert(CONTAINER, {"id": name, "pad": "x" * PAD_BYTES})
    await driver.close()


@asynccontextmanager
async def _driven(make: Callable[[Address, Observer], Driver], url: str) -> AsyncIterator[Read]:
    """Read by a driver of ours."""
    driver = make(parse(url, {}), Unmetered())

    async def read(name: str) -> object:
        return await driver.read(CONTAINER, name, TIMEOUT_S)

    yield read
    await driver.close()


@asynccontextmanager
async def _as_it_comes(endpoint: str) -> AsyncIterator[Read]:
    """Read by the SDK with nothing said but where and who."""
    async with CosmosClient(endpoint, EMULATORS_KEY) as client:
        yield _reading(client)


@asynccontextmanager
async def _tuned(endpoint: str) -> AsyncIterator[Read]:
    """Read by the SDK with connections of its own, no look at the environment and no retries."""
    policy = ConnectionPolicy()
    policy.RetryOptions = RetryOptions(max_retry_attempt_count=0)
    connector = TCPConnector(limit=0, keepalive_timeout=75)
    async with ClientSession(connector=connector, auto_decompress=False, cookie_jar=DummyCookieJar()) as session:
        transport = AioHttpTransport(session=session, session_owner=False, use_env_settings=False)
        async with CosmosClient(
            endpoint, EMULATORS_KEY, consistency_level="Eventual", connection_policy=policy, transport=transport
        ) as client:
            yield _reading(client)


def _reading(client: CosmosClient) -> Read:
    container = client.get_database_client(DATABASE).get_container_client(CONTAINER)

    async def read(name: str) -> object:
        return await container.read_item(name, name)

    return read


def _names() -> list[str]:
    return [f"user-{number:08d}" for number in range(ITEMS)]


def _sample(client: Client, seconds: float) -> Sample:
    return uvloop.run(_timed(client, seconds))


async def _timed(client: Client, seconds: float) -> Sample:
    """Read for so many seconds; everything is open before they begin. RuntimeError where an item is missing."""
    names = _names()
    async with client() as read:
        await asyncio.gather(*(read(name) for name in names[:IN_FLIGHT]))
        done = 0
        ends_at = time.perf_counter() + seconds

        async def lane(first: int) -> None:
            nonlocal done
            place = first
            while time.perf_counter() < ends_at:
                if await read(names[place]) is None:
                    raise RuntimeError(f"the item {names[place]} is missing")
                place = (place + IN_FLIGHT + 1) % ITEMS
                done += 1

        wall_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(lane(first) for first in range(IN_FLIGHT)))
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return Sample(done / wall_s, cpu_s * 1e6 / done)
