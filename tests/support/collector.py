"""A collector of OpenTelemetry over HTTP, and an ingestion endpoint of Azure Monitor: they keep what they are sent."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@dataclass(frozen=True, slots=True)
class Received:
    """One span as it came."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    failed: bool
    took_ns: int


@dataclass(slots=True)
class Collector:
    url: str
    status: int = 200
    delay_s: float = 0.0
    spans: list[Received] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    points: dict[str, list[tuple[dict[str, Any], int, float]]] = field(default_factory=dict)
    """By metric the attributes, count and sum of each series, of the latest report."""

    envelopes: list[dict[str, Any]] = field(default_factory=list)
    """What came for Azure Monitor."""

    paths: list[str] = field(default_factory=list)

    @property
    def servers(self) -> list[Received]:
        return [span for span in self.spans if span.kind == 2]

    @property
    def clients(self) -> list[Received]:
        return [span for span in self.spans if span.kind == 3]

    def until(self, count: int) -> list[Received]:
        """Wait until so many spans have come."""
        deadline = time.monotonic() + 60
        while len(self.spans) < count:
            assert time.monotonic() < deadline, self.spans
            time.sleep(0.02)
        return self.spans

    def take(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        if path == "/v1/traces":
            self._take_spans(ExportTraceServiceRequest.FromString(body))
        elif path == "/v1/metrics":
            self._take_metrics(ExportMetricsServiceRequest.FromString(body))
        else:
            self.envelopes += json.loads(body)

    def _take_spans(self, request: ExportTraceServiceRequest) -> None:
        for of_resource in request.resource_spans:
            self.resources.append(_plain(of_resource.resource.attributes))
            for span in (span for scope in of_resource.scope_spans for span in scope.spans):
                self.spans.append(
                    Received(
                        span.name,
                        span.kind,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.trace_state,
                        _plain(span.attributes),
                        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                        span.status.code == 2,
                        span.end_time_unix_nano - span.start_time_unix_nano,
                    )
                )

    def _take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        for metric in (m for r in request.resource_metrics for scope in r.scope_metrics for m in scope.metrics):
            points = metric.histogram.data_points
            assert all(len(point.bucket_counts) == len(point.explicit_bounds) + 1 for point in points)
            self.points[metric.name] = [(_plain(point.attributes), point.count, point.sum) for point in points]


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector on any free port of loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(running.delay_s)
            if running.status == 200:
                running.take(self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            answer = b'{"itemsReceived": 1, "itemsAccepted": 1, "errors": []}' if "track" in self.path else b""
            self.send_response(running.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name that it has there
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _plain(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 -- a container of protobuf's
    return {one.key: _value(one.value) for one in attributes if isinstance(one, KeyValue)}


def _value(value: AnyValue) -> Any:  # noqa: ANN401 -- whatever it is
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, str(kind))
