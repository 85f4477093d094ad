"""Publishing to files and Redis, and importing and training compared with bare polars, LMDB and implicit."""

import itertools
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hotplate.bench.bare import LENGTH
from hotplate.bench.conftest import HOTPLATE, TIMES, Benchmark, measure, publish_lists
from hotplate.bench.lists import Shape
from hotplate.bench.process import ROOT, RedisServer

ROUNDS = 3
ITEMS = 20_000
BARE = (HOTPLATE[0], "-m", "hotplate.bench.bare")
RETAIL = ROOT.parent / "shared" / "data" / "online-retail" / "online_retail.parquet"
RETAIL_OPTIONS = (
    *("--where", "quantity>0", "--where", "unit_price>0", "--where", r"stock_code~^\d{5}"),
    *("--count-column", "invoice_no", "--weighting", "binary", "--min-per-user", "5", "--min-per-item", "5"),
)
# Of ALS, by default.
FACTORS = 256


@pytest.mark.benchmark(group="publishing", timer=time.process_time)
def test_publish_to_files(benchmark: Benchmark, shape: Shape, values: list[bytes], tmp_path: Path) -> None:
    store = tmp_path / "store"
    benchmark.extra_info |= {"what": f"publishing {shape.users:,} lists to files", "count": shape.users}
    benchmark.pedantic(
        lambda: publish_lists(f"file://{store}", shape, values),
        setup=lambda: shutil.rmtree(store, ignore_errors=True),
        rounds=ROUNDS,
    )
    (file,) = (store / "releases").glob("*.mdb")
    assert file.stat().st_size < 1.5 * shape.plan.payload_bytes


@pytest.mark.benchmark(group="publishing", timer=time.process_time)
def test_publish_to_redis(benchmark: Benchmark, shape: Shape, values: list[bytes], redis_server: RedisServer) -> None:
    numbers = itertools.count()
    benchmark.extra_info |= {"what": f"publishing {shape.users:,} lists to Redis", "count": shape.users}
    benchmark.pedantic(
        lambda: publish_lists(redis_server.url(f"published-{next(numbers)}"), shape, values), rounds=ROUNDS
    )


def write_lists(path: Path, users: int) -> None:
    """Write rows of user, item and score in no order; no user has an item twice."""
    draw = np.random.default_rng(0)
    first, scores = draw.integers(0, ITEMS, users), draw.random(users * LENGTH).round(4)
    user, rank = np.divmod(draw.permutation(users * LENGTH), LENGTH)
    rows = pl.DataFrame({"user": user, "item": (first[user] + rank**2) % ITEMS, "score": scores})
    zeros = pl.col("user").cast(pl.String).str.zfill(8)
    rows.with_columns(user=zeros, item=pl.format("sku{}", "item")).write_csv(path)


@pytest.mark.benchmark(group="peers")
def test_import_and_polars_with_lmdb(benchmark: Benchmark, shape: Shape, tmp_path: Path) -> None:
    lists, store, bare = tmp_path / "lists.csv", tmp_path / "store", tmp_path / "bare.mdb"
    write_lists(lists, shape.users)
    ratios, memory, bare_memory = list[float](), list[float](), list[float]()

    def round_of_both() -> None:
        shutil.rmtree(store, ignore_errors=True)
        bare.unlink(missing_ok=True)
        ours_s, ours_mb = measure(*HOTPLATE, "import", str(lists), "--store", f"file://{store}")
        bare_s, bare_mb = measure(*BARE, "import", str(lists), str(bare))
        ratios.append(ours_s / bare_s)
        memory.append(ours_mb)
        bare_memory.append(bare_mb)

    benchmark.pedantic(round_of_both, rounds=ROUNDS)
    benchmark.extra_info["figures"] = [
        [f"importing {shape.users * LENGTH:,} rows of CSV: CPU against polars and LMDB alone", TIMES, ratios],
        ["the same: memory", "MB", memory],
        ["polars and LMDB alone: memory", "MB", bare_memory],
    ]
    assert statistics.median(ratios) < 5


@pytest.mark.benchmark(group="peers")
@pytest.mark.skipif(not RETAIL.exists(), reason="the data set Online Retail is not beside the checkout")
def test_training_and_implicit(benchmark: Benchmark, tmp_path: Path) -> None:
    ratios = list[float]()

    def round_of_both() -> None:
        model, store = tmp_path / "model", tmp_path / "store"
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
