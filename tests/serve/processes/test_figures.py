"""What the console shows as it happens: percentiles out of buckets, rates out of counters that many add to."""

import time
from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.errors import ServiceFinding
from hotplate.serve.metrics import BUCKETS_S, CANARY, CLICK, IMPRESSION, LIVE, OTHER_RELEASE, Metrics
from hotplate.serve.processes.figures import KEPT, WINDOW_S, Sampler, percentile_ms
from hotplate.serve.states import READY, TierState, WorkerState

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


def worker(
    pid: int, lookups: list[int], *, breaker_open: bool = False, release: str = "r1", canary: str | None = None
) -> WorkerState:
    findings = [ServiceFinding("circuit", "it is slow")] if breaker_open else []
    tier = TierState("redis", release, findings, breaker_open, time.time() - 60, 1.0, canary=canary)
    return WorkerState(pid, READY, time.time(), time.monotonic(), 0.001, 3, [], [tier], {release: lookups})


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


def test_the_curve_of_an_hour_has_a_point_for_each_window() -> None:
    metrics = Metrics(1, ["redis"])
    sampler = sampled(metrics, *[[]] * WINDOW_S)
    assert figures_of(sampler)["long_point"] is None
    metrics.observe_request("/v1/popular", "GET", 500, 0.004)
    sampler.sample()
    point = figures_of(sampler)["long_point"]
    assert [point] == list(sampler.long_history)
    assert point["failed"] > 0
    sampler.sample()
    assert figures_of(sampler)["long_point"] is None


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
    metrics.count(metrics.cached["redis", "hit"], 3)
    metrics.count(metrics.cached["redis", "miss"])
    sampler.sample()
    (tier,) = figures_of(sampler)["tiers"]
    assert (tier["open"], tier["workers"], tier["details"], tier["cached_share"]) == (1, 2, ["it is slow"], 0.75)
    assert tier["failed"] > 0


def served_of(sampler: Sampler) -> dict[str, tuple[float, ...]]:
    """Return by release its hits, misses, lists shown and clicks."""
    releases = figures_of(sampler)["served"]["releases"]
    return {one["release"]: tuple(one[what] for what in ("hit", "miss", "shown", "clicks")) for one in releases}


def test_lists_and_events_count_for_the_release_that_they_are_of() -> None:
    metrics, now = Metrics(1, ["redis"]), list[WorkerState | None]([worker(1, [5, 0, 0])])
    sampler = Sampler(metrics, lambda: now, ["redis"])
    sampler.sample()  # what was counted before does not count
    metrics.count_listed(IMPRESSION, LIVE, 1, 10)
    metrics.count_listed(IMPRESSION, LIVE, 11, 10)  # the list went on
    metrics.count_listed(CLICK, LIVE, 3, 1)
    now[:] = [worker(1, [8, 1, 0])]
    sampler.sample()
    now[:] = [worker(1, [8, 1, 0], canary="r2"), worker(2, [4, 0, 0], canary="r2"), worker(3, [1, 0, 0], release="r3")]
    metrics.count_listed(IMPRESSION, CANARY, 1, 10)
    metrics.count_listed(CLICK, CANARY, None, 2)
    metrics.count_listed(CLICK, LIVE, 1, 1)
    metrics.count_listed(CLICK, OTHER_RELEASE, 1, 1)
    sampler.sample()
    assert served_of(sampler) == {"r1": (7, 1, 1, 2), "r2": (0, 0, 1, 2), "r3": (1, 0, 0, 0)}


def test_a_worker_that_cannot_be_read_for_a_second_is_not_counted_twice() -> None:
    metrics = Metrics(1, ["redis"])
    assert served_of(sampled(metrics, [None], [None])) == {}
    sampler = sampled(metrics, [worker(1, [5, 0, 0])], [None], [None], [worker(1, [7, 0, 0])])
    assert served_of(sampler) == {"r1": (2, 0, 0, 0)}


def test_of_the_releases_that_were_served_before_only_the_last_are_kept() -> None:
    canaries = [f"c{number}" for number in range(KEPT + 3)]
    rounds: list[list[WorkerState | None]] = [[worker(1, [n, 0, 0], canary=one)] for n, one in enumerate(canaries)]
    sampler = sampled(Metrics(1, ["redis"]), [worker(1, [0, 0, 0])], *rounds)
    assert served_of(sampler).keys() == {"r1", *canaries[-KEPT + 1 :]}
    assert served_of(sampler)["r1"][0] == KEPT + 2
