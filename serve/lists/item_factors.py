"""Item factors of a release in memory, and lists from them.

A visitor's factors are solved for by one step of alternating least squares with fixed items. Needs numpy, an extra.
"""

from collections.abc import Collection, Container, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import orjson

from hotplate.base.recommendations import Item
from hotplate.stores.categories import CategoryCap
from hotplate.stores.encoding import encode_id, significant
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.factors import Description, ItemEntry, lift_of

# Bounds the memory of the conversion.
ROWS_AT_ONCE = 4096
# Best scores examined first, and the growth if too few are allowed.
FIRST_DEPTH = 64
DEPTH_GROWTH = 8
# Lowest confidence of an item in Spark's engine; see `hotplate.offline.train.als`.
LEAST_CONFIDENCE = 1.001

RowNumbers = npt.NDArray[np.intp]


class ItemFactors:
    """Item factors of a release."""

    def __init__(self, description: Description, entries: Sequence[ItemEntry], matrix: npt.NDArray[np.float32]) -> None:
        """Compute what all visitors share; takes 0.2 s for 27,000 items of 256 factors.

        *entries* are the items, and *matrix* has a row of factors for each. Raises ReleaseCorrupt unless there are as
        many items as *description* says.
        """
        self.description = description
        self._entries = entries
        self._matrix = matrix
        self._rows = {entry.id: row for row, entry in enumerate(entries)}
        if len(self._rows) != description.items:
            raise ReleaseCorrupt(f"there are {len(self._rows)} of {description.items} items")

        self._gram = _gram_matrix(matrix)
        self._multipliers = np.array([entry.multiplier for entry in entries])
        self._boosts = np.array([entry.boost for entry in entries])
        self._lifts = np.array([lift_of(entry.boost) for entry in entries])
        self._banned: RowNumbers = np.flatnonzero([not entry.allowed for entry in entries])
        self._denied: tuple[Container[bytes], RowNumbers] = (), np.empty(0, dtype=np.intp)
        most = description.max_per_category
        self._cap = None if most is None else CategoryCap(most, [entry.categories for entry in entries])

    def known(self, weights: Mapping[str, float]) -> dict[int, float]:
        """Return the weights of known items by their rows."""
        return {self._rows[item]: weight for item, weight in weights.items() if item in self._rows}

    def recommend(
        self, basket: dict[int, float], n: int, denied: Container[bytes] = (), excluded: Collection[bytes] = ()
    ) -> list[Item]:
        """Return the best *n* items for a visitor, the best first; takes some milliseconds, mostly without the GIL.

        *basket* has the weights of the visitor's items by their row in the matrix of item factors. Left out are these
        items, those that the release bans, and the *denied* and *excluded* ones, which are ids as by `encode_id`.
        """
        own = np.array(list(basket), dtype=np.intp)
        weights = np.array(list(basket.values()))
        visitor = self._solve_visitor_factors(own, weights)
        scores = self._matrix @ visitor * self._multipliers
        if self.description.gamma:
            scores = np.maximum(scores, 0) ** (1 / (1 + self.description.gamma))
        scores[own] = -np.inf
        if self._lifts.any() or (self._boosts < 1).any():
            scores = self._boosted(scores)

        # Leave out.
        scores[self._banned] = -np.inf
        scores[self._denied_rows(denied)] = -np.inf
        for identifier in excluded:
            row = self._rows.get(orjson.loads(identifier))
            if row is not None:
                scores[row] = -np.inf

        best = self._best_rows(scores, n)
        return [_item(self._entries[row], score) for row, score in zip(best, scores[best].tolist(), strict=True)]

    def _boosted(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the boosted scores, as in the lists of users: of 1 for the best one, and -inf where there is none."""
        positive = np.maximum(scores, 0)
        boosted = positive / (positive.max() or 1) * self._boosts + self._lifts
        return np.where(np.isneginf(scores), scores, boosted)

    def _denied_rows(self, denied: Container[bytes]) -> RowNumbers:
        """Return the rows of denied items, which are looked up once for each deny-list."""
        known, rows = self._denied
        if known is not denied:
            is_denied = [encode_id(entry.id) in denied for entry in self._entries if denied]
            rows = np.flatnonzero(is_denied)
            self._denied = (denied, rows)
        return rows

    def _best_rows(self, scores: npt.NDArray[np.float64], n: int) -> RowNumbers:
        """Return the numbers of the rows of at most *n* items with the highest scores, the best first.

        *scores* has one per row; -inf leaves an item out, as is done here with those that the cap leaves out.
        """
        cap = self._cap
        depth = max(FIRST_DEPTH, 2 * n)
        while True:
            # Only the best are sorted: first some more than n, then more if the cap leaves too few of them.
            available = int((scores > -np.inf).sum())
            n = min(n, available)
            depth = min(depth, max(available, 1))
            best = np.argpartition(scores, len(scores) - depth)[len(scores) - depth :]
            best = best[np.lexsort((best, -scores[best]))]  # by score, then by row
            if cap is not None:
                best = best[cap.are_listed(best[np.newaxis])[0]]

            # With all items left, each is listed in the end.
            if cap is None or len(best) >= n:
                return best[:n]
            listed_scores = scores[best]
            scores[cap.in_full(best)] = -np.inf
            scores[best] = listed_scores
            depth *= DEPTH_GROWTH

    def _solve_visitor_factors(self, own: RowNumbers, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Return the factors of a visitor with the items in rows *own*, by one step of alternating least squares.

        Solves (YᵀY + Yᵀ(C - 1)Y + λ) x = YᵀC p for x. Y are the item factors, YᵀY is `self._gram`, C is the diagonal
        matrix of the confidences (alpha times weight, 1 for other items), p is 1 for the visitor's items and else 0,
        and λ is the regularization, as in training.
        """
        description = self.description
        confidence = description.alpha * weights
        regularization = description.regularization
        if description.engine == "spark":  # whose training does the same
            confidence = np.maximum(confidence, LEAST_CONFIDENCE)
            regularization *= len(own)

        # Other items have C - 1 = 0 and p = 0, so only the visitor's rows of Y are needed.
        items = self._matrix[own].astype(np.float64)
        left = self._gram + (items.T * (confidence - 1)) @ items
        left.flat[:: len(left) + 1] += regularization
        right = confidence @ items

        try:
            solved = np.linalg.solve(left, right)
        except np.linalg.LinAlgError:  # no regularization, and more factors than items
            solved = np.linalg.lstsq(left, right)[0]
        return solved.astype(np.float32)


def _gram_matrix(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the Gram matrix YᵀY of the item factors Y."""
    _, size = matrix.shape
    gram = np.zeros((size, size))
    for start in range(0, len(matrix), ROWS_AT_ONCE):  # a copy of all as float64 would be large
        rows = matrix[start : start + ROWS_AT_ONCE].astype(np.float64)
        gram += rows.T @ rows
    return gram


def _item(entry: ItemEntry, score: float) -> Item:
    item = Item(id=entry.id, score=significant(score))
    if entry.title is not None:
        item["title"] = entry.title
    return item
