"""Item neighbours: items that the same users have, by TF-IDF, BM25, cosine or random walks, and the lists they give."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, ItemItemRecommender, TFIDFRecommender
from implicit.utils import ParameterWarning
from scipy.sparse import csr_matrix

from hotplate.offline.errors import SettingError, require_at_least
from hotplate.offline.input.matrix import (
    Allowed,
    Floats,
    Indices,
    UserItems,
    are_among,
    cells_of,
    check_user_items,
    users_per_item,
)
from hotplate.offline.train import ranking
from hotplate.offline.train.popularity import Recency

NeighbourWeighting = Literal["tfidf", "bm25", "cosine", "rp3beta"]
# Of implicit; without their `fit`, all that distinguishes them is how they were fitted.
RECOMMENDERS = {
    "tfidf": TFIDFRecommender,
    "bm25": BM25Recommender,
    "cosine": CosineRecommender,
    "rp3beta": ItemItemRecommender,
}
# Up to this share of users times items that are scored, sorting the scores takes less than a table.
_SPARSE = 0.05


@dataclass(frozen=True, slots=True)
class NeighbourParams:
    """How items are compared, and how many *neighbours* each has, itself among them.

    *walk_alpha* and *walk_beta* are of rp3beta: the power of a step's probability, and that of the number of users by
    which a popular neighbour is divided.
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
    """The model: *similarity* [items, items], float32 csr, of each item the most similar ones, itself among them."""

    similarity: Any
    params: NeighbourParams
    recent: Floats | None = None
    """[items], multiplies the scores of users' lists, if recency is wanted."""

    floor: ClassVar[float] = 0.0
    fold_in = ranking.itself

    @property
    def shape(self) -> tuple[None, int]:
        """Any users, and how many items it knows."""
        return None, self.similarity.shape[0]

    def recommend(
        self,
        user_items: UserItems,
        users: Indices,
        n: int,
        *,
        keep_seen: bool = False,
        allowed: Allowed = None,
    ) -> tuple[Indices, Floats]:
        """Return what `ranking.recommend` does; where few items are scored, without a table of all of them."""
        size = self.similarity.shape[0]
        links = float(np.diff(self.similarity.indptr).mean())
        if user_items[users].nnz * links > _SPARSE * size * max(1, len(users)):
            return ranking.recommend(self, user_items, users, n, keep_seen=keep_seen, allowed=allowed)

        def score(batch: Indices) -> Any:  # noqa: ANN401 -- scipy publishes no types
            rows = user_items[batch]
            scores = (rows @ self.similarity).tocsr()
            if self.recent is not None:
                scores.data *= self.recent[scores.indices]
            if not keep_seen:
                scores.data[are_among(cells_of(rows), cells_of(scores))] = 0
            return scores

        return ranking.best_of_sparse(score, users, min(n, size), allowed)

    def score(self, rows: UserItems, _users: Indices) -> Any:  # noqa: ANN401 -- scipy publishes no types
        """Sum up the similarities to what users have."""
        return (rows @ self.similarity).toarray()


def fit(user_items: UserItems, params: NeighbourParams) -> Neighbours:
    """Compare all items of *user_items* on all cores; raises DataError for a matrix that cannot be learnt from."""
    check_user_items(user_items)
    weighted, scale = _walks(user_items, params) if params.weighting == "rp3beta" else (user_items, None)
    recommender = RECOMMENDERS[params.weighting](K=min(params.neighbours, user_items.shape[1]))
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # 0 / 0, see below
        warnings.simplefilter("ignore", ParameterWarning)  # it converts a matrix of its own making
        recommender.fit(weighted, show_progress=False)
    similarity = recommender.similarity
    if scale is not None:
        similarity.data *= np.repeat(scale, np.diff(similarity.indptr))
    # TF-IDF's weight of a user who has all items but one is 0, and 0 / 0 is not a number.
    similarity.data[~np.isfinite(similarity.data)] = 0
    similarity.eliminate_zeros()
    return Neighbours(similarity.astype(np.float32), params)


def _walks(user_items: UserItems, params: NeighbourParams) -> tuple[UserItems, npt.NDArray[np.float64]]:
    """Return weights of pairs whose products, summed over users and times a number for each item, are random walks.

    A walk goes from an item to one of its users and on to one of their items. Popular ends are divided by a power of
    their users (RP3beta: Paudel et al., Updatable, accurate, diverse, and scalable recommendations for interactive
    applications, ACM TiiS 2017). As a product of two alike sides, each item is divided by that, the first, too.
    """
    of_users, of_items = (np.asarray(user_items.sum(axis=axis, dtype=np.float64)).ravel() for axis in (1, 0))
    of_users, of_items = np.where(of_users > 0, of_users, 1), np.where(of_items > 0, of_items, 1)
    divisors = np.maximum(users_per_item(user_items), 1) ** params.walk_beta
    data = user_items.data.astype(np.float64) ** params.walk_alpha / divisors[user_items.indices]
    data /= np.repeat(of_users ** (params.walk_alpha / 2), np.diff(user_items.indptr))
    weighted = csr_matrix((data, user_items.indices, user_items.indptr), shape=user_items.shape)
    return weighted, divisors / of_items**params.walk_alpha
