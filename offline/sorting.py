"""Sorting more rows than memory holds: spread by owner over pieces on disk, each then sorted and cut by itself."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from offline.errors import DataError
from offline.files import reading
from offline.scored import Scored

PIECE_ROWS = 1_000_000
"""Rows that are sorted at once: about 150 MB with ids of ten characters."""

MAX_PIECES = 250
"""More pieces would be too many small files; of more rows than these hold, each piece holds more."""

ROOM = 1.2
"""Bytes on disk, at most, per byte of ids and scores."""

_SCORE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Sorted:
    """
    Lists in ascending order of their owners' bytes, best item first; lives as long as its folder.

    pieces       Parquet files [owner, item, score], in order; no owner is in two of them
    items        [item: str, lists: u32], in how many lists each item is
    owners       how many lists there are
    duplicates   rows left out because their owner and item had a higher score in another
    """

    pieces: list[Path]
    items: pl.DataFrame
    owners: int
    duplicates: int


def sort(scored: Scored, length: int, folder: Path, tell: Callable[[int, int], None]) -> Sorted:
    """
    Sort rows into files in *folder*: by owner, then highest score, then item; at most *length* items for each owner.

    *tell* is called with (rows, twice the rows), for each is handled twice. Raises DataError where the disk is too
    small, before anything is written, or gets full.
    """
    _check_room(scored, folder)
    total = 2 * scored.kept
    tell(0, total)
    bounds = _bounds(scored)
    for done in _spread(scored, bounds, folder):
        tell(done, total)
    pieces, counts = list[Path](), list[pl.DataFrame]()
    done, owners, duplicates = scored.kept, 0, 0
    for number in range(len(bounds) + 1):
        piece = folder / str(number)
        if not piece.exists():
            continue
        with _writing(folder):
            rows = pl.read_parquet(piece / "*.parquet")
            shutil.rmtree(piece)
            best = rows.group_by("owner", "item").agg(pl.col("score").max())
            lists = _cut(best, length)
            pieces.append(folder / f"{number}.parquet")
            lists.write_parquet(pieces[-1], compression="lz4")
        done += rows.height
        owners += lists.get_column("owner").n_unique()
        duplicates += rows.height - best.height
        counts = [_summed([*counts, lists.group_by("item").agg(pl.len().alias("lists"))])]
        tell(done, total)
    return Sorted(pieces, counts[0].sort("lists", "item", descending=[True, False]), owners, duplicates)


def _cut(rows: pl.DataFrame, length: int) -> pl.DataFrame:
    ordered = rows.sort("owner", "score", "item", descending=[False, True, False])
    return ordered.group_by("owner", maintain_order=True).head(length)


def _bounds(scored: Scored) -> pl.Series:
    """Return the owners at which pieces begin, so that each piece gets about as many rows."""
    count = min(-(-scored.kept // PIECE_ROWS), MAX_PIECES)
    places = [len(scored.owners) * at // count for at in range(1, count)] if len(scored.owners) else []
    return scored.owners.gather(places).unique(maintain_order=True)


def _spread(scored: Scored, bounds: pl.Series, folder: Path) -> Iterator[int]:
    """Write each row into the folder of its piece; yield how many rows are written."""
    held, done = list[pl.DataFrame](), 0
    with _writing(folder):
        for batch in scored.frame.select("owner", "item", "score").collect_batches(maintain_order=False):
            held.append(batch)
            if sum(frame.height for frame in held) >= PIECE_ROWS:
                done += _spill(pl.concat(held), bounds, folder, done)
                held.clear()
                yield done
        if held:
            yield done + _spill(pl.concat(held), bounds, folder, done)


def _spill(rows: pl.DataFrame, bounds: pl.Series, folder: Path, name: int) -> int:
    # Computed here, for inside a query it would not stream: the whole file would be in memory.
    piece = bounds.search_sorted(rows.get_column("owner"), side="right")
    for (number,), part in (
        rows.with_columns(piece=piece).partition_by("piece", as_dict=True, include_key=False).items()
    ):
        (folder / str(number)).mkdir(exist_ok=True)
        part.write_parquet(folder / str(number) / f"{name}.parquet", compression="lz4", statistics=False)
    return rows.height


def _summed(counts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(counts).group_by("item").agg(pl.col("lists").sum())


def _check_room(scored: Scored, folder: Path) -> None:
    needed = int((scored.id_bytes + scored.kept * _SCORE_BYTES) * ROOM)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"Sorting takes about {needed / 1e6:,.0f} MB in {folder.parent} and {free / 1e6:,.0f} MB are free; "
            "free some, or set TMPDIR to a folder on a larger disk."
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Tell a disk that got full from input that cannot be read."""
    try:
        with reading(folder):
            yield
    except DataError as error:
        if "No space left" in str(error.__cause__):
            raise DataError(
                f"No space is left in {folder.parent}; free some, or set TMPDIR to a folder on a larger disk."
            ) from error
        raise
