"""Blends: lists made of those of ALS, of neighbours, and of the popular list.

An item's score is the sum of weight / log2(1 + place) over the lists that have it. ALS and neighbours have the weight
1, and popularity a lower one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

import numpy as np

from hotplate.offline.input.pairs import Allowed, Floats, Indices, UserItems
from hotplate.offline.train import ranking
from hotplate.offline.train.als import ALSParams, Factors
from hotplate.offline.train.item_based import NeighbourParams, Neighbours
from hotplate.offline.train.popularity import Popularity, PopularityParams

_PartParams: TypeAlias = ALSParams | NeighbourParams | PopularityParams
# The length of the list of each part.
_PLACES = 20


@dataclass(frozen=True, slots=True)
class BlendParams:
    """Parameters of the blended engines, and the weight of the popular list; those of the others are 1."""

    als: ALSParams = field(default_factory=ALSParams)
    neighbours: NeighbourParams = field(default_factory=NeighbourParams)
    popularity: PopularityParams = field(default_factory=PopularityParams)
    popularity_weight: float = 0.3
    recency: ClassVar[None] = None

    @property
    def parts(self) -> tuple[_PartParams, ...]:
        """Those of all engines."""
        return self.als, self.neighbours, self.popularity


@dataclass(frozen=True, slots=True)
class Blend:
    """A fitted model: one of each engine."""

    als: Factors
    neighbours: Neighbours
    popularity: Popularity
    params: BlendParams
    recent: ClassVar[None] = None

    @property
    def parts(self) -> dict[_PartParams, Factors | Neighbours | Popularity]:
        """The models by their parameters."""
        return dict(zip(self.params.parts, (self.als, self.neighbours, self.popularity), strict=True))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of users and items."""
        return self.als.shape

    def recommend(
        self,
        user_items: UserItems,
        users: Indices,
        n: int,
        *,
        keep_seen: bool = False,
        allowed: Allowed = None,
        own: UserItems | None = None,
        boosts: ranking.Boosts | None = None,
    ) -> ranking.Ranked:
        """Return lists of *n* items for the rows *users* of *user_items*, as `ranking.recommend`."""
        rows = user_items[users]
        return ranking.recommend(
            self._lists(rows, users, keep_seen=keep_seen, allowed=allowed),
            rows,
            _numbers(users),
            n,
            keep_seen=keep_seen,
            allowed=allowed,
            own=None if own is None else own[users],
            boosts=boosts,
        )

    def score(self, rows: UserItems, users: Indices) -> Floats:
        """Return scores [users, items] by lists that may hold items of the *users*, whose interactions are *rows*."""
        return self._lists(rows, users, keep_seen=True, allowed=None).score(rows, _numbers(users))

    def fold_in(self, user_items: UserItems) -> "Blend":
        """Return a model of other users, as `Factors.fold_in`."""
        return replace(self, als=self.als.fold_in(user_items))

    def _lists(self, rows: UserItems, users: Indices, *, keep_seen: bool, allowed: Allowed) -> "_Lists":
        als = replace(self.als, user_factors=self.als.user_factors[users])
        ranked = [
            part.recommend(rows, _numbers(users), _PLACES, keep_seen=keep_seen, allowed=allowed)
            for part in (als, self.neighbours, self.popularity)
        ]
        return _Lists(
            by_part=[part.items for part in ranked],
            weights=(1, 1, self.params.popularity_weight),
            items=rows.shape[1],
        )


def _numbers(users: Indices) -> Indices:
    """Return the numbers of the rows of *users* alone."""
    return np.arange(len(users), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class _Lists:
    """Lists of the parts of a blend [users, at most _PLACES], -1 after the end of one; *items* are in the catalogue."""

    by_part: Sequence[Indices]
    weights: Sequence[float]
    items: int
    recent: ClassVar[None] = None

    @property
    def shape(self) -> tuple[None, int]:
        """Any users, and the number of items."""
        return None, self.items

    def score(self, _rows: UserItems, users: Indices) -> Floats:
        """Return the sum of discounted places [users, items]."""
        table = np.zeros((len(users), self.items), dtype=np.float32)
        discounts = 1 / np.log2(np.arange(2, _PLACES + 2))
        for weight, lists in zip(self.weights, self.by_part, strict=True):
            rows, places = np.nonzero(lists[users] >= 0)
            table[rows, lists[users[rows], places]] += weight * discounts[places]
        return table


def factors_of(ranker: object) -> Factors | None:
    """Return the factors of a model, or those in a blend; None without factors."""
    als = ranker.als if isinstance(ranker, Blend) else ranker
    return als if isinstance(als, Factors) else None


def with_user_factors(ranker: Factors | Blend, factors: Floats) -> Factors | Blend:
    """Return the model of other users, who have these *factors*."""
    if isinstance(ranker, Blend):
        return replace(ranker, als=replace(ranker.als, user_factors=factors))
    return replace(ranker, user_factors=factors)
