"""Connections without a network: how requests are read, queued and refused, however their bytes arrive."""

import asyncio
import re
import socket
from itertools import pairwise

import orjson
from hypothesis import strategies as st

from hotplate.bench.cosmos_emulator.http import HttpConnection, HttpResponse, Request
from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from tests.support.cosmos_server import emulator_thread
from tests.support.property import depths, explore


class Sink(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def fed(pieces: list[bytes]) -> tuple[list[Request], Sink]:
    """Feed a connection with pieces; returns the requests that it understood, and what it wrote."""
    requests = list[Request]()

    def handle(request: Request) -> HttpResponse:
        requests.append(request)
        return HttpResponse(200, b"{}")

    async def feed() -> Sink:
        sink = Sink()
        connection = HttpConnection(handle, set(), 0, "http")
        connection.connection_made(sink)
        for piece in pieces:
            connection.data_received(piece)
        connection.connection_lost(None)
        return sink

    return requests, asyncio.run(feed())


WHOLE = b'POST /dbs HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n{"a":1}GET /offers HTTP/1.1\r\nhost: x\r\n\r\n'


@depths(quick=30, soak=1500)
def test_requests_are_the_same_however_they_are_cut(examples: int) -> None:
    def check(cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(WHOLE)]
        requests, sink = fed([WHOLE[start:end] for start, end in pairwise(edges)])
        assert [(one.method, one.path, one.body) for one in requests] == [
            ("POST", "/dbs", b'{"a":1}'),
            ("GET", "/offers", b""),
        ]
        assert sink.written.count(b"HTTP/1.1 200 OK") == 2

    explore(check, examples, cuts=st.lists(st.integers(0, len(WHOLE)), max_size=12))


def test_a_body_that_is_too_large_is_read_and_refused() -> None:
    requests, sink = fed([b"POST /dbs HTTP/1.1\r\ncontent-length: 3000000\r\n\r\n", *[b"x" * 100_000] * 30])
    assert (requests, sink.closed) == ([], False)
    assert b" 413 " in sink.written


def test_a_delayed_response_keeps_its_place_in_the_pipeline() -> None:
    with emulator_thread(EmulatorSettings(port=0)) as (server, _):
        port = int(server.endpoint.rstrip("/").rpartition(":")[2])
        fault = orjson.dumps([{"kind": "slow", "delay_ms": 100, "operation": "read account"}])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(
                b"PUT /__emulation/faults HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(fault), fault)
                + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
                + b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            )
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"204", b"401", b"404"]
