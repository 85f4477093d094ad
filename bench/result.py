"""What one run of the load generator found, and whether it may be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAG_BOUND_US = 1_000.0
RATE_BOUND = 0.99


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of times in microseconds, told by its quantiles."""

    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


def spread(seconds: Sequence[float] | NDArray[np.float64]) -> Spread | None:
    """Fold times in *seconds*; None when there are none."""
    times_us = np.asarray(seconds, dtype=np.float64) * 1e6
    if not times_us.size:
        return None
    quantiles = np.percentile(times_us, (50, 90, 99, 99.9, 100))
    return Spread(*(round(float(value), 1) for value in (times_us.mean(), *quantiles)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run: `due` = `ok` + all `errors` + `dropped`; latencies are those of the answers that were ok.

    Open loop: a latency runs from when the request was due by the plan, whether or not a connection was free then.
    Closed loop: from the moment it was sent, which hides every wait; only the rate of such a run is worth quoting.
    """

    url: str
    asked_rate: float | None
    spin: bool
    connections: int
    duration_s: float
    due: int
    sent: int
    ok: int
    dropped: int
    errors: Mapping[str, int]
    statuses: Mapping[int, int]
    opened: int
    refused: int
    unasked: int
    seen: Mapping[str, Mapping[str, int]]
    cpu_us_per_request: float
    latencies_s: NDArray[np.float64] = field(repr=False, compare=False)
    lags_s: NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def mode(self) -> str:
        """`open loop` or `closed loop`: the first thing to know about a latency."""
        return "closed loop" if self.asked_rate is None else "open loop"

    @property
    def sent_rate(self) -> float:
        """Requests per second that really went out."""
        return self.sent / self.duration_s

    @property
    def ok_rate(self) -> float:
        """Good answers per second."""
        return self.ok / self.duration_s

    @property
    def latency(self) -> Spread | None:
        """How long the good answers took, in microseconds."""
        return spread(self.latencies_s)

    @property
    def lag(self) -> Spread | None:
        """How late the generator was when a connection was free, in microseconds; a closed loop is never late."""
        return None if self.asked_rate is None else spread(self.lags_s)

    @property
    def doubts(self) -> list[str]:
        """Why this run does not measure what it was asked to measure; empty for a valid run."""
        if self.asked_rate is None:
            return []
        found = []
        if self.lag is not None and self.lag.p99 > LAG_BOUND_US:
            found.append(f"the generator was late: lag p99 {self.lag.p99:.0f} µs, bound {LAG_BOUND_US:.0f} µs")
        if self.sent_rate < RATE_BOUND * self.asked_rate:
            found.append(f"sent {self.sent_rate:.0f} of the {self.asked_rate:.0f} requests/s asked for")
        return found

    @property
    def valid(self) -> bool:
        """Whether the run measured what it was asked to measure; says nothing about how the server did."""
        return not self.doubts

    def to_json(self) -> dict[str, Any]:
        """Give all of it but the raw times as plain values."""
        plain = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in {"latencies_s", "lags_s"}
        }
        return plain | {
            "mode": self.mode,
            "sent_rate": round(self.sent_rate, 1),
            "ok_rate": round(self.ok_rate, 1),
            "latency_us": self.latency and asdict(self.latency),
            "lag_us": self.lag and asdict(self.lag),
            "valid": self.valid,
            "doubts": self.doubts,
        }

    def to_text(self) -> str:
        """Give it as a few lines for a person."""
        asked = "as fast as answers come" if self.asked_rate is None else f"{self.asked_rate:.0f} requests/s asked"
        lines = [
            f"{self.url}  {self.mode}, {asked}, {self.connections} connections, {self.duration_s:.2f} s",
            f"sent {self.sent} ({self.sent_rate:.0f}/s)  ok {self.ok} ({self.ok_rate:.0f}/s)  dropped {self.dropped}",
            f"errors {_counts(self.errors)}  status {_counts(self.statuses)}",
            f"latency  {_times(self.latency)}",
            f"lag      {_times(self.lag)}",
            f"connections opened {self.opened}, refused {self.refused}, with unasked bytes {self.unasked}",
            f"generator {self.cpu_us_per_request:.1f} µs CPU/request{', spinning' if self.spin else ''}",
        ]
        lines += [f"{name}: {_counts(values)}" for name, values in self.seen.items()]
        return "\n".join(lines + [f"INVALID: {doubt}" for doubt in self.doubts])


def _counts(counted: Mapping[Any, int]) -> str:
    return " ".join(f"{key or '(none)'}={count}" for key, count in counted.items()) or "none"


def _times(times: Spread | None) -> str:
    if times is None:
        return "-"
    return (
        f"p50 {times.p50:.0f}  p90 {times.p90:.0f}  p99 {times.p99:.0f}  p99.9 {times.p999:.0f}  "
        f"max {times.max:.0f}  mean {times.mean:.0f} µs"
    )
