"""External sort of lists: rows are partitioned by owner on disk, and each partition is sorted in memory."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from offline.errors import DataError
from offline.input.files import data_errors

# Rows that are sorted at once: about 150 MB with ids of ten characters.
PARTITION_ROWS = 1_000_000
# More would be too many small files; beyond this many, partitions hold more rows instead.
MAX_PARTITIONS = 250
# Bytes on disk, at most, per byte of ids and scores.
DISK_FACTOR = 1.2
_SCORE_BYTES = 8


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """
    The rows of one file, or folder, of lists, to be scanned as often as needed.

    frame      [owner: str, item: str, score: f64, finite, and title: str, if there is such a column], kept rows only
    rows       how many there were, those left out among them
    kept       how many were not left out
    left_out   how many rows were left out, by reason; zeros not listed
    id_bytes   bytes of all owners and items of the rows that are kept
    owners     owners of rows sampled at even distances, ascending, with repetitions
    """

    frame: pl.LazyFrame
    rows: int
    kept: int
    left_out: dict[str, int]
    id_bytes: int
    owners: pl.Series


@dataclass(frozen=True, slots=True)
class SortedLists:
    """
    Lists in ascending order of their owners' bytes, best item first; lives as long as its folder.

    partitions   Parquet files [owner, item, score], in order; no owner is in two of them
    items        [item: str, lists: u32], in how many lists each item is
    owners       how many lists there are
    duplicates   rows left out because their owner and item had a higher score in another
    """

    partitions: list[Path]
    items: pl.DataFrame
    owners: int
    duplicates: int


def sort_lists(scored: ScoredRows, length: int, folder: Path, on_progress: Callable[[int, int], None]) -> SortedLists:
    """
    Sort rows into files in a new *folder*: by owner, then highest score, then item; at most *length* items per owner.

    *on_progress* is called with (rows done, twice the rows), for each is handled twice. Raises DataError where the disk
    is too small, before anything is written, or gets full.
    """
    _check_free_space(scored, folder.parent)
    folder.mkdir()
    total = 2 * scored.kept
    on_progress(0, total)
    bounds = _bounds(scored)
    for done in _partition(scored, bounds, folder):
        on_progress(done, total)
    partitions, counts = list[Path](), pl.DataFrame(schema={"item": pl.String, "lists": pl.UInt32})
    done, owners, duplicates = scored.kept, 0, 0
    for number in range(len(bounds) + 1):
        partition = folder / str(number)
        if not partition.exists():
            continue
        with _disk_errors(folder):
            rows = pl.read_parquet(partition / "*.parquet")
            shutil.rmtree(partition)
            best = rows.group_by("owner", "item").agg(pl.col("score").max())
            lists = top_items(best, length)
            partitions.append(folder / f"{number}.parquet")
            lists.write_parquet(partitions[-1], compression="lz4")
        done += rows.height
        owners += lists.get_column("owner").n_unique()
        duplicates += rows.height - best.height
        in_lists = lists.group_by("item").agg(pl.len().alias("lists"))
        counts = pl.concat([counts, in_lists]).group_by("item").agg(pl.col("lists").sum())
        on_progress(done, total)
    return SortedLists(partitions, counts.sort("lists", "item", descending=[True, False]), owners, duplicates)


def top_items(rows: pl.DataFrame, length: int) -> pl.DataFrame:
    """Sort [owner, item, score] by owner, then highest score, then item, and keep *length* items for each owner."""
    ordered = rows.sort("owner", "score", "item", descending=[False, True, False])
    return ordered.group_by("owner", maintain_order=True).head(length)


def _bounds(scored: ScoredRows) -> pl.Series:
    """Return the owners at which partitions begin, so that each partition gets about as many rows."""
    count = min(-(-scored.kept // PARTITION_ROWS), MAX_PARTITIONS)
    starts = [len(scored.owners) * at // count for at in range(1, count)] if len(scored.owners) else []
    return scored.owners.gather(starts).unique(maintain_order=True)


def _partition(scored: ScoredRows, bounds: pl.Series, folder: Path) -> Iterator[int]:
    """Write each row into the folder of its partition; yield how many rows are written."""
    buffer, done = list[pl.DataFrame](), 0
    with _disk_errors(folder):
        for batch in scored.frame.select("owner", "item", "score").collect_batches(maintain_order=False):
            buffer.append(batch)
            if sum(frame.height for frame in buffer) >= PARTITION_ROWS:
                done += _spill(pl.concat(buffer), bounds, folder, done)
                buffer.clear()
                yield done
        if buffer:
            yield done + _spill(pl.concat(buffer), bounds, folder, done)


def _spill(rows: pl.DataFrame, bounds: pl.Series, folder: Path, name: int) -> int:
    # Computed here, for inside a query it would not stream: the whole file would be in memory.
    partition = bounds.search_sorted(rows.get_column("owner"), side="right")
    parts = rows.with_columns(partition=partition).partition_by("partition", as_dict=True, include_key=False)
    for (number,), part in parts.items():
        (folder / str(number)).mkdir(exist_ok=True)
        part.write_parquet(folder / str(number) / f"{name}.parquet", compression="lz4", statistics=False)
    return rows.height


def _check_free_space(scored: ScoredRows, folder: Path) -> None:
    needed = int((scored.id_bytes + scored.kept * _SCORE_BYTES) * DISK_FACTOR)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"Sorting takes about {needed / 1e6:,.0f} MB in {folder} and {free / 1e6:,.0f} MB are free; "
            "free some, or set TMPDIR to a folder on a larger disk."
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Distinguish a disk that is full from input that cannot be read."""
    try:
        with data_errors(folder):
            yield
    except DataError as error:
        if "No space left" in str(error.__cause__):
            raise DataError(
                f"No space is left in {folder.parent}; free some, or set TMPDIR to a folder on a larger disk."
            ) from error
        raise
