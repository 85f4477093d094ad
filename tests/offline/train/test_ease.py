"""EASE: the weights are those of as many ridge regressions as there are items, and what it refuses."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hotplate.offline.input.matrix import Floats
from hotplate.offline.train.item_based import EASEParams, fit_ease

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hotplate.offline.train.item_based._AT_ONCE", 5)
        found = fit_ease(matrix, EASEParams(REGULARIZATION)).weights
    assert found.dtype == np.float32
    assert np.allclose(found, regressions(matrix.toarray()), atol=1e-5)
    assert (np.diag(found) == 0).all()
