"""The least that an import could be: polars sorts and encodes, LMDB appends, and what it holds is read back.

All rows are in memory at once, and nothing is checked or escaped. It runs as a process of its own, so this module
imports nothing but those two libraries.
"""

import sys
from pathlib import Path

import lmdb
import polars as pl

LENGTH = 20
COLUMNS = {"user": pl.String, "item": pl.String, "score": pl.Float64}
ROWS_AT_ONCE = 10_000


def main() -> int:
    """Import the CSV file that is the first argument into a new LMDB file, the second."""
    source, target = map(Path, sys.argv[1:])
    rows = pl.scan_csv(source, schema=COLUMNS).sort("user", "score", "item", descending=[False, True, False])
    written = append(encoded(rows.collect(engine="streaming")), target)
    return 0 if read_back(target) == written else 1


def encoded(rows: pl.DataFrame) -> pl.DataFrame:
    """Return [key, value] of sorted rows: a JSON object a line, escapes left out."""
    text = pl.concat_str(pl.lit('{"id":"'), "item", pl.lit('","score":'), pl.col("score").cast(pl.String), pl.lit("}"))
    lists = rows.select("user", line=text).group_by("user", maintain_order=True).agg(pl.col("line").head(LENGTH))
    return lists.select(pl.lit("user:") + pl.col("user"), pl.col("line").list.join(",\n"))


def append(rows: pl.DataFrame, target: Path) -> int:
    """Write rows in the order of their keys, and flush them to the disk; return how many."""
    with lmdb.open(str(target), subdir=False, map_size=1 << 40, sync=False, lock=False) as environment:
        for part in rows.iter_slices(ROWS_AT_ONCE):
            with environment.begin(write=True) as transaction:
                pairs = ((key.encode(), value.encode()) for key, value in part.iter_rows())
                transaction.cursor().putmulti(pairs, append=True)
        environment.sync(True)
    return rows.height


def read_back(target: Path) -> int:
    """Read every row; return how many there are."""
    with (
        lmdb.open(str(target), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        return sum(1 for _, value in transaction.cursor() if value)


if __name__ == "__main__":
    sys.exit(main())
