"""hotplate compared in alternating rounds with its peers.

By wrk: nginx with one answer, with files, and with Lua and Redis, webdis, aiohttp. By CPU: polars, LMDB, implicit.
"""

import shutil
import statistics
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from redis import Redis

from hotplate.bench.bare import COPIED, LENGTH, ROUTE, fetch
from hotplate.bench.conftest import (
    HOTPLATE,
    TIMES,
    Benchmark,
    Filled,
    aiohttp_of,
    executable,
    measure,
    must_be_alike,
    nginx_of,
    nginx_with_files,
    nginx_with_lua,
    random_gets,
    saturate,
    service_of,
    webdis_of,
)
from hotplate.bench.lists import Shape, key_of
from hotplate.bench.process import ROOT, RedisServer, Server
from hotplate.serve.access.keys import READ, create
from hotplate.stores.encoding import OFFSET_BYTES, USER

ROUNDS = 5
IMPORTS = 3
ITEMS = 20_000
# Answers that nginx has as files.
STATIC_FILES = 10_000
BARE = (HOTPLATE[0], "-m", "hotplate.bench.bare")
RETAIL = ROOT.parent / "shared" / "data" / "online-retail" / "online_retail.parquet"
RETAIL_OPTIONS = (
    *("--where", "quantity>0", "--where", "unit_price>0", "--where", r"stock_code~^\d{5}"),
    *("--count-column", "invoice_no", "--weighting", "binary", "--min-per-user", "5", "--min-per-item", "5"),
)
FACTORS = 256
PLAIN = "plain:"
Loaded = tuple[Server, bytes]
pytestmark = pytest.mark.benchmark(group="peers")


def compare(benchmark: Benchmark, names: tuple[str, str], ours: Loaded, peers: Loaded) -> None:
    """Measure our service and a peer in alternating rounds, and store rate, CPU a request and the ratios of both.

    *names* are those of ours and of the peer; each is loaded with a server and the requests to send.
    """
    cpu_us = list[float]()
    cpu_ratios = list[float]()
    ratios = list[float]()

    def round_of_both() -> None:
        own = saturate(*ours)
        other = saturate(*peers)
        cpu_us.append(own.cpu_us)
        cpu_ratios.append(own.cpu_us / other.cpu_us)
        ratios.append(own.rate / other.rate)

    saturate(*ours)
    saturate(*peers)
    benchmark.pedantic(round_of_both, rounds=ROUNDS)
    benchmark.extra_info["figures"] = [
        [f"{names[0]}: requests/s and core", "/s", [1e6 / used_us for used_us in cpu_us]],
        ["the same: CPU", "µs", cpu_us],
        [f"the same: CPU against {names[1]}", TIMES, cpu_ratios],
        [f"the same: rate against {names[1]}", TIMES, ratios],
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
            names = f"a GET with a key among {files.shape.users:,} users in files", "nginx `return 200`"
            compare(benchmark, names, (service, requests), (nginx, requests))


def test_get_and_nginx_with_files(benchmark: Benchmark, files: Filled, tmp_path: Path) -> None:
    executable("nginx")
    key = create(tmp_path / "keys.json", "shop", [READ]).key
    users = ids(files.shape.users)[:STATIC_FILES]
    requests = random_gets(
        ROUTE + "{user}", users, {"Accept": "application/json", "User-Agent": "shop/1.0", "X-API-Key": key}
    )
    with service_of(files.url, "--keys", str(tmp_path / "keys.json"), "--anonymous") as service:
        bodies = {user: fetch(service.url + ROUTE + user)[0] for user in users}
        _, headers = fetch(service.url + ROUTE + users[0])
        with nginx_with_files(bodies, headers) as nginx:
            names = f"a GET with a key of {len(users):,} users in files", "nginx with the same answers as files"
            compare(benchmark, names, (service, requests), (nginx, requests))


def test_get_and_plain_aiohttp(benchmark: Benchmark, files: Filled) -> None:
    requests = random_gets(ROUTE + "{user}", COPIED)
    with service_of(files.url) as service, aiohttp_of(service) as peer:
        must_be_alike(service.url + ROUTE + COPIED[0], peer.url + ROUTE + COPIED[0])
        names = "a GET among 1,000 users in files", "one route of aiohttp over a dict"
        compare(benchmark, names, (service, requests), (peer, requests))


@pytest.fixture
def plain_lists(redis: Filled, redis_server: RedisServer, values: list[bytes]) -> str:
    """Store the lists as values of Redis without anything of ours; return the prefix of their keys."""
    with Redis(port=redis_server.port) as client:
        for batch in redis.shape.batches(values):
            client.mset({PLAIN + row.key: row.value[OFFSET_BYTES:] for row in batch})
    return PLAIN + USER


def test_get_from_redis_and_webdis(
    benchmark: Benchmark, redis: Filled, redis_server: RedisServer, plain_lists: str
) -> None:
    executable("webdis")
    users = ids(redis.shape.users)
    # Both answer with the whole list; .txt is the value itself, without JSON around it.
    ours = random_gets(f"{ROUTE}{{user}}?n={redis.shape.items}", users)
    theirs = random_gets(f"/GET/{plain_lists}{{user}}.txt", users)
    with service_of(redis.url) as service, webdis_of(redis_server) as webdis:
        names = f"a GET among {redis.shape.users:,} users in Redis", "webdis on one thread"
        compare(benchmark, names, (service, ours), (webdis, theirs))


def test_get_from_redis_and_nginx_with_lua(
    benchmark: Benchmark, redis: Filled, redis_server: RedisServer, plain_lists: str
) -> None:
    executable("nginx")
    users = ids(redis.shape.users)
    ours = random_gets(f"{ROUTE}{{user}}?n={redis.shape.items}", users)
    theirs = random_gets(ROUTE + "{user}", users)
    with service_of(redis.url) as service:
        _, headers = fetch(service.url + ROUTE + users[0])
        with nginx_with_lua(redis_server, plain_lists, headers, users[0]) as nginx:
            names = f"the same GET among {redis.shape.users:,} users in Redis", "nginx with Lua and Redis"
            compare(benchmark, names, (service, ours), (nginx, theirs))


def write_lists(path: Path, users: int) -> None:
    """Write shuffled, unique rows of user, item and score."""
    draw = np.random.default_rng(0)
    first = draw.integers(0, ITEMS, users)
    scores = draw.random(users * LENGTH).round(4)
    user, rank = np.divmod(draw.permutation(users * LENGTH), LENGTH)
    rows = pl.DataFrame({"user": user, "item": (first[user] + rank**2) % ITEMS, "score": scores})
    zeros = pl.col("user").cast(pl.String).str.zfill(8)
    rows.with_columns(user=zeros, item=pl.format("sku{}", "item")).write_csv(path)


def test_import_and_polars_with_lmdb(benchmark: Benchmark, shape: Shape, tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    store = tmp_path / "store"
    bare = tmp_path / "bare.mdb"
    write_lists(lists, shape.users)
    ratios = list[float]()
    memory = list[float]()
    bare_memory = list[float]()

    def round_of_both() -> None:
        shutil.rmtree(store, ignore_errors=True)
        bare.unlink(missing_ok=True)
        ours_s, ours_mb = measure(*HOTPLATE, "import", str(lists), "--store", f"file://{store}")
        bare_s, bare_mb = measure(*BARE, "import", str(lists), str(bare))
        ratios.append(ours_s / bare_s)
        memory.append(ours_mb)
        bare_memory.append(bare_mb)

    benchmark.pedantic(round_of_both, rounds=IMPORTS)
    benchmark.extra_info["figures"] = [
        [f"importing {shape.users * LENGTH:,} rows of CSV: CPU against polars and LMDB alone", TIMES, ratios],
        ["the same: memory", "MB", memory],
        ["polars and LMDB alone: memory", "MB", bare_memory],
    ]
    assert statistics.median(ratios) < 5


@pytest.mark.skipif(not RETAIL.exists(), reason="the data set Online Retail is not beside the checkout")
def test_training_and_implicit(benchmark: Benchmark, tmp_path: Path) -> None:
    ratios = list[float]()

    def round_of_both() -> None:
        model = tmp_path / "model"
        store = tmp_path / "store"
        for folder in (model, store):
            shutil.rmtree(folder, ignore_errors=True)
        train_s, _ = measure(*HOTPLATE, "train", str(RETAIL), *RETAIL_OPTIONS, "--no-tune", "--out", str(model))
        publish_s, _ = measure(*HOTPLATE, "publish", str(model), "--store", f"file://{store}")
        bare_s, _ = measure(*BARE, "train", str(RETAIL), str(FACTORS))
        ratios.append((train_s + publish_s) / bare_s)

    benchmark.pedantic(round_of_both, rounds=1)
    benchmark.extra_info["figures"] = [
        ["Online Retail trained and published: CPU against implicit alone", TIMES, ratios]
    ]
    assert statistics.median(ratios) < 5
