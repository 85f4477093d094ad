"""What is recorded of an answered request, for its line in the access log and for its span, and of its calls of stores.

Which requests are sampled is decided first: one that is not costs a random number, or a look at its `traceparent`.
What is recorded of the others is plain, and made into spans of OpenTelemetry's SDK elsewhere, in a thread (`export`).
Names of attributes are those of the semantic conventions, and `hotplate.*` for what these do not know.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from random import getrandbits
from time import perf_counter, time_ns
from typing import NamedTuple, TypeVar

import orjson

from hotplate.serve.metrics import METHODS, OTHER
from hotplate.stores.store import Attribute, TracedCall, traced_call

T = TypeVar("T")

# Samplers decide by the lower half of a trace's id, as OpenTelemetry's SDKs do.
HALF = (1 << 64) - 1
# Replaces the id in an exported path, because it may be a user's.
REDACTED = "REDACTED"
SYSTEMS = {"redis": "redis", "rediss": "redis", "unix": "redis", "cosmos": "azure.cosmosdb", "file": "lmdb"}

# W3C Trace Context: version 00 has nothing after the flags, later ones may.
_traceparent = re.compile(
    r"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})"
    r"-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])(?:-.*)?"
).fullmatch
# Where the last digit of its flags is, and which have the bit for it.
FLAG = 54
SAMPLED = frozenset("13579bdf")
# It goes on to stores, and out with spans; what it says is its vendor's.
_tracestate = re.compile(r"[\x20-\x7e]{1,512}").fullmatch


class _SampledFlags(NamedTuple):
    sampled: bool = True


class _SampledContext(NamedTuple):
    trace_flags: _SampledFlags = _SampledFlags()


SAMPLED_CONTEXT = _SampledContext()


class ListOrigin(NamedTuple):
    """The list that an answer has: its release, the source and tier that it came from, and its items."""

    release: str
    source: str
    tier: str
    items: bytes
    """As JSON, with commas between them."""

    @property
    def item_count(self) -> int:
        """How many items there are."""
        return len(orjson.loads(b"[%b]" % self.items))


class RequestRecord(NamedTuple):
    """One answered request."""

    route: str
    """The template of its path, or OTHER."""

    method: str
    status: int
    took_s: float
    size: int | None
    """Of the body, in bytes; None if that is not known beforehand."""

    request_id: str
    client: str | None
    """The name of the caller's key."""

    user: str | None = None
    """Whose list it is about; for `hotplate.serve.telemetry.access_log` alone, which hashes it."""

    found: ListOrigin | None = None


class Sampling(NamedTuple):
    """Which requests are sampled: a share of traces, or, with *parent_based*, of those that begin here."""

    share: float
    parent_based: bool


class Span(NamedTuple):
    """A span that has ended; times are Unix times in nanoseconds.

    It is made into a ReadableSpan of the SDK in another thread: one that is made and queued while its request is
    answered costs that 26 µs rather than 8, and one of the SDK's tracer 80 (a plain GET takes 12).
    """

    name: str
    is_server: bool
    trace_id: int
    span_id: int
    parent_id: int | None
    """None for the first span of a trace; for a server's it is another process's."""

    tracestate: str | None
    started_ns: int
    ended_ns: int
    attributes: dict[str, Attribute]
    failed: bool
    links: Sequence[tuple[int, int]] = ()
    """Trace and span of others that it was for as well."""

    context: _SampledContext = SAMPLED_CONTEXT
    """What the SDK's batch processor looks at before it queues a span."""


class Tracer:
    """Begins spans for the requests that are sampled; lives as long as its worker."""

    def __init__(self, sampling: Sampling, record: Callable[[Span], None], scheme: str = "http") -> None:
        """Take what takes spans once they have ended, and whether requests come by `http` or `https`."""
        self.record = record
        self.scheme = scheme
        self._parent_based = sampling.parent_based
        self._bound = round(sampling.share * (HALF + 1))

    def begin(self, traceparent: str | None, tracestate: str | None) -> "RequestSpan | None":
        """Begin the span of a request with these headers; None if it is not sampled."""
        half = getrandbits(64)
        if half >= self._bound and (
            traceparent is None or (self._parent_based and traceparent[FLAG : FLAG + 1] not in SAMPLED)
        ):
            return None  # whether the rest of it is valid or not
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
    """The span of one request that is being answered."""

    __slots__ = ("_started_ns", "_tracer", "_tracestate", "parent_id", "span_id", "trace_id")

    def __init__(
        self, tracer: Tracer, trace_id: int, parent_id: int | None = None, tracestate: str | None = None
    ) -> None:
        self.trace_id = trace_id
        self.span_id = new_span_id()
        self._tracer = tracer
        self.parent_id = parent_id
        self._tracestate = tracestate
        self._started_ns = time_ns()

    def end(self, record: RequestRecord) -> None:
        """Record it."""
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
            release, source, tier, _ = record.found
            attributes |= {"hotplate.release": release, "hotplate.source": source, "hotplate.tier": tier}
        failed = record.status >= 500
        if failed:
            attributes["error.type"] = str(record.status)
        ended_ns = self._started_ns + int(record.took_s * 1e9)
        self._tracer.record(
            Span(
                name,
                True,
                self.trace_id,
                self.span_id,
                self.parent_id,
                self._tracestate,
                self._started_ns,
                ended_ns,
                attributes,
                failed,
            )
        )

    def headers(self, span_id: int) -> bytes:
        """Return the context of a span below this one, as lines of an HTTP header."""
        state = f"tracestate: {self._tracestate}\r\n" if self._tracestate else ""
        return f"traceparent: 00-{self.trace_id:032x}-{span_id:016x}-01\r\n{state}".encode()

    def end_call(
        self, span_id: int, call: TracedCall, times_ns: tuple[int, int], others: "Sequence[RequestSpan]"
    ) -> None:
        """Record a call of a store that was made for this request, and for *others* as well."""
        attributes = call.attributes
        name = str(attributes["db.operation.name"])
        if "db.collection.name" in attributes:
            name = f"{name} {attributes['db.collection.name']}"
        links = [(other.trace_id, other.span_id) for other in others]
        self._tracer.record(
            Span(
                name,
                False,
                self.trace_id,
                span_id,
                self.span_id,
                self._tracestate,
                *times_ns,
                attributes,
                "error.type" in attributes,
                links,
            )
        )


# The sampled requests for which the current code works. It is a tuple, as the lookups of several are read together.
sampled_requests = ContextVar[tuple[RequestSpan, ...]]("sampled_requests", default=())


@contextmanager
def use_span(span: RequestSpan) -> Iterator[None]:
    """Let the calls of stores in this block, and in the tasks that it starts, be known to be for a request."""
    token = sampled_requests.set((span,))
    try:
        yield
    finally:
        sampled_requests.reset(token)


async def traced(reading: Awaitable[T], spans: Sequence[RequestSpan], tier: str, keys: int) -> T:
    """Await a read of *keys* keys of a tier's store, as a span below the first of *spans*, linked to the others."""
    first, *others = spans
    span_id = new_span_id()
    call = TracedCall(
        first.headers(span_id),
        {"db.system.name": system_of(tier), "db.operation.name": "get_many", "hotplate.tier": tier},
    )
    if keys > 1:
        call.attributes["hotplate.keys"] = keys
    token = traced_call.set(call)
    started_ns, started = time_ns(), perf_counter()
    try:
        return await reading
    except BaseException as error:
        # Who cancels a read is a deadline.
        kind = "timeout" if isinstance(error, asyncio.CancelledError) else type(error).__name__
        call.attributes.setdefault("error.type", kind)
        raise
    finally:
        traced_call.reset(token)
        first.end_call(span_id, call, (started_ns, started_ns + int((perf_counter() - started) * 1e9)), others)


def system_of(tier: str) -> str:
    """Return the `db.system.name` of a tier, by its name: the scheme of its URL, perhaps with a number."""
    scheme = tier.rpartition("-")[0] if tier.rpartition("-")[2].isdigit() else tier
    return SYSTEMS.get(scheme.partition("+")[0], scheme)


def new_span_id() -> int:
    """Draw the id of a span."""
    return getrandbits(64) or 1


def _redacted(route: str) -> str:
    """Return a path as it is exported: an id in it, or a path that is not a route's, may be anybody's."""
    if route == OTHER:
        return f"/{REDACTED}"
    return f"{route.partition('{')[0]}{REDACTED}" if "{" in route else route
