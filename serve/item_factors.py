"""Item factors of a release in memory, and lists from them.

A visitor's factors are solved for by one step of alternating least squares with fixed items. Needs numpy, an extra.
"""

from collections.abc import Collection, Container, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import orjson

from hotplate.stores.encoding import SCORE_DECIMALS, Item, encode_id
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.factors import Description, ItemEntry

# Bounds the memory of the conversion.
ROWS_AT_ONCE = 4096
# Best scores examined first, and the growth if too few are allowed.
FIRST_DEPTH = 64
DEPTH_GROWTH = 8
# Lowest confidence of an item in Spark's engine; see `hotplate.offline.train.als`.
LEAST_CONFIDENCE = 1.001

RowNumbers = npt.NDArray[np.intp]


class ItemFactors:
    """Item factors of a release; immutable after `finish`."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self._matrix = np.zeros((description.items, description.factors), dtype=np.float32)
        self._entries = list[ItemEntry]()
        self._rows = dict[str, int]()
        self._banned: RowNumbers = np.empty(0, dtype=np.intp)
        self._denied: tuple[Container[bytes], RowNumbers] = (), self._banned
        self._categories: RowNumbers = np.empty(0, dtype=np.intp)
        """Category of each row from 1; 0 for none."""

        self._multipliers: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self._gram: npt.NDArray[np.float64] = np.empty((0, 0))

    def check_whole(self) -> None:
        """Raise ReleaseCorrupt unless all items were added."""
        if len(self._rows) != self.description.items:
            raise ReleaseCorrupt(f"there are {len(self._rows)} of {self.description.items} items")

    def add(self, entries: Sequence[ItemEntry], rows: memoryview) -> None:
        """Add the items and factors of a piece; raises ValueError for too many."""
        start = len(self._entries)
        stop = start + len(entries)
        self._matrix[start:stop] = np.frombuffer(rows, dtype="<f4").reshape(len(entries), -1)
        self._rows.update(zip((entry.id for entry in entries), range(start, stop), strict=True))
        self._entries += entries

    def finish(self) -> None:
        """Compute shared values; takes 0.2 s for 27,000 items of 256 factors."""
        size = self.description.factors
        gram = np.zeros((size, size))
        for start in range(0, len(self._matrix), ROWS_AT_ONCE):
            rows = self._matrix[start : start + ROWS_AT_ONCE].astype(np.float64)
            gram += rows.T @ rows
        self._gram = gram
        self._multipliers = np.array([entry.multiplier for entry in self._entries], dtype=np.float32)
        self._banned = np.flatnonzero([not entry.allowed for entry in self._entries])
        categories = [-1 if entry.category is None else entry.category for entry in self._entries]
        self._categories = np.unique([-1, *categories], return_inverse=True)[1][1:]

    def known(self, weights: Mapping[str, float]) -> dict[int, float]:
        """Return the weights of known items by their rows."""
        return {self._rows[item]: weight for item, weight in weights.items() if item in self._rows}

    def recommend(
        self, basket: dict[int, float], n: int, denied: Container[bytes] = (), excluded: Collection[bytes] = ()
    ) -> list[Item]:
        """Return the best *n* items for a basket of `known` items, without those, *denied* and *excluded* ones.

        Ids are by `encode_id`. Takes some milliseconds, mostly without the GIL.
        """
        own = np.array(list(basket), dtype=np.intp)
        scores = self._matrix @ self._solve(own, np.array(list(basket.values()))) * self._multipliers
        if self._denied[0] is not denied:
            self._denied = denied, np.flatnonzero([encode_id(entry.id) in denied for entry in self._entries if denied])
        scores[own] = scores[self._banned] = scores[self._denied[1]] = -np.inf
        if excluded:
            rows = [self._rows.get(orjson.loads(identifier)) for identifier in excluded]
            scores[[row for row in rows if row is not None]] = -np.inf
        best = self._best(scores, n)
        return [_item(self._entries[row], score) for row, score in zip(best, scores[best].tolist(), strict=True)]

    def _best(self, scores: npt.NDArray[np.float32], n: int) -> RowNumbers:
        """Return the rows of the best *n* items, the best first; -inf leaves an item out.

        At most `max_per_category` items have the same category. As only the best are sorted, they may be too few under
        this cap; then more are.
        """
        most = self.description.max_per_category
        categories = self._categories
        counts = np.bincount(categories[scores > -np.inf], minlength=1)
        if most is not None:
            counts[1:] = np.minimum(counts[1:], most)
        n = min(n, int(counts.sum()))
        depth = min(max(FIRST_DEPTH, 2 * n), len(scores))
        while True:
            best = np.argpartition(scores, len(scores) - depth)[len(scores) - depth :]
            best = best[np.lexsort((best, -scores[best]))]
            if most is not None:
                best = best[_are_first(categories[best], most)]
            if len(best) >= n:
                return best[:n]
            depth = min(depth * DEPTH_GROWTH, len(scores))

    def _solve(self, own: RowNumbers, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Solve for the factors of a visitor with items *own*: (YᵀY + Yᵀ(C - 1)Y + λ) x = YᵀC."""
        described = self.description
        confidence = described.alpha * weights
        regularization = described.regularization
        if described.engine == "spark":
            confidence = np.maximum(confidence, LEAST_CONFIDENCE)
            regularization *= len(own)
        items = self._matrix[own].astype(np.float64)
        left = self._gram + (items.T * (confidence - 1)) @ items
        left.flat[:: len(left) + 1] += regularization
        right = confidence @ items
        try:
            solved = np.linalg.solve(left, right)
        except np.linalg.LinAlgError:  # no regularization, and more factors than items
            solved = np.linalg.lstsq(left, right)[0]
        return solved.astype(np.float32)


def _are_first(categories: RowNumbers, most: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the first *most* of each category; category 0 has no cap."""
    order = np.argsort(categories, kind="stable")
    ordered = categories[order]
    places = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    are_first = np.empty(len(order), dtype=np.bool_)
    are_first[order] = (places < most) | (ordered == 0)
    return are_first


def _item(entry: ItemEntry, score: float) -> Item:
    item = Item(id=entry.id, score=round(score, SCORE_DECIMALS))
    if entry.title is not None:
        item["title"] = entry.title
    return item
