"""Records of answered requests, for the access log and spans."""

from typing import NamedTuple


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
