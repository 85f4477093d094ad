"""Figures of the service over Redis: beside itself over `file://` with the same release, and beside webdis."""

import asyncio
import json
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.lists import Shape, key_of
from bench.micro import redis_lists, webdis
from bench.micro.redis_missing import missing
from bench.micro.redis_reads import Reads, drawn, hotplate, path_of, read
from bench.micro.rounds import Effort, Figure, Outcome, Unmeasured, at_most, figures, interleave, ratio
from bench.process import RedisServer, Server, free_port, on_core, redis_serving, serving
from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.redis.keys import Keys
from stores.transfer import copy

RATE = 5_000
"""Requests/s of the open loop; about a quarter of what the slowest can take."""

CPU_US_MORE = 10
WEBDIS = "webdis"


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what it is asked for."""

    server: Server
    paths: Sequence[str]


def measure(effort: Effort) -> list[Outcome]:
    """Serve a tenth of the effort's users out of files and out of Redis, all servers on one core, in turn."""
    if skipped := missing("redis_service"):
        return skipped
    shape = Shape(max(effort.users // 10, 1), redis_lists.LIST_LENGTH)
    shared, users = shape.drawn(), drawn(shape.users)
    with tempfile.TemporaryDirectory() as made, redis_serving() as redis, ExitStack() as stack:
        folder, targets = Path(made), dict[str, Target]()
        for encoding in redis_lists.ENCODINGS:
            local, remote = f"file://{folder / encoding}", redis.url(encoding)
            release = redis_lists.fill(local, shape, shared, encoding).release
            asyncio.run(copy_over(local, remote, release))
            paths = [path_of(user) for user in users]
            for name, store in (("file://", local), ("redis://", remote)):
                targets[f"{name} {encoding}"] = Target(stack.enter_context(hotplate(store)), paths)
            if encoding == "json" and webdis.installed():
                keys = [Keys(encoding).head(release) + key_of(user) for user in users]
                targets[WEBDIS] = beside(stack, folder, redis, keys)
        must_agree(targets, shared[users[0] % len(shared)])
        with on_core(1):
            taken = take_turns(targets, redis, effort)
    return [*outcomes(taken), *([] if WEBDIS in targets else [Unmeasured(f"GET/s beside {WEBDIS}", webdis.MISSING)])]


async def copy_over(source_url: str, target_url: str, release: ReleaseId) -> None:
    """Copy a release, so that both stores hold the same bytes under the same id."""
    source, target = connect(source_url), connect(target_url)
    try:
        await copy(source, target, release)
    finally:
        await source.close()
        await target.close()


def beside(stack: ExitStack, folder: Path, redis: RedisServer, keys: Sequence[str]) -> Target:
    """Start webdis on the services' core, to be asked for the very values that they read."""
    port, paths = free_port(), [webdis.path_of(key) for key in keys]
    command = webdis.command(folder, port, redis.port)
    return Target(stack.enter_context(serving(command, port, paths[0])), paths)


def must_agree(targets: Mapping[str, Target], value: bytes) -> None:
    """Raise RuntimeError unless each target gives *value*, or of the service its first items, for its first path."""
    items = json.loads(b"[%b]" % value)
    for name, target in targets.items():
        with urllib.request.urlopen(target.server.url + target.paths[0]) as answer:  # noqa: S310 -- http on loopback
            body: bytes = answer.read()
        if (
            body != value
            if name == WEBDIS
            else not (given := json.loads(body)["items"]) or given != items[: len(given)]
        ):
            raise RuntimeError(f"{name} gives {body[:200]!r} for {target.paths[0]}")


def take_turns(
    targets: Mapping[str, Target], redis: RedisServer, effort: Effort
) -> dict[tuple[str, bool], list[Reads]]:
    """Read from each by turns, as fast as it can and at a rate that all can bear; the key says which of the two."""
    variants = {
        f"{name} {rate}": partial(read, target.server, redis, target.paths, rate, effort.round_s)
        for name, target in targets.items()
        for rate in (None, RATE)
    }
    taken = interleave(variants, effort.rounds)
    return {(name, rate is None): taken[f"{name} {rate}"] for name in targets for rate in (None, RATE)}


def outcomes(taken: Mapping[tuple[str, bool], Sequence[Reads]]) -> list[Outcome]:
    """Tell of each server, then hold Redis against files and against webdis."""
    found = list[Outcome]()
    for (name, closed), reads in taken.items():
        found += saturated(name, reads) if closed else steady(name, reads)
    for encoding in redis_lists.ENCODINGS:
        for closed in (True, False):
            found += beside_files(encoding, closed, taken)
        if (WEBDIS, True) in taken:
            found += beside_webdis(encoding, taken[f"redis:// {encoding}", True], taken[WEBDIS, True])
    return found


def saturated(name: str, reads: Sequence[Reads]) -> list[Figure]:
    """Tell of a server that got all that it could take."""
    what = f"GET on one core, {name}"
    return [*figures(what, [one.sample for one in reads], each="request"), *beyond(what, name, reads)]


def steady(name: str, reads: Sequence[Reads]) -> list[Figure]:
    """Tell of a server that was asked at RATE."""
    what = f"GET at {RATE:,}/s, {name}"
    return [
        Figure(f"{what}: CPU", "µs/request", [one.cpu_us for one in reads]),
        Figure(f"{what}: p50", "µs", [one.p50_us for one in reads]),
        Figure(f"{what}: p99", "µs", [one.p99_us for one in reads]),
        *beyond(what, name, reads),
    ]


def beyond(what: str, name: str, reads: Sequence[Reads]) -> list[Figure]:
    """Tell of what there is only with Redis: its CPU, and answers that it was too late for."""
    if name.startswith("file"):
        return []
    found = [Figure(f"{what}: CPU of redis-server", "µs/request", [one.redis_cpu_us for one in reads])]
    if any(one.popular for one in reads):
        found.append(Figure(f"{what}: answers from the popular list", "share", [one.popular for one in reads]))
    return found


def beside_files(encoding: str, closed: bool, taken: Mapping[tuple[str, bool], Sequence[Reads]]) -> list[Figure]:  # noqa: FBT001 -- half of the key
    """Hold Redis against files, round by round."""
    what = f"GET {'on one core' if closed else f'at {RATE:,}/s'}, {encoding}, redis://"
    near, far = taken[f"file:// {encoding}", closed], taken[f"redis:// {encoding}", closed]
    more = [there.cpu_us - here.cpu_us for there, here in zip(far, near, strict=True)]
    # At a rate that leaves little to batch, most requests pay for a round trip of their own: printed, not held.
    goal = at_most(CPU_US_MORE) if closed else None
    found = [Figure(f"{what} - file://: CPU", "µs/request", more, goal)]
    if closed:
        rates = [one.rate_per_s for one in far], [one.rate_per_s for one in near]
        found.append(ratio(f"{what} / file://: rate", *rates))
    return found


def beside_webdis(encoding: str, ours: Sequence[Reads], theirs: Sequence[Reads]) -> list[Figure]:
    """Hold the service against webdis, which gives the values of the `json` release, round by round."""
    what = f"GET on one core, redis:// {encoding} / {WEBDIS}"
    return [
        ratio(f"{what}: rate", [one.rate_per_s for one in ours], [one.rate_per_s for one in theirs]),
        ratio(f"{what}: CPU", [one.cpu_us for one in ours], [one.cpu_us for one in theirs]),
    ]
