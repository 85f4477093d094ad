"""The settings of a service, read once at its start, and the set-up of its logging."""

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson

from serve.reader import BUDGET_S
from serve.telemetry.settings import TelemetrySettings


@dataclass(frozen=True, slots=True)
class Limits:
    """What the connections of one worker may take; times are in seconds."""

    connections: int = 10_000
    """How many are open at once; fewer where the process may not open so many files."""

    per_address: int = 2_000
    """How many are open at once of one address, unless it is a trusted proxy's."""

    per_client: int = 2_000
    """How many are open at once whose latest request had a key of one client, or a token of one."""

    trusted_proxies: tuple[str, ...] = ()
    """Networks, as 10.0.0.0/8, whose addresses stand for many clients."""

    silent_s: float = 75.0
    """From the connection's beginning to its first byte, if that is less than *idle_s*."""

    idle_gives_way: bool = False
    """Whether a connection for which there is no room takes the place of the one that has been idle for longest."""

    idle_s: float = 75.0
    """From the last request, or from the connection's beginning, to its first byte after that."""

    header_s: float = 10.0
    """From a request's first byte to the end of its header."""

    body_s: float = 30.0
    """From a request's first byte to the end of its body."""

    write_s: float = 10.0
    """For the client to take the next WRITE_STEP bytes of what is ready for it."""

    header_bytes: int = 16_384
    """The whole header of one request."""

    bytes_in_flight: int = 256 << 20
    """Bodies that are not answered, and answers that their clients have not taken; over it, bodies are refused."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One service: which stores, where it listens, how long it waits."""

    stores: tuple[str, ...]
    """URLs, the first to be read first."""

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    pin_workers: bool = False
    """Whether each worker keeps to a CPU of its own, of those that the service may use."""

    budget_s: float = BUDGET_S
    """What one request may spend on reads, all stores together."""

    cache_bytes: int = 64 << 20
    """What each worker keeps of the lists that it read from stores over a network; 0 for nothing."""

    drain_delay_s: float = 5.0
    """How long a service that is stopped by SIGTERM goes on accepting while it says that it is not ready: until load
    balancers have noticed."""

    drain_s: float = 10.0
    """How long a stopping worker goes on answering what it accepted."""

    admin_host: str = "127.0.0.1"
    admin_port: int = 8090
    """Where operators read and act; one listener for all workers, on this machine only by default."""

    health_host: str = "127.0.0.1"
    health_port: int = 8091
    """Where probes are answered in plain HTTP, by the parent of the workers; on this machine only by default."""

    admin_store: str | None = None
    """The URL of the store whose releases operators may change over HTTP, with the right to write; None for none."""

    access_log_share: float = 0.0
    """The share of requests that are logged, 0 … 1."""

    slow_request_s: float | None = None
    """How long a request takes to be logged whatever the share; None to log none for that."""

    access_log_users: Literal["hashed", "none", "plain"] = "hashed"
    """How a line stands for the user whose list was requested."""

    access_log_key: Path | None = None
    """The file with what users are hashed with; without one it is drawn at the start, and gone with the service."""

    telemetry: TelemetrySettings | None = None
    """Where traces and metrics go; None where telemetry is off."""

    scrub_rows_per_s: float = 0.0
    """How many rows of what is served are read and checked in the background; 0 for none."""

    lock_memory: bool = False
    """Whether the release that is served of a store of files is locked in memory."""

    keys: Path | None = None
    """The file of clients and their keys; without one, no key is needed."""

    anonymous: bool = False
    """Whether callers without a key may read, wherever they come from."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    """A certificate chain and its key; without them the service speaks plain HTTP."""

    oidc_issuer: str | None = None
    oidc_audience: str | None = None
    """The issuer whose tokens are accepted besides keys, and their audience."""
    deny_list: Path | None = None
    """The file of the items that no answer shows, and of the users who are answered as unknown."""

    fold_in: bool = False
    """Whether item factors are loaded with each release, so visitors get lists on the spot."""
    events: Path | None = None
    """The folder that each worker writes events to; None to take none."""

    cors_origins: tuple[str, ...] = ()
    """Which web pages of other origins may call the service."""

    fast_lane: bool = True
    """Whether the plainest requests are answered without aiohttp."""

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
