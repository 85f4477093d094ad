"""What most users have: the list for everybody who has no list of their own, overall and by segment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from offline.errors import DataError, require_at_least
from offline.input.matrix import Floats, Indices, Matrix, Times, UserItems, check_user_items
from offline.train import ranking
from offline.train.recency import check_half_life, recent_popularity

# The service keeps every popular list in memory.
MAX_SEGMENTS = 1000
# Equal counts are in the order of their items: what each item loses more than the one before it, in float64.
_TIE = 2.0**-50


@dataclass(frozen=True, slots=True)
class Popular:
    """Items by the number of users that have them, most first, ties in the order of their ids; lives with its model."""

    items: Indices
    scores: Floats


@dataclass(frozen=True, slots=True)
class PopularityParams:
    """
    How long a user of an item counts: half as much after each *half_life_days*, compared with the newest pair.

    None counts all users alike, however long ago they came.
    """

    half_life_days: float | None = None

    def __post_init__(self) -> None:
        if self.half_life_days is not None:
            check_half_life(self.half_life_days)


@dataclass(frozen=True, slots=True)
class Popularity:
    """The model: *counts* [items], of each item the number of users that have it, or that number decayed by time."""

    counts: Floats

    recent: ClassVar[None] = None
    floor: ClassVar[float] = 0.0
    recommend, similar_items = ranking.recommend, ranking.similar_items

    @property
    def shape(self) -> tuple[None, int]:
        """Any users, and how many items it knows."""
        return None, len(self.counts)

    def score(self, _rows: UserItems, users: Indices) -> npt.NDArray[np.float64]:
        """Return the counts, lowered by so little, the more the higher the item, that float32 does not keep it."""
        ordered = self.counts * (1 - np.arange(len(self.counts)) * _TIE)
        return np.repeat(ordered[None], len(users), axis=0)

    def alike(self, items: Indices) -> Floats:
        """Return no similar items, for popularity compares none."""
        return np.zeros((len(items), len(self.counts)), dtype=np.float32)

    def fold_in(self, user_items: UserItems) -> "Popularity":  # noqa: ARG002 -- it is the same for everybody
        """Return itself: only what is left out depends on a user."""
        return self


def fit(user_items: UserItems, params: PopularityParams, times: Times | None = None) -> Popularity:
    """
    Count the users of each item; *times* are those of the pairs, in the order of their data.

    Raises DataError for a matrix that cannot be learnt from, and for a half-life without times.
    """
    check_user_items(user_items)
    return Popularity(recent_popularity(user_items, times, params.half_life_days).astype(np.float32))


def by_popularity(counts: npt.NDArray[Any]) -> Indices:
    """Return all items by their *counts* [items], of users say, most first, ties in the order of their ids."""
    return np.argsort(-counts, kind="stable").astype(np.int32)


def most_popular(matrix: Matrix, n: int, half_life_days: float | None = None) -> Popular:
    """Return the *n* items (or all, if fewer) that the most users have, or have had of late."""
    require_at_least("The length of the popular list", n)
    counts = recent_popularity(matrix.user_items, matrix.times, half_life_days)
    return _first(np.arange(len(matrix.item_ids), dtype=np.int32), counts, n)


def popular_by_segment(segments: pl.DataFrame, item_ids: Sequence[str], n: int) -> dict[str, Popular]:
    """
    Return the *n* most popular items for each segment of *segments* [segment, item, weight], in order of segment.

    Items that are not among *item_ids* (ascending) are passed over. Raises DataError for more than 1,000 segments.
    """
    require_at_least("The length of the popular list", n)
    count = segments.get_column("segment").n_unique()
    if count > MAX_SEGMENTS:
        raise DataError(
            f"The segment column has {count:,} different values; at most {MAX_SEGMENTS:,} can have a list each. "
            "Name a column with fewer."
        )
    columns = pl.DataFrame({"item": item_ids, "column": np.arange(len(item_ids), dtype=np.int32)})
    known = segments.join(columns, on="item").sort("segment", "column")
    return {
        str(segment[0]): _first(group.get_column("column").to_numpy(), group.get_column("weight").to_numpy(), n)
        for segment, group in known.group_by("segment", maintain_order=True)
    }


def _first(items: Indices, counts: npt.NDArray[Any], n: int) -> Popular:
    """Return the *n* of *items*, which ascend, with the highest *counts*."""
    first = by_popularity(counts)[:n]
    return Popular(items[first].astype(np.int32), counts[first].astype(np.float32))
