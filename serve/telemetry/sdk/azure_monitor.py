"""The exporters of Azure Monitor, an extra of its own: they only export."""

import os
from typing import cast

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.telemetry.settings import CONNECTION_STRING

# Else they would report on themselves to their makers, fetch settings from there, and send our resource by a
# tracer provider, which does not exist here. What is set already holds.
for _name in (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
):
    os.environ.setdefault(_name, "true")

from azure.monitor.opentelemetry.exporter import (  # noqa: E402 -- they look at the above when they are loaded
    AzureMonitorMetricExporter,
    AzureMonitorTraceExporter,
)
from azure.monitor.opentelemetry.exporter._connection_string_parser import (  # noqa: E402 -- as above
    ConnectionStringParser,
)


def check(connection_string: str) -> None:
    """Raise ServiceMisused, without the string, if the connection string is not one."""
    try:
        ConnectionStringParser(connection_string)
    except ValueError:
        raise ServiceMisused(
            f"{CONNECTION_STRING} is not a connection string of Application Insights, as "
            "InstrumentationKey=…;IngestionEndpoint=https://…/"
        ) from None


def make_span_exporter(connection_string: str) -> SpanExporter:
    """Make an exporter that keeps nothing on disk, where others could read it, and tries once."""
    return AzureMonitorTraceExporter(connection_string=connection_string, disable_offline_storage=True, retry_total=0)


def make_metric_exporter(connection_string: str) -> MetricExporter:
    """Make one for metrics, as above."""
    made = AzureMonitorMetricExporter(connection_string=connection_string, disable_offline_storage=True, retry_total=0)
    return cast("MetricExporter", made)
