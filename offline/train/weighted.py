"""ALS whose regularization grows with the number of interactions, as Spark's does: its parameters, and exact solving.

Of each pair that a user has, implicit's confidence is alpha times its weight, and Spark's is one more than that. A pair
goes to Spark with its confidence less one, so that alpha means the same to both. Their regularizations cannot be
converted: Spark's is multiplied by the number of pairs of each user and item, and implicit's is the same for all. So it
has a name of its own.
"""

import math
from dataclasses import dataclass

import numpy as np

from offline.errors import SettingError, require_at_least
from offline.input.matrix import Floats, UserItems
from offline.train.recency import Recency

# What a user has weighs more than what they have not, whose confidence is 1, however small its weight.
_LEAST_CONFIDENCE = 1.001


def check_hyperparameters(factors: int, iterations: int, alpha: float, seed: int) -> None:
    """Raise SettingError for values that make no sense for any ALS."""
    require_at_least("factors", factors)
    require_at_least("iterations", iterations)
    if not 0 < alpha < math.inf:
        raise SettingError(f"alpha is {alpha}; it must be above zero.")
    if not 0 <= seed < 2**32:
        raise SettingError(f"seed is {seed}; it must lie between 0 and {2**32 - 1}.")


@dataclass(frozen=True, slots=True)
class SparkParams:
    """
    Hyperparameters of ALS on Spark; raises SettingError for values that make no sense.

    *reg_param* is Spark's `regParam`, which is multiplied by the number of interactions of each user and item.
    """

    factors: int = 64
    reg_param: float = 0.3
    alpha: float = 4.0
    iterations: int = 15
    seed: int = 42
    recency: Recency | None = None

    def __post_init__(self) -> None:
        check_hyperparameters(self.factors, self.iterations, self.alpha, self.seed)
        if not 0 <= self.reg_param < math.inf:
            raise SettingError(f"reg-param is {self.reg_param}; it must be zero or above.")


def confidences(weights: Floats, alpha: float) -> Floats:
    """Return the confidence of each pair, which is above that of a pair that a user has not."""
    found: Floats = np.maximum(np.float32(alpha) * weights, np.float32(_LEAST_CONFIDENCE))
    return found


def solve(item_factors: Floats, user_items: UserItems, params: SparkParams) -> Floats:
    """Return factors [users, factors] that solve the rows of *user_items* exactly, as the last step of a fit does."""
    items = item_factors.astype(np.float64)
    gram, one = items.T @ items, np.eye(items.shape[1])
    factors = np.zeros((user_items.shape[0], items.shape[1]), dtype=np.float32)
    weights = confidences(user_items.data, params.alpha).astype(np.float64)
    for user in np.flatnonzero(np.diff(user_items.indptr)).tolist():
        row = slice(user_items.indptr[user], user_items.indptr[user + 1])
        own, confidence = items[user_items.indices[row]], weights[row]
        regularization = params.reg_param * len(own)
        left = gram + (own.T * (confidence - 1)) @ own + regularization * one
        factors[user] = np.linalg.solve(left, confidence @ own)
    return factors
