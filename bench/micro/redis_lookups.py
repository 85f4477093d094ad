"""Figures of the Redis store alone: what a lookup takes of this process, beside redis-py's own `mget`."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvloop
from redis.asyncio import Redis

from bench.lists import Shape, key_of
from bench.micro.redis_lists import LIST_LENGTH, fill
from bench.micro.redis_missing import missing
from bench.micro.rounds import Effort, Figure, Outcome, Sample, figures, interleave, ratio
from bench.process import RedisServer, on_core, redis_serving
from stores.catalogue import ReleaseId
from stores.redis.keys import Keys
from stores.redis.store import open_url

PREFIX = "bench"

Many = Callable[[Sequence[str]], Awaitable[Sequence[Any]]]
"""Reads the lists of some keys; what a key came to is a matter of the client."""


@dataclass(frozen=True, slots=True)
class Calls:
    """How keys are asked for: so many in a call, by so many tasks that each wait for their answer."""

    keys: int
    tasks: int

    def __str__(self) -> str:
        return f"{self.keys} key{'s' * (self.keys > 1)} a call, {self.tasks} caller{'s' * (self.tasks > 1)}"


CALLS = (Calls(1, 64), Calls(8, 1), Calls(64, 1))


@dataclass(frozen=True, slots=True)
class Lists:
    """What is looked up: lists of one release in one server."""

    server: RedisServer
    release: ReleaseId
    users: int
    lookups: int

    def ours(self, calls: Calls) -> Sample:
        """Look up by the store."""

        async def run() -> Sample:
            store = open_url(self.server.url(PREFIX))
            try:
                return await timed(partial(store.get_many, self.release), calls, self.batches("", calls.keys))
            finally:
                await store.close()

        return uvloop.run(run())

    def by_redis_py(self, calls: Calls) -> Sample:
        """Look up by redis-py, which has a connection for each caller."""

        async def run() -> Sample:
            async with Redis(port=self.server.port) as client:
                return await timed(client.mget, calls, self.batches(Keys(PREFIX).head(self.release), calls.keys))

        return uvloop.run(run())

    def batches(self, head: str, size: int) -> list[list[str]]:
        """Draw the keys, and put them together as they are asked for."""
        drawn = random.choices(range(self.users), k=max(self.lookups, size))  # noqa: S311 -- spreads reads, guards nothing
        keys = [head + key_of(user) for user in drawn]
        return [keys[start : start + size] for start in range(0, len(keys) - size + 1, size)]


async def timed(many: Many, calls: Calls, batches: Sequence[Sequence[str]]) -> Sample:
    """Ask for all batches, and return what that took; RuntimeError where a list is not found."""
    async with asyncio.TaskGroup() as warming:
        for _ in range(calls.tasks):
            warming.create_task(_ask(many, iter(batches[:1])))
    rest = iter(batches)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(calls.tasks):
            group.create_task(_ask(many, rest))
    lookups = len(batches) * calls.keys
    return Sample(lookups / (time.perf_counter() - wall_s), (time.process_time() - cpu_s) * 1e6 / lookups)


def measure(effort: Effort) -> list[Outcome]:
    """Look a twentieth of the effort's users up, out of twice as many, by the store and by redis-py in turn."""
    if skipped := missing("redis_lookups"):
        return skipped
    shape = Shape(max(effort.users // 10, 1), LIST_LENGTH)
    with redis_serving() as server, on_core(0):
        release = fill(server.url(PREFIX), shape, shape.drawn(), "json").release
        lists = Lists(server, release, shape.users, effort.users // 20)
        variants = {
            f"{name} {calls}": partial(by, calls)
            for calls in CALLS
            for name, by in (("ours", lists.ours), ("theirs", lists.by_redis_py))
        }
        taken = interleave(variants, effort.rounds)
    return [figure for calls in CALLS for figure in beside(calls, taken[f"ours {calls}"], taken[f"theirs {calls}"])]


def beside(calls: Calls, ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[Figure]:
    """Tell of both, and compare their CPU."""
    what = f"redis:// lookups, {calls}"
    return [
        *figures(f"{what}, the store", ours, each="key"),
        *figures(f"{what}, redis-py's mget", theirs, each="key"),
        ratio(
            f"{what}, the store / redis-py: CPU",
            [one.cpu_us_per_op for one in ours],
            [one.cpu_us_per_op for one in theirs],
        ),
    ]


async def _ask(many: Many, batches: Iterator[Sequence[str]]) -> None:
    for batch in batches:
        if not all(isinstance(value, bytes) for value in await many(batch)):
            raise RuntimeError(f"a list is missing among {batch}")
