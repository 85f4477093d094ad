"""Splits: disjoint, together the whole, of the share that was asked for, the same for the same seed."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from offline.errors import SettingError
from offline.evaluate import random_split, stratified_split
from offline.input.matrix import UserItems

Divide = Callable[[UserItems, float, int], tuple[UserItems, UserItems]]


def by_user(user_items: UserItems, test_share: float, seed: int) -> tuple[UserItems, UserItems]:
    return stratified_split(user_items, test_share, seed, by="user")


@st.composite
def matrices(draw: st.DrawFn) -> UserItems:
    shape = draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    cells = draw(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return csr_matrix(np.array(cells, dtype=np.float32).reshape(shape))


@pytest.mark.parametrize("divide", [random_split, stratified_split, by_user])
@settings(deadline=None)  # a busy machine is no failure
@given(matrices(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_train_and_test_are_disjoint_and_together_the_whole(
    divide: Divide, user_items: UserItems, test_share: float, seed: int
) -> None:
    train, test = divide(user_items, test_share, seed)
    assert train.shape == test.shape == user_items.shape
    assert train.multiply(test).nnz == 0
    assert (train + test != user_items).nnz == 0
    assert train.nnz + test.nnz == user_items.nnz
    again, _ = divide(user_items, test_share, seed)
    assert (again != train).nnz == 0
    assert train.has_canonical_format
    assert test.dtype == np.float32


@settings(deadline=None)  # a busy machine is no failure
@given(matrices(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_each_group_is_divided_by_the_share(user_items: UserItems, test_share: float, seed: int) -> None:
    for axis, divide in ((0, stratified_split), (1, by_user)):
        train, _ = divide(user_items, test_share, seed)
        wanted = np.round((1 - test_share) * user_items.getnnz(axis=axis))
        assert (train.getnnz(axis=axis) == wanted).all()
    train, _ = random_split(user_items, test_share, seed)
    assert train.nnz == round((1 - test_share) * user_items.nnz)


def test_another_seed_divides_otherwise() -> None:
    user_items = csr_matrix(np.ones((30, 30), dtype=np.float32))
    one, _ = stratified_split(user_items, 0.25, 1)
    two, _ = stratified_split(user_items, 0.25, 2)
    assert (one != two).nnz > 0


@pytest.mark.parametrize("test_share", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(test_share: float) -> None:
    with pytest.raises(SettingError, match="test share"):
        random_split(csr_matrix(np.eye(3, dtype=np.float32)), test_share, 1)
