"""Reads over HTTP with Redis behind them: what they take of the server and of Redis, and how long they last."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from bench.lists import key_of
from bench.loadgen.generator import run
from bench.loadgen.load import Load
from bench.micro.endpoint import HEADERS
from bench.micro.rounds import Sample
from bench.process import RedisServer, Server, free_port, serving
from stores.keys import USER

ROUTE = "/v1/recommendations/"
ASKED_FOR = 20_000
"""How many users are asked for, so that neither side has all it needs in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What one run came to; `popular` is the share of answers that were not the user's own list."""

    rate_per_s: float
    cpu_us: float
    redis_cpu_us: float
    p50_us: float
    p99_us: float
    popular: float

    @property
    def sample(self) -> Sample:
        """The rate and the server's CPU."""
        return Sample(self.rate_per_s, self.cpu_us)


@contextmanager
def hotplate(store: str, path: str | None = None) -> Iterator[Server]:
    """Serve the store at this URL with one worker on the first core; it runs once *path* is answered."""
    port = free_port()
    command = [sys.executable, "-m", "hotplate", "serve", "--store", store, "--port", str(port), "--workers", "1"]
    with serving(command, port, path or path_of(0)) as server:
        yield server


def path_of(user: int) -> str:
    """Return the path of a user's list."""
    return ROUTE + key_of(user).removeprefix(USER)


def drawn(users: int) -> Sequence[int]:
    """Draw the users that are asked for, in turn."""
    return random.Random(0).choices(range(users), k=min(users, ASKED_FOR))  # noqa: S311 -- spreads reads, guards nothing


def read(server: Server, redis: RedisServer, paths: Sequence[str], rate: float | None, duration_s: float) -> Reads:
    """Ask for *paths* at *rate* requests/s, None for all that the server can take; RuntimeError for one error."""
    before_s, redis_before_s = server.cpu_s(), redis.cpu_s()
    load = Load(url=server.url, paths=paths, rate=rate, duration_s=duration_s, headers=HEADERS, observe=("source",))
    result = run(load)
    if result.errors or not result.ok:
        raise RuntimeError(f"{server.url} gave {result.ok} answers and errors: {dict(result.errors)}")
    p50_s, p99_s = np.percentile(np.asarray(result.latencies_s), (50, 99))
    return Reads(
        rate_per_s=result.ok_rate,
        cpu_us=(server.cpu_s() - before_s) * 1e6 / result.ok,
        redis_cpu_us=(redis.cpu_s() - redis_before_s) * 1e6 / result.ok,
        p50_us=float(p50_s) * 1e6,
        p99_us=float(p99_s) * 1e6,
        popular=result.seen["source"].get("popular", 0) / result.ok,
    )
