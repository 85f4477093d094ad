"""Item-based engines: EASE's closed-form weights, and neighbours by TF-IDF, BM25, cosine or random walks (RP3beta)."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, ItemItemRecommender, TFIDFRecommender
from implicit.utils import ParameterWarning
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, diags_array

from hotplate.offline.errors import SettingError, require_at_least
from hotplate.offline.input.pairs import (
    Floats,
    Indices,
    UserItems,
    are_among,
    check_user_items,
    pair_numbers,
    row_of_each_pair,
    row_slices,
    users_per_item,
    with_weights,
)
from hotplate.offline.train import ranking
from hotplate.offline.train.popularity import Recency
from hotplate.offline.train.spec import (
    EngineSpec,
    StoredArray,
    product_terms,
    ranking_s,
    scales_past_edge,
)

NeighbourWeighting = Literal["tfidf", "bm25", "cosine", "rp3beta"]
RECOMMENDERS = {
    "tfidf": TFIDFRecommender,
    "bm25": BM25Recommender,
    "cosine": CosineRecommender,
    "rp3beta": ItemItemRecommender,
}
# Up to this share of scored pairs, sorting is faster than a dense table.
_MOST_SPARSE_SCORES = 0.05
# A user counts by the square root of their weight.
_USER_POWER = -0.25
# Dropped items; regularizes items by number of users.
_DROPOUT = 0.2
# Rows; bounds memory.
_ROWS_AT_ONCE = 512
# Each won on some real data and split.
_EASE_CELLS = (20.0, 60.0)
_NEIGHBOUR_CELLS: tuple[tuple[NeighbourWeighting, tuple[int, ...]], ...] = (
    ("tfidf", (5, 10, 20, 100)),
    ("bm25", (5, 100)),
    ("rp3beta", (100,)),
)
_FEWEST_NEIGHBOURS = 5
# implicit's coordinates and their conversion to rows, in 64 bits.
_NEIGHBOUR_BYTES = 28
# A fit takes _NEIGHBOUR_BYTES for each.
_MOST_SIMILARITIES = 5_000_000
_WALK_STEP = 0.1


@dataclass(frozen=True, slots=True)
class NeighbourParams:
    """Hyperparameters; an item is one of its *neighbours*. SettingError for values out of range.

    In rp3beta, *walk_alpha* is the power of a step's probability; scores are divided by a neighbour's number of users
    to the power *walk_beta*.
    """

    weighting: NeighbourWeighting = "tfidf"
    neighbours: int = 10
    walk_alpha: float = 0.7
    walk_beta: float = 0.3
    recency: Recency | None = None

    def __post_init__(self) -> None:
        if self.weighting not in get_args(NeighbourWeighting):
            known = ", ".join(get_args(NeighbourWeighting))
            raise SettingError(f"weighting is {self.weighting!r}; it must be one of {known}.")
        require_at_least("neighbours", self.neighbours, 2)
        if not (0 < self.walk_alpha <= 2 and 0 <= self.walk_beta <= 2):
            raise SettingError(
                f"walk_alpha is {self.walk_alpha} and walk_beta {self.walk_beta}; both are at most 2, walk_alpha "
                "above 0 and walk_beta 0 or above."
            )


@dataclass(frozen=True)
class Neighbours:
    """A fitted model: *similarity* [items, items], float32 csr, with the most similar items of each and itself."""

    similarity: Any
    params: NeighbourParams
    recent: ranking.RecentWeights | None = None

    fold_in = ranking.itself

    def recommend(
        self,
        user_items: UserItems,
        users: Indices,
        n: int,
        options: ranking.RankOptions = ranking.PLAIN,
    ) -> ranking.Ranked:
        """Return lists of *n* items for the rows *users* of *user_items* [users, items], best first.

        A score is the sum of an item's similarities (`similarity`, sparse [items, items]) with the user's items. If
        these have few neighbours, most items have the score 0, and only the others are computed and sorted. With
        *options* that change scores, all are computed, by `ranking.recommend`.
        """
        items = self.similarity.shape[0]
        mean_neighbours = self.similarity.nnz / items

        # The number of scores that are not 0, if no two items of a user share a neighbour.
        most_scores = user_items[users].nnz * mean_neighbours
        is_dense = most_scores > _MOST_SPARSE_SCORES * items * max(1, len(users))
        if is_dense or options.changes_scores:
            return ranking.recommend(self, user_items, users, n, options)

        score_batch = partial(self._sparse_scores, user_items, keep_seen=options.keep_seen)
        return ranking.best_of_sparse(score_batch, users, min(n, items), options.allowed)

    def _sparse_scores(self, user_items: UserItems, users: Indices, *, keep_seen: bool) -> Any:  # noqa: ANN401 -- scipy publishes no types
        """Return the scores that are not 0, as a csr_matrix [len(users), items].

        *users* are rows of *user_items* [users, items]. Items that a user has get a score of 0, unless *keep_seen*.
        """
        rows = user_items[users]
        scores = (rows @ self.similarity).tocsr()
        if self.recent is not None:
            self.recent.apply(scores.data, scores.indices)
        if not keep_seen:
            scores.data[are_among(pair_numbers(rows), pair_numbers(scores))] = 0
        return scores

    def score(self, rows: UserItems, _users: Indices) -> Any:  # noqa: ANN401 -- scipy publishes no types
        """Return scores [users, items]."""
        return (rows @ self.similarity).toarray()


def fit_neighbours(user_items: UserItems, params: NeighbourParams) -> Neighbours:
    """Find the most similar items of each item of *user_items* [users, items], on all cores.

    Two items are similar if the same users have them, weighted by TF-IDF, BM25 or cosine, or if random walks lead from
    one to the other (rp3beta). Raises DataError for an invalid matrix.
    """
    check_user_items(user_items)

    weighted = user_items
    start_factors = None
    if params.weighting == "rp3beta":
        weighted, start_factors = _weigh_for_walks(user_items, params)

    recommender = RECOMMENDERS[params.weighting](K=min(params.neighbours, user_items.shape[1]))
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", ParameterWarning)  # implicit converts its own matrix
        recommender.fit(weighted, show_progress=False)

    similarity = recommender.similarity
    if start_factors is not None:
        similarity.data *= start_factors[row_of_each_pair(similarity)]

    # TF-IDF gives a user with all items but one the weight 0, and divides by it.
    similarity.data[~np.isfinite(similarity.data)] = 0
    similarity.eliminate_zeros()
    return Neighbours(similarity.astype(np.float32), params)


class _WalkWeights(NamedTuple):
    """A random walk from an item to another is the sum of their weights' products over users, times a factor.

    weighted       pairs with weights [users, items]
    start_factors  the factor of each item at which a walk starts [items]
    """

    weighted: UserItems
    start_factors: npt.NDArray[np.float64]


def _weigh_for_walks(user_items: UserItems, params: NeighbourParams) -> _WalkWeights:
    """Return weights of pairs by which the library computes random walks: from an item to a user, and to another item.

    The probability of a step is the weight of the pair by the sum of weights where it starts, raised to `walk_alpha`. A
    walk is divided by the number of users of its end to the power `walk_beta`, as popular items are reached too often
    (RP3beta: Paudel et al., ACM TiiS 2017). So, with w for weights, a = `walk_alpha` and b = `walk_beta`, it is

        (w(start, user) / sum(start))^a * (w(user, end) / sum(user))^a / users(end)^b

    The library multiplies the weights of two pairs, (start, user) and (user, end), and has one weight for each pair. So
    the weight of a pair is w^a, divided by the root of the user's sum^a, as it is multiplied twice, and by
    users(item)^b. `start_factors` divide by the start's sum^a, and undo the division by users(start)^b.
    """
    weights = user_items.data.astype(np.float64) ** params.walk_alpha

    user_divisors = _sums_of_weights(user_items, axis=1) ** (params.walk_alpha / 2)
    end_divisors = np.maximum(users_per_item(user_items), 1) ** params.walk_beta
    weights /= end_divisors[user_items.indices]
    weights /= user_divisors[row_of_each_pair(user_items)]

    start_divisors = _sums_of_weights(user_items, axis=0) ** params.walk_alpha
    return _WalkWeights(
        weighted=with_weights(user_items, weights),
        start_factors=end_divisors / start_divisors,
    )


def _sums_of_weights(user_items: UserItems, axis: int) -> npt.NDArray[np.float64]:
    """Return the sums of weights, 1 instead of 0."""
    sums = np.asarray(user_items.sum(axis=axis, dtype=np.float64)).ravel()
    return np.where(sums > 0, sums, 1)


@dataclass(frozen=True, slots=True)
class EASEParams:
    """Hyperparameters of EASE; SettingError for values out of range."""

    regularization: float = 20.0
    recency: Recency | None = None

    def __post_init__(self) -> None:
        if not 0 < self.regularization < math.inf:
            raise SettingError(f"regularization is {self.regularization}; EASE needs it to be above zero.")


@dataclass(frozen=True, slots=True)
class EASE:
    """A fitted model: *weights* [items of the user, scored items], float32."""

    weights: Floats
    recent: ranking.RecentWeights | None = None

    recommend = ranking.recommend
    fold_in = ranking.itself

    def score(self, rows: UserItems, _users: Indices) -> Floats:
        """Return scores [users, items]."""
        summed: Floats = _square_roots(rows).astype(np.float32) @ self.weights
        return summed


def fit_ease(user_items: UserItems, params: EASEParams) -> EASE:
    """Return the weights [items of the user, scored items] that predict a user's items from the other ones best.

    The least squares have a closed solution: the inverse of the items' Gram matrix, divided by its negative diagonal.
    Regularized by a constant (Steck, WWW 2019) and by dropout (Steck, NeurIPS 2020). Takes items^3 operations and
    4 items^2 bytes: 20 s of a core and 0.6 GB for 12,000 items. Deterministic for one machine and number of threads.
    Raises DataError for an invalid matrix.
    """
    check_user_items(user_items)

    # Very active users count less than in proportion to their interactions.
    user_factors = _sums_of_weights(user_items, axis=1) ** _USER_POWER
    scaled = csr_matrix(diags_array(user_factors) @ _square_roots(user_items))

    # In blocks of rows, to save memory; everything below overwrites this table.
    by_item = csr_matrix(scaled.T)
    gram = np.empty((user_items.shape[1], user_items.shape[1]), dtype=np.float32)
    for rows in row_slices(len(gram), _ROWS_AT_ONCE):
        gram[rows] = (by_item[rows] @ scaled).toarray()

    diagonal = np.diag_indices_from(gram)
    gram[diagonal] = gram[diagonal] / (1 - _DROPOUT) + params.regularization

    # The transpose of the symmetric table has LAPACK's memory order, so it is not copied. Its lower triangle is the
    # upper one of the table. Dropout makes any table positive definite.
    factor, _ = lapack.spotrf(gram.T, lower=True, overwrite_a=True)
    inverse, _ = lapack.spotri(factor, lower=True, overwrite_c=True)
    weights: Floats = inverse.T
    negative_diagonal = -weights[diagonal]

    _mirror_upper_triangle(weights)  # LAPACK wrote no other
    weights /= negative_diagonal
    return EASE(weights)


def _mirror_upper_triangle(table: Floats) -> None:
    """Make the square *table* symmetric, in place: copy the upper triangle to the lower one, and set the diagonal to 0.

    This is done in blocks of rows, to save memory.
    """
    for rows in row_slices(len(table), _ROWS_AT_ONCE):
        upper = np.triu(table[rows, rows], 1)
        table[rows, rows] = upper + upper.T
        table[rows, : rows.start] = table[: rows.start, rows].T


def _square_roots(user_items: UserItems) -> csr_matrix:
    """Return the square roots of weights: a hundred interactions are not a hundred times as certain as one."""
    return with_weights(user_items, np.sqrt(user_items.data, dtype=np.float64))


def _neighbours_s(params: NeighbourParams, user_items: UserItems) -> float:
    items = float(user_items.shape[1])
    return 7e-9 * product_terms(user_items) + 1.5e-7 * min(params.neighbours, items) * items


def _neighbours_bytes(params: NeighbourParams, user_items: UserItems) -> int:
    items = user_items.shape[1]
    return int(_NEIGHBOUR_BYTES * min(params.neighbours, items) * items)


def _varied_of_neighbours(params: NeighbourParams) -> dict[str, Any]:
    """Return weighting and neighbours, and the powers of random walks, which mean nothing for other weightings."""
    values: dict[str, Any] = {"weighting": params.weighting, "neighbours": params.neighbours}
    if params.weighting == "rp3beta":
        values |= {"walk_alpha": params.walk_alpha, "walk_beta": params.walk_beta}
    return values


def _neighbour_cells(_first: NeighbourParams, items: int) -> Iterator[NeighbourParams]:
    """Yield cells with no more neighbours than there are *items* in the catalogue, but for the fewest."""
    for weighting, numbers in _NEIGHBOUR_CELLS:
        for number in numbers:
            if number <= max(items, _FEWEST_NEIGHBOURS):
                yield NeighbourParams(weighting, number)


def _neighbours_past_edge(best_first: Sequence[NeighbourParams], items: int) -> Iterator[NeighbourParams]:
    """Yield parameters to try next, near the best of those tried, which are in *best_first*, the best first.

    If the best have the largest or the smallest number of neighbours, of those with the same other parameters, they are
    tried with more or fewer; a model of all *items* keeps at most 5 million similarities, for its memory. If the best
    are of random walks (rp3beta), one of their two powers is tried a step higher or lower, too.
    """
    best = best_first[0]
    # Of parameters that differ from the best in the number of neighbours alone.
    numbers = [params.neighbours for params in best_first if replace(params, neighbours=best.neighbours) == best]
    most_neighbours = max(2, min(items, _MOST_SIMILARITIES // items))
    for scale in scales_past_edge(numbers, 5, 0.5):
        yield replace(best, neighbours=int(np.clip(scale * best.neighbours, 2, most_neighbours)))

    if best.weighting == "rp3beta":
        for alpha_step, beta_step in ((_WALK_STEP, 0), (-_WALK_STEP, 0), (0, _WALK_STEP), (0, -_WALK_STEP)):
            alpha = round(best.walk_alpha + alpha_step, 2)
            beta = round(best.walk_beta + beta_step, 2)
            if alpha > 0 and beta >= 0:
                yield replace(best, walk_alpha=alpha, walk_beta=beta)


def _ease_s(_params: EASEParams, user_items: UserItems) -> float:
    return 1.1e-11 * float(user_items.shape[1]) ** 3 + 1.8e-8 * product_terms(user_items)


def _ease_bytes(_params: EASEParams, user_items: UserItems) -> int:
    items = user_items.shape[1]
    return int(4 * items**2 + 4096 * items)  # the item table, and one block in float64


def _ease_past_edge(best_first: Sequence[EASEParams], _items: int) -> Iterator[EASEParams]:
    """Yield a larger or smaller regularization, if the best one is at an edge."""
    for scale in scales_past_edge([params.regularization for params in best_first], 3, 1 / 3):
        yield EASEParams(float(f"{scale * best_first[0].regularization:.3g}"))


NEIGHBOURS = EngineSpec(
    params=NeighbourParams,
    ranker=Neighbours,
    fit=lambda user_items, params, _on_iteration, _times: fit_neighbours(user_items, params),
    arrays=(StoredArray("similarity", is_sparse=True),),
    fit_s=_neighbours_s,
    fit_bytes=_neighbours_bytes,
    fit_price=lambda _params, user_items: 3e-8 * product_terms(user_items),
    memory_advice="take fewer neighbours, or raise --min-per-item",
    varied=_varied_of_neighbours,
    cells=_neighbour_cells,
    past_edge=_neighbours_past_edge,
)
EASE_ENGINE = EngineSpec(
    params=EASEParams,
    ranker=EASE,
    fit=lambda user_items, params, _on_iteration, _times: fit_ease(user_items, params),
    arrays=(StoredArray("weights"),),
    fit_s=_ease_s,
    fit_bytes=_ease_bytes,
    ranking_s=lambda _params, rows: ranking_s(rows, of_interaction=3e-10),
    memory_advice="raise --min-per-item, or learn with --engine als",
    cells=lambda _first, _items: map(EASEParams, _EASE_CELLS),
    past_edge=_ease_past_edge,
)
