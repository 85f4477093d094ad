"""Counts, latencies, and validity of a run.

A request is due at a time of the schedule, whether or not earlier ones were answered. The generator's lag is the time
from then until it handled the request; a run with much of it says nothing of the service. Requests that wait for a
connection, or are dropped because too many wait, are the service's errors, unless the generator had no CPU to spare.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from hotplate.base.report import format_value

CPU_BOUND = 0.9  # of a core; a run is invalid above it
LAG_SHARE = 0.1  # of a p99; a report names a lag above it
LATE_US = 1_000.0  # a lag at p99 above it makes a run invalid, if it is most of its p99
ENOUGH_SAMPLES = 10  # beyond a percentile
P99_SAMPLES = 100 * ENOUGH_SAMPLES
POPULAR_SOURCE = "popular"  # of a list in a response

Seconds: TypeAlias = NDArray[np.float32]
NO_TIMES: Seconds = np.empty(0, dtype=np.float32)


def percentile_us(parts: Iterable[Seconds], percent: float) -> float:
    """Return a percentile (0 to 100) of times in seconds, those of all parts together, in µs; 0 without times.

    It is the least time that is not below this share of them.
    """
    times_s = np.concatenate([NO_TIMES, *parts])
    if not times_s.size:
        return 0.0
    return 1e6 * float(np.quantile(times_s, percent / 100, method="inverted_cdf"))


@dataclass(frozen=True, slots=True)
class Second:
    """One second of a run, with latencies of its responses."""

    due: int
    sent: int
    latencies_s: NDArray[np.float32]


class AnsweredList(msgspec.Struct, gc=False):
    """A list in a response; its items are not decoded, which would take most of the time."""

    items: msgspec.Raw
    user: str | None = None
    item: str | None = None
    source: str | None = None


class ResponseSample(msgspec.Struct, frozen=True):
    """A request and its response, for a check.

    head   status line and headers
    keys   of the lists that were requested
    lists  of the response, none if they cannot be read; None for a body that is neither JSON nor msgpack

    A Struct, as a tuple takes 0.2 us more to make.
    """

    request: bytes
    status: int
    body: bytes
    head: bytes = b""
    keys: Sequence[str] = ()
    lists: Sequence[AnsweredList] | None = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run: `due` = `ok` + all `errors` + `dropped`.

    Open-loop latency counts from a request's due time. In a closed loop it counts from sending, which hides waits:
    quote only the rate.
    """

    url: str
    requested_rate: float | None
    connections: int
    duration_s: float
    interrupted: bool
    dropped: int
    errors: Mapping[str, int]
    statuses: Mapping[int, int]
    opened: int
    unsolicited: int
    sources: Mapping[str, int]
    """Received lists by their source, "" for none."""

    cpu_share: float
    """CPU that the generator's process used or waited for, as a share of a core."""

    samples: tuple[ResponseSample, ...] = field(repr=False)
    seconds: tuple[Second, ...] = field(repr=False, compare=False)
    lags_s: NDArray[np.float32] = field(repr=False, compare=False)

    def only(self, numbers: Sequence[int]) -> "Result":
        """Return the run with some of its seconds, by their places, and the lags of the requests due in them."""
        # There is one lag for each due request.
        ends = np.cumsum([second.due for second in self.seconds], dtype=int)
        lags_s = [self.lags_s[ends[number] - self.seconds[number].due : ends[number]] for number in numbers]
        return replace(
            self,
            seconds=tuple(self.seconds[number] for number in numbers),
            lags_s=np.concatenate([self.lags_s[:0], *lags_s]),
        )

    @property
    def latencies_s(self) -> NDArray[np.float32]:
        """Latencies of good answers."""
        return np.concatenate([NO_TIMES, *(second.latencies_s for second in self.seconds)])

    @property
    def due(self) -> int:
        """Due requests."""
        return sum(second.due for second in self.seconds)

    @property
    def sent(self) -> int:
        """Requests that were sent."""
        return sum(second.sent for second in self.seconds)

    @property
    def ok(self) -> int:
        """Good answers."""
        return sum(len(second.latencies_s) for second in self.seconds)

    @property
    def answers(self) -> int:
        """Responses without the status of an error, from which `samples` are drawn, good ones or not."""
        return sum(count for status, count in self.statuses.items() if status < 400)

    @property
    def ok_rate(self) -> float:
        """Good answers per second."""
        return self.ok / self.duration_s if self.duration_s else 0.0

    @property
    def failed(self) -> int:
        """Due requests without a good answer, with dropped ones."""
        return self.due - self.ok

    @property
    def error_share(self) -> float:
        """Share of due requests without a good answer."""
        return self.failed / self.due if self.due else 0.0

    @property
    def lists(self) -> int:
        """Received lists with a source."""
        return sum(count for source, count in self.sources.items() if source)

    @property
    def popular_lists(self) -> int:
        """Received popular lists."""
        return self.sources.get(POPULAR_SOURCE, 0)

    @property
    def invalid_reasons(self) -> list[str]:
        """Why this run measures the generator; empty if valid."""
        reasons = list[str]()
        if self.cpu_share > CPU_BOUND:
            share = f"{self.cpu_share:.0%} of a core used or waited for"
            reasons.append(f"the generator had no CPU to spare ({share}): this is its limit, not the service's")
        return [*reasons, *lateness([self])]

    def to_json(self) -> dict[str, Any]:
        """Return the run as JSON, without single latencies."""
        left_out = {"samples", "seconds", "lags_s", "statuses"}  # long, or written otherwise below
        plain_fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        return plain_fields | {
            "due": self.due,
            "sent": self.sent,
            "ok": self.ok,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "ok_rate": round(self.ok_rate, 1),
            "error_share": self.error_share,
            "lag_p99_us": lag_us([self], 99),
            "invalid_reasons": self.invalid_reasons,
        }


def latency_us(results: Sequence[Result], percent: float) -> float:
    """Return a percentile (0 to 100) of the latencies of all results together."""
    return percentile_us([result.latencies_s for result in results], percent)


def lag_us(results: Sequence[Result], percent: float) -> float:
    """Return a percentile (0 to 100) of the generator's delays in all results together; 0 for a closed loop."""
    return percentile_us([result.lags_s for result in results], percent)


def lag_note(results: Sequence[Result]) -> str:
    """Return a sentence, without its full stop, if the p99 of lags is above LAG_SHARE of the p99 of latencies."""
    late_us = lag_us(results, 99)
    if late_us <= LAG_SHARE * latency_us(results, 99):
        return ""
    return f"the generator itself was {format_value(late_us, 'us')} late at p99; that is part of the latencies"


def lateness(results: Sequence[Result], at_least: int = 1) -> list[str]:
    """Return a sentence if the p99 of all results together is mostly the delay of the load generator; else nothing.

    The generator's lag is the time from when a request was due to when it was sent. Too few answers, below
    *at_least*, are not judged.
    """
    late_us = lag_us(results, 99)
    p99_us = latency_us(results, 99)
    if sum(result.ok for result in results) < at_least or late_us <= max(LATE_US, p99_us / 2):
        return []

    late = format_value(late_us, "us")
    p99 = format_value(p99_us, "us")
    return [f"the generator itself was {late} late at p99, of a latency of {p99}"]
