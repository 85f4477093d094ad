"""The hot path, a GET of one user's list on one core, beside servers in C: what it costs, and what makes its tail.

nginx gives the bytes of one of the service's own responses to every request, and webdis reads the same values out of
the same redis-server. All of them are saturated by wrk where it is installed, because it can keep even nginx busy, and
else by our own generator; latencies are of our own, in an open loop at half of what the service can take.
"""

import json
import random
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from redis import Redis

from bench.lists import Shape, key_of
from bench.loadgen.keys import Keys, Uniform
from bench.loadgen.load import Gets, Load
from bench.loadgen.result import Spread, spread
from bench.loadgen.schedule import constant
from bench.micro import http_peer
from bench.micro.c_peers import missing, nginx_serving, run_wrk, webdis_serving
from bench.micro.http_peer import fetch, must_be_alike, peer_serving
from bench.micro.publishing import publish_to
from bench.micro.rounds import (
    ROUTE,
    Effort,
    Figure,
    Outcome,
    Sample,
    Unmeasured,
    at_least,
    at_most,
    figures,
    hotplate_serving,
    interleave,
    path_of,
    ratio,
    ratios,
    run_at,
)
from bench.process import (
    REDIS_MISSING,
    Channel,
    RedisServer,
    Server,
    on_core,
    read_metrics,
    receive,
    redis_installed,
    redis_serving,
    start_worker,
    stop_process,
)
from serve.access.keys import READ, create
from stores.encoding import OFFSET_BYTES
from stores.keys import USER

LIST_LENGTH = 20
# How many of all users are requested: more lists than the processor's cache holds.
REQUESTED = 50_000
# So many sets of the headers that change are made once, and sent in turn.
CHANGES = 4_096
CONNECTIONS = 64
# What the figures should be; "of nginx" is of a `return 200` with the same headers and body.
RATE_OF_NGINX, CPU_OF_NGINX, RATE_OF_AIOHTTP, RATE_OF_WEBDIS = 0.75, 1.4, 3, 1.3
P99_OF_NGINX, FLIP_P999, TWO_WORKERS_CPU, WORKER_MB = 1.25, 2, 1.1, 60
# What two generators may find apart for one case.
AGREEMENT = 0.1
# A flip needs some time to be seen, for the release is read into memory first.
FLIP_S = 3.0
# How long an open loop runs before it counts: the first of the seconds that a result has.
WARMUP_S = 1.0
# So that a wait is measured, however long, and no request is dropped or given up for it.
ANY_BACKLOG, ANY_WAIT_S = 10_000_000, 60.0
OTHERS_S = 5.0
PLAIN = "plain:"
LOADS = SAME, CHANGING = "the same headers", "changing headers"
OURS = "by hotplate bench"

# Saturates a server by a load.
Saturate = Callable[[Server, Load], Sample]


@dataclass(frozen=True, slots=True)
class Pace:
    """One round of an open loop: latencies from when a request was due, and how late the generator sent it."""

    sample: Sample
    latency: Spread
    lag: Spread


class RedisSample(NamedTuple):
    """What a server before Redis did in one round, and redis-server's CPU of a request."""

    sample: Sample
    redis_cpu_us: float


def measure(effort: Effort) -> list[Outcome]:
    """Measure the service with its lists in a file, then with its lists in Redis."""
    return [*measure_files(effort), *measure_redis(effort)]


def measure_files(effort: Effort) -> list[Outcome]:
    """Publish two releases of all users, and serve them on the first core, beside nginx and the plainest aiohttp."""
    shape = Shape(effort.users, LIST_LENGTH)
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        store, keys = f"file://{made}/store", Path(made) / "keys.json"
        releases = [publish_to(store, shape, shape.values()).release.id for _ in range(2)]
        key = create(keys, "shop", [READ]).key
        loads = loads_of(effort, {"Accept": "application/json", "User-Agent": "shop/1.0", "X-API-Key": key})
        options = ("--keys", str(keys), "--anonymous", "--admin-store", store)
        service = stack.enter_context(hotplate_serving(store, *options))
        servers = {"hotplate": service, "aiohttp": stack.enter_context(peer_serving(service))}
        if missing("nginx") is None:
            servers["nginx"] = stack.enter_context(nginx_serving(*fetch(service.url + path_of(0))))
            must_be_alike(service.url + path_of(0), servers["nginx"].url)
        with on_core(1):
            taken = saturated(servers, loads, effort)
            outcomes = [*saturated_figures(taken)]
            rate = median(one.rate_per_s for one in taken[f"hotplate, {CHANGING}"]) / 2
            outcomes += paced(servers, loads[CHANGING], rate, effort)
            outcomes += flipped(service, loads[CHANGING], rate, releases, effort)
            pair = stack.enter_context(
                hotplate_serving(store, *options, workers=2)
            )  # now, as it would follow flips, too
            outcomes += two_workers(service, pair, loads[CHANGING], effort)
        added_mb = (pair.memory_bytes() - service.memory_bytes()) / 1e6
    name = f"memory that a second worker adds, {effort.users:,} users"
    return [*outcomes, Figure(name, "MB", [added_mb], at_most(WORKER_MB))]


def loads_of(effort: Effort, headers: Mapping[str, str]) -> dict[str, Load]:
    """Return closed loops of GETs for random users: with the same headers each time, and as behind a proxy."""
    rng = random.Random(0)  # noqa: S311 -- spreads reads, guards nothing
    users = [rng.randrange(effort.users) for _ in range(min(REQUESTED, effort.users))]
    gets = Gets(ROUTE + "{key}", Keys([key_of(user).removeprefix(USER) for user in users], Uniform()))
    changing = [
        {
            "X-Forwarded-For": ".".join(str(rng.randrange(256)) for _ in range(4)),
            "traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01",
        }
        for _ in range(CHANGES)
    ]
    load = Load(
        url="http://127.0.0.1",
        requests=gets,
        duration_s=effort.round_s,
        connections=CONNECTIONS,
        headers=headers,
    )
    return {SAME: load, CHANGING: replace(load, requests=replace(gets, varying=changing))}


# As much as a core can serve


def saturated(servers: Mapping[str, Server], loads: Mapping[str, Load], effort: Effort) -> dict[str, list[Sample]]:
    """Saturate the service and its peers in turn, by each load; and once more by our own generator."""
    # The plainest aiohttp has few lists; to it all requests are the same.
    few = Keys([key_of(user).removeprefix(USER) for user in range(http_peer.SERVED.users)], Uniform())
    variants: dict[str, Callable[[], Sample]] = {}
    for what, load in loads.items():
        for name, server in servers.items():
            sent = with_keys(load, few) if name == "aiohttp" else load
            variants[f"{name}, {what}"] = partial(saturator(), server, sent)
    if missing("wrk") is None:
        variants[OURS] = partial(by_generator, servers["hotplate"], loads[SAME])
    return interleave(variants, effort.rounds)


def with_keys(load: Load, keys: Keys) -> Load:
    """Let a load of GETs draw its users from others."""
    return replace(load, requests=replace(gets_of(load), keys=keys))


def gets_of(load: Load) -> Gets:
    """Return what a load of `loads_of` requests."""
    if not isinstance(load.requests, Gets):
        raise TypeError(f"{load.requests} is no GET of a user's list")
    return load.requests


def saturated_figures(taken: Mapping[str, Sequence[Sample]]) -> Iterator[Outcome]:
    """Name the figures of each load, and how near the two generators are."""
    for what in LOADS:
        yield from beside_peers(
            what, {name.partition(",")[0]: samples for name, samples in taken.items() if name.endswith(f", {what}")}
        )
    yield from agreement(taken[f"hotplate, {SAME}"], taken.get(OURS))


def beside_peers(what: str, taken: Mapping[str, Sequence[Sample]]) -> Iterator[Outcome]:
    """Name the figures of each server, and of the service beside its peers."""
    for name, samples in taken.items():
        yield from figures(f"hot path, {what}, {name}", samples, each="request")
    if "nginx" in taken:
        rate, cpu = ratios(f"hot path, {what}, hotplate / nginx", taken["hotplate"], taken["nginx"])
        yield replace(rate, goal=at_least(RATE_OF_NGINX))
        yield replace(cpu, goal=at_most(CPU_OF_NGINX))
    else:
        yield Unmeasured(f"hot path, {what}, hotplate / nginx", missing("nginx") or "")
    name = f"hot path, {what}, hotplate / aiohttp"
    yield from ratios(name, taken["hotplate"], taken["aiohttp"], rate_goal=at_least(RATE_OF_AIOHTTP))


def agreement(by_wrk: Sequence[Sample], by_ours: Sequence[Sample] | None) -> Iterator[Outcome]:
    """Compare what the two generators find of one service."""
    name = "hot path, found by hotplate bench / by wrk"
    if by_ours is None:
        yield Unmeasured(name, missing("wrk") or "")
        return
    rate, cpu = ratios(name, by_ours, by_wrk)
    for figure in (rate, cpu):
        yield replace(figure, goal=at_least(1 - AGREEMENT))
        yield replace(figure, name=f"{figure.name}, not more", goal=at_most(1 + AGREEMENT))


def saturator() -> Saturate:
    """Choose what saturates: wrk costs less than our generator."""
    return by_generator if missing("wrk") else by_wrk


def by_generator(server: Server, load: Load) -> Sample:
    """Saturate a server by our own generator."""
    return run_at(server, replace(load, url=server.url))[1]


def by_wrk(server: Server, load: Load) -> Sample:
    """Saturate a server by wrk, which sends the first of the load's requests over and over."""
    requests = list(islice(replace(load, url=server.url).rendered(), REQUESTED))
    before_s = server.cpu_s()
    count, duration_s = run_wrk(server.url, requests, load.duration_s)
    return Sample(count / duration_s, (server.cpu_s() - before_s) * 1e6 / count)


# Latencies at half of that


def at_rate(server: Server, load: Load, rate: float) -> Pace:
    """Request at a rate, as independent users come; whatever the server does, all that is due waits to be sent.

    The first second is left out, in which each connection sends its first request: that costs more than all others.
    """
    duration_s = load.duration_s + WARMUP_S
    load = replace(load, url=server.url, duration_s=duration_s, spin=True, backlog=ANY_BACKLOG, timeout_s=ANY_WAIT_S)
    result, sample = run_at(server, replace(load, arrivals=constant(rate, load.duration_s, seed=1)))
    first, *others = result.seconds
    latency = spread(np.concatenate([second.latencies_s for second in others])) if others else None
    lag = spread(result.lags_s[first.due :])
    if latency is None or lag is None:
        raise RuntimeError(f"{server.url} answered nothing after the first second")
    return Pace(sample, latency, lag)


def paced(servers: Mapping[str, Server], load: Load, rate: float, effort: Effort) -> Iterator[Outcome]:
    """Compare the latencies of the service with those of nginx at the same rate."""
    what = "hot path at half of its capacity"
    variants = {name: partial(at_rate, servers[name], load, rate) for name in ("hotplate", "nginx") if name in servers}
    taken = interleave(variants, effort.rounds)
    for name, paces in taken.items():
        yield from pace_figures(f"{what}, {name}", paces)
    name = f"{what}, p99: hotplate / nginx"
    if "nginx" in taken:
        ours, theirs = ([one.latency.p99 for one in taken[server]] for server in ("hotplate", "nginx"))
        yield ratio(name, ours, theirs, goal=at_most(P99_OF_NGINX))
    else:
        yield Unmeasured(name, missing("nginx") or "")


def pace_figures(what: str, paces: Sequence[Pace]) -> Iterator[Figure]:
    """Name the figures of an open loop, with how late the generator was, which is a part of them."""
    yield from figures(what, [one.sample for one in paces], each="request")
    for name, field in {"p50": "p50", "p99": "p99", "p99.9": "p999"}.items():
        yield Figure(f"{what}: {name}", "µs", [getattr(one.latency, field) for one in paces])
    for name, field in {"p99": "p99", "p99.9": "p999"}.items():
        yield Figure(f"{what}: lag of the generator, {name}", "µs", [getattr(one.lag, field) for one in paces])


def flipped(service: Server, load: Load, rate: float, releases: Sequence[str], effort: Effort) -> Iterator[Outcome]:
    """Compare the latencies of rounds in which another release goes live with those of quiet ones."""
    load = replace(load, duration_s=max(FLIP_S, effort.round_s))
    others = list(releases)
    with flipper() as flip:

        def with_flip() -> Pace:
            others.reverse()  # the one that is live was published last
            flip.send((WARMUP_S + load.duration_s / 4, f"{service.admin_url}/v1/releases/{others[-1]}/activate"))
            pace = at_rate(service, load, rate)
            receive(flip, "what activates releases ended")
            if (serves := released(service)) != others[-1]:
                raise RuntimeError(f"the service went on serving {serves} when {others[-1]} was activated")
            return pace

        quiet: Callable[[], Pace] = partial(at_rate, service, load, rate)
        taken = interleave({"no flip": quiet, "a flip": with_flip}, effort.rounds)
    for name, paces in taken.items():
        yield from pace_figures(f"hot path at half of its capacity, {load.duration_s:g} s with {name}", paces)
    without, with_ = ([one.latency.p999 for one in paces] for paces in taken.values())
    yield ratio(
        "hot path at half of its capacity, p99.9: with a flip / without", with_, without, goal=at_most(FLIP_P999)
    )


def released(service: Server) -> str:
    """Return the release that is served."""
    return str(json.loads(fetch(service.url + path_of(0))[0])["release"])


@contextmanager
def flipper() -> Iterator[Channel]:
    """Run a process that activates releases, so that the generator need not stop for that."""
    process, channel = start_worker(f"{__name__}:flip_when_told")
    try:
        yield channel
    finally:
        channel.close()
        stop_process(process)


def flip_when_told(channel: Channel) -> None:
    """Wait so many seconds and POST to the URL that come over the channel, until it is closed."""
    while True:
        try:
            pause_s, url = channel.recv()
        except EOFError:
            return
        time.sleep(pause_s)
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="POST")).close()  # noqa: S310 -- http on loopback
            channel.send(None)
        except OSError as error:
            channel.send(RuntimeError(f"{url}: {error}"))


# Workers


def two_workers(one: Server, two: Server, load: Load, effort: Effort) -> Iterator[Outcome]:
    """Compare a service of two workers with that of one, both on one core, as the generator needs the other.

    So each worker has the processor's cache for half of the time; what it takes more for that is in the figure.
    """
    saturate = saturator()
    variants = {"one": partial(saturate, one, load), "two": partial(saturate, two, load)}
    alone, together = interleave(variants, effort.rounds).values()
    yield from figures("hot path, two workers on one core", together, each="request")
    cpu = ratios("hot path, two workers on one core / one", together, alone)[1]
    yield replace(cpu, goal=at_most(TWO_WORKERS_CPU))
    shares = [balance(two) for _ in range(effort.rounds)]
    yield Figure(f"hot path, {CONNECTIONS} connections to two workers: most / fewest", "ratio", shares)


def balance(service: Server) -> float:
    """Open connections, and divide the number of the worker that has most by that of the other."""
    address = urlsplit(service.url)
    until = time.monotonic() + OTHERS_S
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connected = socket.create_connection((address.hostname, address.port))
            stack.enter_context(closing(connected))
        while True:
            counts = read_metrics(service.admin_url + "/metrics", "hotplate_worker_connections")
            if sum(counts) == CONNECTIONS:
                return max(counts) / max(min(counts), 1)
            if time.monotonic() > until:
                raise RuntimeError(f"{service.url} has {counts} connections, and {CONNECTIONS} were opened")
            time.sleep(0.1)  # workers report once a second


# Redis


def measure_redis(effort: Effort) -> list[Outcome]:
    """Serve a tenth of the users out of Redis, beside webdis on the same server, which has the generator's core."""
    name = "hot path, redis://, hotplate / webdis"
    reason = missing("webdis") if redis_installed() else REDIS_MISSING
    if reason:
        return [Unmeasured(name, reason)]
    shape = Shape(max(effort.users // 10, 1), LIST_LENGTH)
    shared = shape.values()
    with redis_serving() as redis, ExitStack() as stack:
        publish_to(redis.url(), shape, shared)
        with Redis(port=redis.port) as client:
            for rows in shape.batches(shared):
                client.mset({PLAIN + row.key: row.value[OFFSET_BYTES:] for row in rows})
        service = stack.enter_context(hotplate_serving(redis.url()))
        webdis = stack.enter_context(webdis_serving(redis))
        load = loads_of(replace(effort, users=shape.users), {"Accept": "application/json"})[SAME]
        to_webdis = replace(load, requests=replace(gets_of(load), path=f"/GET/{PLAIN}{USER}{{key}}"))
        variants = {
            "hotplate": partial(beside_redis, redis, service, load),
            "webdis": partial(beside_redis, redis, webdis, to_webdis),
        }
        with on_core(1):
            taken = interleave(variants, effort.rounds)
    samples = {name: [one.sample for one in found] for name, found in taken.items()}
    result = list[Outcome]()
    for server, found in taken.items():
        result += figures(f"hot path, redis://, {server}", samples[server], each="request")
        cpu_us = [one.redis_cpu_us for one in found]
        result.append(Figure(f"hot path, redis://, {server}: CPU of redis-server", "µs/request", cpu_us))
    return [*result, *ratios(name, samples["hotplate"], samples["webdis"], rate_goal=at_least(RATE_OF_WEBDIS))]


def beside_redis(redis: RedisServer, server: Server, load: Load) -> RedisSample:
    """Saturate a server, and count what redis-server takes meanwhile."""
    redis_s, server_s = redis.cpu_s(), server.cpu_s()
    sample = saturator()(server, load)
    beside = (redis.cpu_s() - redis_s) / (server.cpu_s() - server_s)
    return RedisSample(sample, beside * sample.cpu_us_per_op)
