"""Figures of publishing into Redis: CPU of the publisher and of the server, lists a second, and bytes per user."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bench.lists import Shape
from bench.micro.redis_lists import ENCODINGS, LIST_LENGTH, Watches, publish_lists
from bench.micro.redis_missing import missing
from bench.micro.rounds import Effort, Figure, Outcome, at_most, interleave, ratio
from bench.process import RedisServer, on_core, redis_serving
from stores.manifest import Manifest
from stores.redis.store import open_url

CPU_US_PER_LIST = 5


@dataclass(frozen=True, slots=True)
class Published:
    """What one publish came to, per list: making the rows is not counted, and compression by itself."""

    lists_per_s: float
    cpu_us: float
    compression_cpu_us: float
    server_cpu_us: float
    stored_bytes: float
    used_bytes: float


def measure(effort: Effort) -> list[Outcome]:
    """Publish a fifth of the effort's users as `json` and as `zstd` in turn, each into an empty server."""
    if skipped := missing("redis_publishing"):
        return skipped
    shape = Shape(max(effort.users // 5, 1), LIST_LENGTH)
    shared = shape.drawn()
    with redis_serving() as server, on_core(0):
        published = interleave(
            {encoding: partial(publish_once, server, shape, shared, encoding) for encoding in ENCODINGS},
            effort.rounds,
        )
    mean_bytes = sum(map(len, shared)) / len(shared)
    return [
        Figure(f"redis://, {LIST_LENGTH} items: a list as JSON", "B/list", [mean_bytes]),
        *(figure for encoding in ENCODINGS for figure in figures(shape, encoding, published[encoding])),
        ratio(
            "redis://, used_memory: json / zstd",
            [one.used_bytes for one in published["json"]],
            [one.used_bytes for one in published["zstd"]],
        ),
    ]


def publish_once(server: RedisServer, shape: Shape, shared: Sequence[bytes], encoding: str) -> Published:
    """Publish into the emptied server, and look at what that took of it when the publisher has gone."""
    server.clear()
    before_bytes, before_s = server.used_bytes(), server.cpu_s()
    watches = Watches()

    async def run() -> Manifest:
        store = open_url(server.url())
        try:
            return await publish_lists(store, shape, shared, encoding, watches)
        finally:
            await store.close()

    manifest = asyncio.run(run())
    whole, preparing, making = watches.whole, watches.preparing, watches.making
    us_per_list = 1e6 / shape.users
    return Published(
        lists_per_s=shape.users / (whole.wall_s - making.wall_s),
        cpu_us=(whole.cpu_s - preparing.cpu_s) * us_per_list,
        compression_cpu_us=(preparing.cpu_s - making.cpu_s) * us_per_list,
        server_cpu_us=(server.cpu_s() - before_s) * us_per_list,
        stored_bytes=manifest.bytes / shape.users,
        used_bytes=(server.used_bytes() - before_bytes) / shape.users,
    )


def figures(shape: Shape, encoding: str, published: Sequence[Published]) -> list[Figure]:
    """Tell of the publishes in one encoding."""
    what = f"redis://, publish {shape.users:,} lists, {encoding}"
    compression = [Figure(f"{what}: CPU of compression", "µs/list", [one.compression_cpu_us for one in published])]
    return [
        Figure(f"{what}: rate, rows' making not counted", "lists/s", [one.lists_per_s for one in published]),
        Figure(
            f"{what}: CPU, neither making nor compression counted",
            "µs/list",
            [one.cpu_us for one in published],
            at_most(CPU_US_PER_LIST),
        ),
        *(compression if encoding == "zstd" else []),
        Figure(f"{what}: CPU of redis-server", "µs/list", [one.server_cpu_us for one in published]),
        Figure(f"{what}: keys and values", "B/list", [one.stored_bytes for one in published]),
        Figure(f"{what}: used_memory", "B/list", [one.used_bytes for one in published]),
    ]
