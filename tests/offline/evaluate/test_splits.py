"""Splits: nothing is lost and nothing twice, shares are kept, and no future is in what is learnt from."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.splits import SPLIT_KINDS, Parts, SplitKind, SplitOptions, split
from hotplate.offline.input.interactions import take_back
from hotplate.offline.input.matrix import NEVER, NO_TIME, History, UserItems, Weighing, Weighting, cells_of
from tests.support.property import explored

Times = npt.NDArray[np.int64]
Case = tuple[UserItems, Times, float, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a matrix, times of its pairs with ties and gaps, a share and a seed."""
    shape = draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    cells = draw(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    user_items = csr_matrix(np.array(cells, dtype=np.float32).reshape(shape))
    moment = st.one_of(st.integers(0, 5), st.integers(-(10**15), 10**15), st.just(NO_TIME))
    times = draw(st.lists(moment, min_size=user_items.nnz, max_size=user_items.nnz))
    return user_items, np.array(times, dtype=np.int64), draw(st.floats(0.05, 0.95)), draw(st.integers(0, 2**32 - 1))


def weights(matrix: UserItems) -> dict[int, float]:
    """Return the pairs of *matrix* with their weights."""
    return dict(zip(cells_of(matrix).tolist(), matrix.data.tolist(), strict=True))


@pytest.mark.parametrize("kind", SPLIT_KINDS)
@explored(20, 120, case=cases())
def test_no_pair_is_lost_and_none_is_twice(kind: SplitKind, case: Case) -> None:
    user_items, times, test_share, seed = case
    options = SplitOptions(kind, test_share, seed=seed)
    parts = split(user_items, History.of(user_items, times), options)
    learnt, test, seen = weights(parts.train), weights(parts.test), weights(parts.seen)
    folded = {} if parts.seen is parts.train else seen
    assert len(learnt) + len(test) + len(folded) == user_items.nnz
    assert learnt | test | folded == weights(user_items)
    assert not seen.keys() & test.keys(), "a user is recommended what they have"
    assert (kind == "held-out-users") == (parts.seen is not parts.train)
    assert parts.train_times is not None
    when = dict(zip(cells_of(user_items).tolist(), times.tolist(), strict=True))
    assert parts.train_times.tolist() == [when[pair] for pair in cells_of(parts.train).tolist()]
    for made in (parts.train, parts.seen, parts.test):
        assert made.shape == user_items.shape
        assert made.dtype == np.float32
        assert made.has_canonical_format
    again = split(user_items, History.of(user_items, times), options)
    assert weights(again.test) == test
    assert weights(again.train) == learnt


@settings(deadline=None, max_examples=30)
@given(cases())
def test_each_group_is_split_by_the_share(case: Case) -> None:
    user_items, times, test_share, seed = case

    def train_of(kind: SplitKind) -> UserItems:
        return split(user_items, History.of(user_items, times), SplitOptions(kind, test_share, seed=seed)).train

    groups: tuple[tuple[SplitKind, int], ...] = (("by-item", 0), ("by-user", 1))
    for kind, axis in groups:
        wanted = np.round((1 - test_share) * user_items.getnnz(axis=axis))
        assert (train_of(kind).getnnz(axis=axis) == wanted).all()
    assert train_of("random").nnz == round((1 - test_share) * user_items.nnz)


def times_of(part: UserItems, user_items: UserItems, times: Times) -> Times:
    return times[np.isin(cells_of(user_items), cells_of(part))]


@dataclass(frozen=True)
class Row:
    """A row of a log; a pair of user and item is its *cell*."""

    cell: int
    time: int
    weight: float
    quantity: float = 1.0


ITEMS = 4
WEIGHINGS = [Weighing(kind, age) for kind in get_args(Weighting) for age in (None, timedelta(microseconds=2))]
logs = st.lists(
    st.builds(
        Row,
        st.integers(0, 4 * ITEMS - 1),
        st.integers(0, 9),
        st.sampled_from([0.5, 1.0, 3.0]),
        st.sampled_from([-3.0, -1.0, -0.1, 0.1, 0.3, 1.0, 2.0]),
    ),
    min_size=1,
    max_size=40,
).map(lambda rows: sorted(rows, key=lambda row: (row.cell, row.time, -row.quantity)))


def history_of(rows: list[Row], weighing: Weighing) -> History:
    columns = {"item": "cell", "time": "time", "weight": "weight", "quantity": "quantity"}
    log = pl.DataFrame({name: [getattr(row, of) for row in rows] for name, of in columns.items()})
    left = take_back(log.with_columns(user=pl.lit(0))).sort("item", "time").fill_null(NEVER)
    cells, times, weights, ended = (left.get_column(name).to_numpy() for name in ("item", "time", "weight", "ended"))
    return History((4, ITEMS), cells, times, weights.astype(np.float32), weighing, ended)


def standing(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Return what is left of the rows of each cell, by a plain reading of the log."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        left = found.setdefault(row.cell, [])
        if row.quantity > 0:
            left.append(row)
        wanted = -row.quantity
        while wanted > 1e-9 and left:
            last = left.pop()
            if last.quantity - wanted > 1e-9:
                rest = last.quantity - wanted
                left.append(replace(last, quantity=rest, weight=last.weight * rest / last.quantity))
            wanted -= last.quantity
    return {cell: left for cell, left in found.items() if left}


def weighed(cells: dict[int, list[Row]], weighing: Weighing) -> dict[int, float]:
    """Return the weight of each cell, by a plain reading of what `Weighing` says."""
    newest = max((row.time for rows in cells.values() for row in rows), default=0)

    def total(rows: list[Row], half_life_us: float) -> float:
        kept: list[float] = [0.5 ** min(10.0, (newest - row.time) / half_life_us) for row in rows]
        if weighing.kind == "sum":
            return sum(row.weight * share for row, share in zip(rows, kept, strict=True))
        plain = 1.0 if weighing.kind == "binary" else 1 + math.log(max(1.0, sum(row.weight for row in rows)))
        return plain * kept[-1]

    plain = {cell: total(rows, math.inf) for cell, rows in cells.items()}
    if weighing.half_life is None or not cells:
        return plain
    decayed = {cell: total(rows, weighing.half_life / timedelta(microseconds=1)) for cell, rows in cells.items()}
    scale = sum(plain.values()) / sum(decayed.values())
    return {cell: weight * scale for cell, weight in decayed.items()}


@pytest.mark.parametrize("weighing", WEIGHINGS, ids=lambda each: f"{each.kind}-{each.half_life}")
@explored(20, 120, rows=logs, test_share=st.floats(0.05, 0.95))
def test_rows_after_the_cut_change_nothing_of_what_is_learnt(
    weighing: Weighing, rows: list[Row], test_share: float
) -> None:
    options = SplitOptions("by-time", test_share)
    history = history_of(rows, weighing)
    everything = history.matrix()
    parts = split(everything, history, options)
    if not everything.nnz:
        assert parts.train.nnz == 0
        return
    begun = sorted(left[0].time for left in standing(rows).values())
    cut = begun[max(0, round((1 - test_share) * len(begun)) - 1)]
    past = standing(row for row in rows if row.time <= cut)
    wanted = weighed(past, weighing)
    assert weights(parts.train) == pytest.approx(wanted, rel=1e-5)
    assert parts.train_times is not None
    assert parts.train_times.tolist() == [past[cell][0].time for cell in cells_of(parts.train).tolist()]
    assert not weights(parts.test).keys() & wanted.keys()
    assert weights(parts.test).keys() <= weights(everything).keys()


def test_log_pieces_end_earlier_and_train_only_on_data_before_their_cut() -> None:
    user_items = csr_matrix(np.ones((5, 20), dtype=np.float32))
    times = np.random.default_rng(1).permutation(100)
    history = History.of(user_items, times)
    pieces = [split(user_items, history, each) for each in SplitOptions("by-time", pieces=3).draws]
    for parts, learnt, end in zip(pieces, (45, 60, 75), (60, 80, 100), strict=True):
        assert sorted(times_of(parts.train, user_items, times)) == list(range(learnt))
        assert sorted(times_of(parts.test, user_items, times)) == list(range(learnt, end))


def test_core_is_computed_from_the_training_part_and_limits_the_test_part() -> None:
    has = np.array([[1, 1, 1, 0], [1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=np.float32)
    user_items = csr_matrix(has)
    times = np.array([1, 2, 9, 3, 4, 8, 5, 6, 7])
    options = SplitOptions("by-time", 0.4, min_per_user=2, min_per_item=2)
    parts = split(user_items, History.of(user_items, times), options)
    assert cells_of(parts.train).tolist() == [0, 1, 4, 5], "users 0 and 1 have two items before the cut"
    assert parts.test.nnz == 0, "nobody else has items 2 and 3 before the cut"


def test_what_a_user_has_already_is_tested_only_if_repeats_are() -> None:
    rows = [Row(0, 1, 1.0), Row(0, 9, 1.0)]
    rows += [Row(cell, cell, 1.0) for cell in range(1, 8)]
    history = history_of(sorted(rows, key=lambda row: (row.cell, row.time)), Weighing())
    tested = [
        cells_of(split(history.matrix(), history, SplitOptions("by-time", repeats=repeats)).test).tolist()
        for repeats in (False, True)
    ]
    assert tested == [[6, 7], [0, 6, 7]]


@settings(deadline=None, max_examples=30)
@given(cases())
def test_held_out_users_are_not_learnt_from_and_keep_four_fifths(case: Case) -> None:
    user_items, times, test_share, seed = case
    parts = split(user_items, History.of(user_items, times), SplitOptions("held-out-users", test_share, seed=seed))
    counts, held_out = np.diff(user_items.indptr), np.diff(parts.seen.indptr) > 0
    learnt = parts.train.getnnz(axis=0) > 0
    assert held_out.sum() == min(round(test_share * np.count_nonzero(counts)), np.count_nonzero(counts >= 5))
    assert (counts[held_out] >= 5).all()
    assert parts.train[np.flatnonzero(held_out)].nnz == 0
    assert (np.diff(parts.train.indptr)[~held_out] == counts[~held_out]).all()
    assert learnt[parts.test.indices].all(), "what nobody else has cannot be recommended"
    target = np.diff(parts.test.indptr)
    assert (target[held_out] <= np.floor(0.2 * counts[held_out])).all()
    if learnt.all():
        assert (target[held_out] == np.floor(0.2 * counts[held_out])).all()


@pytest.mark.parametrize("kind", SPLIT_KINDS)
def test_another_seed_splits_otherwise_unless_time_decides(kind: SplitKind) -> None:
    user_items = csr_matrix(np.ones((30, 30), dtype=np.float32))
    times = np.arange(900, dtype=np.int64)[::-1].copy()
    one, two = (
        weights(split(user_items, History.of(user_items, times), SplitOptions(kind, seed=seed)).test) for seed in (1, 2)
    )
    assert (one == two) == (kind == "by-time")


@pytest.mark.parametrize("kind", SPLIT_KINDS)
def test_nothing_to_split_and_one_pair_make_parts_that_may_be_empty(kind: SplitKind) -> None:
    nothing = csr_matrix((3, 4), dtype=np.float32)
    parts = split(nothing, History.of(nothing, np.empty(0, dtype=np.int64)), SplitOptions(kind))
    assert parts.train.nnz == parts.seen.nnz == parts.test.nnz == 0
    single = csr_matrix(([1], ([1], [2])), shape=(3, 4), dtype=np.float32)
    parts = split(single, History.of(single, np.array([5])), SplitOptions(kind))
    assert parts.train.nnz + parts.test.nnz == 1


def test_a_split_in_time_of_pairs_without_times_is_refused() -> None:
    with pytest.raises(DataError, match="needs times, and the data have none; name their column with --time-column"):
        split(csr_matrix(np.ones((3, 3), dtype=np.float32)), None, SplitOptions("by-time"))


def test_pairs_without_a_time_are_the_first() -> None:
    user_items = csr_matrix(np.ones((2, 4), dtype=np.float32))
    times = np.array([7, NO_TIME, 9, 8, NO_TIME, NO_TIME, 3, NO_TIME])
    by_time = split(user_items, History.of(user_items, times), SplitOptions("by-time", 0.25))
    assert cells_of(by_time.test).tolist() == [2, 3]


def test_given_parts_test_nothing_that_is_learnt_from() -> None:
    train = csr_matrix(np.array([[1, 0, 2], [0, 1, 0]], dtype=np.float32))
    test = csr_matrix(np.array([[1, 3, 0], [0, 1, 1]], dtype=np.float32))
    parts = Parts.of(train, test)
    assert parts.seen is parts.train
    assert weights(parts.test) == {1: 3.0, 5: 1.0}
    with pytest.raises(ValueError, match=r"train is \(2, 3\), but test is \(2, 2\)"):
        Parts.of(train, test[:, :2])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SplitOptions("by-day"), "The split 'by-day' is not known; choose one of by-time, by-item,"),  # type: ignore[arg-type]  # as a file could say
        *((lambda share=share: SplitOptions("random", share), "test share") for share in (0.0, 1.0, -1.0, 2.0)),
        (lambda: SplitOptions("random", float("nan")), "test share"),
    ],
)
def test_options_that_make_no_split_are_refused(make: Callable[[], SplitOptions], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        make()
