"""Requests of others stay quick under floods of small pieces, beside slow clients and thousands of idle ones."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import pytest

from hotplate.serve.access.keys import create
from tests.support.limited_service import MB, allow_files, limited, memory_mb, shed, sockets, worker_of
from tests.support.service import Service, a_list, published

SECONDS = 4.0
# The slowest machine seen takes up to 200 ms; without limits, it is seconds.
P99_MS = 400.0
CLIENTS = 20
POST = b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"users":["1"]}'.ljust(MB - 1)


def chunks(size: int) -> bytes:
    parts = [BODY[start : start + size] for start in range(0, len(BODY), size)]
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def values(start: bytes, value: bytes) -> bytes:
    body = start + value * (MB // len(value) - 10) + value[:-1] + b"]}"
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


# What each client sends, again and again, and the statuses of the refusals.
FLOODS = {
    "one-byte chunks": (chunks(1), {413}),
    "28-byte chunks": (chunks(28), {413}),
    "empty lines": (b"\r\n" * MB, {408}),
    "empty lines in chunks": (CHUNKED + b"fa0\r\n%b\r\n" % (b"\r\n" * 2000) * 200 + b"0\r\n\r\n", {400}),
    "header lines": (b"GET /v1/popular HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * 3000 + b"\r\n", {400}),
    "arrays": (values(b'{"users":[', b"[],"), {400}),
    "unknown objects": (values(b'{"other":[', b"{},"), {400}),
}

# Sends what is read from standard input by CLIENTS clients on one core until that is closed, and prints the statuses.
ATTACK = """
import asyncio, os, sys
port, clients, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
sent = sys.stdin.buffer.read()

async def attack(until):
    statuses = []
    while asyncio.get_running_loop().time() < until:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            line = await reader.readline()
            statuses.append(line[9:12].decode())
            writer.close()
        except OSError:
            pass
    return statuses

async def main():
    until = asyncio.get_running_loop().time() + seconds
    found = await asyncio.gather(*(attack(until) for _ in range(clients)))
    print(*sorted(set(sum(found, []))))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("floods") / "store"
    published(folder, {f"user:{n}": a_list(*map(str, range(20))) for n in range(100)})
    return folder


@contextmanager
def attacked(service: Service, sent: bytes) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", ATTACK, str(service.port), str(CLIENTS), str(SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(sent)
        process.stdin.close()
        yield process


@contextmanager
def slow_clients(service: Service) -> Iterator[None]:
    """Keep clients that send a header byte by byte, and clients that do not read their answers."""
    over = Event()

    def dribble() -> None:
        while not over.wait(0.2):
            for connection in slow:
                with suppress(OSError):
                    connection.send(b"x")

    with sockets(service, 100) as slow, sockets(service, 100, receive_bytes=4096) as unread:
        for connection in slow:
            connection.sendall(b"GET /v1/popular HTTP/1.1\r\nX: ")
        for connection in unread:
            connection.setblocking(False)
            with suppress(OSError):
                connection.send(b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        thread = Thread(target=dribble)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Measured(NamedTuple):
    p99_ms: float
    peak_mb: float
    statuses: set[int]
    is_same_worker: bool
    refused_chunks: float


def request_lists(service: Service, headers: dict[str, str]) -> tuple[float, float]:
    """Request lists for SECONDS; return the 99th percentile of the times in ms, and the peak of the memory in MB."""
    times = list[float]()
    peak_mb = 0.0
    ends_at = time.monotonic() + SECONDS
    connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
    while time.monotonic() < ends_at:
        started = time.monotonic()
        connection.request("GET", f"/v1/recommendations/{len(times) % 100}", headers=headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        times.append(time.monotonic() - started)
        if len(times) % 10 == 0:
            peak_mb = max(peak_mb, memory_mb(service))
        time.sleep(0.005)
    connection.close()
    return sorted(times)[int(len(times) * 0.99)] * 1000, peak_mb


def measure(store: Path, options: list[str], headers: dict[str, str], sent: bytes) -> Measured:
    """Measure a service that is flooded, beside slow clients and idle connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    idle = min(10_000, most - 1000)
    allow_files(idle + 500)
    with limited(store, *options, connections=idle + 1000, header_s=2.0) as service:
        worker = worker_of(service)
        with sockets(service, idle), slow_clients(service), attacked(service, sent) as attack:
            p99_ms, peak_mb = request_lists(service, headers)
            assert attack.stdout is not None
            statuses = {int(status) for status in attack.stdout.read().split()}
        return Measured(p99_ms, peak_mb, statuses, worker_of(service) == worker, shed(service, "chunks"))


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("with_key", [False, True], ids=["anonymous", "with a key"])
@pytest.mark.parametrize("flood", FLOODS)
def test_lists_are_answered_in_time_during_a_flood(
    store: Path, tmp_path: Path, flood: str, *, with_key: bool, record_property: Callable[[str, object], None]
) -> None:
    headers = dict[str, str]()
    options = list[str]()
    if with_key:
        keys = tmp_path / "keys.json"
        headers = {"X-API-Key": create(keys, "reader", ["read"]).key}
        options = ["--keys", str(keys)]
    line = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()

    sent, statuses = FLOODS[flood]
    flooded = measure(store, options, headers, sent.replace(b"Host: a\r\n", b"Host: a\r\n" + line, 1))
    record_property("p99 in ms", flooded.p99_ms)
    record_property("memory in MB", flooded.peak_mb)
    assert flooded.is_same_worker, "the worker was ended"
    assert flooded.statuses == statuses
    assert flooded.p99_ms <= P99_MS
    if 413 in statuses:
        assert flooded.refused_chunks > 0
        usual = measure(store, options, headers, chunks(5000).replace(b"Host: a\r\n", b"Host: a\r\n" + line, 1))
        assert flooded.peak_mb <= 1.3 * usual.peak_mb
