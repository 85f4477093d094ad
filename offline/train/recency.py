"""Recency: what is popular of late, and scores that are multiplied by a power of it."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offline.errors import DataError, SettingError
from offline.input.matrix import Floats, Times, UserItems, decay, users_per_item

# An item that nobody chose of late keeps so much of its score, before the power: it ranks last, but it has a rank.
_LEAST = 1e-3


@dataclass(frozen=True, slots=True)
class Recency:
    """The scores of an item are multiplied by (its recent popularity, as a share of the highest) ^ *gamma*."""

    half_life_days: float
    gamma: float

    def __post_init__(self) -> None:
        check_half_life(self.half_life_days)
        if not 0 < self.gamma < math.inf:
            raise SettingError(f"gamma is {self.gamma}; it must be above zero.")

    def weights(self, user_items: UserItems, times: Times | None) -> Floats:
        """Return [items] what scores are multiplied by; *times* are those of the pairs. DataError without times."""
        recent = recent_popularity(user_items, times, self.half_life_days)
        weights: Floats = (np.maximum(recent / recent.max(), _LEAST) ** self.gamma).astype(np.float32)
        return weights


def check_half_life(days: float) -> None:
    """Raise SettingError unless *days* is a half-life."""
    if not 0 < days < math.inf:
        raise SettingError(f"The half-life is {days} days; it must be above zero.")


def recent_popularity(
    user_items: UserItems, times: Times | None, half_life_days: float | None
) -> npt.NDArray[np.float64]:
    """
    Return [items] how many users have each item; a user counts half after each half-life since the pair began.

    *times* are those of the pairs, in the order of their data; the newest of them is now. Without a half-life all users
    count 1. Raises DataError for a half-life without times.
    """
    if half_life_days is None:
        return users_per_item(user_items).astype(np.float64)
    if times is None:
        raise DataError("A half-life needs times, and the data have none; name their column with --time-column.")
    weights = decay(times, half_life_days)
    return np.asarray(np.bincount(user_items.indices, weights=weights, minlength=user_items.shape[1]), dtype=np.float64)
