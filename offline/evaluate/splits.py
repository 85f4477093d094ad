"""Splits of interactions into train and test: functions of pairs, options and seed."""

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
    UserItems,
    are_among,
    items_per_user,
    k_core,
    pair_numbers,
    row_of_each_pair,
    select_pairs,
    users_per_item,
)

SplitKind = Literal["by-time", "by-item", "by-user", "random", "held-out-users"]
SPLIT_KINDS: tuple[SplitKind, ...] = get_args(SplitKind)
# Held-out users have at least this number of items, of which this share is tested.
_MIN_HELD_OUT_ITEMS = 5
_TARGET_SHARE = 0.2
# Three pieces of a log end after 60, 80 and 100 % of the pairs.
_PIECE_STEP = 0.2
_MOST_PIECES = 5


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """The pairs held back for the test, by kind.

    by-time           the last *test_share* of all pairs, those after the cut; train has only rows up to it
    by-item, by-user  a random *test_share* of each item's (or user's) pairs
    random            a random *test_share* of all pairs
    held-out-users    *test_share* of the users with 5 items or more are not in train; a fifth of their items is tested,
                      the rest is folded in (strong generalisation: Liang et al., WWW 2018)

    Shares are rounded per group, half to even. A pair has the time of its first row; pairs without a time come first.
    Ties are in item order.

    min_per_user, min_per_item  the core of train; only its users and items are tested
    pieces, piece               by-time: number of prefixes of the log, the last being all of it, and the index of one
    repeats                     by-time: also test pairs of train that occur again after the cut
    """

    kind: SplitKind = "by-time"
    test_share: float = 0.25
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
        require_at_least("seed", self.seed, 0)
        if not 1 <= self.pieces <= _MOST_PIECES:
            raise SettingError(f"A log is cut into 1 to {_MOST_PIECES} pieces, not into {self.pieces}.")

    @property
    def in_time(self) -> bool:
        """Whether train ends at the cut."""
        return self.kind == "by-time"

    @property
    def by_piece(self) -> "tuple[SplitOptions, ...]":
        """One split per piece of the log, else this split."""
        if not self.in_time:
            return (self,)
        return tuple(replace(self, piece=piece) for piece in range(self.pieces))


class Parts(NamedTuple):
    """One split: canonical csr matrices of one shape, users by items.

    history     the rows of train, if the data have times
    seen        the users' items at recommendation: train, or the folded-in part
    test        disjoint from both, unless repeats are tested
    test_times  in the order of the test's data, if known
    """

    train: UserItems
    history: History | None
    seen: UserItems
    test: UserItems
    test_times: Times | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn from, or nothing to test on."""
        return not (self.train.nnz and self.test.nnz)

    @property
    def train_times(self) -> Times | None:
        """First times in the order of train's data, if known."""
        return None if self.history is None else self.history.first_times(self.train)

    @property
    def tested(self) -> Indices:
        """The users with test items."""
        return np.flatnonzero(items_per_user(self.test)).astype(np.int32)

    def sampled(self, most: int, seed: int) -> "Parts":
        """Keep at most *most* random users in the test."""
        tested = self.tested
        if len(tested) <= most:
            return self
        drawn = np.zeros(self.test.shape[0], dtype=np.bool_)
        drawn[np.random.default_rng(seed).permutation(tested)[:most]] = True
        kept = drawn[row_of_each_pair(self.test)]
        times = None if self.test_times is None else self.test_times[kept]
        return self._replace(test=select_pairs(self.test, kept), test_times=times)

    @classmethod
    def of(cls, train: UserItems, test: UserItems, history: History | None = None, *, repeats: bool = False) -> "Parts":
        """Return given parts, without test pairs in train unless *repeats*; ValueError for two shapes."""
        if train.shape != test.shape:
            raise ValueError(f"train is {train.shape}, but test is {test.shape}")
        new = test if repeats else select_pairs(test, ~are_among(pair_numbers(train), pair_numbers(test)))
        return cls(train=train, history=history, seen=train, test=new)


def split(user_items: UserItems, history: History | None, options: SplitOptions) -> Parts:
    """Split *user_items* (canonical csr), with its rows in *history*; either part may be empty.

    Raises DataError for a split in time without history.
    """
    if options.in_time and history is None:
        raise DataError(
            f"The split {options.kind} needs times, and the data have none; name their column with --time-column."
        )
    times = None if history is None else history.first_times(user_items)
    if options.in_time and history is not None and times is not None:
        parts = _split_in_time(user_items, history, times, options)
        return parts if options.repeats else parts._replace(test_times=history.first_times(parts.test))
    rows = row_of_each_pair(user_items)
    if options.kind == "held-out-users":
        return _hold_out_users(user_items, rows, history, options)
    held_back = _random_pairs(user_items, rows, options)
    train = k_core(select_pairs(user_items, ~held_back), options.min_per_user, options.min_per_item)
    past = None if history is None else history.only_pairs(train)
    test = _testable_pairs(user_items, held_back, train, options)
    return Parts(train=train, history=past, seen=train, test=test)


def _split_in_time(user_items: UserItems, history: History, times: Times, options: SplitOptions) -> Parts:
    """Split at a time, the cut: train has the rows up to it, the test the pairs that begin after it.

    *times* [pairs] are those of the first rows of the pairs of *user_items*, in µs. A piece is a prefix of the pairs in
    order of time; the cut leaves its last `test_share` to the test, and pairs after its end are in neither part. With
    `repeats`, all pairs with rows after the cut are tested, even those in train.
    """
    ordered = np.sort(times)
    piece_share = 1 - _PIECE_STEP * (options.pieces - 1 - options.piece)
    piece_pairs = max(1, round(piece_share * len(times)))
    cut = end = NO_TIME
    if len(times):
        cut = int(ordered[max(0, round((1 - options.test_share) * piece_pairs) - 1)])
        end = int(ordered[piece_pairs - 1])
    held_back = np.asarray((times > cut) & (times <= end))
    past = history.rows_until(cut)
    learnt = past.matrix()
    # Cancelled pairs of the cut stay, untested, even if chosen again.
    held_back &= ~are_among(pair_numbers(learnt), pair_numbers(user_items))
    train = past.k_core(learnt, options.min_per_user, options.min_per_item)
    if options.repeats:
        user_items = history.pairs_after(cut)
        held_back = np.ones(user_items.nnz, dtype=np.bool_)
    test = _testable_pairs(user_items, held_back, train, options)
    return Parts(train=train, history=past.only_pairs(train), seen=train, test=test)


def _testable_pairs(user_items: UserItems, held_back: Mask, train: UserItems, options: SplitOptions) -> UserItems:
    """Return the pairs *held_back*, without users and items that the minimum numbers leave out of *train*."""
    if options.min_per_user == options.min_per_item == 1:
        return select_pairs(user_items, held_back)
    rows = row_of_each_pair(user_items)
    users = items_per_user(train) > 0
    items = users_per_item(train) > 0
    return select_pairs(user_items, held_back & users[rows] & items[user_items.indices])


def _random_pairs(user_items: UserItems, rows: npt.NDArray[np.int64], options: SplitOptions) -> Mask:
    """Return which pairs a random split holds back; *rows* are their users."""
    draw = np.random.default_rng(options.seed).random(user_items.nnz)
    groups = {"by-item": user_items.indices.astype(np.int64), "by-user": rows}
    one_group = np.zeros_like(rows)
    rank, counts = rank_in_groups(groups.get(options.kind, one_group), draw)
    return np.asarray(rank > np.round((1 - options.test_share) * counts))


class RankInGroup(NamedTuple):
    """The *rank* of each element in its group, from 1, and the *sizes* of the groups [elements]."""

    rank: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def rank_in_groups(groups: npt.NDArray[np.int64], order: npt.NDArray[np.float64] | Times) -> RankInGroup:
    """Rank elements by *order* in *groups*, both [elements]; stable."""
    places = np.lexsort((order, groups))
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(groups), dtype=np.int64)
    rank[places] = np.arange(len(groups)) - starts[groups[places]] + 1
    return RankInGroup(rank, sizes[groups].astype(np.int64))


def _hold_out_users(
    user_items: UserItems, rows: npt.NDArray[np.int64], history: History | None, options: SplitOptions
) -> Parts:
    """Hold out random users: some of their items are tested, and the others are folded in; *rows* are pairs' users."""
    counts = items_per_user(user_items)
    eligible = np.flatnonzero(counts >= _MIN_HELD_OUT_ITEMS)
    generator = np.random.default_rng(options.seed)
    is_held_out = np.zeros(user_items.shape[0], dtype=np.bool_)
    is_held_out[generator.permutation(eligible)[: round(options.test_share * len(eligible))]] = True
    of_held_out = is_held_out[rows]
    rank, sizes = rank_in_groups(rows, generator.random(user_items.nnz))
    is_tested = of_held_out & (rank > sizes - np.floor(_TARGET_SHARE * sizes))

    train = k_core(select_pairs(user_items, ~of_held_out), options.min_per_user, options.min_per_item)
    is_tested &= (users_per_item(train) > 0)[user_items.indices]
    return Parts(
        train=train,
        history=None if history is None else history.only_pairs(train),
        seen=select_pairs(user_items, of_held_out & ~is_tested),
        test=select_pairs(user_items, is_tested),
    )


def lists_of_tested(parts: Parts, k: int, recommend: Callable[[Indices], Indices]) -> Indices:
    """Return the lists of *recommend* for users with test items [users, k], -1 for all others."""
    of_tested = recommend(parts.tested)[:, :k]
    lists = np.full((parts.test.shape[0], k), -1, dtype=np.int32)
    lists[parts.tested, : of_tested.shape[1]] = of_tested
    return lists
