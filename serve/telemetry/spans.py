"""Records of requests for the access log, and spans of sampled requests and their store calls.

Spans are plain tuples, which a thread converts for the SDK. Recording one takes 8 µs, a ReadableSpan 26 µs, a span of
the SDK's tracer 80 µs (a GET from Redis takes 12.3 µs: `tools/test_peers.py`).
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
_match_traceparent = re.compile(
    r"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})"
    r"-(?!0{32})(?P<trace_id>[0-9a-f]{32})-(?!0{16})(?P<span_id>[0-9a-f]{16})-[0-9a-f](?P<flags>[0-9a-f])(?:-.*)?"
).fullmatch
# Index of the last digit of the flags, and its values if sampled.
FLAGS_AT = 54
SAMPLED = frozenset("13579bdf")
# Forwarded to stores, so without line breaks.
_match_tracestate = re.compile(r"[\x20-\x7e]{1,512}").fullmatch


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
    list_origin: ListOrigin | None = None


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
        """Start the span of a request, its part of a trace; None if the request is not sampled.

        *traceparent* and *tracestate* are the values of its headers of W3C Trace Context, None if it has none.
        A request with a valid traceparent continues its caller's trace, others begin a trace with a random id. A trace
        is sampled if the lower half of its id is below a bound, the share of sampled requests times 2**64. If sampling
        is parent-based, the caller's flag decides instead.
        """
        # A new trace is decided first, so that most requests need no parsing.
        new_half = getrandbits(64)
        is_new_sampled = new_half < self._bound
        parent = None
        if traceparent is not None:
            # Whether this header is valid or not, the request is not sampled.
            if not is_new_sampled and self._parent_based and traceparent[FLAGS_AT : FLAGS_AT + 1] not in SAMPLED:
                return None
            parent = _match_traceparent(traceparent)

        # Begin a trace.
        if parent is None:
            return RequestSpan(self, trace_id=getrandbits(64) << 64 | new_half) if is_new_sampled else None

        # Continue the caller's trace.
        trace_id = int(parent["trace_id"], 16)
        is_sampled = parent["flags"] in SAMPLED if self._parent_based else trace_id & HALF < self._bound
        if not is_sampled:
            return None
        if tracestate is not None and _match_tracestate(tracestate) is None:
            tracestate = None
        return RequestSpan(self, trace_id, parent_id=int(parent["span_id"], 16), tracestate=tracestate)


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
        """Record the span of an answered request, with attributes by OpenTelemetry's conventions for HTTP.

        The name of the span is the method and the route's path, such as `GET /v1/recommendations/{user}`.
        """
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
        if record.list_origin is not None:
            attributes["hotplate.release"] = record.list_origin.release
            attributes["hotplate.source"] = record.list_origin.source
            attributes["hotplate.tier"] = record.list_origin.tier

        failed = record.status >= 500
        if failed:
            attributes["error.type"] = str(record.status)

        self._tracer.record(
            Span(
                name=name,
                is_server=True,
                trace_id=self.trace_id,
                span_id=self.span_id,
                parent_id=self.parent_id,
                tracestate=self._tracestate,
                started_ns=self._started_ns,
                ended_ns=self._started_ns + int(record.took_s * 1e9),
                attributes=attributes,
                failed=failed,
            )
        )

    def headers(self, span_id: int) -> bytes:
        """Return the trace context for a child span as HTTP header lines."""
        state = f"tracestate: {self._tracestate}\r\n" if self._tracestate else ""
        return f"traceparent: 00-{self.trace_id:032x}-{span_id:016x}-01\r\n{state}".encode()

    def record_store_call(
        self, call: TracedCall, *, span_id: int, started_ns: int, took_ns: int, others: "Sequence[RequestSpan]"
    ) -> None:
        """Record a call of a store as a child span of this one, with attributes that the store may have added to.

        *span_id* is that of the child; times are in nanoseconds, *started_ns* since 1970. The call also read keys for
        other requests: the child is linked to their spans, *others*.
        """
        attributes = call.attributes
        name = str(attributes["db.operation.name"])
        if "db.collection.name" in attributes:
            name = f"{name} {attributes['db.collection.name']}"

        self._tracer.record(
            Span(
                name=name,
                is_server=False,
                trace_id=self.trace_id,
                span_id=span_id,
                parent_id=self.span_id,
                tracestate=self._tracestate,
                started_ns=started_ns,
                ended_ns=started_ns + took_ns,
                attributes=attributes,
                failed="error.type" in attributes,
                links=[(other.trace_id, other.span_id) for other in others],
            )
        )


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
    """Await a read of a store, and record it as a span: a child of the first of *spans*, linked to the others.

    *spans* are those of the sampled requests whose lists are read together, *tier* names the store, and *keys* is
    the number of keys to read. During the read, the store may add attributes to the context variable `traced_call`.
    """
    first, *others = spans

    span_id = getrandbits(64) or 1  # 0 is invalid
    attributes: dict[str, Attribute] = {
        "db.system.name": database_system_of(tier),
        "db.operation.name": "get_many",
        "hotplate.tier": tier,
    }
    if keys > 1:
        attributes["hotplate.keys"] = keys
    call = TracedCall(first.headers(span_id), attributes)

    token = traced_call.set(call)
    started_ns = time_ns()
    started = perf_counter()
    try:
        return await reading
    except BaseException as error:
        is_timeout = isinstance(error, asyncio.CancelledError)  # only deadlines cancel a read
        call.attributes.setdefault("error.type", "timeout" if is_timeout else type(error).__name__)
        raise
    finally:
        traced_call.reset(token)
        took_ns = int((perf_counter() - started) * 1e9)
        first.record_store_call(call, span_id=span_id, started_ns=started_ns, took_ns=took_ns, others=others)


def database_system_of(tier: str) -> str:
    """Return the `db.system.name` of a tier."""
    scheme = tier.rpartition("-")[0] if tier.rpartition("-")[2].isdigit() else tier
    return SYSTEMS.get(scheme.partition("+")[0], scheme)


def _redacted(route: str) -> str:
    if route == OTHER:
        return f"/{REDACTED}"
    return f"{route.partition('{')[0]}{REDACTED}" if "{" in route else route
