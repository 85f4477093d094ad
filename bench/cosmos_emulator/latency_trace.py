"""Latencies of a real Cosmos DB in a file: `bench stores --record` writes it, and the emulator replays it.

A trace has the latencies of point reads as one machine saw them, by operation, region and hour of the day (UTC).
"""

import random
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import msgspec

from hotplate.bench.errors import BenchMisused

FORMAT = 1


class Latencies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts of latencies in µs, of one operation in one region and hour."""

    operation: str
    region: str
    hour: int
    counts: tuple[tuple[int, int], ...]


class LatencyTrace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recorded trace."""

    format: int
    store: str
    date: str
    latencies: tuple[Latencies, ...]

    @property
    def count(self) -> int:
        """The number of reads."""
        return sum(count for latencies in self.latencies for _, count in latencies.counts)

    def draws(self) -> Callable[[], float]:
        """Return a function that draws a latency in seconds at each call, by the recorded frequencies.

        Latencies of all operations, regions and hours count together.
        """
        counts = Counter[int]()
        for latencies in self.latencies:
            for latency_us, count in latencies.counts:
                counts[latency_us] += count

        values_us = sorted(counts)
        cumulated_counts = list(accumulate(counts[value] for value in values_us))
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
