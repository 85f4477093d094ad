"""The order of users' lists: variety, and rotation of items that were shown.

Both rearrange the first candidates of a ranking, and shorten no list.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hotplate.offline.input.pairs import Floats, Indices, row_slices
from hotplate.offline.train.similar import Similar

# The first places of a list are rearranged, with so many candidates for each.
_MOST_PLACES = 100
_CANDIDATES = 5
MAX_DIVERSITY = 0.9
# Of each day on which an item was shown without a click; an item keeps at least _LEAST_RELEVANCE.
_KEPT_RELEVANCE = 0.9
_LEAST_RELEVANCE = 0.5
# Entries of lists that are rearranged together, and of those whose similarities are in one dense table.
_ENTRIES_AT_ONCE = 4096
_ENTRIES_IN_TABLE = 800
# Below the relevance and diversity of any candidate.
_NOT_LISTED = -2.0


def pool_size(length: int) -> int:
    """Return the number of candidates for a list of *length*."""
    return _CANDIDATES * min(length, _MOST_PLACES)


@dataclass(frozen=True, slots=True)
class ItemSimilarity:
    """How similar two items are, from 0 to 1.

    An item's most similar one has 1, others in its list of similar items a share of that, and the rest 0. Of two
    directions the higher one counts.
    """

    similar: Similar

    def within(self, lists: Indices) -> Floats:
        """Return the similarity of each two entries of a list [lists, n, n]; 0 for missing entries, -1."""
        count, n = lists.shape
        within = np.empty((count, n, n), dtype=np.float32)
        for rows in row_slices(count, _ENTRIES_IN_TABLE // n):
            within[rows] = self._look_up_within(lists[rows])
        return within

    def _look_up_within(self, lists: Indices) -> Floats:
        """Return the similarity of each two entries of a few *lists* [lists, n]: an array [lists, n, n].

        It is looked up in a dense table of the similarities of all items of these lists.
        """
        known, places = np.unique(lists, return_inverse=True)  # each entry is known[place]
        places = places.reshape(lists.shape)

        # Shares of the similarity of each item's most similar one. A missing entry, -1, has a row of zeros below.
        rows = self.similar.similarity[known]
        table: Floats = rows[:, known].toarray()
        highest = rows.max(axis=1).toarray()
        table /= np.where(highest > 0, highest, 1)

        # Of the two directions of a pair, the higher similarity counts.
        np.maximum(table, table.T, out=table)

        is_missing = known < 0
        table[is_missing] = 0
        table[:, is_missing] = 0
        return table[places[:, :, None], places[:, None, :]]

    def mean_within(self, lists: Indices) -> float | None:
        """Return the mean similarity of two items of a list, over *lists* [lists, n]; None without two items."""
        total = 0.0
        count = 0
        for rows in row_slices(len(lists), _ENTRIES_AT_ONCE // lists.shape[1]):
            part = lists[rows]
            lengths = (part >= 0).sum(axis=1)
            pairs = lengths * (lengths - 1)  # of two different items, in either order
            has_pairs = pairs > 0

            # The sum over all pairs of each list; an item has no similarity to itself.
            similarity = self.within(part[has_pairs]).sum(axis=(1, 2))
            total += float((similarity / pairs[has_pairs]).sum())
            count += int(has_pairs.sum())
        return total / count if count else None


def order_for_variety(
    items: Indices, diversity: float, similarity: ItemSimilarity | None, shown_days: npt.NDArray[np.float32] | None
) -> Indices:
    """Order the candidates of lists for variety, and return their places in the new order [rows, n].

    items       candidates [rows, n] in the order of relevance; -1 stands after their end
    diversity   weight of dissimilar items against relevance, from 0, relevance alone, to 1
    similarity  None to order by relevance alone
    shown_days  number of days on which a candidate was shown without a click [rows, n], None if unknown

    The relevance of the candidate at place p is 1 - p / n, reduced for each such day. A row `[2, 0, 1]` of the result
    puts the third candidate first.
    """
    rows, n = items.shape
    relevance_by_place = 1 - np.arange(n, dtype=np.float32) / np.float32(n)
    relevance = np.tile(relevance_by_place, (rows, 1))
    if shown_days is not None:
        relevance *= np.maximum(np.float32(_KEPT_RELEVANCE) ** shown_days, np.float32(_LEAST_RELEVANCE))
    relevance[items < 0] = _NOT_LISTED

    if similarity is None:
        return np.argsort(-relevance, axis=1, kind="stable").astype(np.int32)

    order = np.empty((rows, n), dtype=np.int32)
    for part in row_slices(rows, _ENTRIES_AT_ONCE // n):
        order[part] = order_by_marginal_relevance(relevance[part], similarity.within(items[part]), diversity)
    return order


def order_by_marginal_relevance(relevance: Floats, similarity: Floats, diversity: float) -> Indices:
    """Return the places of candidates [rows, n] by maximal marginal relevance (Carbonell and Goldstein, 1998).

    At each step, the candidate with the highest (1 - diversity) * relevance - diversity * (its highest similarity to
    one chosen before) is chosen; of equal ones, the first. *relevance* is [rows, n], *similarity* [rows, n, n].
    """
    rows, n = relevance.shape
    every_row = np.arange(rows)
    order = np.empty((rows, n), dtype=np.int32)
    gain = np.where(relevance > _NOT_LISTED, np.float32(1 - diversity) * relevance, np.float32(_NOT_LISTED))
    nearest = np.zeros_like(gain)  # similarity to the most similar one of those chosen before

    for place in range(n):
        best = np.argmax(gain - np.float32(diversity) * nearest, axis=1)
        order[:, place] = best
        gain[every_row, best] = -np.inf  # not chosen again
        np.maximum(nearest, similarity[every_row, best], out=nearest)
    return order


def level_scores(items: Indices, scores: Floats) -> Floats:
    """Return the scores of rearranged lists [lists, n]: an item has at least the score of those behind it.

    A score of -inf is unknown, and becomes that of the item behind it, or before it at the end of a list.
    """
    # The running maximum from the end of each list: the highest score at or behind each place.
    known = np.where(items >= 0, scores, -np.inf)
    highest_from_here = np.maximum.accumulate(known[:, ::-1], axis=1)[:, ::-1]

    # Items behind the last known score get the lowest one, and all get 0 if no score is known.
    is_known = np.isfinite(highest_from_here)
    lowest = highest_from_here.min(axis=1, keepdims=True, where=is_known, initial=np.inf)
    levels = np.where(is_known, highest_from_here, lowest)
    return np.where((items >= 0) & np.isfinite(levels), levels, 0).astype(np.float32)
