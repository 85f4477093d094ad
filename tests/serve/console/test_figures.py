"""What the console shows as it happens: percentiles out of buckets, rates out of counters that many add to."""

import time
from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.console.figures import Sampler, percentile_ms
from hotplate.serve.metrics import BUCKETS_S, Metrics
from hotplate.serve.processes.states import READY, TierState, WorkerState

times = st.lists(st.floats(0, 5, exclude_max=True), min_size=1, max_size=50)


def buckets_of(seconds: list[float]) -> list[float]:
    counts = [0.0] * (len(BUCKETS_S) + 1)
    for each in seconds:
        counts[bisect_left(BUCKETS_S, each)] += 1
    return counts


@given(times, st.floats(0.01, 1))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(seconds: list[float], share: float) -> None:
    true_s = sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)]
    bucket = bisect_left(BUCKETS_S, true_s)
    found = percentile_ms(buckets_of(seconds), share)
    assert found is not None
    lower, upper = (0.0, *BUCKETS_S)[bucket], (*BUCKETS_S, BUCKETS_S[-1])[bucket]
    assert min(lower, BUCKETS_S[-1]) * 1000 - 0.001 <= found <= upper * 1000 + 0.001


def test_nothing_has_no_percentile() -> None:
    assert percentile_ms([0.0] * (len(BUCKETS_S) + 1), 0.5) is None


def worker(pid: int, lookups: list[int], *, breaker_open: bool = False) -> WorkerState:
    tier = TierState("redis", "r1", "it is slow" if breaker_open else None, [], breaker_open, time.time() - 60, 1.0)
    return WorkerState(pid, READY, time.time(), time.monotonic(), 0.001, 3, [], [tier], {"r1": lookups})


def sampled(metrics: Metrics, *rounds: list[WorkerState | None]) -> Sampler:
    states = iter(rounds)
    current = list[WorkerState | None]()
    sampler = Sampler(metrics, lambda: current, ["redis"])
    for each in states:
        current[:] = each
        sampler.sample()
    return sampler


def figures_of(sampler: Sampler) -> Any:  # noqa: ANN401 -- JSON is whatever it is
    return sampler.figures()


def test_only_what_happened_since_the_oldest_sample_counts() -> None:
    metrics = Metrics(1, ["redis"])
    metrics.observe_request("/v1/popular", "GET", 500, 1.0)
    sampler = sampled(metrics, [worker(1, [5, 0, 0])])
    for _ in range(3):
        metrics.observe_request("/v1/popular", "GET", 200, 0.004)
        metrics.observe_request("/livez", "GET", 200, 0.1)
        metrics.count_lookup("popular", "miss")
    sampler.sample()
    figures = figures_of(sampler)
    (route,) = figures["routes"]
    assert (route["route"], route["failed"]) == ("/v1/popular", 0)
    assert 3 < route["p50"] < 5
    assert figures["sources"]["unknown"] > 0
    assert figures["sources"]["personal"] == 0
    (point,) = sampler.history
    assert point["p99"] == route["p99"]


def test_a_worker_that_was_replaced_counts_from_nothing_and_takes_nothing_away() -> None:
    sampler = sampled(
        Metrics(2, ["redis"]), [worker(1, [50, 0, 0]), None], [worker(2, [4, 1, 0]), worker(3, [0, 0, 0])]
    )
    (release,) = figures_of(sampler)["releases"]
    assert release["hit"] == pytest.approx(4 * release["miss"], rel=0.1)
    assert (release["workers"], round(release["age_s"])) == (2, 60)


def test_a_tier_says_on_how_many_workers_its_circuit_is_open() -> None:
    metrics = Metrics(2, ["redis"])
    sampler = sampled(metrics, [worker(1, [0, 0, 0]), worker(2, [0, 0, 0], breaker_open=True)])
    metrics.observe_store("redis", "get_many", "error", 0.01)
    metrics.count_cached("redis", "hit", 3)
    metrics.count_cached("redis", "miss", 1)
    sampler.sample()
    (tier,) = figures_of(sampler)["tiers"]
    assert (tier["open"], tier["workers"], tier["details"], tier["cached_share"]) == (1, 2, ["it is slow"], 0.75)
    assert tier["failed"] > 0
