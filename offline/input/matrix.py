"""Sparse matrices of users by items, and the rows behind their pairs.

A pair is a user and an item with an interaction, and its pair number is user * number of items + item. A k-core has
only users with a minimum number of items, and items with a minimum number of users.
"""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import compress
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError, SettingError, require_at_least

# float32 csr_matrix, users by items, canonical (summed, no zeros, sorted); scipy publishes no types.
UserItems = Any
Indices = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
# True for allowed items; None if all are.
Allowed: TypeAlias = npt.NDArray[np.bool_] | None
# µs since 1970.
Times = npt.NDArray[np.int64]
# user * number of items + item, see `pair_numbers`.
PairNumbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Weighting = Literal["sum", "binary", "log"]

NO_TIME = int(np.iinfo(np.int64).min)
NEVER = int(np.iinfo(np.int64).max)
# Old rows keep a thousandth, as 0 would mean no interaction.
_MAX_HALVINGS = 10
DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Weighing:
    """How the rows of a user and an item become one weight: sum, 1 (binary), or 1 + ln(sum), at least 1 (log).

    *half_life* is that of a row's weight, relative to the newest row; for binary and log, of the pair's weight since
    its last row. The mean weight is kept for the engines' parameters.
    """

    kind: Weighting = "sum"
    half_life: timedelta | None = None

    def __post_init__(self) -> None:
        """Raise SettingError for an unknown kind, and for a half-life that is not above zero."""
        if self.kind not in get_args(Weighting):
            raise SettingError(f"weighting is {self.kind!r}; it must be {' or '.join(get_args(Weighting))}.")
        if self.half_life is not None and self.half_life <= timedelta(0):
            raise SettingError(f"half_life is {self.half_life}; it must be above zero.")


@dataclass(frozen=True, slots=True)
class History:
    """The rows of a log, in order of user, item and time.

    shape         numbers of users and items
    pair_numbers  [rows] user * number of items + item, ascending
    times         [rows] µs since 1970, ascending in a pair, or NO_TIME
    weights       [rows] float32, above zero
    weighing      how the rows of a pair become its weight
    ended         [rows] time of the cancellation, or NEVER; None without cancellations
    """

    shape: tuple[int, int]
    pair_numbers: PairNumbers
    times: Times
    weights: Floats
    weighing: Weighing
    ended: Times | None = None

    @classmethod
    def of(cls, user_items: UserItems, times: Times) -> "History":
        """Return a history of one row per pair; *times* are in the order of user_items.data."""
        return cls(user_items.shape, pair_numbers(user_items), times, user_items.data, Weighing())

    def matrix(self) -> UserItems:
        """Return the pairs with rows not cancelled."""
        rows = self._uncancelled()
        starts = _first_rows(rows.pair_numbers)
        weights = _pair_weights(self.weighing, starts, rows.times, rows.weights)
        return _matrix_of_pairs(rows.pair_numbers[starts], weights, self.shape)

    def rows_until(self, until: int) -> "History":
        """Return the rows up to *until* (inclusive), without later cancellations."""
        past = self
        if self.ended is not None:
            past = replace(self, ended=np.where(self.ended <= until, self.ended, NEVER))
        return past._rows_where(self.times <= until)  # noqa: SLF001 -- own class

    def only_pairs(self, user_items: UserItems) -> "History":
        """Return the rows of the pairs in *user_items*."""
        return self._rows_where(are_among(pair_numbers(user_items), self.pair_numbers))

    def renumbered(self, users: Mask, items: Mask) -> "History":
        """Return the rows of the *users* and *items* whose mask is True, numbered anew from 0 without gaps.

        `pair_numbers` [rows] are user * number of items + item, and change with these numbers.
        """
        old_users, old_items = np.divmod(self.pair_numbers, self.shape[1])
        is_kept = users[old_users] & items[old_items]

        # The new number of a user is the number of those kept before.
        new_number_of_user = np.cumsum(users) - 1
        new_number_of_item = np.cumsum(items) - 1
        new_users = new_number_of_user[old_users[is_kept]]
        new_items = new_number_of_item[old_items[is_kept]]

        shape = (int(users.sum()), int(items.sum()))
        return replace(self._rows_where(is_kept), shape=shape, pair_numbers=new_users * shape[1] + new_items)

    def k_core(self, pairs: UserItems, min_per_user: int, min_per_item: int) -> UserItems:
        """Return the k-core of *pairs*, those of `matrix`; the mean weight is that of the pairs kept."""
        kept = k_core(pairs, min_per_user, min_per_item)
        if self.weighing.half_life is None or kept.nnz in (0, pairs.nnz):
            return kept
        return self.only_pairs(kept).matrix()

    def first_times(self, user_items: UserItems) -> Times:
        """Return the first time of each pair of *user_items*, in the order of its data."""
        rows = self._uncancelled()
        starts = _first_rows(rows.pair_numbers)
        first: Times = rows.times[starts]
        if len(first) == user_items.nnz:
            return first
        return first[np.searchsorted(rows.pair_numbers[starts], pair_numbers(user_items))]

    def pairs_after(self, until: int) -> UserItems:
        """Return the pairs with a row after *until* never cancelled, with weight 1."""
        numbers = self._rows_where(self.times > until)._uncancelled().pair_numbers  # noqa: SLF001 -- own class
        pairs = numbers[_first_rows(numbers)]
        return _matrix_of_pairs(pairs, np.ones(len(pairs), dtype=np.float32), self.shape)

    def _rows_where(self, rows: Mask) -> "History":
        ended = None if self.ended is None else self.ended[rows]
        return replace(
            self,
            pair_numbers=self.pair_numbers[rows],
            times=self.times[rows],
            weights=self.weights[rows],
            ended=ended,
        )

    def _uncancelled(self) -> "History":
        return self if self.ended is None else self._rows_where(self.ended == NEVER)


def pair_numbers(user_items: UserItems) -> PairNumbers:
    """Return user * number of items + item for each pair, ascending [pairs]."""
    numbers: PairNumbers = row_of_each_pair(user_items) * user_items.shape[1] + user_items.indices
    return numbers


def are_among(known: PairNumbers, numbers: PairNumbers) -> Mask:
    """Return which *numbers* are in *known* (ascending); ten times as fast as `np.isin`."""
    if not len(known):
        return np.zeros(numbers.shape, dtype=np.bool_)
    return np.asarray(known.take(np.searchsorted(known, numbers), mode="clip") == numbers)


def has_items(user_items: UserItems, users: npt.NDArray[np.integer[Any]], lists: Indices) -> Mask:
    """Return which items of *lists* [users, n] their users have in *user_items* [users, n]; none at -1."""
    listed = users.astype(np.int64)[:, None] * user_items.shape[1] + lists
    return (lists >= 0) & are_among(pair_numbers(user_items), listed)


def decay_factors(times: Times, half_life_days: float) -> npt.NDArray[np.float64]:
    """Return a factor for each of *times*: 1 for the newest, halved per half-life before it, at least 1/1024.

    *times* are in µs; NO_TIME counts as the oldest.
    """
    known = times[times != NO_TIME]
    oldest = 0
    newest = 0
    if len(known):
        oldest = int(known.min())
        newest = int(known.max())
    age_us = (newest - np.where(times == NO_TIME, oldest, times)).astype(np.float64)
    halvings = np.minimum(age_us / (half_life_days * DAY_US), _MAX_HALVINGS)
    return np.asarray(0.5**halvings)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How much the minimum numbers per user and item leave out of a matrix."""

    users_left_out: int = 0
    items_left_out: int = 0
    pairs_left_out: int = 0


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

    def standing(self) -> "Matrix":
        """Return the matrix of users and items with pairs."""
        return self.only_present_in(self.user_items)

    def only_present_in(self, pairs: UserItems) -> "Matrix":
        """Return the matrix of the users and items that have a pair in *pairs* [users, items], in the same order."""
        users, items = _present_users_and_items(pairs)
        if users.all() and items.all():
            return self
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

    numbers = users.numbers.astype(np.int64) * shape[1] + items.numbers
    history = _history_of_log(log, numbers, shape, weighing or Weighing())
    all_pairs = history.matrix()
    user_items = history.k_core(all_pairs, min_per_user, min_per_item)
    if not user_items.nnz:
        raise DataError(
            f"Nothing is left of {all_pairs.nnz:,} pairs ({shape[0]:,} users, {shape[1]:,} items) once each user has "
            f"{min_per_user} items and each item {min_per_item} users; lower --min-per-user or --min-per-item."
        )
    if not _are_finite_above_zero(user_items.data):
        raise DataError("A weight is too large or too small for a 32-bit float; scale the weights.")
    present = _present_users_and_items(user_items)
    _check_at_least_two("user", users.names, present.users)
    _check_at_least_two("item", items.names, present.items)

    # A split at a time before a cancellation learns from the pair, so its user and item remain in the matrix.
    pairs_ever = user_items
    if history.ended is not None:
        pairs_ever = k_core(replace(history, ended=None).matrix(), min_per_user, min_per_item)

    before = _present_users_and_items(all_pairs)
    has_times = "time" in log.columns and log.get_column("time").count() > 0
    matrix = Matrix(
        user_ids=users.names.to_list(),
        item_ids=items.names.to_list(),
        user_items=user_items,
        history=history if has_times else None,
        left_out=LeftOut(
            users_left_out=int(before.users.sum() - present.users.sum()),
            items_left_out=int(before.items.sum() - present.items.sum()),
            pairs_left_out=int(all_pairs.nnz - user_items.nnz),
        ),
    )
    return matrix.only_present_in(pairs_ever)


def _check_at_least_two(role: str, ids: pl.Series, present: Mask) -> None:
    """Raise DataError if fewer than two of *ids* are *present*."""
    if np.count_nonzero(present) < 2:
        raise DataError(
            f"There is only one {role}, {ids[int(np.argmax(present))]!r}, in the rows kept, and two are needed; check "
            f"the {role} column."
        )


def k_core(user_items: UserItems, min_per_user: int, min_per_item: int) -> UserItems:
    """Return the k-core of *user_items* in the same shape; users and items outside of it have empty rows or columns.

    It is the largest set of pairs in which each user has *min_per_user* items and each item *min_per_item* users. Each
    removal can bring other users or items below their minimum, so it repeats until all have enough.
    """
    kept = np.ones(user_items.nnz, dtype=np.bool_)
    items = user_items.indices
    users = row_of_each_pair(user_items)
    while True:
        has_enough_items = np.bincount(users[kept], minlength=1) >= min_per_user  # [users]
        has_enough_users = np.bincount(items[kept], minlength=1) >= min_per_item  # [items]
        has_enough = has_enough_items[users[kept]] & has_enough_users[items[kept]]  # [pairs kept]
        if has_enough.all():
            return user_items if kept.all() else select_pairs(user_items, kept)
        kept_pairs = np.flatnonzero(kept)
        kept[kept_pairs[~has_enough]] = False


def select_pairs(user_items: UserItems, kept: Mask) -> UserItems:
    """Return the sparse matrix of the pairs whose mask *kept* [pairs] is True; the mask is in the order of the data."""
    ends = np.concatenate(([0], np.cumsum(kept)))[user_items.indptr].astype(user_items.indptr.dtype)
    pairs = csr_matrix((user_items.data[kept], user_items.indices[kept], ends), shape=user_items.shape)
    pairs.has_canonical_format = user_items.has_canonical_format
    return pairs


def with_weights(user_items: UserItems, weights: npt.NDArray[Any]) -> UserItems:
    """Return the same pairs with other *weights*."""
    return csr_matrix((weights, user_items.indices, user_items.indptr), shape=user_items.shape)


def row_of_each_pair(user_items: UserItems) -> npt.NDArray[np.int64]:
    """Return the row (user) of each pair [pairs], in the order of the data; of other sparse matrices, of each value."""
    return np.repeat(np.arange(user_items.shape[0]), items_per_user(user_items))


def items_per_user(user_items: UserItems) -> Indices:
    """Return the number of items of each user [users]."""
    counts: Indices = np.diff(user_items.indptr)
    return counts


def users_per_item(user_items: UserItems) -> npt.NDArray[np.int64]:
    """Return the number of users of each item [items]."""
    return np.bincount(user_items.indices, minlength=user_items.shape[1])


class _Present(NamedTuple):
    """The masks of *users* and *items* with pairs."""

    users: Mask
    items: Mask


def _present_users_and_items(user_items: UserItems) -> _Present:
    return _Present(items_per_user(user_items) > 0, users_per_item(user_items) > 0)


def _are_finite_above_zero(data: Floats) -> bool:
    return bool(np.isfinite(data).all() and (data > 0).all())


def check_user_items(user_items: UserItems) -> None:
    """Raise DataError for a matrix that engines cannot learn from, TypeError for other types."""
    if not isinstance(user_items, csr_matrix) or user_items.dtype != np.float32:
        raise TypeError("user_items must be a scipy csr_matrix of float32")
    users, items = user_items.shape
    if users < 2 or items < 2 or user_items.nnz == 0:
        raise DataError(
            f"There are {users} users, {items} items and {user_items.nnz} pairs; learning needs two of each."
        )
    if not (user_items.has_canonical_format and _are_finite_above_zero(user_items.data)):
        raise DataError("The matrix holds a pair twice, or a weight that is not finite and above zero; build it again.")


class _NumberedIds(NamedTuple):
    """The *names* of different ids, ascending by their bytes, and the place of each row's id among them [rows]."""

    names: pl.Series
    numbers: Indices


def _number_ids(ids: pl.Series) -> _NumberedIds:
    """Number the *ids* of rows, texts or categories, in the order of the ids: the first one is 0."""
    # polars keeps a category as a code: codes are in the order of first occurrence, and may have gaps.
    categories = ids.cast(pl.Categorical)
    unique_categories = categories.unique()
    names = unique_categories.cast(pl.String)
    codes = unique_categories.to_physical().to_numpy()

    order = names.arg_sort()
    sorted_names = names.gather(order)
    sorted_codes = codes[order.to_numpy()]
    number_of_code = np.zeros(codes.max(initial=0) + 1, dtype=np.int32)
    number_of_code[sorted_codes] = np.arange(len(sorted_codes), dtype=np.int32)

    code_of_row = categories.to_physical().to_numpy()
    return _NumberedIds(sorted_names, numbers=number_of_code[code_of_row])


def _history_of_log(log: pl.DataFrame, numbers: PairNumbers, shape: tuple[int, int], weighing: Weighing) -> History:
    """Return the rows of *log* in order of user, item and time.

    *numbers* [rows] are the pair numbers of the rows: user * number of items + item. *shape* is (users, items).
    """
    # A weight that float32 cannot hold becomes infinite, which `to_matrix` refuses.
    with np.errstate(over="ignore"):
        weights = log.get_column("weight").to_numpy().astype(np.float32)
    times = np.zeros(len(numbers), dtype=np.int64)
    ended = None
    if "time" in log.columns:
        times = log.get_column("time").to_physical().fill_null(NO_TIME).to_numpy()
    order = np.lexsort((times, numbers))
    if "ended" in log.columns:
        ended = log.get_column("ended").to_physical().fill_null(NEVER).to_numpy()[order]
    return History(
        shape=shape,
        pair_numbers=numbers[order],
        times=times[order],
        weights=weights[order],
        weighing=weighing,
        ended=ended,
    )


def _first_rows(numbers: PairNumbers) -> npt.NDArray[np.int64]:
    """Return the first row of each pair [pairs]; *numbers* [rows] ascend."""
    return np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))[: len(numbers)])


def _pair_weights(weighing: Weighing, starts: npt.NDArray[np.int64], times: Times, weights: Floats) -> Floats:
    """Return the weight of each pair of user and item [pairs]: of its rows, the sum, 1 (binary), or 1 + ln(sum) (log).

    With a half-life, a sum is of weights halved per half-life before the newest row; other kinds are halved since the
    pair's last row. The mean weight stays that without a half-life, as parameters of engines depend on it.

    *starts* [pairs] are the first rows of the pairs, which follow each other; *times* and *weights* are [rows].
    """
    if not len(starts):
        return np.zeros(0, dtype=np.float32)

    pair_weights = np.ones(len(starts))
    if weighing.kind != "binary":
        pair_weights = np.add.reduceat(weights, starts, dtype=np.float64)
    if weighing.kind == "log":
        # Sums below 1 would become 0 or less.
        pair_weights = 1 + np.log(np.maximum(pair_weights, 1))
    if weighing.half_life is None:
        return pair_weights.astype(np.float32)

    factors = decay_factors(times, weighing.half_life / timedelta(days=1))
    if weighing.kind == "sum":
        decayed = np.add.reduceat(weights * factors, starts, dtype=np.float64)
    else:
        last_rows = np.concatenate((starts[1:], [len(times)])) - 1
        decayed = pair_weights * factors[last_rows]
    scaled: Floats = (decayed * (pair_weights.mean() / decayed.mean())).astype(np.float32)
    return scaled


def _matrix_of_pairs(numbers: PairNumbers, weights: Floats, shape: tuple[int, int]) -> UserItems:
    """Return the csr_matrix of *shape* (users, items) with these pairs and their *weights* [pairs].

    *numbers* are user * number of items + item of each pair; they are unique and ascend.
    """
    users, items = np.divmod(numbers, shape[1])
    counts = np.bincount(users, minlength=shape[0])
    # Row r of a csr_matrix is the data from row_ends[r] to row_ends[r + 1].
    row_ends = np.concatenate(([0], np.cumsum(counts)))
    pairs = csr_matrix((weights, items.astype(np.int32), row_ends.astype(np.int32)), shape=shape)
    pairs.has_canonical_format = True
    return pairs
