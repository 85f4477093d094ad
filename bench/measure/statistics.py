"""Pooled percentiles, shares and means over rounds, their ratios, and 95 % intervals.

One estimator gives a figure, its interval, and its comparison with another, as rows that a report will name. A figure
is of all rounds together: a mean of percentiles would hide a stall in few rounds. The jackknife, which leaves out one
round at a time, says how much each round contributes, and Student's t of these contributions allows for autocorrelation
between rounds. At 14 rounds of 800 answers it calls 3 to 7 of 100 equal pairs different, where a percentile bootstrap
calls 9 to 20.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, stdtrit

from hotplate.base.intervals import share_interval
from hotplate.base.report import Curve, Plot, Row, rounded
from hotplate.bench.figure_names import P50, P99, P99_9
from hotplate.bench.loadgen.result import ENOUGH_SAMPLES, Result, Seconds, lateness, percentile_us
from hotplate.bench.verdict import MIN_ROUNDS, TOO_FEW_ROUNDS, span

PERCENTS: Mapping[str, float] = {P50: 50, "p90": 90, P99: 99, P99_9: 99.9, "p99.99": 99.99, "max": 100}
PERCENTILES = (P50, P99, P99_9)
ERRORS = "errors"
TOO_FEW_ANSWERS = f"fewer than {ENOUGH_SAMPLES} answers beyond it"
TAIL = 0.025
# Where rounds differ, the slowest ones decide a high percentile, and few rounds contain few of them: the jackknife's
# upper end alone is too low in 11 to 13 of 100 series with deviations of 40 % between rounds.
UNSEEN = 1.35
MOST_LOG = 700.0  # math.exp overflows above 709
# Lag-1 autocorrelations to average over. The prior suits paired rounds, of 0.0 to 0.3: with a uniform one, an interval
# of 14 rounds misses 1 to 3 % instead of 5 %, and finds half as many differences.
RHOS = np.linspace(-0.95, 0.98, 41)
PRIOR = (1 - RHOS) ** 0.75
# Evenly spaced probabilities of Student's t.
QUANTILES = (np.arange(500) + 0.5) / 500

Floats = NDArray[np.float64]


def percentile(results: Sequence[Result], percent: float) -> Row:
    """Return a percentile (0 to 100) of the latencies of all rounds together, in µs, with its 95 % interval.

    The value is None, with a note, if fewer than 10 answers are slower: it would be an accident. The interval is None
    with fewer than five rounds that have fewer than five seconds with answers in all.
    """
    rounds = [result.latencies_s for result in results if result.ok]
    answers = sum(map(len, rounds))
    values_us = tuple(percentile_us([latencies_s], percent) for latencies_s in rounds)

    slower_answers = answers * (100 - percent) / 100
    if percent < 100 and slower_answers < ENOUGH_SAMPLES - 1e-9:  # the product is not exact
        note = TOO_FEW_ANSWERS if answers else "no good answer"
        return Row(values=values_us, note=note)
    value_us = percentile_us(rounds, percent)

    # The interval comes from the differences between rounds, or of few rounds between their seconds.
    parts = rounds
    if len(rounds) < MIN_ROUNDS:
        seconds = (second.latencies_s for result in results for second in result.seconds)
        parts = [latencies_s for latencies_s in seconds if latencies_s.size]
    if len(parts) < MIN_ROUNDS:
        return Row(value=value_us, values=values_us)

    without = tuple(_percentiles_without_each(parts, percent))
    low_us, high_us = _jackknife_interval(value_us, without)
    least_us, most_us = _binomial_interval(rounds, percent, answers)
    if high_us > most_us > value_us:
        high_us = value_us * (high_us / value_us) ** UNSEEN
    low_us = min(low_us, least_us)
    high_us = max(high_us, most_us)
    return Row(value=value_us, values=values_us, low=low_us, high=high_us, without=without)


def latency(results: Sequence[Result], name: str) -> Row:
    """Return a percentile by its name, as "p99", of the latencies of all rounds together; see `percentile`."""
    return percentile(results, PERCENTS[name])


def _percentiles_without_each(parts: Sequence[Seconds], percent: float) -> Iterator[float]:
    """Yield the `percentile_us` of all *parts* but one, for each part left out.

    All times are sorted once, as a run of ten minutes has 600 parts, and perhaps millions of times.
    """
    times_s = np.sort(np.concatenate(parts))
    for part in parts:
        left_out_s = np.sort(part)

        def count_up_to(place: int, left_out_s: Seconds = left_out_s) -> int:
            time_s = times_s[place]
            counts = [np.searchsorted(sorted_s, time_s, side="right") for sorted_s in (times_s, left_out_s)]
            return int(counts[0] - counts[1])

        kept = times_s.size - part.size
        rank = max(1, math.ceil(percent * kept / 100 - 1e-6))  # the product is not exact
        yield 1e6 * float(times_s[bisect_left(range(times_s.size), rank, key=count_up_to)])


def _binomial_interval(rounds: Sequence[Seconds], percent: float, answers: int) -> tuple[float, float]:
    """Return the 95 % interval of a percentile (0 to 100) of independent latencies, in µs.

    The share of latencies below a percentile varies as a binomial share. With few answers beyond the percentile, such
    as ten, this is wider than the differences between rounds show.
    """
    low, high = share_interval(percent / 100, answers)
    return percentile_us(rounds, 100 * low), percentile_us(rounds, 100 * min(1.0, high))


def _jackknife_interval(value: float, without: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a value of all rounds, by the jackknife on a logarithmic scale.

    *without* has the value without each of the rounds in turn. The interval is the value itself if any is not positive.
    """
    if value <= 0 or min(without) <= 0:
        return value, value

    # The jackknife turns the estimate without each round into a pseudo-value, the contribution of that round.
    log_value = math.log(value)
    count = len(without)
    pseudo_values = [count * log_value - (count - 1) * math.log(estimate) for estimate in without]

    # Their mean has an interval, and differs from the value by a small bias; move the interval to the value.
    low, high = interval(pseudo_values)
    bias = math.fsum(pseudo_values) / count - log_value
    return math.exp(low - bias), math.exp(min(high - bias, MOST_LOG))


def share(parts: Sequence[int], wholes: Sequence[int]) -> Row:
    """Return the sum of *parts* divided by that of *wholes*, both by round, with the 95 % interval of their mean.

    The value is None if all wholes are 0; the interval is None with fewer than five rounds.
    """
    if not any(wholes):
        return Row(note="there were none")
    row = mean([part / whole for part, whole in zip(parts, wholes, strict=True) if whole])
    value = sum(parts) / sum(wholes)
    if row.low is None or row.high is None:
        return Row(value=value, values=row.values)
    return Row(value=value, values=row.values, low=max(0.0, row.low), high=min(1.0, row.high))


class Portions(NamedTuple):
    """Parts of wholes, both by round, such as failed requests of due ones."""

    parts: Sequence[int]
    wholes: Sequence[int]

    @property
    def shares(self) -> Floats:
        """By round."""
        return np.divide(self.parts, self.wholes)

    @property
    def share(self) -> float:
        """The sum of the parts divided by that of the wholes."""
        return sum(self.parts) / sum(self.wholes)


def is_significant_growth(first: Portions, second: Portions) -> bool:
    """Return whether the share of *second* is significantly above that of *first*, as by an interval of 95 %.

    It must exceed what independent events explain. With as many rounds in both, at least five, it must also exceed the
    differences between rounds of the same number, so that a burst of events in one of them proves nothing.
    """
    # If the shares were equal, each event would be in the second ones by the share of these in all wholes.
    events_after = sum(second.parts)
    events = sum(first.parts) + events_after
    chance = sum(second.wholes) / (sum(first.wholes) + sum(second.wholes))
    is_chance = bdtrc(events_after - 1, events, chance) > TAIL
    if is_chance or len(first.wholes) != len(second.wholes) or len(first.wholes) < MIN_ROUNDS:
        return not is_chance
    low, _ = interval(second.shares - first.shares)
    return low > 0


def in_time(rounds: Sequence[Sequence[Result]]) -> list[int]:
    """Return the places of the rounds in which the load generator was in time, if MIN_ROUNDS are; else of all."""
    places = [place for place, results in enumerate(rounds) if not any(lateness([result]) for result in results)]
    return places if len(places) >= MIN_ROUNDS else list(range(len(rounds)))


def error_share(results: Sequence[Result]) -> Row:
    """Return the share of due requests without a good answer."""
    return share([result.failed for result in results], [result.due for result in results])


def popular_share(results: Sequence[Result]) -> Row | None:
    """Return the share of lists that were popular ones; None if no lists were received."""
    popular = share([result.popular_lists for result in results], [result.lists for result in results])
    return None if popular.value is None else popular


def mean(values: Sequence[float]) -> Row:
    """Return the mean of *values*, one for each round; with five rounds or more, it has a 95 % interval.

    `without` has the mean without each of the rounds in turn.
    """
    if not values:
        return Row(note="nothing was measured")

    total = math.fsum(values)
    count = len(values)
    if count < MIN_ROUNDS:
        return Row(value=total / count, values=tuple(values))

    without = tuple((total - value) / (count - 1) for value in values)
    low, high = interval(values)
    return Row(value=total / count, values=tuple(values), low=low, high=high, without=without)


def plots_by_round(rows: Sequence[Row]) -> list[Plot]:
    """Plot the p99 of each subject by round; no plot if none is known, or of a single round."""
    curves = list[Curve]()
    for row in rows:
        if row.figure == P99 and row.value is not None and len(row.values) > 1:
            rounds = tuple(float(number) for number in range(1, len(row.values) + 1))
            curves.append(Curve(row.subject, rounds, row.values))
    if not curves:
        return []
    plot = Plot(
        title=f"{P99} of each round", x="round", y=P99, curves=tuple(curves), y_unit="us", log_y=True, points=True
    )
    return [plot]


def compared(first: Row, second: Row) -> Row:
    """Return *second* / *first*, with a 95 % interval if both have as many rounds, at least five.

    Rounds of the same number are compared: a disturbance of both cancels out. Seconds of fewer rounds, which may give a
    percentile its interval, do not show how rounds differ. `without`, in both figures and in the result, has the value
    without each of the rounds in turn. The result's value is None if one of the values is None or zero; its note says
    why it has no value or no interval.
    """
    if not first.value or not second.value:
        return Row(note=first.note or second.note or "it was zero")

    value = second.value / first.value
    has_rounds = min(len(first.values), len(second.values)) >= MIN_ROUNDS
    if not (has_rounds and first.without and second.without):
        return Row(value=value, note=TOO_FEW_ROUNDS)
    if len(first.without) != len(second.without):
        return Row(value=value, note=f"{len(first.without)} rounds and {len(second.without)} are no pairs")
    if min(*first.without, *second.without) <= 0:
        return Row(value=value, note="it was zero in all rounds but one")

    without = tuple(after / before for before, after in zip(first.without, second.without, strict=True))
    low, high = _jackknife_interval(value, without)
    return Row(value=value, low=low, high=high, without=without)


def change_of(ratio: float) -> str:
    """Return the change to a ratio of 1, as `+2.5 %`."""
    return f"{100 * (ratio - 1):+.1f} %"


def is_proven(ratio: Row) -> bool:
    """Return whether the interval of a ratio to the least figure excludes equality."""
    return ratio.low is not None and ratio.low > 1


def describe_ratio(ratio: Row) -> str:
    """Return a subject and its ratio to the least figure with its interval, as `Redis 1.4 times (1.3 to 1.6)`."""
    return f"{ratio.subject} {rounded(ratio.value or 0.0)} times ({span(ratio, rounded)})"


@dataclass(frozen=True, slots=True)
class Ranking:
    """The subject with the least figure, and the ratios of the others' figures to it, ascending."""

    least: str
    ratios: tuple[Row, ...]

    @property
    def alike(self) -> list[str]:
        """Subjects for which no difference is proven."""
        return [ratio.subject for ratio in self.ratios if not is_proven(ratio)]

    def describe(self, least: str) -> str:
        """Return a line such as `files fastest; Redis 1.4 times (1.3 to 1.6)`."""
        proven = ", ".join(describe_ratio(ratio) for ratio in self.ratios if is_proven(ratio))
        if not self.alike:
            return f"{self.least} {least}; {proven}"
        *names, last = [self.least, *self.alike]
        unproven = ", ".join(describe_ratio(ratio) for ratio in self.ratios if not is_proven(ratio))
        equal = f"{', '.join(names)} and {last}: no difference proven, {unproven}"
        return f"{equal}; {proven}" if proven else equal


def rank(figures: Sequence[Row]) -> Ranking | None:
    """Return the subject with the least of *figures*, such as the p99 of each store, and how the others differ.

    Differences are ratios to the least figure. The result is None if fewer than two figures are known.
    """
    known = [row for row in figures if row.value is not None]
    if len(known) < 2:
        return None
    least, *larger = sorted(known, key=lambda row: row.value or 0.0)
    return Ranking(least.subject, tuple(replace(compared(least, row), subject=row.subject) for row in larger))


def interval(values: Sequence[float] | Floats) -> tuple[float, float]:
    """Return the 95 % interval of the mean of at least two values in the order of their measurement.

    Successive values may be correlated, by an unknown autocorrelation. For each that is possible, the mean has a
    distribution of Student's t; the interval is that of their mixture, in which the likelier ones weigh more.
    """
    measured = np.asarray(values, dtype=np.float64)
    mean_value = float(measured.mean())
    deviation = float(np.std(measured))
    if np.ptp(measured) == 0:
        return float(measured[0]), float(measured[0])

    low, high = _mixed_quantiles((measured - mean_value) / deviation)
    return mean_value + deviation * low, mean_value + deviation * high


def _mixed_quantiles(values: Floats) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the mean of successive *values*, standardised.

    For each autocorrelation of RHOS, the mean has a distribution of Student's t, which weighs by its likelihood times
    PRIOR. For a lag-1 autocorrelation r, the transform of Prais and Winsten makes the values independent:
    v[0] √(1 - r²), and v[i] - r v[i-1]. Least squares of the transformed values on the transformed constant 1 give mean
    and standard error. The mixture is represented by QUANTILES of each distribution.
    """
    # Arrays of two dimensions are [autocorrelation, value] or [autocorrelation, quantile].
    rhos = RHOS[:, np.newaxis]
    first_factors = np.sqrt(1 - rhos**2)
    independent = np.hstack((first_factors * values[0], values[1:] - rhos * values[:-1]))
    constants = np.hstack((first_factors, np.repeat(1 - rhos, len(values) - 1, axis=1)))

    information = (constants**2).sum(axis=1)
    centres = (constants * independent).sum(axis=1) / information
    residuals = independent - centres[:, np.newaxis] * constants
    squared_errors = np.maximum((residuals**2).sum(axis=1), 1e-12)  # above 0 for the logarithm

    degrees_of_freedom = len(values) - 1
    log_likelihoods = (
        np.log(first_factors[:, 0]) - np.log(information) / 2 - degrees_of_freedom / 2 * np.log(squared_errors)
    )
    weights = PRIOR * np.exp(log_likelihoods - log_likelihoods.max())
    errors = np.sqrt(squared_errors / degrees_of_freedom / information)
    means = centres[:, np.newaxis] + errors[:, np.newaxis] * stdtrit(degrees_of_freedom, QUANTILES)
    order = np.argsort(means, axis=None)
    cumulated = np.cumsum(np.repeat(weights, len(QUANTILES))[order])
    ends = np.searchsorted(cumulated, cumulated[-1] * np.array((TAIL, 1 - TAIL)))
    low, high = means.ravel()[order[ends]].tolist()
    return low, high
