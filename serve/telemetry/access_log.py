"""The access log: one line of JSON for slow requests and for a share of all."""

import os
import random
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import Literal

import orjson

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import METHODS, OTHER
from hotplate.serve.settings import timestamp
from hotplate.serve.telemetry.spans import RequestRecord, RequestSpan

SLOW_LINES_PER_S = 10
DAY_S = 86_400
MIN_SECRET_BYTES = 32


class UserHashes:
    """Hashes user ids with a key that changes daily (UTC): only lines of the same day can be joined."""

    def __init__(self, secret: bytes) -> None:
        self._secret = blake2b(secret).digest()
        self._day, self._key = -1, b""

    def of(self, user: str, time_s: float) -> str:
        """Return the hash of a user id at a Unix time."""
        day = int(time_s // DAY_S)
        if day != self._day:
            self._day, self._key = day, blake2b(b"%d" % day, key=self._secret).digest()
        return blake2b(user.encode(), key=self._key, digest_size=16).hexdigest()


def read_secret(file: Path | None) -> bytes:
    """Read the secret for hashing user ids, or generate one. Raises ServiceMisused."""
    if file is None:
        return token_bytes(64)
    try:
        secret = file.read_bytes()
    except OSError as error:
        raise ServiceMisused(f"--access-log-key names {file}, which cannot be read: {error.strerror}") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise ServiceMisused(
            f"{file} has {len(secret)} bytes; a key for the access log has {MIN_SECRET_BYTES} at least, as "
            f"head -c {MIN_SECRET_BYTES} /dev/urandom gives them"
        )
    return secret


class AccessLog:
    """Writes route templates, but no paths, queries or items, which could identify users."""

    def __init__(
        self,
        share: float,
        slow_s: float,
        *,
        users: Literal["hashed", "none", "plain"] = "none",
        secret: bytes = b"",
        write: Callable[[str], object] | None = None,
    ) -> None:
        """Log a *share* of requests, and all that take *slow_s* or longer."""
        self._write_line = write or sys.stderr.write
        self._share = share
        self._slow_s = slow_s
        self._users = users
        self._hashes = UserHashes(secret)
        self._second = 0
        self._slow_lines = 0
        self._left_out = 0

    def due(self, took_s: float) -> bool:
        """Return whether to log a request of this duration."""
        if took_s >= self._slow_s and self._may_write_slow():
            return True
        return random.random() < self._share  # noqa: S311 -- sampling

    def write(self, record: RequestRecord, span: RequestSpan | None) -> None:
        """Write the line of a request."""
        now, is_slow = time.time(), record.took_s >= self._slow_s
        method = record.method
        fields: dict[str, object] = {
            "time": timestamp(now),
            "level": "warning" if is_slow else "info",
            "logger": "access",
            "process": os.getpid(),
            "message": "slow request" if is_slow else "request",
            "method": method if method in METHODS else OTHER,
            "route": record.route,
            "status": record.status,
            "duration_ms": round(record.took_s * 1000, 3),
            "bytes": record.size,
            "request_id": record.request_id,
        }
        if record.client is not None:
            fields["client"] = record.client
        if record.found is not None:
            release, source, tier, _ = record.found
            fields |= {"release": release, "source": source, "tier": tier, "items": record.found.item_count}
        if record.user is not None and self._users != "none":
            plain = self._users == "plain"
            fields["user"] = record.user if plain else self._hashes.of(record.user, now)
        if span is not None:
            fields |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
        if is_slow and self._left_out:
            fields["slow_requests_left_out"], self._left_out = self._left_out, 0
        self._write_line(orjson.dumps(fields).decode() + "\n")

    def _may_write_slow(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._slow_lines = second, 0
        self._slow_lines += 1
        if self._slow_lines <= SLOW_LINES_PER_S:
            return True
        self._left_out += 1
        return False


def report(record: RequestRecord, log: AccessLog | None, span: RequestSpan | None) -> None:
    """Log an answered request and end its span."""
    if log is not None:
        log.write(record, span)
    if span is not None:
        span.end(record)
