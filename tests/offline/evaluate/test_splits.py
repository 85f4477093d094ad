"""Splits: each pair is in one part, shares are kept, and training data have no future."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.splits import SPLIT_KINDS, Parts, SplitKind, SplitOptions, split
from hotplate.offline.input.history import NO_TIME, History, Weighing
from hotplate.offline.input.pairs import UserItems, pair_numbers
from tests.support.interactions import matrix_of
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
    return dict(zip(pair_numbers(matrix).tolist(), matrix.data.tolist(), strict=True))


@pytest.mark.parametrize("kind", SPLIT_KINDS)
@explored(20, 120, case=cases())
def test_every_pair_is_in_exactly_one_part(kind: SplitKind, case: Case) -> None:
    user_items, times, test_share, seed = case
    options = SplitOptions(kind, test_share, seed=seed)
    parts = split(user_items, History.of(user_items, times), options)
    learnt = weights(parts.train)
    test = weights(parts.test)
    seen = weights(parts.seen)
    folded = {} if parts.seen is parts.train else seen
    assert len(learnt) + len(test) + len(folded) == user_items.nnz
    assert learnt | test | folded == weights(user_items)
    assert not seen.keys() & test.keys(), "a user is recommended what they have"
    assert (kind == "held-out-users") == (parts.seen is not parts.train)
    assert parts.train_times is not None
    when = dict(zip(pair_numbers(user_items).tolist(), times.tolist(), strict=True))
    assert parts.train_times.tolist() == [when[pair] for pair in pair_numbers(parts.train).tolist()]
    for part in (parts.train, parts.seen, parts.test):
        assert part.shape == user_items.shape
        assert part.dtype == np.float32
        assert part.has_canonical_format
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
    return times[np.isin(pair_numbers(user_items), pair_numbers(part))]


def test_log_pieces_end_earlier_and_train_only_on_data_before_their_cut() -> None:
    user_items = csr_matrix(np.ones((5, 20), dtype=np.float32))
    times = np.random.default_rng(1).permutation(100)
    history = History.of(user_items, times)
    pieces = [split(user_items, history, piece) for piece in SplitOptions("by-time", pieces=3).by_piece]
    for parts, learnt, end in zip(pieces, (45, 60, 75), (60, 80, 100), strict=True):
        assert sorted(times_of(parts.train, user_items, times)) == list(range(learnt))
        assert sorted(times_of(parts.test, user_items, times)) == list(range(learnt, end))


def test_core_is_computed_from_the_training_part_and_limits_the_test_part() -> None:
    has = np.array([[1, 1, 1, 0], [1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=np.float32)
    user_items = csr_matrix(has)
    times = np.array([1, 2, 9, 3, 4, 8, 5, 6, 7])
    options = SplitOptions("by-time", 0.4, min_per_user=2, min_per_item=2)
    parts = split(user_items, History.of(user_items, times), options)
    assert pair_numbers(parts.train).tolist() == [0, 1, 4, 5], "users 0 and 1 have two items before the cut"
    assert parts.test.nnz == 0, "nobody else has items 2 and 3 before the cut"


def test_known_items_are_tested_only_with_repeats() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [("u", f"i{day}", start + timedelta(days=day)) for day in range(8)]
    matrix = matrix_of([*rows, ("u", "i0", start + timedelta(days=9)), ("v", "i1", start)], Weighing())
    tested = [
        split(matrix.user_items, matrix.history, SplitOptions("by-time", repeats=repeats)).test.indices.tolist()
        for repeats in (False, True)
    ]
    assert tested == [[6, 7], [0, 6, 7]]


@settings(deadline=None, max_examples=30)
@given(cases())
def test_held_out_users_are_not_learnt_from_and_keep_four_fifths(case: Case) -> None:
    user_items, times, test_share, seed = case
    parts = split(user_items, History.of(user_items, times), SplitOptions("held-out-users", test_share, seed=seed))
    counts = np.diff(user_items.indptr)
    held_out = np.diff(parts.seen.indptr) > 0
    learnt = parts.train.getnnz(axis=0) > 0
    assert held_out.sum() == round(test_share * np.count_nonzero(counts >= 5))
    assert (counts[held_out] >= 5).all()
    assert parts.train[np.flatnonzero(held_out)].nnz == 0
    assert (np.diff(parts.train.indptr)[~held_out] == counts[~held_out]).all()
    assert learnt[parts.test.indices].all(), "what nobody else has cannot be recommended"
    target = np.diff(parts.test.indptr)
    assert (target[held_out] <= np.floor(0.2 * counts[held_out])).all()
    if learnt.all():
        assert (target[held_out] == np.floor(0.2 * counts[held_out])).all()


@pytest.mark.parametrize("kind", SPLIT_KINDS)
def test_seed_changes_the_split_unless_it_is_by_time(kind: SplitKind) -> None:
    user_items = csr_matrix(np.ones((30, 30), dtype=np.float32))
    times = np.arange(900, dtype=np.int64)[::-1].copy()
    first, two = (
        weights(split(user_items, History.of(user_items, times), SplitOptions(kind, seed=seed)).test) for seed in (1, 2)
    )
    assert (first == two) == (kind == "by-time")


def test_a_split_in_time_of_pairs_without_times_is_refused() -> None:
    with pytest.raises(DataError, match="needs times, and the data have none; name their column with --time-column"):
        split(csr_matrix(np.ones((3, 3), dtype=np.float32)), None, SplitOptions("by-time"))


def test_undated_pairs_come_first() -> None:
    user_items = csr_matrix(np.ones((2, 4), dtype=np.float32))
    times = np.array([7, NO_TIME, 9, 8, NO_TIME, NO_TIME, 3, NO_TIME])
    by_time = split(user_items, History.of(user_items, times), SplitOptions("by-time", 0.25))
    assert pair_numbers(by_time.test).tolist() == [2, 3]


def test_given_parts_share_no_pairs() -> None:
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
        (lambda: SplitOptions("random", seed=-1), "seed is -1"),
    ],
)
def test_invalid_split_options_are_refused(make: Callable[[], SplitOptions], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        make()
