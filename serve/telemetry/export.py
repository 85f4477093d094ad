"""Export with OpenTelemetry's SDK: exporters of spans and metrics, and the metrics that the admin process sends."""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from threading import Event, Thread
from typing import Any, NamedTuple, cast

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    MetricExporter,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Metric as ExportedMetric
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metric import Labels, Metric
from hotplate.serve.metrics import OTHER, REQUEST_TIMES, CountsByLabels, Metrics
from hotplate.serve.settings import CONNECTION_STRING, TelemetrySettings
from hotplate.serve.telemetry.exposition import Snapshot, take_snapshot
from hotplate.serve.telemetry.tracing import database_system_of, make_resource
from hotplate.stores.errors import extra_installed
from hotplate.stores.store import Attribute

log = logging.getLogger(__name__)

SCOPE = InstrumentationScope("hotplate", version("hotplate"))
# Stops Azure Monitor's exporters from sending statistics.
AZURE_MONITOR_OFF = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
)
# Loggers that may quote the connection string.
AZURE_LOGGERS = ("azure.monitor", "azure.core.pipeline")
# Time to send the last metrics at a stop.
LAST_S = 2.0
# Names of labels in the semantic conventions.
ATTRIBUTES = {
    "route": "http.route",
    "method": "http.request.method",
    "code": "http.response.status_code",
    "store": "hotplate.tier",
    "op": "db.operation.name",
    "outcome": "error.type",
}


class Exporters(NamedTuple):
    """Factories of exporters, for the process that uses them."""

    spans: Callable[[], SpanExporter]
    metrics: Callable[[], MetricExporter]


def exporters_for(settings: TelemetrySettings) -> Exporters:
    """Check the settings of telemetry, and return functions that create the exporters: of spans and of metrics.

    The destination is OTLP, configured by OpenTelemetry's environment variables, or Azure Monitor. Raises
    ServiceMisused for an invalid connection string, and StoreMisused if the packages are not installed.
    """
    if settings.destination == "otlp":
        return Exporters(OTLPSpanExporter, OTLPMetricExporter)

    # Azure's exporters must not send statistics on themselves, nor log the connection string.
    for name in AZURE_MONITOR_OFF:
        os.environ.setdefault(name, "true")  # read at import
    for name in AZURE_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with extra_installed("azure-monitor"):
        from azure.monitor.opentelemetry import exporter  # noqa: PLC0415 -- a separate extra

    options: dict[str, Any] = {
        "connection_string": settings.connection_string,
        "disable_offline_storage": True,
        "retry_total": 0,
    }
    try:
        exporter.AzureMonitorTraceExporter(**options).shutdown()  # its constructor checks the connection string
    except ValueError:
        raise ServiceMisused(
            f"{CONNECTION_STRING} is not a connection string of Application Insights, as "
            "InstrumentationKey=…;IngestionEndpoint=https://…/"
        ) from None

    return Exporters(
        partial(exporter.AzureMonitorTraceExporter, **options),
        cast("Callable[[], MetricExporter]", partial(exporter.AzureMonitorMetricExporter, **options)),
    )


class MetricReport:
    """Sends metrics by OpenTelemetry's conventions, from the shared counters."""

    def __init__(self, settings: TelemetrySettings, metrics: Metrics, scheme: str) -> None:
        self._settings = settings
        self._metrics = metrics
        self._scheme = scheme
        self._resource = make_resource(settings)
        self._exporter = exporters_for(settings).metrics()
        # What is counted already, a replaced process has sent.
        self._before: Snapshot = take_snapshot(metrics) if settings.delta else {}
        self._started_ns = time.time_ns() if settings.delta else settings.started_ns
        self._temporality = AggregationTemporality.DELTA if settings.delta else AggregationTemporality.CUMULATIVE
        self._closing = Event()
        self._thread = Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Send a report at each interval, in a thread, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Send the last report within LAST_S."""
        self._closing.set()
        self._thread.join(LAST_S)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(self._settings.metrics_interval_s)
            try:
                self.send()
            except Exception:
                log.exception("metrics cannot be sent")

    def send(self) -> None:
        """Send one report. If this fails, deltas are lost."""
        self._exporter.export(self.data())

    def data(self) -> MetricsData:
        """Return the metrics that are exported, as histograms of OpenTelemetry; those without counts are left out.

        Values are totals since the start or, if the destination takes deltas, differences from the last call.
        """
        totals = take_snapshot(self._metrics)
        now_ns = time.time_ns()

        metrics = list[ExportedMetric]()
        for metric in totals:
            if not metric.otel:  # name and unit in OpenTelemetry; empty if it is not exported
                continue
            points = self._points(metric, totals[metric], now_ns)
            if points:
                name, unit = metric.otel.split()
                metrics.append(ExportedMetric(name, "", unit, Histogram(points, self._temporality)))

        if self._settings.delta:
            self._before = totals
            self._started_ns = now_ns
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(SCOPE, metrics, "")], "")])

    def _points(self, metric: Metric, totals: CountsByLabels, now_ns: int) -> list[HistogramDataPoint]:
        """Return a data point of the histogram *metric* for each combination of labels that has counted something.

        *totals* has, by the values of the labels, the number of observations in each bucket, then the sum of the
        observed values. `self._before` has those of the last report, which are subtracted; it is empty unless the
        destination takes deltas.
        """
        unknown: Any = None  # optional in the protocol, but not in the SDK's type
        before = self._before.get(metric, {})
        points = list[HistogramDataPoint]()
        for labels, current in totals.items():
            previous = before.get(labels, [0.0] * len(current))
            differences = [now - then for now, then in zip(current, previous, strict=True)]
            *bucket_counts, value_sum = differences
            if not any(bucket_counts):
                continue

            points.append(
                HistogramDataPoint(
                    attributes=self._attributes(metric, labels),
                    start_time_unix_nano=self._started_ns,
                    time_unix_nano=now_ns,
                    count=int(sum(bucket_counts)),
                    sum=value_sum,
                    bucket_counts=[int(count) for count in bucket_counts],
                    explicit_bounds=metric.buckets,
                    min=unknown,
                    max=unknown,
                )
            )
        return points

    def _attributes(self, metric: Metric, labels: Labels) -> dict[str, Attribute]:
        """Return the attributes of a data point, by OpenTelemetry's conventions for HTTP servers or databases.

        *labels* are the values of the metric's labels, in their order; "ok" and OTHER, which have no attribute, are
        left out. The metric is that of requests, or one of a store.
        """
        attributes: dict[str, Attribute] = {
            ATTRIBUTES[name]: value
            for name, value in zip(metric.labels, labels, strict=True)
            if value not in ("ok", OTHER)
        }
        is_of_store = metric is not REQUEST_TIMES
        if is_of_store:
            system = database_system_of(str(attributes["hotplate.tier"]))
            # The metric of charges has no label for the operation: only reads of an item are charged.
            return {"db.system.name": system, "db.operation.name": "read_item", **attributes}

        code = str(attributes.get("http.response.status_code", ""))
        if code:
            attributes["http.response.status_code"] = int(code)
        if code >= "500":
            attributes["error.type"] = code
        # OTHER as a method was left out above, so it keeps this value.
        return {"http.request.method": "_OTHER", "url.scheme": self._scheme, **attributes}
