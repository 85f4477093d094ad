"""Alternating least squares on implicit feedback, by implicit or Spark.

The confidence of a pair is alpha times its weight. Spark adds one, so one is subtracted first, and multiplies
regularization by the number of pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from implicit.cpu._als import least_squares_cg
from implicit.cpu.als import AlternatingLeastSquares
from implicit.recommender_base import ModelFitError

from hotplate.offline.errors import DataError, SettingError, require_above_zero, require_at_least, require_between
from hotplate.offline.input.pairs import Floats, Indices, UserItems, check_user_items, row_slices
from hotplate.offline.train import ranking
from hotplate.offline.train.popularity import Recency
from hotplate.offline.train.spec import EngineSpec, OnIteration, StoredArray, ranking_s, scales_past_edge

_SOLVED_AT_ONCE = 50_000
# Same nDCG as an exact solution, to five digits.
_LAST_SOLVER_STEPS = 6
# Other pairs have 1.
_LEAST_CONFIDENCE = 1.001
_INDEX_BYTES = 4
_NUMBER_BYTES = 4
# Factors, regularization and alpha of cells; each won on some real data and split.
_CELLS = ((128, 60.0, 6.0), (128, 150.0, 20.0), (128, 10.0, 1.3), (512, 30.0, 6.0))
# Twice the factors take two to three times as long.
_MOST_FACTORS = 512


def check_hyperparameters(factors: int, iterations: int, alpha: float, seed: int) -> None:
    """Raise SettingError for values out of range."""
    require_at_least("factors", factors)
    require_at_least("iterations", iterations)
    require_above_zero("alpha", alpha)
    require_between("seed", seed, 0, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class ALSParams:
    """Hyperparameters; SettingError for values out of range.

    The defaults are measured: implicit's rank below popularity on sparse data.
    """

    factors: int = 256
    regularization: float = 30.0
    alpha: float = 4.0
    iterations: int = 15
    seed: int = 42
    recency: Recency | None = None

    def __post_init__(self) -> None:
        check_hyperparameters(self.factors, self.iterations, self.alpha, self.seed)
        require_at_least("regularization", self.regularization, 0)


@dataclass(frozen=True, slots=True)
class SparkParams:
    """Hyperparameters of Spark's ALS; SettingError for values out of range."""

    factors: int = 64
    reg_param: float = 0.3
    alpha: float = 4.0
    iterations: int = 15
    seed: int = 42
    recency: Recency | None = None

    def __post_init__(self) -> None:
        check_hyperparameters(self.factors, self.iterations, self.alpha, self.seed)
        require_at_least("reg-param", self.reg_param, 0)


@dataclass(frozen=True)
class Factors:
    """A fitted model: user_factors [users, factors], item_factors [items, factors], float32."""

    user_factors: Floats
    item_factors: Floats
    params: ALSParams | SparkParams = field(default_factory=ALSParams)
    recent: ranking.RecentWeights | None = None

    recommend = ranking.recommend

    def score(self, _rows: UserItems, users: Indices) -> Floats:
        """Return scores [users, items]."""
        scores: Floats = self.user_factors[users] @ self.item_factors.T
        return scores

    def fold_in(self, user_items: UserItems) -> "Factors":
        """Return a model of other users, the rows of *user_items* [users, items], with the same item factors.

        This needs no new training: a user's factors are the exact solution for the item factors. Raises SettingError
        for a model that Spark has fitted, and DataError if there is no single solution, as without regularization.
        """
        if isinstance(self.params, SparkParams):
            raise SettingError("The engine spark folds no users in; choose another split than held-out-users.")

        model = AlternatingLeastSquares(
            factors=self.item_factors.shape[1], regularization=self.params.regularization, alpha=self.params.alpha
        )
        model.item_factors = self.item_factors

        factors = np.empty((user_items.shape[0], self.item_factors.shape[1]), dtype=np.float32)
        with ranking.one_blas_thread():
            for batch in row_slices(user_items.shape[0], _SOLVED_AT_ONCE):
                rows = user_items[batch]
                try:
                    factors[batch] = model.recalculate_user(np.arange(rows.shape[0]), rows)
                except ValueError as error:  # of a singular matrix
                    raise _diverged_error(self.params) from error

        return replace(self, user_factors=factors)


def confidences(weights: Floats, alpha: float) -> Floats:
    """Return pairs' confidences; other pairs have 1."""
    scaled: Floats = np.maximum(np.float32(alpha) * weights, np.float32(_LEAST_CONFIDENCE))
    return scaled


def fit(user_items: UserItems, params: ALSParams, on_iteration: OnIteration | None = None) -> Factors:
    """Fit factors of users and items to *user_items* on all cores; the product of two factors is a score.

    *user_items* is a float32 csr_matrix [users, items], canonical, above zero; *on_iteration* is called with the
    iterations done and their total. Deterministic for a seed and machine. Takes about 4 times the memory of the matrix,
    and 4 (users + items) factors bytes. Raises DataError for an invalid matrix and for factors that are not finite.

    The last iteration ends with item factors, so user factors are solved once more for them. `Factors.fold_in` of the
    same users then returns the same factors, up to 1e-4 of the largest.
    """
    check_user_items(user_items)
    largest_confidence = float(user_items.data.max()) * params.alpha
    if largest_confidence > float(np.finfo(np.float32).max):
        raise _diverged_error(params)

    # implicit counts iterations from 0.
    def report(iteration: int, _elapsed_s: float, _loss: float | None) -> None:
        if on_iteration is not None:
            on_iteration(iteration + 1, params.iterations)

    # BLAS threads below the solver's double the time.
    with ranking.one_blas_thread():
        # A fitted model would start from its factors, or crash on another shape.
        model = AlternatingLeastSquares(
            factors=params.factors,
            regularization=params.regularization,
            alpha=params.alpha,
            iterations=params.iterations,
            random_state=params.seed,
        )
        try:
            model.fit(user_items, show_progress=False, callback=report)
        except ModelFitError as error:
            raise _diverged_error(params) from error

        # User factors for the final item factors, by a few steps: an exact solution takes over half of the fit's time.
        least_squares_cg(
            params.alpha * user_items,
            model.user_factors,
            model.item_factors,
            params.regularization,
            cg_steps=_LAST_SOLVER_STEPS,
        )

    if not (np.isfinite(model.user_factors).all() and np.isfinite(model.item_factors).all()):
        raise _diverged_error(params)
    return Factors(model.user_factors, model.item_factors, params)


def _diverged_error(params: ALSParams) -> DataError:
    return DataError(
        f"The factors are not finite with regularization {params.regularization} and alpha {params.alpha}; "
        "raise the regularization, lower alpha, or use log weighting."
    )


def _fit_s(params: ALSParams, user_items: UserItems) -> float:
    users, items = map(float, user_items.shape)
    of_iteration = params.factors * (7.5e-11 * params.factors * (users + items) + 6.3e-9 * float(user_items.nnz))
    return params.iterations * of_iteration


def _fit_bytes(params: ALSParams, user_items: UserItems) -> int:
    users, items = user_items.shape
    # Three copies of the matrix, measured with 22 million pairs.
    matrix = user_items.nnz * (_NUMBER_BYTES + _INDEX_BYTES) + (users + 1) * _INDEX_BYTES
    return int(3 * matrix + (users + items) * params.factors * _NUMBER_BYTES)


def _cells(first: ALSParams, items: int) -> Iterator[ALSParams]:
    """Yield *first*, then others with its iterations and seed, and at most as many factors as there are *items*."""
    yield first
    for most_factors, regularization, alpha in _CELLS:
        yield replace(first, factors=min(most_factors, items), regularization=regularization, alpha=alpha)


def _past_edge(best_first: Sequence[ALSParams], items: int) -> Iterator[ALSParams]:
    """Yield parameters to try next, beyond the range of those tried, which are in *best_first*, the best first.

    These are the best ones with twice the factors, and with 512, unless there are fewer *items*. If the alpha of the
    best is the largest one tried, they are also the best with alpha and regularization doubled; if it is the smallest,
    with both halved.
    """
    best = best_first[0]
    for factors in (2 * best.factors, _MOST_FACTORS):
        if best.factors < factors <= min(_MOST_FACTORS, items):
            yield replace(best, factors=factors)

    for scale in scales_past_edge([params.alpha for params in best_first], 2, 0.5):
        yield replace(best, regularization=scale * best.regularization, alpha=scale * best.alpha)


FACTOR_ARRAYS = (StoredArray("user_factors", is_by_user=True), StoredArray("item_factors"))
ALS = EngineSpec(
    params=ALSParams,
    ranker=Factors,
    fit=lambda user_items, params, on_iteration, _times: fit(user_items, params, on_iteration),
    arrays=FACTOR_ARRAYS,
    fit_s=_fit_s,
    fit_bytes=_fit_bytes,
    ranking_s=lambda params, rows: ranking_s(rows, of_pair=5e-9 + 6e-11 * params.factors),
    fit_price=lambda params, user_items: 5e-10 * params.iterations * params.factors**2 * float(sum(user_items.shape)),
    memory_advice="take fewer factors, raise --min-per-user and --min-per-item, or learn with --engine spark",
    cells=_cells,
    past_edge=_past_edge,
)
