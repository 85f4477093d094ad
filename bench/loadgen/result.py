"""What one run of the load generator found, and whether it measured the service."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotplate.bench.loadgen.histogram import Histogram, Seconds
from hotplate.bench.loadgen.recorder import ResponseSample, Second
from hotplate.report import format_value

# A run is invalid below this share of sent requests, or above this share of a core.
SENT_BOUND = 0.99
CPU_BOUND = 0.95

# From this lag at p99 on a report names it; from the second on, a run is invalid if the lag is most of its p99.
LAG_BOUND_US = 1_000.0
LATE_US = 10_000.0

PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)

# What the parts of a run add up: numbers, and counts by name.
SUMMED = ("due", "sent", "dropped", "opened", "refused", "unsolicited")
COUNTED = ("errors", "statuses", "tallied")
OF_A_SECOND = ("due", "sent", "failed", "dropped")

# Nanoseconds on a core, and waited for one, of the thread that runs the loop.
SCHEDSTAT = Path("/proc/self/schedstat")


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What one generator process used for a run: CPU time, waiting for a core (on Linux), and the time it took."""

    cpu_s: float
    waited_s: float
    wall_s: float


def measure_usage(clock: Callable[[], float]) -> Callable[[], ProcessUsage]:
    """Begin to measure this process; the returned function ends it."""
    started_s, (cpu_s, waited_s) = clock(), _cpu_and_wait_s()

    def end() -> ProcessUsage:
        now_cpu_s, now_waited_s = _cpu_and_wait_s()
        return ProcessUsage(now_cpu_s - cpu_s, now_waited_s - waited_s, clock() - started_s)

    return end


def _cpu_and_wait_s() -> tuple[float, float]:
    """Return the CPU time of this process so far, and how long its main thread waited for a core (0 where unknown)."""
    waited_s = int(SCHEDSTAT.read_text().split()[1]) / 1e9 if SCHEDSTAT.exists() else 0.0
    return time.process_time(), waited_s


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of times in microseconds, by its percentiles."""

    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    p9999: float
    max: float


def spread(times_s: Seconds, histogram: Histogram | None = None) -> Spread | None:
    """Sum up times, whose *histogram* may be given; None without any."""
    if not len(times_s):
        return None
    mean_us = float(np.mean(times_s)) * 1e6
    return Spread(round(mean_us, 1), *(histogram or Histogram.of(times_s)).percentiles_us(PERCENTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run: `due` = `ok` + all `errors` + `dropped`; latencies are those of the answers that were ok.

    In an open loop a latency runs from when the request was due, even if no connection was free or the generator was
    late. In a closed loop it runs from when the request was sent, which hides each wait; of such a run, quote only the
    rate.
    """

    url: str
    requested_rate: float | None
    think_s: float
    connections: int
    duration_s: float
    interrupted: bool
    due: int
    sent: int
    dropped: int
    errors: Mapping[str, int]
    statuses: Mapping[int, int]
    tallied: Mapping[int, float]
    """By status, the sum of the numbers in the header that the load named."""

    opened: int
    refused: int
    unsolicited: int
    seen: Mapping[str, Mapping[str, int]]
    """How often each value of the fields that the load observes was seen; in batches, of each list."""

    usage: tuple[ProcessUsage, ...]
    samples: tuple[ResponseSample, ...] = field(repr=False)
    seconds: tuple[Second, ...] = field(repr=False, compare=False)
    lags_s: NDArray[np.float32] = field(repr=False, compare=False)

    @property
    def mode(self) -> str:
        """`open loop` or `closed loop`: the first thing to know about a latency."""
        return "closed loop" if self.requested_rate is None else "open loop"

    @property
    def latencies_s(self) -> NDArray[np.float32]:
        """How long each good answer took."""
        return np.concatenate([second.latencies_s for second in self.seconds])

    @property
    def ok(self) -> int:
        """Good answers."""
        return sum(len(second.latencies_s) for second in self.seconds)

    @property
    def ok_rate(self) -> float:
        """Good answers per second, until the last one."""
        return self.ok / self.duration_s if self.duration_s else 0.0

    @property
    def error_share(self) -> float:
        """The part of all due requests that got no good answer; dropped ones got none."""
        return (self.due - self.ok) / self.due if self.due else 0.0

    @property
    def cpu_us_per_request(self) -> float:
        """CPU time of the generator, over all its processes."""
        return round(sum(each.cpu_s for each in self.usage) * 1e6 / max(1, self.sent), 2)

    @property
    def latency(self) -> Spread | None:
        """How long the good answers took, in microseconds."""
        return spread(self.latencies_s)

    @property
    def lag(self) -> Spread | None:
        """How late the generator came to a due request, in microseconds; a closed loop is never late."""
        return None if self.requested_rate is None else spread(self.lags_s)

    @property
    def invalid_reasons(self) -> list[str]:
        """Why this run measures the generator and not the service; empty for a valid run."""
        if self.requested_rate is None:
            busy = max((each.cpu_s / each.wall_s for each in self.usage if each.wall_s), default=0.0)
            full = f"the generator had no CPU to spare ({busy:.0%} of a core): this is its limit, not the service's"
            return [full] if busy > CPU_BOUND else []
        found = []
        if self.sent < SENT_BOUND * self.due:
            found.append(
                f"sent {self.sent:,} of the {self.due:,} requests that were due; {self.dropped:,} were dropped"
            )
        (late_us,), (p99_us,) = (Histogram.of(each).percentiles_us([99]) for each in (self.lags_s, self.latencies_s))
        if late_us > LATE_US and late_us > p99_us / 2:
            late, p99 = format_value(late_us, "us"), format_value(p99_us, "us")
            found.append(f"the generator itself was {late} late at p99, of a latency of {p99}")
        return found

    @property
    def valid(self) -> bool:
        """Whether the run measured what it should measure; says nothing about how the service did."""
        return not self.invalid_reasons

    def to_json(self) -> dict[str, Any]:
        """Return all of it but single times as plain values; the times as HDR histograms."""
        left_out = {"samples", "seconds", "lags_s", "usage", "statuses", "tallied"}
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        return plain | {
            "mode": self.mode,
            "ok": self.ok,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "tallied": {str(status): number for status, number in self.tallied.items()},
            "ok_rate": round(self.ok_rate, 1),
            "error_share": self.error_share,
            "cpu_us_per_request": self.cpu_us_per_request,
            "usage": [asdict(each) for each in self.usage],
            "latency_us": self.latency and asdict(self.latency),
            "lag_us": self.lag and asdict(self.lag),
            "invalid_reasons": self.invalid_reasons,
            "histogram": Histogram.of(self.latencies_s).encoded,
        }


def merged(results: Sequence[Result]) -> Result:
    """Add up the parts of one run that several processes made at the same time."""
    first = results[0]
    sums: dict[str, Any] = {name: sum(getattr(each, name) for each in results) for name in SUMMED}
    counts: dict[str, Any] = {name: _summed(getattr(each, name) for each in results) for name in COUNTED}
    return replace(
        first,
        **sums,
        **counts,
        connections=sum(each.connections for each in results),
        requested_rate=None if first.requested_rate is None else sum(each.requested_rate or 0 for each in results),
        duration_s=max(each.duration_s for each in results),
        interrupted=any(each.interrupted for each in results),
        seen={name: _summed(each.seen[name] for each in results) for name in first.seen},
        usage=tuple(itertools.chain.from_iterable(each.usage for each in results)),
        samples=tuple(itertools.chain.from_iterable(each.samples for each in results)),
        seconds=_side_by_side([each.seconds for each in results]),
        lags_s=np.concatenate([each.lags_s for each in results]),
    )


def _side_by_side(parts: Sequence[Sequence[Second]]) -> tuple[Second, ...]:
    merged_seconds = list[Second]()
    for same in itertools.zip_longest(*parts):
        here = [second for second in same if second is not None]
        counts: dict[str, Any] = {name: sum(getattr(second, name) for second in here) for name in OF_A_SECOND}
        latencies_s = np.concatenate([second.latencies_s for second in here])
        merged_seconds.append(Second(**counts, latencies_s=latencies_s))
    return tuple(merged_seconds)


def _summed(counts: Iterable[Mapping[Any, Any]]) -> dict[Any, Any]:
    total: Counter[Any] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
