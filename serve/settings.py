"""Settings of a service, read once at the start, and logging set-up."""

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import orjson

from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.serve.telemetry.settings import TelemetrySettings


# For all store reads of one request together.
BUDGET_S = 0.05

# Panels of `hotplate serve --help`.
STORES = "Stores"
ANSWERS = "Answers"
LISTENING = "Listening and processes"
CALLERS = "Callers"
OPERATORS = "Operators and probes"
LOGS = "Logs and telemetry"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the connections of one worker; times are in seconds."""

    connections: Annotated[
        int, Flag("Maximum open connections per worker.", CALLERS, "max-connections", at_least=1)
    ] = 10_000
    """Lowered to what the limit of open files allows."""

    idle_gives_way: bool = False
    """Whether a connection over the limit replaces the longest idle one."""

    idle_s: float = 75.0
    """From the last answer, or the start of the connection, to the first byte of a request."""

    header_s: float = 10.0
    """From a request's first byte to the end of its header."""

    body_s: float = 30.0
    """From a request's first byte to the end of its body."""

    write_s: float = 10.0
    """For the client to read the next WRITE_STEP_BYTES bytes of an answer."""

    header_bytes: int = 16_384

    bytes_in_flight: int = 256 << 20
    """Unanswered bodies plus unsent answers, above which bodies are refused.

    Lowered to a quarter of the memory limit, divided by the workers."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Settings of one service. A field with a Flag is an option of the command."""

    stores: Annotated[
        tuple[str, ...],
        Flag("A store; repeat it for fallbacks, in order.", STORES, "store", metavar="URL"),
    ] = ()

    host: Annotated[str, Flag("The address to listen on.", LISTENING)] = "127.0.0.1"
    port: Annotated[int, Flag("The port; 0 takes any free one.", LISTENING, at_least=0, at_most=65535)] = 8080
    workers: Annotated[
        int, Flag("Processes that share the port; one per core is best.", LISTENING, at_least=1, at_most=256)
    ] = 1
    budget_s: Annotated[float, Flag("Seconds for all store reads of a request.", STORES, "budget", at_least=0.001)] = (
        BUDGET_S
    )
    cache_mb: Annotated[int, Flag("MiB of remote lists cached per worker; 0 disables it.", STORES, at_least=0)] = 64

    drain_delay_s: Annotated[
        float,
        Flag("Seconds between SIGTERM and closing the port.", LISTENING, "drain-delay", at_least=0),
    ] = 5.0
    """Time for load balancers to notice. Ctrl-C skips it."""

    drain_s: Annotated[
        float, Flag("Seconds for requests in flight to finish at a stop.", LISTENING, "drain", at_least=0)
    ] = 10.0
    admin_host: Annotated[str, Flag("The address of metrics and the console.", OPERATORS)] = "127.0.0.1"
    admin_port: Annotated[int, Flag("Their port; 0 takes any free one.", OPERATORS, at_least=0, at_most=65535)] = 8090
    health_host: Annotated[str, Flag("The address of /livez and /readyz, for probes.", OPERATORS)] = "127.0.0.1"
    health_port: Annotated[
        int, Flag("Their port, in plain HTTP; 0 takes any free one.", OPERATORS, at_least=0, at_most=65535)
    ] = 8091
    admin_store: Annotated[
        str | None, Flag("A writable store in which operators change releases.", OPERATORS, metavar="URL")
    ] = None
    access_log_share: Annotated[
        float,
        Flag("Log this share of the requests.", LOGS, "access-log", metavar="SHARE", at_least=0, at_most=1),
    ] = 0.0
    access_log_users: Annotated[Literal["hashed", "none", "plain"], Flag("How a line names a user.", LOGS)] = "hashed"
    access_log_key: Annotated[
        Path | None, Flag("The secret for hashing users; random if not given.", LOGS, metavar="FILE")
    ] = None
    slow_request_ms: Annotated[
        float | None, Flag("Log requests that take at least this long, 10/s at most.", LOGS, at_least=0)
    ] = None
    telemetry: "TelemetrySettings | None" = None
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
    fold_in: Annotated[bool, Flag("Compute lists from a visitor's items (`publish --fold-in`).", ANSWERS)] = False
    events: Annotated[Path | None, Flag("Accept POST /v1/events and write events here.", ANSWERS, metavar="FOLDER")] = (
        None
    )
    cors_origins: Annotated[
        tuple[str, ...], Flag("Allow web pages of this origin; repeatable.", CALLERS, "cors-origin", metavar="URL")
    ] = ()
    no_fast_lane: Annotated[bool, Flag("Serve plain requests through aiohttp too; slower.", ANSWERS)] = False
    limits: Limits = field(default_factory=Limits)

    @property
    def scheme(self) -> Literal["http", "https"]:
        """The URL scheme of the service."""
        return "http" if self.tls_cert is None else "https"


def timestamp(time_s: float) -> str:
    """Format a Unix time for a log line: UTC, to the millisecond."""
    whole_s, ms = divmod(int(time_s * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole_s))}.{ms:03}Z"


class JsonLines(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        fields: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


def configure_logging() -> None:
    """Log to standard error: readable lines on a terminal, JSON lines everywhere else."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(plain if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
