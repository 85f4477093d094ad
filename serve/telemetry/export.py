"""How spans and metrics leave a service, by OpenTelemetry's SDK; loaded where telemetry is on.

A worker hands its spans to the SDK's batch processor and never waits: what finds no room is dropped and counted. If the
collector is away, the processor's thread waits for it, and the service goes on. The admin process sends metrics; they
are the counters of `/metrics`, so no worker counts anything twice.
"""

import logging
import os
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
from hotplate.serve.telemetry.exposition import Snapshot, since, take_snapshot
from hotplate.serve.telemetry.settings import CONNECTION_STRING, TelemetrySettings
from hotplate.serve.telemetry.spans import Span, system_of
from hotplate.stores.extras import extra_installed
from hotplate.stores.store import Attribute

log = logging.getLogger(__name__)

SCOPE = InstrumentationScope("hotplate", version("hotplate"))
# They log each failure, and each request: the queue says it once, and counts.
NOISY = ("opentelemetry.exporter", "opentelemetry.sdk", "azure.monitor", "azure.core.pipeline")
# With these Azure Monitor's exporters do not report on themselves to their makers, fetch settings from there, or send
# our resource by a tracer provider, which does not exist here. What is set already holds.
AZURE_MONITOR_OFF = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
)
# How long the last metrics are waited for when the service stops.
LAST_S = 2.0

# The attributes of histograms, their buckets and sum.
Histograms = list[tuple[dict[str, Attribute], list[float]]]


class Exporters(NamedTuple):
    """What makes the exporters for one destination; each is made in the process that uses it."""

    spans: Callable[[], SpanExporter]
    metrics: Callable[[], MetricExporter]


def exporters_for(settings: TelemetrySettings) -> Exporters:
    """Load the exporters for a destination, and look whether they can be made; this starts no thread.

    Raises ServiceMisused, or StoreMisused if the extra is not installed.
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if settings.destination == "otlp":
        return Exporters(OTLPSpanExporter, OTLPMetricExporter)
    return _azure_monitor(settings.connection_string or "")


def _azure_monitor(connection_string: str) -> Exporters:
    """Return exporters that keep nothing on disk, where others could read it, and try once."""
    for name in AZURE_MONITOR_OFF:
        os.environ.setdefault(name, "true")  # they look at it when they are loaded
    with extra_installed("azure-monitor"):
        from azure.monitor.opentelemetry import exporter  # noqa: PLC0415 -- an extra of its own
        from azure.monitor.opentelemetry.exporter._connection_string_parser import (  # noqa: PLC0415 -- as above
            ConnectionStringParser,
        )
    try:
        ConnectionStringParser(connection_string)
    except ValueError:
        raise ServiceMisused(
            f"{CONNECTION_STRING} is not a connection string of Application Insights, as "
            "InstrumentationKey=…;IngestionEndpoint=https://…/"
        ) from None
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
    """Return what is said of the service with all that it exports; OTEL_RESOURCE_ATTRIBUTES and its like win."""
    ours: dict[str, Any] = {
        "service.name": "hotplate",
        "service.version": version("hotplate"),
        "service.instance.id": settings.instance,
        **more,
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())


class _CountingExporter(SpanExporter):
    """Makes spans of the SDK, exports them, and counts and logs what came of it; used by the processor's thread."""

    def __init__(self, exporter: SpanExporter, resource: Resource, count: Callable[[str, int], None]) -> None:
        self._exporter = exporter
        self._resource = resource
        self._count = count
        self._failing = self._closed = False
        self.done = 0
        """How many spans have left the queue."""

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """See the SDK."""
        try:
            result = self._exporter.export([self._made(span) for span in spans])
        except Exception:
            log.exception("spans cannot be sent")
            result = SpanExportResult.FAILURE
        if self._closed:
            return result  # too late: they were counted as dropped
        is_sent = result is SpanExportResult.SUCCESS
        self._count(SPANS_EXPORTED if is_sent else SPANS_FAILED, len(spans))
        self.done += len(spans)
        if is_sent == self._failing:
            self._failing = not is_sent
            if is_sent:
                log.info("the collector takes traces again")
            else:
                log.warning("the collector does not take traces; the service goes on, and counts what is lost")
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
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


class SpanQueue:
    """Spans on their way out of a worker; lives as long as it; made after the fork, as it has a thread."""

    def __init__(
        self, settings: TelemetrySettings, count: Callable[[str, int], None], exporter: SpanExporter | None = None
    ) -> None:
        """Take what counts spans by what became of them, one of `hotplate.serve.metrics.SPANS`.

        *exporter* sends them in place of the one that the settings name.
        """
        resource = make_resource(settings, **{"process.pid": os.getpid()})
        self._exporter = _CountingExporter(exporter or exporters_for(settings).spans(), resource, count)
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=settings.queue_size,
            schedule_delay_millis=settings.delay_s * 1000,
            max_export_batch_size=settings.batch_size,
        )
        self._count = count
        self._size = settings.queue_size
        self._added = 0
        self._closing = False

    def add(self, span: Span) -> None:
        """Have a span sent, or drop it if there is no room."""
        if self._added - self._exporter.done >= self._size or self._closing:
            self._count(SPANS_DROPPED, 1)
            return
        self._added += 1
        self._processor.on_end(cast("ReadableSpan", span))  # the exporter makes one of it, in the processor's thread

    def close(self, timeout_s: float) -> None:
        """Send what is there, for *timeout_s* at most, and count what is left as dropped."""
        self._closing = True
        sending = Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(timeout_s)
        self._exporter.shutdown()
        if left := self._added - self._exporter.done:
            self._count(SPANS_DROPPED, left)


class MetricReport:
    """Sends the conventions' metrics, made of the shared counters; lives as long as the admin process."""

    def __init__(self, settings: TelemetrySettings, metrics: Metrics, scheme: str) -> None:
        self._settings = settings
        self._metrics = metrics
        self._scheme = scheme
        self._resource = make_resource(settings)
        self._exporter = exporters_for(settings).metrics()
        self._started_ns = self._since_ns = time.time_ns()
        self._before: Snapshot | None = None
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
        """Send one report; what fails is in the next one, which says the same and more. Deltas that fail are lost."""
        self._exporter.export(self.data())

    def data(self) -> MetricsData:
        """Return everything that has counted anything."""
        counted, started_ns, now_ns = take_snapshot(self._metrics), self._started_ns, time.time_ns()
        if self._settings.delta:
            before, self._before = self._before, counted
            counted = counted if before is None else since(counted, before)
            started_ns, self._since_ns = self._since_ns, now_ns
        times_ns = (started_ns, now_ns)
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
        unknown: Any = None  # neither is counted; the protocol has both as optional
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
