"""Splits of interactions into train and test: functions of pairs, options and seed."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from hotplate.offline.errors import DataError, SettingError, require_at_least
from hotplate.offline.input.history import NO_TIME, History, Times
from hotplate.offline.input.pairs import (
    Indices,
    Mask,
    UserItems,
    are_among,
    items_per_user,
    k_core,
    no_items,
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

    auto              by-time, but in a training by-item if the data lack times, or users after the cut
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

    kind: SplitKind | Literal["auto"] = "by-time"
    test_share: float = 0.25
    seed: int = 42
    min_per_user: int = 1
    min_per_item: int = 1
    pieces: int = 1
    piece: int = 0
    repeats: bool = False

    def __post_init__(self) -> None:
        if self.kind not in (*SPLIT_KINDS, "auto"):
            raise SettingError(f"The split {self.kind!r} is not known; choose one of {', '.join(SPLIT_KINDS)}.")
        if not 0 < self.test_share < 1:
            raise SettingError(f"The test share is {self.test_share}; it must lie between 0 and 1, such as 0.25.")
        require_at_least("seed", self.seed, 0)
        if not 1 <= self.pieces <= _MOST_PIECES:
            raise SettingError(f"A log is cut into 1 to {_MOST_PIECES} pieces, not into {self.pieces}.")

    @property
    def in_time(self) -> bool:
        """Whether train ends at the cut."""
        return self.kind in ("by-time", "auto")

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
    options     by which the pairs were split; None for given parts
    """

    train: UserItems
    history: History | None
    seen: UserItems
    test: UserItems
    test_times: Times | None = None
    options: SplitOptions | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn from, or nothing to test on."""
        return not (self.train.nnz and self.test.nnz)

    @property
    def train_times(self) -> Times | None:
        """First times in the order of train's data, if known."""
        return None if self.history is None else self.history.first_times(self.train)

    @property
    def is_repeat(self) -> Mask:
        """Which test pairs are in train, too [test pairs]: the user chose the item again."""
        return are_among(pair_numbers(self.train), pair_numbers(self.test))

    @property
    def tested(self) -> Indices:
        """The users with test items."""
        return np.flatnonzero(items_per_user(self.test)).astype(np.int32)

    def sampled(self, most: int, seed: int) -> "Parts":
        """Return the same split with the test pairs of at most *most* random users; the train part is unchanged.

        `tested` are the users with test items, by number. `test` is a sparse matrix [users, items] and keeps its shape.
        `test_times` are in the order of its pairs.
        """
        if len(self.tested) <= most:
            return self

        drawn_users = np.random.default_rng(seed).permutation(self.tested)[:most]
        is_drawn_user = np.zeros(self.test.shape[0], dtype=np.bool_)
        is_drawn_user[drawn_users] = True
        is_kept = is_drawn_user[row_of_each_pair(self.test)]
        times = None if self.test_times is None else self.test_times[is_kept]
        return self._replace(test=select_pairs(self.test, is_kept), test_times=times)

    @classmethod
    def of(cls, train: UserItems, test: UserItems, history: History | None = None, *, repeats: bool = False) -> "Parts":
        """Return given parts, without test pairs in train unless *repeats*; ValueError for two shapes."""
        if train.shape != test.shape:
            raise ValueError(f"train is {train.shape}, but test is {test.shape}")
        parts = cls(train=train, history=history, seen=train, test=test)
        return parts if repeats else parts._replace(test=select_pairs(test, ~parts.is_repeat))


def split(user_items: UserItems, history: History | None, options: SplitOptions) -> Parts:
    """Split the pairs of *user_items* [users, items] into a train and a test part, as *options* say.

    *history* are the rows of the pairs with their times, None without times. A split in time tests the latest pairs,
    held-out-users some pairs of users who are not in train, and the other kinds random pairs. Either part may be empty.
    Raises DataError for a split in time without history.
    """
    if options.in_time:
        if history is None:
            raise DataError(
                f"The split {options.kind} needs times, and the data have none; name their column with --time-column."
            )
        return _split_in_time(user_items, history, options)

    if options.kind == "held-out-users":
        return _hold_out_users(user_items, history, options)

    is_held_back = _random_pairs(user_items, options)
    train = k_core(select_pairs(user_items, ~is_held_back), options.min_per_user, options.min_per_item)
    return Parts(
        train=train,
        history=None if history is None else history.only_pairs(train),
        seen=train,
        test=_testable_pairs(user_items, is_held_back, train, options),
        options=options,
    )


def _split_in_time(user_items: UserItems, history: History, options: SplitOptions) -> Parts:
    """Split at a time, the cut: train has the rows of *history* up to it, the test the pairs that begin after it.

    A pair of user and item begins at the time of its first row. Only pairs that begin before the end of a piece of the
    log are used, if *options* name one; of these, the last `test_share` is the test. With `options.repeats`, all pairs
    with rows after the cut are tested instead, even those in train and those after the end. The minimum numbers per
    user and item in *options* apply to train, and the test has only users and items that remain.
    """
    times = history.first_times(user_items)
    cut, end = _cut_and_end(times, options)

    past_rows = history.rows_until(cut)
    past_pairs = past_rows.matrix()
    train = past_rows.k_core(past_pairs, options.min_per_user, options.min_per_item)

    if options.repeats:
        later_pairs = history.pairs_after(cut)
        is_tested = np.ones(later_pairs.nnz, dtype=np.bool_)
        test = _testable_pairs(later_pairs, is_tested, train, options)
        test_times = None  # of no use for repeats
    else:
        # A pair that was cancelled after the cut, and chosen again, begins twice; train has it, so it is not tested.
        is_past = are_among(pair_numbers(past_pairs), pair_numbers(user_items))
        is_tested = np.asarray((times > cut) & (times <= end) & ~is_past)
        test = _testable_pairs(user_items, is_tested, train, options)
        test_times = history.first_times(test)

    return Parts(
        train=train,
        history=past_rows.only_pairs(train),
        seen=train,
        test=test,
        test_times=test_times,
        options=options,
    )


class _CutAndEnd(NamedTuple):
    """The last time of the train part, and that of the test, in µs since 1970."""

    cut: int
    end: int


def _cut_and_end(times: Times, options: SplitOptions) -> _CutAndEnd:
    """Return the cut and the end of a split in time: of the pairs until the end, those after the cut are tested.

    *times* [pairs] are the first times of pairs of user and item. Without pairs, both are NO_TIME.
    """
    if not len(times):
        return _CutAndEnd(NO_TIME, NO_TIME)

    # The last piece is all pairs, and each piece before is a fifth of all pairs shorter than the next.
    piece_share = 1 - _PIECE_STEP * (options.pieces - 1 - options.piece)
    piece_pairs = max(1, round(piece_share * len(times)))
    train_pairs = max(1, round((1 - options.test_share) * piece_pairs))

    ordered = np.sort(times)
    return _CutAndEnd(cut=int(ordered[train_pairs - 1]), end=int(ordered[piece_pairs - 1]))


def _testable_pairs(user_items: UserItems, held_back: Mask, train: UserItems, options: SplitOptions) -> UserItems:
    """Return the test part: pairs of *user_items* that are *held_back* (a mask [pairs]) and can be tested.

    If *options* have minimum numbers per user and item, users and items that these leave out of *train* are not tested.
    """
    if options.min_per_user == options.min_per_item == 1:
        return select_pairs(user_items, held_back)

    is_trained_user = items_per_user(train) > 0
    is_trained_item = users_per_item(train) > 0
    is_trained = is_trained_user[row_of_each_pair(user_items)] & is_trained_item[user_items.indices]
    return select_pairs(user_items, held_back & is_trained)


def _random_pairs(user_items: UserItems, options: SplitOptions) -> Mask:
    """Return which pairs of *user_items* a random split holds back [pairs].

    By the kind in *options*, it is the same share of the pairs of each item, of each user, or of all pairs.
    """
    random_order = np.random.default_rng(options.seed).random(user_items.nnz)

    groups = np.zeros(user_items.nnz, dtype=np.int64)
    if options.kind == "by-item":
        groups = user_items.indices.astype(np.int64)
    elif options.kind == "by-user":
        groups = row_of_each_pair(user_items)

    ranks, group_sizes = rank_in_groups(groups, random_order)
    return np.asarray(ranks > np.round((1 - options.test_share) * group_sizes))


class RanksInGroups(NamedTuple):
    """The rank of each element in its group, 1 for the first, and the size of its group, both [elements]."""

    ranks: npt.NDArray[np.int64]
    group_sizes: npt.NDArray[np.int64]


def rank_in_groups(groups: npt.NDArray[np.int64], order: npt.NDArray[np.float64] | Times) -> RanksInGroups:
    """Rank elements within their groups: the one with the lowest *order* [elements] has rank 1; ties as they are.

    *groups* [elements] are the numbers of the elements' groups, from 0. Groups `[0, 1, 0]` in the order `[9, 5, 3]`
    give ranks `[2, 1, 1]` and group sizes `[2, 1, 2]`.
    """
    sorted_elements = np.lexsort((order, groups))
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes  # of each group among the sorted elements

    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[sorted_elements] = np.arange(len(groups)) - starts[groups[sorted_elements]] + 1
    return RanksInGroups(ranks, sizes[groups].astype(np.int64))


def _hold_out_users(user_items: UserItems, history: History | None, options: SplitOptions) -> Parts:
    """Hold out random users, a share of those with five items or more: train has only the other users.

    Of the items of a held-out user, a random fifth is tested. From the other ones (`seen`), the model of the other
    users computes the user's list. Items that train lacks are not tested.
    """
    generator = np.random.default_rng(options.seed)
    eligible_users = np.flatnonzero(items_per_user(user_items) >= _MIN_HELD_OUT_ITEMS)
    held_out_count = round(options.test_share * len(eligible_users))

    is_held_out_user = np.zeros(user_items.shape[0], dtype=np.bool_)
    is_held_out_user[generator.permutation(eligible_users)[:held_out_count]] = True

    # All masks from here on are of pairs.
    user_of_pair = row_of_each_pair(user_items)
    is_held_out = is_held_out_user[user_of_pair]
    train = k_core(select_pairs(user_items, ~is_held_out), options.min_per_user, options.min_per_item)

    random_ranks, items_of_user = rank_in_groups(user_of_pair, generator.random(user_items.nnz))
    tested_items_of_user = np.floor(_TARGET_SHARE * items_of_user)
    is_in_last_fifth = random_ranks > items_of_user - tested_items_of_user

    is_trained_item = (users_per_item(train) > 0)[user_items.indices]
    is_tested = is_held_out & is_in_last_fifth & is_trained_item

    return Parts(
        train=train,
        history=None if history is None else history.only_pairs(train),
        seen=select_pairs(user_items, is_held_out & ~is_tested),
        test=select_pairs(user_items, is_tested),
        options=options,
    )


def lists_of_tested(parts: Parts, k: int, of_tested: Indices) -> Indices:
    """Return lists of *k* items for all users with test items [users, k]; -1 for other users and after a list's end.

    *of_tested* are the lists of these users, `parts.tested`, in their order [len(parts.tested), any length].
    """
    of_tested = of_tested[:, :k]
    lists = no_items(parts.test.shape[0], k)
    lists[parts.tested, : of_tested.shape[1]] = of_tested
    return lists
