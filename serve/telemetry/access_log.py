"""The access log: one line of JSON for a share of the requests."""

import os
import random
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, Self

import orjson

from hotplate.serve.log_lines import timestamp
from hotplate.serve.metrics import METHODS, OTHER
from hotplate.serve.telemetry.records import RequestRecord
from hotplate.stores.encoding import length_of

if TYPE_CHECKING:
    from hotplate.serve.telemetry.tracing import RequestSpan


class AccessLog:
    """Writes route templates; paths, queries and items could identify users."""

    def __init__(
        self,
        share: float,
        *,
        users: Literal["hashed", "none", "plain"] = "none",
        secret: bytes = b"",
        write: Callable[[str], object] | None = None,
    ) -> None:
        """Log a *share* of requests; *secret*, of at most 64 bytes, is the key of hashed users."""
        self._write_line = write or sys.stderr.write
        self._share = share
        self._users = users
        self._secret = secret

    def sampled(self) -> Self | None:
        """Return this log for the share of requests that it takes, a random sample; None for the others."""
        return self if random.random() < self._share else None  # noqa: S311 -- not cryptographic

    def write(self, record: RequestRecord, span: "RequestSpan | None") -> None:
        """Write a line of JSON about an answered request, with the ids of its trace if it has a *span*.

        The line of a list has its release, its source (such as `personal`), its tier (the store that it was read from),
        and the number of its items. The user's id is left out, hashed or plain, by the setting.
        """
        fields: dict[str, object] = {
            "time": timestamp(time.time()),
            "level": "info",
            "logger": "access",
            "process": os.getpid(),
            "message": "request",
            "method": record.method if record.method in METHODS else OTHER,
            "route": record.route,
            "status": record.status,
            "duration_ms": round(record.took_s * 1000, 3),
            "bytes": record.size,
            "request_id": record.request_id,
        }

        if record.client is not None:
            fields["client"] = record.client
        if record.list_origin is not None:
            origin = record.list_origin
            fields |= {"release": origin.release, "source": origin.source, "tier": origin.tier}
            fields["items"] = length_of(origin.items)
            if origin.name:
                fields["list"] = origin.name
        if record.user is not None and self._users != "none":
            fields["user"] = record.user if self._users == "plain" else self._hash_of(record.user)
        if span is not None:
            fields |= {"trace_id": f"{span.context.trace_id:032x}", "span_id": f"{span.context.span_id:016x}"}

        self._write_line(orjson.dumps(fields).decode() + "\n")

    def _hash_of(self, user: str) -> str:
        return blake2b(user.encode(), key=self._secret, digest_size=16).hexdigest()


def report(record: RequestRecord, log: AccessLog | None, span: "RequestSpan | None") -> None:
    """Write an answered request to the access log, if it is sampled for that, and end its span, if it has one."""
    if log is not None:
        log.write(record, span)
    if span is not None:
        span.end(record)
