"""Memory: what does not fit is refused before it is tried, with what it takes and what to do."""

import numpy as np
import pytest

from offline.errors import DataError
from offline.train import memory
from offline.train.als import ALSParams
from offline.train.ease import EASEParams
from offline.train.engine import fit
from offline.train.memory import als_bytes, check_memory
from tests.support.interactions import checkerboard


def test_the_memory_of_movielens_20m_is_what_was_measured() -> None:
    assert als_bytes(22_600_000, 138_493, 26_744, 128) == pytest.approx(0.63e9, rel=0.02)


def test_more_factors_and_more_pairs_take_more() -> None:
    assert als_bytes(10, 3, 4, 2) == 3 * (10 * 8 + 4 * 4) + 7 * 2 * 4
    assert als_bytes(10, 3, 4, 2) < als_bytes(10, 3, 4, 3) < als_bytes(11, 3, 4, 3)


def test_what_does_not_fit_is_refused_with_what_it_takes() -> None:
    check_memory(1_000, "learn less", room=1_000)
    with pytest.raises(DataError, match=r"takes about 7\.5 GB of memory, and 4\.0 GB are left; .* more, learn less\.$"):
        check_memory(7_500_000_000, "learn less", room=4e9)


def test_no_fit_begins_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    user_items = checkerboard(20)
    monkeypatch.setattr(memory, "room_bytes", lambda: 100.0)
    for params, instead in ((ALSParams(factors=2), "on a Spark cluster"), (EASEParams(), "with --engine als")):
        with pytest.raises(DataError, match=f"Learning takes about .*{instead}"):
            fit(user_items.astype(np.float32), params)
