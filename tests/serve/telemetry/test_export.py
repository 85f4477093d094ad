"""What a collector sees: spans with their parents, and the shared counters; and a queue that never waits."""

import asyncio
import gzip
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import LOOKUP_COUNTS, REQUEST_TIMES, Metrics, request_cell
from hotplate.serve.settings import CONNECTION_STRING, Sampling, TelemetrySettings, read_telemetry
from hotplate.serve.telemetry.export import MetricReport, exporters_for
from hotplate.serve.telemetry.tracing import Tracer
from hotplate.serve.tiers.tier import tiers_of
from hotplate.stores.errors import StoreUnavailable
from tests.support.cosmos_account import Account
from tests.support.http_server import http_server
from tests.support.lane import Pair, exchange
from tests.support.memory_store import MemoryStore
from tests.support.processes import run_process
from tests.support.redis_server import RedisServer
from tests.support.remote import RemoteStore
from tests.support.service import a_list, publish_through, published, running, until


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


@dataclass(slots=True)
class Collector:
    url: str
    status: int = 200
    spans: list[Received] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    points: dict[str, list[tuple[dict[str, Any], int, float]]] = field(default_factory=dict)
    """By metric the attributes, count and sum of each series, of the latest report."""

    envelopes: list[dict[str, Any]] = field(default_factory=list)
    """What came for Azure Monitor."""

    @property
    def servers(self) -> list[Received]:
        return [span for span in self.spans if span.kind == 2]

    @property
    def clients(self) -> list[Received]:
        return [span for span in self.spans if span.kind == 3]

    def take(self, path: str, body: bytes) -> None:
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
                trace, own, parent = (span_id.hex() for span_id in (span.trace_id, span.span_id, span.parent_span_id))
                more = span.trace_state, _plain(span.attributes)
                self.spans.append(Received(span.name, span.kind, trace, own, parent, *more))

    def _take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        for metric in (m for r in request.resource_metrics for scope in r.scope_metrics for m in scope.metrics):
            points = metric.histogram.data_points
            assert all(len(point.bucket_counts) == len(point.explicit_bounds) + 1 for point in points)
            self.points[metric.name] = [(_plain(point.attributes), point.count, point.sum) for point in points]


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector until the block ends."""

    def respond(path: str, headers: Message, body: bytes) -> tuple[int, bytes]:
        if listener.status == 200:
            listener.take(path, gzip.decompress(body) if headers["Content-Encoding"] == "gzip" else body)
        return listener.status, b'{"itemsReceived": 1, "itemsAccepted": 1, "errors": []}' if "track" in path else b""

    with http_server(respond) as url:
        listener = Collector(url)
        yield listener


def _plain(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 -- a container of protobuf's
    return {attribute.key: _value(attribute.value) for attribute in attributes if isinstance(attribute, KeyValue)}


def _value(value: AnyValue) -> Any:  # noqa: ANN401 -- whatever it is
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(value) for value in value.array_value.values]
    return getattr(value, str(kind))


TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = f"Host: x\r\ntraceparent: 00-{TRACE}-{CALLER}-01\r\ntracestate: vendor=1\r\n\r\n"
LISTS = {f"user:{n}": a_list(f"{n}-1", f"{n}-2") for n in range(5)}
SETTINGS = TelemetrySettings("otlp", Sampling(1.0, parent_based=True))
INGESTION_KEY = "0a1b2c3d-0000-4000-8000-00000000abcd"


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\n{HEADERS}".encode()


def post(body: bytes) -> bytes:
    head = HEADERS.replace("\r\n\r\n", f"\r\nContent-Length: {len(body)}\r\n\r\n")
    return f"POST /v1/recommendations HTTP/1.1\r\n{head}".encode() + body


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Let loggers that telemetry makes quiet be as they were."""
    names = ("azure.monitor", "azure.core.pipeline")
    before = [logging.getLogger(name).level for name in names]
    yield
    for name, level in zip(names, before, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as running_one:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running_one.url)
        yield running_one


def recorded(reader: TieredReader, *requests: bytes, lane: bool = True) -> list[ReadableSpan]:
    """Answer requests concurrently, each on a new connection; return the recorded spans."""

    async def answer(tracer: Tracer) -> None:
        async with Pair(reader, tracer=tracer) as pair:
            server = pair.lane if lane else pair.plain
            await asyncio.gather(*(exchange(server, [request], 0.01) for request in requests))

    return recorded_by(answer)


def recorded_by(answer: Callable[[Tracer], Coroutine[object, object, None]]) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracer = Tracer(SETTINGS, exporter)
    asyncio.run(answer(tracer))
    tracer.close(60)
    return [span for span in exporter.get_finished_spans() if attributes_of(span).get("url.path") != "/livez"]


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def remote() -> RemoteStore:
    memory = MemoryStore()
    await publish_through(memory, LISTS)
    return RemoteStore(memory)


def by_kind(spans: list[ReadableSpan]) -> tuple[list[ReadableSpan], list[ReadableSpan]]:
    servers = [span for span in spans if span.kind is SpanKind.SERVER]
    return servers, [span for span in spans if span.kind is SpanKind.CLIENT]


@pytest.mark.parametrize("lane", [True, False])
def test_shared_read_is_a_child_span_of_the_first_linked_to_the_others(*, lane: bool) -> None:
    reader = TieredReader({"redis": asyncio.run(remote())}, budget_s=30.0)
    spans = recorded(reader, get("/v1/recommendations/1"), get("/v1/recommendations/2"), lane=lane)
    servers, clients = by_kind(spans)
    assert [span.name for span in servers] == ["GET /v1/recommendations/{user}"] * 2
    (read,) = clients
    servers.sort(key=lambda span: span.context != read.parent)
    assert read.parent == servers[0].context
    assert [link.context for link in read.links] == [servers[1].context]
    assert {span.context.trace_id for span in spans} == {int(TRACE, 16)}
    assert {span.parent and span.parent.span_id for span in servers} == {int(CALLER, 16)}
    assert all(attributes_of(span)["url.path"] == "/v1/recommendations/REDACTED" for span in servers)
    assert all(attributes_of(span)["hotplate.source"] == "personal" for span in servers)


def counts_of(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return how many requests and lists were counted, by the labels of their series."""
    requests = {labels: sum(cells[:-1]) for labels, cells in metrics.counted(REQUEST_TIMES).items()}
    lists = {labels: cells[0] for labels, cells in metrics.counted(LOOKUP_COUNTS).items() if cells[0]}
    return requests | lists


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("is_local", [True, False])
def test_traced_requests_and_their_lists_are_counted_once(*, lane: bool, is_local: bool) -> None:
    paths = ("recommendations/1", "recommendations/1", "recommendations/none", "similar/1", "popular", "popular?n=0")
    requests = [*(get(f"/v1/{path}") for path in paths), get("/nowhere"), post(b'{"users": ["1", "none", "none"]}')]

    def counted(tracer: Tracer | None) -> dict[tuple[str, ...], float]:
        store = asyncio.run(remote())
        reader = TieredReader({"redis": store.inner if is_local else store}, budget_s=30.0)

        async def answer() -> None:
            async with Pair(reader, tracer=tracer) as pair:
                server = pair.lane if lane else pair.plain
                await asyncio.gather(*(exchange(server, [request], 0.01) for request in requests))

        asyncio.run(answer())
        return counts_of(reader.metrics)

    tracer = Tracer(SETTINGS, InMemorySpanExporter())
    counts = counted(tracer)
    tracer.close(60)
    assert counts == counted(None)
    assert counts["/v1/recommendations/{user}", "GET", "200"] == 3
    assert counts["personal", "hit"] == 3
    assert counts["popular", "miss"] == 3
    assert counts["popular", "hit"] == 1


def test_batch_from_files_has_no_store_span() -> None:
    reader = TieredReader({"file": asyncio.run(remote()).inner})
    servers, clients = by_kind(recorded(reader, post(b'{"users":["1","2"]}')))
    assert (len(servers), clients) == (1, [])


def test_failed_spans_have_the_reason_and_the_fallback() -> None:
    first = asyncio.run(remote())
    reader = TieredReader({"cosmos": first, "redis": asyncio.run(remote())}, budget_s=30.0)

    async def fail_once_it_is_served(tracer: Tracer) -> None:
        async with Pair(reader, tracer=tracer) as pair:
            first.failure = StoreUnavailable("gone")
            await exchange(pair.lane, [get("/v1/recommendations/1")], 0.01)

    servers, (failed, read) = by_kind(recorded_by(fail_once_it_is_served))
    assert (attributes_of(failed)["error.type"], failed.status.is_ok) == ("StoreUnavailable", False)
    assert (attributes_of(read)["hotplate.tier"], read.status.is_ok) == ("redis", True)
    assert attributes_of(servers[0])["hotplate.tier"] == "redis"
    assert servers[0].status.is_ok


def test_a_collector_sees_a_read_of_redis_and_of_cosmos_by_the_conventions(
    sink: Collector, redis_server: RedisServer, cosmos_http: Account
) -> None:
    urls = redis_server.url(prefix=secrets.token_hex(4)), cosmos_http.url(secrets.token_hex(4))
    metrics = Metrics(1, ["redis", "cosmos+http"])
    for url in urls:
        published(url, LISTS)
        reader = TieredReader(tiers_of([url]), metrics=metrics, budget_s=30.0)
        requests = get("/v1/recommendations/1"), post(b'{"users": ["1", "2"]}'), get("/nowhere")
        assert all_sent(SETTINGS, recorded(reader, *requests))
    by_name = {span.name: span for span in sink.spans}
    servers = {span.span_id: span for span in sink.servers}
    assert all(span.trace_id == TRACE for span in sink.spans)
    assert all(span.parent_id in servers for span in sink.clients)
    assert all(span.parent_id == CALLER and span.state == "vendor=1" for span in sink.servers)
    assert by_name["GET"].attributes["http.response.status_code"] == 404
    assert by_name["MGET"].attributes.items() >= {
        "db.system.name": "redis", "server.address": "127.0.0.1", "server.port": redis_server.port, "db.namespace": "0",
    }.items()  # fmt: skip
    (client_span,) = [span for span in sink.clients if span.attributes["db.operation.name"] == "read_item"]
    assert client_span.attributes.items() >= {
        "db.system.name": "azure.cosmosdb", "db.response.status_code": "200", "server.address": "127.0.0.1",
        "azure.cosmosdb.consistency.level": "Eventual", "azure.cosmosdb.connection.mode": "gateway",
        "azure.cosmosdb.operation.request_charge": 1.0,
    }.items()  # fmt: skip
    assert len(client_span.attributes["azure.cosmosdb.operation.contacted_regions"]) == 1
    (many,) = [span for span in sink.clients if span.attributes["db.operation.name"] == "read_many_items"]
    assert many.attributes["azure.cosmosdb.operation.request_charge"] == 2.0
    MetricReport(SETTINGS, metrics, "http").send()
    charges = sink.points["azure.cosmosdb.client.operation.request_charge"]
    assert all(count >= 3 and ru >= 3 for _, count, ru in charges)


def test_metrics_are_cumulative_or_delta_shared_counters() -> None:
    metrics = Metrics(2, ["redis"])
    delta = TelemetrySettings("otlp", SETTINGS.sampling, delta=True)
    whole, new = (MetricReport(settings, metrics, "https") for settings in (SETTINGS, delta))
    for worker in (0, 1):
        metrics.in_slot(worker).observe(request_cell("/score", "POST", 503), 0.25)
    assert counted(whole) == counted(new) == [("http.server.request.duration", 2, 0.5)]
    replaced, anew = (MetricReport(settings, metrics, "https") for settings in (SETTINGS, delta))
    assert f'"start_time_unix_nano": {SETTINGS.started_ns},' in replaced.data().to_json()
    metrics.observe(metrics.store["redis", "get_many", "error"], 0.1)
    assert counted(anew) == counted(new) == [("db.client.operation.duration", 1, 0.1)]
    assert len(counted(whole)) == 2


def counted(report: MetricReport) -> list[tuple[str, int, float]]:
    (scope,) = report.data().resource_metrics[0].scope_metrics
    points: Any = [(metric.name, point) for metric in scope.metrics for point in metric.data.data_points]
    return [(name, point.count, point.sum) for name, point in points]


# Time to send the last spans and metrics to a collector that is late.
PATIENT = """
import hotplate.serve.processes.worker as worker
import hotplate.serve.telemetry.export as export
worker.FLUSH_S = export.LAST_S = 60.0
"""


def test_service_sends_traces_of_all_routes_and_flushes_at_exit(
    sink: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path / "store", LISTS)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    context = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    options = ("--telemetry", "otlp", "--access-log", "1", "--drain", "60")
    with running(tmp_path / "store", *options, before=PATIENT) as service:
        for path in ("/v1/recommendations/1", "/v1/recommendations/1?n=2&fields=id"):
            assert service.get(path, **context).status == 200
        assert service.get("/v1/popular", traceparent=f"00-{TRACE}-{CALLER}-00").status == 200
        service.stop()
        lines = [json.loads(line) for line in service.log.read_text().splitlines() if '"access"' in line]
    assert [span.name for span in sink.spans] == ["GET /v1/recommendations/{user}"] * 2
    assert [line.get("trace_id") for line in lines] == [TRACE, TRACE, None]
    assert [line["span_id"] for line in lines[:2]] == [span.span_id for span in sink.spans]
    assert lines[0]["user"] == lines[1]["user"] != "1"
    assert sink.resources[0]["service.name"] == "shop"
    assert sink.resources[0]["deployment.environment.name"] == "test"
    counts = {attributes["http.route"]: count for attributes, count, _ in sink.points["http.server.request.duration"]}
    assert counts == {"/v1/recommendations/{user}": 2, "/v1/popular": 1}
    assert [point[0]["db.system.name"] for point in sink.points["db.client.operation.duration"]] == ["lmdb"]


def test_service_is_unaffected_by_a_silent_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "store", LISTS)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "5")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        service = stack.enter_context(running(tmp_path / "store", "--telemetry", "otlp"))

        def is_full() -> bool:
            for _ in range(20):
                assert service.get("/v1/recommendations/1").json["source"] == "personal"
            return "Queue full, dropping Span" in service.log.read_text()

        until(is_full, "no span is dropped")
        assert service.stop() == 0


def test_azure_monitor_receives_spans_and_metrics_and_key_is_never_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spans = recorded(TieredReader({"redis": asyncio.run(remote())}, budget_s=30.0), get("/v1/recommendations/1"))
    with collector() as sink, caplog.at_level(logging.DEBUG):
        settings = azure(f"InstrumentationKey={INGESTION_KEY};IngestionEndpoint={sink.url}/")
        assert all_sent(settings, spans)
        metrics = Metrics(1, ["redis"])
        report = MetricReport(settings, metrics, "http")
        metrics.observe(request_cell("/score", "POST", 200), 0.25)
        report.send()
        sent: dict[str, Any] = {envelope["data"]["baseType"]: envelope for envelope in sink.envelopes}
        sink.status = 500
        assert not all_sent(settings, spans)
    assert sent.keys() == {"RequestData", "RemoteDependencyData", "MetricData"}
    assert sent["RequestData"]["tags"]["ai.operation.id"] == TRACE
    assert INGESTION_KEY not in caplog.text + repr(settings)


def test_invalid_connection_string_is_an_error() -> None:
    for wrong in ("InstrumentationKey=none", f"InstrumentationKey={INGESTION_KEY};whole"):
        with pytest.raises(ServiceMisused, match="is not a connection string") as refused:
            exporters_for(azure(wrong))
        assert wrong not in str(refused.value)


def all_sent(settings: TelemetrySettings, spans: Sequence[ReadableSpan]) -> bool:
    """Send spans by the exporter that the settings name; return whether it took them."""
    exporter = exporters_for(settings).spans()
    result = exporter.export(spans)
    exporter.shutdown()
    return result is SpanExportResult.SUCCESS


def azure(connection_string: str) -> TelemetrySettings:
    read = read_telemetry("azure-monitor", {CONNECTION_STRING: connection_string})
    assert read is not None
    assert read.delta
    return read


@pytest.mark.parametrize(("destination", "extra"), [("otlp", "telemetry"), ("azure-monitor", "azure-monitor")])
def test_one_command_installs_what_a_destination_needs(destination: str, extra: str) -> None:
    program = "import sys; sys.modules['opentelemetry'] = None; from hotplate.__main__ import main; main()"
    done = run_process(
        sys.executable,
        "-c",
        program,
        "serve",
        "--telemetry",
        destination,
        "--store",
        "file:///absent",
        code=2,
        env={**os.environ, CONNECTION_STRING: "InstrumentationKey=00000000-0000-0000-0000-000000000000"},
    )
    assert f"pip install 'hotplate[{extra}]'" in done.stderr
