"""Settings from OpenTelemetry's environment variables, read once before the workers start.

Variables of the exporters (endpoints, headers, timeouts, certificates) are read by the SDK's exporters.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.telemetry.spans import Sampling
from hotplate.stores.urls import secret

Destination = Literal["otlp", "azure-monitor"]

CONNECTION_STRING = "APPLICATIONINSIGHTS_CONNECTION_STRING"
# By standard sampler name: whether the parent's decision applies, and the share, if the name implies it.
SAMPLERS = {
    "always_on": (False, 1.0),
    "always_off": (False, 0.0),
    "traceidratio": (False, None),
    "parentbased_always_on": (True, 1.0),
    "parentbased_always_off": (True, 0.0),
    "parentbased_traceidratio": (True, None),
}


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Destination, sampling and batching of traces and metrics."""

    destination: Destination
    sampling: Sampling
    traces: bool = True
    metrics: bool = True
    queue_size: int = 2048
    """Per worker; further spans are dropped and counted."""

    batch_size: int = 512
    delay_s: float = 5.0
    """Between two batches of spans."""

    metrics_interval_s: float = 60.0
    delta: bool = False
    """Whether metrics have delta instead of cumulative temporality."""

    connection_string: str | None = field(default=None, repr=False)
    """Of Application Insights; a secret."""

    instance: str = field(default_factory=lambda: str(uuid4()))
    """`service.instance.id`, the same for all processes of a service."""


def read_telemetry(
    destination: Destination | None, environment: Mapping[str, str] = os.environ
) -> TelemetrySettings | None:
    """Read the settings; None if telemetry is off. Raises ServiceMisused, without secrets in the message."""
    if destination is None or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if destination == "otlp" and protocol != "http/protobuf":
        raise ServiceMisused(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, and hotplate speaks http/protobuf; set it to that, or unset "
            "it, and name the collector's port for HTTP (4318) in OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    connection_string = secret(CONNECTION_STRING, environment) if destination == "azure-monitor" else None
    if destination == "azure-monitor" and not connection_string:
        raise ServiceMisused(
            f"--telemetry azure-monitor needs {CONNECTION_STRING}; the portal shows it with the Application Insights "
            f"resource. Or name a file that holds it in {CONNECTION_STRING}_FILE"
        )
    size = _whole(environment, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
    preference = environment.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").lower()
    return TelemetrySettings(
        destination,
        _sampling(environment),
        traces=environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none",
        metrics=environment.get("OTEL_METRICS_EXPORTER", "").strip().lower() != "none",
        queue_size=size,
        batch_size=min(size, _whole(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
        delay_s=_whole(environment, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000,
        metrics_interval_s=_whole(environment, "OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000,
        delta=destination == "azure-monitor" or preference == "delta",
        connection_string=connection_string,
    )


def _sampling(environment: Mapping[str, str]) -> Sampling:
    name = environment.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    if name.lower() not in SAMPLERS:
        raise ServiceMisused(f"OTEL_TRACES_SAMPLER is {name!r}; it takes one of {', '.join(SAMPLERS)}")
    parent_based, share = SAMPLERS[name.lower()]
    if share is None:
        given = environment.get("OTEL_TRACES_SAMPLER_ARG") or "1"
        try:
            share = float(given)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise ServiceMisused(f"OTEL_TRACES_SAMPLER_ARG is {given!r}; it is the share of traces, from 0 to 1")
    return Sampling(share, parent_based)


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    given = environment.get(name)
    if not given:
        return default
    if not given.isascii() or not given.isdigit() or int(given) < 1:
        raise ServiceMisused(f"{name} is {given!r}; it is a whole number from 1 on")
    return int(given)
