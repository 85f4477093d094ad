"""What one run of the load generator found: latencies between two bounds, and whether these say anything."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotplate.bench.loadgen.histogram import Histogram, Seconds
from hotplate.bench.loadgen.recorder import ResponseSample, Second
from hotplate.bench.loadgen.stalls import AWAY_S, ProcessUsage
from hotplate.bench.measured import STOLEN
from hotplate.bench.report.text import APART, format_us

# A run is invalid below this share of sent requests, or above this share of a core.
SENT_BOUND = 0.99
CPU_BOUND = 0.95

# A run says nothing if it has neither of these percentiles.
DECIDING = (50.0, 90.0, 99.0)

# From this lag at p99 on, latencies of some milliseconds are not to be read without their lower bound.
LAG_BOUND_US = 1_000.0

# From these shares on, of the time and of a core, one is named as what made the generator late.
WAITED = 0.005
BUSY = 0.8

# From this share of the time on that a closed loop waits for a core, its rate is a lower bound of the server's.
STARVED = 0.05

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


def spread(times_s: Seconds, histogram: Histogram | None = None) -> Spread | None:
    """Sum up times, whose *histogram* may be given; None without any."""
    if not len(times_s):
        return None
    mean_us = float(np.mean(times_s)) * 1e6
    return Spread(round(mean_us, 1), *(histogram or Histogram.of(times_s)).percentiles_us(PERCENTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run: `due` = `ok` + all `errors` + `dropped`; latencies are those of the answers that were ok.

    An open loop has two latencies. One runs from when the request was due, even if no connection was free. The other
    leaves out the generator's own delays, until it read the response (`hotplate.bench.loadgen.stalls`). The server's
    true latency lies between them. In a closed loop, a latency runs from when the request was sent, which hides each
    wait; of such a run, quote only the rate.
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
    stolen: float | None
    """Of the time of the cores that were used, the share that the host gave to other machines; None where unknown."""

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
    def sent_latencies_s(self) -> NDArray[np.float32]:
        """How long each good answer took at least, from when it was sent; in the order of `latencies_s`."""
        return np.concatenate([second.sent_latencies_s for second in self.seconds])

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
    def disturbance(self) -> str:
        """How late the generator was, and what made it so, with its figure; empty if it was on time."""
        lag = self.lag
        if lag is None or lag.p99 <= AWAY_S * 1e6:
            return ""
        if self.stolen is not None and self.stolen >= STOLEN:
            why = f"{self.stolen:.1%} of the CPU was stolen by the host"
        elif self.waited >= WAITED:
            why = f"it waited for a core {self.waited:.1%} of the time"
        elif self._busy >= BUSY:
            why = f"it used {self._busy:.0%} of a core"
        else:
            why = "by what else the machine did"
        return f"the generator was late, {format_us(lag.p99)} at p99: {why}"

    @property
    def waited(self) -> float:
        """The share of the time for which a generating process waited for a core; of several processes the largest."""
        return max((each.waited_s / each.wall_s for each in self.usage if each.wall_s), default=0.0)

    @property
    def waiting(self) -> str:
        """Why a closed loop sent less than the server could answer; empty where its generator hardly waited."""
        if self.requested_rate is not None or self.waited < WAITED:
            return ""
        return f"the generator waited for a core {self.waited:.1%} of the time: the server could answer more"

    @property
    def at_least(self) -> bool:
        """Whether its rate is only a lower bound of what the server answers, because the generator waited so long."""
        return bool(self.waiting) and self.waited >= STARVED

    @property
    def limit(self) -> str:
        """Why the generator itself could give no more; empty if it could."""
        if self.waited >= STARVED:
            return f"the generator waited for a core {self.waited:.1%} of the time"
        return f"the generator used {self._busy:.0%} of a core" if self._busy >= BUSY and not self.spin else ""

    @property
    def _busy(self) -> float:
        return max((each.cpu_s / each.wall_s for each in self.usage if each.wall_s), default=0.0)

    @property
    def invalid_reasons(self) -> list[str]:
        """Why this run measures nothing of the server, not even between bounds; empty for a valid run."""
        if self.requested_rate is None:
            busy = self._busy
            full = f"the generator had no CPU to spare ({busy:.0%} of a core): this is its limit, not the server's"
            return [full] if busy > CPU_BOUND else []
        found = []
        most_us, least_us = (
            Histogram.of(each).percentiles_us(DECIDING) for each in (self.latencies_s, self.sent_latencies_s)
        )
        if self.disturbance and all(most > APART * least for most, least in zip(most_us, least_us, strict=True)):
            found.append(
                f"not even its p99 is known: between {format_us(least_us[-1])} and {format_us(most_us[-1])}; "
                f"{self.disturbance}"
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
        sent_latencies = Histogram.of(self.sent_latencies_s)
        left_out = {"samples", "seconds", "lags_s", "usage", "statuses", "tallied"}
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        latency = spread(self.latencies_s, latencies)
        sent_latency = spread(self.sent_latencies_s, sent_latencies)
        lag = None if self.requested_rate is None else spread(self.lags_s, lags)
        return plain | {
            "mode": self.mode,
            "ok": self.ok,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "tallied": {str(status): number for status, number in self.tallied.items()},
            "ok_rate": round(self.ok_rate, 1),
            "error_share": self.error_share,
            "cpu_us_per_request": self.cpu_us_per_request,
            "usage": [asdict(each) for each in self.usage],
            "latency_us": latency and asdict(latency),
            "sent_latency_us": sent_latency and asdict(sent_latency),
            "lag_us": lag and asdict(lag),
            "disturbance": self.disturbance,
            "waiting": self.waiting,
            "at_least": self.at_least,
            "valid": self.valid,
            "invalid_reasons": self.invalid_reasons,
            "histogram": latencies.encoded,
            "sent_histogram": sent_latencies.encoded,
            "lag_histogram": lags.encoded,
            "seconds": [_second_to_json(second) for second in self.seconds],
        }


def at_least(facts: Mapping[str, Any]) -> str:
    """Return what stands before the rate of a run, or of a point of a sweep: a lower bound says so."""
    return "at least " if facts.get("at_least") else ""


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
        stolen=max((each.stolen for each in results if each.stolen is not None), default=None),
        samples=tuple(itertools.chain.from_iterable(each.samples for each in results)),
        seconds=_side_by_side([each.seconds for each in results]),
        lags_s=np.concatenate([each.lags_s for each in results]),
    )


def _side_by_side(parts: Sequence[Sequence[Second]]) -> tuple[Second, ...]:
    merged_seconds = list[Second]()
    for same in itertools.zip_longest(*parts):
        here = [second for second in same if second is not None]
        counts: dict[str, Any] = {name: sum(getattr(second, name) for second in here) for name in OF_A_SECOND}
        latencies_s, sent_latencies_s = (
            np.concatenate([getattr(second, name) for second in here]) for name in ("latencies_s", "sent_latencies_s")
        )
        merged_seconds.append(Second(**counts, latencies_s=latencies_s, sent_latencies_s=sent_latencies_s))
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
