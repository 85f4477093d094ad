"""Groups of users whose metrics are reported apart: by how much is known of them, and by a column of the data."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from offline.evaluate.splits import Parts
from offline.input.matrix import Indices

# By what users are grouped (a column, say), then by the name of the group, the rows of its users.
Segments = Mapping[str, Mapping[str, Indices]]
_QUARTILES = (0.25, 0.5, 0.75)
# More would make a report of their names.
_MOST = 20


def by_activity(parts: Parts) -> dict[str, Indices]:
    """Group users who are tested and have items to be recommended by, in quarters by how many they have."""
    counts = np.where(np.diff(parts.test.indptr) > 0, np.diff(parts.seen.indptr), 0)
    users = np.flatnonzero(counts).astype(np.int32)
    if not len(users):
        return {}
    bounds = np.unique(np.quantile(counts[users], _QUARTILES, method="inverted_cdf"))
    quarter = np.searchsorted(bounds, counts[users])
    groups = [users[quarter == each] for each in range(len(bounds) + 1)]
    return {_span(counts[members]): members for members in groups if len(members)}


def by_column(user_segments: pl.DataFrame, user_ids: Sequence[str]) -> dict[str, Indices]:
    """Group *user_ids* by *user_segments* [user, segment], for the 20 segments that the most users are in."""
    rows = pl.DataFrame({"user": user_ids, "row": np.arange(len(user_ids), dtype=np.int32)})
    known = user_segments.join(rows, on="user")
    sizes = known.group_by("segment").len().sort("len", "segment", descending=[True, False]).head(_MOST)
    return {
        name: known.filter(segment=name).get_column("row").sort().to_numpy()
        for name in sizes.get_column("segment").to_list()
    }


def _span(counts: Indices) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
