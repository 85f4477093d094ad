"""Splits of the interactions into what is learnt from and what is held back: pure functions of the pairs and a seed."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from offline.errors import DataError, SettingError, require_at_least
from offline.input.matrix import UserItems, users_per_item

SplitKind = Literal["by-item", "by-user", "random", "by-time", "by-user-time", "leave-last", "held-out-users"]
SPLIT_KINDS: tuple[SplitKind, ...] = get_args(SplitKind)
IN_TIME: frozenset[SplitKind] = frozenset({"by-time", "by-user-time", "leave-last"})
# Of held-out users: how many items one must have to be tested, and which share of them is held back.
_MIN_HELD_OUT_ITEMS = 5
_TARGET_SHARE = 0.2

Times = npt.NDArray[np.int64] | None
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """
    How pairs are held back for the test.

    by-item, by-user  of each item (or user) *test_share*, at random
    random            of all pairs *test_share*, at random
    by-time           the last *test_share* of all pairs: a cut at one moment, which may leave less where many pairs
                      have the time of the cut
    by-user-time      of each user the last *test_share*
    leave-last        of each user who has more, the *last* pairs
    held-out-users    of *test_share* of the users, who are not learnt from, a fifth of the items; the rest is folded in
                      (strong generalisation: Liang et al., WWW 2018)

    Shares are rounded within each group, half to even. A pair without a time counts as the first of all. Only those at
    random depend on the *seed*; in time, pairs of one time are in the order of their items.
    """

    kind: SplitKind = "by-item"
    test_share: float = 0.25
    last: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        if self.kind not in SPLIT_KINDS:
            raise SettingError(f"The split {self.kind!r} is not known; choose one of {', '.join(SPLIT_KINDS)}.")
        if not 0 < self.test_share < 1:
            raise SettingError(f"The test share is {self.test_share}; it must lie between 0 and 1, such as 0.25.")
        require_at_least("last", self.last)


class Parts(NamedTuple):
    """
    One split: csr matrices of one shape, users by items.

    train   what is learnt from; *train_times* are the times of its pairs, where the data have any
    seen    what users have when they are recommended items: train, or of held-out users what is folded in
    test    what is held back; disjoint from both
    """

    train: UserItems
    train_times: Times
    seen: UserItems
    test: UserItems

    @classmethod
    def of(cls, train: UserItems, test: UserItems, times: Times = None) -> "Parts":
        """
        Return parts that were made elsewhere: canonical csr matrices of one shape, *times* those of the train pairs.

        What a user has in train is never recommended, so that such pairs are left out of the test. Raises ValueError
        for matrices of two shapes.
        """
        if train.shape != test.shape:
            raise ValueError(f"train is {train.shape}, but test is {test.shape}")
        return cls(train, times, train, part(test, ~np.isin(pair_keys(test), pair_keys(train))))


def split(user_items: UserItems, times: Times, options: SplitOptions) -> Parts:
    """
    Split *user_items* (canonical csr); *times* are those of its pairs, in the order of its data.

    Raises DataError where a split in time is wanted and there are no times. Either part may be empty.
    """
    if options.kind in IN_TIME and times is None:
        raise DataError(
            f"The split {options.kind} needs times, and the data have none; name their column with --time-column."
        )
    rows = _rows(user_items)
    if options.kind == "held-out-users":
        return _hold_out_users(user_items, rows, times, options)
    held_back = _held_back(user_items, rows, times, options)
    train = part(user_items, ~held_back)
    return Parts(train, None if times is None else times[~held_back], train, part(user_items, held_back))


def pair_keys(user_items: UserItems) -> npt.NDArray[np.int64]:
    """Return one number for each pair, by which it is known in any matrix of this shape."""
    keys: npt.NDArray[np.int64] = _rows(user_items) * user_items.shape[1] + user_items.indices
    return keys


def part(user_items: UserItems, kept: Mask) -> UserItems:
    """Return the pairs for which *kept*, in the order of the data, is true; the shape stays."""
    ends = np.concatenate(([0], np.cumsum(kept)))[user_items.indptr].astype(user_items.indptr.dtype)
    made = csr_matrix((user_items.data[kept], user_items.indices[kept], ends), shape=user_items.shape)
    made.has_canonical_format = True
    return made


def _rows(user_items: UserItems) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(user_items.shape[0], dtype=np.int64), np.diff(user_items.indptr))


def _held_back(user_items: UserItems, rows: npt.NDArray[np.int64], times: Times, options: SplitOptions) -> Mask:
    draw = np.random.default_rng(options.seed).random(user_items.nnz)
    columns, everything = user_items.indices.astype(np.int64), np.zeros(user_items.nnz, dtype=np.int64)
    share = 1 - options.test_share
    match options.kind:
        case "by-item":
            return _beyond(share, columns, draw)
        case "by-user":
            return _beyond(share, rows, draw)
        case "random":
            return _beyond(share, everything, draw)
        case "by-user-time":
            return _beyond(share, rows, times)
        case "leave-last":
            rank, counts = _ranked(rows, times)
            return (counts > options.last) & (rank > counts - options.last)
        case _:
            assert times is not None  # noqa: S101 -- `split` has looked
            cut = np.sort(times)[max(0, round(share * len(times)) - 1)] if len(times) else 0
            return np.asarray(times > cut)


def _beyond(share: float, groups: npt.NDArray[np.int64], order: npt.NDArray[np.float64] | Times) -> Mask:
    """Tell which pairs rank beyond *share* of their group."""
    rank, counts = _ranked(groups, order)
    return np.asarray(rank > np.round(share * counts))


def _ranked(
    groups: npt.NDArray[np.int64], order: npt.NDArray[np.float64] | Times
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return of each pair its rank within its group, from 1, and how many there are; equals keep their order."""
    sorted_ = np.lexsort((order, groups))  # type: ignore[arg-type]  # `split` has looked whether there are times
    counts = np.bincount(groups)
    first = np.cumsum(counts) - counts
    rank = np.empty(len(groups), dtype=np.int64)
    rank[sorted_] = np.arange(len(groups)) - first[groups[sorted_]] + 1
    return rank, counts[groups].astype(np.int64)


def _hold_out_users(user_items: UserItems, rows: npt.NDArray[np.int64], times: Times, options: SplitOptions) -> Parts:
    counts = np.diff(user_items.indptr)
    eligible = np.flatnonzero(counts >= _MIN_HELD_OUT_ITEMS)
    generator = np.random.default_rng(options.seed)
    chosen = np.zeros(user_items.shape[0], dtype=np.bool_)
    chosen[generator.permutation(eligible)[: round(options.test_share * np.count_nonzero(counts))]] = True
    rank, sizes = _ranked(rows, generator.random(user_items.nnz))
    target = chosen[rows] & (rank > sizes - np.floor(_TARGET_SHARE * sizes))
    train = part(user_items, ~chosen[rows])
    learnt = users_per_item(train) > 0
    target &= learnt[user_items.indices]  # what nobody else has cannot be recommended
    folded = chosen[rows] & ~target
    train_times = None if times is None else times[~chosen[rows]]
    return Parts(train, train_times, part(user_items, folded), part(user_items, target))
