"""The conventions' metrics, out of the counters that all workers share: the admin process sends them, time and again.

There is one source, the shared histograms, which `/metrics` shows as well: no worker counts anything twice.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from threading import Event, Thread
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)

from hotplate.serve.metrics import BUCKETS_RU, BUCKETS_S, OTHER, REQUESTS, Metrics
from hotplate.serve.telemetry.sdk.exporters import SCOPE, exporters_for, make_resource
from hotplate.serve.telemetry.settings import TelemetrySettings
from hotplate.serve.telemetry.spans import system_of

log = logging.getLogger(__name__)

# How long the last report is waited for when the service stops.
LAST_S = 2.0

Counts = tuple[float, ...]
# Where a histogram begins, and its attributes.
Series = Iterator[tuple[int, dict[str, str | int]]]


class MetricReport:
    """Makes what is exported of the shared counters; lives as long as the admin process."""

    def __init__(self, settings: TelemetrySettings, metrics: Metrics, scheme: str) -> None:
        self._settings = settings
        self._metrics = metrics
        self._scheme = scheme
        self._resource = make_resource(settings)
        self._exporter = exporters_for(settings).metrics()
        self._started_ns = self._since_ns = time.time_ns()
        self._before = dict[tuple[str, int], Counts]()
        self._closing = Event()
        self._thread = Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Send a report each interval, in a thread, until `close`."""
        self._thread.start()

    def close(self, timeout_s: float = LAST_S) -> None:
        """Send the last report, and wait for that for *timeout_s* at most."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(self._settings.metrics_interval_s)
            try:
                self.send()
            except Exception:
                log.exception("metrics cannot be sent")

    def send(self) -> None:
        """Send one report; what fails is in the next one, which says the same and more."""
        self._exporter.export(self.data())

    def data(self) -> MetricsData:
        """Return everything that has counted anything."""
        now_ns = time.time_ns()
        metrics = [
            self._metric("http.server.request.duration", "s", BUCKETS_S, self._requests(), now_ns),
            self._metric("db.client.operation.duration", "s", BUCKETS_S, self._calls(), now_ns),
            self._metric(
                "azure.cosmosdb.client.operation.request_charge",
                "{request_unit}",
                BUCKETS_RU,
                self._charges(),
                now_ns,
            ),
        ]
        self._since_ns = now_ns
        found = ScopeMetrics(SCOPE, [one for one in metrics if one.data.data_points], "")
        return MetricsData([ResourceMetrics(self._resource, [found], "")])

    def _requests(self) -> Series:
        for (route, method, code), cell in REQUESTS.items():
            attributes: dict[str, str | int] = {
                "http.request.method": "_OTHER" if method == OTHER else method,
                "url.scheme": self._scheme,
            }
            if route != OTHER:
                attributes["http.route"] = route
            if code != OTHER:
                attributes["http.response.status_code"] = int(code)
                if code >= "500":
                    attributes["error.type"] = code
            yield cell, attributes

    def _calls(self) -> Series:
        for (tier, operation, outcome), cell in self._metrics.store.items():
            attributes: dict[str, str | int] = {
                "db.system.name": system_of(tier),
                "db.operation.name": operation,
                "hotplate.tier": tier,
            }
            if outcome != "ok":
                attributes["error.type"] = outcome
            yield cell, attributes

    def _charges(self) -> Series:
        for tier, cell in self._metrics.charges.items():
            yield cell, {"db.system.name": system_of(tier), "db.operation.name": "read_item", "hotplate.tier": tier}

    def _metric(
        self,
        name: str,
        unit: str,
        bounds: Sequence[float],
        series: Series,
        now_ns: int,
    ) -> Metric:

        points = [
            point
            for cell, attributes in series
            if (point := self._point(name, cell, bounds, attributes, now_ns)) is not None
        ]
        temporality = AggregationTemporality.DELTA if self._settings.delta else AggregationTemporality.CUMULATIVE
        return Metric(name, "", unit, Histogram(points, temporality))

    def _point(
        self, name: str, cell: int, bounds: Sequence[float], attributes: dict[str, Any], now_ns: int
    ) -> HistogramDataPoint | None:

        counts = tuple(self._metrics.total(cell, len(bounds) + 2))
        if self._settings.delta:
            before = self._before.get((name, cell), (0.0,) * len(counts))
            self._before[name, cell] = counts
            counts = tuple(now - then for now, then in zip(counts, before, strict=True))
        *buckets, total = counts
        if not any(buckets):
            return None
        unknown: Any = None  # neither is counted; the protocol has both as optional
        return HistogramDataPoint(
            attributes=attributes,
            start_time_unix_nano=self._since_ns if self._settings.delta else self._started_ns,
            time_unix_nano=now_ns,
            count=int(sum(buckets)),
            sum=total,
            bucket_counts=[int(count) for count in buckets],
            explicit_bounds=bounds,
            min=unknown,
            max=unknown,
        )
