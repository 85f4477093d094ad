"""Splits of the interactions into what is learnt from and what is held back: pure functions of the pairs and a seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from hotplate.offline.errors import DataError, SettingError, require_at_least
from hotplate.offline.input.matrix import (
    NO_TIME,
    History,
    Indices,
    Mask,
    Times,
    Until,
    UserItems,
    are_among,
    cells_of,
    core,
    part,
    users_per_item,
)

SplitKind = Literal["by-time", "by-user-time", "leave-last", "by-item", "by-user", "random", "held-out-users"]
SPLIT_KINDS: tuple[SplitKind, ...] = get_args(SplitKind)
IN_TIME: frozenset[SplitKind] = frozenset({"by-time", "by-user-time", "leave-last"})
# Of held-out users: how many items one must have to be tested, and which share of them is held back.
_MIN_HELD_OUT_ITEMS = 5
_TARGET_SHARE = 0.2
# Of three pieces of a log the first two end where 60 and 80 % of the pairs have come.
_PIECE_STEP = 0.2
_MOST_PIECES = 5


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How pairs are held back for the test.

    by-time           the last *test_share* of all pairs, after one moment: the cut. What is learnt is what the rows up
                      to the cut say. The test may be smaller if many pairs have the time of the cut.
    by-user-time      of each user the last *test_share*
    leave-last        of each user who has more, the *last* pairs
    by-item, by-user  of each item (or user) *test_share*, at random
    random            of all pairs *test_share*, at random
    held-out-users    of *test_share* of the users, who are not learnt from, a fifth of the items; the rest is folded in
                      (strong generalisation: Liang et al., WWW 2018)

    Shares are rounded within each group, half to even. A pair has the time of its first row; a pair without a time
    counts as the first of all. Pairs of one time are in the order of their items.

    min_per_user, min_per_item  the core of what is learnt from; users and items outside of it are not tested
    pieces                      of a split by time: the log is cut off at so many places, the last of them its end, and
                                the last *test_share* of each piece is tested
    piece                       the number of the piece, from 0
    repeats                     of a split in time: pairs that a user has already are tested, too, if they come again
    seed                        of a random split
    """

    kind: SplitKind = "by-time"
    test_share: float = 0.25
    last: int = 1
    seed: int = 42
    min_per_user: int = 1
    min_per_item: int = 1
    pieces: int = 1
    piece: int = 0
    repeats: bool = False

    def __post_init__(self) -> None:
        if self.kind not in SPLIT_KINDS:
            raise SettingError(f"The split {self.kind!r} is not known; choose one of {', '.join(SPLIT_KINDS)}.")
        if not 0 < self.test_share < 1:
            raise SettingError(f"The test share is {self.test_share}; it must lie between 0 and 1, such as 0.25.")
        require_at_least("last", self.last)
        if not 1 <= self.pieces <= _MOST_PIECES:
            raise SettingError(f"A log is cut into 1 to {_MOST_PIECES} pieces, not into {self.pieces}.")

    @property
    def in_time(self) -> bool:
        """Whether nothing is learnt from what came later than the test."""
        return self.kind in IN_TIME

    @property
    def draws(self) -> "tuple[SplitOptions, ...]":
        """The split of each piece of a log that is split by time; of all others, this one alone."""
        if self.kind != "by-time":
            return (self,)
        return tuple(replace(self, piece=piece) for piece in range(self.pieces))


class Parts(NamedTuple):
    """One split: csr matrices of one shape, users by items.

    train    what is learnt from
    history  the rows of train, if the data have times
    seen     what users have when they are recommended items: train, or of held-out users what is folded in
    test     what is held back; disjoint from both, unless repeats are tested
    test_times  when each pair of the test came, in the order of its data; None if that is not known
    """

    train: UserItems
    history: History | None
    seen: UserItems
    test: UserItems
    test_times: Times | None = None

    @property
    def train_times(self) -> Times | None:
        """When each pair of train was first seen, in the order of its data; None if the data have no times."""
        return None if self.history is None else self.history.first_times(self.train)

    def sampled(self, most: int, seed: int) -> "Parts":
        """Return the same with the test of *most* users, drawn at random, or of all if there are not more."""
        tested = np.flatnonzero(np.diff(self.test.indptr))
        if len(tested) <= most:
            return self
        drawn = np.zeros(self.test.shape[0], dtype=np.bool_)
        drawn[np.random.default_rng(seed).permutation(tested)[:most]] = True
        kept = np.repeat(drawn, np.diff(self.test.indptr))
        times = None if self.test_times is None else self.test_times[kept]
        return self._replace(test=part(self.test, kept), test_times=times)

    @classmethod
    def of(cls, train: UserItems, test: UserItems, history: History | None = None, *, repeats: bool = False) -> "Parts":
        """Return parts that were made elsewhere: canonical csr matrices of one shape, *history* that of train.

        Pairs that are in train, too, are only tested with *repeats*. Raises ValueError for matrices of two shapes.
        """
        if train.shape != test.shape:
            raise ValueError(f"train is {train.shape}, but test is {test.shape}")
        new = test if repeats else part(test, ~are_among(cells_of(train), cells_of(test)))
        return cls(train, history, train, new)


def split(user_items: UserItems, history: History | None, options: SplitOptions) -> Parts:
    """Split *user_items* (canonical csr), whose rows are in *history*.

    Raises DataError if a split in time is wanted and there is no history. Either part may be empty.
    """
    if options.in_time and history is None:
        raise DataError(
            f"The split {options.kind} needs times, and the data have none; name their column with --time-column."
        )
    times = None if history is None else history.first_times(user_items)
    if options.in_time and history is not None and times is not None:
        parts = _in_time(user_items, history, times, options)
        return parts if options.repeats else parts._replace(test_times=history.first_times(parts.test))
    rows = rows_of(user_items)
    if options.kind == "held-out-users":
        return _hold_out_users(user_items, rows, history, options)
    held_back = _drawn(user_items, rows, options)
    train = core(part(user_items, ~held_back), options.min_per_user, options.min_per_item)
    return Parts(
        train, None if history is None else history.only(train), train, _known(user_items, held_back, train, options)
    )


def _in_time(user_items: UserItems, history: History, times: Times, options: SplitOptions) -> Parts:
    """Learn from the rows up to the cut alone: of all users, or of each user."""
    rows = rows_of(user_items)
    until: Until
    if options.kind == "by-time":
        ordered = np.sort(times)
        # Three pieces end where 60, 80 and 100 % of the pairs have come.
        size = max(1, round((1 - _PIECE_STEP * (options.pieces - 1 - options.piece)) * len(times)))
        cut = int(ordered[max(0, round((1 - options.test_share) * size) - 1)]) if len(times) else NO_TIME
        until, held_back = cut, np.asarray((times > cut) & (times <= (ordered[size - 1] if len(times) else 0)))
    else:
        rank, counts = ranked(rows, times)
        if options.kind == "leave-last":
            held_back = (counts > options.last) & (rank > counts - options.last)
        else:
            held_back = rank > np.round((1 - options.test_share) * counts)
        until = np.full(user_items.shape[0], NO_TIME, dtype=np.int64)
        np.maximum.at(until, rows[~held_back], times[~held_back])
    past = history.until(until)
    learnt = past.matrix()
    # Pairs of the moment of the cut that are held back are not learnt. Pairs that stood at the cut are learnt, and not
    # held back, even if they were cancelled afterwards and came again.
    tied = held_back & (times <= (until if isinstance(until, int) else until[rows]))
    learnt = part(learnt, ~are_among(cells_of(part(user_items, tied)), cells_of(learnt)))
    held_back &= ~are_among(cells_of(learnt), cells_of(user_items))
    train = core(learnt, options.min_per_user, options.min_per_item)
    if options.repeats:
        again = history.pairs_after(until)
        return Parts(train, past.only(train), train, _known(again, np.ones(again.nnz, dtype=np.bool_), train, options))
    return Parts(train, past.only(train), train, _known(user_items, held_back, train, options))


def _known(user_items: UserItems, held_back: Mask, train: UserItems, options: SplitOptions) -> UserItems:
    """Return what is held back; with a core, of its users and items alone."""
    if options.min_per_user == options.min_per_item == 1:
        return part(user_items, held_back)
    rows = rows_of(user_items)
    users, items = np.diff(train.indptr) > 0, users_per_item(train) > 0
    return part(user_items, held_back & users[rows] & items[user_items.indices])


def rows_of(user_items: UserItems) -> npt.NDArray[np.int64]:
    """Return the row of each pair, in the order of the data."""
    return np.repeat(np.arange(user_items.shape[0], dtype=np.int64), np.diff(user_items.indptr))


def _drawn(user_items: UserItems, rows: npt.NDArray[np.int64], options: SplitOptions) -> Mask:
    draw = np.random.default_rng(options.seed).random(user_items.nnz)
    groups = {"by-item": user_items.indices.astype(np.int64), "by-user": rows}
    rank, counts = ranked(groups.get(options.kind, np.zeros_like(rows)), draw)
    return np.asarray(rank > np.round((1 - options.test_share) * counts))


def ranked(
    groups: npt.NDArray[np.int64], order: npt.NDArray[np.float64] | Times
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return of each pair its rank within its group, from 1, and how many there are; equals keep their order."""
    sorted_ = np.lexsort((order, groups))
    counts = np.bincount(groups)
    first = np.cumsum(counts) - counts
    rank = np.empty(len(groups), dtype=np.int64)
    rank[sorted_] = np.arange(len(groups)) - first[groups[sorted_]] + 1
    return rank, counts[groups].astype(np.int64)


def _hold_out_users(
    user_items: UserItems, rows: npt.NDArray[np.int64], history: History | None, options: SplitOptions
) -> Parts:
    counts = np.diff(user_items.indptr)
    eligible = np.flatnonzero(counts >= _MIN_HELD_OUT_ITEMS)
    generator = np.random.default_rng(options.seed)
    chosen = np.zeros(user_items.shape[0], dtype=np.bool_)
    chosen[generator.permutation(eligible)[: round(options.test_share * np.count_nonzero(counts))]] = True
    rank, sizes = ranked(rows, generator.random(user_items.nnz))
    target = chosen[rows] & (rank > sizes - np.floor(_TARGET_SHARE * sizes))
    train = core(part(user_items, ~chosen[rows]), options.min_per_user, options.min_per_item)
    learnt = users_per_item(train) > 0
    target &= learnt[user_items.indices]  # an item that no other user has cannot be recommended
    folded = chosen[rows] & ~target
    own = None if history is None else history.only(train)
    return Parts(train, own, part(user_items, folded), part(user_items, target))


def for_tested(parts: Parts, k: int, recommend: Callable[[Indices], Indices]) -> Indices:
    """Return [users, k]: what *recommend* makes for those who have test items, and -1 for all others."""
    tested = np.flatnonzero(np.diff(parts.test.indptr)).astype(np.int32)
    found = recommend(tested)[:, :k]
    lists = np.full((parts.test.shape[0], k), -1, dtype=np.int32)
    lists[tested, : found.shape[1]] = found
    return lists
