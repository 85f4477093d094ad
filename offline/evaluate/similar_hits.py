"""The hit rate of lists of similar items.

It is measured on users' last items in the train part: does the list of one hold an item that the user chose next?
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hotplate.offline.evaluate.metrics import MetricInterval, Values, interval_of_mean
from hotplate.offline.evaluate.splits import Parts, rank_in_groups
from hotplate.offline.input.history import Times
from hotplate.offline.input.pairs import (
    Indices,
    Mask,
    UserItems,
    has_items,
    items_per_user,
    row_of_each_pair,
    select_pairs,
)
from hotplate.offline.train.similar import Similar, SimilarParams

# A user's last and next items, to measure quality.
_LAST_ITEMS = 5
_NEXT_ITEMS = 3


@dataclass(frozen=True, slots=True)
class SimilarResult:
    """Share of last items of *users* with a next item among *k* similar ones; 95 % *interval*."""

    params: SimilarParams
    k: int
    hit_rate: float
    interval: MetricInterval | None
    users: int


def measure_similar(similar: Similar, params: SimilarParams, parts: Parts, k: int) -> SimilarResult | None:
    """Return the hit rate of lists of *k* similar items: the share with an item that the user chose next.

    The lists are those of each user's last items in the train part of *parts*; the next items are in the test part.
    *similar* is fitted to the train part with *params*. Returns None if no user has items in both parts.
    """
    test = next_items_test(parts)
    if not len(test.users):
        return None

    lists, _ = similar.similar_items(test.items, k)
    per_user = test.hit_rates(lists)
    return SimilarResult(
        params=params,
        k=k,
        hit_rate=float(per_user.mean()),
        interval=interval_of_mean(per_user),
        users=len(test.users),
    )


@dataclass(frozen=True, slots=True)
class NextItemsTest:
    """The last items in train, and the next ones in test, of *users* that have both.

    items         the last items of all users, ascending
    last_users    users of the pairs of a user and a last item [pairs]
    last_places   places of the last items of these pairs in *items* [pairs]
    next_items    matrix of all users and their next items
    """

    users: Indices
    items: Indices
    last_users: npt.NDArray[np.int64]
    last_places: npt.NDArray[np.intp]
    next_items: UserItems

    def hit_rates(self, lists: Indices) -> Values:
        """Return the hit rate of each user [users]: the share of their last items with a next item among similar ones.

        *lists* [items, k] are the similar items of each of `items`, -1 after the end. `last_users` and `last_places`
        [pairs] are, for each last item of a user, the user and the row of *lists*. `next_items` is a sparse matrix of
        all users and their next items.
        """
        is_hit = has_items(self.next_items, self.last_users, lists[self.last_places])  # [pairs, k]
        hits_per_user = np.bincount(self.last_users, is_hit.any(axis=1), self.next_items.shape[0])
        last_items_per_user = np.bincount(self.last_users)
        rates: Values = hits_per_user[self.users] / last_items_per_user[self.users]
        return rates


def next_items_test(parts: Parts) -> NextItemsTest:
    """Return the last items of users in train, and their first ones in test, to measure similar items.

    These are at most 5 last and 3 next items of each user of *parts* who has both.
    """
    tested = parts.tested
    users = tested[items_per_user(parts.train)[tested] > 0]

    # `~` reverses the order of integers without the overflow that `-` has at NO_TIME, the least of them.
    times = parts.train_times
    latest_first = None if times is None else ~times
    user_of_pair = row_of_each_pair(parts.train)
    is_last = _are_first_of_user(parts.train, latest_first, _LAST_ITEMS) & np.isin(user_of_pair, users)
    items, places = np.unique(parts.train.indices[is_last], return_inverse=True)

    is_next = _are_first_of_user(parts.test, parts.test_times, _NEXT_ITEMS)
    return NextItemsTest(
        users=users,
        items=items.astype(np.int32),
        last_users=user_of_pair[is_last],
        last_places=places,
        next_items=select_pairs(parts.test, is_next),
    )


def _are_first_of_user(pairs: UserItems, order: Times | None, most: int) -> Mask:
    """Return which pairs are among the first *most* of their user by *order* [pairs], or by item if that is None."""
    rows = row_of_each_pair(pairs)
    ranks = rank_in_groups(rows, pairs.indices.astype(np.float64) if order is None else order).ranks
    return np.asarray(ranks <= most)
