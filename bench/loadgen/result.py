"""What one run of the load generator found, and whether it is valid."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.loadgen.histogram import Histogram, Times
from bench.loadgen.recorder import Sample, Second

# A run is invalid above this lag at p99, below this share of sent requests, or above this share of a core.
LAG_BOUND_US, SENT_BOUND, CPU_BOUND = 1_000.0, 0.99, 0.95

PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)

# What the parts of a run add up: numbers, and counts by name.
SUMMED = ("due", "sent", "dropped", "opened", "refused", "unsolicited")
COUNTED = ("errors", "statuses", "tallied")
OF_A_SECOND = ("due", "sent", "failed", "dropped")


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


def spread(times_s: Times, histogram: Histogram | None = None) -> Spread | None:
    """Sum up times, of which the *histogram* may be at hand; None where there are none."""
    if not len(times_s):
        return None
    mean_us = float(np.mean(times_s)) * 1e6
    return Spread(round(mean_us, 1), *(histogram or Histogram.of(times_s)).percentiles_us(PERCENTS))


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What one generator process used for a run: CPU time, waiting for a core (on Linux), and the time it took."""

    cpu_s: float
    waited_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run: `due` = `ok` + all `errors` + `dropped`; latencies are those of the answers that were ok.

    Open loop: a latency runs from when the request was due by the plan, whether or not a connection was free then.
    Closed loop: from the moment it was sent, which hides every wait; only the rate of such a run is worth quoting.
    """

    url: str
    requested_rate: float | None
    think_s: float
    spin: bool
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
    usage: tuple[ProcessUsage, ...]
    samples: tuple[Sample, ...] = field(repr=False)
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
    def sent_rate(self) -> float:
        """Requests per second that really went out."""
        return self.sent / self.duration_s if self.duration_s else 0.0

    @property
    def ok_rate(self) -> float:
        """Good answers per second."""
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
        """Why this run does not measure what it should measure; empty for a valid run."""
        busy = max((each.cpu_s / each.wall_s for each in self.usage if each.wall_s), default=0.0)
        if self.requested_rate is None:
            full = f"the generator had no CPU to spare ({busy:.0%} of a core): this is its limit, not the server's"
            return [full] if busy > CPU_BOUND else []
        found = []
        lag = self.lag
        if lag is not None and lag.p99 > LAG_BOUND_US:
            waited = max((each.waited_s / each.wall_s for each in self.usage if each.wall_s), default=0.0)
            found.append(
                f"the generator was late: lag p99 {lag.p99:.0f} µs, bound {LAG_BOUND_US:.0f} µs "
                f"(it used {busy:.0%} of a core, and waited for one {waited:.0%} of the time)"
            )
        if self.sent < SENT_BOUND * self.due:
            found.append(f"sent {self.sent} of the {self.due} requests that were due; {self.dropped} were dropped")
        return found

    @property
    def valid(self) -> bool:
        """Whether the run measured what it should measure; says nothing about how the server did."""
        return not self.invalid_reasons

    def to_json(self) -> dict[str, Any]:
        """Return all of it but single times as plain values; the times as HDR histograms."""
        latencies, lags = Histogram.of(self.latencies_s), Histogram.of(self.lags_s)
        left_out = {"samples", "seconds", "lags_s", "usage", "statuses", "tallied"}
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        latency = spread(self.latencies_s, latencies)
        lag = None if self.requested_rate is None else spread(self.lags_s, lags)
        return plain | {
            "mode": self.mode,
            "ok": self.ok,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "tallied": {str(status): number for status, number in self.tallied.items()},
            "sent_rate": round(self.sent_rate, 1),
            "ok_rate": round(self.ok_rate, 1),
            "error_share": self.error_share,
            "cpu_us_per_request": self.cpu_us_per_request,
            "usage": [asdict(each) for each in self.usage],
            "latency_us": latency and asdict(latency),
            "lag_us": lag and asdict(lag),
            "valid": self.valid,
            "invalid_reasons": self.invalid_reasons,
            "histogram": latencies.encoded,
            "lag_histogram": lags.encoded,
            "seconds": [_second_to_json(second) for second in self.seconds],
        }


def run_text(facts: Mapping[str, Any]) -> str:
    """Write one run, given as the values of `Result.to_json`, as a few lines for a person."""
    rate = facts["requested_rate"]
    pace = "as fast as answers come" if rate is None else f"{rate:.0f} requests/s requested"
    lines = [
        f"{facts['url']}  {facts['mode']}, {pace}, {facts['connections']} connections, {facts['duration_s']:.2f} s",
        "sent {sent} ({sent_rate:.0f}/s)  ok {ok} ({ok_rate:.0f}/s)  dropped {dropped}".format(**facts),
        f"errors {_counts(facts['errors'])}  status {_counts(facts['statuses'])}",
        f"latency  {_times(facts['latency_us'])}",
        f"lag      {_times(facts['lag_us'])}",
        "connections opened {opened}, refused {refused}, with unsolicited bytes {unsolicited}".format(**facts),
        f"generator {facts['cpu_us_per_request']:.1f} µs CPU/request{', spinning' if facts['spin'] else ''}",
    ]
    lines += [f"{name}: {_counts(values)}" for name, values in facts["seen"].items()]
    return "\n".join(lines + [f"INVALID: {reason}" for reason in facts["invalid_reasons"]])


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
        merged_seconds.append(Second(**counts, latencies_s=np.concatenate([second.latencies_s for second in here])))
    return tuple(merged_seconds)


def _summed(counts: Iterable[Mapping[Any, Any]]) -> dict[Any, Any]:
    total: Counter[Any] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _second_to_json(second: Second) -> dict[str, Any]:
    latency = spread(second.latencies_s)
    counts = {name: getattr(second, name) for name in OF_A_SECOND} | {"ok": len(second.latencies_s)}
    return counts | {f"{name}_us": latency and getattr(latency, name) for name in ("p50", "p99", "max")}


def _counts(counted: Mapping[Any, int]) -> str:
    return " ".join(f"{key or '(none)'}={count}" for key, count in counted.items()) or "none"


def _times(times: Mapping[str, float] | None) -> str:
    if times is None:
        return "-"
    return (
        f"p50 {times['p50']:.0f}  p90 {times['p90']:.0f}  p99 {times['p99']:.0f}  p99.9 {times['p999']:.0f}  "
        f"max {times['max']:.0f}  mean {times['mean']:.0f} µs"
    )
