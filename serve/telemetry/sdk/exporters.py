"""The exporters of OpenTelemetry's SDK, and what they are given: spans of ours as the SDK has them."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from hotplate.serve.telemetry.settings import TelemetrySettings
from hotplate.serve.telemetry.spans import Span
from hotplate.stores.urls import extra_installed

SCOPE = InstrumentationScope("hotplate", version("hotplate"))
# They log each failure, and each request: the queue says it once, and counts.
NOISY = ("opentelemetry.exporter", "opentelemetry.sdk", "azure.monitor", "azure.core.pipeline")


class Exporters(NamedTuple):
    """What makes the exporters for one destination; each is made in the process that uses it."""

    spans: Callable[[], SpanExporter]
    metrics: Callable[[], MetricExporter]


def exporters_for(settings: TelemetrySettings) -> Exporters:
    """Load the exporters for a destination, and look whether they can be made; this starts no thread.

    Raises ServiceMisused, or StoreMisused where the extra is not installed.
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if settings.destination == "otlp":
        return Exporters(OTLPSpanExporter, OTLPMetricExporter)
    with extra_installed("azure-monitor"):
        from hotplate.serve.telemetry.sdk import azure_monitor  # noqa: PLC0415 -- an extra of its own

    string = settings.connection_string or ""
    azure_monitor.check(string)
    return Exporters(
        partial(azure_monitor.make_span_exporter, string), partial(azure_monitor.make_metric_exporter, string)
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
        """See `hotplate.serve.telemetry.span_queue.Send`."""
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
        """See `hotplate.serve.telemetry.span_queue.Send`."""
        self._exporter.shutdown()


def _context(trace_id: int, span_id: int, tracestate: str | None = None, *, is_remote: bool = False) -> SpanContext:
    state = TraceState.from_header([tracestate]) if tracestate else None
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(TraceFlags.SAMPLED), state)
