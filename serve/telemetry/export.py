"""Export of spans and metrics with OpenTelemetry's SDK; imported only if telemetry is on.

Workers send spans, the admin process metrics.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
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
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import (
    CHARGES,
    OTHER,
    REQUEST_TIMES,
    SPANS_DROPPED,
    SPANS_EXPORTED,
    SPANS_FAILED,
    STORE_TIMES,
    Labels,
    Metric,
    Metrics,
)
from hotplate.serve.settings import CONNECTION_STRING, TelemetrySettings
from hotplate.serve.telemetry.exposition import Snapshot, since, take_snapshot
from hotplate.serve.telemetry.spans import Span, system_of
from hotplate.stores.extras import extra_installed
from hotplate.stores.store import Attribute

log = logging.getLogger(__name__)

SCOPE = InstrumentationScope("hotplate", version("hotplate"))
# Loggers that report each request and failure, which the span queue logs once and counts.
NOISY = ("opentelemetry.exporter", "opentelemetry.sdk", "azure.monitor", "azure.core.pipeline")
# Stops Azure Monitor's exporters from sending statistics and fetching settings.
AZURE_MONITOR_OFF = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
)
# Accepted connection strings: `NAME=VALUE;…` with a key, without Entra ID.
_CONNECTION_STRING = re.compile(
    r"(?=(?:.*;)?(?i:InstrumentationKey)=[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:;|$))"
    r"(?!(?:.*;)?(?i:Authorization=(?!ikey(?:;|$))))"
    r"[^=;]+=[^=;]*(?:;[^=;]+=[^=;]*)*"
)
# Time to send the last metrics at a stop.
LAST_S = 2.0

# Attributes of each histogram, with its buckets and sum.
Histograms = list[tuple[dict[str, Attribute], list[float]]]


class Exporters(NamedTuple):
    """Factories of exporters, to be called in the process that uses them."""

    spans: Callable[[], SpanExporter]
    metrics: Callable[[], MetricExporter]


def exporters_for(settings: TelemetrySettings) -> Exporters:
    """Import the exporters of a destination and check its settings, without starting threads.

    Raises ServiceMisused, or StoreMisused if the extra is missing.
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if settings.destination == "otlp":
        return Exporters(OTLPSpanExporter, OTLPMetricExporter)
    return _azure_monitor(settings.connection_string or "")


def _azure_monitor(connection_string: str) -> Exporters:
    for name in AZURE_MONITOR_OFF:
        os.environ.setdefault(name, "true")  # read at import
    with extra_installed("azure-monitor"):
        from azure.monitor.opentelemetry import exporter  # noqa: PLC0415 -- a separate extra
    if not _CONNECTION_STRING.fullmatch(connection_string):
        raise ServiceMisused(
            f"{CONNECTION_STRING} is not a connection string of Application Insights, as "
            "InstrumentationKey=…;IngestionEndpoint=https://…/"
        )
    options: dict[str, Any] = {
        "connection_string": connection_string,
        "disable_offline_storage": True,
        "retry_total": 0,
    }
    return Exporters(
        partial(exporter.AzureMonitorTraceExporter, **options),
        cast("Callable[[], MetricExporter]", partial(exporter.AzureMonitorMetricExporter, **options)),
    )


def make_resource(settings: TelemetrySettings, **more: str | int) -> Resource:
    """Return the service's resource; OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME take precedence."""
    ours: dict[str, Any] = {
        "service.name": "hotplate",
        "service.version": version("hotplate"),
        "service.instance.id": settings.instance,
        **more,
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())


class SpanQueue(SpanExporter):
    """The span queue of one worker, and the exporter of its batch processor; created after the fork."""

    def __init__(
        self, settings: TelemetrySettings, count: Callable[[str, int], None], exporter: SpanExporter | None = None
    ) -> None:
        """*count* takes an outcome of `hotplate.serve.metrics.SPANS` and a number of spans."""
        self._exporter = exporter or exporters_for(settings).spans()
        self._resource = make_resource(settings, **{"process.pid": os.getpid()})
        self._count = count
        self._size = settings.queue_size
        self._added = self._done = 0
        self._failing = self._closing = self._closed = False
        self._processor = BatchSpanProcessor(
            self,
            max_queue_size=settings.queue_size,
            schedule_delay_millis=settings.delay_s * 1000,
            max_export_batch_size=settings.batch_size,
        )

    def add(self, span: Span) -> None:
        """Queue a span; drop it if the queue is full."""
        if self._added - self._done >= self._size or self._closing:
            self._count(SPANS_DROPPED, 1)
            return
        self._added += 1
        self._processor.on_end(cast("ReadableSpan", span))  # `export` converts it

    def close(self, timeout_s: float) -> None:
        """Send the queued spans within *timeout_s*; count the rest as dropped."""
        self._closing = True
        sending = Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(timeout_s)
        self.shutdown()
        if left := self._added - self._done:
            self._count(SPANS_DROPPED, left)

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Export a batch and count the result."""
        try:
            result = self._exporter.export([self._made(span) for span in spans])
        except Exception:
            log.exception("spans cannot be sent")
            result = SpanExportResult.FAILURE
        if self._closed:
            return result  # already counted as dropped
        is_sent = result is SpanExportResult.SUCCESS
        self._count(SPANS_EXPORTED if is_sent else SPANS_FAILED, len(spans))
        self._done += len(spans)
        if is_sent and self._failing:
            log.info("the collector takes traces again")
        elif not is_sent and not self._failing:
            log.warning("the collector does not take traces; the service goes on, and counts what is lost")
        self._failing = not is_sent
        return result

    def shutdown(self) -> None:
        """Give up on unsent spans."""
        self._closed = True
        self._exporter.shutdown()

    def _made(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            context=_context(span.trace_id, span.span_id, span.tracestate),
            parent=None
            if span.parent_id is None
            else _context(span.trace_id, span.parent_id, is_remote=span.is_server),
            resource=self._resource,
            attributes=span.attributes,
            links=[Link(_context(*link)) for link in span.links],
            kind=SpanKind.SERVER if span.is_server else SpanKind.CLIENT,
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.started_ns,
            end_time=span.ended_ns,
            instrumentation_scope=SCOPE,
        )


def _context(trace_id: int, span_id: int, tracestate: str | None = None, *, is_remote: bool = False) -> SpanContext:
    state = TraceState.from_header([tracestate]) if tracestate else None
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(TraceFlags.SAMPLED), state)


class MetricReport:
    """Sends metrics by OpenTelemetry's conventions, from the shared counters."""

    def __init__(self, settings: TelemetrySettings, metrics: Metrics, scheme: str) -> None:
        self._settings = settings
        self._metrics = metrics
        self._scheme = scheme
        self._resource = make_resource(settings)
        self._exporter = exporters_for(settings).metrics()
        self._started_ns = time.time_ns()
        self._before: Snapshot | None = None
        self._closing = Event()
        self._thread = Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Send a report at each interval, in a thread, until `close`."""
        self._thread.start()

    def close(self, timeout_s: float = LAST_S) -> None:
        """Send the last report within *timeout_s*."""
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
        """Send one report. If that fails, the next cumulative one makes up for it; deltas are lost."""
        self._exporter.export(self.data())

    def data(self) -> MetricsData:
        """Return all series that have counted something."""
        counted, now_ns = take_snapshot(self._metrics), time.time_ns()
        times_ns = (self._started_ns, now_ns)
        if self._settings.delta:
            before, self._before = self._before, counted
            counted = counted if before is None else since(counted, before)
            self._started_ns = now_ns
        attributes: dict[Metric, Callable[[Labels], dict[str, Attribute]]] = {
            REQUEST_TIMES: self._request,
            STORE_TIMES: _call,
            CHARGES: _charge,
        }
        metrics = [
            self._metric(row, [(attributes[row](labels), counts) for labels, counts in series.items()], times_ns)
            for row, series in counted.items()
            if row.otel
        ]
        found = ScopeMetrics(SCOPE, [one for one in metrics if one.data.data_points], "")
        return MetricsData([ResourceMetrics(self._resource, [found], "")])

    def _request(self, labels: Labels) -> dict[str, Attribute]:
        route, method, code = labels
        attributes: dict[str, Attribute] = {
            "http.request.method": "_OTHER" if method == OTHER else method,
            "url.scheme": self._scheme,
        }
        if route != OTHER:
            attributes["http.route"] = route
        if code != OTHER:
            attributes["http.response.status_code"] = int(code)
            if code >= "500":
                attributes["error.type"] = code
        return attributes

    def _metric(self, row: Metric, series: Histograms, times_ns: tuple[int, int]) -> ExportedMetric:
        unknown: Any = None  # optional in the protocol, but not in the SDK's type
        points = [
            HistogramDataPoint(
                attributes=attributes,
                start_time_unix_nano=times_ns[0],
                time_unix_nano=times_ns[1],
                count=int(sum(buckets)),
                sum=total,
                bucket_counts=[int(count) for count in buckets],
                explicit_bounds=row.buckets,
                min=unknown,
                max=unknown,
            )
            for attributes, (*buckets, total) in series
            if any(buckets)
        ]
        temporality = AggregationTemporality.DELTA if self._settings.delta else AggregationTemporality.CUMULATIVE
        name, unit = row.otel.split()
        return ExportedMetric(name, "", unit, Histogram(points, temporality))


def _call(labels: Labels) -> dict[str, Attribute]:
    tier, operation, outcome = labels
    attributes: dict[str, Attribute] = {
        "db.system.name": system_of(tier),
        "db.operation.name": operation,
        "hotplate.tier": tier,
    }
    return attributes if outcome == "ok" else attributes | {"error.type": outcome}


def _charge(labels: Labels) -> dict[str, Attribute]:
    (tier,) = labels
    return {"db.system.name": system_of(tier), "db.operation.name": "read_item", "hotplate.tier": tier}
