"""What learning takes: more for more, and what does not fit is refused before it is tried."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError
from hotplate.offline.input.matrix import UserItems
from hotplate.offline.train import cost, tuning
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.cost import check_memory, fit_bytes, fit_s, rank_s
from hotplate.offline.train.ease import EASEParams
from hotplate.offline.train.engine import fit
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams
from tests.support.interactions import checkerboard


def matrix(users: int, items: int, each: int) -> UserItems:
    """Users who all have the first items."""
    ends, indices = np.arange(users + 1) * each, np.tile(np.arange(each, dtype=np.int32), users)
    return csr_matrix((np.ones(users * each, dtype=np.float32), indices, ends), shape=(users, items))


def test_the_memory_of_a_fit_of_als_is_what_was_measured() -> None:
    # A hundredth of the pairs of MovieLens 20M, and its users and items.
    assert fit_bytes(ALSParams(128), matrix(138_493, 26_744, 2)) == pytest.approx(0.93e8, rel=0.02)
    assert fit_bytes(ALSParams(2), matrix(3, 4, 3)) == 3 * (9 * 8 + 4 * 4) + 7 * 2 * 4


def test_a_search_affords_ease_of_12_000_items() -> None:
    assert fit_bytes(EASEParams(), matrix(2, 12_000, 2)) <= tuning._BUDGET_BYTES
    assert 2 * fit_s(EASEParams(), matrix(2, 12_000, 2)) <= tuning._BUDGET_S


def test_more_to_learn_takes_more_time_and_memory() -> None:
    small, large = matrix(40, 30, 5), matrix(40, 60, 10)
    for params in (ALSParams(8), EASEParams(), NeighbourParams(), PopularityParams()):
        assert 0 < fit_s(params, small) < fit_s(params, large)
        assert fit_bytes(params, small) <= fit_bytes(params, large)
        assert 0 < rank_s(params, small) < rank_s(params, large)
    assert fit_s(ALSParams(8), small) < fit_s(ALSParams(16), small)
    assert rank_s(ALSParams(8), small) < rank_s(ALSParams(16), small)
    assert rank_s(EASEParams(), small) < rank_s(EASEParams(), matrix(40, 30, 10)), "more pairs are summed up"


def test_what_does_not_fit_is_refused_with_what_it_takes() -> None:
    check_memory(1_000, "learn less", room=1_000)
    with pytest.raises(DataError, match=r"takes about 7\.5 GB of memory, and 4\.0 GB are left; .* more, learn less\.$"):
        check_memory(7_500_000_000, "learn less", room=4e9)


def test_no_fit_begins_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    user_items = checkerboard(20)
    monkeypatch.setattr(cost, "room_bytes", lambda: 100.0)
    for params, instead in ((ALSParams(factors=2), "on a Spark cluster"), (EASEParams(), "with --engine als")):
        with pytest.raises(DataError, match=f"Learning takes about .*{instead}"):
            fit(user_items.astype(np.float32), params)
