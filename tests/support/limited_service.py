"""A service with limits that tests can reach, and raw sockets that reach them."""

import re
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.redis_server import certify
from tests.support.service import UNVERIFIED, Service, running

WAIT_S = 30.0
MB = 1 << 20

# Serves within the fields of `Limits` in LIMITS.
WITHIN_LIMITS = """
from dataclasses import replace
from hotplate.serve.processes import supervisor
from hotplate.serve.settings import Limits
serve = supervisor.serve
def serve_within_limits(settings, announce):
    serve(replace(settings, limits=Limits(**LIMITS)), announce)
supervisor.serve = serve_within_limits
"""
LIMIT_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))"


@contextmanager
def limited(
    store: Path, *given: str, files: int | None = None, tls: bool = False, before: str = "", **limits: object
) -> Iterator[Service]:
    """Serve the store in a folder within *limits*, until the block ends; *before* is Python source, as of `serving`.

    *given* are further options of the command.
    """
    options = [*given]
    if tls:
        certify(store.parent)
        options += ["--tls-cert", f"{store.parent}/server.pem", "--tls-key", f"{store.parent}/server.key"]
    before += f"\nLIMITS = {limits!r}\n{WITHIN_LIMITS}"
    if files is not None:
        before += f"FILES = {files}\n{LIMIT_FILES}"
    with running(store, *options, before=before) as service:
        yield service


def allow_files(count: int) -> bool:
    """Let this process open at least this many files; return False if it may not."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most >= count > now:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
    return most >= count


def worker_of(service: Service) -> int:
    """Return the process of a service's one worker."""
    (worker,) = service.workers()
    return worker


def memory_mb(service: Service) -> float:
    """Return the memory of the worker that is its own; the pages of the release's file can be dropped."""
    lines = Path(f"/proc/{worker_of(service)}/status").read_text()
    return sum(int(kb) for kb in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", lines)) / 1024


def shed(service: Service, reason: str) -> float:
    """Return how much was shed for a reason."""
    return counted(service, "hotplate_shed_total", reason=reason)


def counted(service: Service, name: str, **labels: str) -> float:
    """Add up what `/metrics` counts under *name*, of all series with these labels."""
    return sum(sample.value for sample in samples(service, name, **labels))


def samples(service: Service, name: str = "", **labels: str) -> list[Sample]:
    """Return what `/metrics` says under *name*, or of everything, with these labels."""
    lines = service.admin("/metrics").body.decode().splitlines(keepends=True)
    text = "".join(line for line in lines if line.startswith(name))
    return [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if name in {"", sample.name} and labels.items() <= sample.labels.items()
    ]


@contextmanager
def sockets(service: Service, count: int = 1, receive_bytes: int = 0) -> Iterator[list[socket.socket]]:
    """Open this many connections; they are reset at the end of the block, which leaves no port in TIME_WAIT."""
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for place, connection in enumerate(opened):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if receive_bytes:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            connection.settimeout(WAIT_S)
            connection.connect(("127.0.0.1", service.port))
            if service.tls:
                opened[place] = stack.enter_context(UNVERIFIED.wrap_socket(connection))
        yield opened
