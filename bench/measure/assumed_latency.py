"""Latencies of an emulated Cosmos DB, which are assumed: their mark in reports, and its explanation."""

import re
from dataclasses import replace

from hotplate.base.report import Row

ASSUMED = "assumed"
MARK = "*"
UNKNOWN = "Cosmos DB is emulated, not Azure's"


def as_assumed(row: Row, *, emulated: bool) -> Row:
    """Return the row of a known latency with the mark, and without an interval, if it is an emulator's."""
    if not emulated or row.value is None:
        return row
    return replace(row, low=None, high=None, note=ASSUMED, mark=MARK)


def explain_mark(latency: str, *, is_known: bool) -> dict[str, str]:
    """Return the mark with its explanation: the emulator's *latency*, as "p50=4ms,p99=10ms", if it is known."""
    return {MARK: f"{ASSUMED}: {_describe(latency) if is_known else UNKNOWN}; this machine adds the rest"}


def _describe(latency: str) -> str:
    """Return an emulator's latency in words, as "the emulator waits p50 4 ms, p99 10 ms"."""
    spaced = re.sub(r"(\d)([a-z]+)", r"\1 \2", latency.replace("=", " ").replace(",", ", "))
    return f"the emulator waits {spaced}"
