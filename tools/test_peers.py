"""hotplate compared in alternating rounds with its peers.

They are nginx with one answer, with files, and with Lua and Redis, loaded by wrk.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis

from hotplate.bench.measure.lists import key_of
from hotplate.bench.process import RedisServer, Server
from hotplate.serve.access.keys import READ, create
from hotplate.stores.encoding import OFFSET_BYTES, USER
from tools.conftest import (
    FIRST_USER,
    ROUTE,
    TIMES,
    Benchmark,
    FilledStore,
    Saturation,
    executable,
    fetch,
    must_be_alike,
    nginx_of,
    nginx_with_files,
    nginx_with_lua,
    random_gets,
    saturate,
    service_of,
)

ROUNDS = 5
# Answers that nginx has as files.
STATIC_FILES = 10_000
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
    url = keyed_service.server.url + ROUTE + FIRST_USER
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


@pytest.fixture
def plain_prefix(redis: FilledStore, redis_server: RedisServer, values: list[bytes]) -> str:
    """Store the lists as plain values of Redis, for its other clients; return the prefix of their keys."""
    with Redis(port=redis_server.port) as client:
        for batch in redis.shape.batches(values):
            client.mset({PLAIN + row.key: row.value[OFFSET_BYTES:] for row in batch})
    return PLAIN + USER


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
                LoadedServer(f"a GET among {redis.shape.users:,} users in Redis", service, requests),
                LoadedServer("nginx with Lua and Redis", nginx, nginx_requests),
            )
