"""What the offline job costs: the matrix, an iteration of ALS, the lists of all users, their bytes, the metrics.

BENCH_USERS sets the size: a tenth of it, 20,000 users at most. ALS and ranking take all cores.
"""

import os
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from offline.evaluate.evaluation import evaluate
from offline.evaluate.metrics import measure_users
from offline.evaluate.splits import SplitOptions
from offline.input.matrix import Matrix, to_matrix
from offline.list_encoder import ListEncoder, RankedLists
from offline.train.als import ALSParams, Factors, fit
from stores.keys import USER

USERS = min(max(int(os.environ.get("BENCH_USERS", "100000")) // 10, 100), 20_000)
ITEMS = 9_000
EACH_LIKES = 30
LIST_LENGTH, BATCH = 20, 4_096
ONE_ITERATION = ALSParams(factors=64, iterations=1)


@pytest.fixture(scope="module")
def pairs() -> pl.DataFrame:
    """Draw what each user liked, popular items more often."""
    weights = 1 / np.arange(10, ITEMS + 10)
    drawn = np.random.default_rng(0).choice(ITEMS, USERS * EACH_LIKES, p=weights / weights.sum())
    users = np.repeat(np.arange(USERS), EACH_LIKES)
    frame = pl.DataFrame({"user": users, "item": drawn}).unique(maintain_order=True)
    return frame.select(pl.col("user", "item").cast(pl.String), weight=pl.lit(1.0))


@pytest.fixture(scope="module")
def matrix(pairs: pl.DataFrame) -> Matrix:
    """Build the matrix once."""
    return to_matrix(pairs)


@pytest.fixture(scope="module")
def factors(matrix: Matrix) -> Factors:
    """Fit once."""
    return fit(matrix.user_items, ONE_ITERATION)


def once_a_round(benchmark: BenchmarkFixture, work: Callable[[], object]) -> None:
    """Benchmark *work*, which is for all users."""
    benchmark.extra_info |= {"count": USERS, "each": "user"}
    benchmark(work)


def bench_matrix(benchmark: BenchmarkFixture, pairs: pl.DataFrame) -> None:
    """Pairs to a sparse matrix, with the rare ones left out."""
    once_a_round(benchmark, lambda: to_matrix(pairs, min_per_user=5, min_per_item=5))


def bench_als(benchmark: BenchmarkFixture, matrix: Matrix) -> None:
    """A fit of 64 factors with one iteration, and the last factors of users at its end."""
    once_a_round(benchmark, lambda: fit(matrix.user_items, ONE_ITERATION))


def bench_recommend(benchmark: BenchmarkFixture, matrix: Matrix, factors: Factors) -> None:
    """The top 20 for everybody."""
    everybody = np.arange(len(matrix.user_ids), dtype=np.int32)
    once_a_round(benchmark, lambda: factors.recommend(matrix.user_items, everybody, LIST_LENGTH))


def bench_metrics(benchmark: BenchmarkFixture, matrix: Matrix, factors: Factors) -> None:
    """Ranking metrics of the lists of everybody."""
    lists, _ = factors.recommend(matrix.user_items, np.arange(len(matrix.user_ids), dtype=np.int32), LIST_LENGTH)
    once_a_round(benchmark, lambda: measure_users(lists, matrix.user_items).metrics)


def bench_evaluate(benchmark: BenchmarkFixture, matrix: Matrix) -> None:
    """A whole evaluation: split, fit, lists and metrics, and those of the baselines beside them."""
    once_a_round(benchmark, lambda: evaluate(matrix, ONE_ITERATION, SplitOptions("by-item")))


def bench_encode(benchmark: BenchmarkFixture) -> None:
    """Ranked lists, without titles, to rows of JSON."""
    draw = np.random.default_rng(0)
    encoder = ListEncoder([str(1000 + item) for item in range(ITEMS)], [None] * ITEMS)
    lists = RankedLists(
        owners=[f"{user:08d}" for user in range(USERS)],
        lengths=np.full(USERS, LIST_LENGTH),
        items=draw.integers(ITEMS, size=USERS * LIST_LENGTH),
        scores=np.tile((0.9999 - np.arange(LIST_LENGTH) / 100).round(4), USERS),
    )
    benchmark.extra_info |= {"count": USERS, "each": "list"}
    benchmark(lambda: [encoder.rows(USER, batch) for batch in lists.batches(BATCH)])
