"""Counters shared by workers, and the text that Prometheus reads."""

from prometheus_client.parser import text_string_to_metric_families

from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import BUCKETS_S, ROUTES, Metrics, request_cell
from hotplate.serve.processes.states import Reporter
from hotplate.serve.telemetry.exposition import Exposition
from tests.support.memory_store import MemoryStore


def test_a_scrape_adds_up_what_all_workers_counted() -> None:
    metrics = Metrics(3, ["memory"])
    for worker in (0, 2):
        own = metrics.in_slot(worker)
        for seconds in (0.0001, 0.00025, 0.3, 99.0):
            own.observe(request_cell(ROUTES[0], "GET", 200), seconds)
    metrics.count_lookup("personal", "hit")
    reporter = Reporter(TieredReader({"memory": MemoryStore()}, metrics=metrics).tiers)
    text = Exposition(metrics, lambda: [reporter.state(), None]).text().decode()
    values = {
        sample.name: [(other.labels, other.value) for other in family.samples if other.name == sample.name]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert "hotplate_release_info" not in values
    labels = {"route": ROUTES[0], "method": "GET", "code": "200"}
    assert values["hotplate_http_request_duration_seconds_count"] == [(labels, 8.0)]
    assert values["hotplate_http_request_duration_seconds_sum"][0][1] == 2 * (0.0001 + 0.00025 + 0.3 + 99.0)
    buckets = {labels["le"]: value for labels, value in values["hotplate_http_request_duration_seconds_bucket"]}
    assert (buckets["0.00025"], buckets["0.25"], buckets["0.5"], buckets["+Inf"]) == (4.0, 4.0, 6.0, 8.0)
    assert len(buckets) == len(BUCKETS_S) + 1
    assert ({"source": "personal", "outcome": "hit"}, 1.0) in values["hotplate_lookups_total"]
