"""The record of an answered request, from which its line in the access log and its span are made."""

from typing import NamedTuple

import orjson


class Found(NamedTuple):
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


class Answered(NamedTuple):
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
    """Whose list it is about; for `hotplate.serve.processes.access_log` alone, which hashes it."""

    found: Found | None = None
