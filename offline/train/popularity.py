"""What most users have: the list for everybody who has no list of their own, overall and by segment."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from offline.errors import DataError, require_at_least
from offline.input.matrix import Floats, Indices, Matrix

# The service keeps every popular list in memory.
MAX_SEGMENTS = 1000


@dataclass(frozen=True, slots=True)
class Popular:
    """Items by the number of users that have them, most first, ties in the order of their ids; lives with its model."""

    items: Indices
    scores: Floats


def most_popular(matrix: Matrix, n: int) -> Popular:
    """Return the *n* items (or all, if fewer) that the most users have."""
    require_at_least("The length of the popular list", n)
    counts = np.bincount(matrix.user_items.indices, minlength=len(matrix.item_ids))
    return _ranked(np.arange(len(matrix.item_ids), dtype=np.int32), counts.astype(np.float32), n)


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
    known = segments.join(columns, on="item").sort("segment")
    return {
        str(segment[0]): _ranked(group.get_column("column").to_numpy(), group.get_column("weight").to_numpy(), n)
        for segment, group in known.group_by("segment", maintain_order=True)
    }


def _ranked(items: Indices, scores: Floats, n: int) -> Popular:
    order = np.lexsort((items, -scores))[:n]
    return Popular(items[order].astype(np.int32), scores[order].astype(np.float32))
