"""A service with limits that tests can reach, and raw sockets that reach them.

As a command (`python -m tests.support.limited_service JSON`) it serves what the JSON says: the store, any field of the
limits, and how many files the service may open.
"""

import json
import logging
import re
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client.samples import Sample

from hotplate.bench.process import read_samples
from tests.support.redis_server import certify
from tests.support.service import UNVERIFIED, Service, started

WAIT_S = 30.0
MB = 1 << 20


@contextmanager
def limited(store: Path, *, files: int | None = None, tls: bool = False, **limits: object) -> Iterator[Service]:
    """Serve the store in a folder within *limits*, until the block ends."""
    certify(store.parent)
    options = json.dumps({"store": str(store), "files": files, "tls": tls, "limits": limits})
    with started(store.parent, [sys.executable, "-m", "tests.support.limited_service", options]) as service:
        yield service


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
    return [
        sample
        for sample in read_samples(f"{service.admin_url}/metrics")
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


def allow_files(count: int) -> bool:
    """Let this process open at least this many files; return False if it may not."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most >= count > now:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
    return most >= count


def main() -> None:
    from hotplate.serve.processes.supervisor import serve  # noqa: PLC0415 -- only the command serves
    from hotplate.serve.settings import Limits, ServiceSettings, configure_logging  # noqa: PLC0415 -- only the command serves

    options = json.loads(sys.argv[1])
    configure_logging()
    if options["files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options["files"], options["files"]))
    limits = Limits(**options["limits"])
    pair = [Path(options["store"]).parent / name if options["tls"] else None for name in ("server.pem", "server.key")]
    settings = ServiceSettings(
        (f"file://{options['store']}",), port=0, admin_port=0, health_port=0, drain_delay_s=0.0, limits=limits,
        tls_cert=pair[0], tls_key=pair[1],
    )  # fmt: skip
    said = "serving a store on %s, and for operators on %s; probes are answered on %s"
    serve(settings, lambda addresses: logging.getLogger(__name__).info(said, *addresses))


if __name__ == "__main__":
    main()
