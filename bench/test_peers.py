"""A GET of the service compared with nginx, webdis and a plain route of aiohttp, in alternating rounds, by wrk."""

from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from hotplate.bench.bare import COPIED, ROUTE, fetch
from hotplate.bench.conftest import (
    TIMES,
    Benchmark,
    Filled,
    aiohttp_of,
    executable,
    must_be_alike,
    nginx_of,
    random_gets,
    saturate,
    service_of,
    webdis_of,
)
from hotplate.bench.lists import key_of
from hotplate.bench.process import RedisServer
from hotplate.serve.access.keys import READ, create
from hotplate.stores.encoding import OFFSET_BYTES
from hotplate.stores.keys import USER

ROUNDS = 5
PLAIN = "plain:"
Saturated = Callable[[], tuple[float, float]]
pytestmark = pytest.mark.benchmark(group="peers")


def compare(benchmark: Benchmark, what: str, peer: str, ours: Saturated, theirs: Saturated) -> None:
    """Measure both in turn, and keep requests/s, CPU a request and the ratio of rates."""
    rates, cpu_us, ratios = list[float](), list[float](), list[float]()

    def round_of_both() -> None:
        (rate, cpu), (other, _) = ours(), theirs()
        rates.append(rate)
        cpu_us.append(cpu)
        ratios.append(rate / other)

    ours()
    theirs()
    benchmark.pedantic(round_of_both, rounds=ROUNDS)
    benchmark.extra_info["figures"] = [
        [f"{what}: requests/s and core", "/s", [1e6 / each for each in cpu_us]],
        ["the same: CPU", "µs", cpu_us],
        [f"the same: rate against {peer}", TIMES, ratios],
    ]
    assert max(ratios) > 0


def ids(users: int) -> list[str]:
    return [key_of(user).removeprefix(USER) for user in range(users)]


def test_get_and_nginx(benchmark: Benchmark, files: Filled, tmp_path: Path) -> None:
    executable("nginx")
    key = create(tmp_path / "keys.json", "shop", [READ]).key
    requests = random_gets(
        ROUTE + "{user}",
        ids(files.shape.users),
        {"Accept": "application/json", "User-Agent": "shop/1.0", "X-API-Key": key},
    )
    with service_of(files.url, "--keys", str(tmp_path / "keys.json"), "--anonymous") as service:
        url = service.url + ROUTE + COPIED[0]
        with nginx_of(*fetch(url)) as nginx:
            must_be_alike(url, nginx.url)
            what = f"a GET with a key among {files.shape.users:,} users in files"
            compare(
                benchmark, what, "nginx `return 200`", lambda: saturate(service, requests),
                lambda: saturate(nginx, requests),
            )  # fmt: skip


def test_get_and_plain_aiohttp(benchmark: Benchmark, files: Filled) -> None:
    requests = random_gets(ROUTE + "{user}", COPIED)
    with service_of(files.url) as service, aiohttp_of(service) as peer:
        must_be_alike(service.url + ROUTE + COPIED[0], peer.url + ROUTE + COPIED[0])
        what = "a GET among 1,000 users in files"
        compare(
            benchmark, what, "one route of aiohttp over a dict", lambda: saturate(service, requests),
            lambda: saturate(peer, requests),
        )  # fmt: skip


def test_get_from_redis_and_webdis(
    benchmark: Benchmark, redis: Filled, redis_server: RedisServer, values: list[bytes]
) -> None:
    executable("webdis")
    with Redis(port=redis_server.port) as client:
        for batch in redis.shape.batches(values):
            client.mset({PLAIN + row.key: row.value[OFFSET_BYTES:] for row in batch})
    users = ids(redis.shape.users)
    ours, theirs = random_gets(ROUTE + "{user}", users), random_gets(f"/GET/{PLAIN}{USER}{{user}}", users)
    with service_of(redis.url) as service, webdis_of(redis_server) as webdis:
        what = f"a GET among {redis.shape.users:,} users in Redis"
        compare(
            benchmark, what, "webdis on one thread", lambda: saturate(service, ours), lambda: saturate(webdis, theirs)
        )


def test_get_from_redis(benchmark: Benchmark, redis: Filled, files: Filled) -> None:
    requests = random_gets(ROUTE + "{user}", ids(redis.shape.users))
    with service_of(redis.url) as service, service_of(files.url) as other:
        what = f"a GET among {redis.shape.users:,} users in Redis"
        compare(
            benchmark, what, "the same from files", lambda: saturate(service, requests),
            lambda: saturate(other, requests),
        )  # fmt: skip
