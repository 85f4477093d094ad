"""The service over a Redis Cluster, beside itself over one server."""

import asyncio
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from bench.lists import Shape, key_of
from bench.loadgen.keys import Keys, Uniform
from bench.loadgen.load import Load, Posts
from bench.micro.publishing import publish_to
from bench.micro.redis import LIST_LENGTH, copy_release, must_serve, where_installed
from bench.micro.rounds import (
    HEADERS,
    Effort,
    Figure,
    Outcome,
    Sample,
    at_most,
    figures,
    hotplate_serving,
    interleave,
    path_of,
    ratio,
    run_at,
)
from bench.process import RedisServer, Server, on_core, redis_serving
from bench.redis_cluster import RedisCluster, redis_cluster_serving
from stores.encoding import OFFSET_BYTES
from stores.keys import USER

# How many users one POST is for.
BATCH = 100

# The CPU of the service for a request, beside one server: of a GET, and of a POST.
GET_GOAL, BATCH_GOAL = 1.3, 1.5


class Taken(NamedTuple):
    """One round: the service's own, the CPU of all servers for a request, and how many lists came too late."""

    sample: Sample
    servers_cpu_us: float
    popular: float
    """The share of responses that begin with a popular list, which cost less."""


@where_installed
def measure_cluster(effort: Effort) -> list[Outcome]:
    """Serve a tenth of the effort's users out of one server and out of three primaries, in turn: GETs, then batches."""
    shape = Shape(max(effort.users // 10, 1), LIST_LENGTH)
    shared = shape.drawn()
    with redis_serving() as single, redis_cluster_serving() as cluster, ExitStack() as stack:
        release = publish_to(single.url(), shape, shared).release
        asyncio.run(copy_release(single.url(), cluster.url(), release))
        services: dict[str, tuple[RedisServer | RedisCluster, Server]] = {
            "redis://": (single, stack.enter_context(hotplate_serving(single.url()))),
            "redis+cluster://": (cluster, stack.enter_context(hotplate_serving(cluster.url()))),
        }
        for _, service in services.values():
            must_serve(service.url + path_of(0), shared[0][OFFSET_BYTES:])
        keys = Keys([key_of(user).removeprefix(USER) for user in range(shape.users)], Uniform())
        loads = {
            "GET": partial(_gets, shape.users, effort.round_s),
            f"POST for {BATCH} users": partial(_posts, keys, effort.round_s),
        }
        variants = {
            f"{kind}, {name}": partial(_read, servers, service, load(service.url))
            for kind, load in loads.items()
            for name, (servers, service) in services.items()
        }
        with on_core(1):
            taken = interleave(variants, effort.rounds)
    outcomes = list[Outcome]()
    for kind, goal in zip(loads, (GET_GOAL, BATCH_GOAL), strict=True):
        one, many = taken[f"{kind}, redis://"], taken[f"{kind}, redis+cluster://"]
        for name, rounds in (("redis://", one), ("redis+cluster://", many)):
            what = f"{kind} on one core, {name}"
            outcomes += figures(what, [each.sample for each in rounds], each="request")
            outcomes.append(
                Figure(f"{what}: CPU of all servers", "µs/request", [each.servers_cpu_us for each in rounds])
            )
            if any(shares := [each.popular for each in rounds]):
                outcomes.append(Figure(f"{what}: popular list instead", "share", shares))
        cpus = [each.sample.cpu_us_per_op for each in many], [each.sample.cpu_us_per_op for each in one]
        outcomes.append(ratio(f"{kind}, redis+cluster:// / redis://: CPU", *cpus, goal=at_most(goal)))
    return outcomes


def _gets(users: int, duration_s: float, url: str) -> Load:
    return Load(
        url=url,
        paths=[path_of(user) for user in range(users)],
        duration_s=duration_s,
        headers=HEADERS,
        observe=("source",),
    )


def _posts(keys: Keys, duration_s: float, url: str) -> Load:
    return Load(
        url=url, requests=Posts(keys, BATCH), duration_s=duration_s, headers=HEADERS, connections=2, observe=("source",)
    )


def _read(servers: RedisServer | RedisCluster, service: Server, load: Load) -> Taken:
    before_s = servers.cpu_s()
    result, sample = run_at(service, load)
    popular = result.seen["source"].get("popular", 0) / result.ok
    return Taken(sample, (servers.cpu_s() - before_s) * 1e6 / result.ok, popular)
