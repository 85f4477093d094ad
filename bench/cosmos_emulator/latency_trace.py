"""Latencies of a real Cosmos DB in a file: `bench stores --record` writes it, and the emulator replays it.

A trace has the latencies of reads as clients of a service on one machine saw them.
"""

import random
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import msgspec

from hotplate.bench.errors import BenchMisused

FORMAT = 2


class LatencyTrace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recorded trace: latencies in µs, ascending, and how often each was measured."""

    format: int
    store: str
    date: str
    counts: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """The number of reads."""
        return sum(count for _, count in self.counts)

    def draws(self) -> Callable[[], float]:
        """Return a function that draws a latency in seconds at each call, by the recorded frequencies."""
        values_us = [latency_us for latency_us, _ in self.counts]
        cumulated_counts = list(accumulate(count for _, count in self.counts))
        rng = random.Random(1)  # noqa: S311 -- repeatable
        return lambda: rng.choices(values_us, cum_weights=cumulated_counts)[0] / 1e6

    def save(self, path: Path) -> None:
        """Write the trace."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def read_trace(path: Path) -> LatencyTrace:
    """Read a trace. Raises BenchMisused for another file."""
    try:
        trace = msgspec.json.decode(path.read_bytes(), type=LatencyTrace)
    except OSError as error:
        raise BenchMisused(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BenchMisused(f"{path} is not a trace of `hotplate bench stores --record`: {error}") from error
    if trace.format != FORMAT or not trace.count:
        raise BenchMisused(f"{path} has format {trace.format} and {trace.count:,} reads; expected format {FORMAT}")
    return trace
