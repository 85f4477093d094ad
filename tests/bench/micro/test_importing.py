"""The import beside a script of two libraries: both write the same lists."""

from pathlib import Path

import lmdb
import polars as pl

from bench.micro import bare_import, importing
from bench.micro.spent import Spent
from stores.encoding import HEADER_BYTES


def rows_of(file: Path, cut: int) -> dict[bytes, bytes]:
    with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment, environment.begin() as txn:
        return {bytes(key): bytes(value)[cut:] for key, value in txn.cursor() if key.startswith(b"user:")}


def test_both_write_the_same_lists(tmp_path: Path) -> None:
    lists, store, bare = tmp_path / "lists.csv", tmp_path / "store", tmp_path / "bare.mdb"
    importing.write_lists(lists, users=50)
    assert pl.read_csv(lists).select("user", "item").n_unique() == 50 * bare_import.LENGTH
    assert importing.import_lists(lists, store).cpu_s > 0
    assert importing.import_bare(lists, bare).cpu_s > 0
    (sealed,) = (store / "releases").glob("*.mdb")
    assert len(rows_of(bare, 0)) == 50
    assert rows_of(sealed, HEADER_BYTES) == rows_of(bare, 0)


def test_every_figure_has_a_value_a_round() -> None:
    spent = Spent(wall_s=1.0, cpu_s=3.0, peak_mb=2.0), Spent(wall_s=1.0, cpu_s=2.0, peak_mb=4.0)
    figures = importing.import_figures("import", spent[:1], spent[1:])
    assert [one.values for one in figures] == [[3.0], [2.0], [1.5], [2.0], [4.0]]
    assert [one.met for one in figures] == [None, None, True, True, None]
