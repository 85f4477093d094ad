"""For the tests of Spark: an end of Java, a large model, and lists that are equal but for the last digit of a score."""

import os
import signal
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hotplate.offline.input.matrix import Matrix
from hotplate.offline.model import Model
from hotplate.offline.train.als import ALSParams, Factors
from hotplate.offline.train.popularity import most_popular
from hotplate.offline.train.similar import SimilarParams
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.stores.encoding import OFFSET_BYTES, decode
from hotplate.stores.store import Row
from tests.support.interactions import DATA


def model_of(users: int, items: int = 50, factors: int = 8) -> Model:
    """Return a model of random factors, without training."""
    generator = np.random.default_rng(7)
    places = np.sort(generator.random((users, items)).argsort(axis=1)[:, :5], axis=1)
    indptr = np.arange(0, 5 * users + 1, 5)
    user_items = csr_matrix((np.ones(5 * users, dtype=np.float32), places.ravel(), indptr), shape=(users, items))
    user_items.has_canonical_format = True
    learnt = generator.normal(size=(users + items, factors)).astype(np.float32)
    matrix = Matrix([f"n{n:06}" for n in range(users)], [f"i{n:04}" for n in range(items)], user_items)
    params = ALSParams(factors=factors)
    return Model(
        ranker=Factors(learnt[:users], learnt[users:], params),
        matrix=matrix,
        titles={},
        popular=most_popular(matrix, 5),
        segments={},
        params=params,
        evaluation=None,
        data=DATA,
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
        similar=fit_similar(user_items, SimilarParams(0)),
    )


def assert_same_lists(rows: Sequence[Row], expected: Sequence[Row]) -> None:
    """Compare rows of lists, without offsets: the last digit of a score may differ between libraries."""
    assert [row.key for row in rows] == [row.key for row in expected]
    for (key, value), (_, other) in zip(rows, expected, strict=True):
        ours = decode(value)
        theirs = decode(other)
        assert [item["id"] for item in ours] == [item["id"] for item in theirs], key
        assert [item["score"] for item in ours] == pytest.approx([item["score"] for item in theirs], rel=2e-5, abs=3e-6)


def bodies_as_lists(rows: Iterable[Row]) -> list[Row]:
    """Return rows of bodies in the order of their keys, without their offsets."""
    return [Row(key, body[OFFSET_BYTES:]) for key, body in sorted(rows)]


def kill_java() -> None:
    """Kill the Java process that the main thread of this process has started, and wait until it has ended."""
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
        os.waitid(os.P_PID, int(child), os.WEXITED | os.WNOWAIT)  # it stays a zombie for its parent's own wait
