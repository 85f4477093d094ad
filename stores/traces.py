"""A traced call of a store: the store adds to it, and the tracer reads it.

Few calls are traced, and only those have a `TracedCall` in their context. A store that has more to say than how long it
took takes `traced_call.get()`, and sets attributes by their names in OpenTelemetry's conventions.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field

Attribute = str | int | float | tuple[str, ...]


@dataclass(slots=True)
class TracedCall:
    """One call of a store that is traced."""

    headers: bytes = b""
    """The trace context as lines of a header, for stores that speak HTTP."""

    attributes: dict[str, Attribute] = field(default_factory=dict)


traced_call = ContextVar[TracedCall | None]("traced_call", default=None)
