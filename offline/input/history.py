"""The rows behind the pairs of a matrix: their times, weights and cancellations."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.offline.errors import SettingError
from hotplate.offline.input.pairs import (
    Floats,
    Mask,
    PairNumbers,
    UserItems,
    are_among,
    first_rows,
    k_core,
    matrix_of_pairs,
    pair_numbers,
)

# µs since 1970.
Times = npt.NDArray[np.int64]
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
        starts = first_rows(rows.pair_numbers)
        weights = _pair_weights(self.weighing, starts, rows.times, rows.weights)
        return matrix_of_pairs(rows.pair_numbers[starts], weights, self.shape)

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
        """Return the rows of some users and items, renumbered from 0 without gaps.

        *users* and *items* are masks of those kept. `pair_numbers` [rows] are user * number of items + item, and change
        with the numbers.
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
        starts = first_rows(rows.pair_numbers)
        first: Times = rows.times[starts]
        if len(first) == user_items.nnz:
            return first
        return first[np.searchsorted(rows.pair_numbers[starts], pair_numbers(user_items))]

    def pairs_after(self, until: int) -> UserItems:
        """Return the pairs with a row after *until* never cancelled, with weight 1."""
        numbers = self._rows_where(self.times > until)._uncancelled().pair_numbers  # noqa: SLF001 -- own class
        pairs = numbers[first_rows(numbers)]
        return matrix_of_pairs(pairs, np.ones(len(pairs), dtype=np.float32), self.shape)

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


def history_of_log(log: pl.DataFrame, numbers: PairNumbers, shape: tuple[int, int], weighing: Weighing) -> History:
    """Return the rows of *log* [weight, perhaps time and ended] as arrays, in order of user, item and time.

    *numbers* [rows] are the pair of each row as one number: user * number of items + item. *shape* is (users, items).
    `ended` is the time at which a purchase was cancelled.
    """
    # A weight that float32 cannot hold becomes infinite, which `to_matrix` refuses.
    with np.errstate(over="ignore"):
        weights = log.get_column("weight").to_numpy().astype(np.float32)

    times = np.zeros(len(numbers), dtype=np.int64)
    ended = None
    if "time" in log.columns:
        times = log.get_column("time").to_physical().fill_null(NO_TIME).to_numpy()
    order = np.lexsort((times, numbers))  # by pair number, then by time
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


def _pair_weights(weighing: Weighing, starts: npt.NDArray[np.int64], times: Times, weights: Floats) -> Floats:
    """Return the weight of each pair of user and item [pairs]: the sum of its rows' weights, 1, or 1 + ln(sum).

    weighing  kind of weight (`sum`, `binary` or `log`), and the half-life, if any
    starts    [pairs] first row of each pair; the rows of a pair follow each other
    times     [rows], as *weights*

    With a half-life, each row of a sum counts by its age, other kinds by the age of the pair's last row. The mean
    weight stays the same as without a half-life, as parameters of engines depend on it.
    """
    if not len(starts):
        return np.zeros(0, dtype=np.float32)

    # `reduceat` sums the rows from each start up to the next one.
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
