"""Splits: nothing is lost and nothing twice, shares are kept, and no future is in what is learnt from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from offline.errors import SettingError
from offline.evaluate.splits import SplitKind, SplitOptions, split
from offline.input.matrix import UserItems
from tests.support.soak import scaled


@st.composite
def matrices(draw: st.DrawFn) -> UserItems:
    shape = draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    cells = draw(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return csr_matrix(np.array(cells, dtype=np.float32).reshape(shape))


def check_split(kind: SplitKind, user_items: UserItems, test_share: float, seed: int) -> None:
    train, _, _, test = split(user_items, None, SplitOptions(kind, test_share, seed=seed))
    assert train.shape == test.shape == user_items.shape
    assert train.multiply(test).nnz == 0
    assert (train + test != user_items).nnz == 0
    assert train.nnz + test.nnz == user_items.nnz
    again = split(user_items, None, SplitOptions(kind, test_share, seed=seed)).train
    assert (again != train).nnz == 0
    assert train.has_canonical_format
    assert test.dtype == np.float32


@pytest.mark.parametrize("kind", ["random", "by-item", "by-user"])
@settings(deadline=None)  # a busy machine is no failure
@given(matrices(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_train_and_test_are_disjoint_and_together_the_whole(
    kind: SplitKind, user_items: UserItems, test_share: float, seed: int
) -> None:
    check_split(kind, user_items, test_share, seed)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["random", "by-item", "by-user"])
@settings(deadline=None, max_examples=scaled(800))
@given(matrices(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_thousands_of_splits_are_disjoint_and_together_the_whole(
    kind: SplitKind, user_items: UserItems, test_share: float, seed: int
) -> None:
    check_split(kind, user_items, test_share, seed)


@settings(deadline=None)  # a busy machine is no failure
@given(matrices(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_each_group_is_split_by_the_share(user_items: UserItems, test_share: float, seed: int) -> None:
    axes: tuple[tuple[int, SplitKind], ...] = ((0, "by-item"), (1, "by-user"))
    for axis, kind in axes:
        train = split(user_items, None, SplitOptions(kind, test_share, seed=seed)).train
        wanted = np.round((1 - test_share) * user_items.getnnz(axis=axis))
        assert (train.getnnz(axis=axis) == wanted).all()
    train = split(user_items, None, SplitOptions("random", test_share, seed=seed)).train
    assert train.nnz == round((1 - test_share) * user_items.nnz)


def test_another_seed_splits_otherwise() -> None:
    user_items = csr_matrix(np.ones((30, 30), dtype=np.float32))
    one = split(user_items, None, SplitOptions(seed=1)).train
    two = split(user_items, None, SplitOptions(seed=2)).train
    assert (one != two).nnz > 0


@pytest.mark.parametrize("test_share", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(test_share: float) -> None:
    with pytest.raises(SettingError, match="test share"):
        SplitOptions("random", test_share)
