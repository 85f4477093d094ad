"""Latencies folded into HDR histograms: microseconds from 1 to 60 s with 3 digits, which add up over processes."""

import io
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogWriter
from numpy.typing import NDArray

LOWEST_US, HIGHEST_US, DIGITS = 1, 60_000_000, 3

# Samples that must lie beyond a percentile for it to be more than an anecdote.
ENOUGH_SAMPLES = 10

# What reports read of each histogram, many times: found together, because each search takes 10 ms.
USUAL_PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)

Times: TypeAlias = Sequence[float] | NDArray[np.floating]


class Histogram:
    """How often each latency was seen; what is longer than 60 s counts as 60 s."""

    __slots__ = ("_found_us", "_hdr")

    def __init__(self) -> None:
        self._hdr = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
        self._found_us = dict[float, float]()

    @classmethod
    def of(cls, seconds: Times) -> "Histogram":
        """Fold times in seconds: distinct microseconds first, as recording costs 1 µs a call."""
        made = cls()
        times_us = np.clip(np.rint(np.asarray(seconds, dtype=np.float64) * 1e6), LOWEST_US, HIGHEST_US)
        for value, count in zip(*np.unique(times_us.astype(np.int64), return_counts=True), strict=True):
            made._hdr.record_value(int(value), int(count))
        return made

    @classmethod
    def merged(cls, histograms: "Iterable[Histogram]") -> "Histogram":
        """Add histograms up."""
        made = cls()
        for each in histograms:
            made._hdr.add(each._hdr)  # noqa: SLF001 -- of this very class
        return made

    @classmethod
    def decoded(cls, text: str) -> "Histogram":
        """Read what `encoded` wrote, or any tool that writes compressed V2."""
        made = cls()
        made._hdr.decode_and_add(text.encode())
        return made

    @property
    def encoded(self) -> str:
        """The whole histogram as base64 of its compressed form (HdrHistogram V2)."""
        return str(self._hdr.encode().decode())

    @property
    def count(self) -> int:
        """How many times were folded."""
        return int(self._hdr.get_total_count())

    @property
    def max_us(self) -> float:
        """The longest time, in microseconds; 0 without any."""
        return float(self._hdr.get_max_value()) if self.count else 0.0

    @property
    def mean_us(self) -> float:
        """The mean, in microseconds; shown only to be compared with the percentiles."""
        return float(self._hdr.get_mean_value()) if self.count else 0.0

    def percentiles_us(self, percents: Sequence[float]) -> list[float]:
        """Return microseconds for each of *percents*, 0 … 100, which ascend."""
        if not self._found_us.keys() >= {*percents}:
            wanted = sorted({*percents, *USUAL_PERCENTS})
            found = self._hdr.get_percentile_to_value_dict(wanted)
            self._found_us |= {percent: min(float(found.get(percent, 0)), self.max_us) for percent in wanted}
        return [self._found_us[percent] for percent in percents]

    def has_enough_samples(self, percent: float) -> bool:
        """Return whether enough samples lie beyond *percent* for it to mean something."""
        return self.count * (100 - percent) / 100 >= ENOUGH_SAMPLES - 1e-9

    def spectrum(self) -> list[tuple[float, float]]:
        """Return percent and microseconds, ascending, of each value that was seen."""
        seen = self._hdr.get_recorded_iterator()
        total, points = 0, list[tuple[float, float]]()
        for step in seen:
            if not step.count_added_in_this_iter_step:
                continue  # the iterator begins at zero, seen or not
            total += step.count_added_in_this_iter_step
            points.append((100 * total / self.count, float(step.value_iterated_to)))
        return points


def log_of(intervals: Iterable[tuple[float, float, Histogram]]) -> str:
    """Write an HDR log, as HdrHistogram's own tools read it: start and end in epoch seconds, and each histogram."""
    text = io.StringIO()
    writer = HistogramLogWriter(text)
    writer.output_comment("[latency in microseconds; the column of maxima in milliseconds]")
    writer.output_log_format_version()
    writer.output_legend()
    for start_s, end_s, histogram in intervals:
        writer.output_interval_histogram(histogram._hdr, start_s, end_s, 1000.0)  # noqa: SLF001 -- of this module
    return text.getvalue()
