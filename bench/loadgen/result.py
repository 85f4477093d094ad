"""Counts, latencies in HDR histograms, and validity of a run.

A request is due at a time of the schedule, whether or not earlier ones were answered. The generator's lag is the time
from then until it handled the request; a run with much of it says nothing of the service. Requests that wait for a
connection, or are dropped because too many wait, are the service's errors, unless the generator had no CPU to spare.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeAlias

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from hotplate.base.report import format_value

CPU_BOUND = 0.9  # of a core; a run is invalid above it
LAG_SHARE = 0.1  # of a p99; a report names a lag above it
LATE_US = 10_000.0  # lag at p99 that makes a run invalid, if most of its p99
LOWEST_US = 1
HIGHEST_US = 60_000_000
DIGITS = 3
ENOUGH_SAMPLES = 10  # beyond a percentile
P99_SAMPLES = 100 * ENOUGH_SAMPLES
POPULAR_SOURCE = "popular"  # of a list in a response

Seconds: TypeAlias = Sequence[float] | NDArray[np.floating]


class Histogram:
    """The distribution of latencies up to 60 s, as counts by ranges of three digits.

    It uses the counters of a HdrHistogram as an array, because its own Python loops take milliseconds.
    """

    __slots__ = ("_counts", "_hdr")

    def __init__(self) -> None:
        self._hdr = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
        self._counts = np.ctypeslib.as_array(self._hdr.counts)

    @classmethod
    def of(cls, seconds: Seconds) -> "Histogram":
        """Return the histogram of times in seconds; those beyond 60 s count as 60 s.

        Counts all at once, where the HDR histogram's own method takes one time after the other. `_counts` is a view of
        its counters, each for the times up to its highest µs.
        """
        histogram = cls()
        times_us = np.clip(np.rint(np.asarray(seconds, dtype=np.float64) * 1e6), LOWEST_US, HIGHEST_US)
        if times_us.size == 0:
            return histogram

        counters = np.searchsorted(_highest_us(), times_us)
        counts = np.bincount(counters, minlength=len(histogram._counts))
        histogram._counts += counts.astype(histogram._counts.dtype)
        histogram._hdr.total_count = len(times_us)
        histogram._hdr.min_value = int(times_us.min())
        histogram._hdr.max_value = int(times_us.max())
        return histogram

    @classmethod
    def merged(cls, histograms: "Iterable[Histogram]") -> "Histogram":
        """Sum histograms."""
        total = cls()
        for histogram in histograms:
            total._hdr.add(histogram._hdr)  # noqa: SLF001 -- of this class
        return total

    @staticmethod
    def table(histograms: "Sequence[Histogram]") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return the values in µs that any of the histograms has, ascending, and their counts [histogram, value]."""
        counts = np.array([histogram._counts for histogram in histograms])  # noqa: SLF001 -- of this class
        seen = np.flatnonzero(counts.any(axis=0))
        return _highest_us()[seen], counts[:, seen]

    @property
    def encoded(self) -> str:
        """HdrHistogram V2 encoding in base64."""
        return str(self._hdr.encode().decode())

    @property
    def count(self) -> int:
        """The number of times."""
        return int(self._hdr.get_total_count())

    @property
    def max_us(self) -> float:
        """The longest time in µs, or 0."""
        return float(self._hdr.get_max_value()) if self.count else 0.0

    def percentile_us(self, percent: float) -> float:
        """Return a percentile (0 to 100) in µs, or 0 without times."""
        if not self.count:
            return 0.0
        wanted = max(np.floor(percent * self.count / 100 + 0.5), 1)
        return min(float(_highest_us()[np.searchsorted(np.cumsum(self._counts), wanted)]), self.max_us)

    def spectrum(self) -> list[tuple[float, float]]:
        """Return percent and µs of each recorded value, ascending."""
        seen = np.flatnonzero(self._counts)
        percents = 100 * np.cumsum(self._counts[seen]) / max(1, self.count)
        return list(zip(percents.tolist(), _highest_us()[seen].astype(float).tolist(), strict=True))


@cache
def _highest_us() -> NDArray[np.int64]:
    # The first 2^n counters are 1 µs wide, each further 2^n twice as wide.
    hdr = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    number = np.arange(hdr.counts_len)
    bits = hdr.sub_bucket_half_count_magnitude
    doubled = np.maximum((number >> bits) - 1, 0)
    highest: NDArray[np.int64] = ((number - (doubled << bits) + 1) << doubled) - 1
    return highest


@dataclass(frozen=True, slots=True)
class Second:
    """One second of a run, with latencies of its responses."""

    due: int
    sent: int
    latencies_s: NDArray[np.float32]


class ResponseSample(msgspec.Struct, frozen=True):
    """A request and its response, for a check.

    body   of a batch in JSON, even if it was msgpack
    head   status line and headers
    lists  parts of a batch, each with a user; of another response, the body
    fields of all lists of a batch, between user and items; empty if they differ

    A Struct, as a tuple takes 0.2 us more to make.
    """

    request: bytes
    status: int
    body: bytes
    head: bytes = b""
    lists: Sequence[bytes] = ()
    fields: bytes = b""


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
    seen: Mapping[str, Mapping[str, int]]
    """Counts of observed values, in batches of each list."""

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
        empty = np.empty(0, dtype=np.float32)  # an interrupted trial may have no second
        return np.concatenate([empty, *(second.latencies_s for second in self.seconds)])

    @property
    def latency(self) -> Histogram:
        """Latencies of good answers as a histogram."""
        return Histogram.of(self.latencies_s)

    @property
    def lag(self) -> Histogram:
        """The generator's delays; empty for a closed loop."""
        return Histogram.of(self.lags_s)

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
        """Received lists, if the load observed `source`."""
        return sum(count for source, count in self._sources.items() if source)

    @property
    def popular_lists(self) -> int:
        """Received popular lists, if the load observed `source`."""
        return self._sources.get(POPULAR_SOURCE, 0)

    @property
    def _sources(self) -> Mapping[str, int]:
        return self.seen.get("source", {})

    @property
    def invalid_reasons(self) -> list[str]:
        """Why this run measures the generator; empty if valid."""
        reasons = list[str]()
        if self.cpu_share > CPU_BOUND:
            share = f"{self.cpu_share:.0%} of a core used or waited for"
            reasons.append(f"the generator had no CPU to spare ({share}): this is its limit, not the service's")
        return [*reasons, *lateness([self])]

    def to_json(self) -> dict[str, Any]:
        """Return the run as JSON, with latencies as an HDR histogram instead of single ones."""
        left_out = {"samples", "seconds", "lags_s", "statuses"}  # long, or written otherwise below
        plain_fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        return plain_fields | {
            "due": self.due,
            "sent": self.sent,
            "ok": self.ok,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "ok_rate": round(self.ok_rate, 1),
            "error_share": self.error_share,
            "lag_p99_us": self.lag.percentile_us(99),
            "invalid_reasons": self.invalid_reasons,
            "histogram": self.latency.encoded,
        }


def lag_note(results: Sequence[Result]) -> str:
    """Return a sentence, without its full stop, if the p99 of lags is above LAG_SHARE of the p99 of latencies."""
    late_us = Histogram.merged(result.lag for result in results).percentile_us(99)
    if late_us <= LAG_SHARE * Histogram.merged(result.latency for result in results).percentile_us(99):
        return ""
    return f"the generator itself was {format_value(late_us, 'us')} late at p99; that is part of the latencies"


def lateness(results: Sequence[Result], at_least: int = 1) -> list[str]:
    """Return a sentence if the p99 of all results together is mostly the delay of the load generator; else nothing.

    The generator's lag is the time from when a request was due to when it was sent. Too few answers, below
    *at_least*, are not judged.
    """
    latency = Histogram.merged(result.latency for result in results)
    lag = Histogram.merged(result.lag for result in results)
    late_us = lag.percentile_us(99)
    p99_us = latency.percentile_us(99)
    if latency.count < at_least or late_us <= max(LATE_US, p99_us / 2):
        return []

    late = format_value(late_us, "us")
    p99 = format_value(p99_us, "us")
    return [f"the generator itself was {late} late at p99, of a latency of {p99}"]
