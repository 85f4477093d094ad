"""Counters shared by workers, and the text that Prometheus reads."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hotplate.serve.metrics import BUCKETS_S, ROUTES, STORE_START, Metrics
from hotplate.serve.processes.exposition import Exposition
from hotplate.serve.processes.states import Reporter
from hotplate.serve.tiers import Tier
from hotplate.stores.memory import MemoryStore


def families(metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    reporter = Reporter([Tier("memory", MemoryStore(), metrics)])
    text = Exposition(metrics, lambda: [reporter.state(), None]).text().decode()
    return {
        sample.name: [(other.labels, other.value) for other in family.samples if other.name == sample.name]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_adds_up_what_all_workers_counted() -> None:
    metrics = Metrics(3, ["memory"])
    for worker in (0, 2):
        metrics.use_slot(worker)
        for seconds in (0.0001, 0.00025, 0.3, 99.0):
            metrics.observe_request(ROUTES[0], "GET", 200, seconds)
    metrics.count_lookup("personal", "hit")
    found = families(metrics)
    labels = {"route": ROUTES[0], "method": "GET", "code": "200"}
    assert found["hotplate_http_request_duration_seconds_count"] == [(labels, 8.0)]
    assert found["hotplate_http_request_duration_seconds_sum"][0][1] == 2 * (0.0001 + 0.00025 + 0.3 + 99.0)
    buckets = {labels["le"]: value for labels, value in found["hotplate_http_request_duration_seconds_bucket"]}
    assert (buckets["0.00025"], buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (4.0, 4.0, 6.0, 8.0)
    assert len(buckets) == len(BUCKETS_S) + 1
    assert ({"source": "personal", "outcome": "hit"}, 1.0) in found["hotplate_lookups_total"]


def test_a_replaced_worker_counts_on_where_the_dead_one_was() -> None:
    metrics = Metrics(1, ["memory"])
    for _ in range(2):
        metrics.use_slot(0)
        metrics.observe_store("memory", "get", "ok", 0.001)
    assert families(metrics)["hotplate_store_operation_duration_seconds_count"] == [
        ({"store": "memory", "op": "get", "outcome": "ok"}, 2.0)
    ]


def test_any_method_and_status_is_counted_without_a_new_series_each() -> None:
    metrics = Metrics(1, ["memory"])
    for method, status in (("BREW", 418), ("GET", 599), ("x" * 1000, 200)):
        metrics.observe_request("other", method, status, 0.0)
    counts = families(metrics)["hotplate_http_request_duration_seconds_count"]
    assert sorted((labels["method"], labels["code"]) for labels, _ in counts) == [
        ("GET", "other"), ("other", "200"), ("other", "other"),
    ]  # fmt: skip


def test_a_slot_is_small() -> None:
    assert STORE_START * 8 < 300_000


def test_without_a_release_there_is_none_in_the_text_and_nothing_breaks() -> None:
    found = families(Metrics(1, ["memory"]))
    assert "hotplate_release_info" not in found
    assert found["hotplate_degraded"] == [({"worker": "0"}, 1.0), ({"worker": "1"}, 1.0)]
    assert found["hotplate_worker_up"] == [({"worker": "0"}, 1.0), ({"worker": "1"}, 0.0)]


@given(st.integers(1, 200), st.integers(1, 300))
def test_each_item_of_an_event_is_counted_at_its_place(position: int, items: int) -> None:
    metrics = Metrics(1, [])
    metrics.count_listed("click", "canary", position, items)
    counted = {place: metrics.total(cell)[0] for (*_, place), cell in metrics.listed.items() if metrics.total(cell)[0]}
    expected = Counter(str(place) if place <= 10 else "more" for place in range(position, position + items))
    assert counted == expected
