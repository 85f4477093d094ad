"""Blends: lists made of those of ALS, of neighbours, and of the popular list.

An item's score is the sum of weight / log2(1 + place) over the lists that have it. ALS and neighbours have the weight
1, and popularity a lower one. The first 20 items are those with the best sums over the first 20 places, so that they do
not depend on the length of a list. Those behind them have the best sums over as many places as the list has.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from scipy.sparse import csr_matrix

from hotplate.offline.errors import require_at_least
from hotplate.offline.input.pairs import Floats, Indices, UserItems
from hotplate.offline.train import ranking
from hotplate.offline.train.als import ALSParams, Factors
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams

_PartParams: TypeAlias = ALSParams | NeighbourParams | PopularityParams
RankerT = TypeVar("RankerT", bound="Factors | Blend")
# Of the list of each part, for the first items of a list.
_PLACES = 20


@dataclass(frozen=True, slots=True)
class BlendParams:
    """Parameters of the blended engines, and the weight of the popular list; those of the others are 1.

    Raises SettingError for a weight below 0.
    """

    als: ALSParams = field(default_factory=ALSParams)
    neighbours: NeighbourParams = field(default_factory=NeighbourParams)
    popularity: PopularityParams = field(default_factory=PopularityParams)
    popularity_weight: float = 0.3
    recency: ClassVar[None] = None

    def __post_init__(self) -> None:
        require_at_least("popularity_weight", self.popularity_weight, 0)

    @property
    def parts(self) -> tuple[_PartParams, ...]:
        """Those of all engines."""
        return self.als, self.neighbours, self.popularity


@dataclass(frozen=True, slots=True)
class Blend:
    """A fitted model: those of `BlendParams.parts`, in that order."""

    parts: tuple[Any, ...]
    params: BlendParams
    recent: ClassVar[None] = None

    def recommend(
        self,
        user_items: UserItems,
        users: Indices,
        n: int,
        options: ranking.RankOptions = ranking.PLAIN,
    ) -> ranking.Ranked:
        """Return lists of *n* items for the rows *users* of *user_items*, as `ranking.recommend`."""
        rows = user_items[users]
        of_users = replace(options, own=None if options.own is None else options.own[users])

        def best(length: int, places: int) -> ranking.Ranked:
            """Return lists of *length* items by the first *places* of the lists of the parts."""
            scores = self._scores(rows, users, places, options)
            return scores.recommend(rows, scores.users, length, of_users)

        first = best(min(n, _PLACES), _PLACES)
        if n <= _PLACES:
            return first
        others = best(n, n)
        # A sum over more places may be higher, but scores descend in a list.
        others = others._replace(scores=np.minimum(others.scores, first.scores[:, -1:]))
        return first.followed_by(others, others.items.shape[1])

    def score(self, rows: UserItems, users: Indices) -> Floats:
        """Return scores [users, items] by lists that may hold items of the *users*, whose interactions are *rows*."""
        table: Floats = self._scores(rows, users, _PLACES, ranking.RankOptions(keep_seen=True)).table.toarray()
        return table

    def fold_in(self, user_items: UserItems) -> "Blend":
        """Return a model of other users, as `Factors.fold_in`."""
        als, *others = self.parts
        return replace(self, parts=(als.fold_in(user_items), *others))

    def _scores(
        self, rows: UserItems, users: Indices, places: int, options: ranking.RankOptions
    ) -> ranking.ScoresOfUsers:
        """Return the scores of *users*, numbered from 0, by the first *places* of the lists of the parts.

        Those of items that are on no list are 0, and not stored. Own choices and boosts do not change these lists.
        """
        options = replace(options, own=None, boosts=None)
        numbers = np.arange(len(users), dtype=np.int32)
        als, neighbours, popularity = (
            _discounts(part.recommend(rows, numbers, places, options).items, rows.shape)
            for part in with_user_factors(self, self.parts[0].user_factors[users]).parts
        )
        return ranking.ScoresOfUsers(als + neighbours + self.params.popularity_weight * popularity, numbers)


def _discounts(lists: Indices, shape: tuple[int, int]) -> Any:  # noqa: ANN401 -- scipy publishes no types
    """Return 1 / log2(1 + place) of each item of *lists* [users, places], a csr_matrix [users, items]."""
    users, places = np.nonzero(lists >= 0)
    discounts = 1 / np.log2(np.arange(2, lists.shape[1] + 2, dtype=np.float32))
    return csr_matrix((discounts[places], (users, lists[users, places])), shape=shape)


def factors_of(ranker: object) -> Factors | None:
    """Return the factors of a model, or those in a blend; None without factors."""
    als = ranker.parts[0] if isinstance(ranker, Blend) else ranker
    return als if isinstance(als, Factors) else None


def with_user_factors(ranker: RankerT, factors: Floats) -> RankerT:
    """Return the model, of ALS or a blend, of other users, who have these *factors*."""
    if isinstance(ranker, Blend):
        als, *others = ranker.parts
        return replace(ranker, parts=(replace(als, user_factors=factors), *others))
    return replace(ranker, user_factors=factors)
