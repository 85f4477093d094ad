"""Cancellations: cancelled purchases are not learnt; those cancelled after a time cut are learnt before it."""

from datetime import timedelta
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.splits import SplitOptions, split
from hotplate.offline.input.history import Weighting
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.matrix import Matrix, to_matrix
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.options import Columns
from tests.support.interactions import pairs_of, write
from tests.support.property import depths, explore

LOG = """customer,product,quantity,date,invoice
u,a,6,2026-01-01,1
u,a,-6,2026-01-03,C1
u,b,4,2026-01-01,1
u,b,2,2026-01-02,2
u,b,-3,2026-01-04,C2
u,c,-1,2026-01-01,C3
u,c,1,2026-01-02,2
v,a,1,2026-01-01,3
v,a,0,2026-01-02,4
v,b,,2026-01-02,4
v,c,3,2026-01-02,4
v,c,-9,2026-01-02,C4
v,d,0.3,2026-01-01,3
v,d,-0.1,2026-01-02,C5
v,d,-0.2,2026-01-03,C6
"""


def written(folder: Path, text: str = LOG) -> Path:
    return write(folder / "log.csv", text)


def test_cancellation_reverts_the_latest_earlier_purchase_and_is_reported(tmp_path: Path) -> None:
    read = read_interactions(written(tmp_path))
    assert pairs_of(read) == [("u", "b", 0.75), ("u", "c", 1.0), ("v", "a", 2.0), ("v", "b", 1.0)]
    (note,) = read.notes
    assert note.startswith("6 rows with a 'quantity' below zero: earlier purchases")
    assert note.endswith("--where 'quantity>0' leaves them out")
    assert (read.rows, read.left_out) == (15, {})
    kept = read_interactions(tmp_path / "log.csv", where=["quantity>0"])
    assert kept.notes == []
    assert ("u", "a", 1.0) in pairs_of(kept)


def test_a_log_of_cancelled_purchases_alone_is_an_error_that_says_so(tmp_path: Path) -> None:
    rows = "".join(f"{user},i,{quantity},2026-01-0{1 + (quantity < 0)}\n" for user in "uv" for quantity in (1, -1))
    read = read_interactions(written(tmp_path, f"user,item,quantity,time\n{rows}"))
    with pytest.raises(DataError, match="all that was bought was cancelled"):
        to_matrix(read.log, weighing=read.weighing)


def test_cancellations_reduce_weights_and_counts(tmp_path: Path) -> None:
    expected = {Columns(weight="quantity"): [3.0, 1.0, 1.0], Columns(count="invoice"): [0.75, 1.0, 2.0, 1.0]}
    for columns, weights in expected.items():
        read = read_interactions(written(tmp_path), columns=columns)
        assert [weight for _, _, weight in pairs_of(read)] == weights


def test_quantities_without_times_are_summed(tmp_path: Path) -> None:
    text = "user,item,qty\nu,a,-1\nu,a,3\nu,b,2\nu,b,-2\nv,a,1\nv,c,1\n"
    read = read_interactions(written(tmp_path, text))
    assert pairs_of(read) == [("u", "a", pytest.approx(2 / 3)), ("v", "a", 1.0), ("v", "c", 1.0)]
    with pytest.raises(DataError, match="all that was bought was cancelled"):
        read_interactions(written(tmp_path, "user,item,qty\nu,a,-1\nu,a,1\n"))
    with pytest.raises(DataError, match="row 3, column 'qty': '-2,00' is not a finite number"):
        read_interactions(written(tmp_path, "user;item;qty\nu;a;2\nu;a;-2,00\n"))


def test_segment_popular_list_ignores_cancelled_purchases(tmp_path: Path) -> None:
    rows = "u,a,1,x\nu,a,-1,x\nv,a,1,x\nv,b,1,x\nu,b,1,x\nw,c,1,y\nw,c,-1,y\n"
    read = read_interactions(written(tmp_path, "user,item,quantity,segment\n" + rows))
    assert read.segments is not None
    assert read.segments.rows() == [("x", "a", None, 1.0), ("x", "b", None, 2.0)]


Log = list[tuple[str, str, float, int]]
quantities = st.sampled_from([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
rows = st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcd"), quantities, st.integers(0, 9))
# The only purchase of a user, and of an item, is cancelled after the cut.
LEAK = [("w", "c", 1.0, 1), ("w", "c", -1.0, 9)]
LEAK += [(user, item, 1.0, day) for day, (user, item) in enumerate(product("uv", "abd"), start=1)]
# Pairs below the minimum do not count for the mean weight.
SCALE = [("u", "a", 0.5, 1), ("u", "b", 0.5, 0), ("u", "c", 0.5, 0), ("w", "a", 0.5, 2), ("w", "b", 0.5, 2)]
logs = st.lists(rows, min_size=6, max_size=40)


def by_ids(user_items: UserItems, matrix: Matrix) -> dict[tuple[str, str], float]:
    return {
        (matrix.user_ids[user], matrix.item_ids[item]): float(user_items[user, item])
        for user, item in zip(*user_items.nonzero(), strict=True)
    }


def read(log: Log, minimum: int, how: Weighting, half_life: timedelta | None) -> Matrix:
    frame = pl.DataFrame(log, ["user", "item", "quantity", "time"], orient="row")
    with TemporaryDirectory() as folder:
        path = Path(folder, "log.parquet")
        frame.with_columns(pl.from_epoch(pl.col("time") + 20_000, "d")).write_parquet(path)
        interactions = read_interactions(path, weighting=how, half_life=half_life)
        return to_matrix(interactions.log, minimum, minimum, interactions.weighing)


def check_rows_after_the_cut(
    log: Log, minimum: int, test_share: float, how: Weighting, half_life: timedelta | None
) -> None:
    try:
        matrix = read(log, minimum, how, half_life)
    except DataError:  # one user or item is left, or none
        return
    assert matrix.history is not None
    assert matrix.times is not None
    options = SplitOptions("by-time", test_share, min_per_user=minimum, min_per_item=minimum)
    parts = split(matrix.user_items, matrix.history, options)
    cut = np.sort(matrix.times)[max(0, round((1 - test_share) * len(matrix.times)) - 1)]
    day = int(cut) // 86_400_000_000 - 20_000
    try:
        before = read([row for row in log if row[3] <= day], minimum, how, half_life)
    except DataError:
        return
    assert parts.train_times is not None
    assert before.times is not None
    assert parts.train_times.tolist() == before.times.tolist()
    assert by_ids(parts.train, matrix) == pytest.approx(by_ids(before.user_items, before), rel=1e-5)


@depths(30, 200)
def test_rows_after_the_cut_affect_neither_training_data_nor_matrix_users(examples: int) -> None:
    check_rows_after_the_cut(LEAK, 1, 0.4, "sum", None)
    check_rows_after_the_cut(SCALE, 2, 0.25, "sum", timedelta(days=2))
    some = {
        "minimum": st.integers(1, 2),
        "test_share": st.floats(0.2, 0.8),
        "how": st.sampled_from(get_args(Weighting)),
    }
    half_lives = st.sampled_from([None, timedelta(days=2)])
    explore(check_rows_after_the_cut, examples, log=logs, half_life=half_lives, **some)
