"""The access log: one JSON object a line, for a share of all requests, and for those that took long."""

import os
import random
import sys
import time

import orjson

from serve.metrics import METHODS, OTHER
from serve.settings import Settings, timestamp

# Where everything is slow, so many lines a second say it as well as all.
SLOW_LINES_PER_S = 10


class AccessLog:
    """Writes lines to standard error; one for each worker.

    A line has the route's template and never the path or the query, so that no user's id is in it, nor a key.
    """

    def __init__(self, share: float, slow_s: float) -> None:
        """Take the share of requests that are written, and how long one takes to be written whatever the share."""
        self._share = share
        self._slow_s = slow_s
        self._second = 0
        self._slow_lines = 0
        self._left_out = 0

    def note(
        self,
        route: str,
        method: str,
        status: int,
        took_s: float,
        *,
        size: int | None,
        request_id: str,
        client: str | None,
    ) -> None:
        """Write a line on a request that was answered, where one is due."""
        is_slow = took_s >= self._slow_s and self._may_write_slow()
        if not is_slow and random.random() >= self._share:  # noqa: S311 -- draws a sample, guards nothing
            return
        fields: dict[str, object] = {
            "time": timestamp(time.time()),
            "level": "warning" if is_slow else "info",
            "logger": "access",
            "process": os.getpid(),
            "message": "slow request" if is_slow else "request",
            "method": method if method in METHODS else OTHER,
            "route": route,
            "status": status,
            "duration_ms": round(took_s * 1000, 3),
            "bytes": size,
            "request_id": request_id,
        }
        if client is not None:
            fields["client"] = client
        if is_slow and self._left_out:
            fields["slow_requests_left_out"], self._left_out = self._left_out, 0
        sys.stderr.write(orjson.dumps(fields).decode() + "\n")

    def _may_write_slow(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._slow_lines = second, 0
        self._slow_lines += 1
        if self._slow_lines <= SLOW_LINES_PER_S:
            return True
        self._left_out += 1
        return False


def open_access_log(settings: Settings) -> AccessLog | None:
    """Return the access log that the settings request; None where they request none, so that it costs nothing."""
    if settings.access_log_share == 0 and settings.slow_request_s is None:
        return None
    return AccessLog(
        settings.access_log_share, float("inf") if settings.slow_request_s is None else settings.slow_request_s
    )
