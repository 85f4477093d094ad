"""Latencies folded into HDR histograms: microseconds from 1 to 60 s with 3 digits, which add up over processes."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

LOWEST_US = 1
HIGHEST_US = 60_000_000
DIGITS = 3

# Samples that must lie beyond a percentile for it to be more than an anecdote.
ENOUGH_SAMPLES = 10

Seconds: TypeAlias = Sequence[float] | NDArray[np.floating]


class Histogram:
    """How often each latency was seen; what is longer than 60 s counts as 60 s.

    It is a HdrHistogram, whose counters are filled and read as an array, because its own loops take milliseconds.
    """

    __slots__ = ("_counts", "_hdr")

    def __init__(self) -> None:
        self._hdr = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
        self._counts = np.ctypeslib.as_array(self._hdr.counts)

    @classmethod
    def of(cls, seconds: Seconds) -> "Histogram":
        """Fold times in seconds."""
        made, hdr = cls(), _counters()
        times_us = np.clip(np.rint(np.asarray(seconds, dtype=np.float64) * 1e6), LOWEST_US, HIGHEST_US)
        if len(times_us):
            at = np.searchsorted(hdr.highest_us, times_us)
            made._counts += np.bincount(at, minlength=len(made._counts)).astype(made._counts.dtype)
            made._hdr.total_count = len(times_us)
            made._hdr.min_value, made._hdr.max_value = int(times_us.min()), int(times_us.max())
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

    @staticmethod
    def table(histograms: "Sequence[Histogram]") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return the values that any of *histograms* has seen, in microseconds, and a row of their counts for each."""
        counts = np.array([each._counts for each in histograms])  # noqa: SLF001 -- of this very class
        seen = np.flatnonzero(counts.any(axis=0))
        return _counters().highest_us[seen], counts[:, seen]

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
        return float((self._counts * _counters().middle_us).sum()) / self.count if self.count else 0.0

    def percentiles_us(self, percents: Sequence[float]) -> list[float]:
        """Return microseconds for each of *percents*, 0 … 100."""
        if not self.count:
            return [0.0 for _ in percents]
        wanted = np.maximum(np.floor(np.asarray(percents) * self.count / 100 + 0.5), 1)
        found_us = _counters().highest_us[np.searchsorted(np.cumsum(self._counts), wanted)]
        return [min(float(found), self.max_us) for found in found_us]

    def has_enough_samples(self, percent: float) -> bool:
        """Return whether enough samples lie beyond *percent* for it to mean something."""
        return self.count * (100 - percent) / 100 >= ENOUGH_SAMPLES - 1e-9

    def spectrum(self) -> list[tuple[float, float]]:
        """Return percent and microseconds, ascending, of each value that was seen."""
        seen = np.flatnonzero(self._counts)
        percents = 100 * np.cumsum(self._counts[seen]) / max(1, self.count)
        return list(zip(percents.tolist(), _counters().highest_us[seen].astype(float).tolist(), strict=True))


class _Counters(NamedTuple):
    """What each counter of a histogram counts: times up to so many microseconds, and about so many."""

    highest_us: NDArray[np.int64]
    middle_us: NDArray[np.int64]


@cache
def _counters() -> _Counters:
    """Work that out: the first 2^n counters are of a microsecond each, then each 2^n are twice as wide."""
    hdr = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    number, bits = np.arange(hdr.counts_len), hdr.sub_bucket_half_count_magnitude
    doubled = np.maximum((number >> bits) - 1, 0)
    lowest_us, width_us = (number - (doubled << bits)) << doubled, 1 << doubled
    return _Counters(lowest_us + width_us - 1, lowest_us + (width_us >> 1))
