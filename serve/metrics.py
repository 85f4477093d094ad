"""Counters that all workers of a service share, read as Prometheus text from whichever worker is asked.

Each worker counts in its own slot of one memory map: eight bytes a number, one writer a slot. To count costs a
fraction of a microsecond, a scrape adds the slots up, and a worker that replaces a dead one counts on where it was.
"""

import mmap
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import product

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serve.following import Follower

BUCKETS_S = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
OTHER = "other"
ROUTES = (
    "/v1/recommendations/{user}", "/v1/recommendations", "/v1/similar/{item}", "/v1/popular",
    "/livez", "/readyz", "/metrics", OTHER,
)  # fmt: skip
METHODS = ("GET", "POST", "HEAD", OTHER)
CODES = ("200", "304", "400", "404", "405", "408", "411", "413", "414", "415", "431", "500", "503", "504", OTHER)
OPERATIONS = ("get", "get_many")
OUTCOMES = ("ok", "gone", "error")
SOURCES = ("personal", "similar", "popular")
LOOKUP_OUTCOMES = ("hit", "miss", "error")

HISTOGRAM_CELLS = len(BUCKETS_S) + 2  # one over the last bound, and the sum

REQUESTS = {labels: n * HISTOGRAM_CELLS for n, labels in enumerate(product(ROUTES, METHODS, CODES))}
STORE_START = len(REQUESTS) * HISTOGRAM_CELLS
STORE = {labels: STORE_START + n * HISTOGRAM_CELLS for n, labels in enumerate(product(OPERATIONS, OUTCOMES))}
LOOKUPS_START = STORE_START + len(STORE) * HISTOGRAM_CELLS
LOOKUPS = {labels: LOOKUPS_START + n for n, labels in enumerate(product(SOURCES, LOOKUP_OUTCOMES))}
SLOT_CELLS = LOOKUPS_START + len(LOOKUPS)


class Metrics:
    """One worker's view of the shared counters; made before the workers are, it lives as long as the service."""

    def __init__(self, workers: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, workers * SLOT_CELLS * 8)).cast("d")
        self._workers = workers
        self._mine = self._cells[:SLOT_CELLS]

    def use_slot(self, worker: int) -> None:
        """Count as worker number *worker* from now on."""
        self._mine = self._cells[worker * SLOT_CELLS : (worker + 1) * SLOT_CELLS]

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request, whatever its status."""
        code = str(status)
        place = REQUESTS.get((route, method, code))
        if place is None:
            known = method if method in METHODS else OTHER, code if code in CODES else OTHER
            place = REQUESTS[(route, *known)]
        self._observe(place, seconds)

    def observe_store(self, operation: str, outcome: str, seconds: float) -> None:
        """Count one call of the store."""
        self._observe(STORE[operation, outcome], seconds)

    def count_lookup(self, source: str, outcome: str) -> None:
        """Count one list: where it came from, and whether it is what was asked for."""
        self._mine[LOOKUPS[source, outcome]] += 1

    def _observe(self, place: int, seconds: float) -> None:
        mine = self._mine
        mine[place + bisect_left(BUCKETS_S, seconds)] += 1
        mine[place + HISTOGRAM_CELLS - 1] += seconds

    def total(self, place: int, cells: int = 1) -> list[float]:
        """Add up *cells* numbers from *place* on, over all workers."""
        starts = range(place, self._workers * SLOT_CELLS, SLOT_CELLS)
        return [sum(self._cells[start + n] for start in starts) for n in range(cells)]


class Exposition(Collector):
    """Renders the counters, and what the answering worker follows, as Prometheus text."""

    def __init__(self, metrics: Metrics, follower: Follower, tier: str) -> None:
        self._metrics = metrics
        self._follower = follower
        self._tier = tier
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Render everything."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the registry is ours alone."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield each family with the series that have counted anything."""
        yield self._histogram(
            "hotplate_http_request_duration_seconds", "Time to answer a request.", ("route", "method", "code"), REQUESTS
        )
        store = {(self._tier, *labels): place for labels, place in STORE.items()}
        yield self._histogram(
            "hotplate_store_operation_duration_seconds",
            "Time of one call of a store.",
            ("store", "op", "outcome"),
            store,
        )
        lookups = CounterMetricFamily("hotplate_lookups", "Lists looked up.", labels=("source", "outcome"))
        for labels, place in LOOKUPS.items():
            lookups.add_metric(labels, self._metrics.total(place)[0])
        yield lookups
        yield from self._release()

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], places: dict[tuple[str, str, str], int]
    ) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, place in places.items():
            *counts, seconds = self._metrics.total(place, HISTOGRAM_CELLS)
            if any(counts):
                bounds = [*map(str, BUCKETS_S), "+Inf"]
                cumulative = [sum(counts[: n + 1]) for n in range(len(counts))]
                family.add_metric(values, list(zip(bounds, cumulative, strict=True)), seconds)
        return family

    def _release(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("hotplate_release_info", "1 for the release that is served.", labels=("release",))
        age = GaugeMetricFamily("hotplate_release_age_seconds", "Time since the served release was written.")
        degraded = GaugeMetricFamily("hotplate_degraded", "1 while answers come from less than was asked for.")
        view = self._follower.view
        if view is not None:
            info.add_metric((view.release,), 1)
            age.add_metric((), max(0.0, time.time() - view.manifest.created_at))
        degraded.add_metric((), self._follower.trouble is not None)
        yield from (info, age, degraded)
