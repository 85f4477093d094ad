"""What `hotplate import` costs, beside the two libraries that it is made of, called by a script that does no more."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from bench.micro.bare_import import LENGTH
from bench.micro.rounds import HOTPLATE, Effort, Figure, Outcome, Unmeasured, at_most, interleave, ratio
from bench.micro.spent import Spent, run

ITEMS = 20_000
# Bytes of disk for a row: the file, what is sorted, and both stores.
ROOM = 160
# How much of the CPU of bare calls an import may take, and memory whatever the number of users is.
CPU_RATIO, PEAK_MB = 1.5, 1200


def measure(effort: Effort) -> list[Outcome]:
    """Import shuffled rows, 20 for each user, from CSV and from Parquet, both ways in turn."""
    count = effort.users * LENGTH
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        free = shutil.disk_usage(folder).free
        if free < count * ROOM:
            return [Unmeasured("import", f"{made} has {free / 1e6:,.0f} MB free; {count * ROOM / 1e6:,.0f} are needed")]
        outcomes = list[Outcome]()
        for name in ("lists.csv", "lists.parquet"):
            lists = folder / name
            write_lists(lists, effort.users)
            variants: dict[str, Callable[[], Spent]] = {
                "ours": partial(import_lists, lists, folder / "store"),
                "bare": partial(import_bare, lists, folder / "bare.mdb"),
            }
            taken = interleave(variants, effort.rounds)
            outcomes += import_figures(f"import {count:,} rows of {lists.suffix[1:]}", taken["ours"], taken["bare"])
            lists.unlink()
        return outcomes


def write_lists(path: Path, users: int) -> None:
    """Write rows of user, item and score in no order; no user has an item twice."""
    draw = np.random.default_rng(0)
    shuffled = draw.permutation(users * LENGTH)
    first = draw.integers(0, ITEMS, users)
    user, rank = np.divmod(shuffled, LENGTH)
    rows = pl.DataFrame(
        {"user": user, "item": (first[user] + rank**2) % ITEMS, "score": draw.random(len(user)).round(4)}
    )
    texts = rows.with_columns(
        pl.concat_str(pl.lit("u"), pl.col("user").cast(pl.String).str.zfill(9)).alias("user"),
        pl.concat_str(pl.lit("sku"), pl.col("item").cast(pl.String)).alias("item"),
    )
    if path.suffix == ".parquet":
        texts.write_parquet(path)
    else:
        texts.write_csv(path)


def import_lists(lists: Path, store: Path) -> Spent:
    """Import into a new store."""
    shutil.rmtree(store, ignore_errors=True)
    return run([*HOTPLATE, "import", str(lists), "--store", f"file://{store}"])


def import_bare(lists: Path, target: Path) -> Spent:
    """Import with nothing but polars and LMDB."""
    target.unlink(missing_ok=True)
    return run([sys.executable, "-m", "bench.micro.bare_import", str(lists), str(target)])


def import_figures(what: str, ours: Sequence[Spent], bare: Sequence[Spent]) -> list[Figure]:
    """Name both, and the CPU of one divided by that of the other, round by round."""
    cpus = [one.cpu_s for one in ours], [one.cpu_s for one in bare]
    return [
        Figure(f"{what}: CPU", "s", cpus[0]),
        Figure(f"{what}, polars and LMDB alone: CPU", "s", cpus[1]),
        ratio(f"{what} / polars and LMDB alone: CPU", *cpus, goal=at_most(CPU_RATIO)),
        Figure(f"{what}: peak memory", "MB", [one.peak_mb for one in ours], at_most(PEAK_MB)),
        Figure(f"{what}, polars and LMDB alone: peak memory", "MB", [one.peak_mb for one in bare]),
    ]
