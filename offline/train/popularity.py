"""Popularity: an engine, popular lists, and recency as a factor of scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.offline.errors import DataError, require_above_zero, require_at_least
from hotplate.offline.input.history import DAY_US, NO_TIME, Times, decay_factors
from hotplate.offline.input.matrix import Matrix
from hotplate.offline.input.pairs import (
    Floats,
    Indices,
    UserItems,
    check_user_items,
    has_items,
    items_per_user,
    no_items,
    row_slices,
)
from hotplate.offline.train import ranking
from hotplate.offline.train.spec import EngineSpec, StoredArray

# Bounds memory.
_RANKED_AT_ONCE = 4096
# More items are considered, by this factor, for users who have most of the first ones.
_CONSIDERED_GROWTH = 4
# Above 0, to keep items ranked.
_LEAST_POPULARITY = 1e-3


@dataclass(frozen=True, slots=True)
class Recency:
    """Recent popularity as a share of its maximum, to the power of *gamma*, as a factor of scores."""

    half_life_days: float
    gamma: float

    def __post_init__(self) -> None:
        require_above_zero("The half-life", self.half_life_days)
        require_above_zero("gamma", self.gamma)

    def weights(self, user_items: UserItems, times: Times | None) -> ranking.RecentWeights:
        """Return the weights of items; *times* are those of the pairs. Raises DataError without times."""
        recent = recent_popularity(user_items, times, self.half_life_days)
        logs = self.gamma * np.log(np.maximum(recent / recent.max(), _LEAST_POPULARITY))
        return ranking.RecentWeights(logs.astype(np.float32), self.gamma)


def recent_popularity(
    user_items: UserItems, times: Times | None, half_life_days: float | None
) -> npt.NDArray[np.float64]:
    """Return the number of users of each item [items]; with a half-life, a user counts half per half-life of age.

    *times* are the first times of the pairs, in the order of user_items.data; ages are relative to the newest one.
    Raises DataError for a half-life without times.
    """
    if half_life_days is not None and times is None:
        raise DataError("A half-life needs times, and the data have none; name their column with --time-column.")

    weights = None if half_life_days is None or times is None else decay_factors(times, half_life_days)
    return np.asarray(np.bincount(user_items.indices, weights, user_items.shape[1]), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Popular:
    """A popular list: items and their numbers of users, descending, ties by id."""

    items: Indices
    scores: Floats


@dataclass(frozen=True, slots=True)
class PopularityParams:
    """Half-life of a user's count, relative to the newest pair; None counts all alike."""

    half_life_days: float | None = None
    recency: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.half_life_days is not None:
            require_above_zero("The half-life", self.half_life_days)


@dataclass(frozen=True, slots=True)
class Popularity:
    """A fitted model: *counts* [items] of users, perhaps decayed."""

    counts: Floats

    recent: ClassVar[None] = None
    fold_in = ranking.itself

    def recommend(
        self,
        user_items: UserItems,
        users: Indices,
        n: int,
        options: ranking.RankOptions = ranking.PLAIN,
    ) -> ranking.Ranked:
        """Return the most popular *n* items for the rows *users* of *user_items* [users, items].

        `counts` [items] are the numbers of users of each item; items without any are not listed. Users without items in
        *user_items* get no list. Ties are in the order of items. Ten times as fast as `ranking.recommend`, which
        computes a table of all users and items, and is called with *options* that change scores.
        """
        if options.changes_scores:
            return ranking.recommend(self, user_items, users, n, options)

        require_at_least("The length of a list", n)
        allowed = options.allowed
        listable_counts = self.counts if allowed is None else np.where(allowed, self.counts, 0)
        best_first = chosen_items(listable_counts)

        n = min(n, len(self.counts))
        lists = no_items(len(users), n)
        for batch in row_slices(len(users), _RANKED_AT_ONCE):
            lists[batch] = _first_items(best_first, user_items[users[batch]], n, keep_seen=options.keep_seen)
        return ranking.Ranked(lists, scores=np.where(lists >= 0, self.counts[lists], np.float32(0)))

    def fill(
        self,
        user_items: UserItems,
        users: Indices,
        lists: ranking.Ranked,
        options: ranking.RankOptions = ranking.PLAIN,
    ) -> ranking.Ranked:
        """Fill those *lists* of *users* [users, n] that have fewer than n items with popular ones, with a score of 0.

        *options* do not change the order of popular items. The lists are changed in place, and returned.
        """
        short = np.flatnonzero(lists.items[:, -1] < 0)
        if not len(short):
            return lists

        width = lists.items.shape[1]
        options = replace(options, own=None, boosts=None)
        popular = self.recommend(user_items, users[short], width, options)
        fillers = ranking.Ranked(popular.items, np.zeros_like(popular.scores))
        filled = ranking.Ranked(lists.items[short], lists.scores[short]).followed_by(fillers, width)
        lists.put(short, filled)
        return lists

    def score(self, _rows: UserItems, users: Indices) -> Floats:
        """Return scores [users, items]."""
        return np.repeat(self.counts[None], len(users), axis=0)


def fit(user_items: UserItems, params: PopularityParams, times: Times | None = None) -> Popularity:
    """Count items' users; *times* are in the order of user_items.data.

    Raises DataError for an invalid matrix, and for a half-life without times.
    """
    check_user_items(user_items)
    return Popularity(recent_popularity(user_items, times, params.half_life_days).astype(np.float32))


def _first_items(best_first: Indices, rows: UserItems, n: int, *, keep_seen: bool) -> Indices:
    """Return the first *n* items of *best_first* for each user [users, n]; -1 after the end of a list.

    *rows* are the users' items [users, items]. A user's own items are skipped, unless *keep_seen*. A user without items
    gets an empty list.
    """
    lists = no_items(rows.shape[0], n)
    incomplete_users = np.flatnonzero(items_per_user(rows))

    # Few of the best items complete most lists. For the other users, four times as many are considered in each turn.
    considered = n
    while len(incomplete_users):
        candidates = np.tile(best_first[:considered], (len(incomplete_users), 1))
        if not keep_seen:
            candidates[has_items(rows, incomplete_users, candidates)] = -1

        # A stable sort of False before True moves the items that remain to the front, in their order.
        columns = np.argsort(candidates < 0, axis=1, kind="stable")[:, :n]
        lists[incomplete_users, : columns.shape[1]] = np.take_along_axis(candidates, columns, axis=1)

        if considered >= len(best_first):
            break

        is_incomplete = lists[incomplete_users, -1] < 0
        incomplete_users = incomplete_users[is_incomplete]
        considered *= _CONSIDERED_GROWTH
    return lists


def order_by_popularity(counts: npt.NDArray[Any]) -> Indices:
    """Return items by descending *counts* [items], ties by id."""
    return np.argsort(-counts, kind="stable").astype(np.int32)


def chosen_items(counts: npt.NDArray[Any]) -> Indices:
    """Return the items with *counts* [items] above 0, as `order_by_popularity`."""
    return order_by_popularity(counts)[: np.count_nonzero(counts)]


def most_popular(matrix: Matrix, n: int, half_life_days: float | None = None) -> Popular:
    """Return the *n* items with the most users, perhaps decayed."""
    require_at_least("The length of the popular list", n)
    counts = recent_popularity(matrix.user_items, matrix.times, half_life_days)
    return _top_items(np.arange(len(matrix.item_ids), dtype=np.int32), counts, n)


def popular_by_segment(
    segments: pl.DataFrame, item_ids: Sequence[str], n: int, half_life_days: float | None = None
) -> dict[str, Popular]:
    """Return the *n* most popular items of each segment (a group of users), by segment in alphabetical order.

    segments        [segment, item, day, weight]: the number of users (weight) of the segment who first had the item on
                    a day since 1970, null if unknown
    item_ids        an item's number is its place here; other items are ignored
    half_life_days  weights are halved per half-life before the newest day; None counts all alike
    """
    require_at_least("The length of the popular list", n)
    if half_life_days is not None:
        times = (segments.get_column("day") * DAY_US).fill_null(NO_TIME).to_numpy()  # unknown days count as the oldest
        factors = pl.Series(decay_factors(times, half_life_days))
        segments = segments.with_columns(pl.col("weight") * factors)

    # A join has no order, but the sums of floats depend on it.
    item_numbers = pl.DataFrame({"item": item_ids, "number": np.arange(len(item_ids), dtype=np.int32)})
    known = segments.join(item_numbers, on="item").sort("segment", "number", "weight")
    counts = known.group_by("segment", "number", maintain_order=True).agg(pl.col("weight").sum())

    lists = dict[str, Popular]()
    for (segment,), rows in counts.group_by("segment", maintain_order=True):
        items = rows.get_column("number").to_numpy()
        weights = rows.get_column("weight").to_numpy()
        lists[str(segment)] = _top_items(items, weights, n)
    return lists


def _top_items(items: Indices, counts: npt.NDArray[Any], n: int) -> Popular:
    """Return the *n* of *items* with the highest *counts*, both in the order of ids."""
    first = order_by_popularity(counts)[:n]
    return Popular(items[first].astype(np.int32), counts[first].astype(np.float32))


# It has no cells, as a search compares half-lives before all of them.
POPULARITY = EngineSpec(
    params=PopularityParams,
    ranker=Popularity,
    fit=lambda user_items, params, _on_iteration, times: fit(user_items, params, times),
    arrays=(StoredArray("counts"),),
    varied=lambda params: {} if params.half_life_days is None else {"half_life": f"{params.half_life_days:g}d"},
)
