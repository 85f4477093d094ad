"""Settings of a service."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from uuid import uuid4

from hotplate.serve.connections.framing import MAX_HEADER_BYTES
from hotplate.serve.errors import ServiceMisused
from hotplate.stores.options import BUDGET_S, RARE, Flag
from hotplate.stores.urls import secret

# Panels of `hotplate serve --help`.
STORES = "Stores"
ANSWERS = "Answers"
LISTENING = "Listening and processes"
CALLERS = "Callers"
OPERATORS = "Operators and probes"
LOGS = "Logs and telemetry"

Destination = Literal["otlp", "azure-monitor"]

CONNECTION_STRING = "APPLICATIONINSIGHTS_CONNECTION_STRING"
# With or without "parentbased_" in front.
SAMPLERS = ("always_on", "always_off", "traceidratio")


@dataclass(frozen=True, slots=True)
class Limits:
    """Connection limits of one worker; times are in seconds."""

    connections: Annotated[int, Flag("Maximum open connections per worker.", RARE, "max-connections", at_least=1)] = (
        10_000
    )
    """Lowered to fit the limit of open files."""
    idle_gives_way: bool = False
    """A connection over the limit replaces the longest idle one."""
    idle_s: Annotated[
        float,
        Flag(
            "An idle connection is closed after this time.",
            CALLERS,
            "idle-timeout",
            at_least=1,
            at_most=86_400,
            is_time=True,
        ),
    ] = 75.0
    """From the last answer, or connecting, to the first byte of a request."""
    header_s: float = 10.0
    """From the request's first byte to the end of its header."""
    body_s: float = 30.0
    """From the request's first byte to the end of its body."""
    write_s: float = 10.0
    """For the client to read the next WRITE_STEP_BYTES bytes."""
    header_bytes: int = MAX_HEADER_BYTES

    bytes_in_flight: int = 256 << 20
    """Unanswered bodies plus unsent answers; of all workers at most a quarter of the memory limit."""


class Sampling(NamedTuple):
    """The share of sampled traces; with *parent_based* only for traces that begin here."""

    share: float
    parent_based: bool


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Destination and sampling of traces and metrics."""

    destination: Destination
    sampling: Sampling
    traces: bool = True
    metrics: bool = True
    metrics_interval_s: float = 60.0
    delta: bool = False
    """Temporality of metrics."""
    connection_string: str | None = field(default=None, repr=False)
    """Of Application Insights; a secret."""
    instance: str = field(default_factory=lambda: str(uuid4()))
    """`service.instance.id` of all processes."""
    started_ns: int = field(default_factory=time.time_ns)
    """Start of cumulative metrics, whose counters survive the process that sends them."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Settings of one service. A field with a Flag is an option of the command."""

    stores: Annotated[
        tuple[str, ...],
        Flag("A store; repeat it for fallbacks, in order.", STORES, "store", metavar="URL"),
    ] = ()

    host: Annotated[str, Flag("The address to listen on.", LISTENING, metavar="ADDRESS")] = "127.0.0.1"
    port: Annotated[int, Flag("The port; 0 takes any free one.", LISTENING, at_least=0, at_most=65535)] = 8080
    workers: Annotated[
        int, Flag("Processes that share the port; one per core is best.", LISTENING, at_least=1, at_most=256)
    ] = 1
    budget_s: Annotated[
        float,
        Flag(
            "The time for all store reads of a request.", STORES, "budget", at_least=0.001, at_most=3600, is_time=True
        ),
    ] = BUDGET_S
    cache_mb: Annotated[int, Flag("MiB of remote lists cached per worker; 0 disables it.", STORES, at_least=0)] = 64

    probation_s: Annotated[
        float,
        Flag(
            "Withdraw a new release within this time if it serves worse than the one before; 0 is off.",
            STORES,
            "probation",
            at_least=0,
            is_time=True,
        ),
    ] = 0.0
    """How long a release is compared with the one before, from its activation."""

    drain_delay_s: Annotated[
        float,
        Flag("The time between SIGTERM and closing the port.", RARE, "drain-delay", at_least=0, is_time=True),
    ] = 5.0
    """Time for load balancers to notice. Ctrl-C skips it."""
    drain_s: Annotated[
        float, Flag("The time for requests in flight at a stop.", RARE, "drain", at_least=0, is_time=True)
    ] = 10.0
    admin_host: Annotated[str, Flag("The address of metrics and the console.", OPERATORS, metavar="ADDRESS")] = (
        "127.0.0.1"
    )
    admin_port: Annotated[
        int, Flag("The port of metrics and the console; 0 takes any free one.", OPERATORS, at_least=0, at_most=65535)
    ] = 8090
    health_host: Annotated[str, Flag("The address of /livez and /readyz, for probes.", RARE, metavar="ADDRESS")] = (
        "127.0.0.1"
    )
    health_port: Annotated[
        int, Flag("The port of /livez and /readyz; 0 takes any free one.", RARE, at_least=0, at_most=65535)
    ] = 8091
    admin_store: Annotated[
        str | None, Flag("A writable store in which operators change releases.", OPERATORS, metavar="URL")
    ] = None
    access_log_share: Annotated[
        float,
        Flag("Log this share of the requests.", LOGS, "access-log", metavar="SHARE", at_least=0, at_most=1),
    ] = 0.0
    access_log_users: Annotated[
        Literal["hashed", "none", "plain"], Flag("How a line of the log names a user.", LOGS)
    ] = "hashed"
    telemetry: TelemetrySettings | None = None
    keys: Annotated[
        Path | None,
        Flag("The file of API keys; without it only this machine may call.", CALLERS, metavar="FILE"),
    ] = None
    anonymous: Annotated[bool, Flag("Allow reads without a key, from other machines too.", CALLERS)] = False
    tls_cert: Annotated[
        Path | None, Flag("The TLS certificate chain (PEM); reloaded when it changes.", LISTENING, metavar="FILE")
    ] = None
    tls_key: Annotated[
        Path | None, Flag("The key of the certificate: PEM without a password.", LISTENING, metavar="FILE")
    ] = None
    oidc_issuer: Annotated[str | None, Flag("Accept tokens of this OpenID Connect issuer.", CALLERS, metavar="URL")] = (
        None
    )
    oidc_audience: Annotated[
        str | None, Flag("The audience of the tokens for this service.", CALLERS, metavar="AUDIENCE")
    ] = None
    deny_list: Annotated[
        Path | None,
        Flag("Lines of item:ID and user:ID that are never shown.", ANSWERS, metavar="FILE"),
    ] = None
    overrides: Annotated[
        Path | None,
        Flag("Live values of item attributes, and denied items: CSV or JSON lines.", ANSWERS, metavar="FILE"),
    ] = None
    fold_in: Annotated[
        bool, Flag("Answer visitors by a basket of items, with the item factors of `publish --fold-in`.", ANSWERS)
    ] = False
    events: Annotated[Path | None, Flag("Accept POST /v1/events and write events here.", ANSWERS, metavar="FOLDER")] = (
        None
    )
    hide_consumed: Annotated[
        tuple[str, ...],
        Flag(
            "Hide items from a user for hours after an event of this type; repeatable.", ANSWERS, metavar="TYPE=HOURS"
        ),
    ] = ()
    share_consumed: Annotated[
        str | None,
        Flag(
            "Share hidden items through this Redis, or `off`; by default through the first Redis store.",
            ANSWERS,
            metavar="URL|off",
        ),
    ] = None
    cors_origins: Annotated[
        tuple[str, ...], Flag("Allow web pages of this origin; repeatable.", CALLERS, "cors-origin", metavar="URL")
    ] = ()
    no_fast_lane: Annotated[bool, Flag("Serve plain requests through aiohttp too; slower.", RARE)] = False
    limits: Limits = field(default_factory=Limits)

    @property
    def scheme(self) -> Literal["http", "https"]:
        """The URL scheme of the service."""
        return "http" if self.tls_cert is None else "https"


def read_telemetry(
    destination: Destination | None, environment: Mapping[str, str] = os.environ
) -> TelemetrySettings | None:
    """Read the settings of telemetry from OpenTelemetry's environment variables; None if telemetry is off.

    *destination* is `otlp` or `azure-monitor`, None without --telemetry. Raises ServiceMisused for a value that is not
    supported, and without the connection string of Azure Monitor.
    """
    if destination is None or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None

    protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if destination == "otlp" and protocol != "http/protobuf":
        raise ServiceMisused(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; hotplate speaks http/protobuf (port 4318 of a collector)"
        )

    connection_string = secret(CONNECTION_STRING, environment) if destination == "azure-monitor" else None
    if destination == "azure-monitor" and not connection_string:
        raise ServiceMisused(
            f"--telemetry azure-monitor needs {CONNECTION_STRING}, or a file with it in {CONNECTION_STRING}_FILE"
        )

    interval_ms = environment.get("OTEL_METRIC_EXPORT_INTERVAL") or "60000"
    if not interval_ms.isascii() or not interval_ms.isdigit() or int(interval_ms) < 1:
        raise ServiceMisused(f"OTEL_METRIC_EXPORT_INTERVAL is {interval_ms!r}; it is a whole number of ms, from 1")

    # Metrics are totals, or differences from the last export (delta), which Azure Monitor takes.
    preference = environment.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").lower()
    return TelemetrySettings(
        destination,
        _sampling(environment),
        traces=environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none",
        metrics=environment.get("OTEL_METRICS_EXPORTER", "").strip().lower() != "none",
        metrics_interval_s=int(interval_ms) / 1000,
        delta=destination == "azure-monitor" or preference == "delta",
        connection_string=connection_string,
    )


def _sampling(environment: Mapping[str, str]) -> Sampling:
    """Read from OpenTelemetry's environment variables which requests are traced; raises ServiceMisused.

    The result has the share of traces that the service begins. With a sampler whose name begins with parentbased_, a
    request that is part of a caller's trace is traced if the caller's span is.
    """
    name = environment.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    kind = name.lower().removeprefix("parentbased_")
    if kind not in SAMPLERS:
        raise ServiceMisused(
            f"OTEL_TRACES_SAMPLER is {name!r}; it takes {', '.join(SAMPLERS)}, with parentbased_ in front or not"
        )

    argument = environment.get("OTEL_TRACES_SAMPLER_ARG") or "1"
    if kind != "traceidratio":  # others take no argument
        argument = "1" if kind == "always_on" else "0"
    try:
        share = float(argument)
    except ValueError:
        share = -1.0  # refused, as any other number out of range
    if not 0 <= share <= 1:
        raise ServiceMisused(f"OTEL_TRACES_SAMPLER_ARG is {argument!r}; it is the share of traces, from 0 to 1")
    return Sampling(share, parent_based=kind != name.lower())
