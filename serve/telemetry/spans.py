"""Which sampled requests the calls of stores belong to.

Their spans are those of OpenTelemetry's SDK, an extra (`tracing`).
"""

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from hotplate.stores.store import traced_call

if TYPE_CHECKING:
    from hotplate.serve.telemetry.tracing import RequestSpan

T = TypeVar("T")

# Of the current context; several if their look-ups are read together.
sampled_requests = ContextVar[tuple["RequestSpan", ...]]("sampled_requests", default=())


@contextmanager
def use_span(span: "RequestSpan") -> Iterator[None]:
    """Attribute store calls in this block, also in its tasks, to a request."""
    token = sampled_requests.set((span,))
    try:
        yield
    finally:
        sampled_requests.reset(token)


async def traced(reading: Awaitable[T], spans: "Sequence[RequestSpan]", tier: str, keys: int) -> T:
    """Await a read of a store, and record it as a span: a child of the first of *spans*, linked to the others.

    *spans* are those of the sampled requests whose lists are read together, *tier* names the store, and *keys* is
    the number of keys to read. During the read, the store may add attributes to the context variable `traced_call`.
    """
    first, *others = spans
    with first.store_call(tier, keys, others) as call:
        token = traced_call.set(call)
        try:
            return await reading
        finally:
            traced_call.reset(token)
