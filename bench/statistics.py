"""Pooled percentiles, shares, means and ratios over rounds, with 95 % intervals.

A mean of percentiles would hide a stall in few rounds. Intervals allow for autocorrelation: a block bootstrap over
seconds for percentiles, an AR(1) model for means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtr

from hotplate.bench.loadgen.result import ENOUGH_SAMPLES, Histogram, Result
from hotplate.report import Row

MIN_ROUNDS = 5
TOO_FEW_ROUNDS = f"fewer than {MIN_ROUNDS} rounds"
TOO_FEW_ANSWERS = f"fewer than {ENOUGH_SAMPLES} answers beyond it"
RESAMPLED = 1_000
TAIL = 0.025
# Lag-1 autocorrelations to average over, with a uniform prior.
RHOS = np.linspace(-0.95, 0.98, 41)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value over all rounds, those of each round, and the interval; None if unknown, as `note` explains."""

    value: float | None
    values: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    note: str = ""

    def row(self, subject: str, figure: str, unit: str = "", *, main: bool = True) -> Row:
        """Return a row of a report."""
        return Row(subject, figure, unit, self.value, self.values, self.low, self.high, self.note, main)


def percentile(results: Sequence[Result], percent: float) -> Figure:
    """Return a percentile of all answers in µs; unknown with fewer than 10 beyond it.

    The interval needs five seconds, or five shorter rounds.
    """
    seconds = [
        Histogram.of(second.latencies_s) for each in results for second in each.seconds if second.latencies_s.size
    ]
    pooled = Histogram.merged(seconds)
    by_round = (Histogram.of(each.latencies_s) for each in results)
    values = tuple(each.percentile_us(percent) for each in by_round if each.count)
    if percent < 100 and pooled.count * (100 - percent) / 100 < ENOUGH_SAMPLES - 1e-9:
        return Figure(None, values, note=TOO_FEW_ANSWERS if pooled.count else "nothing was answered")
    value = pooled.percentile_us(percent)
    if len(seconds) < MIN_ROUNDS:
        return Figure(value, values)
    low, high = _resampled_percentiles(seconds, percent)
    return Figure(value, values, min(low, value), max(high, value))


def _resampled_percentiles(seconds: Sequence[Histogram], percent: float) -> tuple[float, float]:
    highest_us, counts = Histogram.table(seconds)
    length = max(1, round(len(seconds) ** (1 / 3)))
    rng = np.random.default_rng(1)
    starts = rng.integers(len(seconds), size=(RESAMPLED, -(-len(seconds) // length)))
    drawn = ((starts[:, :, None] + np.arange(length)) % len(seconds)).reshape(RESAMPLED, -1)
    found = np.empty(RESAMPLED)
    for number, one in enumerate(drawn):
        summed = np.cumsum(np.bincount(one, minlength=len(seconds)) @ counts)
        wanted = max(1, math.floor(percent * summed[-1] / 100 + 0.5))
        found[number] = highest_us[np.searchsorted(summed, wanted)]
    low, high = np.quantile(found, (TAIL, 1 - TAIL))
    return float(low), float(high)


def share(parts: Sequence[int], wholes: Sequence[int]) -> Figure:
    """Return the sum of *parts* divided by that of *wholes*; both by round."""
    whole = sum(wholes)
    if not whole:
        return Figure(None, note="there were none")
    value = sum(parts) / whole
    values = tuple(part / of for part, of in zip(parts, wholes, strict=True) if of)
    if len(wholes) < MIN_ROUNDS:
        return Figure(value, values)
    # The delta method for a ratio of two means.
    deviations = [(part - value * of) * len(wholes) / whole for part, of in zip(parts, wholes, strict=True)]
    low, high = interval(deviations)
    return Figure(value, values, max(0.0, value + low), min(1.0, value + high))


def mean(values: Sequence[float]) -> Figure:
    """Return the mean of rounds."""
    if not values:
        return Figure(None, note="nothing was measured")
    value = math.fsum(values) / len(values)
    if len(values) < MIN_ROUNDS:
        return Figure(value, tuple(values))
    low, high = interval(values)
    return Figure(value, tuple(values), low, high)


def ratio(first: Sequence[float], second: Sequence[float]) -> Figure:
    """Return *second* / *first*, the geometric mean over paired rounds."""
    if len(first) != len(second):
        return Figure(None, note=f"{len(first)} rounds and {len(second)} are no pairs")
    if len(first) < MIN_ROUNDS:
        return Figure(None, note=TOO_FEW_ROUNDS)
    if min(*first, *second) <= 0:
        return Figure(None, note="it was zero in some rounds")
    logs = [math.log(two / one) for one, two in zip(first, second, strict=True)]
    found = mean(logs)
    if found.value is None or found.low is None or found.high is None:
        return Figure(None, note=found.note)
    return Figure(math.exp(found.value), tuple(map(math.exp, logs)), math.exp(found.low), math.exp(found.high))


def compared(first: Figure, second: Figure) -> Figure:
    """Return *second* / *first* of pooled values; the interval of paired rounds is widened to include it."""
    rounds = ratio(first.values, second.values)
    if not first.value or not second.value:
        return Figure(None, note=first.note or second.note or "it was zero")
    value = second.value / first.value
    if rounds.low is None or rounds.high is None:
        return Figure(value, note=rounds.note)
    return Figure(value, rounds.values, min(rounds.low, value), max(rounds.high, value))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of at least two values.

    Student's t of generalised least squares, averaged over autocorrelations by likelihood.
    """
    y = np.asarray(values, dtype=np.float64)
    if np.ptp(y) == 0:
        return float(y[0]), float(y[0])
    scale = float(np.std(y))
    centres, errors, weights = _by_autocorrelation((y - y.mean()) / scale)
    low, high = (_quantile(centres, errors, weights, len(y) - 1, tail) for tail in (TAIL, 1 - TAIL))
    return float(y.mean()) + scale * low, float(y.mean()) + scale * high


def _by_autocorrelation(y: Floats) -> tuple[Floats, Floats, Floats]:
    # For each of RHOS: mean, standard error and weight.
    first, rho = np.sqrt(1 - RHOS**2), RHOS[:, None]
    white = np.column_stack([first * y[0], y[1:] - rho * y[:-1]])
    ones = np.column_stack([first, np.repeat(1 - rho, len(y) - 1, axis=1)])
    information = (ones**2).sum(axis=1)
    centres = (ones * white).sum(axis=1) / information
    squares = np.maximum(((white - centres[:, None] * ones) ** 2).sum(axis=1), 1e-12)
    free = len(y) - 1
    logs = np.log(first) - np.log(information) / 2 - free / 2 * np.log(squares)
    weights = np.exp(logs - logs.max())
    return centres, np.sqrt(squares / free / information), weights / weights.sum()


def _quantile(centres: Floats, errors: Floats, weights: Floats, free: int, tail: float) -> float:
    low, high = float((centres - 1e3 * errors).min()), float((centres + 1e3 * errors).max())
    return float(
        brentq(lambda value: float((weights * stdtr(free, (value - centres) / errors)).sum()) - tail, low, high)
    )
