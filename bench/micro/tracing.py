"""What tracing adds to a GET: where it is off, where nothing is sampled, a hundredth, and everything.

The same GETs in this process, from the bytes of a request to those of its response, over connections in memory. A
process of its own takes the spans. What a worker has a thread for, making and sending them, is done here between the
GETs of a variant, as the time of a thread would count with whichever is on.
"""

import asyncio
import gc
import os
import random
import socketserver
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from http.server import BaseHTTPRequestHandler

import uvloop

from bench.lists import Shape
from bench.micro.guards import CONNECTIONS, GETS, Client
from bench.micro.publishing import publish_to
from bench.micro.rounds import HEADERS, Effort, Figure, Outcome, Sample, Stopwatch, at_most, cpu_difference, path_of
from bench.process import on_core
from serve.api.app import Dispatcher
from serve.connections.connection import Connection
from serve.connections.lane import Lane
from serve.connections.server import Server
from serve.reader import open_reader
from serve.telemetry.settings import TelemetrySettings
from serve.telemetry.spans import Sampling, Span, Tracer

SERVED = Shape(1_000, items=20, title_chars=17)
# What a GET may cost more where no request is sampled, and where a hundredth is, in µs of CPU.
UNSAMPLED_US, SAMPLED_US = 0.5, 2
# Variants by what is sampled; None has no telemetry.
SHARES: Mapping[str, float | None] = {"off": None, "0 %": 0.0, "1 %": 0.01, "100 %": 1.0}


class Variant:
    """A service, and its clients; *lane*: whether the fast lane answers."""

    def __init__(self, dispatcher: Dispatcher, send: Callable[[], None], *, lane: bool) -> None:
        """Take what sends the spans that there are."""
        loop = asyncio.get_running_loop()
        server = Server(dispatcher)
        if lane:
            server.lane = Lane(dispatcher)
        self._send = send
        self._clients = [Client(loop, Connection(server, "127.0.0.1", "")) for _ in range(CONNECTIONS)]

    async def answer(self, requests: list[bytes], watch: Stopwatch) -> None:
        """Answer *requests*, and add the time that it took."""
        shared = iter(requests)
        with watch.running():
            await asyncio.gather(*[client.send(shared) for client in self._clients])
            self._send()


def measure(effort: Effort) -> list[Outcome]:
    """Serve the same GETs with each share of sampled requests, in turn."""
    from serve.telemetry.sdk.exporters import SpanSender  # noqa: F401, PLC0415 -- fails here where the extra is missing

    with tempfile.TemporaryDirectory() as folder, collecting(), on_core(0):
        publish_to(f"file://{folder}", SERVED, SERVED.values())
        taken = uvloop.run(_rounds(folder, effort))
    goals = {"0 %": at_most(UNSAMPLED_US), "1 %": at_most(SAMPLED_US), "100 %": None}
    off = [one.cpu_us_per_op for one in taken["off"]]
    outcomes: list[Outcome] = [Figure("GET in process, tracing off: CPU", "µs/request", off)]
    for share, goal in goals.items():
        outcomes.append(cpu_difference(f"tracing of {share} adds to a GET", taken[share], taken["off"], goal=goal))
    for kind in ("by aiohttp", "in a caller's trace"):
        what = f"tracing of 1 % adds to a GET {kind}"
        outcomes.append(cpu_difference(what, taken[f"1 % {kind}"], taken[f"off {kind}"], goal=at_most(SAMPLED_US)))
    return outcomes


async def _rounds(folder: str, effort: Effort) -> dict[str, list[Sample]]:
    """Return a sample of each variant for each round."""
    plain, in_traces = _requests(in_traces=False), _requests(in_traces=True)
    async with AsyncExitStack() as stack:

        async def variant(share: float | None, *, lane: bool = True) -> Variant:
            reader = await stack.enter_async_context(open_reader([f"file://{folder}"]))
            await reader.wait_until_ready(10)
            tracer, send = (None, lambda: None) if share is None else tracing(share)
            return Variant(Dispatcher(reader, tracer=tracer), send, lane=lane)

        variants = {name: (await variant(share), plain) for name, share in SHARES.items()}
        for name in ("off", "1 %"):
            variants[f"{name} by aiohttp"] = await variant(SHARES[name], lane=False), plain
            variants[f"{name} in a caller's trace"] = await variant(SHARES[name]), in_traces
        for each, requests in variants.values():
            await each.answer(requests, Stopwatch())  # warms up, and is not kept
        names = list(variants)
        gc.collect()
        gc.freeze()
        try:
            taken: dict[str, list[Sample]] = {name: [] for name in variants}
            for _ in range(effort.rounds):
                watches, passes = {name: Stopwatch() for name in variants}, 0
                while passes == 0 or watches["off"].wall_s < effort.round_s:
                    passes += 1
                    random.shuffle(names)  # none is always the one after another
                    for name in names:
                        each, requests = variants[name]
                        await each.answer(requests, watches[name])
                for name, total in watches.items():
                    taken[name].append(total.sample(passes * GETS))
        finally:
            gc.unfreeze()
    return taken


def _requests(*, in_traces: bool) -> list[bytes]:
    """Return GETs; *in_traces*: each in a trace of its caller, who samples a hundredth of them."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "x", **HEADERS}.items())

    def trace(number: int) -> str:
        return f"traceparent: 00-{number + 1:032x}-{number + 1:016x}-{number % 100 == 0:02x}\r\n" if in_traces else ""

    gets = (f"GET {path_of(n % SERVED.users)} HTTP/1.1\r\n{headers}{trace(n)}\r\n" for n in range(GETS))
    return [one.encode() for one in gets]


def tracing(share: float) -> tuple[Tracer, Callable[[], None]]:
    """Return what samples a share of requests, and what sends their spans, in batches as a worker does."""
    from serve.telemetry.sdk.exporters import SpanSender  # noqa: PLC0415 -- an extra

    settings = TelemetrySettings("otlp", Sampling(share, parent_based=True))
    sender, spans = SpanSender(settings), deque[Span]()

    def send() -> None:
        while len(spans) >= settings.batch_size:
            if not sender.send([spans.popleft() for _ in range(settings.batch_size)]):
                raise RuntimeError("the collector does not take spans")

    return Tracer(settings.sampling, spans.append), send


@contextmanager
def collecting() -> Iterator[None]:
    """Run a collector in a process of its own, which exporters of this one send to."""
    command = [sys.executable, "-m", "bench.micro.tracing"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 -- our own
        assert process.stdout is not None  # noqa: S101 -- it was requested
        before = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = process.stdout.readline().strip()
        try:
            yield
        finally:
            process.terminate()
            del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
            if before is not None:
                os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = before


class _Taker(BaseHTTPRequestHandler):
    """Takes whatever comes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer that it was taken."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Be a collector, and print where."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Taker) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
