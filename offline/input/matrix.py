"""The matrix of users by items that engines learn from."""

from dataclasses import dataclass, field, replace
from itertools import compress
from typing import NamedTuple

import numpy as np
import polars as pl

from hotplate.offline.errors import DataError, require_at_least
from hotplate.offline.input.history import History, Times, Weighing, history_of_log
from hotplate.offline.input.pairs import (
    Indices,
    Mask,
    UserItems,
    are_finite_above_zero,
    items_per_user,
    k_core,
    users_per_item,
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How much the minimum numbers per user and item leave out of a matrix."""

    users_left_out: int = 0
    items_left_out: int = 0
    pairs_left_out: int = 0

    @classmethod
    def between(cls, all_pairs: UserItems, kept: UserItems) -> "LeftOut":
        """Count what is in *all_pairs* and not in *kept*, a subset of it; both are [users, items]."""
        before = _present_users_and_items(all_pairs)
        after = _present_users_and_items(kept)
        return cls(
            users_left_out=int(before.users.sum() - after.users.sum()),
            items_left_out=int(before.items.sum() - after.items.sum()),
            pairs_left_out=int(all_pairs.nnz - kept.nnz),
        )


@dataclass(frozen=True, slots=True)
class Matrix:
    """The interactions; row r is user_ids[r], column c is item_ids[c].

    Ids ascend by their UTF-8 bytes. *history* needs times. Cancellations may leave users and items without pairs, which
    evaluations need.
    """

    user_ids: list[str]
    item_ids: list[str]
    user_items: UserItems
    history: History | None = None
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def times(self) -> Times | None:
        """First times in the order of user_items.data, if known."""
        return None if self.history is None else self.history.first_times(self.user_items)

    @property
    def learnt_until_s(self) -> float | None:
        """The time of the newest row in epoch seconds, if known."""
        return None if self.history is None else float(self.history.times.max()) / 1e6

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of users, items and pairs."""
        return {"users": len(self.user_ids), "items": len(self.item_ids), "pairs": int(self.user_items.nnz)}

    def only_present_in(self, pairs: UserItems) -> "Matrix":
        """Return the matrix of the users and items that have a pair in *pairs* [users, items], in the same order."""
        users, items = _present_users_and_items(pairs)
        if users.all() and items.all():
            return self

        # A selection of rows and columns stays sorted and free of duplicates, which scipy does not know.
        user_items = self.user_items[users][:, items]
        user_items.has_canonical_format = True

        return replace(
            self,
            user_ids=list(compress(self.user_ids, users)),
            item_ids=list(compress(self.item_ids, items)),
            user_items=user_items,
            history=None if self.history is None else self.history.renumbered(users, items),
        )


def to_matrix(
    log: pl.DataFrame, min_per_user: int = 1, min_per_item: int = 1, weighing: Weighing | None = None
) -> Matrix:
    """Build the sparse matrix of users by items from the rows of *log*, in any order.

    A pair is a user and an item with at least one row.

    log           [user, item, weight, perhaps time and ended (the time of a cancellation)]; ids are text or categorical
    min_per_user  pairs remain only if their user has at least this number of items
    min_per_item  the same for the users of an item; both apply again until all pairs remain (a k-core)
    weighing      how the rows of a pair become its weight; by default their sum

    Raises DataError if too little is left or a weight exceeds 32 bits, SettingError for a minimum below 1.
    """
    require_at_least("min-per-user", min_per_user)
    require_at_least("min-per-item", min_per_item)

    users = _number_ids(log.get_column("user"))
    items = _number_ids(log.get_column("item"))
    shape = len(users.names), len(items.names)

    # The pair of each row as one number, see `pairs`.
    pair_of_row = users.numbers.astype(np.int64) * shape[1] + items.numbers
    history = history_of_log(log, pair_of_row, shape, weighing or Weighing())
    all_pairs = history.matrix()
    user_items = history.k_core(all_pairs, min_per_user, min_per_item)
    if not all_pairs.nnz:
        raise DataError("Nothing is left of the rows kept: all that was bought was cancelled.")
    if not user_items.nnz:
        raise DataError(
            f"Nothing is left of {all_pairs.nnz:,} pairs ({shape[0]:,} users, {shape[1]:,} items) with a minimum "
            f"of {min_per_user} for the items of a user and of {min_per_item} for the users of an item; lower "
            "--min-per-user or --min-per-item."
        )
    if not are_finite_above_zero(user_items.data):
        raise DataError("A weight is too large or too small for a 32-bit float; scale the weights.")

    present = _present_users_and_items(user_items)
    _check_at_least_two("user", users.names, present.users)
    _check_at_least_two("item", items.names, present.items)

    # An evaluation that splits the log at a time before a cancellation learns from the cancelled pair. So the matrix
    # keeps its user and item, with the pair in the history only.
    pairs_ever = user_items
    if history.ended is not None:
        pairs_ever = k_core(replace(history, ended=None).matrix(), min_per_user, min_per_item)

    has_times = "time" in log.columns and log.get_column("time").count() > 0
    matrix = Matrix(
        user_ids=users.names.to_list(),
        item_ids=items.names.to_list(),
        user_items=user_items,
        history=history if has_times else None,
        left_out=LeftOut.between(all_pairs, user_items),
    )
    return matrix.only_present_in(pairs_ever)


def _check_at_least_two(role: str, ids: pl.Series, present: Mask) -> None:
    """Raise DataError if fewer than two of *ids* are *present*."""
    if np.count_nonzero(present) < 2:
        raise DataError(
            f"There is only one {role}, {ids[int(np.argmax(present))]!r}, in the rows kept, and two are needed; check "
            f"the {role} column."
        )


class _Present(NamedTuple):
    """The masks of *users* and *items* with pairs."""

    users: Mask
    items: Mask


def _present_users_and_items(user_items: UserItems) -> _Present:
    return _Present(items_per_user(user_items) > 0, users_per_item(user_items) > 0)


class _NumberedIds(NamedTuple):
    """The *names* of different ids, ascending by their bytes, and the place of each row's id among them [rows]."""

    names: pl.Series
    numbers: Indices


def _number_ids(ids: pl.Series) -> _NumberedIds:
    """Number the *ids* of rows, texts or categories, in ascending order of the ids: `b, a, b` becomes `1, 0, 1`."""
    # polars stores a category as an integer, its code. Codes are in the order of first occurrence and may have gaps, so
    # they are mapped to numbers without gaps by an array: number_of_code[code].
    categories = ids.cast(pl.Categorical)
    unique = categories.unique()
    ascending = unique.gather(unique.cast(pl.String).arg_sort())
    codes = ascending.to_physical().to_numpy()
    number_of_code = np.zeros(codes.max(initial=0) + 1, dtype=np.int32)
    number_of_code[codes] = np.arange(len(codes), dtype=np.int32)
    return _NumberedIds(ascending.cast(pl.String), numbers=number_of_code[categories.to_physical().to_numpy()])
