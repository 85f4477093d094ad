"""How spans and metrics leave a service, by the exporters of OpenTelemetry's SDK; loaded where telemetry is on.

A worker adds its spans to a queue and never waits: what finds no room is dropped and counted. If the collector is away,
the queue's thread waits for it, the queue fills up, and the service goes on. The SDK's BatchSpanProcessor is not used
because it counts what it drops elsewhere, and takes spans of the SDK, which cost a request more to make. The admin
process sends metrics; they are the counters of `/metrics`, so no worker counts anything twice.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
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
    Metric,
    MetricExporter,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import BUCKETS_RU, BUCKETS_S, OTHER, SPANS_DROPPED, SPANS_EXPORTED, SPANS_FAILED, Metrics
from hotplate.serve.telemetry.exposition import Labels, Snapshot, take_snapshot
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


class SpanSender:
    """Sends spans by an exporter of the SDK; lives as long as its queue; only the queue's thread uses it."""

    def __init__(self, settings: TelemetrySettings) -> None:
        self._exporter = exporters_for(settings).spans()
        self._resource = make_resource(settings, **{"process.pid": os.getpid()})

    def send(self, spans: Sequence[Span]) -> bool:
        """Send them, and wait until that is done; return whether it was."""
        made = [
            ReadableSpan(
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
            for span in spans
        ]
        return self._exporter.export(made) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()


def _context(trace_id: int, span_id: int, tracestate: str | None = None, *, is_remote: bool = False) -> SpanContext:
    state = TraceState.from_header([tracestate]) if tracestate else None
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(TraceFlags.SAMPLED), state)


class SpanQueue:
    """Spans on their way out of a worker; lives as long as it; made after the fork, as it has a thread."""

    def __init__(self, sender: SpanSender, count: Callable[[str, int], None], settings: TelemetrySettings) -> None:
        """Take what sends, and what counts spans by what became of them, one of `hotplate.serve.metrics.SPANS`."""
        self._sender = sender
        self._count = count
        self._size = settings.queue_size
        self._batch_size = settings.batch_size
        self._delay_s = settings.delay_s
        self._spans = deque[Span]()
        self._awake = Event()
        self._closing = False
        self._failing = False
        self._thread = Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def add(self, span: Span) -> None:
        """Have a span sent, or drop it if there is no room."""
        waiting = len(self._spans)
        if waiting >= self._size or self._closing:
            self._count(SPANS_DROPPED, 1)
            return
        self._spans.append(span)
        if waiting + 1 == self._batch_size:
            self._awake.set()

    def close(self, timeout_s: float) -> None:
        """Send what is there, for *timeout_s* at most, and count what is left as dropped."""
        self._closing = True
        self._awake.set()
        self._thread.join(timeout_s)
        self._sender.close()
        if left := len(self._take(self._size)):
            self._count(SPANS_DROPPED, left)

    def _run(self) -> None:
        while not self._closing:
            self._awake.wait(self._delay_s)
            self._awake.clear()
            while batch := self._take(self._batch_size):
                self._send(batch)

    def _take(self, most: int) -> list[Span]:
        """Take so many spans out of the queue, or all; two threads may do so at the end."""
        taken = list[Span]()
        with suppress(IndexError):
            while len(taken) < most:
                taken.append(self._spans.popleft())
        return taken

    def _send(self, batch: Sequence[Span]) -> None:
        try:
            sent = self._sender.send(batch)
        except Exception:
            log.exception("spans cannot be sent")
            sent = False
        self._count(SPANS_EXPORTED if sent else SPANS_FAILED, len(batch))
        if sent == self._failing:
            self._failing = not sent
            if sent:
                log.info("the collector takes traces again")
            else:
                log.warning("the collector does not take traces; the service goes on, and counts what is lost")


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
            counted = counted if before is None else counted.since(before)
            started_ns, self._since_ns = self._since_ns, now_ns
        times_ns = (started_ns, now_ns)
        requests = [(self._request(labels), counts) for labels, counts in counted.requests.items()]
        calls = [(_call(labels), counts) for labels, counts in counted.calls.items()]
        charges = [(_charge(labels), counts) for labels, counts in counted.charges.items()]
        charge = "azure.cosmosdb.client.operation.request_charge"
        metrics = [
            self._metric("http.server.request.duration", "s", BUCKETS_S, requests, times_ns),
            self._metric("db.client.operation.duration", "s", BUCKETS_S, calls, times_ns),
            self._metric(charge, "{request_unit}", BUCKETS_RU, charges, times_ns),
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

    def _metric(
        self, name: str, unit: str, bounds: Sequence[float], series: Histograms, times_ns: tuple[int, int]
    ) -> Metric:
        unknown: Any = None  # neither is counted; the protocol has both as optional
        points = [
            HistogramDataPoint(
                attributes=attributes,
                start_time_unix_nano=times_ns[0],
                time_unix_nano=times_ns[1],
                count=int(sum(buckets)),
                sum=total,
                bucket_counts=[int(count) for count in buckets],
                explicit_bounds=bounds,
                min=unknown,
                max=unknown,
            )
            for attributes, (*buckets, total) in series
            if any(buckets)
        ]
        temporality = AggregationTemporality.DELTA if self._settings.delta else AggregationTemporality.CUMULATIVE
        return Metric(name, "", unit, Histogram(points, temporality))


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
