"""Alternating least squares on implicit feedback: from the matrix to factors of users and items."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.recommender_base import ModelFitError
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

from offline.errors import DataError, SettingError
from offline.matrix import Floats, UserItems

_USERS_PER_BATCH = 50_000


@dataclass(frozen=True, slots=True)
class ALSParams:
    """
    What the fit is told; raises SettingError for values that make no sense.

    The defaults are measured ones: the library's own rank below plain popularity on sparse data.
    """

    factors: int = 128
    regularization: float = 30.0
    alpha: float = 4.0
    iterations: int = 15
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("factors", "iterations"):
            value = getattr(self, name)
            if value < 1:
                raise SettingError(f"{name} is {value}; it must be at least 1.")
        if not (math.isfinite(self.regularization) and self.regularization >= 0):
            raise SettingError(f"regularization is {self.regularization}; it must be zero or above.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise SettingError(f"alpha is {self.alpha}; it must be above zero.")
        if not 0 <= self.seed < 2**32:
            raise SettingError(f"seed is {self.seed}; it must lie between 0 and {2**32 - 1}.")


@dataclass(frozen=True, slots=True)
class Factors:
    """What was learnt: float32 rows of one length, user_factors [users, factors] and item_factors [items, factors]."""

    user_factors: Floats
    item_factors: Floats


def fit(user_items: UserItems, params: ALSParams, on_iteration: Callable[[int, int], None] | None = None) -> Factors:
    """
    Factorize *user_items* (float32 csr_matrix, canonical, above zero) on all cores.

    The factors of all users are solved exactly once more at the end, against the final item factors, so that folding a
    user in later gives the same. The same seed gives the same bits on one machine. *on_iteration* is called with
    (done, total). Memory: about 4 times the matrix, and 4 (users + items) factors bytes. Raises DataError for a matrix
    that cannot be learnt from, and when the factors are not finite.
    """
    _check(user_items)
    if float(user_items.data.max()) * params.alpha > float(np.finfo(np.float32).max):
        raise _diverged(params)

    def tell(iteration: int, _elapsed_s: float, _loss: float | None) -> None:
        if on_iteration is not None:
            on_iteration(iteration + 1, params.iterations)

    # Threads of the linear algebra under the threads of the solver double the time.
    with threadpool_limits(1, "blas"):
        # A model that has been fitted before would go on from its old factors, or crash on another shape.
        model = AlternatingLeastSquares(
            factors=params.factors,
            regularization=params.regularization,
            alpha=params.alpha,
            iterations=params.iterations,
            random_state=params.seed,
        )
        try:
            model.fit(user_items, show_progress=False, callback=tell)
        except ModelFitError as error:
            raise _diverged(params) from error
        user_factors = np.empty_like(model.user_factors)
        for start in range(0, user_items.shape[0], _USERS_PER_BATCH):
            rows = user_items[start : start + _USERS_PER_BATCH]
            user_factors[start : start + _USERS_PER_BATCH] = model.recalculate_user(np.arange(rows.shape[0]), rows)
    if not (np.isfinite(user_factors).all() and np.isfinite(model.item_factors).all()):
        raise _diverged(params)
    return Factors(user_factors, model.item_factors)


def _check(user_items: UserItems) -> None:
    if not isinstance(user_items, csr_matrix) or user_items.dtype != np.float32:
        raise TypeError("user_items must be a scipy csr_matrix of float32")
    users, items = user_items.shape
    if users < 2 or items < 2 or user_items.nnz == 0:
        raise DataError(
            f"There are {users} users, {items} items and {user_items.nnz} pairs; learning needs two of each."
        )
    if not (user_items.has_canonical_format and np.isfinite(user_items.data).all() and (user_items.data > 0).all()):
        raise DataError("The matrix holds a pair twice, or a weight that is not finite and above zero; build it anew.")


def _diverged(params: ALSParams) -> DataError:
    return DataError(
        f"The factors are not finite with regularization {params.regularization} and alpha {params.alpha}; "
        "raise the regularization, lower alpha, or use log weighting."
    )
