"""The settings of a service, read once at its start, and the set-up of its logging."""

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


# What the reads of one request may take, all stores together.
BUDGET_S = 0.05

# The panels of `hotplate serve --help`.
STORES = "Stores"
ANSWERS = "Answers"
LISTENING = "Listening and processes"
CALLERS = "Callers"
OPERATORS = "Operators and probes"
LOGS = "Logs and telemetry"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the connections of one worker may take; times are in seconds."""

    connections: Annotated[
        int, Flag("Open connections of each worker, at most.", CALLERS, "max-connections", at_least=1)
    ] = 10_000
    """Fewer where the process may not open so many files."""

    idle_gives_way: bool = False
    """Whether a connection for which there is no room takes the place of the one that has been idle for longest."""

    idle_s: float = 75.0
    """From the last request, or from the connection's beginning, to its first byte after that."""

    header_s: float = 10.0
    """From a request's first byte to the end of its header."""

    body_s: float = 30.0
    """From a request's first byte to the end of its body."""

    write_s: float = 10.0
    """For the client to take the next WRITE_STEP_BYTES bytes of what is ready for it."""

    header_bytes: int = 16_384
    """The whole header of one request."""

    bytes_in_flight: int = 256 << 20
    """Bodies that are not answered, and answers that their clients have not taken; over it, bodies are refused.

    It is less where a quarter of the memory, divided by the workers, is less."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """One service: which stores, where it listens, how long it waits. A field with a Flag is an option."""

    stores: Annotated[
        tuple[str, ...],
        Flag("A store. Each further one answers when those before it cannot.", STORES, "store", metavar="URL"),
    ] = ()
    """The URLs, the first to be read first."""

    host: Annotated[str, Flag("The address to listen on.", LISTENING)] = "127.0.0.1"
    port: Annotated[int, Flag("The port; 0 takes any free one.", LISTENING, at_least=0, at_most=65535)] = 8080
    workers: Annotated[
        int, Flag("Processes that share the port; best one a core.", LISTENING, at_least=1, at_most=256)
    ] = 1
    budget_s: Annotated[
        float, Flag("Seconds that the reads of a request may take.", STORES, "budget", at_least=0.001)
    ] = BUDGET_S
    cache_mb: Annotated[int, Flag("MB of remote lists that a worker keeps; 0: none.", STORES, at_least=0)] = 64
    """In units of 2**20 bytes."""

    drain_delay_s: Annotated[
        float,
        Flag("Seconds between SIGTERM and closing the port.", LISTENING, "drain-delay", at_least=0),
    ] = 5.0
    """Until load balancers have noticed. Ctrl-C skips it."""

    drain_s: Annotated[
        float, Flag("Seconds that requests in flight may take at a stop.", LISTENING, "drain", at_least=0)
    ] = 10.0
    admin_host: Annotated[str, Flag("The address of metrics and the console.", OPERATORS)] = "127.0.0.1"
    admin_port: Annotated[int, Flag("Their port; 0 takes any free one.", OPERATORS, at_least=0, at_most=65535)] = 8090
    health_host: Annotated[str, Flag("The address of /livez and /readyz, for probes.", OPERATORS)] = "127.0.0.1"
    health_port: Annotated[
        int, Flag("Their port, in plain HTTP; 0 takes any free one.", OPERATORS, at_least=0, at_most=65535)
    ] = 8091
    admin_store: Annotated[
        str | None, Flag("A store that may be written: operators activate releases there.", OPERATORS, metavar="URL")
    ] = None
    access_log_share: Annotated[
        float,
        Flag("Log this share of the requests.", LOGS, "access-log", metavar="SHARE", at_least=0, at_most=1),
    ] = 0.0
    access_log_users: Annotated[Literal["hashed", "none", "plain"], Flag("How a line names a user.", LOGS)] = "hashed"
    access_log_key: Annotated[
        Path | None, Flag("The secret to hash users with, else random.", LOGS, metavar="FILE")
    ] = None
    slow_request_ms: Annotated[
        float | None, Flag("Log requests that take as long, 10/s at most.", LOGS, at_least=0)
    ] = None
    telemetry: "TelemetrySettings | None" = None
    """Where traces and metrics go; None where telemetry is off."""

    keys: Annotated[
        Path | None,
        Flag("Let in who has a key in this file, else this machine alone.", CALLERS, metavar="FILE"),
    ] = None
    anonymous: Annotated[bool, Flag("Let callers without a key read, from other machines too.", CALLERS)] = False
    tls_cert: Annotated[
        Path | None, Flag("Speak TLS with this PEM chain, also once it is renewed.", LISTENING, metavar="FILE")
    ] = None
    tls_key: Annotated[
        Path | None, Flag("The key of the certificate: PEM without a password.", LISTENING, metavar="FILE")
    ] = None
    oidc_issuer: Annotated[
        str | None, Flag("Let in who has a token of this OpenID Connect issuer.", CALLERS, metavar="URL")
    ] = None
    oidc_audience: Annotated[
        str | None, Flag("The audience of the tokens for this service.", CALLERS, metavar="AUDIENCE")
    ] = None
    deny_list: Annotated[
        Path | None,
        Flag("Lines of item:ID and user:ID that are never shown.", ANSWERS, metavar="FILE"),
    ] = None
    fold_in: Annotated[bool, Flag("Make lists for visitors by their items, of `publish --fold-in`.", ANSWERS)] = False
    events: Annotated[
        Path | None, Flag("Take events at POST /v1/events, and write them here.", ANSWERS, metavar="FOLDER")
    ] = None
    cors_origins: Annotated[
        tuple[str, ...], Flag("Let web pages of this origin call; repeatable.", CALLERS, "cors-origin", metavar="URL")
    ] = ()
    no_fast_lane: Annotated[bool, Flag("Have aiohttp answer the plainest requests, too; slower.", ANSWERS)] = False
    limits: Limits = field(default_factory=Limits)

    @property
    def scheme(self) -> Literal["http", "https"]:
        """What callers speak."""
        return "http" if self.tls_cert is None else "https"


def timestamp(time_s: float) -> str:
    """Write a Unix time as lines of a log have it: UTC, to the millisecond."""
    whole_s, ms = divmod(int(time_s * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole_s))}.{ms:03}Z"


class JsonLines(logging.Formatter):
    """One JSON object a line, for whatever collects a container's output."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record."""
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
