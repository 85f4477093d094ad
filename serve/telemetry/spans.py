"""Records of requests for the access log, and spans of sampled requests and their store calls.

Spans are plain tuples, which a thread converts for the SDK. Recording one takes 8 µs, a ReadableSpan 26 µs, a span of
the SDK's tracer 80 µs (a plain GET takes 12 µs).
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from random import getrandbits
from time import perf_counter, time_ns
from typing import NamedTuple, TypeVar

from hotplate.serve.metrics import METHODS, OTHER
from hotplate.serve.settings import Sampling
from hotplate.stores.store import Attribute, TracedCall, traced_call

T = TypeVar("T")

# Sampling uses the lower half of the trace id, as in OpenTelemetry's SDKs.
HALF = (1 << 64) - 1
# Replaces ids in exported paths.
REDACTED = "REDACTED"
SYSTEMS = {"redis": "redis", "rediss": "redis", "cosmos": "azure.cosmosdb", "file": "lmdb"}

# W3C Trace Context: only versions after 00 may have more fields.
_traceparent = re.compile(
    r"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})"
    r"-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])(?:-.*)?"
).fullmatch
# Index of the last digit of the flags, and its values if sampled.
FLAG = 54
SAMPLED = frozenset("13579bdf")
# Forwarded to stores, so without line breaks.
_tracestate = re.compile(r"[\x20-\x7e]{1,512}").fullmatch


class _SampledFlags(NamedTuple):
    sampled: bool = True


class _SampledContext(NamedTuple):
    trace_flags: _SampledFlags = _SampledFlags()


SAMPLED_CONTEXT = _SampledContext()


class ListOrigin(NamedTuple):
    """Origin and content of the list in an answer."""

    release: str
    source: str
    tier: str
    items: bytes
    """As encoded in a list."""
    name: str = ""
    """Of a named list."""


class RequestRecord(NamedTuple):
    """One answered request."""

    route: str
    """Template or OTHER."""
    method: str
    status: int
    took_s: float
    size: int | None
    """Of the body in bytes; None for streams."""
    request_id: str
    client: str | None
    user: str | None = None
    """Hashed by the access log, and used only there."""
    found: ListOrigin | None = None


class Span(NamedTuple):
    """An ended span; times are Unix times in nanoseconds."""

    name: str
    is_server: bool
    trace_id: int
    span_id: int
    parent_id: int | None
    tracestate: str | None
    started_ns: int
    ended_ns: int
    attributes: dict[str, Attribute]
    failed: bool
    links: Sequence[tuple[int, int]] = ()
    """Trace and span ids."""
    context: _SampledContext = SAMPLED_CONTEXT
    """Checked by the SDK's batch processor."""


class Tracer:
    """Starts the spans of sampled requests."""

    def __init__(self, sampling: Sampling, record: Callable[[Span], None], scheme: str = "http") -> None:
        self.record = record
        self.scheme = scheme
        self._parent_based = sampling.parent_based
        self._bound = round(sampling.share * (HALF + 1))

    def begin(self, traceparent: str | None, tracestate: str | None) -> "RequestSpan | None":
        """Start a span of a request with these headers, if sampled."""
        half = getrandbits(64)
        if half >= self._bound and (
            traceparent is None or (self._parent_based and traceparent[FLAG : FLAG + 1] not in SAMPLED)
        ):
            return None  # decided without parsing
        parent = None if traceparent is None else _traceparent(traceparent)
        if parent is None:
            return RequestSpan(self, getrandbits(64) << 64 | half) if half < self._bound else None
        if self._parent_based:
            if parent[3] not in SAMPLED:
                return None
        elif int(parent[1][16:], 16) >= self._bound:
            return None
        is_valid = tracestate is not None and _tracestate(tracestate) is not None
        return RequestSpan(self, int(parent[1], 16), int(parent[2], 16), tracestate if is_valid else None)


class RequestSpan:
    """The span of a request in progress."""

    __slots__ = ("_started_ns", "_tracer", "_tracestate", "parent_id", "span_id", "trace_id")

    def __init__(
        self, tracer: Tracer, trace_id: int, parent_id: int | None = None, tracestate: str | None = None
    ) -> None:
        self.trace_id = trace_id
        self.span_id = getrandbits(64) or 1
        self._tracer = tracer
        self.parent_id = parent_id
        self._tracestate = tracestate
        self._started_ns = time_ns()

    def end(self, record: RequestRecord) -> None:
        """Record the span."""
        method = record.method if record.method in METHODS else "_OTHER"
        attributes: dict[str, Attribute] = {
            "http.request.method": method,
            "http.response.status_code": record.status,
            "url.scheme": self._tracer.scheme,
            "url.path": _redacted(record.route),
            "hotplate.request_id": record.request_id,
        }
        name = "HTTP" if method == "_OTHER" else method
        if record.route != OTHER:
            attributes["http.route"] = record.route
            name = f"{name} {record.route}"
        if record.client:
            attributes["hotplate.client"] = record.client
        if record.found is not None:
            attributes["hotplate.release"] = record.found.release
            attributes["hotplate.source"] = record.found.source
            attributes["hotplate.tier"] = record.found.tier
        failed = record.status >= 500
        if failed:
            attributes["error.type"] = str(record.status)
        ended_ns = self._started_ns + int(record.took_s * 1e9)
        ids = self.trace_id, self.span_id, self.parent_id
        self._tracer.record(Span(name, True, *ids, self._tracestate, self._started_ns, ended_ns, attributes, failed))

    def headers(self, span_id: int) -> bytes:
        """Return the trace context for a child span as HTTP header lines."""
        state = f"tracestate: {self._tracestate}\r\n" if self._tracestate else ""
        return f"traceparent: 00-{self.trace_id:032x}-{span_id:016x}-01\r\n{state}".encode()

    def end_call(
        self, span_id: int, call: TracedCall, times_ns: tuple[int, int], others: "Sequence[RequestSpan]"
    ) -> None:
        """Record a store call made for this request and *others*."""
        attributes = call.attributes
        name = str(attributes["db.operation.name"])
        if "db.collection.name" in attributes:
            name = f"{name} {attributes['db.collection.name']}"
        links = [(other.trace_id, other.span_id) for other in others]
        ids = (self.trace_id, span_id, self.span_id)
        failed = "error.type" in attributes
        self._tracer.record(Span(name, False, *ids, self._tracestate, *times_ns, attributes, failed, links))


# Of the current context; several if their look-ups are read together.
sampled_requests = ContextVar[tuple[RequestSpan, ...]]("sampled_requests", default=())


@contextmanager
def use_span(span: RequestSpan) -> Iterator[None]:
    """Attribute store calls in this block, also in its tasks, to a request."""
    token = sampled_requests.set((span,))
    try:
        yield
    finally:
        sampled_requests.reset(token)


async def traced(reading: Awaitable[T], spans: Sequence[RequestSpan], tier: str, keys: int) -> T:
    """Await a read, in a child span of the first of *spans*, linked to the others."""
    first, *others = spans
    span_id = getrandbits(64) or 1
    call = TracedCall(
        first.headers(span_id),
        {"db.system.name": system_of(tier), "db.operation.name": "get_many", "hotplate.tier": tier},
    )
    if keys > 1:
        call.attributes["hotplate.keys"] = keys
    token = traced_call.set(call)
    started_ns = time_ns()
    started = perf_counter()
    try:
        return await reading
    except BaseException as error:
        # Deadlines cancel reads.
        kind = "timeout" if isinstance(error, asyncio.CancelledError) else type(error).__name__
        call.attributes.setdefault("error.type", kind)
        raise
    finally:
        traced_call.reset(token)
        first.end_call(span_id, call, (started_ns, started_ns + int((perf_counter() - started) * 1e9)), others)


def system_of(tier: str) -> str:
    """Return the `db.system.name` of a tier."""
    scheme = tier.rpartition("-")[0] if tier.rpartition("-")[2].isdigit() else tier
    return SYSTEMS.get(scheme.partition("+")[0], scheme)


def _redacted(route: str) -> str:
    if route == OTHER:
        return f"/{REDACTED}"
    return f"{route.partition('{')[0]}{REDACTED}" if "{" in route else route
