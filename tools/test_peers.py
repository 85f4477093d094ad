"""hotplate compared in alternating rounds with its peers.

By wrk: nginx with one answer, with files, and with Lua and Redis, webdis, aiohttp. By CPU: polars with LMDB.
"""

import shutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from redis import Redis

from hotplate.bench.lists import Shape, key_of
from hotplate.bench.process import RedisServer, Server
from hotplate.serve.access.keys import READ, create
from hotplate.stores.encoding import OFFSET_BYTES, USER
from tools.bare import COPIED, LENGTH, ROUTE, fetch
from tools.conftest import (
    HOTPLATE,
    TIMES,
    Benchmark,
    FilledStore,
    Saturation,
    aiohttp_of,
    executable,
    must_be_alike,
    nginx_of,
    nginx_with_files,
    nginx_with_lua,
    random_gets,
    run_command,
    saturate,
    service_of,
    webdis_of,
)

ROUNDS = 5
IMPORTS = 3
# Of fewer lists, most of the CPU is that of the start.
LEAST_IMPORTED = 20_000
ITEMS = 20_000
# Answers that nginx has as files.
STATIC_FILES = 10_000
BARE = (HOTPLATE[0], "-m", "tools.bare")
PLAIN = "plain:"
pytestmark = pytest.mark.benchmark(group="peers")


class LoadedServer(NamedTuple):
    """A server, the requests that load it, and its name in the figures."""

    name: str
    server: Server
    requests: bytes

    def saturate(self) -> Saturation:
        """Load the server fully; return its rate and CPU time."""
        return saturate(self.server, self.requests)


def compare(benchmark: Benchmark, ours: LoadedServer, peer: LoadedServer) -> None:
    """Load our service and a peer, another server, in turn, and store the ratios of their CPU time and of their rates.

    The CPU time of our service in µs per request is stored, too.
    """
    cpu_us = list[float]()
    cpu_ratios = list[float]()
    rate_ratios = list[float]()

    def round_of_both() -> None:
        own = ours.saturate()
        other = peer.saturate()
        cpu_us.append(own.cpu_us)
        cpu_ratios.append(own.cpu_us / other.cpu_us)
        rate_ratios.append(own.rate / other.rate)

    # Warm both up.
    ours.saturate()
    peer.saturate()

    benchmark.pedantic(round_of_both, rounds=ROUNDS)
    benchmark.extra_info["figures"] = [
        [f"{ours.name}: requests/s and core", "/s", [1e6 / used_us for used_us in cpu_us]],
        ["the same: CPU", "µs", cpu_us],
        [f"the same: CPU against {peer.name}", TIMES, cpu_ratios],
        [f"the same: rate against {peer.name}", TIMES, rate_ratios],
    ]
    assert max(rate_ratios) > 0


def ids(users: int) -> list[str]:
    """Return the ids of the first *users* users, as in the stores' lists."""
    return [key_of(user).removeprefix(USER) for user in range(users)]


class KeyedService(NamedTuple):
    """A service that checks API keys, and the headers of a client with one."""

    server: Server
    headers: Mapping[str, str]


@pytest.fixture
def keyed_service(files: FilledStore, tmp_path: Path) -> Iterator[KeyedService]:
    """Serve the store in files to clients with an API key and to anonymous ones, if there is nginx to compare with."""
    executable("nginx")
    key_file = tmp_path / "keys.json"
    key = create(key_file, "shop", [READ]).key
    headers = {"Accept": "application/json", "User-Agent": "shop/1.0", "X-API-Key": key}
    with service_of(files.url, "--keys", str(key_file), "--anonymous") as server:
        yield KeyedService(server, headers)


def test_get_and_nginx(benchmark: Benchmark, files: FilledStore, keyed_service: KeyedService) -> None:
    """A GET with a key is compared with nginx that always has the same answer in its configuration."""
    requests = random_gets(ROUTE + "{user}", ids(files.shape.users), keyed_service.headers)
    url = keyed_service.server.url + ROUTE + COPIED[0]
    body, headers = fetch(url)
    with nginx_of(body, headers) as nginx:
        must_be_alike(url, nginx.url)
        name = f"a GET with a key among {files.shape.users:,} users in files"
        compare(
            benchmark,
            LoadedServer(name, keyed_service.server, requests),
            LoadedServer("nginx `return 200`", nginx, requests),
        )


def test_get_and_nginx_with_files(benchmark: Benchmark, files: FilledStore, keyed_service: KeyedService) -> None:
    """A GET with a key is compared with nginx that has the answer of each user as a static file."""
    users = ids(files.shape.users)[:STATIC_FILES]
    requests = random_gets(ROUTE + "{user}", users, keyed_service.headers)
    url = keyed_service.server.url + ROUTE
    bodies = {user: fetch(url + user)[0] for user in users}

    # Names and values of headers are the same for all users.
    _, headers = fetch(url + users[0])
    with nginx_with_files(bodies, headers) as nginx:
        compare(
            benchmark,
            LoadedServer(f"a GET with a key of {len(users):,} users in files", keyed_service.server, requests),
            LoadedServer("nginx with the same answers as files", nginx, requests),
        )


def test_get_and_plain_aiohttp(benchmark: Benchmark, files: FilledStore) -> None:
    """A GET is compared with a route of aiohttp that looks up finished responses in a dict."""
    requests = random_gets(ROUTE + "{user}", COPIED)
    with service_of(files.url) as service, aiohttp_of(service) as peer:
        must_be_alike(service.url + ROUTE + COPIED[0], peer.url + ROUTE + COPIED[0])
        compare(
            benchmark,
            LoadedServer("a GET among 1,000 users in files", service, requests),
            LoadedServer("one route of aiohttp over a dict", peer, requests),
        )


@pytest.fixture
def plain_prefix(redis: FilledStore, redis_server: RedisServer, values: list[bytes]) -> str:
    """Store the lists as plain values of Redis, for its other clients; return the prefix of their keys."""
    with Redis(port=redis_server.port) as client:
        for batch in redis.shape.batches(values):
            client.mset({PLAIN + row.key: row.value[OFFSET_BYTES:] for row in batch})
    return PLAIN + USER


def test_get_from_redis_and_webdis(
    benchmark: Benchmark, redis: FilledStore, redis_server: RedisServer, plain_prefix: str
) -> None:
    """A GET from Redis is compared with webdis, which answers with the plain value."""
    executable("webdis")
    users = ids(redis.shape.users)
    # Both answer with the whole list; .txt is the value itself, without JSON around it.
    requests = random_gets(f"{ROUTE}{{user}}?n={redis.shape.items}", users)
    webdis_requests = random_gets(f"/GET/{plain_prefix}{{user}}.txt", users)
    with service_of(redis.url) as service, webdis_of(redis_server) as webdis:
        compare(
            benchmark,
            LoadedServer(f"a GET among {redis.shape.users:,} users in Redis", service, requests),
            LoadedServer("webdis on one thread", webdis, webdis_requests),
        )


def test_get_from_redis_and_nginx_with_lua(
    benchmark: Benchmark, redis: FilledStore, redis_server: RedisServer, plain_prefix: str
) -> None:
    """A GET from Redis is compared with nginx whose Lua code reads the plain value."""
    executable("nginx")
    users = ids(redis.shape.users)
    requests = random_gets(f"{ROUTE}{{user}}?n={redis.shape.items}", users)
    nginx_requests = random_gets(ROUTE + "{user}", users)
    with service_of(redis.url) as service:
        _, headers = fetch(service.url + ROUTE + users[0])
        with nginx_with_lua(redis_server, plain_prefix, headers, users[0]) as nginx:
            compare(
                benchmark,
                LoadedServer(f"the same GET among {redis.shape.users:,} users in Redis", service, requests),
                LoadedServer("nginx with Lua and Redis", nginx, nginx_requests),
            )


def write_lists(path: Path, users: int) -> None:
    """Write a CSV file of user, item and score, in random order: LENGTH different items for each user."""
    draw = np.random.default_rng(0)
    first_items = draw.integers(0, ITEMS, users)
    scores = draw.random(users * LENGTH).round(4)

    # Squares of ranks differ by less than ITEMS, so that no user has an item twice.
    user, rank = np.divmod(draw.permutation(users * LENGTH), LENGTH)
    item = (first_items[user] + rank**2) % ITEMS

    rows = pl.DataFrame({"user": user, "item": item, "score": scores})
    user_ids = pl.col("user").cast(pl.String).str.zfill(8)
    rows.with_columns(user=user_ids, item=pl.format("sku{}", "item")).write_csv(path)


def test_import_and_polars_with_lmdb(benchmark: Benchmark, shape: Shape, tmp_path: Path) -> None:
    """An import takes less than five times the CPU of polars and LMDB without checks."""
    lists = tmp_path / "lists.csv"
    store = tmp_path / "store"
    bare = tmp_path / "bare.mdb"
    users = max(shape.users, LEAST_IMPORTED)
    write_lists(lists, users)
    cpu_ratios = list[float]()
    memory_mb = list[float]()
    bare_memory_mb = list[float]()

    def round_of_both() -> None:
        shutil.rmtree(store, ignore_errors=True)
        bare.unlink(missing_ok=True)
        ours = run_command(*HOTPLATE, "import", str(lists), "--store", f"file://{store}")
        peer = run_command(*BARE, "import", str(lists), str(bare))
        cpu_ratios.append(ours.cpu_s / peer.cpu_s)
        memory_mb.append(ours.memory_mb)
        bare_memory_mb.append(peer.memory_mb)

    benchmark.pedantic(round_of_both, rounds=IMPORTS)
    benchmark.extra_info["figures"] = [
        [f"importing {users * LENGTH:,} rows of CSV: CPU against polars and LMDB alone", TIMES, cpu_ratios],
        ["the same: memory", "MB", memory_mb],
        ["polars and LMDB alone: memory", "MB", bare_memory_mb],
    ]
    assert statistics.median(cpu_ratios) < 5
