"""Metrics of predicted ratings, for explicit data: how far they are from what users gave."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offline.evaluate.intervals import Interval, Values, percentiles, resampled_sums


@dataclass(frozen=True, slots=True)
class RatingMetrics:
    """
    Over all pairs of a user and an item, each of which counts alike.

    rmse                the root of the mean squared error
    mae                 the mean absolute error
    r2                  the share of the ratings' variance that is predicted; below 0 for worse than their mean
    explained_variance  the same where the mean error is forgiven
    """

    rmse: float
    mae: float
    r2: float
    explained_variance: float


def measure_ratings(predicted: Values, actual: Values) -> RatingMetrics:
    """Measure *predicted* against *actual*, both [pairs]; where ratings do not vary, r2 is 1 or 0, as in scikit-learn.

    Raises ValueError for no pairs, or for arrays of two lengths.
    """
    sums = _sums(predicted, actual).sum(axis=0, keepdims=True)
    return RatingMetrics(**{name: float(values[0]) for name, values in _metrics(sums).items()})


def rating_intervals(
    predicted: Values, actual: Values, users: npt.NDArray[np.integer], seed: int = 42
) -> dict[str, Interval]:
    """Return the intervals of `measure_ratings`, where *users* [pairs] with all their pairs are resampled."""
    _, user = np.unique(users, return_inverse=True)
    sums = _sums(predicted, actual)
    per_user: Values = np.stack([np.bincount(user, weights=column) for column in sums.T], axis=1, dtype=np.float64)
    resampled = _metrics(resampled_sums(per_user, seed))
    found = {name: percentiles(values) for name, values in resampled.items()}
    return {name: interval for name, interval in found.items() if interval is not None}


def _sums(predicted: Values, actual: Values) -> Values:
    """Return [pairs, 6], what the metrics are made of, so that they add up."""
    if len(predicted) != len(actual) or len(actual) == 0:
        raise ValueError(f"there are {len(predicted)} predictions of {len(actual)} ratings")
    error = actual.astype(np.float64) - predicted
    rating = actual - actual.mean(dtype=np.float64)  # around zero, so that squares lose no digits
    return np.stack((np.ones(len(error)), error, error**2, np.abs(error), rating, rating**2), axis=1)


def _metrics(sums: Values) -> dict[str, Values]:
    pairs, error, squared_error, absolute_error, rating, squared_rating = sums.T
    of_errors = squared_error - error**2 / pairs
    of_ratings = squared_rating - rating**2 / pairs
    return {
        "rmse": np.sqrt(squared_error / pairs),
        "mae": absolute_error / pairs,
        "r2": _explained(squared_error, of_ratings, pairs),
        "explained_variance": _explained(of_errors, of_ratings, pairs),
    }


def _explained(unexplained: Values, whole: Values, pairs: Values) -> Values:
    constant = whole <= 1e-12 * pairs
    share = 1 - unexplained / np.where(constant, 1, whole)
    return np.where(constant, (unexplained <= 1e-12 * pairs).astype(np.float64), share)
