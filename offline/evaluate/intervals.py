"""Intervals of 95 %: of means over users, by the bootstrap, and of means over several splits, by Student's t."""

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

Interval = tuple[float, float]
Values = npt.NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)
RESAMPLES = 1000
_TAILS = (0.025, 0.975)
_AT_ONCE = 100
# More users than this are resampled in so many random groups, which says the same of a mean, at a bounded cost.
_GROUPS = 5000


def resampled_sums(per_user: Values, seed: int = 42, resamples: int = RESAMPLES) -> Values:
    """
    Return [resamples, columns]: the sums of *per_user* [users, columns] over as many users, drawn with replacement.

    The same seed draws the same users, whatever the columns are. 5,000 users take 0.1 s of CPU.
    """
    order, times_drawn = _draw(len(per_user), seed, resamples)
    if order is not None:
        starts = np.linspace(0, len(per_user), _GROUPS, endpoint=False).astype(np.int64)
        per_user = np.add.reduceat(per_user[order], starts, axis=0)
    sums = np.empty((resamples, per_user.shape[1]))
    # Threads of the linear algebra would spin between products that are as small as these.
    with threadpool_limits(1, "blas"):
        for start in range(0, resamples, _AT_ONCE):
            sums[start : start + _AT_ONCE] = times_drawn[start : start + _AT_ONCE].astype(np.float64) @ per_user
    return sums


@lru_cache(maxsize=1)  # an evaluation draws the same users for each engine
def _draw(users: int, seed: int, resamples: int) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.uint16]]:
    """Return the order in which users are put into groups, if they are, and [resamples, users or groups]: draws."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(users) if users > _GROUPS else None
    drawn = min(users, _GROUPS)
    times_drawn = np.empty((resamples, drawn), dtype=np.uint16)
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        draws = generator.integers(0, drawn, (count, drawn)) + drawn * np.arange(count)[:, None]
        times_drawn[start : start + count] = np.bincount(draws.ravel(), minlength=count * drawn).reshape(count, drawn)
    return order, times_drawn


def percentiles(resampled: Values) -> Interval | None:
    """Return the interval that holds 95 % of *resampled*, or None where one of them is no number."""
    if not np.isfinite(resampled).all():
        return None
    low, high = np.quantile(resampled, _TAILS)
    return float(low), float(high)


def bootstrap(values: Mapping[Name, Values], seed: int = 42, resamples: int = RESAMPLES) -> dict[Name, Interval]:
    """
    Return for each metric of *values* (by name, [users], NaN for users that do not count) the interval of its mean.

    Users are resampled, with all their metrics (Efron and Tibshirani, 1993: percentile intervals); what has too few
    users to be drawn at each time has no interval.
    """
    table = np.stack(list(values.values()), axis=1)
    counted = ~np.isnan(table)
    sums = resampled_sums(np.hstack((np.where(counted, table, 0), counted)), seed, resamples)
    totals, counts = np.hsplit(sums, 2)
    with np.errstate(invalid="ignore"):
        means = totals / counts
    intervals = {name: percentiles(means[:, column]) for column, name in enumerate(values)}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def of_runs(values: Sequence[float]) -> Interval:
    """Return the interval of the mean of *values*, two or more independent runs, by Student's t."""
    from scipy.special import stdtrit  # noqa: PLC0415 -- takes 0.07 s to load, and one split needs none

    runs = np.asarray(values, dtype=np.float64)
    reach = float(stdtrit(len(runs) - 1, _TAILS[1]) * runs.std(ddof=1) / np.sqrt(len(runs)))
    return float(runs.mean()) - reach, float(runs.mean()) + reach
