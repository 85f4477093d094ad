"""Interactions as a sparse matrix, users by items, after those with too few have been left out."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix

from offline.errors import DataError, require_at_least

# scipy publishes no types: a float32 csr_matrix, canonical (summed, no zeros, sorted), users by items.
UserItems = Any
Indices = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
# True for each item that may be recommended; None where all may.
Allowed: TypeAlias = npt.NDArray[np.bool_] | None
# Before all others.
NO_TIME = int(np.iinfo(np.int64).min)


@dataclass(frozen=True, slots=True)
class Matrix:
    """
    The interactions that count, and whose they are; row r is user_ids[r], column c is item_ids[c].

    Ids ascend by their UTF-8 bytes, as publishing needs them. *times*, where the data have any, are those of the pairs,
    in the order of user_items.data: µs since 1970, NO_TIME where a pair has none. Lives from reading to the end of the
    job.
    """

    user_ids: list[str]
    item_ids: list[str]
    user_items: UserItems
    times: npt.NDArray[np.int64] | None = None
    users_left_out: int = 0
    items_left_out: int = 0
    pairs_left_out: int = 0


def to_matrix(pairs: pl.DataFrame, min_per_user: int = 1, min_per_item: int = 1) -> Matrix:
    """
    Build the matrix of *pairs* [user, item, weight, and perhaps time], one row per pair, in any order.

    Ids are text or categorical. Users with fewer than *min_per_user* items and items with fewer than *min_per_item*
    users are left out, again and again until none is (the k-core). Raises DataError when nothing is left or a weight
    does not fit, SettingError for a minimum below 1.
    """
    require_at_least("min-per-user", min_per_user)
    require_at_least("min-per-item", min_per_item)
    # polars sorts text by its bytes, which for UTF-8 is the order of code points.
    users, user_codes = _encoded(pairs.get_column("user"))
    items, item_codes = _encoded(pairs.get_column("item"))
    kept = _core(user_codes, item_codes, min_per_user, min_per_item)
    if not kept.any():
        raise DataError(
            f"Nothing is left of {pairs.height:,} pairs ({len(users):,} users, {len(items):,} items) once each user "
            f"has {min_per_user} items and each item {min_per_item} users; lower --min-per-user or --min-per-item."
        )
    user_codes, item_codes = user_codes[kept], item_codes[kept]
    with np.errstate(over="ignore"):
        weights = pairs.get_column("weight").to_numpy()[kept].astype(np.float32)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise DataError("A weight is too large or too small for a 32-bit float; scale the weights.")
    rows, user_ids = _renumbered(user_codes, users)
    columns, item_ids = _renumbered(item_codes, items)
    for what, ids in (("user", user_ids), ("item", item_ids)):
        if len(ids) < 2:
            raise DataError(
                f"There is only one {what}, {ids[0]!r}; recommending needs at least two users and two items."
            )
    shape = len(user_ids), len(item_ids)
    places = csr_matrix((np.arange(len(rows), dtype=np.int64), (rows, columns)), shape=shape)
    places.sort_indices()
    order = places.data
    user_items = csr_matrix((weights[order], places.indices, places.indptr), shape=shape)
    user_items.has_canonical_format = True
    times = None
    if "time" in pairs.columns:
        times = pairs.get_column("time").to_physical().fill_null(NO_TIME).to_numpy()[kept][order]
    return Matrix(
        user_ids,
        item_ids,
        user_items,
        times,
        users_left_out=len(users) - len(user_ids),
        items_left_out=len(items) - len(item_ids),
        pairs_left_out=pairs.height - int(user_items.nnz),
    )


@dataclass(frozen=True, slots=True)
class KnownPairs:
    """Pairs from elsewhere, test data say, whose users and items a matrix has; *user_items* is of its shape."""

    user_items: UserItems
    unknown_users: int
    unknown_items: int
    left_out: dict[str, int]


def known_pairs(pairs: pl.DataFrame, matrix: Matrix) -> KnownPairs:
    """
    Place *pairs* [user, item, weight], one row per pair, in rows and columns of *matrix*.

    Pairs of a user or an item that it lacks are left out, and those that it has, for lists never repeat what a user
    has; *left_out* counts pairs by the first of these reasons, zeros not listed.
    """
    rows, columns = (
        _places(pairs.get_column("user"), matrix.user_ids),
        _places(pairs.get_column("item"), matrix.item_ids),
    )
    users_known, items_known = rows >= 0, columns >= 0
    known = users_known & items_known
    own = np.repeat(np.arange(len(matrix.user_ids), dtype=np.int64), np.diff(matrix.user_items.indptr))
    width = len(matrix.item_ids)
    seen = known & np.isin(rows * width + columns, own * width + matrix.user_items.indices)
    kept = known & ~seen
    weights = pairs.get_column("weight").to_numpy()[kept].astype(np.float32)
    user_items = csr_matrix((weights, (rows[kept], columns[kept])), shape=matrix.user_items.shape)
    user_items.sum_duplicates()
    counts = {
        "unknown user": np.count_nonzero(~users_known),
        "unknown item": np.count_nonzero(users_known & ~items_known),
        "pair that is learnt from": np.count_nonzero(seen),
    }
    return KnownPairs(
        user_items,
        pairs.get_column("user").filter(pl.Series(~users_known)).n_unique(),
        pairs.get_column("item").filter(pl.Series(~items_known)).n_unique(),
        {reason: int(count) for reason, count in counts.items() if count},
    )


def users_per_item(user_items: UserItems) -> npt.NDArray[np.int64]:
    """Return of each item how many users have it, [items]."""
    return np.bincount(user_items.indices, minlength=user_items.shape[1])


def check_user_items(user_items: UserItems) -> None:
    """Raise DataError for a matrix that no engine can learn from, TypeError for what is no such matrix."""
    if not isinstance(user_items, csr_matrix) or user_items.dtype != np.float32:
        raise TypeError("user_items must be a scipy csr_matrix of float32")
    users, items = user_items.shape
    if users < 2 or items < 2 or user_items.nnz == 0:
        raise DataError(
            f"There are {users} users, {items} items and {user_items.nnz} pairs; learning needs two of each."
        )
    if not (user_items.has_canonical_format and np.isfinite(user_items.data).all() and (user_items.data > 0).all()):
        raise DataError("The matrix holds a pair twice, or a weight that is not finite and above zero; build it anew.")


def _encoded(ids: pl.Series) -> tuple[pl.Series, Indices]:
    """Return the distinct ids in ascending order, and for each of *ids* its index among them."""
    distinct = ids.unique().cast(pl.String).sort()
    return distinct, ids.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)


def _places(ids: pl.Series, known: list[str]) -> npt.NDArray[np.int64]:
    """Return where each of *ids* stands among those that are *known*, -1 where it is none of them."""
    numbered = pl.DataFrame({"id": known}).with_row_index("place")
    places = (
        ids.cast(pl.String)
        .rename("id")
        .to_frame()
        .join(numbered, on="id", how="left", maintain_order="left")
        .get_column("place")
    )
    return places.cast(pl.Int64).fill_null(-1).to_numpy()


def _core(users: Indices, items: Indices, min_per_user: int, min_per_item: int) -> npt.NDArray[np.bool_]:
    kept = np.ones(len(users), dtype=np.bool_)
    while True:
        per_user = np.bincount(users[kept], minlength=1)
        per_item = np.bincount(items[kept], minlength=1)
        enough = (per_user >= min_per_user)[users[kept]] & (per_item >= min_per_item)[items[kept]]
        if enough.all():
            return kept
        kept[np.flatnonzero(kept)[~enough]] = False


def _renumbered(codes: Indices, ids: pl.Series) -> tuple[Indices, list[str]]:
    present = np.zeros(len(ids), dtype=np.bool_)
    present[codes] = True
    numbers = (np.cumsum(present) - 1).astype(np.int32)
    return numbers[codes], ids.filter(pl.Series(present)).to_list()
