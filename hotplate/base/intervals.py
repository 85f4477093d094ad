"""Intervals of 95 %, in closed forms: images of the service have no scipy."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

Interval = tuple[float, float]

# Standard deviations of a normal distribution in which 95 % of its values are.
Z = 1.959964


class Sample(NamedTuple):
    """Independent values: their number (size), mean, variance and third central moment."""

    size: int
    mean: float
    variance: float
    third: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Return the number and the moments of *values*, 0 without any."""
        count = max(1, len(values))
        mean = sum(values) / count
        squares = sum((value - mean) ** 2 for value in values)
        cubes = sum((value - mean) ** 3 for value in values)
        return cls(len(values), mean, variance=squares / max(1, count - 1), third=cubes / count)


def rate_interval(events: float, exposure: float) -> Interval | None:
    """Return the interval of independent events per exposure, as clicks per list; None without either.

    The variance of their number is that number (Poisson).
    """
    if not (events and exposure):
        return None
    half_width = Z * sqrt(events)
    return max(0.0, events - half_width) / exposure, (events + half_width) / exposure


def share_interval(share: float, count: int) -> Interval:
    """Return the interval of a share (0 to 1) of *count* independent values, by Wilson's score (1927)."""
    weight = Z * Z / count
    center = (share + weight / 2) / (1 + weight)
    half_width = Z * sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return center - half_width, center + half_width


def difference_interval(a: Sample, b: Sample) -> Interval:
    """Return the interval of the difference of means, B minus A, by Welch's t-test (1947)."""
    # Squared standard errors: of both means, and of their difference.
    error_a = a.variance / max(1, a.size)
    error_b = b.variance / max(1, b.size)
    error = error_a + error_b

    # The degrees of freedom by Welch and Satterthwaite: their inverse, which is 0 if all values are equal.
    spread = error_a**2 / max(1, a.size - 1) + error_b**2 / max(1, b.size - 1)
    inverse = 0.0
    if spread:
        inverse = spread / error**2

    # Student's quantile from the normal one, by Abramowitz and Stegun 26.7.5.
    quantile = Z + (Z**3 + Z) / 4 * inverse + (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96 * inverse**2

    difference = b.mean - a.mean
    half_width = quantile * sqrt(error)
    return difference - half_width, difference + half_width
