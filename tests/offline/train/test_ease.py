"""EASE: the weights are those of as many ridge regressions as there are items, and what it refuses."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hotplate.offline.input.matrix import Floats
from hotplate.offline.train.ease import EASEParams, fit

REGULARIZATION = 3.0


def regressions(weights: Floats) -> npt.NDArray[np.float64]:
    """Predict each item by ridge regression on the others, one at a time, as the papers state the problem."""
    values = np.sqrt(weights.astype(np.float64))
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    scaled = values / np.sqrt(np.where(norms > 0, norms, 1))
    penalty = REGULARIZATION + 0.25 * (scaled**2).sum(axis=0)
    found = np.zeros((weights.shape[1], weights.shape[1]))
    for item in range(weights.shape[1]):
        others = np.delete(np.arange(weights.shape[1]), item)
        inputs = scaled[:, others]
        gram = inputs.T @ inputs + np.diag(penalty[others])
        found[others, item] = np.linalg.solve(gram, inputs.T @ scaled[:, item])
    return found


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 12))
def test_weights_are_those_of_a_regression_for_each_item(seed: int, users: int, items: int) -> None:
    generator = np.random.default_rng(seed)
    weights = (generator.random((users, items)) * 9 + 1) * (generator.random((users, items)) < 0.4)
    weights[0, 0] = 1  # nothing can be learnt from no pair
    matrix = csr_matrix(weights.astype(np.float32))
    found = fit(matrix, EASEParams(REGULARIZATION)).weights
    assert found.dtype == np.float32
    assert np.allclose(found, regressions(matrix.toarray()), atol=1e-5)
    assert (np.diag(found) == 0).all()


def test_more_items_and_users_than_are_taken_at_once_change_nothing() -> None:
    generator = np.random.default_rng(4)
    weights = (generator.random((1500, 1100)) < 0.02).astype(np.float32)
    matrix = csr_matrix(weights)
    ranker = fit(matrix, EASEParams(REGULARIZATION))
    scaled = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1) ** 0.25
    inverse = np.linalg.inv(scaled.T @ scaled + np.diag(REGULARIZATION + 0.25 * (scaled**2).sum(axis=0)))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    assert np.allclose(ranker.weights, expected, atol=1e-4)
    everyone = np.arange(1500, dtype=np.int32)
    items, scores = ranker.recommend(matrix, everyone, 3)
    one_by_one = [ranker.recommend(matrix, everyone[user : user + 1], 3) for user in (0, 1023, 1024, 1499)]
    assert (items[[0, 1023, 1024, 1499]] == np.concatenate([each for each, _ in one_by_one])).all()
    assert np.allclose(scores, np.sort(np.where(weights > 0, 0, weights @ ranker.weights))[:, :-4:-1], atol=1e-5)


def test_an_item_that_nobody_has_is_recommended_to_nobody() -> None:
    weights = np.random.default_rng(1).random((30, 6)).astype(np.float32).round()
    weights[:, 3] = 0
    matrix = csr_matrix(weights)
    items, _ = fit(matrix, EASEParams()).recommend(matrix, np.arange(30, dtype=np.int32), 6)
    assert 3 not in items
