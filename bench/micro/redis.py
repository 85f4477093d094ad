"""Redis: the service beside itself over files, the store beside redis-py, and publishing."""

import asyncio
import json
import random
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import uvloop
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from bench.lists import Shape, key_of
from bench.micro.http_peer import fetch
from bench.micro.publishing import CPU_US_PER_LIST, Published, publish_to
from bench.micro.rounds import (
    Effort,
    Figure,
    Outcome,
    Reads,
    Sample,
    Stopwatch,
    Unmeasured,
    at_most,
    cpu_difference,
    figures,
    hotplate_serving,
    interleave,
    late_figures,
    path_of,
    ratio,
    ratios,
    read,
)
from bench.process import REDIS_MISSING, RedisServer, Server, on_core, redis_installed, redis_serving
from stores.catalogue import ReleaseRef
from stores.connect import connect
from stores.encoding import OFFSET_BYTES
from stores.transfer import copy

ENCODINGS = ("json", "zstd")
LIST_LENGTH = 20

Measure = Callable[[Effort], list[Outcome]]


def where_installed(measure: Measure) -> Measure:
    """Skip a benchmark, with the reason, where no redis-server is installed."""

    def measured(effort: Effort) -> list[Outcome]:
        name = measure.__name__.replace("measure", "redis")
        return measure(effort) if redis_installed() else [Unmeasured(name, REDIS_MISSING)]

    return measured


# The service over Redis, beside itself over files

# How many users are requested, so that neither side has all it needs in the processor's cache.
REQUESTED = 20_000
# Requests/s of the open loop: about a quarter of what the slowest can take.
RATE = 5_000
CPU_US_MORE = 10


class ServiceReads(NamedTuple):
    """Requests over HTTP in one round, with the CPU that redis-server took for each."""

    reads: Reads
    redis_cpu_us: float


@where_installed
def measure_service(effort: Effort) -> list[Outcome]:
    """Serve a tenth of the effort's users out of files and out of Redis, all servers on one core, in turn."""
    shape = Shape(max(effort.users // 10, 1), LIST_LENGTH)
    shared = shape.drawn()
    users = random.Random(0).choices(range(shape.users), k=min(shape.users, REQUESTED))  # noqa: S311 -- spreads reads, guards nothing
    paths = [path_of(user) for user in users]
    with tempfile.TemporaryDirectory() as made, redis_serving() as redis, ExitStack() as stack:
        servers = dict[str, Server]()
        for encoding in ENCODINGS:
            files, remote = f"file://{made}/{encoding}", redis.url(encoding)
            release = publish_to(files, shape, shared, encoding).release
            asyncio.run(copy_release(files, remote, release))
            servers[f"file:// {encoding}"] = stack.enter_context(hotplate_serving(files))
            servers[f"redis:// {encoding}"] = stack.enter_context(hotplate_serving(remote))
        for server in servers.values():
            must_serve(server.url + paths[0], shared[users[0] % len(shared)][OFFSET_BYTES:])

        def read_once(server: Server, rate: float | None) -> ServiceReads:
            before_s = redis.cpu_s()
            reads = read(server, paths, effort.round_s, rate=rate)
            requests = reads.sample.rate_per_s * effort.round_s
            return ServiceReads(reads, (redis.cpu_s() - before_s) * 1e6 / requests)

        variants = {
            f"{name} {rate}": partial(read_once, server, rate)
            for name, server in servers.items()
            for rate in (None, RATE)
        }
        with on_core(1):
            taken = interleave(variants, effort.rounds)
    return [
        *(figure for name in servers for figure in server_figures(name, taken)),
        *(figure for encoding in ENCODINGS for figure in beside_files(encoding, taken)),
    ]


async def copy_release(source_url: str, target_url: str, release: ReleaseRef) -> None:
    """Copy a release, so that both stores hold the same bytes under the same id."""
    source, target = connect(source_url), connect(target_url)
    try:
        await copy(source, target, release.id)
    finally:
        await source.close()
        await target.close()


def must_serve(url: str, value: bytes) -> None:
    """Raise RuntimeError unless the service gives the first items of *value*."""
    given = json.loads(fetch(url)[0])["items"]
    if not given or given != json.loads(b"[%b]" % value)[: len(given)]:
        raise RuntimeError(f"{url} gives {given}")


def server_figures(name: str, taken: Mapping[str, Sequence[ServiceReads]]) -> Iterator[Figure]:
    """Name the figures of one service: as many requests as it takes, then a steady rate."""
    saturated, steady = taken[f"{name} None"], taken[f"{name} {RATE}"]
    what = f"GET on one core, {name}"
    yield from figures(what, [one.reads.sample for one in saturated], each="request")
    yield from beyond_files(what, saturated)
    what = f"GET at {RATE:,}/s, {name}"
    yield figures(what, [one.reads.sample for one in steady], each="request")[1]
    yield Figure(f"{what}: p50", "µs", [one.reads.p50_us for one in steady])
    yield Figure(f"{what}: p99", "µs", [one.reads.p99_us for one in steady])
    yield from beyond_files(what, steady)


def beyond_files(what: str, reads: Sequence[ServiceReads]) -> Iterator[Figure]:
    """Name what there is only with Redis: its CPU, and popular lists where it was too late."""
    if "redis://" in what:
        yield Figure(f"{what}: CPU of redis-server", "µs/request", [one.redis_cpu_us for one in reads])
        yield from late_figures(what, [one.reads for one in reads])


def beside_files(encoding: str, taken: Mapping[str, Sequence[ServiceReads]]) -> Iterator[Figure]:
    """Compare Redis with files, round by round."""
    for rate in (None, RATE):
        what = f"GET {'on one core' if rate is None else f'at {RATE:,}/s'}, {encoding}, redis://"
        files, remote = (
            [one.reads.sample for one in taken[f"{scheme} {encoding} {rate}"]] for scheme in ("file://", "redis://")
        )
        # At a rate that leaves little to batch, most requests pay for a round trip of their own: no goal.
        yield cpu_difference(f"{what} - file://", remote, files, goal=at_most(CPU_US_MORE) if rate is None else None)
        if rate is None:
            yield ratios(f"{what} / file://", remote, files)[0]


# Lookups by the store, beside redis-py's own mget

# Where redis-py's lists lie: plain strings, without a release.
PLAIN = "plain:"

Many = Callable[[Sequence[str]], Awaitable[Sequence[Any]]]


class Calls(NamedTuple):
    """How keys are looked up: so many in a call, by so many tasks that each wait for their reply."""

    keys: int
    tasks: int

    def __str__(self) -> str:
        return f"{self.keys} key{'s' * (self.keys > 1)} a call, {self.tasks} caller{'s' * (self.tasks > 1)}"


CALLS = (Calls(1, 64), Calls(8, 1), Calls(64, 1))


@where_installed
def measure_reads(effort: Effort) -> list[Outcome]:
    """Look a twentieth of the effort's users up, out of twice as many, by the store and by redis-py in turn."""
    shape = Shape(max(effort.users // 10, 1), LIST_LENGTH)
    shared, result = shape.drawn(), list[Outcome]()
    with redis_serving() as server, on_core(0):
        release = publish_to(server.url(), shape, shared).release
        with SyncRedis(port=server.port) as client:
            for rows in shape.batches(shared):
                client.mset({PLAIN + row.key: row.value for row in rows})

        async def by_store(calls: Calls) -> Sample:
            store = connect(server.url())
            try:
                return await timed(partial(store.get_many, release), calls, batches(calls))
            finally:
                await store.close()

        async def by_redis_py(calls: Calls) -> Sample:
            async with Redis(port=server.port) as client:  # it opens a connection for each caller
                return await timed(client.mget, calls, batches(calls, PLAIN))

        def run_once(by: Callable[[Calls], Coroutine[Any, Any, Sample]], calls: Calls) -> Sample:
            return uvloop.run(by(calls))

        def batches(calls: Calls, prefix: str = "") -> list[list[str]]:
            lookups = max(effort.users // 20, calls.keys)
            keys = [prefix + key_of(user) for user in random.choices(range(shape.users), k=lookups)]  # noqa: S311 -- spreads reads
            return [keys[start : start + calls.keys] for start in range(0, lookups - calls.keys + 1, calls.keys)]

        for calls in CALLS:
            variants = {by.__name__: partial(run_once, by, calls) for by in (by_store, by_redis_py)}
            ours, theirs = interleave(variants, effort.rounds).values()
            what = f"redis:// lookups, {calls}"
            result += figures(f"{what}, the store", ours, each="key")
            result += figures(f"{what}, redis-py's mget", theirs, each="key")
            result.append(ratios(f"{what}, the store / redis-py", ours, theirs)[1])
    return result


async def timed(many: Many, calls: Calls, batches: Sequence[Sequence[str]]) -> Sample:
    """Look all batches up, and return what that took; RuntimeError where a list is not there."""

    async def look_up(some: Iterator[Sequence[str]]) -> None:
        for batch in some:
            if not all(isinstance(value, bytes) for value in await many(batch)):
                raise RuntimeError(f"a list is missing among {batch}")

    await asyncio.gather(*(look_up(iter(batches[:1])) for _ in range(calls.tasks)))
    remaining, watch = iter(batches), Stopwatch()
    with watch.running():
        await asyncio.gather(*(look_up(remaining) for _ in range(calls.tasks)))
    return watch.sample(len(batches) * calls.keys)


# Publishing into Redis


class RedisPublished(NamedTuple):
    """One publish into an empty server, and what it took of the server per list."""

    published: Published
    server_cpu_us: float
    used_bytes: float


@where_installed
def measure_publishing(effort: Effort) -> list[Outcome]:
    """Publish a fifth of the effort's users as `json` and as `zstd` in turn, each into an empty server."""
    shape = Shape(max(effort.users // 5, 1), LIST_LENGTH)
    shared = shape.drawn()
    with redis_serving() as server, on_core(0):
        variants = {encoding: partial(publish_once, server, shape, shared, encoding) for encoding in ENCODINGS}
        taken = interleave(variants, effort.rounds)
    used = {encoding: [one.used_bytes for one in taken[encoding]] for encoding in ENCODINGS}
    return [
        Figure(
            f"redis://, {LIST_LENGTH} items: a list as JSON",
            "B/list",
            [sum(map(len, shared)) / len(shared) - OFFSET_BYTES],
        ),
        *(figure for encoding in ENCODINGS for figure in publishing_figures(shape, encoding, taken[encoding])),
        ratio("redis://, used_memory: json / zstd", used["json"], used["zstd"]),
    ]


def publish_once(server: RedisServer, shape: Shape, shared: Sequence[bytes], encoding: str) -> RedisPublished:
    """Publish into the emptied server, and see what that took of it when the publisher has gone."""
    server.clear()
    before_bytes, before_s = server.used_bytes(), server.cpu_s()
    published = publish_to(server.url(), shape, shared, encoding)
    return RedisPublished(
        published,
        server_cpu_us=(server.cpu_s() - before_s) * 1e6 / shape.users,
        used_bytes=(server.used_bytes() - before_bytes) / shape.users,
    )


def publishing_figures(shape: Shape, encoding: str, taken: Sequence[RedisPublished]) -> list[Figure]:
    """Name the publishes in one encoding; the goal is for the CPU beside compression."""
    what = f"redis://, publish {shape.users:,} lists, {encoding}"
    samples = [one.published.sample for one in taken]
    compression = [one.published.compression_cpu_us for one in taken]
    stored = [one.published.stored_bytes / shape.users for one in taken]
    return [
        *figures(f"{what}, making of rows not counted", samples, each="list", cpu_goal=at_most(CPU_US_PER_LIST)),
        *([Figure(f"{what}: CPU of compression", "µs/list", compression)] if encoding == "zstd" else []),
        Figure(f"{what}: CPU of redis-server", "µs/list", [one.server_cpu_us for one in taken]),
        Figure(f"{what}: keys and values", "B/list", stored),
        Figure(f"{what}: used_memory", "B/list", [one.used_bytes for one in taken]),
    ]
